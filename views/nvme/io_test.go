package nvme

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"github.com/spacestore/space/capsule"
	"io"
	"runtime"
	"testing"

	"github.com/spacestore/space/views/nvme/wire"
)

// What is written is read, in the capsule and asked for, with all digests and
// alignments, with one and several R2Ts, with and without the SUCCESS flag.
func TestReadWrite(t *testing.T) {
	for _, s := range []settings{{}, {header: true}, {data: true}, {header: true, data: true, hpda: 7}, {maxR2T: 3}, {cattr: wire.ConnectDisableSQFlow}} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			o := Options{MaxH2CData: 8192}
			if s.maxR2T > 0 {
				o.R2TSize = 4096
			}
			r := newRig(t, o)
			m := r.disk()
			_, q := r.host(s)
			for i, n := range []int{512, 4096, 8192, 16384, 16896, 131072, 1 << 19} {
				data := pattern(byte(i), n)
				w := ioCommand(wire.OpWrite, uint64(i), uint32(n/512))
				if n <= 16<<10 {
					q.ok(q.do(w, data))
				} else {
					q.ok(q.writeR2T(w, data))
				}
				if !bytes.Equal(m.data[512*i:][:n], data) {
					t.Fatalf("%d bytes were written wrong", n)
				}
				a := q.read(uint64(i), uint32(n/512))
				q.ok(a)
				if !bytes.Equal(a.data, data) {
					t.Fatalf("%d bytes were read wrong", n)
				}
				if a.implied != (s.cattr != 0) {
					t.Fatalf("success implied by data: %t", a.implied)
				}
			}
			q.ok(q.do(ioCommand(wire.OpFlush, 0, 0), nil))
			if !bytes.Equal(m.flushed, m.data) {
				t.Fatal("the flush did not reach the device")
			}
		})
	}
}

