package fuse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/capsule/tree"
)

// newTreeStore returns a store and a tree in it.
func newTreeStore(t testing.TB, quota tree.Quota) (realStore, capsule.ID) {
	t.Helper()
	needFUSE(t)
	st, err := store.Open(context.Background(), store.Options{
		Dir: t.TempDir(), Logger: new(logBuffer).logger(), Keys: keyring.Source{MasterKey: strings.Repeat("0123456789abcdef", 4)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	s := newRealStore(st)
	info, err := s.trees.Create(context.Background(), "tree", nil, tree.New{Mode: 0o755}, quota)
	if err != nil {
		t.Fatal(err)
	}
	return s, info.ID
}

// mountTree mounts a new tree.
func mountTree(t testing.TB) string {
	t.Helper()
	s, id := newTreeStore(t, tree.Quota{})
	_, dir := mountAt(t, s, Options{Capsule: id, AllowOther: true, Target: openTempDir(t)})
	return dir
}

// run runs a command in a directory and returns what it printed.
func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// need skips a test without a program.
func need(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skip(err)
	}
}

// TestTreeWork does what people do all day.
func TestTreeWork(t *testing.T) {
	dir := mountTree(t)
	t.Run("copy", func(t *testing.T) {
		src := "/usr/include/linux"
		if _, err := os.Stat(src); err != nil {
			t.Skip(err)
		}
		run(t, dir, "cp", "-a", src, "x")
		run(t, dir, "diff", "-r", src, "x")
		run(t, dir, "rm", "-r", "x")
	})
	t.Run("git", func(t *testing.T) {
		need(t, "git")
		run(t, dir, "git", "init", "-q", "repo")
		repo := filepath.Join(dir, "repo")
		for i := range 3 {
			for j := range 20 {
				if err := os.WriteFile(filepath.Join(repo, fmt.Sprint("f", j)), pattern(byte(i+j), 3000*j), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			run(t, repo, "git", "add", ".")
			run(t, repo, "git", "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", fmt.Sprint(i))
		}
		run(t, repo, "git", "gc", "-q")
		run(t, dir, "git", "clone", "-q", "repo", "clone")
		run(t, filepath.Join(dir, "clone"), "git", "fsck", "--strict")
		if out := run(t, filepath.Join(dir, "clone"), "git", "status", "--porcelain"); out != "" {
			t.Errorf("git status: %s", out)
		}
	})
	t.Run("compile", func(t *testing.T) {
		if testing.Short() {
			t.Skip("compiles the standard library")
		}
		need(t, "go")
		pkg := filepath.Join(dir, "hello")
		write(t, filepath.Join(pkg, "go.mod"), "module hello\n\ngo 1.24\n")
		write(t, filepath.Join(pkg, "main.go"), "package main\n\nimport \"sort\"\n\nfunc main() { a := []int{2, 1}; sort.Ints(a); println(a[0]) }\n")
		cmd := exec.Command("go", "build", "-o", "hello", ".")
		cmd.Dir = pkg
		cmd.Env = append(os.Environ(), "GOCACHE="+filepath.Join(dir, "cache"), "GOTMPDIR="+dir, "GOFLAGS=-mod=mod", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if out := run(t, pkg, "./hello"); out != "1\n" {
			t.Errorf("it prints %q", out)
		}
	})
	t.Run("sqlite", func(t *testing.T) {
		need(t, "sqlite3")
		out := run(t, dir, "sqlite3", "db", `PRAGMA journal_mode=WAL; CREATE TABLE t(a);
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<5000) INSERT INTO t SELECT hex(randomblob(100)) FROM n;
			CREATE INDEX i ON t(a); DELETE FROM t WHERE rowid%3=0; VACUUM; PRAGMA integrity_check; SELECT count(*) FROM t;`)
		if out != "wal\nok\n3334\n" {
			t.Errorf("sqlite says %q", out)
		}
	})
	t.Run("acl", func(t *testing.T) {
		need(t, "setfacl")
		write(t, filepath.Join(dir, "acl/f"), "x")
		acl := filepath.Join(dir, "acl")
		if err := os.Chmod(filepath.Join(acl, "f"), 0o640); err != nil {
			t.Fatal(err)
		}
		run(t, acl, "setfacl", "-m", "u:1001:r", "f")
		run(t, acl, "setfacl", "-d", "-m", "u:1002:rwx", ".")
		if out := run(t, acl, "getfacl", "-cn", "f"); out != "user::rw-\nuser:1001:r--\ngroup::r--\nmask::r--\nother::---\n\n" {
			t.Errorf("getfacl says %q", out)
		}
		run(t, acl, "mkdir", "sub")
		if out := run(t, acl, "getfacl", "-cn", "sub"); !strings.Contains(out, "default:user:1002:rwx") {
			t.Errorf("the default ACL is not inherited: %q", out)
		}
		for uid, want := range map[uint32]bool{1001: true, 1002: false} {
			if got := as(uid, "cat", filepath.Join(acl, "f")).Run() == nil; got != want {
				t.Errorf("user %d may read: %v", uid, got)
			}
		}
	})
}

// as is a command that another user runs.
func as(uid uint32, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

// write makes a file and the directories above it.
func write(t testing.TB, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTreeFiles(t *testing.T) {
	dir := mountTree(t)
	file := filepath.Join(dir, "f")
	t.Run("append from many processes", func(t *testing.T) {
		var running sync.WaitGroup
		for i := range 8 {
			running.Go(func() {
				cmd := exec.Command("sh", "-c", fmt.Sprintf("for i in $(seq 100); do echo line-%d-$i >>log; done", i))
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
		running.Wait()
		lines := strings.Fields(string(readFile(t, filepath.Join(dir, "log"))))
		slices.Sort(lines)
		if lines = slices.Compact(lines); len(lines) != 800 {
			t.Errorf("%d lines of 800 are there", len(lines))
		}
	})
	t.Run("mmap", func(t *testing.T) { // in another process: this one serves the mount
		need(t, "python3")
		out := run(t, dir, "python3", "-c", `
import mmap, os
f = os.open("mapped", os.O_RDWR|os.O_CREAT)
os.ftruncate(f, 1<<20)
m = mmap.mmap(f, 1<<20)
for i in range(0, 1<<20, 4096): m[i:i+5] = b"%05d" % (i>>12)
m.flush()
print(os.pread(f, 5, 100<<12), os.pread(f, 5, 255<<12))
os.pwrite(f, b"write", 7<<12)
print(m[7<<12:(7<<12)+5])
m.close(); os.close(f)
print(open("mapped","rb").read()[9<<12:(9<<12)+5])
`)
		if out != "b'00100' b'00255'\nb'write'\nb'00009'\n" {
			t.Errorf("it prints %s", out)
		}
	})
	t.Run("removed and replaced while open", func(t *testing.T) {
		write(t, file, "old")
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		write(t, file+"2", "new")
		if err := os.Rename(file+"2", file); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("er"), 3); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 5)
		if _, err := f.ReadAt(buf, 0); err != nil || string(buf) != "older" {
			t.Errorf("the open file has %q, %v", buf, err)
		}
		if got := string(readFile(t, file)); got != "new" {
			t.Errorf("the new file has %q", got)
		}
		if st, err := f.Stat(); err != nil || st.Sys().(*syscall.Stat_t).Nlink != 0 {
			t.Errorf("stat of the open file: %v %v", st, err)
		}
	})
	t.Run("removed directory and pipe in use", func(t *testing.T) {
		out := run(t, dir, "sh", "-c", `mkdir gone; cd gone; rmdir ../gone; stat -c %h .; ls; touch x 2>&1 | grep -c "No such file"
			cd ..; mkfifo p; exec 3<>p; rm p; echo through >&3; head -n1 <&3; stat -L -c %F /dev/fd/3`)
		if out != "0\n1\nthrough\nfifo\n" {
			t.Errorf("it prints %q", out)
		}
	})
	t.Run("holes", func(t *testing.T) {
		f, err := os.Create(filepath.Join(dir, "sparse"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("x"), 10<<20); err != nil {
			t.Fatal(err)
		}
		if at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); err != nil || at == 0 || at > 10<<20 {
			t.Errorf("data begins at %d, %v", at, err)
		}
		if at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); err != nil || at != 0 {
			t.Errorf("a hole begins at %d, %v", at, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 > 1<<20 {
			t.Errorf("it takes %d blocks, %v", st.Blocks, err)
		}
	})
	t.Run("direct", func(t *testing.T) {
		want := pattern(3, 3<<20)
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, dir, "dd", "if=f", "of=g", "bs=64k", "iflag=direct", "oflag=direct", "status=none")
		if !bytes.Equal(readFile(t, filepath.Join(dir, "g")), want) {
			t.Error("the copy differs")
		}
	})
	t.Run("many open files", func(t *testing.T) {
		n := uint64(100_000)
		if testing.Short() {
			n = 1000
		}
		var old unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n + 1000, Max: max(n+1000, old.Max)}) != nil { // not root
			n = min(n, old.Max-1000)
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n + 1000, Max: old.Max}); err != nil {
				t.Fatal(err)
			}
		}
		defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
		fds := make([]int, 0, n)
		defer func() {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}()
		for range n {
			fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatalf("after %d: %v", len(fds), err)
			}
			fds = append(fds, fd)
		}
		buf := make([]byte, 10)
		if _, err := unix.Pread(fds[n-1], buf, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestTreeLocks(t *testing.T) {
	need(t, "python3")
	s, id := newTreeStore(t, tree.Quota{})
	_, one := mountAt(t, s, Options{Capsule: id})
	_, two := mountAt(t, s, Options{Capsule: id})
	write(t, filepath.Join(one, "f"), "0123456789")
	// Holds a lock until its input ends; says "locked" when it has it.
	hold := func(dir, lock string) (stop func()) {
		cmd := exec.Command("python3", "-c", "import fcntl,os,sys\nf=os.open('f',os.O_RDWR)\n"+lock+"\nprint('locked',flush=True)\nsys.stdin.read()")
		cmd.Dir = dir
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "locked\n" {
			t.Fatalf("the holder says %q, %v", line, err)
		}
		return sync.OnceFunc(func() { in.Close(); cmd.Wait() })
	}
	for _, c := range []struct{ name, lock, try, beside string }{
		{"posix", "fcntl.lockf(f,fcntl.LOCK_EX,4,2)", "fcntl.lockf(f,fcntl.LOCK_SH|fcntl.LOCK_NB,1,3)", "fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,2,0)"},
		{"flock", "fcntl.flock(f,fcntl.LOCK_EX)", "fcntl.flock(f,fcntl.LOCK_SH|fcntl.LOCK_NB)", "fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stop := hold(one, c.lock)
			defer stop()
			for _, dir := range []string{one, two} {
				cmd := exec.Command("python3", "-c", "import fcntl,os\nf=os.open('f',os.O_RDWR)\n"+c.beside+"\ntry: "+c.try+"\nexcept BlockingIOError: print('blocked')")
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil || string(out) != "blocked\n" {
					t.Errorf("%s: %v\n%s", dir, err, out)
				}
			}
			// A signal ends waiting; so does the end of the holder.
			out := run(t, two, "python3", "-c", "import fcntl,os,signal\nf=os.open('f',os.O_RDWR)\nclass A(Exception): pass\ndef h(*a): raise A\nsignal.signal(signal.SIGALRM,h)\nsignal.setitimer(signal.ITIMER_REAL,0.2)\ntry:\n "+c.lock+"\nexcept A: print('interrupted')")
			if out != "interrupted\n" {
				t.Errorf("it says %q", out)
			}
			waited := make(chan func())
			go func() { waited <- hold(two, c.lock) }()
			stop()
			(<-waited)()
		})
	}
}

// TestTmpfile makes files without a name, of which some get one.
func TestTmpfile(t *testing.T) {
	s, id := newTreeStore(t, tree.Quota{Inodes: 3})
	_, dir := mountAt(t, s, Options{Capsule: id})
	open := func(flags int) (fd int, link func(name string) error) {
		t.Helper()
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC|flags, 0o640)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte("text")); err != nil {
			t.Fatal(err)
		}
		return fd, func(name string) error {
			return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, filepath.Join(dir, name), unix.AT_SYMLINK_FOLLOW)
		}
	}
	fd, link := open(0)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the directory has %v, %v", entries, err)
	}
	if err := link("f"); err != nil {
		t.Errorf("a name for it: %v", err)
	}
	unix.Close(fd)
	if st, err := os.Stat(filepath.Join(dir, "f")); err != nil || st.Mode() != 0o640 || string(readFile(t, filepath.Join(dir, "f"))) != "text" {
		t.Errorf("the file is %v, %v", st, err)
	}
	fd, link = open(unix.O_EXCL)
	if err := link("g"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a name for one that never gets any: %v", err)
	}
	if _, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600); !errors.Is(err, unix.EDQUOT) {
		t.Errorf("beyond the quota: %v", err)
	}
	unix.Close(fd)
	eventually(t, "what nobody uses any more is gone", func() bool {
		var st unix.Statfs_t
		return unix.Statfs(dir, &st) == nil && st.Files-st.Ffree == 2
	})
}

// TestOpenFileLocks takes locks that belong to open files rather than processes.
func TestOpenFileLocks(t *testing.T) {
	dir := mountTree(t)
	write(t, filepath.Join(dir, "f"), "0123456789")
	var files [2]*os.File
	for i := range files {
		f, err := os.OpenFile(filepath.Join(dir, "f"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Len: 10}
	if err := unix.FcntlFlock(files[0].Fd(), unix.F_OFD_SETLK, &l); err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(files[1].Fd(), unix.F_OFD_SETLK, &l); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("what another open file has locked: %v", err)
	}
	files[0].Close()
	eventually(t, "the lock goes with the file", func() bool { return unix.FcntlFlock(files[1].Fd(), unix.F_OFD_SETLK, &l) == nil })
}

// TestTwoMounts has each see what is done through the other.
func TestTwoMounts(t *testing.T) {
	s, id := newTreeStore(t, tree.Quota{})
	_, one := mountAt(t, s, Options{Capsule: id})
	_, two := mountAt(t, s, Options{Capsule: id, ReadOnly: true})
	if err := os.WriteFile(filepath.Join(two, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through --ro: %v", err)
	}
	in := func(dir, name string) func() string {
		return func() string {
			b, err := os.ReadFile(filepath.Join(dir, name))
			var e unix.Errno
			if errors.As(err, &e) {
				return unix.ErrnoName(e)
			}
			return string(b)
		}
	}
	sees := func(what string, got func() string, want string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s is %q and not %q", what, want, got()), func() bool { return got() == want })
	}
	f := in(two, "d/f")
	sees("what is not there", f, "ENOENT")
	write(t, filepath.Join(one, "d/f"), "first")
	sees("a new file", f, "first")
	write(t, filepath.Join(one, "d/f"), "second, longer")
	sees("new content", f, "second, longer")
	if err := os.Truncate(filepath.Join(one, "d/f"), 3); err != nil {
		t.Fatal(err)
	}
	sees("truncated", f, "sec")
	if err := os.Chmod(filepath.Join(one, "d/f"), 0o600); err != nil {
		t.Fatal(err)
	}
	sees("mode", func() string { st, _ := os.Stat(filepath.Join(two, "d/f")); return st.Mode().String() }, "-rw-------")
	list := func() string {
		entries, _ := os.ReadDir(filepath.Join(two, "d"))
		return fmt.Sprint(len(entries))
	}
	sees("listing", list, "1")
	write(t, filepath.Join(one, "d/g"), "g")
	sees("listing", list, "2")
	if err := os.Rename(filepath.Join(one, "d"), filepath.Join(one, "e")); err != nil {
		t.Fatal(err)
	}
	sees("old name", f, "ENOENT")
	sees("new name", in(two, "e/g"), "g")
	if err := os.RemoveAll(filepath.Join(one, "e")); err != nil {
		t.Fatal(err)
	}
	sees("removed", in(two, "e/g"), "ENOENT")

	// Open files see it too, and appends from both end up one after the other.
	_, three := mountAt(t, s, Options{Capsule: id})
	var want []byte
	var files []*os.File
	for _, dir := range []string{one, three} {
		f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	for i := range 100 {
		line := fmt.Appendf(nil, "line %d\n", i)
		want = append(want, line...)
		if _, err := files[i%2].Write(line); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{one, two, three} {
		sees("log in "+dir, in(dir, "log"), string(want))
	}
}

func TestTreeQuota(t *testing.T) {
	s, id := newTreeStore(t, tree.Quota{Bytes: 4 << 20, Inodes: 10})
	_, dir := mountAt(t, s, Options{Capsule: id})
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Blocks*uint64(st.Frsize) != 4<<20 || st.Files != 10 || st.Ffree != 9 {
		t.Errorf("statfs says %+v, %v", st, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 5<<20), 0o644); !errors.Is(err, unix.EDQUOT) {
		t.Errorf("5 MiB of 4: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "big")); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; i < 20 && err == nil; i++ {
		err = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644)
	}
	if !errors.Is(err, unix.EDQUOT) {
		t.Errorf("20 files of 10: %v", err)
	}
}

func TestSnapshotMount(t *testing.T) {
	s, id := newTreeStore(t, tree.Quota{})
	_, dir := mountAt(t, s, Options{Capsule: id})
	write(t, filepath.Join(dir, "d/f"), "then")
	if _, err := s.Snapshot(context.Background(), id, "snap"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "d/f"), "now")
	_, snap := mountAt(t, s, Options{Capsule: id, Snapshot: "snap"})
	if got := string(readFile(t, filepath.Join(snap, "d/f"))); got != "then" {
		t.Errorf("the snapshot has %q", got)
	}
	if err := os.Remove(filepath.Join(snap, "d/f")); !errors.Is(err, unix.EROFS) {
		t.Errorf("remove in a snapshot: %v", err)
	}
	_, err := Mount(context.Background(), s, Options{Capsule: id, Snapshot: "none", Target: t.TempDir(), Logger: new(logBuffer).logger()})
	mustKind(t, err, capsule.NotFound)
}

func TestVolumeMount(t *testing.T) {
	s, _ := newTreeStore(t, tree.Quota{})
	info, err := s.Create(context.Background(), store.CreateRequest{Kind: capsule.Volume, Size: 16 << 20}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, dir := mountAt(t, s, Options{Capsule: info.ID})
	file := filepath.Join(dir, "content")
	want := pattern(5, 16<<20)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 16<<20); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write beyond the end: %v", err)
	}
	if err := f.Truncate(5); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate: %v", err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 2<<20); err != nil {
		t.Errorf("punch: %v", err)
	}
	clear(want[1<<20 : 3<<20])
	if at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); err != nil || at != 1<<20 {
		t.Errorf("the hole begins at %d, %v", at, err)
	}
	if at, err := unix.Seek(int(f.Fd()), 1<<20, unix.SEEK_DATA); err != nil || at != 3<<20 {
		t.Errorf("after it data begins at %d, %v", at, err)
	}
	f.Close()
	if err := p.Close(false); err != nil {
		t.Fatal(err)
	}
	_, dir = mountAt(t, s, Options{Capsule: info.ID, ReadOnly: true})
	file = filepath.Join(dir, "content")
	if !bytes.Equal(readFile(t, file), want) {
		t.Error("content differs")
	}
	if _, err := os.OpenFile(file, os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through --ro: %v", err)
	}
}

// TestVolumeTwoMounts has each mount of a volume see what is done through
// another, in files that stay open, and respect its locks.
func TestVolumeTwoMounts(t *testing.T) {
	s, _ := newTreeStore(t, tree.Quota{})
	info, err := s.Create(context.Background(), store.CreateRequest{Kind: capsule.Volume, Size: 4 << 20}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var files [2]*os.File
	for i := range files {
		_, dir := mountAt(t, s, Options{Capsule: info.ID})
		if files[i], err = os.OpenFile(filepath.Join(dir, "content"), os.O_RDWR, 0); err != nil {
			t.Fatal(err)
		}
		defer files[i].Close()
	}
	read := func(f *os.File, off int64, n int) string {
		buf := make([]byte, n)
		if _, err := f.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
		return string(buf)
	}
	for round := range 20 {
		for i := range files {
			for j := range files {
				read(files[j], int64(round)<<12, 100) // now the page is in both caches
			}
			text := fmt.Sprintf("round %d of %d", round, i)
			if _, err := files[i].WriteAt([]byte(text), int64(round)<<12); err != nil {
				t.Fatal(err)
			}
			eventually(t, "what the other mount wrote shows", func() bool { return read(files[1-i], int64(round)<<12, len(text)) == text })
		}
	}
	if err := unix.Fallocate(int(files[0].Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what the other mount punched shows", func() bool { return read(files[1], 0, 5) == "\x00\x00\x00\x00\x00" })
	if _, err := s.ResizeVolume(context.Background(), info.ID, 8<<20); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		eventually(t, "the volume has grown", func() bool { st, err := f.Stat(); return err == nil && st.Size() == 8<<20 })
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 50}
	if err := unix.FcntlFlock(files[0].Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		t.Fatal(err)
	}
	part := unix.Flock_t{Type: unix.F_RDLCK, Start: 149, Len: 1}
	if err := unix.FcntlFlock(files[1].Fd(), unix.F_OFD_SETLK, &part); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a range that another mount has locked: %v", err)
	}
	files[0].Close()
	eventually(t, "the lock goes with the file", func() bool { return unix.FcntlFlock(files[1].Fd(), unix.F_OFD_SETLK, &part) == nil })
}

// TestTreePolicy forbids the view while the tree is mounted.
func TestTreePolicy(t *testing.T) {
	s, id := newTreeStore(t, tree.Quota{})
	_, dir := mountAt(t, s, Options{Capsule: id})
	write(t, filepath.Join(dir, "f"), "x")
	p := *capsule.DefaultPolicy()
	p.Views = capsule.Views{"nfs"}
	if err := s.SetPolicy(context.Background(), id, &p); err != nil {
		t.Fatal(err)
	}
	eventually(t, "files can't be opened", func() bool {
		_, err := os.ReadFile(filepath.Join(dir, "f"))
		return errors.Is(err, unix.EACCES)
	})
	_, err := Mount(context.Background(), s, Options{Capsule: id, Target: t.TempDir(), Logger: new(logBuffer).logger()})
	mustKind(t, err, capsule.Denied)
}
