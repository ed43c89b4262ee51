package carrier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/spacestore/space/fabric/identity"
)

const (
	maxQUICLinks = 64               // streams of one connection
	maxQUICConns = 32               // of one node, at one listener
	quicIdle     = 30 * time.Second // a connection of which nothing is heard is given up
	quicLinger   = time.Second      // a connection without links ends after
	quicNew      = 64               // handshakes a second whose address is believed
	quicOld      = 8                // for the last part of its life, a connection gets no new links

	pathLook  = 250 * time.Millisecond
	pathDead  = time.Second // without an answer another path is tried
	pathProbe = 2 * time.Second
	pathRest  = 3 * time.Second // between two tries
)

// codeBye ends a connection that is not needed any more.
const codeBye quic.ApplicationErrorCode = 0

// byeTrust says that it is over because of who the peer is.
const byeTrust = "the certificate was revoked, or has expired"

// quicCarrier is QUIC (RFC 9000). The links to one peer are streams of one
// connection, which goes on when the address of either end changes: it migrates
// to another path when nothing comes back over the one it has (RFC 9000 §9).
type quicCarrier struct {
	id   *identity.Node
	bind func() (net.PacketConn, error) // a socket for a path

	mu    sync.Mutex
	conns map[quicKey]*quicConn
}

type quicKey struct {
	addr string
	to   identity.NodeID
}

// NewQUIC returns the carrier of QUIC.
func NewQUIC(id *identity.Node) Carrier { return newQUIC(id, bindAny) }

func newQUIC(id *identity.Node, bind func() (net.PacketConn, error)) *quicCarrier {
	return &quicCarrier{id: id, bind: bind, conns: map[quicKey]*quicConn{}}
}

func bindAny() (net.PacketConn, error) { return net.ListenUDP("udp", nil) }

func quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:  handshakeTime / 2, // the whole may take twice as long
		MaxIdleTimeout:        quicIdle,
		KeepAlivePeriod:       quicIdle / 6,
		MaxIncomingStreams:    maxQUICLinks,
		MaxIncomingUniStreams: -1,
		// The session above has windows of its own, so these only have to be no
		// smaller than the way is long.
		InitialStreamReceiveWindow:     1 << 20,
		MaxStreamReceiveWindow:         16 << 20,
		InitialConnectionReceiveWindow: 2 << 20,
		MaxConnectionReceiveWindow:     32 << 20,
	}
}

// Name implements Carrier.
func (*quicCarrier) Name() string { return "quic" }

// Dial implements Carrier.
func (q *quicCarrier) Dial(ctx context.Context, addr string, to identity.NodeID) (Link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	for {
		c, shared := q.hold(quicKey{addr, to})
		l, err := c.open(ctx)
		if err == nil {
			return l, nil
		}
		c.release()
		if !shared || !c.failed() || ctx.Err() != nil {
			return nil, fmt.Errorf("carrier: %w", err)
		}
		// One that was there has ended just now: make another one.
	}
}

// hold returns the connection to a peer: one that is there already, which is
// shared then, or a new one.
func (q *quicCarrier) hold(k quicKey) (c *quicConn, shared bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	c = q.conns[k]
	if shared = c != nil && !c.failed() && !c.aging(); !shared {
		c = &quicConn{q: q, key: k, up: make(chan struct{}), dead: make(chan struct{})}
		q.conns[k] = c
		go c.run()
	}
	c.links++
	return c, shared
}

// quicConn is a connection that was dialed.
type quicConn struct {
	q     *quicCarrier
	key   quicKey
	links int // and dials under way; guarded by q.mu

	up   chan struct{} // closed when conn is there
	conn *quic.Conn
	peer identity.NodeID
	ends time.Time     // when its certificates expire
	old  time.Time     // from when new links are not to be made of it
	dead chan struct{} // closed when err is there
	err  error
}

// aging reports whether new links need another connection: this one will end with
// its certificates before long, and there may be newer ones.
func (c *quicConn) aging() bool {
	select {
	case <-c.up:
		return !time.Now().Before(c.old)
	default:
		return false
	}
}

func (c *quicConn) failed() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}

// release gives a link back.
func (c *quicConn) release() {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	if c.links--; c.links > 0 {
		return
	}
	// What was written last is still on its way.
	time.AfterFunc(quicLinger, func() {
		c.q.mu.Lock()
		defer c.q.mu.Unlock()
		if c.links > 0 {
			return
		}
		if c.q.conns[c.key] == c {
			delete(c.q.conns, c.key)
		}
		select {
		case <-c.up:
			c.conn.CloseWithError(codeBye, "")
		default: // it is still being dialed, which is bounded
		}
	})
}

