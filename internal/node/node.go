package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/views"
)

// startGrace is how long an ephemeral node waits for its first projection: its
// starter may have died.
const startGrace = 30 * time.Second

// Options are for Run.
type Options struct {
	Target
	Ephemeral bool // end with the last projection
	// Ready is called when the node answers; an error ends the node. May be nil.
	Ready func(control.API) error
	Force context.Context // when it ends, so does draining; may be nil
	// HandOver tells whether mounts are left to the next node when ctx has ended
	// for a cause. May be nil: they end.
	HandOver func(cause error) bool
}

func (o Options) force() context.Context {
	if o.Force == nil {
		return context.Background()
	}
	return o.Force
}

// ErrRunning is Run's answer when another node holds the store.
var ErrRunning = errors.New("a node is running already")

// Run holds the store and serves it until ctx ends, a client asks for an end,
// or, if ephemeral, its last projection ends; then it drains. The error has
// the kind Canceled when requests had to be cut off.
func Run(ctx context.Context, o Options) error {
	if o.Config.MemoryLimit > 0 && os.Getenv("GOMEMLIMIT") == "" {
		// All that the node keeps is bounded by itself; this has the collector run
		// often enough for what was thrown away not to come on top of it. A quarter is
		// for what is not the collector's, as the buffers of mounts.
		debug.SetMemoryLimit(o.Config.MemoryLimit / 4 * 3)
	}
	s, err := o.takeStore(ctx)
	if err != nil {
		return err
	}
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	n := newNode(s, o, quit)
	closeStore := func() error {
		if len(n.left) > 0 {
			// Until it is gone this process reads what the kernel asks, and drops
			// it. The kernel asks the next node again, which must not come before.
			s.KeepLock()
		} else if n.holder != nil {
			n.holder.end()
		}
		return capsule.Wrap(capsule.IO, s.Close(), "close store %s", o.Home)
	}
	n.takeOver(ctx) // before anyone else looks into a tree
	// giveUp ends a node that could not begin; the next one goes on with its mounts.
	giveUp := func(errs ...error) error {
		n.handOver(ctx)
		return errors.Join(append(errs, closeStore())...)
	}
	l, err := control.Listen(o.Home)
	if err != nil {
		return giveUp(err)
	}
	if st, err := os.Stat(o.Home); err == nil && st.Mode().Perm()&0o077 != 0 {
		o.Log.Warn("others may look into the store's directory; chmod 700 it", "home", o.Home, "mode", st.Mode().Perm().String())
	}

	endTraces, err := startTracing(ctx, o.Version, o.Log)
	if err != nil {
		return giveUp(err, l.Close())
	}
	defer endTraces()
	endMetrics := func() {}
	if o.Config.Metrics != "" {
		if _, endMetrics, err = serveMetrics(ctx, o.Config.Metrics, n.registry, n.healthy, o.Log); err != nil {
			return giveUp(err, l.Close())
		}
	}
	defer endMetrics()
	if err := n.nvme.begin(ctx, !o.Ephemeral); err != nil {
		return giveUp(err, n.nvme.close(ctx), l.Close())
	}
	fabricEnds := func(context.Context) error { return nil }
	var fabricFailed <-chan error
	if o.Config.Fabric != nil && o.Config.Fabric.Section && !o.Ephemeral {
		f, err := startFabric(o.Target, n.registry, o.Log)
		if err != nil {
			return giveUp(capsule.Wrap(capsule.Other, err, "fabric"), n.nvme.close(ctx), l.Close())
		}
		fabricEnds, fabricFailed = f.close, f.failed
	}
	n.begun.Store(true)
	srv := control.NewServer(n, o.Log, control.DefaultLimits)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		n.keeper.run(ctx)
	}()
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		n.nvme.run(ctx)
	}()
	if o.Ephemeral {
		grace := time.AfterFunc(startGrace, func() { n.endIfIdle() })
		defer grace.Stop()
	}
	o.Log.Info("node is ready", "home", o.Home, "socket", control.SocketPath(o.Home), "version", o.Version, "pid", os.Getpid())
	if o.Ready != nil {
		err = o.Ready(n)
	}
	if err == nil {
		notify("READY=1")
		go watchdog(ctx)
		select {
		case <-ctx.Done():
		case err = <-served:
		case err = <-fabricFailed:
		}
	}
	notify("STOPPING=1")
	o.Log.Info("node is draining", "timeout", o.Config.DrainTimeout.String())
	n.draining.Store(true)
	l.Close()
	close(n.gone)
	drain, cancel := context.WithTimeout(o.force(), o.Config.DrainTimeout)
	defer cancel()
	unmounted := make(chan struct{})
	go func() {
		defer close(unmounted)
		if o.HandOver != nil && o.HandOver(context.Cause(ctx)) {
			n.handOver(drain)
		}
		n.closeProjections(drain)
	}()
	err = errors.Join(err, fabricEnds(drain))
	if !srv.Drain(drain) && err == nil {
		err = capsule.Errorf(capsule.Canceled, "requests under way were cut off after %s (--drain-timeout)", o.Config.DrainTimeout)
	}
	<-unmounted
	quit()
	<-kept
	<-followed
	err = errors.Join(err, closeStore())
	o.Log.Info("node has ended")
	return err
}

