package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/wire"
)

// What is written can be read, in all sizes, with and without digests,
// alignment, and the shorter way of ending a read.
func TestReadsAndWrites(t *testing.T) {
	for _, digests := range []bool{false, true} {
		for _, success := range []bool{false, true} {
			t.Run(fmt.Sprintf("digests %v, success flag %v", digests, success), func(t *testing.T) {
				f := newFake(t, func(f *fake) { f.success, f.flow, f.resp.CPDA = success, !success, 7 })
				q, n := f.open(t, Options{HeaderDigest: digests, DataDigest: digests}, 32)
				ctx := t.Context()
				for i, size := range []int{512, 4096, 8192, 8704, 65536, 131072, 262144} {
					want := pattern(size, byte(i))
					lba := uint64(i * 600)
					if err := n.Write(ctx, q, lba, want, i%2 == 0); err != nil {
						t.Fatal(err)
					}
					got := make([]byte, size)
					if err := n.Read(ctx, q, lba, got); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, want) {
						t.Fatalf("%d bytes come back changed", size)
					}
					if err := n.Compare(ctx, q, lba, want); err != nil {
						t.Fatal(err)
					}
					want[size-1]++
					var s *CommandError
					if err := n.Compare(ctx, q, lba, want); !errors.As(err, &s) || s.Status.Code() != wire.CompareFailure || capsule.KindOf(err) != capsule.Conflict {
						t.Fatalf("comparing something else: %v", err)
					}
				}
				if err := n.Flush(ctx, q); err != nil {
					t.Fatal(err)
				}
				if err := n.WriteZeroes(ctx, q, 0, 1, true); err != nil {
					t.Fatal(err)
				}
				if err := n.Trim(ctx, q, wire.DSMRange{Blocks: 8}, wire.DSMRange{SLBA: 16, Blocks: 8}); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// Many goroutines share a queue of few places, with commands of every kind and size.
func TestManyGoroutinesShareOneQueue(t *testing.T) {
	f := newFake(t, func(f *fake) { f.small = true })
	q, n := f.open(t, Options{DataDigest: true}, 8)
	const each = 32 << 10
	var wg sync.WaitGroup
	for g := range 24 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			lba := uint64(g * each / 512)
			for i := range 20 {
				size := (1 + rng.IntN(each/512)) * 512
				want := pattern(size, byte(g*20+i))
				if err := n.Write(t.Context(), q, lba, want, false); err != nil {
					t.Error(err)
					return
				}
				got := make([]byte, size)
				if err := n.Read(t.Context(), q, lba, got); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(got, want) {
					t.Errorf("goroutine %d reads what another wrote", g)
					return
				}
			}
		})
	}
	within(t, wg.Wait)
}

// A target that does not read while it writes, with sockets that hold next to
// nothing, would hang a host that does the same.
func TestLargeReadsAndWritesAtOnceDoNotBlockEachOther(t *testing.T) {
	f := newFake(t, func(f *fake) { f.small, f.ioccsz = true, (64+256<<10)/16 })
	q, n := f.open(t, Options{Dial: smallSockets}, 32)
	size := 128 << 10
	cmds := make([]Command, 32)
	within(t, func() {
		for round := range 3 {
			for i := range cmds {
				op := uint8(wire.OpRead)
				if (i+round)%2 == 0 {
					op = wire.OpWrite
				}
				n.Set(&cmds[i], op, uint64(i*size/512), make([]byte, size), 0)
				if err := q.Submit(&cmds[i]); err != nil {
					t.Error(err)
					return
				}
			}
			for range cmds {
				if c, err := q.Wait(); err != nil || c.Err != nil {
					t.Error(err, c)
					return
				}
			}
		}
	})
}

func smallSockets(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		c.(*net.TCPConn).SetReadBuffer(128 << 10)
		c.(*net.TCPConn).SetWriteBuffer(4096)
	}
	return c, err
}

