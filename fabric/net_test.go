package fabric

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/identity"
)

// network is a simulated one: connections between hosts that have a delay, and
// that can be cut, or swallow what is sent. In a synctest bubble its time is
// the bubble's.
type network struct {
	delay time.Duration // one way

	mu        sync.Mutex
	listeners map[string]*memListener // by carrier://addr
	conns     map[*memConn]struct{}   // the dialers' ends
	down      map[string]bool         // carrier://addr, or a host: dialing it is refused
	hole      map[string]bool         // a host, or "a|b": what is sent vanishes
}

func newNetwork(delay time.Duration) *network {
	return &network{delay: delay, listeners: map[string]*memListener{}, conns: map[*memConn]struct{}{}, down: map[string]bool{}, hole: map[string]bool{}}
}

// cut ends all connections that match, and with refuse has new ones refused.
func (w *network) cut(match func(from, to, carrier string) bool) {
	w.mu.Lock()
	var all []*memConn
	for c := range w.conns {
		if match(c.from, c.to, c.carrier) {
			all = append(all, c)
		}
	}
	w.mu.Unlock()
	for _, c := range all {
		c.in.fail(errors.New("connection reset"))
		c.out.fail(errors.New("connection reset"))
	}
}

// refuse has dialing of a carrier's address fail from now on, or work again,
// and ends the connections to it.
func (w *network) refuse(url string, on bool) {
	w.mu.Lock()
	w.down[url] = on
	w.mu.Unlock()
	if on {
		w.cut(func(_, to, name string) bool { return name+"://"+to == url || hostOf(to) == url })
	}
}

// part separates two hosts, or joins them again: what is sent vanishes.
func (w *network) part(a, b string, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hole[a+"|"+b], w.hole[b+"|"+a] = on, on
	for c := range w.conns {
		hole := w.isHole(c.from, hostOf(c.to))
		c.in.setHole(hole)
		c.out.setHole(hole)
	}
}

func (w *network) isHole(a, b string) bool { return w.hole[a+"|"+b] || w.hole[a] || w.hole[b] }

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

// memCarrier is a carrier of the simulated network, of one host.
type memCarrier struct {
	w    *network
	name string
	host string
	id   *identity.Node
}

func (c *memCarrier) Name() string { return c.name }

// trusts reports what TLS would: that the other end is not revoked.
func trusts(n *identity.Node, peer identity.NodeID) bool {
	ok := true
	n.Watch(peer, func() { ok = false })()
	return ok
}

func (c *memCarrier) Dial(ctx context.Context, addr string, to identity.NodeID) (carrier.Link, error) {
	c.w.mu.Lock()
	l := c.w.listeners[c.name+"://"+addr]
	down := c.w.down[c.name+"://"+addr] || c.w.down[hostOf(addr)] || c.w.down[c.host]
	hole := c.w.isHole(c.host, hostOf(addr))
	c.w.mu.Unlock()
	if hole {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	t := time.NewTimer(2 * c.w.delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l == nil || down {
		return nil, errors.New("connection refused")
	}
	if !to.IsZero() && l.c.id.ID() != to {
		return nil, fmt.Errorf("node %s answers where %s was wanted", l.c.id.ID(), to)
	}
	if !trusts(c.id, l.c.id.ID()) || !trusts(l.c.id, c.id.ID()) {
		return nil, identity.ErrRevoked
	}
	there, back := newPath(c.w.delay), newPath(c.w.delay)
	near := &memConn{in: back, out: there, peer: l.c.id, w: c.w, from: c.host, to: addr, carrier: c.name}
	far := &memConn{in: there, out: back, peer: c.id, from: c.host, to: addr, carrier: c.name}
	c.w.mu.Lock()
	c.w.conns[near] = struct{}{}
	c.w.mu.Unlock()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.done:
		near.Close()
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		near.Close()
		return nil, ctx.Err()
	}
}

func (c *memCarrier) Listen(_ context.Context, addr string) (carrier.Listener, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	l := &memListener{c: c, addr: addr, conns: make(chan *memConn), done: make(chan struct{})}
	if c.w.listeners[c.name+"://"+addr] != nil {
		return nil, errors.New("address in use")
	}
	c.w.listeners[c.name+"://"+addr] = l
	return l, nil
}

type memListener struct {
	c     *memCarrier
	addr  string
	conns chan *memConn
	done  chan struct{}
	once  sync.Once
}

func (l *memListener) Accept(ctx context.Context) (carrier.Link, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *memListener) Addr() string { return l.addr }

func (l *memListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.c.w.mu.Lock()
		defer l.c.w.mu.Unlock()
		delete(l.c.w.listeners, l.c.name+"://"+l.addr)
	})
	return nil
}

// memConn is one end of a connection.
type memConn struct {
	in, out           *path
	peer              *identity.Node
	w                 *network // of the dialer's end
	from, to, carrier string

	mu          sync.Mutex
	read, write time.Time
}

func (c *memConn) Peer() identity.NodeID { return c.peer.ID() }

func (c *memConn) Organization() string { return c.peer.Organization() }

func (c *memConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	at := c.read
	c.mu.Unlock()
	return c.in.get(p, at)
}

func (c *memConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	at := c.write
	c.mu.Unlock()
	return c.out.put(p, at)
}

func (c *memConn) Close() error {
	c.in.fail(net.ErrClosed)
	c.out.finish()
	if c.w != nil {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		delete(c.w.conns, c)
	}
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return memAddr(c.from) }
func (c *memConn) RemoteAddr() net.Addr { return memAddr(c.to) }

func (c *memConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.read = t
	c.mu.Unlock()
	c.in.wakeAll()
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.write = t
	c.mu.Unlock()
	c.out.wakeAll()
	return nil
}

type memAddr string

func (memAddr) Network() string  { return "memory" }
func (a memAddr) String() string { return string(a) }

// path is one direction of a connection.
type path struct {
	delay time.Duration

	mu     sync.Mutex
	wake   chan struct{}
	queue  []parcel
	queued int
	hole   bool
	lost   bool // something has vanished: the connection is worth nothing any more
	eof    bool
	err    error
}

type parcel struct {
	b  []byte
	at time.Time
}

const pathRoom = 256 << 10

func newPath(delay time.Duration) *path { return &path{delay: delay, wake: make(chan struct{})} }

func (w *path) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.change()
}

func (w *path) change() {
	close(w.wake)
	w.wake = make(chan struct{})
}

func (w *path) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.change()
}

func (w *path) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.eof = true
	w.change()
}

func (w *path) setHole(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = w.lost || on && len(w.queue) > 0
	if w.hole = on || w.lost; on {
		w.queue = nil
	}
	w.change()
}

func (w *path) put(p []byte, deadline time.Time) (n int, err error) {
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
		if room := pathRoom - w.queued; room > 0 && len(p) > 0 {
			k := min(room, len(p))
			w.queued += k
			if w.lost = w.lost || w.hole; !w.lost {
				w.queue = append(w.queue, parcel{append([]byte(nil), p[:k]...), time.Now().Add(w.delay)})
			}
			p, n = p[k:], n+k
			w.change()
		}
		wake := w.wake
		w.mu.Unlock()
		if len(p) == 0 {
			return n, nil
		}
		if err := await(wake, deadline, deadline); err != nil {
			return n, err
		}
	}
}

func (w *path) get(p []byte, deadline time.Time) (int, error) {
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
