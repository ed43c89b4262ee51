package nvme

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/wire"
)

// Each invalid parameter of a connect is refused and named (Base 6.3).
func TestConnectErrors(t *testing.T) {
	r := newRig(t, Options{MaxIOQueues: 4})
	r.disk()
	discovery := r.listen(Port{ID: 2, DiscoveryOnly: true})
	if err := r.SetHosts(testNQN, false, []Host{{NQN: hostNQN}}); err != nil {
		t.Fatal(err)
	}
	admin := r.admin(settings{})
	param := func(data bool, off uint16) uint64 { return wire.InvalidParam(data, off) }
	for name, c := range map[string]struct {
		change func(*wire.Connect)
		status wire.Status
		result uint64
	}{
		"record format":   {func(c *wire.Connect) { c.RecFmt = 1 }, wire.ConnectIncompatible, 0},
		"subsystem":       {func(c *wire.Connect) { c.SubNQN = "nqn.2026-11.io.space:other" }, wire.ConnectInvalidParam, param(true, 256)},
		"host name":       {func(c *wire.Connect) { c.HostNQN = "me" }, wire.ConnectInvalidParam, param(true, 512)},
		"host":            {func(c *wire.Connect) { c.HostNQN = "nqn.2026-11.io.space:stranger" }, wire.ConnectInvalidHost, 0},
		"no host ID":      {func(c *wire.Connect) { c.HostID = [16]byte{} }, wire.ConnectInvalidParam, param(true, 0)},
		"static ID":       {func(c *wire.Connect) { c.CNTLID = 1 }, wire.ConnectInvalidParam, param(true, 16)},
		"queue size 0":    {func(c *wire.Connect) { c.SQSize = 0 }, wire.ConnectInvalidParam, param(false, 44)},
		"queue too small": {func(c *wire.Connect) { c.SQSize = 30 }, wire.ConnectInvalidParam, param(false, 44)},
		"queue too large": {func(c *wire.Connect) { c.SQSize = 128 }, wire.ConnectInvalidParam, param(false, 44)},
		"no controller":   {func(c *wire.Connect) { c.QID, c.CNTLID = 1, 999 }, wire.ConnectInvalidParam, param(true, 16)},
		"another host":    {func(c *wire.Connect) { c.QID, c.CNTLID, c.HostID = 1, admin.cntlid, [16]byte{99} }, wire.ConnectInvalidParam, param(true, 0)},
		"queue number":    {func(c *wire.Connect) { c.QID, c.CNTLID = 5, admin.cntlid }, wire.ConnectInvalidParam, param(false, 42)},
	} {
		t.Run(name, func(t *testing.T) {
			q := r.dial(settings{})
			q.initialize()
			req := q.s.connect(0, wire.DynamicCNTLID)
			c.change(&req)
			cqe := q.tryConnect(req)
			if cqe.Status.Code() != c.status || cqe.Status&wire.DNR == 0 || cqe.Result != c.result {
				t.Fatalf("%s, result %#x; should be %s, %#x", cqe.Status, cqe.Result, c.status, c.result)
			}
			// The connection may still become a queue.
			if cqe := q.tryConnect(q.s.connect(0, wire.DynamicCNTLID)); cqe.Status != wire.Success {
				t.Fatal(cqe.Status)
			}
		})
	}
	q := r.dial(settings{addr: discovery})
	q.initialize()
	if cqe := q.tryConnect(q.s.connect(0, wire.DynamicCNTLID)); cqe.Status.Code() != wire.ConnectInvalidParam {
		t.Fatalf("a subsystem on the discovery port: %s", cqe.Status)
	}
	q.want(q.do(ioCommand(wire.OpFlush, 0, 0), nil), wire.CommandSequenceError)

	r.io(admin, 2)
	again := r.dial(settings{})
	again.initialize()
	if cqe := again.tryConnect(again.s.connect(2, admin.cntlid)); cqe.Status.Code() != wire.CommandSequenceError {
		t.Fatalf("a queue number twice: %s", cqe.Status)
	}
}

