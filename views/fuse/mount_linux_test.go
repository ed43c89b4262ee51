package fuse

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views"

	"golang.org/x/sys/unix"
)

// needFUSE skips a test where the kernel can't mount.
func needFUSE(t testing.TB) {
	t.Helper()
	if ok, why := Available(); !ok {
		t.Skip("no FUSE: " + why)
	}
}

// mountAt mounts for the length of a test.
func mountAt(t testing.TB, s Store, o Options) (*views.Projection, string) {
	t.Helper()
	needFUSE(t)
	if o.Target == "" {
		o.Target = t.TempDir()
	}
	if o.Logger == nil {
		o.Logger = new(logBuffer).logger()
	}
	p, err := Mount(context.Background(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(false); err != nil {
			t.Error(err)
			p.Close(true)
		}
		<-p.Done()
	})
	return p, p.Target
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCapsuleMount(t *testing.T) {
	s := newFakeStore()
	content := pattern(1, 3<<20+17)
	info := s.put("a/b", content)
	p, dir := mountAt(t, s, Options{Capsule: info.ID})
	if p.View != "fuse" || p.Mode != views.ModeFUSE || p.Capsule != info.ID || p.Name != "a/b" {
		t.Errorf("projection is %+v", p.Info)
	}

	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "content" {
		t.Fatalf("directory holds %v, %v", entries, err)
	}
	file := filepath.Join(dir, "content")
	if !bytes.Equal(readFile(t, file), content) {
		t.Error("content differs")
	}

	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, file, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		t.Fatal(err)
	}
	timeOf := func(ts unix.StatxTimestamp) time.Time { return time.Unix(ts.Sec, int64(ts.Nsec)) }
	if st.Mode != unix.S_IFREG|0o444 || st.Size != uint64(len(content)) || st.Nlink != 1 ||
		st.Uid != uint32(os.Geteuid()) || st.Gid != uint32(os.Getegid()) || st.Blocks != (uint64(len(content))+511)/512 {
		t.Errorf("statx of content: %+v", st)
	}
	if !timeOf(st.Mtime).Equal(info.Modified) || !timeOf(st.Ctime).Equal(info.Modified) || !timeOf(st.Btime).Equal(info.Created) {
		t.Errorf("times are %v %v %v", timeOf(st.Mtime), timeOf(st.Ctime), timeOf(st.Btime))
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode() != os.ModeDir|0o555 {
		t.Errorf("directory is %v, %v", fi, err)
	}

	for what, err := range map[string]error{
		"write":  os.WriteFile(file, nil, 0o644),
		"create": os.WriteFile(filepath.Join(dir, "x"), nil, 0o644),
		"remove": os.Remove(file),
		"mkdir":  os.Mkdir(filepath.Join(dir, "d"), 0o755),
		"chmod":  os.Chmod(file, 0o600),
		"rename": os.Rename(file, filepath.Join(dir, "y")),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v, want EROFS", what, err)
		}
	}

	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Blocks != (uint64(len(content))+4095)/4096 || fs.Bfree != 0 || fs.Files != 1 {
		t.Errorf("statfs: %+v, %v", fs, err)
	}
	m, ok, err := mountedAt(dir)
	if err != nil || !ok || m.fsType != "fuse.space" || m.source != "space" {
		t.Errorf("mountinfo: %+v %v %v", m, ok, err)
	}
}

