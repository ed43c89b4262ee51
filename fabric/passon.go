package fabric

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// errNoPass is of a link that can't be passed on.
var errNoPass = errors.New("fabric: the link can't be passed on")

// pass opens a stream that goes on to a peer through the way's node. Whether it
// arrives shows in the first read. r is the session that it is for.
func (n *Node) pass(ctx context.Context, p *peer, r *route, k wayKey, class frame.Class) (*session.Stream, error) {
	if k.via == p.id { // within another session with it
		if o := p.other(r); o != nil {
			return o.s.Open(class, passHeader(p.id, 0))
		}
		return nil, fmt.Errorf("%w: there is no other session", errNoPass)
	}
	return n.hop(ctx, k.via, p.id, maxHops, class)
}

// hop opens a stream that node via is asked to pass on to node to. Only a direct
// session with via will do, so that what is passed on is never within something
// else that is. Nothing is remembered of a node that nobody has heard of.
func (n *Node) hop(ctx context.Context, via, to identity.NodeID, hops uint8, class frame.Class) (*session.Stream, error) {
	if _, listed := n.dir.d.Node(via); !listed && n.known(via) == nil {
		return nil, fmt.Errorf("%w: node %s is not known here", errNoPass, via)
	}
	p, err := n.peer(via)
	if err != nil {
		return nil, err
	}
	r, err := p.directly(ctx)
	if err != nil {
		return nil, err
	}
	if r.s.Stats().Links == 0 {
		return nil, fmt.Errorf("%w: node %s is not reached just now", errNoPass, n.nameOf(via))
	}
	return r.s.Open(class, passHeader(to, hops))
}

// passed is a stream that is a link's connection. Its errors are of another
// session than the link's, and are no more to that than a cut.
type passed struct{ *session.Stream }

func (p passed) Read(b []byte) (int, error) {
	n, err := p.Stream.Read(b)
	return n, foreign(err)
}

func (p passed) Write(b []byte) (int, error) {
	n, err := p.Stream.Write(b)
	return n, foreign(err)
}

// foreign takes from an error what only its own session may see in it.
func foreign(err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return errors.New(err.Error())
}

// passOn serves a stream with which a peer asks to be passed on.
func (n *Node) passOn(r *route, h streamHead, st *session.Stream) {
	grant, err := n.mayPass(r, h)
	if err == nil && !n.run(func() { n.passOver(r, h, st, grant) }) {
		r.p.passes.Add(-1)
		grant.release()
		err = ErrClosed
	}
	if err != nil {
		st.Reset(codeNoWay, err.Error())
	}
}

// mayPass admits a link that is to be passed on.
func (n *Node) mayPass(from *route, h streamHead) (*grant, error) {
	if !n.o.Relay || n.draining.Load() {
		return nil, fmt.Errorf("%w: node %s passes nothing on", errNoPass, n.o.Name)
	}
	if h.hops == 0 || h.hops > maxHops {
		return nil, fmt.Errorf("%w: it went through %d nodes already", errNoPass, maxHops)
	}
	if from.p.passes.Add(1) > maxPassed {
		from.p.passes.Add(-1)
		n.refused.Add(1)
		return nil, &RefusedError{Limit: fmt.Sprintf("%d links that are passed on for one node", maxPassed), Retry: refusedRetry}
	}
	grant, refused := n.admitPass(from)
	if refused != nil {
		from.p.passes.Add(-1)
		return nil, refused
	}
	return grant, nil
}

func (n *Node) passOver(r *route, h streamHead, st *session.Stream, grant *grant) {
	defer grant.release()
	defer r.p.passes.Add(-1)
	n.passed.Add(1)
	defer n.passed.Add(-1)
	next, err := n.nextHop(r, h, st.Class())
	if err != nil {
		n.log.Debug("not passed on", "from", r.p.id.String(), "to", h.to.String(), "error", err)
		st.Reset(codeNoWay, err.Error())
		return
	}
	relayed := make(chan struct{})
	go func() {
		defer close(relayed)
		splice(next, st)
	}()
	splice(st, next)
	<-relayed
	st.Close()
	next.Close()
}

// splice copies one direction until it ends. A direction that fails takes the
// other one with it.
func splice(to, from *session.Stream) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		to.Reset(codeNoWay, "a link that was passed on has ended")
		from.Reset(codeNoWay, "a link that was passed on has ended")
	}
}

