package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// network is an Exchanger over a simulated way to a server, in virtual time.
type network struct {
	server *Server
	rtt    time.Duration
	jitter time.Duration
	old    bool    // the server is one from before operations were numbered
	forget bool    // the server promises numbers and then drops them
	lose   float64 // part of exchanges of which the request or the reply is lost

	mu        sync.Mutex
	rng       *rand.Rand
	exchanges int
	dead      bool
}

var errLost = errors.New("lost")

func (n *network) Exchange(ctx context.Context, batch []byte) ([]byte, error) {
	n.mu.Lock()
	n.exchanges++
	there, back, fate := n.rtt/2, n.rtt/2, 1.0
	if n.rng != nil {
		there += time.Duration(n.rng.Int64N(int64(n.jitter) + 1))
		back += time.Duration(n.rng.Int64N(int64(n.jitter) + 1))
		fate = n.rng.Float64()
	}
	dead := n.dead
	n.mu.Unlock()
	if err := pause(ctx, there); err != nil {
		return nil, err
	}
	if fate < n.lose/2 || dead {
		return nil, errLost
	}
	if n.old {
		batch = EncodeOps(each(batch, DecodeOps, func(o *Op) { o.Numbered, o.Seq, o.Ack = false, 0, 0 }))
	}
	answer, err := n.server.Exchange(ctx, batch)
	if err != nil {
		return nil, err
	}
	if n.old || n.forget {
		answer = EncodeReplies(each(answer, DecodeReplies, func(r *Reply) {
			r.Numbered, r.Seq = false, 0
			if n.old {
				r.Caps = 0
			}
		}))
	}
	if err := pause(ctx, back); err != nil {
		return nil, err
	}
	if fate < n.lose {
		return nil, errLost
	}
	return answer, nil
}

func each[T any](b []byte, decode func([]byte) ([]T, error), change func(*T)) []T {
	list, err := decode(b)
	if err != nil {
		panic(err)
	}
	for i := range list {
		change(&list[i])
	}
	return list
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// world is a server, a client and the way between them.
type world struct {
	*network
	client *Client
}

// inWorld runs fn in a bubble of virtual time.
func inWorld(t *testing.T, n *network, o ClientOptions, fn func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n.server = NewServer(ServerOptions{Name: "relay"})
		w := &world{n, NewClient(n, o)}
		defer n.server.Close()
		defer w.client.Close()
		fn(t, w)
	})
}

