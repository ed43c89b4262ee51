package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/control"
)

// orDefault is what holds where nothing was said.
func (c *FabricConfig) orDefault() FabricConfig {
	var d FabricConfig
	if c != nil {
		d = *c
	}
	if d.Listen == nil {
		if err := d.addListen(FabricListen{}, DefaultFabricListen); err != nil {
			panic(err) // the constant is wrong
		}
	}
	return d
}

// RunFabric takes part in the fabric until ctx ends; then it drains.
func RunFabric(ctx context.Context, o Options) error {
	endTraces, err := startTracing(ctx, o.Version, o.Log)
	if err != nil {
		return err
	}
	defer endTraces()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(o.Version))
	f, err := startFabric(o.Target, reg, o.Log)
	if err != nil {
		return err
	}
	endMetrics := func() {}
	if o.Config.Metrics != "" {
		if _, endMetrics, err = serveMetrics(ctx, o.Config.Metrics, reg, f.healthy, o.Log); err != nil {
			return errors.Join(err, f.close(ctx))
		}
	}
	defer endMetrics()
	notify("READY=1")
	go watchdog(ctx)
	select {
	case <-ctx.Done():
	case err = <-f.failed:
	}
	notify("STOPPING=1")
	o.Log.Info("the fabric's node is draining", "timeout", o.Config.DrainTimeout.String())
	drain, cancel := context.WithTimeout(o.force(), o.Config.DrainTimeout)
	defer cancel()
	err = errors.Join(err, f.close(drain))
	o.Log.Info("the fabric's node has ended")
	return err
}

// fabricNode is a running node of the fabric, its control API and the services
// that it has for people.
type fabricNode struct {
	*fabric.Node
	home   string
	seeds  []string
	reach  *reach
	log    *slog.Logger
	lock   io.Closer
	server *control.Server
	socket net.Listener
	failed chan error // why the control socket is not served any more

	jobs   gate // those of commands
	ctx    context.Context
	quit   context.CancelCauseFunc // ends all jobs
	always sync.WaitGroup          // jobs that settings ask for

	counts    fabricCounts
	transfers fileTransfers
	inbox     inbox
}

// maxJobs bounds the jobs of commands.
const maxJobs = 256

// gate lets in as many as its capacity.
type gate chan struct{}

var errFabricEnds = capsule.Errorf(capsule.Unavailable, "the fabric's node here is ending; start the command again when it is back")

// startFabric starts the node at home, with what its settings ask for.
func startFabric(t Target, reg prometheus.Registerer, log *slog.Logger) (*fabricNode, error) {
	lock, err := lockFabric(t.Home)
	if err != nil {
		return nil, err
	}
	fail := func(err error, more ...error) (*fabricNode, error) {
		return nil, errors.Join(append([]error{err}, append(more, lock.Close())...)...)
	}
	id, authority, self, err := openFabric(t.Home)
	if err != nil {
		return fail(err)
	}
	warnOfReaders(t.Home, log)
	if !time.Now().Before(id.Expires()) {
		log.Error("this node's certificate has ended, so others will not talk to it; set the clock, or move its directory away and join again",
			"ended", id.Expires(), "directory", FabricDir(t.Home))
	}
	cfg := t.Config.Fabric.orDefault()
	cfg.HTTPSWeb = cfg.HTTPSWeb || self.HTTPSWeb
	ways := newCarriers(id, authority, cfg, log)
	o, err := fabricOptions(cfg, ways, authority, self, log)
	if err != nil {
		return fail(err)
	}
	n, err := fabric.Start(o)
	if err != nil {
		return fail(fabricStartError(err))
	}
	ways.node.Store(n)
	f := &fabricNode{Node: n, home: t.Home, seeds: o.Seeds, reach: newReach(n, cfg.HTTPSWeb, log), log: log, lock: lock, failed: make(chan error, 1), jobs: make(gate, maxJobs)}
	f.ctx, f.quit = context.WithCancelCause(context.Background())
	if f.socket, err = control.ListenFabric(t.Home); err != nil {
		return fail(err, n.Close())
	}
	reg.MustRegister(f.collector())
	f.server = control.NewFabricServer(f, log)
	go func() {
		if err := f.server.Serve(f.socket); err != nil {
			f.failed <- err
		}
	}()
	f.startConfigured(cfg)
	log.Info("the fabric's node is ready", "node", n.ID().String(), "name", o.Name, "area", o.Area, "fabric", id.Fabric().String(),
		"addresses", strings.Join(n.Addrs(), " "), "authority", authority != nil, "relay", o.Relay, "socket", control.FabricSocketPath(t.Home), "pid", os.Getpid())
	return f, nil
}