// Every refusal has its own status, and the error log tells it (Base 5.16.1.2).
func TestIOErrors(t *testing.T) {
	r := newRig(t, Options{MaxTransfer: 64 << 10})
	m := r.disk()
	ro := newMemory(1<<20, 4096)
	r.add(Namespace{NSID: 2, Device: ro, ReadOnly: true})
	admin, q := r.host(settings{})
	size := uint64(1 << 20 / 512)
	on := func(sqe *wire.SQE, nsid uint32) *wire.SQE { sqe.SetNSID(nsid); return sqe }
	with := func(sqe *wire.SQE, dw int, v uint32) *wire.SQE { sqe.SetCDW(dw, sqe.CDW(dw)|v); return sqe }
	errs := uint64(0)
	for name, c := range map[string]struct {
		sqe    *wire.SQE
		data   []byte
		status wire.Status
	}{
		"opcode":                {ioCommand(0x7c, 0, 1), nil, wire.InvalidOpcode},
		"write uncorrectable":   {ioCommand(wire.OpWriteUncorrectable, 0, 1), nil, wire.InvalidOpcode},
		"namespace 0":           {on(ioCommand(wire.OpRead, 0, 1), 0), nil, wire.InvalidNamespace},
		"namespace 3":           {on(ioCommand(wire.OpRead, 0, 1), 3), nil, wire.InvalidNamespace},
		"all namespaces":        {on(ioCommand(wire.OpWrite, 0, 1), wire.BroadcastNSID), make([]byte, 512), wire.InvalidNamespace},
		"beyond the end":        {room(ioCommand(wire.OpRead, size-1, 2), 1024), nil, wire.LBARange},
		"far beyond the end":    {room(ioCommand(wire.OpRead, 1<<63+1, 1), 512), nil, wire.LBARange},
		"wraps around":          {room(ioCommand(wire.OpRead, ^uint64(0), 2), 1024), nil, wire.LBARange},
		"write beyond":          {ioCommand(wire.OpWrite, size, 1), make([]byte, 512), wire.LBARange},
		"zeroes beyond":         {ioCommand(wire.OpWriteZeroes, size-1, 2), nil, wire.LBARange},
		"too large":             {room(ioCommand(wire.OpRead, 0, 129), 129*512), nil, wire.InvalidField},
		"wrong length":          {ioCommand(wire.OpWrite, 0, 2), make([]byte, 512), wire.SGLInvalidLength},
		"wrong length asked":    {room(ioCommand(wire.OpWrite, 0, 64), 512), nil, wire.SGLInvalidLength},
		"no room":               {room(ioCommand(wire.OpRead, 0, 2), 512), nil, wire.SGLInvalidLength},
		"no descriptor":         {ioCommand(wire.OpRead, 0, 1), nil, wire.SGLInvalidType},
		"protection":            {room(with(ioCommand(wire.OpRead, 0, 1), 12, 1<<26), 512), nil, wire.InvalidField},
		"read only":             {on(ioCommand(wire.OpWrite, 0, 1), 2), make([]byte, 4096), wire.WriteProtected},
		"read only zeroes":      {on(ioCommand(wire.OpWriteZeroes, 0, 1), 2), nil, wire.WriteProtected},
		"compare":               {ioCommand(wire.OpCompare, 0, 1), pattern(9, 512), wire.CompareFailure},
		"second without first":  {func() *wire.SQE { s := ioCommand(wire.OpWrite, 0, 1); s.SetFuse(wire.FuseSecond); return s }(), make([]byte, 512), wire.MissingFused},
		"deallocate beyond":     {with(ioCommand(wire.OpDSM, 0, 0), 11, wire.DSMDeallocate), wire.AppendDSMRange(nil, wire.DSMRange{SLBA: size - 1, Blocks: 2}), wire.LBARange},
		"fabrics on I/O queue":  {func() *wire.SQE { var s wire.SQE; wire.Property{Offset: wire.PropVS}.Get(&s); return &s }(), nil, wire.InvalidField},
		"unknown fabrics":       {func() *wire.SQE { var s wire.SQE; s.SetFabrics(0x55); return &s }(), nil, wire.InvalidOpcode},
		"fuse 3":                {func() *wire.SQE { s := room(ioCommand(wire.OpRead, 0, 1), 512); s.SetFuse(3); return s }(), nil, wire.InvalidField},
		"capsule for a read":    {ioCommand(wire.OpRead, 0, 1), make([]byte, 512), wire.SGLInvalidType},
		"reservation, no hosts": {ioCommand(wire.OpReservAcquire, 0, 0), make([]byte, 16), wire.InvalidField},
	} {
		a := q.do(c.sqe, c.data)
		if a.Status.Code() != c.status || a.Status&wire.DNR == 0 || len(a.data) > 0 {
			t.Errorf("%s: %s, should be %s and not to be retried; %d bytes of data", name, a.Status, c.status, len(a.data))
			continue
		}
		errs++
		var e wire.ErrorEntry
		if err := e.Parse(admin.log(wire.LogError, wire.ErrorEntryLen)); err != nil || e.Status.Code() != c.status || e.SQID != 1 || e.CID != q.cid || e.Count != errs {
			t.Errorf("%s: the error log has %+v", name, e)
		}
	}
	// An offset into the capsule's data is fine, one behind it is not.
	w := ioCommand(wire.OpWrite, 5, 1)
	data := append(make([]byte, 512), pattern(7, 512)...)
	for addr, want := range map[uint64]wire.Status{512: wire.Success, 1024: wire.SGLInvalidLength, 1025: wire.SGLInvalidOffset, 1 << 63: wire.SGLInvalidOffset} {
		w.SetCID(9)
		w.SetSGL(wire.SGL{Address: addr, Length: 512, Type: wire.SGLInCapsule})
		q.write(append(q.tx.AppendCommand(nil, w, 1024), data...))
		if a := q.receive(nil); a.Status.Code() != want {
			t.Errorf("data at offset %d of the capsule: %s", addr, a.Status)
		}
	}
	if !bytes.Equal(m.data[5*512:][:512], pattern(7, 512)) {
		t.Error("data at an offset of the capsule was written wrong")
	}
	if m.count.write != 1 || ro.count.write != 0 {
		t.Error("a refused write reached a device")
	}
}