// run makes the connection, and sees that it has a path until it ends.
func (c *quicConn) run() {
	var path []*quic.Transport // that were bound; the connection uses the last one
	defer func() {
		close(c.dead)
		for _, t := range path {
			t.Close()
			t.Conn.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	var raddr *net.UDPAddr
	t, err := c.q.path()
	if err == nil {
		path = append(path, t)
		raddr, err = resolveUDP(ctx, c.key.addr)
	}
	if err == nil {
		c.conn, err = t.Dial(ctx, raddr, c.q.id.ClientConfig(c.key.to), quicConfig())
	}
	if err != nil {
		c.err = err
		return
	}
	defer c.conn.CloseWithError(codeBye, "")
	peer, lasts, stop, err := c.q.id.WatchPeer(c.conn.ConnectionState().TLS, func() { c.conn.CloseWithError(codeBye, byeTrust) })
	if err != nil {
		c.err = err
		return
	}
	defer stop()
	c.peer, c.ends = peer, time.Now().Add(lasts)
	c.old = c.ends.Add(-lasts / quicOld)
	close(c.up)
	c.q.mu.Lock()
	idle := c.links == 0
	c.q.mu.Unlock()
	if idle {
		c.err = net.ErrClosed
		return
	}
	c.keep(&path)
	c.err = context.Cause(c.conn.Context())
}

// keep has the connection go over another path when nothing comes back on the
// one it has: the address of this host may have changed, or a network be gone.
func (c *quicConn) keep(path *[]*quic.Transport) {
	tick := time.NewTicker(pathLook)
	defer tick.Stop()
	last := c.conn.ConnectionStats()
	quiet := time.Now() // since when packets go out and none comes back
	asked := false      // a packet has gone out since the last one came
	var tried time.Time
	for {
		select {
		case <-c.conn.Context().Done():
			return
		case <-tick.C:
		}
		now, s := time.Now(), c.conn.ConnectionStats()
		if s.PacketsReceived != last.PacketsReceived {
			last, asked = s, false
			continue
		}
		if s.PacketsSent == last.PacketsSent {
			continue
		}
		if !asked {
			asked, quiet = true, now
		}
		if now.Sub(quiet) < max(pathDead, 4*s.SmoothedRTT) || now.Sub(tried) < pathRest {
			continue
		}
		tried = now
		t, err := c.q.path()
		if err != nil {
			continue // no socket now; later there may be one
		}
		if c.migrate(t) != nil {
			t.Close()
			t.Conn.Close()
			continue
		}
		// The old path stays open until the end: packets that are still
		// underway arrive there. Only the newest few count.
		*path = append(*path, t)
		if len(*path) > 3 {
			old := (*path)[0]
			*path = append((*path)[:0], (*path)[1:]...)
			old.Close()
			old.Conn.Close()
		}
	}
}

// migrate moves the connection to a path from t, if the peer answers there.
func (c *quicConn) migrate(t *quic.Transport) error {
	p, err := c.conn.AddPath(t)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.conn.Context(), pathProbe)
	defer cancel()
	err = p.Probe(ctx)
	if err == nil {
		err = p.Switch()
	}
	if err != nil {
		return errors.Join(err, p.Close())
	}
	return nil
}

// path binds a socket.
func (q *quicCarrier) path() (*quic.Transport, error) {
	pc, err := q.bind()
	if err != nil {
		return nil, err
	}
	return &quic.Transport{Conn: pc}, nil
}

func resolveUDP(ctx context.Context, addr string) (*net.UDPAddr, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "udp", port)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return nil, err
	}
	return &net.UDPAddr{IP: ips[0].IP, Zone: ips[0].Zone, Port: n}, nil
}

