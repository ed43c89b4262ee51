package fabric

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// Tunnel is an end of a tunnel; both ends are alike. It may be used from many
// goroutines.
type Tunnel struct {
	n      *Node
	id     TunnelID
	opener bool   // this end has asked for it
	ask    ask    // what was asked for
	org    string // that it counts for
	done   chan struct{}
	opened time.Time

	grant   *grant
	packets atomic.Pointer[func([][]byte)]
	dropped atomic.Int64
	ever    atomic.Int64

	mu        sync.Mutex
	err       error // why it has ended
	contract  Contract
	r         *route // nil: there is none now
	peer      identity.NodeID
	trying    identity.NodeID // that is being asked to be the other end
	shut      farewell        // how it has closed the tunnel meanwhile
	leaving   *farewell       // how the other end has closed the tunnel; nil: it has not
	tries     uint64          // that were begun to find another route
	failed    failure         // of the last one that has found none
	tried     chan struct{}   // closed and made anew when one has ended
	carried   []*carried      // by the sessions that have not ended, or not long ago
	changed   chan struct{}   // closed and made anew when the contract or the route changes
	seeking   bool            // somebody looks for another route
	hold      *time.Timer     // ends the provider's end when the opener stays away
	held      *bool           // tells one hold from the next; nil: there is none
	gen       uint64          // at the opener's end: of the newest request, or change
	agreed    uint64          // the generation of the request that the ends agree on
	accept    []*stream       // that nobody has accepted
	refusing  bool            // nobody will: the tunnel was closed here
	acceptor  chan struct{}   // holds one token when there may be some
	streams   map[*stream]struct{}
	sent, got int64 // by streams that have ended
}

// failure is of a try to find a route.
type failure struct {
	try uint64
	at  time.Time
	err error
}

// farewell is the other end's last word on a tunnel.
type farewell struct {
	r       *route      // over which it came
	gen     uint64      // that it knew of
	streams uint64      // that it had opened over that session
	timer   *time.Timer // ends the wait for those; nil: nothing waits
}

// carried counts a tunnel's streams over one session.
type carried struct {
	r            *route
	opened, came uint64 // here; from the other end, below zero while some of before are under way
}

// over returns the count of the streams over a session. t.mu is held.
func (t *Tunnel) over(r *route) *carried {
	for _, c := range t.carried {
		if c.r == r {
			return c
		}
	}
	t.carried = slices.DeleteFunc(t.carried, func(c *carried) bool { return c.r.s.Err() != nil })
	c := &carried{r: r}
	t.carried = append(t.carried, c)
	return c
}

// anew counts from nothing: the other end has ended, or is told to, and another
// one may begin. t.mu is held.
func (t *Tunnel) anew(r *route) {
	t.carried = slices.DeleteFunc(t.carried, func(c *carried) bool { return c.r == r })
}

// ask is what a service has asked for, whole.
type ask struct {
	profile          Profile
	pool, kind, role string
	local            string
	org              string
	apart            []TunnelID
}

// Errors of tunnels.
var (
	errPeerClosed = fmt.Errorf("%w: the peer has closed the tunnel", ErrClosed)
	errNodeEnds   = fmt.Errorf("%w: the node ends", ErrClosed)
	errAbandoned  = errors.New("fabric: the node that had opened the tunnel has not come back")

	// errAlone is of a request over a session that has lost its links.
	errAlone = errors.New("fabric: the node is not reached just now")

	errTunnelExists = errors.New("fabric: the tunnel is there already")
)

// ID returns the tunnel's name, the same at both ends and for life.
func (t *Tunnel) ID() TunnelID { return t.id }

// Contract returns the contract as it is now.
func (t *Tunnel) Contract() Contract {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.contract
	c.TrafficClasses = slices.Clone(c.TrafficClasses)
	return c
}

// Peer returns the node at the other end, now.
func (t *Tunnel) Peer() identity.NodeID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peer
}

