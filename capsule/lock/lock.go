package lock

import (
	"context"
	"math"
	"slices"
	"sync"

	"github.com/spacestore/space/capsule"
)

// Space tells flock(2) locks from POSIX byte-range locks, which do not see
// each other.
type Space uint8

// The spaces.
const (
	POSIX Space = iota
	Flock       // on the whole file; changing one lets go of it first
	spaces
)

// Content is the number of the one file of a volume.
const Content uint64 = 1

// Max is how many locks a table holds, those that are waited for included.
const Max = 1 << 16

// Lock is a lock on bytes First to Last, both included.
type Lock struct {
	Owner any // comparable; says the view too
	Write bool
	First int64
	Last  int64  // math.MaxInt64: whatever there will be
	PID   uint32 // to tell others
}

func (l *Lock) conflicts(o *Lock) bool {
	return l.Owner != o.Owner && (l.Write || o.Write) && l.First <= o.Last && o.First <= l.Last
}

// Table has the locks on the files of one capsule, which go by number. Its zero
// value is ready.
type Table struct {
	mu      sync.Mutex
	files   map[lockedFile]*fileLocks
	waiting map[any][]*lockWait // by owner; POSIX only
	n       int                 // locks held and waited for
}

type lockedFile struct {
	file  uint64
	space Space
}

// fileLocks are the locks on a file in one space. An owner's do not overlap.
type fileLocks struct {
	held    []Lock
	waiters int
	changed chan struct{} // closed when a lock goes, and made anew
}

type lockWait struct {
	file *fileLocks
	lock Lock
}

func (f *fileLocks) blocker(l *Lock) *Lock {
	for i := range f.held {
		if f.held[i].conflicts(l) {
			return &f.held[i]
		}
	}
	return nil
}

func (t *Table) file(k lockedFile) *fileLocks {
	f := t.files[k]
	if f == nil {
		if t.files == nil {
			t.files, t.waiting = map[lockedFile]*fileLocks{}, map[any][]*lockWait{}
		}
		f = &fileLocks{changed: make(chan struct{})}
		t.files[k] = f
	}
	return f
}

// tidy forgets a file without locks.
func (t *Table) tidy(k lockedFile) {
	if f := t.files[k]; f != nil && len(f.held) == 0 && f.waiters == 0 {
		delete(t.files, k)
	}
}

// carve takes [first, last] out of what owner holds of a file, and tells
// whether there was any.
func (t *Table) carve(f *fileLocks, owner any, first, last int64) bool {
	var rest []Lock
	found := false
	f.held = slices.DeleteFunc(f.held, func(l Lock) bool {
		if l.Owner != owner || l.First > last || first > l.Last {
			return false
		}
		found = true
		if l.First < first {
			left := l
			left.Last = first - 1
			rest = append(rest, left)
		}
		if l.Last > last {
			right := l
			right.First = last + 1
			rest = append(rest, right)
		}
		t.n--
		return true
	})
	f.held = append(f.held, rest...)
	t.n += len(rest)
	return found
}

// grant adds a lock, joined with what the owner has of its sort beside it.
func (t *Table) grant(f *fileLocks, l Lock) {
	changed := t.carve(f, l.Owner, l.First, l.Last)
	f.held = slices.DeleteFunc(f.held, func(o Lock) bool {
		if o.Owner != l.Owner || o.Write != l.Write || o.Last != math.MaxInt64 && o.Last+1 < l.First || l.Last != math.MaxInt64 && l.Last+1 < o.First {
			return false
		}
		l.First, l.Last = min(l.First, o.First), max(l.Last, o.Last)
		t.n--
		return true
	})
	f.held = append(f.held, l)
	t.n++
	if changed { // a write lock may have become a read lock
		f.wake()
	}
}

