package nvme

import (
	"bytes"
	"errors"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/spacestore/space/views/nvme/wire"
)

// A host that breaks the rules of the transport gets a termination request
// that says how, and its connection ends (TCP 3.5).
func TestProtocolErrors(t *testing.T) {
	r := newRig(t, Options{MaxH2CData: 8192})
	r.disk()
	raw := func(p []byte) func(*queue) { return func(q *queue) { q.write(p) } }
	icreq := func(change func([]byte)) func(*queue) {
		p := wire.ICReq{}.Append(nil)
		change(p)
		return raw(p)
	}
	// begun is a queue with a write of 16 KiB for which an R2T came.
	begun := func(q *queue, f func(r2t wire.R2T) []byte) {
		admin := r.admin(settings{})
		q.initialize()
		if cqe := q.tryConnect(q.s.connect(1, admin.cntlid)); cqe.Status != 0 {
			t.Fatal(cqe.Status)
		}
		q.send(room(ioCommand(wire.OpWrite, 0, 32), 16384), nil)
		typ, h, err := q.r.Next()
		if err != nil || typ != wire.TypeR2T {
			t.Fatal(typ, err)
		}
		q.write(f(wire.ParseR2T(h)))
	}
	data := func(q *queue, d wire.Data) []byte {
		return append(q.tx.AppendH2CData(nil, d), make([]byte, d.Length)...)
	}
	for name, c := range map[string]struct {
		do  func(*queue)
		fes wire.FES
		fei uint32
	}{
		"format version":       {icreq(func(p []byte) { p[8] = 1 }), wire.FESUnsupportedParam, 8},
		"host alignment":       {icreq(func(p []byte) { p[10] = 40 }), wire.FESInvalidHeader, 10},
		"header length":        {icreq(func(p []byte) { p[2] = 127 }), wire.FESInvalidHeader, 2},
		"PDU length":           {icreq(func(p []byte) { p[4] = 200 }), wire.FESInvalidHeader, 4},
		"unknown type":         {icreq(func(p []byte) { p[0] = 0x44 }), wire.FESInvalidHeader, 0},
		"command first":        {func(q *queue) { q.write(q.tx.AppendCommand(nil, &wire.SQE{}, 0)) }, wire.FESSequence, 0},
		"response from a host": {func(q *queue) { q.initialize(); q.write(q.tx.AppendResponse(nil, wire.CQE{})) }, wire.FESSequence, 0},
		"second ICReq":         {func(q *queue) { q.initialize(); q.write(wire.ICReq{}.Append(nil)) }, wire.FESSequence, 0},
		"data before connect": {func(q *queue) {
			q.initialize()
			q.write(data(q, wire.Data{Length: 512}))
		}, wire.FESInvalidHeader, 10},
		"header digest": {func(q *queue) {
			q.s.header = true
			q.initialize()
			p := q.tx.AppendCommand(nil, &wire.SQE{}, 0)
			p[20] ^= 4
			q.write(p)
		}, wire.FESHeaderDigest, 0},
		"missing digest": {func(q *queue) {
			q.s.header = true
			q.initialize()
			q.write(wire.Framing{}.AppendCommand(nil, &wire.SQE{}, 0))
		}, wire.FESInvalidHeader, 1},
		"too much in a capsule": {func(q *queue) {
			q.initialize()
			q.write(q.tx.AppendCommand(nil, &wire.SQE{}, 1<<30))
		}, wire.FESInvalidHeader, 4},
		"transfer tag": {func(q *queue) {
			begun(q, func(r wire.R2T) []byte { return data(q, wire.Data{CID: r.CID, TTag: r.TTag + 1, Length: 512}) })
		}, wire.FESInvalidHeader, 10},
		"command ID": {func(q *queue) {
			begun(q, func(r wire.R2T) []byte { return data(q, wire.Data{CID: r.CID + 1, TTag: r.TTag, Length: 512}) })
		}, wire.FESInvalidHeader, 8},
		"offset": {func(q *queue) {
			begun(q, func(r wire.R2T) []byte {
				return data(q, wire.Data{CID: r.CID, TTag: r.TTag, Offset: 512, Length: 512})
			})
		}, wire.FESOutOfRange, 12},
		"beyond the end": {func(q *queue) {
			begun(q, func(r wire.R2T) []byte {
				return slices.Concat(data(q, wire.Data{CID: r.CID, TTag: r.TTag, Length: 8192}),
					data(q, wire.Data{CID: r.CID, TTag: r.TTag, Offset: 8192, Length: 4096}),
					data(q, wire.Data{CID: r.CID, TTag: r.TTag, Offset: 12288, Length: 8192}))
			})
		}, wire.FESOutOfRange, 16},
		"early last": {func(q *queue) {
			begun(q, func(r wire.R2T) []byte {
				return data(q, wire.Data{CID: r.CID, TTag: r.TTag, Length: 512, Last: true})
			})
		}, wire.FESSequence, 0},
		"too much": {func(q *queue) {
			begun(q, func(r wire.R2T) []byte { return data(q, wire.Data{CID: r.CID, TTag: r.TTag, Length: 8196}) })
		}, wire.FESLimitExceeded, 0},
		"no data": {func(q *queue) {
			begun(q, func(r wire.R2T) []byte { return q.tx.AppendH2CData(nil, wire.Data{CID: r.CID, TTag: r.TTag}) })
		}, wire.FESInvalidHeader, 16},
	} {
		t.Run(name, func(t *testing.T) {
			q := r.dial(settings{})
			c.do(q)
			term := q.terminated()
			if term.FES != c.fes || c.fes != wire.FESHeaderDigest && term.FEI != c.fei {
				t.Fatalf("terminated with %s at %d, should be %s at %d", term.FES, term.FEI, c.fes, c.fei)
			}
			if len(term.Header) == 0 {
				t.Fatal("the header in error is not told")
			}
		})
	}
	if n := r.Totals().ProtocolErrors; n != 19 {
		t.Errorf("%d protocol errors counted", n)
	}
}

