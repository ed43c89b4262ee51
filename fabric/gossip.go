package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/directory"
	"github.com/spacestore/space/fabric/identity"
)

// gossip is what the node keeps of the directory beside the directory itself.
// The node's lock guards it.
type gossip struct {
	d          *directory.Directory
	news       chan struct{} // closed and made anew when the directory has changed
	met        chan struct{} // closed and made anew when a session begins
	published  time.Time
	attached   []identity.NodeID // relays through which others reach this node, as published
	neighbours map[identity.NodeID]bool
	seeded     map[identity.NodeID]wayKey // where a seed was found, whose record is not known yet
	lookAt     time.Time
	pushAt     time.Time // news are to be told
	seedAt     time.Time
	seedRest   time.Duration
	seeding    bool
}

const (
	recordLife    = 10 * time.Minute
	recordRefresh = 2 * time.Minute
	gossipRest    = 30 * time.Second // between two exchanges of digests with a neighbour
	pushDelay     = 50 * time.Millisecond
	lookRest      = 5 * time.Second // between two looks at the neighbours
	firstSeedRest = time.Second
	lastSeedRest  = time.Minute
	seedAgain     = 10 * time.Minute // even with neighbours: two parts of a fabric may have lost each other

	ringNeighbours  = 2 // the next ones of the area, by ID
	relayNeighbours = 2 // nodes that pass on, of the area
	areaNeighbours  = 1 // of each other area, for those that pass on
	maxNeighbours   = 32
	maxAttached     = 3
)

func urlOf(a directory.Addr) string {
	if strings.Contains(a.Addr, "://") {
		return a.Addr
	}
	return a.Carrier + "://" + a.Addr
}

// addrOf reads a seed.
func addrOf(url string) (wayKey, error) {
	name, rest, ok := strings.Cut(url, "://")
	if !ok || name == "" || rest == "" {
		return wayKey{}, fmt.Errorf("fabric: %q is no address of a node; one is tls://host:port", url)
	}
	if name == "https" { // its addresses are whole
		rest = url
	}
	return wayKey{carrier: name, addr: rest}, nil
}

func (n *Node) openDirectory() error {
	n.dir = gossip{d: directory.New(directory.Options{Identity: n.o.Identity, Area: n.o.Area}), news: make(chan struct{}), met: make(chan struct{}), neighbours: map[identity.NodeID]bool{}, seeded: map[identity.NodeID]wayKey{},
		seedRest: firstSeedRest}
	for _, s := range n.o.Seeds {
		if _, err := addrOf(s); err != nil {
			return err
		}
	}
	return n.publish()
}

// publish makes the own record anew and tells the neighbours.
func (n *Node) publish() error {
	rec := directory.Record{Name: n.o.Name, Addrs: slices.Clone(n.addrs), Relay: n.o.Relay && !n.draining.Load(),
		Expires: time.Now().Add(recordLife)}
	n.mu.Lock()
	if !n.draining.Load() {
		for k := range n.services {
			rec.Services = append(rec.Services, directory.Service{Pool: k.pool, Kind: k.kind, Role: k.role})
		}
		if n.o.Authority != nil {
			k := authorityService
			rec.Services = append(rec.Services, directory.Service{Pool: k.pool, Kind: k.kind, Role: k.role})
		}
	}
	for _, id := range n.dir.attached {
		rec.Addrs = append(rec.Addrs, directory.Addr{Carrier: viaCarrier, Addr: id.String()})
	}
	slices.SortFunc(rec.Services, func(a, b directory.Service) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Role, b.Role))
	})
	n.dir.published = time.Now()
	n.mu.Unlock()
	if err := n.dir.d.Set(rec); err != nil {
		return err
	}
	n.tellNews()
	return nil
}

// tellNews has those who wait for the directory know, and the neighbours soon.
func (n *Node) tellNews() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.dir.news)
	n.dir.news = make(chan struct{})
	if n.dir.pushAt.IsZero() {
		n.dir.pushAt = time.Now().Add(pushDelay)
		time.AfterFunc(pushDelay, n.poke)
	}
}

// Changed returns a channel that is closed when the directory is no longer what
// it was: where there was no provider, there may be one. Take it before asking.
func (n *Node) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dir.news
}

// met begins with a peer that has said hello: both tell what they have.
func (n *Node) met(r *route, h hello) {
	if h.Revoked < n.revocation() {
		r.sendRevocations()
	}
	r.sendDigest()
	n.mu.Lock()
	n.dir.lookAt = time.Time{}
	close(n.dir.met)
	n.dir.met = make(chan struct{})
	n.mu.Unlock()
	for _, other := range r.p.all() { // it can be reached again, perhaps
		if other != r && other.dialed && other.aloneFor(0, time.Now()) {
			n.run(func() {
				ctx, cancel := context.WithTimeout(n.ctx, dialTime)
				defer cancel()
				if _, err := r.p.revive(ctx); err != nil {
					n.log.Debug("not reached", "error", err)
				}
			})
		}
	}
	n.poke()
}

