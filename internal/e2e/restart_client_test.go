package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What uses a mount whose node goes away has to be another process than the one
// that starts the next node: a fork closes the files of a mount, and that waits
// for a node. So the test program is its own client, and is told what to do by
// lines on standard input, each of which it answers with one line.

// clientEnv has this program be a client: what it is to do, and where.
const clientEnv = "E2E_CLIENT"

var clients = map[string]func(dir string, in *bufio.Scanner, say func(string)) error{
	"files": filesClient, "churn": churnClient, "namespace": namespaceClient, "volume": volumeClient,
	"wait": waitClient, "try": tryClient, "read": readClient,
}

// beClient is the whole program of a client.
func beClient(what string) int {
	kind, dir, _ := strings.Cut(what, ":")
	say := func(s string) { fmt.Println(strings.ReplaceAll(s, "\n", " ")) }
	if err := clients[kind](dir, bufio.NewScanner(os.Stdin), say); err != nil {
		say("failed: " + err.Error())
		return 1
	}
	return 0
}

// client is a running client.
type client struct {
	t     *testing.T
	what  string
	in    io.WriteCloser
	lines chan string
	gone  chan struct{} // closed when the process has ended
}

// startClient starts a client and waits for its first line.
func startClient(t *testing.T, kind, dir string) *client {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return startClientBy(t, exec.Command(self), kind, dir)
}

// startClientBy is startClient by a command that runs the test program.
func startClientBy(t *testing.T, cmd *exec.Cmd, kind, dir string) *client {
	t.Helper()
	cmd.Env = append(os.Environ(), clientEnv+"="+kind+":"+dir, "GORACE=atexit_sleep_ms=0")
	cmd.Dir = "/"
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
	t.Cleanup(func() { cmd.Process.Kill() }) // after a failure it may wait for a node that does not come
	c := &client{t: t, what: kind, in: in, lines: make(chan string, 4096), gone: make(chan struct{})}
	go func() {
		defer close(c.gone)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- s.Text()
		}
		close(c.lines)
		cmd.Wait()
	}()
	c.want("ready")
	return c
}

func (c *client) line() string {
	c.t.Helper()
	select {
	case l, ok := <-c.lines:
		if !ok {
			c.t.Fatalf("client %s has ended", c.what)
		}
		if strings.HasPrefix(l, "failed") {
			c.t.Fatalf("client %s: %s", c.what, l)
		}
		return l
	case <-time.After(hung):
		c.t.Fatalf("client %s hangs", c.what)
	}
	return ""
}

func (c *client) want(line string) {
	c.t.Helper()
	if l := c.line(); l != line {
		c.t.Fatalf("client %s says %q, want %q", c.what, l, line)
	}
}

func (c *client) tell(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, line+"\n"); err != nil {
		c.t.Fatalf("client %s: %v", c.what, err)
	}
}

// finish ends a client's input, and returns when all is well with it and its
// process has ended: until then the mount is in use.
func (c *client) finish() {
	c.t.Helper()
	c.in.Close()
	for l := c.line(); l != "done"; l = c.line() {
	}
	select {
	case <-c.gone:
	case <-time.After(hung):
		c.t.Fatalf("client %s does not end", c.what)
	}
}

