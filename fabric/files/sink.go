package files

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/fabric/bulk"
)

// manyFiles is from how many files on the whole file system is synced instead of
// each.
const manyFiles = 32

// sink writes contents to the files that a manifest says.
type sink struct {
	m       *manifest
	root    *os.Root // the hidden directory
	dir     *os.File // it too, from the beginning on: errors of writing back are told to it
	dirs    dirs
	handles *handles
	note    func(string) // see ReceiveOptions
	setattr func(fd int, name string, value []byte, flags int) error

	mu      sync.Mutex
	unset   set // files and directories that lack attributes, which the file system does not take
	dirty   set // files that were written since the last sync
	settled set // files that are as they should be, but for a sync
}

// newSink makes the directories of a share, in which the files are made as their
// contents come.
func newSink(root *os.Root, m *manifest) (*sink, error) {
	s := &sink{m: m, root: root, dirs: dirs{root: root}, note: func(string) {}, setattr: unix.Fsetxattr, unset: newSet(m.count()), dirty: newSet(m.count()), settled: newSet(m.count())}
	s.handles = newHandles(s.open)
	var err error
	if s.dir, err = root.Open("."); err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	for i := range m.count() {
		if e := m.entry(i); e.kind == directory {
			err := root.Mkdir(s.name(i), 0o700)
			if errors.Is(err, fs.ErrExist) {
				err = root.Chmod(s.name(i), 0o700) // it may have had its own permissions already
			}
			if err != nil {
				s.dir.Close()
				return nil, fmt.Errorf("files: %w", sinkError(err))
			}
		}
	}
	return s, nil
}

// sinkError marks a disk that is full.
func sinkError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", bulk.ErrFull, err)
	}
	return err
}

func (s *sink) name(i int) string {
	if p := s.m.entry(i).path; p != "" {
		return treeName + "/" + p
	}
	return treeName
}

func (s *sink) open(i int) (f *os.File, err error) {
	const flags = os.O_RDWR | os.O_CREATE | syscall.O_NOFOLLOW
	f, err = s.dirs.open(s.name(i), flags, 0o600)
	if errors.Is(err, fs.ErrPermission) { // an earlier try has given it its own permissions already
		if err = s.root.Chmod(s.name(i), 0o600); err == nil {
			f, err = s.dirs.open(s.name(i), flags, 0o600)
		}
	}
	return f, err
}

// WriteAt implements bulk.Sink.
func (s *sink) WriteAt(p []byte, off int64) (int, error) {
	n := 0
	err := s.m.each(off, len(p), func(i int, at int64, from, to int) error {
		return s.handles.use(i, func(f *os.File) error {
			e := s.m.entry(i)
			write := f.WriteAt
			if e.sparse {
				write = func(b []byte, at int64) (int, error) { return writeSparse(f, b, at, e.size) }
			}
			k, err := write(p[from:to], at)
			n += k
			// A file that comes whole is settled while it is open.
			whole := err == nil && at == 0 && int64(k) == e.size
			if whole {
				err = s.settle(f, i, e, e.perm, false)
			}
			s.mu.Lock() // after writing: a sync that begins before may not have it
			s.dirty.put(i, true)
			s.settled.put(i, whole && err == nil)
			s.mu.Unlock()
			return err
		})
	})
	return n, err
}

// holeSize is how long zeros have to be for a hole, and on which borders it lies.
const holeSize = 64 << 10

var zeros [holeSize]byte

// writeSparse writes b at offset at of a file that will have size bytes, with holes
// where zeros are.
func writeSparse(f *os.File, b []byte, at, size int64) (int, error) {
	n := 0
	for n < len(b) {
		off := at + int64(n)
		part := b[n:min(len(b), n+int(holeSize-off%holeSize))]
		hole := bytes.Equal(part, zeros[:len(part)])
		if hole {
			err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(len(part)))
			if err == nil && off+int64(len(part)) == size {
				err = f.Truncate(size)
			}
			if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
				return n, &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
			}
			hole = err == nil
		}
		if !hole {
			if k, err := f.WriteAt(part, off); err != nil {
				return n + k, err
			}
		}
		n += len(part)
	}
	return n, nil
}

// Sync implements bulk.Sink.
func (s *sink) Sync() error {
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = newSet(s.m.count())
	s.mu.Unlock()
	if dirty.n >= manyFiles {
		if err := unix.Syncfs(int(s.dir.Fd())); err != nil {
			return fmt.Errorf("files: sync: %w", err)
		}
		return nil
	}
	dirs := map[string]bool{}
	for i := range dirty.all() {
		if err := s.handles.use(i, (*os.File).Sync); err != nil {
			return fmt.Errorf("files: %w", err)
		}
		for p := s.m.entry(i).path; p != "" && !dirs[parent(p)]; p = parent(p) {
			dirs[parent(p)] = true
			if err := s.syncDir(treeName + "/" + parent(p)); err != nil {
				return err
			}
		}
	}
	return s.syncDir(".")
}

func (s *sink) syncDir(name string) error {
	d, err := s.root.Open(name)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return fmt.Errorf("files: %w", err)
	}
	return nil
}

func (s *sink) close() error {
	s.dirs.close()
	if err := s.handles.close(); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	return nil
}

