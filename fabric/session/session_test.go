package session

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/internal/testenv/simnet"
)

var seeds = flag.Int("seeds", 8, "how many ways TestEveryByteOnceInOrder breaks links")

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b) // never fails
	return b
}

func writeIn(c *Stream, b []byte, piece int) error {
	for len(b) > 0 {
		n := min(piece, len(b))
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return c.CloseWrite()
}

// pieces is a reader that gives so many bytes at a time.
type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }

// TestEveryByteOnceInOrder runs streams of all classes both ways, while links
// are cut and swallow what is sent over them.
func TestEveryByteOnceInOrder(t *testing.T) {
	for seed := range uint64(*seeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			l := simnet.Line{Delay: time.Duration(r.IntN(30)) * time.Millisecond, Rate: 20 << 20}
			inPair(t, l, 1+r.IntN(3), Options{}, func(t *testing.T, p *pair) {
				var wg sync.WaitGroup
				for k := range 6 {
					from, to := p.near, p.far
					if k%2 == 1 {
						from, to = to, from
					}
					head := []byte{byte(k)}
					st, err := from.Open(frame.Class(k)%frame.Classes, head)
					if err != nil {
						t.Fatal(err)
					}
					want, at := randomBytes(uint64(k), 1<<20+k), 1+r.IntN(200_000)
					wg.Go(func() {
						if k < 3 {
							if err := writeIn(st, want, at); err != nil {
								t.Errorf("write: %v", err)
							}
						} else {
							n, err := st.ReadFrom(&pieces{bytes.NewReader(want), at})
							if err != nil || n != int64(len(want)) || st.CloseWrite() != nil {
								t.Errorf("%d bytes were sent, %v", n, err)
							}
						}
						if back, err := io.ReadAll(st); err != nil || string(back) != "thanks" {
							t.Errorf("answer %q, %v", back, err)
						}
						st.Close()
					})
					wg.Go(func() {
						st, err := to.Accept(t.Context())
						if err != nil {
							t.Error(err)
							return
						}
						k := uint64(st.Header()[0])
						var got bytes.Buffer
						if k%3 == 0 {
							_, err = st.WriteTo(&got)
						} else {
							_, err = got.ReadFrom(st)
						}
						if err != nil || !bytes.Equal(got.Bytes(), randomBytes(k, 1<<20+int(k))) {
							t.Errorf("stream %d: %d bytes, %v", k, got.Len(), err)
						}
						st.Write([]byte("thanks"))
						st.Close()
					})
				}
				over := make(chan struct{})
				go func() {
					wg.Wait()
					close(over)
				}()
				for broken := 0; ; broken++ {
					select {
					case <-over:
						t.Logf("%d times broken: %+v", broken, p.near.Stats())
						time.Sleep(time.Minute)
						if a, b := p.near.Stats().Streams, p.far.Stats().Streams; a+b != 0 {
							t.Errorf("%d and %d streams are left", a, b)
						}
						return
					case <-time.After(time.Duration(r.IntN(150)) * time.Millisecond):
						if broken > 10 {
							continue
						}
						if r.IntN(4) == 0 {
							p.swallow()
						} else {
							p.cutAll()
						}
					}
				}
			})
		})
	}
}

// TestStreamsOutliveLinks up to the time that was agreed, and no longer.
func TestStreamsOutliveLinks(t *testing.T) {
	inPair(t, simnet.Line{Delay: 5 * time.Millisecond}, 2, Options{}, func(t *testing.T, p *pair) {
		near, far := p.stream(p.near, p.far)
		set := func(down bool) {
			p.mu.Lock()
			p.down = down
			p.mu.Unlock()
		}
		set(true)
		p.cutAll()
		near.Write([]byte("while the link is down"))
		time.Sleep(50 * time.Second)
		set(false)
		buf := make([]byte, 22)
		if _, err := io.ReadFull(far, buf); err != nil || string(buf) != "while the link is down" {
			t.Fatalf("%q, %v", buf, err)
		}
		set(true)
		p.cutAll()
		start := time.Now()
		if _, err := far.Read(buf); !errors.Is(err, ErrLost) {
			t.Errorf("read: %v", err)
		}
		if d := time.Since(start); d < 50*time.Second || d > 70*time.Second {
			t.Errorf("the streams lived for %s", d)
		}
		<-p.near.Done()
		if _, err := near.Write([]byte("x")); !errors.Is(err, ErrLost) {
			t.Errorf("write: %v", err)
		}
	})
}

