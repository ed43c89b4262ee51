package fabric

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// The authority's node provides the authority to the fabric's nodes, as a
// service that is asked by calls.
var authorityService = serviceKey{pool: "control", kind: "authority"}

const (
	callRenew = "renew" // a certificate request in, a grant in JSON out

	maxCall        = 64 << 10 // bytes of a request
	firstRenewRest = time.Minute
	lastRenewRest  = time.Hour
)

// NewToken makes a join token for nodes of the default organization, on the
// authority's node. addrs nil: where this node listens.
func (n *Node) NewToken(life time.Duration, uses int, addrs []string) (identity.Token, error) {
	return n.NewTokenOf(identity.DefaultOrganization, life, uses, addrs)
}

// NewTokenOf is NewToken for nodes of an organization.
func (n *Node) NewTokenOf(organization string, life time.Duration, uses int, addrs []string) (identity.Token, error) {
	if n.o.Authority == nil {
		return identity.Token{}, ErrNoAuthority
	}
	if addrs == nil {
		addrs = n.Addrs()
	}
	return n.o.Authority.NewTokenOf(organization, life, uses, addrs)
}

// Revoke shuts a node out of the fabric, for good, on the authority's node: all
// nodes cut their sessions with it as they hear of it.
func (n *Node) Revoke(id identity.NodeID) error {
	if n.o.Authority == nil {
		return ErrNoAuthority
	}
	list, err := n.o.Authority.Revoke(id)
	if err != nil {
		return err
	}
	n.log.Warn("node revoked", "revoked", id.String())
	_, err = n.revoke(list, nil)
	return err
}

// revocation returns the number of the revocation list in force.
func (n *Node) revocation() int64 {
	l, err := x509.ParseRevocationList(n.o.Identity.Revocations())
	if err != nil || l.Number == nil {
		return 0 // there is none yet
	}
	return l.Number.Int64()
}

// revoke takes in a revocation list, and tells everybody but from if it is new.
func (n *Node) revoke(list []byte, from *route) (news bool, err error) {
	before := n.revocation()
	err = n.o.Identity.Revoke(list)
	if n.revocation() <= before {
		return false, err
	}
	for _, p := range n.allPeers() {
		for _, r := range p.all() {
			if r != from {
				r.sendRevocations()
			}
		}
	}
	return true, err
}

// sendRevocations sends the list in force.
func (r *route) sendRevocations() {
	if !r.isReady() {
		return // it says in its hello what it has
	}
	if err := r.send(message{msgRevocations, r.n.o.Identity.Revocations()}); err != nil {
		r.n.log.Warn("revocations not sent", "peer", r.p.id.String(), "error", err)
	}
}

// revocations takes in a list that a peer has sent.
func (n *Node) revocations(r *route, list []byte) error {
	news, err := n.revoke(list, r)
	if news {
		n.log.Info("revocation list taken in", "from", r.p.id.String())
	}
	if err != nil { // it is not the authority's, or the disk failed
		r.p.grumble(slog.LevelError, "revocation list", "error", err)
	}
	return nil
}