// A controller serves nothing before it is enabled, and a connected queue
// cannot be connected again.
func TestNotReady(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	q := r.dial(settings{})
	q.initialize()
	cqe := q.tryConnect(q.s.connect(0, wire.DynamicCNTLID))
	q.want(q.identify(wire.CNSController, 0), wire.CommandSequenceError)
	io := r.dial(settings{})
	io.initialize()
	if cqe := io.tryConnect(io.s.connect(1, uint16(cqe.Result))); cqe.Status.Code() != wire.ConnectInvalidParam {
		t.Fatalf("an I/O queue of a controller that is not enabled: %s", cqe.Status)
	}
	bad := uint32(4<<20 | 5<<16 | 1) // I/O queue entries of 32 bytes
	q.property(wire.PropCC, &bad)
	if csts := q.property(wire.PropCSTS, nil); csts != wire.CSTSFatal {
		t.Fatalf("CSTS is %#x with an impossible CC", csts)
	}
	off := uint32(0)
	q.property(wire.PropCC, &off)
	q.enable()
	q.ok(q.identify(wire.CNSController, 0))
	if cqe := q.tryConnect(q.s.connect(0, wire.DynamicCNTLID)); cqe.Status.Code() != wire.CommandSequenceError {
		t.Fatalf("connect of a queue: %s", cqe.Status)
	}
}

func TestProperties(t *testing.T) {
	r := newRig(t, Options{})
	q := r.admin(settings{})
	var sqe wire.SQE
	wire.Property{Wide: true, Offset: wire.PropCAP}.Get(&sqe)
	cap := q.ok(q.do(&sqe, nil)).Result
	if cap&0xffff != 127 || cap>>16&1 != 1 || cap>>37&1 != 1 || cap>>43&1 != 1 {
		t.Errorf("CAP is %#x", cap)
	}
	if v := q.property(wire.PropVS, nil); v != 0x20000 {
		t.Errorf("VS is %#x", v)
	}
	if v := q.property(wire.PropCC, nil); v != ccEnable {
		t.Errorf("CC is %#x", v)
	}
	for name, p := range map[string]wire.Property{"narrow CAP": {Offset: wire.PropCAP}, "wide VS": {Wide: true, Offset: wire.PropVS}, "unknown": {Offset: 0x40}} {
		p.Get(&sqe)
		if a := q.do(&sqe, nil); a.Status.Code() != wire.InvalidField {
			t.Errorf("%s: %s", name, a.Status)
		}
	}
	wire.Property{Offset: wire.PropVS, Value: 1}.Set(&sqe)
	q.want(q.do(&sqe, nil), wire.InvalidField)
}

// A reset ends the I/O queues and waits for nothing; the controller can be
// enabled again. New I/O queues wait for what is still at the device.
func TestReset(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	admin, q := r.host(settings{})
	hang := make(chan struct{})
	m.flushes = func() error { <-hang; return nil }
	release := sync.OnceFunc(func() { close(hang) })
	defer release()
	q.send(ioCommand(wire.OpFlush, 0, 0), nil)
	r.until("the flush is at the device", func() bool { return m.inside.Load() == 1 })
	for range 10 { // outstanding requests for events go too
		var aer wire.SQE
		aer.SetOpcode(wire.OpAsyncEvent)
		for range maxAERs {
			admin.send(&aer, nil)
		}
		off := uint32(0)
		admin.property(wire.PropCC, &off)
		if csts := admin.property(wire.PropCSTS, nil); csts != 0 {
			t.Fatalf("CSTS is %#x after a reset", csts)
		}
		admin.enable()
	}
	q.closed()
	var left atomic.Int32 // at the device when the new queue is there
	back := make(chan *queue)
	go func() {
		q := r.io(admin, 1)
		left.Store(m.inside.Load())
		back <- q
	}()
	r.until("it connects", func() bool { return r.Totals().Connections >= 2 })
	release()
	if q = <-back; left.Load() != 0 {
		t.Error("there was a new queue while a command of the old one was at the device")
	}
	q.ok(q.read(0, 1))
}

