package fuse

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/spacestore/space/capsule"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// handle is an open file: one pinned version.
type handle struct {
	r    Reader
	info capsule.Info
	ra   readahead

	// stream decodes ahead while the reading is sequential.
	stream atomic.Pointer[stream]

	// refs counts the open itself and the reads under way, of which some may
	// outlast it: those that a killed process no longer waits for.
	refs atomic.Int32
}

func newHandle(r Reader, streams *atomic.Int64) *handle {
	h := &handle{r: r, info: r.Info(), ra: readahead{streams: streams}}
	h.refs.Store(1)
	return h
}

// decodeAhead prepares for sequential reading of what starts at off.
func (h *handle) decodeAhead(off, n int64) {
	if off >= streamMin && h.info.Size-off >= streamMin {
		if s := startStream(h, off); s != nil {
			if !h.stream.CompareAndSwap(nil, s) {
				s.stop()
			}
			return
		}
	}
	h.r.Prefetch(off, n)
}

func (h *handle) endStream(s *stream) {
	h.stream.CompareAndSwap(s, nil)
	s.stop()
}

// close ends the handle for its user.
func (h *handle) close() {
	if s := h.stream.Load(); s != nil {
		h.endStream(s)
	}
	h.release()
}

func (h *handle) release() {
	if h.refs.Add(-1) == 0 {
		h.ra.stop()
		h.r.Close()
	}
}

// handleTable maps the kernel's file handles. Its zero value is ready.
type handleTable struct {
	mu   sync.RWMutex
	next uint64
	open map[uint64]*handle
}

func (t *handleTable) add(h *handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[uint64]*handle{}
	}
	t.next++
	t.open[t.next] = h
	return t.next
}

// use returns a handle with one more reference, or nil.
func (t *handleTable) use(fh uint64) *handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	h := t.open[fh]
	if h != nil {
		h.refs.Add(1)
	}
	return h
}

func (t *handleTable) close(fh uint64) {
	t.mu.Lock()
	h := t.open[fh]
	delete(t.open, fh)
	t.mu.Unlock()
	if h != nil {
		h.close()
	}
}

func (t *handleTable) closeAll() {
	t.mu.Lock()
	open := t.open
	t.open = nil
	t.mu.Unlock()
	for _, h := range open {
		h.close()
	}
}

func (f *fileSystem) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) { f.handles.close(in.Fh) }

// Read fills a buffer of ours instead of go-fuse's, which is used again as
// soon as the request is answered: a read that is given up goes on writing.
// The kernel gets the buffer itself, so this costs no copy.
func (f *fileSystem) Read(cancel <-chan struct{}, in *gofuse.ReadIn, _ []byte) (gofuse.ReadResult, gofuse.Status) {
	h := f.handles.use(in.Fh)
	if h == nil {
		return nil, gofuse.EBADF
	}
	off := int64(in.Offset)
	if off < 0 || off >= h.info.Size {
		h.release()
		return gofuse.ReadResultData(nil), gofuse.OK
	}
	size := min(int64(in.Size), h.info.Size-off)
	ahead, n := h.ra.plan(off, size, h.info.Size)
	if s := h.stream.Load(); s != nil {
		parts, alive := s.read(cancel, in.Pid, off, size)
		if parts != nil || !alive {
			h.release()
		}
		if !alive {
			return nil, gofuse.EINTR
		}
		if parts != nil {
			return parts, gofuse.OK
		}
		if n > 0 { // the reader goes on elsewhere
			h.endStream(s)
		}
	}
	if n > 0 {
		h.decodeAhead(ahead, n)
	}
	rd := f.buffers.get(int(size))
	rd.h, rd.off = h, off
	go rd.run()
	if !waitUnlessKilled(rd.done, cancel, in.Pid) {
		return nil, gofuse.EINTR // rd is left to its goroutine
	}
	if err := rd.err; err != nil {
		rd.Done()
		return nil, f.failRead(h.info, off, size, err)
	}
	return rd, gofuse.OK
}

// failRead logs why a read failed and returns what the reader gets.
func (f *fileSystem) failRead(info capsule.Info, off, size int64, err error) gofuse.Status {
	var d *capsule.DamageError
	if !errors.As(err, &d) {
		return f.fail("read", info.ID.String(), err)
	}
	if f.messages.allow(fmt.Sprint(info.ID, info.Version, d.Off)) {
		f.log.Error("damaged range read; the reader gets EIO for it",
			"capsule", info.ID, "name", info.Name, "version", info.Version,
			"off", d.Off, "len", d.Len, "log", d.Log, "log_off", d.LogOff, "why", d.Why,
			"request_off", off, "request_len", size)
	}
	return gofuse.EIO
}

// reading is one READ request's buffer and outcome.
type reading struct {
	pool *sync.Pool
	buf  []byte
	vec  [1][]byte // the part of buf that is asked for
	h    *handle
	off  int64
	err  error
	done chan struct{}
}

// run reads, and tells done.
func (rd *reading) run() {
	h := rd.h
	rd.h = nil
	defer h.release() // after done: rd may be in use again by then
	defer func() { rd.done <- struct{}{} }()
	defer caught(&rd.err)
	want := len(rd.vec[0])
	n, err := h.r.ReadAt(rd.vec[0], rd.off)
	switch {
	case n == want && err == io.EOF:
		err = nil
	case n < want && (err == nil || err == io.EOF):
		// To the kernel a short answer is the end of the file, and it would
		// fill the rest with zeros.
		err = capsule.Errorf(capsule.Other, "the store returned %d of %d bytes at %d", n, want, rd.off)
	}
	rd.err = err
}

// Slices makes go-fuse write straight from the buffer, and call Done after.
func (rd *reading) Slices() ([][]byte, gofuse.Status) { return rd.vec[:], gofuse.OK }

// Bytes, Size and Done make a gofuse.ReadResult of it.
func (rd *reading) Bytes([]byte) ([]byte, gofuse.Status) { return rd.vec[0], gofuse.OK }
func (rd *reading) Size() int                            { return len(rd.vec[0]) }
func (rd *reading) Done()                                { rd.pool.Put(rd) }

// bufferPool recycles buffers in two sizes: random reads are mostly one page,
// sequential ones as large as they get.
type bufferPool struct{ small, large sync.Pool }

const smallBuffer = 16 << 10

func (p *bufferPool) get(size int) *reading {
	pool, full := &p.small, smallBuffer
	if size > full {
		pool, full = &p.large, max(size, maxRead)
	}
	rd, _ := pool.Get().(*reading)
	if rd == nil {
		rd = &reading{pool: pool, buf: make([]byte, full), done: make(chan struct{}, 1)}
	}
	rd.vec[0] = rd.buf[:size]
	rd.err = nil
	return rd
}

var _ gofuse.ReadResult = (*reading)(nil)