// pair makes a connection and returns both of its ends.
func (w *world) pair(t *testing.T) (near, far *Conn) {
	t.Helper()
	near, err := w.client.Dial(t.Context())
	for errors.Is(err, errLost) { // who dials tries again
		near, err = w.client.Dial(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	for {
		c, err := w.server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if far = c.(*Conn); far.id == near.id { // not one that the client has heard nothing of
			return near, far
		}
	}
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// writeIn writes b in pieces and half-closes.
func writeIn(c *Conn, b []byte, piece int) error {
	for len(b) > 0 {
		n := min(piece, len(b))
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return c.CloseWrite()
}

// TestEveryByteOnceInOrder moves bytes in both directions at once, over ways
// that delay, reorder and lose.
func TestEveryByteOnceInOrder(t *testing.T) {
	ways := map[string]func() *network{
		"plain":     func() *network { return &network{rtt: 10 * time.Millisecond} },
		"reordered": func() *network { return &network{rtt: 10 * time.Millisecond, jitter: 100 * time.Millisecond} },
		"lossy": func() *network {
			return &network{rtt: 50 * time.Millisecond, jitter: 20 * time.Millisecond, lose: 0.2}
		},
		"old": func() *network { return &network{rtt: 10 * time.Millisecond, old: true} },
	}
	for name, way := range ways {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("%s/%d", name, seed), func(t *testing.T) {
				n := way()
				n.rng = rand.New(rand.NewPCG(seed, 2))
				inWorld(t, n, ClientOptions{}, func(t *testing.T, w *world) {
					near, far := w.pair(t)
					up, down := randomBytes(seed, 3<<20+17), randomBytes(seed+100, 2<<20+5)
					var g sync.WaitGroup
					check := func(c *Conn, want []byte) {
						got, err := io.ReadAll(c)
						if err != nil || !bytes.Equal(got, want) {
							t.Errorf("read %d bytes, %v; wanted %d", len(got), err, len(want))
						}
					}
					g.Go(func() { check(far, up) })
					g.Go(func() { check(near, down) })
					g.Go(func() {
						if err := writeIn(near, up, 70_001); err != nil {
							t.Error(err)
						}
					})
					g.Go(func() {
						if err := writeIn(far, down, 33_333); err != nil {
							t.Error(err)
						}
					})
					g.Wait()
					near.Close()
					far.Close()
				})
			})
		}
	}
}

// rate returns the virtual time that 16 MiB take upwards and downwards.
func rate(t *testing.T, o ClientOptions, old bool) (up, down time.Duration) {
	inWorld(t, &network{rtt: 100 * time.Millisecond, old: old}, o, func(t *testing.T, w *world) {
		const size = 16 << 20
		run := func(from, to *Conn) time.Duration {
			start := time.Now()
			go writeIn(from, make([]byte, size), 64<<10)
			if n, err := io.Copy(io.Discard, to); n != size || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
			return time.Since(start)
		}
		near, far := w.pair(t)
		up, down = run(near, far), run(far, near)
	})
	return up, down
}

func TestPipeliningPays(t *testing.T) {
	up1, down1 := rate(t, ClientOptions{MaxDepth: 1}, false)
	up2, down2 := rate(t, ClientOptions{MaxDepth: 2}, false)
	up, down := rate(t, ClientOptions{}, false)
	t.Logf("16 MiB at 100 ms: depth 1 %s up %s down, depth 2 %s %s, adaptive %s %s", up1, down1, up2, down2, up, down)
	ratio := func(a, b time.Duration) float64 { return float64(a) / float64(b) }
	if ratio(up1, up2) < 1.8 || ratio(down1, down2) < 1.8 {
		t.Errorf("depth 2 is %.2fx up and %.2fx down of depth 1; wanted 1.8", ratio(up1, up2), ratio(down1, down2))
	}
	if ratio(up1, up) < 3 || ratio(down1, down) < 3 {
		t.Errorf("adaptive depth is %.2fx up and %.2fx down of depth 1; wanted 3", ratio(up1, up), ratio(down1, down))
	}
}

// TestAnswersTakeOneRoundTrip asks and is answered, as a shell would.
func TestAnswersTakeOneRoundTrip(t *testing.T) {
	inWorld(t, &network{rtt: 100 * time.Millisecond}, ClientOptions{}, func(t *testing.T, w *world) {
		near, far := w.pair(t)
		go io.Copy(far, far)
		buf := make([]byte, 4)
		for i := range 20 {
			time.Sleep(3 * time.Second) // virtual: the connection falls idle
			start := time.Now()
			near.Write([]byte("ping"))
			if _, err := io.ReadFull(near, buf); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(start); d > 100*time.Millisecond {
				t.Errorf("answer %d took %s", i, d)
			}
		}
		// And what the far end says unasked takes half of one.
		time.Sleep(3 * time.Second)
		start := time.Now()
		far.Write([]byte("news"))
		io.ReadFull(near, buf)
		if d := time.Since(start); d > 50*time.Millisecond {
			t.Errorf("unasked bytes took %s", d)
		}
	})
}

// TestIdleConnectionsShareExchanges counts what 200 idle connections cost.
func TestIdleConnectionsShareExchanges(t *testing.T) {
	inWorld(t, &network{rtt: 100 * time.Millisecond}, ClientOptions{}, func(t *testing.T, w *world) {
		for range 200 {
			w.pair(t)
		}
		time.Sleep(time.Minute)
		before := w.count()
		time.Sleep(10 * time.Minute)
		if n := w.count() - before; n > 10*3*(maxWaiting+2) {
			t.Errorf("%d exchanges in 10 idle minutes", n)
		}
		if n := w.server.Sessions(); n != 200 {
			t.Errorf("%d sessions are left of 200", n)
		}
		w.client.mu.Lock()
		defer w.client.mu.Unlock()
		for _, l := range w.client.links {
			if len(l.flights) > 1 {
				t.Errorf("an idle connection has %d operations under way", len(l.flights))
			}
		}
	})
}

func (n *network) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.exchanges
}

func TestHalfCloseStillDrains(t *testing.T) {
	inWorld(t, &network{rtt: 20 * time.Millisecond}, ClientOptions{}, func(t *testing.T, w *world) {
		near, far := w.pair(t)
		near.Write([]byte("question"))
		near.CloseWrite()
		if q, err := io.ReadAll(far); string(q) != "question" || err != nil {
			t.Fatalf("%q, %v", q, err)
		}
		time.Sleep(5 * time.Minute) // longer than an idle client is kept
		answer := randomBytes(7, 1<<20)
		go writeIn(far, answer, 1000)
		if got, err := io.ReadAll(near); !bytes.Equal(got, answer) || err != nil {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	inWorld(t, &network{rtt: 20 * time.Millisecond}, ClientOptions{}, func(t *testing.T, w *world) {
		near, far := w.pair(t)
		data := randomBytes(8, 3<<20)
		near.Write(data)
		near.Close()
		if _, err := near.Write([]byte("x")); err == nil {
			t.Error("a closed connection takes bytes")
		}
		if got, err := io.ReadAll(far); !bytes.Equal(got, data) || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		time.Sleep(time.Second)
		if n := w.server.Sessions(); n != 0 {
			t.Errorf("%d sessions are left after a close", n)
		}
		// The other way round: the far end closes.
		near, far = w.pair(t)
		far.Write([]byte("bye"))
		far.Close()
		if got, err := io.ReadAll(near); string(got) != "bye" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		for range 10 { // the first may be taken in before the client hears of it
			if _, err := near.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
		t.Error("writes to a connection that the far end closed succeed")
	})
}

func TestSlowReaderHoldsBackTheWriter(t *testing.T) {
	inWorld(t, &network{rtt: 20 * time.Millisecond}, ClientOptions{}, func(t *testing.T, w *world) {
		near, far := w.pair(t)
		for _, c := range []struct{ from, to *Conn }{{near, far}, {far, near}} {
			c.from.SetWriteDeadline(time.Now().Add(10 * time.Second))
			n, err := c.from.Write(make([]byte, 64<<20))
			if !errors.Is(err, os.ErrDeadlineExceeded) || n > 4*windowBytes {
				t.Errorf("%d bytes were taken in that nobody reads, %v", n, err)
			}
			c.from.SetWriteDeadline(time.Time{})
			c.from.CloseWrite()
			if got, err := io.Copy(io.Discard, c.to); got != int64(n) || err != nil {
				t.Errorf("%d bytes of %d came, %v", got, n, err)
			}
		}
	})
}

func TestReadDeadline(t *testing.T) {
	inWorld(t, &network{rtt: 20 * time.Millisecond}, ClientOptions{}, func(t *testing.T, w *world) {
		near, far := w.pair(t)
		near.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v", err)
		}
		near.SetReadDeadline(time.Time{})
		far.Write([]byte("a"))
		if n, err := near.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("after the deadline was taken back: %d, %v", n, err)
		}
	})
}

// TestPeerThatDropsNumbers is treated as old from then on, for good.
func TestPeerThatDropsNumbers(t *testing.T) {
	inWorld(t, &network{rtt: 20 * time.Millisecond, forget: true}, ClientOptions{}, func(t *testing.T, w *world) {
		near, far := w.pair(t)
		data := randomBytes(9, 1<<20)
		time.Sleep(time.Minute) // the first poll is answered without its number
		go writeIn(near, data, 100_000)
		if got, err := io.ReadAll(far); !bytes.Equal(got, data) || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		w.client.mu.Lock()
		old := w.client.old
		w.client.mu.Unlock()
		if !old {
			t.Error("the client still trusts the server's numbers")
		}
		// For good: though the server promises them once more, nothing has a number.
		next, _ := w.pair(t)
		next.Write([]byte("x"))
		time.Sleep(time.Minute)
		w.client.mu.Lock()
		defer w.client.mu.Unlock()
		for _, l := range w.client.links {
			if l.pipelined || l.depth != 1 || len(l.flights) > 1 {
				t.Errorf("pipelined %v, depth %d, %d operations under way", l.pipelined, l.depth, len(l.flights))
			}
			for _, f := range l.flights {
				if f.op.Numbered {
					t.Error("an operation has a number")
				}
			}
		}
	})
}

func TestDeadServerEndsConnections(t *testing.T) {
	inWorld(t, &network{rtt: 20 * time.Millisecond}, ClientOptions{}, func(t *testing.T, w *world) {
		near, far := w.pair(t)
		w.mu.Lock()
		w.dead = true
		w.mu.Unlock()
		start := time.Now()
		near.Write([]byte("x"))
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Errorf("the client's end says %v", err)
		}
		if d := time.Since(start); d > 3*HoldTime {
			t.Errorf("it took %s", d)
		}
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Errorf("the server's end says %v", err)
		}
		before := w.count()
		if _, err := w.client.Dial(t.Context()); !errors.Is(err, errLost) || w.count() != before+1 {
			t.Errorf("dialed a dead server in %d exchanges: %v", w.count()-before, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), w.rtt/4) // before it is known
		defer cancel()
		if _, err := w.client.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial with a deadline: %v", err)
		}
	})
}

