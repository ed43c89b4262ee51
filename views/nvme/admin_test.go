package nvme

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spacestore/space/views/nvme/wire"
)

// aer sends a request for an event.
func (q *queue) aer() uint16 {
	q.Helper()
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpAsyncEvent)
	return q.send(&sqe, nil)
}

// quiet fails the test if anything but the answer to a keep-alive comes.
func (q *queue) quiet() {
	q.Helper()
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpKeepAlive)
	q.ok(q.do(&sqe, nil))
}

func TestIdentify(t *testing.T) {
	r := newRig(t, Options{})
	r.add(Namespace{NSID: 5, Device: newMemory(1<<20, 512), NGUID: [16]byte{5}, UUID: [16]byte{6}, ANAGroup: 3, AtomicWrite: 64 << 10})
	r.add(Namespace{NSID: 9, Device: newMemory(1<<22, 4096), NGUID: [16]byte{9}, ReadOnly: true})
	q := r.admin(settings{})

	var c wire.IdentifyController
	if err := c.Parse(q.ok(q.identify(wire.CNSController, 0)).data); err != nil {
		t.Fatal(err)
	}
	if c.CNTLID != q.cntlid || c.Serial != "S1" || c.Model != defaultModel || c.SubNQN != testNQN || c.Type != wire.ControllerIO || c.MDTS != 8 ||
		c.SQES != 0x66 || c.CQES != 0x44 || c.IOCCSZ != (64+16384)/16 || c.IORCSZ != 1 || c.KAS == 0 || c.SGLS&(1|1<<21) != 1|1<<21 ||
		c.VWC&1 == 0 || c.CMIC&wire.CMICANA == 0 || c.MNAN == 0 || c.MNAN > c.NN || c.AWUPF != 0 || c.AWUPF > c.AWUN || c.Version != wire.Version20 {
		t.Errorf("%+v", c)
	}
	var n wire.IdentifyNamespace
	if err := n.Parse(q.ok(q.identify(wire.CNSNamespace, 5)).data); err != nil {
		t.Fatal(err)
	}
	if n.NSZE != 2048 || n.NCAP != 2048 || n.LBADataSize != 9 || n.NGUID != [16]byte{5} || n.ANAGrpID != 3 || n.NMIC != 1 || n.RESCap == 0 ||
		n.NSAttr != 0 || n.NAWUPF != 127 || n.NAWUN != 2047 || n.DLFeat&7 != 1 || n.NPWG != 7 || n.NOWS != 127 {
		t.Errorf("%+v", n)
	}
	if err := n.Parse(q.ok(q.identify(wire.CNSNamespace, 9)).data); err != nil || n.NSZE != 1024 || n.LBADataSize != 12 || n.NSAttr != wire.NSAttrWriteProtect || n.NAWUPF != 0 {
		t.Errorf("%+v, %v", n, err)
	}
	var common wire.IdentifyNamespaceCommon
	if err := common.Parse(q.ok(q.identify(wire.CNSNamespaceCommon, 9)).data); err != nil || common.NStat != 1 || common.NSAttr != 1 || common.ANAGrpID != 1 {
		t.Errorf("%+v, %v", common, err)
	}
	d := wire.ParseDescriptors(q.ok(q.identify(wire.CNSDescriptors, 5)).data)
	if len(d) != 3 || d[0].Type != wire.DescriptorNGUID || d[0].Value[0] != 5 || d[1].Type != wire.DescriptorUUID || d[1].Value[0] != 6 || d[2].Type != wire.DescriptorCSI {
		t.Errorf("%+v", d)
	}
	for _, cns := range []uint8{wire.CNSActiveNamespaces, wire.CNSActiveCSI, wire.CNSAllocated, wire.CNSAllocatedCSI} {
		if l := wire.ParseNamespaceList(q.ok(q.identify(cns, 0)).data); !reflect.DeepEqual(l, []uint32{5, 9}) {
			t.Errorf("CNS %02x: %v", cns, l)
		}
		if l := wire.ParseNamespaceList(q.ok(q.identify(cns, 5)).data); !reflect.DeepEqual(l, []uint32{9}) {
			t.Errorf("CNS %02x from 5: %v", cns, l)
		}
		q.want(q.identify(cns, wire.BroadcastNSID-1), wire.InvalidNamespace)
	}
	if p := q.ok(q.identify(wire.CNSControllers, 0)).data; p[0] != 1 || p[2] != byte(q.cntlid) {
		t.Errorf("controllers: %v", p[:8])
	}
	if p := q.ok(q.identify(wire.CNSControllersOf, 5)).data; p[0] != 1 {
		t.Errorf("controllers of a namespace: %v", p[:8])
	}
	if p := q.ok(q.identify(wire.CNSCommandSets, 0)).data; p[0] != 1 {
		t.Errorf("command sets: %v", p[:8])
	}
	q.ok(q.identify(wire.CNSControllerCSI, 0))
	q.ok(q.identify(wire.CNSNamespaceCSI, 5))
	if p := q.ok(q.identify(wire.CNSNamespace, 6)).data; !bytes.Equal(p, make([]byte, 4096)) {
		t.Error("a namespace that is not there is not all zeroes")
	}
	q.ok(q.identify(wire.CNSNamespace, wire.BroadcastNSID))
	q.want(q.identify(wire.CNSDescriptors, 6), wire.InvalidNamespace)
	q.want(q.identify(wire.CNSNamespace, 0), wire.InvalidNamespace)
	q.want(q.identify(wire.CNSNamespace, 5000), wire.InvalidNamespace)
	q.want(q.identify(0x7f, 0), wire.InvalidField)
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpIdentify)
	sqe.SetNSID(5)
	sqe.SetCDW(10, wire.CNSNamespaceCSI)
	sqe.SetCDW(11, 2<<24) // zoned namespaces
	q.want(q.do(room(&sqe, 4096), nil), wire.InvalidField)
	sqe.SetOpcode(0xc5)
	q.want(q.do(&sqe, nil), wire.InvalidOpcode)
}