// A command whose data arrives damaged fails, may be sent again, and is the
// only one that is affected (TCP 3.3.1.2).
func TestDataDigestError(t *testing.T) {
	r := newRig(t, Options{})
	m := r.disk()
	_, q := r.host(settings{data: true})
	p := pattern(1, 4096)
	break1 := func(b []byte) []byte { b[len(b)-6] ^= 1; return b }

	w := ioCommand(wire.OpWrite, 0, 8)
	w.SetCID(77)
	w.SetSGL(wire.SGL{Length: 4096, Type: wire.SGLInCapsule})
	q.write(break1(q.tx.AppendDigest(append(q.tx.AppendCommand(nil, w, 4096), p...), p)))
	a := q.receive(nil)
	q.want(a, wire.TransientTransport)
	if a.CID != 77 || a.Status&wire.DNR != 0 {
		t.Fatalf("%+v", a)
	}

	q.send(room(ioCommand(wire.OpWrite, 0, 8), 4096), nil)
	_, h, err := q.r.Next()
	if err != nil {
		t.Fatal(err)
	}
	r2t := wire.ParseR2T(h)
	q.write(break1(q.tx.AppendDigest(append(q.tx.AppendH2CData(nil, wire.Data{CID: r2t.CID, TTag: r2t.TTag, Length: 4096, Last: true}), p...), p)))
	q.want(q.receive(nil), wire.TransientTransport)
	if m.count.write != 0 {
		t.Fatal("damaged data was written")
	}
	q.ok(q.do(ioCommand(wire.OpWrite, 0, 8), p))
	if n := r.Totals().DigestErrors; n != 2 {
		t.Errorf("%d digest errors counted", n)
	}
}

// A queue takes as many commands as it has entries; one more ends it.
func TestQueueOverrun(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	_, q := r.host(settings{})
	for range 32 {
		q.send(room(ioCommand(wire.OpWrite, 0, 32), 16384), nil)
	}
	q.send(ioCommand(wire.OpFlush, 0, 0), nil)
	if term := q.terminated(); term.FES != wire.FESSequence {
		t.Fatalf("terminated with %s", term.FES)
	}
}

