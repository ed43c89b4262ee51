package fabric

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spacestore/space/fabric/admit"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// soon returns what fn takes in the bubble's time, which is no machine's.
func soon(t *testing.T, what string, limit time.Duration, fn func()) {
	t.Helper()
	began := time.Now()
	fn()
	if d := time.Since(began); d > limit {
		t.Errorf("%s took %v, and %v at most is expected", what, d, limit)
	}
}

// tunnel asks for a tunnel once.
func (w *world) tunnel(t *testing.T, n *Node, p Profile, pool string) *Tunnel {
	t.Helper()
	tun, err := n.Tunnel(context.Background(), Request{Profile: p, Pool: pool, Kind: "echo"})
	if err != nil {
		t.Fatal(err)
	}
	return tun
}

// door has dialing one host be refused, and its connections cut, for all but its own.
func (w *world) door(host string, shut bool) {
	for _, c := range []string{"tls", "quic"} {
		w.net.refuse(c+"://"+host+":1", shut)
	}
}

// A session that the peer had dialed, and can't dial again, does not stand in the
// way: this node dials the peer. The streams go on when the peer is back.
func TestSessionWithoutLinks(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		echo(t, b, "pool")
		tun := w.open(t, a, testProfile, "pool")
		old := startFlow(t, tun, frame.Bulk)
		time.Sleep(5 * time.Second)
		if all := a.Routes(); len(all) != 1 || all[0].Dialed {
			t.Fatalf("routes %+v, where one that the peer has dialed is expected", all)
		}
		w.door("seed", true)
		time.Sleep(time.Second)
		soon(t, "a new tunnel", time.Second, func() {
			say(t, w.tunnel(t, a, testProfile, "pool"), payload(1, 1000))
		})
		soon(t, "the tunnel's new route", 5*time.Second, func() {
			waitFor(t, "another route", func() bool { return tun.Contract().RouteGeneration > 1 })
		})
		soon(t, "a new stream", time.Second, func() { say(t, tun, payload(2, 1000)) })
		w.door("seed", false)
		time.Sleep(10 * time.Second)
		old.end() // the old session has come back with all that was under way
	})
}

// Whoever asks for a tunnel in the moment in which the links are cut gets it, when
// they are there again.
func TestTunnelWhileLinksAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 300*time.Millisecond) // a new link takes longer than a request waits for one
		defer w.close()
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		echo(t, a, "pool")
		w.open(t, b, testProfile, "pool")
		time.Sleep(5 * time.Second)
		w.net.cut(func(from, _, _ string) bool { return from == "b" })
		soon(t, "the tunnel", 10*time.Second, func() { say(t, w.tunnel(t, b, testProfile, "pool"), payload(1, 100)) })
		if n := a.Status().Sessions; n != 1 {
			t.Errorf("%d sessions", n)
		}
	})
}

// A session that was dialed here is dialed again within a moment of the peer's
// being there, however long that took.
func TestRedialIsQuick(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		echo(t, a, "pool")
		tun := w.open(t, b, testProfile, "pool")
		for outage := 20 * time.Second; outage < 26*time.Second; outage += time.Second {
			bulk := startFlow(t, tun, frame.Bulk)
			time.Sleep(5 * time.Second)
			w.net.refuse("b", true)
			w.net.cut(func(from, _, _ string) bool { return from == "b" })
			time.Sleep(outage)
			w.net.refuse("b", false)
			soon(t, "the first stream", 3*time.Second, func() { say(t, tun, payload(2, 100)) })
			bulk.end() // in the same session
		}
	})
}

// away has no session with some nodes, and nothing that is sent to them arrives.
func (w *world) away(n *Node, hosts ...string) {
	for _, h := range hosts {
		w.net.part(n.o.Name, h, true)
		if p := n.known(w.all[h].ID()); p != nil {
			for _, r := range p.all() {
				r.s.Close()
			}
		}
	}
}

// Of two nodes one swallows all that is sent to it: a tunnel to the other one is
// there in no more than a moment, new or not.
func TestDeadNodeCostsAMoment(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one")
		for _, name := range []string{"b", "c", "d"} {
			echo(t, w.node(t, name, "one"), "pool")
		}
		waitFor(t, "all providers", func() bool { return len(a.dir.d.Find("pool", "echo", "")) == 3 })
		held := make([]*Tunnel, 12)
		for i := range held {
			held[i] = w.tunnel(t, a, failing(testProfile), "pool")
		}
		w.away(a, "b", "c")
		for range 8 {
			soon(t, "a tunnel past two dead nodes", 1500*time.Millisecond, func() {
				if got := say(t, w.tunnel(t, a, testProfile, "pool"), payload(1, 100)); got != "d" {
					t.Errorf("%q has answered", got)
				}
			})
		}
		for _, tun := range held {
			soon(t, "a tunnel that fails over", 1500*time.Millisecond, func() {
				if got := say(t, tun, payload(1, 100)); got != "d" {
					t.Errorf("%q has answered", got)
				}
			})
		}
	})
}

