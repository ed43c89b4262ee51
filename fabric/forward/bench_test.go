package forward

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/fabric/tunneltest"
)

// BenchmarkBytes sends bytes to a service over a connection: direct, through a
// plain proxy, and through a tunnel over a session without TLS.
func BenchmarkBytes(b *testing.B) {
	sink := service(b, "tcp", "127.0.0.1:0", func(c net.Conn) { _, _ = io.Copy(io.Discard, c); c.Write([]byte("x")) })
	b.Run("direct", func(b *testing.B) { send(b, sink) })
	b.Run("proxy", func(b *testing.B) {
		send(b, service(b, "tcp", "127.0.0.1:0", func(c net.Conn) {
			out := dial(b, sink)
			// Without splice, which needs two sockets.
			_, _ = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{c}, make([]byte, 64<<10))
			_ = out.CloseWrite()
			_, _ = io.Copy(c, out)
		}))
	})
	b.Run("tunnel", func(b *testing.B) {
		near, far := tunneltest.Pair(b, session.Options{})
		e, err := NewExposer(ExposeOptions{Target: sink})
		if err != nil {
			b.Fatal(err)
		}
		f, err := NewForwarder(ForwardOptions{Bulk: true})
		if err != nil {
			b.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = e.Serve(ctx, far, peer) })
		wg.Go(func() { _ = f.Serve(ctx, l, near) })
		b.Cleanup(func() {
			cancel()
			wg.Wait()
		})
		send(b, l.Addr().String())
	})
}

func send(b *testing.B, addr string) {
	block := make([]byte, 1<<20)
	b.SetBytes(int64(len(block)))
	c := dial(b, addr)
	for b.Loop() {
		if _, err := c.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.CloseWrite(); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil {
		b.Fatal(err)
	}
}
