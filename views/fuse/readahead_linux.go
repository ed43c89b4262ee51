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
	// slack is how far from the furthest read one may be and belong to the same
	// run: the kernel sends readahead requests in parallel, and they arrive in
	// any order.
	slack = 2 << 20
)

// readahead recognises sequential reading on one handle and says what to
// prefetch. The kernel's own readahead is 128 KiB for an unprivileged mount,
// too little to keep several cores decoding.
//
// A run of reads near each other is sequential while it asks for at least half
// of the bytes it spans: random reads of a small range are near each other too.
type readahead struct {
	streams *atomic.Int64 // sequential readers of this mount

	mu         sync.Mutex
	start, end int64 // what the run spans
	read       int64 // bytes asked for in it
	ahead      int64 // end of what was prefetched
	window     int64 // how far to stay ahead of end; 0: not sequential
}

// plan takes note of a read and returns the range to prefetch; n is 0 for none.
func (r *readahead) plan(off, size, fileSize int64) (from, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	near := off >= r.end-slack && off <= r.end+slack
	dense := 2*r.read >= r.end-r.start
	if !near || !dense && r.end-r.start > 2*slack {
		r.stop()
		r.start, r.end, r.read = off, off, 0
	}
	r.start = min(r.start, off)
	r.end = max(r.end, off+size)
	r.read += size
	if r.read < minWindow || 2*r.read < r.end-r.start {
		return 0, 0
	}
	if r.window == 0 {
		r.window = minWindow
		r.streams.Add(1)
	}
	r.ahead = max(r.ahead, r.end)
	if r.ahead-r.end > r.window/2 || r.ahead >= fileSize {
		return 0, 0
	}
	share := windowBudget / max(1, r.streams.Load())
	r.window = min(2*r.window, maxWindow, max(share, minWindow))
	from = r.ahead
	r.ahead = min(max(from, r.end+r.window), fileSize)
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
