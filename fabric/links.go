package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
)

// wayKey names a way to a peer: an address of a carrier, or a node that passes
// links on.
type wayKey struct {
	carrier string // viaCarrier: through a node
	addr    string
	via     identity.NodeID
}

// Names in place of a carrier's.
const (
	viaCarrier  = "relay"
	selfCarrier = "self" // the way of a node to itself
)

// direct reports whether no other node passes the way's links on.
func (w wayKey) direct() bool { return w.carrier != viaCarrier }

func (w wayKey) String() string {
	if w.direct() {
		return w.carrier + "://" + w.addr
	}
	return "via " + w.via.String()
}

// way is what was learned of a way. Its peer's lock guards it.
type way struct {
	wayKey
	rank  int       // the order of preference; lower is better
	fails int       // in a row
	until time.Time // not to be tried before, unless there is nothing else
	last  time.Time // when it last failed
	avoid time.Time // links are to leave it, such as because a node drains
	seen  bool      // among the ways that there are now
}

// failed notes a failure. Links that fall together are one.
func (p *peer) failed(k wayKey, began time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.ways[k]
	if w == nil || began.Before(w.last) {
		return
	}
	now := time.Now()
	w.fails++
	w.last, w.until = now, now.Add(min(firstWayRest<<min(w.fails-1, 16), lastWayRest))
}

// worked notes that a way works.
func (p *peer) worked(k wayKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.ways[k]; w != nil {
		w.fails, w.until = 0, time.Time{}
	}
}

// avoid has a way left alone for a while, such as through a node that drains.
func (p *peer) avoid(k wayKey, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.ways[k]; w != nil {
		w.avoid = time.Now().Add(d)
		w.until = w.avoid
	}
}

