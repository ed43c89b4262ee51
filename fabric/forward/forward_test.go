package forward

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/fabric/tunneltest"
	"github.com/spacestore/space/internal/testenv/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience bounds hangs, nothing else.
const patience = 5 * time.Minute

var peer = identity.NodeID{7}

// world is a forwarder, a tunnel and an exposer.
type world struct {
	addr    string // where the forwarder listens
	f       *Forwarder
	e       *Exposer
	near    *tunneltest.Tunnel
	log     *logged
	stop    context.CancelFunc // of the forwarder and the exposer
	stopped func()             // waits until both are
}

func newWorld(t *testing.T, eo ExposeOptions, fo ForwardOptions, so session.Options) *world {
	t.Helper()
	w := &world{log: &logged{}}
	near, far := tunneltest.Pair(t, so)
	w.near = near
	log := slog.New(slog.NewTextHandler(w.log, nil))
	eo.Log, fo.Log = log, log
	var err error
	if w.e, err = NewExposer(eo); err != nil {
		t.Fatal(err)
	}
	if w.f, err = NewForwarder(fo); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.e.Serve(ctx, far, peer); !errors.Is(err, context.Canceled) {
			t.Errorf("the exposer ended: %v", err)
		}
	})
	wg.Go(func() {
		if err := w.f.Serve(ctx, l, near); !errors.Is(err, context.Canceled) {
			t.Errorf("the forwarder ended: %v", err)
		}
	})
	w.stopped = wg.Wait
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return w
}

// logged is a log that can be looked at while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (w *world) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	return dial(t, w.addr)
}

func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// wantReset connects and wants to be reset, perhaps so soon that it is the
// connecting that fails.
func (w *world) wantReset(t *testing.T) {
	t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err == nil {
		defer c.Close()
		err = c.SetDeadline(time.Now().Add(patience))
	}
	if err == nil {
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v", err)
	}
}

// service listens and hands each connection to serve.
func service(t testing.TB, network, addr string, serve func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen(network, addr)
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
				if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
					t.Error(err)
				}
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	if network == "unix" {
		return "unix:" + addr
	}
	return l.Addr().String()
}

func echo(c net.Conn) {
	_, _ = io.Copy(c, c) // the client sees what is missing
	_ = closeWrite(c)
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // never fails
	return b
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// TestBytesAndHalfCloses sends and answers over several connections at once; each
// side says by a half-close that it has said everything.
func TestBytesAndHalfCloses(t *testing.T) {
	digest := func(c net.Conn) { // answers with what has come, then its hash
		b, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		sum := sha256.Sum256(b)
		if _, err := c.Write(append(b, sum[:]...)); err != nil {
			t.Error(err)
		}
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "socket")
			}
			w := newWorld(t, ExposeOptions{Target: service(t, network, addr, digest)}, ForwardOptions{Bulk: network == "unix"}, session.Options{})
			var wg sync.WaitGroup
			var all int64
			for i, size := range []int{0, 1, 2000, 64 << 10, 64<<10 + 1, 1 << 20, 3<<20 + 7} {
				all += int64(size)
				c := w.dial(t)
				wg.Go(func() {
					b := randomBytes(uint64(i), size)
					if _, err := c.Write(b); err != nil {
						t.Error(err)
					}
					if err := c.CloseWrite(); err != nil {
						t.Error(err)
					}
					got, err := io.ReadAll(c)
					sum := sha256.Sum256(b)
					if err != nil || !bytes.Equal(got, append(b, sum[:]...)) {
						t.Errorf("%d bytes and their hash have become %d bytes, %v", size, len(got), err)
					}
				})
			}
			wg.Wait()
			until(t, "all connections end", func() bool { return w.f.Stats().Active+w.e.Stats().Active == 0 })
			want := Stats{Total: 7, Sent: all, Received: all + 7*sha256.Size}
			if got := w.f.Stats(); got != want {
				t.Errorf("the forwarder counts %+v, not %+v", got, want)
			}
			want.Sent, want.Received = want.Received, want.Sent
			if got := w.e.Stats(); got != want {
				t.Errorf("the exposer counts %+v, not %+v", got, want)
			}
		})
	}
}

