package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/forward"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/control"
)

// profile returns one of the profiles that come with the fabric.
func profile(name string) fabric.Profile {
	for _, p := range fabric.Profiles {
		if p.Name == name {
			return p
		}
	}
	panic("no profile " + name)
}

// Expose implements control.Fabric.
func (f *fabricNode) Expose(ctx context.Context, r control.ExposeRequest, tell func(control.JobEvent) error) error {
	if err := checkPool(r.Pool); err != nil {
		return err
	}
	return f.job(ctx, func(ctx context.Context) error { return f.expose(ctx, r, tell) })
}

func checkPool(pool string) error {
	if err := CheckFabricName(pool); err != nil {
		return capsule.Errorf(capsule.Invalid, "the pool %.64q is not valid: %v", pool, err)
	}
	return nil
}

func newExposer(r control.ExposeRequest, log *slog.Logger) (*forward.Exposer, error) {
	o := forward.ExposeOptions{Target: r.Address, ProxyProtocol: r.ProxyProtocol, MaxConns: r.Connections, Log: log}
	for _, text := range r.Allow {
		rule, err := forward.ParseRule(text)
		if err != nil {
			return nil, err
		}
		o.Allow = append(o.Allow, rule)
	}
	for _, text := range r.Peers {
		id, err := identity.ParseNodeID(text)
		if err != nil {
			return nil, err
		}
		o.Peers = append(o.Peers, id)
	}
	return forward.NewExposer(o)
}

func (f *fabricNode) expose(ctx context.Context, r control.ExposeRequest, tell func(control.JobEvent) error) error {
	log := f.log.With("pool", r.Pool)
	e, err := newExposer(r, log)
	if err != nil {
		return capsule.Wrap(capsule.Invalid, err, "")
	}
	defer f.counts.exposed.track(e.Stats)()
	return f.provide(ctx, fabric.Service{Profile: profile("tcp-forward"), Pool: r.Pool}, tell, func(ctx context.Context, t *fabric.Tunnel) error {
		return e.Serve(ctx, t, t.Peer())
	})
}

// provide offers a service until ctx ends and serves each tunnel to it.
func (f *fabricNode) provide(ctx context.Context, s fabric.Service, tell func(control.JobEvent) error, serve func(context.Context, *fabric.Tunnel) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var tunnels sync.WaitGroup
	defer tunnels.Wait()
	defer cancel()
	p, err := f.Provide(s)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := tell(control.JobEvent{Ready: s.Pool}); err != nil {
		return err
	}
	for {
		t, err := p.Accept(ctx)
		if err != nil {
			return unlessEnded(ctx, err)
		}
		go f.watch(happened(context.Background(), "fabric.tunnel.accept", time.Now(), nil, tunnelAttributes(t, "provider")...), t, "provider")
		tunnels.Add(1)
		go func() {
			defer tunnels.Done()
			defer f.part(t)
			f.log.Debug("a tunnel has come", "tunnel", t.ID().String(), "pool", s.Pool, "peer", t.Peer().String())
			if err := serve(ctx, t); err != nil && ctx.Err() == nil && !errors.Is(err, fabric.ErrClosed) {
				f.log.Debug("a tunnel has ended", "tunnel", t.ID().String(), "pool", s.Pool, "error", err)
			}
		}()
	}
}

// part ends a tunnel that a job has provided. One that ends with the node leaves it to
// others.
func (f *fabricNode) part(t *fabric.Tunnel) {
	if f.ctx.Err() != nil {
		t.Leave()
		return
	}
	t.Close()
}

// unlessEnded is the error of a job: none if it was told to end.
func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Forward implements control.Fabric.
func (f *fabricNode) Forward(ctx context.Context, r control.ForwardRequest, tell func(control.JobEvent) error) error {
	if err := checkPool(r.Pool); err != nil {
		return err
	}
	return f.job(ctx, func(ctx context.Context) error { return f.forward(ctx, r, true, tell) })
}

// forward listens and carries what comes to the pool. now asks that somebody
// provides it already.
func (f *fabricNode) forward(ctx context.Context, r control.ForwardRequest, now bool, tell func(control.JobEvent) error) error {
	if err := checkAddress(r.Listen); err != nil {
		return capsule.Errorf(capsule.Invalid, "%.64q is no address to listen at: %v", r.Listen, err)
	}
	fw, err := forward.NewForwarder(forward.ForwardOptions{Target: r.Target, Bulk: r.Bulk, Log: f.log.With("pool", r.Pool)})
	if err != nil {
		return capsule.Wrap(capsule.Invalid, err, "")
	}
	l, err := net.Listen("tcp", r.Listen)
	if err != nil {
		return capsule.Wrap(capsule.IO, err, "")
	}
	defer l.Close()
	t := &lasting{f: f, request: fabric.Request{Profile: profile("tcp-forward"), Pool: r.Pool, Kind: r.Kind}}
	defer t.close()
	if now {
		if err := f.patiently(ctx, r.Wait, func() error {
			_, err := t.get(ctx)
			return err
		}); err != nil {
			return unlessEnded(ctx, err)
		}
	}
	defer f.counts.forwarded.track(fw.Stats)()
	if err := tell(control.JobEvent{Ready: l.Addr().String()}); err != nil {
		return err
	}
	return unlessEnded(ctx, fw.Serve(ctx, l, t))
}

// lookAgain is how often it is looked whether a service is there now.
const lookAgain = 200 * time.Millisecond

