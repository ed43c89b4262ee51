package fabric

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/admit"
	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// routeTo returns a node's route to another one.
func routeTo(n *Node, to *Node) (s RouteState, ok bool) {
	for _, r := range n.Routes() {
		if r.Peer == to.ID() && r.State == "up" && r.Links > 0 {
			return r, true
		}
	}
	return s, false
}

// flow sends numbered bytes over a stream for as long as it is told to and
// checks what comes back.
type flow struct {
	t    *testing.T
	st   Stream
	stop chan struct{}
	done chan error
	size int // of a block
	n    int
}

func startFlow(t *testing.T, tun *Tunnel, class frame.Class) *flow {
	t.Helper()
	return paced(t, tun, class, 1<<10, 40*time.Millisecond)
}

// paced starts a flow of a block of so many bytes every so often.
func paced(t *testing.T, tun *Tunnel, class frame.Class, size int, rest time.Duration) *flow {
	t.Helper()
	st, err := tun.Open(context.Background(), class, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := &flow{t: t, st: st, size: size, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		block := payload(uint64(class), size)
		sent := make(chan error, 1)
		go func() {
			for i := 0; ; i++ {
				select {
				case <-f.stop:
					sent <- st.CloseWrite()
					return
				case <-time.After(rest):
				}
				block[0], block[1] = byte(i), byte(i>>8)
				if _, err := st.Write(block); err != nil {
					sent <- err
					return
				}
			}
		}()
		f.done <- f.check(st, sent)
	}()
	return f
}

func (f *flow) check(st Stream, sent chan error) error {
	want := payload(uint64(st.Class()), f.size)
	got := make([]byte, len(want))
	var b [1]byte
	for b[0] != '\n' {
		if _, err := io.ReadFull(st, b[:]); err != nil {
			return err
		}
	}
	for i := 0; ; i++ {
		_, err := io.ReadFull(st, got)
		if errors.Is(err, io.EOF) {
			f.n = i
			return <-sent
		}
		if err != nil {
			return err
		}
		want[0], want[1] = byte(i), byte(i>>8)
		if string(got) != string(want) {
			return fmt.Errorf("block %d is not what was sent", i)
		}
	}
}

// end stops the flow; every byte has come back, in order.
func (f *flow) end() {
	f.t.Helper()
	close(f.stop)
	if err := <-f.done; err != nil {
		f.t.Errorf("the flow of class %s: %v", f.st.Class(), err)
	}
	if f.n == 0 {
		f.t.Error("nothing has flowed")
	}
	f.st.Close()
}

func TestCarriersFallAndClimb(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		echo(t, b, "pool")
		echo(t, a, "pool-a")
		for _, end := range []struct {
			at, to *Node
			pool   string
		}{{a, b, "pool"}, {b, a, "pool-a"}} { // the tunnel's opener is one that dials, and one that was dialed
			tun := w.open(t, end.at, testProfile, end.pool)
			bulk, quick := startFlow(t, tun, frame.Bulk), startFlow(t, tun, frame.Interactive)
			carrier := func(want string) func() bool {
				return func() bool {
					r, ok := routeTo(end.at, end.to)
					return ok && r.Carrier == want
				}
			}
			waitFor(t, "links over tls", carrier("tls"))
			gen := tun.Contract().RouteGeneration
			changed := tun.Changed()
			w.net.refuse("tls://b:1", true)
			w.net.refuse("tls://seed:1", true)
			waitFor(t, "a fall to quic", carrier("quic"))
			<-changed
			time.Sleep(time.Second)
			w.net.refuse("tls://b:1", false)
			w.net.refuse("tls://seed:1", false)
			waitFor(t, "a climb to tls", carrier("tls"))
			bulk.end()
			quick.end()
			c := tun.Contract()
			if c.RouteGeneration < gen+2 {
				t.Errorf("generation %d after %d and two changes", c.RouteGeneration, gen)
			}
			waitFor(t, "the same generation at both ends", func() bool {
				far := end.to.tunnel(tunnelKey{tun.ID(), false})
				return far != nil && far.Contract().RouteGeneration == tun.Contract().RouteGeneration
			})
			tun.Close()
		}
	})
}