// TestServiceSpeaksFirst has the service end its half before the client has
// said anything.
func TestServiceSpeaksFirst(t *testing.T) {
	heard := make(chan string, 1)
	w := newWorld(t, ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		fmt.Fprint(c, "welcome")
		_ = closeWrite(c)
		b, _ := io.ReadAll(c)
		heard <- string(b)
	})}, ForwardOptions{}, session.Options{})
	c := w.dial(t)
	if b, err := io.ReadAll(c); err != nil || string(b) != "welcome" {
		t.Fatalf("%q, %v", b, err)
	}
	fmt.Fprint(c, "thank you")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "thank you" {
		t.Errorf("the service heard %q", got)
	}
}

func TestResetsGoThrough(t *testing.T) {
	t.Run("from the client", func(t *testing.T) {
		ended := make(chan error, 1)
		w := newWorld(t, ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
			fmt.Fprint(c, "hello")
			_, err := io.ReadAll(c)
			ended <- err
		})}, ForwardOptions{}, session.Options{})
		c := w.dial(t)
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		abort(c)
		if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the service sees %v", err)
		}
	})
	t.Run("from the service", func(t *testing.T) {
		w := newWorld(t, ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Error(err)
			}
			abort(c)
		})}, ForwardOptions{}, session.Options{})
		c := w.dial(t)
		fmt.Fprint(c, "hello")
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client sees %v", err)
		}
		until(t, "it counts as failed", func() bool { s := w.f.Stats(); return s.Failed == 1 && s.Active == 0 })
	})
}

// TestRefusals asks for what the exposer does not give. The forwarder learns
// why, and its client is reset.
func TestRefusals(t *testing.T) {
	nobody := closedPort(t)
	for _, c := range []struct {
		name   string
		eo     ExposeOptions
		target string // that the forwarder asks for
		code   uint32
		text   string
	}{
		{"service down", ExposeOptions{Target: nobody}, "", CodeRefused, "may not be running"},
		{"no such socket", ExposeOptions{Target: "unix:" + filepath.Join(t.TempDir(), "none")}, "", CodeUnreachable, "does not exist"},
		{"no answer", ExposeOptions{Target: fullService(t), DialTimeout: 50 * time.Millisecond}, "", CodeTimeout, "does not answer"},
		{"not allowed", ExposeOptions{Target: nobody}, "127.0.0.1:1", CodeDenied, "not among what is allowed"},
		{"name of another address", ExposeOptions{Allow: rules(t, "192.0.2.0/24:*")}, "localhost:80", CodeDenied, "not stand for an address"},
		{"nothing asked for", ExposeOptions{Allow: rules(t, "192.0.2.0/24:*")}, "", CodeDenied, "must say"},
		{"another node", ExposeOptions{Target: nobody, Peers: []identity.NodeID{{8}}}, "", CodeDenied, "this node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.eo, ForwardOptions{Target: c.target}, session.Options{})
			h, err := header{target: c.target}.encode()
			if err != nil {
				t.Fatal(err)
			}
			wantRefusal(t, w, h, c.code)
			w.wantReset(t)
			until(t, "the forwarder says why", func() bool {
				s := w.log.String()
				return strings.Contains(s, "level=ERROR") && strings.Contains(s, c.text)
			})
			until(t, "both count it", func() bool { return w.e.Stats().Failed == 2 && w.f.Stats().Failed == 1 })
		})
	}
	t.Run("nonsense", func(t *testing.T) {
		w := newWorld(t, ExposeOptions{Target: nobody}, ForwardOptions{}, session.Options{})
		for _, h := range [][]byte{nil, {2}, {1, 0, 5, 'x'}, {1, 0, 1, 'x', 0, 0}} {
			wantRefusal(t, w, h, CodeMalformed)
		}
	})
}

