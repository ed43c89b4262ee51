package session

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// tlsPair returns both ends of a TLS 1.3 connection over loopback.
func tlsPair(b *testing.B, certs tls.Certificate, l net.Listener) (near, far net.Conn) {
	b.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			b.Error(err)
		}
		accepted <- c
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	client := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	server := tls.Server(<-accepted, &tls.Config{Certificates: []tls.Certificate{certs}, MinVersion: tls.VersionTLS13})
	go server.Handshake() // the client's shows whether it worked
	if err := client.Handshake(); err != nil {
		b.Fatal(err)
	}
	return client, server
}

func tlsCert(b *testing.B) (tls.Certificate, net.Listener) {
	b.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, l
}

// BenchmarkBulk copies 64 KiB at a time through a stream and, beside it,
// through a bare TLS connection. Compare their CPU seconds as well.
func BenchmarkBulk(b *testing.B) {
	buf := make([]byte, 64<<10)
	copyOver := func(b *testing.B, w io.Writer, r io.Reader) {
		b.SetBytes(int64(len(buf)))
		done := make(chan struct{})
		total := int64(b.N) * int64(len(buf))
		go func() {
			defer close(done)
			if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.LimitReader(r, total)}, make([]byte, 64<<10)); err != nil {
				b.Error(err)
			}
		}()
		b.ResetTimer()
		for range b.N {
			if _, err := w.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
		<-done
	}
	b.Run("tls", func(b *testing.B) {
		cert, l := tlsCert(b)
		near, far := tlsPair(b, cert, l)
		defer near.Close()
		defer far.Close()
		copyOver(b, near, far)
	})
	b.Run("stream", func(b *testing.B) {
		cert, l := tlsCert(b)
		near, far := tlsPair(b, cert, l)
		one, two := New(true, Options{}), New(false, Options{})
		defer one.Close()
		defer two.Close()
		one.AddLink(near)
		two.AddLink(far)
		w, err := one.Open(frame.Bulk, nil)
		if err != nil {
			b.Fatal(err)
		}
		r, err := two.Accept(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		copyOver(b, w, r)
	})
}

// BenchmarkAnswer measures small questions and answers: bare TLS, a stream,
// and a stream beside bulk.
func BenchmarkAnswer(b *testing.B) {
	ask := func(b *testing.B, c io.ReadWriter) {
		buf := make([]byte, 100)
		var took []time.Duration
		b.ResetTimer()
		for range b.N {
			start := time.Now()
			c.Write(buf)
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
	}
	b.Run("tls", func(b *testing.B) {
		cert, l := tlsCert(b)
		near, far := tlsPair(b, cert, l)
		defer near.Close()
		defer far.Close()
		go io.Copy(far, far)
		ask(b, near)
	})
	for name, bulk := range map[string]bool{"stream": false, "stream beside bulk": true} {
		b.Run(name, func(b *testing.B) {
			cert, l := tlsCert(b)
			one, two := New(true, Options{}), New(false, Options{})
			defer one.Close()
			defer two.Close()
			for range 2 {
				near, far := tlsPair(b, cert, l)
				one.AddLink(near)
				two.AddLink(far)
			}
			go func() {
				for {
					st, err := two.Accept(b.Context())
					if err != nil {
						return
					}
					if st.Class() == frame.Bulk {
						go io.Copy(io.Discard, st)
					} else {
						go io.Copy(st, st)
					}
				}
			}()
			if bulk {
				w, err := one.Open(frame.Bulk, nil)
				if err != nil {
					b.Fatal(err)
				}
				go io.Copy(w, endless{})
			}
			st, err := one.Open(frame.Interactive, nil)
			if err != nil {
				b.Fatal(err)
			}
			ask(b, st)
		})
	}
}