func TestRelay(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one", relayed)
		r2 := w.node(t, "r2", "one", relayed)
		b, c := w.node(t, "b", "one", deaf), w.node(t, "c", "one", deaf)
		echo(t, c, "pool")
		tun := w.open(t, b, testProfile, "pool")
		if got := say(t, tun, payload(1, 100_000)); got != "c" {
			t.Errorf("%q has answered", got)
		}
		r, ok := routeTo(b, c)
		if !ok || r.Carrier != viaCarrier || r.Via != "seed" && r.Via != "r2" {
			t.Fatalf("route %+v", r)
		}
		bulk, quick := startFlow(t, tun, frame.Bulk), startFlow(t, tun, frame.Interactive)
		time.Sleep(10 * time.Second)
		first := a
		if r, _ = routeTo(b, c); r.Via == "r2" {
			first = r2
		}
		if first.Status().PassedOn == 0 {
			t.Error("the relay knows nothing of what it passes on")
		}
		w.stop(first.o.Name, true) // in mid-stream
		waitFor(t, "a route through the other relay", func() bool {
			now, ok := routeTo(b, c)
			return ok && now.Via != r.Via && now.Via != ""
		})
		time.Sleep(10 * time.Second)
		bulk.end()
		quick.end()
	})
}

// TestRelayedLinkComesBack: of a session's links that others pass on, the one that goes
// before their bulk is dialed as such again when it alone is lost.
func TestRelayedLinkComesBack(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		w.node(t, "seed", "one", relayed)
		b, c := w.node(t, "b", "one", deaf), w.node(t, "c", "one", deaf)
		echo(t, c, "pool")
		tun := w.open(t, b, testProfile, "pool")
		say(t, tun, payload(1, 1000))
		p, err := b.peer(c.ID())
		if err != nil {
			t.Fatal(err)
		}
		// links returns the ones there are, and those of them that go before bulk.
		links := func() (all, ahead []*linkConn) {
			for _, c := range p.live().linkConns() {
				if all = append(all, c); c.ahead {
					ahead = append(ahead, c)
				}
			}
			return all, ahead
		}
		var lost *linkConn
		waitFor(t, "all links", func() bool {
			all, ahead := links()
			if len(ahead) == 1 {
				lost = ahead[0]
			}
			return len(all) > 1 && lost != nil
		})
		lost.Conn.Close()
		waitFor(t, "a link in the place of the one that was lost", func() bool {
			all, ahead := links()
			return len(all) > 1 && len(ahead) == 1 && ahead[0] != lost
		})
		say(t, tun, payload(2, 1000))
	})
}

func TestFailover(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one")
		b, c := w.node(t, "b", "one"), w.node(t, "c", "one")
		echo(t, b, "pool")
		echo(t, c, "pool")
		waitFor(t, "both providers", func() bool {
			ids, _ := a.find(context.Background(), serviceKey{"pool", "echo", ""})
			return len(ids) == 2
		})
		tun := w.open(t, a, failing(testProfile), "pool")
		st, err := tun.Open(context.Background(), frame.Interactive, nil)
		if err != nil {
			t.Fatal(err)
		}
		name := say(t, tun, payload(1, 1000))
		began, changed, before := time.Now(), tun.Changed(), tun.Contract()
		w.stop(name, true)
		<-changed
		other := say(t, tun, payload(2, 1000))
		if other == name {
			t.Errorf("the dead node %s has answered", name)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("it went on with another node after %v", d)
		}
		after := tun.Contract()
		if after.TunnelID != before.TunnelID || after.RouteGeneration <= before.RouteGeneration || after.RouteLeaseID == before.RouteLeaseID {
			t.Errorf("contract %+v after %+v", after, before)
		}
		if _, err := io.ReadAll(st); err == nil {
			t.Error("a stream of the dead node has ended without an error")
		}
		st.Close()
		if a.Status().Failovers != 1 {
			t.Errorf("%d failovers", a.Status().Failovers)
		}
	})
}

func TestRestart(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		echo(t, b, "pool")
		tun := w.open(t, a, testProfile, "pool")
		say(t, tun, payload(1, 1000))
		w.stop("b", true)
		time.Sleep(10 * time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if _, err := tun.Open(ctx, frame.Interactive, nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("a stream to a dead node: %v", err)
		}
		cancel()
		time.Sleep(2 * time.Minute)
		if _, err := tun.Open(ctx, frame.Interactive, nil); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a stream without a route: %v", err)
		}
		echo(t, w.node(t, "b", "one"), "pool")
		if got := say(t, tun, payload(2, 1000)); got != "b" {
			t.Errorf("%q has answered", got)
		}
	})
}

