package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/views"
	"github.com/spacestore/space/views/nvme"
)

const (
	// defaultNVMe is where hosts find us where nobody says where.
	defaultNVMe = "127.0.0.1:4420"
	// maxNSID is the largest namespace ID that the target takes.
	maxNSID = nvme.MaxNSID
	// portRetry is how long an address that cannot be listened at is left alone.
	portRetry = 5 * time.Second
	// uuidNQN begins the names made of a UUID, which need no domain of one's own
	// (NVMe Base Specification 2.0, 4.5).
	uuidNQN = "nqn.2014-08.org.nvmexpress:uuid:"
	// nvmeModel is what hosts see as the disks' model.
	nvmeModel = "SPACE"
)

// nvmeView projects capsules as namespaces of one NVMe/TCP target. What it was
// asked for it notes with the capsules, and does again when the node starts.
type nvmeView struct {
	store *store.Store
	list  *views.Registry
	log   *slog.Logger
	clock clock.Clock

	metrics prometheus.Registerer
	home    string // SPACE_HOME

	mu         sync.Mutex // held while anything below changes, opening and closing included
	target     *nvme.Target
	config     NVMeConfig
	configured bool // the addresses of config are open
	ports      []*nvmePort
	lastPort   uint16                    // the last ID that a port was given
	subsystems map[string]*nvmeSubsystem // by NQN
	exports    map[nvmeKey]*nvmeProjection
	waiting    []nvmeWaiting // of space.yaml, that could not be served yet
	closed     bool

	// homes says where reservations are noted. The target asks for them while mu
	// is held, so they have a lock of their own.
	homesMu sync.Mutex
	homes   map[nvmePlace]capsule.ID

	serving sync.WaitGroup // of ports

	news    sync.Mutex
	changed map[capsule.ID]bool // capsules to look at again
	all     bool
	wake    chan struct{}
}

// nvmeKey is what can be projected once: hosts would refuse a second namespace
// that says it is the same disk.
type nvmeKey struct {
	id       capsule.ID
	snapshot string
}

type nvmeSubsystem struct {
	hosts      []control.NVMeHost
	revision   uint64
	configured bool // in space.yaml
	namespaces map[uint32]*nvmeProjection
}

// nvmeWaiting is a namespace of space.yaml.
type nvmeWaiting struct {
	nqn string
	ns  NVMeConfigNamespace
	why string // what was logged last
}

// nvmeProjection is a running projection.
type nvmeProjection struct {
	view *nvmeView
	nvmeExport
	key        nvmeKey
	name       string // the capsule's
	configured bool
	sub        *nvmeSubsystem // also when it has ended, since a listing may still show it
	ports      []*nvmePort
	disk       *disk
	done       chan struct{}
}

func newNVMeView(s *store.Store, home string, list *views.Registry, c *NVMeConfig, metrics prometheus.Registerer, log *slog.Logger) *nvmeView {
	v := &nvmeView{store: s, home: home, list: list, log: log, clock: clock.System(), metrics: metrics,
		subsystems: map[string]*nvmeSubsystem{}, exports: map[nvmeKey]*nvmeProjection{}, homes: map[nvmePlace]capsule.ID{},
		changed: map[capsule.ID]bool{}, wake: make(chan struct{}, 1)}
	if c != nil {
		v.config = *c
	}
	return v
}

// begin takes up what the notes in the store ask for and, with all, what
// space.yaml does. It fails if space.yaml cannot be followed; a capsule that is
// not there yet is waited for.
func (v *nvmeView) begin(ctx context.Context, all bool) error {
	if all {
		if err := v.configure(); err != nil {
			return err
		}
	}
	v.restore(ctx)
	v.retryWaiting(ctx)
	return nil
}

// run keeps up with the store's changes until ctx ends.
func (v *nvmeView) run(ctx context.Context) {
	cancel := v.store.Watch(func(c store.Change) {
		v.news.Lock()
		v.changed[c.ID] = true
		v.all = v.all || c.All
		v.news.Unlock()
		v.stir()
	})
	defer cancel()
	v.news.Lock()
	v.all = true // at what changed between begin and now
	v.news.Unlock()
	v.look(ctx)
	for {
		var again <-chan time.Time
		if v.portsDown() {
			again = v.clock.After(portRetry)
		}
		select {
		case <-v.wake:
			v.look(ctx)
		case <-again:
			v.retryPorts()
		case <-ctx.Done():
			return
		}
	}
}

