package fuse

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/capsule"
)

const (
	// streamMin is how far a reader has to have got, and how much there has to
	// be left, for a stream to be worth starting.
	streamMin = 1 << 20
	// streamBehind is how far behind the furthest request one may come in: the
	// kernel has two readahead windows under way, in no order.
	streamBehind = 4 * readAheadKB << 10
)

// streamIdle is how long a stream waits for a reader that has paused. A
// variable for tests.
var streamIdle = 2 * time.Second

// streamSlots bounds the streams of this process. The store's own buffers for
// one grow with the number of cores, and one can keep all cores busy.
var streamSlots = make(chan struct{}, max(1, 8/runtime.GOMAXPROCS(0)))

// chunk is a piece of decoded content in memory that the store lends. Whoever
// drops the last reference gives it back.
type chunk struct {
	off  int64
	buf  []byte
	left int // bytes that were not read yet, guarded by the stream
	refs atomic.Int32
	done func()
}

func (c *chunk) end() int64 { return c.off + int64(len(c.buf)) }

func (c *chunk) release() {
	if c.refs.Add(-1) == 0 {
		c.done()
	}
}

// stream decodes ahead of one sequential reader, at the speed of a copy of the
// whole capsule, which random access to segments can't have. READ requests are
// answered from its chunks, mostly once for each byte: the pages then are in
// the kernel's cache.
type stream struct {
	h    *handle
	stop context.CancelFunc

	mu     sync.Mutex
	chunks []*chunk // in order, with gaps where all was read
	end    int64    // what lies before it is decoded
	front  int64    // end of the furthest request
	ended  bool     // nothing more will be decoded
	used   time.Time
	// moved is closed, and replaced, when end, front or ended change and
	// someone waits for that.
	moved   chan struct{}
	waiting bool
}

// startStream begins to decode at off, if there is room for one more stream.
func startStream(h *handle, off int64) *stream {
	select {
	case streamSlots <- struct{}{}:
	default:
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &stream{h: h, stop: stop, end: off, front: off, used: time.Now(), moved: make(chan struct{})}
	h.refs.Add(1)
	go s.run(ctx)
	return s
}

func (s *stream) run(ctx context.Context) {
	defer s.h.release()
	defer s.stop()
	at := s.end
	err := s.h.r.Lend(ctx, at, s.h.info.Size-at, func(p []byte, done func()) error { return s.take(ctx, p, done) })
	// What ended it early will be said to whoever reads on without it.
	s.mu.Lock()
	s.ended = true
	s.wake()
	for err == nil && s.front < s.end && s.wait(ctx) {
	}
	s.h.stream.CompareAndSwap(s, nil)
	s.ended = true
	for _, c := range s.chunks {
		c.release()
	}
	s.chunks = nil
	s.mu.Unlock()
	<-streamSlots // not before: what is left unread is memory, too
}

// wake tells those who wait of a change. The caller holds s.mu.
func (s *stream) wake() {
	if s.waiting {
		s.waiting = false
		close(s.moved)
		s.moved = make(chan struct{})
	}
}

// wait waits for a change, unless the reader has paused for too long or is
// gone; then it reports false. The caller holds s.mu.
func (s *stream) wait(ctx context.Context) bool {
	idle := streamIdle - time.Since(s.used)
	if idle <= 0 {
		return false
	}
	s.waiting = true
	moved := s.moved
	s.mu.Unlock()
	defer s.mu.Lock()
	timer := time.NewTimer(idle)
	defer timer.Stop()
	select {
	case <-moved:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}

var errPaused = capsule.Errorf(capsule.Canceled, "the reader has paused")

// take keeps what the store has decoded, as soon as the window allows.
func (s *stream) take(ctx context.Context, p []byte, done func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.end-s.front >= maxWindow {
		if !s.wait(ctx) {
			done()
			return errPaused
		}
	}
	c := &chunk{off: s.end, buf: p, left: len(p), done: done}
	c.refs.Store(1)
	s.chunks = append(s.chunks, c)
	s.end = c.end()
	s.wake()
	return nil
}

// read returns the content [off, off+size), once it is decoded; nil where the
// stream does not have it and will not.
func (s *stream) read(off, size int64) *streamed {
	s.mu.Lock()
	defer s.mu.Unlock()
	if off > s.end+maxWindow || !s.ahead(off) {
		return nil
	}
	s.used = time.Now()
	if off+size > s.front {
		s.front = off + size
		s.wake()
	}
	for off+size > s.end {
		if s.ended {
			return nil
		}
		s.waiting = true
		moved := s.moved
		s.mu.Unlock()
		<-moved
		s.mu.Lock()
	}
	parts := new(streamed)
	at := off
	for _, c := range s.chunks {
		if at == off+size || c.off > at { // all of it, or read before
			break
		}
		if c.end() <= at {
			continue
		}
		part := c.buf[at-c.off : min(off+size, c.end())-c.off]
		parts.add(c, part)
		at += int64(len(part))
		c.left -= len(part)
	}
	s.drop()
	if at < off+size {
		parts.done()
		return nil
	}
	return parts
}

// ahead reports whether the stream has what is at off, or will have. The caller
// holds s.mu.
func (s *stream) ahead(off int64) bool {
	return off >= s.end || len(s.chunks) > 0 && off >= s.chunks[0].off
}

// drop lets go of chunks that were read, or are so far behind that the kernel
// will hardly ask for them. The caller holds s.mu.
func (s *stream) drop() {
	s.chunks = slices.DeleteFunc(s.chunks, func(c *chunk) bool {
		old := c.left <= 0 || c.end() < s.front-streamBehind
		if old {
			c.release()
		}
		return old
	})
}

// streamed is the answer to a READ request: parts of chunks, not copied.
type streamed struct {
	chunks []*chunk
	parts  [][]byte
	size   int
}

func (r *streamed) add(c *chunk, part []byte) {
	c.refs.Add(1)
	r.chunks = append(r.chunks, c)
	r.parts = append(r.parts, part)
	r.size += len(part)
}

// done gives the parts back.
func (r *streamed) done() {
	for _, c := range r.chunks {
		c.release()
	}
}
