package carrier

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/identity"
)

const (
	maxStrangers = 256 // connections of one listener that have not shown who they are
	maxJoins     = 64  // nodes that join through one listener at a time
	maxWaiting   = 64  // links that nobody has accepted yet

	firstRest = 5 * time.Millisecond // after the system could not accept; doubles
	lastRest  = time.Second
)

// acceptor takes connections from a net.Listener through their handshakes.
type acceptor struct {
	config *tls.Config
	done   func(c *tls.Conn) // has the connection of who has shown what it should
	ready  chan Link
	join   func(net.Conn) // nil: nobody joins here
	pass   func(net.Conn) // instead: it takes them elsewhere, unseen

	joining *Crowd

	mu        sync.Mutex
	strangers []net.Conn // the oldest first
	closed    bool
	wg        sync.WaitGroup

	ctx  context.Context
	quit context.CancelFunc
}

// newAcceptor returns an acceptor of links; config and joins say who may come.
func newAcceptor(id *identity.Node, config *tls.Config, joins Joins) *acceptor {
	a := &acceptor{config: config, ready: make(chan Link, maxWaiting), join: joins.Admit, pass: joins.Pass, joining: NewCrowd(maxJoins)}
	a.ctx, a.quit = context.WithCancel(context.Background())
	a.done = func(c *tls.Conn) {
		if l, err := newLink(c, c.ConnectionState(), id); err == nil {
			a.offer(l)
		}
	}
	return a
}

// serve accepts until the listener is closed.
func (a *acceptor) serve(l net.Listener) {
	rest := firstRest
	for {
		c, err := l.Accept()
		if err == nil {
			rest = firstRest
			a.take(c)
			continue
		}
		if a.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		// Such as: no more file descriptors. It passes, or it does not; neither
		// gets better by trying at once.
		t := time.NewTimer(rest)
		select {
		case <-a.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		rest = min(2*rest, lastRest)
	}
}

// take begins a stranger's handshake.
func (a *acceptor) take(c net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		c.Close()
		return
	}
	if len(a.strangers) >= maxStrangers {
		i := excess(a.strangers)
		a.strangers[i].Close() // its handshake fails
		a.strangers = append(a.strangers[:i], a.strangers[i+1:]...)
	}
	a.strangers = append(a.strangers, c)
	a.wg.Go(func() { a.meet(c) })
}

// excess returns which connection makes room for another: the oldest of the
// source that has the most, so that a crowd from one place keeps nobody else out.
// conns are the oldest first.
func excess(conns []net.Conn) int {
	count, first := map[string]int{}, map[string]int{}
	most := sourceOf(conns[0].RemoteAddr())
	for i, c := range conns {
		s := sourceOf(c.RemoteAddr())
		if count[s]++; count[s] == 1 {
			first[s] = i
		}
		if count[s] > count[most] || count[s] == count[most] && first[s] < first[most] {
			most = s
		}
	}
	return first[most]
}

// sourceOf returns whom an address belongs to: a host, or an IPv6 network. That of a
// connection that others pass on says where they have it from.
func sourceOf(addr net.Addr) string {
	var ip netip.Addr
	switch a := addr.(type) {
	case *net.TCPAddr:
		ip, _ = netip.AddrFromSlice(a.IP)
	case interface{ Source() netip.Addr }:
		ip = a.Source()
	}
	switch ip = ip.Unmap().WithZone(""); {
	case !ip.IsValid():
		return ""
	case ip.Is4():
		return ip.String()
	}
	return netip.PrefixFrom(ip, 64).Masked().Addr().String()
}

// Crowd is connections of strangers, so many at most. It may be used from many
// goroutines.
type Crowd struct {
	most int

	mu    sync.Mutex
	conns []net.Conn // the oldest first
}

// NewCrowd returns a crowd of up to most connections.
func NewCrowd(most int) *Crowd { return &Crowd{most: most} }

// Enter takes in a connection, until leave is called. Where there are too many, the
// oldest of the source that has the most makes way: it is closed.
func (k *Crowd) Enter(c net.Conn) (leave func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.conns) >= k.most {
		i := excess(k.conns)
		go k.conns[i].Close() // it may take a while: TLS says goodbye
		k.conns = slices.Delete(k.conns, i, i+1)
	}
	k.conns = append(k.conns, c)
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.conns = without(k.conns, c)
	}
}

func (a *acceptor) meet(c net.Conn) {
	config, first := a.config, (*replayed)(nil)
	raw := c
	if a.join == nil && a.pass != nil {
		first = &replayed{Conn: c}
		raw, config = first, first.watch(config)
	}
	conn := tls.Server(&records{Conn: raw}, config)
	err := handshake(a.ctx, conn)
	a.mu.Lock()
	a.strangers = without(a.strangers, c)
	a.mu.Unlock()
	if first != nil && first.joins.Load() {
		first.again()
		a.admit(first, a.pass)
		return
	}
	if err != nil {
		return // strangers come and go; there is nobody to tell
	}
	if a.join != nil && conn.ConnectionState().NegotiatedProtocol == identity.JoinProtocol {
		a.admit(conn, a.join)
		return
	}
	if k, ok := c.(interface{ Know() }); ok { // relayed
		k.Know()
	}
	a.done(conn)
}

// without takes a connection from a list, if it is there still.
func without(conns []net.Conn, c net.Conn) []net.Conn {
	if i := slices.Index(conns, c); i >= 0 {
		return slices.Delete(conns, i, i+1)
	}
	return conns
}

// admit lets a node without certificate ask for one. Those who come and ask for
// nothing keep nobody else out.
func (a *acceptor) admit(c net.Conn, join func(net.Conn)) {
	defer c.Close()
	defer a.joining.Enter(c)()
	defer context.AfterFunc(a.ctx, func() { c.Close() })()
	join(c)
}

// offer has a link accepted. Where links come faster than they are accepted they
// are closed: their peers dial again.
func (a *acceptor) offer(l Link) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed {
		select {
		case a.ready <- l:
			return
		default:
		}
	}
	go l.Close() // it may take a while: TLS says goodbye
}

// accept implements Listener.
func (a *acceptor) accept(ctx context.Context) (Link, error) {
	select {
	case <-a.ctx.Done():
		return nil, net.ErrClosed
	default:
	}
	select {
	case l := <-a.ready:
		return l, nil
	case <-a.ctx.Done():
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// close ends handshakes and closes links that nobody has accepted.
func (a *acceptor) close() {
	a.quit()
	a.mu.Lock()
	a.closed = true
	for _, c := range a.strangers {
		c.Close()
	}
	a.mu.Unlock()
	a.wg.Wait()
	for {
		select {
		case l := <-a.ready:
			l.Close()
		default:
			return
		}
	}
}
