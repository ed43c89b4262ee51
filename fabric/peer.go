package fabric

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// peer is another node, or this one, as this node deals with it: the sessions
// with it and the ways to it. There is a peer as long as there is something to
// remember about it.
type peer struct {
	n    *Node
	id   identity.NodeID
	ep   *session.Endpoint // of this peer alone, so that packets tell from whom they are
	stop func()            // ends the watch for its revocation

	windows *session.Budget // its share of the node's

	handshakes gate           // of tunnels to it
	onward     gate           // links of its that are being passed on
	joins      *carrier.Crowd // nodes that join through it
	passes     atomic.Int64
	grumbled   atomic.Int64 // when something that it did was last logged, in ns
	unsaid     atomic.Int64 // what was not logged since

	mu      sync.Mutex
	org     string   // whose it is, see certified
	routes  []*route // that have not ended; usually one, two where both ends have dialed at once
	dialing *dialing
	ways    map[wayKey]*way
	brief   brief // sessions that were dialed here
	used    time.Time
	gone    bool // it was dropped, or the node is closed: no more sessions
}

// dialing is a session being made, that any number of callers wait for.
type dialing struct {
	done   chan struct{}
	direct bool
	err    error
}

// peer returns what there is about a node.
func (n *Node) peer(id identity.NodeID) (*peer, error) {
	var stale *peer
	defer func() {
		if stale != nil {
			stale.drop()
		}
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	if p := n.peers[id]; p != nil {
		p.mu.Lock()
		p.used = time.Now()
		p.mu.Unlock()
		return p, nil
	}
	if len(n.peers) >= maxPeers {
		stale = n.forgetOne()
	}
	if len(n.peers) >= maxPeers {
		return nil, &RefusedError{Limit: fmt.Sprintf("%d nodes that this one deals with", maxPeers), Retry: peerIdle}
	}
	p := &peer{n: n, id: id, ways: map[wayKey]*way{}, used: time.Now(), handshakes: make(gate, maxHandshakes), onward: make(gate, maxOnward), joins: carrier.NewCrowd(maxJoins)}
	p.windows = n.windows.Share(n.admit.Limit(peerKey(id)).Window)
	p.ep = session.NewEndpoint(session.Options{
		MaxStreams: maxSessionStreams,
		Budget:     p.windows,
		Backlog:    sessionBacklog,
		Version:    n.o.version,
		Packets:    func(tunnel [16]byte, packets [][]byte) { n.packets(p, tunnel, packets) },
	})
	n.peers[id] = p
	p.stop = n.o.Identity.Watch(id, func() { go p.revoked() }) // it takes locks
	return p, nil
}

// forgetOne makes room for another peer: it takes out the one that there has been
// nothing with for longest, if there is one without a session. n.mu is held.
func (n *Node) forgetOne() *peer {
	var oldest *peer
	var used time.Time
	for _, p := range n.peers {
		p.mu.Lock()
		if len(p.routes) == 0 && p.dialing == nil && (oldest == nil || p.used.Before(used)) {
			oldest, used = p, p.used
		}
		p.mu.Unlock()
	}
	if oldest == nil {
		return nil
	}
	oldest.mu.Lock()
	defer oldest.mu.Unlock()
	if len(oldest.routes) > 0 || oldest.dialing != nil {
		return nil // just now
	}
	oldest.gone = true
	delete(n.peers, oldest.id)
	return oldest
}

// grumble logs something that a peer can do again and again, such as being
// refused: once a second, and how often it was not.
func (p *peer) grumble(level slog.Level, msg string, args ...any) {
	now, last := time.Now().UnixNano(), p.grumbled.Load()
	if now-last < int64(grumbleRest) || !p.grumbled.CompareAndSwap(last, now) {
		p.unsaid.Add(1)
		return
	}
	if n := p.unsaid.Swap(0); n > 0 {
		args = append(args, "more not logged", n)
	}
	p.n.log.Log(context.Background(), level, msg, append([]any{"peer", p.id.String()}, args...)...)
}

// known returns a peer where there is one.
func (n *Node) known(id identity.NodeID) *peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[id]
}

// allPeers returns the peers of this moment.
func (n *Node) allPeers() []*peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]*peer, 0, len(n.peers))
	for _, p := range n.peers {
		all = append(all, p)
	}
	return all
}

// live returns the session to use now: a direct one before one that is passed
// on, and the one that the node with the lower ID has dialed where there are two,
// so that both ends choose the same. One that has lost all its links a while ago
// is none, although its streams may live on.
func (p *peer) live() *route {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *route
	now := time.Now()
	for _, r := range p.routes {
		if !r.isReady() || r.aloneFor(lonely, now) {
			continue
		}
		if best == nil || r.isDirect() && !best.isDirect() || r.isDirect() == best.isDirect() && r.dialed == p.n.before(p.id) {
			best = r
		}
	}
	return best
}

// other returns a direct session with the peer that is not r.
func (p *peer) other(r *route) *route {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.routes {
		if o != r && o.isReady() && o.isDirect() && !o.aloneFor(lonely, time.Now()) {
			return o
		}
	}
	return nil
}

// all returns the peer's sessions.
func (p *peer) all() []*route {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*route(nil), p.routes...)
}

// before reports whether this node's ID is lower than another's.
func (n *Node) before(other identity.NodeID) bool { return string(n.id[:]) < string(other[:]) }

// route returns a session with the peer, and makes one if there is none.
func (p *peer) route(ctx context.Context) (*route, error) { return p.session(ctx, false) }

