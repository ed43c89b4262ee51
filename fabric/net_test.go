package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/testenv/simnet"
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
		c.Cut(errors.New("connection reset"))
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
		c.Swallow(w.isHole(c.from, hostOf(c.to)))
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
	a, b := simnet.Line{Delay: c.w.delay}.Connect()
	near := &memConn{Conn: a, peer: l.c.id, w: c.w, from: c.host, to: addr, carrier: c.name}
	far := &memConn{Conn: b, peer: c.id, from: c.host, to: addr, carrier: c.name}
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
	*simnet.Conn
	peer              *identity.Node
	w                 *network // of the dialer's end
	from, to, carrier string
}

func (c *memConn) Peer() identity.NodeID { return c.peer.ID() }

func (c *memConn) Organization() string { return c.peer.Organization() }

func (c *memConn) Close() error {
	if c.w != nil {
		c.w.mu.Lock()
		delete(c.w.conns, c)
		c.w.mu.Unlock()
	}
	return c.Conn.Close()
}

func (c *memConn) LocalAddr() net.Addr  { return memAddr(c.from) }
func (c *memConn) RemoteAddr() net.Addr { return memAddr(c.to) }

type memAddr string

func (memAddr) Network() string  { return "memory" }
func (a memAddr) String() string { return string(a) }
