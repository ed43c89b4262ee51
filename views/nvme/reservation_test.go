package nvme

import (
	"errors"
	"testing"

	"github.com/spacestore/space/views/nvme/wire"
)

// keys are a reservation command's data.
func keys(k ...uint64) (b []byte) {
	for _, x := range k {
		b = le.AppendUint64(b, x)
	}
	return b
}

func (q *queue) reserve(op uint8, dw10 uint32, k ...uint64) answer {
	q.Helper()
	sqe := ioCommand(op, 0, 0)
	sqe.SetCDW(10, dw10)
	return q.do(sqe, keys(k...))
}

func (q *queue) report() wire.ReservStatus {
	q.Helper()
	sqe := ioCommand(wire.OpReservReport, 0, 0)
	sqe.SetCDW(10, 1023)
	sqe.SetCDW(11, 1)
	return wire.ParseReservStatus(q.ok(q.do(room(sqe, 4096), nil)).data, true)
}

const (
	register, unregister, replace  = wire.ReservActRegister, wire.ReservActUnregister, wire.ReservActReplace
	acquire, preempt, preemptAbort = wire.ReservActAcquire, wire.ReservActPreempt, wire.ReservActPreemptAbort
)

func kind(k int) uint32 { return uint32(k) << 8 }

// Each type of reservation lets the holder, registrants and others read and
// write as the table says (Base figure 431).
func TestReservationTypes(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	_, holder := r.host(settings{id: 1})
	_, registrant := r.host(settings{id: 2})
	_, other := r.host(settings{id: 3})
	holder.ok(holder.reserve(wire.OpReservRegister, register, 0, 1))
	registrant.ok(registrant.reserve(wire.OpReservRegister, register, 0, 2))
	type rights struct{ read, write bool }
	all, readOnly, none := rights{true, true}, rights{true, false}, rights{}
	for k, want := range map[int][2]rights{
		wire.ReservWriteExclusive:    {readOnly, readOnly},
		wire.ReservExclusive:         {none, none},
		wire.ReservWriteExclusiveReg: {all, readOnly},
		wire.ReservExclusiveReg:      {all, none},
		wire.ReservWriteExclusiveAll: {all, readOnly},
		wire.ReservExclusiveAll:      {all, none},
	} {
		holder.ok(holder.reserve(wire.OpReservAcquire, acquire|kind(k), 1, 0))
		holder.ok(holder.reserve(wire.OpReservAcquire, acquire|kind(k), 1, 0)) // again
		for i, q := range []*queue{holder, registrant, other} {
			w := all
			if i > 0 {
				w = want[i-1]
			}
			check := func(what string, allowed bool, a answer) {
				t.Helper()
				if a.Status == 0 != allowed || !allowed && a.Status.Code() != wire.ReservationConflict {
					t.Errorf("type %d, host %d: %s: %s", k, i, what, a.Status)
				}
			}
			check("read", w.read, q.read(0, 1))
			check("compare", w.read, q.do(ioCommand(wire.OpCompare, 0, 1), make([]byte, 512)))
			check("verify", w.read, q.do(ioCommand(wire.OpVerify, 0, 1), nil))
			check("write", w.write, q.do(ioCommand(wire.OpWrite, 0, 1), make([]byte, 512)))
			check("write zeroes", w.write, q.do(ioCommand(wire.OpWriteZeroes, 0, 1), nil))
			dsm := ioCommand(wire.OpDSM, 0, 0)
			dsm.SetCDW(11, wire.DSMDeallocate)
			check("deallocate", w.write, q.do(dsm, make([]byte, 16)))
			c, _ := q.fused(0, make([]byte, 512), make([]byte, 512))
			check("compare and write", w.write, answer{CQE: wire.CQE{Status: c}})
			check("flush", w.write, q.do(ioCommand(wire.OpFlush, 0, 0), nil))
		}
		st := other.report()
		if int(st.Type) != k || len(st.Registrants) != 2 || !st.Registrants[0].Holder || st.Registrants[1].Holder != (k >= wire.ReservWriteExclusiveAll) ||
			st.Registrants[0].Key != 1 || st.Registrants[1].HostID[0] != 3 || st.Generation != 2 {
			t.Errorf("type %d: %+v", k, st)
		}
		holder.ok(holder.reserve(wire.OpReservRelease, kind(k), 1))
	}
}

