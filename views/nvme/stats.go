package nvme

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/views/nvme/wire"
)

// histogram counts durations in buckets a quarter of a power of two wide.
type histogram [40 * 4]atomic.Uint64

func bucketOf(d time.Duration) int {
	n := uint64(max(d, 4))
	log := bits.Len64(n) - 1
	return min((log-2)*4+int(n>>(log-2)&3), len(histogram{})-1)
}

// upper returns the upper bound of a bucket.
func upper(bucket int) time.Duration {
	return time.Duration(uint64(4+bucket%4+1) << (bucket / 4))
}

func (h *histogram) add(d time.Duration) { h[bucketOf(d)].Add(1) }

// quantiles returns the durations that the given parts do not exceed, within
// the width of a bucket.
func (h *histogram) quantiles(q ...float64) []time.Duration {
	var counts [len(histogram{})]uint64
	total := uint64(0)
	for i := range h {
		counts[i] = h[i].Load()
		total += counts[i]
	}
	out := make([]time.Duration, len(q))
	for k, part := range q {
		want, sum := uint64(part*float64(total)), uint64(0)
		for i, n := range counts {
			if sum += n; n > 0 && sum > want {
				out[k] = upper(i)
				break
			}
		}
	}
	return out
}

// ioStats count I/O commands.
type ioStats struct {
	reads, writes, flushes, others atomic.Uint64
	readBytes, writeBytes, failed  atomic.Uint64
	busy                           atomic.Uint64 // nanoseconds of commands, in sum
	readTime, writeTime            histogram
}

func (s *ioStats) add(op uint8, n int, d time.Duration, status wire.Status) {
	s.busy.Add(uint64(d))
	if status.Code() != wire.Success {
		s.failed.Add(1)
	}
	switch op {
	case wire.OpRead:
		s.reads.Add(1)
		s.readBytes.Add(uint64(n))
		s.readTime.add(d)
	case wire.OpWrite:
		s.writes.Add(1)
		s.writeBytes.Add(uint64(n))
		s.writeTime.add(d)
	case wire.OpFlush:
		s.flushes.Add(1)
	default:
		s.others.Add(1)
	}
}

func (s *ioStats) snapshot() Stats {
	r, w := s.readTime.quantiles(0.5, 0.99), s.writeTime.quantiles(0.5, 0.99)
	return Stats{Reads: s.reads.Load(), Writes: s.writes.Load(), Flushes: s.flushes.Load(), Others: s.others.Load(),
		ReadBytes: s.readBytes.Load(), WriteBytes: s.writeBytes.Load(), Errors: s.failed.Load(),
		ReadP50: r[0], ReadP99: r[1], WriteP50: w[0], WriteP99: w[1]}
}

// account counts a completed command, and logs one that failed for hosts to read.
func (c *controller) account(cmd *command, status wire.Status) {
	io := cmd.c.qid != 0 && cmd.sqe.Opcode() != wire.OpFabrics
	if io {
		now := time.Now()
		d := now.Sub(cmd.began)
		n := len(cmd.buf)
		if cmd.op != nil && cmd.op.quick && n > 0 && n <= inlineMax && cmd.fuse == wire.FuseNone && cmd.sqe.CDW(12)&wire.FUA == 0 {
			cmd.ns.took(now.Sub(cmd.at))
		}
		if status.Code() != wire.Success {
			n = 0
		}
		c.stats.add(cmd.sqe.Opcode(), n, d, status)
		c.s.t.stats.io.add(cmd.sqe.Opcode(), n, d, status)
	}
	if status.Code() == wire.Success || status.Code() == wire.AbortRequested {
		return
	}
	e := wire.ErrorEntry{SQID: cmd.c.qid, CID: cmd.sqe.CID(), Status: status, NSID: cmd.sqe.NSID(), TrType: wire.TrTypeTCP, Location: 0xffff}
	if io {
		e.LBA = cmd.sqe.SLBA()
	}
	c.mu.Lock()
	c.errors.add(e)
	c.mu.Unlock()
}

// Totals returns the target's counters.
func (t *Target) Totals() Totals {
	all := Totals{Stats: t.stats.io.snapshot(), Accepted: t.stats.accepted.Load(), Refused: t.stats.refused.Load(),
		ProtocolErrors: t.stats.protocolErrors.Load(), DigestErrors: t.stats.digestErrors.Load(),
		KeepAliveExpired: t.stats.keepAliveExpired.Load(), AuthFailures: t.stats.authFailures.Load(),
		MediaErrors: t.stats.mediaErrors.Load(), MemoryUsed: t.mem.inUse(), MemoryLimit: t.mem.limit}
	t.mu.Lock()
	all.Subsystems, all.Connections, all.HalfOpen = len(t.subsystems), len(t.conns), len(t.halfOpen)
	t.mu.Unlock()
	for _, s := range t.all() {
		all.Namespaces += len(*s.namespaces.Load())
		for _, c := range s.list() {
			all.Controllers++
			c.mu.Lock()
			all.Queues += len(c.queues)
			c.mu.Unlock()
		}
	}
	return all
}
