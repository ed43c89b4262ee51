package session

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/internal/testenv/simnet"
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

// BenchmarkAnswer measures small questions and answers over bare TLS and a
// stream. BenchmarkLatency has them beside bulk.
func BenchmarkAnswer(b *testing.B) {
	ask := func(b *testing.B, c io.ReadWriter) {
		buf := make([]byte, 100)
		b.ResetTimer()
		for range b.N {
			c.Write(buf)
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	cert, l := tlsCert(b)
	b.Run("tls", func(b *testing.B) {
		near, far := tlsPair(b, cert, l)
		defer near.Close()
		defer far.Close()
		go io.Copy(far, far)
		ask(b, near)
	})
	b.Run("stream", func(b *testing.B) {
		one, two := New(true, Options{}), New(false, Options{})
		defer one.Close()
		defer two.Close()
		near, far := tlsPair(b, cert, l)
		one.AddLink(near)
		two.AddLink(far)
		st, err := one.Open(frame.Interactive, nil)
		if err != nil {
			b.Fatal(err)
		}
		echo, err := two.Accept(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		go io.Copy(echo, echo)
		ask(b, st)
	})
}

// BenchmarkLatency asks small questions, alone, beside a stream of bulk that
// takes all it can, and beside it on what a multiplexed connection without
// classes would be: one link, all streams of one class, and as much in the
// kernel as it takes, which nothing overtakes. Without delay, the way is TLS over
// loopback, and the bulk as much as both processors can do; with a delay, a line
// of 100 MB/s. It prints the slowest of a hundred answers.
func BenchmarkLatency(b *testing.B) {
	const rate = 100e6
	p99 := func(b *testing.B, connect func() (near, far net.Conn), links int, class frame.Class, bulk bool) time.Duration {
		one, two := New(true, Options{}), New(false, Options{})
		defer one.Close()
		defer two.Close()
		for range links {
			near, far := connect()
			one.AddLink(near)
			two.AddLink(far)
		}
		go func() {
			for {
				st, err := two.Accept(b.Context())
				if err != nil {
					return
				}
				if string(st.Header()) == "bulk" {
					go io.Copy(io.Discard, st)
				} else {
					go io.Copy(st, st)
				}
			}
		}()
		if bulk {
			w, err := one.Open(frame.Bulk, []byte("bulk"))
			if err != nil {
				b.Fatal(err)
			}
			go io.Copy(struct{ io.Writer }{w}, endless{})
			for w.State().Acked < 32<<20 { // it has taken the line
				time.Sleep(10 * time.Millisecond)
			}
		}
		st, err := one.Open(class, nil)
		if err != nil {
			b.Fatal(err)
		}
		var took []time.Duration
		buf := make([]byte, 100)
		for start := time.Now(); len(took) < 100 || time.Since(start) < time.Second; {
			asked := time.Now()
			st.Write(buf)
			if _, err := io.ReadFull(st, buf); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(asked))
		}
		slices.Sort(took)
		return took[len(took)*99/100]
	}
	cert, l := tlsCert(b)
	for _, delay := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond} {
		b.Run(delay.String(), func(b *testing.B) {
			way := func(buffer int) func() (near, far net.Conn) {
				if delay == 0 {
					return func() (near, far net.Conn) { return tlsPair(b, cert, l) }
				}
				return func() (near, far net.Conn) {
					a, b := simnet.Line{Delay: delay / 2, Rate: rate, Buffer: buffer + int(delay.Seconds()/2*rate)}.Connect()
					return a, b
				}
			}
			links := 1
			if delay == 0 {
				links = 2
			}
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
			for range b.N {
				idle := p99(b, way(64<<10), links, frame.Interactive, false)
				busy := p99(b, way(64<<10), links, frame.Interactive, true)
				mux := p99(b, way(4<<20), 1, frame.Bulk, true)
				b.ReportMetric(ms(idle), "idle-p99-ms")
				b.ReportMetric(ms(busy), "busy-p99-ms")
				b.ReportMetric(ms(mux), "no-classes-p99-ms")
				b.ReportMetric(ms(busy)/ms(idle), "busy/idle")
			}
		})
	}
}

// BenchmarkIdle prints what idle sessions of two links, and idle streams, cost
// at both ends together: what is left after bytes went each way.
func BenchmarkIdle(b *testing.B) {
	memory := func() (bytes uint64, goroutines int) {
		runtime.GC()
		runtime.GC() // pools are emptied by the second one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse, runtime.NumGoroutine()
	}
	talk := func(one, two *Session) (w, r *Stream) {
		w, err := one.Open(frame.Interactive, []byte("header"))
		if err != nil {
			b.Fatal(err)
		}
		if r, err = two.Accept(b.Context()); err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 100_000)
		go w.Write(buf)
		if _, err := io.ReadFull(r, buf); err != nil {
			b.Fatal(err)
		}
		go r.Write(buf)
		if _, err := io.ReadFull(w, buf); err != nil {
			b.Fatal(err)
		}
		return w, r
	}
	b.Run("session", func(b *testing.B) {
		var keep []*Session
		cert, l := tlsCert(b)
		for _, carrier := range []string{"pipe", "TLS"} {
			const n = 100
			before, routines := memory()
			for range n {
				one, two := New(true, Options{}), New(false, Options{})
				keep = append(keep, one, two)
				for range 2 {
					var near, far net.Conn
					if carrier == "TLS" {
						near, far = tlsPair(b, cert, l)
					} else {
						near, far = net.Pipe()
					}
					one.AddLink(near)
					two.AddLink(far)
				}
				w, r := talk(one, two)
				w.Close()
				r.Close()
			}
			after, now := memory()
			b.ReportMetric(float64(after-before)/n/2, carrier+"-bytes/end")
			b.ReportMetric(float64(now-routines)/n/2, carrier+"-goroutines/end")
		}
		for _, s := range keep {
			s.Close()
		}
	})
	b.Run("stream", func(b *testing.B) {
		near, far := net.Pipe()
		one, two := New(true, Options{}), New(false, Options{})
		one.AddLink(near)
		two.AddLink(far)
		const n = 4000
		before, routines := memory()
		var keep []*Stream
		for range n {
			w, r := talk(one, two)
			keep = append(keep, w, r)
		}
		after, now := memory()
		b.ReportMetric(float64(after-before)/n/2, "bytes/end")
		b.ReportMetric(float64(now-routines)/n/2, "goroutines/end")
		runtime.KeepAlive(keep)
		one.Close()
		two.Close()
	})
}
