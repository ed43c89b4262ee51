package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/internal/testenv/simnet"
)

// TestBudget: windows of all sessions come from one budget. When it is used up
// they grow no more, new streams are refused with a time to come back, and all
// of it is there again when the streams have ended.
func TestBudget(t *testing.T) {
	near, far := NewBudget(1<<20), NewBudget(640<<10) // room for 10 streams
	inMixedPair(t, simnet.Line{Delay: 10 * time.Millisecond, Rate: 20 << 20}, 2, Options{Budget: near}, Options{Budget: far}, func(t *testing.T, p *pair) {
		var streams []*Stream
		for {
			st, err := p.near.Open(frame.Bulk, nil)
			if err != nil {
				var busy *BusyError
				if !errors.Is(err, ErrBusy) || !errors.As(err, &busy) || busy.Retry <= 0 {
					t.Errorf("refused with %v", err)
				}
				break
			}
			streams = append(streams, st)
		}
		if len(streams) != 16 || near.Used() != near.Limit() {
			t.Errorf("%d streams, %d bytes of %d", len(streams), near.Used(), near.Limit())
		}
		refused := 0
		time.Sleep(time.Second)
		for _, st := range streams {
			st.SetReadDeadline(time.Now().Add(time.Second))
			_, err := st.Read(make([]byte, 1))
			var reset *ResetError
			if errors.As(err, &reset) {
				if refused++; !errors.Is(err, ErrBusy) || reset.Retry != busyRetry {
					t.Errorf("refused with %v", err)
				}
			} else if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		}
		if refused != 6 || far.Used() != far.Limit() {
			t.Errorf("the peer refused %d of 16 streams, %d bytes of %d are taken", refused, far.Used(), far.Limit())
		}
		for _, st := range streams {
			st.Reset(CodeCanceled, "enough")
		}
		time.Sleep(time.Second)
		if near.Used() != 0 || far.Used() != 0 {
			t.Errorf("%d and %d bytes are taken without streams", near.Used(), far.Used())
		}

		// One stream that is fast leaves room for others.
		for _, st := range []int{0, 10} { // streams that nobody has accepted
			for range st {
				p.far.Accept(t.Context())
			}
		}
		from, to := p.stream(p.near, p.far)
		want := randomBytes(1, 8<<20)
		go writeIn(from, want, 1<<20)
		if got, err := io.ReadAll(to); !bytes.Equal(got, want) || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if w := to.State().Window; w < 256<<10 || w > 512<<10 {
			t.Errorf("the window grew to %d", w)
		}
		to.Close()
		time.Sleep(time.Second)
		if near.Used() != 0 || far.Used() != 0 {
			t.Errorf("%d and %d bytes are taken without streams", near.Used(), far.Used())
		}
	})
}

// TestShares: of two who share a budget, one that takes all it can leaves the other
// its part, and what is taken counts for both and is given back to both.
func TestShares(t *testing.T) {
	whole := NewBudget(24 * FirstWindow)
	greedy, other := whole.Share(8*FirstWindow), whole.Share(0)
	if other.Limit() != whole.Limit() {
		t.Errorf("a share without a limit of its own is of %d bytes", other.Limit())
	}
	count := func(b *Budget) (streams []*Stream, limit string) {
		s := New(true, Options{Budget: b})
		t.Cleanup(func() { s.Close() })
		for {
			st, err := s.Open(frame.Bulk, nil)
			if err != nil {
				var busy *BusyError
				if !errors.As(err, &busy) {
					t.Fatal(err)
				}
				return streams, busy.Limit
			}
			streams = append(streams, st)
		}
	}
	first, limit := count(greedy)
	if len(first) != 8 || limit != "windows for one peer" || whole.Used() != 8*FirstWindow {
		t.Errorf("%d streams, then no more %s, %d bytes in all", len(first), limit, whole.Used())
	}
	second, limit := count(other)
	if len(second) != 16 || limit != "windows on this node" || whole.Used() != whole.Limit() || greedy.Used() != 8*FirstWindow || other.Used() != 16*FirstWindow {
		t.Errorf("%d streams, then no more %s, %d bytes in all", len(second), limit, whole.Used())
	}
	for _, st := range append(first, second...) {
		st.Reset(CodeCanceled, "enough")
	}
	if whole.Used() != 0 || greedy.Used() != 0 || other.Used() != 0 {
		t.Errorf("%d, %d and %d bytes are taken without streams", whole.Used(), greedy.Used(), other.Used())
	}
	greedy.SetLimit(2 * FirstWindow)
	if again, _ := count(greedy); len(again) != 2 {
		t.Errorf("%d streams with room for two", len(again))
	}
}

