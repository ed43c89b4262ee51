package host

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/views/nvme"
	"github.com/spacestore/space/views/nvme/wire"
)

// echo is what a host on a target is measured by: a server that answers every
// request of req bytes with resp bytes, from memory. With batch, reads and writes
// are batched as far as they are there; without, each message is a write of its
// own. It knows no protocol.
func echo(b *testing.B, req, resp int, batch bool) net.Conn {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriterSize(c, 64<<10)
		in, out := make([]byte, req), make([]byte, resp)
		for {
			if r.Buffered() < req {
				w.Flush()
			}
			if _, err := io.ReadFull(r, in); err != nil {
				return
			}
			w.Write(out)
			if !batch {
				w.Flush()
			}
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close(); <-done })
	return c
}

// runEcho keeps depth requests in flight, and reports how long they took.
func runEcho(b *testing.B, req, resp, depth int, batch bool) {
	c := echo(b, req, resp, batch)
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriterSize(c, 64<<10)
	out, in := make([]byte, req), make([]byte, resp)
	var h histogram
	sent := make([]time.Time, depth)
	b.SetBytes(int64(max(req, resp)) / 4096 * 4096)
	b.ResetTimer()
	for n := range b.N + depth {
		if n >= depth {
			if r.Buffered() < resp {
				w.Flush()
			}
			if _, err := io.ReadFull(r, in); err != nil {
				b.Fatal(err)
			}
			h.record(time.Since(sent[n%depth]))
		}
		if n < b.N {
			sent[n%depth] = time.Now()
			w.Write(out)
			if !batch {
				w.Flush()
			}
		}
	}
	report(b, &h)
}

func report(b *testing.B, h *histogram) {
	b.ReportMetric(float64(h.quantile(0.5))/1000, "p50-µs")
	b.ReportMetric(float64(h.quantile(0.99))/1000, "p99-µs")
}

// stamp makes every block of p another one, so that a store cannot find it to be
// there already.
func stamp(p []byte, n int) {
	for off := 0; off < len(p); off += 4096 {
		binary.LittleEndian.PutUint64(p[off:], uint64(n)<<32|uint64(off))
	}
}

// volume is the size of the volume that benchmarks read and write.
const volume = 16 << 20

// runHost does the same with commands.
func runHost(b *testing.B, o Options, op uint8, size, depth int, random bool) {
	runHostOn(b, &disk{b: make([]byte, volume), block: 4096}, o, op, size, depth, random)
}

func runHostOn(b *testing.B, d nvme.Device, o Options, op uint8, size, depth int, random bool) {
	_, address := serve(b, d, nvme.Subsystem{AllowAnyHost: true})
	qs, n, _ := openReal(b, address, o, 1, depth)
	q := qs[0]
	cmds := make([]Command, depth)
	data := slices.Clone(noise[:depth*size])
	var h histogram
	sent := make([]time.Time, depth)
	rng := rand.New(rand.NewPCG(1, 1))
	places := int(d.Size()) / size
	next := 0
	submit := func(i int) {
		at := next % places
		if next++; random {
			at = rng.IntN(places)
		}
		cmds[i].Tag = i
		n.Set(&cmds[i], op, uint64(at*size/n.BlockSize), data[i*size:][:size], 0)
		if op == wire.OpWrite {
			stamp(cmds[i].Data, next)
		}
		sent[i] = time.Now()
		if err := q.Submit(&cmds[i]); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for i := range min(depth, b.N) {
		submit(i)
	}
	for range b.N {
		c, err := q.Wait()
		if err != nil || c.Err != nil {
			b.Fatal(err, c)
		}
		h.record(time.Since(sent[c.Tag]))
		if next < b.N {
			submit(c.Tag)
		}
	}
	report(b, &h)
}

// BenchmarkRead4K and its echo: random reads of a hot volume.
func BenchmarkRead4K(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d/nvme", depth), func(b *testing.B) { runHost(b, Options{}, wire.OpRead, 4096, depth, true) })
		b.Run(fmt.Sprintf("depth=%d/echo", depth), func(b *testing.B) {
			runEcho(b, wire.CapsuleCmdLen, wire.DataLen+4096+wire.CapsuleRespLen, depth, true)
		})
		b.Run(fmt.Sprintf("depth=%d/echo-unbatched", depth), func(b *testing.B) {
			runEcho(b, wire.CapsuleCmdLen, wire.DataLen+4096+wire.CapsuleRespLen, depth, false)
		})
	}
	b.Run("depth=32/nvme-digests", func(b *testing.B) {
		runHost(b, Options{HeaderDigest: true, DataDigest: true}, wire.OpRead, 4096, 32, true)
	})
}