// TestPeerRestarts: it does not know the session any more, and says so.
func TestPeerRestarts(t *testing.T) {
	inPair(t, simnet.Line{Delay: 5 * time.Millisecond}, 2, Options{}, func(t *testing.T, p *pair) {
		near, _ := p.stream(p.near, p.far)
		old := p.server
		p.mu.Lock()
		p.server = NewEndpoint(Options{})
		p.mu.Unlock()
		p.cutAll()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
			t.Errorf("read: %v", err)
		}
		p.mu.Lock()
		p.server.Close()
		p.server = old
		p.mu.Unlock()
	})
}

// TestDialerRestarts: nobody will ever come back to the sessions that it had
// dialed. They end as soon as it is heard of again, and not a minute later; a
// session that has a link is left alone.
func TestDialerRestarts(t *testing.T) {
	inPair(t, simnet.Line{Delay: 5 * time.Millisecond}, 2, Options{}, func(t *testing.T, p *pair) {
		_, far := p.stream(p.near, p.far)
		var lives []*Endpoint
		defer func() {
			for _, e := range lives {
				e.Close()
			}
		}()
		p.mu.Lock()
		p.down = true // what it was can't dial
		p.mu.Unlock()
		again := func(context.Context, int) (net.Conn, error) {
			a, b := p.line.Connect()
			p.mu.Lock()
			p.wires = append(p.wires, a)
			p.mu.Unlock()
			go func() {
				if s, err := p.server.Serve(b, "client"); err == nil && s != nil {
					p.fresh <- s
				}
			}()
			return a, nil
		}
		dial := func() *Session {
			e := NewEndpoint(Options{})
			lives = append(lives, e)
			s, err := e.Dial(t.Context(), "server", 1, again)
			if err != nil {
				t.Fatal(err)
			}
			<-p.fresh
			return s
		}
		dial()
		time.Sleep(10 * time.Second)
		if err := p.far.Err(); err != nil {
			t.Fatalf("a session with links has ended: %v", err)
		}
		p.cutAll()
		start := time.Now()
		dial()
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
			t.Errorf("read: %v", err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("the session was kept for %s", d)
		}
	})
}