// Changed returns a channel that is closed when the contract's lease or
// generation, or the peer, is no longer what it was.
func (t *Tunnel) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// Done is closed when the tunnel has ended.
func (t *Tunnel) Done() <-chan struct{} { return t.done }

// Err returns why the tunnel has ended, or nil.
func (t *Tunnel) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// change tells those who wait. t.mu is held.
func (t *Tunnel) change() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// newTunnel returns an end of a tunnel, which is in nobody's hands yet.
func (n *Node) newTunnel(id TunnelID, opener bool, a ask) *Tunnel {
	t := &Tunnel{n: n, id: id, opener: opener, ask: a, org: a.org, done: make(chan struct{}), opened: time.Now(),
		changed: make(chan struct{}), tried: make(chan struct{}), acceptor: make(chan struct{}, 1)}
	t.contract = Contract{TunnelID: id, PoolID: a.pool, ServiceID: a.kind + "/" + id.String()[:8], LocalServiceID: a.local,
		RemoteServiceID: a.kind, ServiceKind: a.kind, ServiceClass: a.profile.Class, ServiceRole: a.role,
		DataPlane: a.profile.Plane, TrafficClasses: a.profile.Classes, StreamShards: a.profile.Shards}
	return t
}

// Tunnel asks for a tunnel. It returns when a node of the pool has accepted.
// The error is a *RefusedError when all that could be reached have refused.
func (n *Node) Tunnel(ctx context.Context, r Request) (*Tunnel, error) {
	a := ask{profile: r.Profile, pool: r.Pool, kind: r.Kind, role: r.Role, local: r.LocalServiceID, org: r.Organization, apart: r.Apart}
	a.fill(n)
	if err := a.check(); err != nil {
		return nil, err
	}
	var id TunnelID
	rand.Read(id[:]) // never fails (crypto/rand.Read)
	id = sided(id, true)
	t := n.newTunnel(id, true, a)
	grant, refused := n.admitTunnel(t, nil)
	if refused != nil {
		return nil, refused
	}
	t.grant = grant
	if err := n.addTunnel(t); err != nil {
		grant.release()
		return nil, err
	}
	if err := t.establish(ctx, nil); err != nil {
		t.end(err, false)
		return nil, err
	}
	n.log.Info("tunnel open", "tunnel", id.String(), "pool", a.pool, "kind", a.kind, "peer", t.Peer().String())
	return t, nil
}

func (a *ask) fill(n *Node) {
	if a.pool == "" {
		a.pool = a.profile.Pool
	}
	if a.kind == "" {
		a.kind = a.profile.Kind
	}
	if a.role == "" {
		a.role = a.profile.Role
	}
	if a.local == "" {
		a.local = a.kind
	}
	if a.org == "" {
		a.org = n.o.Organization
	}
	a.profile.Shards = max(a.profile.Shards, 1)
}

func (a *ask) check() error {
	if a.pool == "" || a.kind == "" {
		return errors.New("fabric: a tunnel is to a pool and a kind of service; one is missing")
	}
	o := openBody{Pool: a.pool, Kind: a.kind, Role: a.role, Class: a.profile.Class, Plane: a.profile.Plane,
		Classes: a.profile.Classes, Shards: a.profile.Shards, Service: a.local}
	if len(a.org) > maxName {
		return fmt.Errorf("fabric: a name of %d bytes; the limit is %d", len(a.org), maxName)
	}
	return o.check()
}

// addTunnel makes a tunnel known to the node.
func (n *Node) addTunnel(t *Tunnel) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	k := tunnelKey{t.id, t.opener}
	if n.tunnels[k] != nil {
		return errTunnelExists
	}
	n.tunnels[k] = t
	return nil
}

func (n *Node) tunnel(k tunnelKey) *Tunnel {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.tunnels[k]
}

// allTunnels returns the ends of tunnels of this moment.
func (n *Node) allTunnels() []*Tunnel {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]*Tunnel, 0, len(n.tunnels))
	for _, t := range n.tunnels {
		all = append(all, t)
	}
	return all
}