// stir has run look around.
func (v *nvmeView) stir() {
	select {
	case v.wake <- struct{}{}:
	default: // it will
	}
}

// configure opens the addresses and subsystems of space.yaml.
func (v *nvmeView) configure() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.config.Listen) == 0 && len(v.config.Subsystems) > 0 {
		v.config.Listen = []NVMeListen{{Address: defaultNVMe, ANA: nvme.Optimized}}
	}
	if err := v.openConfigured(); err != nil {
		return err
	}
	for _, c := range v.config.Subsystems {
		hosts, err := configHosts(v.home, c.Hosts)
		if err == nil {
			err = v.addSubsystem(c.NQN, &nvmeSubsystem{hosts: hosts, configured: true, namespaces: map[uint32]*nvmeProjection{}})
		}
		if err == nil {
			err = v.setPaths(c.NQN)
		}
		if err != nil {
			return capsule.Wrap(capsule.Invalid, err, "%s: subsystem %s", ConfigName, c.NQN)
		}
		for _, ns := range c.Namespaces {
			v.waiting = append(v.waiting, nvmeWaiting{nqn: c.NQN, ns: ns})
		}
	}
	return nil
}

// restore starts the projections that are noted in the store. One that cannot
// be started keeps none of the others from it, and nobody from using the node.
func (v *nvmeView) restore(ctx context.Context) {
	err := eachExport(ctx, v.store, func(id capsule.ID, e nvmeExport) error {
		if err := v.restoreOne(ctx, id, e); err != nil {
			v.log.Error("projection is not started again", "id", e.ID, "view", views.NVMe, "capsule", id, "subsystem", e.NQN, "error", err)
		}
		return ctx.Err()
	}, func(id capsule.ID, err error) {
		v.log.Error("projections of a capsule cannot be read", "capsule", id, "error", err)
	})
	if err != nil && ctx.Err() == nil {
		v.log.Error("projections cannot be read from the store", "error", err)
	}
}

func (v *nvmeView) restoreOne(ctx context.Context, id capsule.ID, e nvmeExport) error {
	_, err := v.list.Start(func() (p *views.Projection, err error) {
		err = span(ctx, "nvme_project", func(ctx context.Context) error {
			v.mu.Lock()
			defer v.mu.Unlock()
			p, err = v.start(ctx, id, e, startRestored)
			return err
		}, attribute.String("capsule", id.String()), attribute.Bool("restored", true))
		return p, err
	})
	if k := capsule.KindOf(err); k == capsule.NotFound || k == capsule.Denied || k == capsule.Unsupported {
		// It cannot come back: the snapshot is gone, or the policy says no.
		err = errors.Join(err, forgetExport(ctx, v.store, id, &e))
	}
	return err
}

// retryWaiting starts what space.yaml asks for and could not be started yet.
func (v *nvmeView) retryWaiting(ctx context.Context) {
	v.mu.Lock()
	todo := v.waiting
	v.waiting = nil
	v.mu.Unlock()
	var left []nvmeWaiting
	for _, w := range todo {
		p, err := v.list.Start(func() (*views.Projection, error) {
			info, err := v.store.Resolve(ctx, w.ns.Capsule)
			if err != nil {
				return nil, err
			}
			v.mu.Lock()
			defer v.mu.Unlock()
			e := nvmeExport{NQN: w.nqn, NSID: w.ns.NSID, Snapshot: w.ns.Snapshot, ReadOnly: w.ns.ReadOnly, Since: v.clock.Now().UTC()}
			return v.start(ctx, info.ID, e, startConfigured)
		})
		if err == nil {
			v.log.Info("projection started", "id", p.ID, "view", p.View, "capsule", p.Capsule, "target", p.Target)
			continue
		}
		if ctx.Err() == nil && w.why != err.Error() {
			w.why = err.Error()
			v.log.Warn("a namespace of "+ConfigName+" is not served yet", "subsystem", w.nqn, "nsid", w.ns.NSID, "capsule", w.ns.Capsule, "why", err)
		}
		left = append(left, w)
	}
	v.mu.Lock()
	v.waiting = append(left, v.waiting...)
	v.mu.Unlock()
}