// A device's errors become the status that tells the host what to do.
func TestDeviceErrors(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	admin, q := r.host(settings{})
	for _, c := range []struct {
		err    error
		status wire.Status
		dnr    bool
	}{
		{&capsule.DamageError{Off: 512, Len: 10, Why: "test"}, wire.UnrecoveredRead, true},
		{capsule.Errorf(capsule.Unavailable, "closing"), wire.NamespaceNotReady, false},
		{capsule.Errorf(capsule.OutOfRange, "shrunk"), wire.LBARange, true},
		{errBroken, wire.InternalError, false},
		{io.ErrNoProgress, wire.InternalError, false},
	} {
		m.reads = func(int64, int) error { return c.err }
		for _, blocks := range []uint32{1, 256} {
			a := q.read(0, blocks)
			if q.want(a, c.status); a.Status&wire.DNR != 0 != c.dnr || len(a.data) > 0 {
				t.Errorf("%v: %s, %d bytes of data", c.err, a.Status, len(a.data))
			}
		}
	}
	m.reads = nil
	for _, c := range []struct {
		err    error
		status wire.Status
	}{
		{capsule.Errorf(capsule.NoSpace, "full"), wire.CapacityExceeded},
		{capsule.Errorf(capsule.Quota, "full"), wire.CapacityExceeded},
		{capsule.Errorf(capsule.ReadOnly, "snapshot"), wire.WriteProtected},
		{&capsule.DamageError{Why: "test"}, wire.WriteFault},
		{capsule.Errorf(capsule.Denied, "policy"), wire.AccessDenied},
		{errBroken, wire.InternalError},
	} {
		m.writes = func(int64, int) error { return c.err }
		q.want(q.do(ioCommand(wire.OpWrite, 0, 1), make([]byte, 512)), c.status)
	}
	m.writes, m.flushes = nil, func() error { return errBroken }
	q.want(q.do(ioCommand(wire.OpFlush, 0, 0), nil), wire.InternalError)
	fua := ioCommand(wire.OpWrite, 0, 1)
	fua.SetCDW(12, fua.CDW(12)|wire.FUA)
	q.want(q.do(fua, make([]byte, 512)), wire.InternalError)
	m.flushes = nil
	q.ok(q.read(0, 1))

	var smart wire.SMART
	if err := smart.Parse(admin.log(wire.LogSMART, wire.SMARTLen)); err != nil || smart.MediaErrors != 3 || smart.Warning&wire.WarnReliability == 0 || smart.ErrorEntries != 18 {
		t.Errorf("%+v", smart)
	}
	if n := r.Totals(); n.MediaErrors != 3 || n.Errors != 18 {
		t.Errorf("%+v", n)
	}
}

// A write with FUA, and a flush, are answered after everything before them is
// durable; other writes need not be.
func TestDurability(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	r.add(Namespace{NSID: 2, Device: newMemory(1<<20, 512)})
	_, q := r.host(settings{})
	q.ok(q.do(ioCommand(wire.OpWrite, 0, 1), pattern(1, 512)))
	if m.count.flush != 0 {
		t.Fatal("a write flushed")
	}
	for _, op := range []uint8{wire.OpWrite, wire.OpWriteZeroes} {
		sqe := ioCommand(op, 9, 1)
		sqe.SetCDW(12, sqe.CDW(12)|wire.FUA)
		before := m.count.flush
		if op == wire.OpWrite {
			q.ok(q.do(sqe, pattern(2, 512)))
		} else {
			q.ok(q.do(sqe, nil))
		}
		if m.count.flush != before+1 || !bytes.Equal(m.flushed, m.data) {
			t.Fatal("a command with FUA was answered before it was durable")
		}
	}
	all := ioCommand(wire.OpFlush, 0, 0)
	all.SetNSID(wire.BroadcastNSID)
	q.ok(q.do(all, nil))
	if m.count.flush != 3 {
		t.Fatal("a flush of all namespaces left one out")
	}
}

func TestZeroes(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	_, q := r.host(settings{})
	fill := func() { copy(m.data, bytes.Repeat([]byte{7}, len(m.data))) }
	wantZero := func(off, n int) {
		t.Helper()
		for i, b := range m.data {
			if inside := i >= off && i < off+n; inside != (b == 0) {
				t.Fatalf("byte %d is %d; zeroes were wanted of %d bytes at %d", i, b, n, off)
			}
		}
	}
	fill()
	q.ok(q.do(ioCommand(wire.OpWriteZeroes, 3, 1000), nil))
	wantZero(3*512, 1000*512)
	fill()
	dsm := ioCommand(wire.OpDSM, 0, 0)
	dsm.SetCDW(10, 1)
	dsm.SetCDW(11, wire.DSMDeallocate)
	q.ok(q.do(dsm, wire.AppendDSMRange(wire.AppendDSMRange(nil, wire.DSMRange{SLBA: 1, Blocks: 2}), wire.DSMRange{SLBA: 3, Blocks: 7})))
	wantZero(512, 9*512)
	// Linux sends as much as 256 ranges take, however few there are.
	fill()
	dsm.SetCDW(10, 0)
	q.ok(q.do(dsm, append(wire.AppendDSMRange(nil, wire.DSMRange{SLBA: 2, Blocks: 1}), bytes.Repeat([]byte{0xff}, 4096-16)...)))
	wantZero(1024, 512)
	q.want(q.do(dsm, make([]byte, 4097)), wire.SGLInvalidLength)
	fill()
	dsm.SetCDW(10, 1)
	dsm.SetCDW(11, 1) // a hint without deallocation
	q.ok(q.do(dsm, make([]byte, 32)))
	wantZero(0, 0)
	if m.count.trim != 4 {
		t.Errorf("%d trims", m.count.trim)
	}
}

