package files

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spacestore/space/fabric/bulk"
)

// TestKilledAfterRename has a journal that says all is there, of a target that was
// renamed, and is gone: what a kill between the rename and the removal leaves.
func TestKilledAfterRename(t *testing.T) {
	t.Parallel()
	src, dir := filepath.Join(t.TempDir(), "src"), t.TempDir()
	dst, part := filepath.Join(dir, "dst"), filepath.Join(dir, ".dst"+partSuffix)
	put(t, src, payload(1, 5*testChunk), 0o644)
	_, near := share(t, src, ShareOptions{})
	kept := map[string][]byte{}
	o := ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}, Progress: func(p Progress) {
		for _, name := range []string{manifestFile, journalFile} {
			if b, err := os.ReadFile(filepath.Join(part, name)); err == nil && p.Bytes.Done == p.Bytes.Size {
				kept[name] = b
			}
		}
	}}
	if err := Receive(timeout(t), o); err != nil {
		t.Fatal(err)
	}
	if len(kept) != 2 {
		t.Fatal("no journal was seen")
	}
	// Without the tree, and with a file in it that has lost its bytes.
	for _, empty := range []bool{false, true} {
		if err := os.Remove(dst); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(part, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, b := range kept {
			put(t, filepath.Join(part, name), b, 0o600)
		}
		if empty {
			put(t, filepath.Join(part, treeName), nil, 0o600)
		}
		if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: o.Mirrors}); err != nil {
			t.Fatal(err)
		}
		same(t, dst, src)
	}
}

// TestSyncDuringWrite has a sync that begins while bytes are written: the next one
// covers them.
func TestSyncDuringWrite(t *testing.T) {
	t.Parallel()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s, err := newSink(root, newManifest([]entry{{kind: regular, size: 3}}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.dir.Close()
	defer s.close()
	s.handles.open = func(i int) (*os.File, error) {
		s.dirty = newSet(1) // as Sync takes it
		return s.open(i)
	}
	if _, err := s.WriteAt([]byte("abc"), 0); err != nil {
		t.Fatal(err)
	}
	if !s.dirty.has(0) {
		t.Error("what was written will not be synced")
	}
}

// TestAnotherForm changes a share, to one as large, between a receiver's manifest
// and its contents.
func TestAnotherForm(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	put(t, src+"/a", []byte("1"), 0o644)
	put(t, src+"/b", []byte("22"), 0o644)
	s, near := share(t, src, ShareOptions{})
	name := s.now.contentsName
	if err := os.Rename(src+"/a", src+"/c"); err != nil {
		t.Fatal(err)
	}
	put(t, src+"/new", nil, 0o600)
	if _, err := s.find(manifestName); err != nil { // another receiver's
		t.Fatal(err)
	}
	var remote *bulk.RemoteError
	if _, err := s.find(name); !errors.As(err, &remote) || remote.Code != bulk.CodeChanged {
		t.Errorf("contents of another form: %v", err)
	}
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
}

// TestNewFile adds an empty directory and a link, and nothing else, to a share.
func TestNewFile(t *testing.T) {
	t.Parallel()
	src := filepath.Join(t.TempDir(), "src")
	put(t, src+"/a", []byte("1"), 0o644)
	_, near := share(t, src, ShareOptions{})
	if err := errors.Join(os.Mkdir(src+"/d", 0o700), os.Symlink("a", src+"/l")); err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(t.TempDir(), "dst")
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
}

// TestOneCase receives where upper and lower case are the same: of two files one would be
// lost.
func TestOneCase(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	put(t, src+"/a/README", payload(1, 100), 0o644)
	put(t, src+"/b/Readme", payload(2, 100), 0o644)
	_, near := share(t, src, ShareOptions{})
	// As such a file system does, it finds the lock by another name.
	r := newReceiver(ReceiveOptions{Target: dst})
	if err := r.acquire(); err != nil {
		t.Fatal(err)
	}
	r.lock.Close()
	if err := os.Link(filepath.Join(r.part, "lock"), filepath.Join(r.part, "LOCK")); err != nil {
		t.Fatal(err)
	}
	if a, b := newManifest([]entry{{}, {path: "a"}, {path: "b"}, {path: "Ärger"}, {path: "ärger"}}).twins(); a != "Ärger" || b != "ärger" {
		t.Errorf("the same: %q, %q", a, b)
	}
	put(t, src+"/A/Readme", payload(3, 100), 0o644)
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); err == nil || !strings.Contains(err.Error(), "upper and lower case") {
		t.Errorf("two files that would be one: %v", err)
	}
	if list, _ := os.ReadDir(filepath.Dir(dst)); len(list) > 0 {
		t.Errorf("%v were left", list)
	}
	if err := os.RemoveAll(src + "/A"); err != nil {
		t.Fatal(err)
	}
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
}
