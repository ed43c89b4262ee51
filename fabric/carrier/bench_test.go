package carrier

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/zeebo/blake3"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// cpu returns the CPU time that the process has used: both ends are in it.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// flow is a way for bytes, with its two ends.
type flow struct {
	w io.Writer
	r io.Reader
}

// roundBytes is what a round of BenchmarkBulk copies over each link.
const roundBytes = 32 << 20

// copyOver moves size bytes over flows, in equal parts, 64 KiB at a time, hashed
// at both ends if hash is set, and returns the time and CPU time it took.
func copyOver(b *testing.B, flows []flow, size int, hash bool) (took, used time.Duration) {
	b.Helper()
	size /= len(flows)
	var wg sync.WaitGroup
	sums := make([][2][]byte, len(flows))
	start, before := time.Now(), cpu(b)
	for i, f := range flows {
		wg.Go(func() {
			buf, h := make([]byte, 64<<10), blake3.New()
			for left := size; left > 0; left -= len(buf) {
				buf = buf[:min(len(buf), left)]
				if hash {
					h.Write(buf)
				}
				if _, err := f.w.Write(buf); err != nil {
					b.Error(err)
					return
				}
			}
			sums[i][0] = h.Sum(nil)
		})
		wg.Go(func() {
			buf, h := make([]byte, 64<<10), blake3.New()
			for left := size; left > 0; {
				n, err := f.r.Read(buf[:min(len(buf), left)])
				if err != nil {
					b.Error(err)
					return
				}
				if left -= n; hash {
					h.Write(buf[:n])
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

// plainTLS returns connections of Go's own TLS, with its own settings for sockets.
func plainTLS(b *testing.B, here, there *identity.Node, n int) (flows []flow) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for range n {
		accepted := make(chan *tls.Conn, 1)
		go func() {
			defer close(accepted)
			c, err := l.Accept()
			if err != nil {
				return // the dialer says why
			}
			far := tls.Server(c, there.ServerConfig(false))
			if far.HandshakeContext(timeout(b)) == nil {
				accepted <- far
			}
		}()
		near, err := tls.Dial("tcp", l.Addr().String(), here.ClientConfig(there.ID()))
		if err != nil {
			b.Fatal(err)
		}
		far := <-accepted
		if far == nil {
			b.Fatal("the server refuses")
		}
		b.Cleanup(func() { near.Close(); far.Close() })
		flows = append(flows, flow{near, far})
	}
	return flows
}

// plainQUIC returns connections of quic-go with windows as large as the
// carrier's, and all else its own, each with one stream.
func plainQUIC(b *testing.B, here, there *identity.Node, n int) (flows []flow) {
	c := quicConfig()
	config := &quic.Config{MaxStreamReceiveWindow: c.MaxStreamReceiveWindow, MaxConnectionReceiveWindow: c.MaxConnectionReceiveWindow}
	l, err := quic.ListenAddr("127.0.0.1:0", there.ServerConfig(false), config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	for range n {
		near, err := quic.DialAddr(timeout(b), l.Addr().String(), here.ClientConfig(there.ID()), config)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { near.CloseWithError(0, "") })
		w, err := near.OpenStreamSync(timeout(b))
		if err == nil {
			_, err = w.Write([]byte("x")) // the peer knows of it from its first byte on
		}
		if err != nil {
			b.Fatal(err)
		}
		far, err := l.Accept(timeout(b))
		if err != nil {
			b.Fatal(err)
		}
		r, err := far.AcceptStream(timeout(b))
		if err == nil {
			_, err = io.ReadFull(r, make([]byte, 1))
		}
		if err != nil {
			b.Fatal(err)
		}
		flows = append(flows, flow{w, r})
	}
	return flows
}

// streams returns streams of a session of links over a carrier.
func streams(b *testing.B, dial, serve Carrier, to identity.NodeID, links, n int) (flows []flow) {
	l := listen(b, serve)
	there, here := session.NewEndpoint(session.Options{}), session.NewEndpoint(session.Options{})
	b.Cleanup(func() { here.Close(); there.Close() })
	fresh := sessions(l, there)
	near, err := here.Dial(timeout(b), to.String(), links, func(ctx context.Context, _ int) (net.Conn, error) {
		return dial.Dial(ctx, l.Addr(), to)
	})
	if err != nil {
		b.Fatal(err)
	}
	far := <-fresh
	for _, s := range []*session.Session{near, far} {
		for changed := s.Changed(); len(s.Links()) < links; changed = s.Changed() {
			<-changed
		}
	}
	for range n {
		w, err := near.Open(frame.Bulk, nil)
		if err != nil {
			b.Fatal(err)
		}
		r, err := far.Accept(timeout(b))
		if err != nil {
			b.Fatal(err)
		}
		flows = append(flows, flow{w, r})
	}
	return flows
}

// median returns the one in the middle, in seconds: what else the machine does
// lengthens some rounds.
func median(all []time.Duration) float64 {
	slices.Sort(all)
	return all[len(all)/2].Seconds()
}

// BenchmarkBulk copies through streams of a session over a carrier and, in
// turns, through as many bare connections of what lies under it as the session
// has links, and prints what part of their speed, and of their bytes per CPU
// second, is left. Of streams there are as many as links, or a single one.
func BenchmarkBulk(b *testing.B) {
	for _, c := range []struct {
		carrier        string
		links, streams int
		hash           bool
	}{
		{"tls", 1, 1, true}, {"tls", 1, 1, false},
		{"tls", 2, 1, true}, {"tls", 2, 1, false}, {"tls", 2, 2, true},
		{"tls", 4, 1, true}, {"tls", 4, 4, true}, {"tls", 4, 4, false},
		{"quic", 1, 1, true}, {"quic", 1, 1, false},
	} {
		b.Run(fmt.Sprintf("%s/links=%d/streams=%d/hash=%v", c.carrier, c.links, c.streams, c.hash), func(b *testing.B) {
			f := newFabric(b)
			here, there := f.node(), f.node()
			plain := plainTLS
			if c.carrier == "quic" {
				plain = plainQUIC
			}
			ways := [2][]flow{plain(b, here, there, c.links),
				streams(b, carriers[c.carrier](here), carriers[c.carrier](there), there.ID(), c.links, c.streams)}
			size := c.links * roundBytes
			for _, flows := range ways {
				copyOver(b, flows, size, c.hash) // windows and records have grown then
			}
			b.ResetTimer()
			b.SetBytes(int64(2 * size))
			var took, used [2][]time.Duration
			for n := range b.N {
				for i := range ways {
					i = (i + n) % 2
					t, u := copyOver(b, ways[i], size, c.hash)
					took[i], used[i] = append(took[i], t), append(used[i], u)
				}
			}
			mb := float64(size) / 1e6
			b.ReportMetric(mb/median(took[0]), "bare-MB/s")
			b.ReportMetric(mb/median(took[1]), "stream-MB/s")
			b.ReportMetric(median(took[0])/median(took[1]), "speed-ratio")
			b.ReportMetric(median(used[0])/median(used[1]), "cpu-ratio")
		})
	}
}