// establish finds a provider and agrees with it. except is a node that shall
// not be it, if there is another. Each node gets a start over the next, so that
// one that can't be reached costs no more than that; one at a time is asked.
func (t *Tunnel) establish(ctx context.Context, except *identity.NodeID) error {
	nodes, err := t.n.providers(ctx, t, except)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type reached struct {
		p     *peer
		r     *route
		err   error
		again bool
	}
	results := make(chan reached, len(nodes))
	reach := func(id identity.NodeID, again bool) {
		p, err := t.n.peer(id)
		if err != nil {
			results <- reached{err: err}
			return
		}
		if r := p.live(); r != nil {
			results <- reached{p, r, nil, again}
			return
		}
		if !t.n.run(func() {
			r, err := p.route(ctx)
			results <- reached{p, r, err, again}
		}) {
			results <- reached{err: ErrClosed}
		}
	}
	var errs []error
	var refused *RefusedError
	next := time.NewTimer(0)
	defer next.Stop()
	for waiting := 0; (waiting > 0 || len(nodes) > 0) && ctx.Err() == nil; {
		select {
		case <-next.C:
			if len(nodes) > 0 {
				reach(nodes[0], false)
				nodes = nodes[1:]
				waiting++
				next.Reset(nodeStart)
			}
		case got := <-results:
			waiting--
			err := got.err
			if err == nil {
				err = t.agree(ctx, got.r)
			}
			if err == nil {
				return nil
			}
			if cutOff(err) && !got.again && got.r != nil { // the next one has its turn meanwhile
				reach(got.p.id, true)
				waiting++
			}
			errs = append(errs, err)
			var no *RefusedError
			if errors.As(err, &no) && (refused == nil || no.Retry < refused.Retry) {
				refused = no
			}
			next.Reset(0)
		case <-ctx.Done():
		}
	}
	if refused != nil {
		return refused
	}
	if ctx.Err() != nil {
		errs = append(errs, context.Cause(ctx))
	}
	return errors.Join(errs...)
}

// agreeWith asks one node to be the tunnel's other end.
func (t *Tunnel) agreeWith(ctx context.Context, id identity.NodeID) error {
	p, err := t.n.peer(id)
	if err != nil {
		return err
	}
	r, err := p.route(ctx)
	if err != nil {
		return err
	}
	err = t.agree(ctx, r)
	if cutOff(err) && ctx.Err() == nil {
		if r, err = p.route(ctx); err == nil {
			err = t.agree(ctx, r)
		}
	}
	return err
}

// cutOff reports whether an error is of the session that a node was asked over,
// which has ended or lost its links, such as one that was just being closed
// because it was idle: over another one it may go.
func cutOff(err error) bool {
	return errors.Is(err, errAlone) || errors.Is(err, session.ErrClosed) || errors.Is(err, session.ErrLost)
}

// agree asks a node to be the tunnel's other end, over a session with it.
func (t *Tunnel) agree(ctx context.Context, r *route) error {
	if err := r.p.handshakes.take(ctx); err != nil {
		return err
	}
	defer r.p.handshakes.give()
	id := r.p.id
	t.mu.Lock()
	if t.r == r {
		t.mu.Unlock()
		return nil // it is its route already
	}
	t.trying, t.shut = id, farewell{}
	t.gen++
	gen := t.gen
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		t.trying = identity.NodeID{}
		t.mu.Unlock()
	}()
	a := t.ask
	v, err := r.call(ctx, cmdOpen, func(id uint64) any {
		return openBody{ID: id, Tunnel: t.id, Pool: a.pool, Kind: a.kind, Role: a.role, Class: a.profile.Class, Plane: a.profile.Plane,
			Classes: a.profile.Classes, Shards: a.profile.Shards, Failover: a.profile.Failover, Service: a.local, Generation: gen}
	})
	if err != nil {
		t.mu.Lock()
		elsewhere := t.r == nil || t.peer != id
		t.mu.Unlock()
		if elsewhere { // it may have accepted
			r.noteClosed(t)
		}
		return err
	}
	o, ok := v.(openedBody)
	switch {
	case !ok:
		return fmt.Errorf("%w: the answer is to something else", frame.ErrProtocol)
	case o.Limit != "":
		t.n.refused.Add(1)
		return &RefusedError{Limit: o.Limit, Retry: o.Retry}
	case o.Absent:
		return fmt.Errorf("%w: node %s: %s", ErrNoProvider, t.n.nameOf(id), o.Error)
	case o.Error != "":
		return fmt.Errorf("fabric: node %s: %s", t.n.nameOf(id), o.Error)
	}
	if !t.use(r, gen, o.Service) {
		return session.ErrLost
	}
	return nil
}