func TestRevocation(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one", func(o *Options) { o.Authority = w.auth })
		b, c := w.node(t, "b", "one"), w.node(t, "c", "one")
		echo(t, c, "pool")
		tun := w.open(t, b, testProfile, "pool")
		say(t, tun, payload(1, 1000))
		if err := b.Revoke(c.ID()); !errors.Is(err, ErrNoAuthority) {
			t.Errorf("revoked where the authority is not: %v", err)
		}
		if err := a.Revoke(c.ID()); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the cut of the session with a revoked node", func() bool {
			_, ok := routeTo(b, c)
			return !ok
		})
		time.Sleep(3 * time.Minute)
		if _, ok := routeTo(b, c); ok {
			t.Error("there is a session with a revoked node")
		}
		if _, err := b.Tunnel(context.Background(), Request{Profile: testProfile, Pool: "pool", Kind: "echo"}); err == nil {
			t.Error("a tunnel to a revoked node")
		}
		if _, ok := routeTo(a, c); ok {
			t.Error("the authority's node has a session with a revoked node")
		}
	})
}

// TestTwins has two processes use one identity: others say so.
func TestTwins(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		var said lines
		a := w.node(t, "seed", "one", func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&said, nil)) })
		b := w.node(t, "b", "one")
		waitFor(t, "a session", func() bool {
			_, ok := routeTo(a, b)
			return ok
		})
		time.Sleep(2 * twinTime)
		if said.with("two processes use the identity") > 0 {
			t.Error("one node is taken for two")
		}
		w.ids["copy"] = w.ids["b"]
		w.node(t, "copy", "one")
		waitFor(t, "a word on two processes", func() bool { return said.with("two processes use the identity") > 0 })
	})
}

func TestDrain(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one")
		b, c := w.node(t, "b", "one"), w.node(t, "c", "one")
		echo(t, b, "pool")
		echo(t, c, "pool")
		waitFor(t, "both providers", func() bool {
			ids, _ := a.find(context.Background(), serviceKey{"pool", "echo", ""})
			return len(ids) == 2
		})
		tun := w.open(t, a, failing(testProfile), "pool")
		name := say(t, tun, payload(1, 1000))
		old := startFlow(t, tun, frame.Bulk)
		time.Sleep(time.Second)
		drained := make(chan error, 1)
		go func() { drained <- w.all[name].Drain(context.Background()) }()
		waitFor(t, "the move", func() bool { return tun.Peer() != w.all[name].ID() })
		if got := say(t, tun, payload(2, 1000)); got == name {
			t.Error("the node that drains has answered")
		}
		old.end() // what had begun there ends there, whole
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if _, err := a.Tunnel(context.Background(), Request{Profile: testProfile, Pool: "pool", Kind: "echo"}); err != nil {
			t.Errorf("a tunnel while one of two nodes drains: %v", err)
		}
	})
}

func TestApart(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one")
		for _, name := range []string{"b", "c"} {
			echo(t, w.node(t, name, "one"), "pool")
		}
		waitFor(t, "both providers", func() bool {
			ids, _ := a.find(context.Background(), serviceKey{"pool", "echo", ""})
			return len(ids) == 2
		})
		first := w.open(t, a, testProfile, "pool")
		second := w.open(t, a, testProfile, "pool", first.ID())
		if first.Peer() == second.Peer() {
			t.Error("mirrors on one node")
		}
		_, err := a.Tunnel(context.Background(), Request{Profile: testProfile, Pool: "pool", Kind: "echo", Apart: []TunnelID{first.ID(), second.ID()}})
		if !errors.Is(err, ErrNoProvider) {
			t.Errorf("a third mirror: %v", err)
		}
	})
}

func TestPartition(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		echo(t, b, "pool")
		tun := w.open(t, a, testProfile, "pool")
		short := startFlow(t, tun, frame.Bulk)
		time.Sleep(time.Second)
		w.net.part("seed", "b", true)
		time.Sleep(20 * time.Second)
		w.net.part("seed", "b", false)
		time.Sleep(20 * time.Second)
		short.end() // a partition of less than a minute is not noticed
		w.net.part("seed", "b", true)
		time.Sleep(15 * time.Minute)
		if nodes := a.Nodes(); len(nodes) != 1 {
			t.Errorf("after a quarter of an hour without it the directory still has %+v", nodes)
		}
		w.net.part("seed", "b", false)
		if got := say(t, tun, payload(1, 1000)); got != "b" {
			t.Errorf("%q has answered", got)
		}
	})
}

