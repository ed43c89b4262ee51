package node

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/identity"
)

// Bounds of the search for the addresses that a VPN's routes leave out.
const (
	reachTime  = 5 * time.Second // for all of it
	nameTime   = 2 * time.Second // of that, for a name
	maxReach   = 64              // addresses of other nodes that are looked at
	maxReachOf = 4               // of one name
	reachLife  = time.Hour       // for which a node need not show again that it is there
	maxProven  = 512
)

// reach finds the addresses over which this node reaches others: what goes there does
// not go into a VPN, for it carries the VPN. Any node says of itself where it is, so its
// word alone would have this host send past the VPN what is for whatever host it names.
// So an address counts where this node's own settings name it, or where a node has shown
// its certificate there: a link goes there now, or is made and closed at once.
type reach struct {
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	answers func(ctx context.Context, id identity.NodeID, url string) error
	proxy   func(*http.Request) (*url.URL, error)
	web     bool // servers of https show certificates of the web, which say nothing of nodes
	log     *slog.Logger

	mu     sync.Mutex
	proven map[place]time.Time // when a node has shown that it is there
}

// place is where a node says that it is.
type place struct {
	node identity.NodeID
	url  string // by address
}

func newReach(n *fabric.Node, web bool, log *slog.Logger) *reach {
	return &reach{answers: n.Answers, proxy: http.ProxyFromEnvironment, web: web, log: log, proven: map[place]time.Time{},
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}}
}

// around returns the addresses: of seeds, of links, and of nodes that show that they are
// where they say. All are looked at side by side, so that one that does not answer holds
// up no other.
func (r *reach) around(ctx context.Context, seeds []string, linked []netip.Addr, nodes []fabric.NodeState) []netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	var mu sync.Mutex
	found := map[netip.Addr]bool{}
	add := func(a netip.Addr) {
		if a = a.Unmap().WithZone(""); a.IsGlobalUnicast() {
			mu.Lock()
			defer mu.Unlock()
			found[a] = true
		}
	}
	for _, a := range linked {
		add(a)
	}
	var wg sync.WaitGroup
	for _, text := range seeds {
		wg.Go(func() {
			for _, a := range r.addresses(ctx, r.dialed(text)) {
				add(a)
			}
		})
	}
	for _, p := range r.places(nodes) {
		wg.Go(func() {
			u, err := url.Parse(p.url)
			if err != nil {
				return
			}
			addrs := r.addresses(ctx, u.Hostname())
			for _, a := range addrs[:min(len(addrs), maxReachOf)] {
				wg.Go(func() {
					at := *u
					if at.Host = a.Unmap().String(); a.Unmap().Is6() {
						at.Host = "[" + at.Host + "]"
					}
					if port := u.Port(); port != "" {
						at.Host += ":" + port
					}
					if r.isThere(ctx, place{p.node, at.String()}) {
						add(a)
					}
				})
			}
		})
	}
	wg.Wait()
	list := make([]netip.Addr, 0, len(found))
	for a := range found {
		list = append(list, a)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// dialed returns the host that is dialed for an address: itself, or a proxy.
func (r *reach) dialed(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	if u.Scheme == "https" {
		if p, err := r.proxy(&http.Request{URL: u}); err == nil && p != nil {
			u = p
		}
	}
	return u.Hostname()
}

// places returns where nodes say that they are: each one's first address, then each one's
// second one, so that none has more than its share, and first those that matter most.
func (r *reach) places(nodes []fabric.NodeState) (all []place) {
	rank := func(n fabric.NodeState) int {
		switch exit := func(s fabric.ServiceState) bool { return s.Kind == profile("vpn-packets").Kind }; {
		case n.Session:
			return 0
		case slices.ContainsFunc(n.Services, exit):
			return 1
		case n.Relay:
			return 2
		}
		return 3
	}
	nodes = slices.Clone(nodes)
	slices.SortStableFunc(nodes, func(a, b fabric.NodeState) int { return cmp.Compare(rank(a), rank(b)) })
	for i, more := 0, true; more; i++ {
		more = false
		for _, n := range nodes {
			if n.Self || i >= len(n.Addrs) {
				continue
			}
			more = true
			carrier, _, _ := strings.Cut(n.Addrs[i], "://")
			if carrier != "tls" && carrier != "quic" && (carrier != "https" || r.web) {
				continue
			}
			if all = append(all, place{n.Node, n.Addrs[i]}); len(all) == maxReach {
				return all
			}
		}
	}
	return all
}

// addresses returns those of a host.
func (r *reach) addresses(ctx context.Context, host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}
	}
	if host == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, nameTime)
	defer cancel()
	found, err := r.lookup(ctx, host)
	if err != nil { // it can't be reached by that name now
		r.log.Debug("vpn: the address of a node", "name", host, "error", err)
	}
	return found
}

// isThere reports whether a node has shown lately, or shows now, that it is at a place.
func (r *reach) isThere(ctx context.Context, p place) bool {
	now := time.Now()
	r.mu.Lock()
	at, ok := r.proven[p]
	r.mu.Unlock()
	if ok && now.Sub(at) < reachLife {
		return true
	}
	if err := r.answers(ctx, p.node, p.url); err != nil {
		if !errors.Is(err, context.DeadlineExceeded) {
			r.log.Debug("vpn: a node is not where it says", "node", p.node.String(), "address", p.url, "error", err)
		}
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for old, at := range r.proven {
		if now.Sub(at) >= reachLife || len(r.proven) >= maxProven {
			delete(r.proven, old)
		}
	}
	r.proven[p] = now
	return true
}