func TestStatusesAreErrorsOfTheirKind(t *testing.T) {
	status := atomic.Uint32{}
	f := newFake(t, func(f *fake) {
		f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
			if c.qid == 0 || s.Opcode() != wire.OpRead {
				return false
			}
			c.reply(s, nil, 0, wire.Status(status.Load()))
			return true
		}
	})
	q, n := f.open(t, Options{}, 4)
	for code, kind := range map[wire.Status]capsule.ErrorKind{
		wire.LBARange | wire.DNR: capsule.OutOfRange, wire.UnrecoveredRead: capsule.Damaged, wire.InvalidField: capsule.Invalid,
		wire.CapacityExceeded: capsule.NoSpace, wire.ReservationConflict: capsule.Denied, wire.WriteProtected: capsule.ReadOnly,
		wire.InvalidNamespace: capsule.NotFound, wire.InternalError: capsule.IO, wire.ANAInaccessible: capsule.Unavailable,
		wire.AbortRequested: capsule.Canceled, 0x7ff: capsule.IO,
	} {
		status.Store(uint32(code))
		err := n.Read(t.Context(), q, 5, make([]byte, 1024))
		var s *CommandError
		if !errors.As(err, &s) || s.Status != code || capsule.KindOf(err) != kind {
			t.Errorf("status %#x: %v of kind %v, not %v", code, err, capsule.KindOf(err), kind)
		}
		if err != nil && !strings.Contains(err.Error(), "namespace 1, 2 blocks at 5") {
			t.Errorf("the error does not say what it was: %v", err)
		}
	}
	// And success that brings too little is none.
	status.Store(0)
	if err := n.Read(t.Context(), q, 5, make([]byte, 1024)); capsule.KindOf(err) != capsule.IO {
		t.Errorf("a read without data: %v", err)
	}
	if q.Err() != nil {
		t.Errorf("a status ended the connection: %v", q.Err())
	}
}

func TestDamagedDataFailsItsCommandAlone(t *testing.T) {
	var damage atomic.Bool
	f := newFake(t, func(f *fake) {
		f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
			if s.Opcode() != wire.OpRead || c.qid == 0 || !damage.Swap(false) {
				return false
			}
			data := make([]byte, 512)
			b := c.f.AppendC2HData(nil, wire.Data{CID: s.CID(), Length: 512, Last: true})
			b = c.f.AppendDigest(append(b, data...), []byte("something else"))
			c.Write(c.f.AppendResponse(b, wire.CQE{CID: s.CID()}))
			return true
		}
	})
	q, n := f.open(t, Options{DataDigest: true}, 4)
	damage.Store(true)
	if err := n.Read(t.Context(), q, 0, make([]byte, 512)); !errors.Is(err, ErrDataDigest) {
		t.Fatalf("damaged data: %v", err)
	}
	if err := n.Read(t.Context(), q, 0, make([]byte, 512)); err != nil {
		t.Fatalf("the read after it: %v", err)
	}
}

