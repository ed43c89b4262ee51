package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spacestore/space/internal/vfs"
)

const (
	openFiles = 128
	// writebackStep is after how many bytes the kernel is asked to start
	// writing, so that the sync at the end finds little left to do.
	writebackStep = 8 << 20
	category      = "space-segments"
)

// Set is all segment logs of a store.
type Set struct {
	fs      vfs.FS
	dir     string
	maxSize int64

	mu       sync.Mutex
	active   *appender // nil until the first append
	next     uint64    // number of the next new log
	resume   bool      // log next-1 may take appends
	unsynced []*appender
	syncDirs map[string]bool

	syncMu sync.Mutex // one Sync at a time
	hints  sync.WaitGroup

	cache fileCache
}

// appender is a log that has taken appends in this process.
type appender struct {
	log      uint64
	f        vfs.File
	size     int64
	hinted   int64
	closed   bool // takes no more appends; close the file once it is synced
	unsynced bool // is in Set.unsynced
	syncing  bool // a Sync is at work on it
	hinting  bool // hint is at work on it

	hintMu  sync.Mutex // held while hint asks the kernel
	hintErr error      // what it was told; under hintMu
}

// closeIfDone closes the file of a log that takes no more appends once all of
// it is durable.
func (a *appender) closeIfDone() {
	if a.closed && !a.unsynced && !a.syncing && !a.hinting {
		a.f.Close()
	}
}

// Open finds the logs under dir, creating dir if needed. A log takes no more
// appends once it has maxSize bytes. lowest is a number that must not be given
// out again nor anything below it.
func Open(fsys vfs.FS, dir string, maxSize int64, lowest uint64) (*Set, error) {
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create %s: %w", dir, err)
	}
	s := &Set{fs: fsys, dir: dir, maxSize: maxSize, next: lowest + 1, syncDirs: map[string]bool{}}
	s.cache.open = func(log uint64) (vfs.File, error) { return fsys.Open(s.path(log)) }
	logs, err := s.Logs()
	if err != nil {
		return nil, err
	}
	if n := len(logs); n > 0 && logs[n-1] >= lowest {
		s.next = logs[n-1] + 1
		s.resume = true
	}
	return s, nil
}

// path is segments/<number div 256, hex>/<number, 16 hex digits>.seg, so that
// no directory grows large.
func (s *Set) path(log uint64) string {
	return s.fs.PathJoin(s.subdir(log), fmt.Sprintf("%016x.seg", log))
}

func (s *Set) subdir(log uint64) string { return s.fs.PathJoin(s.dir, fmt.Sprintf("%06x", log>>8)) }

// Logs returns the numbers of all logs on disk, in order.
func (s *Set) Logs() ([]uint64, error) {
	dirs, err := s.fs.List(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", s.dir, err)
	}
	var logs []uint64
	for _, d := range dirs {
		hi, err := strconv.ParseUint(d, 16, 56)
		if err != nil {
			continue
		}
		names, err := s.fs.List(s.fs.PathJoin(s.dir, d))
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", s.fs.PathJoin(s.dir, d), err)
		}
		for _, name := range names {
			hex, ok := strings.CutSuffix(name, ".seg")
			log, err := strconv.ParseUint(hex, 16, 64)
			if ok && err == nil && len(hex) == 16 && log>>8 == hi {
				logs = append(logs, log)
			}
		}
	}
	slices.Sort(logs)
	return logs, nil
}

