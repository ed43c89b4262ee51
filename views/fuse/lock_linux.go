package fuse

import (
	"context"
	"math"
	"sync"
	"syscall"

	"github.com/spacestore/space/capsule/lock"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// locks are the locks that programs take through one mount. The table is that
// of the capsule, which all views of it share.
type locks struct {
	*lock.Table

	mu     sync.Mutex
	owners map[uint64]map[uint64]struct{} // of POSIX locks, by the handle they were taken through
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
		l.Unlock(in.NodeId, space, want.Owner, want.First, want.Last)
		return nil
	}
	if space == lock.POSIX {
		l.note(in.Fh, in.Owner)
	}
	return l.Set(ctx, in.NodeId, space, want, wait)
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
	l.Unlock(in.NodeId, lock.POSIX, lockOwner{l, in.LockOwner}, 0, math.MaxInt64)
}

// release ends the locks of an open file that goes.
func (l *locks) release(in *gofuse.ReleaseIn) {
	l.mu.Lock()
	owners := l.owners[in.Fh]
	delete(l.owners, in.Fh)
	l.mu.Unlock()
	for owner := range owners {
		l.Unlock(in.NodeId, lock.POSIX, lockOwner{l, owner}, 0, math.MaxInt64)
	}
	const releaseFlock = 1 << 1 // FUSE_RELEASE_FLOCK_UNLOCK, which go-fuse has no name for
	if in.ReleaseFlags&releaseFlock != 0 {
		l.Unlock(in.NodeId, lock.Flock, lockOwner{l, in.LockOwner}, 0, math.MaxInt64)
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
