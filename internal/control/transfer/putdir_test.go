package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/control"
)

// direct is the control API as far as PutDir needs it, over a store.
type direct struct {
	control.Capsules
	store *store.Store

	mu    sync.Mutex
	alone int // puts of single contents
	most  int // contents put together
}

func (d *direct) Put(ctx context.Context, req store.PutRequest, r io.Reader) (capsule.Info, error) {
	d.mu.Lock()
	d.alone++
	d.mu.Unlock()
	return d.store.Put(ctx, req, r)
}

func (d *direct) PutAll(ctx context.Context, contents []store.Content, taken func()) []store.PutResult {
	d.mu.Lock()
	d.most = max(d.most, len(contents))
	d.mu.Unlock()
	return d.store.PutAll(ctx, contents, taken)
}

func newDirect(t testing.TB) *direct {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Dir: filepath.Join(t.TempDir(), "store"), Logger: slog.New(slog.DiscardHandler),
		Keys: keyring.Source{MasterKey: strings.Repeat("5a", 32)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &direct{store: s}
}

// writeTree makes files with random content of the given sizes.
func writeTree(t testing.TB, dir string, sizes map[string]int) {
	t.Helper()
	r := rand.NewChaCha8([32]byte{1})
	for name, size := range sizes {
		b := make([]byte, size)
		r.Read(b)
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// A directory of files of any size is stored whole: small ones together, large
// ones by themselves, in the order of the walk; what is no file is skipped and
// said so, and what fails leaves the others alone.
func TestPutDir(t *testing.T) {
	dir := t.TempDir()
	sizes := map[string]int{"empty": 0, "one": 1, "z/last": 5,
		"small": largeFile, "small-": largeFile - 1, "large": largeFile + 1, "larger": 3 << 20}
	for i := range 3*batchFiles + 1 {
		sizes[fmt.Sprintf("many/%03d", i)] = i * 13
	}
	for i := range 9 { // more than a buffer holds
		sizes[fmt.Sprintf("medium/%d", i)] = 300<<10 + i
	}
	writeTree(t, dir, sizes)
	if err := os.Symlink("one", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "many/pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	api := newDirect(t)
	// What is a directory here is a capsule there, and the other way around.
	for _, name := range []string{"p/z", "p/one/more"} {
		if _, err := api.store.Put(t.Context(), store.PutRequest{Name: name}, strings.NewReader("")); err != nil {
			t.Fatal(err)
		}
	}

	var progress Progress
	var walked []string
	var bytesStored int64
	err := PutDir(t.Context(), api, dir, "p", nil, &progress, func(o Outcome) error {
		name, err := filepath.Rel(dir, o.Path)
		if err != nil {
			t.Fatal(err)
		}
		walked = append(walked, name)
		switch name {
		case "link", "many/pipe":
			if o.Skipped == "" || o.Err != nil {
				t.Errorf("%s: %+v", name, o)
			}
			return nil
		case "z/last", "one":
			if capsule.KindOf(o.Err) != capsule.Exists {
				t.Errorf("%s: %v", name, o.Err)
			}
			return nil
		}
		if o.Err != nil || o.Skipped != "" {
			t.Fatalf("%s: %q, %v", name, o.Skipped, o.Err)
		}
		want, err := os.ReadFile(o.Path)
		if err != nil {
			t.Fatal(err)
		}
		if o.Info.Name != "p/"+name || o.Info.Size != int64(len(want)) {
			t.Errorf("%s is %+v", name, o.Info)
		}
		r, err := api.store.Open(t.Context(), o.Info.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var got bytes.Buffer
		if _, err := r.Stream(t.Context(), &got, 0, -1); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s has %d bytes of %d: %v", name, got.Len(), len(want), err)
		}
		bytesStored += int64(len(want))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"link", "many/pipe"}
	for name := range sizes {
		want = append(want, name)
	}
	slices.SortFunc(want, func(a, b string) int { return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/")) })
	if !slices.Equal(walked, want) {
		t.Errorf("the walk was %q, want %q", walked, want)
	}
	if n := progress.Files.Load(); n != int64(len(sizes)) {
		t.Errorf("%d files counted, want %d", n, len(sizes))
	}
	if n := progress.Bytes.Load(); n < bytesStored {
		t.Errorf("%d bytes counted of %d stored", n, bytesStored)
	}
	if api.alone != 2 || api.most != batchFiles {
		t.Errorf("%d files were stored by themselves and at most %d together, want 2 and %d", api.alone, api.most, batchFiles)
	}
}

// An error of the one who is told the outcomes ends it all.
func TestPutDirGivesUp(t *testing.T) {
	dir := t.TempDir()
	sizes := map[string]int{}
	for i := range 40 * batchFiles {
		sizes[fmt.Sprintf("%d/%d", i%40, i)] = 10
	}
	writeTree(t, dir, sizes)
	enough, told := errors.New("enough"), 0
	err := PutDir(t.Context(), newDirect(t), dir, "p", nil, new(Progress), func(Outcome) error {
		if told++; told == 5 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || told != 5 {
		t.Errorf("%v after %d outcomes", err, told)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = PutDir(ctx, newDirect(t), dir, "p", nil, new(Progress), func(Outcome) error { return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("canceled before: %v", err)
	}
}

// A file that changes while it is read is not stored half.
func TestPutDirOfChangingFile(t *testing.T) {
	for name, change := range map[string]func(f string) error{
		"grows":   func(f string) error { return os.WriteFile(f, make([]byte, 100), 0o644) },
		"shrinks": func(f string) error { return os.WriteFile(f, make([]byte, 5), 0o644) },
	} {
		f := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(f, make([]byte, 10), 0o644); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(f, unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := change(f); err != nil {
			t.Fatal(err)
		}
		if _, err := readWhole(&fdReader{fd: fd, left: 10}, make([]byte, 11)); capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("a file that %s: %v", name, err)
		}
		unix.Close(fd)
	}
}

// BenchmarkPutDir stores a tree of small files, each durable when it is told of.
func BenchmarkPutDir(b *testing.B) {
	dir := b.TempDir()
	sizes := map[string]int{}
	var total int64
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 4000 {
		n := int(2000 * r.ExpFloat64() * r.ExpFloat64() * 3) // many tiny ones, some of 100 KiB
		sizes[fmt.Sprintf("%d/%d", i%200, i)] = n
		total += int64(n)
	}
	writeTree(b, dir, sizes)
	b.SetBytes(total)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		api := newDirect(b)
		b.StartTimer()
		err := PutDir(b.Context(), api, dir, "p", nil, new(Progress), func(o Outcome) error { return o.Err })
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*float64(len(sizes))/b.Elapsed().Seconds(), "files/s")
}
