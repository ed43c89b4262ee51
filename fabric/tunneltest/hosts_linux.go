package tunneltest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/identity/identitytest"
	"github.com/spacestore/space/internal/testenv/netns"
)

// Fabric is nodes on hosts that are network namespaces, with TLS over TCP
// between them.
type Fabric struct {
	auth  *identitytest.Authority
	seeds []string
}

// NewFabric returns a fabric without nodes.
func NewFabric(t testing.TB) *Fabric {
	t.Helper()
	return &Fabric{auth: identitytest.New(t, nil)}
}

// Node starts a node that listens at addresses of its host, such as
// 10.1.0.1:7000. The first node is the seed of the others. It ends with the test.
func (f *Fabric) Node(t testing.TB, host *netns.NS, name string, addrs ...string) *fabric.Node {
	t.Helper()
	c := &hostCarrier{host, f.auth.Node(t)}
	o := fabric.Options{Identity: c.id, Name: name, Area: "test", Dial: []carrier.Carrier{c}, Seeds: f.seeds, Relay: true}
	for _, a := range addrs {
		o.Listen = append(o.Listen, fabric.Listen{Carrier: c, Addr: a})
	}
	if os.Getenv("FABRIC_LOG") != "" {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("name", name)
	}
	n, err := fabric.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("closing node %s: %v", name, err)
		}
	})
	if f.seeds == nil {
		f.seeds = n.Addrs()
	}
	return n
}

// Open asks for a tunnel until the node's directory knows somebody who provides
// the service. The tunnel ends with the test.
func Open(t testing.TB, n *fabric.Node, r fabric.Request) *fabric.Tunnel {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for {
		tunnel, err := n.Tunnel(ctx, r)
		if err == nil {
			t.Cleanup(func() { tunnel.Close() })
			return tunnel
		}
		if !errors.Is(err, fabric.ErrNoProvider) {
			t.Fatal(err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

// Profile returns one of fabric.Profiles.
func Profile(t testing.TB, name string) fabric.Profile {
	t.Helper()
	for _, p := range fabric.Profiles {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("there is no profile %s", name)
	return fabric.Profile{}
}

// hostCarrier is TLS over TCP from a host.
type hostCarrier struct {
	host *netns.NS
	id   *identity.Node
}

func (c *hostCarrier) Name() string { return "tls" }

func (c *hostCarrier) Dial(ctx context.Context, addr string, to identity.NodeID) (carrier.Link, error) {
	var conn net.Conn
	err := c.host.Do(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp", addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	return carrier.Wrap(ctx, conn, c.id, to, false)
}

func (c *hostCarrier) Listen(_ context.Context, addr string) (carrier.Listener, error) {
	l, err := c.host.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &hostListener{l, c.id}, nil
}

type hostListener struct {
	net.Listener
	id *identity.Node
}

func (l *hostListener) Addr() string { return l.Listener.Addr().String() }

func (l *hostListener) Accept(ctx context.Context) (carrier.Link, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		hand, cancel := context.WithTimeout(ctx, 10*time.Second)
		link, err := carrier.Wrap(hand, conn, l.id, identity.NodeID{}, true)
		cancel()
		if err == nil {
			return link, nil
		}
	}
}