func TestIdleSessionsEnd(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		n := map[string]*Node{}
		for _, name := range []string{"c", "d", "e", "f", "g", "h"} {
			n[name] = w.node(t, name, "one")
			echo(t, n[name], name)
		}
		for name := range n {
			tun := w.open(t, b, testProfile, name)
			say(t, tun, payload(1, 100))
			tun.Close()
		}
		time.Sleep(5 * time.Minute)
		idle := 0
		for _, r := range b.Routes() {
			if r.Dialed && !b.wanted(r.Peer) {
				idle++
			}
		}
		if idle > 0 {
			t.Errorf("%d sessions are kept for nothing", idle)
		}
		_ = a
	})
}

func TestCertificatesRenew(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		// Certificates that were made days ago, and are due in some minutes.
		w.late.by = identity.CertLife/3*2 - 10*time.Minute
		a := w.node(t, "seed", "one", func(o *Options) { o.Authority = w.auth })
		w.join(t, "b", "ops")
		b := w.node(t, "b", "one")
		w.late.by = 0
		echo(t, b, "pool")
		time.Sleep(20 * time.Minute)
		for _, n := range []*Node{a, b} {
			if next := n.Status().CertRenewal; time.Until(next) < identity.CertLife/2 {
				t.Errorf("the certificate is to be renewed at %v, now is %v", next, time.Now())
			}
		}
		for _, n := range []*Node{a, b} {
			for _, s := range n.Nodes() {
				if want := map[string]string{"seed": identity.DefaultOrganization, "b": "ops"}[s.Name]; s.Organization != want {
					t.Errorf("after renewal node %s is of organization %q, not %q", s.Name, s.Organization, want)
				}
			}
		}
		tun := w.open(t, w.all["seed"], testProfile, "pool")
		say(t, tun, payload(1, 1000))
		if _, err := w.all["seed"].NewToken(time.Hour, 1, nil); err != nil {
			t.Error(err)
		}
		if _, err := b.NewToken(time.Hour, 1, nil); !errors.Is(err, ErrNoAuthority) {
			t.Errorf("a join token where the authority is not: %v", err)
		}
	})
}

// Nothing of a peer that says nothing, or garbage, stays.
func TestGarbage(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one")
		evil := &memCarrier{w.net, "tls", "evil", w.identity(t, "evil")}
		var all []io.Closer
		for i := range 1000 {
			c, err := evil.Dial(context.Background(), "seed:1", identity.NodeID{})
			if err != nil {
				continue // it has closed its door for the moment
			}
			all = append(all, c)
			if i%2 == 1 {
				c.Write(payload(uint64(i), 100))
			}
		}
		if len(all) < 100 {
			t.Errorf("%d connections", len(all))
		}
		b := w.node(t, "b", "one")
		echo(t, b, "pool")
		say(t, w.open(t, a, testProfile, "pool"), payload(1, 1000)) // others go on
		time.Sleep(time.Minute)
		a.mu.Lock()
		fresh := len(a.fresh)
		a.mu.Unlock()
		if fresh > 0 || a.Status().Sessions > 2 {
			t.Errorf("%d links without hello and %d sessions are held", fresh, a.Status().Sessions)
		}
		for _, c := range all {
			c.Close()
		}
	})
}

// A service that is not provided any more ends nothing that was accepted.
func TestProviderCloses(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		p := echo(t, b, "pool")
		tun := w.open(t, a, testProfile, "pool")
		if _, err := b.Provide(Service{Pool: "pool", Kind: "echo"}); err == nil {
			t.Error("a service is provided twice")
		}
		p.Close()
		say(t, tun, payload(1, 1000))
		waitFor(t, "the directory's news", func() bool {
			_, err := a.Tunnel(context.Background(), Request{Profile: testProfile, Pool: "pool", Kind: "echo"})
			return errors.Is(err, ErrNoProvider)
		})
		p, err := b.Provide(Service{Profile: testProfile, Pool: "pool", Kind: "echo", Backlog: 1})
		if err != nil {
			t.Fatal(err)
		}
		w.open(t, a, testProfile, "pool")
		_, err = a.Tunnel(context.Background(), Request{Profile: testProfile, Pool: "pool", Kind: "echo"})
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Retry <= 0 {
			t.Errorf("a tunnel that nobody accepts: %v", err)
		}
		p.Close()
	})
}