// fabricStartError explains why a node can't start.
func fabricStartError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "listen" {
		return capsule.Wrap(capsule.IO, err, "listen (in the fabric section of %s, SPACE_FABRIC_LISTEN or --listen)", ConfigName)
	}
	return fabricError(err)
}

// fabricOptions puts together what the fabric is told.
func fabricOptions(cfg FabricConfig, c carriers, authority *identity.Authority, self fabricSelf, log *slog.Logger) (fabric.Options, error) {
	o := fabric.Options{Identity: c.id, Authority: authority, Join: c.joins.Admit, Name: cfg.Name, Area: cfg.Area, Organization: cfg.Organization,
		Seeds: append(cfg.Seeds[:len(cfg.Seeds):len(cfg.Seeds)], self.Seeds...), Relay: cfg.Relay, Limits: cfg.Limits, Log: log}
	if o.Name == "" {
		o.Name = self.Name
	}
	if o.Area == "" {
		o.Area = self.Area
	}
	o.Dial = c.out()
	for _, l := range cfg.Listen {
		in, err := c.in(l)
		if err != nil {
			return o, err
		}
		advertise := l.advertised()
		if l.Carrier != "https" { // whose addresses are URLs
			_, advertise, _ = strings.Cut(advertise, "://")
		}
		o.Listen = append(o.Listen, fabric.Listen{Carrier: in, Addr: l.Address, Advertise: advertise})
	}
	return o, nil
}

// close ends the node: jobs end, tunnels that may move to other nodes, and then
// everything. ctx bounds it.
func (f *fabricNode) close(ctx context.Context) error {
	f.quit(errFabricEnds)
	f.socket.Close()
	f.always.Wait()
	if err := f.Node.Drain(ctx); err != nil && ctx.Err() == nil {
		f.log.Warn("tunnels did not move away", "error", err)
	}
	var err error
	if !f.server.Drain(ctx) {
		err = capsule.Errorf(capsule.Canceled, "requests to the fabric's node were cut off")
	}
	return errors.Join(err, capsule.Wrap(capsule.Other, f.Node.Close(), "fabric"), f.lock.Close())
}

// healthy says why the node should not be used, if so.
func (f *fabricNode) healthy() error {
	if f.ctx.Err() != nil {
		return errFabricEnds
	}
	return nil
}

// Status implements control.Fabric.
func (f *fabricNode) Status(context.Context) (fabric.Status, error) { return f.Node.Status(), nil }

// Nodes implements control.Fabric.
func (f *fabricNode) Nodes(context.Context) ([]fabric.NodeState, error) { return f.Node.Nodes(), nil }

// Tunnels implements control.Fabric.
func (f *fabricNode) Tunnels(context.Context) ([]fabric.TunnelState, error) {
	return f.Node.Tunnels(), nil
}

// Routes implements control.Fabric.
func (f *fabricNode) Routes(context.Context) ([]fabric.RouteState, error) {
	return f.Node.Routes(), nil
}

// maxUsage bounds the accounts of each scope that are shown.
const maxUsage = 1000

// Usage implements control.Fabric.
func (f *fabricNode) Usage(context.Context) (list []control.FabricUsage, _ error) {
	for _, u := range f.Node.Usage(maxUsage) {
		list = append(list, control.FabricUsage{Scope: u.Scope.String(), Name: u.Name, Used: u.Used, Limit: control.FabricLimit(u.Limit), Refused: u.Refused})
	}
	return list, nil
}

// NewToken implements control.Fabric.
func (f *fabricNode) NewToken(_ context.Context, req control.TokenRequest) (string, error) {
	if err := checkOrganization(req.Organization); err != nil {
		return "", err
	}
	if len(req.Addresses) == 0 {
		for _, addr := range f.Addrs() {
			if joinable(addr) {
				req.Addresses = append(req.Addresses, addr)
			}
		}
	}
	if len(req.Addresses) == 0 && f.Node.Status().Authority {
		return "", capsule.Errorf(capsule.Invalid, "this node listens at no address of tls:// or https://, so nobody could join; start it with --listen tls://:7420, or give --address")
	}
	t, err := f.Node.NewTokenOf(req.Organization, req.Life, req.Uses, req.Addresses)
	if err != nil {
		return "", fabricError(err)
	}
	return t.String(), nil
}

