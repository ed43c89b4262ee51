package fabric

import (
	"net"
	"time"

	"github.com/spacestore/space/fabric/admit"
	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// What is admitted counts for the node and, each where it has one, the route
// (the peer), the pool, the organization and the service. Sessions and links
// that are passed on count for node and route; tunnels and streams for all.
// A tunnel's end that has asked for it can change its peer, so its streams
// count for the route apart from the rest. Windows of a tunnel's streams count for
// the same as the streams; those of all streams are bounded for the node as a whole
// and for each peer, by the sessions (session.Budget).

// Limits that a node has unless its options say otherwise.
var defaultLimits = map[admit.Scope]admit.Limit{
	admit.NodeScope: {Sessions: maxPeers, Tunnels: 100_000, Streams: 200_000, Window: 1 << 30},
	admit.Route:     {Sessions: maxSessionsPerPeer, Tunnels: 50_000, Streams: maxSessionStreams},
}

// peerShare is the part of the node's bytes of windows that each peer may have,
// unless the options say otherwise: one alone does not use up what is there for all.
const peerShare = 4

// filled puts the default limits where none are.
func filled(c admit.Config) admit.Config {
	for scope, d := range defaultLimits {
		l := &c.Each[scope]
		for _, f := range []struct {
			have *int64
			or   int64
		}{{&l.Sessions, d.Sessions}, {&l.Tunnels, d.Tunnels}, {&l.Streams, d.Streams}, {&l.Window, d.Window}} {
			if *f.have == 0 {
				*f.have = f.or
			}
		}
	}
	if route := &c.Each[admit.Route]; route.Window == 0 {
		route.Window = max(c.Each[admit.NodeScope].Window/peerShare, session.FirstWindow)
	}
	return c
}

// SetLimits changes the limits, for what is there too: nothing is taken away,
// but nothing is added until there is room again.
func (n *Node) SetLimits(c admit.Config) {
	n.admit.Configure(filled(c))
	n.windows.SetLimit(n.admit.Limit(admit.Node()).Window)
	for _, p := range n.allPeers() {
		p.windows.SetLimit(n.admit.Limit(peerKey(p.id)).Window)
	}
}

// Usage returns what counts for whom, and the limits; at most limit accounts of
// each scope.
func (n *Node) Usage(limit int) []admit.Usage {
	all := n.admit.Usage(limit)
	for i, u := range all { // with the windows that are of no tunnel
		b := n.windows
		if u.Scope == admit.Route {
			id, err := identity.ParseNodeID(u.Name)
			if err != nil {
				continue
			}
			p := n.known(id)
			if p == nil {
				continue // nor has it windows
			}
			b = p.windows
		} else if u.Scope != admit.NodeScope {
			continue
		}
		all[i].Used.Window, all[i].Limit.Window = b.Used(), b.Limit()
	}
	return all
}

// Totals returns what each scope has counted, ever.
func (n *Node) Totals() []admit.Total { return n.admit.Totals() }

// grant is what something has been admitted with.
type grant struct {
	group  *admit.Group
	leases []*admit.Lease
	own    bool // the group is of this alone
	// windows are of a stream, which has them until its last byte has arrived.
	windows windows
}

// windows are what a stream's windows count for. They are a session.Account.
type windows []*admit.Lease

// windowGrowth is the part of a limit beyond which windows grow no more: the rest
// is for streams that begin.
const windowGrowth = 0.75

// Grow implements session.Account.
func (w windows) Grow(n int64) bool {
	for i, l := range w {
		if !l.Grow(n, windowGrowth) {
			for _, before := range w[:i] {
				before.Shrink(n)
			}
			return false
		}
	}
	return true
}

// Release implements session.Account.
func (w windows) Release() {
	for _, l := range w {
		l.Release()
	}
}

// release gives it back, but for the windows.
func (g *grant) release() {
	for _, l := range g.leases {
		l.Release()
	}
	if g.own {
		g.group.Close()
	}
}

func (n *Node) refuse(no *admit.Refusal) *RefusedError {
	n.refused.Add(1)
	return &RefusedError{Limit: no.Limit, Retry: no.Retry}
}

// admit acquires one of something in a group of its own.
func (n *Node) admitOne(what admit.What, keys ...admit.Key) (*grant, *RefusedError) {
	group, no := n.admit.Group(keys...)
	if no != nil {
		return nil, n.refuse(no)
	}
	lease, no := group.Acquire(what, 1)
	if no != nil {
		group.Close()
		return nil, n.refuse(no)
	}
	return &grant{group: group, leases: []*admit.Lease{lease}, own: true}, nil
}

// certified notes whose the peer is: what its certificate says, with which this link
// was made. Neither the node itself nor a tunnel has a say in that, so that none can be
// charged to another one.
func (p *peer) certified(c net.Conn) {
	org := p.n.o.Identity.Organization() // a link to itself needs no certificate
	if l, ok := c.(carrier.Link); ok {
		org = l.Organization()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.org = org
}

// organization returns whose the peer is.
func (p *peer) organization() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.org
}

func peerKey(id identity.NodeID) admit.Key {
	return admit.Key{Scope: admit.Route, Name: id.String()}
}

func routeKey(r *route) admit.Key { return peerKey(r.p.id) }

func (n *Node) admitSession(r *route) (*grant, *RefusedError) {
	return n.admitOne(admit.Sessions, admit.Node(), routeKey(r))
}

func (n *Node) admitPass(r *route) (*grant, *RefusedError) {
	return n.admitOne(admit.Streams, admit.Node(), routeKey(r))
}

// admitTunnel admits a tunnel's end. r is the route where the peer will stay
// the same, or nil.
func (n *Node) admitTunnel(t *Tunnel, r *route) (*grant, *RefusedError) {
	keys := []admit.Key{admit.Node(), {Scope: admit.Pool, Name: t.ask.pool}, {Scope: admit.Organization, Name: t.org},
		{Scope: admit.Service, Name: t.ask.local}}
	if r != nil {
		keys = append(keys, routeKey(r))
	}
	return n.admitOne(admit.Tunnels, keys...)
}

// admitStream admits a stream of a tunnel over a route.
func (n *Node) admitStream(t *Tunnel, r *route) (*grant, *RefusedError) {
	g := &grant{group: t.grant.group}
	groups := []*admit.Group{t.grant.group}
	if t.opener {
		groups = append(groups, r.grant.group)
	}
	for _, from := range groups {
		lease, no := from.Acquire(admit.Streams, 1)
		if no == nil {
			g.leases = append(g.leases, lease)
			lease, no = from.Acquire(admit.Window, session.FirstWindow)
		}
		if no != nil {
			g.release()
			g.windows.Release()
			return nil, n.refuse(no)
		}
		g.windows = append(g.windows, lease)
	}
	return g, nil
}

// pace counts bytes of a stream, and waits as long as a rate is exceeded.
func (s *stream) pace(bytes int) {
	if bytes == 0 {
		return
	}
	wait := s.grant.group.Pace(int64(bytes))
	if wait <= 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.gone:
	case <-s.t.n.ctx.Done():
	}
}