// wantRefusal opens a stream and wants it reset.
func wantRefusal(t *testing.T, w *world, header []byte, code uint32) {
	t.Helper()
	st, err := w.near.Open(t.Context(), frame.Interactive, header)
	if err != nil {
		t.Fatal(err)
	}
	var reset *session.ResetError
	if _, err := io.ReadAll(st); !errors.As(err, &reset) || reset.Code != code || !reset.Remote {
		t.Errorf("header %q: %v, not code %#x", header, err, code)
	}
}

// closedPort returns an address where nobody listens.
func closedPort(t *testing.T) string {
	// A bound port that does not listen stays nobody else's.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return boundTo(t, fd)
}

// fullService returns the address of a service that does not accept, and whose
// backlog is full.
func fullService(t *testing.T) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	addr := boundTo(t, fd)
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	dial(t, addr)
	return addr
}

func boundTo(t *testing.T, fd int) string {
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
}

// TestAskForAllowed has one exposer lead to what its rules allow.
func TestAskForAllowed(t *testing.T) {
	addr := service(t, "tcp", "127.0.0.1:0", echo)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{addr, "localhost:" + port} {
		w := newWorld(t, ExposeOptions{Allow: rules(t, "127.0.0.0/8:*", "[::1]:*")}, ForwardOptions{Target: target}, session.Options{})
		converse(t, w.dial(t), target)
	}
}

// converse has an echo service say something.
func converse(t testing.TB, c net.Conn, what string) {
	t.Helper()
	got := make([]byte, len(what))
	if _, err := io.WriteString(c, what); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != what {
		t.Errorf("%q came back as %q, %v", what, got, err)
	}
}

// TestSlowReader writes much to a service that takes it in step by step: what
// is under way stays within the windows and the kernel's buffers.
func TestSlowReader(t *testing.T) {
	const total, window, kernel = 24 << 20, 256 << 10, 4 << 20
	step, done := make(chan int), make(chan error, 1)
	w := newWorld(t, ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		defer close(step)
		if err := c.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
			t.Error(err)
		}
		b := make([]byte, 128<<10)
		for {
			n, err := io.ReadFull(c, b)
			if n > 0 {
				step <- n
			}
			if err != nil {
				if err != io.EOF && err != io.ErrUnexpectedEOF {
					t.Error(err)
				}
				return
			}
		}
	})}, ForwardOptions{}, session.Options{MaxWindow: window})
	c := w.dial(t)
	go func() {
		_, err := c.Write(randomBytes(1, total))
		done <- errors.Join(err, c.CloseWrite())
	}()
	read := int64(0)
	for n := range step {
		if ahead := w.f.Stats().Sent - read; ahead > 4*window+kernel {
			t.Fatalf("%d bytes are under way to a service that does not read", ahead)
		}
		read += int64(n)
	}
	if err := <-done; err != nil || read != total {
		t.Errorf("%d bytes of %d, %v", read, total, err)
	}
}