func TestSizes(t *testing.T) {
	s := newFakeStore()
	_, dir := mountAt(t, s, Options{})
	for _, n := range []int{0, 1, 4095, 4096, 4097, maxRead - 1, maxRead, maxRead + 1} {
		name := fmt.Sprint("f", n)
		want := pattern(byte(n), n)
		s.put(name, want)
		if got := readFile(t, filepath.Join(dir, name)); !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d", n, len(got))
		}
	}
	// 16 EiB offsets and sizes: the largest that a file can have.
	s.putReader("huge", zeros{}, 1<<63-1)
	f, err := os.Open(filepath.Join(dir, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := f.ReadAt(make([]byte, 10), 1<<63-1-4096); n != 10 || err != nil {
		t.Errorf("read near the end of a huge file: %d %v", n, err)
	}
}

type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

func TestNewVersions(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprintf("silent=%v", silent), func(t *testing.T) {
			s := newFakeStore()
			s.silent = silent // opens have to be right without notifications too
			v1, v2 := pattern(1, 5<<20), pattern(2, 3<<20+5)
			info := s.put("x", v1)
			_, dir := mountAt(t, s, Options{Capsule: info.ID})
			file := filepath.Join(dir, "content")

			old, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			st1, _ := old.Stat()
			half := make([]byte, 1<<20)
			if _, err := io.ReadFull(old, half); err != nil {
				t.Fatal(err)
			}
			mapped := startMapper(t, file)

			s.put("x", v2)
			if got := readFile(t, file); !bytes.Equal(got, v2) {
				t.Fatal("an open after the replacement does not show the new version")
			}
			st2, err := os.Stat(file)
			if err != nil || st2.Size() != int64(len(v2)) {
				t.Errorf("new size %v, %v", st2, err)
			}
			if a, b := st1.Sys().(*syscall.Stat_t).Ino, st2.Sys().(*syscall.Stat_t).Ino; a != b {
				t.Errorf("inode number changed from %d to %d", a, b)
			}

			rest, err := io.ReadAll(old)
			if err != nil || !bytes.Equal(append(half, rest...), v1) {
				t.Errorf("the open handle does not go on with its version: %v", err)
			}
			if pages, sum := mapped(); strings.Contains(pages, "x") || sum != sha256.Sum256(v1) {
				t.Errorf("the mapping does not show its version: %s", pages)
			}
			if st, err := old.Stat(); err != nil || st.Size() != int64(len(v1)) {
				t.Errorf("fstat of the old version: %v, %v", st, err)
			}
			if got := readFile(t, file); !bytes.Equal(got, v2) {
				t.Error("the old handle's reads leaked into the new version's pages")
			}
			if !silent {
				s.put("x", v1[:100])
				eventually(t, "stat shows the third version", func() bool {
					st, err := os.Stat(file)
					return err == nil && st.Size() == 100
				})
			}
		})
	}
}

func TestConcurrentReplacement(t *testing.T) {
	// Each version is one byte value over: whoever sees two mixed them.
	s := newFakeStore()
	const size = 600 << 10
	version := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, size+i) }
	info := s.put("x", version(1))
	_, dir := mountAt(t, s, Options{Capsule: info.ID})
	file := filepath.Join(dir, "content")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			last := 0
			for {
				select {
				case <-stop:
					return
				default:
				}
				b, err := os.ReadFile(file)
				if err != nil {
					t.Error(err)
					return
				}
				i := len(b) - size
				if !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, size+i)) {
					t.Errorf("version %d is mixed with another", i)
					return
				}
				if i < last {
					t.Errorf("saw version %d after %d", i, last)
					return
				}
				last = i
			}
		})
	}
	for i := 2; i < 60; i++ {
		s.put("x", version(i))
		if b := readFile(t, file); len(b) != size+i {
			t.Errorf("an open after put %d saw version %d", i, len(b)-size)
		}
	}
	close(stop)
	wg.Wait()
}

func TestSecondReadComesFromThePageCache(t *testing.T) {
	s := newFakeStore()
	info := s.put("x", pattern(1, 4<<20))
	_, dir := mountAt(t, s, Options{Capsule: info.ID})
	first := readFile(t, filepath.Join(dir, "content"))
	_, _, before := s.counts()
	second := readFile(t, filepath.Join(dir, "content"))
	if _, _, after := s.counts(); after != before {
		t.Errorf("the second read asked the store %d times", after-before)
	}
	if !bytes.Equal(first, second) {
		t.Error("content differs")
	}
}