// project starts a projection that somebody asked for.
func (v *nvmeView) project(ctx context.Context, req control.MountRequest) (*views.Projection, error) {
	id, e, err := v.exportOf(ctx, req)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.start(ctx, id, e, startAsked)
}

// exportOf is what a request asks for.
func (v *nvmeView) exportOf(ctx context.Context, req control.MountRequest) (capsule.ID, nvmeExport, error) {
	e := nvmeExport{NQN: req.NVMe.NQN, NSID: req.NVMe.NSID, Snapshot: req.Snapshot, ReadOnly: req.ReadOnly, Since: v.clock.Now().UTC()}
	info, err := v.store.Resolve(ctx, req.Ref)
	if err != nil {
		return info.ID, e, err
	}
	if e.NQN == "" {
		id := info.ID
		if e.Snapshot != "" {
			created, err := snapshotTime(ctx, v.store, id, e.Snapshot)
			if err != nil {
				return id, e, err
			}
			id = snapshotID(id, e.Snapshot, created)
		}
		e.NQN = uuidNQN + id.String()
	} else if err := checkNQN(e.NQN); err != nil {
		return info.ID, e, capsule.Errorf(capsule.Invalid, "project: %.256q: %v", e.NQN, err)
	}
	for _, h := range req.NVMe.Hosts {
		if err := checkNQN(h.NQN); err != nil {
			return info.ID, e, capsule.Errorf(capsule.Invalid, "project: host %.256q: %v", h.NQN, err)
		}
		e.Hosts = append(e.Hosts, h)
	}
	for _, text := range req.NVMe.Listen {
		addr, err := listenAddress(text)
		if err != nil {
			return info.ID, e, err
		}
		if !slices.Contains(e.Listen, addr) {
			e.Listen = append(e.Listen, addr)
		}
	}
	return info.ID, e, nil
}

// change is project for a capsule that is projected already as the request
// says: then it may change who can connect, and add addresses.
func (v *nvmeView) change(ctx context.Context, req control.MountRequest) (info views.Info, found bool, err error) {
	id, e, err := v.exportOf(ctx, req)
	if err != nil {
		return info, false, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.exports[nvmeKey{id, e.Snapshot}]
	if p == nil || req.NVMe.NQN != "" && p.NQN != e.NQN || e.NSID != 0 && p.NSID != e.NSID || p.ReadOnly != e.ReadOnly {
		return info, false, nil // start says what is wrong
	}
	sub := v.subsystems[p.NQN]
	if len(e.Hosts) > 0 && !slices.Equal(e.Hosts, sub.hosts) {
		if sub.configured {
			return info, true, hostsConfigured(p.NQN)
		}
		if err := v.setHosts(ctx, sub, p.NQN, e.Hosts, sub.revision+1); err != nil {
			return info, true, err
		}
	}
	if err := v.addPorts(ctx, p, e.Listen); err != nil {
		return info, true, err
	}
	return p.info(), true, nil
}

func hostsConfigured(nqn string) error {
	return capsule.Errorf(capsule.Conflict, "who may connect to subsystem %s is said in %s", nqn, ConfigName)
}

// listenAddress checks an address and writes it as the listener will.
func listenAddress(text string) (string, error) {
	err := checkAddress(text)
	if err == nil {
		var a *net.TCPAddr
		if a, err = net.ResolveTCPAddr("tcp", text); err == nil {
			return a.String(), nil
		}
	}
	return "", capsule.Errorf(capsule.Invalid, "address %.256q: %v", text, err)
}

type startKind int

const (
	startAsked      startKind = iota // by somebody who waits for the outcome
	startRestored                    // from a note
	startConfigured                  // by space.yaml
)

// start starts a projection. v.mu is held.
func (v *nvmeView) start(ctx context.Context, id capsule.ID, e nvmeExport, kind startKind) (_ *views.Projection, err error) {
	if v.closed {
		return nil, errEnding
	}
	key := nvmeKey{id, e.Snapshot}
	if p := v.exports[key]; p != nil {
		return nil, capsule.Errorf(capsule.Exists, "capsule %s is projected through nvme already, as %s (%s); end that first", id, p.ID, p.targetName())
	}
	info, err := v.admit(ctx, id)
	if err != nil {
		return nil, err
	}
	p := &nvmeProjection{view: v, nvmeExport: e, key: key, name: info.Name, configured: kind == startConfigured, done: make(chan struct{})}
	if p.ID == "" {
		p.ID = views.NewID()
	}
	if p.disk, err = openDisk(ctx, v.store, info, e.Snapshot, e.ReadOnly); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.disk.Close()
		}
	}()

	if err := v.openPorts(p, kind == startRestored); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			v.releasePorts(p.ports)
		}
	}()
	sub := v.subsystems[p.NQN]
	if sub == nil {
		sub = &nvmeSubsystem{hosts: p.Hosts, revision: p.Revision, namespaces: map[uint32]*nvmeProjection{}}
		if err := v.addSubsystem(p.NQN, sub); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil && len(sub.namespaces) == 0 {
				v.removeSubsystem(p.NQN)
			}
		}()
	} else if err := v.joinSubsystem(ctx, sub, p, kind); err != nil {
		return nil, err
	}
	p.sub = sub
	if err := sub.place(&p.nvmeExport); err != nil {
		return nil, err
	}
	v.setHome(p.place(), id)
	defer func() {
		if err != nil {
			v.setHome(p.place(), capsule.ID{})
		}
	}()
	if kind == startAsked {
		// What a crash may have left of one that had ended.
		if err := dropReservations(ctx, v.store, id, p.place()); err != nil {
			return nil, err
		}
		// Durable before hosts see it: they must find it again after a crash.
		if err := changeExports(ctx, v.store, id, func(list []nvmeExport) []nvmeExport { return append(list, p.nvmeExport) }); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil && len(sub.namespaces) > 0 {
			err = errors.Join(err, v.setPaths(p.NQN))
		}
	}()
	if err = v.setPaths(p.NQN, p); err == nil {
		err = v.attach(p)
	}
	if err != nil {
		if kind == startAsked {
			err = errors.Join(err, forgetExport(ctx, v.store, id, &p.nvmeExport))
		}
		return nil, err
	}
	sub.namespaces[p.NSID] = p
	v.exports[key] = p
	return &views.Projection{Info: p.info(), Backend: p, Describe: p.describe}, nil
}