func TestHalfCloseAndClose(t *testing.T) {
	inPair(t, simnet.Line{Delay: 5 * time.Millisecond}, 1, Options{}, func(t *testing.T, p *pair) {
		near, far := p.stream(p.near, p.far)
		if string(far.Header()) != "header" || far.Class() != frame.Bulk {
			t.Errorf("%q, %s", far.Header(), far.Class())
		}
		near.Write([]byte("question"))
		near.CloseWrite()
		if q, err := io.ReadAll(far); string(q) != "question" || err != nil {
			t.Errorf("%q, %v", q, err)
		}
		if _, err := near.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write after CloseWrite: %v", err)
		}
		go writeIn(far, randomBytes(1, 1<<20), 10_000)
		if got, err := io.ReadAll(near); len(got) != 1<<20 || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		// A reader that goes ends the writer, and what was written before a
		// close comes.
		near, far = p.stream(p.far, p.near)
		near.Write([]byte("last words"))
		near.Close()
		if got, err := io.ReadAll(far); string(got) != "last words" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := io.Copy(far, endless{}); !errors.Is(err, ErrNoReader) {
			t.Errorf("writes that nobody reads: %v", err)
		}
		far.Close()
		time.Sleep(time.Second)
		if a, b := p.near.Stats().Streams, p.far.Stats().Streams; a+b != 0 {
			t.Errorf("%d and %d streams are left", a, b)
		}
	})
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestResetAndRefusal(t *testing.T) {
	inPair(t, simnet.Line{Delay: 5 * time.Millisecond}, 1, Options{MaxStreams: 3, Backlog: 2}, func(t *testing.T, p *pair) {
		near, far := p.stream(p.near, p.far)
		near.Write(make([]byte, 1000))
		near.Reset(77, "enough")
		var reset *ResetError
		if _, err := io.Copy(io.Discard, far); !errors.As(err, &reset) || reset.Code != 77 || reset.Text != "enough" || !reset.Remote {
			t.Errorf("%v", err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Remote {
			t.Errorf("%v", err)
		}
		var streams []*Stream
		for range 3 { // the third finds no place in the backlog
			st, err := p.near.Open(frame.Control, nil)
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, st)
			time.Sleep(time.Second)
		}
		if _, err := streams[2].Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Code != CodeBusy {
			t.Errorf("the stream that nobody accepts: %v", err)
		}
		if _, err := p.near.Open(frame.Control, nil); err != nil {
			t.Errorf("a place became free: %v", err)
		}
		if _, err := p.near.Open(frame.Control, nil); !errors.Is(err, ErrBusy) {
			t.Errorf("a stream too many: %v", err)
		}
	})
}

func TestDeadlines(t *testing.T) {
	inPair(t, simnet.Line{Delay: 5 * time.Millisecond}, 1, Options{}, func(t *testing.T, p *pair) {
		near, far := p.stream(p.near, p.far)
		near.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		near.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := near.Write(make([]byte, 64<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n > 2<<20 {
			t.Errorf("%d bytes that nobody reads were taken in, %v", n, err)
		}
		near.SetDeadline(time.Time{})
		near.CloseWrite()
		if got, err := io.Copy(io.Discard, far); got != int64(n) || err != nil {
			t.Errorf("%d bytes of %d, %v", got, n, err)
		}
	})
}

// TestWindowsGrow to what the way holds: 100 ms at 50 MB/s are 5 MB.
func TestWindowsGrow(t *testing.T) {
	inPair(t, simnet.Line{Delay: 50 * time.Millisecond, Rate: 50 << 20, Buffer: 16 << 20}, 2, Options{}, func(t *testing.T, p *pair) {
		near, far := p.stream(p.near, p.far)
		const size = 128 << 20
		start := time.Now()
		go writeIn(near, make([]byte, size), 1<<20)
		if n, err := io.Copy(io.Discard, far); n != size || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if part := float64(size) / time.Since(start).Seconds() / (50 << 20); part < 0.5 {
			t.Errorf("%.2f of the line was used", part)
		}
	})
}

// asks measures the answers to small questions of class interactive.
func asks(t *testing.T, p *pair, n int) []time.Duration {
	t.Helper()
	st, err := p.near.Open(frame.Interactive, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var took []time.Duration
	buf := make([]byte, 100)
	for range n {
		start := time.Now()
		st.Write(buf)
		if _, err := io.ReadFull(st, buf); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
		time.Sleep(5 * time.Millisecond)
	}
	slices.Sort(took)
	return took
}

// TestInteractiveBesideBulk: with bulk on the same way, the slowest answers
// take at most twice as long as without.
func TestInteractiveBesideBulk(t *testing.T) {
	for delay, n := range map[time.Duration]int{time.Millisecond: 40, 10 * time.Millisecond: 20, 50 * time.Millisecond: 10} {
		t.Run(fmt.Sprint(2*delay), func(t *testing.T) {
			// As with TCP_NOTSENT_LOWAT, little is beyond recall.
			const rate = 40 << 20
			l := simnet.Line{Delay: delay, Rate: rate, Buffer: 32<<10 + int(delay.Seconds()*rate)}
			inPair(t, l, 1, Options{}, func(t *testing.T, p *pair) {
				go func() {
					for {
						st, err := p.far.Accept(t.Context())
						if err != nil {
							return
						}
						if st.Class() == frame.Interactive {
							go io.Copy(st, st)
						} else {
							go io.Copy(io.Discard, st)
						}
					}
				}()
				idle := asks(t, p, n)
				bulk, err := p.near.Open(frame.Bulk, nil)
				if err != nil {
					t.Fatal(err)
				}
				go io.Copy(bulk, endless{})
				time.Sleep(4*delay + 50*time.Millisecond)
				sent := p.near.Stats().Sent[frame.Bulk]
				busy := asks(t, p, n)
				i, b := idle[len(idle)*99/100], busy[len(busy)*99/100]
				t.Logf("p99 idle %s, beside bulk %s; %d MB of bulk meanwhile", i, b, (p.near.Stats().Sent[frame.Bulk]-sent)>>20)
				if b > 2*i {
					t.Errorf("p99 is %s beside bulk and %s without", b, i)
				}
				bulk.Reset(CodeCanceled, "enough")
			})
		})
	}
}

// TestFloor: what is lowest does not starve.
func TestFloor(t *testing.T) {
	inPair(t, simnet.Line{Delay: time.Millisecond, Rate: 1 << 20, Buffer: 16 << 10}, 1, Options{}, func(t *testing.T, p *pair) {
		go func() {
			for {
				st, err := p.far.Accept(t.Context())
				if err != nil {
					return
				}
				go io.Copy(io.Discard, st)
			}
		}()
		for _, c := range []frame.Class{frame.Bulk, frame.Background} {
			st, err := p.near.Open(c, nil)
			if err != nil {
				t.Fatal(err)
			}
			go io.Copy(st, endless{})
		}
		time.Sleep(10 * time.Second)
		sent := p.near.Stats().Sent
		if part := float64(sent[frame.Background]) / float64(sent[frame.Bulk]); part < 0.01 || part > 0.1 {
			t.Errorf("background had %.3f of what bulk had", part)
		}
	})
}

func TestPacketsAndCommands(t *testing.T) {
	var mu sync.Mutex
	var packets, commands []string
	o := Options{
		Packets: func(tunnel [16]byte, ps [][]byte) {
			mu.Lock()
			defer mu.Unlock()
			for _, p := range ps {
				packets = append(packets, fmt.Sprintf("%x:%s", tunnel[:1], p))
			}
		},
		Command: func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			commands = append(commands, string(b))
		},
	}
	inPair(t, simnet.Line{Delay: time.Millisecond}, 2, o, func(t *testing.T, p *pair) {
		if err := p.near.SendPackets([16]byte{7}, [][]byte{[]byte("a"), []byte("b")}); err != nil {
			t.Error(err)
		}
		if err := p.near.SendCommand([]byte("do")); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		mu.Lock()
		if !slices.Equal(packets, []string{"07:a", "07:b"}) || !slices.Equal(commands, []string{"do"}) {
			t.Errorf("%q, %q", packets, commands)
		}
		mu.Unlock()
		if err := p.near.SendPackets([16]byte{7}, [][]byte{make([]byte, 1<<16)}); err == nil {
			t.Error("a packet of 64 KiB was taken in")
		}
		// Where the way is too slow, the oldest are dropped and little is held.
		p.mu.Lock()
		p.down = true
		p.mu.Unlock()
		p.cutAll()
		time.Sleep(time.Second)
		for range 100 {
			p.near.SendPackets([16]byte{7}, [][]byte{make([]byte, 60_000), make([]byte, 60_000)})
		}
		p.near.mu.Lock()
		if p.near.queued > maxQueuedPackets || p.near.stats.DroppedPackets == 0 {
			t.Errorf("%d bytes of packets are held, %d dropped", p.near.queued, p.near.stats.DroppedPackets)
		}
		p.near.mu.Unlock()
	})
}

// TestHostilePeer sends what a peer must not.
func TestHostilePeer(t *testing.T) {
	data := func(stream, off uint64, flags uint8, payload []byte) []byte {
		b := make([]byte, frame.DataSize)
		frame.PutData(b, stream, off)
		if flags&frame.FlagOpen != 0 {
			b = append(b, 0, 0)
		}
		return frame.Append(nil, frame.Head{Type: frame.Data, Flags: flags, Class: frame.Bulk}, b, payload)
	}
	var many []byte
	for id := uint64(1); id < 20; id += 2 {
		many = append(many, data(id, 5, 0, []byte("x"))...)
	}
	for what, b := range map[string][]byte{
		"garbage":                       bytes.Repeat([]byte("garbage!"), 10),
		"bytes beyond the window":       data(1, firstWindow, 0, []byte("x")),
		"a stream of ours":              data(2, 0, 0, nil),
		"an end, and then another":      append(data(1, 0, frame.FlagFin, []byte("abc")), data(1, 0, frame.FlagFin, []byte("ab"))...),
		"bytes after the end":           append(data(1, 0, frame.FlagFin, []byte("abc")), data(1, 3, 0, []byte("d"))...),
		"a number far ahead":            data(1<<40+1, 0, frame.FlagOpen, nil),
		"streams without headers":       many,
		"a huge payload":                data(1, 0, 0, make([]byte, 2<<20)),
		"an acknowledgement of nothing": append(data(1, 0, frame.FlagOpen, nil), frame.Append(nil, frame.Head{Type: frame.Window}, frame.AppendWindow(nil, frame.WindowEntry{Stream: 1, Received: 5}))...),
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(false, Options{MaxStreams: 4})
				a, b2 := simnet.Line{}.Connect()
				if err := s.AddLink(b2); err != nil {
					t.Fatal(err)
				}
				go io.Copy(io.Discard, a)
				a.Write(b)
				<-s.Done()
				if err := s.Err(); !errors.Is(err, frame.ErrProtocol) {
					t.Errorf("%v", err)
				}
				a.Close()
			})
		})
	}
}

