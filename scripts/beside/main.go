// Command beside does the same random operations in a mount and in a directory
// of the host, by several users and in several sequences at once, and wants the
// same results from both, errno for errno. In the end it compares all that is
// there, and syncs it.
//
//	go run ./scripts/beside -dir MOUNT/x -host /var/tmp/x -ops 10000
//
// Run again with the same directories, it begins with the comparison and goes
// on: whatever happened to the mount between, a crash say, nothing may be lost.
// It prints the seed, and where they differ, the operations that led there.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	dir := flag.String("dir", "", "a directory in the mount; made if it is not there")
	host := flag.String("host", "", "a directory of the host's")
	seed := flag.Uint64("seed", 0, "what the operations follow from (0: another one each time)")
	ops := flag.Int("ops", 6000, "how many operations to do in each sequence")
	threads := flag.Int("threads", 1, "how many sequences to do at once")
	flag.Parse()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("beside: -seed %d\n", *seed)
	errs := make([]error, *threads)
	var wg sync.WaitGroup
	for i := range *threads {
		wg.Go(func() {
			b := &beside{Rand: rand.New(rand.NewPCG(*seed, uint64(i)))}
			b.roots = [2]string{filepath.Join(*dir, fmt.Sprint(i)), filepath.Join(*host, fmt.Sprint(i))}
			errs[i] = b.run(*ops)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(os.Stderr, "beside:", err)
		os.Exit(1)
	}
}

// difference is a panic that says what the mount did and the host did not.
type difference string

// run does a sequence of operations. The thread it runs on ends with it.
func (b *beside) run(ops int) (err error) {
	runtime.LockOSThread() // and never unlocked: users and umask are the thread's
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("a umask of its own for each thread: %w", err)
	}
	unix.Umask(0o022)
	defer func() {
		if d, ok := recover().(difference); ok {
			err = errors.New(string(d))
		}
	}()
	for _, root := range b.roots {
		if err := os.MkdirAll(root, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(root, 0o777); err != nil {
			return err
		}
	}
	b.compare(".", map[uint64]uint64{})
	for range ops {
		if b.IntN(20) == 0 {
			uid := pick(b, 0, 0, 1001, 1002)
			b.as(uid, uid)
			b.note(fmt.Sprintf("as %d", uid))
		}
		if b.IntN(100) == 0 {
			mask := pick(b, 0, 0o022, 0o077)
			unix.Umask(mask)
			b.note(fmt.Sprintf("umask %o", mask))
		}
		b.step()
		for len(b.open) > 20 {
			b.both("close 0", func(i int, _ string) (string, error) { return "", unix.Close(b.open[0][i]) })
			b.open = b.open[1:]
		}
	}
	b.as(0, 0)
	for _, fds := range b.open {
		unix.Close(fds[0])
		unix.Close(fds[1])
	}
	b.compare(".", map[uint64]uint64{})
	d, err := os.Open(b.roots[0])
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// compare compares all there is at a path and below. links maps inodes of the
// mount to those of the host.
func (b *beside) compare(p string, links map[uint64]uint64) {
	var inos [2]uint64
	typ := fs.FileMode(0)
	b.both("compare "+p, func(i int, r string) (string, error) {
		path := filepath.Join(r, p)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return "", err
		}
		inos[i] = st.Ino
		s := describe(&st)
		buf := make([]byte, 4096)
		n, err := unix.Llistxattr(path, buf)
		if err != nil {
			return s, err
		}
		names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
		slices.Sort(names)
		for _, name := range names {
			if name != "" {
				n, err := unix.Lgetxattr(path, name, buf)
				s += fmt.Sprintf(" %s %x %v", name, buf[:max(n, 0)], err)
			}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			return fmt.Sprintf("%s content %x", s, hashOf(content)), err
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			return s + " to " + target, err
		case unix.S_IFDIR:
			typ = fs.ModeDir
			entries, err := os.ReadDir(path)
			for _, e := range entries {
				s += "\n" + e.Name() + e.Type().String()
			}
			return s, err
		}
		return s, nil
	})
	if have, ok := links[inos[0]]; ok && have != inos[1] {
		panic(difference(fmt.Sprintf("%s is another link in the mount than on the host", p)))
	}
	links[inos[0]] = inos[1]
	if typ != fs.ModeDir {
		return
	}
	entries, err := os.ReadDir(filepath.Join(b.roots[1], p))
	if err != nil {
		panic(difference(err.Error()))
	}
	for _, e := range entries {
		b.compare(filepath.Join(p, e.Name()), links)
	}
}

// beside does each operation in a mount and in a directory of the host, and
// compares what comes of it.
type beside struct {
	*rand.Rand
	roots [2]string // the mount's comes first
	uid   int
	open  [][2]int // descriptors
	log   []string
}

// both runs an operation in both places.
func (b *beside) both(what string, op func(i int, root string) (string, error)) bool {
	var got [2]string
	for i, root := range b.roots {
		s, err := op(i, root)
		got[i] = fmt.Sprintf("%s %v", strings.ReplaceAll(s, root, ""), errnoName(err))
	}
	b.note(what + " -> " + got[1])
	if got[0] != got[1] {
		panic(difference(fmt.Sprintf("after\n  %s\nthe mount said %s\nthe host said  %s", strings.Join(b.log, "\n  "), got[0], got[1])))
	}
	return strings.HasSuffix(got[0], " 0")
}

func (b *beside) note(what string) {
	if b.log = append(b.log, what); len(b.log) > 40 {
		b.log = b.log[1:]
	}
}

func errnoName(err error) string {
	var e unix.Errno
	switch {
	case err == nil:
		return "0"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// path is one of not many, so that operations meet.
func (b *beside) path() string {
	names := []string{"a", "b", "c", "d", "e", strings.Repeat("n", 255), strings.Repeat("n", 256)}
	weights := []int{30, 25, 20, 10, 10, 2, 1}
	p := ""
	for range 1 + b.IntN(3) {
		n := b.IntN(98)
		for i, w := range weights {
			if n -= w; n < 0 {
				p = filepath.Join(p, names[i])
				break
			}
		}
	}
	return p
}

func pick[T any](b *beside, of ...T) T { return of[b.IntN(len(of))] }

func (b *beside) mode() uint32 {
	return pick[uint32](b, 0, 0o644, 0o755, 0o700, 0o777, 0o1777, 0o4755, 0o2775, 0o2755, 0o6777, 0o600)
}

func (b *beside) off() int64 { return pick(b, 0, 1, 4095, 4096, 65536, int64(b.IntN(200_000))) }

func (b *beside) xattr() string {
	return pick(b, "user.a", "user.b", "trusted.t", "security.capability", "nonsense", "user.", "system.posix_acl_access")
}

func (b *beside) stat(i int, root, p string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(root, p), &st); err != nil {
		return "", err
	}
	return describe(&st), nil
}

func describe(st *unix.Stat_t) string {
	s := fmt.Sprintf("mode %o uid %d gid %d rdev %d", st.Mode, st.Uid, st.Gid, st.Rdev)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s += fmt.Sprintf(" size %d nlink %d", st.Size, st.Nlink)
	} else {
		s += fmt.Sprintf(" nlink %d", st.Nlink)
	}
	if st.Mtim.Sec < 1e9 { // one that was set
		s += fmt.Sprintf(" mtime %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	return s
}

// as takes an identity and umask for the operations that follow on this thread.
func (b *beside) as(uid, gid int) {
	unix.SetfsgidRetGid(gid)
	unix.SetfsuidRetUid(uid)
	b.uid = uid
}

func (b *beside) step() {
	p, q := b.path(), b.path()
	mode := b.mode()
	switch n := b.IntN(31); n {
	case 0, 1, 2:
		b.both(fmt.Sprintf("mkdir %s %o", p, mode), func(_ int, r string) (string, error) { return "", unix.Mkdir(filepath.Join(r, p), mode) })
	case 3, 4, 5:
		flags := unix.O_CREAT | pick(b, 0, unix.O_EXCL, unix.O_TRUNC) | pick(b, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR) | pick(b, 0, 0, unix.O_APPEND)
		b.openFile(fmt.Sprintf("open %s %#x %o", p, flags, mode), p, flags, mode)
	case 6:
		flags := pick(b, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR) | pick(b, 0, unix.O_TRUNC, unix.O_NOFOLLOW, unix.O_DIRECTORY) | unix.O_NONBLOCK
		b.openFile(fmt.Sprintf("open %s %#x", p, flags), p, flags, 0)
	case 7, 8:
		b.both("unlink "+p, func(_ int, r string) (string, error) { return "", unix.Unlink(filepath.Join(r, p)) })
	case 9:
		b.both("rmdir "+p, func(_ int, r string) (string, error) { return "", unix.Rmdir(filepath.Join(r, p)) })
	case 10, 11, 12:
		flags := pick(b, 0, 0, 0, uint(unix.RENAME_NOREPLACE), uint(unix.RENAME_EXCHANGE), 3)
		b.both(fmt.Sprintf("rename %s %s %d", p, q, flags), func(_ int, r string) (string, error) {
			return "", unix.Renameat2(unix.AT_FDCWD, filepath.Join(r, p), unix.AT_FDCWD, filepath.Join(r, q), flags)
		})
	case 13:
		b.both("link "+p+" "+q, func(_ int, r string) (string, error) { return "", unix.Link(filepath.Join(r, p), filepath.Join(r, q)) })
	case 14:
		target := pick(b, q, "a", "../a", "dangling", "", "a/b")
		b.both("symlink "+target+" "+p, func(_ int, r string) (string, error) { return "", unix.Symlink(target, filepath.Join(r, p)) })
	case 15:
		b.both("readlink "+p, func(_ int, r string) (string, error) {
			buf := make([]byte, 4096)
			n, err := unix.Readlink(filepath.Join(r, p), buf)
			return string(buf[:max(n, 0)]), err
		})
	case 16:
		b.both(fmt.Sprintf("chmod %s %o", p, mode), func(_ int, r string) (string, error) { return "", unix.Chmod(filepath.Join(r, p), mode) })
	case 17:
		uid, gid := pick(b, -1, 0, 1001, 1002), pick(b, -1, 0, 1001, 1002)
		if uid == -1 && gid == -1 {
			break // differs for who is not the owner, see docs/fuse.md
		}
		b.both(fmt.Sprintf("lchown %s %d %d", p, uid, gid), func(_ int, r string) (string, error) { return "", unix.Lchown(filepath.Join(r, p), uid, gid) })
	case 18:
		size := pick(b, b.off(), -1, 0)
		b.both(fmt.Sprintf("truncate %s %d", p, size), func(_ int, r string) (string, error) { return "", unix.Truncate(filepath.Join(r, p), size) })
	case 19:
		ts := []unix.Timespec{{Sec: int64(b.IntN(1e6)), Nsec: 5}, {Sec: int64(b.IntN(1e6)) - 5e5, Nsec: 999_999_999}}
		if b.IntN(3) == 0 {
			ts[0].Nsec, ts[1].Nsec = unix.UTIME_NOW, unix.UTIME_OMIT
		}
		b.both(fmt.Sprintf("utimens %s %v", p, ts), func(_ int, r string) (string, error) {
			return "", unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(r, p), ts, unix.AT_SYMLINK_NOFOLLOW)
		})
	case 20:
		name, value, flags := b.xattr(), bytes.Repeat([]byte("v"), b.IntN(300)), pick(b, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
		if strings.HasPrefix(name, "s") {
			return // these have values of their own
		}
		b.both(fmt.Sprintf("setxattr %s %s %d %d", p, name, len(value), flags), func(_ int, r string) (string, error) {
			return "", unix.Lsetxattr(filepath.Join(r, p), name, value, flags)
		})
	case 21:
		name, size := b.xattr(), pick(b, 0, 10, 1000)
		b.both(fmt.Sprintf("getxattr %s %s %d", p, name, size), func(_ int, r string) (string, error) {
			buf := make([]byte, size)
			n, err := unix.Lgetxattr(filepath.Join(r, p), name, buf)
			return fmt.Sprintf("%d %q", n, buf), err
		})
	case 22:
		name := b.xattr()
		b.both("removexattr "+p+" "+name, func(_ int, r string) (string, error) { return "", unix.Lremovexattr(filepath.Join(r, p), name) })
	case 23:
		b.both("listxattr "+p, func(_ int, r string) (string, error) {
			buf := make([]byte, 4096)
			n, err := unix.Llistxattr(filepath.Join(r, p), buf)
			names := strings.Split(string(buf[:max(n, 0)]), "\x00")
			slices.Sort(names)
			if b.uid != 0 { // the thread has capabilities still, which the mount does not know
				names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, "trusted.") })
			}
			return fmt.Sprint(names), err
		})
	case 24:
		typ := pick[uint32](b, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFREG, unix.S_IFCHR, unix.S_IFBLK)
		made := b.both(fmt.Sprintf("mknod %s %o", p, typ|mode), func(_ int, r string) (string, error) {
			return "", unix.Mknod(filepath.Join(r, p), typ|mode, int(unix.Mkdev(7, 300)))
		})
		if made && (typ == unix.S_IFCHR || typ == unix.S_IFBLK) { // to open one is another matter in a nodev mount
			b.both("stat "+p, func(i int, r string) (string, error) { return b.stat(i, r, p) })
			b.both("unlink "+p, func(_ int, r string) (string, error) { return "", unix.Unlink(filepath.Join(r, p)) })
		}
	case 25:
		want := pick[uint32](b, 0, 1, 2, 4, 6, 7)
		b.both(fmt.Sprintf("access %s %d", p, want), func(_ int, r string) (string, error) { return "", unix.Access(filepath.Join(r, p), want) })
	case 26:
		b.both("readdir "+p, func(_ int, r string) (string, error) {
			entries, err := os.ReadDir(filepath.Join(r, p))
			var names []string
			for _, e := range entries {
				names = append(names, e.Name()+e.Type().String())
			}
			return fmt.Sprint(names), err
		})
	case 27:
		flags := unix.O_TMPFILE | pick(b, unix.O_RDWR, unix.O_WRONLY) | pick(b, 0, 0, unix.O_EXCL)
		if !b.openFile(fmt.Sprintf("open %s %#x %o", p, flags, mode), p, flags, mode) || b.IntN(3) == 0 {
			break
		}
		fds := b.open[len(b.open)-1]
		b.both("link it to "+q, func(i int, r string) (string, error) {
			return "", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fds[i]), unix.AT_FDCWD, filepath.Join(r, q), unix.AT_SYMLINK_FOLLOW)
		})
	default:
		if len(b.open) > 0 {
			b.onOpenFile(b.IntN(len(b.open)))
		}
	}
	b.both("stat "+p, func(i int, r string) (string, error) { return b.stat(i, r, p) })
}

