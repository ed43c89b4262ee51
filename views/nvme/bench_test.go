package nvme

import (
	"bufio"
	"fmt"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/spacestore/space/views/nvme/wire"
)

// zeroes is a device that costs nothing, so that benchmarks show the target.
type zeroes struct{ sparse }

func (d *zeroes) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// exchange keeps depth requests outstanding until n have been answered. Each
// answer has the same length. With depth 1 it returns the median latency.
func exchange(b *testing.B, nc net.Conn, depth, n, answer int, request func(i int, w *bufio.Writer)) (p50 time.Duration) {
	r, w := bufio.NewReaderSize(nc, 256<<10), bufio.NewWriterSize(nc, 64<<10)
	sent := 0
	for ; sent < min(depth, n); sent++ {
		request(sent, w)
	}
	var times []time.Duration
	begin := time.Now()
	for done := range n {
		if r.Buffered() < answer {
			if err := w.Flush(); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := r.Discard(answer); err != nil {
			b.Fatal(err)
		}
		if depth == 1 && done < 1<<20 {
			now := time.Now()
			times = append(times, now.Sub(begin))
			begin = now
		}
		if sent < n {
			request(sent, w)
			sent++
		}
	}
	slices.Sort(times)
	if len(times) == 0 {
		return 0
	}
	return times[len(times)/2]
}

// echo serves answers of a length to requests of a length.
func echo(b *testing.B, request, answer int) net.Conn {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		r, w := bufio.NewReaderSize(nc, 256<<10), bufio.NewWriterSize(nc, 64<<10)
		p := make([]byte, answer)
		for {
			if r.Buffered() < request {
				if w.Flush() != nil {
					return
				}
			}
			if _, err := r.Discard(request); err != nil {
				return
			}
			if _, err := w.Write(p); err != nil {
				return
			}
		}
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { nc.Close(); l.Close() })
	return nc
}

func benchQueue(b *testing.B, size int) *queue {
	r := newRig(b, Options{})
	r.add(Namespace{NSID: 1, Device: &zeroes{}})
	admin := r.admin(settings{cattr: wire.ConnectDisableSQFlow, sqSize: 63})
	q := r.io(admin, 1)
	b.SetBytes(int64(size))
	return q
}

// BenchmarkMemory shows what a connection costs: one that has said nothing, and
// a queue that has been used.
func BenchmarkMemory(b *testing.B) {
	const n = 500
	inUse := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	for _, used := range []bool{false, true} {
		b.Run(fmt.Sprintf("used=%t", used), func(b *testing.B) {
			for range b.N {
				r := newRig(b, Options{MaxHalfOpen: n})
				r.add(Namespace{NSID: 1, Device: &zeroes{}})
				before := inUse()
				var conns []net.Conn
				for i := range n / 2 {
					if !used {
						conns = append(conns, r.dial(settings{}).nc, r.dial(settings{}).nc)
						continue
					}
					admin, q := r.host(settings{id: byte(i)})
					for range 16 {
						q.send(room(ioCommand(wire.OpRead, 0, 16), 65536), nil)
					}
					for range 16 {
						q.receive(nil)
					}
					conns = append(conns, admin.nc, q.nc)
				}
				r.until("all are there", func() bool { return r.Totals().Connections == n })
				after := inUse()
				b.ReportMetric(float64(after-before)/n, "bytes/conn")
				for _, nc := range conns {
					nc.Close()
				}
			}
		})
	}
}

// BenchmarkIdle is what the target does once in a second while 100 hosts with 4
// I/O queues each do nothing.
func BenchmarkIdle(b *testing.B) {
	r := newRig(b, Options{})
	r.add(Namespace{NSID: 1, Device: &zeroes{}})
	for i := range 100 {
		admin := r.admin(settings{id: byte(i)})
		for qid := range uint16(4) {
			r.io(admin, qid+1)
		}
	}
	for b.Loop() {
		r.tick(0)
	}
}