// A shutdown flushes before it is done; it does not hold up the admin queue.
func TestShutdown(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	admin, q := r.host(settings{})
	q.ok(q.do(ioCommand(wire.OpWrite, 3, 1), pattern(1, 512)))
	hang := make(chan struct{})
	m.flushes = func() error { <-hang; return nil }
	cc := uint32(ccEnable | 1<<14)
	admin.property(wire.PropCC, &cc)
	if csts := admin.property(wire.PropCSTS, nil); csts>>2&3 != 1 {
		t.Fatalf("CSTS is %#x while the shutdown is under way", csts)
	}
	close(hang)
	r.until("the shutdown is done", func() bool { return admin.property(wire.PropCSTS, nil)>>2&3 == 2 })
	if !bytes.Equal(m.flushed[3*512:][:512], pattern(1, 512)) {
		t.Fatal("what was written is not durable after a shutdown")
	}
}

func TestDisconnect(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	admin, q := r.host(settings{})
	var sqe wire.SQE
	sqe.SetFabrics(wire.FCDisconnect)
	admin.want(admin.do(&sqe, nil), wire.InvalidQueueType)
	q.ok(q.do(&sqe, nil))
	q.closed()
	r.until("the queue is gone", func() bool { return r.Controllers()[0].Queues == 0 })
	q = r.io(admin, 1)
	q.ok(q.read(0, 1))
	if err := r.Disconnect(testNQN, admin.cntlid); err != nil {
		t.Fatal(err)
	}
	admin.closed()
	q.closed()
	if err := r.Disconnect(testNQN, admin.cntlid); err == nil {
		t.Fatal("a controller that is gone was disconnected")
	}
}

// Hosts that are not allowed any more, or have another secret, are out.
func TestSetHosts(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	if err := r.SetHosts(testNQN, false, []Host{{NQN: "nqn.2026-11.io.space:a"}, {NQN: "nqn.2026-11.io.space:b"}}); err != nil {
		t.Fatal(err)
	}
	a, _ := r.host(settings{nqn: "nqn.2026-11.io.space:a"})
	b, bq := r.host(settings{nqn: "nqn.2026-11.io.space:b"})
	if err := r.SetHosts(testNQN, false, []Host{{NQN: "nqn.2026-11.io.space:b"}}); err != nil {
		t.Fatal(err)
	}
	a.closed()
	bq.ok(bq.read(0, 1))
	secret, err := dhchap.GenerateSecret(dhchap.None, 32)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetHosts(testNQN, false, []Host{{NQN: "nqn.2026-11.io.space:b", Secret: secret.Text()}}); err != nil {
		t.Fatal(err)
	}
	b.closed()
	for _, bad := range [][]Host{{{NQN: "x"}}, {{NQN: hostNQN, Secret: "x"}}, {{NQN: hostNQN, CtrlSecret: secret.Text()}}, {{NQN: hostNQN, Secret: secret.Text(), CtrlSecret: "y"}}} {
		if r.SetHosts(testNQN, true, bad) == nil {
			t.Errorf("hosts %+v were taken", bad)
		}
	}
}

// authenticate runs the host's side; it reports whether the target was content.
func (q *queue) authenticate(cfg dhchap.Config) error {
	q.Helper()
	h, err := dhchap.NewHost(cfg, 7)
	if err != nil {
		q.Fatal(err)
	}
	for message, done := h.Start(), false; ; {
		if message != nil {
			var sqe wire.SQE
			wire.Auth{SPSP0: 1, SPSP1: 1, SECP: wire.AuthSECP, Length: uint32(len(message))}.Command(&sqe, wire.FCAuthSend)
			q.ok(q.do(&sqe, message))
		}
		if done {
			return nil
		}
		var sqe wire.SQE
		wire.Auth{SPSP0: 1, SPSP1: 1, SECP: wire.AuthSECP, Length: 2048}.Command(&sqe, wire.FCAuthReceive)
		a := q.ok(q.do(room(&sqe, 2048), nil))
		if message, done, err = h.Next(a.data); err != nil {
			return err
		}
	}
}

