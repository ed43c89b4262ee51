package bench

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/pipeline"
)

// The machine's quantities. Those of the processor are of all cores together.
const (
	copying     = "memory copy"
	chunking    = "chunking"
	hashing     = "hash, BLAKE3"
	sealing     = "cipher, AES-256-GCM seal"
	opening     = "cipher, AES-256-GCM open"
	diskWrite   = "disk, sequential write + fsync"
	diskRead    = "disk, sequential read, cold"
	diskRead1M  = "disk, 1 MiB random reads, cold"
	diskRead4K  = "disk, 4 KiB random reads, cold"
	cacheRead4K = "page cache, 4 KiB random reads"
	diskSync    = "disk, 4 KiB append + fsync"
	diskSync32  = "disk, 4 KiB append + fsync, 32 files at once"
	available   = "share of the cores that others left to this process"
)

// machineRates are the rows of the machine's table.
var machineRates = []struct {
	name string
	unit Unit
}{
	{diskWrite, BytesPerSecond}, {diskRead, BytesPerSecond}, {diskRead1M, BytesPerSecond}, {diskRead4K, PerSecond},
	{cacheRead4K, PerSecond}, {diskSync, PerSecond}, {diskSync32, PerSecond},
	{copying, BytesPerSecond}, {chunking, BytesPerSecond}, {hashing, BytesPerSecond}, {sealing, BytesPerSecond}, {opening, BytesPerSecond},
}

// scratch is the memory that measuring the processor takes. It is made before
// and let go after, so that it does not count as the store's.
type scratch struct {
	noise []byte   // random bytes
	slots [][]byte // what became of each piece
}

func newScratch(pieces int) *scratch {
	s := &scratch{noise: make([]byte, pieces*pipeline.AvgChunk)}
	rnd := rand.NewChaCha8([32]byte{1})
	rnd.Read(s.noise)
	for _, p := range cut(s.noise, pipeline.AvgChunk) { // touched, and with some room
		s.slots = append(s.slots, append(p[:len(p):len(p)], p[:len(p)/8]...))
	}
	return s
}

// keep stores p as what became of piece i.
func (s *scratch) keep(i int, p []byte) { s.slots[i] = append(s.slots[i][:0], p...) }

// machine measures what has nothing to do with the data.
func (r *run) machine(ctx context.Context, s *scratch) error {
	if err := r.processor(ctx, s); err != nil {
		return err
	}
	if err := r.disk(ctx, s.noise); err != nil {
		return err
	}
	return r.syncs(ctx, s.noise)
}

// parallel has workers on all cores work on the pieces, each on its own share
// of them again and again, for a while and at least once, and returns how many
// bytes are done per second. Each worker calls begin once.
func (r *run) parallel(ctx context.Context, pieces [][]byte, begin func() (work func(i int) error)) (float64, error) {
	var bytes atomic.Int64
	workers := min(runtime.GOMAXPROCS(0), len(pieces))
	start, cpu := time.Now(), cpuTime()
	_, err := together(workers, func(w int) (float64, error) {
		work := begin()
		for pass := 0; ; pass++ {
			for i := w; i < len(pieces); i += workers {
				if pass > 0 && time.Since(start) > r.while/4 {
					return 0, nil
				}
				if err := ctx.Err(); err != nil {
					return 0, err
				}
				if err := work(i); err != nil {
					return 0, err
				}
				bytes.Add(int64(len(pieces[i])))
			}
		}
	})
	if cpu = cpuTime() - cpu; cpu > 0 {
		r.add("", available, cpu.Seconds()/time.Since(start).Seconds()/float64(workers))
	}
	return rate(bytes.Load(), start), err
}

