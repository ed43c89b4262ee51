// Package carrier makes the links that sessions run over.
package carrier

import (
	"context"
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
