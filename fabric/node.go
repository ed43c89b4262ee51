package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/fabric/admit"
	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/directory"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/internal/clock"
)

// Options are for a node. Identity is needed, everything else may be left out.
type Options struct {
	Identity  *identity.Node
	Authority *identity.Authority // nil: it is elsewhere
	// Join serves connections of nodes that join which others have passed on to this
	// one, the authority's. nil: there are none.
	Join func(net.Conn)

	Name         string // for people
	Area         string // whose nodes know all of each other
	Organization string // that tunnels count for at this node that it opens itself, unless they say; "": its certificate's

	Listen []Listen
	Dial   []carrier.Carrier // the ways out, the best first
	Seeds  []string          // where other nodes are: "tls://host:port", "quic://host:port", "https://…"
	Relay  bool              // pass links of others on
	Links  int               // of a session; 0: 3

	Limits admit.Config // what is 0 for the node and for each route has a default

	Log *slog.Logger // nil: nothing is logged

	version uint8 // of the protocol, at most, for tests of upgrades; 0: the newest
}

// Listen is where a node takes in links.
type Listen struct {
	Carrier   carrier.Carrier
	Addr      string
	Advertise string // what others dial; "": the listener's own address
}

// Errors that callers tell apart; see RefusedError too.
var (
	// ErrClosed is of a node, provider or tunnel that was closed.
	ErrClosed = errors.New("fabric: closed")
	// ErrNoProvider is Tunnel's answer where no node that is known provides
	// the service.
	ErrNoProvider = errors.New("fabric: no node provides that service")
	// ErrUnreachable is of a node that could not be dialed.
	ErrUnreachable = errors.New("fabric: a node can't be reached")
	// ErrNoAuthority is of what only the authority's node can do.
	ErrNoAuthority = errors.New("fabric: the authority is at another node; do that there")
)

var (
	_ Opener   = (*Tunnel)(nil)
	_ Accepter = (*Tunnel)(nil)
)

// Node is this node of the fabric. It may be used from many goroutines.
//
// Locks are taken in this order, and none is held over I/O: Tunnel.mu, Node.mu,
// peer.mu, route.mu.
type Node struct {
	o        Options
	id       identity.NodeID
	log      *slog.Logger
	epoch    uint64 // of this life
	started  time.Time
	signer   *identity.Signer
	verifier *identity.Verifier
	admit    *admit.Controller
	windows  *session.Budget

	ctx    context.Context // until Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// starting is held while a goroutine is started, and is the last lock in
	// the order.
	starting sync.Mutex
	poked    chan struct{} // holds one token when run should look at once

	draining  atomic.Bool
	passed    atomic.Int64 // links that pass through now
	failovers atomic.Int64
	refused   atomic.Int64

	rejectedAt, rejectedSaid atomic.Int64 // see rejected

	auth authorities

	mu        sync.Mutex
	closed    bool
	peers     map[identity.NodeID]*peer
	tunnels   map[tunnelKey]*Tunnel
	services  map[serviceKey]*Provider
	fresh     map[carrier.Link]struct{} // links that have not said hello
	listeners []carrier.Listener
	addrs     []directory.Addr
	past      session.Stats // of sessions that have ended
	dir       gossip
}

