package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/spacestore/space/capsule"
)

func benchVolume(b *testing.B) *Volume {
	b.Helper()
	s, err := Open(context.Background(), Options{Dir: b.TempDir(), Keys: testKey, Logger: quietLog()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	info, err := s.Create(context.Background(), CreateRequest{Kind: capsule.Volume, Size: 1 << 30}, nil)
	if err != nil {
		b.Fatal(err)
	}
	return openVolume(b, s, info.ID, "")
}

// fillVolume writes the first n bytes of a volume with what does not compress.
func fillVolume(b *testing.B, v *Volume, n int64) {
	b.Helper()
	p := random(1, 1<<20)
	for off := int64(0); off < n; off += int64(len(p)) {
		fresh(p, off)
		if _, err := v.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := v.s.checkpointAll(); err != nil {
		b.Fatal(err)
	}
}

// fresh makes p differ from what it was in each block.
func fresh(p []byte, i int64) {
	for at := 0; at < len(p); at += BlockSize {
		binary.LittleEndian.PutUint64(p[at:], uint64(i))
		binary.LittleEndian.PutUint32(p[at+8:], uint32(at))
	}
}

const benchSpan = 256 << 20 // random access is to the first bytes of the volume

func BenchmarkVolumeRandomWrite(b *testing.B) {
	v := benchVolume(b)
	fillVolume(b, v, benchSpan)
	p := random(2, 4096)
	before := diskWritten(b)
	for b.Loop() {
		rand.NewChaCha8([32]byte{byte(b.N)}).Read(p[:64])
		if _, err := v.WriteAt(p, rand.Int64N(benchSpan/4096)*4096); err != nil {
			b.Fatal(err)
		}
	}
	if err := v.s.checkpointAll(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
	b.ReportMetric(float64(diskWritten(b)-before)/float64(b.N)/4096, "amplification")
}

// diskWritten is what this process has had written, in bytes.
func diskWritten(b *testing.B) (n int64) {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Skip(err)
	}
	if _, rest, ok := strings.Cut(string(text), "\nwrite_bytes: "); ok {
		fmt.Sscan(rest, &n)
	}
	return n
}

// BenchmarkVolumeSyncedWrite is 4 KiB writes, each flushed, beside the disk's
// own append and sync.
func BenchmarkVolumeSyncedWrite(b *testing.B) {
	b.Run("disk", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "f"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		p := random(3, 4096)
		for b.Loop() {
			if _, err := f.Write(p); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
	})
	for _, c := range []struct {
		name    string
		writers int
	}{{"1", 1}, {"16", 16}} {
		b.Run(c.name, func(b *testing.B) {
			v := benchVolume(b)
			b.SetParallelism((c.writers + 1) / 2)
			if c.writers == 1 {
				b.SetParallelism(1)
			}
			var next atomic.Int64
			p := random(4, 4096)
			write := func() {
				i := next.Add(1)
				if _, err := v.WriteAt(p, i%(benchSpan/4096)*4096); err != nil {
					b.Error(err)
				}
				if err := v.Flush(context.Background()); err != nil {
					b.Error(err)
				}
			}
			if c.writers == 1 {
				for b.Loop() {
					write()
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						write()
					}
				})
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
		})
	}
}

func BenchmarkVolumeRandomRead(b *testing.B) {
	for _, c := range []struct {
		name string
		span int64
	}{{"hot", 32 << 20}, {"cold", benchSpan}} {
		b.Run(c.name, func(b *testing.B) {
			v := benchVolume(b)
			fillVolume(b, v, c.span)
			p := make([]byte, 4096)
			for b.Loop() {
				if _, err := v.ReadAt(p, rand.Int64N(c.span/4096)*4096); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
		})
	}
}

// BenchmarkVolumeSequentialRead reads 1 MiB at a time, from one place on and in
// order, of what no cache of ours has; the system's may.
func BenchmarkVolumeSequentialRead(b *testing.B) {
	v := benchVolume(b)
	fillVolume(b, v, benchSpan)
	p := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() {
		if _, err := v.ReadAt(p, i%(benchSpan>>20)<<20); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkVolumeSequentialWrite(b *testing.B) {
	v := benchVolume(b)
	p := random(5, 1<<20)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() {
		fresh(p, i)
		if _, err := v.WriteAt(p, i%1024<<20); err != nil {
			b.Fatal(err)
		}
		i++
	}
	if err := v.Flush(context.Background()); err != nil {
		b.Fatal(err)
	}
}
