package host

import (
	"context"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

// BenchOptions say how [Bench] puts a namespace under load.
type BenchOptions struct {
	Pattern  string // read, write, randread, randwrite, or randrw
	Size     int    // bytes of one command
	Depth    int    // commands in flight, per queue
	Queues   int
	Duration time.Duration
	Commands int64 // end after so many, if that is sooner; 0: no such end
	// ReadPercent is how many of randrw's commands are reads (default 70).
	ReadPercent int
	// Offset and Length are the part of the namespace to use; Length 0: up to the end.
	Offset, Length int64
	// Done counts commands while the benchmark runs, for who shows progress.
	Done *atomic.Int64
}

// BenchResult is what [Bench] measured.
type BenchResult struct {
	Pattern  string       `json:"pattern"`
	Size     int          `json:"size"`
	Depth    int          `json:"depth"`
	Queues   int          `json:"queues"`
	Seconds  float64      `json:"seconds"`
	Commands int64        `json:"commands"`
	Bytes    int64        `json:"bytes"`
	IOPS     float64      `json:"iops"`
	Rate     float64      `json:"bytes_per_second"`
	Reads    BenchLatency `json:"reads"`
	Writes   BenchLatency `json:"writes"`
}

// BenchLatency is how long commands took.
type BenchLatency struct {
	Count int64         `json:"count"`
	Mean  time.Duration `json:"mean_ns"`
	Min   time.Duration `json:"min_ns"`
	P50   time.Duration `json:"p50_ns"`
	P90   time.Duration `json:"p90_ns"`
	P99   time.Duration `json:"p99_ns"`
	P999  time.Duration `json:"p999_ns"`
	Max   time.Duration `json:"max_ns"`
}

// pattern is what a benchmark does, by its name.
var patterns = map[string]struct{ random, reads, writes bool }{
	"read": {false, true, false}, "write": {false, false, true},
	"randread": {true, true, false}, "randwrite": {true, false, true}, "randrw": {true, true, true},
}

// BenchWrites reports whether a pattern writes, and whether there is such a one.
func BenchWrites(pattern string) (writes, ok bool) {
	p, ok := patterns[pattern]
	return p.writes, ok
}

func (o *BenchOptions) check(n *Namespace) error {
	p, ok := patterns[o.Pattern]
	block := int64(n.BlockSize)
	if o.Length == 0 {
		o.Length = n.Size() - o.Offset
	}
	if o.ReadPercent == 0 {
		o.ReadPercent = 70
	}
	switch {
	case !ok:
		return capsule.Errorf(capsule.Invalid, "%.20q is no pattern; there are read, write, randread, randwrite and randrw", o.Pattern)
	case p.writes && n.ReadOnly:
		return capsule.Errorf(capsule.ReadOnly, "namespace %d is write protected", n.ID)
	case o.Size < 1 || o.Size%n.BlockSize != 0 || o.Size > n.maxTransfer:
		return capsule.Errorf(capsule.Invalid, "commands of %d bytes: namespace %d takes multiples of %d up to %d", o.Size, n.ID, block, n.maxTransfer)
	case o.Offset < 0 || o.Offset%block != 0 || o.Length < int64(o.Size)*int64(max(o.Queues, 1)) || o.Length > n.Size()-o.Offset:
		return capsule.Errorf(capsule.OutOfRange, "bytes %d to %d of namespace %d, which has %d, are no room for commands of %d bytes",
			o.Offset, o.Offset+o.Length, n.ID, n.Size(), o.Size)
	case o.Duration <= 0 && o.Commands <= 0:
		return capsule.Errorf(capsule.Invalid, "a benchmark needs an end: a duration or a number of commands")
	case o.ReadPercent < 0 || o.ReadPercent > 100:
		return capsule.Errorf(capsule.Invalid, "%d %% reads", o.ReadPercent)
	}
	return nil
}

// Bench puts a namespace under load and measures it. A pattern that writes
// destroys what the namespace holds.
func Bench(ctx context.Context, c *Controller, n *Namespace, o BenchOptions) (*BenchResult, error) {
	if err := o.check(n); err != nil {
		return nil, err
	}
	queues, err := c.OpenQueues(ctx, o.Queues, o.Depth)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, q := range queues {
			q.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() {
		for _, q := range queues {
			q.fail(context.Cause(ctx))
		}
	})
	defer stop()

	workers := make([]benchWorker, len(queues))
	share := o.Length / int64(len(queues)) / int64(n.BlockSize) * int64(n.BlockSize)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range workers {
		w := &workers[i]
		w.o, w.n, w.q, w.start = &o, n, queues[i], start
		w.first, w.length = o.Offset, o.Length
		if !patterns[o.Pattern].random { // each its own part
			w.first, w.length = o.Offset+int64(i)*share, share
		}
		if o.Commands > 0 {
			w.most = max(o.Commands/int64(len(queues)), 1)
		}
		w.rng = rand.New(rand.NewPCG(uint64(i), 1))
		wg.Go(w.run)
	}
	wg.Wait()
	took := time.Since(start)

	r := &BenchResult{Pattern: o.Pattern, Size: o.Size, Depth: queues[0].depth, Queues: len(queues), Seconds: took.Seconds()}
	var reads, writes histogram
	for i := range workers {
		if err := workers[i].err; err != nil {
			return nil, err
		}
		reads.add(&workers[i].reads)
		writes.add(&workers[i].writes)
	}
	r.Reads, r.Writes = reads.latency(), writes.latency()
	r.Commands = r.Reads.Count + r.Writes.Count
	r.Bytes = r.Commands * int64(o.Size)
	r.IOPS, r.Rate = float64(r.Commands)/took.Seconds(), float64(r.Bytes)/took.Seconds()
	return r, nil
}

// benchWorker keeps one queue busy.
type benchWorker struct {
	o             *BenchOptions
	n             *Namespace
	q             *Queue
	start         time.Time
	first, length int64
	most          int64
	rng           *rand.Rand
	next          int64
	sent          int64
	reads, writes histogram
	err           error
}

func (w *benchWorker) run() {
	cmds := make([]Command, w.q.depth)
	began := make([]time.Duration, len(cmds))
	data := make([]byte, len(cmds)*w.o.Size)
	for i := 0; i < len(data); i += 8 { // what can't be compressed, so that writes are writes
		v := w.rng.Uint64()
		for j := range min(8, len(data)-i) {
			data[i+j] = byte(v >> (8 * j))
		}
	}
	inFlight := 0
	submit := func(i int, now time.Duration) bool {
		if w.most > 0 && w.sent >= w.most || w.o.Duration > 0 && now >= w.o.Duration {
			return false
		}
		w.sent++
		cmds[i].Tag = i
		w.n.Set(&cmds[i], w.op(), uint64(w.offset()/int64(w.n.BlockSize)), data[i*w.o.Size:][:w.o.Size], 0)
		began[i] = now
		if w.err = w.q.Submit(&cmds[i]); w.err != nil {
			return false
		}
		inFlight++
		return true
	}
	for i := range cmds {
		submit(i, time.Since(w.start))
	}
	for inFlight > 0 {
		c, err := w.q.Wait()
		if err != nil {
			w.err = err
			return
		}
		inFlight--
		now := time.Since(w.start)
		if c.Err != nil {
			if w.err == nil {
				w.err = readError(w.n, c, c.Err)
			}
			continue
		}
		if h := &w.reads; c.SQE.Opcode() == wire.OpRead {
			h.record(now - began[c.Tag])
		} else {
			w.writes.record(now - began[c.Tag])
		}
		if w.o.Done != nil {
			w.o.Done.Add(1)
		}
		if w.err == nil {
			submit(c.Tag, now)
		}
	}
}

func (w *benchWorker) op() uint8 {
	p := patterns[w.o.Pattern]
	if p.reads && (!p.writes || w.rng.IntN(100) < w.o.ReadPercent) {
		return wire.OpRead
	}
	return wire.OpWrite
}

func (w *benchWorker) offset() int64 {
	places := w.length / int64(w.o.Size)
	if patterns[w.o.Pattern].random {
		return w.first + w.rng.Int64N(places)*int64(w.o.Size)
	}
	off := w.first + w.next%places*int64(w.o.Size)
	w.next++
	return off
}

// histogram counts durations in buckets that are 3 % wide.
type histogram struct {
	buckets  [64 * perOctave]int64
	count    int64
	sum      time.Duration
	min, max time.Duration
}

const (
	octaveBits = 5
	perOctave  = 1 << octaveBits
)

// bucket returns a duration's bucket: its power of two, and the five bits after that.
func bucket(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < perOctave {
		return int(v)
	}
	shift := bits.Len64(v) - octaveBits - 1
	return (shift+1)<<octaveBits | int(v>>shift&(perOctave-1))
}

// value is the smallest duration of a bucket.
func value(b int) time.Duration {
	if b < perOctave {
		return time.Duration(b)
	}
	shift := b>>octaveBits - 1
	return time.Duration(perOctave|b&(perOctave-1)) << shift
}

func (h *histogram) record(d time.Duration) {
	h.buckets[bucket(d)]++
	if h.count == 0 || d < h.min {
		h.min = d
	}
	h.max = max(h.max, d)
	h.count++
	h.sum += d
}

func (h *histogram) add(o *histogram) {
	if o.count == 0 {
		return
	}
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
	if h.count == 0 || o.min < h.min {
		h.min = o.min
	}
	h.max = max(h.max, o.max)
	h.count += o.count
	h.sum += o.sum
}

// quantile returns a duration that the given share of all are not above.
func (h *histogram) quantile(q float64) time.Duration {
	rank := int64(q * float64(h.count))
	for i, n := range h.buckets {
		if rank -= n; rank < 0 {
			return min(max(value(i), h.min), h.max)
		}
	}
	return h.max
}

func (h *histogram) latency() BenchLatency {
	if h.count == 0 {
		return BenchLatency{}
	}
	return BenchLatency{Count: h.count, Mean: h.sum / time.Duration(h.count), Min: h.min, P50: h.quantile(0.5), P90: h.quantile(0.9),
		P99: h.quantile(0.99), P999: h.quantile(0.999), Max: h.max}
}

func (l BenchLatency) String() string {
	return fmt.Sprintf("p50 %v, p90 %v, p99 %v, p99.9 %v, max %v", l.P50, l.P90, l.P99, l.P999, l.Max)
}
