package host

import (
	"bytes"

	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/spacestore/space/internal/testenv/leak"
	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/wire"
)

func TestMain(m *testing.M) { leak.Main(m) }

const (
	fakeNQN = "nqn.2026-11.org.example:fake"
	// patience bounds hangs; no test waits for it.
	patience = 3 * time.Minute
)

// fake is a target small enough to be made to misbehave. It serves one
// namespace from memory, one goroutine per connection, and never reads while
// it writes.
type fake struct {
	t        testing.TB
	l        net.Listener
	resp     wire.ICResp
	flow     bool // flow control cannot be switched off
	small    bool // sockets hold little; much less than this, and TCP itself stalls on loopback
	success  bool // reads end with data, not with a response
	r2t      int  // bytes that an R2T asks for
	pieces   int  // bytes of data in one PDU
	block    int
	ioccsz   uint32
	secret   dhchap.Config
	registry []wire.DiscoveryEntry
	// hook sees commands first, and says whether it took them.
	hook func(c *fakeConn, s *wire.SQE, data []byte) bool

	mu         sync.Mutex
	disk       []byte
	generation uint64
	conns      map[net.Conn]bool
	terms      chan wire.TermReq // what hosts said when they hung up
	wg         sync.WaitGroup
}

type fakeConn struct {
	*fake
	net.Conn
	r       *wire.Reader
	f       wire.Framing
	qid     uint16
	auth    *dhchap.Controller
	lastR2T uint16
	backlog []capsuleIn // commands that came while data was waited for
}

type capsuleIn struct {
	s    wire.SQE
	data []byte
}

