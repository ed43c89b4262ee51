package nvme

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

const (
	testNQN = "nqn.2026-11.io.space:test"
	hostNQN = "nqn.2026-11.io.space:host-a"
	// patience bounds what would hang; nothing waits so long that works.
	patience = 2 * time.Minute
)

// memory is a device in memory.
type memory struct {
	mu       sync.Mutex
	data     []byte
	block    int
	readOnly bool
	flushed  []byte // what a power cut would leave
	reads    func(off int64, n int) error
	writes   func(off int64, n int) error
	flushes  func() error
	count    struct{ read, write, trim, flush int }
	inside   atomic.Int32 // calls under way
}

func newMemory(size, block int) *memory {
	return &memory{data: make([]byte, size), block: block}
}

// enter counts a call and runs the hook that a test has put there.
func (m *memory) enter(n *int, hook func() error) (leave func(), err error) {
	m.inside.Add(1)
	m.mu.Lock()
	*n++
	m.mu.Unlock()
	if hook != nil {
		err = hook()
	}
	return func() { m.inside.Add(-1) }, err
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	hook := m.reads
	leave, err := m.enter(&m.count.read, func() error {
		if hook == nil {
			return nil
		}
		return hook(off, len(p))
	})
	defer leave()
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if off > int64(len(m.data)) {
		return 0, io.EOF
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	hook := m.writes
	leave, err := m.enter(&m.count.write, func() error {
		if hook == nil {
			return nil
		}
		return hook(off, len(p))
	})
	defer leave()
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.data[off:], p), nil
}

func (m *memory) Trim(_ context.Context, off, n int64) error {
	leave, _ := m.enter(&m.count.trim, nil)
	defer leave()
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	return nil
}

func (m *memory) Flush(context.Context) error {
	leave, err := m.enter(&m.count.flush, m.flushes)
	defer leave()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushed = slices.Clone(m.data)
	return nil
}

func (m *memory) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.data))
}

func (m *memory) resize(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = append(m.data, make([]byte, n-len(m.data))...)
}

func (m *memory) BlockSize() int { return m.block }
func (m *memory) ReadOnly() bool { return m.readOnly }

func (m *memory) NextData(_ context.Context, off int64) (int64, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ; off < int64(len(m.data)); off += 512 {
		if p := m.data[off:min(off+512, int64(len(m.data)))]; !bytes.Equal(p, make([]byte, len(p))) {
			return off, int64(len(m.data)), nil
		}
	}
	return 0, 0, io.EOF
}

// notes is a persister in memory.
type notes struct {
	mu   sync.Mutex
	m    map[string][]byte
	fail error
}

func (n *notes) LoadReservations(nqn string, nsid uint32) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.m[fmt.Sprint(nqn, nsid)], nil
}

func (n *notes) SaveReservations(nqn string, nsid uint32, state []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return n.fail
	}
	if n.m == nil {
		n.m = map[string][]byte{}
	}
	n.m[fmt.Sprint(nqn, nsid)] = state
	return nil
}

// manual is a clock that a test moves.
type manual struct {
	mu    sync.Mutex
	now   time.Time
	after []timer
}

type timer struct {
	at time.Time
	c  chan time.Time
}

func newManual() *manual { return &manual{now: time.Unix(1_800_000_000, 0)} }

func (m *manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

func (m *manual) After(d time.Duration) <-chan time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := make(chan time.Time, 1)
	m.after = append(m.after, timer{m.now.Add(d), c})
	return c
}

// set moves the clock without waking anybody.
func (m *manual) move(d time.Duration) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
	return m.now
}

// rig is a target on a loopback port.
type rig struct {
	testing.TB
	*Target
	clock *manual
	addr  string
}

// newRig starts a target with one subsystem of any hosts and no namespaces.
func newRig(t testing.TB, o Options) *rig {
	t.Helper()
	clock := newManual()
	o.Clock = clock
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	target, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t, target, clock, ""}
	r.addr = r.listen(Port{ID: 1})
	if err := target.AddSubsystem(Subsystem{NQN: testNQN, Serial: "S1", AllowAnyHost: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := target.Close(ctx); err != nil {
			t.Error(err)
		}
		if used := target.Totals().MemoryUsed; used != 0 {
			t.Errorf("%d bytes of memory are still taken", used)
		}
	})
	return r
}