// nextMeeting returns a channel that is closed when there is a session with
// another node.
func (n *Node) nextMeeting() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dir.met
}

func (r *route) sendDigest() {
	r.mu.Lock()
	r.digestAt = time.Now().Add(gossipRest)
	r.mu.Unlock()
	if err := r.send(message{msgDigest, r.n.dir.d.Digest()}); err != nil {
		r.n.log.Debug("digest not sent", "peer", r.p.id.String(), "error", err)
	}
}

// sendNews sends what has changed since this was last told.
func (r *route) sendNews() {
	r.mu.Lock()
	area, since := r.hello.Area, r.mark
	r.mu.Unlock()
	news, mark := r.n.dir.d.News(area, since)
	if news != nil {
		if err := r.send(message{msgRecords, news}); err != nil {
			r.n.log.Debug("news not sent", "peer", r.p.id.String(), "error", err)
			return
		}
	}
	r.mu.Lock()
	r.mark = mark
	r.mu.Unlock()
}

// digest answers what a peer has with what it lacks.
func (n *Node) digest(r *route, digest []byte) error {
	missing, err := n.dir.d.Missing(digest)
	if err != nil {
		return err
	}
	if missing == nil {
		return nil
	}
	return r.send(message{msgRecords, missing})
}

// records takes in what a peer knows.
func (n *Node) records(r *route, b []byte) error {
	news, err := n.dir.d.Merge(b)
	if news {
		n.tellNews()
	}
	return err
}

// lookAtDirectory does what is due: the own record, exchanges, neighbours.
func (n *Node) lookAtDirectory(now time.Time) {
	if n.dir.d.Expire() {
		n.tellNews()
	}
	n.mu.Lock()
	refresh := now.Sub(n.dir.published) > recordRefresh
	push := !n.dir.pushAt.IsZero() && !now.Before(n.dir.pushAt)
	if push {
		n.dir.pushAt = time.Time{}
	}
	look := !now.Before(n.dir.lookAt)
	if look {
		n.dir.lookAt = now.Add(lookRest)
	}
	n.mu.Unlock()
	if refresh {
		if err := n.publish(); err != nil {
			n.log.Error("own record", "error", err)
		}
	}
	for _, p := range n.allPeers() {
		if r := p.live(); r != nil && p.id != n.id {
			r.mu.Lock()
			due := !now.Before(r.digestAt)
			r.mu.Unlock()
			switch {
			case due:
				r.sendDigest()
			case push:
				r.sendNews()
			}
		}
	}
	if look {
		n.lookAtNeighbours(now)
	}
}

// lookAtNeighbours sees to it that there are sessions with those nodes that
// this one hears news from: the next ones of its area in the order of IDs, so
// that the area hangs together whoever is missing, some that pass links on, and,
// for those that do themselves, one of each other area.
func (n *Node) lookAtNeighbours(now time.Time) {
	var own, relays []identity.NodeID
	others := map[string][]identity.NodeID{}
	for _, rec := range n.dir.d.All() {
		if rec.Node == n.id || rec.Area != n.o.Area {
			continue
		}
		own = append(own, rec.Node)
		if rec.Relay {
			relays = append(relays, rec.Node)
		}
	}
	for _, s := range n.dir.d.Summaries() {
		if s.Area != n.o.Area {
			others[s.Area] = append(others[s.Area], s.Node)
		}
	}
	want := map[identity.NodeID]bool{}
	pick := func(ids []identity.NodeID, k int) {
		n.ring(ids)
		for _, id := range ids[:min(k, len(ids))] {
			if len(want) < maxNeighbours {
				want[id] = true
			}
		}
	}
	pick(own, ringNeighbours)
	pick(relays, relayNeighbours)
	if n.o.Relay || len(relays) == 0 { // somebody of the area has to
		for _, ids := range others {
			pick(ids, areaNeighbours)
		}
	}
	reached := false // a record alone may be of a node that is gone
	for _, p := range n.allPeers() {
		reached = reached || p.id != n.id && p.live() != nil
	}
	n.mu.Lock()
	for id := range n.dir.seeded { // the first ones to know
		if len(want) < ringNeighbours {
			want[id] = true
		}
	}
	n.dir.neighbours = want
	seed := len(n.o.Seeds) > 0 && !n.dir.seeding && (!reached && !now.Before(n.dir.seedAt) || now.Sub(n.dir.seedAt) > seedAgain)
	if seed {
		n.dir.seeding = true
	}
	n.mu.Unlock()
	if seed {
		n.run(n.seed)
	}
	for id := range want {
		p, err := n.peer(id)
		if err != nil {
			continue
		}
		r := p.live()
		if r == nil {
			n.run(func() {
				if _, err := p.route(n.ctx); err != nil {
					n.log.Debug("neighbour", "error", err)
				}
			})
		}
	}
	n.attach()
}