// BenchmarkRead and BenchmarkEcho are the same exchange of bytes, with a
// target and with a server that does nothing.
func BenchmarkRead(b *testing.B) {
	for _, c := range []struct{ size, depth int }{{4096, 1}, {4096, 32}, {128 << 10, 8}} {
		b.Run(fmt.Sprintf("%dKiB/depth=%d", c.size>>10, c.depth), func(b *testing.B) {
			q := benchQueue(b, c.size)
			sqe := room(ioCommand(wire.OpRead, 0, uint32(c.size/4096)), c.size)
			pdu := q.tx.AppendCommand(nil, sqe, 0)
			b.ResetTimer()
			p50 := exchange(b, q.nc, c.depth, b.N, wire.DataLen+c.size, func(i int, w *bufio.Writer) {
				pdu[wire.CommonLen+2], pdu[wire.CommonLen+3] = byte(i), byte(i>>8)
				_, _ = w.Write(pdu)
			})
			if c.depth == 1 {
				b.ReportMetric(float64(p50), "p50-ns")
			}
		})
	}
}

func BenchmarkEcho(b *testing.B) {
	for _, c := range []struct{ size, depth int }{{4096, 1}, {4096, 32}, {128 << 10, 8}} {
		b.Run(fmt.Sprintf("%dKiB/depth=%d", c.size>>10, c.depth), func(b *testing.B) {
			nc := echo(b, wire.CapsuleCmdLen, wire.DataLen+c.size)
			p := make([]byte, wire.CapsuleCmdLen)
			b.SetBytes(int64(c.size))
			b.ResetTimer()
			p50 := exchange(b, nc, c.depth, b.N, wire.DataLen+c.size, func(_ int, w *bufio.Writer) { _, _ = w.Write(p) })
			if c.depth == 1 {
				b.ReportMetric(float64(p50), "p50-ns")
			}
		})
	}
}

// BenchmarkWrite writes: 4 KiB in capsules, 128 KiB as asked for by R2T;
// BenchmarkSink sends the same bytes to who throws them away.
func BenchmarkWrite(b *testing.B) {
	b.Run("4KiB/depth=32", func(b *testing.B) {
		q := benchQueue(b, 4096)
		sqe := ioCommand(wire.OpWrite, 0, 1)
		sqe.SetSGL(wire.SGL{Length: 4096, Type: wire.SGLInCapsule})
		pdu := append(q.tx.AppendCommand(nil, sqe, 4096), make([]byte, 4096)...)
		b.ResetTimer()
		exchange(b, q.nc, 32, b.N, wire.CapsuleRespLen, func(i int, w *bufio.Writer) {
			pdu[wire.CommonLen+2], pdu[wire.CommonLen+3] = byte(i), byte(i>>8)
			_, _ = w.Write(pdu)
		})
	})
	b.Run("128KiB/depth=8", func(b *testing.B) {
		const size, depth = 128 << 10, 8
		q := benchQueue(b, size)
		data := make([]byte, size)
		pdu := q.tx.AppendCommand(nil, room(ioCommand(wire.OpWrite, 0, size/4096), size), 0)
		cid := 0
		begin := func() {
			cid++
			pdu[wire.CommonLen+2], pdu[wire.CommonLen+3] = byte(cid), byte(cid>>8)
			q.write(pdu)
		}
		b.ResetTimer()
		for range min(depth, b.N) {
			begin()
		}
		for done := 0; done < b.N; {
			typ, h, err := q.r.Next()
			if err != nil {
				b.Fatal(err)
			}
			switch typ {
			case wire.TypeR2T:
				r := wire.ParseR2T(h)
				v := net.Buffers{q.tx.AppendH2CData(nil, wire.Data{CID: r.CID, TTag: r.TTag, Length: size, Last: true}), data}
				if _, err := v.WriteTo(q.nc); err != nil {
					b.Fatal(err)
				}
			case wire.TypeCapsuleResp:
				if s := wire.ParseCQE(h).Status; s != 0 {
					b.Fatal(s)
				}
				if done++; cid < b.N {
					begin()
				}
			}
		}
	})
}

func BenchmarkSink(b *testing.B) {
	for _, c := range []struct{ size, depth int }{{4096, 32}, {128 << 10, 8}} {
		b.Run(fmt.Sprintf("%dKiB/depth=%d", c.size>>10, c.depth), func(b *testing.B) {
			nc := echo(b, wire.CapsuleCmdLen+c.size, wire.CapsuleRespLen)
			p := make([]byte, wire.CapsuleCmdLen+c.size)
			b.SetBytes(int64(c.size))
			b.ResetTimer()
			exchange(b, nc, c.depth, b.N, wire.CapsuleRespLen, func(_ int, w *bufio.Writer) { _, _ = w.Write(p) })
		})
	}
}