func TestCompareAndVerify(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	_, q := r.host(settings{})
	copy(m.data[5*512:], pattern(3, 4096))
	q.ok(q.do(ioCommand(wire.OpCompare, 5, 8), pattern(3, 4096)))
	q.want(q.do(ioCommand(wire.OpCompare, 4, 8), pattern(3, 4096)), wire.CompareFailure)
	q.ok(q.do(ioCommand(wire.OpVerify, 0, 2048), nil))
	m.reads = func(off int64, n int) error {
		if off <= 6*512 && off+int64(n) > 6*512 {
			return &capsule.DamageError{Off: 6 * 512, Len: 512, Why: "test"}
		}
		return nil
	}
	q.want(q.do(ioCommand(wire.OpVerify, 0, 2048), nil), wire.UnrecoveredRead)
	q.ok(q.do(ioCommand(wire.OpVerify, 64, 2), nil))
}

// fused sends a compare and a write that belong together.
func (q *queue) fused(slba uint64, old, new []byte) (compare, write wire.Status) {
	q.Helper()
	c, w := ioCommand(wire.OpCompare, slba, uint32(len(old)/512)), ioCommand(wire.OpWrite, slba, uint32(len(new)/512))
	c.SetFuse(wire.FuseFirst)
	w.SetFuse(wire.FuseSecond)
	first := q.send(c, old)
	second := q.send(w, new)
	for range 2 {
		a := q.receive(nil)
		switch a.CID {
		case first:
			compare = a.Status
		case second:
			write = a.Status
		default:
			q.Fatalf("answer to command %d", a.CID)
		}
	}
	return compare, write
}

// Compare and write is one operation: of many hosts that count a block up with
// it none overwrites another (NVM 2.1.4.2).
func TestCompareAndWrite(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	_, q := r.host(settings{})
	if c, w := q.fused(0, make([]byte, 512), pattern(1, 512)); c != 0 || w != 0 {
		t.Fatal(c, w)
	}
	if c, w := q.fused(0, make([]byte, 512), pattern(2, 512)); c.Code() != wire.CompareFailure || w.Code() != wire.FailedFused {
		t.Fatal(c, w)
	}
	if c, w := q.fused(0, make([]byte, 1024), make([]byte, 512)); c.Code() != wire.InvalidField || w.Code() != wire.InvalidField {
		t.Fatal(c, w)
	}
	if c, w := q.fused(1<<40, make([]byte, 512), make([]byte, 512)); c.Code() != wire.LBARange || w.Code() != wire.LBARange {
		t.Fatal(c, w)
	}
	m.writes = func(int64, int) error { return capsule.Errorf(capsule.NoSpace, "full") }
	if c, w := q.fused(0, pattern(1, 512), pattern(2, 512)); c != 0 || w.Code() != wire.CapacityExceeded {
		t.Fatal(c, w)
	}
	m.writes = nil
	// A first that no second follows fails; what follows does not.
	first := ioCommand(wire.OpCompare, 0, 1)
	first.SetFuse(wire.FuseFirst)
	id := q.send(first, pattern(1, 512))
	next := q.send(ioCommand(wire.OpFlush, 0, 0), nil)
	for range 2 {
		switch a := q.receive(nil); {
		case a.CID == id && a.Status.Code() == wire.MissingFused, a.CID == next && a.Status == 0:
		default:
			t.Fatalf("%+v", a)
		}
	}
	// With data that has to be asked for.
	id = q.send(room(first, 512), nil)
	second := ioCommand(wire.OpWrite, 0, 1)
	second.SetFuse(wire.FuseSecond)
	q.send(room(second, 512), nil)
	for range 2 {
		typ, h, err := q.r.Next()
		if err != nil || typ != wire.TypeR2T {
			t.Fatal(typ, err)
		}
		if r2t := wire.ParseR2T(h); r2t.CID == id {
			q.give(r2t, pattern(1, 512))
		} else {
			q.give(r2t, make([]byte, 512))
		}
	}
	q.ok(q.receive(nil))
	q.ok(q.receive(nil))
	if !bytes.Equal(m.data[:512], make([]byte, 512)) {
		t.Fatal("compare and write did not write")
	}

	const hosts, rounds = 4, 25
	run := make(chan string)
	for h := range hosts {
		_, q := r.host(settings{id: byte(h + 1)})
		go func() {
			for done := 0; done < rounds; {
				old := q.read(0, 1).data
				new := bytes.Clone(old)
				binary.LittleEndian.PutUint32(new, binary.LittleEndian.Uint32(old)+1)
				switch c, w := q.fused(0, old, new); {
				case c == 0 && w == 0:
					done++
				case c.Code() != wire.CompareFailure:
					run <- fmt.Sprint(c, w)
					return
				}
			}
			run <- ""
		}()
	}
	for range hosts {
		if s := <-run; s != "" {
			t.Error(s)
		}
	}
	if n := binary.LittleEndian.Uint32(m.data); n != hosts*rounds {
		t.Fatalf("counted to %d, should be %d", n, hosts*rounds)
	}
}

