package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/spacestore/space/pipeline"
)

// Buffers are used again, but never while someone looks at them; the cache
// keeps to its limit, and errors are not kept.
func TestCacheBuffers(t *testing.T) {
	const limit = 256 << 10
	c := newSegmentCache(limit)
	boom := errors.New("boom")
	var all sync.WaitGroup
	for w := range uint64(8) {
		all.Go(func() {
			r := rand.New(rand.NewPCG(w, 0))
			for i := range 500 {
				id := byte(r.IntN(40))
				size := 1 + int(id)*1000
				fail := r.IntN(10) == 0
				load := func(dst []byte) ([]byte, error) {
					if fail {
						return nil, boom
					}
					return append(dst, bytes.Repeat([]byte{id}, size)...), nil
				}
				check := func(p []byte) {
					for range i % 3 {
						if len(p) != size || bytes.Count(p, []byte{id}) != size {
							t.Errorf("segment %d has other bytes", id)
						}
					}
				}
				if i%5 == 0 {
					c.peek(pipeline.SegmentID{id}, check)
				} else if err := c.use(pipeline.SegmentID{id}, size, load, check); err != nil && err != boom {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	var size int64
	for e := c.lru.Front(); e != nil; e = e.Next() {
		s := e.Value.(*cached)
		size += int64(cap(s.p))
		if s.users != 0 || s.err != nil {
			t.Errorf("a segment has %d users, error %v", s.users, s.err)
		}
	}
	if size != c.size || size > limit || len(c.m) != c.lru.Len() {
		t.Errorf("%d bytes in %d segments, counted as %d in %d", size, c.lru.Len(), c.size, len(c.m))
	}
}
