package fabric

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/internal/testenv/leak"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

func TestMain(m *testing.M) { leak.Main(m) }

// world is a fabric in a simulated network.
type world struct {
	t    *testing.T
	net  *network
	auth *identity.Authority
	ids  map[string]*identity.Node
	all  map[string]*Node
	late shifted // the authority's clock
}

// shifted is a clock that is late.
type shifted struct{ by time.Duration }

func (s *shifted) Now() time.Time                         { return time.Now().Add(-s.by) }
func (s *shifted) After(d time.Duration) <-chan time.Time { return time.After(d) }

// simulate runs fn in a bubble whose time is virtual.
func simulate(t *testing.T, fn func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*time.Millisecond)
		defer w.close()
		fn(t, w)
	})
}

func newWorld(t testing.TB, delay time.Duration) *world {
	w := &world{net: newNetwork(delay), ids: map[string]*identity.Node{}, all: map[string]*Node{}}
	w.t, _ = t.(*testing.T)
	auth, err := identity.Create(vfstest.NewPowerCut(), "/auth", &w.late)
	if err != nil {
		t.Fatal(err)
	}
	w.auth = auth
	return w
}

func (w *world) close() {
	for _, n := range w.all {
		n.Close()
	}
}

// identity returns a host's identity, which outlives its node.
func (w *world) identity(t testing.TB, name string) *identity.Node {
	if id := w.ids[name]; id != nil {
		return id
	}
	return w.join(t, name, "")
}

// join makes a host's identity, of a node of an organization.
func (w *world) join(t testing.TB, name, organization string) *identity.Node {
	token, err := w.auth.NewTokenOf(organization, time.Hour, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	g, err := w.auth.Join(token.JoinRequest(csr))
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Accept(vfstest.NewPowerCut(), "/node", clock.System(), key, g, &token)
	if err != nil {
		t.Fatal(err)
	}
	w.ids[name] = id
	return id
}

// node starts a node that listens at its name, port 1, over each carrier.
func (w *world) node(t testing.TB, name, area string, change ...func(*Options)) *Node {
	t.Helper()
	id := w.identity(t, name)
	o := Options{Identity: id, Name: name, Area: area}
	for _, c := range []string{"tls", "quic"} {
		m := &memCarrier{w.net, c, name, id}
		o.Dial = append(o.Dial, m)
		o.Listen = append(o.Listen, Listen{Carrier: m, Addr: name + ":1"})
	}
	if name != "seed" {
		o.Seeds = []string{"tls://seed:1"}
	}
	if os.Getenv("FABRIC_LOG") != "" {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("name", name)
	}
	for _, fn := range change {
		fn(&o)
	}
	n, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	w.all[name] = n
	return n
}

// stop ends a node, politely or not.
func (w *world) stop(name string, kill bool) {
	if kill {
		w.net.mu.Lock()
		w.net.down[name] = true
		w.net.mu.Unlock()
		w.net.cut(func(from, to, _ string) bool { return from == name || hostOf(to) == name })
	}
	w.all[name].Close()
	delete(w.all, name)
	w.net.mu.Lock()
	delete(w.net.down, name)
	w.net.mu.Unlock()
}

func relayed(o *Options) { o.Relay = true }

// deaf nodes listen nowhere: they can be reached through others alone.
func deaf(o *Options) { o.Listen = nil }

// waitFor waits, in the bubble's time, until something is so.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("not within five minutes: %s", what)
}

var testProfile = Profile{Name: "test", Class: "interactive", Plane: StreamsPlane,
	Classes: []frame.Class{frame.Control, frame.Interactive, frame.Bulk}, Shards: 2}

func failing(p Profile) Profile { p.Failover = true; return p }

// echo provides a service that sends back what comes, after the node's name and
// a line's end.
func echo(t testing.TB, n *Node, pool string) *Provider {
	t.Helper()
	p, err := n.Provide(Service{Profile: testProfile, Pool: pool, Kind: "echo", ID: n.o.Name})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			tun, err := p.Accept(context.Background())
			if err != nil {
				return
			}
			go echoTunnel(tun, n.o.Name)
		}
	}()
	return p
}

func echoTunnel(tun *Tunnel, name string) {
	for {
		st, err := tun.Accept(context.Background())
		if err != nil {
			return
		}
		go func() {
			defer st.Close()
			if _, err := fmt.Fprintf(st, "%s\n", name); err != nil {
				return
			}
			if _, err := io.Copy(st, st); err == nil {
				st.CloseWrite()
				io.Copy(io.Discard, st)
			}
		}()
	}
}