// listen serves one more port.
func (r *rig) listen(p Port) string {
	r.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.Fatal(err)
	}
	go r.Serve(l, p)
	// A port is there when discovery tells it.
	r.until("the port is served", func() bool {
		r.Target.mu.Lock()
		defer r.Target.mu.Unlock()
		for have := range r.ports {
			if have.ID == p.ID {
				return true
			}
		}
		return false
	})
	return l.Addr().String()
}

// until waits for something that is about to happen.
func (r *rig) until(what string, f func() bool) {
	r.Helper()
	for deadline := time.Now().Add(patience); !f(); {
		if time.Now().After(deadline) {
			r.Fatalf("%s: not within %s", what, patience)
		}
		time.Sleep(time.Millisecond)
	}
}

// tick moves the clock and has the target look at it. First it lets goroutines
// return from their writes, of which hosts may have seen the bytes already: to
// them no time has passed.
func (r *rig) tick(d time.Duration) {
	r.Helper()
	r.until("nothing is being written", func() bool {
		r.Target.mu.Lock()
		defer r.Target.mu.Unlock()
		for c := range r.conns {
			c.mu.Lock()
			writing := c.writing
			c.mu.Unlock()
			if writing {
				return false
			}
		}
		return true
	})
	r.check(r.clock.move(d))
}

func (r *rig) add(ns Namespace) {
	r.Helper()
	if err := r.AddNamespace(testNQN, ns); err != nil {
		r.Fatal(err)
	}
}

// disk adds namespace 1, 1 MiB of 512-byte blocks.
func (r *rig) disk() *memory {
	r.Helper()
	m := newMemory(1<<20, 512)
	r.add(Namespace{NSID: 1, NGUID: [16]byte{1}, UUID: [16]byte{2}, Device: m, AtomicWrite: 64 << 10})
	return m
}

// settings are how a test host connects.
type settings struct {
	nqn    string
	id     byte
	subNQN string
	header bool
	data   bool
	hpda   uint8
	maxR2T uint32
	cattr  uint8
	kato   uint32
	sqSize uint16
	addr   string
}

// queue is the host's end of a queue: what it sends and receives, PDU by PDU.
type queue struct {
	testing.TB
	s      settings
	nc     net.Conn
	r      *wire.Reader
	tx     wire.Framing
	h2c    int
	cid    uint16
	cntlid uint16
	result uint32
}

func (r *rig) dial(s settings) *queue {
	r.Helper()
	if s.addr == "" {
		s.addr = r.addr
	}
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		r.Fatal(err)
	}
	_ = nc.SetDeadline(time.Now().Add(patience))
	q := &queue{TB: r.TB, s: s, nc: nc, r: wire.NewReader(nc, 64<<10)}
	r.Cleanup(func() { nc.Close() })
	return q
}

// initialize exchanges ICReq and ICResp.
func (q *queue) initialize() {
	q.Helper()
	q.write(wire.ICReq{HPDA: q.s.hpda, HeaderDigest: q.s.header, DataDigest: q.s.data, MaxR2T: q.s.maxR2T}.Append(nil))
	typ, h, err := q.r.Next()
	if err != nil || typ != wire.TypeICResp {
		q.Fatalf("instead of an ICResp: %s, %v", typ, err)
	}
	resp, err := wire.ParseICResp(h)
	if err != nil {
		q.Fatal(err)
	}
	if resp.HeaderDigest != q.s.header || resp.DataDigest != q.s.data {
		q.Fatalf("digests are not as asked: %+v", resp)
	}
	q.tx = wire.Framing{HeaderDigest: resp.HeaderDigest, DataDigest: resp.DataDigest, PDA: resp.CPDA}
	q.r.HeaderDigest, q.r.DataDigest, q.r.PDA, q.r.MaxData = resp.HeaderDigest, resp.DataDigest, q.s.hpda, 1<<20
	q.h2c = int(resp.MaxH2CData)
}

func (q *queue) write(b []byte) {
	q.Helper()
	if _, err := q.nc.Write(b); err != nil {
		q.Fatal(err)
	}
}

func (s settings) connect(qid, cntlid uint16) wire.Connect {
	c := wire.Connect{QID: qid, SQSize: 31, CAttr: s.cattr, KATO: s.kato, CNTLID: cntlid, SubNQN: testNQN, HostNQN: hostNQN}
	c.HostID = [16]byte{1 + s.id, 15: 9}
	if s.nqn != "" {
		c.HostNQN = s.nqn
	}
	if s.subNQN != "" {
		c.SubNQN = s.subNQN
	}
	if s.sqSize != 0 {
		c.SQSize = s.sqSize
	}
	return c
}

