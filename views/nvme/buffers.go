package nvme

import (
	"math/bits"
	"slices"
	"sync"
	"time"
)

// minBuffer is the smallest buffer for data that there is.
const minBuffer = 4096

// buffers recycles buffers for data, by powers of two.
var buffers [16]sync.Pool

// getBuffer returns n bytes; what is in them is anything.
func getBuffer(n int) []byte {
	class := bits.Len(uint(max(n, minBuffer)-1) / minBuffer)
	if class >= len(buffers) {
		return make([]byte, n)
	}
	if p, _ := buffers[class].Get().(*[]byte); p != nil {
		return (*p)[:n]
	}
	return make([]byte, n, minBuffer<<class)
}

func putBuffer(b []byte) {
	class := bits.Len(uint(max(cap(b), 1)-1) / minBuffer)
	if class < len(buffers) && cap(b) == minBuffer<<class {
		buffers[class].Put(&b)
	}
}

// budget is an amount of memory that commands take from, first come, first served.
type budget struct {
	mu      sync.Mutex
	limit   int64
	used    int64
	waiting []waiter
}

type waiter struct {
	n     int64
	owner *conn
	ready func()
}

// acquire takes n bytes and reports true, or reports false and calls ready
// when it has taken them. n must not be larger than the limit.
func (b *budget) acquire(n int64, owner *conn, ready func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 && b.used+n <= b.limit {
		b.used += n
		return true
	}
	b.waiting = append(b.waiting, waiter{n, owner, ready})
	return false
}

// take takes n bytes whether there are any or not.
func (b *budget) take(n int64) {
	b.mu.Lock()
	b.used += n
	b.mu.Unlock()
}

// release gives n bytes back and calls who can go on with them.
func (b *budget) release(n int64) {
	b.mu.Lock()
	b.used -= n
	ready := b.next()
	b.mu.Unlock()
	for _, f := range ready {
		f()
	}
}

// next takes for those whose turn it is. Callers hold b.mu.
func (b *budget) next() (ready []func()) {
	for len(b.waiting) > 0 && b.used+b.waiting[0].n <= b.limit {
		b.used += b.waiting[0].n
		ready = append(ready, b.waiting[0].ready)
		b.waiting = b.waiting[1:]
	}
	if len(b.waiting) == 0 {
		b.waiting = nil
	}
	return ready
}

// forget leaves out who waits for a connection that is gone.
func (b *budget) forget(owner *conn) {
	b.mu.Lock()
	b.waiting = slices.DeleteFunc(b.waiting, func(w waiter) bool { return w.owner == owner })
	ready := b.next()
	b.mu.Unlock()
	for _, f := range ready {
		f()
	}
}

func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// workers run what may have to wait for a namespace's device, so many at a
// time; the rest wait in order. A device that hangs holds up its own namespace
// and no goroutine that others need.
type workers struct {
	mu      sync.Mutex
	limit   int
	running int
	queue   []*command
}

// submit has run called with cmd soon, on another goroutine.
func (w *workers) submit(cmd *command) {
	w.mu.Lock()
	if w.running >= w.limit {
		w.queue = append(w.queue, cmd)
		w.mu.Unlock()
		return
	}
	w.running++
	w.mu.Unlock()
	cmd.c.t.running.Add(1)
	go w.work(cmd)
}

func (w *workers) work(cmd *command) {
	for {
		c := cmd.c
		cmd.at = time.Now()
		cmd.execute()
		next := w.next()
		if next == nil {
			c.flush()
			c.t.running.Done()
			return
		}
		if c.needsFlush() {
			// The host may be slow to take it: others go on in this one's place.
			c.t.running.Add(1)
			go w.work(next)
			c.flush()
			c.t.running.Done()
			return
		}
		cmd = next
	}
}

// next returns what to run next, nil when this worker has to end.
func (w *workers) next() *command {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		w.running--
		w.queue = nil
		return nil
	}
	cmd := w.queue[0]
	w.queue[0] = nil
	w.queue = w.queue[1:]
	return cmd
}
