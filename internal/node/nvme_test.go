package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/vfs/vfstest"
	"github.com/spacestore/space/views"
	"github.com/spacestore/space/views/nvme"
	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/host"
	"github.com/spacestore/space/views/nvme/wire"
)

// hung bounds how long a test waits for what must come.
const hung = 2 * time.Minute

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	t.Cleanup(cancel)
	return ctx
}

// viewBox is a store and its nvme view, as a node has them.
type viewBox struct {
	t      *testing.T
	s      *store.Store
	home   string
	config *NVMeConfig
	list   *views.Registry
	*nvmeView
	stop func()
}

func newViewBox(t *testing.T, config *NVMeConfig) *viewBox {
	return newViewBoxOn(t, testStore(t), config)
}

func newViewBoxOn(t *testing.T, s *store.Store, config *NVMeConfig) *viewBox {
	b := &viewBox{t: t, s: s, home: t.TempDir(), config: config}
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

// start is what a node does when it starts.
func (b *viewBox) start() {
	b.t.Helper()
	log := slog.New(slog.DiscardHandler)
	b.list = views.NewRegistry(func() {})
	v := newNVMeView(b.s, b.home, b.list, b.config, prometheus.NewRegistry(), log)
	b.nvmeView = v
	if err := v.begin(context.Background(), true); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		v.run(ctx)
	}()
	b.stop = func() {
		b.t.Helper()
		if err := v.close(soon(b.t)); err != nil {
			b.t.Error(err)
		}
		cancel()
		<-ran
	}
}

// restart is a node that ends, and the next one.
func (b *viewBox) restart() {
	b.t.Helper()
	b.stop()
	b.start()
}

func request(ref string) control.MountRequest {
	return control.MountRequest{View: views.NVMe, Ref: ref, NVMe: control.NVMeExport{Listen: []string{"127.0.0.1:0"}}}
}

// try projects as a node does.
func (b *viewBox) try(req control.MountRequest) (views.Info, error) {
	ctx := context.Background()
	if info, found, err := b.change(ctx, req); found || err != nil {
		return info, err
	}
	p, err := b.list.Start(func() (*views.Projection, error) { return b.project(ctx, req) })
	if err != nil {
		return views.Info{}, err
	}
	return p.Info, nil
}

func (b *viewBox) must(req control.MountRequest) views.Info {
	b.t.Helper()
	info, err := b.try(req)
	if err != nil {
		b.t.Fatal(err)
	}
	return info
}

// only is the one projection that runs.
func (b *viewBox) only() views.Info {
	b.t.Helper()
	list := b.list.List()
	if len(list) != 1 {
		b.t.Fatalf("%d projections run: %+v", len(list), list)
	}
	return list[0]
}

// ended waits until a projection is over.
func (b *viewBox) ended(id string) {
	b.t.Helper()
	p, err := b.list.Find(id)
	if err != nil {
		return
	}
	select {
	case <-p.Done():
	case <-soon(b.t).Done():
		b.t.Fatal("the projection does not end")
	}
}

// initiator is a host that is connected.
type initiator struct {
	t *testing.T
	*host.Controller
	q  *host.Queue
	ns *host.Namespace
}