// TestDeafPeer never hears what it is told, and has more and more to be told. It is
// given up before that takes much memory.
func TestDeafPeer(t *testing.T) {
	data := func(stream uint64, payload string) []byte {
		b := make([]byte, frame.DataSize)
		frame.PutData(b, stream, 0)
		return frame.Append(nil, frame.Head{Type: frame.Data, Flags: frame.FlagOpen, Class: frame.Bulk}, append(b, 0, 0), []byte(payload))
	}
	answer := func(stream uint64) []byte { return frame.ResetBody{Stream: stream}.Encode(1, 0) }
	for what, say := range map[string]func(i uint64) []byte{
		"bytes of streams that are over": func(i uint64) []byte {
			if i < 2 {
				return append(data(2*i+1, "x"), answer(2*i+1)...)
			}
			return data(2*(i%2)+1, "x") // by turns, so that none is the same as the last
		},
		"streams that are refused": func(i uint64) []byte { return data(2*i+1, "") },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(false, Options{MaxStreams: 64, Backlog: 1})
				a, b := simnet.Line{Buffer: 4 << 10}.Connect()
				if err := s.AddLink(b); err != nil {
					t.Fatal(err)
				}
				said := make(chan struct{})
				go func() {
					defer close(said)
					for i := uint64(0); ; i++ {
						if _, err := a.Write(say(i)); err != nil {
							return
						}
					}
				}()
				<-s.Done()
				if err := s.Err(); !errors.Is(err, frame.ErrProtocol) {
					t.Errorf("%v", err)
				}
				a.Close()
				<-said
			})
		})
	}
}