// nextHop opens the stream that goes on towards the node.
func (n *Node) nextHop(from *route, h streamHead, class frame.Class) (*session.Stream, error) {
	ctx, cancel := context.WithTimeout(n.ctx, wayTime)
	defer cancel()
	if err := from.p.onward.take(ctx); err != nil {
		return nil, fmt.Errorf("%w: too much else is being passed on for node %s", errNoPass, n.nameOf(from.p.id))
	}
	defer from.p.onward.give()
	var errs []error
	for _, via := range n.hopsTo(h.to) {
		if via == from.p.id {
			continue
		}
		next, err := n.hop(ctx, via, h.to, h.hops-1, class)
		if err == nil {
			return next, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("%w: no way to node %s is known here", errNoPass, n.nameOf(h.to))
	}
	return nil, errors.Join(errs...)
}

// passedHere takes in a link that was passed on to this node: TLS with the node
// at its other end, then a session's link like any other.
func (n *Node) passedHere(r *route, st *session.Stream) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTime)
	defer cancel()
	l, err := carrier.Meet(ctx, passed{st}, n.o.Identity, n.o.Join)
	if err == nil && l == nil {
		return // a node has joined, or was refused
	}
	if err == nil {
		err = n.serve(l, l.Peer(), wayKey{carrier: viaCarrier, via: r.p.id})
	}
	if err != nil {
		n.log.Debug("link that was passed on", "through", r.p.id.String(), "error", err)
		st.Reset(codeNoWay, "the handshake failed")
	}
}

// joining is the connection of a node that joins, which another node has passed on.
type joining struct {
	passed
	via  identity.NodeID
	from netip.Addr
}

// RemoteAddr implements net.Conn.
func (c joining) RemoteAddr() net.Addr { return joinerAddr{c.via, c.from} }

// joinerAddr is where a node that joins is, as the node says that passes it on.
type joinerAddr struct {
	via  identity.NodeID
	from netip.Addr
}

// Network implements net.Addr.
func (joinerAddr) Network() string { return "fabric" }

// Source returns where it comes from; it is not valid where that is not known.
func (a joinerAddr) Source() netip.Addr { return a.from }

func (a joinerAddr) String() string {
	if !a.from.IsValid() {
		return "via " + a.via.String()
	}
	return a.from.String() + " via " + a.via.String()
}

// joinHere serves a node that joins through another one. They keep nobody else out: each
// node that passes on has places of its own for them, in which the oldest of the address
// that most come from makes way.
func (n *Node) joinHere(r *route, h streamHead, st *session.Stream) {
	c := joining{passed{st}, r.p.id, h.from}
	defer r.p.joins.Enter(c)()
	ctx, cancel := context.WithTimeout(n.ctx, dialTime)
	defer cancel()
	join := n.o.Join
	if join == nil {
		join = func(net.Conn) {} // the authority's node shows that it is that, and no more
	}
	l, err := carrier.Meet(ctx, c, n.o.Identity, join)
	if err == nil && l != nil {
		l.Close() // it is a node already, and comes where it has nothing to seek
	}
	if err != nil {
		n.log.Debug("node that joins", "from", c.RemoteAddr().String(), "error", err)
		st.Reset(codeNoWay, "the handshake failed")
	}
}

// PassJoin takes the connection of a node that joins to the authority's node. It
// closes the connection.
func (n *Node) PassJoin(c net.Conn) error {
	defer c.Close()
	ctx, cancel := context.WithTimeout(n.ctx, dialTime)
	defer cancel()
	if err := c.SetDeadline(time.Now().Add(dialTime)); err != nil {
		return err
	}
	var from netip.Addr
	switch a := c.RemoteAddr().(type) {
	case *net.TCPAddr:
		from = a.AddrPort().Addr()
	case interface{ Source() netip.Addr }:
		from = a.Source()
	}
	return n.authority(ctx, func(r *route) error {
		st, err := r.s.Open(frame.Control, joinHeader(r.p.id, from.Unmap().WithZone("")))
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { st.Reset(session.CodeCanceled, "the node that joins takes too long") })
		defer stop()
		n.run(func() { // ends with the connection
			_, err := io.Copy(st, c)
			if err == nil {
				err = st.CloseWrite()
			}
			if err != nil {
				st.Reset(codeNoWay, "the node that joins has ended")
			}
		})
		if _, err := io.Copy(c, st); err != nil {
			n.log.Debug("node that joins", "through", n.nameOf(r.p.id), "error", err)
		}
		st.Close()
		return nil // what was said is said: it comes again if that was of no use
	})
}

// listen takes in links until the listener ends.
func (n *Node) listen(l carrier.Listener, name string) {
	for {
		c, err := l.Accept(n.ctx)
		if err != nil {
			if n.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			n.log.Warn("listener", "addr", l.Addr(), "error", err)
			t := time.NewTimer(time.Second)
			select {
			case <-t.C:
			case <-n.ctx.Done():
				t.Stop()
				return
			}
			continue
		}
		if !n.helloing(c) {
			c.Close()
			continue
		}
		n.run(func() {
			defer n.helloed(c)
			if err := n.serve(c, c.Peer(), wayKey{carrier: name, addr: c.RemoteAddr().String()}); err != nil {
				n.log.Debug("link refused", "peer", c.Peer().String(), "error", err)
			}
		})
	}
}

// helloing notes a link that has not said hello yet; there are so many at most,
// of all nodes and of one.
func (n *Node) helloing(c carrier.Link) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || len(n.fresh) >= maxFresh {
		return false
	}
	same := 0
	for other := range n.fresh {
		if other.Peer() == c.Peer() {
			same++
		}
	}
	if same >= maxFreshOf {
		return false
	}
	n.fresh[c] = struct{}{}
	return true
}

func (n *Node) helloed(c carrier.Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.fresh, c)
}