func connect(t *testing.T, info views.Info, o host.Options) *initiator {
	t.Helper()
	ctx := soon(t)
	c, err := host.Connect(ctx, info.NVMe.Addresses[0], info.NVMe.NQN, o)
	// As hosts do, while a node is away: somebody else may have had its port.
	for ; errors.Is(err, syscall.ECONNREFUSED) && ctx.Err() == nil; c, err = host.Connect(ctx, info.NVMe.Addresses[0], info.NVMe.NQN, o) {
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	queues, err := c.OpenQueues(ctx, 1, 32)
	if err != nil {
		t.Fatal(err)
	}
	h := &initiator{t: t, Controller: c, q: queues[0]}
	h.look(info.NVMe.NSID)
	return h
}

// look asks for a namespace.
func (h *initiator) look(nsid uint32) {
	h.t.Helper()
	ns, err := h.Namespace(soon(h.t), nsid)
	if err != nil {
		h.t.Fatal(err)
	}
	h.ns = ns
}

func (h *initiator) write(lba uint64, p []byte) {
	h.t.Helper()
	if err := h.ns.Write(soon(h.t), h.q, lba, p, false); err != nil {
		h.t.Fatal(err)
	}
}

func (h *initiator) want(lba uint64, p []byte) {
	h.t.Helper()
	got := make([]byte, len(p))
	if err := h.ns.Read(soon(h.t), h.q, lba, got); err != nil {
		h.t.Fatal(err)
	}
	if !bytes.Equal(got, p) {
		h.t.Fatalf("block %d is not what was written", lba)
	}
}

// uuid is the namespace's UUID as the host is told.
func (h *initiator) uuid(nsid uint32) (id capsule.ID) {
	h.t.Helper()
	list, err := h.Descriptors(soon(h.t), nsid)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, d := range list {
		if d.Type == wire.DescriptorUUID {
			copy(id[:], d.Value)
		}
	}
	return id
}

// events asks for news of namespaces.
func (h *initiator) events(mask uint32) <-chan host.Event {
	h.t.Helper()
	ch, err := h.Events(soon(h.t), mask)
	if err != nil {
		h.t.Fatal(err)
	}
	return ch
}

func (h *initiator) next(ch <-chan host.Event) host.Event {
	h.t.Helper()
	select {
	case e, ok := <-ch:
		if !ok {
			h.t.Fatal("the connection ended")
		}
		// Reading the log lets the next event come.
		if err := h.LogPage(soon(h.t), e.LogPage, 0xffffffff, 0, make([]byte, 4096)); err != nil {
			h.t.Fatal(err)
		}
		return e
	case <-soon(h.t).Done():
		h.t.Fatal("no event")
		return host.Event{}
	}
}

func pattern(seed byte) []byte { return bytes.Repeat([]byte{seed, 1, 2, 3}, 1024) }

// A volume is written over the network and is there, under the same names and
// at the same address, when the next node serves it; until it is unmounted.
func TestNVMeProjectionLasts(t *testing.T) {
	b := newViewBox(t, nil)
	volume := newVolume(t, b.s, "v", 1<<20)
	info := b.must(request("v"))
	n := info.NVMe
	if n.NQN != uuidNQN+volume.ID.String() || n.NSID != 1 || n.UUID != volume.ID || len(n.Addresses) != 1 || strings.HasSuffix(n.Addresses[0], ":0") ||
		info.Target != n.NQN+"#1" || info.Capsule != volume.ID || info.Name != "v" || info.Note != "" || n.ReadOnly {
		t.Errorf("%+v %+v", info, n)
	}
	h := connect(t, info, host.Options{HeaderDigest: true, DataDigest: true})
	if h.ns.BlockSize != 4096 || h.ns.Size() != 1<<20 || h.ns.ReadOnly || h.uuid(1) != volume.ID {
		t.Errorf("%+v with UUID %s", h.ns, h.uuid(1))
	}
	h.write(3, pattern(7))
	if err := h.ns.Flush(soon(t), h.q); err != nil {
		t.Fatal(err)
	}
	clients := b.clients()
	if len(clients) != 1 || clients[0].Subsystem != n.NQN || clients[0].Queues != 1 || clients[0].Writes.Operations != 1 || clients[0].Writes.Bytes != 4096 {
		t.Errorf("clients %+v", clients)
	}

	b.restart()
	again := b.only()
	if again.ID != info.ID || again.NVMe.NQN != n.NQN || again.NVMe.NSID != n.NSID || again.NVMe.UUID != n.UUID ||
		!slices.Equal(again.NVMe.Addresses, n.Addresses) || !again.Since.Equal(info.Since) {
		t.Errorf("was %+v %+v\nnow %+v %+v", info, n, again, again.NVMe)
	}
	h = connect(t, again, host.Options{})
	h.want(3, pattern(7))

	p, err := b.list.Find(info.Target)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(false); capsule.KindOf(err) != capsule.Conflict || !strings.Contains(err.Error(), "nvme disconnect") {
		t.Errorf("unmount under a host: %v", err)
	}
	if err := p.Close(true); err != nil {
		t.Fatal(err)
	}
	b.ended(info.ID)
	if err := h.ns.Read(soon(t), h.q, 0, make([]byte, 4096)); err == nil {
		t.Error("a disk that is gone was read")
	}
	b.restart()
	if list := b.list.List(); len(list) != 0 {
		t.Errorf("after unmount and restart: %+v", list)
	}
	if notes, err := b.s.Noted(t.Context(), capsule.ID{}, 10); err != nil || len(notes) != 0 {
		t.Errorf("notes are left: %v %v", notes, err)
	}
}

// Hosts see a volume grow, and an object that is replaced as another disk.
func TestNVMeFollowsItsCapsule(t *testing.T) {
	b := newViewBox(t, nil)
	volume := newVolume(t, b.s, "v", 1<<20)
	info := b.must(request("v"))
	h := connect(t, info, host.Options{})
	news := h.events(wire.EventsNamespace)
	if _, err := b.s.ResizeVolume(t.Context(), volume.ID, 4<<20); err != nil {
		t.Fatal(err)
	}
	h.next(news)
	if h.look(1); h.ns.Size() != 4<<20 {
		t.Errorf("the host sees %d bytes", h.ns.Size())
	}
	h.write(h.ns.Blocks-1, pattern(9))

	object := putObject(t, b.s, "o", bytes.Repeat([]byte{1}, 4096))
	req := request("o")
	req.NVMe.NQN, req.NVMe.Listen = info.NVMe.NQN, info.NVMe.Addresses
	shown := b.must(req)
	if shown.NVMe.NSID != 2 || !shown.NVMe.ReadOnly {
		t.Errorf("the second namespace: %+v", shown.NVMe)
	}
	h.next(news)
	h.look(2)
	before := h.uuid(2)
	if !h.ns.ReadOnly || h.ns.Size() != 4096 || before != shown.NVMe.UUID || before == object.ID {
		t.Errorf("the object is %+v, UUID %s", h.ns, before)
	}
	h.want(0, bytes.Repeat([]byte{1}, 512))
	var failed *host.CommandError
	if err := h.ns.Write(soon(t), h.q, 0, make([]byte, 512), false); !errors.As(err, &failed) {
		t.Errorf("a write to an object: %v", err)
	}
	putObject(t, b.s, "o", bytes.Repeat([]byte{2}, 8192))
	for { // it goes, and comes
		h.next(news)
		if ns, err := h.Namespace(soon(t), 2); err == nil && ns.Size() == 8192 {
			break
		}
	}
	h.look(2)
	h.want(0, bytes.Repeat([]byte{2}, 512))
	if h.uuid(2) == before {
		t.Error("another content is the same disk")
	}

	// Without the policy's leave the disk goes, for good.
	policy := capsule.DefaultPolicy()
	policy.Views = capsule.Views{"fuse"}
	if err := b.s.SetPolicy(t.Context(), volume.ID, policy); err != nil {
		t.Fatal(err)
	}
	b.ended(info.ID)
	if _, err := h.Namespace(soon(t), 1); err == nil {
		t.Error("the policy says no, and hosts still see the disk")
	}
	if _, err := b.try(request("v")); capsule.KindOf(err) != capsule.Denied {
		t.Errorf("project against the policy: %v", err)
	}
	if err := b.s.Remove(t.Context(), object.ID); err != nil {
		t.Fatal(err)
	}
	b.ended(shown.ID)
	b.restart()
	if list := b.list.List(); len(list) != 0 {
		t.Errorf("came back: %+v", list)
	}
}

// Who may connect is asked for, changed while hosts are there, and remembered.
func TestNVMeHosts(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "v", 1<<20)
	newVolume(t, b.s, "w", 1<<20)
	one, two := host.HostNQN([16]byte{1}), host.HostNQN([16]byte{2})
	req := request("v")
	req.NVMe.Hosts = []control.NVMeHost{{NQN: one}}
	info := b.must(req)
	if !slices.Equal(info.NVMe.Hosts, []string{one}) {
		t.Errorf("%+v", info.NVMe)
	}
	refused := func(o host.Options) {
		t.Helper()
		if c, err := host.Connect(soon(t), info.NVMe.Addresses[0], info.NVMe.NQN, o); err == nil {
			c.Close()
			t.Errorf("%s was let in", o.HostNQN)
		}
	}
	connect(t, info, host.Options{HostID: [16]byte{1}})
	refused(host.Options{HostID: [16]byte{2}})

	// A second namespace takes part as the subsystem is; it cannot change who may connect.
	join := request("w")
	join.NVMe.NQN, join.NVMe.Listen = info.NVMe.NQN, info.NVMe.Addresses
	join.NVMe.Hosts = []control.NVMeHost{{NQN: two}}
	if _, err := b.try(join); capsule.KindOf(err) != capsule.Conflict {
		t.Errorf("other hosts with another namespace: %v", err)
	}
	join.NVMe.Hosts = nil
	if second := b.must(join); second.NVMe.NSID != 2 || !slices.Equal(second.NVMe.Hosts, []string{one}) {
		t.Errorf("%+v", second.NVMe)
	}

	// Asking again changes it, with a secret and for all namespaces.
	secret, err := dhchap.ParseSecret(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	req.NVMe.Hosts = []control.NVMeHost{{NQN: two, Secret: testSecret, CtrlSecret: testSecret}}
	if changed := b.must(req); changed.ID != info.ID || !slices.Equal(changed.NVMe.Hosts, []string{two}) {
		t.Errorf("%+v", changed)
	}
	check := func() {
		t.Helper()
		refused(host.Options{HostID: [16]byte{1}})
		refused(host.Options{HostID: [16]byte{2}})
		connect(t, info, host.Options{HostID: [16]byte{2}, Secret: secret, ControllerSecret: secret})
	}
	check()
	b.restart()
	check()
	req.NVMe.Hosts = []control.NVMeHost{{NQN: two, Secret: "hunter2"}}
	if _, err := b.try(req); capsule.KindOf(err) != capsule.Invalid || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret that is none: %v", err)
	}
	check()
}