// TestScatteredBytes: what comes in small pieces before its turn is bounded for all
// streams together, and those that have ended do not count.
func TestScatteredBytes(t *testing.T) {
	const pieces = 16_000 // a stream may have so many
	synctest.Test(t, func(t *testing.T) {
		s := New(false, Options{MaxStreams: 64})
		a, b := simnet.Line{}.Connect()
		if err := s.AddLink(b); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, a)
		scatter := func(stream uint64) {
			var all []byte
			for off := range uint64(pieces) {
				b := make([]byte, frame.DataSize)
				frame.PutData(b, stream, 2*off+2)
				all = frame.Append(all, frame.Head{Type: frame.Data, Class: frame.Bulk}, b, []byte("x"))
			}
			a.Write(all)
			synctest.Wait()
		}
		for i := range uint64(2 * maxAllEarly / pieces) {
			scatter(2*i + 1)
			if i%2 == 0 {
				a.Write(frame.ResetBody{Stream: 2*i + 1}.Encode(1, 0))
				synctest.Wait()
			}
		}
		if err := s.Err(); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		early := s.early
		s.mu.Unlock()
		if early != maxAllEarly/pieces*pieces {
			t.Errorf("%d pieces are held", early)
		}
		scatter(63)
		if err := s.Err(); !errors.Is(err, frame.ErrProtocol) {
			t.Errorf("%v", err)
		}
		a.Close()
	})
}