// open opens a link.
func (c *quicConn) open(ctx context.Context) (Link, error) {
	select {
	case <-c.up:
	case <-c.dead:
		return nil, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	st, err := c.conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	return newQUICLink(c.conn, st, c.peer, c.ends, c.release), nil
}

// quicLink is a stream as a link.
type quicLink struct {
	*quic.Stream
	conn *quic.Conn
	peer identity.NodeID
	ends time.Time

	once    sync.Once
	release func()
	err     error
}

func newQUICLink(conn *quic.Conn, st *quic.Stream, peer identity.NodeID, ends time.Time, release func()) *quicLink {
	return &quicLink{Stream: st, conn: conn, peer: peer, ends: ends, release: release}
}

// Expires implements session.Expiring.
func (l *quicLink) Expires() time.Time { return l.ends }

// Peer implements Link.
func (l *quicLink) Peer() identity.NodeID { return l.peer }

// Organization implements Link.
func (l *quicLink) Organization() string {
	return identity.PeerOrganization(l.conn.ConnectionState().TLS)
}

// LocalAddr implements net.Conn.
func (l *quicLink) LocalAddr() net.Addr { return l.conn.LocalAddr() }

// RemoteAddr implements net.Conn.
func (l *quicLink) RemoteAddr() net.Addr { return l.conn.RemoteAddr() }

// Close implements net.Conn. Unlike a stream's, it ends reads and writes that
// wait. What was written is still sent.
func (l *quicLink) Close() error {
	l.once.Do(func() {
		l.Stream.CancelRead(0)
		past := time.Unix(1, 0)
		// A write that waits holds up Close.
		l.err = errors.Join(l.Stream.SetDeadline(past), l.Stream.Close())
		l.release()
	})
	return l.err
}

// Read implements net.Conn.
func (l *quicLink) Read(p []byte) (int, error) {
	n, err := l.Stream.Read(p)
	return n, quicError(err)
}

// Write implements net.Conn.
func (l *quicLink) Write(p []byte) (int, error) {
	n, err := l.Stream.Write(p)
	return n, quicError(err)
}

// quicError makes of a time-out the error that a net.Conn has for it.
func quicError(err error) error {
	var t net.Error
	var idle *quic.IdleTimeoutError
	if errors.As(err, &t) && t.Timeout() && !errors.As(err, &idle) {
		return os.ErrDeadlineExceeded
	}
	return err
}

// Listen implements Carrier.
func (q *quicCarrier) Listen(ctx context.Context, addr string) (Listener, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", addr)
	if err != nil {
		return nil, fmt.Errorf("carrier: %w", err)
	}
	l := &quicListener{a: newAcceptor(q.id, nil, Joins{}), id: q.id, conns: map[identity.NodeID]int{}, t: &quic.Transport{Conn: pc, VerifySourceAddress: suspicious()}}
	if l.l, err = l.t.Listen(q.id.ServerConfig(false), quicConfig()); err != nil {
		pc.Close()
		return nil, fmt.Errorf("carrier: %w", err)
	}
	l.a.wg.Go(l.serve)
	return l, nil
}

// suspicious has strangers beyond so many a second show first that they are where
// they say (RFC 9000 §8.1), so that nobody can have us keep handshakes for
// addresses that he made up.
func suspicious() func(net.Addr) bool {
	var mu sync.Mutex
	var since time.Time
	var n int
	return func(net.Addr) bool {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(since) > time.Second {
			since, n = now, 0
		}
		n++
		return n > quicNew
	}
}

type quicListener struct {
	a  *acceptor // of which it uses the links alone: QUIC does handshakes itself
	id *identity.Node
	t  *quic.Transport
	l  *quic.Listener

	mu    sync.Mutex
	conns map[identity.NodeID]int // that nodes have; none is zero
}

// count counts a node's connection, or returns false where it has too many: they
// cost something without links, too.
func (l *quicListener) count(n identity.NodeID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[n] >= maxQUICConns {
		return false
	}
	l.conns[n]++
	return true
}

// uncount is called when a connection that was counted has ended.
func (l *quicListener) uncount(n identity.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[n]--; l.conns[n] == 0 {
		delete(l.conns, n)
	}
}

func (l *quicListener) serve() {
	for {
		c, err := l.l.Accept(l.a.ctx)
		if err != nil {
			return // the transport is closed, or broken for good
		}
		l.a.wg.Go(func() { l.streams(c) })
	}
}

// streams takes in the links of one connection.
func (l *quicListener) streams(c *quic.Conn) {
	defer c.CloseWithError(codeBye, "")
	peer, lasts, stop, err := l.id.WatchPeer(c.ConnectionState().TLS, func() { c.CloseWithError(codeBye, byeTrust) })
	if err != nil {
		return
	}
	defer stop()
	if !l.count(peer) {
		c.CloseWithError(codeBye, "too many connections of one node")
		return
	}
	defer l.uncount(peer)
	ends := time.Now().Add(lasts)
	for {
		st, err := c.AcceptStream(context.Background()) // until the connection ends
		if err != nil {
			return
		}
		l.a.offer(newQUICLink(c, st, peer, ends, func() {}))
	}
}

// Accept implements Listener.
func (l *quicListener) Accept(ctx context.Context) (Link, error) { return l.a.accept(ctx) }

// Addr implements Listener.
func (l *quicListener) Addr() string { return l.t.Conn.LocalAddr().String() }

// Close implements Listener. Links end with it: they share its socket.
func (l *quicListener) Close() error {
	l.a.quit()
	err := errors.Join(l.l.Close(), l.t.Close(), l.t.Conn.Close())
	l.a.close()
	return err
}
