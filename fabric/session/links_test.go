package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/internal/testenv/simnet"
)

// TestRelink moves a session with streams both ways to other links, again and
// again: nothing is lost, and nothing is sent twice.
func TestRelink(t *testing.T) {
	inPair(t, simnet.Line{Delay: 10 * time.Millisecond, Rate: 20 << 20}, 2, Options{}, func(t *testing.T, p *pair) {
		const size = 8 << 20
		got := make(chan []byte, 2)
		for _, ends := range [][2]*Session{{p.near, p.far}, {p.far, p.near}} {
			from, to := p.stream(ends[0], ends[1])
			go writeIn(from, randomBytes(1, size), 50_000)
			go func() {
				b, err := io.ReadAll(to)
				if err != nil {
					t.Error(err)
				}
				got <- b
			}()
		}
		moved := 0
		for range 5 {
			time.Sleep(50 * time.Millisecond)
			asked := 0
			if err := p.near.Relink(t.Context(), func(ctx context.Context, n int) (net.Conn, error) {
				asked++
				return p.dial(ctx, n)
			}); err != nil {
				t.Fatal(err)
			}
			if asked != 2 {
				t.Errorf("%d links were dialed", asked)
			}
			moved++
		}
		for range 2 {
			if b := <-got; !bytes.Equal(b, randomBytes(1, size)) {
				t.Errorf("%d bytes came of %d, or others", len(b), size)
			}
		}
		time.Sleep(time.Second)
		for _, s := range []*Session{p.near, p.far} {
			if st := s.Stats(); st.Links != 2 || st.LostLinks != 0 || st.Resent != 0 || st.Duplicate != 0 {
				t.Errorf("%+v", st)
			}
			for i, l := range s.Links() {
				if l.ID != uint64(2*moved+i+1) || l.Retired || l.Conn == nil || l.RTT < 20*time.Millisecond || l.Sent == 0 || l.Received == 0 {
					t.Errorf("%+v", l)
				}
			}
		}
		// Where there is no other way, all stays as it was.
		none := errors.New("no way there")
		if err := p.near.Relink(t.Context(), func(context.Context, int) (net.Conn, error) { return nil, none }); !errors.Is(err, none) {
			t.Errorf("%v", err)
		}
		if err := p.far.Relink(t.Context(), p.dial); err == nil {
			t.Error("a session was moved by the end that has not dialed it")
		}
		near, far := p.stream(p.near, p.far)
		writeIn(near, []byte("still here"), 100)
		if b, err := io.ReadAll(far); string(b) != "still here" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// TestRetire: either end may retire a link; the one that dialed makes another.
func TestRetire(t *testing.T) {
	inPair(t, simnet.Line{Delay: 10 * time.Millisecond}, 2, Options{}, func(t *testing.T, p *pair) {
		near, far := p.stream(p.near, p.far)
		for _, s := range []*Session{p.near, p.far} {
			go near.Write(make([]byte, 300_000))
			go far.Write(make([]byte, 300_000))
			time.Sleep(time.Second)
			changed := s.Changed()
			if err := s.Retire(s.Links()[0].ID); err != nil {
				t.Fatal(err)
			}
			<-changed
			go io.CopyN(io.Discard, near, 300_000)
			if _, err := io.CopyN(io.Discard, far, 300_000); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		for _, s := range []*Session{p.near, p.far} {
			if st := s.Stats(); st.Links != 2 || st.LostLinks != 0 || st.Resent != 0 {
				t.Errorf("%+v", st)
			}
			if err := s.Retire(1); err == nil {
				t.Error("a link that is no more was retired")
			}
		}
		p.mu.Lock()
		p.down = true
		p.mu.Unlock()
		if err := p.near.Retire(p.near.Links()[0].ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		left := p.near.Links()
		if len(left) != 1 {
			t.Fatalf("%+v", left)
		}
		if err := p.near.Retire(left[0].ID); err == nil {
			t.Error("the last link was retired")
		}
	})
}

// TestFirstLinkIsLent: bulk has all links while nothing above it is active, but
// not the first one for a while after something was, and never one that is
// reserved.
func TestFirstLinkIsLent(t *testing.T) {
	for name, reserved := range map[string]bool{"direct": false, "passed on": true} {
		t.Run(name, func(t *testing.T) {
			inPair(t, simnet.Line{Delay: 5 * time.Millisecond, Rate: 4 << 20, Buffer: 64 << 10}, 2, Options{}, func(t *testing.T, p *pair) {
				if err := p.near.Relink(t.Context(), func(ctx context.Context, n int) (net.Conn, error) {
					c, err := p.dial(ctx, n)
					return ahead{c, reserved && n == 0}, err
				}); err != nil {
					t.Fatal(err)
				}
				// bulk returns what went over the first link of so many bytes, both ways.
				bulk := func(n int64) (part int64) {
					count := func() (sent int64) {
						for _, s := range []*Session{p.near, p.far} {
							sent += s.Links()[0].Sent
						}
						return sent
					}
					before := count()
					var g sync.WaitGroup
					for i := range 8 {
						from, to := p.near, p.far
						if i%2 > 0 {
							from, to = to, from
						}
						w, r := p.stream(from, to)
						g.Go(func() { writeIn(w, make([]byte, n/8), 64<<10) })
						g.Go(func() {
							if got, err := io.Copy(io.Discard, r); got != n/8 || err != nil {
								t.Errorf("%d bytes, %v", got, err)
							}
						})
					}
					g.Wait()
					return count() - before
				}
				time.Sleep(time.Minute)
				if n := len(p.near.Links()); n != 2 { // though the second one was still being dialed
					t.Errorf("%d links after they were replaced", n)
				}
				const much, little = 8 << 20, 1 << 20
				if got := bulk(much); !reserved && got < much/4 || reserved && got > little {
					t.Errorf("%d bytes of bulk went over the first link", got)
				}
				ask, err := p.near.Open(frame.Interactive, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := p.far.Accept(t.Context()); err != nil {
					t.Fatal(err)
				}
				ask.Write([]byte("now"))
				if got := bulk(much); got > little {
					t.Errorf("%d bytes of bulk went over the first link beside an interactive stream", got)
				}
				time.Sleep(2 * reservedFor)
				if got := bulk(much); !reserved && got < much/4 || reserved && got > little {
					t.Errorf("%d bytes of bulk went over the first link after that", got)
				}
			})
		})
	}
}

// ahead is a link that may be reserved.
type ahead struct {
	net.Conn
	reserved bool
}

func (a ahead) Reserved() bool { return a.reserved }

// TestRedialRests: a lost link is dialed again at once, then with growing rests, so
// is one that dies as soon as it is there; and what works again is found soon.
func TestRedialRests(t *testing.T) {
	inPair(t, simnet.Line{Delay: 5 * time.Millisecond}, 1, Options{}, func(t *testing.T, p *pair) {
		dials := func() int {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.dials
		}
		set := func(down, brief bool) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.down, p.brief = down, brief
		}
		up := func() bool { return p.near.Stats().Links == 1 }
		for range 3 {
			time.Sleep(time.Minute) // all is well
			before := dials()
			p.cutAll()
			time.Sleep(20 * time.Millisecond)
			if n := dials() - before; n != 1 || !up() {
				t.Errorf("a lost link is dialed %d times", n)
			}
			time.Sleep(time.Minute)
			before = dials()
			set(true, false)
			p.cutAll()
			time.Sleep(100 * time.Millisecond)
			if n := dials() - before; n < 2 {
				t.Errorf("%d dials in the first 100 ms", n)
			}
			time.Sleep(50 * time.Second)
			if n := dials() - before; n < 25 || n > 60 {
				t.Errorf("%d dials in 50 s without a way", n)
			}
			set(false, false)
			time.Sleep(lastBackoff + 100*time.Millisecond)
			if !up() {
				t.Error("a way that works again is not found soon")
			}
			time.Sleep(time.Minute)
			before = dials()
			set(false, true)
			p.cutAll()
			time.Sleep(50 * time.Second)
			if n := dials() - before; n < 25 || n > 60 {
				t.Errorf("%d dials in 50 s of links that die at once", n)
			}
			set(false, false)
		}
	})
}

// TestRetireUnheard: a peer of an older version does not know what it is told,
// and goes on to use the link. It ends anyway, and no byte is lost.
func TestRetireUnheard(t *testing.T) {
	inPair(t, simnet.Line{Delay: 10 * time.Millisecond}, 2, Options{}, func(t *testing.T, p *pair) {
		near, far := p.stream(p.near, p.far)
		time.Sleep(time.Second)
		p.near.mu.Lock()
		for _, l := range p.near.links {
			l.retired = time.Now() // without a word
		}
		p.near.share()
		p.near.mu.Unlock()
		want := randomBytes(1, 4<<20)
		go writeIn(far, want, 10_000)
		if b, err := io.ReadAll(near); !bytes.Equal(b, want) || err != nil {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		time.Sleep(2 * retireTime)
		for _, l := range p.near.Links() {
			if l.Retired || l.ID <= 2 {
				t.Errorf("%+v", l)
			}
		}
	})
}

// TestEndWhoseAnswerIsLost: the peer has heard that the stream is over and has
// forgotten it, but its last word went over another link than the stream, which
// was cut. The end is told again, and no half of the stream stays.
func TestEndWhoseAnswerIsLost(t *testing.T) {
	inPair(t, simnet.Line{Delay: 10 * time.Millisecond}, 2, Options{}, func(t *testing.T, p *pair) {
		near, far := p.stream(p.near, p.far)
		reset, _ := p.stream(p.near, p.far)
		time.Sleep(time.Second)
		go io.Copy(io.Discard, far)
		far.CloseWrite()
		if _, err := io.ReadAll(near); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		near.CloseWrite() // the end goes over the second link, its answer over the first
		reset.Reset(7, "enough")
		time.Sleep(15 * time.Millisecond) // the answers are under way
		p.mu.Lock()
		p.wires[0].Cut(io.ErrUnexpectedEOF)
		p.mu.Unlock()
		time.Sleep(time.Minute)
		for _, s := range []*Session{p.near, p.far} {
			s.mu.Lock()
			if len(s.streams)+len(s.resets) != 0 {
				t.Errorf("%d streams and %d resets are left", len(s.streams), len(s.resets))
			}
			s.mu.Unlock()
		}
	})
}

// TestSilentCutUnderPackets: packets are not acknowledged, but a link that
// carries them and falls silent is given up as soon as one with streams, also
// where it was idle before.
func TestSilentCutUnderPackets(t *testing.T) {
	for _, before := range []time.Duration{0, 20 * time.Second} { // of packets, until the cut
		inPair(t, simnet.Line{Delay: 5 * time.Millisecond}, 1, Options{}, func(t *testing.T, p *pair) {
			time.Sleep(time.Minute + time.Second) // idle
			send := func() {
				if err := p.near.SendPackets([16]byte{7}, [][]byte{[]byte("packet")}); err != nil {
					t.Error(err)
				}
				time.Sleep(100 * time.Millisecond)
			}
			for start := time.Now(); time.Since(start) < before; {
				send()
			}
			if n := p.near.Stats().LostLinks; n != 0 {
				t.Fatalf("%d links lost before the cut", n)
			}
			p.swallow()
			start := time.Now()
			for p.near.Stats().LostLinks == 0 && time.Since(start) < time.Minute {
				send()
			}
			if d := time.Since(start); d > 6*time.Second {
				t.Errorf("the cut was noticed after %s", d)
			}
		})
	}
}

// TestStandstill: a process that stood still for longer than a link may be silent
// gives none up for that, but one that stays silent.
func TestStandstill(t *testing.T) {
	inPair(t, simnet.Line{Delay: 5 * time.Millisecond}, 1, Options{}, func(t *testing.T, p *pair) {
		if _, err := p.near.Open(frame.Bulk, nil); err != nil {
			t.Fatal(err)
		}
		p.swallow()
		pinged := func() bool {
			p.near.mu.Lock()
			defer p.near.mu.Unlock()
			return !p.near.links[0].pinged.IsZero()
		}
		for !pinged() {
			time.Sleep(100 * time.Millisecond)
		}
		const still = 10 * time.Second
		p.near.forgive(still)
		p.near.look(time.Now().Add(still))
		synctest.Wait()
		if n := p.near.Stats().LostLinks; n != 0 {
			t.Errorf("%d links were given up", n)
		}
		time.Sleep(still + deadTime + 2*time.Second)
		if n := p.near.Stats().LostLinks; n != 1 {
			t.Errorf("%d links were given up for their silence", n)
		}
	})
}

// A peer that ends the session while much is written to it is heard, though its
// connections are closed by then: who was dialed does not wait for it.
func TestLastWordsAreHeard(t *testing.T) {
	inPair(t, simnet.Line{Delay: 10 * time.Millisecond, Rate: 20 << 20}, 2, Options{}, func(t *testing.T, p *pair) {
		near, far := p.stream(p.near, p.far)
		go io.Copy(io.Discard, near)
		go writeIn(far, make([]byte, 64<<20), 1<<20)
		time.Sleep(time.Second)
		p.near.Close()
		time.Sleep(time.Second)
		if err := p.far.Err(); !errors.Is(err, ErrClosed) {
			t.Errorf("the peer has ended the session; here it has ended with %v", err)
		}
	})
}