// admit is the policy gate.
func (v *nvmeView) admit(ctx context.Context, id capsule.ID) (capsule.Info, error) {
	info, err := v.store.Info(ctx, id)
	if err != nil {
		return info, err
	}
	policy, err := v.store.Policy(ctx, id)
	if err != nil {
		return info, err
	}
	return info, views.Gate(policy, views.NVMe)
}

// joinSubsystem makes a projection's hosts and those of the subsystem that it
// is to be a namespace of the same.
func (v *nvmeView) joinSubsystem(ctx context.Context, sub *nvmeSubsystem, p *nvmeProjection, kind startKind) error {
	switch {
	case sub.configured && len(p.Hosts) > 0 && kind == startAsked:
		return hostsConfigured(p.NQN)
	case sub.configured || kind == startConfigured:
		p.Hosts, p.Revision = nil, 0
	case kind == startRestored && p.Revision > sub.revision:
		// A crash came between the notes of a subsystem's namespaces.
		return v.setHosts(ctx, sub, p.NQN, p.Hosts, p.Revision)
	case kind == startAsked && len(p.Hosts) > 0 && !slices.Equal(p.Hosts, sub.hosts):
		return capsule.Errorf(capsule.Conflict, "subsystem %s lets other hosts in; leave --host out to take part in it as it is, "+
			"and project a capsule that is in it already once more, with --host, to change that", p.NQN)
	default:
		stale := kind == startRestored && p.Revision < sub.revision
		p.Hosts, p.Revision = sub.hosts, sub.revision
		if stale {
			// The same crash. When this note is the last of the subsystem's it must
			// not bring back hosts that were shut out.
			return v.noteAgain(ctx, p)
		}
	}
	return nil
}

