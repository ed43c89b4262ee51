package fuse

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/capsule"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

const (
	chunkSize = 256 << 10
	// streamMin is how far a reader has to have got, and how much there has to
	// be left, for a stream to be worth starting.
	streamMin = 1 << 20
	// streamBehind is how far behind the furthest request one may come in: the
	// kernel has two readahead windows under way, in no order. It is more than
	// maxWindow and maxRead together, so that a chunk which is being filled is
	// never dropped for being behind.
	streamBehind = 4 * readAheadKB << 10
)

// streamIdle is how long a stream waits for a reader that has paused. A
// variable for tests.
var streamIdle = 2 * time.Second

// streamSlots bounds the streams of this process. The store's own buffers for
// one grow with the number of cores, and one can keep all cores busy.
var streamSlots = make(chan struct{}, max(1, 8/runtime.GOMAXPROCS(0)))

var chunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, chunkSize)} }}

// chunk is a piece of decoded content. Whoever drops the last reference gives
// it back to the pool.
type chunk struct {
	buf  []byte
	refs atomic.Int32
	left int // bytes that were not read yet, guarded by the stream
}

func (c *chunk) release() {
	if c.refs.Add(-1) == 0 {
		chunks.Put(c)
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
	first  int64    // offset of chunks[0]
	chunks []*chunk // consecutive; nil where all was read
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
	s := &stream{h: h, stop: stop, first: off, end: off, front: off, used: time.Now(), moved: make(chan struct{})}
	h.refs.Add(1)
	go s.run(ctx)
	return s
}

func (s *stream) run(ctx context.Context) {
	defer s.h.release()
	defer s.stop()
	_, err := s.h.r.Stream(ctx, &streamWriter{s, ctx}, s.first, s.h.info.Size-s.first)
	<-streamSlots
	// What ended it early will be said to whoever reads on without it.
	s.mu.Lock()
	s.ended = true
	s.wake()
	for err == nil && s.front < s.end && s.wait(ctx) {
	}
	s.h.stream.CompareAndSwap(s, nil)
	s.ended = true
	for i, c := range s.chunks {
		if c != nil {
			s.chunks[i] = nil
			c.release()
		}
	}
	s.end = s.first
	s.mu.Unlock()
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

// streamWriter takes what the store decodes, as far as the window allows.
type streamWriter struct {
	*stream
	ctx context.Context
}

func (s *streamWriter) Write(p []byte) (n int, err error) {
	for n < len(p) {
		s.mu.Lock()
		for s.end-s.front >= maxWindow {
			if !s.wait(s.ctx) {
				s.mu.Unlock()
				return n, errPaused
			}
		}
		i := int((s.end - s.first) / chunkSize)
		if i == len(s.chunks) {
			c := chunks.Get().(*chunk)
			c.refs.Store(1)
			c.left = chunkSize
			s.chunks = append(s.chunks, c)
		}
		c := s.chunks[i]
		at := int((s.end - s.first) % chunkSize)
		s.mu.Unlock()

		// Nobody looks behind s.end, so this needs no lock.
		k := copy(c.buf[at:], p[n:])
		n += k

		s.mu.Lock()
		s.end += int64(k)
		s.wake()
		s.mu.Unlock()
	}
	return n, nil
}

// read returns the content [off, off+size), once it is decoded; nil where the
// stream does not have it and will not.
func (s *stream) read(off, size int64) *streamed {
	s.mu.Lock()
	defer s.mu.Unlock()
	if off < s.first || off > s.end+maxWindow {
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
	if off < s.first {
		return nil
	}
	parts := new(streamed)
	for at := off; at < off+size; {
		i := int((at - s.first) / chunkSize)
		c := s.chunks[i]
		if c == nil { // read before
			parts.Done()
			return nil
		}
		from := (at - s.first) % chunkSize
		to := min(from+off+size-at, chunkSize)
		parts.add(c, c.buf[from:to])
		at += to - from
		c.left -= int(to - from)
	}
	s.drop()
	return parts
}

// drop lets go of chunks that were read, or are so far behind that the kernel
// will hardly ask for them. The caller holds s.mu.
func (s *stream) drop() {
	for i, c := range s.chunks {
		if c != nil && (c.left <= 0 || s.first+int64(i+1)*chunkSize < s.front-streamBehind) {
			s.chunks[i] = nil
			c.release()
		}
	}
	n := 0
	for n < len(s.chunks) && s.chunks[n] == nil {
		n++
	}
	s.chunks = append(s.chunks[:0], s.chunks[n:]...)
	s.first += int64(n) * chunkSize
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

// Slices makes go-fuse write straight from the chunks, and call Done after.
func (r *streamed) Slices() ([][]byte, gofuse.Status) { return r.parts, gofuse.OK }

// Bytes, Size and Done make a gofuse.ReadResult of it.
func (r *streamed) Bytes(b []byte) ([]byte, gofuse.Status) {
	b = b[:0]
	for _, p := range r.parts {
		b = append(b, p...)
	}
	return b, gofuse.OK
}
func (r *streamed) Size() int { return r.size }
func (r *streamed) Done() {
	for _, c := range r.chunks {
		c.release()
	}
}