func TestLimits(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		limits := admit.Config{Named: map[admit.Key]admit.Limit{
			{Scope: admit.Pool, Name: "pool"}:          {Tunnels: 2},
			{Scope: admit.Organization, Name: "small"}: {Tunnels: 1},
			{Scope: admit.Service, Name: "b"}:          {Streams: 3, Rate: 100_000, Burst: 10_000},
			{Scope: admit.Pool, Name: "narrow"}:        {Window: 2 * session.FirstWindow},
		}}
		a := w.node(t, "seed", "one")
		b := w.node(t, "b", "one", func(o *Options) { o.Limits = limits })
		echo(t, b, "pool")
		first := w.open(t, a, testProfile, "pool")
		refused := func(err error, limit string) {
			t.Helper()
			var no *RefusedError
			if !errors.As(err, &no) || !strings.Contains(no.Limit, limit) {
				t.Errorf("%v, where %q is the limit", err, limit)
			}
		}
		w.join(t, "c", "small")
		small := w.node(t, "c", "one", func(o *Options) { o.Organization = "large" })
		second := w.open(t, small, testProfile, "pool")
		_, err := a.Tunnel(context.Background(), Request{Profile: testProfile, Pool: "pool", Kind: "echo"})
		refused(err, "pool pool")
		first.Close()
		waitFor(t, "room in the pool", func() bool { return len(b.Tunnels()) == 1 })
		// A node counts for its certificate's organization, whatever it says of itself or a
		// tunnel.
		_, err = small.Tunnel(context.Background(), Request{Profile: testProfile, Pool: "pool", Kind: "echo", Organization: "large"})
		refused(err, "organization small")

		// Streams beyond a limit are reset, and say so.
		var streams []Stream
		for range 3 {
			st, err := second.Open(context.Background(), frame.Bulk, nil)
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, st)
		}
		waitFor(t, "three streams", func() bool { return b.Status().Streams == 3 })
		st, err := second.Open(context.Background(), frame.Bulk, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(st)
		refused(err, "service b")
		for _, st := range append(streams, st) {
			st.Close()
		}
		waitFor(t, "no streams", func() bool { return b.Status().Streams == 0 })

		// So are those for whose windows there is no room.
		echo(t, b, "narrow")
		narrow := w.open(t, a, testProfile, "narrow")
		streams = nil
		for i := range 3 {
			st, err := narrow.Open(context.Background(), frame.Bulk, nil)
			if err != nil {
				t.Fatal(err)
			}
			if i < 2 {
				if _, err := st.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			} else {
				_, err := io.ReadAll(st)
				refused(err, "131072 window bytes of pool narrow")
			}
			streams = append(streams, st)
		}
		windows := func() (n int64) {
			for _, u := range b.Usage(10) {
				if u.Scope == admit.Pool && u.Name == "narrow" {
					n = u.Used.Window
				}
			}
			return n
		}
		if n := windows(); n != 2*session.FirstWindow {
			t.Errorf("%d bytes of windows are in use", n)
		}
		for _, st := range streams {
			st.Close()
		}
		waitFor(t, "no windows", func() bool { return windows() == 0 })
		narrow.Close()

		// A rate holds: what goes through counts both ways.
		begin := time.Now()
		say(t, second, payload(1, 200_000))
		if d := time.Since(begin); d < 3*time.Second {
			t.Errorf("400 kB at 100 kB/s took %v", d)
		}
		if b.Status().Refused == 0 || len(b.Usage(10)) == 0 {
			t.Error("nothing of it can be seen")
		}
	})
}