// Tunnels that wait for a node that can't be reached hold up none to others.
func TestManyTunnelsToADeadNode(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one")
		echo(t, w.node(t, "b", "one"), "dead")
		echo(t, w.node(t, "c", "one"), "pool")
		waitFor(t, "both providers", func() bool {
			return len(a.dir.d.Find("dead", "echo", ""))+len(a.dir.d.Find("pool", "echo", "")) == 2
		})
		w.away(a, "b")
		var wg sync.WaitGroup
		for range 4 * maxHandshakes {
			wg.Go(func() {
				if _, err := a.Tunnel(context.Background(), Request{Profile: testProfile, Pool: "dead", Kind: "echo"}); err == nil {
					t.Error("a tunnel to a node that can't be reached")
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		soon(t, "a tunnel to another node", 100*time.Millisecond, func() { w.tunnel(t, a, testProfile, "pool") })
		wg.Wait()
	})
}

// far returns the other end of a tunnel.
func far(t *testing.T, n *Node, tun *Tunnel) *Tunnel {
	t.Helper()
	f := n.tunnel(tunnelKey{tun.ID(), false})
	if f == nil {
		t.Fatal("the tunnel has no other end")
	}
	return f
}

// A tunnel that the other end has given up is agreed on again as soon as that
// shows; one that it has closed ends.
func TestTunnelUnknownToItsPeer(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		echo(t, b, "pool")
		for _, how := range []string{"read", "copy"} {
			tun := w.open(t, a, testProfile, "pool")
			far(t, b, tun).end(errNodeEnds, false) // without a word
			st, err := tun.Open(context.Background(), frame.Interactive, nil)
			if err != nil {
				t.Fatal(err)
			}
			if how == "read" {
				_, err = io.ReadAll(st)
			} else {
				_, err = st.(io.WriterTo).WriteTo(io.Discard)
			}
			if err == nil {
				t.Error("a stream in a tunnel that is not there has ended well")
			}
			st.Close()
			soon(t, "the tunnel's recovery", time.Second, func() { say(t, tun, payload(1, 1000)) })
			if got := tun.Contract().RouteGeneration; got != 2 {
				t.Errorf("generation %d", got)
			}
			// Streams of before, that are read late, change nothing.
			tun.disowned(a.known(b.ID()).live(), 1)
			if s := tun.State().State; s != "up" {
				t.Errorf("the tunnel is %q", s)
			}
			tun.Close()
		}

		tun := w.open(t, a, testProfile, "pool")
		far(t, b, tun).Close()
		if st, err := tun.Open(context.Background(), frame.Interactive, nil); err == nil {
			io.ReadAll(st)
			st.Close()
		}
		<-tun.Done()
		time.Sleep(time.Second)
		if left := len(b.Tunnels()); left != 0 {
			t.Errorf("%d tunnels are left of one that was closed", left)
		}
	})
}

// What was said over a session that was cut off for long, or of a request that
// was given up, ends nothing that was agreed on later.
func TestLateWords(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		echo(t, b, "pool")
		tun := w.open(t, a, testProfile, "pool")
		there := far(t, b, tun)
		r := b.known(a.ID()).live()
		there.use(r, 5, "") // as the fifth request would have it
		b.closedByPeer(r, sided(tun.ID(), true), 4, 0)
		if there.Err() != nil {
			t.Fatal("a word of a request that was given up has ended the tunnel")
		}
		if there.use(r, 4, "") {
			t.Error("a request that was given up was answered after a later one")
		}
		b.closedByPeer(r, sided(tun.ID(), true), 5, 0)
		if there.Err() == nil {
			t.Error("the tunnel was closed and has not ended")
		}
	})
}

// A tunnel that the provider closes as soon as it has it ends at the opener's end
// too, whether the word of that comes before its request has its answer or after.
func TestClosedAtOnce(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		p, err := b.Provide(Service{Profile: testProfile, Pool: "pool", Kind: "echo"})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for tun, err := p.Accept(context.Background()); err == nil; tun, err = p.Accept(context.Background()) {
				tun.Close()
			}
		}()
		w.open(t, a, testProfile, "pool")
		for range 100 {
			w.tunnel(t, a, testProfile, "pool")
		}
		time.Sleep(time.Second)
		if left := len(a.Tunnels()); left > 0 {
			t.Errorf("%d tunnels are left that the other end has closed", left)
		}
	})
}

