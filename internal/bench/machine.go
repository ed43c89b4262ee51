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

// How long a rate of single operations is measured.
const shortWhile = 500 * time.Millisecond

// machine measures what has nothing to do with the data.
func (r *run) machine(ctx context.Context) error {
	if err := r.processor(ctx); err != nil {
		return err
	}
	if err := r.disk(ctx); err != nil {
		return err
	}
	return r.syncs(ctx)
}

// parallel gives the pieces to workers on all cores and returns how many bytes
// of them are done per second. Each worker calls begin once.
func parallel(ctx context.Context, pieces [][]byte, begin func() (work func(p []byte) error)) (float64, error) {
	var (
		next  atomic.Int64
		bytes atomic.Int64
		wg    sync.WaitGroup
		once  sync.Once
		err   error
	)
	start := time.Now()
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			work := begin()
			for i := next.Add(1) - 1; i < int64(len(pieces)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				if werr := work(pieces[i]); werr != nil {
					once.Do(func() { err = werr })
					return
				}
				bytes.Add(int64(len(pieces[i])))
			}
		})
	}
	wg.Wait()
	if err == nil {
		err = ctx.Err()
	}
	return rate(bytes.Load(), start), err
}

// processor measures the stages of the pipeline that all data costs the same.
func (r *run) processor(ctx context.Context) error {
	var pieces [][]byte
	for off := 0; off < len(r.noise); off += pipeline.AvgChunk {
		pieces = append(pieces, r.noise[off:off+pipeline.AvgChunk])
	}
	mirror := make([]byte, len(r.noise)) // as large as the source: a copy within the CPU's caches tells nothing
	sealed := make(chan []byte, len(pieces))
	chunker, err := pipeline.NewChunker([32]byte{1})
	if err != nil {
		return err
	}
	keys := oneKey{pipeline.NewCipher([32]byte{2})}
	how := pipeline.Sealing{Encrypt: true, Key: 1, Cipher: keys.c}
	var room atomic.Int64
	for _, stage := range []struct {
		name  string
		begin func() func(p []byte) error
	}{
		{copying, func() func([]byte) error {
			return func(p []byte) error {
				end := room.Add(int64(len(p)))
				copy(mirror[end-int64(len(p)):end], p)
				return nil
			}
		}},
		{chunking, func() func([]byte) error {
			return func(p []byte) error {
				for len(p) > 0 {
					p = p[chunker.Next(p):]
				}
				return nil
			}
		}},
		{hashing, func() func([]byte) error {
			h := pipeline.NewHasher([32]byte{3})
			return func(p []byte) error {
				h.Sum(p)
				return nil
			}
		}},
		{sealing, func() func([]byte) error {
			var z pipeline.Compressor
			return func(p []byte) error {
				rec, _ := pipeline.Seal(nil, &z, pipeline.SegmentID{}, p, how)
				sealed <- rec
				return nil
			}
		}},
		{opening, func() func([]byte) error {
			var out []byte
			return func([]byte) (err error) {
				out, _, err = pipeline.Open(out[:0], <-sealed, keys)
				return err
			}
		}},
	} {
		v, err := parallel(ctx, pieces, stage.begin)
		if err != nil {
			return err
		}
		r.add("", stage.name, v)
	}
	return nil
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
func (r *run) codecs(ctx context.Context, c *corpus) error {
	type packed struct {
		p    []byte
		used pipeline.Codec
		n    int
	}
	for _, z := range compressions {
		out := make(chan packed, len(c.sample))
		var plain, small atomic.Int64
		v, err := parallel(ctx, c.sample, func() func([]byte) error {
			var comp pipeline.Compressor
			var buf []byte
			return func(p []byte) error {
				var used pipeline.Codec
				buf, used, _ = comp.Compress(buf[:0], p, z.how)
				out <- packed{append([]byte(nil), buf...), used, len(p)}
				plain.Add(int64(len(p)))
				small.Add(int64(len(buf)))
				return nil
			}
		})
		if err != nil {
			return err
		}
		r.add(c.name, encoding(z.name), v)
		r.add(c.name, compressed(z.name), float64(plain.Load())/float64(small.Load()))
		v, err = parallel(ctx, c.sample, func() func([]byte) error {
			var buf []byte
			return func([]byte) (err error) {
				q := <-out
				buf, err = pipeline.Decompress(buf[:0], q.p, q.used, q.n)
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
func (r *run) disk(ctx context.Context) error {
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
	for ; size < r.Size; size += mib {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.Write(r.noise[size%int64(len(r.noise)):][:mib]); err != nil {
			return fileError(err)
		}
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
	v, err := readAtRandom(ctx, f, size, 4096)
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
func readAtRandom(ctx context.Context, f io.ReaderAt, size, n int64) (float64, error) {
	buf := make([]byte, n)
	rnd := rand.New(rand.NewPCG(7, 8))
	return rateFor(ctx, shortWhile, func() error {
		_, err := f.ReadAt(buf, rnd.Int64N(max(size-n, 1)))
		if err == io.EOF {
			err = nil
		}
		return err
	})
}

// syncs measures how often bytes can be made durable.
func (r *run) syncs(ctx context.Context) error {
	for _, c := range []struct {
		name  string
		files int
	}{{diskSync, 1}, {diskSync32, 32}} {
		v, err := r.appendSync(ctx, c.files)
		if err != nil {
			return fileError(err)
		}
		r.add("", c.name, v)
	}
	return nil
}

func (r *run) appendSync(ctx context.Context, files int) (float64, error) {
	return together(files, func(i int) (float64, error) {
		path := filepath.Join(r.dir, fmt.Sprintf("sync-%d", i))
		f, err := os.Create(path)
		if err != nil {
			return 0, err
		}
		defer os.Remove(path)
		defer f.Close()
		return rateFor(ctx, shortWhile, func() error {
			_, err := f.Write(r.noise[:4096])
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