// TestTimeOutsCoverWhatIsWaitedFor: an exchange has time for its operations' own
// waits and for those that they queue behind.
func TestTimeOutsCoverWhatIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(ServerOptions{})
		defer s.Close()
		var waited atomic.Bool
		c := NewClient(exchanger(func(ctx context.Context, batch []byte) ([]byte, error) {
			ops, err := DecodeOps(batch)
			if err != nil {
				t.Error(err)
			}
			at, ok := ctx.Deadline()
			for _, op := range ops {
				wait := time.Duration(op.Wait) * time.Millisecond
				if wait > time.Second {
					waited.Store(true)
				}
				if left := time.Until(at); !ok || left < wait+HoldTime {
					t.Errorf("an operation that may wait for %s, and %s for its turn, has %s", wait, HoldTime, left)
				}
			}
			return s.Exchange(ctx, batch)
		}), ClientOptions{})
		defer c.Close()
		conn, err := c.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("x"))
		time.Sleep(time.Minute)
		if !waited.Load() {
			t.Error("no operation was to wait")
		}
	})
}

type exchanger func(context.Context, []byte) ([]byte, error)

func (e exchanger) Exchange(ctx context.Context, batch []byte) ([]byte, error) { return e(ctx, batch) }

func TestServerIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(ServerOptions{MaxSessions: 2})
		c := NewClient(&network{server: s}, ClientOptions{})
		defer s.Close()
		defer c.Close()
		dial := func() error {
			_, err := c.Dial(t.Context())
			return err
		}
		accept := func() {
			far, err := s.Accept()
			if err != nil {
				t.Fatal(err)
			}
			far.(*Conn).Know()
		}
		for range 2 {
			if err := dial(); err != nil {
				t.Error(err)
			}
			accept()
		}
		if err := dial(); !errors.Is(err, ErrBusy) {
			t.Errorf("one more than may be known: %v", err)
		}
		c.Close()
		if err := dial(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a closed client dials: %v", err)
		}
		time.Sleep(5 * time.Minute)
		if n := s.Sessions(); n != 0 {
			t.Errorf("%d sessions of a client that has gone are left", n)
		}
	})
}
