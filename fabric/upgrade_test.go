package fabric

import (
	"context"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// All nodes of a fabric are replaced by ones of the next version of the protocol,
// one after the other, while bulk and interactive streams flow: to two nodes that
// provide the same, and through one that passes on. What flows to a node that is
// replaced ends whole before it goes, and what is new goes to the other one;
// through nodes that are replaced the streams go on. Every byte is checked.
func TestRollingUpgrade(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		old := func(o *Options) { o.version = frame.MinVersion }
		w.node(t, "seed", "one", relayed, old)
		w.node(t, "r2", "one", relayed, old)
		client, hidden := w.node(t, "client", "one", deaf, old), w.node(t, "hidden", "one", deaf, old)
		echo(t, hidden, "hidden")
		pool := []string{"p1", "p2"}
		for _, name := range pool {
			echo(t, w.node(t, name, "one", old), "pool")
		}
		waitFor(t, "both providers", func() bool { return len(client.dir.d.Find("pool", "echo", "")) == 2 })
		versions := func(want map[uint8]bool) {
			t.Helper()
			for _, p := range client.allPeers() {
				if r := p.live(); r != nil && !want[r.s.Stats().Version] {
					t.Errorf("version %d is spoken", r.s.Stats().Version)
				}
			}
		}
		tun := w.open(t, client, failing(testProfile), "pool")
		through := w.open(t, client, testProfile, "hidden")
		lasting := []*flow{paced(t, through, frame.Bulk, 8<<10, time.Second), paced(t, through, frame.Interactive, 1<<10, time.Second)}
		versions(map[uint8]bool{1: true})

		for _, name := range pool {
			flows := []*flow{startFlow(t, tun, frame.Bulk), startFlow(t, tun, frame.Interactive)}
			time.Sleep(5 * time.Second)
			drained := make(chan error, 1)
			go func() { drained <- w.all[name].Drain(context.Background()) }()
			waitFor(t, "the tunnel's other node", func() bool { return tun.Peer() != w.all[name].ID() })
			more := startFlow(t, tun, frame.Bulk)
			time.Sleep(2 * time.Second)
			for _, f := range flows {
				f.end()
			}
			if err := <-drained; err != nil {
				t.Error(err)
			}
			w.stop(name, false)
			time.Sleep(5 * time.Second)
			echo(t, w.node(t, name, "one"), "pool")
			time.Sleep(5 * time.Second)
			more.end() // it has not gone through the node that was replaced
			say(t, tun, payload(1, 100_000))
		}
		for _, name := range []string{"seed", "r2"} {
			if err := w.all[name].Drain(context.Background()); err != nil {
				t.Error(err)
			}
			waitFor(t, "what passes through to have moved", func() bool { return w.all[name].Status().PassedOn == 0 })
			w.stop(name, false)
			time.Sleep(5 * time.Second)
			w.node(t, name, "one", relayed)
			time.Sleep(2 * drainPause) // until then it is left alone
		}
		for _, f := range lasting {
			f.end()
		}
		versions(map[uint8]bool{1: true}) // of the client and what it dials

		w.stop("client", false)
		client = w.node(t, "client", "one", deaf)
		say(t, w.open(t, client, failing(testProfile), "pool"), payload(2, 100_000))
		versions(map[uint8]bool{2: true})
		say(t, w.open(t, client, testProfile, "hidden"), payload(3, 100_000)) // which still speaks the old one
		if r := client.known(hidden.ID()).live(); r.s.Stats().Version != 1 {
			t.Errorf("version %d is spoken with a node of version 1", r.s.Stats().Version)
		}
	})
}
