package fabric

import (
	"cmp"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/session"
)

// stream is a tunnel's stream.
type stream struct {
	t      *Tunnel
	r      *route
	st     *session.Stream
	local  bool // opened at this end
	header []byte
	opened time.Time
	grant  *grant
	agreed uint64        // the tunnel's agreement that it was opened in, where it was here
	gone   chan struct{} // closed when it is out of the registry

	sent, got atomic.Int64
	wrote     atomic.Bool // CloseWrite was called
	eof       atomic.Bool // the peer has ended its half
	once      sync.Once
}

var _ Stream = (*stream)(nil)

// add registers a stream.
func (t *Tunnel) add(r *route, st *session.Stream, local bool, header []byte, g *grant, agreed uint64) *stream {
	s := &stream{t: t, r: r, st: st, local: local, header: header, opened: time.Now(), grant: g, agreed: agreed, gone: make(chan struct{})}
	t.ever.Add(1)
	t.mu.Lock()
	if t.streams == nil {
		t.streams = map[*stream]struct{}{}
	}
	t.streams[s] = struct{}{}
	if local {
		t.over(r).opened++
	}
	ended := errors.Is(t.err, ErrClosed) && !errors.Is(t.err, errPeerClosed)
	t.mu.Unlock()
	if ended {
		s.Close()
	}
	return s
}

// forget takes the stream out of the registry.
func (s *stream) forget() {
	s.once.Do(func() {
		s.grant.release()
		close(s.gone)
		s.t.mu.Lock()
		defer s.t.mu.Unlock()
		delete(s.t.streams, s)
		s.t.sent += s.sent.Load()
		s.t.got += s.got.Load()
	})
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.st.Read(p)
	s.got.Add(int64(n))
	s.pace(n)
	if err != nil {
		err = s.broke(err)
	}
	return n, err
}

// broke takes note of an error that is the stream's end, and returns it as
// callers know it.
func (s *stream) broke(err error) error {
	var reset *session.ResetError
	switch {
	case errors.Is(err, io.EOF):
		s.eof.Store(true)
	case errors.As(err, &reset):
		s.forget()
		if reset.Remote && reset.Code == codeNoTunnel && s.local {
			s.t.disowned(s.r, s.agreed)
		}
	case s.t.n.ctx.Err() != nil:
		s.forget()
	}
	return known(err)
}

// known returns an error as callers know it.
func known(err error) error {
	var reset *session.ResetError
	if errors.As(err, &reset) && reset.Remote && (reset.Code == codeRefused || reset.Code == session.CodeBusy) {
		return &RefusedError{Limit: reset.Text, Retry: cmp.Or(reset.Retry, refusedRetry)}
	}
	return err
}

// refusedRetry is when one whose stream was refused may come back.
const refusedRetry = time.Second

// Write implements net.Conn.
func (s *stream) Write(p []byte) (int, error) {
	n, err := s.st.Write(p)
	s.sent.Add(int64(n))
	s.pace(n)
	if err != nil {
		err = s.broke(err)
	}
	return n, err
}

// ReadFrom implements io.ReaderFrom, as the session's stream does, without a
// copy.
func (s *stream) ReadFrom(r io.Reader) (int64, error) {
	c := &countedReader{Reader: r, s: s}
	n, err := s.st.ReadFrom(c)
	if err == nil || c.failed { // r's: it is not for s to end for it
		return n, known(err)
	}
	return n, s.broke(err)
}

// WriteTo implements io.WriterTo, as the session's stream does, without a copy.
func (s *stream) WriteTo(w io.Writer) (int64, error) {
	c := &countedWriter{Writer: w, s: s}
	n, err := s.st.WriteTo(c)
	switch {
	case err == nil:
		s.eof.Store(true)
		return n, nil
	case c.failed: // w's
		return n, known(err)
	}
	return n, s.broke(err)
}

// countedReader counts while a long copy is under way.
type countedReader struct {
	io.Reader
	s      *stream
	failed bool // it, and not the stream that it is copied to
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.s.sent.Add(int64(n))
	c.s.pace(n)
	c.failed = err != nil && !errors.Is(err, io.EOF)
	return n, err
}

type countedWriter struct {
	io.Writer
	s      *stream
	failed bool
}

func (c *countedWriter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.s.got.Add(int64(n))
	c.s.pace(n)
	c.failed = err != nil || n < len(p)
	return n, err
}

// CloseWrite implements Stream.
func (s *stream) CloseWrite() error {
	s.wrote.Store(true)
	return s.st.CloseWrite()
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.forget()
	return s.st.Close()
}

// Reset implements Stream.
func (s *stream) Reset(code uint32, text string) {
	s.forget()
	s.st.Reset(code, text)
}

// Class implements Stream.
func (s *stream) Class() frame.Class { return s.st.Class() }

// Header implements Stream.
func (s *stream) Header() []byte { return s.header }

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return s.st.LocalAddr() }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return s.st.RemoteAddr() }

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error { return s.st.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error { return s.st.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error { return s.st.SetWriteDeadline(t) }
