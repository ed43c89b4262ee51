package carrier

import (
	"context"
	"crypto/ed25519"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/identity/identitytest"
	"github.com/spacestore/space/fabric/session"
)

// hung bounds waits for what must come.
const hung = 2 * time.Minute

// fabric makes nodes.
type fabric struct {
	tb testing.TB
	*identitytest.Authority
}

func newFabric(tb testing.TB) *fabric {
	tb.Helper()
	return &fabric{tb, identitytest.New(tb, nil)}
}

func (f *fabric) node() *identity.Node {
	f.tb.Helper()
	return f.Node(f.tb)
}

func (f *fabric) accept(key ed25519.PrivateKey, g identity.Grant, token identity.Token) *identity.Node {
	f.tb.Helper()
	return f.Accept(f.tb, key, g, token)
}

func timeout(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	tb.Cleanup(cancel)
	return ctx
}

func listen(tb testing.TB, c Carrier) Listener {
	tb.Helper()
	l, err := c.Listen(timeout(tb), "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return l
}

// connect makes a link, of which the peer has seen the first byte.
func connect(tb testing.TB, c Carrier, l Listener, addr string, to identity.NodeID) (near, far Link) {
	tb.Helper()
	ctx := timeout(tb)
	near, err := c.Dial(ctx, addr, to)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { near.Close() })
	write(tb, near, "x")
	if far, err = l.Accept(ctx); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { far.Close() })
	read(tb, far, "x")
	return near, far
}

func write(tb testing.TB, c net.Conn, s string) {
	tb.Helper()
	c.SetWriteDeadline(time.Now().Add(hung))
	if _, err := c.Write([]byte(s)); err != nil {
		tb.Fatal(err)
	}
}

func read(tb testing.TB, c net.Conn, want string) {
	tb.Helper()
	c.SetReadDeadline(time.Now().Add(hung))
	b := make([]byte, len(want))
	for n := 0; n < len(b); {
		m, err := c.Read(b[n:])
		if n += m; err != nil {
			tb.Fatalf("read %q, %v, want %q", b[:n], err, want)
		}
	}
	if string(b) != want {
		tb.Fatalf("read %q, want %q", b, want)
	}
	c.SetReadDeadline(time.Time{})
}

// sessions has an endpoint serve the links of a listener, until that is closed,
// and returns where its new sessions come.
func sessions(l Listener, e *session.Endpoint) <-chan *session.Session {
	fresh := make(chan *session.Session, 16)
	go func() {
		for {
			link, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			go func() {
				if s, err := e.Serve(link, link.Peer().String()); err == nil && s != nil {
					fresh <- s
				}
			}()
		}
	}()
	return fresh
}

// settle waits until there are no more goroutines than n.
func settle(tb testing.TB, n int) {
	tb.Helper()
	for end := time.Now().Add(hung); ; runtime.Gosched() {
		if runtime.NumGoroutine() <= n {
			return
		}
		if time.Now().After(end) {
			b := make([]byte, 1<<20)
			tb.Fatalf("%d goroutines, want %d:\n%s", runtime.NumGoroutine(), n, b[:runtime.Stack(b, true)])
		}
	}
}
