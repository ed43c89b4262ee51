package metafs_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/spacestore/space/capsule/store/metafs"
	"github.com/spacestore/space/internal/vfs"
)

// both runs a benchmark on the sealing file system and on the bare one.
func both(b *testing.B, run func(b *testing.B, fs vfs.FS)) {
	b.Run("bare", func(b *testing.B) { run(b, vfs.OS()) })
	b.Run("sealed", func(b *testing.B) { run(b, metafs.New(vfs.OS(), newKeys(1), nil)) })
}

// BenchmarkCommit is a synced commit of 200 bytes.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 32} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			both(b, func(b *testing.B, fs vfs.FS) {
				d, err := pebble.Open(filepath.Join(b.TempDir(), "meta"), &pebble.Options{FS: fs, Logger: logger{}})
				must(b, err)
				defer d.Close()
				v := []byte(value("v", 200))
				var n atomic.Int64
				b.SetParallelism(max(1, writers/2))
				b.ResetTimer()
				commit := func() {
					if err := d.Set(fmt.Appendf(nil, "key %d", n.Add(1)), v, pebble.Sync); err != nil {
						b.Error(err)
					}
				}
				if writers == 1 {
					for b.Loop() {
						commit()
					}
					return
				}
				b.RunParallel(func(p *testing.PB) {
					for p.Next() {
						commit()
					}
				})
			})
		})
	}
}

// BenchmarkGet is a random read of a database of 64 MB that Pebble does not
// cache (the kernel does).
func BenchmarkGet(b *testing.B) {
	both(b, func(b *testing.B, fs vfs.FS) {
		cache := pebble.NewCache(1 << 10)
		defer cache.Unref()
		d, err := pebble.Open(filepath.Join(b.TempDir(), "meta"), &pebble.Options{FS: fs, Logger: logger{}, Cache: cache})
		must(b, err)
		defer d.Close()
		const n = 300_000
		v := []byte(value("v", 200))
		for i := range n {
			must(b, d.Set(fmt.Appendf(nil, "key %06d", i), v, pebble.NoSync))
		}
		must(b, d.Flush())
		must(b, d.Compact(b.Context(), []byte("a"), []byte("z"), true))
		for b.Loop() {
			_, c, err := d.Get(fmt.Appendf(nil, "key %06d", rand.IntN(n)))
			must(b, err)
			c.Close()
		}
	})
}

// BenchmarkTable reads from a table of 64 MB: 4 KiB anywhere, and all of it.
func BenchmarkTable(b *testing.B) {
	const size = 64 << 20
	both(b, func(b *testing.B, fs vfs.FS) {
		name := filepath.Join(b.TempDir(), "000001.sst")
		f, err := fs.Create(name, "test")
		must(b, err)
		for range size >> 16 {
			_, err := f.Write(make([]byte, 1<<16))
			must(b, err)
		}
		must(b, f.Close())
		r, err := fs.Open(name)
		must(b, err)
		defer r.Close()
		p := make([]byte, 1<<18)
		b.Run("4KiB", func(b *testing.B) {
			b.SetBytes(4 << 10)
			for b.Loop() {
				_, err := r.ReadAt(p[:4<<10], rand.Int64N(size-4<<10))
				must(b, err)
			}
		})
		b.Run("256KiB", func(b *testing.B) {
			b.SetBytes(1 << 18)
			for b.Loop() {
				_, err := r.ReadAt(p, rand.Int64N(size>>18)<<18)
				must(b, err)
			}
		})
	})
}