func TestRemoved(t *testing.T) {
	s := newFakeStore()
	want := pattern(1, 1<<20)
	info := s.put("d/e/x", want)
	_, dir := mountAt(t, s, Options{})
	file := filepath.Join(dir, "d/e/x")
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	s.remove(info.ID)
	if _, err := os.Open(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open of a removed capsule: %v", err)
	}
	eventually(t, "the directories are gone with their last capsule", func() bool {
		_, err := os.Stat(filepath.Join(dir, "d"))
		return errors.Is(err, os.ErrNotExist)
	})
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the open handle does not go on: %v", err)
	}
	f.Close()
	eventually(t, "the reader is closed", func() bool { n, _, _ := s.counts(); return n == 0 })
}

func TestNamespace(t *testing.T) {
	s := newFakeStore()
	for name, content := range map[string]string{"a": "1", "dir/b": "22", "dir/sub/c": "333", "dir/ü x": "4444"} {
		s.put(name, []byte(content))
	}
	_, dir := mountAt(t, s, Options{})
	var walked []string
	filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		rel, _ := filepath.Rel(dir, p)
		line := rel
		if d.Type().IsRegular() {
			line += "=" + string(readFile(t, p))
		}
		walked = append(walked, line)
		return nil
	})
	if got, want := strings.Join(walked, " "), ". a=1 dir dir/b=22 dir/sub dir/sub/c=333 dir/ü x=4444"; got != want {
		t.Errorf("walked %s, want %s", got, want)
	}

	// A rename, and another capsule in the old one's place.
	b, _, _ := s.LookupName(context.Background(), "dir/b")
	s.rename(b.ID, "moved/b")
	s.put("dir/b", []byte("new"))
	if got := string(readFile(t, filepath.Join(dir, "dir/b"))); got != "new" {
		t.Errorf("dir/b is %q", got)
	}
	if got := string(readFile(t, filepath.Join(dir, "moved/b"))); got != "22" {
		t.Errorf("moved/b is %q", got)
	}
	for _, name := range []string{"nope", strings.Repeat("x", 255), "a\x01b", "\xff\xfe"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("stat %q: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, strings.Repeat("x", 256))); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("stat of a long name: %v", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Files != 5 {
		t.Errorf("statfs: %+v %v", fs, err)
	}
}

func TestPolicy(t *testing.T) {
	s := newFakeStore()
	info := s.put("secret", []byte("x"))
	s.update(info.ID, func(c *fakeCapsule) { c.policy = &capsule.Policy{Views: capsule.Views{"nfs"}} })
	_, dir := mountAt(t, s, Options{})
	if st, err := os.Stat(filepath.Join(dir, "secret")); err != nil || st.Size() != 1 {
		t.Errorf("stat: %v %v", st, err)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "secret")); !errors.Is(err, syscall.EACCES) {
		t.Errorf("open: %v, want EACCES", err)
	}
	_, err := Mount(context.Background(), s, Options{Capsule: info.ID, Target: t.TempDir()})
	mustKind(t, err, capsule.Denied, "views", info.ID.String())
	if n, _, _ := s.counts(); n != 0 {
		t.Errorf("%d readers leaked", n)
	}
}