// What a peer has opened and nobody has accepted is given back when the tunnel is
// closed, or its service, though the peer has closed the tunnel before.
func TestNobodyAccepts(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		var p *Provider
		provide := func() {
			var err error
			if p, err = b.Provide(Service{Profile: testProfile, Pool: "pool", Kind: "echo"}); err != nil {
				t.Fatal(err)
			}
		}
		provide()
		for _, accepted := range []bool{true, false} {
			tun := w.open(t, a, testProfile, "pool")
			for range 10 {
				st, err := tun.Open(context.Background(), frame.Interactive, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := st.Write(payload(1, 100)); err != nil {
					t.Fatal(err)
				}
				st.Close()
			}
			time.Sleep(time.Second)
			there := far(t, b, tun)
			tun.Close()
			<-there.Done()
			if accepted {
				if got, err := p.Accept(context.Background()); got != there {
					t.Fatalf("%v, %v", got, err)
				}
				there.Close()
			} else {
				p.Close()
			}
			time.Sleep(time.Second)
			for _, u := range b.Usage(10) {
				window := u.Used.Window
				if u.Scope == admit.NodeScope || u.Scope == admit.Route {
					window -= session.FirstWindow // the session's own stream has it
				}
				if u.Used.Streams != 0 || u.Used.Tunnels != 0 || window != 0 {
					t.Errorf("accepted %v: %v %s still has %+v", accepted, u.Scope, u.Name, u.Used)
				}
			}
		}

		// One who had looked for the service just before it was closed.
		provide()
		w.open(t, a, testProfile, "pool")
		p.Close()
		b.mu.Lock()
		b.services[p.key] = p
		b.mu.Unlock()
		tun := w.tunnel(t, a, testProfile, "pool")
		waitFor(t, "the end of a tunnel that nobody accepts", func() bool { return tun.Err() != nil })
	})
}

// A tunnel whose opener is back in the last moment stays.
func TestOpenerComesInTheLastMoment(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		echo(t, b, "pool")
		there := far(t, b, w.open(t, a, testProfile, "pool"))
		r := b.known(a.ID()).live()
		there.lost(r)
		there.mu.Lock()
		hold := there.held
		there.mu.Unlock()
		there.use(r, 7, "")
		there.abandon(hold) // its timer was just running
		if err := there.Err(); err != nil {
			t.Errorf("the tunnel has ended: %v", err)
		}
		there.lost(r)
		time.Sleep(holdTime + time.Second)
		if !errors.Is(there.Err(), errAbandoned) {
			t.Errorf("a tunnel whose opener stays away: %v", there.Err())
		}
	})
}

// A node whose directory has nothing but a node that is gone asks its seeds.
func TestSeedsAreTriedBesideDeadNodes(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		w.node(t, "seed", "one")
		x := w.node(t, "x", "one")
		waitFor(t, "the first node", func() bool { return len(x.Nodes()) == 2 })
		time.Sleep(time.Minute)
		w.stop("seed", true)
		next := w.node(t, "next", "one", func(o *Options) {
			o.Seeds = nil
			for i := range o.Listen {
				o.Listen[i].Addr = "seed:1"
			}
		})
		soon(t, "the node that is at the seed's address now", 2*time.Minute, func() {
			waitFor(t, "the next node", func() bool {
				_, ok := x.dir.d.Node(next.ID())
				return ok
			})
		})
	})
}

// One member can't have others remember nodes that nobody knows, nor fill what
// they have room for.
func TestLinksToUnknownNodesAreNotPassedOn(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		relay, evil := w.node(t, "seed", "one", relayed), w.node(t, "evil", "one")
		waitFor(t, "the session", func() bool { _, ok := routeTo(evil, relay); return ok })
		r := evil.known(relay.ID()).live()
		for i := range 200 {
			st, err := r.s.Open(frame.Bulk, passHeader(identity.NodeID{1, byte(i)}, maxHops))
			if err != nil {
				t.Fatal(err)
			}
			var reset *session.ResetError
			if _, err := st.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Code != codeNoWay {
				t.Errorf("a link to a node that nobody knows: %v", err)
			}
			st.Close()
		}
		if n := len(relay.allPeers()); n > 2 {
			t.Errorf("the node that passes on remembers %d nodes, where there is one other", n)
		}
		if n := relay.known(evil.ID()).passes.Load(); n != 0 {
			t.Errorf("%d links count as passed on", n)
		}
	})
}