// TestDumbPeer opens streams that are refused one after the other, hears so, and never
// answers. It is given up before that takes much memory.
func TestDumbPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(false, Options{MaxStreams: 4})
		a, b := simnet.Line{}.Connect()
		if err := s.AddLink(b); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, a)
		go func() {
			for {
				st, err := s.Accept(context.Background())
				if err != nil {
					return
				}
				st.Refuse(CodeBusy, "no room", time.Second)
			}
		}()
		for i := range uint64(4 * maxResets * 4) {
			body := make([]byte, frame.DataSize)
			frame.PutData(body, 2*i+1, 0)
			if _, err := a.Write(frame.Append(nil, frame.Head{Type: frame.Data, Flags: frame.FlagOpen, Class: frame.Bulk}, append(body, 0, 0))); err != nil {
				break
			}
			synctest.Wait()
		}
		if err := s.Err(); !errors.Is(err, frame.ErrProtocol) {
			t.Errorf("%v", err)
		}
		s.Close()
		a.Close()
	})
}

// stuck is a link whose Close waits, as TLS does for a writer.
type stuck struct {
	*simnet.Conn
	closes  atomic.Int64
	release chan struct{}
}

func (s *stuck) Close() error {
	s.closes.Add(1)
	<-s.release
	return s.Conn.Close()
}

// TestCloseThatWaits: a link that takes its time to close is closed once, whatever
// the peer says meanwhile over another one.
func TestCloseThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(false, Options{})
		a, b := simnet.Line{}.Connect()
		first := &stuck{Conn: b, release: make(chan struct{})}
		c, d := simnet.Line{}.Connect()
		for _, l := range []net.Conn{first, d} {
			if err := s.AddLink(l); err != nil {
				t.Fatal(err)
			}
		}
		go io.Copy(io.Discard, a)
		go io.Copy(io.Discard, c)
		for _, flags := range []uint8{0, frame.FlagAnswer} {
			a.Write(frame.Append(nil, frame.Head{Type: frame.Retire, Flags: flags}))
		}
		synctest.Wait()
		for range 100 {
			c.Write(frame.Append(nil, frame.Head{Type: frame.Window}))
		}
		synctest.Wait()
		if n := first.closes.Load(); n != 1 {
			t.Errorf("it is closed %d times", n)
		}
		close(first.release)
		s.Close()
		a.Close()
		c.Close()
	})
}