// Whatever a target does wrong ends the connection with the reason, and fails
// the command in flight.
func TestTargetsThatBreakTheProtocol(t *testing.T) {
	raw := func(b []byte) func(c *fakeConn, s *wire.SQE) { return func(c *fakeConn, _ *wire.SQE) { c.Write(b) } }
	data := func(f func(d *wire.Data), n int) func(c *fakeConn, s *wire.SQE) {
		return func(c *fakeConn, s *wire.SQE) {
			d := wire.Data{CID: s.CID(), Length: uint32(n), Last: true}
			f(&d)
			body := make([]byte, n)
			c.Write(c.f.AppendDigest(append(c.f.AppendC2HData(nil, d), body...), body))
		}
	}
	r2t := func(count int, f func(r *wire.R2T)) func(c *fakeConn, s *wire.SQE) {
		return func(c *fakeConn, s *wire.SQE) {
			var b []byte
			for range count {
				r := wire.R2T{CID: s.CID(), TTag: 1, Length: 512}
				f(&r)
				b = c.f.AppendR2T(b, r)
			}
			c.Write(b)
		}
	}
	for name, c := range map[string]struct {
		op   uint8
		size int
		do   func(c *fakeConn, s *wire.SQE)
		want wire.FES // of the termination request; 0: none is due
	}{
		"response to no command": {wire.OpRead, 1024, func(c *fakeConn, s *wire.SQE) {
			c.Write(c.f.AppendResponse(nil, wire.CQE{CID: s.CID() + 1}))
		}, wire.FESSequence},
		"response to an earlier use of the ID": {wire.OpRead, 1024, func(c *fakeConn, s *wire.SQE) {
			c.Write(c.f.AppendResponse(nil, wire.CQE{CID: s.CID() - 1<<slotBits}))
		}, wire.FESSequence},
		"data for no command":      {wire.OpRead, 1024, data(func(d *wire.Data) { d.CID++ }, 512), wire.FESSequence},
		"data for a write":         {wire.OpWrite, 1024, data(func(*wire.Data) {}, 512), wire.FESSequence},
		"data out of order":        {wire.OpRead, 1024, data(func(d *wire.Data) { d.Offset = 512 }, 512), wire.FESOutOfRange},
		"data far out of order":    {wire.OpRead, 1024, data(func(d *wire.Data) { d.Offset = 0xfffffff0 }, 512), wire.FESOutOfRange},
		"too much data":            {wire.OpRead, 1024, data(func(*wire.Data) {}, 1028), wire.FESOutOfRange},
		"success in mid-transfer":  {wire.OpRead, 1024, data(func(d *wire.Data) { d.Success, d.Last = true, false }, 512), wire.FESInvalidHeader},
		"R2T for a read":           {wire.OpRead, 1024, r2t(1, func(*wire.R2T) {}), wire.FESSequence},
		"R2T for in-capsule data":  {wire.OpWrite, 1024, r2t(1, func(*wire.R2T) {}), wire.FESSequence},
		"R2T for no command":       {wire.OpWrite, 65536, r2t(1, func(r *wire.R2T) { r.CID++ }), wire.FESSequence},
		"R2T for nothing":          {wire.OpWrite, 65536, r2t(1, func(r *wire.R2T) { r.Length = 0 }), wire.FESOutOfRange},
		"R2T beyond the data":      {wire.OpWrite, 65536, r2t(1, func(r *wire.R2T) { r.Offset = 65536 }), wire.FESOutOfRange},
		"R2T far beyond the data":  {wire.OpWrite, 65536, r2t(1, func(r *wire.R2T) { r.Length = 0xffffffff }), wire.FESOutOfRange},
		"R2Ts for the same twice":  {wire.OpWrite, 65536, r2t(2, func(r *wire.R2T) { r.Length = 65536 }), wire.FESOutOfRange},
		"PDU of an unknown type":   {wire.OpRead, 1024, raw([]byte{0x0b, 0, 8, 0, 8, 0, 0, 0}), wire.FESInvalidHeader},
		"PDU of a host":            {wire.OpRead, 1024, func(c *fakeConn, s *wire.SQE) { c.Write(c.f.AppendCommand(nil, s, 0)) }, wire.FESInvalidHeader},
		"garbage":                  {wire.OpRead, 1024, raw(bytes.Repeat([]byte("HTTP/1.1 400 "), 40)), wire.FESInvalidHeader},
		"a PDU as long as can be":  {wire.OpRead, 1024, raw([]byte{7, 0, 24, 24, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}), wire.FESInvalidHeader},
		"another connection reply": {wire.OpRead, 1024, raw(wire.ICResp{MaxH2CData: 4096}.Append(nil)), wire.FESInvalidHeader},
		"nothing but the end":      {wire.OpRead, 1024, func(c *fakeConn, _ *wire.SQE) { c.Close() }, 0},
		"the end in mid-PDU": {wire.OpRead, 1024, func(c *fakeConn, s *wire.SQE) {
			b := c.f.AppendC2HData(nil, wire.Data{CID: s.CID(), Length: 1024, Last: true})
			c.Write(append(b, make([]byte, 100)...))
			c.Close()
		}, 0},
		"termination": {wire.OpRead, 1024, func(c *fakeConn, _ *wire.SQE) {
			c.Write(wire.TermReq{FES: wire.FESLimitExceeded, FEI: 3}.Append(nil))
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var once atomic.Bool
			f := newFake(t, func(f *fake) {
				f.hook = func(fc *fakeConn, s *wire.SQE, _ []byte) bool {
					if fc.qid == 0 || s.Opcode() != c.op || once.Swap(true) {
						return false
					}
					c.do(fc, s)
					return true
				}
			})
			q, n := f.open(t, Options{}, 4)
			var cmd Command
			n.Set(&cmd, c.op, 0, make([]byte, c.size), 0)
			within(t, func() {
				err := q.Do(t.Context(), &cmd)
				if k := capsule.KindOf(err); k != capsule.IO && k != capsule.Unavailable {
					t.Errorf("%v, of kind %v", err, k)
				}
				if name == "termination" {
					var e *TerminatedError
					if !errors.As(err, &e) || e.FES != wire.FESLimitExceeded || e.FEI != 3 {
						t.Errorf("%v does not say why", err)
					}
				}
				if err := n.Flush(t.Context(), q); err == nil {
					t.Error("the connection goes on")
				}
				if c.want != 0 {
					if term := <-f.terms; term.FES != c.want {
						t.Errorf("the target is told %v, not %v", term.FES, c.want)
					}
				}
			})
		})
	}
}