func (f *fileLocks) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// deadlock tells whether owner would wait for itself if it waited for l.
func (t *Table) deadlock(f *fileLocks, l *Lock) bool {
	seen := map[any]bool{}
	todo := []*lockWait{{f, *l}}
	for len(todo) > 0 {
		w := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for i := range w.file.held {
			h := &w.file.held[i]
			if !h.conflicts(&w.lock) || seen[h.Owner] {
				continue
			}
			if h.Owner == l.Owner {
				return true
			}
			seen[h.Owner] = true
			todo = append(todo, t.waiting[h.Owner]...)
		}
	}
	return false
}

// Set takes a lock, or changes what Owner holds of the range. A conflict is
// WouldBlock; with wait Set returns when the lock is held, ctx ends, or waiting
// would never end (Deadlock; POSIX only).
func (t *Table) Set(ctx context.Context, file uint64, space Space, l Lock, wait bool) error {
	if space >= spaces || l.First < 0 || l.Last < l.First {
		return capsule.Errorf(capsule.Invalid, "a lock on bytes %d to %d", l.First, l.Last)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	k := lockedFile{file, space}
	f := t.file(k)
	defer t.tidy(k)
	if space == Flock && t.carve(f, l.Owner, l.First, l.Last) {
		f.wake()
	}
	for {
		if t.n+2 > Max {
			return capsule.Errorf(capsule.NoSpace, "%d locks are held, the limit", Max)
		}
		if f.blocker(&l) == nil {
			t.grant(f, l)
			return nil
		}
		if !wait {
			return capsule.Errorf(capsule.WouldBlock, "bytes %d to %d are locked by another", l.First, l.Last)
		}
		if space == POSIX && t.deadlock(f, &l) {
			return capsule.Errorf(capsule.Deadlock, "who holds the lock on bytes %d to %d waits for this one", l.First, l.Last)
		}
		if err := t.wait(ctx, f, space, l); err != nil {
			return err
		}
	}
}

// wait returns when a lock on the file goes. It lets go of t.mu meanwhile.
func (t *Table) wait(ctx context.Context, f *fileLocks, space Space, l Lock) error {
	w := &lockWait{f, l}
	if space == POSIX {
		t.waiting[l.Owner] = append(t.waiting[l.Owner], w)
	}
	f.waiters++
	t.n++
	changed := f.changed
	t.mu.Unlock()
	var err error
	select {
	case <-changed:
	case <-ctx.Done():
		err = ctx.Err()
	}
	t.mu.Lock()
	f.waiters--
	t.n--
	if space == POSIX {
		rest := slices.DeleteFunc(t.waiting[l.Owner], func(o *lockWait) bool { return o == w })
		if t.waiting[l.Owner] = rest; len(rest) == 0 {
			delete(t.waiting, l.Owner)
		}
	}
	return err
}

// Test returns a lock that is in l's way, if there is one.
func (t *Table) Test(file uint64, space Space, l Lock) (Lock, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[lockedFile{file, space}]; f != nil {
		if b := f.blocker(&l); b != nil {
			return *b, true
		}
	}
	return Lock{}, false
}

// Held returns what owner holds of a file.
func (t *Table) Held(file uint64, space Space, owner any) []Lock {
	t.mu.Lock()
	defer t.mu.Unlock()
	var own []Lock
	if f := t.files[lockedFile{file, space}]; f != nil {
		for _, l := range f.held {
			if l.Owner == owner {
				own = append(own, l)
			}
		}
	}
	return own
}

// Unlock gives up what owner holds of bytes first to last.
func (t *Table) Unlock(file uint64, space Space, owner any, first, last int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := lockedFile{file, space}
	if f := t.files[k]; f != nil && t.carve(f, owner, first, last) {
		f.wake()
		t.tidy(k)
	}
}

// Release gives up all locks of the owners that gone tells: after the end of a
// client or view.
func (t *Table) Release(gone func(owner any) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, f := range t.files {
		before := len(f.held)
		f.held = slices.DeleteFunc(f.held, func(l Lock) bool { return gone(l.Owner) })
		if n := before - len(f.held); n > 0 {
			t.n -= n
			f.wake()
			t.tidy(k)
		}
	}
}