// tryConnect sends a connect command.
func (q *queue) tryConnect(c wire.Connect) wire.CQE {
	q.Helper()
	var sqe wire.SQE
	c.Command(&sqe)
	return q.do(&sqe, c.AppendData(nil)).CQE
}

// answer is what a command came to.
type answer struct {
	wire.CQE
	data    []byte
	implied bool // by data with the SUCCESS flag
}

// send sends a command with data in its capsule, and returns its ID.
func (q *queue) send(sqe *wire.SQE, inCapsule []byte) uint16 {
	q.Helper()
	q.cid++
	sqe.SetCID(q.cid)
	if inCapsule != nil {
		sqe.SetSGL(wire.SGL{Length: uint32(len(inCapsule)), Type: wire.SGLInCapsule})
	}
	b := append(q.tx.AppendCommand(nil, sqe, len(inCapsule)), inCapsule...)
	if len(inCapsule) > 0 {
		b = q.tx.AppendDigest(b, inCapsule)
	}
	q.write(b)
	return q.cid
}

// do sends a command and waits for its answer, which has to be the next.
func (q *queue) do(sqe *wire.SQE, inCapsule []byte) answer {
	q.Helper()
	id := q.send(sqe, inCapsule)
	a := q.receive(nil)
	if a.CID != id {
		q.Fatalf("answer to command %d, expected was %d", a.CID, id)
	}
	return a
}

// receive returns the next answer. data is for R2Ts.
func (q *queue) receive(data []byte) (a answer) {
	q.Helper()
	for {
		typ, h, err := q.r.Next()
		if err != nil {
			q.Fatalf("no answer: %v", err)
		}
		switch typ {
		case wire.TypeCapsuleResp:
			a.CQE = wire.ParseCQE(h)
			return a
		case wire.TypeC2HData:
			d, err := wire.ParseData(h, q.r.DataLen())
			if err != nil {
				q.Fatal(err)
			}
			part := make([]byte, d.Length)
			if err := q.r.ReadData(part); err != nil {
				q.Fatal(err)
			}
			if int(d.Offset) != len(a.data) {
				q.Fatalf("data at %d after %d bytes", d.Offset, len(a.data))
			}
			a.data = append(a.data, part...)
			if d.Success {
				a.CID, a.implied = d.CID, true
				return a
			}
		case wire.TypeR2T:
			q.give(wire.ParseR2T(h), data)
		case wire.TypeC2HTermReq:
			q.Fatalf("the target ended the connection: %s", wire.ParseTermReq(h).FES)
		default:
			q.Fatalf("unexpected %s", typ)
		}
	}
}

// give sends the data that an R2T asks for.
func (q *queue) give(r wire.R2T, data []byte) {
	q.Helper()
	for at, end := r.Offset, r.Offset+r.Length; at < end; {
		n := min(end-at, uint32(q.h2c))
		p := data[at : at+n]
		b := append(q.tx.AppendH2CData(nil, wire.Data{CID: r.CID, TTag: r.TTag, Offset: at, Length: n, Last: at+n == end}), p...)
		q.write(q.tx.AppendDigest(b, p))
		at += n
	}
}

// terminated returns the fatal error status with which the target ends the
// connection.
func (q *queue) terminated() wire.TermReq {
	q.Helper()
	for {
		typ, h, err := q.r.Next()
		if err != nil {
			q.Fatalf("no termination request: %v", err)
		}
		if typ == wire.TypeC2HTermReq {
			term := wire.ParseTermReq(h)
			term.Header = make([]byte, q.r.DataLen())
			if err := q.r.ReadData(term.Header); err != nil {
				q.Fatal(err)
			}
			q.nc.Close()
			return term
		}
	}
}

// closed waits until the target has closed the connection.
func (q *queue) closed() {
	q.Helper()
	for {
		if _, _, err := q.r.Next(); err != nil {
			var n net.Error
			if errors.As(err, &n) && n.Timeout() {
				q.Fatal("the target keeps the connection open")
			}
			return
		}
	}
}

// property reads or writes one of 4 bytes.
func (q *queue) property(offset uint32, value *uint32) uint32 {
	q.Helper()
	var sqe wire.SQE
	p := wire.Property{Offset: offset}
	if value != nil {
		p.Value = uint64(*value)
		p.Set(&sqe)
	} else {
		p.Get(&sqe)
	}
	a := q.do(&sqe, nil)
	if a.Status != wire.Success {
		q.Fatalf("property %#x: %s", offset, a.Status)
	}
	return uint32(a.Result)
}

