package forward

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/tunneltest"
	"github.com/spacestore/space/internal/testenv/netns"
)

// TestRouteIsCut has a big connection and a small one go on while the cable that
// they use is cut. There is another way, through a third host.
func TestRouteIsCut(t *testing.T) {
	for name, end := range map[string]func(*netns.Cable, testing.TB){"silently": (*netns.Cable).Cut, "unplugged": (*netns.Cable).Unplug} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of the time, both wait
			a, b, third := netns.New(t), netns.New(t), netns.New(t)
			netns.Connect(t, a, third, "10.2.0.1/24", "10.2.0.2/24")
			netns.Connect(t, third, b, "10.3.0.2/24", "10.3.0.1/24")
			direct := netns.Connect(t, a, b, "10.1.0.1/24", "10.1.0.2/24")
			f := tunneltest.NewFabric(t)
			f.Node(t, third, "third", "10.2.0.2:7000", "10.3.0.2:7000")
			provider := f.Node(t, b, "b", "10.1.0.2:7000", "10.3.0.1:7000")
			user := f.Node(t, a, "a", "10.1.0.1:7000", "10.2.0.1:7000")

			profile := tunneltest.Profile(t, "tcp-forward")
			p, err := provider.Provide(fabric.Service{Profile: profile, Pool: "test"})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			const size = 32 << 20
			big, back := randomBytes(1, size), randomBytes(2, size)
			var work sync.WaitGroup // of the service and its client
			work.Add(1)
			e, err := NewExposer(ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
				defer work.Done()
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() {
					if _, err := c.Write(back); err != nil {
						t.Error(err)
					}
					if err := closeWrite(c); err != nil {
						t.Error(err)
					}
				})
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, big) {
					t.Errorf("the service got %d bytes of %d, %v", len(got), size, err)
				}
			})})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			wg.Go(func() {
				for {
					tunnel, err := p.Accept(ctx)
					if err != nil {
						return
					}
					wg.Go(func() { _ = e.Serve(ctx, tunnel, tunnel.Peer()) })
				}
			})
			tunnel := tunneltest.Open(t, user, fabric.Request{Profile: profile, Pool: "test"})
			fw, err := NewForwarder(ForwardOptions{Bulk: true})
			if err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() { _ = fw.Serve(ctx, l, tunnel) })

			c := dial(t, l.Addr().String())
			work.Go(func() {
				if _, err := c.Write(big); err != nil {
					t.Error(err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			got := make([]byte, size)
			if _, err := io.ReadFull(c, got[:size/3]); err != nil {
				t.Fatal(err)
			}
			before := tunnel.Contract()
			end(direct, t)
			began := time.Now()
			if _, err := io.ReadFull(c, got[size/3:]); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 1)); n > 0 || err != io.EOF || !bytes.Equal(got, back) {
				t.Errorf("the answer is not what was sent, or %v", err)
			}
			work.Wait()
			after := tunnel.Contract()
			t.Logf("done %v after the cut; route generation %d after %d; %+v", time.Since(began).Round(time.Millisecond), after.RouteGeneration, before.RouteGeneration, user.Routes())
			if after.TunnelID != before.TunnelID || after.RouteGeneration <= before.RouteGeneration {
				t.Errorf("the tunnel was %+v and is %+v", before, after)
			}
		})
	}
}
