package carrier

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/fabric/identity"
)

// Link is a connection to a peer that is authenticated by the fabric's
// certificates, TLS 1.3, mutual, end to end. It implements session.Expiring.
type Link interface {
	net.Conn
	Peer() identity.NodeID
	// Organization is whose node the peer is, as its certificate says.
	Organization() string
}

// Carrier makes links. It may be used from many goroutines.
type Carrier interface {
	Name() string // "tls", "quic", "https"
	// Dial connects to the node to; zero: to any node of the fabric. addr is
	// host:port, for https a URL.
	Dial(ctx context.Context, addr string, to identity.NodeID) (Link, error)
	// Listen begins to take in links at an address. ctx bounds the beginning.
	Listen(ctx context.Context, addr string) (Listener, error)
}

// Listener takes in links. Links of TLS live on when it is closed; those of the
// others end, since they share what it listens on.
type Listener interface {
	Accept(ctx context.Context) (Link, error)
	Addr() string // as others dial it, if they reach this host by its name there
	Close() error
}

// handshakeTime is how long a peer may take to show who it is.
const handshakeTime = 10 * time.Second

// Wrap makes a link of a connection by a handshake, as its server or its client.
// to is the node that must be at the other end; zero: any of the fabric. Where it
// fails the connection is closed.
func Wrap(ctx context.Context, conn net.Conn, id *identity.Node, to identity.NodeID, server bool) (Link, error) {
	var c *tls.Conn
	if server {
		c = tls.Server(&records{Conn: conn}, id.ServerConfig(false))
	} else {
		c = tls.Client(&records{Conn: conn}, id.ClientConfig(to))
	}
	if err := handshake(ctx, c); err != nil {
		return nil, err
	}
	return newLink(c, c.ConnectionState(), id)
}

// Meet is Wrap for a server to which nodes come that join: there is no link then.
func Meet(ctx context.Context, conn net.Conn, id *identity.Node, join func(net.Conn)) (Link, error) {
	c := tls.Server(&records{Conn: conn}, id.ServerConfig(join != nil))
	if err := handshake(ctx, c); err != nil {
		return nil, err
	}
	if join != nil && c.ConnectionState().NegotiatedProtocol == identity.JoinProtocol {
		defer c.Close()
		join(c)
		return nil, nil
	}
	return newLink(c, c.ConnectionState(), id)
}

// handshake does a connection's handshake, or closes it.
func handshake(ctx context.Context, c *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		c.NetConn().Close()
		return fmt.Errorf("carrier: %w", err)
	}
	return nil
}

// link is a connection whose handshake is done.
type link struct {
	net.Conn
	records *records // under its TLS; nil: it has none
	peer    identity.NodeID
	org     string
	writes  atomic.Int64 // two for each that holds what it writes back; odd: the link is closed
	once    sync.Once
	ends    time.Time
	watch   func() // ends the watch for the end of what the peer has shown
	err     error  // of Close
}

// newLink returns the link of a connection whose peer has shown what is in state.
func newLink(conn net.Conn, state tls.ConnectionState, id *identity.Node) (*link, error) {
	l := &link{Conn: conn}
	// Who is revoked gets no farewell: whatever waits to be sent to it must not
	// hold up those who cut it.
	cut := conn.Close
	if c, ok := conn.(*tls.Conn); ok {
		cut = c.NetConn().Close
		l.records, _ = c.NetConn().(*records)
	}
	peer, lasts, stop, err := id.WatchPeer(state, func() { cut() })
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("carrier: %w", err)
	}
	l.peer, l.org, l.ends, l.watch = peer, identity.PeerOrganization(state), time.Now().Add(lasts), stop
	return l, nil
}

// Peer implements Link.
func (l *link) Peer() identity.NodeID { return l.peer }

// Organization implements Link.
func (l *link) Organization() string { return l.org }

// Expires implements session.Expiring.
func (l *link) Expires() time.Time { return l.ends }

// Write implements net.Conn.
func (l *link) Write(p []byte) (int, error) {
	if l.records == nil || len(p) <= recordSize {
		return l.Conn.Write(p)
	}
	defer l.writes.Add(-2)
	if l.writes.Add(2)&1 != 0 {
		return 0, net.ErrClosed
	}
	l.records.hold()
	n, err := l.Conn.Write(p)
	if ferr := l.records.release(); err == nil {
		err = ferr
	}
	return n, err
}

// Close implements net.Conn.
func (l *link) Close() error {
	l.once.Do(func() {
		l.watch()
		if c, ok := l.Conn.(*tls.Conn); ok && l.writes.Or(1) != 0 {
			// What is written may be stuck: as with TLS alone, there is no farewell behind it.
			l.err = c.NetConn().Close()
			return
		}
		l.err = l.Conn.Close()
	})
	return l.err
}