// get reads a feature.
func (q *queue) get(id uint8, sel, nsid, dw11 uint32, n int) answer {
	q.Helper()
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpGetFeatures)
	sqe.SetNSID(nsid)
	sqe.SetCDW(10, uint32(id)|sel<<8)
	sqe.SetCDW(11, dw11)
	if n > 0 {
		room(&sqe, n)
	}
	return q.do(&sqe, nil)
}

func TestFeatures(t *testing.T) {
	r := newRig(t, Options{MaxIOQueues: 8})
	r.disk()
	r.add(Namespace{NSID: 2, Device: newMemory(1<<20, 512), ReadOnly: true})
	q := r.admin(settings{kato: 7000})
	for _, f := range []struct {
		id  uint8
		set uint32
	}{{wire.FeatArbitration, 0x01010103}, {wire.FeatPower, 0}, {wire.FeatErrorRecovery, 500}, {wire.FeatWriteCache, 1},
		{wire.FeatWriteAtomicity, 1}, {wire.FeatAsyncEvents, wire.EventsANA}, {wire.FeatKATO, 30000}, {wire.FeatTemperature, 400}} {
		q.ok(q.feature(f.id, 0, f.set))
		if a := q.ok(q.get(f.id, wire.FeatureSelCurrent, 0, 0, 0)); uint32(a.Result) != f.set {
			t.Errorf("feature %02x is %#x, was set to %#x", f.id, a.Result, f.set)
		}
		if a := q.ok(q.get(f.id, wire.FeatureSelSupported, 0, 0, 0)); a.Result&wire.FeatureChangeable == 0 {
			t.Errorf("feature %02x is not changeable", f.id)
		}
		q.ok(q.get(f.id, wire.FeatureSelDefault, 0, 0, 0))
	}
	for ask, want := range map[uint32]uint64{0x00030002: 0x00030002, 0x00ff00ff: 0x00070007} {
		if a := q.ok(q.feature(wire.FeatQueues, 0, ask)); a.Result != want {
			t.Errorf("asked for queues %#x, got %#x", ask, a.Result)
		}
	}
	q.want(q.feature(wire.FeatQueues, 0, 0xffff), wire.InvalidField)
	q.want(q.feature(wire.FeatWriteCache, 0, 0), wire.FeatureNotChangeable)
	q.want(q.feature(wire.FeatHostID, 0, 0), wire.FeatureNotChangeable)
	q.want(q.feature(wire.FeatPower, 0, 3), wire.InvalidField)
	q.want(q.feature(wire.FeatKATO, 1, 0), wire.FeatureNotNamespace)
	q.want(q.feature(0x55, 0, 0), wire.InvalidField)
	q.want(q.get(0x55, 0, 0, 0, 0), wire.InvalidField)
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpSetFeatures)
	sqe.SetCDW(10, wire.FeatKATO|wire.FeatureSaveBit)
	q.want(q.do(&sqe, nil), wire.FeatureNotSaveable)

	if a := q.ok(q.get(wire.FeatHostID, 0, 0, 1, 16)); a.data[0] != 1 || a.data[15] != 9 {
		t.Errorf("host ID is %v", a.data)
	}
	q.want(q.get(wire.FeatHostID, 0, 0, 0, 16), wire.HostIDInconsistent)
	sqe.SetCDW(10, wire.FeatTimestamp)
	q.ok(q.do(&sqe, []byte{0, 0, 0, 1, 0, 0, 0, 0}))
	r.clock.move(3 * time.Second)
	if a := q.ok(q.get(wire.FeatTimestamp, 0, 0, 0, 8)); le.Uint64(a.data)&(1<<48-1) != 1<<24+3000 || a.data[6] != 2 {
		t.Errorf("timestamp is %v", a.data)
	}
	if a := q.ok(q.get(wire.FeatWriteProtect, 0, 2, 0, 0)); a.Result != wire.WriteProtectPermanent {
		t.Errorf("write protection is %d", a.Result)
	}
	q.want(q.get(wire.FeatReservMask, 0, 77, 0, 0), wire.InvalidNamespace)
	q.ok(q.feature(wire.FeatReservMask, wire.BroadcastNSID, 0xe))
	if a := q.ok(q.get(wire.FeatReservMask, 0, 2, 0, 0)); a.Result != 0xe {
		t.Errorf("reservation mask is %#x", a.Result)
	}
	q.want(q.feature(wire.FeatReservPersist, 1, 1), wire.InvalidField) // nothing persists here
	if a := q.ok(q.get(wire.FeatReservPersist, 0, 1, 0, 0)); a.Result != 0 {
		t.Errorf("reservation persistence is %d", a.Result)
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	q, io := r.host(settings{})
	for range 3 {
		io.ok(io.do(ioCommand(wire.OpWrite, 0, 8), make([]byte, 4096)))
	}
	io.ok(io.read(0, 128))
	var s wire.SMART
	if err := s.Parse(q.log(wire.LogSMART, 512)); err != nil || s.Writes != 3 || s.Reads != 1 || s.DataWritten != 1 || s.DataRead != 1 || s.Warning != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if p := q.log(wire.LogSupported, 1024); p[4*wire.LogANA] != 1 || p[4*0x77] != 0 {
		t.Error("supported log pages")
	}
	if p := q.log(wire.LogEffects, 4096); p[4*wire.OpIdentify] != 1 || p[1024+4*wire.OpWrite] != 3 || p[1024+4*wire.OpRead] != 1 || p[1024+4*wire.OpWriteUncorrectable] != 0 {
		t.Error("command effects")
	}
	if p := q.log(wire.LogFirmware, 512); p[0] != 1 {
		t.Error("firmware slots")
	}
	// A part from an offset.
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpGetLogPage)
	sqe.SetCDW(10, wire.LogEffects|15<<16)
	sqe.SetCDW(12, 1024)
	if a := q.ok(q.do(room(&sqe, 64), nil)); len(a.data) != 64 || a.data[4*wire.OpWrite] != 3 {
		t.Errorf("%v", a.data)
	}
	sqe.SetCDW(12, 5000)
	q.want(q.do(room(&sqe, 64), nil), wire.InvalidField)
	sqe.SetCDW(12, 2)
	q.want(q.do(room(&sqe, 64), nil), wire.InvalidField)
	sqe.SetCDW(12, 0)
	sqe.SetCDW(10, 0x77)
	q.want(q.do(room(&sqe, 4), nil), wire.InvalidLogPage)
}