// Revoke implements control.Fabric.
func (f *fabricNode) Revoke(_ context.Context, node string) (string, error) {
	id, err := f.resolve(node)
	if err != nil {
		return "", err
	}
	if id == f.ID() {
		return "", errRevokeSelf
	}
	if err := f.Node.Revoke(id); err != nil {
		return "", fabricError(err)
	}
	f.log.Info("a node was revoked", "revoked", id.String())
	return id.String(), nil
}

// resolve finds a node by its ID or name.
func (f *fabricNode) resolve(node string) (identity.NodeID, error) {
	if id, err := identity.ParseNodeID(node); err == nil {
		return id, nil
	}
	var found []identity.NodeID
	nodes := f.Node.Nodes()
	for _, n := range nodes {
		if n.Name == node {
			found = append(found, n.Node)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		var names []string
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		return identity.NodeID{}, capsule.Errorf(capsule.NotFound, "no node named %.64q is known; there are %s", node, strings.Join(firstOf(names), ", "))
	}
	return identity.NodeID{}, capsule.Errorf(capsule.Invalid, "%d nodes are named %.64q; give the ID, as `spacectl fabric nodes` shows it", len(found), node)
}

// job runs one job of a command: bounded in number, and no longer than the node.
func (f *fabricNode) job(ctx context.Context, fn func(context.Context) error) error {
	select {
	case f.jobs <- struct{}{}:
	default:
		return capsule.Errorf(capsule.Conflict, "%d jobs run at this node already; end one first", cap(f.jobs))
	}
	defer func() { <-f.jobs }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(f.ctx, func() { cancel(context.Cause(f.ctx)) })()
	err := fn(ctx)
	if f.ctx.Err() != nil && ctx.Err() != nil {
		return context.Cause(f.ctx)
	}
	return fabricError(err)
}

// Of jobs that settings ask for and that fail, the first and the last pause.
const (
	jobPause    = time.Second
	maxJobPause = time.Minute
)

// startConfigured runs what settings ask for, as long as the node runs. What
// fails is logged and tried again.
func (f *fabricNode) startConfigured(cfg FabricConfig) {
	keep := func(what string, run func(context.Context, func(control.JobEvent) error) error) {
		f.always.Add(1)
		go func() {
			defer f.always.Done()
			tell := func(e control.JobEvent) error {
				if e.Ready != "" {
					f.log.Info("a service of the fabric is ready", "service", what, "at", e.Ready)
				}
				return nil
			}
			for pause := jobPause; ; pause = min(2*pause, maxJobPause) {
				began := time.Now()
				err := run(f.ctx, tell)
				if f.ctx.Err() != nil {
					return
				}
				if time.Since(began) > maxJobPause {
					pause = jobPause
				}
				f.log.Warn("a service of the fabric does not run", "service", what, "error", fmt.Sprint(fabricError(err)), "again_in", pause.String())
				select {
				case <-time.After(pause):
				case <-f.ctx.Done():
					return
				}
			}
		}()
	}
	for _, r := range cfg.Expose {
		keep("expose "+r.Pool, func(ctx context.Context, tell func(control.JobEvent) error) error { return f.expose(ctx, r, tell) })
	}
	for _, r := range cfg.Forward {
		keep("forward "+r.Listen, func(ctx context.Context, tell func(control.JobEvent) error) error {
			return f.forward(ctx, r, false, tell)
		})
	}
	for _, r := range cfg.VPN {
		keep("vpn "+r.Pool, func(ctx context.Context, tell func(control.JobEvent) error) error { return f.vpn(ctx, r, tell) })
	}
	for _, r := range cfg.Accept {
		keep("accept "+r.Into, func(ctx context.Context, tell func(control.JobEvent) error) error { return f.accept(ctx, r, tell) })
	}
	for _, r := range cfg.Share {
		keep("share "+r.Name, func(ctx context.Context, tell func(control.JobEvent) error) error { return f.send(ctx, r, tell) })
	}
}
