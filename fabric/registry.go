package fabric

import (
	"cmp"
	"slices"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/session"
)

// count adds the counts of a session that has ended to the node's.
func (n *Node) count(st session.Stats) {
	n.mu.Lock()
	defer n.mu.Unlock()
	st.Queued = [frame.Classes]int64{} // it went with the session
	addStats(&n.past, st)
}

func addStats(sum *session.Stats, st session.Stats) {
	for c := range frame.Classes {
		sum.Sent[c] += st.Sent[c]
		sum.Received[c] += st.Received[c]
		sum.Queued[c] += st.Queued[c]
		for i, count := range st.Delay[c].Buckets {
			sum.Delay[c].Buckets[i] += count
		}
		sum.Delay[c].Sum += st.Delay[c].Sum
		sum.Delay[c].Max = max(sum.Delay[c].Max, st.Delay[c].Max)
	}
	sum.DroppedPackets += st.DroppedPackets
	sum.Streams += st.Streams
}

// Status returns the node's numbers.
func (n *Node) Status() Status {
	s := Status{Node: n.id, Fabric: n.o.Identity.Fabric(), Name: n.o.Name, Area: n.o.Area, Organization: n.o.Identity.Organization(),
		Addrs: n.Addrs(), Relay: n.o.Relay, Authority: n.o.Authority != nil, Draining: n.draining.Load(), Started: n.started,
		CertRenewal: n.o.Identity.RenewAt(), Rejected: n.lastRejected(), PassedOn: int(n.passed.Load()), Windows: n.windows.Used(), WindowLimit: n.windows.Limit(), Failovers: n.failovers.Load(), Refused: n.refused.Load()}
	s.Nodes = len(n.Nodes())
	sessions := 0
	var sum session.Stats
	for _, p := range n.allPeers() {
		for _, r := range p.all() {
			sessions++
			st := r.s.Stats()
			addStats(&sum, st)
		}
	}
	s.Sessions = sessions
	n.mu.Lock()
	addStats(&sum, n.past)
	n.mu.Unlock()
	tunnels := n.allTunnels()
	s.Tunnels = len(tunnels)
	for _, t := range tunnels {
		t.mu.Lock()
		s.Streams += len(t.streams)
		t.mu.Unlock()
	}
	for c := range frame.Classes {
		d := sum.Delay[c]
		cs := ClassState{Class: c, Sent: sum.Sent[c], Received: sum.Received[c], Queued: sum.Queued[c],
			Delay: DelayState{slices.Clone(d.Buckets[:]), d.Sum, d.Max}}
		if c == frame.Packet {
			cs.Dropped = sum.DroppedPackets
		}
		s.Classes = append(s.Classes, cs)
	}
	return s
}

// Tunnels returns the stream registry.
func (n *Node) Tunnels() []TunnelState {
	tunnels := n.allTunnels()
	states := make([]TunnelState, 0, len(tunnels))
	for _, t := range tunnels {
		states = append(states, t.State())
	}
	slices.SortFunc(states, func(a, b TunnelState) int {
		return cmp.Or(a.Opened.Compare(b.Opened), slices.Compare(a.Contract.TunnelID[:], b.Contract.TunnelID[:]))
	})
	return states
}

// State returns the tunnel's entry of the stream registry.
func (t *Tunnel) State() TunnelState {
	t.mu.Lock()
	s := TunnelState{Version: RegistryVersion, Contract: t.contract, Organization: t.org, Opener: t.opener, Opened: t.opened,
		Sent: t.sent, Received: t.got, StreamsEver: t.ever.Load(), Streams: []StreamState{}}
	if !t.peer.IsZero() {
		s.Peer = t.peer.String()
	}
	r := t.r
	switch {
	case t.err != nil:
		s.State = "closed"
	case r != nil:
		s.State = "up"
	case t.contract.RouteGeneration == 0:
		s.State = "opening"
	default:
		s.State = "no route"
	}
	streams := make([]*stream, 0, len(t.streams))
	for st := range t.streams {
		s.Sent += st.sent.Load()
		s.Received += st.got.Load()
		streams = append(streams, st)
	}
	t.mu.Unlock()
	if r != nil {
		s.Route = r.best().String()
	}
	slices.SortFunc(streams, func(a, b *stream) int {
		return cmp.Or(a.opened.Compare(b.opened), cmp.Compare(a.st.ID(), b.st.ID()))
	})
	if len(streams) > MaxRegistered {
		s.Omitted = len(streams) - MaxRegistered
		streams = streams[:MaxRegistered]
	}
	for _, st := range streams {
		s.Streams = append(s.Streams, st.state())
	}
	return s
}

func (s *stream) state() StreamState {
	st := StreamState{ID: s.st.ID(), Class: s.Class(), Opener: s.local, State: "open", Sent: s.sent.Load(), Received: s.got.Load(), Opened: s.opened}
	switch wrote, eof := s.wrote.Load(), s.eof.Load(); {
	case wrote && eof:
		st.State = "ending"
	case wrote:
		st.State = "half closed (here)"
	case eof:
		st.State = "half closed (peer)"
	}
	return st
}

// Routes returns the routes in use.
func (n *Node) Routes() []RouteState {
	states := []RouteState{}
	now := time.Now()
	for _, p := range n.allPeers() {
		name := n.nameOf(p.id)
		for _, r := range p.all() {
			st, best := r.s.Stats(), r.best()
			r.mu.Lock()
			s := RouteState{Peer: p.id, Name: name, Carrier: best.carrier, Dialed: r.dialed, State: "up", Links: st.Links,
				Tunnels: len(r.tunnels), LeaseID: r.lease, Epoch: r.epoch, Generation: r.gen, Expires: r.expires, RTT: st.RTT,
				Loss: r.health.loss, Throughput: int64(r.health.rate), LostLinks: st.LostLinks, Since: r.began}
			r.mu.Unlock()
			if !best.via.IsZero() {
				s.Via = n.nameOf(best.via)
			}
			if st.Links == 0 || r.isDown(now) {
				s.State = "down"
			}
			states = append(states, s)
		}
	}
	slices.SortFunc(states, func(a, b RouteState) int {
		return cmp.Or(slices.Compare(a.Peer[:], b.Peer[:]), a.Since.Compare(b.Since))
	})
	return states
}
