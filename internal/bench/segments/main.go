//go:build linux

// Segments measures what the size of a segment costs and gains, and prints the
// tables of docs/segments.md:
//
//	go run ./internal/bench/segments [-limit 128] [-dir .] [FILE...]
//
// Without files it works on two corpora of at most -limit MiB each: a tar of
// the Go distribution's source tree, and one of the ELF files in /usr/bin and
// /usr/lib. Rates are per second of CPU time of one thread, and each piece of
// work counts with the fastest of several passes, so that what else runs on the
// machine disturbs little.
package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	_ "github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc"
	_ "github.com/PlakarKorp/go-cdc-chunkers/chunkers/jc"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/spacestore/space/pipeline"
)

func main() {
	limit := flag.Int64("limit", 128, "size of a generated corpus, MiB")
	dir := flag.String("dir", ".", "where a temporary file for cold reads goes; must be on a disk")
	chunkersOnly := flag.Bool("chunkers", false, "compare the chunkers, and leave the sizes out")
	flag.Parse()
	runtime.LockOSThread() // cpuTime is the thread's
	if err := run(*limit<<20, *dir, *chunkersOnly, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "segments:", err)
		os.Exit(1)
	}
}

func run(limit int64, dir string, chunkersOnly bool, files []string) error {
	sources := []source{
		{"source: tar of Go's source tree", func() ([]byte, error) {
			root, err := exec.Command("go", "env", "GOROOT").Output()
			if err != nil {
				return nil, fmt.Errorf("go env GOROOT: %w", err)
			}
			return tarOf(limit, isSource, filepath.Join(strings.TrimSpace(string(root)), "src"))
		}},
		{"binaries: tar of /usr/bin and /usr/lib", func() ([]byte, error) { return tarOf(limit, isELF, "/usr/bin", "/usr/lib") }},
	}
	if len(files) > 0 {
		sources = nil
		for _, name := range files {
			sources = append(sources, source{name, func() ([]byte, error) { return os.ReadFile(name) }})
		}
	}
	for _, src := range sources {
		data, err := src.load()
		if err != nil {
			return err
		}
		if len(data) == 0 {
			return fmt.Errorf("%s: empty", src.name)
		}
		fmt.Printf("## %s, %.1f MB\n\n", src.name, mb(len(data)))
		if !chunkersOnly {
			if err := sizes(data, dir); err != nil {
				return err
			}
		}
		if err := algorithms(data); err != nil {
			return err
		}
	}
	return nil
}

type source struct {
	name string
	load func() ([]byte, error)
}

// algorithm cuts for the tables of sizes: pipeline's own chunker has but one size.
const algorithm = "jc-v1.0.0"

// own stands for pipeline's chunker, which knows nothing of avg.
const own = "space"

// cut returns the chunks of data for an average size; the bounds are as far
// from it as pipeline's. They alias data.
func cut(algo string, avg int, data []byte) ([][]byte, error) {
	var list [][]byte
	if algo == own {
		for c := pipeline.NewChunker([32]byte{}); len(data) > 0; {
			n := c.Next(data)
			list = append(list, data[:n:n])
			data = data[n:]
		}
		return list, nil
	}
	c, err := chunkers.NewChunker(algo, bytes.NewReader(data),
		&chunkers.ChunkerOpts{MinSize: avg / 4, NormalSize: avg, MaxSize: avg * 4, Key: make([]byte, 32)})
	if err != nil {
		return nil, err
	}
	for len(data) > 0 {
		p, err := c.Next()
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		list = append(list, data[:len(p):len(p)])
		data = data[len(p):]
	}
	return list, nil
}

type ids map[[32]byte]bool

// unique returns the chunks that are not in seen, each once, and notes them there.
func unique(list [][]byte, seen ids) [][]byte {
	var out [][]byte
	for _, p := range list {
		if id := blake3.Sum256(p); !seen[id] {
			seen[id] = true
			out = append(out, p)
		}
	}
	return out
}

func total(list [][]byte) (n int) {
	for _, p := range list {
		n += len(p)
	}
	return n
}

