package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

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
	done chan struct{}
	r    *route
	err  error
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
		Backlog:    sessionBacklog,
		Packets:    func(tunnel [16]byte, packets [][]byte) { n.packets(p, tunnel, packets) },
	})
	n.peers[id] = p
	p.stop = n.o.Identity.Watch(id, func() { go p.cut(identity.ErrRevoked) }) // cut takes locks
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

// live returns the session to use now: the one that the node with the lower ID
// has dialed where there are two, so that both ends choose the same.
func (p *peer) live() *route {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *route
	for _, r := range p.routes {
		if r.isReady() && (best == nil || r.dialed == p.n.before(p.id)) {
			best = r
		}
	}
	return best
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
func (p *peer) route(ctx context.Context) (*route, error) {
	for {
		if r := p.live(); r != nil {
			return r, nil
		}
		p.mu.Lock()
		if p.gone {
			p.mu.Unlock()
			return nil, ErrClosed
		}
		d := p.dialing
		if d == nil {
			d = &dialing{done: make(chan struct{})}
			p.dialing = d
			p.n.run(func() { p.dial(d, nil) })
		}
		p.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil {
				if r := p.live(); r != nil { // the peer was quicker
					return r, nil
				}
				return nil, d.err
			}
			return d.r, nil
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
	r := newRoute(p, true)
	r.spare = first
	links := p.n.o.Links
	if p.id == p.n.id {
		links = 1
	}
	s, err := p.ep.Dial(ctx, p.id.String(), links, r.dialLink)
	if err == nil {
		r.start(s)
		select {
		case <-r.ready:
		case <-s.Done():
			err = s.Err()
		case <-ctx.Done():
			err = context.Cause(ctx)
			s.Close()
		}
	}
	if err != nil {
		r.dropSpare()
		err = fmt.Errorf("fabric: node %s can't be reached: %w", p.n.nameOf(p.id), err)
	}
	p.mu.Lock()
	if d.r, d.err = r, err; err != nil {
		d.r = nil
	}
	if p.dialing == d {
		p.dialing = nil
	}
	p.mu.Unlock()
	close(d.done)
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

// cut ends all sessions with the peer.
func (p *peer) cut(why error) {
	for _, r := range p.all() {
		if errors.Is(why, identity.ErrRevoked) {
			p.n.log.Warn("session cut: the node was revoked", "peer", p.id.String())
		}
		r.s.Close()
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