// filesClient has a tree's files open in every way there is, and looks after
// each line that all of it is as it was and goes on.
func filesClient(dir string, in *bufio.Scanner, say func(string)) error {
	open := func(name string, flags int) (*os.File, error) {
		return os.OpenFile(filepath.Join(dir, name), flags|os.O_CREATE, 0o644)
	}
	plain, err := open("plain", os.O_RDWR)
	if err != nil {
		return err
	}
	log, err := open("log", os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return err
	}
	gone, err := open("gone", os.O_RDWR)
	if err != nil {
		return err
	}
	mapped, err := open("mapped", os.O_RDWR)
	if err != nil {
		return err
	}
	flocked, err := open("flocked", os.O_RDWR)
	if err != nil {
		return err
	}
	ranged, err := open("ranged", os.O_RDWR)
	if err != nil {
		return err
	}
	const size = 1 << 20
	if err := mapped.Truncate(size); err != nil {
		return err
	}
	mem, err := unix.Mmap(int(mapped.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(flocked.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 5, Len: 10}
	if err := unix.FcntlFlock(ranged.Fd(), unix.F_SETLK, &lock); err != nil {
		return err
	}
	cwd, many := filepath.Join(dir, "cwd"), filepath.Join(dir, "many")
	for _, d := range []string{cwd, many} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	const entries = 3000
	for i := range entries {
		if err := os.WriteFile(filepath.Join(many, fmt.Sprint(i)), nil, 0o644); err != nil {
			return err
		}
	}
	list, err := os.Open(many)
	if err != nil {
		return err
	}
	if err := os.Chdir(cwd); err != nil {
		return err
	}
	for _, err := range []error{os.Remove(filepath.Join(dir, "gone")), os.Remove(cwd)} {
		if err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(".", &st); err != nil {
		return err
	}
	var wantLog, wantGone []byte
	seen := map[string]bool{}
	say("ready")
	for n := 1; in.Scan(); n++ {
		page := []byte(strings.Repeat(fmt.Sprintf("%06d ", n), 600))
		for _, f := range []*os.File{plain, gone} {
			if _, err := f.WriteAt(page, int64(n)*3000); err != nil {
				return err
			}
		}
		wantGone = append(wantGone[:min(len(wantGone), n*3000)], page...)
		if n == 1 {
			wantGone = append(make([]byte, 3000), page...)
		}
		if _, err := log.Write(page); err != nil {
			return err
		}
		wantLog = append(wantLog, page...)
		copy(mem[n*5000:], page)
		if err := unix.Msync(mem, unix.MS_SYNC); err != nil {
			return fmt.Errorf("msync: %w", err)
		}
		for _, f := range []*os.File{plain, gone} {
			got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
			if err != nil || !bytes.Equal(got, wantGone) {
				return fmt.Errorf("%s has %d bytes, want %d, %v", f.Name(), len(got), len(wantGone), err)
			}
		}
		if got, err := os.ReadFile(log.Name()); err != nil || !bytes.Equal(got, wantLog) {
			return fmt.Errorf("the log has %d bytes, want %d, %v", len(got), len(wantLog), err)
		}
		var now unix.Stat_t
		if err := unix.Fstat(int(gone.Fd()), &now); err != nil || now.Nlink != 0 {
			return fmt.Errorf("the removed file has %d links, %v", now.Nlink, err)
		}
		if err := unix.Stat(".", &now); err != nil || now.Ino != st.Ino {
			return fmt.Errorf("the working directory was %d and is %d, %v", st.Ino, now.Ino, err)
		}
		if _, err := os.Stat("x"); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("a name in a removed directory: %v", err)
		}
		// The listing goes on where it was, and has everything once.
		names, err := list.Readdirnames(entries / 12)
		if err != nil && err != io.EOF {
			return err
		}
		for _, name := range names {
			if seen[name] {
				return fmt.Errorf("%s is listed twice", name)
			}
			seen[name] = true
		}
		if n == 1 { // what comes and goes meanwhile changes nothing
			os.Remove(filepath.Join(many, names[0]))
		}
		other, err := os.OpenFile(flocked.Name(), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EAGAIN {
			return fmt.Errorf("the locked file could be locked: %v", err)
		}
		other.Close()
		say("good")
	}
	for {
		names, err := list.Readdirnames(1000)
		for _, name := range names {
			if seen[name] {
				return fmt.Errorf("%s is listed twice", name)
			}
			seen[name] = true
		}
		if err != nil || len(names) == 0 {
			break
		}
	}
	if len(seen) != entries {
		return fmt.Errorf("%d entries are listed of %d", len(seen), entries)
	}
	if got, err := os.ReadFile(mapped.Name()); err != nil || !bytes.Equal(got, mem) {
		return fmt.Errorf("the mapped file differs from the mapping: %v", err)
	}
	runtime.KeepAlive(ranged) // or the collector closes it, and the lock goes
	say("done")
	return nil
}

// tryClient says after each line whether another process has its lock on a range.
func tryClient(dir string, in *bufio.Scanner, say func(string)) error {
	say("ready")
	for in.Scan() {
		f, err := os.OpenFile(filepath.Join(dir, "ranged"), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		l := unix.Flock_t{Type: unix.F_WRLCK}
		err = unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l)
		f.Close()
		if err != nil || l.Type == unix.F_UNLCK || l.Start != 5 || l.Len != 10 {
			return fmt.Errorf("the lock in the way is %+v, %v", l, err)
		}
		say("locked")
	}
	return nil
}

// churnClient makes, writes, renames, links and removes files at random, and
// says so after some; at the end of its input all has to be as it should.
func churnClient(dir string, in *bufio.Scanner, say func(string)) error {
	r := rand.New(rand.NewPCG(7, uint64(len(dir))))
	files := map[string][]byte{}
	name := func() string { return fmt.Sprintf("d%d/f%d", r.IntN(3), r.IntN(12)) }
	for i := range 3 {
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint("d", i)), 0o755); err != nil {
			return err
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	step := func() error {
		n := name()
		_, there := files[n]
		data := random(r.Uint64(), r.IntN(40_000))
		switch k := r.IntN(9); {
		case k == 0 && there:
			delete(files, n)
			return os.Remove(at(n))
		case k == 1 && there:
			to := name()
			if to == n {
				return nil
			}
			files[to] = files[n]
			delete(files, n)
			return os.Rename(at(n), at(to))
		case k <= 3 && there:
			f, err := os.OpenFile(at(n), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			files[n] = append(slices.Clone(files[n]), data...)
			_, err = f.Write(data)
			return err
		case k == 4:
			d := at(fmt.Sprintf("tmp%d", r.IntN(1000)))
			for _, err := range []error{os.Mkdir(d, 0o700), os.Symlink("to", d+"/link"), os.Remove(d + "/link"), os.Remove(d)} {
				if err != nil {
					return err
				}
			}
			return nil
		case k == 5 && there:
			l := at(n) + ".link"
			for _, err := range []error{os.Link(at(n), l), os.Remove(l)} {
				if err != nil {
					return err
				}
			}
			return nil
		case there:
			got, err := os.ReadFile(at(n))
			if err == nil && !bytes.Equal(got, files[n]) {
				err = fmt.Errorf("%s has %d bytes, want %d", n, len(got), len(files[n]))
			}
			return err
		}
		f, err := os.OpenFile(at(n), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		files[n] = data
		_, err = f.Write(data)
		return err
	}
	stop := make(chan struct{})
	go func() {
		for in.Scan() {
		}
		close(stop)
	}()
	say("ready")
	for n := 1; ; n++ {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", n, err)
		}
		if n%25 == 0 {
			say("more")
		}
		select {
		case <-stop:
		default:
			continue
		}
		break
	}
	have := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		have[rel] = true
		got, err := os.ReadFile(path)
		if err == nil && !bytes.Equal(got, files[rel]) {
			err = fmt.Errorf("%s has %d bytes, want %d", rel, len(got), len(files[rel]))
		}
		return err
	})
	if err == nil && len(have) != len(files) {
		err = fmt.Errorf("there are %v, want %v", slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(files)))
	}
	if err == nil {
		say("done")
	}
	return err
}

// namespaceClient reads a file and lists a directory of objects, a piece after each line.
func namespaceClient(dir string, in *bufio.Scanner, say func(string)) error {
	f, err := os.Open(filepath.Join(dir, "large"))
	if err != nil {
		return err
	}
	var st, now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	list, err := os.Open(filepath.Join(dir, "many"))
	if err != nil {
		return err
	}
	if err := os.Chdir(filepath.Join(dir, "many")); err != nil {
		return err
	}
	seen := map[string]bool{}
	say("ready")
	want := random(1, int(st.Size))
	for n := 0; in.Scan(); n++ {
		// The page cache would answer for the node.
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		got, err := io.ReadAll(io.NewSectionReader(f, 0, st.Size))
		if err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("an open object reads wrong: %d bytes, %v", len(got), err)
		}
		if err := unix.Fstat(int(f.Fd()), &now); err != nil || now.Ino != st.Ino {
			return fmt.Errorf("inode %d is %d now, %v", st.Ino, now.Ino, err)
		}
		if _, err := os.ReadFile(fmt.Sprint(n)); err != nil {
			return fmt.Errorf("in the working directory: %w", err)
		}
		names, err := list.Readdirnames(200)
		if err != nil && err != io.EOF {
			return err
		}
		for _, name := range names {
			if seen[name] {
				return fmt.Errorf("%s is listed twice", name)
			}
			seen[name] = true
		}
		say("good")
	}
	rest, err := list.Readdirnames(0)
	if err != nil || len(seen)+len(rest) != manyObjects {
		return fmt.Errorf("%d entries are listed of %d, %v", len(seen)+len(rest), manyObjects, err)
	}
	say("done")
	return nil
}