func TestLargeDirectory(t *testing.T) {
	s := newBigDir(20_000)
	_, dir := mountAt(t, s, Options{})
	d, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 2 { // and again after a rewind
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		names, err := d.Readdirnames(-1)
		if err != nil || len(names) != 20_000 {
			t.Fatalf("%d names, %v", len(names), err)
		}
		for i, name := range names {
			if name != s.name(i) {
				t.Fatalf("name %d is %s", i, name)
			}
		}
	}

	// Every offset goes on with the entry that followed it, in any order.
	fd, err := unix.Open(filepath.Join(dir, "big"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var offs []int64
	var names []string
	buf := make([]byte, 300) // far less than what the kernel asks us for
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			reclen := int(b[16]) | int(b[17])<<8
			off := int64(0)
			for i := range 8 {
				off |= int64(b[8+i]) << (8 * i)
			}
			offs = append(offs, off)
			names = append(names, unix.ByteSliceToString(b[19:reclen]))
			b = b[reclen:]
		}
	}
	if len(names) != 20_002 || names[0] != "." || names[1] != ".." {
		t.Fatalf("%d names, first %q", len(names), names[:2])
	}
	for _, i := range []int{3, 19_000, 511, 512, 513, 514, 515, 10_000, 0} {
		if _, err := unix.Seek(fd, offs[i], io.SeekStart); err != nil {
			t.Fatal(err)
		}
		n, err := unix.Getdents(fd, buf)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		reclen := int(buf[16]) | int(buf[17])<<8
		if got := unix.ByteSliceToString(buf[19:reclen]); got != names[i+1] {
			t.Errorf("after offset %d comes %s, want %s", offs[i], got, names[i+1])
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.maxLimit > dirPage {
		t.Errorf("a page of %d entries was asked for", s.maxLimit)
	}
}

// bigDir is a namespace with one directory of n empty capsules.
type bigDir struct {
	*fakeStore
	n        int
	maxLimit int
}

func newBigDir(n int) *bigDir { return &bigDir{fakeStore: newFakeStore(), n: n} }

func (s *bigDir) name(i int) string { return fmt.Sprintf("f%08d", i) }

func (s *bigDir) info(i int) capsule.Info {
	return capsule.Info{ID: capsule.ID{0: 1, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}, Kind: capsule.Object, Name: "big/" + s.name(i), Version: 1}
}

func (s *bigDir) ReadDir(_ context.Context, dir, after string, limit int) ([]DirEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dir == "" {
		if after != "" {
			return nil, nil
		}
		return []DirEntry{{Name: "big", Dir: true}}, nil
	}
	s.maxLimit = max(s.maxLimit, limit)
	first := 0
	if after != "" {
		fmt.Sscanf(after, "f%d", &first)
		first++
	}
	var entries []DirEntry
	for i := first; i < s.n && len(entries) < limit; i++ {
		entries = append(entries, DirEntry{Name: s.name(i), Info: s.info(i)})
	}
	return entries, nil
}

func (s *bigDir) LookupName(_ context.Context, p string) (capsule.Info, bool, error) {
	if p == "big" {
		return capsule.Info{}, true, nil
	}
	i := -1
	if fmt.Sscanf(p, "big/f%d", &i); i < 0 || i >= s.n {
		return capsule.Info{}, false, capsule.Errorf(capsule.NotFound, "no %s", p)
	}
	return s.info(i), false, nil
}

func TestNodesAreBounded(t *testing.T) {
	defer func(n int) { maxNodes = n }(maxNodes)
	maxNodes = 1000
	s := newBigDir(5000)
	needFUSE(t)
	f := newFileSystem(s, capsule.ID{}, new(logBuffer).logger())
	dir := t.TempDir()
	m := serveAt(t, f, dir)
	defer func() { m.Close(true); <-m.Done() }()
	for i := range s.n {
		if _, err := os.Stat(filepath.Join(dir, "big", s.name(i))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the kernel lets go of nodes", func() bool { return f.nodes.len() <= maxNodes*5/4 })
}

// serveAt mounts a file system that the test keeps hold of.
func serveAt(t *testing.T, f *fileSystem, dir string) *mount {
	t.Helper()
	fd, err := attach(dir, maxRead, true, false)
	if err != nil {
		t.Fatal(err)
	}
	m := &mount{done: make(chan struct{}), begun: make(chan struct{})}
	m.about.Info.Target = dir
	if err := m.start(f, fd, Options{Logger: f.log}); err != nil {
		detach(dir, true)
		t.Fatal(err)
	}
	return m
}

func TestDamage(t *testing.T) {
	for _, size := range []int{300 << 10, 8 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { testDamage(t, size) })
	}
}

func testDamage(t *testing.T, size int) {
	const from, to = 100<<10 + 123, 160<<10 + 77
	s := newFakeStore()
	content := pattern(1, size)
	info := s.put("a-telling-name", content)
	s.update(info.ID, func(c *fakeCapsule) { c.damaged = [][2]int64{{from, to}} })
	var log logBuffer
	_, dir := mountAt(t, s, Options{Capsule: info.ID, Logger: log.logger()})
	file := filepath.Join(dir, "content")
	badPage := func(off int64) bool { return off/4096*4096 < to && off/4096*4096+4096 > from }

	t.Run("read", func(t *testing.T) {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// Front to back, so that readahead runs into the damage.
		buf := make([]byte, 4096)
		for off := int64(0); off < int64(size); off += 4096 {
			n, err := f.ReadAt(buf, off)
			if badPage(off) {
				if !errors.Is(err, syscall.EIO) {
					t.Fatalf("read at %d in the damage: %d, %v", off, n, err)
				}
			} else if err != nil && err != io.EOF || !bytes.Equal(buf[:n], content[off:min(off+4096, int64(size))]) {
				t.Fatalf("read at %d beside the damage: %d, %v", off, n, err)
			}
		}
	})
	t.Run("large reads", func(t *testing.T) {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, err := io.ReadFull(f, make([]byte, size))
		if want := from / 4096 * 4096; n != want || !errors.Is(err, syscall.EIO) {
			t.Errorf("reading on ended after %d, %v; want %d, EIO", n, err, want)
		}
		rest := make([]byte, size)
		k, err := f.ReadAt(rest, (to+4095)/4096*4096)
		if err != io.EOF || !bytes.Equal(rest[:k], content[(to+4095)/4096*4096:]) {
			t.Errorf("behind the damage: %d, %v", k, err)
		}
	})
	t.Run("direct", func(t *testing.T) {
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		buf := make([]byte, 64<<10)
		if n, err := unix.Pread(fd, buf, 0); n != len(buf) || err != nil || !bytes.Equal(buf, content[:len(buf)]) {
			t.Errorf("before the damage: %d %v", n, err)
		}
		if n, err := unix.Pread(fd, buf, 64<<10); err != unix.EIO {
			t.Errorf("across its begin: %d %v", n, err)
		}
		if n, err := unix.Pread(fd, buf, 164<<10); n != len(buf) || err != nil || !bytes.Equal(buf, content[164<<10:][:len(buf)]) {
			t.Errorf("behind the damage: %d %v", n, err)
		}
	})
	t.Run("mmap", func(t *testing.T) {
		pages, sum := startMapper(t, file)()
		want := bytes.Clone(content)
		for off := int64(0); off < int64(size); off += 4096 {
			bad := badPage(off)
			if got := pages[off/4096]; bad != (got == 'x') {
				t.Fatalf("page at %d: %c", off, got)
			}
			if bad {
				clear(want[off : off+4096])
			}
		}
		if sum != sha256.Sum256(want) {
			t.Error("the pages beside the damage differ")
		}
	})
	line := log.String()
	if strings.Count(line, "damaged range read") != 1 {
		t.Errorf("the damage should be logged once:\n%s", line)
	}
	for _, want := range []string{info.ID.String(), fmt.Sprintf("off=%d", from), fmt.Sprintf("len=%d", to-from), "log=7", "log_off=4242"} {
		if !strings.Contains(line, want) {
			t.Errorf("the log line lacks %s: %s", want, line)
		}
	}
	if strings.Contains(line, info.Name) {
		t.Errorf("the log tells the capsule's name, which is encrypted on the disk: %s", line)
	}
}

// startMapper maps a file in another process and returns a function that makes
// that process read all of it. The function returns a character for each page,
// x for SIGBUS, and the sum of the content, with zeros for such pages. A Go
// process must not map a file that it serves: a garbage collection can stop
// the server while it waits for the page fault.
func startMapper(t *testing.T, file string) func() (pages string, sum [32]byte) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SPACE_FUSE_TEST_MAP="+file)
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
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return func() (pages string, sum [32]byte) {
		in.Close()
		var hexSum []byte
		if _, err := fmt.Fscanf(lines, "%s %x\n", &pages, &hexSum); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		return pages, [32]byte(hexSum)
	}
}

// mapperMain is startMapper's other half.
func mapperMain(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	fmt.Println("mapped")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	content := make([]byte, len(m))
	var pages []byte
	for off := 0; off < len(m); off += 4096 {
		end := min(off+4096, len(m))
		pages = append(pages, copyPage(content[off:end], m[off:end]))
	}
	fmt.Printf("%s %x\n", pages, sha256.Sum256(content))
	return nil
}

func copyPage(to, from []byte) (c byte) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			c = 'x'
		}
	}()
	copy(to, from)
	return '.'
}

