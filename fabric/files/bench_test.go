package files

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/fabric/tunneltest"
)

const benchSize = 256 << 20

// secure returns the two ends of a TLS connection.
func secure(b *testing.B) (near, far net.Conn) {
	b.Helper()
	s := httptest.NewTLSServer(nil) // for its certificate
	defer s.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: s.TLS.Certificates})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.(*tls.Conn).Handshake()
		}
		if err != nil {
			b.Error(err)
		}
		accepted <- c
	}()
	trust := s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	trust.ServerName = "example.com"
	near, err = tls.Dial("tcp", l.Addr().String(), trust)
	if err != nil {
		b.Fatal(err)
	}
	return near, <-accepted
}

// receiveSecure shares src and receives it over TLS.
func receiveSecure(b *testing.B, src, dst string) {
	b.Helper()
	s, err := NewShare(src, ShareOptions{})
	if err != nil {
		b.Fatal(err)
	}
	c, d := secure(b)
	near, far := tunneltest.End(b, c, true, session.Options{}), tunneltest.End(b, d, false, session.Options{})
	go s.Serve(context.Background(), far)
	if err := Receive(timeout(b), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); err != nil {
		b.Fatal(err)
	}
	near.Close()
	s.Close()
}

// BenchmarkReceive receives a large file over TLS, hashing included on both sides.
func BenchmarkReceive(b *testing.B) {
	src, dst := filepath.Join(b.TempDir(), "src"), filepath.Join(b.TempDir(), "dst")
	put(b, src, payload(1, benchSize), 0o644)
	b.SetBytes(benchSize)
	for b.Loop() {
		receiveSecure(b, src, dst)
		os.Remove(dst)
	}
}

// BenchmarkPlain is what BenchmarkReceive is measured by: the file copied over TLS,
// hashed at both ends, and synced.
func BenchmarkPlain(b *testing.B) {
	src, dst := filepath.Join(b.TempDir(), "src"), filepath.Join(b.TempDir(), "dst")
	put(b, src, payload(1, benchSize), 0o644)
	b.SetBytes(benchSize)
	buf := make([]byte, 256<<10)
	for b.Loop() {
		near, far := secure(b)
		go func() {
			defer far.Close()
			f, err := os.Open(src)
			if err != nil {
				b.Error(err)
				return
			}
			defer f.Close()
			if _, err := io.CopyBuffer(far, io.TeeReader(f, blake3.New()), make([]byte, 256<<10)); err != nil {
				b.Error(err)
			}
		}()
		f, err := os.Create(dst)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.CopyBuffer(io.MultiWriter(f, blake3.New()), near, buf)
		if err != nil || n != benchSize {
			b.Fatal(n, err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		f.Close()
		near.Close()
		os.Remove(dst)
	}
}