func TestHeaderDigestErrorsEndTheConnection(t *testing.T) {
	f := newFake(t, func(f *fake) {
		f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
			if c.qid == 0 || s.Opcode() != wire.OpRead {
				return false
			}
			b := c.f.AppendResponse(nil, wire.CQE{CID: s.CID()})
			b[len(b)-1] ^= 1
			c.Write(b)
			return true
		}
	})
	q, n := f.open(t, Options{HeaderDigest: true}, 4)
	within(t, func() {
		err := n.Read(t.Context(), q, 0, make([]byte, 512))
		var p *wire.ProtocolError
		if !errors.As(err, &p) || p.FES != wire.FESHeaderDigest {
			t.Errorf("a damaged header: %v", err)
		}
		if term := <-f.terms; term.FES != wire.FESHeaderDigest {
			t.Errorf("the target is told %v", term.FES)
		}
	})
}

func TestR2TsAreBounded(t *testing.T) {
	script := wire.ICResp{MaxH2CData: 8192}.Append(nil)
	for i := range maxR2T + 1 {
		script = wire.Framing{}.AppendR2T(script, wire.R2T{CID: 1 << slotBits, TTag: uint16(i), Offset: uint32(i) * 8192, Length: 8192})
	}
	q, err := newQueue(t.Context(), scripted{Reader: bytes.NewReader(script)}, queueOptions{depth: 1, timeout: patience, buffer: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	cmd := Command{Data: make([]byte, 1<<20)}
	cmd.SQE.SetOpcode(wire.OpWrite)
	err = q.Do(t.Context(), &cmd)
	var p *wire.ProtocolError
	if !errors.As(err, &p) || p.FES != wire.FESLimitExceeded {
		t.Errorf("%d R2Ts at once: %v", maxR2T+1, err)
	}
}

func TestSilentTargetsAreGivenUp(t *testing.T) {
	for name, hook := range map[string]func(c *fakeConn, s *wire.SQE) bool{
		"at once": func(c *fakeConn, s *wire.SQE) bool { return true },
		"in mid-PDU": func(c *fakeConn, s *wire.SQE) bool {
			if s.SLBA() == 0 {
				c.Write([]byte{5, 0, 24})
			}
			return true
		},
		"in mid-data": func(c *fakeConn, s *wire.SQE) bool {
			if s.SLBA() > 0 {
				return true
			}
			c.Write(append(c.f.AppendC2HData(nil, wire.Data{CID: s.CID(), Length: 512, Last: true}), 1, 2, 3))
			return true
		},
		"for one command of many": func(c *fakeConn, s *wire.SQE) bool { return s.SLBA() == 3 },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, func(f *fake) {
				f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
					return c.qid > 0 && s.Opcode() == wire.OpRead && hook(c, s)
				}
			})
			// The timeout is short so that the test is; nothing is asserted of it.
			q, n := f.open(t, Options{}, 8)
			setTimeout(q, 200*time.Millisecond)
			within(t, func() {
				cmds := make([]Command, 8)
				for i := range cmds {
					n.Set(&cmds[i], wire.OpRead, uint64(i), make([]byte, 512), 0)
					if err := q.Submit(&cmds[i]); err != nil && capsule.KindOf(err) != capsule.Unavailable { // it may be given up already
						t.Error(err)
					}
				}
				for {
					c, err := q.Wait()
					if err != nil {
						if capsule.KindOf(err) != capsule.Unavailable {
							t.Errorf("%v, of kind %v", err, capsule.KindOf(err))
						}
						return
					}
					if c.Err == nil { // keep it busy
						n.Set(c, wire.OpRead, c.SQE.SLBA(), c.Data, 0)
						q.Submit(c)
					}
				}
			})
		})
	}
}

// A target that does not take what it is sent is given up too.
func TestTargetsThatDoNotReadAreGivenUp(t *testing.T) {
	release := make(chan struct{})
	f := newFake(t, func(f *fake) {
		f.small, f.ioccsz = true, (64+256<<10)/16
		f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
			if c.qid > 0 && s.Opcode() == wire.OpWrite {
				<-release
			}
			return false
		}
	})
	q, n := f.open(t, Options{Dial: smallSockets}, 64)
	setTimeout(q, 200*time.Millisecond)
	within(t, func() {
		cmds := make([]Command, 64)
		for i := range cmds {
			n.Set(&cmds[i], wire.OpWrite, 0, make([]byte, 256<<10), 0)
			if err := q.Submit(&cmds[i]); err != nil && capsule.KindOf(err) != capsule.Unavailable { // it may be given up already
				t.Error(err)
			}
		}
		for range cmds {
			if c, err := q.Wait(); err == nil && capsule.KindOf(c.Err) != capsule.Unavailable {
				t.Errorf("%v, of kind %v", c.Err, capsule.KindOf(c.Err))
			}
		}
	})
	close(release)
}