// A host with a secret is served after it has proved that it knows it, on
// each of its queues; nothing else works before, and a wrong secret ends it.
func TestAuthentication(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	secret, _ := dhchap.GenerateSecret(dhchap.SHA256, 0)
	ours, _ := dhchap.GenerateSecret(dhchap.SHA384, 0)
	wrong, _ := dhchap.GenerateSecret(dhchap.SHA256, 0)
	if err := r.SetHosts(testNQN, false, []Host{{NQN: hostNQN, Secret: secret.Text(), CtrlSecret: ours.Text()}}); err != nil {
		t.Fatal(err)
	}
	cfg := dhchap.Config{HostNQN: hostNQN, SubsysNQN: testNQN, HostSecret: secret, ControllerSecret: ours, Groups: []dhchap.Group{dhchap.FFDHE2048}}
	connect := func(qid, cntlid uint16) (*queue, uint16) {
		q := r.dial(settings{})
		q.initialize()
		cqe := q.tryConnect(q.s.connect(qid, cntlid))
		if cqe.Status != wire.Success || uint32(cqe.Result)&wire.AuthRequiredATR == 0 {
			t.Fatalf("%+v", cqe)
		}
		return q, uint16(cqe.Result)
	}
	admin, id := connect(0, wire.DynamicCNTLID)
	admin.want(admin.identify(wire.CNSController, 0), wire.AuthRequired)
	var sqe wire.SQE
	wire.Property{Offset: wire.PropCC, Value: ccEnable}.Set(&sqe)
	admin.want(admin.do(&sqe, nil), wire.AuthRequired)
	if err := admin.authenticate(cfg); err != nil {
		t.Fatal(err)
	}
	admin.enable()
	q, _ := connect(1, id)
	q.want(q.read(0, 1), wire.AuthRequired)
	if err := q.authenticate(cfg); err != nil {
		t.Fatal(err)
	}
	q.ok(q.read(0, 1))
	if c := r.Controllers()[0]; !c.Authenticated {
		t.Errorf("%+v", c)
	}
	// Once more, on a queue in use.
	if err := q.authenticate(cfg); err != nil {
		t.Fatal(err)
	}
	q.ok(q.read(0, 1))

	bad := cfg
	bad.HostSecret = wrong
	q, _ = connect(2, id)
	if err := q.authenticate(bad); err == nil {
		t.Fatal("a wrong secret passed")
	}
	q.closed()
	if n := r.Totals().AuthFailures; n != 1 {
		t.Errorf("%d failures counted", n)
	}
	// Who never authenticates is half-open.
	admin, _ = connect(0, wire.DynamicCNTLID)
	r.tick(11 * time.Second)
	admin.closed()

	wire.Auth{SPSP0: 1, SPSP1: 1, SECP: 0xea, Length: 64}.Command(&sqe, wire.FCAuthReceive)
	admin, _ = connect(0, wire.DynamicCNTLID)
	admin.want(admin.do(room(&sqe, 64), nil), wire.InvalidField)
	wire.Auth{SPSP0: 1, SPSP1: 1, SECP: wire.AuthSECP, Length: 64}.Command(&sqe, wire.FCAuthReceive)
	admin.want(admin.do(room(&sqe, 64), nil), wire.CommandSequenceError)
}