// setHosts changes who may connect to a subsystem. It notes that with all its
// namespaces; the highest revision is the one that counts.
func (v *nvmeView) setHosts(ctx context.Context, sub *nvmeSubsystem, nqn string, hosts []control.NVMeHost, revision uint64) error {
	before := sub.hosts
	if err := v.target.SetHosts(nqn, len(hosts) == 0, targetHosts(hosts)); err != nil {
		return err
	}
	for _, p := range sub.namespaces {
		if p.configured {
			continue
		}
		p.Hosts, p.Revision = hosts, revision
		if err := v.noteAgain(ctx, p); err != nil {
			return errors.Join(err, v.target.SetHosts(nqn, len(before) == 0, targetHosts(before)))
		}
	}
	sub.hosts, sub.revision = hosts, revision
	return nil
}

// place gives an export a namespace ID where it has none, and checks that it is free.
func (s *nvmeSubsystem) place(e *nvmeExport) error {
	if e.NSID == 0 {
		for e.NSID = 1; s.namespaces[e.NSID] != nil; e.NSID++ {
		}
	}
	if e.NSID > maxNSID {
		return capsule.Errorf(capsule.Invalid, "the namespace ID %d is not valid; there are 1 to %d", e.NSID, maxNSID)
	}
	if p := s.namespaces[e.NSID]; p != nil {
		return capsule.Errorf(capsule.Exists, "namespace %d of subsystem %s is capsule %s", e.NSID, e.NQN, p.key.id)
	}
	return nil
}

// needTarget makes the target, at the first use. v.mu is held.
func (v *nvmeView) needTarget() (err error) {
	if v.target != nil {
		return nil
	}
	if v.target, err = nvme.New(nvme.Options{Logger: v.log, Clock: v.clock, Persister: v}); err != nil {
		return err
	}
	return v.metrics.Register(v.target.Collector())
}

func targetHosts(hosts []control.NVMeHost) []nvme.Host {
	list := make([]nvme.Host, len(hosts))
	for i, h := range hosts {
		list[i] = nvme.Host(h)
	}
	return list
}

// addSubsystem adds a subsystem without namespaces.
func (v *nvmeView) addSubsystem(nqn string, s *nvmeSubsystem) error {
	if err := v.needTarget(); err != nil {
		return err
	}
	// Whoever serves this subsystem, now or later, must give it the same serial number.
	sum := sha256.Sum256([]byte(nqn))
	err := v.target.AddSubsystem(nvme.Subsystem{NQN: nqn, Serial: hex.EncodeToString(sum[:10]), Model: nvmeModel,
		AllowAnyHost: len(s.hosts) == 0, Hosts: targetHosts(s.hosts), Ports: []uint16{}})
	if err == nil {
		v.subsystems[nqn] = s
	}
	return err
}

func (v *nvmeView) removeSubsystem(nqn string) {
	if err := v.target.RemoveSubsystem(nqn); err != nil {
		v.log.Error("nvme subsystem", "subsystem", nqn, "error", err)
	}
	delete(v.subsystems, nqn)
}

// attach shows a projection's disk to hosts.
func (v *nvmeView) attach(p *nvmeProjection) error {
	return v.target.AddNamespace(p.NQN, nvme.Namespace{NSID: p.NSID, NGUID: p.disk.uuid, UUID: p.disk.uuid, Device: p.disk,
		ReadOnly: p.ReadOnly, AtomicWrite: p.disk.writes})
}

// stop ends a projection for good. v.mu is held.
func (v *nvmeView) stop(ctx context.Context, p *nvmeProjection) error {
	if !p.configured {
		if err := forgetExport(ctx, v.store, p.key.id, &p.nvmeExport); err != nil {
			return err
		}
	}
	err := v.target.RemoveNamespace(p.NQN, p.NSID)
	if !p.configured { // now that nobody can make new ones
		err = errors.Join(err, dropReservations(ctx, v.store, p.key.id, p.place()))
	}
	sub := v.subsystems[p.NQN]
	delete(sub.namespaces, p.NSID)
	if len(sub.namespaces) == 0 && !sub.configured {
		v.removeSubsystem(p.NQN)
	} else {
		err = errors.Join(err, v.setPaths(p.NQN))
	}
	v.releasePorts(p.ports)
	delete(v.exports, p.key)
	v.setHome(p.place(), capsule.ID{})
	err = errors.Join(err, p.disk.Close())
	close(p.done)
	return err
}