// An event may come whenever it likes: waiting for one is no silence.
func TestEventsMayTakeLongerThanTheTimeout(t *testing.T) {
	const timeout = 100 * time.Millisecond
	var sent atomic.Int32
	f := newFake(t, func(f *fake) {
		f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
			if s.Opcode() != wire.OpAsyncEvent || c.qid != 0 {
				return false
			}
			if sent.Add(1) < 3 {
				<-time.After(3 * timeout)
				c.reply(s, nil, uint64(wire.EventResult(wire.EventNotice, wire.NoticeNamespace, wire.LogChangedNS)), 0)
			}
			return true
		}
	})
	c := f.connect(t, Options{})
	events, err := c.Events(t.Context(), wire.EventsNamespace)
	if err != nil {
		t.Fatal(err)
	}
	setTimeout(c.admin, timeout) // while there is nothing but events to wait for
	within(t, func() {
		for range 2 {
			e, ok := <-events
			if !ok || e != (Event{wire.EventNotice, wire.NoticeNamespace, wire.LogChangedNS}) {
				t.Errorf("event %+v, %v", e, c.admin.Err())
			}
		}
		setTimeout(c.admin, patience)
		// Other commands go on beside it.
		if _, err := c.Feature(t.Context(), wire.FeatKATO, 0); err != nil {
			t.Error(err)
		}
		c.Close()
		if _, ok := <-events; ok {
			t.Error("events go on after the end")
		}
	})
}

func TestKeepAliveIsSent(t *testing.T) {
	seen := make(chan struct{}, 100)
	f := newFake(t, func(f *fake) {
		f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
			if c.qid == 0 && s.Opcode() == wire.OpKeepAlive {
				seen <- struct{}{}
			}
			return false
		}
	})
	f.connect(t, Options{KeepAlive: 20 * time.Millisecond})
	within(t, func() {
		for range 3 {
			<-seen
		}
	})
}

// When the admin queue is lost, so are the others.
func TestLostControllerFailsItsQueues(t *testing.T) {
	f := newFake(t, func(f *fake) {
		f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
			if c.qid == 0 && s.Opcode() == wire.OpKeepAlive {
				c.Close()
				return true
			}
			return c.qid > 0 && s.Opcode() == wire.OpRead // never answered
		}
	})
	c := f.connect(t, Options{KeepAlive: 20 * time.Millisecond})
	within(t, func() {
		// The connection is lost sooner or later, and whatever is under way then fails.
		n, err := c.Namespace(t.Context(), 1)
		var qs []*Queue
		if err == nil {
			qs, err = c.OpenQueues(t.Context(), 1, 4)
		}
		if err == nil {
			err = n.Read(t.Context(), qs[0], 0, make([]byte, 512))
		}
		if capsule.KindOf(err) != capsule.Unavailable {
			t.Errorf("%v", err)
		}
	})
}

func TestContextsEndCommandsAndTheirConnection(t *testing.T) {
	arrived := make(chan struct{})
	f := newFake(t, func(f *fake) {
		f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
			if c.qid > 0 && s.Opcode() == wire.OpRead {
				close(arrived)
				return true
			}
			return false
		}
	})
	q, n := f.open(t, Options{}, 4)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	within(t, func() {
		if err := n.Read(ctx, q, 0, make([]byte, 512)); capsule.KindOf(err) == capsule.Other || !errors.Is(err, context.Canceled) {
			t.Errorf("%v of kind %v", err, capsule.KindOf(err))
		}
		if q.Err() == nil {
			t.Error("the connection goes on with a command that nobody waits for")
		}
	})
}

func TestConnectSaysWhatIsWrong(t *testing.T) {
	f := newFake(t, nil)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	web := answer(t, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"+strings.Repeat("x", 200))
	hangup := answer(t, "")
	secret, err := dhchap.GenerateSecret(dhchap.None, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		address, nqn string
		o            Options
		kind         capsule.ErrorKind
		says         string
	}{
		"nobody listens":      {closed.Addr().String(), fakeNQN, Options{}, capsule.Unavailable, "refused"},
		"a web server":        {web, fakeNQN, Options{}, capsule.IO, "no NVMe/TCP target"},
		"a hang-up":           {hangup, fakeNQN, Options{}, capsule.Unavailable, "is it an NVMe/TCP target"},
		"no such subsystem":   {f.address(), fakeNQN + "x", Options{}, capsule.NotFound, "no subsystem"},
		"no NQN":              {f.address(), "disk1", Options{}, capsule.Invalid, "qualified name"},
		"no host NQN":         {f.address(), fakeNQN, Options{HostNQN: "me"}, capsule.Invalid, "qualified name"},
		"half of the secrets": {f.address(), fakeNQN, Options{ControllerSecret: secret}, capsule.Invalid, "host secret"},
	} {
		within(t, func() {
			ctl, err := Connect(t.Context(), c.address, c.nqn, c.o)
			if err == nil {
				ctl.Close()
			}
			if capsule.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("%s: %v, of kind %v", name, err, capsule.KindOf(err))
			}
		})
	}
}