// use makes r the tunnel's route.
func (t *Tunnel) use(r *route, gen uint64, remote string) bool {
	t.mu.Lock()
	if t.err != nil || t.opener && t.leaving != nil {
		t.mu.Unlock()
		r.noteClosed(t)
		return false
	}
	if gen < t.agreed || t.leaving != nil && gen <= t.leaving.gen { // a request that was long under way, and given up
		t.mu.Unlock()
		return false
	}
	if !r.attach(t) { // r.mu is taken within t.mu, never the other way round
		t.mu.Unlock()
		return false
	}
	old := t.r
	t.agreed = gen
	if t.leaving != nil { // the opener is back, after it had left for another node
		t.leaving.timer.Stop()
		t.over(t.leaving.r).came -= t.leaving.streams // those of before, which may still come, do not count for its next word
		t.leaving = nil
	}
	if t.opener && t.shut.r != nil && gen <= t.shut.gen { // its word came before the one who asked had taken its answer
		t.takeLeave(t.shut)
	}
	behind := t.opener && gen <= t.contract.RouteGeneration // the old route has changed meanwhile
	if behind {
		gen = t.nextGen()
	}
	gen = max(gen, t.contract.RouteGeneration)
	if t.hold != nil {
		t.hold.Stop()
		t.hold, t.held = nil, nil
	}
	t.r, t.peer = r, r.p.id
	t.contract.RouteLeaseID, t.contract.RouteGeneration = r.leaseID(), gen
	if remote != "" {
		t.contract.RemoteServiceID = remote
	}
	t.change()
	t.mu.Unlock()
	if behind {
		r.noteMoved(t, gen)
	}
	if old != nil && old != r {
		old.detach(t)
	}
	t.endLeft(nil)
	return true
}

// nextGen returns the next generation. t.mu is held.
func (t *Tunnel) nextGen() uint64 {
	t.gen = max(t.gen, t.contract.RouteGeneration) + 1
	return t.gen
}

// bump notes that the route has changed, and returns the new generation.
func (t *Tunnel) bump(r *route) (gen uint64, ok bool) {
	lease := r.leaseID()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.r != r || t.err != nil {
		return 0, false
	}
	t.contract.RouteGeneration = t.nextGen()
	t.contract.RouteLeaseID = lease
	t.change()
	return t.contract.RouteGeneration, true
}

// setGeneration takes in the generation that the opener tells.
func (t *Tunnel) setGeneration(r *route, gen uint64) {
	lease := r.leaseID()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.r == r && t.err == nil && gen > t.contract.RouteGeneration {
		t.contract.RouteGeneration, t.contract.RouteLeaseID = gen, lease
		t.change()
	}
}

// lost takes note that a route has ended. The opener's end looks for another
// one, the provider's waits for it.
func (t *Tunnel) lost(r *route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.r != r || t.err != nil {
		return
	}
	t.r = nil
	t.change()
	if t.leaving != nil { // nothing more comes
		t.leaving.timer.Reset(0)
		return
	}
	if t.opener {
		t.seek(seekAny)
		return
	}
	hold := new(bool)
	t.hold, t.held = time.AfterFunc(holdTime, func() { t.abandon(hold) }), hold
}

// abandon ends the provider's end, as long as it waits as it did when hold was
// made: the timer may run although use has stopped it.
func (t *Tunnel) abandon(hold *bool) {
	t.endIf(func() bool { return t.held == hold }, errAbandoned, false)
}

