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
// view can leave out the events that it caused itself, and a lease is not in
// the way of its holder.
func WithOrigin(ctx context.Context, origin any) context.Context {
	return context.WithValue(ctx, originKey{}, origin)
}

func originOf(ctx context.Context) any { return ctx.Value(originKey{}) }

const maxEvents = 4096 // that wait for the watchers

// audience knows who watches, so that what nobody wants to hear wakes nobody:
// a mount causes most events itself, one with nearly every request.
type audience struct {
	mu   sync.RWMutex
	deaf map[int]any // to which origin each watcher is deaf; nil: to none
	next int
}

// hears reports whether anybody wants to hear of what origin did.
func (a *audience) hears(origin any) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, deaf := range a.deaf {
		if deaf == nil || deaf != origin {
			return true
		}
	}
	return false
}

func (a *audience) join(deaf any) (leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.deaf == nil {
		a.deaf = map[int]any{}
	}
	n := a.next
	a.next++
	a.deaf[n] = deaf
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.deaf, n)
	}
}

// notify tells the watchers what the caller behind ctx has done.
func (fs *FS) notify(ctx context.Context, events []Event) {
	origin := originOf(ctx)
	if !fs.audience.hears(origin) {
		return
	}
	for i := range events {
		events[i].Origin = origin
	}
	fs.watchers.Notify(events...)
}

// Watch calls fn for each event, in order, until cancel is called. fn runs on
// one goroutine for all watchers and may call the tree, except Close. When
// watchers fall behind, events are replaced by one Overflow.
func (fs *FS) Watch(fn func(Event)) (cancel func()) { return fs.WatchOthers(nil, fn) }

// WatchOthers is Watch without the events that origin causes. Those do not make
// it fall behind either, unless somebody else watches.
func (fs *FS) WatchOthers(origin any, fn func(Event)) (cancel func()) {
	leave := fs.audience.join(origin)
	stop := fs.watchers.Watch(func(e Event) {
		if origin == nil || e.Origin != origin {
			fn(e)
		}
	})
	return func() {
		stop()
		leave()
	}
}