// Reservations are there again when the next node serves the namespace, and
// gone when the projection has ended.
func TestNVMeReservationsLast(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "v", 1<<20)
	info := b.must(request("v"))
	holder, other := host.Options{HostID: [16]byte{1}}, host.Options{HostID: [16]byte{2}}
	h := connect(t, info, holder)
	for _, cmd := range []*host.Command{h.ns.Register(wire.ReservActRegister, wire.ReservPersistOn, 0, 0x77),
		h.ns.Acquire(wire.ReservActAcquire, wire.ReservWriteExclusive, 0x77, 0)} {
		if err := h.q.Do(soon(t), cmd); err != nil {
			t.Fatal(err)
		}
	}
	b.restart()
	o := connect(t, info, other)
	var failed *host.CommandError
	if err := o.ns.Write(soon(t), o.q, 0, pattern(1), false); !errors.As(err, &failed) {
		t.Errorf("a write against a reservation: %v", err)
	}
	report, err := o.ns.ReservationReport(soon(t), o.q)
	if err != nil || report.Type != wire.ReservWriteExclusive || len(report.Registrants) != 1 || report.Registrants[0].HostID != holder.HostID {
		t.Errorf("%+v, %v", report, err)
	}
	h = connect(t, info, holder)
	h.write(0, pattern(1))

	p, err := b.list.Find(info.ID)
	if err == nil {
		err = p.Close(true)
	}
	if err != nil {
		t.Fatal(err)
	}
	info = b.must(request("v"))
	o = connect(t, info, other)
	o.write(0, pattern(2)) // nobody reserves it any more
}

