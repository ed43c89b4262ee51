package files

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/fabric/bulk"
)

// TestManyFiles receives many small files; BenchmarkReceiveMany has ten times as many.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	putMany(t, src, benchFiles/10)
	_, near := share(t, src, ShareOptions{})
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
}

// TestLinksHolesAttributes has what not every file has.
func TestLinksHolesAttributes(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	put(t, src+"/a/first", []byte("one file"), 0o444)
	put(t, src+"/b/z", []byte("another"), 0o644)
	if err := errors.Join(os.Link(src+"/a/first", src+"/b/second"), os.Link(src+"/a/first", src+"/0"), os.Link(src+"/b/z", src+"/b/y")); err != nil {
		t.Fatal(err)
	}
	const size = 40*testChunk + 123
	f, err := os.Create(src + "/holes")
	if err == nil {
		_, err = f.WriteAt(payload(1, testChunk), 10*testChunk)
	}
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	put(t, src+"/zeros", make([]byte, 3*testChunk), 0o644) // not a hole
	attributes := unix.Setxattr(src+"/holes", "user.color", []byte("blue\x00\xff"), 0) == nil
	if attributes {
		if err := errors.Join(unix.Setxattr(src+"/holes", "user.empty", nil, 0), unix.Setxattr(src+"/a", "user.dir", []byte("yes"), 0)); err != nil {
			t.Fatal(err)
		}
	}
	s, near := share(t, src, ShareOptions{})
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
	stat := func(path string) *syscall.Stat_t {
		fi, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Sys().(*syscall.Stat_t)
	}
	if a := stat(dst + "/a/first"); a.Nlink != 3 || stat(dst+"/b/second").Ino != a.Ino || stat(dst+"/0").Ino != a.Ino {
		t.Error("the names of one file are not those of one file any more")
	}
	if stat(dst+"/b/z").Ino != stat(dst+"/b/y").Ino {
		t.Error("the names of the other file are not those of one file any more")
	}
	if from, to := stat(src+"/holes"), stat(dst+"/holes"); from.Blocks*512 < size && to.Blocks*512 >= size {
		t.Errorf("the holes take up room: %d blocks, %d at the source", to.Blocks, from.Blocks)
	}
	if s.Sent() > 10*testChunk {
		t.Errorf("%d bytes were sent, for a file that is a hole but for %d", s.Sent(), testChunk)
	}
	if attributes {
		for path, want := range map[string]map[string]string{"holes": {"user.color": "blue\x00\xff", "user.empty": ""}, "a": {"user.dir": "yes"}} {
			for name, value := range want {
				b := make([]byte, 100)
				n, err := unix.Getxattr(filepath.Join(dst, path), name, b)
				if err != nil || string(b[:n]) != value {
					t.Errorf("%s of %s: %q, %v", name, path, b[:max(n, 0)], err)
				}
			}
		}
	}
}

// TestKilledWhenDone has what a receiver leaves that is killed at any point after the
// rename: the next one finishes it, and says that it is there.
func TestKilledWhenDone(t *testing.T) {
	t.Parallel()
	src, dir := filepath.Join(t.TempDir(), "src"), t.TempDir()
	put(t, src+"/f", payload(1, 2*testChunk), 0o644)
	if err := os.Chmod(src, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(src, 0o755); os.Chmod(filepath.Join(dir, "dst"), 0o755) })
	dst := filepath.Join(dir, "dst")
	_, near := share(t, src, ShareOptions{})
	o := ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}
	if err := Receive(timeout(t), o); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
	leave := func(files map[string]string) string {
		r := newReceiver(o)
		if err := os.Mkdir(r.part, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, text := range files {
			put(t, filepath.Join(r.part, name), []byte(text), 0o600)
		}
		return r.part
	}
	at, err := markOf(dst)
	if err != nil {
		t.Fatal(err)
	}
	m := mark{inodeMark: at, perm: 0o555, root: bulk.Hash{1, 2}, name: "contents/x"}
	if err := os.Chmod(dst, 0o755); err != nil { // as it is renamed
		t.Fatal(err)
	}
	leave(map[string]string{lockFile: "", journalFile: "x", manifestFile: "x", markFile: m.String()})
	if err := Receive(timeout(t), ReceiveOptions{Target: dst}); err != nil { // it needs no mirror
		t.Fatal(err)
	}
	same(t, dst, src)
	leave(map[string]string{lockFile: "", markFile: m.String()})
	own, err := Received(dst)
	if err != nil || own == nil || own.Hash() != m.root {
		t.Fatal(own, err)
	}
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
	if own, err := Received(dst); own != nil || !errors.Is(err, ErrExists) {
		t.Errorf("when nothing is left: %v, %v", own, err)
	}
	// Something else of that name is not taken for it, and a transfer to it is kept.
	other := m
	other.ino++
	part := leave(map[string]string{markFile: other.String(), manifestFile: "x"})
	if own, err := Received(dst); own != nil || !errors.Is(err, ErrExists) {
		t.Errorf("something else: %v, %v", own, err)
	}
	if _, err := os.Stat(filepath.Join(part, manifestFile)); err != nil {
		t.Error(err)
	}
	if own, err := Received(filepath.Join(dir, "another")); own != nil || err != nil {
		t.Errorf("nothing: %v, %v", own, err)
	}
}

