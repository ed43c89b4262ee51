package tree

import "context"

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

// notify tells the watchers what the caller behind ctx has done.
func (fs *FS) notify(ctx context.Context, events []Event) {
	origin := originOf(ctx)
	for i := range events {
		events[i].Origin = origin
	}
	fs.watchers.Notify(events...)
}

// Watch calls fn for each event, in order, until cancel is called. fn runs on
// one goroutine for all watchers and may call the tree, except Close. When
// watchers fall behind, events are replaced by one Overflow.
func (fs *FS) Watch(fn func(Event)) (cancel func()) { return fs.watchers.Watch(fn) }