// Discovery tells a host which subsystems it may connect to and where, with a
// generation that changes when they do, and tells hosts that stay (Base 4.5).
func TestDiscovery(t *testing.T) {
	r := newRig(t, Options{})
	q := r.dial(settings{})
	q.initialize()
	req := wire.Connect{SQSize: 31, CNTLID: wire.DynamicCNTLID, SubNQN: wire.DiscoveryNQN, HostNQN: hostNQN, KATO: 30000}
	if cqe := q.tryConnect(req); cqe.Status != wire.Success {
		t.Fatal(cqe.Status)
	}
	cc := uint32(1)
	q.property(wire.PropCC, &cc)
	var id wire.IdentifyController
	if err := id.Parse(q.ok(q.identify(wire.CNSController, 0)).data); err != nil || id.Type != wire.ControllerDiscovery || id.SubNQN != wire.DiscoveryNQN {
		t.Fatalf("%+v, %v", id, err)
	}
	read := func() (h wire.DiscoveryHeader, list []wire.DiscoveryEntry) {
		if err := h.Parse(q.log(wire.LogDiscovery, 1024)); err != nil {
			t.Fatal(err)
		}
		page := q.log(wire.LogDiscovery, 1024*int(1+h.Records))
		for i := range int(h.Records) {
			var e wire.DiscoveryEntry
			if err := e.Parse(page[1024*(i+1):]); err != nil {
				t.Fatal(err)
			}
			list = append(list, e)
		}
		return h, list
	}
	before, list := read()
	if len(list) != 2 || list[0].SubType != wire.SubTypeCurrent || list[0].SubNQN != wire.DiscoveryNQN || list[1].SubNQN != testNQN ||
		list[1].TrAddr != "127.0.0.1" || list[1].TrAddr+":"+list[1].TrSvcID != r.addr || list[1].TrType != wire.TrTypeTCP || list[1].PortID != 1 {
		t.Fatalf("%+v", list)
	}
	q.ok(q.feature(wire.FeatAsyncEvents, 0, wire.EventsDiscovery))
	var aer, keepAlive wire.SQE
	aer.SetOpcode(wire.OpAsyncEvent)
	request := q.send(&aer, nil)
	for _, change := range []func() error{
		func() error {
			return r.AddSubsystem(Subsystem{NQN: "nqn.2026-11.io.space:b", Serial: "b", Hosts: []Host{{NQN: hostNQN}}})
		},
		func() error {
			return r.AddSubsystem(Subsystem{NQN: "nqn.2026-11.io.space:c", Serial: "c", Hosts: []Host{{NQN: "nqn.2026-11.io.space:x"}}})
		},
		func() error { return r.SetHosts("nqn.2026-11.io.space:b", false, nil) },
		func() error { return r.RemoveSubsystem("nqn.2026-11.io.space:c") },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
	}
	if a := q.ok(q.receive(nil)); a.CID != request || a.Result != uint64(wire.EventResult(wire.EventNotice, wire.NoticeDiscovery, wire.LogDiscovery)) {
		t.Fatalf("%+v", a)
	}
	after, list := read()
	if after.Generation <= before.Generation || len(list) != 2 {
		t.Fatalf("generation %d after %d, %d records", after.Generation, before.Generation, len(list))
	}
	keepAlive.SetOpcode(wire.OpKeepAlive)
	q.ok(q.do(&keepAlive, nil))
	q.want(q.identify(wire.CNSActiveNamespaces, 0), wire.InvalidField)
	q.want(q.feature(wire.FeatQueues, 0, 1), wire.InvalidField)

	r.listen(Port{ID: 9, Address: "192.0.2.1", Service: "4420"})
	if _, list := read(); len(list) != 3 || list[2].TrAddr != "192.0.2.1" || list[2].TrSvcID != "4420" || list[2].PortID != 9 {
		t.Fatalf("%+v", list)
	}
	// Without keep-alive it ends by itself.
	brief := r.dial(settings{})
	brief.initialize()
	req.KATO = 0
	if cqe := brief.tryConnect(req); cqe.Status != wire.Success {
		t.Fatal(cqe.Status)
	}
	r.tick(0)
	r.tick(3 * time.Minute)
	brief.closed()
}