// A member that opens all the streams that it can, of whatever kind, leaves room
// for the windows of others.
func TestOneMemberDoesNotTakeAllWindows(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		limits := func(route int64) (c admit.Config) {
			c.Each[admit.NodeScope].Window = 64 * session.FirstWindow
			c.Each[admit.Route].Window = route
			return c
		}
		a := w.node(t, "seed", "one", func(o *Options) { o.Limits = limits(0) })
		evil, c := w.node(t, "evil", "one"), w.node(t, "c", "one")
		echo(t, a, "pool")
		tun := w.open(t, c, testProfile, "pool")
		waitFor(t, "the session", func() bool { return evil.known(a.ID()) != nil && evil.known(a.ID()).live() != nil })
		s := evil.known(a.ID()).live().s
		usage := func() (u admit.Usage) {
			for _, x := range a.Usage(10) {
				if x.Scope == admit.Route && x.Name == evil.ID().String() {
					u = x
				}
			}
			return u
		}
		for _, share := range []int64{16, 24} {
			var streams []*session.Stream
			for range 100 {
				st, err := s.Open(frame.Control, append([]byte{streamCall}, "find"...)) // and never says what
				if err != nil {
					t.Fatal(err)
				}
				streams = append(streams, st)
				st.Write([]byte("x"))
			}
			time.Sleep(20 * time.Millisecond)
			if u := usage(); u.Used.Window != share*session.FirstWindow || u.Limit.Window != share*session.FirstWindow {
				t.Errorf("one member has %d bytes of windows of %d, where %d are its share", u.Used.Window, u.Limit.Window, share*session.FirstWindow)
			}
			say(t, tun, payload(1, 1000))
			for _, st := range streams {
				st.Close()
			}
			a.SetLimits(limits(24 * session.FirstWindow))
			time.Sleep(time.Second)
		}
	})
}

func TestAreas(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		w.node(t, "seed", "one", relayed)
		w.node(t, "gate2", "two", relayed)
		w.node(t, "gate3", "three", relayed)
		at := func(seed string) func(*Options) {
			return func(o *Options) { o.Seeds = []string{"tls://" + seed + ":1"}; o.Listen = nil }
		}
		a := w.node(t, "a", "one", at("seed"))
		b := w.node(t, "b", "two", at("gate2"))
		c := w.node(t, "c", "three", at("gate3"))
		echo(t, b, "pool-b")
		echo(t, c, "pool-c")
		time.Sleep(time.Minute)
		for _, n := range a.Nodes() {
			if n.Name == "b" || n.Name == "c" {
				t.Errorf("node a has %s of another area in its directory", n.Name)
			}
		}
		for _, x := range []struct {
			from       *Node
			pool, node string
		}{{a, "pool-b", "b"}, {b, "pool-c", "c"}, {a, "pool-c", "c"}} {
			tun := w.open(t, x.from, testProfile, x.pool)
			if got := say(t, tun, payload(1, 50_000)); got != x.node {
				t.Errorf("%q has answered, not %s", got, x.node)
			}
		}
	})
}

// A node that passes links on and is about to go is left before it goes.
func TestRelayDrains(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		w.node(t, "seed", "one", relayed)
		w.node(t, "r2", "one", relayed)
		b, c := w.node(t, "b", "one", deaf), w.node(t, "c", "one", deaf)
		echo(t, c, "pool")
		tun := w.open(t, b, testProfile, "pool")
		time.Sleep(10 * time.Second)
		bulk, quick := startFlow(t, tun, frame.Bulk), startFlow(t, tun, frame.Interactive)
		time.Sleep(time.Second)
		before, _ := routeTo(b, c)
		if err := w.all[before.Via].Drain(context.Background()); err != nil {
			t.Error(err)
		}
		waitFor(t, "a route that does not pass the node that drains", func() bool {
			r, ok := routeTo(b, c)
			return ok && r.Via != before.Via && w.all[before.Via].Status().PassedOn == 0
		})
		w.stop(before.Via, false)
		time.Sleep(time.Second)
		bulk.end()
		quick.end()
		for _, r := range b.Routes() {
			if r.Peer == c.ID() && r.LostLinks > 0 {
				t.Errorf("%d links were lost", r.LostLinks)
			}
		}
	})
}

// What a node begins to provide, its neighbours know within moments.
func TestNewsSpreads(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		names := []string{"seed", "b", "c", "d", "e", "f"}
		for _, name := range names {
			w.node(t, name, "one")
		}
		time.Sleep(20 * time.Second)
		for _, at := range names {
			p := echo(t, w.all[at], "at-"+at)
			time.Sleep(2 * time.Second)
			for _, name := range names {
				if len(w.all[name].dir.d.Find("at-"+at, "echo", "")) != 1 {
					t.Errorf("after two seconds %s does not know what %s provides", name, at)
				}
			}
			p.Close()
			time.Sleep(2 * time.Second)
			for _, name := range names {
				if len(w.all[name].dir.d.Find("at-"+at, "echo", "")) != 0 {
					t.Errorf("after two seconds %s does not know that %s provides nothing any more", name, at)
				}
			}
		}
	})
}

