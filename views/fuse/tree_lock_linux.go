package fuse

import (
	"context"
	"syscall"

	"github.com/spacestore/space/capsule/tree"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// lockOwner is whom a lock belongs to: what the kernel of one mount calls so.
type lockOwner struct {
	mount *treeSystem
	owner uint64
}

func (f *treeSystem) lockOf(in *gofuse.LkIn) (tree.LockSpace, tree.Lock) {
	space := tree.POSIX
	if in.LkFlags&gofuse.LK_FLOCK != 0 {
		space = tree.Flock
	}
	return space, tree.Lock{
		Owner: lockOwner{f, in.Owner},
		Write: in.Lk.Typ == syscall.F_WRLCK,
		First: int64(in.Lk.Start),
		Last:  int64(in.Lk.End),
		PID:   in.Lk.Pid,
	}
}

func (f *treeSystem) GetLk(_ <-chan struct{}, in *gofuse.LkIn, out *gofuse.LkOut) gofuse.Status {
	space, l := f.lockOf(in)
	out.Lk = in.Lk
	out.Lk.Typ = syscall.F_UNLCK
	if b, ok := f.tree.TestLock(in.NodeId, space, l); ok {
		out.Lk = gofuse.FileLock{Start: uint64(b.First), End: uint64(b.Last), Typ: syscall.F_RDLCK, Pid: b.PID}
		if b.Write {
			out.Lk.Typ = syscall.F_WRLCK
		}
	}
	return gofuse.OK
}

func (f *treeSystem) SetLk(_ <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	return f.setLock(f.ctx, in, false)
}

// SetLkw waits until the process gets a signal, as programs expect of locks
// and of nothing else: some use alarm(2) to wait no longer than they want.
func (f *treeSystem) SetLkw(cancel <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	return f.setLock(untilSignal{f.ctx, cancel}, in, true)
}

func (f *treeSystem) setLock(ctx context.Context, in *gofuse.LkIn, wait bool) gofuse.Status {
	space, l := f.lockOf(in)
	if in.Lk.Typ == syscall.F_UNLCK {
		f.unlock(in.NodeId, space, in.Owner, l.First, l.Last)
		return gofuse.OK
	}
	err := f.tree.SetLock(ctx, in.NodeId, space, l, wait)
	if nerr := f.memory.lock(f, in.NodeId, space, in.Owner); nerr != nil && err == nil {
		f.tree.Unlock(in.NodeId, space, l.Owner, l.First, l.Last)
		err = nerr
	}
	return f.status("lock", &in.InHeader, err)
}

func (f *treeSystem) unlock(ino uint64, space tree.LockSpace, owner uint64, first, last int64) {
	f.tree.Unlock(ino, space, lockOwner{f, owner}, first, last)
	// It needs no more room than it had.
	_ = f.memory.lock(f, ino, space, owner)
}

// untilSignal is a context that ends when a request's process gets a signal.
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