// pace lets bytes pass at a rate; no more than one waiter at a time.
type pace struct {
	rate int
	mu   sync.Mutex
	n    int
}

func (p *pace) WaitN(ctx context.Context, n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > MaxWait {
		return errors.New("too many at once")
	}
	p.n += n
	select {
	case <-time.After(time.Duration(n) * time.Second / time.Duration(p.rate)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestLimiters: what a limiter lets pass, at the writer's or the reader's end,
// is what a stream gets, and the bytes are whole.
func TestLimiters(t *testing.T) {
	slow := &pace{rate: 1 << 20}
	limit := func(_ frame.Class, header []byte) (read, write Limiter) {
		switch string(header) {
		case "writer":
			return nil, slow
		case "reader":
			return slow, nil
		}
		return nil, nil
	}
	inMixedPair(t, simnet.Line{Delay: 5 * time.Millisecond}, 2, Options{Limit: limit}, Options{Limit: limit}, func(t *testing.T, p *pair) {
		for _, whole := range []bool{false, true} { // with Write and Read, with ReadFrom and WriteTo
			for header, seconds := range map[string]time.Duration{"none": 0, "writer": 2, "reader": 2} {
				from, err := p.near.Open(frame.Bulk, []byte(header))
				if err != nil {
					t.Fatal(err)
				}
				to, err := p.far.Accept(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				want, start := randomBytes(3, 2<<20), time.Now()
				var got bytes.Buffer
				if whole {
					go func() {
						from.ReadFrom(bytes.NewReader(want))
						from.CloseWrite()
					}()
					_, err = to.WriteTo(&got)
				} else {
					go writeIn(from, want, 100_000)
					_, err = io.Copy(&got, struct{ io.Reader }{to})
				}
				if !bytes.Equal(got.Bytes(), want) || err != nil {
					t.Errorf("%d bytes, %v", got.Len(), err)
				}
				if d := time.Since(start).Round(time.Second); d != seconds*time.Second {
					t.Errorf("%s: it took %s", header, d)
				}
				from.Close()
				to.Close()
			}
		}
		from, err := p.near.Open(frame.Bulk, []byte("writer"))
		if err != nil {
			t.Fatal(err)
		}
		from.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := from.Write(make([]byte, 8<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || n > 2<<20 {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

// TestStates: what is shown of streams and classes is what happened.
func TestStates(t *testing.T) {
	inPair(t, simnet.Line{Delay: 10 * time.Millisecond}, 2, Options{}, func(t *testing.T, p *pair) {
		near, far := p.stream(p.near, p.far)
		near.Write(make([]byte, 100_000)) // more than the window
		time.Sleep(time.Second)
		io.ReadFull(far, make([]byte, 10_000))
		n, f := near.State(), far.State()
		if string(n.Header) != "header" || n.Remote || n.Written != 100_000 || n.Sent != firstWindow || n.Acked != firstWindow || n.Limit != firstWindow {
			t.Errorf("%+v", n)
		}
		if string(f.Header) != "header" || !f.Remote || f.Received != firstWindow || f.Read != 10_000 || f.Window != firstWindow || f.ReadClosed || f.ID != n.ID || f.Class != frame.Bulk {
			t.Errorf("%+v", f)
		}
		st := p.near.Stats()
		if st.Queued[frame.Bulk] != 100_000-firstWindow || st.Sent[frame.Bulk] != firstWindow || st.SentFrames[frame.Bulk] == 0 ||
			st.Delay[frame.Bulk].Count() != st.SentFrames[frame.Bulk] || st.Version != frame.MaxVersion {
			t.Errorf("%+v", st)
		}
		back := p.far.Stats()
		if back.ReceivedFrames[frame.Bulk] != st.SentFrames[frame.Bulk] || back.SentFrames[frame.Control] == 0 || st.ReceivedFrames[frame.Control] == 0 {
			t.Errorf("%+v", back)
		}
		if all := p.far.Streams(); len(all) != 1 || fmt.Sprint(all[0]) != fmt.Sprint(f) {
			t.Errorf("%+v", all)
		}
		// What waits for a link shows how long it did.
		p.mu.Lock()
		p.down = true
		p.mu.Unlock()
		p.cutAll()
		time.Sleep(time.Second)
		urgent, err := p.near.Open(frame.Control, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		urgent.Write(make([]byte, 100))
		time.Sleep(10 * time.Second)
		if st := p.near.Stats(); st.Queued[frame.Control] != 100 {
			t.Errorf("%+v", st)
		}
		p.mu.Lock()
		p.down = false
		p.mu.Unlock()
		time.Sleep(10 * time.Second)
		if d := p.near.Stats().Delay[frame.Control]; d.Max < 10*time.Second || d.Buckets[len(DelayBounds)] == 0 || d.Sum < d.Max {
			t.Errorf("%+v", d)
		}
	})
}

// TestMixedVersions: nodes of different versions work together, whichever one
// dials; what only the newer one knows is not said to the older one.
func TestMixedVersions(t *testing.T) {
	for _, v := range [][2]uint8{{1, 1}, {1, 2}, {2, 1}, {2, 2}} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			client, server := Options{Version: v[0], MaxStreams: 2}, Options{Version: v[1], MaxStreams: 1}
			inMixedPair(t, simnet.Line{Delay: 10 * time.Millisecond, Rate: 20 << 20}, 2, client, server, func(t *testing.T, p *pair) {
				for _, s := range []*Session{p.near, p.far} {
					if got := s.Stats().Version; got != min(v[0], v[1]) {
						t.Errorf("version %d", got)
					}
				}
				from, to := p.stream(p.near, p.far)
				busy, err := p.near.Open(frame.Bulk, nil) // one too many for the server
				if err != nil {
					t.Fatal(err)
				}
				var reset *ResetError
				if _, err := busy.Read(make([]byte, 1)); !errors.As(err, &reset) || !errors.Is(err, ErrBusy) || reset.Text != "too many streams" ||
					(reset.Retry == busyRetry) != (min(v[0], v[1]) >= 2) {
					t.Errorf("%v", err)
				}
				want := randomBytes(1, 4<<20)
				go writeIn(from, want, 100_000)
				go func() { // a route changes, and one fails, meanwhile
					time.Sleep(50 * time.Millisecond)
					if err := p.near.Relink(t.Context(), p.dial); err != nil {
						t.Error(err)
					}
					time.Sleep(50 * time.Millisecond)
					p.cutAll()
				}()
				if got, err := io.ReadAll(to); !bytes.Equal(got, want) || err != nil {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		})
	}
}

// purse is an Account with so many bytes.
type purse struct {
	mu             sync.Mutex
	left, grown    int64
	refusals, ends int
}

func (p *purse) Grow(n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left < n {
		p.refusals++
		return false
	}
	p.left -= n
	p.grown += n
	return true
}

func (p *purse) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends++
}

// now returns what has become of it.
func (p *purse) now() (left, grown int64, refusals, ends int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left, p.grown, p.refusals, p.ends
}

// TestAccounts: windows grow as far as an account lets them, the bytes are whole
// all the same, and at a stream's end all is given back, once.
func TestAccounts(t *testing.T) {
	for _, left := range []int64{0, 192 << 10} {
		inMixedPair(t, simnet.Line{Delay: 10 * time.Millisecond, Rate: 20 << 20}, 1, Options{}, Options{}, func(t *testing.T, p *pair) {
			from, to := p.stream(p.near, p.far)
			account := &purse{left: left}
			to.Count(account)
			want := randomBytes(1, 4<<20)
			go writeIn(from, want, 1<<20)
			if got, err := io.ReadAll(to); !bytes.Equal(got, want) || err != nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			rest, grown, refusals, ends := account.now()
			if w := to.State().Window; w != FirstWindow+uint64(grown) {
				t.Errorf("a window of %d, of which the account knows %d", w, grown)
			}
			if refusals == 0 || ends != 0 || rest != 0 {
				t.Errorf("%d refusals, %d ends, %d bytes are left", refusals, ends, rest)
			}
			to.Close()
			time.Sleep(time.Second)
			if _, _, _, ends := account.now(); ends != 1 {
				t.Errorf("it is given back %d times", ends)
			}
			late := &purse{}
			to.Count(late)
			if _, _, _, ends := late.now(); ends != 1 {
				t.Error("a stream that has ended keeps something")
			}
		})
	}
}

// TestManyResets: a peer that refuses many streams at once ends those, and not the
// session.
func TestManyResets(t *testing.T) {
	inPair(t, simnet.Line{Delay: 10 * time.Millisecond}, 1, Options{MaxStreams: 1000}, func(t *testing.T, p *pair) {
		var far []*Stream
		for range 200 {
			_, st := p.stream(p.near, p.far)
			far = append(far, st)
		}
		for _, st := range far {
			st.Refuse(CodeBusy, "enough", time.Second)
		}
		time.Sleep(time.Second)
		if err := p.near.Err(); err != nil || p.near.Stats().Streams != 0 {
			t.Errorf("%v, %d streams are left", err, p.near.Stats().Streams)
		}
	})
}

// TestUnreadBytesCount: bytes that have come of a stream that its peer has reset, or
// of a session that is lost, count as long as they can be read.
func TestUnreadBytesCount(t *testing.T) {
	const size = 50_000
	for _, lost := range []bool{false, true} {
		for _, how := range []string{"read", "copied", "closed", "reset"} {
			near, far := NewBudget(1<<20), NewBudget(1<<20)
			inMixedPair(t, simnet.Line{Delay: 10 * time.Millisecond}, 1, Options{Budget: near}, Options{Budget: far}, func(t *testing.T, p *pair) {
				from, to := p.stream(p.near, p.far)
				account := &purse{}
				to.Count(account)
				if _, err := from.Write(make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if lost {
					p.far.end(ErrLost, nil)
				} else {
					from.Reset(7, "enough")
					time.Sleep(time.Second)
				}
				if _, _, _, ends := account.now(); far.Used() != FirstWindow || ends != 0 {
					t.Errorf("lost %v: %d bytes are taken while %d are held, and the account was given back %d times", lost, far.Used(), size, ends)
				}
				wantErr := func(err error) {
					var reset *ResetError
					if lost && !errors.Is(err, ErrLost) || !lost && (!errors.As(err, &reset) || reset.Code != 7) {
						t.Errorf("lost %v, %s: after the bytes comes %v", lost, how, err)
					}
				}
				switch how {
				case "read":
					b, err := io.ReadAll(struct{ io.Reader }{to})
					if len(b) != size {
						t.Errorf("%d bytes of %d", len(b), size)
					}
					wantErr(err)
				case "copied":
					n, err := to.WriteTo(io.Discard)
					if n != size {
						t.Errorf("%d bytes of %d", n, size)
					}
					wantErr(err)
				case "closed":
					to.Close()
				case "reset":
					to.Reset(8, "no more")
				}
				if _, _, _, ends := account.now(); far.Used() != 0 || ends != 1 {
					t.Errorf("lost %v, %s: %d bytes are taken by nothing, and the account was given back %d times", lost, how, far.Used(), ends)
				}
				if _, err := to.Read(make([]byte, 1)); err == nil {
					t.Errorf("%s: there are bytes left", how)
				}
			})
		}
	}
}

// TestClosedSessionHoldsNothing: a session that was closed here keeps nothing of its
// streams, read or not, accepted or not.
func TestClosedSessionHoldsNothing(t *testing.T) {
	far := NewBudget(1 << 20)
	inMixedPair(t, simnet.Line{Delay: 10 * time.Millisecond}, 1, Options{}, Options{Budget: far}, func(t *testing.T, p *pair) {
		for k := range 6 {
			st, err := p.near.Open(frame.Bulk, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Write(make([]byte, 10_000)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if k%3 == 1 {
				st.Reset(7, "enough")
			}
			time.Sleep(time.Second)
			if k < 3 {
				if _, err := p.far.Accept(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if far.Used() != 6*FirstWindow {
			t.Errorf("%d bytes are taken", far.Used())
		}
		p.far.Close()
		if n := far.Used(); n != FirstWindow { // of the one that was reset and accepted: it is its holder's
			t.Errorf("%d bytes are taken by a session that is closed", n)
		}
	})
}
