package files

import (
	"container/list"
	"os"
	"path"
	"sync"
)

// handles are the open files of a share, as many as are worth keeping open. A
// file that is in use stays open.
type handles struct {
	open func(i int) (*os.File, error)

	mu   sync.Mutex
	all  map[int]*handle
	idle list.List // of *handle, the one used last in front
}

const maxIdle = 64

type handle struct {
	i    int
	f    *os.File
	err  error
	once sync.Once
	used int
	at   *list.Element // in idle
}

func newHandles(open func(i int) (*os.File, error)) *handles {
	return &handles{open: open, all: map[int]*handle{}}
}

// use calls fn with a file.
func (h *handles) use(i int, fn func(*os.File) error) error {
	h.mu.Lock()
	x := h.all[i]
	if x == nil {
		x = &handle{i: i}
		h.all[i] = x
	}
	if x.used++; x.at != nil {
		h.idle.Remove(x.at)
		x.at = nil
	}
	h.mu.Unlock()
	x.once.Do(func() { x.f, x.err = h.open(i) })
	err := x.err
	if err == nil {
		err = fn(x.f)
	}
	h.mu.Lock()
	var old *handle
	if x.used--; x.used == 0 {
		if x.err != nil {
			delete(h.all, i) // another time it may be opened
		} else if x.at = h.idle.PushFront(x); h.idle.Len() > maxIdle {
			old = h.idle.Remove(h.idle.Back()).(*handle)
			delete(h.all, old.i)
		}
	}
	h.mu.Unlock()
	if old != nil {
		if cerr := old.f.Close(); err == nil {
			err = cerr
		}
	}
	return err
}

// close closes all files; none is in use.
func (h *handles) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var err error
	for i, x := range h.all {
		if x.f != nil {
			if cerr := x.f.Close(); err == nil {
				err = cerr
			}
		}
		delete(h.all, i)
	}
	h.idle.Init()
	return err
}

// dirs opens what is below a directory, and keeps the directory of the last one open:
// in the order of paths most have the same one as the one before.
type dirs struct {
	root *os.Root

	mu   sync.Mutex
	path string
	last *os.Root // nil: none
}

// in calls fn with the directory that a path is in, and its name there.
func (d *dirs) in(name string, fn func(dir *os.Root, base string) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	parent, base := path.Split(name)
	if parent == "" {
		return fn(d.root, base)
	}
	if d.last == nil || d.path != parent {
		d.drop()
		last, err := d.root.OpenRoot(parent)
		if err != nil {
			return err
		}
		d.path, d.last = parent, last
	}
	return fn(d.last, base)
}

func (d *dirs) drop() {
	if d.last != nil {
		d.last.Close() // nothing was written through it
		d.last = nil
	}
}

func (d *dirs) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drop()
}

// open is os.Root.OpenFile.
func (d *dirs) open(name string, flag int, perm os.FileMode) (f *os.File, err error) {
	err = d.in(name, func(dir *os.Root, base string) (err error) {
		f, err = dir.OpenFile(base, flag, perm)
		return err
	})
	return f, err
}

// lstat is os.Root.Lstat.
func (d *dirs) lstat(name string) (fi os.FileInfo, err error) {
	err = d.in(name, func(dir *os.Root, base string) (err error) {
		fi, err = dir.Lstat(base)
		return err
	})
	return fi, err
}