func TestShortStoreReadIsNoZeros(t *testing.T) {
	s := newFakeStore()
	info := s.putReader("x", bytes.NewReader(pattern(1, 5000)), 20_000) // the store lies about the size
	_, dir := mountAt(t, s, Options{Capsule: info.ID})
	if b, err := os.ReadFile(filepath.Join(dir, "content")); !errors.Is(err, syscall.EIO) {
		t.Errorf("read %d bytes, %v, want EIO", len(b), err)
	}
}

type panicking struct{}

func (panicking) ReadAt([]byte, int64) (int, error) { panic("a bug") }

func TestPanicFailsOneRequest(t *testing.T) {
	s := newFakeStore()
	s.putReader("bad", panicking{}, 5000)
	want := pattern(1, 5000)
	s.put("good", want)
	_, dir := mountAt(t, s, Options{})
	if b, err := os.ReadFile(filepath.Join(dir, "bad")); !errors.Is(err, syscall.EIO) {
		t.Errorf("read %d bytes, %v, want EIO", len(b), err)
	}
	if !bytes.Equal(readFile(t, filepath.Join(dir, "good")), want) {
		t.Error("content differs")
	}
}

func TestManyReaders(t *testing.T) {
	s := newFakeStore()
	content := pattern(3, 8<<20)
	info := s.put("x", content)
	_, dir := mountAt(t, s, Options{Capsule: info.ID})
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			f, err := os.Open(filepath.Join(dir, "content"))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			buf := make([]byte, 100_001)
			for k := range 40 {
				off := int64((i*7919 + k*104729*(i%3)) % len(content))
				n, err := f.ReadAt(buf, off)
				if err != nil && err != io.EOF || !bytes.Equal(buf[:n], content[off:min(off+int64(len(buf)), int64(len(content)))]) {
					t.Errorf("reader %d at %d: %d, %v", i, off, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "all readers are closed", func() bool { n, _, _ := s.counts(); return n == 0 })
}

func TestOwnMountOnOneCPU(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	s := newFakeStore()
	want := pattern(1, 1<<20)
	info := s.put("x", want)
	_, dir := mountAt(t, s, Options{Capsule: info.ID})
	for range 20 {
		if !bytes.Equal(readFile(t, filepath.Join(dir, "content")), want) {
			t.Fatal("content differs")
		}
	}
}

func TestInterrupts(t *testing.T) {
	s := newFakeStore()
	want := pattern(1, 64<<10)
	info := s.put("x", want)
	p, dir := mountAt(t, s, Options{Capsule: info.ID})
	file := filepath.Join(dir, "content")
	release := make(chan struct{})
	s.mu.Lock()
	s.block = release
	s.mu.Unlock()

	// A fatal signal ends a reader, though the store never answers.
	cmd := exec.Command("cat", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-s.blocked
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("cat ended with %v", err)
	}

	// Harmless ones do not disturb a read.
	type result struct {
		n   int
		err error
	}
	tid, got := make(chan int), make(chan result)
	buf := make([]byte, len(want))
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		n, err := unix.Pread(fd, buf, 0)
		got <- result{n, err}
	}()
	thread := <-tid
	<-s.blocked
	for range 20 {
		if err := unix.Tgkill(os.Getpid(), thread, unix.SIGURG); err != nil {
			t.Fatal(err)
		}
	}
	mustKind(t, p.Close(false), capsule.Conflict, fmt.Sprintf("process %d", os.Getpid()), file)
	s.mu.Lock()
	s.block = nil
	s.mu.Unlock()
	close(release)
	if r := <-got; r.n != len(want) || r.err != nil || !bytes.Equal(buf, want) {
		t.Errorf("the read with signals: %+v", r)
	}
	unix.Close(fd)
	eventually(t, "the abandoned read has let go", func() bool { n, _, _ := s.counts(); return n == 0 })
}

func TestUnmount(t *testing.T) {
	s := newFakeStore()
	want := pattern(1, 1<<20)
	info := s.put("x", want)

	t.Run("busy, then lazily", func(t *testing.T) {
		p, dir := mountAt(t, s, Options{Capsule: info.ID})
		f, err := os.Open(filepath.Join(dir, "content"))
		if err != nil {
			t.Fatal(err)
		}
		mustKind(t, p.Close(false), capsule.Conflict, fmt.Sprintf("process %d", os.Getpid()), "content", "lazily")
		if err := p.Close(true); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("the target still holds %v, %v", entries, err)
		}
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the open file does not go on: %v", err)
		}
		select {
		case <-p.Done():
			t.Error("the projection ended under an open file")
		default:
		}
		f.Close()
		<-p.Done()
		if err := p.Close(false); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
	t.Run("from outside", func(t *testing.T) {
		p, dir := mountAt(t, s, Options{Capsule: info.ID})
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		<-p.Done()
	})
	t.Run("with fusermount3", func(t *testing.T) {
		p, dir := mountAt(t, s, Options{Capsule: info.ID})
		if out, err := exec.Command("fusermount3", "-u", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		<-p.Done()
	})
	t.Run("covered by another", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("mounting a tmpfs takes root")
		}
		p, dir := mountAt(t, s, Options{Capsule: info.ID})
		if err := unix.Mount("other", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		mustKind(t, p.Close(false), capsule.Conflict, "tmpfs", dir)
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a closed watch", func(t *testing.T) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.watchers) != 0 {
			t.Errorf("%d watchers are left", len(s.watchers))
		}
	})
}