// newFake starts a target; set is called before anybody can connect.
func newFake(t testing.TB, set func(*fake)) *fake {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, l: l, resp: wire.ICResp{MaxH2CData: 8192}, r2t: 16 << 10, pieces: 16 << 10, block: 512, ioccsz: (64 + 8192) / 16,
		disk: make([]byte, 4<<20), conns: map[net.Conn]bool{}, terms: make(chan wire.TermReq, 16)}
	if set != nil {
		set(f)
	}
	f.wg.Go(f.accept)
	t.Cleanup(func() {
		l.Close()
		f.mu.Lock()
		for c := range f.conns {
			c.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

func (f *fake) accept() {
	for {
		c, err := f.l.Accept()
		if err != nil {
			return
		}
		if f.small {
			c.(*net.TCPConn).SetReadBuffer(128 << 10)
			c.(*net.TCPConn).SetWriteBuffer(4096)
		}
		f.mu.Lock()
		f.conns[c] = true
		f.mu.Unlock()
		f.wg.Go(func() {
			defer c.Close()
			(&fakeConn{fake: f, Conn: c, r: wire.NewReader(c, 4096)}).serve()
		})
	}
}

func (f *fake) address() string { return f.l.Addr().String() }

func (c *fakeConn) serve() {
	t, h, err := c.r.Next()
	if err != nil || t != wire.TypeICReq {
		return
	}
	req, err := wire.ParseICReq(h)
	if err != nil {
		return
	}
	resp := c.resp
	resp.HeaderDigest, resp.DataDigest = req.HeaderDigest, req.DataDigest
	if c.resp.PFV != 0 { // for a hook-less lie
		resp.PFV = c.resp.PFV
	}
	c.Write(resp.Append(nil))
	c.f = wire.Framing{HeaderDigest: req.HeaderDigest, DataDigest: req.DataDigest, PDA: req.HPDA}
	c.r.HeaderDigest, c.r.DataDigest, c.r.PDA, c.r.MaxData = req.HeaderDigest, req.DataDigest, resp.CPDA, 1<<20
	for {
		in, err := c.command()
		if err != nil {
			return
		}
		s, data := &in.s, in.data
		if c.hook != nil && c.hook(c, s, data) {
			continue
		}
		if direction(s) == toController && s.SGL().Type == wire.SGLTransport && s.SGL().Length > 0 {
			if data, err = c.fetch(s); err != nil {
				return
			}
		}
		c.execute(s, data)
	}
}

// command returns the next command.
func (c *fakeConn) command() (in capsuleIn, err error) {
	if len(c.backlog) > 0 {
		in, c.backlog = c.backlog[0], c.backlog[1:]
		return in, nil
	}
	t, h, err := c.r.Next()
	if err != nil {
		return in, err
	}
	switch t {
	case wire.TypeCapsuleCmd:
		return c.capsule(h)
	case wire.TypeH2CTermReq:
		c.terms <- wire.ParseTermReq(h)
	default:
		c.t.Errorf("the host sends %v", t)
	}
	return in, io.EOF
}

func (c *fakeConn) capsule(h []byte) (in capsuleIn, err error) {
	wire.ParseSQE(h, &in.s)
	in.data = make([]byte, c.r.DataLen())
	if err = c.r.ReadData(in.data); err == wire.ErrDataDigest {
		c.t.Error(err)
	}
	return in, err
}

// fetch asks for a command's data, two R2Ts at a time.
func (c *fakeConn) fetch(s *wire.SQE) ([]byte, error) {
	data := make([]byte, s.SGL().Length)
	for off := 0; off < len(data); {
		var asked []wire.R2T
		var b []byte
		for range 2 {
			if n := min(c.r2t, len(data)-off); n > 0 {
				c.lastR2T++
				r := wire.R2T{CID: s.CID(), TTag: c.lastR2T, Offset: uint32(off), Length: uint32(n)}
				asked = append(asked, r)
				b = c.f.AppendR2T(b, r)
				off += n
			}
		}
		c.Write(b)
		for _, r := range asked {
			for got := uint32(0); got < r.Length; {
				t, h, err := c.r.Next()
				if err != nil {
					return nil, err
				}
				if t == wire.TypeCapsuleCmd {
					in, err := c.capsule(h)
					if err != nil {
						return nil, err
					}
					c.backlog = append(c.backlog, in)
					continue
				}
				d, err := wire.ParseData(h, c.r.DataLen())
				if t != wire.TypeH2CData || err != nil || d.CID != r.CID || d.TTag != r.TTag || d.Offset != r.Offset+got ||
					d.Length > c.resp.MaxH2CData || got+d.Length > r.Length || d.Last != (got+d.Length == r.Length) {
					c.t.Errorf("the answer to R2T %+v is %v %+v, %v", r, t, d, err)
					return nil, io.ErrUnexpectedEOF
				}
				if err := c.r.ReadData(data[d.Offset:][:d.Length]); err != nil {
					c.t.Error(err)
					return nil, err
				}
				got += d.Length
			}
		}
	}
	return data, nil
}

// reply sends a command's data and its status.
func (c *fakeConn) reply(s *wire.SQE, data []byte, result uint64, status wire.Status) {
	var b []byte
	for off := 0; off < len(data); off += c.pieces {
		part := data[off:min(off+c.pieces, len(data))]
		last := off+len(part) == len(data)
		b = c.f.AppendC2HData(b, wire.Data{CID: s.CID(), Offset: uint32(off), Length: uint32(len(part)), Last: last, Success: last && c.success && status == 0})
		b = c.f.AppendDigest(append(b, part...), part)
	}
	if len(data) == 0 || !c.success || status != 0 {
		b = c.f.AppendResponse(b, wire.CQE{Result: result, CID: s.CID(), SQID: c.qid, Status: status})
	}
	c.Write(b)
}

func (c *fakeConn) execute(s *wire.SQE, data []byte) {
	if s.Opcode() == wire.OpFabrics {
		c.fabrics(s, data)
	} else if c.qid == 0 {
		c.administer(s)
	} else {
		c.transfer(s, data)
	}
}

func (c *fakeConn) fabrics(s *wire.SQE, data []byte) {
	switch s.FCType() {
	case wire.FCConnect:
		conn, err := wire.ParseConnect(s, data)
		if err != nil {
			c.t.Error(err)
		}
		c.qid = conn.QID
		result := uint64(7) // the controller's ID
		if c.flow && conn.CAttr != 0 {
			c.reply(s, nil, wire.InvalidParam(false, wire.ConnectOffCAttr), wire.ConnectInvalidParam|wire.DNR)
			return
		}
		if conn.QID > 0 && conn.CNTLID != 7 {
			c.t.Errorf("queue %d connects to controller %d", conn.QID, conn.CNTLID)
		}
		if conn.SubNQN != fakeNQN && conn.SubNQN != wire.DiscoveryNQN {
			c.reply(s, nil, wire.InvalidParam(true, wire.ConnectOffSubNQN), wire.ConnectInvalidParam|wire.DNR)
			return
		}
		if !c.secret.HostSecret.IsZero() {
			cfg := c.secret
			cfg.HostNQN, cfg.SubsysNQN = conn.HostNQN, conn.SubNQN
			if c.auth, err = dhchap.NewController(cfg); err != nil {
				c.t.Error(err)
			}
			result |= wire.AuthRequiredATR
		}
		c.reply(s, nil, result, 0)
	case wire.FCPropertyGet:
		p, _ := wire.ParseProperty(s)
		v := map[uint32]uint64{wire.PropCAP: 127 | 2<<24, wire.PropCSTS: wire.CSTSReady | wire.CSTSShutDone}[p.Offset]
		c.reply(s, nil, v, 0)
	case wire.FCAuthSend:
		c.auth.Send(data)
		c.reply(s, nil, 0, 0)
	case wire.FCAuthReceive:
		m, err := c.auth.Receive(int(wire.ParseAuth(s).Length))
		if err != nil {
			c.reply(s, nil, 0, wire.CommandSequenceError)
			return
		}
		c.reply(s, m, 0, 0)
	default:
		c.reply(s, nil, 0, 0)
	}
}

func (c *fakeConn) administer(s *wire.SQE) {
	n := int(s.SGL().Length)
	switch s.Opcode() {
	case wire.OpIdentify:
		var b []byte
		switch s.CDW(10) & 0xff {
		case wire.CNSController:
			b = (&wire.IdentifyController{Serial: "1", Model: "fake", MDTS: 6, IOCCSZ: c.ioccsz, IORCSZ: 1, NN: 1, Version: wire.Version20}).Append(nil)
		case wire.CNSNamespace:
			shift := uint8(9)
			for 1<<shift < c.block {
				shift++
			}
			b = (&wire.IdentifyNamespace{NSZE: uint64(len(c.disk) / c.block), LBADataSize: shift}).Append(nil)
		case wire.CNSActiveNamespaces:
			b = make([]byte, 4096)
			if s.NSID() == 0 {
				b[0] = 1
			}
		case wire.CNSDescriptors:
			b = wire.AppendDescriptor(nil, wire.Descriptor{Type: wire.DescriptorNGUID, Value: bytes.Repeat([]byte{9}, 16)})
			b = append(b, make([]byte, 4096-len(b))...)
		default:
			c.reply(s, nil, 0, wire.InvalidField|wire.DNR)
			return
		}
		c.reply(s, b, 0, 0)
	case wire.OpGetLogPage:
		off := int(s.CDW(12))
		c.mu.Lock()
		b := (&wire.DiscoveryHeader{Generation: c.generation, Records: uint64(len(c.registry))}).Append(nil)
		for i := range c.registry {
			b = c.registry[i].Append(b)
		}
		c.mu.Unlock()
		b = append(b, make([]byte, max(0, off+n-len(b)))...)
		c.reply(s, b[off:off+n], 0, 0)
	case wire.OpSetFeatures:
		c.reply(s, nil, uint64(s.CDW(11)), 0) // as many queues as asked for
	default:
		c.reply(s, nil, 0, 0)
	}
}

func (c *fakeConn) transfer(s *wire.SQE, data []byte) {
	off, n := int64(s.SLBA())*int64(c.block), int64(s.Blocks())*int64(c.block)
	if s.Opcode() == wire.OpFlush || s.Opcode() == wire.OpDSM || s.Opcode() >= wire.OpReservRegister {
		c.reply(s, nil, 0, 0)
		return
	}
	c.mu.Lock()
	size := int64(len(c.disk))
	c.mu.Unlock()
	if off < 0 || off+n > size || off+n < off {
		c.reply(s, nil, 0, wire.LBARange|wire.DNR)
		return
	}
	c.mu.Lock()
	var out []byte
	status := wire.Success
	switch s.Opcode() {
	case wire.OpRead:
		out = bytes.Clone(c.disk[off : off+n])
	case wire.OpWrite:
		copy(c.disk[off:off+n], data)
	case wire.OpCompare:
		if !bytes.Equal(c.disk[off:off+n], data) {
			status = wire.CompareFailure
		}
	case wire.OpWriteZeroes:
		clear(c.disk[off : off+n])
	}
	c.mu.Unlock()
	c.reply(s, out, 0, status)
}

func (f *fake) connect(t testing.TB, o Options) *Controller {
	t.Helper()
	c, err := Connect(t.Context(), f.address(), fakeNQN, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// open connects one I/O queue and the namespace.
func (f *fake) open(t testing.TB, o Options, depth int) (*Queue, *Namespace) {
	t.Helper()
	c := f.connect(t, o)
	n, err := c.Namespace(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	q, err := c.OpenQueues(t.Context(), 1, depth)
	if err != nil {
		t.Fatal(err)
	}
	return q[0], n
}

// setTimeout makes a connection's timeout short once it is there, so that only
// what a test is about can run into it.
func setTimeout(q *Queue, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.timeout = d
	q.armed, q.armedW, q.deadline = time.Time{}, time.Time{}, false
	q.conn.SetDeadline(time.Time{})
}

// within runs fn, which must not hang.
func within(t testing.TB, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it hangs")
	}
}

// noise is what patterns are parts of.
var noise = func() []byte {
	b := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}()

// pattern returns n bytes that differ with seed.
func pattern(n int, seed byte) []byte { return bytes.Clone(noise[int(seed)*97:][:n]) }

var errWanted = errors.New("an error was wanted")