// torn is a device whose operations are atomic in aligned 64 KiB and no more,
// like a volume.
type torn struct{ *memory }

func (d torn) parts(p []byte, off int64, f func([]byte, int64) (int, error)) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		m, err := f(p[n:min(len(p), n+int(deviceAtom-at%deviceAtom))], at)
		if n += m; err != nil {
			return n, err
		}
		runtime.Gosched()
	}
	return n, nil
}

func (d torn) ReadAt(p []byte, off int64) (int, error)  { return d.parts(p, off, d.memory.ReadAt) }
func (d torn) WriteAt(p []byte, off int64) (int, error) { return d.parts(p, off, d.memory.WriteAt) }

// Two hosts see one namespace, and each other's writes whole or not at all, as
// AWUN promises.
func TestCoherence(t *testing.T) {
	r := newRig(t, Options{})
	m := torn{newMemory(1<<20, 512)}
	r.add(Namespace{NSID: 1, Device: m})
	_, a := r.host(settings{})
	_, b := r.host(settings{id: 1})
	a.ok(a.do(ioCommand(wire.OpWrite, 8, 1), pattern(1, 512)))
	if got := b.ok(b.read(8, 1)).data; !bytes.Equal(got, pattern(1, 512)) {
		t.Fatal("the other host does not see a write")
	}
	const blocks = 160 // 80 KiB, in two or three of the device's parts
	done := make(chan bool)
	go func() {
		defer close(done)
		for i := range 30 {
			if s := a.writeR2T(ioCommand(wire.OpWrite, 100, blocks), bytes.Repeat([]byte{byte(i)}, blocks*512)).Status; s != 0 {
				t.Error(s)
			}
		}
	}()
	b.ok(b.read(0, 1))
	for last := false; !last; {
		select {
		case <-done:
			last = true
		default:
		}
		p := b.ok(b.read(100, blocks)).data
		for i := 0; i < len(p); i += 512 {
			if p[i] != p[0] {
				t.Fatalf("byte 0 is of write %d, byte %d of write %d", p[0], i, p[i])
			}
		}
	}
}