// TestBegunTwice: of two links that begin the same session at once, one does.
func TestBegunTwice(t *testing.T) {
	e := NewEndpoint(Options{})
	defer e.Close()
	k := sessionKey{peer: "peer"}
	s, err := e.add(k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.add(k); !errors.Is(err, frame.ErrProtocol) {
		t.Errorf("%v", err)
	}
	if n := e.Sessions(); n != 1 {
		t.Errorf("%d sessions", n)
	}
	s.Close()
	if n := e.Sessions(); n != 0 {
		t.Errorf("%d sessions at the end", n)
	}
}

// TestBoundlessCredit: a peer that has room for everything, and acknowledges
// nothing, is not sent more than a window.
func TestBoundlessCredit(t *testing.T) {
	for _, limit := range []uint64{1 << 40, 1 << 63, frame.NoReader - 1} {
		synctest.Test(t, func(t *testing.T) {
			budget := NewBudget(1 << 30)
			s := New(true, Options{MaxWindow: 1 << 20, Budget: budget})
			a, b := simnet.Line{}.Connect()
			if err := s.AddLink(b); err != nil {
				t.Fatal(err)
			}
			go io.Copy(io.Discard, a)
			st, err := s.Open(frame.Bulk, nil)
			if err != nil {
				t.Fatal(err)
			}
			a.Write(frame.Append(nil, frame.Head{Type: frame.Window}, frame.AppendWindow(nil, frame.WindowEntry{Stream: st.ID(), Limit: limit})))
			st.SetWriteDeadline(time.Now().Add(time.Second))
			if n, err := st.Write(make([]byte, 16<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || n > 2<<20 {
				t.Errorf("%d bytes were taken in, %v", n, err)
			}
			if used := budget.Used(); used < firstWindow || used > 2<<20 {
				t.Errorf("%d bytes of the budget are taken", used)
			}
			s.Close()
			if used := budget.Used(); used != 0 {
				t.Errorf("%d bytes of the budget are taken at the end", used)
			}
			a.Close()
		})
	}
}

// TestManySmallFrames that nobody reads are held as their bytes, not as many
// times as much.
func TestManySmallFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(false, Options{})
		a, b := simnet.Line{}.Connect()
		if err := s.AddLink(b); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, a)
		const n = 20_000
		for i := range uint64(n) {
			head := make([]byte, frame.DataSize)
			frame.PutData(head, 1, i)
			h := frame.Head{Type: frame.Data, Class: frame.Bulk}
			if i == 0 {
				h.Flags, head = frame.FlagOpen, append(head, 0, 0)
			}
			a.Write(frame.Append(nil, h, head, []byte{byte(i)}))
		}
		st, err := s.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s.mu.Lock()
		held := 0
		for _, p := range st.in {
			held += cap(p.b)
		}
		if len(st.in) > 10 || held > 2*n || st.got != n {
			t.Errorf("%d bytes in %d pieces of %d in all", st.got, len(st.in), held)
		}
		s.mu.Unlock()
		got := make([]byte, n)
		if _, err := io.ReadFull(st, got); err != nil {
			t.Fatal(err)
		}
		for i, b := range got {
			if b != byte(i) {
				t.Fatalf("byte %d is %d", i, b)
			}
		}
		s.Close()
		a.Close()
	})
}

// TestSilenceBeforeHello holds nothing for long.
func TestSilenceBeforeHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := NewEndpoint(Options{})
		defer e.Close()
		for _, say := range []string{"", "GET / HTTP/1.1\r\n\r\n", "\x01\x01\x00\x00\x00\x00\x00\x23"} {
			a, b := simnet.Line{}.Connect()
			a.Write([]byte(say))
			start := time.Now()
			if _, err := e.Serve(b, "x"); err == nil {
				t.Errorf("%q was served", say)
			}
			if d := time.Since(start); d > helloTime || e.Sessions() != 0 {
				t.Errorf("%q was listened to for %s, %d sessions", say, d, e.Sessions())
			}
			a.Close()
		}
	})
}