// ring sorts nodes in the order of their IDs, from this node's on.
func (n *Node) ring(ids []identity.NodeID) {
	slices.SortFunc(ids, func(a, b identity.NodeID) int {
		if na, nb := n.before(a), n.before(b); na != nb {
			if na {
				return -1
			}
			return 1
		}
		return slices.Compare(a[:], b[:])
	})
}

// wanted reports whether a session with a node is kept although nothing goes
// over it.
func (n *Node) wanted(id identity.NodeID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dir.neighbours[id]
}

// attach publishes through which nodes this one can be reached: those that it
// has a direct session with and that pass links on.
func (n *Node) attach() {
	var via []identity.NodeID
	for _, p := range n.allPeers() {
		if r := p.live(); r != nil && p.id != n.id && r.best().direct() && r.relays() && !r.isDown(time.Now()) {
			via = append(via, p.id)
		}
	}
	n.ring(via)
	via = via[:min(len(via), maxAttached)]
	n.mu.Lock()
	same := slices.Equal(via, n.dir.attached)
	n.dir.attached = via
	n.mu.Unlock()
	if !same {
		if err := n.publish(); err != nil {
			n.log.Error("own record", "error", err)
		}
	}
}

// relays reports whether the peer passes links on.
func (r *route) relays() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.isHello && r.hello.Relay && !r.draining
}

