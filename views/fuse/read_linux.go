package fuse

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"

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

	// refs counts the open itself, its stream, and the reads under way, of
	// which some may outlast it: those that a killed process doesn't wait for.
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

func (h *handle) hold() { h.refs.Add(1) }

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

func (f *fileSystem) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	if f.memory != nil {
		f.memory.Delete(keptHandle, in.Fh)
	}
	f.handles.close(in.Fh)
}

// read answers a READ request: with n bytes in buf, or with parts.
func (f *fileSystem) read(in *gofuse.ReadIn, buf []byte) (n int, parts *streamed, status gofuse.Status) {
	h := f.handles.use(in.Fh)
	if h == nil {
		// Of an earlier process, and the version that it had is gone.
		return 0, nil, gofuse.Status(syscall.ESTALE)
	}
	defer h.release()
	off := int64(in.Offset)
	if off < 0 || off >= h.info.Size {
		return 0, nil, gofuse.OK
	}
	size := min(int64(in.Size), h.info.Size-off)

	rq := f.requests.begin(&in.InHeader, nil)
	defer rq.finish()
	ahead, more := h.ra.plan(off, size, h.info.Size)
	if s := h.stream.Load(); s != nil {
		if parts := s.read(off, size); parts != nil {
			return 0, parts, gofuse.OK
		}
		if more > 0 { // the reader goes on elsewhere
			h.endStream(s)
		}
	}
	if more > 0 {
		h.decodeAhead(ahead, more)
	}
	n, err := h.r.ReadAt(buf[:size], off)
	switch {
	case int64(n) == size && (err == nil || err == io.EOF):
		return n, nil, gofuse.OK
	case err == nil || err == io.EOF:
		// To the kernel a short answer is the end of the file, and it would
		// fill the rest with zeros.
		err = capsule.Errorf(capsule.Other, "the store returned %d of %d bytes at %d", n, size, off)
	}
	return 0, nil, f.failRead(h.info, off, size, err)
}

// failRead logs why a read failed and returns what the reader gets.
func (f *fileSystem) failRead(info capsule.Info, off, size int64, err error) gofuse.Status {
	var d *capsule.DamageError
	if !errors.As(err, &d) {
		return f.fail("read", info.ID.String(), err)
	}
	if f.messages.allow(fmt.Sprint(info.ID, info.Version, d.Off)) {
		// Names stay out of it, as in fail.
		f.log.Error("damaged range read; the reader gets EIO for it",
			"capsule", info.ID, "version", info.Version,
			"off", d.Off, "len", d.Len, "log", d.Log, "log_off", d.LogOff, "why", d.Why,
			"request_off", off, "request_len", size)
	}
	return gofuse.EIO
}