// volumeClient writes a volume through an open file and a mapping.
func volumeClient(dir string, in *bufio.Scanner, say func(string)) error {
	f, err := os.OpenFile(filepath.Join(dir, "content"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	const size = 4 << 20
	want := make([]byte, size)
	say("ready")
	for n := 1; in.Scan(); n++ {
		copy(want[n*300_000:], random(uint64(n), 200_000))
		if _, err := f.WriteAt(want[n*300_000:n*300_000+200_000], int64(n)*300_000); err != nil {
			return err
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		got := make([]byte, size)
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("the volume reads wrong: %v", err)
		}
		say("good")
	}
	say("done")
	return nil
}

// waitClient says after each line what comes of using the mount.
func waitClient(dir string, in *bufio.Scanner, say func(string)) error {
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		return err
	}
	say("ready")
	for n := 0; in.Scan(); n++ {
		var st unix.Stat_t
		var errno syscall.Errno
		_, err := os.Stat(filepath.Join(dir, fmt.Sprint("nothing", n)))
		errors.As(err, &errno)
		if err := unix.Fstat(int(f.Fd()), &st); err == nil && errno == unix.ENOENT {
			say("good")
			continue
		}
		say(unix.ErrnoName(errno))
	}
	say("done")
	return nil
}

// readClient says after each line what comes of reading an open file.
func readClient(dir string, in *bufio.Scanner, say func(string)) error {
	f, err := os.Open(filepath.Join(dir, "content"))
	if err != nil {
		return err
	}
	defer f.Close()
	say("ready")
	for in.Scan() {
		// The page cache would answer for the node.
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		var errno syscall.Errno
		if _, err := f.ReadAt(make([]byte, 1), 0); errors.As(err, &errno) {
			say(unix.ErrnoName(errno))
		} else if err != nil {
			return err
		} else {
			say("good")
		}
	}
	say("done")
	return nil
}