// close ends all projections, of which those that were asked for come again
// with the next node. Commands in flight get until ctx ends.
func (v *nvmeView) close(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	if v.target == nil {
		return nil
	}
	err := v.target.Close(ctx)
	for _, port := range v.ports {
		if port.l != nil {
			port.l.Close()
		}
	}
	v.serving.Wait()
	if err != nil {
		return err // there are commands that still use the disks
	}
	for key, p := range v.exports {
		delete(v.exports, key)
		err = errors.Join(err, p.disk.Close())
		close(p.done)
	}
	return err
}

// look starts, changes and ends what the store's changes ask for.
func (v *nvmeView) look(ctx context.Context) {
	v.news.Lock()
	changed, all := v.changed, v.all
	v.changed, v.all = map[capsule.ID]bool{}, false
	v.news.Unlock()
	v.mu.Lock()
	for key, p := range v.exports {
		if !v.closed && (all || changed[key.id]) {
			v.follow(ctx, p)
		}
	}
	waiting := len(v.waiting) > 0
	v.mu.Unlock()
	if waiting {
		v.retryWaiting(ctx)
	}
}

// follow brings a projection up to date with its capsule. v.mu is held.
func (v *nvmeView) follow(ctx context.Context, p *nvmeProjection) {
	info, err := v.admit(ctx, p.key.id)
	switch k := capsule.KindOf(err); {
	case k == capsule.NotFound || k == capsule.Denied:
		v.log.Warn("projection ends", "id", p.ID, "view", views.NVMe, "capsule", p.key.id, "why", err)
		if err := v.stop(ctx, p); err != nil {
			v.log.Error("projection has not ended properly", "id", p.ID, "error", err)
		}
		if p.configured {
			v.waiting = append(v.waiting, nvmeWaiting{nqn: p.NQN, why: err.Error(),
				ns: NVMeConfigNamespace{Capsule: p.key.id.String(), Snapshot: p.Snapshot, NSID: p.NSID, ReadOnly: p.ReadOnly}})
		}
		return
	case err != nil:
		if ctx.Err() == nil {
			v.log.Error("projection cannot follow its capsule", "id", p.ID, "capsule", p.key.id, "error", err)
		}
		return
	}
	p.name = info.Name
	switch {
	case info.Kind == capsule.Volume && p.Snapshot == "" && info.Size != p.disk.info.Size:
		p.disk.info.Size = info.Size
		err = v.target.Resized(p.NQN, p.NSID)
	case info.Kind == capsule.Object && info.Version != p.disk.version:
		err = v.replace(ctx, p, info)
	}
	if err != nil && ctx.Err() == nil {
		v.log.Error("projection cannot follow its capsule", "id", p.ID, "capsule", p.key.id, "error", err)
	}
}

// replace shows the content that an object has now. It is another disk to the
// hosts: they must not mix what they have read of the old one with it.
func (v *nvmeView) replace(ctx context.Context, p *nvmeProjection, info capsule.Info) error {
	next, err := openDisk(ctx, v.store, info, "", true)
	if err != nil {
		return err
	}
	if err := v.target.RemoveNamespace(p.NQN, p.NSID); err != nil {
		return errors.Join(err, next.Close())
	}
	old := p.disk
	p.disk = next
	return errors.Join(old.Close(), v.attach(p))
}

// clients lists the hosts that are connected.
func (v *nvmeView) clients() []views.Client {
	v.mu.Lock()
	t := v.target
	v.mu.Unlock()
	if t == nil {
		return nil
	}
	var list []views.Client
	for _, c := range t.Controllers() {
		if c.Discovery {
			continue
		}
		list = append(list, views.Client{View: views.NVMe, Subsystem: c.Subsystem, Host: c.HostNQN, Address: c.Remote, Controller: c.CNTLID,
			Since: c.Since, Queues: c.Queues,
			Reads:  views.Traffic{Operations: c.Reads, Bytes: c.ReadBytes, P50: capsule.Duration(c.ReadP50), P99: capsule.Duration(c.ReadP99)},
			Writes: views.Traffic{Operations: c.Writes, Bytes: c.WriteBytes, P50: capsule.Duration(c.WriteP50), P99: capsule.Duration(c.WriteP99)}})
	}
	slices.SortFunc(list, func(a, b views.Client) int {
		return cmp.Or(cmp.Compare(a.Subsystem, b.Subsystem), cmp.Compare(a.Controller, b.Controller))
	})
	return list
}