// around is the mean length of the chunk that a random byte lies in, which is
// what a random read pays for. It exceeds the mean length of the chunks the
// more, the more these differ.
func around(list [][]byte) (n float64) {
	for _, p := range list {
		n += float64(len(p)) * float64(len(p))
	}
	return n / float64(total(list))
}

// overhead is what a record holds beside its compressed bytes.
const overhead = pipeline.HeaderSize + 16

// codec is a compressor at one strength.
type codec struct {
	name   string
	encode func(dst, src []byte) []byte
	decode func(dst, src []byte) ([]byte, error)
}

// codecs are those of package pipeline, with windows as large as the chunks.
func codecs(maxChunk int) ([]codec, error) {
	list := []codec{{"s2",
		func(dst, src []byte) []byte { return s2.Encode(dst[:cap(dst)], src) },
		func(dst, src []byte) ([]byte, error) { return s2.Decode(dst[:cap(dst)], src) }}}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	for _, level := range []int{1, 3, 7} {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(maxChunk), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, err
		}
		list = append(list, codec{fmt.Sprintf("zstd:%d", level),
			func(dst, src []byte) []byte { return e.EncodeAll(src, dst[:0]) },
			func(dst, src []byte) ([]byte, error) { return d.DecodeAll(src, dst[:0]) }})
	}
	return list, nil
}

// storedBytes is what encoded chunks take in a log, where each is stored plain
// if encoding has not made it smaller.
func storedBytes(records, plain [][]byte) (n int) {
	for i, r := range records {
		n += overhead + min(len(r), len(plain[i]))
	}
	return n
}

// sizes prints the table of segment sizes for one corpus.
func sizes(data []byte, dir string) error {
	space := newTable("average, KiB", "segments", "mean, KiB", "unique, MB", "s2, MB", "zstd:1, MB", "zstd:3, MB", "zstd:7, MB", "DUP adds", "DUP adds, s2, MB")
	speed := newTable("average, KiB", "s2", "zstd:1", "zstd:3", "zstd:7", "s2", "zstd:1", "zstd:3", "zstd:7", "s2, µs", "s2 cold", "zstd:3, µs", "zstd:3 cold")
	dup := duplicate(data)
	for _, kib := range []int{16, 32, 64, 128, 256, 512, 1024} {
		avg := kib << 10
		list, err := cut(algorithm, avg, data)
		if err != nil {
			return err
		}
		seen := ids{}
		uniq := unique(list, seen)
		dupList, err := cut(algorithm, avg, dup)
		if err != nil {
			return err
		}
		fresh := unique(dupList, seen)
		all, err := codecs(4 * avg)
		if err != nil {
			return err
		}
		var stored, enc, dec, reads []string
		added := 0
		for _, c := range all {
			records, rate, err := encodeAll(c, uniq)
			if err != nil {
				return err
			}
			stored = append(stored, fmt.Sprintf("%.1f", mb(storedBytes(records, uniq))))
			enc = append(enc, fmt.Sprintf("%.0f", rate))
			if rate, err = decodeAll(c, records, uniq); err != nil {
				return err
			}
			dec = append(dec, fmt.Sprintf("%.0f", rate))
			if c.name != "s2" && c.name != "zstd:3" {
				continue
			}
			hot, cold, err := randomReads(dir, c, sealAll(records), uniq)
			if err != nil {
				return err
			}
			reads = append(reads, micros(hot), micros(cold))
			if c.name == "s2" {
				records, _, err := encodeAll(c, fresh)
				if err != nil {
					return err
				}
				added = storedBytes(records, fresh)
			}
		}
		mean := float64(total(uniq)) / float64(len(uniq)) / 1024
		space.row(slices.Concat([]string{fmt.Sprint(kib), fmt.Sprint(len(list)), fmt.Sprintf("%.1f", mean), fmt.Sprintf("%.1f", mb(total(uniq)))},
			stored, []string{percent(total(fresh), len(data)), fmt.Sprintf("%.1f", mb(added))})...)
		speed.row(slices.Concat([]string{fmt.Sprint(kib)}, enc, dec, reads)...)
	}
	fmt.Printf("Space:\n\n%s\nSpeed: encoding (4 columns) and decoding (4), MB of plain bytes per CPU second; a random read of 4 KiB.\n\n%s\n", space, speed)
	return nil
}