// A node that ends, politely but with tunnels, ends none of them at the other
// end: that goes on with another node, or with the same one when it is back.
func TestNodeCloses(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one")
		for _, name := range []string{"b", "c"} {
			echo(t, w.node(t, name, "one"), "pool")
		}
		waitFor(t, "both providers", func() bool { return len(a.dir.d.Find("pool", "echo", "")) == 2 })
		stays := w.open(t, a, testProfile, "pool")
		name := say(t, stays, payload(1, 1000))
		var moves []*Tunnel
		for range 20 {
			moves = append(moves, w.open(t, a, failing(testProfile), "pool"))
		}
		st, err := stays.Open(context.Background(), frame.Interactive, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(st, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		w.stop(name, false)
		if _, err := io.ReadAll(st); err == nil {
			t.Error("a stream that its node has not ended looks whole")
		}
		st.Close()
		for _, tun := range moves {
			if got := say(t, tun, payload(2, 1000)); got == name {
				t.Errorf("%s has answered, which is closed", got)
			}
		}
		if err := stays.Err(); err != nil {
			t.Errorf("the tunnel has ended with its node: %v", err)
		}
		echo(t, w.node(t, name, "one"), "pool")
		if got := say(t, stays, payload(3, 1000)); got != name {
			t.Errorf("%q has answered", got)
		}
	})
}

// slowToClose is a carrier whose listeners take a while to close.
type slowToClose struct{ carrier.Carrier }

func (c slowToClose) Listen(ctx context.Context, addr string) (carrier.Listener, error) {
	l, err := c.Carrier.Listen(ctx, addr)
	return slowListener{l}, err
}

type slowListener struct{ carrier.Listener }

func (l slowListener) Close() error {
	time.Sleep(time.Second)
	return l.Listener.Close()
}

// A service that closes its tunnels because its node ends does not end them at the
// other end. One whose node is about to go leaves them: those that may fail over do.
func TestServiceEndsWithItsNode(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one")
		b := w.node(t, "b", "one", func(o *Options) {
			for i := range o.Listen {
				o.Listen[i].Carrier = slowToClose{o.Listen[i].Carrier}
			}
		})
		p, err := b.Provide(Service{Profile: testProfile, Pool: "pool", Kind: "echo"})
		if err != nil {
			t.Fatal(err)
		}
		tun := w.open(t, a, failing(testProfile), "pool")
		there, err := p.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			_, _ = p.Accept(context.Background()) // until its node ends
			there.Close()
		}()
		echo(t, w.node(t, "c", "one"), "pool")
		waitFor(t, "the other provider", func() bool { return len(a.dir.d.Find("pool", "echo", "")) == 2 })
		w.stop("b", false)
		<-closed
		waitFor(t, "the end of the session", func() bool { return tun.Err() != nil || tun.Peer() != there.n.ID() })
		if got := say(t, tun, payload(1, 1000)); got != "c" {
			t.Errorf("%q has answered", got)
		}

		b = w.node(t, "b", "one")
		if p, err = b.Provide(Service{Profile: testProfile, Pool: "other", Kind: "echo"}); err != nil {
			t.Fatal(err)
		}
		moves, ends := w.open(t, a, failing(testProfile), "other"), w.open(t, a, testProfile, "other")
		echo(t, w.all["c"], "other")
		waitFor(t, "the other provider", func() bool { return len(a.dir.d.Find("other", "echo", "")) == 2 })
		for range 2 {
			if there, err = p.Accept(context.Background()); err != nil {
				t.Fatal(err)
			}
			there.Leave()
		}
		if err := b.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		waitFor(t, "the move", func() bool { return moves.Err() != nil || moves.Peer() != b.ID() })
		if got := say(t, moves, payload(2, 1000)); got != "c" {
			t.Errorf("%q has answered", got)
		}
		waitFor(t, "the end of the tunnel that no other node will do for", func() bool { return errors.Is(ends.Err(), errPeerClosed) })
	})
}