func (b *beside) openFile(what, p string, flags int, mode uint32) bool {
	var fds [2]int
	ok := b.both(what, func(i int, r string) (_ string, err error) {
		fds[i], err = unix.Open(filepath.Join(r, p), flags|unix.O_CLOEXEC|unix.O_NONBLOCK, mode)
		return "", err
	})
	if ok {
		b.open = append(b.open, fds)
	}
	return ok
}

func (b *beside) onOpenFile(n int) {
	fds, off := b.open[n], b.off()
	size := b.IntN(100_000)
	switch b.IntN(8) {
	case 0:
		b.both("close", func(i int, _ string) (string, error) { return "", unix.Close(fds[i]) })
		b.open = slices.Delete(b.open, n, n+1)
	case 1, 2:
		data := bytes.Repeat([]byte{byte(b.Uint32())}, size)
		b.both(fmt.Sprintf("pwrite %d %d %d", n, off, size), func(i int, _ string) (string, error) {
			k, err := unix.Pwrite(fds[i], data, off)
			return fmt.Sprint(k), err
		})
	case 3, 4:
		b.both(fmt.Sprintf("pread %d %d %d", n, off, size), func(i int, _ string) (string, error) {
			buf := make([]byte, size)
			k, err := unix.Pread(fds[i], buf, off)
			return fmt.Sprintf("%d %x", k, hashOf(buf)), err
		})
	case 5:
		b.both(fmt.Sprintf("ftruncate %d %d", n, off), func(i int, _ string) (string, error) { return "", unix.Ftruncate(fds[i], off) })
	case 6:
		mode := pick[uint32](b, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE,
			unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE)
		b.both(fmt.Sprintf("fallocate %d %#x %d %d", n, mode, off, size), func(i int, _ string) (string, error) {
			return "", unix.Fallocate(fds[i], mode, off, int64(size))
		})
	case 7:
		m := n
		if len(b.open) > 1 {
			m = b.IntN(len(b.open))
		}
		to := b.open[m]
		at := b.off() + 300_000
		b.both(fmt.Sprintf("copy_file_range %d %d to %d %d, %d", n, off, m, at, size), func(i int, _ string) (string, error) {
			from, at := off, at
			k, err := unix.CopyFileRange(fds[i], &from, to[i], &at, size, 0)
			return fmt.Sprint(k), err
		})
	}
	if n < len(b.open) {
		b.both(fmt.Sprintf("fstat %d", n), func(i int, _ string) (string, error) {
			var st unix.Stat_t
			err := unix.Fstat(b.open[n][i], &st)
			return describe(&st), err
		})
	}
}

func hashOf(p []byte) uint32 {
	h := uint32(2166136261)
	for _, c := range p {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}
