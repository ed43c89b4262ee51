package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/tree"
)

// mountObject mounts an object that its policy allows to write, and returns
// the path of its content.
func mountObject(t *testing.T, content []byte) (s realStore, id capsule.ID, file string) {
	t.Helper()
	s, _ = newTreeStore(t, tree.Quota{})
	p := *capsule.DefaultPolicy()
	p.Views = capsule.Views{"fuse:rw"}
	info, err := s.Put(context.Background(), store.PutRequest{Name: "o", Size: -1, Policy: &p}, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	_, dir := mountAt(t, s, Options{Capsule: info.ID, Scratch: t.TempDir()})
	return s, info.ID, filepath.Join(dir, contentName)
}

// fullStore has no room left beside what it keeps for itself.
type fullStore struct{ realStore }

func (fullStore) FreeBytes() int64 { return 0 }

// TestObjectOnFullDisk: writers leave the store the room that it keeps for
// itself, and the version there is stays.
func TestObjectOnFullDisk(t *testing.T) {
	s, id, _ := mountObject(t, []byte("as it was"))
	_, dir := mountAt(t, fullStore{s}, Options{Capsule: id, Scratch: t.TempDir()})
	f, err := os.OpenFile(filepath.Join(dir, contentName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("new"), 0); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write on a full disk: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, contentName)); err != nil || string(got) != "as it was" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestObjectWrite changes an object in place. Readers of the old version are
// left alone, new ones get the new version once the file is synced or closed.
func TestObjectWrite(t *testing.T) {
	old := pattern(1, 3<<20)
	_, _, file := mountObject(t, old)
	reader, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Clone(old)
	for _, off := range []int64{0, 100_000, 3<<20 - 5, 3<<20 + 70_000} {
		text := fmt.Appendf(nil, "written at %d", off)
		if _, err := f.WriteAt(text, off); err != nil {
			t.Fatal(err)
		}
		if more := int(off) + len(text) - len(want); more > 0 {
			want = append(want, make([]byte, more)...)
		}
		copy(want[off:], text)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the writer does not read what it wrote: %v", err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != int64(len(want)) || st.Mode() != 0o644 {
		t.Errorf("the writer sees %v, %v", st, err)
	}
	if !bytes.Equal(readFile(t, file), old) {
		t.Error("what is not synced shows")
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readFile(t, file), want) {
		t.Error("what is synced does not show")
	}
	if err := f.Truncate(10); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, file); !bytes.Equal(got, want[:10]) {
		t.Errorf("after the close there are %d bytes", len(got))
	}
	got = make([]byte, len(old))
	if _, err := reader.ReadAt(got, 0); err != nil || !bytes.Equal(got, old) {
		t.Errorf("a reader of the old version was disturbed: %v", err)
	}
	if st, err := reader.Stat(); err != nil || st.Size() != int64(len(old)) {
		t.Errorf("a reader of the old version sees its size change: %v, %v", st, err)
	}
}

// TestObjectShell writes an object as people do.
func TestObjectShell(t *testing.T) {
	_, _, file := mountObject(t, []byte("old\n"))
	dir := filepath.Dir(file)
	for _, c := range []struct{ script, want string }{
		{"echo more >> content", "old\nmore\n"},
		{"echo new > content", "new\n"},
		{"(echo a; cat; echo b) > content < content", ""}, // checked below: what is read is the old version
		{"printf 0123456789 > content; truncate -s 4 content", "0123"},
		{"printf xy | dd of=content conv=notrunc bs=1 seek=1 status=none", "0xy3"},
		{"cp /etc/hostname copy 2>/dev/null || cp content /dev/null; touch content; cat content", "0xy3"},
		{"sed s/x/z/ content > $OLDPWD/f; cat $OLDPWD/f > content", "0zy3"},
	} {
		run(t, t.TempDir(), "sh", "-c", "cd "+t.TempDir()+" && cd "+dir+" && "+c.script)
		if c.want == "" {
			continue
		}
		eventually(t, c.script, func() bool { return string(readFile(t, file)) == c.want })
	}
	for what, err := range map[string]error{
		"chmod":  os.Chmod(file, 0o600),
		"remove": os.Remove(file),
		"create": os.WriteFile(filepath.Join(dir, "x"), nil, 0o644),
		"rename": os.Rename(file, filepath.Join(dir, "x")),
	} {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v, want EPERM", what, err)
		}
	}
	if err := os.Truncate(file, 2); err != nil {
		t.Error(err)
	}
	if got := string(readFile(t, file)); got != "0z" {
		t.Errorf("after truncate there is %q", got)
	}
}

// TestObjectConflict replaces an object while it is being written: the writer
// is told, and the other's version stays, unless the writer began with nothing.
func TestObjectConflict(t *testing.T) {
	s, id, file := mountObject(t, []byte("first"))
	replace := func(content string) {
		t.Helper()
		if _, err := s.Put(context.Background(), store.PutRequest{ID: id, Size: -1}, bytes.NewReader([]byte(content))); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("F"), 0); err != nil {
		t.Fatal(err)
	}
	replace("second")
	if err := f.Sync(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("sync of what another has replaced: %v", err)
	}
	if err := f.Close(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("close of what another has replaced: %v", err)
	}
	if got := string(readFile(t, file)); got != "second" {
		t.Errorf("there is %q", got)
	}
	f, err = os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("all of it")); err != nil {
		t.Fatal(err)
	}
	replace("third")
	if err := f.Close(); err != nil {
		t.Errorf("close of what was written whole: %v", err)
	}
	if got := string(readFile(t, file)); got != "all of it" {
		t.Errorf("there is %q", got)
	}
}

// TestObjectWriters has several write one object at once, and others read it:
// every version that is read is one that was written.
func TestObjectWriters(t *testing.T) {
	_, _, file := mountObject(t, nil)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 20 {
				f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
				if err == nil {
					_, err = fmt.Fprintf(f, "line of %d\n", i)
					err = errors.Join(err, f.Close())
				}
				if err != nil {
					t.Error(err)
				}
				b, err := os.ReadFile(file)
				if err != nil || len(b)%len("line of 0\n") != 0 {
					t.Errorf("%d bytes, %v", len(b), err)
				}
			}
		})
	}
	wg.Wait()
	if n := bytes.Count(readFile(t, file), []byte("\n")); n != 80 {
		t.Errorf("%d lines of 80", n)
	}
}

// TestObjectReadOnly has policies that allow no writes.
func TestObjectReadOnly(t *testing.T) {
	s, tid := newTreeStore(t, tree.Quota{})
	info, err := s.Put(context.Background(), store.PutRequest{Name: "o", Size: -1}, bytes.NewReader([]byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	p := *capsule.DefaultPolicy()
	p.Views = capsule.Views{"fuse:ro"}
	if err := s.SetPolicy(context.Background(), tid, &p); err != nil {
		t.Fatal(err)
	}
	for _, id := range []capsule.ID{info.ID, tid} {
		_, dir := mountAt(t, s, Options{Capsule: id})
		if err := os.WriteFile(filepath.Join(dir, contentName), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("a write that the policy does not allow: %v", err)
		}
	}

	// While it is mounted the policy changes.
	s, id, file := mountObject(t, []byte("x"))
	p.Views = capsule.Views{"fuse"}
	if err := s.SetPolicy(context.Background(), id, &p); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("y"), 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("a write that the policy does not allow any more: %v", err)
	}
	if got := string(readFile(t, file)); got != "x" {
		t.Errorf("there is %q", got)
	}
}
