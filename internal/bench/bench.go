package bench

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/internal/vfs"
)

// Options say what to measure, and where.
type Options struct {
	Dir    string   // on the disk to measure; a temporary directory is made there
	Files  []string // what to store; none: generated text and random bytes
	Size   int64    // of each generated corpus, and of the plain file that measures the disk
	Rounds int      // that count
	Logger *slog.Logger
	// Progress, when set, is told before each of total rounds how many are done.
	Progress func(done, total int)
}

// Unit is what a rate counts.
type Unit string

// The units of rates and times.
const (
	BytesPerSecond Unit = "B/s"
	PerSecond      Unit = "1/s"
	Seconds        Unit = "s"
)

// Value is a measured quantity.
type Value struct {
	Value float64 `json:"value"`
	Unit  Unit    `json:"unit"`
}

// Rate is one of the machine's limits.
type Rate struct {
	Name string `json:"name"`
	Value
}

// Codec is what one codec does to one corpus, on all cores.
type Codec struct {
	Name   string  `json:"name"`
	Corpus string  `json:"corpus"`
	Encode float64 `json:"encode"` // bytes of plaintext per second
	Decode float64 `json:"decode"`
	Ratio  float64 `json:"ratio"`
}

// Corpus is what was stored.
type Corpus struct {
	Name   string  `json:"name"`
	Size   int64   `json:"size"`
	Stored float64 `json:"stored_bytes"` // by the store under its default policy
}

// Operation is what the store reached, beside what the machine allows.
type Operation struct {
	Corpus string `json:"corpus"` // empty: of no corpus
	Name   string `json:"name"`
	Value
	Limit      string  `json:"limit"` // empty: none is known
	LimitValue float64 `json:"limit_value"`
	Reached    float64 `json:"reached_percent"`
}

// Report is the result of [Run].
type Report struct {
	Encryption string      `json:"encryption"`
	Durability string      `json:"durability"`
	Cores      int         `json:"cores"`
	Rounds     int         `json:"rounds"`
	Machine    []Rate      `json:"machine"`
	Codecs     []Codec     `json:"codecs"`
	Corpora    []Corpus    `json:"corpora"`
	Operations []Operation `json:"operations"`
	// GroupCommit is the rate of many writers of small capsules over that of one.
	GroupCommit float64 `json:"group_commit_ratio"`
	// PeakRSS is the most memory the process had resident while it stored and read.
	PeakRSS int64 `json:"peak_rss_bytes"`
	// Available is the share of the cores that other programs left to this one,
	// 0 if that is not known. Much below 1 the figures tell little.
	Available float64 `json:"available_cores_share"`
	// Missing says what could not be measured on this system, and why.
	Missing []string `json:"missing"`
}

// quantity names a measured quantity: of a corpus, or of none.
type quantity struct{ corpus, name string }

// run is a Run under way.
type run struct {
	Options
	effort
	dir     string
	corpora []corpus
	// samples are the values of each quantity, one of each round that counts.
	samples map[quantity][]float64
	discard bool
	peak    int64
	cold    bool // the page cache can be emptied
}

// Run measures. It ends early when ctx does.
func Run(ctx context.Context, o Options) (*Report, error) {
	return measure(ctx, o, effort{while: 500 * time.Millisecond, pieces: 256})
}

// effort is how thoroughly a run measures.
type effort struct {
	while time.Duration // for which the rate of single operations is measured
	// pieces of a usual segment's size are what the processor is measured
	// with. They should not all fit into its caches.
	pieces int
}

func measure(ctx context.Context, o Options, e effort) (_ *Report, err error) {
	r := &run{Options: o, effort: e, samples: map[quantity][]float64{}, cold: canDropCache}
	if err := r.check(); err != nil {
		return nil, err
	}
	if r.dir, err = os.MkdirTemp(o.Dir, "space-bench-"); err != nil {
		return nil, fileError(err)
	}
	defer func() {
		if rerr := os.RemoveAll(r.dir); err == nil && rerr != nil {
			err = fileError(rerr)
		}
	}()
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	for i := range 1 + r.Rounds {
		if r.Progress != nil {
			r.Progress(i, 1+r.Rounds)
		}
		r.discard = i == 0
		if err := r.round(ctx); err != nil {
			return nil, capsule.Wrap(capsule.Other, err, "round %d", i)
		}
	}
	return r.report(), nil
}

// check refuses what cannot be measured before anything is written.
func (r *run) check() error {
	if r.Rounds < 1 {
		return capsule.Errorf(capsule.Invalid, "%d rounds are too few to measure anything", r.Rounds)
	}
	if r.Size < 1<<20 {
		return capsule.Errorf(capsule.Invalid, "a corpus of %d bytes is too small to measure with; use at least 1 MiB", r.Size)
	}
	need := r.Size // the plain file
	biggest := r.Size
	for _, name := range r.Files {
		st, err := os.Stat(name)
		if err != nil {
			return fileError(err)
		}
		if !st.Mode().IsRegular() || st.Size() == 0 {
			return capsule.Errorf(capsule.Invalid, "%s is empty or no regular file", name)
		}
		biggest = max(biggest, st.Size())
	}
	if len(r.Files) == 0 {
		need += 2 * r.Size
	}
	need += biggest + 64<<20 // the store
	if u, err := vfs.OS().GetDiskUsage(r.Dir); err == nil && u.AvailBytes < uint64(need) {
		return capsule.Errorf(capsule.NoSpace, "the disk of %s has %d MiB left and this takes %d MiB; use a smaller size, or another directory",
			r.Dir, u.AvailBytes>>20, need>>20)
	}
	return nil
}

// round measures everything once.
func (r *run) round(ctx context.Context) error {
	s := newScratch(r.pieces)
	if err := r.machine(ctx, s); err != nil {
		return err
	}
	for i := range r.corpora {
		if err := r.codecs(ctx, &r.corpora[i], s); err != nil {
			return err
		}
	}
	s = nil
	forgetPeakRSS()
	for i := range r.corpora {
		if err := r.content(ctx, &r.corpora[i]); err != nil {
			return err
		}
	}
	if err := r.small(ctx); err != nil {
		return err
	}
	r.peak = max(r.peak, peakRSS())
	return nil
}

// add notes a measured value.
func (r *run) add(corpus, name string, v float64) {
	if !r.discard {
		q := quantity{corpus, name}
		r.samples[q] = append(r.samples[q], v)
	}
}

// median is the middle of a quantity's values, 0 if there are none.
func (r *run) median(corpus, name string) float64 {
	v := slices.Sorted(slices.Values(r.samples[quantity{corpus, name}]))
	switch n := len(v); {
	case n == 0:
		return 0
	case n%2 == 0:
		return (v[n/2-1] + v[n/2]) / 2
	default:
		return v[n/2]
	}
}

// open opens a store of the benchmark's own.
func (r *run) open(ctx context.Context, name string) (*store.Store, error) {
	return store.Open(ctx, store.Options{Dir: filepath.Join(r.dir, name), Logger: r.Logger})
}

// rate is n per second since start.
func rate(n int64, start time.Time) float64 {
	return float64(n) / max(time.Since(start), 1).Seconds()
}

// rateOf calls fn for a while and returns its calls per second.
func (r *run) rateOf(ctx context.Context, fn func() error) (float64, error) {
	start := time.Now()
	for n := int64(1); ; n++ {
		if err := fn(); err != nil {
			return 0, err
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if time.Since(start) >= r.while {
			return rate(n, start), nil
		}
	}
}

func fileError(err error) error { return transfer.FileError(err, "benchmark file") }