// Where all places for peers are taken, those that nothing goes on with make way.
func TestPeersMakeWay(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
		waitFor(t, "the session", func() bool { _, ok := routeTo(a, b); return ok })
		for i := range maxPeers + 10 {
			if _, err := a.peer(identity.NodeID{1, byte(i), byte(i >> 8)}); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(a.allPeers()); n > maxPeers {
			t.Errorf("%d peers", n)
		}
		if _, ok := routeTo(a, b); !ok {
			t.Error("the node that there is a session with has made way")
		}
	})
}

// A member that opens connections and says nothing keeps nobody else out.
func TestSilentMemberKeepsNobodyOut(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one")
		evil := &memCarrier{w.net, "tls", "evil", w.identity(t, "evil")}
		for range 2 * maxFresh {
			if c, err := evil.Dial(context.Background(), "seed:1", identity.NodeID{}); err == nil {
				defer c.Close()
			}
		}
		b := w.node(t, "b", "one")
		soon(t, "the way in", time.Second, func() {
			waitFor(t, "a session", func() bool { _, ok := routeTo(b, a); return ok })
		})
	})
}

// A peer that lets everybody in and throws them out at once is not dialed without
// a rest.
func TestLinksThatDieAtOnce(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		id := w.identity(t, "seed")
		ln, err := (&memCarrier{w.net, "tls", "seed", id}).Listen(context.Background(), "seed:1")
		if err != nil {
			t.Fatal(err)
		}
		var dialed atomic.Int64
		ep := session.NewEndpoint(session.Options{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := ln.Accept(context.Background())
				if err != nil {
					return
				}
				dialed.Add(1)
				ep.Serve(c, c.Peer().String())
				c.Close()
			}
		}()
		w.node(t, "a", "one")
		time.Sleep(30 * time.Second)
		if n := dialed.Load(); n == 0 || n > 60 {
			t.Errorf("it was dialed %d times in 30 s", n)
		}
		ln.Close()
		<-done
		ep.Close()
	})
}

// A peer that begins a session and ends it at once is not asked again without a rest;
// when it does so no more, the next session is there soon.
func TestSessionsThatEndAtOnce(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		var ended int
		var evil atomic.Bool
		b := w.node(t, "seed", "one")
		a := w.node(t, "a", "one")
		echo(t, b, "pool")
		tun := w.open(t, a, testProfile, "pool") // which looks for a route whenever it has none
		time.Sleep(time.Minute)
		done := make(chan struct{})
		evil.Store(true)
		go func() {
			defer close(done)
			for evil.Load() {
				met := b.nextMeeting()
				for _, r := range b.known(a.ID()).all() {
					if r.isReady() {
						ended++
						r.s.Close()
						<-r.s.Done()
					}
				}
				select {
				case <-met:
				case <-time.After(time.Second):
				}
			}
		}()
		time.Sleep(time.Minute)
		evil.Store(false)
		<-done
		time.Sleep(100 * time.Millisecond)
		if ended < 5 || ended > 60 {
			t.Errorf("it was asked for %d sessions in a minute", ended)
		}
		soon(t, "a session that lasts", 2*lastBriefRest, func() { say(t, tun, payload(1, 100)) })
		time.Sleep(time.Minute)
		b.known(a.ID()).live().s.Close()
		time.Sleep(100 * time.Millisecond)
		soon(t, "the session after one that has lasted", time.Second, func() { say(t, tun, payload(1, 100)) })
	})
}

// lines counts what is logged.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(b))
	return len(b), nil
}

func (l *lines) with(s string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if strings.Contains(line, s) {
			n++
		}
	}
	return n
}

// A member can't fill the log.
func TestLogIsNotFlooded(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		var log lines
		a := w.node(t, "seed", "one", func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		b := w.node(t, "b", "one")
		waitFor(t, "the session", func() bool { _, ok := routeTo(b, a); return ok })
		r := b.known(a.ID()).live()
		for i := range 100 {
			r.tell(cmdDrain, struct{}{})
			if _, err := b.call(context.Background(), a.ID(), fmt.Sprint("no such call ", i), nil); err == nil {
				t.Error("a call that there is not was answered")
			}
			if err := r.send(message{msgRevocations, []byte("no list")}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		for _, s := range []string{"peer drains", "call failed", "revocation list"} {
			if n := log.with(s); n > 5 {
				t.Errorf("%d lines say %q", n, s)
			}
		}
		if log.with("peer drains") == 0 || log.with("call failed")+log.with("revocation list") == 0 {
			t.Error("nothing was logged")
		}
	})
}