func TestTargets(t *testing.T) {
	needFUSE(t)
	s := newFakeStore()
	info := s.put("x", []byte("x"))
	try := func(target string) error {
		p, err := Mount(context.Background(), s, Options{Capsule: info.ID, Target: target, Logger: new(logBuffer).logger()})
		if err == nil {
			p.Close(true)
		}
		return err
	}
	dir := t.TempDir()
	mustKind(t, try(filepath.Join(dir, "none")), capsule.NotFound, "none", "mkdir")
	file := filepath.Join(dir, "file")
	os.WriteFile(file, nil, 0o644)
	mustKind(t, try(file), capsule.Invalid, "not a directory")
	mustKind(t, try(filepath.Join(file, "x")), capsule.Invalid)

	// A directory with files is covered, as by mount(8), and a link followed.
	sub := filepath.Join(dir, "sub")
	os.Mkdir(sub, 0o755)
	os.WriteFile(filepath.Join(sub, "hidden"), nil, 0o644)
	link := filepath.Join(dir, "link")
	os.Symlink("sub", link)
	p, at := mountAt(t, s, Options{Capsule: info.ID, Target: link})
	if at != sub {
		t.Errorf("mounted at %s, want %s", at, sub)
	}
	mustKind(t, try(sub), capsule.Conflict, "mount point already", "fuse.space")
	if err := p.Close(false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(sub, "hidden")); err != nil {
		t.Error(err)
	}
	mustKind(t, func() error {
		_, err := Mount(context.Background(), s, Options{Capsule: capsule.NewID(time.Now()), Target: sub})
		return err
	}(), capsule.NotFound)
}

