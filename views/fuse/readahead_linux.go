package fuse

import (
	"sync"
	"sync/atomic"
)

const (
	minWindow = 256 << 10
	maxWindow = 4 << 20
	// windowBudget is shared by all sequential readers of a mount, so that
	// what is prefetched for one isn't thrown out of the store's cache by the
	// others before it is read.
	windowBudget = 32 << 20
	// slack is how far from the expected offset a read still counts as
	// sequential: the kernel sends readahead requests in parallel, and they
	// arrive in any order.
	slack = 2 << 20
)

// readahead recognises sequential reading on one handle and says what to
// prefetch. The kernel's own readahead is 128 KiB for an unprivileged mount,
// too little to keep several cores decoding.
type readahead struct {
	streams *atomic.Int64 // sequential readers of this mount

	mu     sync.Mutex
	next   int64 // where the furthest sequential read ended
	ahead  int64 // end of what was prefetched
	window int64 // how far to stay ahead of next; 0: not sequential
}

// plan takes note of a read and returns the range to prefetch; n is 0 for none.
func (r *readahead) plan(off, size, fileSize int64) (from, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if off < r.next-slack || off > r.next+slack {
		r.stop()
		r.next = off + size
		return 0, 0
	}
	if r.window == 0 {
		r.window = minWindow
		r.streams.Add(1)
	}
	r.next = max(r.next, off+size)
	r.ahead = max(r.ahead, r.next)
	if r.ahead-r.next > r.window/2 || r.ahead >= fileSize {
		return 0, 0
	}
	share := windowBudget / max(1, r.streams.Load())
	r.window = min(2*r.window, maxWindow, max(share, minWindow))
	from = r.ahead
	r.ahead = min(max(from, r.next+r.window), fileSize)
	return from, r.ahead - from
}

// stop ends the sequential run, if there is one. The caller holds r.mu, or is
// the handle's last user.
func (r *readahead) stop() {
	if r.window != 0 {
		r.streams.Add(-1)
	}
	r.window, r.ahead = 0, 0
}