// TestThousandConnections has them all at once.
func TestThousandConnections(t *testing.T) {
	const n = 1000
	w := newWorld(t, ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", echo)}, ForwardOptions{}, session.Options{Backlog: n})
	conns := make([]*net.TCPConn, n)
	var wg sync.WaitGroup
	for i := range conns {
		conns[i] = w.dial(t)
		wg.Go(func() { converse(t, conns[i], fmt.Sprint("this is ", i)) })
	}
	wg.Wait()
	if f, e := w.f.Stats().Active, w.e.Stats().Active; f != n || e != n {
		t.Errorf("%d and %d connections at once", f, e)
	}
	for i := range conns {
		wg.Go(func() {
			if err := conns[i].CloseWrite(); err != nil {
				t.Error(err)
			}
			if b, err := io.ReadAll(conns[i]); err != nil || len(b) > 0 {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
	wg.Wait()
	until(t, "all end", func() bool { return w.f.Stats().Active+w.e.Stats().Active == 0 })
	if f := w.f.Stats(); f.Failed != 0 || f.Total != n {
		t.Errorf("%+v", f)
	}
}

func TestLimits(t *testing.T) {
	t.Run("forwarder", func(t *testing.T) {
		w := newWorld(t, ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", echo)}, ForwardOptions{MaxConns: 2}, session.Options{})
		a, b, c := w.dial(t), w.dial(t), w.dial(t)
		converse(t, a, "first")
		converse(t, b, "second")
		if got := w.f.Stats(); got.Total != 2 {
			t.Fatalf("%d connections were taken in", got.Total)
		}
		a.Close()
		converse(t, c, "third, when there is room")
	})
	t.Run("exposer", func(t *testing.T) {
		w := newWorld(t, ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", echo), MaxConns: 1}, ForwardOptions{}, session.Options{})
		a := w.dial(t)
		converse(t, a, "first")
		w.wantReset(t)
		until(t, "the forwarder says why", func() bool { return strings.Contains(w.log.String(), "has 1 connections, which is the limit") })
		a.Close()
		until(t, "the first ends", func() bool { return w.e.Stats().Active == 0 })
		converse(t, w.dial(t), "third")
	})
}

func TestNoRoute(t *testing.T) {
	w := newWorld(t, ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", echo)}, ForwardOptions{Wait: time.Second}, session.Options{})
	unblock := w.near.Block()
	w.wantReset(t)
	until(t, "the forwarder says why", func() bool { return strings.Contains(w.log.String(), "no route within 1s") })
	unblock()
	converse(t, w.dial(t), "again")
}

// TestWaitsForRoute opens a connection before there is a route.
func TestWaitsForRoute(t *testing.T) {
	w := newWorld(t, ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", echo)}, ForwardOptions{Wait: patience}, session.Options{})
	unblock := w.near.Block()
	c := w.dial(t)
	until(t, "it is taken in", func() bool { return w.f.Stats().Active == 1 })
	unblock()
	converse(t, c, "patience")
}

func TestStop(t *testing.T) {
	ended := make(chan error, 1)
	w := newWorld(t, ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		fmt.Fprint(c, "hello")
		_, err := io.ReadAll(c)
		ended <- err
	})}, ForwardOptions{}, session.Options{})
	c := w.dial(t)
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.stopped()
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v", err)
	}
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the service sees %v", err)
	}
}

// TestTunnelEnds resets connections when the tunnel is gone.
func TestTunnelEnds(t *testing.T) {
	near, far := tunneltest.Pair(t, session.Options{Resume: time.Second}) // its last word may be lost
	e, err := NewExposer(ExposeOptions{Target: service(t, "tcp", "127.0.0.1:0", echo)})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- e.Serve(context.Background(), far, peer) }()
	h, err := header{}.encode()
	if err != nil {
		t.Fatal(err)
	}
	st, err := near.Open(t.Context(), frame.Interactive, h)
	if err != nil {
		t.Fatal(err)
	}
	converse(t, st, "hello")
	near.Close()
	if err := <-served; err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("the exposer ended with %v", err)
	}
	if s := e.Stats(); s.Active != 0 || s.Failed != 1 {
		t.Errorf("%+v", s)
	}
}

func TestProxyProtocol(t *testing.T) {
	got := make(chan []byte, 1)
	addr := service(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		b, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		got <- b
	})
	w := newWorld(t, ExposeOptions{Target: addr, ProxyProtocol: true}, ForwardOptions{}, session.Options{})
	c := w.dial(t)
	fmt.Fprint(c, "and then the rest")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	src, dst := c.LocalAddr().(*net.TCPAddr).AddrPort(), addr
	_, port, err := net.SplitHostPort(dst)
	if err != nil {
		t.Fatal(err)
	}
	p, err := parsePort(port)
	if err != nil {
		t.Fatal(err)
	}
	want := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01" +
		string([]byte{byte(src.Port() >> 8), byte(src.Port()), byte(p >> 8), byte(p)}) + "and then the rest"
	if b := <-got; string(b) != want {
		t.Errorf("the service got\n%q, not\n%q", b, want)
	}
}
