package store

import (
	"sync"

	"github.com/spacestore/space/capsule"
)

// Change tells a watcher what to look at again.
type Change struct {
	ID      capsule.ID
	Name    string // now
	OldName string // before, where it differs
	Removed bool
	All     bool // changes were dropped: look at everything again
}

const maxChanges = 4096 // that wait for the watchers

// watchers hands changes to whoever asked, on a goroutine of its own, so that
// a watcher may call the store and never holds up a commit.
type watchers struct {
	mu      sync.Mutex
	cond    *sync.Cond
	fns     map[int]func(Change)
	next    int
	queue   []Change
	stopped bool
}

func (w *watchers) init() {
	if w.cond == nil {
		w.cond = sync.NewCond(&w.mu)
	}
}

func (w *watchers) notify(c Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.init()
	switch {
	case len(w.fns) == 0:
		return
	case len(w.queue) == 1 && w.queue[0].All:
	case len(w.queue) >= maxChanges:
		w.queue = append(w.queue[:0], Change{All: true})
	default:
		w.queue = append(w.queue, c)
	}
	w.cond.Signal()
}

func (w *watchers) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.init()
	for {
		for len(w.queue) == 0 && !w.stopped {
			w.cond.Wait()
		}
		if w.stopped {
			return
		}
		c := w.queue[0]
		w.queue = w.queue[1:]
		fns := make([]func(Change), 0, len(w.fns))
		for _, fn := range w.fns {
			fns = append(fns, fn)
		}
		w.mu.Unlock()
		for _, fn := range fns {
			fn(c)
		}
		w.mu.Lock()
	}
}

func (w *watchers) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.init()
	w.stopped = true
	w.cond.Broadcast()
}

// Watch calls fn after each change that has become durable, until cancel is
// called. fn runs on one goroutine for all watchers and may call the store.
// When watchers fall behind, changes are replaced by one that says All.
func (s *Store) Watch(fn func(Change)) (cancel func()) {
	w := &s.watchers
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fns == nil {
		w.fns = map[int]func(Change){}
	}
	n := w.next
	w.next++
	w.fns[n] = fn
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.fns, n)
	}
}