// candidates returns the ways there are, those to try first in front.
func (p *peer) candidates() []way {
	keys := p.n.waysTo(p.id)
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.ways {
		w.seen = false
	}
	for rank, k := range keys {
		w := p.ways[k]
		if w == nil {
			w = &way{wayKey: k}
			p.ways[k] = w
		}
		w.rank, w.seen = rank, true
	}
	all := make([]way, 0, len(keys))
	for k, w := range p.ways {
		if w.seen {
			all = append(all, *w)
		} else if !now.Before(w.until) {
			delete(p.ways, k)
		}
	}
	slices.SortFunc(all, func(a, b way) int {
		ra, rb := a.until.After(now), b.until.After(now)
		switch {
		case ra && rb:
			return cmp.Or(a.until.Compare(b.until), cmp.Compare(a.rank, b.rank))
		case ra != rb:
			if rb {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.rank, b.rank)
	})
	return all
}

// linkConn is a link of a session that was dialed here.
type linkConn struct {
	net.Conn
	way   wayKey
	began time.Time

	once    sync.Once
	onClose func(*linkConn)
}

// Close implements net.Conn.
func (c *linkConn) Close() error {
	c.once.Do(func() {
		if c.onClose != nil {
			c.onClose(c)
		}
	})
	return c.Conn.Close()
}

// dialLink is the session's Dialer: it takes the best way that works.
func (r *route) dialLink(ctx context.Context, _ int) (net.Conn, error) {
	if c := r.takeSpare(); c != nil {
		return r.own(c), nil
	}
	var errs []error
	for _, w := range r.p.candidates() {
		c, err := r.p.attempt(ctx, w.wayKey)
		if err == nil {
			return r.own(c), nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("no way to it is known")
	}
	return nil, errors.Join(errs...)
}

// attempt makes a link over one way.
func (p *peer) attempt(ctx context.Context, k wayKey) (*linkConn, error) {
	began := time.Now()
	attempt, cancel := context.WithTimeout(ctx, wayTime)
	defer cancel()
	c, err := p.n.dialWay(attempt, p.id, k)
	if err != nil {
		if ctx.Err() == nil {
			p.failed(k, began)
		}
		p.n.log.Debug("way failed", "peer", p.id.String(), "way", k.String(), "error", err)
		return nil, fmt.Errorf("%s: %w", k, err)
	}
	p.worked(k)
	return &linkConn{Conn: c, way: k, began: time.Now()}, nil
}

// dialWay makes a connection over a way.
func (n *Node) dialWay(ctx context.Context, to identity.NodeID, k wayKey) (net.Conn, error) {
	switch k.carrier {
	case selfCarrier:
		near, far := net.Pipe()
		n.run(func() {
			if err := n.serve(far, n.id, k); err != nil {
				n.log.Debug("link to itself", "error", err)
			}
		})
		return near, nil
	case viaCarrier:
		st, err := n.pass(ctx, k.via, to, maxHops, frame.Interactive)
		if err != nil {
			return nil, err
		}
		return carrier.Wrap(ctx, st, n.o.Identity, to, false)
	}
	for _, c := range n.o.Dial {
		if c.Name() == k.carrier {
			return c.Dial(ctx, k.addr, to)
		}
	}
	return nil, fmt.Errorf("no carrier %q here", k.carrier)
}

// own makes a link one of the session's.
func (r *route) own(c *linkConn) net.Conn {
	r.mu.Lock()
	c.onClose = r.lostLink
	r.links[c] = struct{}{}
	r.mu.Unlock()
	r.n.log.Info("link up", "peer", r.p.id.String(), "way", c.way.String())
	r.changedWay()
	return c
}

// lostLink takes note of a link's end.
func (r *route) lostLink(c *linkConn) {
	r.mu.Lock()
	delete(r.links, c)
	moving, s := r.moving == c, r.s
	r.mu.Unlock()
	if !moving && s != nil && s.Err() == nil {
		r.p.failed(c.way, c.began)
		r.n.log.Warn("link down", "peer", r.p.id.String(), "way", c.way.String(), "lasted", time.Since(c.began).Round(time.Millisecond).String())
	}
	r.changedWay()
}

func (r *route) takeSpare() *linkConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.spare
	r.spare = nil
	return c
}

func (r *route) dropSpare() {
	if c := r.takeSpare(); c != nil {
		c.Close()
	}
}

// climb moves the session's links to a better way, if one works again. It makes
// the new link first, then gives up a worse one, in whose place the session asks
// for another: streams go on meanwhile.
func (r *route) climb(ctx context.Context) {
	defer func() {
		r.mu.Lock()
		r.climbing = false
		r.mu.Unlock()
	}()
	for ctx.Err() == nil {
		ways := r.p.candidates()
		rank := map[wayKey]int{}
		for _, w := range ways {
			if rank[w.wayKey] = w.rank; time.Now().Before(w.avoid) {
				rank[w.wayKey] = len(ways)
			}
		}
		worst, at := (*linkConn)(nil), 0
		r.mu.Lock()
		for c := range r.links {
			k, ok := rank[c.way]
			if !ok {
				k = len(ways) // it is not a way any more
			}
			if k > at {
				worst, at = c, k
			}
		}
		r.mu.Unlock()
		if worst == nil {
			r.climbed(true)
			return
		}
		now := time.Now()
		var c *linkConn
		for _, w := range ways {
			if w.until.After(now) {
				break // so are the others
			}
			if w.rank >= at {
				continue
			}
			var err error
			if c, err = r.p.attempt(ctx, w.wayKey); err == nil {
				break
			}
		}
		if c == nil {
			r.climbed(false)
			return
		}
		r.mu.Lock()
		old := r.spare
		r.spare, r.moving = c, worst
		r.mu.Unlock()
		if old != nil {
			old.Close()
		}
		worst.Close()
		// The session's reader sees the end, and maintain asks for the spare.
		if !r.awaitSpare(ctx) {
			r.dropSpare()
			return
		}
		r.n.log.Info("link moved", "peer", r.p.id.String(), "from", worst.way.String(), "to", c.way.String())
	}
}

// awaitSpare waits until the session has taken the spare link.
func (r *route) awaitSpare(ctx context.Context) bool {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for end := time.Now().Add(dialTime); time.Now().Before(end); {
		r.mu.Lock()
		taken := r.spare == nil
		r.mu.Unlock()
		if taken {
			return true
		}
		select {
		case <-t.C:
		case <-r.s.Done():
			return false
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// climbed notes how the last climb went, for when the next one is due.
func (r *route) climbed(top bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.climbRest = min(2*max(r.climbRest, firstClimbRest/2), lastClimbRest)
	if top {
		r.climbRest = firstClimbRest
	}
	r.climbAt = time.Now().Add(r.climbRest)
}

// best returns the way of the session's best link.
func (r *route) best() wayKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.dialed {
		return r.how
	}
	var best wayKey
	rank := -1
	for c := range r.links {
		k := r.n.rank(c.way)
		if rank < 0 || k < rank || k == rank && c.way.String() < best.String() {
			best, rank = c.way, k
		}
	}
	if rank < 0 {
		return r.how
	}
	return best
}

// rank orders ways by how dear they are: the carriers as they are preferred,
// then through another node.
func (n *Node) rank(k wayKey) int {
	for i, c := range n.o.Dial {
		if c.Name() == k.carrier {
			return i
		}
	}
	if k.direct() {
		return 0
	}
	return len(n.o.Dial)
}
