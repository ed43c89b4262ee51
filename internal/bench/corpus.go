package bench

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/spacestore/space/pipeline"
)

// corpus is a file that is stored and read back.
type corpus struct {
	name string
	path string
	size int64
}

// prepare makes the corpora.
func (r *run) prepare(ctx context.Context) error {
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
		st, err := os.Stat(r.corpora[i].path)
		if err != nil {
			return fileError(err)
		}
		r.corpora[i].size = st.Size()
	}
	return nil
}

// sample reads at most n pieces of a usual segment's size from all over the corpus.
func (c *corpus) sample(n int) (pieces [][]byte, err error) {
	f, err := os.Open(c.path)
	if err != nil {
		return nil, fileError(err)
	}
	defer f.Close()
	step := max((c.size+int64(n)-1)/int64(n), pipeline.AvgChunk)
	for off := int64(0); off < c.size; off += step {
		p := make([]byte, min(pipeline.AvgChunk, c.size-off))
		if _, err := f.ReadAt(p, off); err != nil {
			return nil, fileError(err)
		}
		pieces = append(pieces, p)
	}
	return pieces, nil
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

// text generates lines of phrases, some of them far more usual than others,
// which shrink about as program sources do.
type text struct {
	rnd     *rand.Rand
	phrases []string
	line    []byte
}

func newText(seed uint64) *text {
	t := &text{rnd: rand.New(rand.NewPCG(seed, 0))}
	const letters = "etaoinshrdlucmfwypvbgkqjxz"
	var words []string
	for range 4096 {
		w := make([]byte, 2+t.rnd.IntN(9))
		for i := range w {
			w[i] = letters[t.skewed(len(letters))]
		}
		words = append(words, string(w))
	}
	for range 8192 {
		var p []byte
		for range 2 + t.rnd.IntN(8) {
			p = append(p, words[t.skewed(len(words))]...)
			p = append(p, " .,(){}="[t.rnd.IntN(8)])
		}
		t.phrases = append(t.phrases, string(p))
	}
	return t
}

// skewed is a number in [0, n), most often near 0.
func (t *text) skewed(n int) int {
	f := t.rnd.Float64()
	return int(f * f * f * f * float64(n))
}

// Read fills p.
func (t *text) Read(p []byte) (int, error) {
	for n := 0; n < len(p); {
		if len(t.line) == 0 {
			for range t.rnd.IntN(4) {
				t.line = append(t.line, '\t')
			}
			for range 1 + t.rnd.IntN(4) {
				t.line = append(t.line, t.phrases[t.skewed(len(t.phrases))]...)
			}
			t.line = append(t.line, '\n')
		}
		m := copy(p[n:], t.line)
		t.line = append(t.line[:0], t.line[m:]...)
		n += m
	}
	return len(p), nil
}
