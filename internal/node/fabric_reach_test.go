package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/identity"
)

// fakeReach is names and nodes of a test's own.
type fakeReach struct {
	names map[string]string // without an address: nobody answers who is asked for it
	there map[place]bool

	mu    sync.Mutex
	asked []place
}

func (f *fakeReach) reach() *reach {
	return &reach{log: slog.New(slog.DiscardHandler), proven: map[place]time.Time{},
		proxy: func(r *http.Request) (*url.URL, error) {
			if r.URL.Hostname() == "behind.example" {
				return url.Parse("http://proxy.example:3128")
			}
			return nil, nil
		},
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			addr := f.names[host]
			if addr == "" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return []netip.Addr{netip.MustParseAddr(addr)}, nil
		},
		answers: func(_ context.Context, id identity.NodeID, url string) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.asked = append(f.asked, place{id, url})
			if !f.there[place{id, url}] {
				return errors.New("another one answers")
			}
			return nil
		}}
}

// TestReach: what goes past a VPN is what this node's own settings and links go to, and
// addresses at which a node has shown that it is there. A name that nobody knows holds up
// no other one, and no node has more than its share of what is looked at.
func TestReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, evil := identity.NodeID{1}, identity.NodeID{2}
		f := &fakeReach{names: map[string]string{"seed.example": "192.0.2.1", "node.example": "192.0.2.2", "proxy.example": "192.0.2.3", "bank.example": "198.51.100.1"},
			there: map[place]bool{{good, "tls://192.0.2.2:7420"}: true, {good, "quic://[2001:db8::2]:7420"}: true, {good, "https://192.0.2.4/path"}: true}}
		r := f.reach()
		seeds := []string{"tls://seed.example:7420", "tls://dead.example:1", "https://behind.example"}
		linked := []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.9"), netip.MustParseAddr("127.0.0.1")}
		nodes := []fabric.NodeState{
			{Node: evil, Addrs: []string{"tls://bank.example:443", "tls://198.51.100.2:443", "https://bank.example", "tls://also.dead:1", "relay://x", "tls://127.0.0.1:1", "://", "tls://:7420"}},
			{Node: good, Addrs: []string{"tls://node.example:7420", "quic://[2001:db8::2]:7420", "https://192.0.2.4/path"}},
			{Node: identity.NodeID{3}, Self: true, Addrs: []string{"tls://192.0.2.5:7420"}},
		}
		expect := func(got []netip.Addr, want ...string) {
			t.Helper()
			var texts []string
			for _, a := range got {
				texts = append(texts, a.String())
			}
			if !slices.Equal(texts, want) {
				t.Errorf("%v, want %v", texts, want)
			}
		}
		expect(r.around(t.Context(), seeds, linked, nodes), "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.9", "2001:db8::2")

		// Who has shown it need not again for a while, such as while the node is down.
		clear(f.there)
		expect(r.around(t.Context(), nil, nil, nodes), "192.0.2.2", "192.0.2.4", "2001:db8::2")
		time.Sleep(reachLife)
		expect(r.around(t.Context(), nil, nil, nodes))

		// Where servers show certificates of the web, an address of one says nothing.
		f.there = map[place]bool{{good, "https://192.0.2.4/path"}: true}
		r.web = true
		expect(r.around(t.Context(), nil, nil, nodes))

		var crowd []fabric.NodeState
		for i := range 2 {
			n := fabric.NodeState{Node: identity.NodeID{byte(10 + i)}}
			for k := range 200 {
				n.Addrs = append(n.Addrs, fmt.Sprintf("tls://198.51.100.%d:%d", k, 1+i))
			}
			crowd = append(crowd, n)
		}
		f.asked = nil
		exit := fabric.NodeState{Node: good, Addrs: []string{"tls://192.0.2.2:7420"}, Services: []fabric.ServiceState{{Kind: "vpn-exit"}}}
		f.there = map[place]bool{{good, "tls://192.0.2.2:7420"}: true}
		expect(r.around(t.Context(), nil, nil, append(crowd, exit)), "192.0.2.2")
		if len(f.asked) != maxReach {
			t.Errorf("%d addresses were looked at", len(f.asked))
		}
	})
}