// Close implements views.Backend.
func (p *nvmeProjection) Close(lazy bool) error {
	v := p.view
	if !lazy {
		hosts := 0
		for _, c := range v.clients() {
			if c.Subsystem == p.NQN {
				hosts++
			}
		}
		if hosts > 0 {
			return capsule.Errorf(capsule.Conflict, "%d hosts are connected to %s; disconnect them first (nvme disconnect -n %s), "+
				"or end it all the same with --lazy: they lose the disk at once", hosts, p.NQN, p.NQN)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.exports[p.key] != p:
		return nil
	case v.closed: // the node lets go of it and forgets nothing
		return errEnding
	case p.configured:
		return capsule.Errorf(capsule.Denied, "%s is in %s; take it out there and restart the node", p.targetName(), ConfigName)
	}
	return v.stop(context.Background(), p)
}

// Done implements views.Backend.
func (p *nvmeProjection) Done() <-chan struct{} { return p.done }

// info is what a listing says. v.mu is held.
func (p *nvmeProjection) info() views.Info {
	i := views.Info{ID: p.ID, View: views.NVMe, Target: p.targetName(), Capsule: p.key.id, Mode: views.ModeTCP, Since: p.Since}
	p.update(&i)
	return i
}

// describe brings up to date what changes while the projection runs.
func (p *nvmeProjection) describe(i *views.Info) {
	p.view.mu.Lock()
	defer p.view.mu.Unlock()
	p.update(i)
}

func (p *nvmeProjection) update(i *views.Info) {
	n := &views.Namespace{NQN: p.NQN, NSID: p.NSID, UUID: p.disk.uuid, ReadOnly: p.ReadOnly || p.disk.ReadOnly(), Snapshot: p.Snapshot,
		Configured: p.configured, Addresses: []string{}, Hosts: []string{}}
	i.Name, i.NVMe, i.Note = p.name, n, ""
	remote := ""
	for _, port := range p.view.pathsOf(p) {
		n.Addresses = append(n.Addresses, port.address)
		if port.down != nil {
			i.Note = fmt.Sprintf("nobody can connect to %s: %v; it is tried again", port.address, port.down)
		}
		if !port.loopback() {
			remote = port.address
		}
	}
	hosts := p.sub.hosts
	for _, h := range hosts {
		n.Hosts = append(n.Hosts, h.NQN)
	}
	if len(hosts) == 0 && remote != "" && i.Note == "" {
		i.Note = fmt.Sprintf("whoever reaches %s can use this disk; name the hosts that may (--host)", remote)
	}
}

// LoadReservations implements nvme.Persister.
func (v *nvmeView) LoadReservations(nqn string, nsid uint32) ([]byte, error) {
	place := nvmePlace{nqn, nsid}
	id, err := v.homeOf(place)
	if err != nil {
		return nil, err
	}
	return v.store.Note(context.Background(), id, place.reservations())
}

// SaveReservations implements nvme.Persister.
func (v *nvmeView) SaveReservations(nqn string, nsid uint32, state []byte) error {
	place := nvmePlace{nqn, nsid}
	id, err := v.homeOf(place)
	if err != nil {
		return err
	}
	return v.store.SetNote(context.Background(), id, place.reservations(), state)
}

// homeOf is the capsule that is a namespace.
func (v *nvmeView) homeOf(p nvmePlace) (capsule.ID, error) {
	v.homesMu.Lock()
	defer v.homesMu.Unlock()
	id, ok := v.homes[p]
	if !ok {
		return id, capsule.Errorf(capsule.NotFound, "no capsule is namespace %d of %s", p.nsid, p.nqn)
	}
	return id, nil
}

// setHome notes whose namespace is where; the zero ID: nobody's.
func (v *nvmeView) setHome(p nvmePlace, id capsule.ID) {
	v.homesMu.Lock()
	defer v.homesMu.Unlock()
	if v.homes[p] = id; id.IsZero() {
		delete(v.homes, p)
	}
}

// noteAgain notes a projection that has changed.
func (v *nvmeView) noteAgain(ctx context.Context, p *nvmeProjection) error {
	return changeExports(ctx, v.store, p.key.id, func(list []nvmeExport) []nvmeExport { return append(withoutExport(list, p.ID), p.nvmeExport) })
}