// algorithms compares chunkers at pipeline's sizes.
func algorithms(data []byte) error {
	t := newTable("chunker", "MB/s", "segments", "mean, KiB", "around a byte, KiB", "unique, MB", "DUP adds", "100 insertions add")
	dup, ins := duplicate(data), insertions(data)
	for _, algo := range []string{own, algorithm, "fastcdc-v1.0.0"} {
		const piece = 4 << 20
		d, err := fastest(len(data)/piece, cpuTime, nil, func(i int) error {
			_, err := cut(algo, pipeline.AvgChunk, data[i*piece:][:piece])
			return err
		})
		if err != nil {
			return err
		}
		rate := mb(len(data)/piece*piece) / d.Seconds()
		list, err := cut(algo, pipeline.AvgChunk, data)
		if err != nil {
			return err
		}
		uniq := unique(list, ids{})
		row := []string{algo, fmt.Sprintf("%.0f", rate), fmt.Sprint(len(list)),
			fmt.Sprintf("%.1f", float64(len(data))/float64(len(list))/1024), fmt.Sprintf("%.1f", around(list)/1024),
			fmt.Sprintf("%.1f", mb(total(uniq)))}
		for _, changed := range [][]byte{dup, ins} {
			seen := ids{}
			unique(list, seen)
			after, err := cut(algo, pipeline.AvgChunk, changed)
			if err != nil {
				return err
			}
			row = append(row, percent(total(unique(after, seen)), len(changed)))
		}
		t.row(row...)
	}
	fmt.Printf("Chunkers at %d KiB:\n\n%s\n", pipeline.AvgChunk>>10, t)
	return nil
}

// duplicate is data with one in a hundred of its 64 KiB blocks replaced.
func duplicate(data []byte) []byte {
	const block = 64 << 10
	out := bytes.Clone(data)
	r := rand.NewChaCha8([32]byte{1})
	for off := 37 * block; off+block <= len(out); off += 100 * block {
		r.Read(out[off : off+block])
	}
	return out
}

// insertions is data with up to 64 bytes inserted at a hundred places.
func insertions(data []byte) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	at := make([]int, 100)
	for i := range at {
		at[i] = r.IntN(len(data))
	}
	slices.Sort(at)
	var out []byte
	from := 0
	for _, to := range at {
		out = append(out, data[from:to]...)
		for range 1 + r.IntN(64) {
			out = append(out, byte(r.Uint32()))
		}
		from = to
	}
	return append(out, data[from:]...)
}

// encodeAll returns the encoded chunks and MB/s.
func encodeAll(c codec, list [][]byte) ([][]byte, float64, error) {
	buf := make([]byte, 0, s2.MaxEncodedLen(longest(list)))
	out := make([][]byte, len(list))
	d, err := fastest(len(list), cpuTime, nil, func(i int) error {
		buf = c.encode(buf, list[i])
		return nil
	})
	for i, p := range list {
		out[i] = bytes.Clone(c.encode(buf, p))
	}
	return out, mb(total(list)) / d.Seconds(), err
}

func longest(list [][]byte) (n int) {
	for _, p := range list {
		n = max(n, len(p))
	}
	return n
}

func decodeAll(c codec, records, plain [][]byte) (float64, error) {
	buf := make([]byte, 0, longest(plain))
	d, err := fastest(len(records), cpuTime, nil, func(i int) error {
		p, err := c.decode(buf[:0:len(plain[i])], records[i])
		if err == nil && len(p) != len(plain[i]) {
			err = fmt.Errorf("%s decoded %d bytes, not %d", c.name, len(p), len(plain[i]))
		}
		return err
	})
	return mb(total(plain)) / d.Seconds(), err
}

// passes is how often each piece of work is done.
const passes = 3

