package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

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
	handles *handles

	mu    sync.Mutex
	dirty map[int]bool // files that were written since the last sync
}

// newSink makes the directories of a share, in which the files are made as their
// contents come.
func newSink(root *os.Root, m *manifest) (*sink, error) {
	s := &sink{m: m, root: root, dirty: map[int]bool{}}
	s.handles = newHandles(s.open)
	var err error
	if s.dir, err = root.Open("."); err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	for i := range m.entries {
		if e := &m.entries[i]; e.kind == directory {
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
	if p := s.m.entries[i].path; p != "" {
		return treeName + "/" + p
	}
	return treeName
}

func (s *sink) open(i int) (*os.File, error) {
	return s.root.OpenFile(s.name(i), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
}

// WriteAt implements bulk.Sink.
func (s *sink) WriteAt(p []byte, off int64) (int, error) {
	n := 0
	err := s.m.each(off, len(p), func(i int, at int64, from, to int) error {
		return s.handles.use(i, func(f *os.File) error {
			k, err := f.WriteAt(p[from:to], at)
			n += k
			s.mu.Lock() // after writing: a sync that begins before may not have it
			s.dirty[i] = true
			s.mu.Unlock()
			return err
		})
	})
	return n, err
}

// Sync implements bulk.Sink.
func (s *sink) Sync() error {
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = map[int]bool{}
	s.mu.Unlock()
	if len(dirty) >= manyFiles {
		if err := unix.Syncfs(int(s.dir.Fd())); err != nil {
			return fmt.Errorf("files: sync: %w", err)
		}
		return nil
	}
	dirs := map[string]bool{}
	for i := range dirty {
		if err := s.handles.use(i, (*os.File).Sync); err != nil {
			return fmt.Errorf("files: %w", err)
		}
		for p := s.m.entries[i].path; p != "" && !dirs[parent(p)]; p = parent(p) {
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
	if err := s.handles.close(); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	return nil
}

// finish makes what has no contents, gives everything its permissions and times,
// and makes all of it durable.
func (s *sink) finish() error {
	for i := range s.m.entries { // files whose contents are all there
		if e := &s.m.entries[i]; e.kind == regular {
			if err := s.settle(i); err != nil {
				return fmt.Errorf("files: %w", sinkError(err))
			}
		}
	}
	for i := range s.m.entries {
		if e := &s.m.entries[i]; e.kind == symlink {
			err := s.root.Symlink(e.target, s.name(i))
			if errors.Is(err, fs.ErrExist) { // of an earlier try
				if err = s.root.Remove(s.name(i)); err == nil {
					err = s.root.Symlink(e.target, s.name(i))
				}
			}
			if err == nil {
				err = s.linkTime(i)
			}
			if err != nil {
				return fmt.Errorf("files: %w", sinkError(err))
			}
		}
	}
	for i := len(s.m.entries) - 1; i >= 0; i-- { // what is in a directory before it
		if e := &s.m.entries[i]; e.kind == directory {
			perm := e.perm
			if e.path == "" {
				perm |= 0o200 // until it is renamed: its entry ".." is written
			}
			err := s.root.Chtimes(s.name(i), time.Time{}, e.modTime())
			if err == nil {
				err = s.root.Chmod(s.name(i), perm)
			}
			if err != nil {
				return fmt.Errorf("files: %w", err)
			}
		}
	}
	if err := unix.Syncfs(int(s.dir.Fd())); err != nil {
		return fmt.Errorf("files: sync: %w", err)
	}
	return nil
}

// settle gives a file its time and permissions, after a look whether its contents
// are as long as they should be. One without contents is made.
func (s *sink) settle(i int) (err error) {
	e := &s.m.entries[i]
	f, err := s.open(i)
	if errors.Is(err, fs.ErrPermission) { // an earlier try has given it its own already
		if err = s.root.Chmod(s.name(i), 0o600); err == nil {
			f, err = s.open(i)
		}
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if fi, err := f.Stat(); err != nil {
		return err
	} else if fi.Size() != e.size {
		return fmt.Errorf("%w: %.200q has %d bytes, not %d", bulk.ErrRoot, e.path, fi.Size(), e.size)
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(e.mtime)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), ts, 0); err != nil {
		return &os.PathError{Op: "utimensat", Path: e.path, Err: err}
	}
	return f.Chmod(e.perm)
}

// linkTime gives a symbolic link its time, where it is.
func (s *sink) linkTime(i int) error {
	e := &s.m.entries[i]
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