func (w *world) open(t testing.TB, n *Node, p Profile, pool string, apart ...TunnelID) *Tunnel {
	t.Helper()
	var tun *Tunnel
	var err error
	waitFor(t, "a tunnel to pool "+pool, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		tun, err = n.Tunnel(ctx, Request{Profile: p, Pool: pool, Kind: "echo", Apart: apart})
		return err == nil || !errors.Is(err, ErrNoProvider)
	})
	if err != nil {
		t.Fatal(err)
	}
	return tun
}

// say sends b over a new stream and returns who has answered.
func say(t testing.TB, tun *Tunnel, b []byte) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	st, err := tun.Open(ctx, frame.Interactive, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	name, err := converse(st, b)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func converse(st Stream, b []byte) (string, error) {
	done := make(chan error, 1)
	go func() {
		_, err := st.Write(b)
		if err == nil {
			err = st.CloseWrite()
		}
		done <- err
	}()
	got, err := io.ReadAll(st)
	if werr := <-done; err == nil {
		err = werr
	}
	if err != nil {
		return "", err
	}
	name, rest, _ := bytes.Cut(got, []byte("\n"))
	if !bytes.Equal(rest, b) {
		return "", fmt.Errorf("%d bytes were sent, %d others came back", len(b), len(rest))
	}
	return string(name), nil
}

// payload is n bytes that are the same in each run.
func payload(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, n)
	r.Read(b)
	return b
}

func TestTunnel(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		p := echo(t, b, "pool")
		defer p.Close()
		tun := w.open(t, a, testProfile, "pool")
		if got := say(t, tun, payload(1, 300_000)); got != "b" {
			t.Errorf("%q has answered", got)
		}
		c := tun.Contract()
		if c.TunnelID.String() == "" || c.PoolID != "pool" || c.ServiceKind != "echo" || c.RemoteServiceID != "b" || c.LocalServiceID != "echo" ||
			c.RouteLeaseID == "" || c.RouteGeneration != 1 || c.DataPlane != StreamsPlane || c.StreamShards != 2 || len(c.TrafficClasses) != 3 {
			t.Errorf("contract %+v", c)
		}
		var far TunnelState
		for _, s := range b.Tunnels() {
			far = s
		}
		if far.Contract.TunnelID != c.TunnelID || far.Contract.RouteLeaseID != c.RouteLeaseID || far.Contract.RouteGeneration != 1 ||
			far.Contract.RemoteServiceID != "echo" || far.Contract.LocalServiceID != "b" || far.Opener || far.State != "up" {
			t.Errorf("the other end has %+v", far)
		}
		tun.Close()
		waitFor(t, "the other end's end", func() bool { return len(b.Tunnels()) == 0 })
	})
}

// both ends open streams and send packets.
func TestBothEnds(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		profile := Profile{Name: "packets", Class: "vpn_packets", Plane: PacketsPlane, Classes: []frame.Class{frame.Control, frame.Packet}, Shards: 1}
		for _, n := range []*Node{a, b} { // to another node, and to itself
			p, err := n.Provide(Service{Profile: profile, Pool: n.o.Name, Kind: "vpn-exit"})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			var near *Tunnel
			waitFor(t, "the tunnel", func() bool {
				near, err = a.Tunnel(context.Background(), Request{Profile: profile, Pool: n.o.Name, Kind: "vpn-exit"})
				return err == nil
			})
			far, err := p.Accept(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, ends := range [][2]*Tunnel{{near, far}, {far, near}} {
				got := make(chan [][]byte, 8)
				ends[1].HandlePackets(func(p [][]byte) { got <- p })
				if err := ends[0].SendPackets([][]byte{[]byte("one"), []byte("two")}); err != nil {
					t.Fatal(err)
				}
				if p := <-got; len(p) != 2 || string(p[1]) != "two" {
					t.Errorf("packets %q", p)
				}
				st, err := ends[0].Open(context.Background(), frame.Control, []byte("header"))
				if err != nil {
					t.Fatal(err)
				}
				other, err := ends[1].Accept(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if string(other.Header()) != "header" || other.Class() != frame.Control {
					t.Errorf("header %q, class %s", other.Header(), other.Class())
				}
				st.Close()
				other.Close()
			}
			if _, err := near.Open(context.Background(), frame.Bulk, nil); err == nil {
				t.Error("a class that the contract lacks was opened")
			}
			near.Close()
			<-far.Done()
		}
	})
}

var _ carrier.Carrier = (*memCarrier)(nil)