// The commands of one queue are asked for their data together, and may get it
// in any order.
func TestManyR2Ts(t *testing.T) {
	r := newRig(t, Options{R2TSize: 4096})
	m := r.disk()
	_, q := r.host(settings{maxR2T: 1})
	want := map[uint16][]byte{}
	for i := range 8 {
		w := ioCommand(wire.OpWrite, uint64(i*32), 32)
		id := q.send(room(w, 16384), nil)
		want[id] = pattern(byte(i), 16384)
	}
	var asked []wire.R2T
	parts := map[uint16]int{} // asked for, of each command's 4
	answers := 0
	next := func() {
		typ, h, err := q.r.Next()
		for ; typ == wire.TypeCapsuleResp && err == nil; typ, h, err = q.r.Next() {
			answers++
		}
		if err != nil || typ != wire.TypeR2T {
			t.Fatal(typ, err)
		}
		r2t := wire.ParseR2T(h)
		asked = append(asked, r2t)
		parts[r2t.CID]++
	}
	for range 16 { // two each
		next()
	}
	for len(asked) > 0 {
		last := asked[len(asked)-1]
		asked = asked[:len(asked)-1]
		if parts[last.CID] < 4 {
			q.give(last, want[last.CID])
			next()
		} else {
			q.give(last, want[last.CID])
		}
	}
	for ; answers < 8; answers++ {
		q.ok(q.receive(nil))
	}
	for i := range 8 {
		if !bytes.Equal(m.data[i*16384:][:16384], pattern(byte(i), 16384)) {
			t.Fatalf("write %d is not what was sent", i)
		}
	}
}

// A thousand connections that never say a word keep nobody out, and are gone
// when their time is up.
func TestHalfOpen(t *testing.T) {
	r := newRig(t, Options{MaxHalfOpen: 50, MaxConns: 60})
	r.disk()
	var silent []net.Conn
	defer func() {
		for _, nc := range silent {
			nc.Close()
		}
	}()
	for i := range 1000 {
		nc, err := net.DialTimeout("tcp", r.addr, patience)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if _, err := nc.Write(wire.ICReq{}.Append(nil)[:i%wire.ICLen]); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Log(err) // it may be closed already
			}
		}
		silent = append(silent, nc)
	}
	r.until("all have been accepted", func() bool { return r.Totals().Accepted == 1000 })
	if s := r.Totals(); s.HalfOpen > 50 || s.Connections > 60 || s.Refused < 950 {
		t.Fatalf("%+v", s)
	}
	admin, q := r.host(settings{})
	q.ok(q.read(0, 1))
	r.tick(11 * time.Second)
	r.until("they are gone", func() bool { return r.Totals().HalfOpen == 0 && r.Totals().Connections == 2 })
	q.ok(q.read(0, 1))
	var keepAlive wire.SQE
	keepAlive.SetOpcode(wire.OpKeepAlive)
	admin.ok(admin.do(&keepAlive, nil))
}

// A connection has so long to become a queue, however far it got.
func TestHandshakeTimeout(t *testing.T) {
	r := newRig(t, Options{HandshakeTimeout: 5 * time.Second})
	a, b := r.dial(settings{}), r.dial(settings{})
	b.initialize()
	r.until("both are there", func() bool { return r.Totals().HalfOpen == 2 })
	r.tick(4 * time.Second)
	if n := r.Totals().HalfOpen; n != 2 {
		t.Fatalf("%d of 2 connections are left before their time", n)
	}
	r.tick(2 * time.Second)
	a.closed()
	b.closed()
}

// A host that goes silent loses its controller when its keep-alive timeout
// ends; any command keeps it (Base 3.9).
func TestKeepAlive(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	admin, q := r.host(settings{kato: 5000})
	other, _ := r.host(settings{kato: 0, id: 1})
	r.tick(0)
	for range 5 {
		r.tick(4 * time.Second)
		q.ok(q.read(0, 1)) // I/O is as good as a keep-alive
		r.tick(0)
	}
	if n := len(r.Controllers()); n != 2 {
		t.Fatalf("%d controllers", n)
	}
	r.tick(7 * time.Second)
	admin.closed()
	q.closed()
	r.until("the controller is gone", func() bool { return len(r.Controllers()) == 1 })
	var keepAlive wire.SQE
	keepAlive.SetOpcode(wire.OpKeepAlive)
	other.ok(other.do(&keepAlive, nil))
	if n := r.Totals().KeepAliveExpired; n != 1 {
		t.Errorf("%d keep-alive timeouts counted", n)
	}
}

