package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spacestore/space/capsule"
)

// Benchmarks run on the real file system, with encryption on. Every put is
// durable when it returns. Reads find the segment logs in the page cache.

const benchSize = 64 << 20

// benchData are the two ends of what is stored: what shrinks and what does not.
var benchData = []struct {
	name string
	data func() []byte
}{
	{"text", sync.OnceValue(func() []byte { return text(1, benchSize) })},
	{"random", sync.OnceValue(func() []byte { return random(1, benchSize) })},
}

func openDisk(b testing.TB, o Options) *Store {
	b.Helper()
	if o.Dir == "" {
		o.Dir = b.TempDir()
	}
	o.Keys, o.Logger = testKey, quietLog()
	s, err := Open(context.Background(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// alone is a policy under which no two puts share segments, so that the same
// bytes are new each time.
func alone() *capsule.Policy {
	p := capsule.DefaultPolicy()
	p.Dedupe = false
	return p
}

func BenchmarkPut(b *testing.B) {
	for _, c := range benchData {
		b.Run(c.name, func(b *testing.B) {
			data := c.data()
			s := openDisk(b, Options{})
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				req := PutRequest{Name: "x", Size: benchSize, Policy: alone()}
				if _, err := s.Put(context.Background(), req, bytes.NewReader(data)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPutDuplicate puts what the store has already.
func BenchmarkPutDuplicate(b *testing.B) {
	for _, c := range benchData {
		b.Run(c.name, func(b *testing.B) {
			data := c.data()
			s := openDisk(b, Options{})
			put(b, s, "first", data)
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				put(b, s, "second", data)
			}
		})
	}
}

func BenchmarkStream(b *testing.B) {
	for _, c := range benchData {
		b.Run(c.name, func(b *testing.B) {
			s := openDisk(b, Options{})
			r := openReader(b, s, put(b, s, "x", c.data()).ID)
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Stream(context.Background(), io.Discard, 0, -1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func openReader(b testing.TB, s *Store, id capsule.ID) *Reader {
	b.Helper()
	r, err := s.Open(context.Background(), id)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

// BenchmarkReadAt4K reads at random places: hot, where all segments are in the
// cache, and cold, where none ever is, so that each read decodes a segment.
func BenchmarkReadAt4K(b *testing.B) {
	const n, size = 4096, 32 << 20
	for _, c := range benchData {
		for _, temp := range []struct {
			name  string
			cache int64
		}{{"hot", 2 * size}, {"cold", 1}} {
			b.Run(c.name+"/"+temp.name, func(b *testing.B) {
				s := openDisk(b, Options{CacheBytes: temp.cache})
				r := openReader(b, s, put(b, s, "x", c.data()[:size]).ID)
				buf := make([]byte, n)
				for off := int64(0); off < size; off += n { // fills the cache
					if _, err := r.ReadAt(buf, off); err != nil {
						b.Fatal(err)
					}
				}
				rnd := rand.New(rand.NewPCG(1, 2))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := r.ReadAt(buf, rnd.Int64N(size-n)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkSmallPuts shows group commit: many writers share two syncs.
func BenchmarkSmallPuts(b *testing.B) {
	for _, writers := range []int{1, 32} {
		b.Run("writers="+strconv.Itoa(writers), func(b *testing.B) {
			s := openDisk(b, Options{})
			data := random(1, 4096)
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					content := bytes.Clone(data)
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						copy(content, strconv.FormatInt(n, 10)+" ")
						req := PutRequest{Name: fmt.Sprintf("small/%d", n), Size: int64(len(content))}
						if _, err := s.Put(context.Background(), req, bytes.NewReader(content)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

// fill puts n capsules of 16 bytes each, named dir/%08d.
func fill(t testing.TB, s *Store, n int64) {
	t.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 256 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < n && !t.Failed(); i = next.Add(1) - 1 {
				content := fmt.Sprintf("%016d", i)
				req := PutRequest{Name: fmt.Sprintf("dir/%08d", i), Size: 16}
				if _, err := s.Put(context.Background(), req, bytes.NewReader([]byte(content))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func BenchmarkList(b *testing.B) {
	s := openDisk(b, Options{})
	fill(b, s, 100_000)
	b.Run("page=1000", func(b *testing.B) {
		b.ReportAllocs()
		var cursor string
		for b.Loop() {
			page, err := s.List(context.Background(), ListQuery{Limit: 1000, Cursor: cursor})
			if err != nil {
				b.Fatal(err)
			}
			cursor = page.Next
		}
	})
}

func BenchmarkStat(b *testing.B) {
	s := openDisk(b, Options{})
	for _, c := range []struct {
		name string
		size int
	}{{"small", 4096}, {"64MiB", benchSize}} {
		id := put(b, s, c.name, random(2, c.size)).ID
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Stat(context.Background(), id); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
