package fabric

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
)

// authoritative has a node be the authority's.
func (w *world) authoritative(o *Options) {
	o.Authority = w.auth
	o.Join = func(c net.Conn) { carrier.ServeJoin(c, w.auth) }
}

// gate starts a node that passes on those who join over TLS, and returns where.
func (w *world) gate(t *testing.T, name, area string) (*Node, string) {
	t.Helper()
	var self atomic.Pointer[Node]
	n := w.node(t, name, area, relayed, func(o *Options) {
		c := carrier.NewTLS(o.Identity, carrier.TLSOptions{Joins: carrier.Joins{Pass: func(c net.Conn) { self.Load().PassJoin(c) }}})
		o.Listen = append(o.Listen, Listen{Carrier: c, Addr: "127.0.0.1:0"})
	})
	self.Store(n)
	addrs := n.Addrs()
	return n, addrs[len(addrs)-1]
}

// pretend has a node say that it is the authority's.
func pretend(t *testing.T, n *Node) {
	t.Helper()
	if _, err := n.Provide(Service{Profile: testProfile, Pool: authorityService.pool, Kind: authorityService.kind}); err != nil {
		t.Fatal(err)
	}
}

// lie answers those who join in the authority's place.
func lie(c net.Conn) {
	c.Write([]byte("\x00\x00\x00\x0e{\"token\":true}"))
}

// join tries to join at an address.
func (w *world) joinAt(t *testing.T, token identity.Token) error {
	t.Helper()
	_, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err = carrier.JoinVia(ctx, token, csr)
	return err
}

func (w *world) token(t *testing.T, addr string) identity.Token {
	t.Helper()
	token, err := w.auth.NewToken(time.Hour, 1, []string{addr})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestJoinPastFalseAuthorities has nodes say that they are the authority's which are not,
// or are not there any more: who joins through another node still comes to the true one,
// and its answer is the last word. It is found in another area, too, where all those near
// are false.
func TestJoinPastFalseAuthorities(t *testing.T) {
	for _, area := range []string{"one", "two"} {
		t.Run("the relay is in area "+area, func(t *testing.T) {
			w := newWorld(t, 0)
			defer w.close()
			w.node(t, "seed", "one", relayed, w.authoritative)
			relay, addr := w.gate(t, "relay", area)
			for _, name := range []string{"a", "b", "c"} {
				pretend(t, w.node(t, name, area, func(o *Options) {
					o.Seeds = []string{"tls://relay:1"}
					if name == "b" {
						o.Join = lie
					}
				}))
			}
			waitFor(t, "the relay to know all that say that they are the authority's", func() bool {
				k := authorityService
				found := len(relay.dir.d.Find(k.pool, k.kind, k.role))
				return found == 4 || area == "two" && found == 3 && len(relay.dir.d.Where(k.pool, k.kind, k.role)) > 0
			})
			w.stop("c", true)
			for range 5 { // whoever's turn it is
				token := w.token(t, addr)
				if err := w.joinAt(t, token); err != nil {
					t.Fatal(err)
				}
				if err := w.joinAt(t, token); !errors.Is(err, identity.ErrToken) {
					t.Errorf("a token twice: %v", err)
				}
			}
			if area == "two" {
				return
			}
			w.stop("seed", true)
			relay.auth.mu.Lock()
			clear(relay.auth.verdicts)
			relay.auth.mu.Unlock()
			if err := w.joinAt(t, w.token(t, addr)); err == nil || errors.Is(err, identity.ErrToken) {
				t.Errorf("where there are false authorities alone: %v", err)
			}
		})
	}
}

// TestAuthoritiesTakeTurns: one that has shown what it should and then does not do what it
// is asked for is followed by the next one, and by turns they are the first.
func TestAuthoritiesTakeTurns(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one", w.authoritative)
		b := w.node(t, "b", "one")
		c := w.node(t, "c", "one")
		pretend(t, b)
		waitFor(t, "two nodes that say that they are it", func() bool {
			ids, _ := c.find(t.Context(), authorityService)
			return len(ids) == 2
		})
		ask := func(want error) (asked []identity.NodeID) {
			t.Helper()
			err := c.authority(t.Context(), func(r *route) error {
				asked = append(asked, r.p.id)
				return want
			})
			if !errors.Is(err, want) {
				t.Error(err)
			}
			return asked
		}
		if asked := ask(nil); len(asked) != 1 || asked[0] != a.ID() {
			t.Errorf("%v was asked, where %v alone is the authority's", asked, a.ID())
		}
		c.auth.mu.Lock() // it had the true one's proof
		c.auth.verdicts[b.ID()] = verdict{true, time.Now().Add(provenTime)}
		c.auth.mu.Unlock()
		first := map[identity.NodeID]bool{}
		for range 2 {
			asked := ask(errNoPass)
			if len(asked) != 2 {
				t.Fatalf("%v were asked", asked)
			}
			first[asked[0]] = true
		}
		if len(first) != 2 {
			t.Errorf("it is always %v that is asked first", first)
		}
		time.Sleep(2 * provenTime)
		if asked := ask(nil); len(asked) != 1 || asked[0] != a.ID() {
			t.Errorf("later %v is asked", asked)
		}
	})
}

// TestJoinersThroughOneNode has many come through one node who say nothing: they keep out
// neither who joins through it from elsewhere, nor what the node itself asks.
func TestJoinersThroughOneNode(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a := w.node(t, "seed", "one", w.authoritative)
		b := w.node(t, "b", "one")
		waitFor(t, "the session", func() bool { _, ok := routeTo(b, a); return ok })
		r := b.known(a.ID()).live()
		for range 2 * maxJoins {
			st, err := r.s.Open(frame.Control, joinHeader(a.ID(), netip.MustParseAddr("192.0.2.1")))
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			time.Sleep(50 * time.Millisecond)
		}
		st, err := r.s.Open(frame.Control, joinHeader(a.ID(), netip.MustParseAddr("192.0.2.2")))
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		c := tls.Client(passed{st}, b.o.Identity.AuthorityConfig())
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Errorf("one from elsewhere: %v", err)
		}
		csr, err := b.o.Identity.RenewRequest()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.call(t.Context(), a.ID(), callRenew, csr); err != nil {
			t.Errorf("renewal meanwhile: %v", err)
		}
	})
}
