package transfer

import (
	"context"
	"io"
	"os"
	"sync/atomic"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control"
)

// Progress counts what has moved; several goroutines may add to it.
type Progress struct {
	Bytes atomic.Int64
	Files atomic.Int64
}

// PutFile stores what f holds from its present position on. Unless req.Size is
// set it is taken from f, where f is a regular file at its beginning and does not
// say that it is empty: so do those of /proc and /sys, whatever they hold.
func PutFile(ctx context.Context, api control.Capsules, req store.PutRequest, f *os.File, progress *Progress) (capsule.Info, error) {
	st, err := f.Stat()
	if err != nil {
		return capsule.Info{}, FileError(err, "put")
	}
	r := io.Reader(f)
	switch {
	case st.IsDir():
		return capsule.Info{}, capsule.Errorf(capsule.Invalid, "%s is a directory; put -r stores one, a capsule for each file", f.Name())
	case !st.Mode().IsRegular():
		r = newPatientReader(ctx, f)
	default:
		if at, err := f.Seek(0, io.SeekCurrent); req.Size < 0 && err == nil && at == 0 && st.Size() > 0 {
			req.Size = st.Size()
		}
	}
	return api.Put(ctx, req, &countingReader{r, progress})
}

// countingReader adds what goes through it to a Progress.
type countingReader struct {
	r io.Reader
	p *Progress
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.p.Bytes.Add(int64(n))
	return n, err
}

// patientReader reads from something that may never deliver (a pipe, a
// terminal) and gives up when its context ends. The goroutine that is left in
// the read ends with the process.
type patientReader struct {
	ctx  context.Context
	full chan readResult
	free chan []byte
	cur  readResult
	buf  []byte // backs cur
}

type readResult struct {
	data []byte
	err  error
}

func newPatientReader(ctx context.Context, r io.Reader) *patientReader {
	const size, count = 256 << 10, 4
	p := &patientReader{ctx: ctx, full: make(chan readResult, count), free: make(chan []byte, count)}
	for range count {
		p.free <- make([]byte, size)
	}
	go func() {
		for buf := range p.free {
			n, err := r.Read(buf)
			p.full <- readResult{buf[:n], err}
			if err != nil {
				return
			}
		}
	}()
	return p
}

func (p *patientReader) Read(b []byte) (int, error) {
	for len(p.cur.data) == 0 {
		if p.cur.err != nil {
			return 0, p.cur.err
		}
		if p.buf != nil {
			p.free <- p.buf
			p.buf = nil
		}
		select {
		case p.cur = <-p.full:
			p.buf = p.cur.data[:cap(p.cur.data)]
		case <-p.ctx.Done():
			return 0, context.Cause(p.ctx)
		}
	}
	n := copy(b, p.cur.data)
	p.cur.data = p.cur.data[n:]
	return n, nil
}