// Hosts that ask for it are told when namespaces come, go and grow: once,
// until they have read what it was.
func TestNamespaceEvents(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	q, io := r.host(settings{})
	told := uint64(wire.EventResult(wire.EventNotice, wire.NoticeNamespace, wire.LogChangedNS))
	id := q.aer()
	r.add(Namespace{NSID: 2, Device: newMemory(1<<20, 512)})
	q.quiet() // it was not asked for
	q.log(wire.LogChangedNS, 4096)
	q.ok(q.feature(wire.FeatAsyncEvents, 0, wire.EventsNamespace))
	m.resize(2 << 20)
	if err := r.Resized(testNQN, 1); err != nil {
		t.Fatal(err)
	}
	if a := q.ok(q.receive(nil)); a.CID != id || a.Result != told {
		t.Fatalf("%+v", a)
	}
	id = q.aer()
	if err := r.RemoveNamespace(testNQN, 2); err != nil {
		t.Fatal(err)
	}
	q.quiet() // it has not read the log page yet
	if l := wire.ParseNamespaceList(q.log(wire.LogChangedNS, 4096)); !reflect.DeepEqual(l, []uint32{1, 2}) {
		t.Fatalf("changed: %v", l)
	}
	if l := wire.ParseNamespaceList(q.log(wire.LogChangedNS, 4096)); len(l) != 0 {
		t.Fatalf("still changed: %v", l)
	}
	r.add(Namespace{NSID: 3, Device: newMemory(1<<20, 512)})
	if a := q.ok(q.receive(nil)); a.CID != id || a.Result != told {
		t.Fatalf("%+v", a)
	}
	var n wire.IdentifyNamespace
	if err := n.Parse(q.ok(q.identify(wire.CNSNamespace, 1)).data); err != nil || n.NSZE != 4096 {
		t.Fatalf("%+v, %v", n, err)
	}
	io.ok(io.do(ioCommand(wire.OpWrite, 4095, 1), pattern(1, 512)))
	three := room(ioCommand(wire.OpRead, 0, 1), 512)
	three.SetNSID(3)
	io.ok(io.do(three, nil))
	three.SetNSID(2)
	io.want(io.do(three, nil), wire.InvalidNamespace)
	// An event that nobody waits for is told with the next request.
	q.log(wire.LogChangedNS, 4096)
	if err := r.Resized(testNQN, 3); err != nil {
		t.Fatal(err)
	}
	id = q.aer()
	if a := q.ok(q.receive(nil)); a.CID != id || a.Result != told {
		t.Fatalf("%+v", a)
	}
	for range maxAERs {
		q.aer()
	}
	q.want(q.do(func() *wire.SQE { var s wire.SQE; s.SetOpcode(wire.OpAsyncEvent); return &s }(), nil), wire.AERLimitExceeded)
	if r.Resized(testNQN, 2) == nil || r.RemoveNamespace(testNQN, 2) == nil || r.RemoveNamespace("nqn.2026-11.io.space:x", 1) == nil {
		t.Error("a namespace that is gone can be changed")
	}
}