// Commands in flight are answered when the target closes; new ones are not taken.
func TestClose(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	_, q := r.host(settings{})
	hang := make(chan struct{})
	m.flushes = func() error { <-hang; return nil }
	q.send(ioCommand(wire.OpFlush, 0, 0), nil)
	r.until("the flush is at the device", func() bool { return m.inside.Load() == 1 })
	closed := make(chan error)
	go func() { closed <- r.Close(context.Background()) }()
	r.until("it is closing", r.isClosed)
	close(hang)
	q.ok(q.receive(nil))
	q.closed()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}

// What a host left behind on a connection that broke does not take effect
// after it has come back.
func TestLingeringWrites(t *testing.T) {
	r := newRig(t, Options{Workers: 1})
	m := r.disk()
	admin, q := r.host(settings{})
	hang := make(chan struct{})
	m.writes = func(off int64, n int) error {
		if n == 32768 {
			<-hang
		}
		return nil
	}
	w := func(slba uint64) {
		q.send(room(ioCommand(wire.OpWrite, slba, 64), 32768), nil)
		typ, h, err := q.r.Next()
		if err != nil || typ != wire.TypeR2T {
			t.Fatal(typ, err)
		}
		q.give(wire.ParseR2T(h), pattern(1, 32768))
	}
	w(0)
	r.until("the first write is at the device", func() bool { return m.inside.Load() == 1 })
	w(64)
	r.until("the second waits", func() bool {
		ns := r.subsystems[testNQN].namespace(1)
		ns.workers.mu.Lock()
		defer ns.workers.mu.Unlock()
		return len(ns.workers.queue) == 1
	})
	admin.nc.Close()
	q.nc.Close()
	r.until("the controller is gone", func() bool { return len(r.Controllers()) == 0 })
	back := make(chan *queue)
	go func() {
		q := r.dial(settings{})
		q.initialize()
		q.tryConnect(q.s.connect(0, wire.DynamicCNTLID))
		back <- q
	}()
	r.until("it is connecting", func() bool { return r.Totals().Connections >= 1 })
	select {
	case <-back:
		t.Error("the host was connected while its write was still under way")
	case <-time.After(20 * time.Millisecond): // only gives a wrong answer time to come
	}
	close(hang)
	<-back
	if m.count.write != 1 {
		t.Errorf("%d writes reached the device: the one that waited had to be dropped", m.count.write)
	}
	if !bytes.Equal(m.data[64*512:][:512], make([]byte, 512)) {
		t.Error("a write of a connection that is gone took effect")
	}
}

// A host that is shut out while its connect waits is not let in after that.
func TestShutOutWhileConnecting(t *testing.T) {
	secret, err := dhchap.GenerateSecret(dhchap.None, 32)
	if err != nil {
		t.Fatal(err)
	}
	for name, hosts := range map[string][]Host{"not listed": {}, "a secret": {{NQN: hostNQN, Secret: secret.Text()}}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{})
			m := r.disk()
			admin, q := r.host(settings{})
			hang := make(chan struct{})
			m.flushes = func() error { <-hang; return nil }
			q.send(ioCommand(wire.OpFlush, 0, 0), nil)
			r.until("the flush is at the device", func() bool { return m.inside.Load() == 1 })
			admin.nc.Close()
			q.nc.Close()
			r.until("the controller is gone", func() bool { return len(r.Controllers()) == 0 && r.Totals().Connections == 0 })
			status := make(chan wire.Status)
			go func() {
				q := r.dial(settings{})
				q.initialize()
				status <- q.tryConnect(q.s.connect(0, wire.DynamicCNTLID)).Status
			}()
			r.until("it waits for what it left behind", func() bool {
				r.Target.mu.Lock()
				defer r.Target.mu.Unlock()
				for c := range r.conns {
					if c.hostNQN() == hostNQN {
						return true
					}
				}
				return false
			})
			err := r.SetHosts(testNQN, false, hosts)
			close(hang)
			if s := <-status; err != nil || s.Code() != wire.ConnectInvalidHost {
				t.Errorf("%v, connect: %s", err, s)
			}
		})
	}
}