func TestDeadMountIsReplaced(t *testing.T) {
	needFUSE(t)
	s := newFakeStore()
	info := s.put("x", []byte("x"))
	dir := t.TempDir()
	// A server that dies without unmounting: the device is closed.
	fd, err := attach(dir, maxRead, true, false)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if _, err := os.ReadDir(dir); !errors.Is(err, syscall.ENOTCONN) {
		t.Fatalf("the mount is not dead: %v", err)
	}
	_, at := mountAt(t, s, Options{Capsule: info.ID, Target: dir})
	if got := string(readFile(t, filepath.Join(at, "content"))); got != "x" {
		t.Errorf("content is %q", got)
	}
	all, err := mountPoints()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range all {
		if m.path == dir {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d mounts at the target", n)
	}
}

// TestWithoutRoot runs this test binary again as a user without privileges,
// for helperMain.
func TestWithoutRoot(t *testing.T) {
	needFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("every test of this run is without root")
	}
	if _, err := fusermount(); err != nil {
		t.Skip("no fusermount3: install fuse3")
	}
	dir, err := os.MkdirTemp("", "space-fuse")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "test")
	if err := os.WriteFile(bin, self, 0o755); err != nil {
		t.Fatal(err)
	}
	// Most systems let everyone open the device; a bare devtmpfs does not.
	if st, err := os.Stat(fuseDevice); err == nil && st.Mode().Perm() != 0o666 {
		if err := os.Chmod(fuseDevice, 0o666); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(fuseDevice, st.Mode().Perm())
	}
	own, foreign := filepath.Join(dir, "own"), filepath.Join(dir, "foreign")
	os.Mkdir(own, 0o755)
	os.Mkdir(foreign, 0o755)
	os.Chown(own, 65534, 65534)
	cmd := exec.Command(bin)
	cmd.Env = append(os.Environ(), "SPACE_FUSE_TEST_HELPER="+own, "SPACE_FUSE_TEST_FOREIGN="+foreign)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