func TestReservationRules(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	_, a := r.host(settings{id: 1})
	_, b := r.host(settings{id: 2})
	_, c := r.host(settings{id: 3})
	conflict := wire.ReservationConflict
	we, ea, all := kind(wire.ReservWriteExclusive), kind(wire.ReservExclusive), kind(wire.ReservExclusiveAll)

	a.want(a.reserve(wire.OpReservAcquire, we, 1, 0), conflict) // not registered
	a.want(a.reserve(wire.OpReservRegister, register, 0, 0), wire.InvalidField)
	a.ok(a.reserve(wire.OpReservRegister, register, 0, 10))
	a.ok(a.reserve(wire.OpReservRegister, register, 0, 10))
	a.want(a.reserve(wire.OpReservRegister, register, 0, 11), conflict)
	a.want(a.reserve(wire.OpReservRegister, replace, 9, 11), conflict)
	a.ok(a.reserve(wire.OpReservRegister, replace, 10, 11))
	a.ok(a.reserve(wire.OpReservRegister, replace|wire.ReservIgnoreKey, 0, 10))
	b.want(b.reserve(wire.OpReservRegister, unregister, 10, 0), conflict)
	b.want(b.reserve(wire.OpReservRegister, replace, 0, 20), conflict)
	b.ok(b.reserve(wire.OpReservRegister, register, 0, 20))
	c.ok(c.reserve(wire.OpReservRegister, register, 0, 20)) // the same key as b
	a.want(a.reserve(wire.OpReservRegister, 5, 10, 11), wire.InvalidField)
	a.want(a.reserve(wire.OpReservRegister, register|1<<30, 0, 10), wire.InvalidField)

	a.want(a.reserve(wire.OpReservAcquire, acquire|kind(0), 10, 0), wire.InvalidField)
	a.want(a.reserve(wire.OpReservAcquire, acquire|kind(7), 10, 0), wire.InvalidField)
	a.want(a.reserve(wire.OpReservAcquire, 3|we, 10, 0), wire.InvalidField)
	a.want(a.reserve(wire.OpReservAcquire, acquire|we, 11, 0), conflict)
	a.ok(a.reserve(wire.OpReservAcquire, acquire|we, 10, 0))
	a.want(a.reserve(wire.OpReservAcquire, acquire|ea, 10, 0), conflict) // has another type
	b.want(b.reserve(wire.OpReservAcquire, acquire|we, 20, 0), conflict)
	b.ok(b.reserve(wire.OpReservRelease, we, 20)) // holds nothing
	a.want(a.reserve(wire.OpReservRelease, ea, 10), wire.InvalidField)
	a.want(a.reserve(wire.OpReservRelease, we, 9), conflict)
	if st := a.report(); st.Type != wire.ReservWriteExclusive || len(st.Registrants) != 3 {
		t.Fatalf("%+v", st)
	}

	// A preempt takes registrations by key, and the reservation if it is theirs.
	b.want(b.reserve(wire.OpReservAcquire, preempt|ea, 20, 99), conflict)
	b.want(b.reserve(wire.OpReservAcquire, preempt|ea, 20, 0), wire.InvalidField)
	b.ok(b.reserve(wire.OpReservAcquire, preempt|ea, 20, 20)) // c's, and not its own
	if st := b.report(); st.Type != wire.ReservWriteExclusive || len(st.Registrants) != 2 {
		t.Fatalf("%+v", st)
	}
	b.ok(b.reserve(wire.OpReservAcquire, preemptAbort|ea, 20, 10))
	if st := b.report(); st.Type != wire.ReservExclusive || len(st.Registrants) != 1 || st.Registrants[0].HostID[0] != 3 || !st.Registrants[0].Holder {
		t.Fatalf("%+v", st)
	}
	a.want(a.read(0, 1), conflict)
	b.ok(b.reserve(wire.OpReservAcquire, preempt|all, 20, 20)) // itself: another type
	if st := b.report(); st.Type != wire.ReservExclusiveAll {
		t.Fatalf("%+v", st)
	}
	// With all registrants holding it, key 0 means everybody else.
	a.ok(a.reserve(wire.OpReservRegister, register, 0, 10))
	c.ok(c.reserve(wire.OpReservRegister, register, 0, 30))
	c.ok(c.read(0, 1))
	a.ok(a.reserve(wire.OpReservAcquire, preempt|we, 10, 0))
	if st := a.report(); st.Type != wire.ReservWriteExclusive || len(st.Registrants) != 1 {
		t.Fatalf("%+v", st)
	}
	// The holder's unregistration releases.
	a.ok(a.reserve(wire.OpReservRegister, unregister|wire.ReservIgnoreKey, 0, 0))
	if st := a.report(); st.Type != 0 || len(st.Registrants) != 0 {
		t.Fatalf("%+v", st)
	}
	// Of all registrants the last one does.
	for q, k := range map[*queue]uint64{a: 1, b: 2} {
		q.ok(q.reserve(wire.OpReservRegister, register, 0, k))
	}
	a.ok(a.reserve(wire.OpReservAcquire, all, 1, 0))
	a.ok(a.reserve(wire.OpReservRegister, unregister, 1, 0))
	if st := a.report(); st.Type != wire.ReservExclusiveAll {
		t.Fatalf("%+v", st)
	}
	c.ok(c.reserve(wire.OpReservRegister, register, 0, 3))
	b.ok(b.reserve(wire.OpReservRelease, wire.ReservActClear, 2))
	if st := a.report(); st.Type != 0 || len(st.Registrants) != 0 {
		t.Fatalf("%+v", st)
	}
	c.want(c.reserve(wire.OpReservRelease, wire.ReservActClear, 3), conflict)
	short := ioCommand(wire.OpReservReport, 0, 0)
	short.SetCDW(10, 3)
	c.want(c.do(room(short, 16), nil), wire.HostIDInconsistent)
}

