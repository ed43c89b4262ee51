// Package carrier makes the links that sessions run over.
package carrier

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/spacestore/space/fabric/identity"
)

// Link is a connection to a peer that is authenticated by the fabric's
// certificates, TLS 1.3, mutual, end to end.
type Link interface {
	net.Conn
	Peer() identity.NodeID
}

// Carrier makes links. Addresses are host:port (https: a URL).
type Carrier interface {
	Name() string // "tls", "quic", "https"
	// Dial connects to the node to; zero: to any node of the fabric.
	Dial(ctx context.Context, addr string, to identity.NodeID) (Link, error)
	Listen(ctx context.Context, addr string) (Listener, error)
}

// Listener accepts links.
type Listener interface {
	Accept(ctx context.Context) (Link, error)
	Addr() string
	Close() error
}

// Wrap runs the TLS handshake on conn.
func Wrap(ctx context.Context, conn net.Conn, id *identity.Node, to identity.NodeID, server bool) (Link, error) {
	c := tls.Client(conn, id.ClientConfig(to))
	if server {
		c = tls.Server(conn, id.ServerConfig(false))
	}
	if err := c.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	peer, err := identity.Peer(c.ConnectionState())
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &link{c, peer}, nil
}

type link struct {
	*tls.Conn
	peer identity.NodeID
}

func (l *link) Peer() identity.NodeID { return l.peer }
