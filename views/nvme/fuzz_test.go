package nvme

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/spacestore/space/views/nvme/wire"
)

// pipeRig is a rig whose connections are pipes.
func pipeRig(t testing.TB) (*rig, *port) {
	r := newRig(t, Options{MaxTransfer: 64 << 10, ConnMemory: 128 << 10, Memory: 128 << 10, Persister: &notes{}})
	r.disk()
	r.add(Namespace{NSID: 2, Device: newMemory(1<<20, 4096), ReadOnly: true})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return r, &port{Port{ID: 7}, l}
}

// under is the rig in a subtest.
func (r *rig) under(t testing.TB) *rig { return &rig{t, r.Target, r.clock, r.addr} }

// pipe returns the host's end of a new connection.
func (r *rig) pipe(p *port, s settings) *queue {
	a, b := net.Pipe()
	r.accept(p, b)
	_ = a.SetDeadline(time.Now().Add(patience))
	return &queue{TB: r.TB, s: s, nc: a, r: wire.NewReader(a, 64<<10)}
}

func (r *rig) pipeHost(p *port, s settings) (admin, io *queue) {
	admin, io = r.pipe(p, s), r.pipe(p, s)
	admin.initialize()
	cqe := admin.tryConnect(s.connect(0, wire.DynamicCNTLID))
	if cqe.Status != 0 {
		r.Fatal(cqe.Status)
	}
	admin.enable()
	io.initialize()
	if cqe := io.tryConnect(s.connect(1, uint16(cqe.Result))); cqe.Status != 0 {
		r.Fatal(cqe.Status)
	}
	return admin, io
}

// FuzzConnection has a host send any bytes: at once, or as an admin or an I/O
// queue. Whatever it is, the connection ends when the host closes it, and
// nothing of it is left.
func FuzzConnection(f *testing.F) {
	var connect, flush wire.SQE
	c := settings{}.connect(0, wire.DynamicCNTLID)
	c.Command(&connect)
	connect.SetSGL(wire.SGL{Length: wire.ConnectDataLen, Type: wire.SGLInCapsule})
	flush.SetOpcode(wire.OpFlush)
	flush.SetNSID(1)
	var tx wire.Framing
	f.Add(byte(0), wire.ICReq{}.Append(nil))
	f.Add(byte(0), append(tx.AppendCommand(wire.ICReq{HeaderDigest: true}.Append(nil), &connect, wire.ConnectDataLen), c.AppendData(nil)...))
	f.Add(byte(0), append(tx.AppendCommand(wire.ICReq{}.Append(nil), &connect, wire.ConnectDataLen), c.AppendData(nil)...))
	for _, sqe := range seeds() {
		for _, mode := range []byte{1, 2} {
			f.Add(mode, tx.AppendCommand(nil, sqe, 0))
			f.Add(mode, append(tx.AppendCommand(nil, sqe, 512), make([]byte, 512)...))
			w := append(tx.AppendCommand(nil, room(ioCommand(wire.OpWrite, 0, 64), 32768), 0),
				tx.AppendH2CData(nil, wire.Data{Length: 32768, Last: true})...)
			f.Add(mode, append(w, make([]byte, 32768)...))
		}
	}
	f.Add(byte(2), wire.TermReq{FromHost: true, FES: wire.FESSequence}.Append(nil))
	f.Add(byte(1), tx.AppendR2T(nil, wire.R2T{}))
	r, p := pipeRig(f)
	f.Fuzz(func(t *testing.T, mode byte, b []byte) {
		r := r.under(t)
		var admin, q *queue
		switch mode % 3 {
		case 0:
			q = r.pipe(p, settings{})
		case 1:
			q, admin = r.pipeHost(p, settings{data: mode&4 != 0})
		case 2:
			admin, q = r.pipeHost(p, settings{header: mode&4 != 0, maxR2T: uint32(mode & 8)})
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(io.Discard, q.nc)
		}()
		_, _ = q.nc.Write(b)
		q.nc.Close()
		<-done
		if admin != nil {
			admin.nc.Close()
		}
		r.until("nothing is left", func() bool { n := r.Totals(); return n.Connections == 0 && n.Controllers == 0 && n.MemoryUsed == 0 })
	})
}

// seeds are commands of every kind.
func seeds() (list []*wire.SQE) {
	for op := range ioOps {
		sqe := ioCommand(op, 1, 2)
		list = append(list, room(sqe, 1024))
	}
	for op := range adminOps {
		var sqe wire.SQE
		sqe.SetOpcode(op)
		sqe.SetNSID(1)
		sqe.SetCDW(10, wire.LogError|15<<16)
		list = append(list, room(&sqe, 4096))
	}
	for id := range featureTable {
		for _, op := range []uint8{wire.OpGetFeatures, wire.OpSetFeatures} {
			var sqe wire.SQE
			sqe.SetOpcode(op)
			sqe.SetNSID(1)
			sqe.SetCDW(10, uint32(id))
			list = append(list, room(&sqe, 16))
		}
	}
	for fc := range fabricsOps {
		var sqe wire.SQE
		sqe.SetFabrics(fc)
		list = append(list, &sqe)
	}
	return list
}

// FuzzCommand sends any command, with any data, on an admin and on an I/O
// queue. Each is answered once, requests for events when they are aborted by
// the end of all.
func FuzzCommand(f *testing.F) {
	for _, sqe := range seeds() {
		f.Add(sqe[:], []byte{}, false)
		f.Add(sqe[:], make([]byte, 512), true)
	}
	r, p := pipeRig(f)
	f.Fuzz(func(t *testing.T, b, data []byte, onAdmin bool) {
		r := r.under(t)
		if len(data) > adminInCapsule {
			return
		}
		admin, q := r.pipeHost(p, settings{})
		defer func() {
			admin.nc.Close()
			q.nc.Close()
			r.until("nothing is left", func() bool { n := r.Totals(); return n.Connections == 0 && n.Controllers == 0 && n.MemoryUsed == 0 })
		}()
		if onAdmin {
			q = admin
		}
		for len(b) >= wire.SQELen {
			var sqe wire.SQE
			copy(sqe[:], b)
			b = b[wire.SQELen:]
			switch {
			case sqe.Opcode() == wire.OpAsyncEvent && onAdmin, sqe.Opcode() == wire.OpFabrics && sqe.FCType() == wire.FCDisconnect:
				continue // not answered, or the end
			case sqe.Fuse() == wire.FuseFirst && !onAdmin:
				continue // answered with the next
			case sqe.Opcode() == wire.OpFabrics && sqe.FCType() == wire.FCPropertySet && onAdmin:
				continue // a reset would close the I/O queue under us
			}
			q.cid++
			sqe.SetCID(q.cid)
			q.write(append(q.tx.AppendCommand(nil, &sqe, len(data)), data...))
			if a := q.receive(make([]byte, 1<<16)); a.CID != q.cid {
				t.Fatalf("answer to command %d, expected was %d", a.CID, q.cid)
			}
		}
	})
}

// FuzzReservations reads what claims to be saved reservations; what is taken
// is saved as the same.
func FuzzReservations(f *testing.F) {
	f.Add([]byte(`{"version":1,"generation":5,"type":1,"holder":"01000000000000000000000000000009","registrants":{"01000000000000000000000000000009":7}}`))
	f.Add([]byte(`{"version":1,"type":6,"registrants":{"01000000000000000000000000000009":7}}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		var r, again reservations
		if r.decode(p) != nil {
			return
		}
		b, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := again.decode(b); err != nil || again.kind != r.kind || again.holder != r.holder || len(again.registrants) != len(r.registrants) {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}