// seed looks for the first node to know.
func (n *Node) seed() {
	found := false
	for _, s := range n.o.Seeds {
		k, err := addrOf(s)
		if err == nil {
			err = n.dialSeed(k)
		}
		if err == nil {
			found = true
			break
		}
		n.log.Warn("seed", "addr", s, "error", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dir.seeding = false
	n.dir.seedAt = time.Now().Add(n.dir.seedRest)
	n.dir.seedRest = min(2*n.dir.seedRest, lastSeedRest)
	if found {
		n.dir.seedRest = firstSeedRest
	}
}

// dialSeed makes a session with whoever is at an address.
func (n *Node) dialSeed(k wayKey) error {
	ctx, cancel := context.WithTimeout(n.ctx, dialTime)
	defer cancel()
	var c carrier.Link
	err := fmt.Errorf("fabric: no carrier %q here", k.carrier)
	for _, x := range n.o.Dial {
		if x.Name() == k.carrier {
			c, err = x.Dial(ctx, k.addr, identity.NodeID{})
		}
	}
	if err != nil {
		return err
	}
	id := c.Peer()
	if id == n.id { // its own address is among the seeds
		c.Close()
		return errors.New("fabric: it is this node")
	}
	n.mu.Lock()
	maps.DeleteFunc(n.dir.seeded, func(_ identity.NodeID, at wayKey) bool { return at == k }) // who was there before
	n.dir.seeded[id] = k
	n.mu.Unlock()
	p, err := n.peer(id)
	if err != nil {
		c.Close()
		return err
	}
	p.mu.Lock()
	if p.gone || p.dialing != nil || len(p.routes) > 0 {
		p.mu.Unlock()
		c.Close()
		return nil
	}
	d := &dialing{done: make(chan struct{}), direct: true}
	p.dialing = d
	p.mu.Unlock()
	p.certified(c)
	p.dial(d, &linkConn{Conn: c, way: k, began: time.Now()})
	return d.err
}

// waysTo returns the ways to a node, the best first.
func (n *Node) waysTo(id identity.NodeID) []wayKey {
	if id == n.id {
		return []wayKey{{carrier: selfCarrier}}
	}
	var ways, through []wayKey
	rec, ok := n.dir.d.Node(id)
	n.mu.Lock()
	if k, seeded := n.dir.seeded[id]; seeded && !ok {
		ways = append(ways, k)
	}
	n.mu.Unlock()
	for _, c := range n.o.Dial {
		for _, a := range rec.Addrs {
			if a.Carrier == c.Name() {
				ways = append(ways, wayKey{carrier: a.Carrier, addr: a.Addr})
			}
		}
	}
	add := func(via identity.NodeID) {
		k := wayKey{carrier: viaCarrier, via: via}
		if via != id && via != n.id && !slices.Contains(through, k) && len(through) < 2*maxAttached {
			through = append(through, k)
		}
	}
	for _, a := range rec.Addrs {
		if a.Carrier == viaCarrier {
			if via, err := identity.ParseNodeID(a.Addr); err == nil {
				add(via)
			}
		}
	}
	if !ok {
		return ways
	}
	for _, s := range n.dir.d.Summary(rec.Area) { // perhaps they know a way
		add(s.Node)
	}
	for _, s := range n.dir.d.Summary(n.o.Area) {
		add(s.Node)
	}
	return append(ways, through...)
}

// hopsTo returns the nodes to which a link to a node is passed on: itself, or
// those that it is attached to.
func (n *Node) hopsTo(id identity.NodeID) []identity.NodeID {
	hops := []identity.NodeID{id}
	for _, k := range n.waysTo(id) {
		if k.carrier == viaCarrier {
			hops = append(hops, k.via)
		}
	}
	return hops
}

// nameOf returns what people call a node.
func (n *Node) nameOf(id identity.NodeID) string {
	if rec, ok := n.dir.d.Node(id); ok && rec.Name != "" {
		return rec.Name
	}
	return id.String()
}

// providers returns the nodes that may be a tunnel's other end, the best first.
func (n *Node) providers(ctx context.Context, t *Tunnel, except *identity.NodeID) ([]identity.NodeID, error) {
	ids, err := n.find(ctx, serviceKey{t.ask.pool, t.ask.kind, t.ask.role})
	if err != nil {
		return nil, err
	}
	taken := n.ends(t.ask.apart)
	now := time.Now()
	scores := map[identity.NodeID]score{}
	for _, id := range ids {
		if taken[id] || except != nil && id == *except {
			continue
		}
		h := fnv.New64a()
		h.Write(t.id[:])
		h.Write(id[:])
		var s score
		p := n.known(id)
		var r *route
		if p != nil {
			r = p.live()
		}
		switch {
		case r != nil:
			s = r.scoreOf(now)
			r.mu.Lock()
			s.down = s.down || r.draining
			r.mu.Unlock()
		default:
			s = n.guess(id, now)
		}
		s.tie = h.Sum64()
		scores[id] = s
	}
	if len(scores) == 0 {
		return nil, fmt.Errorf("%w: kind %s in pool %s, apart from nodes that are not to be used", ErrNoProvider, t.ask.kind, t.ask.pool)
	}
	best := make([]identity.NodeID, 0, len(scores))
	for id := range scores {
		best = append(best, id)
	}
	slices.SortFunc(best, func(a, b identity.NodeID) int {
		if scores[a].less(scores[b]) {
			return -1
		}
		return 1
	})
	return best[:min(len(best), maxProviders)], nil
}

// maxProviders is how many nodes are asked for one tunnel.
const maxProviders = 8

// guess is the score of a node that there is no session with. Where all ways have
// failed when they were last tried, others come first.
func (n *Node) guess(id identity.NodeID, now time.Time) (s score) {
	rec, ok := n.dir.d.Node(id)
	s.far = !ok || rec.Area != n.o.Area
	s.relayed = true
	s.down = true
	p := n.known(id)
	for _, k := range n.waysTo(id) {
		s.relayed = s.relayed && !k.direct()
		resting := false
		if p != nil {
			p.mu.Lock()
			w := p.ways[k]
			resting = w != nil && (w.fails > 0 || w.until.After(now))
			p.mu.Unlock()
		}
		s.down = s.down && resting
	}
	return s
}

// Nodes returns what the directory knows.
func (n *Node) Nodes() []NodeState {
	states := []NodeState{}
	for _, rec := range n.dir.d.All() {
		s := NodeState{Node: rec.Node, Name: rec.Name, Area: rec.Area, Organization: rec.Organization, Addrs: []string{}, Relay: rec.Relay, Services: []ServiceState{},
			Self: rec.Node == n.id, Expires: rec.Expires}
		for _, a := range rec.Addrs {
			s.Addrs = append(s.Addrs, urlOf(a))
		}
		for _, sv := range rec.Services {
			s.Services = append(s.Services, ServiceState{sv.Pool, sv.Kind, sv.Role})
		}
		if p := n.known(rec.Node); p != nil {
			s.Session = p.live() != nil
		}
		states = append(states, s)
	}
	slices.SortFunc(states, func(a, b NodeState) int {
		return cmp.Or(cmp.Compare(a.Area, b.Area), cmp.Compare(a.Name, b.Name), slices.Compare(a.Node[:], b.Node[:]))
	})
	return states
}