// space.yaml has a node serve capsules, of which one may come later, at
// addresses of which one is for discovery alone.
func TestNVMeConfigured(t *testing.T) {
	const nqn = "nqn.2026-11.com.example:disks"
	allowed := host.HostNQN([16]byte{5})
	config := &NVMeConfig{Listen: []NVMeListen{{Address: "127.0.0.1:0", PortID: 9, ANA: 1}}, Discovery: []string{"127.0.0.1:0"},
		Subsystems: []NVMeSubsystem{{NQN: nqn, Hosts: []NVMeConfigHost{{NQN: allowed}},
			Namespaces: []NVMeConfigNamespace{{Capsule: "later", NSID: 4}}}}}
	b := newViewBox(t, config)
	if list := b.list.List(); len(list) != 0 {
		t.Fatalf("%+v", list)
	}
	b.mu.Lock()
	address, discovery := b.ports[0].address, b.ports[1].address
	b.mu.Unlock()
	c, err := host.Connect(soon(t), address, nqn, host.Options{HostID: [16]byte{5}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h := &initiator{t: t, Controller: c}
	news := h.events(wire.EventsNamespace)
	volume := newVolume(t, b.s, "later", 1<<20)
	h.next(news)
	if h.look(4); h.uuid(4) != volume.ID {
		t.Errorf("UUID %s", h.uuid(4))
	}
	for ctx := soon(t); len(b.list.List()) == 0 && ctx.Err() == nil; { // hosts see it a moment before
	}
	info := b.only()
	if !info.NVMe.Configured || !slices.Equal(info.NVMe.Addresses, []string{address}) || info.Note != "" {
		t.Errorf("%+v %+v", info, info.NVMe)
	}
	p, err := b.list.Find(info.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(true); capsule.KindOf(err) != capsule.Denied || !strings.Contains(err.Error(), ConfigName) {
		t.Errorf("unmount: %v", err)
	}
	req := request("later")
	req.NVMe.Listen, req.NVMe.Hosts = nil, []control.NVMeHost{{NQN: host.HostNQN([16]byte{6})}}
	if _, err := b.try(req); capsule.KindOf(err) != capsule.Conflict {
		t.Errorf("other hosts than space.yaml says: %v", err)
	}
	entries := discover(t, discovery, [16]byte{5})
	if !slices.ContainsFunc(entries, func(e wire.DiscoveryEntry) bool {
		return e.SubNQN == nqn && net.JoinHostPort(e.TrAddr, e.TrSvcID) == address && e.PortID == 9
	}) {
		t.Errorf("discovery lists %+v", entries)
	}
	if c, err := host.Connect(soon(t), discovery, nqn, host.Options{HostID: [16]byte{5}}); err == nil {
		c.Close()
		t.Error("a disk can be reached through the discovery port")
	}
	if entries := discover(t, discovery, [16]byte{6}); slices.ContainsFunc(entries, func(e wire.DiscoveryEntry) bool { return e.SubNQN == nqn }) {
		t.Error("a host that may not connect is told of the subsystem")
	}
	if err := b.s.Remove(t.Context(), volume.ID); err != nil {
		t.Fatal(err)
	}
	b.ended(info.ID)
}

func discover(t *testing.T, address string, hostID [16]byte) []wire.DiscoveryEntry {
	t.Helper()
	c, err := host.Connect(soon(t), address, wire.DiscoveryNQN, host.Options{HostID: hostID})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	entries, _, err := c.Discover(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// A projection is reached at the addresses that it was asked for alone, though
// the target listens at others for others.
func TestNVMeAddressesAreApart(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "v", 1<<20)
	newVolume(t, b.s, "w", 1<<20)
	v, w := b.must(request("v")), b.must(request("w"))
	if v.NVMe.Addresses[0] == w.NVMe.Addresses[0] {
		t.Fatalf("both at %s", v.NVMe.Addresses[0])
	}
	if c, err := host.Connect(soon(t), w.NVMe.Addresses[0], v.NVMe.NQN, host.Options{}); err == nil {
		c.Close()
		t.Error("a disk can be reached at another one's address")
	}
	if entries := discover(t, w.NVMe.Addresses[0], [16]byte{1}); slices.ContainsFunc(entries, func(e wire.DiscoveryEntry) bool { return e.SubNQN == v.NVMe.NQN }) {
		t.Errorf("discovery lists %+v", entries)
	}
	// More of them, while a host is there.
	h := connect(t, v, host.Options{})
	more := request("v")
	more.NVMe.Listen = append(slices.Clone(v.NVMe.Addresses), "127.0.0.1:0")
	v = b.must(more)
	if len(v.NVMe.Addresses) != 2 {
		t.Fatalf("%+v", v.NVMe)
	}
	h.write(1, pattern(4))
	path := v
	path.NVMe = &views.Namespace{NQN: v.NVMe.NQN, NSID: v.NVMe.NSID, Addresses: v.NVMe.Addresses[1:]}
	connect(t, path, host.Options{}).want(1, pattern(4))
	b.restart()
	connect(t, path, host.Options{}).want(1, pattern(4))
}

// A subsystem is reached where its namespaces are; hosts at an address that
// goes with one of them are let go.
func TestNVMeAddressGoes(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "v", 1<<20)
	newVolume(t, b.s, "w", 1<<20)
	v := b.must(request("v"))
	join := request("w")
	join.NVMe.NQN = v.NVMe.NQN
	w := b.must(join)
	atV, atW := connect(t, v, host.Options{}), connect(t, w, host.Options{})
	atV.write(0, pattern(1))
	atW.write(0, pattern(2))
	p, err := b.list.Find(v.ID)
	if err == nil {
		err = p.Close(true)
	}
	if err != nil {
		t.Fatal(err)
	}
	var failed *host.CommandError
	if err := atV.ns.Read(soon(t), atV.q, 0, make([]byte, 4096)); err == nil || errors.As(err, &failed) {
		t.Errorf("a host is still connected at an address that is gone: %v", err)
	}
	atW.want(0, pattern(2))
}

// An address that is taken when a node starts is tried again; the listing says
// so. Whoever asks for one that is taken is told at once.
func TestNVMeAddressTaken(t *testing.T) {
	b := newViewBox(t, nil)
	volume := newVolume(t, b.s, "v", 1<<20)
	b.stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	address := l.Addr().String()
	e := nvmeExport{ID: views.NewID(), NQN: uuidNQN + volume.ID.String(), NSID: 1, Listen: []string{address}, Since: time.Now().UTC()}
	if err := changeExports(t.Context(), b.s, volume.ID, func([]nvmeExport) []nvmeExport { return []nvmeExport{e} }); err != nil {
		t.Fatal(err)
	}
	b.start()
	info := b.only()
	if !strings.Contains(info.Note, address) || info.ID != e.ID || info.NVMe.NQN != e.NQN {
		t.Errorf("%+v", info)
	}
	snap := request("v")
	snap.Snapshot, snap.NVMe.Listen = "s", []string{address}
	if _, err := b.s.Snapshot(t.Context(), volume.ID, "s"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.try(snap); capsule.KindOf(err) != capsule.IO {
		t.Errorf("project at an address that is taken: %v", err)
	}
	l.Close()
	for ctx := soon(t); b.only().Note != ""; {
		if b.retryPorts(); ctx.Err() != nil {
			t.Fatalf("%+v", b.only())
		}
	}
	connect(t, info, host.Options{}).write(0, pattern(3))
}

// A snapshot is a read-only disk of its own, beside the volume that goes on.
func TestNVMeSnapshot(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "v", 1<<20)
	h := connect(t, b.must(request("v")), host.Options{})
	h.write(0, pattern(3))
	volume := b.only()
	if _, err := b.s.Snapshot(t.Context(), volume.Capsule, "s"); err != nil {
		t.Fatal(err)
	}
	h.write(0, pattern(4))
	req := request("v")
	req.Snapshot = "s"
	snap := b.must(req)
	if snap.NVMe.UUID == volume.Capsule || !snap.NVMe.ReadOnly || snap.NVMe.Snapshot != "s" || snap.NVMe.NQN == volume.NVMe.NQN {
		t.Errorf("%+v", snap.NVMe)
	}
	b.restart()
	then := connect(t, snap, host.Options{})
	then.want(0, pattern(3))
	if !then.ns.ReadOnly || then.uuid(1) != snap.NVMe.UUID {
		t.Errorf("%+v, UUID %s", then.ns, then.uuid(1))
	}
	connect(t, volume, host.Options{}).want(0, pattern(4))
	// A snapshot that is gone is not shown by the next node, and forgotten.
	if err := b.s.DeleteSnapshot(t.Context(), volume.Capsule, "s"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if got := b.only(); got.ID != volume.ID {
		t.Errorf("%+v", got)
	}
}

func TestNVMeRefusals(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "v", 1<<20)
	newVolume(t, b.s, "w", 1<<20)
	info := b.must(request("v"))
	for what, c := range map[string]struct {
		ref    string
		change func(*control.MountRequest)
		kind   capsule.ErrorKind
	}{
		"no such capsule":            {"x", func(*control.MountRequest) {}, capsule.NotFound},
		"no such snapshot":           {"w", func(r *control.MountRequest) { r.Snapshot = "s" }, capsule.NotFound},
		"a name that is no NQN":      {"w", func(r *control.MountRequest) { r.NVMe.NQN = "disk" }, capsule.Invalid},
		"a host that is no NQN":      {"w", func(r *control.MountRequest) { r.NVMe.Hosts = []control.NVMeHost{{NQN: "me"}} }, capsule.Invalid},
		"an address that is none":    {"w", func(r *control.MountRequest) { r.NVMe.Listen = []string{"here"} }, capsule.Invalid},
		"a namespace that is taken":  {"w", func(r *control.MountRequest) { r.NVMe.NQN, r.NVMe.NSID = info.NVMe.NQN, 1 }, capsule.Exists},
		"a number that is reserved":  {"w", func(r *control.MountRequest) { r.NVMe.NSID = 0xffffffff }, capsule.Invalid},
		"a capsule that has another": {"v", func(r *control.MountRequest) { r.NVMe.NQN = "nqn.2026-11.com.example:v" }, capsule.Exists},
	} {
		req := request(c.ref)
		c.change(&req)
		if _, err := b.try(req); capsule.KindOf(err) != c.kind {
			t.Errorf("%s: %v", what, err)
		}
	}
	if list := b.list.List(); len(list) != 1 {
		t.Errorf("left %+v", list)
	}
	b.mu.Lock()
	if len(b.ports) != 1 || len(b.subsystems) != 1 || len(b.exports) != 1 || len(b.homes) != 1 {
		t.Errorf("left %d ports, %d subsystems, %d exports, %d homes", len(b.ports), len(b.subsystems), len(b.exports), len(b.homes))
	}
	b.mu.Unlock()
	b.restart()
	b.only()
}

// A node that ends while hosts write answers what it took, and all of that is
// there afterwards; hosts that come back go on.
func TestNVMeDrain(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "v", 8<<20)
	info := b.must(request("v"))
	const writers = 4
	type result struct{ from, to uint64 } // blocks that were acknowledged
	results := make(chan result, writers)
	begun := make(chan struct{}, writers)
	for w := range uint64(writers) {
		h := connect(t, info, host.Options{})
		go func() {
			first := w * 256
			done := first
			for ; done < first+256; done++ {
				if h.ns.Write(context.Background(), h.q, done, pattern(byte(done)), false) != nil {
					break
				}
				if done == first {
					begun <- struct{}{}
				}
			}
			results <- result{first, done}
		}()
	}
	for range writers {
		<-begun
	}
	b.restart()
	h := connect(t, info, host.Options{})
	for range writers {
		r := <-results
		if r.to == r.from {
			t.Error("a host wrote nothing")
		}
		for lba := r.from; lba < r.to; lba++ {
			h.want(lba, pattern(byte(lba)))
		}
	}
}

// A node that ends lets go of projections and forgets none, even of one that
// could not be drained in time.
func TestNVMeEndForgetsNothing(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "v", 1<<20)
	info := b.must(request("v"))
	b.mu.Lock()
	b.closed = true // as while commands still wait for their disk
	b.mu.Unlock()
	for _, err := range b.list.CloseAll() {
		if capsule.KindOf(err) != capsule.Unavailable {
			t.Error(err)
		}
	}
	b.restart()
	if got := b.only(); got.ID != info.ID {
		t.Errorf("%+v", got)
	}
}

// After a failed sync no flush and no write is acknowledged any more; what was
// can be read.
func TestNVMeFailedSync(t *testing.T) {
	faults := vfstest.NewFaults(vfstest.NewPowerCut())
	s := openTestStore(t, faults)
	b := newViewBoxOn(t, s, nil)
	newVolume(t, s, "v", 1<<20)
	h := connect(t, b.must(request("v")), host.Options{})
	h.write(0, pattern(1))
	if err := h.ns.Flush(soon(t), h.q); err != nil {
		t.Fatal(err)
	}
	h.write(1, pattern(2))
	faults.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Sync {
			return syscall.EIO
		}
		return nil
	})
	var failed *host.CommandError
	for range 2 {
		if err := h.ns.Flush(soon(t), h.q); !errors.As(err, &failed) {
			t.Errorf("flush: %v", err)
		}
		if err := h.ns.Write(soon(t), h.q, 2, pattern(3), true); !errors.As(err, &failed) {
			t.Errorf("write with FUA: %v", err)
		}
	}
	h.want(0, pattern(1))
}

