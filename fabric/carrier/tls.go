package carrier

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/spacestore/space/fabric/identity"
)

// TLSOptions are for [NewTLS]; the zero value is usable.
type TLSOptions struct {
	Joins Joins
}

// tlsCarrier is TLS over TCP: the cheapest carrier for each byte.
type tlsCarrier struct {
	id *identity.Node
	o  TLSOptions
}

// NewTLS returns the carrier of TLS over TCP.
func NewTLS(id *identity.Node, o TLSOptions) Carrier { return &tlsCarrier{id, o} }

// Name implements Carrier.
func (*tlsCarrier) Name() string { return "tls" }

// alive notices a peer whose host is gone, for links on which nothing else asks.
var alive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: alive, Control: tune, Timeout: handshakeTime}
	return d.DialContext(ctx, "tcp", addr)
}

func listenTCP(ctx context.Context, addr string) (net.Listener, error) {
	// What is set on the listening socket its connections inherit.
	lc := net.ListenConfig{KeepAliveConfig: alive, Control: tune}
	return lc.Listen(ctx, "tcp", addr)
}

// Dial implements Carrier.
func (t *tlsCarrier) Dial(ctx context.Context, addr string, to identity.NodeID) (Link, error) {
	c, err := dialTCP(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("carrier: %w", err)
	}
	return Wrap(ctx, c, t.id, to, false)
}

// Listen implements Carrier.
func (t *tlsCarrier) Listen(ctx context.Context, addr string) (Listener, error) {
	l, err := listenTCP(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("carrier: %w", err)
	}
	a := newAcceptor(t.id, t.id.ServerConfig(t.o.Joins.Admit != nil), t.o.Joins)
	a.wg.Go(func() { a.serve(l) })
	return &tlsListener{l, a}, nil
}

type tlsListener struct {
	l net.Listener
	a *acceptor
}

// Accept implements Listener.
func (l *tlsListener) Accept(ctx context.Context) (Link, error) { return l.a.accept(ctx) }

// Addr implements Listener.
func (l *tlsListener) Addr() string { return l.l.Addr().String() }

// Close implements Listener.
func (l *tlsListener) Close() error {
	err := l.l.Close()
	l.a.close()
	return err
}
