package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
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
	if w.direct() && !strings.Contains(w.addr, "://") { // those of HTTPS are URLs
		return w.carrier + "://" + w.addr
	}
	if w.direct() {
		return w.addr
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

// candidates returns the ways there are for a session, those to try first in
// front. One is through another session with the same peer, such as when only
// the peer can dial directly, and this session was dialed from here.
func (p *peer) candidates(r *route) []way {
	keys := p.n.waysTo(p.id)
	if p.other(r) != nil && p.id != p.n.id {
		at := slices.IndexFunc(keys, func(k wayKey) bool { return !k.direct() })
		if at < 0 {
			at = len(keys)
		}
		keys = slices.Insert(keys, at, wayKey{carrier: viaCarrier, via: p.id})
	}
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
	ahead bool // it is passed on before others' bulk

	once     sync.Once
	onClose  func(*linkConn)
	rejected func() // is told when the peer does not take the certificate
}

// Reserved implements session.Reserved.
func (c *linkConn) Reserved() bool { return c.ahead }

// Expires implements session.Expiring.
func (c *linkConn) Expires() time.Time {
	if e, ok := c.Conn.(session.Expiring); ok {
		return e.Expires()
	}
	return time.Time{}
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

// dialLink is the session's Dialer: it takes the best way that works. What a
// link carries decides how nodes pass it on: the first one, or another one in its
// place, is for the classes above bulk.
func (r *route) dialLink(ctx context.Context, n int) (net.Conn, error) {
	if c := r.takeSpare(); c != nil {
		return r.own(c), nil
	}
	if err := r.restLinks(ctx); err != nil {
		return nil, err
	}
	class := frame.Bulk
	fit := func(c *linkConn) bool { return c.ahead || c.way.direct() }
	if n == 0 || !slices.ContainsFunc(r.linkConns(), fit) {
		class = frame.Interactive
	}
	c, err := r.race(ctx, r.p.candidates(r), class)
	if err == nil {
		return r.own(c), nil
	}
	if len(r.linkConns()) == 0 {
		r.down(time.Now())
	}
	return nil, err
}

// brief counts, in a row, what ended as soon as it was there: links, or sessions.
type brief struct {
	n  int
	at time.Time // when the last one ended
}

// ended takes note of one's end. Those that fall together are one.
func (b *brief) ended(began, now time.Time) {
	switch {
	case now.Sub(began) > briefLife:
		b.n = 0
	case began.Before(b.at):
	default:
		b.n++
		b.at = now
	}
}

// rest returns until when to wait before the next one: from the second on that was
// brief, and longer and longer.
func (b *brief) rest() time.Time {
	if b.n < 2 {
		return time.Time{}
	}
	return b.at.Add(min(firstBriefRest<<min(b.n-2, 16), lastBriefRest))
}

// restLinks waits before a link is dialed where the last ones died at once, such
// as at a peer whose door is open and who throws out whoever comes in.
func (r *route) restLinks(ctx context.Context) error {
	r.mu.Lock()
	until := r.brief.rest()
	r.mu.Unlock()
	return waitUntil(ctx, until)
}

// restSessions is restLinks for sessions, such as with a peer that says hello and
// ends them.
func (p *peer) restSessions(ctx context.Context) error {
	p.mu.Lock()
	until := p.brief.rest()
	p.mu.Unlock()
	return waitUntil(ctx, until)
}

// waitUntil waits until a time, unless ctx is done before.
func waitUntil(ctx context.Context, until time.Time) error {
	rest := time.Until(until)
	if rest <= 0 {
		return nil
	}
	t := time.NewTimer(rest)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errNoWay is of a node that there is no way to, as far as is known here.
var errNoWay = errors.New("no way to it is known")

// race makes a link over the first way that works. Each gets a start over the
// next, so that one that swallows everything costs no more than that.
func (r *route) race(ctx context.Context, ways []way, class frame.Class) (*linkConn, error) {
	if len(ways) == 0 {
		return nil, errNoWay
	}
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		c   *linkConn
		err error
	}
	results := make(chan result, len(ways))
	running, errs := 0, []error(nil)
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			w := ways[0]
			ways = ways[1:]
			running++
			if !r.n.run(func() {
				c, err := r.p.attempt(ctx, r, w.wayKey, class)
				results <- result{c, err}
			}) {
				results <- result{nil, ErrClosed}
			}
			if len(ways) > 0 {
				next.Reset(wayStart)
			}
			continue
		case res := <-results:
			running--
			if res.err == nil {
				cancel()
				go func() { // close those that were as quick
					for range running {
						if res := <-results; res.err == nil {
							res.c.Close()
						}
					}
				}()
				return res.c, nil
			}
			errs = append(errs, res.err)
			if len(ways) > 0 {
				next.Reset(0)
			} else if running == 0 {
				cancel()
				return nil, errors.Join(errs...)
			}
		}
	}
}

// own makes a link one of the session's.
func (r *route) own(c *linkConn) net.Conn {
	c.onClose = r.lostLink
	r.n.log.Info("link up", "peer", r.p.id.String(), "way", c.way.String())
	return c
}