// What no node runs can be ended too.
func TestNVMeForgottenWithoutNode(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "v", 1<<20)
	info := b.must(request("v"))
	b.stop()
	l := newLocal(b.s, "")
	if _, err := l.Unmount(t.Context(), "nothing", false); capsule.KindOf(err) != capsule.NotFound {
		t.Error(err)
	}
	got, err := l.Unmount(t.Context(), info.Target, false)
	if err != nil || got.ID != info.ID || got.Capsule != info.Capsule {
		t.Errorf("%+v, %v", got, err)
	}
	b.start()
	if list := b.list.List(); len(list) != 0 {
		t.Errorf("came back: %+v", list)
	}
}

// A note of a version to come, or one that is damaged, costs that projection
// alone, and is not thrown away.
func TestNVMeForeignNotes(t *testing.T) {
	b := newViewBox(t, nil)
	v, w := newVolume(t, b.s, "v", 1<<20), newVolume(t, b.s, "w", 1<<20)
	b.must(request("w"))
	for _, note := range []string{`{"version":99,"exports":[]}`, "not JSON"} {
		if err := b.s.SetNote(t.Context(), v.ID, nvmeNote, []byte(note)); err != nil {
			t.Fatal(err)
		}
		b.restart()
		if got := b.only(); got.Capsule != w.ID {
			t.Errorf("%+v", got)
		}
		if _, err := b.try(request("v")); err == nil {
			t.Error("a projection was noted over one that cannot be read")
		}
		if got, err := b.s.Note(t.Context(), v.ID, nvmeNote); err != nil || string(got) != note {
			t.Errorf("the note became %q, %v", got, err)
		}
	}
}

