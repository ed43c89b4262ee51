package session

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// way is one direction of a simulated connection: bytes come after a delay, no
// faster than rate, and no more than buffer are under way.
type way struct {
	delay  time.Duration
	rate   int64 // bytes a second; 0: no limit
	buffer int

	mu     sync.Mutex
	wake   chan struct{}
	queue  []parcel
	queued int
	free   time.Time // when the line is free for the next byte
	hole   bool      // bytes vanish
	eof    bool      // the writer has closed it
	err    error
}

type parcel struct {
	b  []byte
	at time.Time
}

func (w *way) change() {
	close(w.wake)
	w.wake = make(chan struct{})
}

func (w *way) write(p []byte, deadline time.Time) (n int, err error) {
	for {
		w.mu.Lock()
		if err := w.err; err != nil || w.eof {
			w.mu.Unlock()
			return n, cmp.Or(err, net.ErrClosed)
		}
		if room := w.buffer - w.queued; room > 0 && len(p) > 0 {
			k := min(room, len(p), 16<<10)
			now := time.Now()
			if w.free.Before(now) {
				w.free = now
			}
			if w.rate > 0 {
				w.free = w.free.Add(time.Duration(float64(k) / float64(w.rate) * float64(time.Second)))
			}
			w.queued += k
			if !w.hole {
				w.queue = append(w.queue, parcel{append([]byte(nil), p[:k]...), w.free.Add(w.delay)})
			}
			w.change()
			p, n = p[k:], n+k
		}
		if len(p) == 0 {
			w.mu.Unlock()
			return n, nil
		}
		if w.queued < w.buffer {
			w.mu.Unlock()
			continue
		}
		wake := w.wake
		w.mu.Unlock()
		if err := await(wake, deadline); err != nil {
			return n, err
		}
	}
}

func (w *way) read(p []byte, deadline time.Time) (int, error) {
	for {
		w.mu.Lock()
		if w.err != nil {
			w.mu.Unlock()
			return 0, w.err
		}
		at := deadline
		if len(w.queue) == 0 && w.eof {
			w.mu.Unlock()
			return 0, io.EOF
		}
		if len(w.queue) > 0 {
			first := &w.queue[0]
			if !time.Now().Before(first.at) {
				n := copy(p, first.b)
				if first.b = first.b[n:]; len(first.b) == 0 {
					w.queue = w.queue[1:]
				}
				w.queued -= n
				w.change()
				w.mu.Unlock()
				return n, nil
			}
			if at.IsZero() || first.at.Before(at) {
				at = first.at
			}
		}
		wake := w.wake
		w.mu.Unlock()
		if err := await(wake, at); err != nil && !deadline.IsZero() && !time.Now().Before(deadline) {
			return 0, err
		}
	}
}

func await(wake <-chan struct{}, at time.Time) error {
	if at.IsZero() {
		<-wake
		return nil
	}
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-wake:
		return nil
	case <-t.C:
		return os.ErrDeadlineExceeded
	}
}

// wire is one end of a simulated connection.
type wire struct {
	net.Conn // only its addresses are missed
	in, out  *way
	mu       sync.Mutex
	deadline time.Time
}

func (w *wire) at() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deadline
}

func (w *wire) Read(p []byte) (int, error)  { return w.in.read(p, w.at()) }
func (w *wire) Write(p []byte) (int, error) { return w.out.write(p, w.at()) }

func (w *wire) Close() error {
	cut(w.in, net.ErrClosed)
	w.out.mu.Lock()
	defer w.out.mu.Unlock()
	if !w.out.eof { // what was written before still comes
		w.out.eof = true
		w.out.change()
	}
	return nil
}

func (w *wire) SetDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deadline = t
	return nil
}

func cut(w *way, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		w.change()
	}
}

// line is what connections are made of.
type line struct {
	delay  time.Duration // one way
	rate   int64
	buffer int
}

func (l line) connect() (a, b *wire) {
	if l.buffer == 0 {
		l.buffer = 256 << 10
	}
	there := &way{delay: l.delay, rate: l.rate, buffer: l.buffer, wake: make(chan struct{})}
	back := &way{delay: l.delay, rate: l.rate, buffer: l.buffer, wake: make(chan struct{})}
	return &wire{in: back, out: there}, &wire{in: there, out: back}
}

// pair is two nodes with a session between them.
type pair struct {
	t      *testing.T
	line   line
	client *Endpoint
	server *Endpoint
	near   *Session
	far    *Session

	mu    sync.Mutex
	wires []*wire // all that were ever dialed, the client's ends
	fresh chan *Session
	dials int
	down  bool // dials fail
	brief bool // links die as soon as they are there
}

func (p *pair) dial(context.Context, int) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dials++
	if p.down {
		return nil, errors.New("no way there")
	}
	a, b := p.line.connect()
	p.wires = append(p.wires, a)
	if p.brief {
		time.AfterFunc(3*p.line.delay, func() {
			cut(a.in, io.ErrUnexpectedEOF)
			cut(a.out, io.ErrUnexpectedEOF)
		})
	}
	server := p.server
	go func() {
		if s, err := server.Serve(b, "client"); err == nil && s != nil {
			p.fresh <- s
		}
	}()
	return a, nil
}

// cutAll cuts the connections there are.
func (p *pair) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.wires {
		cut(w.in, io.ErrUnexpectedEOF)
		cut(w.out, io.ErrUnexpectedEOF)
	}
	p.wires = nil
}

// swallow makes the connections there are lose all that is sent from now on.
func (p *pair) swallow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.wires {
		for _, way := range []*way{w.in, w.out} {
			way.mu.Lock()
			way.hole, way.queue = true, nil
			way.mu.Unlock()
		}
	}
	p.wires = nil
}

// inPair runs fn in a bubble of virtual time.
func inPair(t *testing.T, l line, links int, o Options, fn func(t *testing.T, p *pair)) {
	t.Helper()
	inMixedPair(t, l, links, o, o, fn)
}

func inMixedPair(t *testing.T, l line, links int, client, server Options, fn func(t *testing.T, p *pair)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &pair{t: t, line: l, client: NewEndpoint(client), server: NewEndpoint(server), fresh: make(chan *Session, 16)}
		var err error
		if p.near, err = p.client.Dial(t.Context(), "server", links, p.dial); err != nil {
			t.Fatal(err)
		}
		p.far = <-p.fresh
		fn(t, p)
		p.client.Close()
		p.server.Close()
		p.cutAll()
	})
}

// stream opens a stream and returns both of its ends.
func (p *pair) stream(from, to *Session) (near, far *Stream) {
	p.t.Helper()
	near, err := from.Open(4, []byte("header"))
	if err != nil {
		p.t.Fatal(err)
	}
	far, err = to.Accept(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	return near, far
}
