package fuse

import (
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// shortWrite is up to how many bytes a write is over soon.
const shortWrite = 64 << 10

// long reports whether a request may wait for a lock, or for the disk while
// others ask for something, or has much to do.
func (f *treeSystem) long(in *gofuse.InHeader) bool {
	alone := f.callers.alone(in.Pid)
	switch in.Opcode {
	case opRead: // the kernel reads ahead, so there can be several
		return f.reads.slow()
	case opWrite:
		w := (*gofuse.WriteIn)(unsafe.Pointer(in))
		return w.Size > shortWrite || w.Flags&syscall.O_DSYNC != 0 && !alone
	case opFsync, opFsyncDir:
		return !alone
	case opSetLkw, opFallocate, opCopyFileRange:
		return true
	}
	return false
}

// callers tells whether there is just one thread that asks for anything.
type callers struct{ last, streak atomic.Uint32 }

// aloneAfter is after how many requests of one thread it counts as the only one.
const aloneAfter = 32

// alone notes a request of a thread, 0 if that is not known, and reports whether
// no other one has come lately.
func (c *callers) alone(thread uint32) bool {
	switch {
	case thread == 0:
		return false
	case c.last.Swap(thread) != thread:
		c.streak.Store(0)
		return false
	}
	return c.streak.Add(1) >= aloneAfter
}

// pace tells whether requests of a kind take long at present, by those before:
// content is read from the disk or from memory.
type pace struct{ wary atomic.Int32 }

const (
	quick = 200 * time.Microsecond
	// waryFor is for how many requests one that was not quick counts.
	waryFor = 16
)

func (p *pace) slow() bool { return p.wary.Load() > 0 }

// took notes how long one took.
func (p *pace) took(d time.Duration) {
	if d > quick {
		p.wary.Store(waryFor)
	} else if p.slow() {
		p.wary.Add(-1)
	}
}
