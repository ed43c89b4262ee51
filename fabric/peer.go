package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

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

	mu      sync.Mutex
	routes  []*route // that have not ended; usually one, two where both ends have dialed at once
	dialing *dialing
	ways    map[wayKey]*way
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
		return nil, &RefusedError{Limit: fmt.Sprintf("%d nodes that this one deals with", maxPeers), Retry: peerIdle}
	}
	p := &peer{n: n, id: id, ways: map[wayKey]*way{}, used: time.Now()}
	p.ep = session.NewEndpoint(session.Options{
		MaxStreams: maxSessionStreams,
		Budget:     n.windows,
		Backlog:    sessionBacklog,
		Packets:    func(tunnel [16]byte, packets [][]byte) { n.packets(p, tunnel, packets) },
	})
	n.peers[id] = p
	p.stop = n.o.Identity.Watch(id, func() { go p.revoked() }) // it takes locks
	return p, nil
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
// so that both ends choose the same.
func (p *peer) live() *route {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *route
	for _, r := range p.routes {
		if !r.isReady() {
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
		if o != r && o.isReady() && o.isDirect() {
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
		err = fmt.Errorf("fabric: node %s can't be reached: %w", p.n.nameOf(p.id), err)
	}
	p.mu.Lock()
	d.err = err
	p.dialing = nil
	p.mu.Unlock()
	close(d.done)
}

func (p *peer) begin(ctx context.Context, direct bool, first *linkConn) error {
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
	s, err := p.ep.Serve(c, from.String())
	if err != nil || s == nil {
		return err
	}
	r := newRoute(p, false)
	r.how = how
	r.start(s)
	return nil
}
