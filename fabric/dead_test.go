package fabric

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// A node that was killed, and that can't be dialed, is said to be unreachable to
// who opens a stream or asks for a tunnel, at once and again and again, although the
// session with it, and what was under way in it, waits for a minute. It makes no
// difference who had dialed, and whether there is anything to dial.
func TestKilledNode(t *testing.T) {
	for _, x := range []struct {
		name             string
		from, to         string
		deaf, mayGoOther bool
	}{
		{"it had dialed", "seed", "b", false, false},
		{"it had dialed, another one would do", "seed", "b", false, true},
		{"it had dialed and listens nowhere", "seed", "b", true, false},
		{"it was dialed", "b", "seed", false, false},
		{"it was dialed, another one would do", "b", "seed", false, true},
	} {
		simulate(t, func(t *testing.T, w *world) {
			start := func(name string) *Node {
				if x.deaf && name == "b" {
					return w.node(t, name, "one", deaf)
				}
				return w.node(t, name, "one")
			}
			start("seed")
			start("b")
			echo(t, w.all[x.to], "pool")
			profile := testProfile
			profile.Failover = x.mayGoOther
			tun := w.open(t, w.all[x.from], profile, "pool")
			begin := func() Stream {
				st, err := tun.Open(context.Background(), frame.Interactive, nil)
				if err != nil {
					t.Fatal(err)
				}
				return st
			}
			running := begin()
			if _, err := io.ReadFull(running, make([]byte, len(x.to)+1)); err != nil {
				t.Fatal(err)
			}
			killed := time.Now()
			w.stop(x.to, true)
			fresh := begin()
			if _, err := io.ReadAll(fresh); err == nil {
				t.Errorf("%s: a stream to it has ended well", x.name)
			}
			if d := time.Since(killed); d > unheardTime+2*time.Second {
				t.Errorf("%s: a stream that it has not heard of has ended after %v", x.name, d)
			}
			fresh.Close()
			refused := func(what string, limit time.Duration, err error, began time.Time) {
				t.Helper()
				if d := time.Since(began); !errors.Is(err, ErrUnreachable) || d > limit {
					t.Errorf("%s: %s %v after its end: %v, after %v", x.name, what, began.Sub(killed), err, d)
				}
			}
			for began, k := time.Now(), 0; k < 20; k++ { // however often somebody asks
				if _, err := tun.Open(context.Background(), frame.Interactive, nil); !errors.Is(err, ErrUnreachable) {
					t.Errorf("%s: %v", x.name, err)
				}
				if d := time.Since(began); d < time.Duration(k)*firstReopenRest {
					t.Errorf("%s: %d tries to reach it in %v", x.name, k+1, d)
				}
			}
			for range 5 {
				began := time.Now()
				_, err := w.all[x.from].Tunnel(context.Background(), Request{Profile: profile, Pool: "pool", Kind: "echo"})
				refused("a tunnel", time.Second, err, began)
				began = time.Now()
				_, err = tun.Open(context.Background(), frame.Interactive, nil)
				refused("a stream", time.Second, err, began)
				time.Sleep(5 * time.Second)
			}
			if _, err := io.ReadAll(running); err == nil {
				t.Errorf("%s: a stream has ended well that its node has not ended", x.name)
			}
			if d := time.Since(killed); d < 59*time.Second || d > 61*time.Second {
				t.Errorf("%s: the session has waited for %v", x.name, d)
			}
			running.Close()
			if !x.deaf { // one that nobody can dial comes by itself, or does not
				began := time.Now()
				_, err := tun.Open(context.Background(), frame.Interactive, nil)
				refused("a stream", 2*lastReopenRest, err, began)
			}
			echo(t, start(x.to), "pool")
			time.Sleep(10 * time.Second)
			if got := say(t, tun, payload(1, 1000)); got != x.to {
				t.Errorf("%s: %q has answered", x.name, got)
			}
		})
	}
}

// Who opens a stream while all links are lost for a moment, or just when they are
// there again, gets it.
func TestStreamWhenItsNodeIsBack(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b := w.node(t, "seed", "one"), w.node(t, "b", "one", deaf)
		echo(t, b, "pool")
		tun := w.open(t, a, testProfile, "pool")
		for _, outage := range []time.Duration{time.Second, 5 * time.Second, 30 * time.Second} {
			w.door("seed", true)
			if outage < downTime {
				time.AfterFunc(outage, func() { w.door("seed", false) })
			} else {
				time.Sleep(outage)
				w.door("seed", false)
				time.Sleep(3 * time.Second)
			}
			soon(t, "a stream", 4*time.Second, func() { say(t, tun, payload(1, 1000)) })
		}
	})
}
