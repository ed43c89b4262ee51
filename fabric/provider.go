package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spacestore/space/fabric/identity"
)

// Service is what a node provides to others.
type Service struct {
	Profile Profile // Pool, Kind and Role below come from it where they are ""
	Pool    string
	Kind    string
	Role    string
	ID      string // for people; "": the kind
	Backlog int    // tunnels that nobody has accepted; 0: 64
}

// Request is what a service wants a tunnel for.
type Request struct {
	Profile        Profile // Pool, Kind and Role below come from it where they are ""
	Pool           string
	Kind           string
	Role           string
	LocalServiceID string     // for people; "": the kind
	Organization   string     // that it counts for at this node; "": the node's own, as at the other end
	Apart          []TunnelID // to another node than those of these tunnels, such as for a mirror
}

// serviceKey says what is asked for.
type serviceKey struct{ pool, kind, role string }

// Provider is a service that this node provides.
type Provider struct {
	n       *Node
	key     serviceKey
	id      string
	tunnels chan *Tunnel // that nobody has accepted
	done    chan struct{}
}

// Provide offers a service to the fabric until the Provider is closed.
func (n *Node) Provide(s Service) (*Provider, error) {
	k := serviceKey{cmp.Or(s.Pool, s.Profile.Pool), cmp.Or(s.Kind, s.Profile.Kind), cmp.Or(s.Role, s.Profile.Role)}
	if k.pool == "" || k.kind == "" {
		return nil, errors.New("fabric: a service has a pool and a kind; one is missing")
	}
	for _, name := range []string{k.pool, k.kind, k.role, s.ID} {
		if len(name) > maxName {
			return nil, fmt.Errorf("fabric: a name of %d bytes; the limit is %d", len(name), maxName)
		}
	}
	if s.Backlog <= 0 {
		s.Backlog = 64
	}
	p := &Provider{n: n, key: k, id: cmp.Or(s.ID, k.kind), tunnels: make(chan *Tunnel, s.Backlog), done: make(chan struct{})}
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil, ErrClosed
	}
	if n.services[k] != nil {
		n.mu.Unlock()
		return nil, fmt.Errorf("fabric: this node provides %s in pool %s already", k.kind, k.pool)
	}
	if len(n.services) >= maxServices {
		n.mu.Unlock()
		return nil, &RefusedError{Limit: fmt.Sprintf("%d services of one node", maxServices)}
	}
	n.services[k] = p
	n.mu.Unlock()
	if err := n.publish(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Accept returns the next tunnel that somebody has asked for.
func (p *Provider) Accept(ctx context.Context) (*Tunnel, error) {
	for {
		select {
		case t := <-p.tunnels:
			if t.gaveUp() {
				t.Close()
				continue // its opener did not wait
			}
			return t, nil
		case <-p.done:
			return nil, ErrClosed
		case <-p.n.ctx.Done():
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Close ends the offer. Tunnels that were accepted stay.
func (p *Provider) Close() error {
	p.n.mu.Lock()
	if p.n.services[p.key] != p {
		p.n.mu.Unlock()
		return nil
	}
	delete(p.n.services, p.key)
	p.n.mu.Unlock()
	close(p.done)
	p.drop()
	return p.n.publish()
}

// drop ends the tunnels that nobody has accepted, and will not.
func (p *Provider) drop() {
	for {
		select {
		case t := <-p.tunnels:
			t.end(fmt.Errorf("%w: the service is not provided any more", ErrClosed), true)
		default:
			return
		}
	}
}

// service returns who provides what was asked for; a role that is not asked for
// is any.
func (n *Node) service(k serviceKey) *Provider {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.services[k]; p != nil || k.role != "" {
		return p
	}
	for have, p := range n.services {
		if have.pool == k.pool && have.kind == k.kind {
			return p
		}
	}
	return nil
}

// opened answers a peer that asks for a tunnel, or for a new route of one.
func (n *Node) opened(r *route, o *openBody) openedBody {
	no := func(limit string, retry time.Duration) openedBody {
		n.refused.Add(1)
		r.p.grumble(slog.LevelWarn, "tunnel refused", "tunnel", o.Tunnel.String(), "limit", limit)
		return openedBody{ID: o.ID, Limit: limit, Retry: retry}
	}
	failed := func(why string) openedBody { return openedBody{ID: o.ID, Error: why} }
	if t := n.tunnel(tunnelKey{o.Tunnel, false}); t != nil {
		if t.Peer() != r.p.id {
			return failed("the tunnel is another node's")
		}
		if !t.use(r, o.Generation, "") {
			return failed("the tunnel has ended, or is agreed on anew")
		}
		return openedBody{ID: o.ID, Service: t.Contract().LocalServiceID}
	}
	if n.draining.Load() {
		return no("the node is about to go", 0)
	}
	p := n.service(serviceKey{o.Pool, o.Kind, o.Role})
	if p == nil {
		return openedBody{ID: o.ID, Absent: true, Error: fmt.Sprintf("it does not provide %s in pool %s", o.Kind, o.Pool)}
	}
	t := n.newTunnel(o.Tunnel, false, ask{
		profile: Profile{Class: o.Class, Plane: o.Plane, Classes: o.Classes, Shards: o.Shards, Failover: o.Failover},
		pool:    o.Pool, kind: o.Kind, role: o.Role, local: p.id, org: r.p.organization()})
	t.peer = r.p.id
	grant, refused := n.admitTunnel(t, r)
	if refused != nil {
		return no(refused.Limit, refused.Retry)
	}
	t.grant = grant
	if err := n.addTunnel(t); err != nil {
		grant.release()
		if errors.Is(err, errTunnelExists) { // asked for over two sessions at once
			return n.opened(r, o)
		}
		return failed(err.Error())
	}
	if !t.use(r, o.Generation, o.Service) {
		t.end(errAbandoned, true)
		return failed("the session has ended")
	}
	select {
	case p.tunnels <- t:
	default:
		t.end(fmt.Errorf("%w: nobody has accepted it", ErrClosed), true)
		return no(fmt.Sprintf("%d tunnels that service %s has not accepted", cap(p.tunnels), p.id), time.Second)
	}
	select {
	case <-p.done: // closed meanwhile
		p.drop()
	default:
	}
	n.log.Info("tunnel open", "tunnel", o.Tunnel.String(), "pool", o.Pool, "kind", o.Kind, "peer", r.p.id.String())
	return openedBody{ID: o.ID, Service: p.id}
}

// peers returns on which nodes tunnels end, for those who want another one.
func (n *Node) ends(ids []TunnelID) map[identity.NodeID]bool {
	taken := map[identity.NodeID]bool{}
	for _, id := range ids {
		if t := n.tunnel(tunnelKey{sided(id, true), true}); t != nil {
			taken[t.Peer()] = true
		}
	}
	return taken
}