func TestMain(m *testing.M) {
	var helper func() error
	if file := os.Getenv("SPACE_FUSE_TEST_MAP"); file != "" {
		helper = func() error { return mapperMain(file) }
	}
	if args := os.Getenv("SPACE_FUSE_TEST_READ"); args != "" {
		helper = func() error { return readerMain(args) }
	}
	if own := os.Getenv("SPACE_FUSE_TEST_HELPER"); own != "" {
		helper = func() error { return helperMain(own, os.Getenv("SPACE_FUSE_TEST_FOREIGN")) }
	}
	if helper == nil {
		os.Exit(m.Run())
	}
	if err := helper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// helperMain is TestWithoutRoot's other half.
func helperMain(own, foreign string) error {
	s := newFakeStore()
	want := pattern(1, 3<<20)
	info := s.put("x", want)
	ctx := context.Background()
	logger := new(logBuffer).logger()
	p, err := Mount(ctx, s, Options{Capsule: info.ID, Target: own, Logger: logger})
	if err != nil {
		return err
	}
	file := filepath.Join(own, "content")
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("read: %d bytes, %v", len(got), err)
	}
	if st, err := os.Stat(file); err != nil || st.Sys().(*syscall.Stat_t).Uid != 65534 {
		return fmt.Errorf("stat: %v %v", st, err)
	}
	if err := os.WriteFile(file, nil, 0o644); !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("write: %v", err)
	}
	s.put("x", want[:10])
	if got, err := os.ReadFile(file); err != nil || len(got) != 10 {
		return fmt.Errorf("new version: %d bytes, %v", len(got), err)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	if err := p.Close(false); capsule.KindOf(err) != capsule.Conflict {
		return fmt.Errorf("unmount while busy: %v", err)
	}
	f.Close()
	if err := p.Close(false); err != nil {
		return err
	}
	<-p.Done()
	if m, ok, err := mountedAt(own); ok || err != nil {
		return fmt.Errorf("still mounted: %+v %v", m, err)
	}
	_, err = Mount(ctx, s, Options{Capsule: info.ID, Target: foreign, Logger: logger})
	if capsule.KindOf(err) != capsule.Denied || !strings.Contains(err.Error(), foreign) {
		return fmt.Errorf("mount on another's directory: %v", err)
	}
	if conf, _ := os.ReadFile("/etc/fuse.conf"); !bytes.Contains(conf, []byte("\nuser_allow_other")) {
		_, err = Mount(ctx, s, Options{Capsule: info.ID, Target: own, AllowOther: true, Logger: logger})
		if capsule.KindOf(err) != capsule.Denied || !strings.Contains(err.Error(), "user_allow_other") {
			return fmt.Errorf("allow_other: %v", err)
		}
	}
	return nil
}