const envNobody = "FILES_TEST_NOBODY"

// TestAsNobody runs what root would get around, as another user.
func TestAsNobody(t *testing.T) {
	if os.Getenv(envNobody) != "" || os.Geteuid() != 0 {
		t.Run("unreadable", testUnreadable)
		t.Run("resume", testResumeAsNobody)
		return
	}
	t.Parallel()
	dir := t.TempDir()
	const nobody = 65534
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	for p := dir; p != "/"; p = filepath.Dir(p) { // a temporary directory's parents may be root's alone
		if fi, err := os.Stat(p); err == nil && strings.HasPrefix(p, os.TempDir()) && p != os.TempDir() && fi.Mode().Perm()&0o111 != 0o111 {
			os.Chmod(p, fi.Mode().Perm()|0o111)
		}
	}
	cmd := exec.CommandContext(timeout(t), "/proc/self/exe", "-test.run=^TestAsNobody$", "-test.count=1", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), envNobody+"=1", "TMPDIR="+dir, "HOME="+dir, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
}

func testUnreadable(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	put(t, src+"/a", []byte("a"), 0o644)
	put(t, src+"/secret", []byte("s"), 0)
	put(t, src+"/dir/b", []byte("b"), 0o644)
	if err := os.Mkdir(src+"/closed", 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(src+"/closed", 0o700) })
	var unreadable *UnreadableError
	if _, err := NewShare(src, ShareOptions{}); !errors.As(err, &unreadable) || unreadable.Count != 2 || !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("%v", err)
	}
	if _, err := NewShare(src+"/secret", ShareOptions{}); !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("a file: %v", err)
	}
	s, near := share(t, src, ShareOptions{SkipUnreadable: true})
	if u := s.Unreadable(); u == nil || u.Count != 2 {
		t.Errorf("%v", u)
	}
	o := ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}
	if err := Receive(timeout(t), o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dst + "/secret"); err == nil {
		t.Error("a file that can't be read has arrived")
	}
	if b, err := os.ReadFile(dst + "/dir/b"); string(b) != "b" {
		t.Error(err)
	}
	// What becomes unreadable later ends a transfer, with the reason, at both ends.
	os.Chmod(src+"/closed", 0o700)
	os.Chmod(src+"/secret", 0o600)
	failed := make(chan error, 1)
	_, near = share(t, src, ShareOptions{Failed: func(err error) { failed <- err }})
	os.Chmod(src+"/a", 0)
	var remote *bulk.RemoteError
	err := Receive(timeout(t), ReceiveOptions{Target: dst + "2", Mirrors: []Mirror{{near, "m"}}})
	if !errors.As(err, &remote) || remote.Code != bulk.CodeUnreadable || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("%v", err)
	}
	if err := <-failed; !strings.Contains(err.Error(), "src/a") {
		t.Errorf("the giver is told: %v", err)
	}
}

// testResumeAsNobody: what the receiver's own files may not be read or written by is
// no obstacle to it.
func testResumeAsNobody(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	tree(t, src)
	s, near := share(t, src, ShareOptions{})
	r := newReceiver(ReceiveOptions{Target: dst})
	// Somebody makes the target when all has come and has its permissions.
	o := ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}, Progress: func(p Progress) {
		if p.Bytes.Done == p.Bytes.Size {
			put(t, dst, nil, 0o644)
		}
	}}
	if err := Receive(timeout(t), o); !errors.Is(err, ErrExists) {
		t.Fatal(err)
	}
	if _, err := os.Lstat(r.part); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dst); err != nil {
		t.Fatal(err)
	}
	before := s.Sent()
	o.Progress = nil
	if err := Receive(timeout(t), o); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
	if again := s.Sent() - before; again > 100<<10 {
		t.Errorf("%d bytes were sent again", again)
	}
	filepath.WalkDir(dst, func(p string, d fs.DirEntry, err error) error { // so that it can be removed
		if d != nil && d.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
}