// Size returns the size of a log in bytes.
func (s *Set) Size(log uint64) (int64, error) {
	s.mu.Lock()
	if a := s.active; a != nil && a.log == log {
		defer s.mu.Unlock()
		return a.size, nil
	}
	s.mu.Unlock()
	st, err := s.fs.Stat(s.path(log))
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Append writes p at the end of the active log and returns where it lies.
// written, if not nil, is called with the log before it can stop being active:
// what the caller notes there, whoever finds the log inactive sees.
func (s *Set) Append(p []byte, written func(log uint64)) (log uint64, off int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.room(); err != nil {
		return 0, 0, err
	}
	a := s.active
	off = a.size
	if n, err := a.f.WriteAt(p, off); err != nil {
		a.size += int64(max(n, 0))
		s.retire()
		return 0, 0, fmt.Errorf("append to %s: %w", s.path(a.log), err)
	}
	a.size += int64(len(p))
	if written != nil {
		written(a.log)
	}
	if !a.unsynced {
		a.unsynced = true
		s.unsynced = append(s.unsynced, a)
	}
	if a.size-a.hinted >= writebackStep && !a.hinting {
		a.hinted, a.hinting = a.size, true
		s.hints.Go(func() { s.hint(a, off+int64(len(p))) })
	}
	return a.log, off, nil
}

// hint asks the kernel to start writing a log up to size. The call waits for
// what was asked for before, so appends don't wait for it.
func (s *Set) hint(a *appender, size int64) {
	a.hintMu.Lock()
	if _, err := a.f.SyncTo(size); err != nil {
		a.hintErr = err
	}
	a.hintMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	a.hinting = false
	a.closeIfDone()
}

// room makes sure that an active log with room is there.
func (s *Set) room() error {
	if a := s.active; a != nil {
		if a.size < s.maxSize {
			return nil
		}
		s.retire()
	}
	if s.resume {
		// The last log of the process before us goes on. Whatever lies at
		// its end, perhaps torn, stays: records are found by their offset.
		s.resume = false
		log := s.next - 1
		st, err := s.fs.Stat(s.path(log))
		if err != nil {
			return err
		}
		if st.Size() < s.maxSize {
			f, err := s.fs.OpenReadWrite(s.path(log), category)
			if err != nil {
				return err
			}
			s.active = &appender{log: log, f: f, size: st.Size(), hinted: st.Size()}
			s.syncPath(log) // the process that made it may have died before it did
			return nil
		}
	}
	log := s.next
	if _, err := s.fs.Stat(s.subdir(log)); errors.Is(err, fs.ErrNotExist) {
		if err := s.fs.MkdirAll(s.subdir(log), 0o700); err != nil {
			return err
		}
	}
	s.syncPath(log)
	f, err := s.fs.Create(s.path(log), category)
	if err != nil {
		return err
	}
	s.next = log + 1
	s.active = &appender{log: log, f: f}
	return nil
}

// syncPath has the next Sync make a log's name durable, and that of the
// directory it is in.
func (s *Set) syncPath(log uint64) {
	s.syncDirs[s.dir] = true
	s.syncDirs[s.subdir(log)] = true
}

// retire closes the active log for appends.
func (s *Set) retire() {
	a := s.active
	s.active = nil
	a.closed = true
	a.closeIfDone()
}

// Rotate closes the active log, so that the next append begins a new one, and
// returns the number below which no log takes appends any more.
func (s *Set) Rotate() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active != nil {
		s.retire()
	}
	s.resume = false
	return s.next
}

// Active reports whether the log may still take appends.
func (s *Set) Active(log uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active != nil && s.active.log == log || s.resume && log == s.next-1
}

// Sync makes durable what was appended before the call. After an error nothing
// may be assumed of it, nor of any later Sync.
func (s *Set) Sync() error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	s.mu.Lock()
	files := s.unsynced
	s.unsynced = nil
	for _, a := range files {
		a.unsynced, a.syncing = false, true
	}
	var dirs []string
	for d := range s.syncDirs {
		dirs = append(dirs, d)
	}
	clear(s.syncDirs)
	s.mu.Unlock()

	for _, a := range files {
		err := a.f.SyncData()
		if err == nil {
			// The kernel tells of an error once, and may have told hint.
			a.hintMu.Lock()
			err = a.hintErr
			a.hintMu.Unlock()
		}
		if err != nil {
			return fmt.Errorf("sync %s: %w", s.path(a.log), err)
		}
	}
	for _, d := range dirs {
		if err := vfs.SyncDir(s.fs, d); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range files {
		a.syncing = false
		a.closeIfDone()
	}
	return nil
}

// SyncLog makes durable a log of the process before, which may have ended before
// it did. What this one appends is Sync's business.
func (s *Set) SyncLog(log uint64) error {
	f, err := s.fs.Open(s.path(log))
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", s.path(log), err)
	}
	for _, d := range []string{s.dir, s.subdir(log)} {
		if err := vfs.SyncDir(s.fs, d); err != nil {
			return err
		}
	}
	return nil
}

// ReadAt fills p from a log. A log that is gone gives fs.ErrNotExist, one that
// ends early io.ErrUnexpectedEOF.
func (s *Set) ReadAt(log uint64, p []byte, off int64) error {
	f, release, err := s.cache.get(log)
	if err != nil {
		return err
	}
	defer release()
	if n, err := f.ReadAt(p, off); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// Prefetch has the kernel begin to read a range of a log. Whoever reads it will
// hear of what goes wrong.
func (s *Set) Prefetch(log uint64, off, n int64) {
	f, release, err := s.cache.get(log)
	if err != nil {
		return
	}
	defer release()
	_ = f.Prefetch(off, n)
}

// Remove deletes a log that takes no more appends. The caller has made durable
// that nothing refers to it.
func (s *Set) Remove(log uint64) error {
	if s.Active(log) {
		return fmt.Errorf("segment log %d still takes appends", log)
	}
	if err := s.fs.Remove(s.path(log)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.cache.drop(log)
	return nil
}

// Close closes all files. What was not synced may be lost.
func (s *Set) Close() {
	s.hints.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.unsynced {
		if a != s.active {
			a.f.Close()
		}
	}
	if s.active != nil {
		s.active.f.Close()
	}
	s.active, s.unsynced = nil, nil
	s.cache.close()
}