// disowned takes note that the peer does not know the tunnel that both had agreed
// on, such as because it has waited in vain for this node. The opener's end asks
// again, after a moment in which the peer may say that it has closed it.
func (t *Tunnel) disowned(r *route, agreed uint64) {
	t.mu.Lock()
	if !t.opener || t.r != r || t.agreed != agreed || t.err != nil || t.leaving != nil {
		t.mu.Unlock()
		return
	}
	t.r = nil
	t.anew(r)
	t.change()
	t.seek(seekAgain)
	t.mu.Unlock()
	r.detach(t)
}

// seekHow says what a tunnel looks for.
type seekHow int

const (
	seekAny    seekHow = iota // it has no route
	seekAgain                 // so has it, and the peer may be about to say why
	seekAway                  // another node than now, which drains or can't be reached
	seekBetter                // another session with the same node
)

// seek looks for a route in the background, unless somebody does. t.mu is held.
func (t *Tunnel) seek(how seekHow) {
	if t.seeking || t.leaving != nil {
		return
	}
	peer, old := t.peer, t.r
	t.seeking = t.n.run(func() { t.reopen(peer, old, how) }) // false: the node is being closed, and ends the tunnel
}

// reopen finds the tunnel another route: to the same node, or, where the
// profile allows it, to another one. Where it has none, it goes on until there
// is one or the tunnel has ended.
func (t *Tunnel) reopen(peer identity.NodeID, old *route, how seekHow) {
	ctx, cancel := context.WithCancel(t.n.ctx)
	defer cancel()
	go func() {
		select {
		case <-t.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	t.mu.Lock()
	soonest := t.failed.at.Add(firstReopenRest) // whoever asks, and how often
	t.mu.Unlock()
	if how == seekAgain {
		how, soonest = seekAny, time.Now().Add(firstReopenRest)
	}
	_ = waitUntil(ctx, soonest) // where the tunnel has ended, it goes no further
	log := t.n.log.With("tunnel", t.id.String(), "kind", t.ask.kind)
	for rest := firstReopenRest; ctx.Err() == nil; rest = min(2*rest, lastReopenRest) {
		news, met := t.n.Changed(), t.n.nextMeeting()
		t.mu.Lock()
		t.tries++
		try := t.tries
		t.mu.Unlock()
		err := t.tryReopen(ctx, peer, old, how)
		if err == nil {
			t.reopened(log, peer, old)
			break
		}
		log.Debug("tunnel has found no other route", "error", err)
		t.mu.Lock()
		t.failed = failure{try, time.Now(), err}
		t.wakeTried()
		t.mu.Unlock()
		if how != seekAny {
			break // it stays where it is, as long as that lasts
		}
		timer := time.NewTimer(rest + time.Duration(t.id[0])*rest/1024)
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-met: // perhaps it is one that was not reached
		case <-news: // perhaps of a node that is there again
			rest = min(rest, firstReopenRest)
			timer.Reset(rest)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		timer.Stop()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seeking = false
	t.wakeTried()
	if t.r == nil && t.err == nil && ctx.Err() == nil { // it was lost meanwhile
		t.seek(seekAny)
	}
}

// wakeTried has those look who wait for what comes of a try, or for the next one to
// begin. t.mu is held.
func (t *Tunnel) wakeTried() {
	close(t.tried)
	t.tried = make(chan struct{})
}

func (t *Tunnel) tryReopen(ctx context.Context, peer identity.NodeID, old *route, how seekHow) error {
	ctx, cancel := context.WithTimeout(ctx, reopenTime)
	defer cancel()
	switch {
	case how == seekBetter || !t.ask.profile.Failover:
		return t.agreeWith(ctx, peer)
	case how == seekAway:
		err := t.establish(ctx, &peer)
		if err != nil && old != nil && old.isDown(time.Now()) {
			err = t.agreeWith(ctx, peer) // there is no other node, but perhaps another session
		}
		return err
	}
	return t.establish(ctx, nil)
}

// reopened takes note that a tunnel that was with peer over old has another
// route.
func (t *Tunnel) reopened(log *slog.Logger, peer identity.NodeID, old *route) {
	t.mu.Lock()
	now, same := t.peer, t.r == old
	t.mu.Unlock()
	if same {
		return
	}
	if now == peer {
		log.Info("tunnel has another route", "peer", now.String())
		return
	}
	t.n.failovers.Add(1)
	log.Warn("tunnel goes on with another node", "from", peer.String(), "to", now.String())
	if old == nil || old.s.Err() != nil {
		return
	}
	old.noteClosed(t)
	if !old.isDown(time.Now()) && old.s.Stats().Links > 0 {
		return // the streams that are there end by themselves
	}
	t.strand(old, func(*stream) bool { return true })
}

// unheard reports whether the other end has not heard of a stream that was opened
// here: nothing is lost with it.
func unheard(s *stream) bool { return s.local && !s.st.Heard() }

// strand ends streams over a session whose peer can't be reached.
func (t *Tunnel) strand(r *route, which func(*stream) bool) {
	t.mu.Lock()
	var stranded []*stream
	for s := range t.streams {
		if s.r == r && which(s) {
			stranded = append(stranded, s)
		}
	}
	t.mu.Unlock()
	for _, s := range stranded {
		s.st.Reset(codeNoTunnel, "the node at the other end can't be reached")
	}
}

// Close ends the tunnel at both ends. What was written to streams still goes out,
// and the other end can accept those that it has not heard of yet.
func (t *Tunnel) Close() error {
	t.end(ErrClosed, true)
	return nil
}

// Leave is Close for a provider that ends because its node is about to: where the
// profile allows failover, the tunnel goes on with another node.
func (t *Tunnel) Leave() error {
	why := ErrClosed
	if !t.opener && mayFailOver(t) {
		why = errNodeEnds
	}
	t.end(why, true)
	return nil
}

// end ends the tunnel here, and at the peer if it is told. local: the streams
// end too.
func (t *Tunnel) end(why error, local bool) {
	t.endIf(func() bool { return true }, why, local)
}

// endIf is end if that is so, which is asked with t.mu held.
func (t *Tunnel) endIf(so func() bool, why error, local bool) {
	t.mu.Lock()
	if t.err != nil || !so() {
		var streams []*stream
		if t.err != nil && local && !t.refusing { // the peer was first; what it had opened before is not accepted any more
			streams, t.accept, t.refusing = t.accept, nil, true
		}
		t.mu.Unlock()
		for _, st := range streams {
			st.Close()
		}
		return
	}
	t.err, t.refusing = why, local
	never := t.contract.RouteGeneration == 0
	r := t.r
	t.r = nil
	if t.hold != nil {
		t.hold.Stop()
	}
	if t.leaving != nil {
		t.leaving.timer.Stop()
	}
	var streams []*stream
	if local {
		for st := range t.streams {
			streams = append(streams, st)
		}
		t.accept = nil
	}
	t.change()
	t.mu.Unlock()
	close(t.done)
	for _, st := range streams {
		st.Close()
	}
	t.n.mu.Lock()
	if k := (tunnelKey{t.id, t.opener}); t.n.tunnels[k] == t {
		delete(t.n.tunnels, k)
	}
	t.n.mu.Unlock()
	if r != nil {
		r.detach(t)
		// A node that goes does not end its tunnels at the other end: that looks
		// for another route, or waits for the node. Nor do the services that end
		// with it.
		ends := errors.Is(why, errNodeEnds) || !t.opener && t.n.ctx.Err() != nil
		if !errors.Is(why, errPeerClosed) && !ends {
			r.noteClosed(t)
		}
	}
	t.grant.release()
	level := slog.LevelInfo
	if never {
		level = slog.LevelDebug // who has asked for it is told
	}
	t.n.log.Log(context.Background(), level, "tunnel ended", "tunnel", t.id.String(), "kind", t.ask.kind, "why", why)
}

// closedByPeer ends a tunnel that its other end has closed, when it knew of
// changes up to a generation. Where the ends have agreed on something later, that
// was of a request that was given up, or of another session that was long without
// a link. Its streams end by themselves: what was written before is still to be
// read. Those that were opened before and have not come yet, since the word of the
// end is of a higher class, are waited for.
func (n *Node) closedByPeer(r *route, id TunnelID, gen, streams uint64) {
	t := n.tunnel(receiverOf(id))
	if t == nil {
		return
	}
	f := farewell{r: r, gen: gen, streams: streams}
	t.mu.Lock()
	switch {
	case t.err != nil || t.leaving != nil:
	case t.peer == r.p.id && t.agreed <= gen:
		t.takeLeave(f)
	case t.trying == r.p.id && gen >= t.shut.gen:
		t.shut = f
	}
	t.mu.Unlock()
	t.endLeft(nil)
}

// takeLeave takes note that the other end has closed the tunnel. t.mu is held, and
// endLeft is next.
func (t *Tunnel) takeLeave(f farewell) {
	t.leaving = &f
	f.timer = time.AfterFunc(closeTime, func() { t.endLeft(&f) })
	t.change()
}

// endLeft ends a tunnel that the other end has closed, if all streams that it had
// opened have come; late: or if it is this word, which has waited long enough.
func (t *Tunnel) endLeft(late *farewell) {
	t.endIf(func() bool {
		f := t.leaving
		return f != nil && (f == late || int64(t.over(f.r).came-f.streams) >= 0)
	}, errPeerClosed, false)
}

// came counts a stream that the other end has opened over a session.
func (t *Tunnel) came(r *route) {
	t.mu.Lock()
	t.over(r).came++
	if t.leaving != nil && t.leaving.r == r {
		t.leaving.timer.Reset(closeTime)
	}
	t.mu.Unlock()
	t.endLeft(nil)
}

// allows reports whether the tunnel's contract has a class.
func (t *Tunnel) allows(c frame.Class) bool { return slices.Contains(t.ask.profile.Classes, c) }

// Open implements Opener. While the tunnel has no route it waits for one; where the
// node at the other end, or all that might be there, can't be reached when that is
// tried now, it returns an ErrUnreachable.
func (t *Tunnel) Open(ctx context.Context, class frame.Class, header []byte) (Stream, error) {
	if len(header) > MaxHeader {
		return nil, fmt.Errorf("fabric: a stream header of %d bytes; the limit is %d", len(header), MaxHeader)
	}
	if !t.allows(class) {
		return nil, fmt.Errorf("fabric: class %s is not in the tunnel's contract", class)
	}
	h := tunnelHeader(t.id, t.opener, header)
	t.mu.Lock()
	before := t.tries
	t.mu.Unlock()
	for {
		t.mu.Lock()
		r, agreed, changed, err := t.r, t.agreed, t.changed, t.err
		var linked <-chan struct{}
		down := false
		if r != nil {
			linked = r.s.Changed()
			down = r.isDown(time.Now()) && len(r.s.Links()) == 0
		}
		tried, failed := t.tried, t.failed
		switch {
		case err != nil:
		case t.leaving != nil:
			err = errPeerClosed
		case failed.try > before && (down || r == nil && errors.Is(failed.err, ErrUnreachable) && !errors.Is(failed.err, errNoWay)):
			err = failed.err
		case down && t.opener:
			t.seek(seekAway)
		}
		t.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if r != nil && !(down && t.opener) {
			grant, refused := t.n.admitStream(t, r)
			if refused != nil {
				return nil, refused
			}
			st, err := r.s.Open(class, h)
			if err == nil {
				st.Count(grant.windows)
				return t.add(r, st, true, header, grant, agreed), nil
			}
			grant.release()
			grant.windows.Release()
			var busy *session.BusyError
			if errors.As(err, &busy) {
				t.n.refused.Add(1)
				return nil, &RefusedError{Limit: busy.Limit, Retry: busy.Retry}
			}
			// The session has ended; the tunnel will know in a moment.
		}
		select {
		case <-changed:
		case <-linked:
		case <-tried:
		case <-t.done:
		case <-ctx.Done():
		}
	}
}

// Accept implements Accepter.
func (t *Tunnel) Accept(ctx context.Context) (Stream, error) {
	for {
		t.mu.Lock()
		if len(t.accept) > 0 {
			st := t.accept[0]
			t.accept[0] = nil
			if t.accept = t.accept[1:]; len(t.accept) > 0 {
				t.offer()
			} else {
				t.accept = nil
			}
			t.mu.Unlock()
			return st, nil
		}
		err := t.err
		t.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-t.acceptor:
		case <-t.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// gaveUp reports whether the tunnel has ended and left nothing to accept.
func (t *Tunnel) gaveUp() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err != nil && len(t.accept) == 0
}

// offer wakes one who accepts. t.mu is held.
func (t *Tunnel) offer() {
	select {
	case t.acceptor <- struct{}{}:
	default:
	}
}

// incoming takes in a stream that the peer has opened in a tunnel.
func (n *Node) incoming(r *route, h streamHead, st *session.Stream) {
	t := n.tunnel(h.tunnel)
	if t == nil {
		st.Reset(codeNoTunnel, "there is no such tunnel here")
		return
	}
	defer t.came(r)
	if !t.allows(st.Class()) {
		st.Reset(codeGarbage, fmt.Sprintf("class %s is not in the tunnel's contract", st.Class()))
		return
	}
	grant, refused := n.admitStream(t, r)
	if refused != nil {
		st.Refuse(codeRefused, refused.Limit, refused.Retry)
		return
	}
	st.Count(grant.windows)
	t.mu.Lock()
	ok := t.err == nil && (t.peer == r.p.id || t.trying == r.p.id)
	full := len(t.accept) >= tunnelBacklog
	t.mu.Unlock()
	switch {
	case !ok:
		grant.release()
		st.Reset(codeNoTunnel, "there is no such tunnel here")
	case full:
		grant.release()
		n.refused.Add(1)
		st.Reset(codeRefused, "nobody accepts the tunnel's streams")
	default:
		s := t.add(r, st, false, h.rest, grant, 0)
		t.mu.Lock()
		refusing := t.refusing
		if !refusing {
			t.accept = append(t.accept, s)
			t.offer()
		}
		t.mu.Unlock()
		if refusing {
			s.Close()
		}
	}
}

// SendPackets sends packets. They are lost where the way is too slow for them,
// the oldest first, and while there is no route; that is no error.
func (t *Tunnel) SendPackets(packets [][]byte) error {
	t.mu.Lock()
	r, err := t.r, t.err
	t.mu.Unlock()
	if err != nil {
		return err
	}
	if r == nil {
		t.dropped.Add(int64(len(packets)))
		return nil
	}
	size := 0
	for _, p := range packets {
		size += len(p)
	}
	if no := t.grant.group.Take(int64(size)); no != nil {
		t.dropped.Add(int64(len(packets)))
		return nil
	}
	err = r.s.SendPackets(sided(t.id, t.opener), packets)
	if err != nil && r.s.Err() != nil {
		t.dropped.Add(int64(len(packets)))
		return nil
	}
	return err
}

// HandlePackets has fn called with the packets that come, from one goroutine at
// a time for each link; they are fn's own. Before it is called they are dropped.
func (t *Tunnel) HandlePackets(fn func(packets [][]byte)) { t.packets.Store(&fn) }

// packets takes in packets from a peer.
func (n *Node) packets(p *peer, id TunnelID, packets [][]byte) {
	t := n.tunnel(receiverOf(id))
	if t == nil {
		return
	}
	fn := t.packets.Load()
	if fn == nil || t.ask.profile.Plane != PacketsPlane || t.Peer() != p.id {
		t.dropped.Add(int64(len(packets)))
		return
	}
	(*fn)(packets)
}