// processor measures the stages of the pipeline that cost the same for all data.
func (r *run) processor(ctx context.Context, s *scratch) error {
	pieces := cut(s.noise, pipeline.AvgChunk)
	runs := cut(s.noise, pipeline.BlockSize) // of several chunks
	chunker := pipeline.NewChunker([32]byte{1})
	keys := oneKey{pipeline.NewCipher([32]byte{2})}
	how := pipeline.Sealing{Encrypt: true, Key: 1, Cipher: keys.c}
	for _, stage := range []struct {
		name   string
		pieces [][]byte
		begin  func() func(i int) error
	}{
		{copying, pieces, func() func(int) error {
			return func(i int) error {
				s.keep(i, pieces[i])
				return nil
			}
		}},
		{chunking, runs, func() func(int) error {
			return func(i int) error {
				for p := runs[i]; len(p) > 0; {
					p = p[chunker.Next(p):]
				}
				return nil
			}
		}},
		{hashing, pieces, func() func(int) error {
			h := pipeline.NewHasher([32]byte{3})
			return func(i int) error {
				h.Sum(pieces[i])
				return nil
			}
		}},
		{sealing, pieces, func() func(int) error {
			var z pipeline.Compressor
			var rec []byte
			return func(i int) error {
				rec, _ = pipeline.Seal(rec[:0], &z, pipeline.SegmentID{}, pieces[i], how)
				s.keep(i, rec)
				return nil
			}
		}},
		{opening, pieces, func() func(int) error {
			var rec, out []byte
			return func(i int) (err error) {
				rec = append(rec[:0], s.slots[i]...) // Open scribbles on it
				out, _, err = pipeline.Open(out[:0], rec, keys)
				return err
			}
		}},
	} {
		v, err := r.parallel(ctx, stage.pieces, stage.begin)
		if err != nil {
			return err
		}
		r.add("", stage.name, v)
	}
	return nil
}

// cut returns pieces of b of n bytes.
func cut(b []byte, n int) (pieces [][]byte) {
	for off := 0; off < len(b); off += n {
		pieces = append(pieces, b[off:min(off+n, len(b))])
	}
	return pieces
}

// oneKey is the key ring of a benchmark's records.
type oneKey struct{ c *pipeline.Cipher }

// Cipher implements pipeline.Keys.
func (k oneKey) Cipher(uint32) (*pipeline.Cipher, bool) { return k.c, true }

// compressions are the codecs that are measured. The first is the default.
var compressions = []struct {
	name string
	how  pipeline.Compression
}{
	{"auto", pipeline.Auto},
	{"lz4", pipeline.Compression{Codec: pipeline.LZ4}},
	{"zstd:1", pipeline.Compression{Codec: pipeline.Zstd, Level: 1}},
	{"zstd:3", pipeline.Compression{Codec: pipeline.Zstd, Level: 3}},
	{"zstd:7", pipeline.Compression{Codec: pipeline.Zstd, Level: 7}},
}

// The quantities of a codec.
func encoding(codec string) string   { return codec + " encode" }
func decoding(codec string) string   { return codec + " decode" }
func compressed(codec string) string { return codec + " ratio" }

// codecs measures what the codecs do to a corpus.
func (r *run) codecs(ctx context.Context, c *corpus, s *scratch) error {
	sample, err := c.sample(r.pieces)
	if err != nil {
		return err
	}
	used := make([]pipeline.Codec, len(sample))
	for _, z := range compressions {
		v, err := r.parallel(ctx, sample, func() func(int) error {
			var comp pipeline.Compressor
			var buf []byte
			return func(i int) error {
				buf, used[i], _ = comp.Compress(buf[:0], sample[i], z.how)
				s.keep(i, buf)
				return nil
			}
		})
		if err != nil {
			return err
		}
		r.add(c.name, encoding(z.name), v)
		var plain, packed float64
		for i, p := range sample {
			plain += float64(len(p))
			packed += float64(len(s.slots[i]))
		}
		r.add(c.name, compressed(z.name), plain/packed)
		v, err = r.parallel(ctx, sample, func() func(int) error {
			var buf []byte
			return func(i int) (err error) {
				buf, err = pipeline.Decompress(buf[:0], s.slots[i], used[i], len(sample[i]))
				return err
			}
		})
		if err != nil {
			return err
		}
		r.add(c.name, decoding(z.name), v)
	}
	return nil
}

