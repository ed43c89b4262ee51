package bench

import (
	"runtime"
	"strings"
)

// limit is the best a machine can do at an operation, and why no better.
type limit struct {
	name  string
	value float64
}

// none is the limit of what has none that is known.
var none = limit{}

// stage is a part of an operation: its name in a table, its rate, and how many
// bytes of its own it has for each byte of the operation.
type stage struct {
	name  string
	rate  float64
	share float64
}

// processor is the limit of stages that share the same cores.
func processor(stages ...stage) limit {
	var time float64 // of one byte
	var names []string
	for _, s := range stages {
		if s.rate > 0 && s.share > 0 {
			time += s.share / s.rate
			names = append(names, s.name)
		}
	}
	if time == 0 {
		return none
	}
	return limit{"CPU: " + strings.Join(names, " + "), 1 / time}
}

// disk is the limit of an operation that moves share bytes to or from the disk
// for each of its own.
func disk(name string, rate, share float64) limit {
	if share <= 0 {
		return none
	}
	return limit{name, rate / share}
}

// lowest is the limit that binds.
func lowest(limits ...limit) limit {
	low := none
	for _, l := range limits {
		if l.value > 0 && (low.value == 0 || l.value < low.value) {
			low = l
		}
	}
	return low
}

// report makes the tables from the medians.
func (r *run) report() *Report {
	out := &Report{
		Encryption: "aes-256-gcm",
		Durability: "sync",
		Cores:      runtime.GOMAXPROCS(0),
		Rounds:     r.Rounds,
		PeakRSS:    r.peak,
		Available:  r.median("", available),
		Missing:    []string{},
	}
	if !r.cold {
		out.Missing = append(out.Missing, "cold reads: this system has no way to empty the page cache for one file")
	}
	for _, m := range machineRates {
		if v := r.median("", m.name); v > 0 {
			out.Machine = append(out.Machine, Rate{m.name, Value{v, m.unit}})
		}
	}
	for _, c := range r.corpora {
		for _, z := range compressions {
			out.Codecs = append(out.Codecs, Codec{z.name, c.name, r.median(c.name, encoding(z.name)),
				r.median(c.name, decoding(z.name)), r.median(c.name, compressed(z.name))})
		}
		out.Corpora = append(out.Corpora, Corpus{c.name, c.size, r.median(c.name, storedSize)})
		r.reportContent(out, c)
	}
	op := func(name string, u Unit, l limit) { r.operation(out, "", name, u, l) }
	sync, sync32 := r.median("", diskSync), r.median("", diskSync32)
	op(smallPut, PerSecond, limit{diskSync, sync})
	op(smallPut32, PerSecond, limit{diskSync32, sync32})
	op(openStore, Seconds, none)
	if one := r.median("", smallPut); one > 0 {
		out.GroupCommit = r.median("", smallPut32) / one
	}
	return out
}

// reportContent adds the operations on one corpus.
func (r *run) reportContent(out *Report, c corpus) {
	m := func(name string) float64 { return r.median("", name) }
	codec := compressions[0].name
	unique := r.median(c.name, uniqueSize) / float64(c.size)
	stored := r.median(c.name, storedSize) / float64(c.size)
	packed := 1.0 // bytes in a log for one of what is read
	if unique > 0 {
		packed = stored / unique
	}
	var (
		chunk  = stage{"chunk", m(chunking), 1}
		hash   = stage{"hash", m(hashing), 1}
		encode = stage{"compress", r.median(c.name, encoding(codec)), unique}
		seal   = stage{"encrypt", m(sealing), stored}
		open   = stage{"decrypt", m(opening), packed}
		decode = stage{"decompress", r.median(c.name, decoding(codec)), 1}
	)
	op := func(name string, u Unit, l limit) { r.operation(out, c.name, name, u, l) }
	op(putNew, BytesPerSecond, lowest(processor(chunk, hash, encode, seal), disk(diskWrite, m(diskWrite), stored)))
	op(putAgain, BytesPerSecond, processor(chunk, hash))
	op(getWarm, BytesPerSecond, processor(open, decode))
	op(getCold, BytesPerSecond, lowest(processor(open, decode), disk(diskRead, m(diskRead), packed)))
	op(verifying, BytesPerSecond, processor(open, decode, hash))
	op(read1M, BytesPerSecond, limit{diskRead1M, m(diskRead1M)})
	op(read4K, PerSecond, limit{diskRead4K, m(diskRead4K)})
	op(read4KHot, PerSecond, limit{cacheRead4K, m(cacheRead4K)})
}

// operation adds what was measured of an operation, if anything was.
func (r *run) operation(out *Report, corpus, name string, u Unit, l limit) {
	v := r.median(corpus, name)
	if v == 0 {
		return
	}
	o := Operation{Corpus: corpus, Name: name, Value: Value{v, u}, Limit: l.name, LimitValue: l.value}
	if l.value > 0 {
		o.Reached = 100 * v / l.value
	}
	out.Operations = append(out.Operations, o)
}