const ccEnable = 4<<20 | 6<<16 | 1

func (q *queue) enable() {
	q.Helper()
	cc := uint32(ccEnable)
	q.property(wire.PropCC, &cc)
	if csts := q.property(wire.PropCSTS, nil); csts != wire.CSTSReady {
		q.Fatalf("CSTS is %#x after enabling", csts)
	}
}

// admin connects an admin queue and enables the controller.
func (r *rig) admin(s settings) *queue {
	r.Helper()
	q := r.dial(s)
	q.initialize()
	cqe := q.tryConnect(s.connect(0, wire.DynamicCNTLID))
	if cqe.Status != wire.Success {
		r.Fatalf("connect: %s", cqe.Status)
	}
	q.cntlid, q.result = uint16(cqe.Result), uint32(cqe.Result)
	q.enable()
	return q
}

// io connects an I/O queue of a controller.
func (r *rig) io(admin *queue, qid uint16) *queue {
	r.Helper()
	q := r.dial(admin.s)
	q.initialize()
	if cqe := q.tryConnect(admin.s.connect(qid, admin.cntlid)); cqe.Status != wire.Success {
		r.Fatalf("connect of queue %d: %s", qid, cqe.Status)
	}
	q.cntlid = admin.cntlid
	return q
}

// host connects an admin and an I/O queue.
func (r *rig) host(s settings) (admin, io *queue) {
	r.Helper()
	admin = r.admin(s)
	return admin, r.io(admin, 1)
}

// ioCommand makes an I/O command on namespace 1.
func ioCommand(op uint8, slba uint64, blocks uint32) *wire.SQE {
	var sqe wire.SQE
	sqe.SetOpcode(op)
	sqe.SetNSID(1)
	if blocks > 0 {
		sqe.SetRange(slba, blocks)
	}
	return &sqe
}

// room describes n bytes that follow in data PDUs.
func room(sqe *wire.SQE, n int) *wire.SQE {
	sqe.SetSGL(wire.SGL{Length: uint32(n), Type: wire.SGLTransport})
	return sqe
}

// read reads blocks of 512 bytes.
func (q *queue) read(slba uint64, blocks uint32) answer {
	q.Helper()
	return q.do(room(ioCommand(wire.OpRead, slba, blocks), int(blocks)*512), nil)
}

// writeR2T writes with data that the target asks for.
func (q *queue) writeR2T(sqe *wire.SQE, data []byte) answer {
	q.Helper()
	id := q.send(room(sqe, len(data)), nil)
	a := q.receive(data)
	if a.CID != id {
		q.Fatalf("answer to command %d, expected was %d", a.CID, id)
	}
	return a
}

// ok fails the test unless a command succeeded.
func (q *queue) ok(a answer) answer {
	q.Helper()
	if a.Status != wire.Success {
		q.Fatalf("command failed: %s", a.Status)
	}
	return a
}

// want fails the test unless a command failed with a status.
func (q *queue) want(a answer, s wire.Status) {
	q.Helper()
	if a.Status.Code() != s {
		q.Fatalf("status is %s, should be %s", a.Status, s)
	}
}

// identify returns an identify structure.
func (q *queue) identify(cns uint8, nsid uint32) answer {
	q.Helper()
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpIdentify)
	sqe.SetNSID(nsid)
	sqe.SetCDW(10, uint32(cns))
	return q.do(room(&sqe, wire.IdentifyLen), nil)
}

// log returns n bytes of a log page.
func (q *queue) log(id uint8, n int) []byte {
	q.Helper()
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpGetLogPage)
	sqe.SetNSID(wire.BroadcastNSID)
	sqe.SetCDW(10, uint32(id)|uint32(n/4-1)<<16)
	return q.ok(q.do(room(&sqe, n), nil)).data
}

// feature sets a feature.
func (q *queue) feature(id uint8, nsid, value uint32) answer {
	q.Helper()
	var sqe wire.SQE
	sqe.SetOpcode(wire.OpSetFeatures)
	sqe.SetNSID(nsid)
	sqe.SetCDW(10, uint32(id))
	sqe.SetCDW(11, value)
	return q.do(&sqe, nil)
}

// pattern returns n bytes that tell where they are from.
func pattern(seed byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i) + byte(i>>8)*3
	}
	return p
}

var errBroken = capsule.Errorf(capsule.IO, "the device is broken")