// disk measures a plain file.
func (r *run) disk(ctx context.Context, noise []byte) error {
	path := filepath.Join(r.dir, "plain")
	f, err := os.Create(path)
	if err != nil {
		return fileError(err)
	}
	defer os.Remove(path)
	defer f.Close()

	const mib = 1 << 20
	start := time.Now()
	size := int64(0)
	for size < r.Size {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Write(noise[size%int64(len(noise)):][:min(mib, len(noise))])
		if err != nil {
			return fileError(err)
		}
		size += int64(n)
	}
	if err := f.Sync(); err != nil {
		return fileError(err)
	}
	r.add("", diskWrite, rate(size, start))

	buf := make([]byte, mib)
	sequential := func() (float64, error) {
		start := time.Now()
		for off := int64(0); off < size; off += mib {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
				return 0, fileError(err)
			}
		}
		return rate(size, start), nil
	}
	if r.cold {
		if err := dropCache(f); err != nil {
			return fileError(err)
		}
		v, err := sequential()
		if err != nil {
			return err
		}
		r.add("", diskRead, v)
		for _, c := range []struct {
			name string
			n    int64
			unit float64
		}{{diskRead1M, mib, mib}, {diskRead4K, 4096, 1}} {
			if err := dropCache(f); err != nil {
				return fileError(err)
			}
			v, err := readAtPlaces(ctx, f, places(size, c.n), c.n)
			if err != nil {
				return fileError(err)
			}
			r.add("", c.name, v*c.unit)
		}
	}
	if _, err := sequential(); err != nil { // all of it is in the page cache now
		return err
	}
	v, err := r.readAtRandom(ctx, f, size, 4096)
	if err != nil {
		return fileError(err)
	}
	r.add("", cacheRead4K, v)
	return nil
}

// places are offsets in random order, so far apart that no read of n bytes
// needs a segment, or what the kernel reads ahead, that another one needed.
func places(size, n int64) []int64 {
	const most = 500
	step := max(2*n, pipeline.MaxChunk)
	count := max(size/step, 1)
	list := make([]int64, 0, most)
	for _, i := range rand.New(rand.NewPCG(5, 6)).Perm(int(min(count, 1<<20))) {
		if len(list) < most {
			list = append(list, int64(i)*step)
		}
	}
	return list
}

// readAtPlaces returns how many reads of n bytes at the offsets are done per
// second, one at a time.
func readAtPlaces(ctx context.Context, f io.ReaderAt, offs []int64, n int64) (float64, error) {
	buf := make([]byte, n)
	start := time.Now()
	for _, off := range offs {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
			return 0, err
		}
	}
	return rate(int64(len(offs)), start), nil
}

// readAtRandom returns how many reads of n bytes anywhere in the first size
// are done per second, one at a time.
func (r *run) readAtRandom(ctx context.Context, f io.ReaderAt, size, n int64) (float64, error) {
	buf := make([]byte, n)
	rnd := rand.New(rand.NewPCG(7, 8))
	return r.rateOf(ctx, func() error {
		_, err := f.ReadAt(buf, rnd.Int64N(max(size-n, 1)))
		if err == io.EOF {
			err = nil
		}
		return err
	})
}

// syncs measures how often bytes can be made durable.
func (r *run) syncs(ctx context.Context, noise []byte) error {
	for _, c := range []struct {
		name  string
		files int
	}{{diskSync, 1}, {diskSync32, 32}} {
		v, err := r.appendSync(ctx, c.files, noise[:4096])
		if err != nil {
			return fileError(err)
		}
		r.add("", c.name, v)
	}
	return nil
}

func (r *run) appendSync(ctx context.Context, files int, p []byte) (float64, error) {
	return together(files, func(i int) (float64, error) {
		path := filepath.Join(r.dir, fmt.Sprintf("sync-%d", i))
		f, err := os.Create(path)
		if err != nil {
			return 0, err
		}
		defer os.Remove(path)
		defer f.Close()
		return r.rateOf(ctx, func() error {
			_, err := f.Write(p)
			if err == nil {
				err = f.Sync()
			}
			return err
		})
	})
}

// together runs n of fn at once and returns the sum of their rates.
func together(n int, fn func(i int) (float64, error)) (sum float64, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			v, ferr := fn(i)
			mu.Lock()
			defer mu.Unlock()
			sum += v
			if err == nil {
				err = ferr
			}
		})
	}
	wg.Wait()
	return sum, err
}
