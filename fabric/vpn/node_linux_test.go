package vpn

import (
	"context"
	"net/netip"
	"sync"
	"testing"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/tunneltest"
	"github.com/spacestore/space/internal/testenv/netns"
)

// site is a host with an exit, a node, and two cables.
type site struct {
	host   *netns.NS
	node   *fabric.Node
	direct *netns.Cable // to the client
	pool   netip.Prefix
}

// TestNodes has a client's packets go to one of two exits, by another way when
// the cable is cut, and to the other exit when that one's node ends. Both lead to
// the host beyond.
func TestNodes(t *testing.T) {
	client, third, beyond := netns.New(t), netns.New(t), netns.New(t)
	netns.Connect(t, client, third, "10.2.0.1/24", "10.2.0.2/24")
	beyond.Address(t, "192.0.2.1/32")
	f := tunneltest.NewFabric(t)
	profile := tunneltest.Profile(t, "vpn-packets")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	var sites []*site
	listen := []string{"10.2.0.2:7000"}
	for _, n := range []string{"1", "2"} {
		s := &site{host: netns.New(t), pool: netip.MustParsePrefix("10.77." + n + ".0/24")}
		s.direct = netns.Connect(t, client, s.host, "10.1."+n+".1/24", "10.1."+n+".2/24")
		netns.Connect(t, third, s.host, "10.3."+n+".2/24", "10.3."+n+".1/24")
		netns.Connect(t, s.host, beyond, "10.4."+n+".1/24", "10.4."+n+".2/24")
		s.host.Route(t, "192.0.2.1/32", "10.4."+n+".2")
		beyond.Route(t, s.pool.String(), "10.4."+n+".1")
		s.host.Forward(t)
		sites = append(sites, s)
		listen = append(listen, "10.3."+n+".2:7000")
	}
	f.Node(t, third, "third", listen...)
	for i, s := range sites {
		n := string(rune('1' + i))
		s.node = f.Node(t, s.host, "exit "+n, "10.1."+n+".2:7000", "10.3."+n+".1:7000")
		p, err := s.node.Provide(fabric.Service{Profile: profile})
		if err != nil {
			t.Fatal(err)
		}
		e, err := NewExit(ExitOptions{Device: tunIn(t, s.host), Pools: []netip.Prefix{s.pool}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		wg.Go(func() {
			for {
				tunnel, err := p.Accept(ctx)
				if err != nil {
					return
				}
				wg.Go(func() { _ = e.Serve(ctx, tunnel, tunnel.ID(), tunnel.Peer()) })
			}
		})
	}
	tunnel := tunneltest.Open(t, f.Node(t, client, "client", "10.2.0.1:7000"), fabric.Request{Profile: profile})
	leases := make(chan Lease, 100)
	c, err := NewClient(ClientOptions{Device: tunIn(t, client), Routes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Leased: func(l Lease) { leases <- l }})
	if err != nil {
		t.Fatal(err)
	}
	run(t, c, tunnel)
	l := wait(t, "a lease", leases)
	now := func() *site {
		for _, s := range sites {
			if s.node.ID() == tunnel.Peer() {
				return s
			}
		}
		t.Fatalf("the tunnel leads to %v", tunnel.Peer())
		return nil
	}
	if !now().pool.Contains(l.V4.Addr.Addr()) {
		t.Errorf("%v is not of the exit's %v", l.V4.Addr, now().pool)
	}
	ping(t, client, "192.0.2.1")
	tcpBothWays(t, &road{client: client, beyond: beyond, c: c}, "192.0.2.1")

	now().direct.Cut(t)
	ping(t, client, "192.0.2.1")

	gone := now()
	if err := gone.node.Close(); err != nil {
		t.Error(err)
	}
	ping(t, client, "192.0.2.1")
	if now() == gone {
		t.Error("the tunnel leads to a node that is gone")
	}
}