// A removed namespace's device is not used when the removal returns.
func TestRemoveWaits(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	_, q := r.host(settings{})
	hang := make(chan struct{})
	m.flushes = func() error { <-hang; return nil }
	q.send(ioCommand(wire.OpFlush, 0, 0), nil)
	r.until("the flush is at the device", func() bool { return m.inside.Load() == 1 })
	removed := make(chan error)
	go func() {
		err := r.RemoveSubsystem(testNQN)
		if n := m.inside.Load(); n != 0 {
			t.Errorf("%d operations at a device that was removed", n)
		}
		removed <- err
	}()
	q.closed()
	close(hang)
	if err := <-removed; err != nil {
		t.Fatal(err)
	}
	if r.AddNamespace(testNQN, Namespace{NSID: 1, Device: m}) == nil {
		t.Error("a namespace was added to a subsystem that is gone")
	}
	if err := r.AddSubsystem(Subsystem{NQN: testNQN, Serial: "S1", AllowAnyHost: true}); err != nil {
		t.Fatal(err)
	}
	r.add(Namespace{NSID: 1, Device: m})
	m.flushes = nil
	_, q = r.host(settings{})
	q.ok(q.read(0, 1))
}

// Ports give access to groups of namespaces or do not, and tell hosts (Base 8.1).
func TestANA(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	r.add(Namespace{NSID: 2, Device: newMemory(1<<20, 512), ANAGroup: 2})
	second := r.listen(Port{ID: 2})
	q, io := r.host(settings{})
	q2, io2 := r.host(settings{addr: second, id: 0})
	for _, q := range []*queue{q, q2} {
		q.ok(q.feature(wire.FeatAsyncEvents, 0, wire.EventsANA))
	}
	q2.aer()
	read := func(q *queue, nsid uint32) answer {
		sqe := room(ioCommand(wire.OpRead, 0, 1), 512)
		sqe.SetNSID(nsid)
		return q.do(sqe, nil)
	}
	for i, c := range []struct {
		state ANAState
		want  wire.Status
	}{{Inaccessible, wire.ANAInaccessible}, {Lost, wire.ANAPersistentLoss}, {Changing, wire.ANATransition}, {NonOptimized, 0}, {Optimized, 0}} {
		id := q.aer()
		for range 2 { // the second time it is no change
			if err := r.SetANA(testNQN, 1, 2, c.state); err != nil {
				t.Fatal(err)
			}
		}
		if a := q.ok(q.receive(nil)); a.CID != id || a.Result != uint64(wire.EventResult(wire.EventNotice, wire.NoticeANA, wire.LogANA)) {
			t.Fatalf("%+v", a)
		}
		io.want(read(io, 2), c.want)
		io.ok(read(io, 1))
		io2.ok(read(io2, 2))
		change, groups := wire.ParseANALog(q.log(wire.LogANA, 4096))
		if len(groups) != 2 || groups[0].State != Optimized || groups[1].State != c.state || change != uint64(i+1) || groups[1].Change != change || groups[1].NSIDs[0] != 2 {
			t.Fatalf("change %d: %+v", change, groups)
		}
	}
	q2.quiet()
	if r.SetANA(testNQN, 1, 2, 9) == nil || r.SetANA(testNQN, 1, 0, Optimized) == nil || r.SetANA(testNQN, 1, 129, Optimized) == nil {
		t.Error("an impossible ANA state was set")
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{MaxTransfer: 5000}, {QueueDepth: 8}, {MaxConns: -1}, {InCapsule: 100}, {MaxH2CData: 100}, {R2TSize: 6},
		{ConnMemory: 1 << 10}, {MaxIOQueues: 70000}, {Memory: 1 << 10}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
	r := newRig(t, Options{})
	for _, s := range []Subsystem{{}, {NQN: "x", Serial: "1"}, {NQN: testNQN, Serial: "1"}, {NQN: wire.DiscoveryNQN, Serial: "1"},
		{NQN: "nqn.2026-11.io.space:y"}, {NQN: "nqn.2026-11.io.space:y", Serial: "012345678901234567890"}} {
		if r.AddSubsystem(s) == nil {
			t.Errorf("%+v was added", s)
		}
	}
	r.disk()
	for _, n := range []Namespace{{NSID: 1, Device: newMemory(512, 512)}, {NSID: 0, Device: newMemory(512, 512)}, {NSID: 1025, Device: newMemory(512, 512)},
		{NSID: 2}, {NSID: 2, Device: newMemory(512, 1024)}, {NSID: 2, Device: newMemory(512, 512), ANAGroup: 1000}} {
		if r.AddNamespace(testNQN, n) == nil {
			t.Errorf("%+v was added", n)
		}
	}
}

// Listings and metrics show what hosts do.
func TestStatistics(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	_, q := r.host(settings{})
	for range 10 {
		q.ok(q.do(ioCommand(wire.OpWrite, 0, 8), make([]byte, 4096)))
		q.ok(q.read(0, 16))
	}
	q.ok(q.do(ioCommand(wire.OpFlush, 0, 0), nil))
	q.want(q.read(1<<40, 1), wire.LBARange)
	list := r.Controllers()
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	c := list[0]
	if c.HostNQN != hostNQN || c.Subsystem != testNQN || c.Queues != 1 || c.Port != 1 || c.Reads != 11 || c.ReadBytes != 81920 || c.Writes != 10 ||
		c.WriteBytes != 40960 || c.Flushes != 1 || c.Errors != 1 || c.ReadP50 <= 0 || c.ReadP99 < c.ReadP50 || c.WriteP99 <= 0 {
		t.Errorf("%+v", c)
	}
	if n := r.Totals(); n.Stats != c.Stats || n.Namespaces != 1 || n.Subsystems != 1 || n.Controllers != 1 || n.Queues != 1 || n.Connections != 2 {
		t.Errorf("%+v", n)
	}
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(r.Collector()); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range families {
		if f.GetName() == "space_nvme_bytes_total" {
			found = f.Metric[0].Counter.GetValue() == 81920 && f.Metric[1].Counter.GetValue() == 40960
		}
	}
	if !found {
		t.Errorf("%v", families)
	}
}

// The buckets of a histogram lie beside each other, and quantiles are within one.
func TestHistogram(t *testing.T) {
	var h histogram
	last := 0
	for d := time.Duration(1); d < 100*time.Second; d += d/10 + 1 {
		b := bucketOf(d)
		if b < last || d >= 4 && upper(b) <= d || b > 0 && d >= 4 && upper(b-1) > d {
			t.Fatalf("%s is in bucket %d, up to %s", d, b, upper(b))
		}
		last = b
	}
	for i := range 100 {
		h.add(time.Duration(i+1) * time.Microsecond)
	}
	if q := h.quantiles(0.5, 0.99); q[0] < 50*time.Microsecond || q[0] > 65*time.Microsecond || q[1] < 99*time.Microsecond || q[1] > 125*time.Microsecond {
		t.Errorf("median %s, 99th percentile %s", q[0], q[1])
	}
}
