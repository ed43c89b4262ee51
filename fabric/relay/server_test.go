package relay

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// raw drives a server with operations of its own making, in virtual time.
type raw struct {
	t *testing.T
	*Server
}

func withServer(t *testing.T, fn func(r raw)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(ServerOptions{Name: "relay"})
		defer s.Close()
		fn(raw{t, s})
	})
}

// ops runs a batch and returns the replies.
func (r raw) ops(ops ...Op) []Reply {
	r.t.Helper()
	answer, err := r.Exchange(r.t.Context(), EncodeOps(ops))
	if err != nil {
		r.t.Fatal(err)
	}
	rs, err := DecodeReplies(answer)
	if err != nil || len(rs) != len(ops) {
		r.t.Fatalf("%d replies to %d operations, %v", len(rs), len(ops), err)
	}
	return rs
}

// connect makes a session and returns its far end.
func (r raw) connect(id byte) *Conn {
	r.t.Helper()
	if rs := r.ops(Op{Kind: Connect, Session: ID{id}}); rs[0].Status != OK || rs[0].Caps&CapPipelineSeq == 0 {
		r.t.Fatalf("connect: %+v", rs[0])
	}
	c, err := r.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	return c.(*Conn)
}

// data is a numbered operation.
func data(id byte, seq uint64, text string) Op {
	return Op{Kind: Data, Session: ID{id}, Numbered: true, Seq: seq, Data: []byte(text), Drain: opBytes}
}

// has fails unless the far end reads just text now.
func (r raw) has(c *Conn, text string) {
	r.t.Helper()
	got := make([]byte, len(text)+10)
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	n, _ := io.ReadFull(c, got)
	if string(got[:n]) != text {
		r.t.Errorf("the far end reads %q; wanted %q", got[:n], text)
	}
}

func TestOperationsRunInTheOrderOfTheirNumbers(t *testing.T) {
	withServer(t, func(r raw) {
		c := r.connect(1)
		var wg sync.WaitGroup
		for _, seq := range []uint64{2, 1} {
			wg.Go(func() {
				if rs := r.ops(data(1, seq, string('a'+rune(seq)))); rs[0].Status != OK || !rs[0].Numbered || rs[0].Seq != seq {
					t.Errorf("%+v", rs[0])
				}
			})
			synctest.Wait()
		}
		r.has(c, "")
		r.ops(data(1, 0, "a"))
		wg.Wait()
		r.has(c, "abc")
		// The same again, as if the replies had been lost: it is answered, not run.
		rs := r.ops(data(1, 0, "a"), data(1, 2, "c"))
		if rs[0].Status != OK || rs[1].Status != OK || rs[1].Seq != 2 {
			t.Errorf("%+v", rs)
		}
		r.has(c, "")
	})
}

// TestLostNumber holds its own session, for a limited time, and no other one
// of the same batch at all.
func TestLostNumber(t *testing.T) {
	withServer(t, func(r raw) {
		one, two := r.connect(1), r.connect(2)
		start := time.Now()
		rs := r.ops(data(1, 1, "late"), data(2, 0, "at once"))
		if d := time.Since(start); d > 2*linger {
			t.Errorf("the other session waited for %s", d)
		}
		if rs[0].Status != Pending || rs[1].Status != OK {
			t.Errorf("%+v", rs)
		}
		r.has(two, "at once")
		rs = r.ops(Op{Kind: Resume, Session: ID{1}, Numbered: true, Seq: 1})
		if d := time.Since(start); d < HoldTime || d > HoldTime+time.Second {
			t.Errorf("the session was held for %s", d)
		}
		if rs[0].Status != Gone {
			t.Errorf("the operation that was held: %+v", rs[0])
		}
		if _, err := one.Read(make([]byte, 1)); err != ErrHeld {
			t.Errorf("the far end reads %v", err)
		}
		if rs := r.ops(data(1, 0, "too late"), data(2, 1, "!")); rs[0].Status != Gone || rs[1].Status != OK {
			t.Errorf("%+v", rs)
		}
	})
}