// attempt makes a link over one way.
func (p *peer) attempt(ctx context.Context, r *route, k wayKey, class frame.Class) (*linkConn, error) {
	began := time.Now()
	attempt, cancel := context.WithTimeout(ctx, wayTime)
	defer cancel()
	c, err := p.n.dialWay(attempt, p, r, k, class)
	if err != nil {
		if ctx.Err() == nil {
			p.failed(k, began)
		}
		p.n.log.Debug("way failed", "peer", p.id.String(), "way", k.String(), "error", err)
		return nil, fmt.Errorf("%s: %w", k, err)
	}
	p.worked(k)
	p.certified(c)
	return &linkConn{Conn: c, way: k, began: time.Now(), ahead: !k.direct() && class < frame.Bulk,
		rejected: func() { p.n.rejected(p.id) }}, nil
}

// dialWay makes a connection over a way.
func (n *Node) dialWay(ctx context.Context, p *peer, r *route, k wayKey, class frame.Class) (net.Conn, error) {
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
		st, err := n.pass(ctx, p, r, k, class)
		if err != nil {
			return nil, err
		}
		return carrier.Wrap(ctx, passed{st}, n.o.Identity, p.id, false)
	}
	for _, c := range n.o.Dial {
		if c.Name() == k.carrier {
			return c.Dial(ctx, k.addr, p.id)
		}
	}
	return nil, fmt.Errorf("no carrier %q here", k.carrier)
}

// lostLink takes note of a link's end.
func (r *route) lostLink(c *linkConn) {
	r.mu.Lock()
	s := r.s
	r.mu.Unlock()
	if s == nil || s.Err() != nil {
		return
	}
	for _, l := range s.Links() {
		if l.Conn == net.Conn(c) && l.Retired {
			return
		}
	}
	r.p.failed(c.way, c.began)
	r.mu.Lock()
	r.brief.ended(c.began, time.Now())
	r.mu.Unlock()
	r.n.log.Warn("link down", "peer", r.p.id.String(), "way", c.way.String(), "lasted", time.Since(c.began).Round(time.Millisecond).String())
}

// probe finds out whether a peer can be reached that has dialed this node, and
// of which no link is left. If it can't, what may be elsewhere leaves at once;
// else the peer is about to dial again.
func (r *route) probe() {
	ways := r.p.candidates(r)
	for _, w := range ways {
		c, err := r.p.attempt(r.n.ctx, r, w.wayKey, frame.Interactive)
		if err == nil {
			c.Close()
			return
		}
		if r.s.Stats().Links > 0 || r.s.Err() != nil {
			return
		}
	}
	if len(ways) > 0 {
		r.down(time.Now())
	}
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

// climb moves the session's links to a better way, if one works again: the new
// ones are made first, then the session gives up the others when nothing is
// under way over them.
func (r *route) climb(ctx context.Context) {
	defer func() {
		r.mu.Lock()
		r.climbing = false
		r.mu.Unlock()
	}()
	ways := r.p.candidates(r)
	now := time.Now()
	rank := map[wayKey]int{}
	for _, w := range ways {
		if rank[w.wayKey] = w.rank; now.Before(w.avoid) {
			rank[w.wayKey] = len(ways)
		}
	}
	worst := 0
	for _, c := range r.linkConns() {
		k, ok := rank[c.way]
		if !ok {
			k = len(ways) // it is not a way any more
		}
		worst = max(worst, k)
	}
	if worst == 0 {
		r.climbed(true)
		return
	}
	for _, w := range ways {
		if w.until.After(now) {
			break // so are the others
		}
		if w.rank >= worst {
			continue
		}
		c, err := r.p.attempt(ctx, r, w.wayKey, frame.Interactive)
		if err != nil {
			continue
		}
		err = r.relink(ctx, func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.spare = c
			return true
		})
		r.dropSpare() // where the session did not ask for it
		if err != nil {
			c.Close()
		}
		if err == nil {
			r.n.log.Info("links moved", "peer", r.p.id.String(), "to", w.String())
			r.changedWay()
			r.climbed(w.rank == 0)
			return
		}
		r.n.log.Debug("links not moved", "peer", r.p.id.String(), "to", w.String(), "error", err)
	}
	r.climbed(false)
}

// relink has the session make its links anew, if that is still to be done when
// it is this one's turn.
func (r *route) relink(ctx context.Context, still func() bool) error {
	if err := r.moves.take(ctx); err != nil {
		return err
	}
	defer r.moves.give()
	if !still() {
		return nil
	}
	return r.s.Relink(ctx, r.dialLink)
}

// linkConns returns the links that carry something new.
func (r *route) linkConns() (all []*linkConn) {
	r.mu.Lock()
	s := r.s
	r.mu.Unlock()
	if s == nil {
		return nil
	}
	for _, l := range s.Links() {
		if c, ok := l.Conn.(*linkConn); ok && !l.Retired {
			all = append(all, c)
		}
	}
	return all
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
	return r.how
}

// isDirect reports whether no other node passes the session on.
func (r *route) isDirect() bool { return r.best().direct() }

// bestNow finds it, at the end that dials.
func (r *route) bestNow() (best wayKey, ok bool) {
	rank := -1
	for _, c := range r.linkConns() {
		k := r.n.rank(c.way)
		if rank < 0 || k < rank || k == rank && c.way.String() < best.String() {
			best, rank = c.way, k
		}
	}
	return best, rank >= 0
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
