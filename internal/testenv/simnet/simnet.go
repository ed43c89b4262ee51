// Package simnet is connections of a simulated network: bytes come after a delay, no
// faster than a rate, and can be made to vanish; a [Line] says what they are made
// of. In a testing/synctest bubble their time is the bubble's.
package simnet

import (
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Line is what connections are made of.
type Line struct {
	Delay  time.Duration // one way
	Rate   int64         // bytes a second, each way; 0: no limit
	Buffer int           // bytes that may be under way, each way; 0: 256 KiB
}

// Connect returns both ends of a connection.
func (l Line) Connect() (a, b *Conn) {
	l.Buffer = cmp.Or(l.Buffer, 256<<10)
	there, back := newWay(l), newWay(l)
	return &Conn{in: back, out: there}, &Conn{in: there, out: back}
}

// Conn is one end of a connection.
type Conn struct {
	in, out *way

	mu          sync.Mutex
	read, write time.Time
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	at := c.read
	c.mu.Unlock()
	return c.in.get(p, at)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	at := c.write
	c.mu.Unlock()
	return c.out.put(p, at)
}

// Close implements net.Conn. What was written before still comes.
func (c *Conn) Close() error {
	c.in.fail(net.ErrClosed)
	c.out.finish()
	return nil
}

// Cut ends the connection at both ends, with an error.
func (c *Conn) Cut(err error) {
	c.in.fail(err)
	c.out.fail(err)
}

// Swallow has what is sent from now on vanish, both ways, or come again; what is
// under way vanishes. Where something has, nothing comes any more.
func (c *Conn) Swallow(on bool) {
	c.in.swallow(on)
	c.out.swallow(on)
}

type addr struct{}

func (addr) Network() string { return "simulated" }
func (addr) String() string  { return "simulated" }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return addr{} }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.read = t
	c.mu.Unlock()
	c.in.wakeAll()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.write = t
	c.mu.Unlock()
	c.out.wakeAll()
	return nil
}

// way is one direction of a connection.
type way struct {
	line Line

	mu     sync.Mutex
	wake   chan struct{} // closed and made anew at each change
	queue  []parcel
	queued int
	free   time.Time // when the line is free for the next byte
	hole   bool      // bytes vanish
	lost   bool      // something has vanished: the connection is worth nothing any more
	eof    bool      // the writer has closed it
	err    error
}

// parcel is bytes that come at a time.
type parcel struct {
	b  []byte
	at time.Time
}

// parcelSize is what is sent at once on a line that has a rate.
const parcelSize = 16 << 10

func newWay(l Line) *way { return &way{line: l, wake: make(chan struct{})} }

func (w *way) change() {
	close(w.wake)
	w.wake = make(chan struct{})
}

func (w *way) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.change()
}

func (w *way) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.change()
}

func (w *way) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.eof = true
	w.change()
}

func (w *way) swallow(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = w.lost || on && len(w.queue) > 0
	if w.hole = on || w.lost; on {
		w.queue = nil
	}
	w.change()
}

func (w *way) put(p []byte, deadline time.Time) (n int, err error) {
	for {
		w.mu.Lock()
		switch {
		case w.err != nil:
			w.mu.Unlock()
			return n, w.err
		case w.eof:
			w.mu.Unlock()
			return n, net.ErrClosed
		}
		if room := w.line.Buffer - w.queued; room > 0 && len(p) > 0 {
			k := min(room, len(p), parcelSize)
			w.queued += k
			if at := w.arrival(k); !w.lose() {
				w.queue = append(w.queue, parcel{append([]byte(nil), p[:k]...), at})
			}
			w.change()
			p, n = p[k:], n+k
		}
		wake, full := w.wake, w.queued >= w.line.Buffer
		w.mu.Unlock()
		if len(p) == 0 {
			return n, nil
		}
		if !full {
			continue
		}
		if err := await(wake, deadline, deadline); err != nil {
			return n, err
		}
	}
}

// arrival returns when the next n bytes come.
func (w *way) arrival(n int) time.Time {
	if now := time.Now(); w.free.Before(now) {
		w.free = now
	}
	if w.line.Rate > 0 {
		w.free = w.free.Add(time.Duration(float64(n) / float64(w.line.Rate) * float64(time.Second)))
	}
	return w.free.Add(w.line.Delay)
}

// lose reports whether what is sent now vanishes.
func (w *way) lose() bool {
	w.lost = w.lost || w.hole
	return w.lost
}

func (w *way) get(p []byte, deadline time.Time) (int, error) {
	for {
		w.mu.Lock()
		if w.err != nil {
			w.mu.Unlock()
			return 0, w.err
		}
		at := deadline
		switch {
		case len(w.queue) == 0 && w.eof && !w.hole:
			w.mu.Unlock()
			return 0, io.EOF
		case len(w.queue) > 0:
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
		if err := await(wake, at, deadline); err != nil {
			return 0, err
		}
	}
}

// await waits until something changes or at has passed; the error is of the
// deadline.
func await(wake <-chan struct{}, at, deadline time.Time) error {
	if !deadline.IsZero() && !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	if at.IsZero() {
		<-wake
		return nil
	}
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-wake:
	case <-t.C:
	}
	return nil
}
