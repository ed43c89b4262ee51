package fabric

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

var stormSeeds = flag.Int("storm-seeds", 1, "simulated storms")

// Connections are cut, carriers refused, hosts parted for a while and relays
// killed, at random, while streams of two classes flow through tunnels between
// nodes that listen and nodes that do not. No stream loses a byte or ends.
func TestStorm(t *testing.T) {
	for seed := range uint64(*stormSeeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			simulate(t, func(t *testing.T, w *world) { storm(t, w, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func storm(t *testing.T, w *world, r *rand.Rand) {
	hosts := []string{"seed", "r2", "b", "c", "d"}
	w.node(t, "seed", "one", relayed)
	w.node(t, "r2", "one", relayed)
	b, c, d := w.node(t, "b", "one", deaf), w.node(t, "c", "one", deaf), w.node(t, "d", "one")
	echo(t, b, "b")
	echo(t, c, "c")
	echo(t, d, "d")
	var flows []*flow
	for _, x := range []struct {
		from *Node
		pool string
	}{{b, "c"}, {c, "d"}, {d, "b"}} {
		tun := w.open(t, x.from, testProfile, x.pool)
		flows = append(flows, paced(t, tun, frame.Bulk, 16<<10, 320*time.Millisecond), paced(t, tun, frame.Interactive, 1<<10, 200*time.Millisecond))
	}
	time.Sleep(5 * time.Second)
	for range 12 {
		calm := time.Duration(1+r.IntN(20)) * time.Second
		host := hosts[r.IntN(len(hosts))]
		switch r.IntN(4) {
		case 0:
			w.net.cut(func(_, to, _ string) bool { return hostOf(to) == host })
			time.Sleep(calm)
		case 1:
			url := []string{"tls", "quic"}[r.IntN(2)] + "://" + host + ":1"
			w.net.refuse(url, true)
			time.Sleep(calm)
			w.net.refuse(url, false)
		case 2:
			other := hosts[r.IntN(len(hosts))]
			if other == host {
				continue
			}
			w.net.part(host, other, true)
			time.Sleep(calm)
			w.net.part(host, other, false)
		case 3:
			relay := hosts[r.IntN(2)]
			w.stop(relay, true)
			time.Sleep(calm)
			w.node(t, relay, "one", relayed)
		}
		time.Sleep(time.Duration(r.IntN(30)) * time.Second)
	}
	time.Sleep(time.Minute)
	for _, f := range flows {
		f.end()
	}
}
