package bench

import (
	"bufio"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/spacestore/space/pipeline"
)

// corpus is a file that is stored and read back.
type corpus struct {
	name   string
	path   string
	size   int64
	sample [][]byte // pieces of it, for the codecs
}

// prepare makes the corpora.
func (r *run) prepare(ctx context.Context) error {
	r.noise = make([]byte, 16<<20)
	rnd := rand.NewChaCha8([32]byte{1})
	rnd.Read(r.noise)
	for _, name := range r.Files {
		r.corpora = append(r.corpora, corpus{name: filepath.Base(name), path: name})
	}
	if len(r.Files) == 0 {
		for _, g := range []struct {
			name string
			from io.Reader
		}{{"text", newText(2)}, {"random", rand.NewChaCha8([32]byte{3})}} {
			c := corpus{name: g.name, path: filepath.Join(r.dir, g.name)}
			if err := writeFile(ctx, c.path, g.from, r.Size); err != nil {
				return err
			}
			r.corpora = append(r.corpora, c)
		}
	}
	for i := range r.corpora {
		if err := r.corpora[i].load(); err != nil {
			return err
		}
	}
	return nil
}

// load reads the sample: pieces of a usual segment's size from all over the file.
func (c *corpus) load() error {
	const pieces = 256
	f, err := os.Open(c.path)
	if err != nil {
		return fileError(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fileError(err)
	}
	c.size = st.Size()
	step := max(c.size/pieces, pipeline.AvgChunk)
	for off := int64(0); off < c.size; off += step {
		p := make([]byte, min(pipeline.AvgChunk, c.size-off))
		if _, err := f.ReadAt(p, off); err != nil {
			return fileError(err)
		}
		c.sample = append(c.sample, p)
	}
	return nil
}

func writeFile(ctx context.Context, path string, from io.Reader, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return fileError(err)
	}
	defer f.Close()
	for left := size; left > 0; {
		n, err := io.CopyN(f, from, min(left, 8<<20))
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fileError(err)
		}
		left -= n
	}
	return fileError(f.Close())
}

// text generates lines of words, some of them far more usual than others, that
// shrink about as program sources do.
type text struct {
	rnd   *rand.Rand
	words []string
	b     *bufio.Reader
	line  []byte
}

func newText(seed uint64) *text {
	t := &text{rnd: rand.New(rand.NewPCG(seed, 0))}
	const letters = "etaoinshrdlucmfwypvbgkqjxz"
	for range 4096 {
		w := make([]byte, 2+t.rnd.IntN(9))
		for i := range w {
			w[i] = letters[int(float64(len(letters))*t.skewed())]
		}
		t.words = append(t.words, string(w))
	}
	return t
}

// skewed is a number in [0, 1), most often near 0.
func (t *text) skewed() float64 {
	f := t.rnd.Float64()
	return f * f * f
}

// Read fills p.
func (t *text) Read(p []byte) (int, error) {
	for n := 0; n < len(p); {
		if len(t.line) == 0 {
			for range t.rnd.IntN(4) {
				t.line = append(t.line, '\t')
			}
			for range 1 + t.rnd.IntN(12) {
				t.line = append(t.line, t.words[int(float64(len(t.words))*t.skewed())]...)
				t.line = append(t.line, " .,(){}="[t.rnd.IntN(8)])
			}
			t.line = append(t.line, '\n')
		}
		m := copy(p[n:], t.line)
		t.line = append(t.line[:0], t.line[m:]...)
		n += m
	}
	return len(p), nil
}