// answer listens, and answers every connection with text and its end.
func answer(t *testing.T, text string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				io.ReadFull(c, make([]byte, wire.ICLen))
				io.WriteString(c, text)
				if text != "" {
					c.(*net.TCPConn).CloseWrite()
					io.Copy(io.Discard, c)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func TestAuthentication(t *testing.T) {
	host, err := dhchap.GenerateSecret(dhchap.SHA256, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctl, err := dhchap.GenerateSecret(dhchap.None, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := newFake(t, func(f *fake) { f.secret = dhchap.Config{HostSecret: host, ControllerSecret: ctl} })
	q, n := f.open(t, Options{Secret: host, ControllerSecret: ctl}, 4)
	if err := n.Read(t.Context(), q, 0, make([]byte, 512)); err != nil {
		t.Error(err)
	}
	for name, o := range map[string]Options{
		"no secret": {}, "wrong secret": {Secret: ctl}, "wrong controller secret": {Secret: host, ControllerSecret: host},
	} {
		c, err := Connect(t.Context(), f.address(), fakeNQN, o)
		if err == nil {
			c.Close()
		}
		if capsule.KindOf(err) != capsule.Denied {
			t.Errorf("%s: %v of kind %v", name, err, capsule.KindOf(err))
		}
	}
}

func TestDiscoveryIsReadAgainWhenItChanges(t *testing.T) {
	var f *fake
	reads := 0
	f = newFake(t, func(f *fake) {
		for i := range 9 {
			f.registry = append(f.registry, wire.DiscoveryEntry{SubNQN: fmt.Sprintf("%s%d", fakeNQN, i), PortID: uint16(i), TrAddr: "192.0.2.1", TrSvcID: "4420"})
		}
		f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
			if s.Opcode() == wire.OpGetLogPage {
				if reads++; reads == 2 {
					c.mu.Lock()
					c.generation++
					c.registry = c.registry[:7]
					c.mu.Unlock()
				}
			}
			return false
		}
	})
	c, err := Connect(t.Context(), f.address(), wire.DiscoveryNQN, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	entries, generation, err := c.Discover(t.Context())
	if err != nil || generation != 1 || len(entries) != 7 || entries[6].SubNQN != fakeNQN+"6" || entries[6].TrAddr != "192.0.2.1" {
		t.Errorf("%d entries of generation %d: %v", len(entries), generation, err)
	}
}

func TestDiscoveryIsBounded(t *testing.T) {
	f := newFake(t, func(f *fake) {
		f.hook = func(c *fakeConn, s *wire.SQE, _ []byte) bool {
			if s.Opcode() != wire.OpGetLogPage {
				return false
			}
			b := (&wire.DiscoveryHeader{Records: 1 << 60}).Append(nil)
			c.reply(s, b[:s.SGL().Length], 0, 0)
			return true
		}
	})
	c, err := Connect(t.Context(), f.address(), wire.DiscoveryNQN, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, err := c.Discover(t.Context()); capsule.KindOf(err) != capsule.Unsupported {
		t.Errorf("2^60 entries: %v", err)
	}
}

func TestStreams(t *testing.T) {
	for _, block := range []int{512, 4096} {
		f := newFake(t, func(f *fake) { f.block = block })
		q, n := f.open(t, Options{}, 16)
		ctx := t.Context()
		copy(f.disk, pattern(3<<20, 3))
		before := bytes.Clone(f.disk)
		for _, r := range [][2]int64{{0, int64(len(f.disk))}, {0, 0}, {1, 1}, {511, 2}, {4096, 8192}, {5000, 3_000_001}, {int64(len(f.disk)) - 3, 3}} {
			var out bytes.Buffer
			told := 0
			if err := ReadTo(ctx, q, n, &out, r[0], r[1], func(n int) { told += n }); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), before[r[0]:r[0]+r[1]]) || told != out.Len() {
				t.Errorf("blocks of %d: %d bytes at %d come out as %d others", block, r[1], r[0], out.Len())
			}
		}
		for _, r := range [][2]int64{{0, 0}, {8192, 1}, {4096, 4096}, {1 << 20, 2_000_001}} {
			in := pattern(int(r[1]), 77)
			want := bytes.Clone(f.disk)
			copy(want[r[0]:], in)
			// A reader that gives its bytes piece by piece.
			got, err := WriteFrom(ctx, q, n, io.MultiReader(bytes.NewReader(in[:len(in)/3]), bytes.NewReader(in[len(in)/3:])), r[0], nil)
			if err != nil || got != r[1] {
				t.Fatalf("%d bytes written of %d: %v", got, r[1], err)
			}
			if !bytes.Equal(f.disk, want) {
				t.Errorf("blocks of %d: %d bytes at %d were not written as they are", block, r[1], r[0])
			}
		}
		if err := ReadTo(ctx, q, n, io.Discard, 1, int64(len(f.disk)), nil); capsule.KindOf(err) != capsule.OutOfRange {
			t.Errorf("beyond the end: %v", err)
		}
		if _, err := WriteFrom(ctx, q, n, bytes.NewReader(nil), 100, nil); capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("in mid-block: %v", err)
		}
		if _, err := WriteFrom(ctx, q, n, bytes.NewReader(make([]byte, 8193)), int64(len(f.disk))-8192, nil); capsule.KindOf(err) != capsule.OutOfRange {
			t.Errorf("more than there is room for: %v", err)
		}
		failing := io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), errReader{})
		if _, err := WriteFrom(ctx, q, n, failing, 0, nil); !errors.Is(err, errWanted) {
			t.Errorf("a reader's error: %v", err)
		}
		if err := ReadTo(ctx, q, n, failWriter{}, 0, 1<<20, nil); !errors.Is(err, errWanted) {
			t.Errorf("a writer's error: %v", err)
		}
		if q.Err() != nil {
			t.Errorf("they ended the connection: %v", q.Err())
		}
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errWanted }

type failWriter struct{}

func (failWriter) Write([]byte) (int, error) { return 0, errWanted }

func TestBench(t *testing.T) {
	f := newFake(t, nil)
	c := f.connect(t, Options{})
	n, err := c.Namespace(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"read", "write", "randread", "randwrite", "randrw"} {
		var done atomic.Int64
		r, err := Bench(t.Context(), c, n, BenchOptions{Pattern: p, Size: 4096, Depth: 8, Queues: 2, Commands: 200, Done: &done})
		if err != nil {
			t.Fatal(err)
		}
		writes, ok := BenchWrites(p)
		if !ok || r.Commands != 200 || done.Load() != 200 || r.Bytes != 200*4096 || r.Queues != 2 || r.Depth != 8 || writes != (r.Writes.Count > 0) {
			t.Errorf("%s: %+v", p, r)
		}
		for _, l := range []BenchLatency{r.Reads, r.Writes} {
			if l.Count > 0 && (l.Min <= 0 || l.Min > l.P50 || l.P50 > l.P90 || l.P90 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max) {
				t.Errorf("%s: latencies %+v", p, l)
			}
		}
	}
	for name, o := range map[string]BenchOptions{
		"pattern": {Pattern: "sideways", Size: 4096, Commands: 1}, "size": {Pattern: "read", Size: 100, Commands: 1},
		"huge": {Pattern: "read", Size: 1 << 30, Commands: 1}, "no end": {Pattern: "read", Size: 4096},
		"range": {Pattern: "read", Size: 4096, Commands: 1, Offset: 1 << 40}, "queues": {Pattern: "read", Size: 4096, Commands: 1},
	} {
		if _, err := Bench(t.Context(), c, n, o); capsule.KindOf(err) == capsule.Other || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	for d := range 100_000 {
		h.record(time.Duration(d))
		if lo, hi := value(bucket(time.Duration(d))), value(bucket(time.Duration(d))+1); time.Duration(d) < lo || time.Duration(d) >= hi {
			t.Fatalf("%d is counted from %d to %d", d, lo, hi)
		}
	}
	if p := h.quantile(0.5); p < 48_000 || p > 50_000 {
		t.Errorf("the median of 0 to 99,999 is %d", p)
	}
	for _, d := range []time.Duration{0, -1, 1 << 62, time.Hour} {
		h.record(d)
	}
	if h.max != 1<<62 {
		t.Errorf("the longest is %v", h.max)
	}
}

func TestQueuesKnowTheirLimits(t *testing.T) {
	f := newFake(t, nil)
	c := f.connect(t, Options{})
	for _, bad := range [][2]int{{0, 1}, {1, 0}, {MaxQueues + 1, 1}, {1, maxDepth}} {
		if _, err := c.OpenQueues(t.Context(), bad[0], bad[1]); capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("%v: %v", bad, err)
		}
	}
	qs, err := c.OpenQueues(t.Context(), 1, 1000)
	if err != nil {
		t.Fatal(err)
	}
	q := qs[0]
	if q.Depth() != 127 { // what the target's CAP.MQES allows
		t.Errorf("a queue of %d", q.Depth())
	}
	if _, err := q.Wait(); capsule.KindOf(err) != capsule.Invalid {
		t.Errorf("waiting for nothing: %v", err)
	}
	n, err := c.Namespace(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	cmds := make([]Command, q.Depth()+1)
	for i := range cmds {
		n.Set(&cmds[i], wire.OpRead, uint64(i), make([]byte, 512), 0)
		if err := q.Submit(&cmds[i]); (err == nil) != (i < q.Depth()) || err != nil && err != ErrQueueFull {
			t.Fatalf("command %d: %v", i, err)
		}
	}
	var seen []uint64
	for range q.Depth() {
		c, err := q.Wait()
		if err != nil || c.Err != nil {
			t.Fatal(err, c.Err)
		}
		seen = append(seen, c.SQE.SLBA())
	}
	slices.Sort(seen)
	if len(slices.Compact(seen)) != q.Depth() {
		t.Error("some commands came back twice")
	}
	for _, p := range [][]byte{nil, make([]byte, 100)} {
		if err := n.Read(t.Context(), q, 0, p); capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("%d bytes: %v", len(p), err)
		}
	}
}

// scripted is a connection whose other side sends bytes regardless.
type scripted struct {
	io.Reader
	net.Conn
}

func (s scripted) Read(p []byte) (int, error)       { return s.Reader.Read(p) }
func (scripted) Write(p []byte) (int, error)        { return len(p), nil }
func (scripted) Close() error                       { return nil }
func (scripted) SetDeadline(time.Time) error        { return nil }
func (scripted) SetReadDeadline(t time.Time) error  { return nil }
func (scripted) SetWriteDeadline(t time.Time) error { return nil }

// Any bytes from a target end in answers or in an error.
func FuzzQueue(f *testing.F) {
	fr := wire.Framing{}
	data := make([]byte, 4096)
	add := func(parts ...[]byte) {
		f.Add(slices.Concat(parts...))
	}
	ic := wire.ICResp{MaxH2CData: 4096}.Append(nil)
	read, write := uint16(1<<slotBits), uint16(1<<slotBits|1)
	add(ic, fr.AppendC2HData(nil, wire.Data{CID: read, Length: 4096, Last: true, Success: true}), data, fr.AppendResponse(nil, wire.CQE{CID: write}))
	add(ic, fr.AppendC2HData(nil, wire.Data{CID: read, Length: 512}), data[:512], fr.AppendResponse(nil, wire.CQE{CID: read, Status: wire.InternalError}))
	add(ic, fr.AppendR2T(nil, wire.R2T{CID: write, Length: 4096}), fr.AppendR2T(nil, wire.R2T{CID: write, Offset: 4096, Length: 61440}), fr.AppendResponse(nil, wire.CQE{CID: write}))
	add(ic, wire.TermReq{FES: 1}.Append(nil))
	add(ic[:50])
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := newQueue(t.Context(), scripted{Reader: bytes.NewReader(b)}, queueOptions{depth: 4, timeout: patience, inCapsule: 512, buffer: 4096})
		if err != nil {
			return
		}
		guard := bytes.Repeat([]byte{0xee}, 8192)
		cmds := [3]Command{{Data: guard[2048:6144:6144]}, {Data: make([]byte, 65536)}, {Data: make([]byte, 512)}}
		for i, op := range []uint8{wire.OpRead, wire.OpWrite, wire.OpWrite} {
			cmds[i].SQE.SetOpcode(op)
			if err := q.Submit(&cmds[i]); err != nil {
				t.Fatal(err)
			}
		}
		for range cmds {
			c, err := q.Wait()
			if err != nil {
				t.Fatal(err) // a connection's end is still an answer to each
			}
			if c.Err == nil && c == &cmds[0] && c.N != 4096 {
				t.Fatalf("a read of %d bytes", c.N)
			}
		}
		q.Close()
		for _, g := range [][]byte{guard[:2048], guard[6144:]} {
			if bytes.ContainsFunc(g, func(r rune) bool { return false }) || !bytes.Equal(g, bytes.Repeat([]byte{0xee}, 2048)) {
				t.Fatal("data was written beside its buffer")
			}
		}
	})
}