// finish makes what has no contents, gives everything its permissions and times,
// and makes all of it durable.
func (s *sink) finish() error {
	each := s.m.count() <= manyFiles // is synced by itself
	for i := range s.m.count() {     // files whose contents are all there
		if e := s.m.entry(i); e.kind == regular && (each || !s.settled.has(i)) {
			if err := s.settleClosed(i, each); err != nil {
				return fmt.Errorf("files: %w", sinkError(err))
			}
		}
	}
	for i := range s.m.count() {
		if k := s.m.entry(i).kind; k == symlink || k == hardlink {
			if err := s.link(i); err != nil {
				return fmt.Errorf("files: %w", sinkError(err))
			}
		}
	}
	for i := s.m.count() - 1; i >= 0; i-- { // what is in a directory before it
		if e := s.m.entry(i); e.kind == directory {
			perm := e.perm
			if e.path == "" {
				perm |= 0o200 // until it is renamed: its entry ".." is written
			}
			d, err := s.root.Open(s.name(i))
			if err == nil {
				err = errors.Join(s.settle(d, i, e, perm, each), d.Close())
			}
			if err != nil {
				return fmt.Errorf("files: %w", sinkError(err))
			}
		}
	}
	if n := s.unset.n; n > 1 {
		s.note(fmt.Sprintf("%d files and directories lack attributes that this file system has no place for", n))
	}
	if each {
		return s.syncDir(".")
	}
	if err := unix.Syncfs(int(s.dir.Fd())); err != nil {
		return fmt.Errorf("files: sync: %w", err)
	}
	return nil
}

// link makes a symbolic link, or another name of a file.
func (s *sink) link(i int) error {
	e := s.m.entry(i)
	make := func() error {
		if e.kind == symlink {
			return s.root.Symlink(e.target, s.name(i))
		}
		return s.root.Link(treeName+"/"+e.target, s.name(i))
	}
	err := make()
	if errors.Is(err, fs.ErrExist) { // of an earlier try
		if err = s.root.Remove(s.name(i)); err == nil {
			err = make()
		}
	}
	if err == nil && e.kind == symlink {
		err = s.linkTime(i)
	}
	return err
}

// setXattrs gives a file or directory the extended attributes that it should have,
// where the file system has such. Those that it has no place for are left out, and
// that is said.
func (s *sink) setXattrs(f *os.File, i int, e *entry) error {
	want := map[string]bool{}
	_, err := e.eachXattr(func(name, value string) error {
		err := s.setattr(int(f.Fd()), name, []byte(value), 0)
		if err == nil {
			want[name] = true
		} else if tooLarge(f, err) {
			s.mu.Lock()
			first := s.unset.n == 0
			s.unset.put(i, true)
			s.mu.Unlock()
			if err = nil; first {
				s.note(fmt.Sprintf("the attribute %s of %.200q is left out: its %d bytes are more than this file system takes", name, e.path, len(value)))
			}
		}
		return err
	})
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	var have []string
	if err == nil {
		have, err = xattrNames(int(f.Fd()))
	}
	for _, name := range have { // of an earlier try
		if err == nil && strings.HasPrefix(name, xattrPrefix) && !want[name] {
			err = unix.Fremovexattr(int(f.Fd()), name)
		}
	}
	if err != nil {
		return fmt.Errorf("extended attributes of %.200q: %w", e.path, err)
	}
	return nil
}

// tooLarge reports whether an attribute could not be set because the file system has no
// place for one so large, or so many. It says ENOSPC for that, too: there is room on a
// disk that is not full.
func tooLarge(f *os.File, err error) bool {
	if errors.Is(err, unix.E2BIG) {
		return true
	}
	var st unix.Statfs_t
	return errors.Is(err, unix.ENOSPC) && unix.Fstatfs(int(f.Fd()), &st) == nil &&
		int64(st.Bavail)*st.Bsize > 16<<xattrBits && (st.Files == 0 || st.Ffree > 0)
}

// xattrBits: an attribute has at most 2 to the power of this many bytes.
const xattrBits = 16

// settleClosed gives a file what it should have beside its contents, after a look whether
// they are as long as they should be. One without contents is made.
func (s *sink) settleClosed(i int, sync bool) (err error) {
	e := s.m.entry(i)
	f, err := s.open(i)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if fi, err := f.Stat(); err != nil {
		return err
	} else if fi.Size() != e.size {
		return fmt.Errorf("%w: %.200q has %d bytes, not %d", errLost, e.path, fi.Size(), e.size)
	}
	return s.settle(f, i, e, e.perm, sync)
}

// settle gives a file or directory its attributes, times and permissions.
func (s *sink) settle(f *os.File, i int, e *entry, perm fs.FileMode, sync bool) error {
	if err := s.setXattrs(f, i, e); err != nil {
		return err
	}
	at := unix.NsecToTimespec(e.mtime)
	if err := futimens(int(f.Fd()), &[2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, at}); err != nil {
		return &os.PathError{Op: "utimensat", Path: e.path, Err: err}
	}
	err := f.Chmod(perm)
	if err == nil && sync {
		err = f.Sync()
	}
	return err
}

// futimens is utimensat(2) of an open file: package unix has it for paths alone.
func futimens(fd int, at *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(at)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// linkTime gives a symbolic link its time, where it is.
func (s *sink) linkTime(i int) error {
	e := s.m.entry(i)
	d, err := s.root.Open(path.Dir(s.name(i)))
	if err != nil {
		return err
	}
	defer d.Close()
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(e.mtime)}
	if err := unix.UtimesNanoAt(int(d.Fd()), path.Base(s.name(i)), ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: e.path, Err: err}
	}
	return nil
}