// Start starts a node.
func Start(o Options) (*Node, error) {
	if o.Identity == nil {
		return nil, errors.New("fabric: a node needs an identity")
	}
	for _, name := range []string{o.Name, o.Area, o.Organization} {
		if len(name) > maxName {
			return nil, fmt.Errorf("fabric: a name of %d bytes; the limit is %d", len(name), maxName)
		}
	}
	if o.Links <= 0 {
		o.Links = 3
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	certified := o.Identity.Organization()
	if o.Organization == "" {
		o.Organization = certified
	}
	o.Limits = filled(o.Limits)
	now := time.Now()
	n := &Node{o: o, id: o.Identity.ID(), epoch: uint64(now.UnixNano()), started: now, signer: o.Identity.Signer(), verifier: o.Identity.Verifier(),
		admit: admit.New(o.Limits, clock.System()), windows: session.NewBudget(o.Limits.Each[admit.NodeScope].Window), poked: make(chan struct{}, 1), peers: map[identity.NodeID]*peer{},
		tunnels: map[tunnelKey]*Tunnel{}, services: map[serviceKey]*Provider{}, fresh: map[carrier.Link]struct{}{},
		auth: authorities{looking: make(gate, 1), verdicts: map[identity.NodeID]verdict{}}}
	n.log = o.Log.With("node", n.id.String())
	if o.Organization != certified {
		n.log.Warn("tunnels of this node count for the organization of its certificate at all others, and only here for the one that the settings name",
			"certificate", certified, "settings", o.Organization)
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if o.Authority != nil {
		o.Authority.Vouch(o.Identity)
	}
	if err := n.begin(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Node) begin() error {
	for _, l := range n.o.Listen {
		ln, err := l.Carrier.Listen(n.ctx, l.Addr)
		if err != nil {
			return fmt.Errorf("fabric: listen at %s://%s: %w", l.Carrier.Name(), l.Addr, err)
		}
		n.listeners = append(n.listeners, ln)
		n.addrs = append(n.addrs, directory.Addr{Carrier: l.Carrier.Name(), Addr: cmp.Or(l.Advertise, ln.Addr())})
	}
	if err := n.openDirectory(); err != nil {
		return err
	}
	for i, ln := range n.listeners {
		n.run(func() { n.listen(ln, n.o.Listen[i].Carrier.Name()) })
	}
	n.run(n.tick)
	n.run(n.renewCertificate)
	return nil
}

// run starts a goroutine that Close waits for. It returns false where the node
// is being closed.
func (n *Node) run(fn func()) bool {
	n.starting.Lock()
	defer n.starting.Unlock()
	if n.ctx.Err() != nil {
		return false
	}
	n.wg.Go(fn)
	return true
}

// Close ends the node, its tunnels and its sessions.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	peers, fresh := slices.Collect(maps.Values(n.peers)), slices.Collect(maps.Keys(n.fresh))
	n.mu.Unlock()
	for _, c := range fresh {
		c.Close() // which may take a while
	}
	n.starting.Lock()
	n.cancel()
	n.starting.Unlock()
	var errs []error
	for _, l := range n.listeners {
		errs = append(errs, l.Close())
	}
	for _, t := range n.allTunnels() {
		t.end(errNodeEnds, false) // its streams end with their sessions, so none looks whole that is not
	}
	for _, p := range peers {
		p.drop()
	}
	n.wg.Wait()
	return errors.Join(errs...)
}

// ID returns the node's name.
func (n *Node) ID() identity.NodeID { return n.id }

// Addrs returns where the node can be reached, as Options.Seeds has it.
func (n *Node) Addrs() []string {
	addrs := []string{}
	for _, a := range n.addrs {
		addrs = append(addrs, urlOf(a))
	}
	return addrs
}

// Drain has the tunnels that others hold to this node move to other nodes,
// where their profile allows it, and takes in no more. It returns when they
// have and their streams here have ended, or with ctx; Close comes next.
func (n *Node) Drain(ctx context.Context) error {
	n.draining.Store(true)
	n.log.Info("draining")
	if err := n.publish(); err != nil {
		return err
	}
	for _, p := range n.allPeers() {
		for _, r := range p.all() {
			r.tell(cmdDrain, struct{}{})
		}
	}
	var leaving []*Tunnel
	for _, t := range n.allTunnels() {
		if !t.opener && mayFailOver(t) {
			leaving = append(leaving, t)
		}
	}
	t := time.NewTicker(drainLook)
	defer t.Stop()
	for {
		for len(leaving) > 0 && leaving[0].left() {
			leaving = leaving[1:]
		}
		if len(leaving) == 0 {
			return nil
		}
		select {
		case <-t.C:
		case <-n.ctx.Done():
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("fabric: %d tunnels have not left: %w", len(leaving), context.Cause(ctx))
		}
	}
}

// left reports whether the tunnel and its streams have ended.
func (t *Tunnel) left() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err != nil && len(t.streams) == 0
}

// peerDrains takes note that a node is about to go: what passes through it, and
// tunnels to it that may be elsewhere, move while it is still there.
func (n *Node) peerDrains(r *route) {
	r.mu.Lock()
	again := r.draining
	r.draining = true
	r.mu.Unlock()
	if again {
		return
	}
	n.log.Info("peer drains", "peer", r.p.id.String())
	r.each(mayFailOver, seekAway)
	for _, p := range n.allPeers() {
		p.avoid(wayKey{carrier: viaCarrier, via: r.p.id}, drainPause)
		for _, other := range p.all() {
			other.climbSoon()
		}
	}
}

// leave has a tunnel look for another route, if r is its route.
func (t *Tunnel) leave(r *route, how seekHow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.r == r && t.err == nil {
		t.seek(how)
	}
}

// poke has tick look at once.
func (n *Node) poke() {
	select {
	case n.poked <- struct{}{}:
	default:
	}
}

// tick looks at everything, about once a second.
func (n *Node) tick() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-n.poked:
		case <-n.ctx.Done():
			return
		}
		now := time.Now()
		for _, p := range n.allPeers() {
			for _, r := range p.all() {
				r.look(now)
			}
			n.forget(p, now)
		}
		n.lookAtDirectory(now)
		timer.Reset(tickTime)
	}
}