// call asks a node something over a stream of the session.
func (n *Node) call(ctx context.Context, id identity.NodeID, name string, request []byte) ([]byte, error) {
	p, err := n.peer(id)
	if err != nil {
		return nil, err
	}
	r, err := p.route(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	st, err := r.s.Open(frame.Control, append([]byte{streamCall}, name...))
	if err != nil {
		return nil, err
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, func() { st.Reset(session.CodeCanceled, "nobody waits for the answer") })
	defer stop()
	if _, err := st.Write(request); err != nil {
		return nil, err
	}
	if err := st.CloseWrite(); err != nil {
		return nil, err
	}
	answer, err := readAtMost(st, maxMessage)
	if err != nil {
		return nil, err
	}
	if len(answer) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	if answer[0] != 0 {
		return nil, fmt.Errorf("fabric: node %s: %.256s", n.nameOf(id), answer[1:])
	}
	return answer[1:], nil
}

// serveCall answers a call.
func (n *Node) serveCall(r *route, name string, st *session.Stream) {
	defer st.Close()
	if err := st.SetDeadline(time.Now().Add(callTime)); err != nil {
		return
	}
	request, err := readAtMost(st, maxCall)
	var answer []byte
	if err == nil {
		answer, err = n.answerCall(r, name, request)
	}
	if err != nil {
		r.p.grumble(slog.LevelWarn, "call failed", "call", name, "error", err)
		answer = append([]byte{1}, err.Error()...)
	} else {
		answer = append([]byte{0}, answer...)
	}
	if _, err := st.Write(answer); err != nil {
		n.log.Debug("call's answer", "peer", r.p.id.String(), "call", name, "error", err)
	}
}

func (n *Node) answerCall(r *route, name string, request []byte) ([]byte, error) {
	switch {
	case name == callFind:
		return n.answerFind(request)
	case name != callRenew:
		return nil, fmt.Errorf("fabric: call %.64q is not known here", name)
	case n.o.Authority == nil:
		return nil, ErrNoAuthority
	}
	grant, err := n.o.Authority.Renew(r.p.id, r.p.organization(), request)
	if err != nil {
		return nil, err
	}
	n.log.Info("certificate renewed", "peer", r.p.id.String())
	return json.Marshal(grant)
}

// renewCertificate renews the node's certificate each time it is due.
func (n *Node) renewCertificate() {
	rest := time.Duration(0)
	for {
		t := time.NewTimer(max(time.Until(n.o.Identity.RenewAt()), rest))
		select {
		case <-t.C:
		case <-n.ctx.Done():
			t.Stop()
			return
		}
		if err := n.renewNow(); err != nil {
			rest = min(max(2*rest, firstRenewRest), lastRenewRest)
			n.log.Error("the certificate could not be renewed", "due", n.o.Identity.RenewAt(), "error", err)
			continue
		}
		rest = 0
		n.log.Info("certificate renewed", "next", n.o.Identity.RenewAt())
		if err := n.publish(); err != nil { // the record carries the certificate
			n.log.Error("own record", "error", err)
		}
	}
}

func (n *Node) renewNow() error {
	csr, err := n.o.Identity.RenewRequest()
	if err != nil {
		return err
	}
	if n.o.Authority != nil {
		g, err := n.o.Authority.Renew(n.id, n.o.Identity.Organization(), csr)
		if err != nil {
			return err
		}
		return n.o.Identity.Renewed(g)
	}
	ctx, cancel := context.WithTimeout(n.ctx, dialTime)
	defer cancel()
	return n.authority(ctx, func(r *route) error {
		b, err := n.call(ctx, r.p.id, callRenew, csr)
		var g identity.Grant
		if err == nil {
			err = json.Unmarshal(b, &g)
		}
		if err == nil {
			err = n.o.Identity.Renewed(g)
		}
		return err
	})
}

// authorities is what a node knows of those that say that they are the authority's.
// Any node can: each has to show the authority's certificate, in the handshake of one
// that joins, before it is believed. One that has it shown by the true one, by passing
// the handshake on, gains nothing but its turn; whoever comes again has another one's.
type authorities struct {
	looking gate // one looks at a time

	mu       sync.Mutex
	turn     int
	verdicts map[identity.NodeID]verdict
}

// verdict is what came of a look at a node.
type verdict struct {
	proven bool
	until  time.Time
}

// authority calls fn with a session with the authority's node, and where that fails with
// the next one that has shown to be that, until fn returns nil. Each time it begins with
// another one, if there are several.
func (n *Node) authority(ctx context.Context, fn func(*route) error) error {
	if err := n.auth.looking.take(ctx); err != nil {
		return err
	}
	proven, err := n.provenAuthorities(ctx)
	n.auth.looking.give()
	if err != nil {
		return fmt.Errorf("fabric: the authority's node: %w", err)
	}
	var errs []error
	for _, id := range proven {
		r, err := n.routeTo(ctx, id)
		if err == nil {
			err = fn(r)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("node %s: %w", n.nameOf(id), err))
	}
	return fmt.Errorf("fabric: the authority's node: %w", errors.Join(errs...))
}

// routeTo returns a session with a node.
func (n *Node) routeTo(ctx context.Context, id identity.NodeID) (*route, error) {
	p, err := n.peer(id)
	if err != nil {
		return nil, err
	}
	return p.route(ctx)
}

// provenAuthorities returns the nodes that have shown to be the authority's, of those that
// are known or else of those that other areas know.
func (n *Node) provenAuthorities(ctx context.Context) ([]identity.NodeID, error) {
	k := authorityService
	ids, err := n.find(ctx, k)
	if err != nil {
		return nil, err
	}
	proven, errs := n.prove(ctx, ids)
	if len(proven) == 0 { // those that are near may all be false
		n.askAfar(ctx, k)
		more, err := n.find(ctx, k)
		if err != nil {
			return nil, err
		}
		more = slices.DeleteFunc(more, func(id identity.NodeID) bool { return slices.Contains(ids, id) })
		var afar []error
		proven, afar = n.prove(ctx, more)
		errs = append(errs, afar...)
	}
	if len(proven) == 0 {
		return nil, errors.Join(append(errs, errors.New("none of the nodes that say they are it has shown so"))...)
	}
	return proven, nil
}

// prove returns those of the nodes that have shown to be the authority's, lately or when
// asked now, side by side. It waits for one of them, not for those that take longer.
func (n *Node) prove(ctx context.Context, ids []identity.NodeID) (proven []identity.NodeID, errs []error) {
	if len(ids) == 0 {
		return nil, nil
	}
	now := time.Now()
	n.auth.mu.Lock()
	n.auth.turn++
	at := n.auth.turn % len(ids)
	ids = slices.Concat(ids[at:], ids[:at])
	maps.DeleteFunc(n.auth.verdicts, func(_ identity.NodeID, v verdict) bool { return now.After(v.until) })
	var ask []identity.NodeID
	for _, id := range ids {
		if v, known := n.auth.verdicts[id]; !known {
			ask = append(ask, id)
		} else if v.proven {
			proven = append(proven, id)
		}
	}
	if len(ask) == 0 && len(proven) == 0 {
		ask = ids // better again than not at all
	}
	ask = ask[:min(len(ask), maxAuthorities)]
	for _, id := range ask {
		n.auth.verdicts[id] = verdict{until: now.Add(unprovenTime)} // not to be asked by others meanwhile
	}
	n.auth.mu.Unlock()
	type look struct {
		id  identity.NodeID
		err error
	}
	looks := make(chan look, len(ask))
	for _, id := range ask {
		if !n.run(func() {
			err := n.proveOne(id)
			if err == nil {
				n.auth.mu.Lock()
				n.auth.verdicts[id] = verdict{true, time.Now().Add(provenTime)}
				n.auth.mu.Unlock()
			}
			looks <- look{id, err}
		}) {
			looks <- look{id, ErrClosed}
		}
	}
	for range ask {
		if len(proven) > 0 {
			break
		}
		select {
		case l := <-looks:
			if l.err == nil {
				proven = append(proven, l.id)
			} else {
				errs = append(errs, fmt.Errorf("node %s: %w", n.nameOf(l.id), l.err))
			}
		case <-ctx.Done():
			return nil, append(errs, context.Cause(ctx))
		}
	}
	return proven, errs
}

// proveOne has a node show that it is the authority's.
func (n *Node) proveOne(id identity.NodeID) error {
	ctx, cancel := context.WithTimeout(n.ctx, proofTime)
	defer cancel()
	r, err := n.routeTo(ctx, id)
	if err != nil {
		return err
	}
	st, err := r.s.Open(frame.Control, joinHeader(id, netip.Addr{}))
	if err != nil {
		return err
	}
	defer st.Close()
	c := tls.Client(passed{st}, n.o.Identity.AuthorityConfig())
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	return c.CloseWrite() // it says that nothing follows
}
