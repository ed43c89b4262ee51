package tree

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
)

var ctx = context.Background()

// manual is a clock that goes on by a second each time it is looked at.
type manual struct{ t time.Time }

func (c *manual) Now() time.Time {
	c.t = c.t.Add(time.Second)
	return c.t
}
func (c *manual) After(time.Duration) <-chan time.Time { return nil }

func newTree(t testing.TB) (*FS, *memory) {
	t.Helper()
	m := newMemory()
	if err := Format(ctx, m, New{Mode: 0o755}, time.Unix(1e9, 5)); err != nil {
		t.Fatal(err)
	}
	return openTree(t, m), m
}

func openTree(t testing.TB, m *memory) *FS {
	t.Helper()
	fs, err := Open(ctx, m, Options{Clock: &manual{time.Unix(2e9, 7)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	return fs
}

// kind checks an error's kind; Other stands for no error.
func kind(t testing.TB, err error, want capsule.ErrorKind, what string) {
	t.Helper()
	if want == capsule.Other {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	} else if capsule.KindOf(err) != want {
		t.Fatalf("%s: %v (%v), want %v", what, err, capsule.KindOf(err), want)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func mkfile(t testing.TB, fs *FS, dir uint64, name string, data string) Attr {
	t.Helper()
	f, _, err := fs.Create(ctx, nil, dir, name, New{Mode: 0o644}, OpenRead|OpenWrite|OpenExcl)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(ctx, []byte(data), 0); err != nil {
		t.Fatal(err)
	}
	return attr(t, fs, f.Ino())
}

func mkdir(t testing.TB, fs *FS, dir uint64, name string) uint64 {
	t.Helper()
	return must(fs.Mkdir(ctx, nil, dir, name, New{Mode: 0o755}))(t).Ino
}

func attr(t testing.TB, fs *FS, ino uint64) Attr {
	t.Helper()
	return must(fs.GetAttr(ctx, ino))(t)
}

func content(t testing.TB, fs *FS, ino uint64) []byte {
	t.Helper()
	f := must(fs.Open(ctx, nil, ino, OpenRead))(t)
	defer f.Close()
	var b bytes.Buffer
	for p := make([]byte, 64<<10); ; {
		n, err := f.ReadAt(ctx, p, int64(b.Len()))
		b.Write(p[:n])
		if err == io.EOF {
			return b.Bytes()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func list(t testing.TB, fs *FS, dir uint64) map[string]Entry {
	t.Helper()
	m := map[string]Entry{}
	err := fs.ReadDirPlus(ctx, nil, dir, 0, func(e Entry) bool {
		if _, twice := m[e.Name]; twice {
			t.Fatalf("%q comes twice", e.Name)
		}
		m[e.Name] = e
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