// directly is route for a session that no other node passes on.
func (p *peer) directly(ctx context.Context) (*route, error) { return p.session(ctx, true) }

func (p *peer) session(ctx context.Context, direct bool) (*route, error) {
	for {
		if r := p.live(); r != nil && (!direct || r.isDirect()) {
			return r, nil
		}
		p.mu.Lock()
		if p.gone {
			p.mu.Unlock()
			return nil, ErrClosed
		}
		d := p.dialing
		if d == nil {
			d = &dialing{done: make(chan struct{}), direct: direct}
			if !p.n.run(func() { p.dial(d, nil) }) {
				p.mu.Unlock()
				return nil, ErrClosed
			}
			p.dialing = d
		}
		p.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil && d.direct == direct {
				if r := p.live(); r != nil && (!direct || r.isDirect()) { // the peer was quicker
					return r, nil
				}
				return nil, d.err
			}
		case <-p.n.ctx.Done():
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// dial makes a session. first is a link that is there already, or nil.
func (p *peer) dial(d *dialing, first *linkConn) {
	ctx, cancel := context.WithTimeout(p.n.ctx, dialTime)
	defer cancel()
	err := p.begin(ctx, d.direct, first)
	if err != nil {
		err = fmt.Errorf("%w: %s: %w", ErrUnreachable, p.n.nameOf(p.id), err)
	}
	p.mu.Lock()
	d.err = err
	p.dialing = nil
	p.mu.Unlock()
	close(d.done)
}

func (p *peer) begin(ctx context.Context, direct bool, first *linkConn) error {
	if !direct {
		if found, err := p.revive(ctx); found {
			return err
		}
	}
	if first == nil {
		if err := p.restSessions(ctx); err != nil {
			return err
		}
	}
	r := newRoute(p, true)
	if direct && first == nil {
		var errs []error
		for _, w := range p.candidates(r) {
			if first != nil || !w.direct() {
				continue
			}
			c, err := p.attempt(ctx, r, w.wayKey, frame.Interactive)
			errs = append(errs, err)
			first = c
		}
		if first == nil {
			return errors.Join(append(errs, errNoPass)...)
		}
	}
	r.spare = first
	defer r.dropSpare() // where nobody has asked for it
	links := p.n.o.Links
	if p.id == p.n.id {
		links = 1
	}
	s, err := p.ep.Dial(ctx, p.id.String(), links, r.dialLink)
	if err != nil {
		return err
	}
	r.start(s)
	select {
	case <-r.ready:
		return nil
	case <-s.Done():
		return s.Err()
	case <-ctx.Done():
		s.Close()
		return context.Cause(ctx)
	}
}

// revive makes links for a session that was dialed from here and has none: with
// it all its streams go on. It returns false where there is no such session, or
// the peer does not know it any more.
func (p *peer) revive(ctx context.Context) (found bool, err error) {
	for _, r := range p.all() {
		if !r.dialed || !r.isReady() || !r.aloneFor(0, time.Now()) {
			continue
		}
		err := r.relink(ctx, func() bool { return r.aloneFor(0, time.Now()) })
		if err == nil {
			r.linked()
		}
		if r.s.Err() == nil {
			return true, err
		}
	}
	return false, nil
}

// redial has the peer dialed in the background, unless it is being.
func (p *peer) redial() {
	p.mu.Lock()
	busy := p.dialing != nil
	p.mu.Unlock()
	if busy {
		return
	}
	p.n.run(func() {
		if _, err := p.route(p.n.ctx); err != nil {
			p.n.log.Debug("not reached", "error", err)
		}
	})
}

// add takes in a session that has begun. It returns false where none may begin
// any more.
func (p *peer) add(r *route) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone || len(p.routes) >= maxSessionsPerPeer {
		return false
	}
	p.routes = append(p.routes, r)
	return true
}

// remove takes out a session that has ended.
func (p *peer) remove(r *route) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range p.routes {
		if other == r {
			p.routes = append(p.routes[:i:i], p.routes[i+1:]...)
		}
	}
	p.used = time.Now()
}

// revoked ends all that there is with a peer that was shut out. Tunnels to it
// that may be elsewhere look for another node.
func (p *peer) revoked() {
	p.n.log.Warn("everything with a revoked node is cut", "peer", p.id.String())
	if p.n.dir.d.Expire() {
		p.n.tellNews()
	}
	for _, r := range p.all() {
		r.s.Close()
	}
	for _, t := range p.n.allTunnels() {
		if t.Peer() == p.id && !(t.opener && mayFailOver(t)) {
			t.end(fmt.Errorf("%w: %s", identity.ErrRevoked, p.n.nameOf(p.id)), true)
		}
	}
}

// drop forgets the peer; its sessions have ended, or end.
func (p *peer) drop() {
	p.mu.Lock()
	p.gone = true
	p.mu.Unlock()
	p.stop()
	p.ep.Close()
}

// serve takes in a link that a node has dialed.
func (n *Node) serve(c net.Conn, from identity.NodeID, how wayKey) error {
	p, err := n.peer(from)
	if err != nil {
		c.Close()
		return err
	}
	links := 0
	for _, r := range p.all() {
		if !r.dialed {
			links += len(r.s.Links())
		}
	}
	if links >= maxLinksOf {
		c.Close()
		return &RefusedError{Limit: fmt.Sprintf("%d links from one node", maxLinksOf), Retry: refusedRetry}
	}
	p.certified(c)
	s, err := p.ep.Serve(c, from.String())
	if err != nil || s == nil {
		return err
	}
	r := newRoute(p, false)
	r.how = how
	r.start(s)
	return nil
}