func FuzzDecodeExports(f *testing.F) {
	b, err := encodeExports([]nvmeExport{{ID: "1", NQN: "nqn.2026-11.a:b", NSID: 1, Listen: []string{"127.0.0.1:1"}, Hosts: []control.NVMeHost{{NQN: "h"}}, Since: time.Unix(1, 0)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeExports(b)
		if err != nil {
			return
		}
		again, err := encodeExports(list)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeExports(again); err != nil || len(got) != len(list) {
			t.Fatalf("%d became %d: %v", len(list), len(got), err)
		}
	})
}

// A listing that is made while a projection ends shows what it was: of its
// subsystem nothing is left then.
func TestNVMeListedWhileItEnds(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "vm", 1<<20)
	info := b.must(request("vm"))
	p, err := b.list.Find(info.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(true); err != nil {
		t.Fatal(err)
	}
	i := p.Info
	p.Describe(&i) // as a listing does that found it just before
	if i.NVMe == nil || i.NVMe.NQN != info.NVMe.NQN {
		t.Fatalf("listed as %+v", i)
	}
}

// An address of space.yaml that a projection has asked for before is open already.
func TestNVMeAddressBecomesConfigured(t *testing.T) {
	b := newViewBox(t, nil)
	newVolume(t, b.s, "a", 1<<20)
	newVolume(t, b.s, "b", 1<<20)
	first := b.must(request("a"))
	b.nvmeView.mu.Lock() // as in a node in the background, which opens them when they are needed
	b.nvmeView.configured, b.nvmeView.config.Listen = false, []NVMeListen{{Address: first.NVMe.Addresses[0], ANA: nvme.Optimized}}
	b.nvmeView.mu.Unlock()
	req := request("b")
	req.NVMe.Listen = nil
	second := b.must(req)
	if !slices.Equal(second.NVMe.Addresses, first.NVMe.Addresses) {
		t.Fatalf("at %v, not at %v", second.NVMe.Addresses, first.NVMe.Addresses)
	}
	connect(t, second, host.Options{})
}

// A crash between the notes of a subsystem's namespaces brings nobody back who
// was shut out, whichever of them is left.
func TestNVMeOlderNoteOfHosts(t *testing.T) {
	b := newViewBox(t, nil)
	var ids []capsule.ID
	for _, name := range []string{"a", "b"} {
		ids = append(ids, newVolume(t, b.s, name, 1<<20).ID)
	}
	slices.SortFunc(ids, func(a, b capsule.ID) int { return bytes.Compare(a[:], b[:]) }) // as they are restored
	nqn, old, new := "nqn.2026-11.io.space:both", host.HostNQN([16]byte{1}), host.HostNQN([16]byte{2})
	b.stop()
	for i, id := range ids { // the first has the newer note
		e := nvmeExport{ID: views.NewID(), NQN: nqn, NSID: uint32(i + 1), Listen: []string{"127.0.0.1:0"}, Since: time.Now().UTC(),
			Hosts: []control.NVMeHost{{NQN: []string{new, old}[i]}}, Revision: uint64(2 - i)}
		if err := changeExports(soon(t), b.s, id, func(l []nvmeExport) []nvmeExport { return append(l, e) }); err != nil {
			t.Fatal(err)
		}
	}
	b.start()
	if list := b.list.List(); len(list) != 2 {
		t.Fatalf("%+v", list)
	}
	p, err := b.list.Find(nqn + "#1")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(true); err != nil {
		t.Fatal(err)
	}
	b.ended(p.ID)
	b.restart()
	if left := b.only(); !slices.Equal(left.NVMe.Hosts, []string{new}) {
		t.Fatalf("%v may connect; should be %s", left.NVMe.Hosts, new)
	}
}