// When a preempt is answered, no write of the preempted host is under way, and
// none comes after it: not of what waited, not of what was being sent.
func TestFencing(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	_, a := r.host(settings{id: 1})
	_, b := r.host(settings{id: 2})
	a.ok(a.reserve(wire.OpReservRegister, register, 0, 1))
	b.ok(b.reserve(wire.OpReservRegister, register, 0, 2))
	a.ok(a.reserve(wire.OpReservAcquire, kind(wire.ReservWriteExclusive), 1, 0))
	hang := make(chan struct{})
	m.writes = func(int64, int) error { <-hang; return nil }
	under := a.send(ioCommand(wire.OpWrite, 0, 32), make([]byte, 16384)) // goes to the device
	r.until("the write is at the device", func() bool { return m.inside.Load() == 1 })
	asked := a.send(room(ioCommand(wire.OpWrite, 100, 64), 32768), nil) // its data is to come
	done := make(chan bool)
	go func() {
		defer close(done)
		if s := b.reserve(wire.OpReservAcquire, preemptAbort|kind(wire.ReservWriteExclusive), 2, 1).Status; s != 0 {
			t.Error(s)
		}
		if n := m.inside.Load(); n != 0 {
			t.Error("a write of the preempted host is under way when the preempt is answered")
		}
	}()
	close(hang)
	<-done
	for range 2 {
		switch x := a.receive(make([]byte, 32768)); {
		case x.CID == under && x.Status == 0, x.CID == asked && x.Status.Code() == wire.ReservationConflict:
		default:
			t.Errorf("%+v", x)
		}
	}
	if m.count.write != 1 {
		t.Errorf("%d writes reached the device", m.count.write)
	}
	b.ok(b.do(ioCommand(wire.OpWrite, 0, 1), make([]byte, 512)))
}

