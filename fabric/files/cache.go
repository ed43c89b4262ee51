package files

import (
	"container/list"
	"os"
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