func TestCloseKeepsItsPlace(t *testing.T) {
	withServer(t, func(r raw) {
		for id, numbered := range map[byte]bool{1: true, 2: false} {
			c := r.connect(id)
			shut := Op{Kind: Close, Session: ID{id}, Numbered: numbered, Seq: 1}
			if rs := r.ops(data(id, 0, "last words"), shut); rs[0].Status != OK || rs[1].Status != OK {
				t.Errorf("%+v", rs)
			}
			if got, err := io.ReadAll(c); string(got) != "last words" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		}
		c := r.connect(3)
		if rs := r.ops(Op{Kind: Close, Session: ID{3}}, data(3, 0, "too late")); rs[0].Status != OK || rs[1].Status != Gone {
			t.Errorf("%+v", rs)
		}
		if got, err := io.ReadAll(c); len(got) != 0 || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		// A close without a number runs after what was sent before it, though that is held.
		c = r.connect(4)
		done := make(chan []Reply)
		go func() { done <- r.ops(data(4, 1, "b"), Op{Kind: Close, Session: ID{4}}) }()
		synctest.Wait()
		r.ops(data(4, 0, "a"))
		<-done
		if got, err := io.ReadAll(c); string(got) != "ab" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestFailedWriteUsesUpItsNumber(t *testing.T) {
	withServer(t, func(r raw) {
		c := r.connect(1)
		c.Write([]byte("what was said before"))
		c.Close()
		rs := r.ops(data(1, 0, "x"), data(1, 1, "y"))
		if rs[0].Status != Failed || string(rs[0].Data) != "what was said before" || !rs[0].EOF {
			t.Errorf("%+v", rs[0])
		}
		if rs[1].Status != Failed || rs[1].Seq != 1 {
			t.Errorf("the operation after the one that failed: %+v", rs[1])
		}
	})
}

func TestEndIsHeldBackWhileBytesRemain(t *testing.T) {
	withServer(t, func(r raw) {
		c := r.connect(1)
		c.Write([]byte("abcdef"))
		c.CloseWrite()
		for seq, want := range []string{"abcd", "ef"} {
			op := data(1, uint64(seq), "")
			op.Drain, op.Wait = 4, 1000
			rep := r.ops(op)[0]
			if string(rep.Data) != want || rep.EOF != (want == "ef") {
				t.Errorf("%+v", rep)
			}
		}
	})
}

// TestDrainsAreCapped for an operation and for a batch, whatever is asked for, and
// what does not fit comes later.
func TestDrainsAreCapped(t *testing.T) {
	withServer(t, func(r raw) {
		const sessions, size = 10, 2 << 20
		ops := make([]Op, sessions)
		ends := make([]*Conn, sessions)
		for i := range ops {
			ends[i] = r.connect(byte(i + 1))
			ends[i].Write(bytes.Repeat([]byte{byte(i + 1)}, size))
			ends[i].CloseWrite()
		}
		var got [sessions][]byte
		for seq := range uint64(3) {
			for i := range ops {
				ops[i] = data(byte(i+1), seq, "")
				ops[i].Drain, ops[i].Ack = 1<<32-1, seq
			}
			for batch := ops; len(batch) > 0; {
				answer, err := r.Exchange(t.Context(), EncodeOps(batch))
				if err != nil || len(answer) > MaxBatch {
					t.Fatalf("an answer of %d bytes, %v", len(answer), err)
				}
				rs, err := DecodeReplies(answer)
				if err != nil {
					t.Fatal(err)
				}
				var again []Op
				for _, rep := range rs {
					i := rep.Session[0] - 1
					if rep.Status == Pending {
						again = append(again, Op{Kind: Resume, Session: rep.Session, Numbered: true, Seq: seq})
						continue
					}
					if len(rep.Data) > MaxData || rep.EOF != (len(got[i])+len(rep.Data) == size) {
						t.Errorf("%d bytes at once after %d, end %v", len(rep.Data), len(got[i]), rep.EOF)
					}
					got[i] = append(got[i], rep.Data...)
				}
				batch = again
			}
		}
		for i := range got {
			if !bytes.Equal(got[i], bytes.Repeat([]byte{byte(i + 1)}, size)) {
				t.Errorf("session %d: %d bytes of %d, or others", i+1, len(got[i]), size)
			}
		}
	})
}

// TestOneWatcher: operations that wait cost no goroutine, but their exchange's one;
// and replies that are never acknowledged are not kept without end.
func TestOneWatcher(t *testing.T) {
	withServer(t, func(r raw) {
		c := r.connect(1)
		before := runtime.NumGoroutine()
		var held []Op
		for seq := uint64(1); seq < maxAhead; seq++ {
			held = append(held, data(1, seq, "x"))
		}
		done := make(chan []Reply)
		go func() { done <- r.ops(held...) }()
		synctest.Wait()
		if n := runtime.NumGoroutine() - before; n > 2 {
			t.Errorf("%d goroutines for %d operations", n, len(held))
		}
		r.ops(data(1, 0, "x"))
		for _, rep := range <-done {
			if rep.Status != OK {
				t.Errorf("%+v", rep)
			}
		}
		for seq := uint64(maxAhead); seq < 20*maxReplies; seq++ {
			if rep := r.ops(data(1, seq, "x"))[0]; rep.Status != OK {
				t.Fatalf("%+v", rep)
			}
		}
		if n := len(r.session(ID{1}).replies); n > maxReplies+1 {
			t.Errorf("%d replies are kept", n)
		}
		r.has(c, strings.Repeat("x", 20*maxReplies))
	})
}

// TestWaitEnds with bytes, with its time, or with the next operation.
func TestWaitEnds(t *testing.T) {
	withServer(t, func(r raw) {
		c := r.connect(1)
		wait := func(seq uint64) Op {
			op := data(1, seq, "")
			op.Wait = 10_000
			return op
		}
		took := func(fn func()) time.Duration {
			start := time.Now()
			fn()
			return time.Since(start)
		}
		if d := took(func() { r.ops(wait(0)) }); d != 10*time.Second {
			t.Errorf("with nothing to come it took %s", d)
		}
		time.AfterFunc(time.Second, func() { c.Write([]byte("news")) })
		if d := took(func() {
			if rs := r.ops(wait(1)); string(rs[0].Data) != "news" {
				t.Errorf("%+v", rs[0])
			}
		}); d != time.Second {
			t.Errorf("with bytes after a second it took %s", d)
		}
		time.AfterFunc(time.Second, func() { r.ops(data(1, 3, "next")) })
		if d := took(func() { r.ops(wait(2)) }); d != time.Second {
			t.Errorf("with the next operation after a second it took %s", d)
		}
	})
}

// TestOverrun: a client that sends more than there is room for loses its
// session's stream, and the server holds no more than the window.
func TestOverrun(t *testing.T) {
	withServer(t, func(r raw) {
		c := r.connect(1)
		big := strings.Repeat("x", MaxData)
		failed := false
		for seq := range uint64(8) {
			failed = failed || r.ops(data(1, seq, big))[0].Status == Failed
		}
		n, err := io.Copy(io.Discard, c)
		if !failed || n != windowBytes || err != ErrReset {
			t.Errorf("failed %v, %d bytes, %v", failed, n, err)
		}
		// Far ahead, or much held: refused, and nothing kept.
		r.connect(2)
		if s := r.ops(data(2, 1<<40, "x"))[0].Status; s != Failed {
			t.Errorf("a number far ahead: status %d", s)
		}
		start, refused := time.Now(), 0
		for seq := uint64(1); seq < 8; seq++ {
			ctx, cancel := context.WithTimeout(r.t.Context(), time.Millisecond)
			answer, _ := r.Exchange(ctx, EncodeOps([]Op{data(2, seq, big)}))
			cancel()
			if rs, _ := DecodeReplies(answer); rs[0].Status == Failed {
				refused++
			}
		}
		if refused < 3 || time.Since(start) > time.Second {
			t.Errorf("%d of 7 MiB ahead were refused", refused)
		}
	})
}

// TestOldShapes: what has no number encodes as it always did, and what is
// unknown is skipped.
func TestOldShapes(t *testing.T) {
	old := Op{Kind: Data, Session: ID{1, 2, 3}, Data: []byte("hi"), Drain: 300, Wait: 5}
	const golden = "0a1d" + "0802" + "1210" + "01020300000000000000000000000000" + "22026869" + "30ac02" + "3805"
	b := EncodeOps([]Op{old})
	if hex.EncodeToString(b) != golden {
		t.Errorf("an operation without a number is %x; it was %s", b, golden)
	}
	if got, err := DecodeOps(b); err != nil || !reflect.DeepEqual(got, []Op{old}) {
		t.Errorf("%+v, %v", got, err)
	}
	reply := Reply{Session: ID{1, 2, 3}, Data: []byte("yo"), Window: 7}
	const goldenReply = "0a18" + "0a10" + "01020300000000000000000000000000" + "2202796f" + "3007"
	if b := EncodeReplies([]Reply{reply}); hex.EncodeToString(b) != goldenReply {
		t.Errorf("a reply without a number is %x; it was %s", b, goldenReply)
	}
	numbered := old
	numbered.Numbered = true // number 0 is a number
	if got, err := DecodeOps(EncodeOps([]Op{numbered})); err != nil || !reflect.DeepEqual(got, []Op{numbered}) {
		t.Errorf("%+v, %v", got, err)
	}
	// Fields 100 (bytes), 101 (number) and 102 (fixed) come from the future.
	future := old.append(nil)
	future = append(appendUintAlways(appendBytes(future, 100, []byte("new")), 101, 9), 0xb1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8)
	if got, err := DecodeOps(appendBytes(nil, 1, future)); err != nil || !reflect.DeepEqual(got, []Op{old}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(EncodeOps([]Op{{Kind: Connect, Session: ID{1}}, data(1, 0, "hello"), {Kind: Close, Session: ID{1}}}))
	f.Add(EncodeReplies([]Reply{{Session: ID{1}, Numbered: true, Status: Failed, Data: []byte("x"), EOF: true, Caps: 1, Message: "why"}}))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		if ops, err := DecodeOps(b); err == nil {
			again, err := DecodeOps(EncodeOps(ops))
			if err != nil || len(again) != len(ops) {
				t.Fatalf("%+v: %v", ops, err)
			}
		}
		if rs, err := DecodeReplies(b); err == nil {
			again, err := DecodeReplies(EncodeReplies(rs))
			if err != nil || len(again) != len(rs) {
				t.Fatalf("%+v: %v", rs, err)
			}
		}
	})
}

// FuzzServer feeds a server batches from anywhere.
func FuzzServer(f *testing.F) {
	f.Add(EncodeOps([]Op{{Kind: Connect, Session: ID{1}}, data(1, 1, "b"), data(1, 0, "a"), {Kind: Resume, Session: ID{1}, Numbered: true, Seq: 1}, {Kind: Close, Session: ID{1}}}))
	f.Add(EncodeOps([]Op{{Kind: Connect, Session: ID{1}}, {Kind: 9, Session: ID{1}}, {Kind: Data, Session: ID{1}, Fin: true, Drain: 9}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewServer(ServerOptions{MaxSessions: 4, MaxStrange: 2})
		defer s.Close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 2 {
			answer, err := s.Exchange(ctx, b)
			if err != nil {
				return
			}
			ops, _ := DecodeOps(b)
			if rs, err := DecodeReplies(answer); err != nil || len(rs) != len(ops) {
				t.Fatalf("%d replies to %d operations, %v", len(rs), len(ops), err)
			}
		}
	})
}

// TestOverHTTPS runs the real thing: TLS, many connections, both directions.
func TestOverHTTPS(t *testing.T) {
	s := NewServer(ServerOptions{Name: "relay"})
	web := httptest.NewTLSServer(s)
	c := NewClient(&HTTP{URL: web.URL, Client: web.Client()}, ClientOptions{})
	t.Cleanup(func() {
		c.Close()
		s.Close()
		web.Close()
	})
	go func() {
		for {
			conn, err := s.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	var wg sync.WaitGroup
	for i := range uint64(8) {
		wg.Go(func() {
			conn, err := c.Dial(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			want := randomBytes(i, 1<<20)
			go writeIn(conn, want, 50_000)
			if got, err := io.ReadAll(conn); !bytes.Equal(got, want) || err != nil {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	for _, req := range []struct {
		method, body string
		want         int
	}{
		{http.MethodGet, "", http.StatusMethodNotAllowed},
		{http.MethodPost, "\x0a\xff", http.StatusBadRequest},
		{http.MethodPost, strings.Repeat("x", MaxBatch+1), http.StatusBadRequest},
	} {
		q, err := http.NewRequestWithContext(t.Context(), req.method, web.URL, strings.NewReader(req.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := web.Client().Do(q)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != req.want {
			t.Errorf("%s of %d bytes: %s", req.method, len(req.body), resp.Status)
		}
	}
}

func BenchmarkEcho(b *testing.B) {
	s := NewServer(ServerOptions{})
	web := httptest.NewTLSServer(s)
	c := NewClient(&HTTP{URL: web.URL, Client: web.Client()}, ClientOptions{})
	defer web.Close()
	defer s.Close()
	defer c.Close()
	near, err := c.Dial(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	far, err := s.Accept()
	if err != nil {
		b.Fatal(err)
	}
	go io.Copy(far, far)
	buf := make([]byte, 64)
	for b.Loop() {
		near.Write(buf)
		if _, err := io.ReadFull(near, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// TestStrangersMakeWay: connections of which nobody has said that their client is known
// have a share; one more has the oldest of the place that most of them come from go, and
// those that are known stay.
func TestStrangersMakeWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard []bool
		s := NewServer(ServerOptions{Name: "relay", MaxStrange: 3, Heard: func(_ context.Context, known bool) { heard = append(heard, known) }})
		defer s.Close()
		connect := func(id byte, from string) *Conn {
			t.Helper()
			answer, err := s.exchange(t.Context(), EncodeOps([]Op{{Kind: Connect, Session: ID{id}}}), netip.MustParseAddr(from))
			if err != nil {
				t.Fatal(err)
			}
			if rs, err := DecodeReplies(answer); err != nil || rs[0].Status != OK {
				t.Fatalf("connect: %+v, %v", rs, err)
			}
			c, err := s.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if got := c.RemoteAddr().(clientAddr).Source().String(); got != from {
				t.Errorf("it comes from %s, not %s", got, from)
			}
			return c.(*Conn)
		}
		member := connect(1, "192.0.2.1")
		member.Know()
		crowd := []*Conn{connect(2, "192.0.2.7"), connect(3, "192.0.2.8"), connect(4, "192.0.2.8")}
		late := connect(5, "192.0.2.9")
		if _, err := crowd[1].Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Errorf("the one that is to make way: %v", err)
		}
		r := raw{t, s}
		for id, want := range map[byte]Status{1: OK, 2: OK, 3: Gone, 4: OK, 5: OK} {
			op := data(id, 0, "x")
			if got := r.ops(op)[0].Status; got != want {
				t.Errorf("session %d: status %d, want %d", id, got, want)
			}
			if known := heard[len(heard)-1]; known != (id == 1) {
				t.Errorf("an exchange for session %d is of a known one: %v", id, known)
			}
		}
		r.has(member, "x")
		r.has(late, "x")
		if n := s.Sessions(); n != 4 {
			t.Errorf("%d sessions", n)
		}
		for i := range byte(10) {
			connect(10+i, "192.0.2.7")
		}
		// What ends before it is accepted is not lost, nor are there ever more of it.
		for i := range byte(5) {
			r.ops(Op{Kind: Connect, Session: ID{30 + i}}, data(30+i, 0, "z"), Op{Kind: Close, Session: ID{30 + i}})
		}
		for range 3 {
			c, err := s.Accept()
			if err != nil {
				t.Fatal(err)
			}
			r.has(c.(*Conn), "z")
		}
		if len(s.fresh) != 0 {
			t.Errorf("%d connections wait to be accepted", len(s.fresh))
		}
		if got := r.ops(data(1, 1, "y"))[0].Status; got != OK || len(s.strange) > 3 {
			t.Errorf("status %d, %d strangers", got, len(s.strange))
		}
	})
}

// TestClosedConnectionIsNotKept: a client that goes on asking, and takes nothing, does
// not keep the place of a connection that the server's user has closed.
func TestClosedConnectionIsNotKept(t *testing.T) {
	withServer(t, func(r raw) {
		c := r.connect(1)
		c.Write([]byte("bye"))
		c.Close()
		for seq := range uint64(10) { // five minutes
			op := data(1, seq, "")
			op.Drain, op.Ack = 0, seq
			if s := r.ops(op)[0].Status; s != OK && seq < 3 || s != Gone && seq == 9 {
				t.Errorf("after %d half minutes: status %d", seq, s)
			}
			time.Sleep(30 * time.Second)
		}
		if n := r.Sessions(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// TestCloseKeepsNoBatch: bytes that come with an operation that ends a connection, and
// so are for nobody, are not kept until its turn comes.
func TestCloseKeepsNoBatch(t *testing.T) {
	withServer(t, func(r raw) {
		r.connect(1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.ops(Op{Kind: Data, Session: ID{1}, Numbered: true, Seq: 1}, Op{Kind: Close, Session: ID{1}, Data: make([]byte, MaxData)})
		}()
		synctest.Wait()
		se := r.session(ID{1})
		se.mu.Lock()
		if se.closing == nil || se.closing.op.Data != nil {
			t.Error("the operation is not held, or with its bytes")
		}
		se.mu.Unlock()
		<-done
	})
}