// Reservations that are to persist are durable before the command is
// answered, and are there when the target is started again (Base 8.19.8).
func TestReservationPersistence(t *testing.T) {
	saved := &notes{}
	r := newRig(t, Options{Persister: saved})
	m := r.disk()
	admin, a := r.host(settings{id: 1})
	_, b := r.host(settings{id: 2})
	on, off := uint32(wire.ReservPersistOn)<<30, uint32(wire.ReservPersistOff)<<30
	b.ok(b.reserve(wire.OpReservRegister, register, 0, 2))
	if len(saved.m) != 0 {
		t.Fatal("reservations were saved that are not to persist")
	}
	a.ok(a.reserve(wire.OpReservRegister, register|on, 0, 1))
	a.ok(a.reserve(wire.OpReservAcquire, kind(wire.ReservExclusive), 1, 0))
	before := a.report()
	if before.PTPLS != 1 {
		t.Fatalf("%+v", before)
	}
	if x := admin.ok(admin.get(wire.FeatReservPersist, 0, 1, 0, 0)); x.Result != 1 {
		t.Errorf("persistence is %d", x.Result)
	}
	// What cannot be made durable does not happen.
	saved.fail = errors.New("no space")
	b.want(b.reserve(wire.OpReservAcquire, preempt|kind(wire.ReservExclusive), 2, 1), wire.InternalError)
	saved.fail = nil
	b.want(b.read(0, 1), wire.ReservationConflict)

	again := newRig(t, Options{Persister: saved})
	again.add(Namespace{NSID: 1, Device: m})
	_, b = again.host(settings{id: 2})
	b.want(b.read(0, 1), wire.ReservationConflict)
	after := b.report()
	if after.Type != before.Type || after.Generation != before.Generation || after.PTPLS != 1 || len(after.Registrants) != 2 ||
		after.Registrants[0].Key != 1 || !after.Registrants[0].Holder || after.Registrants[0].CNTLID != wire.DynamicCNTLID {
		t.Fatalf("%+v, before it was %+v", after, before)
	}
	admin, a = again.host(settings{id: 1})
	a.ok(a.read(0, 1))
	a.ok(a.reserve(wire.OpReservRegister, replace|off, 1, 1))
	third := newRig(t, Options{Persister: saved})
	third.add(Namespace{NSID: 1, Device: m})
	_, c := third.host(settings{id: 3})
	if st := c.report(); len(st.Registrants) != 0 || st.Type != 0 {
		t.Fatalf("%+v", st)
	}
	admin.ok(admin.feature(wire.FeatReservPersist, 1, 1))
	for _, bad := range []string{"x", `{"version":2}`, `{"version":1,"type":9}`, `{"version":1,"type":1,"holder":"00"}`,
		`{"version":1,"registrants":{"zz":1}}`, `{"version":1,"type":5}`, `{"version":1,"type":1,"holder":"00000000000000000000000000000001"}`} {
		if err := saved.SaveReservations(testNQN, 2, []byte(bad)); err != nil {
			t.Fatal(err)
		}
		if third.AddNamespace(testNQN, Namespace{NSID: 2, Device: newMemory(512, 512)}) == nil {
			t.Errorf("damaged reservations were taken for none: %s", bad)
		}
	}
}

// Hosts are told what others do to their registrations and reservations,
// unless they masked that.
func TestReservationNotices(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	aa, a := r.host(settings{id: 1})
	ba, b := r.host(settings{id: 2})
	told := uint64(wire.EventResult(wire.EventIO, wire.IOReservation, wire.LogReservations))
	notice := func(q *queue, kind, left uint8) {
		t.Helper()
		var n wire.ReservNotice
		if err := n.Parse(q.log(wire.LogReservations, 64)); err != nil || n.Type != kind || n.Available != left || kind != 0 && n.NSID != 1 {
			t.Fatalf("%+v, %v; should be of type %d, and %d more", n, err, kind, left)
		}
	}
	notice(aa, 0, 0)
	a.ok(a.reserve(wire.OpReservRegister, register, 0, 1))
	b.ok(b.reserve(wire.OpReservRegister, register, 0, 2))
	a.ok(a.reserve(wire.OpReservAcquire, kind(wire.ReservExclusiveReg), 1, 0))
	id := ba.aer()
	a.ok(a.reserve(wire.OpReservRelease, kind(wire.ReservExclusiveReg), 1))
	if x := ba.ok(ba.receive(nil)); x.CID != id || x.Result != told {
		t.Fatalf("%+v", x)
	}
	notice(ba, wire.ReservLogRelease, 0)

	a.ok(a.reserve(wire.OpReservAcquire, kind(wire.ReservExclusiveReg), 1, 0))
	b.ok(b.reserve(wire.OpReservAcquire, preempt|kind(wire.ReservExclusiveReg), 2, 1))
	id = aa.aer()
	if x := aa.ok(aa.receive(nil)); x.CID != id || x.Result != told {
		t.Fatalf("%+v", x)
	}
	// There is more than one notice: reading the first tells of the next.
	id = aa.aer()
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpGetLogPage)
	sqe.SetCDW(10, wire.LogReservations|15<<16)
	read := aa.send(room(&sqe, 64), nil)
	for range 2 {
		var n wire.ReservNotice
		switch x := aa.ok(aa.receive(nil)); {
		case x.CID == id && x.Result == told:
		case x.CID == read && n.Parse(x.data) == nil && n.Type == wire.ReservLogRegistration && n.Available == 1:
		default:
			t.Fatalf("%+v", x)
		}
	}
	notice(aa, wire.ReservLogPreempted, 0)

	ba.ok(ba.feature(wire.FeatReservMask, 1, 1<<wire.ReservLogPreempted))
	a.ok(a.reserve(wire.OpReservRegister, register, 0, 1))
	a.ok(a.reserve(wire.OpReservRelease, wire.ReservActClear, 1))
	notice(ba, 0, 0)
}
