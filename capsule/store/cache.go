package store

import (
	"container/list"
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/spacestore/space/pipeline"
)

// segmentCache keeps decoded segments up to a number of bytes, least recently
// used first out, and lets concurrent readers of one segment decode it once.
// Its buffers are used again: on such machines as we run on, memory that is
// touched for the first time costs more than decoding a segment into it.
type segmentCache struct {
	mu    sync.Mutex
	limit int64
	size  int64
	lru   list.List // of *cached; front: most recently used
	m     map[pipeline.SegmentID]*list.Element
	free  segmentBuffers

	// seen are segments read not long ago: the beginning of the ID, the last
	// byte replaced by how many sixteenths of it.
	seen [1024]atomic.Uint64
}

type cached struct {
	id   pipeline.SegmentID
	done chan struct{} // closed when p and err are set
	p    []byte
	err  error

	// Under segmentCache.mu:
	users int
	gone  bool // from the cache: the last user gives the buffer back
}

func newSegmentCache(limit int64) *segmentCache {
	return &segmentCache{limit: limit, m: map[pipeline.SegmentID]*list.Element{}}
}

// bytes is how much the cache holds.
func (c *segmentCache) bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size
}

// use calls fn with a segment's bytes, which must not be changed and are gone
// when it returns, loading them if they are not there: load appends size bytes to a
// buffer. Errors are not kept.
func (c *segmentCache) use(id pipeline.SegmentID, size int, load func(dst []byte) ([]byte, error), fn func(p []byte)) error {
	c.mu.Lock()
	e := c.m[id]
	if e != nil {
		s := c.hold(e)
		c.mu.Unlock()
		return c.finish(s, fn)
	}
	s := &cached{id: id, done: make(chan struct{}), users: 1}
	e = c.lru.PushFront(s)
	c.m[id] = e
	buf := c.free.get(size)
	c.mu.Unlock()

	s.p, s.err = load(buf)
	if s.err != nil {
		s.p = buf
	}
	close(s.done)

	c.mu.Lock()
	if s.err != nil {
		c.remove(e)
	} else {
		c.size += int64(cap(s.p))
		c.shrink()
	}
	c.mu.Unlock()
	return c.finish(s, fn)
}

// peek is use for a segment that is there.
func (c *segmentCache) peek(id pipeline.SegmentID, fn func(p []byte)) {
	c.mu.Lock()
	e := c.m[id]
	if e == nil {
		c.mu.Unlock()
		return
	}
	s := c.hold(e)
	c.mu.Unlock()
	_ = c.finish(s, fn) // one that could not be loaded is not there
}

// worthWhole is from how many sixteenths of a segment on that were read not
// long ago it is decoded and kept as a whole, which costs as much as to open a
// few of its frames.
const worthWhole = 4

// recent notes that n bytes of a segment's length are being read and returns
// how many sixteenths of it were read not long ago.
func (c *segmentCache) recent(id pipeline.SegmentID, n, length int64) (before int) {
	h := binary.LittleEndian.Uint64(id[:])
	slot := &c.seen[h>>8%uint64(len(c.seen))]
	h &^= 0xff
	if v := slot.Load(); v&^0xff == h {
		before = int(v & 0xff)
	}
	slot.Store(h | min(uint64(before)+max(16*uint64(n)/uint64(length), 1), 16))
	return before
}

// hold notes a user of a cached segment. c.mu is held, as for what follows.
func (c *segmentCache) hold(e *list.Element) *cached {
	c.lru.MoveToFront(e)
	s := e.Value.(*cached)
	s.users++
	return s
}

// finish ends what hold began. c.mu is not held.
func (c *segmentCache) finish(s *cached, fn func(p []byte)) error {
	<-s.done
	if s.err == nil {
		fn(s.p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.users--
	c.recycle(s)
	return s.err
}

// shrink removes what is too much.
func (c *segmentCache) shrink() {
	for e := c.lru.Back(); c.size > c.limit && e != nil; {
		prev := e.Prev()
		s := e.Value.(*cached)
		select {
		case <-s.done:
			if s.err == nil {
				c.size -= int64(cap(s.p))
				c.remove(e)
			}
		default: // being loaded; not counted yet
		}
		e = prev
	}
}

func (c *segmentCache) remove(e *list.Element) {
	s := c.lru.Remove(e).(*cached)
	delete(c.m, s.id)
	s.gone = true
	c.recycle(s)
}

func (c *segmentCache) recycle(s *cached) {
	if s.gone && s.users == 0 {
		c.free.put(s.p)
		s.p = nil
	}
}

// segmentBuffers are buffers for segments that are not in use, a few of each
// size.
type segmentBuffers [pipeline.MaxChunk / bufferStep][][]byte

const (
	bufferStep  = 16 << 10
	buffersKept = 4 // of each size
)

// get returns an empty buffer with room for n bytes.
func (b *segmentBuffers) get(n int) []byte {
	i := (n - 1) / bufferStep
	if n < bufferStep/2 || i >= len(b) {
		return make([]byte, 0, n)
	}
	if k := len(b[i]); k > 0 {
		p := b[i][k-1]
		b[i] = b[i][:k-1]
		return p
	}
	return make([]byte, 0, (i+1)*bufferStep)
}

// put takes a buffer that get has returned.
func (b *segmentBuffers) put(p []byte) {
	if cap(p)%bufferStep != 0 || cap(p) == 0 {
		return
	}
	if i := cap(p)/bufferStep - 1; i < len(b) && len(b[i]) < buffersKept {
		b[i] = append(b[i], p[:0])
	}
}