// takeStore opens the store, waiting for commands that hold it for a moment
// but not for another node.
func (o Options) takeStore(ctx context.Context) (*store.Store, error) {
	var s *store.Store
	_, err := o.retry(ctx, func() (Conn, error) {
		other, err := o.dial(ctx)
		if err == nil {
			defer other.Close()
			st, err := other.Status(ctx)
			if err != nil {
				return nil, err
			}
			return nil, capsule.Wrap(capsule.Conflict, ErrRunning, "store %s: process %d serves it", o.Home, st.PID)
		}
		if !errors.Is(err, control.ErrNoNode) {
			return nil, err
		}
		s, err = o.openStore(ctx, true)
		return nil, err
	})
	return s, err
}

// node is the control API of a running node.
type node struct {
	*Local
	home        string
	log         *slog.Logger
	projections *views.Registry
	nvme        *nvmeView
	registry    *prometheus.Registry
	keeper      *keeper
	quit        func()
	ephemeral   bool
	begun       atomic.Bool // what it projects by itself has started
	opts        Options
	draining    atomic.Bool
	gone        chan struct{}   // closed when the socket is
	holder      *mountHolder    // nil: mounts end with this node
	left        map[string]bool // projections that the next node goes on with
}

func newNode(s *store.Store, o Options, quit func()) *node {
	n := &node{Local: newLocal(s, o.Version), log: o.Log, quit: quit, opts: o, ephemeral: o.Ephemeral, gone: make(chan struct{}),
		keeper: newKeeper(s, clock.System(), o.Log)}
	if o.Config.MountWait > 0 {
		n.holder = newMountHolder(o)
	}
	n.projections = views.NewRegistry(func() { n.endIfIdle() })
	n.registry = n.metrics()
	n.nvme = newNVMeView(s, o.Home, n.projections, o.Config.NVMe, n.registry, o.Log)
	return n
}

// Status implements control.API.
func (n *node) Status(ctx context.Context) (control.Status, error) {
	st, err := n.Local.Status(ctx)
	st.Ephemeral, st.Draining, st.Projections = n.ephemeral, n.draining.Load(), len(n.projections.List())
	return st, err
}

// SetSnapshotPolicy implements control.API.
func (n *node) SetSnapshotPolicy(ctx context.Context, ref string, p capsule.SnapshotPolicy) (capsule.SnapshotPolicy, error) {
	p, err := n.Local.SetSnapshotPolicy(ctx, ref, p)
	n.keeper.look()
	return p, err
}

// Shutdown implements control.API.
func (n *node) Shutdown(context.Context) error {
	n.quit()
	return nil
}