// fastest does n pieces of work and returns the sum of the least times that
// they took in any of the passes.
func fastest(n int, clock func() time.Duration, before func() error, work func(i int) error) (time.Duration, error) {
	least := make([]time.Duration, n)
	for pass := range passes {
		runtime.GC()
		for i := range n {
			if before != nil {
				if err := before(); err != nil {
					return 0, err
				}
			}
			start := clock()
			if err := work(i); err != nil {
				return 0, err
			}
			if d := clock() - start; pass == 0 || d < least[i] {
				least[i] = d
			}
		}
	}
	var sum time.Duration
	for _, d := range least {
		sum += d
	}
	return max(sum, 1), nil
}

// cpuTime is what this thread has used of the processor.
func cpuTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // only for arguments that make no sense
	}
	return time.Duration(t.Nano())
}

var begin = time.Now()

func wallTime() time.Duration { return time.Since(begin) }

// sealAll encrypts encoded chunks, as a store would.
func sealAll(records [][]byte) [][]byte {
	out := make([][]byte, len(records))
	g := newGCM()
	for i, r := range records {
		out[i] = g.Seal(nil, nonce(i), r, nil)
	}
	return out
}

func newGCM() cipher.AEAD {
	b, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		panic(err) // only for a key of the wrong length
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic(err) // only for a block size other than AES's
	}
	return g
}

func nonce(i int) []byte { return binary.BigEndian.AppendUint32(make([]byte, 8, 12), uint32(i)) }

// randomReads serves 4 KiB at random places: read the record, open it, decode
// it, copy. hot is the CPU time of one with all records in the page cache;
// cold is the time of one with none there.
func randomReads(dir string, c codec, records, plain [][]byte) (hot, cold time.Duration, err error) {
	f, err := os.CreateTemp(dir, "segments-*.tmp")
	if err != nil {
		return 0, 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	offs := make([]int64, len(records))
	starts := make([]int, len(plain))
	at, size, biggest := int64(0), 0, 0
	for i, r := range records {
		offs[i], starts[i] = at, size
		if _, err := f.Write(r); err != nil {
			return 0, 0, err
		}
		at += int64(len(r))
		size += len(plain[i])
		biggest = max(biggest, len(r))
	}
	g := newGCM()
	rec, buf, page := make([]byte, biggest), make([]byte, 0, longest(plain)), make([]byte, 4096)
	rnd := rand.New(rand.NewPCG(3, 4))
	const n = 300
	places := make([]int, n)
	for i := range places {
		places[i] = rnd.IntN(size)
	}
	read := func(k int) error {
		off := places[k]
		i, ok := slices.BinarySearch(starts, off)
		if !ok {
			i--
		}
		if _, err := f.ReadAt(rec[:len(records[i])], offs[i]); err != nil {
			return err
		}
		p, err := g.Open(rec[:0], nonce(i), rec[:len(records[i])], nil)
		if err == nil {
			p, err = c.decode(buf[:0:len(plain[i])], p)
		}
		if err != nil {
			return err
		}
		copy(page, p[min(off-starts[i], max(len(p)-len(page), 0)):])
		return nil
	}
	hot, err = fastest(n, cpuTime, nil, read)
	if err != nil {
		return 0, 0, err
	}
	if err := f.Sync(); err != nil { // dirty pages stay in the cache
		return 0, 0, err
	}
	// Before each read, so that none profits from what the kernel read ahead for another.
	drop := func() error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }
	cold, err = fastest(n, wallTime, drop, read)
	return hot / n, cold / n, err
}

func mb(n int) float64 { return float64(n) / 1e6 }

func percent(n, of int) string { return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(of)) }

func micros(d time.Duration) string { return fmt.Sprint(d.Microseconds()) }

// table is a markdown table.
type table struct{ b strings.Builder }

func newTable(heads ...string) *table {
	t := &table{}
	t.row(heads...)
	t.row(slices.Repeat([]string{"--:"}, len(heads))...)
	return t
}

func (t *table) row(cells ...string) { fmt.Fprintf(&t.b, "| %s |\n", strings.Join(cells, " | ")) }

func (t *table) String() string { return t.b.String() }