// A host that was asked for data and does not send it loses the connection,
// and the memory that waits for it comes back.
func TestStall(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	admin, q := r.host(settings{})
	q.send(room(ioCommand(wire.OpWrite, 0, 1024), 1<<19), nil)
	if typ, _, err := q.r.Next(); err != nil || typ != wire.TypeR2T {
		t.Fatal(typ, err)
	}
	if n := r.Totals().MemoryUsed; n != 1<<19 {
		t.Fatalf("%d bytes of memory taken", n)
	}
	r.tick(0)
	r.tick(30 * time.Second)
	r.tick(31 * time.Second)
	q.closed()
	r.until("the memory is free", func() bool { return r.Totals().MemoryUsed == 0 })
	admin.identify(wire.CNSController, 0)
}

// What a host that reads nothing can make the target hold is bounded; when it
// reads at last everything is there. Others are served meanwhile.
func TestSlowHost(t *testing.T) {
	r := newRig(t, Options{MaxTransfer: 64 << 10, ConnMemory: 256 << 10, Memory: 512 << 10})
	m := r.disk()
	copy(m.data, pattern(5, len(m.data)))
	_, slow := r.host(settings{})
	for i := range 32 {
		slow.send(room(ioCommand(wire.OpRead, uint64(i), 128), 65536), nil)
	}
	_, quick := r.host(settings{id: 1})
	for range 20 {
		quick.ok(quick.read(0, 128))
		if n := r.Totals().MemoryUsed; n > 512<<10 {
			t.Fatalf("%d bytes of memory taken", n)
		}
	}
	for range 32 {
		a := slow.ok(slow.receive(nil))
		if i := int(a.CID) - 2; i < 0 || !bytes.Equal(a.data, m.data[i*512:][:65536]) {
			t.Fatalf("command %d was answered with other data", a.CID)
		}
	}
}

// Writes wait for memory in turn and all get it.
func TestMemoryPressure(t *testing.T) {
	r := newRig(t, Options{MaxTransfer: 64 << 10, ConnMemory: 64 << 10, Memory: 64 << 10})
	m := r.disk()
	var queues []*queue
	for i := range 3 {
		_, q := r.host(settings{id: byte(i)})
		queues = append(queues, q)
		for j := range 4 {
			q.send(room(ioCommand(wire.OpWrite, uint64(i*4+j)*128, 128), 65536), nil)
		}
	}
	done := make(chan bool)
	for i, q := range queues {
		go func() {
			defer func() { done <- true }()
			for j := range 4 {
				if a := q.receive(pattern(byte(i*4+j), 65536)); a.Status != 0 {
					t.Errorf("write: %s", a.Status)
				}
			}
		}()
	}
	for range queues {
		<-done
	}
	for i := range 12 {
		if !bytes.Equal(m.data[i*65536:][:65536], pattern(byte(i), 65536)) {
			t.Errorf("write %d is not what was sent", i)
		}
	}
}

// A host's own termination request, and its end amid a PDU, end its controller.
func TestHostEnds(t *testing.T) {
	r := newRig(t, Options{})
	r.disk()
	for _, end := range []func(*queue){
		func(q *queue) { q.write(wire.TermReq{FromHost: true, FES: wire.FESInvalidHeader, FEI: 3}.Append(nil)) },
		func(q *queue) { q.write(q.tx.AppendCommand(nil, ioCommand(wire.OpFlush, 0, 0), 0)[:40]); q.nc.Close() },
		func(q *queue) { q.nc.Close() },
	} {
		admin, q := r.host(settings{})
		end(admin)
		q.closed()
		r.until("the controller is gone", func() bool { return len(r.Controllers()) == 0 })
	}
}

// A host that takes no answers cannot make large ones of its admin queue pile
// up while somebody else is stuck with sending: no budget holds them.
func TestAdminAnswersDoNotPileUp(t *testing.T) {
	r, p := pipeRig(t)
	a, b := net.Pipe()
	defer a.Close()
	c := newConn(r.Target, p, b)
	c.writing = true
	c.appendData(wire.Data{Length: 1 << 20}, make([]byte, 1<<20), 0)
	taken := make(chan struct{})
	waited := make(chan bool)
	go func() {
		c.awaitRoom()
		select {
		case <-taken:
			waited <- true
		default:
			waited <- false
		}
	}()
	for range 100 {
		runtime.Gosched()
	}
	close(taken)
	c.mu.Lock()
	c.writing = false
	c.drained.Broadcast()
	c.mu.Unlock()
	if !<-waited {
		t.Error("it went on with a megabyte of answers to send")
	}
}