// forget drops a peer that there has been nothing with for long.
func (n *Node) forget(p *peer, now time.Time) {
	n.mu.Lock()
	p.mu.Lock()
	idle := len(p.routes) == 0 && p.dialing == nil && now.Sub(p.used) > peerIdle
	if idle {
		p.gone = true
		delete(n.peers, p.id)
	}
	p.mu.Unlock()
	n.mu.Unlock()
	if idle {
		p.drop()
	}
}

// look does what is due for a session.
func (r *route) look(now time.Time) {
	r.sample(now)
	r.mu.Lock()
	expired := now.After(r.expires)
	mute := !r.isHello && now.Sub(r.began) > helloTime
	renew := r.dialed && r.isHello && !now.Before(r.renewAt)
	climb := r.dialed && r.isHello && !r.climbing && !now.Before(r.climbAt)
	r.climbing = r.climbing || climb
	idle := r.dialed && now.Sub(r.used) > sessionIdle
	r.mu.Unlock()
	switch {
	case expired || mute:
		r.n.log.Warn("session given up", "peer", r.p.id.String(), "lease expired", expired, "no hello", mute)
		r.s.Close()
		return
	case idle && (!r.n.wanted(r.p.id) || r.p.live() != r): // the other one of two is enough
		r.n.log.Debug("idle session closed", "peer", r.p.id.String())
		r.s.Close()
		return
	}
	if renew {
		r.renew()
	}
	if climb && !r.n.run(func() { r.climb(r.n.ctx) }) {
		return
	}
	if r.dialed && r.aloneFor(lonely, now) {
		r.p.redial() // the session does so itself, but with longer and longer rests
	}
	if r.isDown(now) {
		r.down(now)
	}
	if r.aloneFor(unheardTime, now) {
		r.strand()
	}
	r.shorten(now)
}

// shorten looks for a direct session where this one is passed on, was dialed by
// the peer, and this node could dial directly; and has the tunnels go over it
// once it is there.
func (r *route) shorten(now time.Time) {
	if r.isDirect() || !r.isReady() {
		return
	}
	if o := r.p.other(r); o != nil {
		r.each(func(t *Tunnel) bool { return true }, seekBetter)
		return
	}
	if r.dialed {
		return // it climbs
	}
	for _, w := range r.p.candidates(r) {
		if w.direct() && !w.until.After(now) {
			r.n.run(func() {
				if _, err := r.p.directly(r.n.ctx); err != nil {
					r.n.log.Debug("no direct session", "peer", r.p.id.String(), "error", err)
				}
			})
			return
		}
	}
}

// each has tunnels that were opened at this end look for another route.
func (r *route) each(which func(*Tunnel) bool, how seekHow) {
	r.mu.Lock()
	var tunnels []*Tunnel
	for _, t := range r.tunnels {
		if t.opener && which(t) {
			tunnels = append(tunnels, t)
		}
	}
	r.mu.Unlock()
	for _, t := range tunnels {
		t.leave(r, how)
	}
}

// strand ends the streams of tunnels that were opened here over a session without
// links, and that the peer has not heard of.
func (r *route) strand() {
	r.mu.Lock()
	tunnels := make([]*Tunnel, 0, len(r.tunnels))
	for _, t := range r.tunnels {
		tunnels = append(tunnels, t)
	}
	r.mu.Unlock()
	for _, t := range tunnels {
		t.strand(r, unheard)
	}
}

func mayFailOver(t *Tunnel) bool { return t.ask.profile.Failover }

// climbSoon has the next look try for better ways.
func (r *route) climbSoon() {
	r.mu.Lock()
	r.climbAt, r.climbRest = time.Time{}, 0
	r.mu.Unlock()
	r.n.poke()
}

// down has tunnels leave a session without links: those that may be elsewhere for
// another node, the others for another session, which this node can make if the
// peer had made this one. Its streams may live on, if it comes back in time. It
// is for those who notice, and does something now and then.
func (r *route) down(now time.Time) {
	r.mu.Lock()
	early := now.Before(r.leaveAt)
	if !early {
		r.leaveRest = min(max(2*r.leaveRest, firstLeaveRest), lastLeaveRest)
		r.leaveAt = now.Add(r.leaveRest)
	}
	r.mu.Unlock()
	if early {
		return
	}
	r.each(func(t *Tunnel) bool { return mayFailOver(t) || !r.dialed }, seekAway)
}