// An abort takes back a command that has not begun (Base 5.1).
func TestAbort(t *testing.T) {
	r := newRig(t, Options{Workers: 1})
	m := r.disk()
	admin, q := r.host(settings{})
	hang := make(chan struct{})
	m.flushes = func() error { <-hang; return nil }
	running := q.send(ioCommand(wire.OpFlush, 0, 0), nil)
	r.until("the flush is at the device", func() bool { return m.inside.Load() == 1 })
	waiting := q.send(ioCommand(wire.OpWriteZeroes, 0, 1), nil)
	abort := func(qid, cid uint16) answer {
		var sqe wire.SQE
		sqe.SetOpcode(wire.OpAbort)
		sqe.SetCDW(10, uint32(qid)|uint32(cid)<<16)
		return admin.do(&sqe, nil)
	}
	r.until("the command waits and is aborted", func() bool { return admin.ok(abort(1, waiting)).Result == 0 })
	if a := admin.ok(abort(1, running)); a.Result != 1 {
		t.Error("a command at the device was aborted")
	}
	if a := admin.ok(abort(1, 999)); a.Result != 1 {
		t.Error("a command that there is not was aborted")
	}
	admin.want(abort(9, 1), wire.InvalidField)
	close(hang)
	for range 2 {
		switch a := q.receive(nil); {
		case a.CID == running && a.Status == 0, a.CID == waiting && a.Status.Code() == wire.AbortRequested:
		default:
			t.Errorf("%+v", a)
		}
	}
	if m.count.trim != 0 {
		t.Error("the aborted command was done")
	}
	var aer wire.SQE
	aer.SetOpcode(wire.OpAsyncEvent)
	event := admin.send(&aer, nil)
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpAbort)
	sqe.SetCDW(10, uint32(event)<<16)
	id := admin.send(&sqe, nil)
	for range 2 {
		switch a := admin.receive(nil); {
		case a.CID == id && a.Status == 0 && a.Result == 0, a.CID == event && a.Status.Code() == wire.AbortRequested:
		default:
			t.Errorf("%+v", a)
		}
	}
}

// What a namespace with blocks of 4 KiB and 64 TiB looks like at its end.
func TestLargeNamespace(t *testing.T) {
	r := newRig(t, Options{})
	d := &sparse{}
	r.add(Namespace{NSID: 7, Device: d})
	admin, q := r.host(settings{})
	var id wire.IdentifyNamespace
	if err := id.Parse(admin.ok(admin.identify(wire.CNSNamespace, 7)).data); err != nil || id.NSZE != 64<<40/4096 || id.LBADataSize != 12 {
		t.Fatalf("%+v, %v", id, err)
	}
	w := ioCommand(wire.OpWrite, id.NSZE-1, 1)
	w.SetNSID(7)
	q.ok(q.do(w, pattern(1, 4096)))
	if d.off != 64<<40-4096 || !bytes.Equal(d.last, pattern(1, 4096)) {
		t.Fatalf("written at %d", d.off)
	}
	w.SetRange(id.NSZE, 1)
	q.want(q.do(w, pattern(1, 4096)), wire.LBARange)
	dsm := ioCommand(wire.OpDSM, 0, 0)
	dsm.SetNSID(7)
	dsm.SetCDW(11, wire.DSMDeallocate)
	q.ok(q.do(dsm, wire.AppendDSMRange(nil, wire.DSMRange{Blocks: 1<<32 - 1})))
	if d.trimmed != (1<<32-1)*4096 {
		t.Fatalf("%d bytes trimmed", d.trimmed)
	}
}

// sparse is a large device that remembers the last write.
type sparse struct {
	off     int64
	last    []byte
	trimmed int64
}

func (d *sparse) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }
func (d *sparse) WriteAt(p []byte, off int64) (int, error) {
	d.off, d.last = off, bytes.Clone(p)
	return len(p), nil
}
func (d *sparse) Trim(_ context.Context, _, n int64) error { d.trimmed += n; return nil }
func (d *sparse) Flush(context.Context) error              { return nil }
func (d *sparse) Size() int64                              { return 64 << 40 }
func (d *sparse) BlockSize() int                           { return 4096 }
func (d *sparse) ReadOnly() bool                           { return false }
func (d *sparse) NextData(context.Context, int64) (int64, int64, error) {
	return 0, 0, io.EOF
}

// Answers do not wait for commands of others that the same worker does next.
func TestAnswersLeave(t *testing.T) {
	r := newRig(t, Options{Workers: 1})
	m := r.disk()
	_, a := r.host(settings{id: 1})
	_, b := r.host(settings{id: 2})
	first, second := make(chan struct{}), make(chan struct{})
	calls := make(chan chan struct{}, 2)
	calls <- first
	calls <- second
	m.flushes = func() error { <-<-calls; return nil }
	defer close(second)
	a.send(ioCommand(wire.OpFlush, 0, 0), nil)
	r.until("one is at the device", func() bool { return m.inside.Load() == 1 })
	b.send(ioCommand(wire.OpFlush, 0, 0), nil)
	r.until("the other waits", func() bool {
		w := &r.subsystems[testNQN].namespace(1).workers
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.queue) == 1
	})
	close(first)
	a.ok(a.receive(nil))
}
