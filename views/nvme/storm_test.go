package nvme

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/spacestore/space/views/nvme/wire"
)

// Hosts that connect, do this and that, and vanish at any moment, while
// namespaces come and go, grow, and lose and regain access: nothing hangs,
// nothing of them is left, and whoever behaves is served throughout.
func TestStorm(t *testing.T) {
	r := newRig(t, Options{MaxTransfer: 64 << 10, ConnMemory: 128 << 10, Memory: 256 << 10, Workers: 4, Persister: &notes{}})
	m := r.disk()
	_, steady := r.host(settings{nqn: "nqn.2026-11.io.space:steady", id: 99})
	var hosts sync.WaitGroup
	for w := range 4 {
		hosts.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for range 8 {
				r.vanishing(rnd, byte(w))
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		hosts.Wait()
	}()
	d := newMemory(64<<10, 4096)
	for i, last := 0, false; !last; i++ {
		select {
		case <-done:
			last = true
		default:
		}
		p := pattern(byte(i), 512)
		steady.ok(steady.do(ioCommand(wire.OpWrite, 2047, 1), p))
		if err := r.AddNamespace(testNQN, Namespace{NSID: 2, Device: d, ANAGroup: 2}); err != nil {
			t.Fatal(err)
		}
		_, _ = r.Controllers(), r.Totals()
		if got := steady.ok(steady.read(2047, 1)).data; !bytes.Equal(got, p) {
			t.Fatal("the steady host reads what it did not write")
		}
		for _, err := range []error{r.Resized(testNQN, 2), r.SetANA(testNQN, 1, 2, []ANAState{Inaccessible, Optimized}[i%2]), r.RemoveNamespace(testNQN, 2)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if n := d.inside.Load(); n != 0 {
			t.Fatalf("%d operations at a device that was removed", n)
		}
		r.check(r.clock.move(time.Millisecond))
	}
	r.until("nothing of them is left", func() bool {
		n := r.Totals()
		return n.Controllers == 1 && n.Connections == 2 && n.MemoryUsed == 0
	})
	r.until("no operation is under way", func() bool { return m.inside.Load() == 0 })
	steady.ok(steady.read(0, 1))
}

// vanishing is one host's short life.
func (r *rig) vanishing(rnd *rand.Rand, id byte) {
	s := settings{id: id, nqn: "nqn.2026-11.io.space:vanishing", maxR2T: 1}
	var conns []net.Conn
	defer func() {
		for _, i := range rnd.Perm(len(conns)) {
			conns[i].Close()
		}
	}()
	// open connects a queue; reading goes on in the background.
	open := func(qid, cntlid uint16) (nc net.Conn, id uint16, ok bool) {
		nc, err := net.Dial("tcp", r.addr)
		if err != nil {
			return nil, 0, false
		}
		conns = append(conns, nc)
		_ = nc.SetDeadline(time.Now().Add(patience))
		var sqe wire.SQE
		c := s.connect(qid, cntlid)
		c.Command(&sqe)
		sqe.SetSGL(wire.SGL{Length: wire.ConnectDataLen, Type: wire.SGLInCapsule})
		b := append(wire.Framing{}.AppendCommand(wire.ICReq{MaxR2T: 1}.Append(nil), &sqe, wire.ConnectDataLen), c.AppendData(nil)...)
		if rnd.IntN(8) == 0 {
			b = b[:rnd.IntN(len(b))] // says half of it
		}
		if _, err := nc.Write(b); err != nil || len(b) < 1000 {
			return nil, 0, false
		}
		rd := wire.NewReader(nc, 4096)
		if _, _, err := rd.Next(); err != nil {
			return nil, 0, false
		}
		typ, h, err := rd.Next()
		if err != nil || typ != wire.TypeCapsuleResp {
			return nil, 0, false
		}
		cqe := wire.ParseCQE(h)
		return nc, uint16(cqe.Result), cqe.Status == 0
	}
	admin, cntlid, ok := open(0, wire.DynamicCNTLID)
	if !ok {
		return
	}
	var tx wire.Framing
	var enable, aer wire.SQE
	wire.Property{Offset: wire.PropCC, Value: ccEnable}.Set(&enable)
	aer.SetOpcode(wire.OpAsyncEvent)
	if _, err := admin.Write(tx.AppendCommand(tx.AppendCommand(nil, &enable, 0), &aer, 0)); err != nil {
		return
	}
	buf := make([]byte, 24)
	if _, err := io.ReadFull(admin, buf); err != nil { // the enabling is answered
		return
	}
	q, _, ok := open(1, cntlid)
	if !ok {
		return
	}
	if rnd.IntN(2) == 0 {
		go func() { _, _ = io.Copy(io.Discard, q) }()
	}
	for i := range rnd.IntN(20) {
		sqe := ioCommand([]uint8{wire.OpRead, wire.OpWrite, wire.OpWriteZeroes, wire.OpFlush, wire.OpCompare, wire.OpVerify, wire.OpReservReport}[rnd.IntN(7)], rnd.Uint64N(1800), uint32(1+rnd.IntN(128)))
		sqe.SetNSID(uint32(1 + rnd.IntN(2)))
		sqe.SetCID(uint16(i))
		room(sqe, int(sqe.Blocks())*512)
		if _, err := q.Write(tx.AppendCommand(nil, sqe, 0)); err != nil {
			return
		}
	}
	if rnd.IntN(3) == 0 {
		wire.Property{Offset: wire.PropCC}.Set(&enable)
		_, _ = admin.Write(tx.AppendCommand(nil, &enable, 0))
	}
}
