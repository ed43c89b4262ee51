package tree

import (
	"context"
	"sync"
)

// EventKind is what happened.
type EventKind uint8

// The kinds of event.
const (
	Changed  EventKind = iota + 1 // attributes or extended attributes of Ino
	Written                       // content of Ino: Len bytes from Off (to the end: math.MaxInt64)
	Added                         // Name in Dir is now Ino
	Removed                       // Name in Dir, which was Ino
	Overflow                      // anything: events were dropped
)

// Event tells a watcher what to look at again. Added and Removed imply that
// the attributes of Dir changed, Written that those of Ino did.
type Event struct {
	Kind     EventKind
	Ino      uint64
	Dir      uint64
	Name     string
	Off, Len int64
	Origin   any // who did it, from WithOrigin; nil: nobody said
}

type originKey struct{}

// WithOrigin marks what is done under the context as done by origin, so that a
// view can leave out the events that it caused itself.
func WithOrigin(ctx context.Context, origin any) context.Context {
	return context.WithValue(ctx, originKey{}, origin)
}

const maxEvents = 4096 // that wait for the watchers

// watchers hands events to whoever asked, on a goroutine of its own, so that
// a watcher may call the tree and never holds up an operation.
type watchers struct {
	mu     sync.Mutex
	cond   *sync.Cond
	fns    map[int]func(Event)
	next   int
	queue  []Event
	closed bool
	done   chan struct{}
}

func (w *watchers) start() {
	w.cond = sync.NewCond(&w.mu)
	w.fns = map[int]func(Event){}
	w.done = make(chan struct{})
	go w.run()
}

func (w *watchers) notify(ctx context.Context, events []Event) {
	if len(events) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.fns) == 0 || len(w.queue) == 1 && w.queue[0].Kind == Overflow {
		return
	}
	if len(w.queue)+len(events) > maxEvents {
		w.queue = append(w.queue[:0], Event{Kind: Overflow})
	} else {
		origin := ctx.Value(originKey{})
		for _, e := range events {
			e.Origin = origin
			w.queue = append(w.queue, e)
		}
	}
	w.cond.Signal()
}

func (w *watchers) run() {
	defer close(w.done)
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.queue) == 0 && !w.closed {
			w.cond.Wait()
		}
		if w.closed {
			return
		}
		e := w.queue[0]
		w.queue = w.queue[1:]
		fns := make([]func(Event), 0, len(w.fns))
		for _, fn := range w.fns {
			fns = append(fns, fn)
		}
		w.mu.Unlock()
		for _, fn := range fns {
			fn(e)
		}
		w.mu.Lock()
	}
}

func (w *watchers) close() {
	w.mu.Lock()
	w.closed = true
	w.cond.Broadcast()
	w.mu.Unlock()
	<-w.done
}

// Watch calls fn for each event, in order, until cancel is called. fn runs on
// one goroutine for all watchers and may call the tree, except Close. When
// watchers fall behind, events are replaced by one Overflow.
func (fs *FS) Watch(fn func(Event)) (cancel func()) {
	w := &fs.watchers
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.next
	w.next++
	w.fns[n] = fn
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.fns, n)
	}
}