func BenchmarkWrite4K(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d/nvme", depth), func(b *testing.B) { runHost(b, Options{}, wire.OpWrite, 4096, depth, true) })
		b.Run(fmt.Sprintf("depth=%d/echo", depth), func(b *testing.B) {
			runEcho(b, wire.CapsuleCmdLen+4096, wire.CapsuleRespLen, depth, true)
		})
	}
}

// BenchmarkSequential128K has a plain copy of as many bytes beside it.
func BenchmarkSequential128K(b *testing.B) {
	const size = 128 << 10
	b.Run("read/nvme", func(b *testing.B) { runHost(b, Options{ReadBuffer: 8 << 10}, wire.OpRead, size, 16, false) })
	b.Run("write/nvme", func(b *testing.B) { runHost(b, Options{}, wire.OpWrite, size, 16, false) })
	b.Run("copy", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		var wg sync.WaitGroup
		defer wg.Wait()
		stop := make(chan struct{})
		defer close(stop)
		wg.Go(func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			src := make([]byte, volume)
			for at := 0; ; at += size {
				if _, err := c.Write(src[at%len(src):][:size]); err != nil {
					return
				}
			}
		})
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		dst := make([]byte, 16*size)
		b.SetBytes(size)
		b.ResetTimer()
		for i := range b.N {
			if _, err := io.ReadFull(c, dst[i%16*size:][:size]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// newVolume makes a volume in a store of its own, full and in memory.
func newVolume(b *testing.B) *store.Volume {
	s, err := store.Open(b.Context(), store.Options{Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler),
		Keys: keyring.Source{MasterKey: strings.Repeat("5a", 32)}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	info, err := s.Create(b.Context(), store.CreateRequest{Kind: capsule.Volume, Size: volume, BlockSize: 4096}, nil)
	if err != nil {
		b.Fatal(err)
	}
	v, err := s.OpenVolume(b.Context(), info.ID, "", store.WriteVolume)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { v.Close() })
	for off := int64(0); off < volume; off += 1 << 20 {
		if _, err := v.WriteAt(noise[off%(4<<20):][:1<<20], off); err != nil {
			b.Fatal(err)
		}
	}
	if err := v.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	for off := int64(0); off < volume; off += 1 << 20 { // into the cache
		if _, err := v.ReadAt(make([]byte, 1<<20), off); err != nil {
			b.Fatal(err)
		}
	}
	return v
}

// BenchmarkVolume is the whole way, down to a store's volume. The echo and the
// copy of the other benchmarks are its measure, and for writes the store without a
// network.
func BenchmarkVolume(b *testing.B) {
	const large = 128 << 10
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("read4K/depth=%d", depth), func(b *testing.B) {
			runHostOn(b, newVolume(b), Options{}, wire.OpRead, 4096, depth, true)
		})
	}
	b.Run("read128K", func(b *testing.B) {
		runHostOn(b, newVolume(b), Options{ReadBuffer: 8 << 10}, wire.OpRead, large, 16, false)
	})
	b.Run("write128K", func(b *testing.B) { runHostOn(b, newVolume(b), Options{}, wire.OpWrite, large, 16, false) })
	b.Run("write128K/store-alone", func(b *testing.B) {
		v := newVolume(b)
		data := slices.Clone(noise[:large])
		b.SetBytes(large)
		b.ResetTimer()
		for i := range b.N {
			stamp(data, i)
			if _, err := v.WriteAt(data, int64(i)*large%volume); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkIdleHosts connects a hundred hosts with one I/O queue each, and shows
// what they cost while they do nothing: memory, and processor time for both
// ends and their keep-alives.
func BenchmarkIdleHosts(b *testing.B) {
	const hosts = 100
	d := &disk{b: make([]byte, 1<<20), block: 4096}
	_, address := serve(b, d, nvme.Subsystem{AllowAnyHost: true})
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := memory()
	var all []*Controller
	for range hosts {
		_, _, c := openReal(b, address, Options{KeepAlive: 5 * time.Second, ReadBuffer: 4096}, 1, 128)
		all = append(all, c)
	}
	b.ReportMetric(float64(memory()-before)/hosts/2/1024, "KiB/connection")
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	const span = 5 * time.Second
	start := cpu()
	<-time.After(span)
	b.ReportMetric(100*float64(cpu()-start)/float64(span), "%-of-a-core")
	slices.Reverse(all)
}
