package session

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/blake3"

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

// cpu returns the CPU time that the process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// roundBytes is what a round of BenchmarkBulk copies over each way.
const roundBytes = 64 << 20

// copyAll copies roundBytes from each writer to its reader, 64 KiB at a time,
// hashed at both ends if hash is set, and returns the time and CPU time it took.
func copyAll(b *testing.B, ws []io.Writer, rs []io.Reader, hash bool) (took, used time.Duration) {
	b.Helper()
	var wg sync.WaitGroup
	start, before := time.Now(), cpu(b)
	sums := make([][2][]byte, len(ws))
	for i := range ws {
		wg.Go(func() {
			buf, h := make([]byte, 64<<10), blake3.New()
			for n := 0; n < roundBytes; n += len(buf) {
				if hash {
					h.Write(buf)
				}
				if _, err := ws[i].Write(buf); err != nil {
					b.Error(err)
					return
				}
			}
			sums[i][0] = h.Sum(nil)
		})
		wg.Go(func() {
			buf, h := make([]byte, 64<<10), blake3.New()
			for n := 0; n < roundBytes; {
				k, err := rs[i].Read(buf[:min(len(buf), roundBytes-n)])
				if err != nil {
					b.Error(err)
					return
				}
				if n += k; hash {
					h.Write(buf[:k])
				}
			}
			sums[i][1] = h.Sum(nil)
		})
	}
	wg.Wait()
	for _, s := range sums {
		if !bytes.Equal(s[0], s[1]) {
			b.Error("other bytes came than were sent")
		}
	}
	return time.Since(start), cpu(b) - before
}

// BenchmarkBulk copies through streams of a session and, in turns, through as
// many bare TLS connections as the session has links, and prints what part of
// their speed, and of their bytes per CPU second, is left.
func BenchmarkBulk(b *testing.B) {
	for _, links := range []int{1, 4} {
		for _, hash := range []bool{false, true} {
			b.Run(fmt.Sprintf("links=%d/hash=%v", links, hash), func(b *testing.B) {
				cert, l := tlsCert(b)
				var bareW, streamW []io.Writer
				var bareR, streamR []io.Reader
				one, two := New(true, Options{}), New(false, Options{})
				defer one.Close()
				defer two.Close()
				for range links {
					near, far := tlsPair(b, cert, l)
					defer near.Close()
					defer far.Close()
					bareW, bareR = append(bareW, near), append(bareR, far)
					near, far = tlsPair(b, cert, l)
					one.AddLink(near)
					two.AddLink(far)
				}
				for range links {
					w, err := one.Open(frame.Bulk, nil)
					if err != nil {
						b.Fatal(err)
					}
					r, err := two.Accept(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					streamW, streamR = append(streamW, w), append(streamR, r)
				}
				copyAll(b, bareW, bareR, hash) // windows and records have grown then
				copyAll(b, streamW, streamR, hash)
				b.ResetTimer()
				b.SetBytes(int64(2 * links * roundBytes))
				var took, used [2]time.Duration
				for range b.N {
					for i, ends := range []struct {
						w []io.Writer
						r []io.Reader
					}{{bareW, bareR}, {streamW, streamR}} {
						t, u := copyAll(b, ends.w, ends.r, hash)
						took[i], used[i] = took[i]+t, used[i]+u
					}
				}
				mb := float64(b.N*links*roundBytes) / 1e6
				b.ReportMetric(mb/took[0].Seconds(), "bare-MB/s")
				b.ReportMetric(mb/took[1].Seconds(), "stream-MB/s")
				b.ReportMetric(took[0].Seconds()/took[1].Seconds(), "speed-ratio")
				b.ReportMetric(used[0].Seconds()/used[1].Seconds(), "cpu-ratio")
			})
		}
	}
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