// TestNewerPeer says things that this version does not know.
func TestNewerPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := NewEndpoint(Options{})
		defer e.Close()
		a, b := simnet.Line{}.Connect()
		hello := frame.HelloBody{Min: 1, Max: 9, Session: [16]byte{1}}.Encode(0x80)
		hello = append(hello, "more"...)
		hello[7] += 4
		a.Write(hello)
		answered := make(chan struct{})
		go func(a net.Conn) {
			defer close(answered)
			if h, _, err := frame.ReadHello(a); err != nil || h.Max != frame.MaxVersion {
				t.Errorf("%+v, %v", h, err)
			}
		}(a)
		s, err := e.Serve(b, "x")
		if err != nil {
			t.Fatal(err)
		}
		a.Write(frame.Append(nil, frame.Head{Type: 99}, []byte("from the future")))
		open := make([]byte, frame.DataSize)
		frame.PutData(open, 1, 0)
		a.Write(frame.Append(nil, frame.Head{Type: frame.Data, Flags: frame.FlagOpen | 0x40}, open, []byte{0, 1}, []byte("hx")))
		st, err := s.Accept(t.Context())
		if err != nil || string(st.Header()) != "h" {
			t.Fatalf("%v", err)
		}
		<-answered
		a.Close()
		// And one that speaks newer versions alone is told.
		a, b = simnet.Line{}.Connect()
		a.Write(frame.HelloBody{Min: 7, Max: 9}.Encode(0))
		if _, err := e.Serve(b, "x"); err == nil {
			t.Error("agreed with a peer of versions 7 to 9")
		}
		var bye *frame.GoAwayError
		if _, _, err := frame.ReadHello(a); !errors.As(err, &bye) {
			t.Errorf("the peer was told %v", err)
		}
	})
}

// FuzzSession listens to a peer that says anything.
func FuzzSession(f *testing.F) {
	b := make([]byte, frame.DataSize)
	frame.PutData(b, 1, 0)
	f.Add(frame.Append(nil, frame.Head{Type: frame.Data, Flags: frame.FlagOpen | frame.FlagFin}, b, []byte{0, 1}, []byte("h"), []byte("payload")))
	f.Add(frame.Append(nil, frame.Head{Type: frame.Window}, frame.AppendWindow(nil, frame.WindowEntry{Stream: 2, Received: 3, Limit: 4})))
	f.Add(append(frame.ResetBody{Stream: 1, Code: 2, Retry: 1}.Encode(2, 0), frame.Number(frame.Ping, 1)...))
	f.Add(append(frame.Append(nil, frame.Head{Type: frame.Retire}), frame.Append(nil, frame.Head{Type: frame.Retire, Flags: frame.FlagAnswer})...))
	f.Add(frame.Append(nil, frame.Head{Type: frame.Packets, Class: frame.Packet}, make([]byte, 16), []byte{0, 1, 9}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(false, Options{MaxStreams: 8, Backlog: 8})
		near, far := net.Pipe()
		if err := s.AddLink(far); err != nil {
			t.Fatal(err)
		}
		ours, err := s.Open(frame.Bulk, nil)
		if err != nil {
			t.Fatal(err)
		}
		ours.Write([]byte("hello"))
		go io.Copy(io.Discard, near)
		near.Write(b)
		near.Close()
		for {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			st, err := s.Accept(ctx)
			if err != nil {
				break
			}
			st.Close()
		}
		s.Close()
	})
}

// What bulk comes in, beside other classes and without, lies in memory that is used
// again: the collector's work would be a pause to the others. Little holds little.
func TestPayloadsAreUsedAgain(t *testing.T) {
	for n, again := range map[int]bool{100: false, inline: false, small - 100: true, small: true, small + 1: false, quantum - small: true, quantum: true, quantum + 1: false} {
		p := newPiece(7, n)
		if len(p.b) != n || p.off != 7 || (p.mem != nil) != again {
			t.Errorf("%d bytes of %d, used again: %v", len(p.b), n, p.mem != nil)
		}
		p.free()
	}
}
