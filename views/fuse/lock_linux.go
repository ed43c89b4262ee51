package fuse

import (
	"context"
	"math"
	"slices"
	"sync"
	"syscall"

	"github.com/spacestore/space/capsule/lock"
	"github.com/spacestore/space/internal/ledger"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// locks are the locks that programs take through one mount. The table is that
// of the capsule, which all views of it share.
type locks struct {
	*lock.Table
	ledger *ledger.Ledger // for the process after this one; nil: the mount ends with this one

	mu     sync.Mutex
	owners map[uint64]map[uint64]struct{} // of POSIX locks, by the handle they were taken through
	kept   map[heldLocks][]uint64         // numbers of the ledger's entries
	next   uint64                         // number of the next one
}

// heldLocks are the locks of one owner on a file.
type heldLocks struct {
	file  uint64
	space lock.Space
	owner uint64
}

// lockOwner is whom a lock belongs to: what the kernel of one mount calls so.
type lockOwner struct {
	mount *locks
	owner uint64
}

func (l *locks) of(in *gofuse.LkIn) (lock.Space, lock.Lock) {
	space := lock.POSIX
	if in.LkFlags&gofuse.LK_FLOCK != 0 {
		space = lock.Flock
	}
	return space, lock.Lock{
		Owner: lockOwner{l, in.Owner},
		Write: in.Lk.Typ == syscall.F_WRLCK,
		First: int64(in.Lk.Start),
		Last:  int64(in.Lk.End),
		PID:   in.Lk.Pid,
	}
}

func (l *locks) get(in *gofuse.LkIn, out *gofuse.LkOut) {
	space, want := l.of(in)
	out.Lk = in.Lk
	out.Lk.Typ = syscall.F_UNLCK
	if b, ok := l.Test(in.NodeId, space, want); ok {
		out.Lk = gofuse.FileLock{Start: uint64(b.First), End: uint64(b.Last), Typ: syscall.F_RDLCK, Pid: b.PID}
		if b.Write {
			out.Lk.Typ = syscall.F_WRLCK
		}
	}
}

func (l *locks) set(ctx context.Context, in *gofuse.LkIn, wait bool) error {
	space, want := l.of(in)
	if in.Lk.Typ == syscall.F_UNLCK {
		l.give(heldLocks{in.NodeId, space, in.Owner}, in.Fh, want.First, want.Last)
		return nil
	}
	if space == lock.POSIX {
		l.note(in.Fh, in.Owner)
	}
	err := l.Set(ctx, in.NodeId, space, want, wait)
	if kerr := l.keep(heldLocks{in.NodeId, space, in.Owner}, in.Fh); kerr != nil && err == nil {
		l.Unlock(in.NodeId, space, want.Owner, want.First, want.Last)
		err = kerr
	}
	return err
}

// give gives up bytes first to last.
func (l *locks) give(k heldLocks, fh uint64, first, last int64) {
	l.Unlock(k.file, k.space, lockOwner{l, k.owner}, first, last)
	_ = l.keep(k, fh) // it needs no more room than it had
}

// keep notes what an owner holds of a file now, and through which handle, for
// the process after this one. The new entries are there before the old ones go,
// so that a lock is never missing.
func (l *locks) keep(k heldLocks, fh uint64) error {
	if l.ledger == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.kept[k]
	var numbers []uint64
	for _, h := range l.Held(k.file, k.space, lockOwner{l, k.owner}) {
		write := uint64(0)
		if h.Write {
			write = 1
		}
		l.next++
		if err := l.ledger.Put(keptLock, l.next, words(k.file, uint64(k.space), k.owner, write, uint64(h.First), uint64(h.Last), uint64(h.PID), fh)); err != nil {
			for _, n := range numbers {
				l.ledger.Delete(keptLock, n)
			}
			return err
		}
		numbers = append(numbers, l.next)
	}
	for _, n := range old {
		l.ledger.Delete(keptLock, n)
	}
	if l.kept == nil {
		l.kept = map[heldLocks][]uint64{}
	}
	if l.kept[k] = numbers; len(numbers) == 0 {
		delete(l.kept, k)
	}
	return nil
}

// recall takes the locks that the process before has kept. Where two are in each
// other's way the older one was given up in an answer that never came.
func (l *locks) recall(ctx context.Context, kept *ledger.Ledger) {
	all := kept.All(keptLock)
	slices.Reverse(all)
	l.kept = map[heldLocks][]uint64{}
	for _, e := range all {
		l.next = max(l.next, e.Number)
		w := wordsOf(e.Value, 8)
		if w == nil || w[1] > uint64(lock.Flock) {
			kept.Delete(keptLock, e.Number)
			continue
		}
		k := heldLocks{w[0], lock.Space(w[1]), w[2]}
		if k.space == lock.Flock && l.kept[k] != nil { // it was being changed
			kept.Delete(keptLock, e.Number)
			continue
		}
		err := l.Set(ctx, k.file, k.space, lock.Lock{Owner: lockOwner{l, k.owner}, Write: w[3] != 0,
			First: int64(w[4]), Last: int64(w[5]), PID: uint32(w[6])}, false)
		if err != nil {
			kept.Delete(keptLock, e.Number)
			continue
		}
		l.kept[k] = append(l.kept[k], e.Number)
		if k.space == lock.POSIX {
			l.note(w[7], k.owner)
		}
	}
}

// note remembers whose POSIX locks go with a handle. Those of processes go
// when they close it, and the kernel tells that; those of open file
// descriptions (F_OFD_SETLK) go with the handle, and it does not.
func (l *locks) note(fh, owner uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owners == nil {
		l.owners = map[uint64]map[uint64]struct{}{}
	}
	if l.owners[fh] == nil {
		l.owners[fh] = map[uint64]struct{}{}
	}
	l.owners[fh][owner] = struct{}{}
}

// flush ends what POSIX locks a process had on a file: it closed a descriptor.
func (l *locks) flush(in *gofuse.FlushIn) {
	l.mu.Lock()
	delete(l.owners[in.Fh], in.LockOwner)
	l.mu.Unlock()
	l.give(heldLocks{in.NodeId, lock.POSIX, in.LockOwner}, in.Fh, 0, math.MaxInt64)
}

// release ends the locks of an open file that goes.
func (l *locks) release(in *gofuse.ReleaseIn) {
	l.mu.Lock()
	owners := l.owners[in.Fh]
	delete(l.owners, in.Fh)
	l.mu.Unlock()
	for owner := range owners {
		l.give(heldLocks{in.NodeId, lock.POSIX, owner}, in.Fh, 0, math.MaxInt64)
	}
	const releaseFlock = 1 << 1 // FUSE_RELEASE_FLOCK_UNLOCK, which go-fuse has no name for
	if in.ReleaseFlags&releaseFlock != 0 {
		l.give(heldLocks{in.NodeId, lock.Flock, in.LockOwner}, in.Fh, 0, math.MaxInt64)
	}
}

// close gives up all that the mount held.
func (l *locks) close() {
	l.Release(func(owner any) bool {
		o, ok := owner.(lockOwner)
		return ok && o.mount == l
	})
}

// untilSignal is a context that ends when a request's process gets a signal:
// programs expect that of waiting for locks and of nothing else; some use
// alarm(2) to wait no longer than they want.
type untilSignal struct {
	context.Context
	signal <-chan struct{}
}

func (c untilSignal) Done() <-chan struct{} { return c.signal }

func (c untilSignal) Err() error {
	select {
	case <-c.signal:
		return context.Canceled
	default:
		return nil
	}
}

func (f *treeSystem) GetLk(_ <-chan struct{}, in *gofuse.LkIn, out *gofuse.LkOut) gofuse.Status {
	f.locks.get(in, out)
	return gofuse.OK
}

func (f *treeSystem) SetLk(_ <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	return f.status("lock", &in.InHeader, f.locks.set(f.ctx, in, false))
}

func (f *treeSystem) SetLkw(cancel <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	return f.status("lock", &in.InHeader, f.locks.set(untilSignal{f.ctx, cancel}, in, true))
}

func (f *volumeSystem) GetLk(_ <-chan struct{}, in *gofuse.LkIn, out *gofuse.LkOut) gofuse.Status {
	in.NodeId = lock.Content
	f.locks.get(in, out)
	return gofuse.OK
}

func (f *volumeSystem) SetLk(_ <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	in.NodeId = lock.Content
	return f.status("lock", f.locks.set(context.Background(), in, false))
}

func (f *volumeSystem) SetLkw(cancel <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	in.NodeId = lock.Content
	return f.status("lock", f.locks.set(untilSignal{context.Background(), cancel}, in, true))
}
