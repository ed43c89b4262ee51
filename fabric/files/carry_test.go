package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// partly receives a share until so much of it has come, and returns the receiver's
// hidden directory.
func partly(t *testing.T, dst string, m Mirror, bytes int64) *receiver {
	t.Helper()
	ctx, cancel := context.WithCancel(timeout(t))
	defer cancel()
	var left atomic.Int64
	left.Store(bytes)
	g := &gate{Opener: m.Opener, left: &left}
	err := Receive(ctx, ReceiveOptions{Target: dst, Mirrors: []Mirror{{g, "m"}}, Progress: func(p Progress) {
		if left.Load() <= 0 {
			cancel()
		}
	}})
	if err == nil {
		t.Fatal("all of it has come already")
	}
	return newReceiver(ReceiveOptions{Target: dst})
}

// rearrange changes the layout of what layout has made, in all ways: of its bytes few are
// new.
func rearrange(t *testing.T, src string) {
	t.Helper()
	put(t, src+"/0 new", payload(70, 1000), 0o644) // what follows is elsewhere now
	if err := errors.Join(os.Remove(src+"/small/7"), os.Rename(src+"/big", src+"/renamed"), os.Mkdir(src+"/empty", 0o755), os.Symlink("renamed", src+"/big"),
		os.Remove(src+"/was file"), os.Mkdir(src+"/was file", 0o700), os.Link(src+"/small/8", src+"/small/also 8")); err != nil {
		t.Fatal(err)
	}
	grown, err := os.OpenFile(src+"/grows", os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = grown.Write(payload(71, 100))
		err = errors.Join(err, grown.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	put(t, src+"/shrinks", payload(72, testChunk), 0o644)
}

func layout(t *testing.T, src string) {
	t.Helper()
	put(t, src+"/big", payload(60, 20*testChunk+5), 0o400)
	put(t, src+"/grows", payload(61, 20*testChunk), 0o644)
	put(t, src+"/shrinks", payload(62, 3*testChunk), 0o644)
	put(t, src+"/was file", payload(63, 1000), 0o644)
	for i := range 30 {
		put(t, fmt.Sprintf("%s/small/%d", src, i), payload(uint64(i), 2000), 0o644)
	}
	if err := os.Chmod(src+"/small", 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(src+"/small", 0o755) })
}

// TestOtherLayout has a directory whose files are others when its transfer goes on: what
// has arrived is kept, whoever has it under which name.
func TestOtherLayout(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	layout(t, src)
	s, near := share(t, src, ShareOptions{})
	// All but the last chunks have come.
	r := partly(t, dst, Mirror{near, "m"}, 42*testChunk)
	rearrange(t, src)
	before := s.Sent()
	var resumed int64
	var restart string
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}, Progress: func(p Progress) {
		resumed, restart = p.Bytes.Resumed, p.Restart
	}}); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
	if _, err := os.Lstat(r.part); err == nil {
		t.Error("the hidden directory was left")
	}
	size, _, _ := s.Size()
	if again := s.Sent() - before; again > 24*testChunk || resumed < 20*testChunk || restart == "" {
		t.Errorf("%d of %d bytes came again; %d were kept; it says %q", again, size, resumed, restart)
	}
}

// TestOtherLayoutKilled has a receiver that is killed at any point while it takes over
// what has arrived: nothing is lost, whatever is there the next time.
func TestOtherLayoutKilled(t *testing.T) {
	t.Parallel()
	steps := []func(r *receiver) error{
		func(r *receiver) error { return os.Remove(filepath.Join(r.part, manifestFile+nextSuffix)) },
		func(r *receiver) error {
			return errors.Join(os.Remove(filepath.Join(r.part, manifestFile+nextSuffix)), os.Remove(filepath.Join(r.part, journalFile+nextSuffix)))
		},
		func(r *receiver) error { return nil },
		func(r *receiver) error { return os.RemoveAll(filepath.Join(r.part, treeName, "small")) },
		func(r *receiver) error {
			return errors.Join(removeAll(filepath.Join(r.part, treeName)), os.Rename(filepath.Join(r.part, treeName+nextSuffix), filepath.Join(r.part, treeName)))
		},
		func(r *receiver) error {
			return os.Rename(filepath.Join(r.part, journalFile+nextSuffix), filepath.Join(r.part, journalFile))
		},
	}
	for i, step := range steps {
		src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
		layout(t, src)
		s, near := share(t, src, ShareOptions{})
		r := partly(t, dst, Mirror{near, "m"}, 42*testChunk)
		rearrange(t, src)
		m, text, _, err := newReceiver(ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}).manifest(timeout(t))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(r.part, manifestFile))
		if err != nil {
			t.Fatal(err)
		}
		old, err := decodeManifest(string(b))
		if err != nil {
			t.Fatal(err)
		}
		if kept, err := r.prepare(timeout(t), old, m, text, Mirror{near, "m"}); err != nil || kept < 20*testChunk {
			t.Fatalf("%d bytes are kept: %v", kept, err)
		}
		if err := step(r); err != nil {
			t.Fatal(err)
		}
		before := s.Sent()
		if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); err != nil {
			t.Fatal(err)
		}
		same(t, dst, src)
		if again := s.Sent() - before; again > 24*testChunk {
			t.Errorf("step %d: %d bytes came again", i, again)
		}
	}
}

// TestOtherLayoutLies has files that look the same by name, size and time and are not:
// they come again.
func TestOtherLayoutLies(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	layout(t, src)
	_, near := share(t, src, ShareOptions{})
	partly(t, dst, Mirror{near, "m"}, 42*testChunk)
	fi, err := os.Stat(src + "/big")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/big", "/twin"} {
		os.Remove(src + name)
		put(t, src+name, payload(80, 20*testChunk+5), 0o644)
		if err := os.Chtimes(src+name, fi.ModTime(), fi.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
	a, err := os.Stat(dst + "/big")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.Stat(dst + "/twin"); err != nil || os.SameFile(a, b) {
		t.Errorf("two files are one now: %v", err)
	}
}