// patiently tries fn until it is no longer for want of a provider that it
// fails, or for as long as wait: news of services take a moment.
func (f *fabricNode) patiently(ctx context.Context, wait time.Duration, fn func() error) error {
	for deadline := time.Now().Add(wait); ; {
		err := fn()
		if capsule.KindOf(err) != capsule.NotFound || !time.Now().Before(deadline) {
			return err
		}
		select {
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lasting opens streams in a tunnel, and asks for another tunnel when that one
// has ended.
type lasting struct {
	f       *fabricNode
	request fabric.Request

	mu     sync.Mutex
	tunnel *fabric.Tunnel
	asking chan struct{} // closed when whoever asks has an answer; nil: nobody does
}

// get returns the tunnel. Of several that want one, one asks.
func (l *lasting) get(ctx context.Context) (*fabric.Tunnel, error) {
	for {
		l.mu.Lock()
		if l.tunnel != nil && !closed(l.tunnel.Done()) {
			defer l.mu.Unlock()
			return l.tunnel, nil
		}
		asking := l.asking
		if asking == nil {
			asking = make(chan struct{})
			l.asking = asking
			l.mu.Unlock()
			t, err := l.f.tunnel(ctx, l.request)
			l.mu.Lock()
			l.tunnel, l.asking = t, nil
			l.mu.Unlock()
			close(asking)
			return t, err
		}
		l.mu.Unlock()
		select {
		case <-asking:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// Open implements fabric.Opener.
func (l *lasting) Open(ctx context.Context, class frame.Class, header []byte) (fabric.Stream, error) {
	for {
		t, err := l.get(ctx)
		if err != nil {
			return nil, err
		}
		s, err := t.Open(ctx, class, header)
		if err == nil || ctx.Err() != nil || !closed(t.Done()) {
			return s, err
		}
	}
}

func (l *lasting) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tunnel != nil {
		l.tunnel.Close()
	}
}

// tunnel asks the fabric for a tunnel and watches over it.
func (f *fabricNode) tunnel(ctx context.Context, r fabric.Request) (t *fabric.Tunnel, err error) {
	pool, kind := r.Pool, r.Kind
	if pool == "" {
		pool = r.Profile.Pool
	}
	if kind == "" {
		kind = r.Profile.Kind
	}
	var life context.Context
	err = span(ctx, "fabric.tunnel.open", func(ctx context.Context) (err error) {
		life = sameTrace(ctx)
		if t, err = f.Node.Tunnel(ctx, r); err == nil {
			note(ctx, tunnelAttributes(t, "opener")...)
		}
		if errors.Is(err, fabric.ErrNoProvider) {
			return noProvider(pool, kind, f.Node.Nodes())
		}
		return fabricError(err)
	}, attribute.String("fabric.pool", pool), attribute.String("fabric.kind", kind))
	if err != nil {
		f.counts.tunnelsFailed.Add(1)
		return nil, err
	}
	f.counts.tunnelsOpened.Add(1)
	go f.watch(life, t, "opener")
	return t, nil
}

// tunnelAttributes say which tunnel it is, and where it leads now.
func tunnelAttributes(t *fabric.Tunnel, side string) []attribute.KeyValue {
	st := t.State()
	return []attribute.KeyValue{attribute.String("fabric.tunnel", st.Contract.TunnelID.String()), attribute.String("fabric.side", side),
		attribute.String("fabric.pool", st.Contract.PoolID), attribute.String("fabric.kind", st.Contract.ServiceKind), attribute.String("fabric.organization", st.Organization),
		attribute.String("fabric.peer", st.Peer), attribute.String("fabric.route", st.Route), attribute.Int64("fabric.generation", int64(st.Contract.RouteGeneration))}
}

// watch tells of a tunnel's changes of route, and of its end, in the trace of ctx. side is
// which of its ends is here.
func (f *fabricNode) watch(ctx context.Context, t *fabric.Tunnel, side string) {
	generation, peer := t.Contract().RouteGeneration, t.Peer()
	var lost time.Time // since when there is no route; zero: there is one
	for {
		changed := t.Changed()
		if closed(t.Done()) {
			break
		}
		c, now := t.Contract(), time.Now()
		switch {
		case c.RouteGeneration > generation:
			began, to := now, t.Peer()
			if !lost.IsZero() {
				began = lost
			}
			happened(ctx, "fabric.route.change", began, nil, append(tunnelAttributes(t, side), attribute.Bool("fabric.failover", to != peer))...)
			if side == "opener" {
				f.counts.routeChanges.Add(1)
			}
			f.log.Info("a tunnel has changed its route", "tunnel", c.TunnelID.String(), "pool", c.PoolID, "generation", c.RouteGeneration, "peer", to.String())
			generation, peer, lost = c.RouteGeneration, to, time.Time{}
		case lost.IsZero() && t.State().State == "no route":
			lost = now
		}
		select {
		case <-changed:
		case <-t.Done():
		}
	}
	began := time.Now()
	if !lost.IsZero() {
		began = lost
	}
	st, why := t.State(), t.Err()
	about := append(tunnelAttributes(t, side), attribute.String("fabric.why", why.Error()), attribute.Int64("fabric.sent_bytes", st.Sent), attribute.Int64("fabric.received_bytes", st.Received),
		attribute.Int64("fabric.streams", st.StreamsEver))
	if errors.Is(why, fabric.ErrClosed) {
		why = nil
	}
	happened(ctx, "fabric.tunnel.close", began, fabricError(why), about...)
}
