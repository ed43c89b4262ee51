package relay

import (
	"io"
	"os"
	"sync"
	"time"
)

// queue is a bounded run of bytes between a connection's user and what moves
// them over the wire. Its user's side blocks, the other side never does.
type queue struct {
	max    int
	change func() // called, without the lock, when the user has added or taken bytes or closed

	mu     sync.Mutex
	wake   chan struct{} // closed and made anew at each change that may end a wait
	ring   []byte        // grows to max, as it is needed
	start  int
	n      int
	closed bool  // no more bytes come in; what is there may be taken
	err    error // why nothing goes in or out any more
}

func newQueue(max int, change func()) *queue {
	return &queue{max: max, change: change, wake: make(chan struct{})}
}

func (q *queue) wakeAll() {
	close(q.wake)
	q.wake = make(chan struct{})
}

// put adds as much of p as there is room for. Called with the lock held.
func (q *queue) put(p []byte) int {
	p = p[:min(len(p), q.max-q.n)]
	if need := q.n + len(p); need > len(q.ring) {
		bigger := make([]byte, min(max(need, 2*len(q.ring), 4<<10), q.max))
		q.copyOut(bigger)
		q.ring, q.start = bigger, 0
	}
	end := (q.start + q.n) % max(len(q.ring), 1)
	k := copy(q.ring[end:], p)
	copy(q.ring, p[k:])
	q.n += len(p)
	return len(p)
}

// copyOut copies the first bytes into p. Called with the lock held.
func (q *queue) copyOut(p []byte) int {
	p = p[:min(len(p), q.n)]
	k := copy(p, q.ring[q.start:])
	copy(p[k:], q.ring)
	return len(p)
}

// take moves the first bytes into p. Called with the lock held.
func (q *queue) take(p []byte) int {
	k := q.copyOut(p)
	q.n -= k
	if q.n == 0 {
		q.start = 0
		if len(q.ring) > 64<<10 {
			q.ring = nil // an idle connection holds little
		}
	} else {
		q.start = (q.start + k) % len(q.ring)
	}
	return k
}

// write is the user's: it blocks until all of p is in.
func (q *queue) write(p []byte, deadline *deadline) (n int, err error) {
	for {
		q.mu.Lock()
		switch {
		case q.err != nil:
			err = q.err
		case q.closed:
			err = io.ErrClosedPipe
		case deadline.passed():
			err = os.ErrDeadlineExceeded
		}
		k := 0
		if err == nil {
			k = q.put(p[n:])
			n += k
		}
		wake := q.wake
		q.mu.Unlock()
		if k > 0 {
			q.change()
		}
		if err != nil || n == len(p) {
			return n, err
		}
		deadline.wait(wake)
	}
}

// read is the user's: it blocks until there is a byte.
func (q *queue) read(p []byte, deadline *deadline) (n int, err error) {
	for {
		q.mu.Lock()
		switch {
		case deadline.passed():
			err = os.ErrDeadlineExceeded
		case q.n > 0 || len(p) == 0:
			n = q.take(p)
		case q.err != nil:
			err = q.err
		case q.closed:
			err = io.EOF
		}
		wake := q.wake
		q.mu.Unlock()
		if n > 0 {
			q.change()
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		deadline.wait(wake)
	}
}

// close is the user's: nothing follows what was written.
func (q *queue) close() {
	q.finish()
	q.change()
}

// tryPut adds what there is room for, for the user to read.
func (q *queue) tryPut(p []byte) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil || q.closed {
		return 0
	}
	k := q.put(p)
	q.wakeAll()
	return k
}

// tryTake takes at most limit bytes that the user has written, and says
// whether nothing follows them.
func (q *queue) tryTake(limit int) (p []byte, eof bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if k := min(limit, q.n); k > 0 {
		p = make([]byte, k)
		q.take(p)
		q.wakeAll()
	}
	return p, q.closed && q.n == 0
}

// finish says that nothing follows what is in.
func (q *queue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		q.wakeAll()
	}
}

// fail ends the queue. What is in may still be read.
func (q *queue) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
		q.wakeAll()
	}
}

// abandon is fail for a user who wants nothing more: what is in is dropped.
func (q *queue) abandon(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.n, q.start, q.ring = 0, 0, nil
	if q.err == nil {
		q.err = err
		q.wakeAll()
	}
}

// state returns how many bytes are in, how many more fit, and whether nothing
// follows those that are in.
func (q *queue) state() (n, room int, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n, q.max - q.n, q.closed
}

// deadline is when a connection's reads or writes give up.
type deadline struct {
	mu    sync.Mutex
	at    time.Time
	moved chan struct{} // closed when at changes
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	if d.moved != nil {
		close(d.moved)
		d.moved = nil
	}
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

// wait returns when wake is closed, the deadline passes, or it is changed.
func (d *deadline) wait(wake <-chan struct{}) {
	d.mu.Lock()
	if d.moved == nil {
		d.moved = make(chan struct{})
	}
	moved, at := d.moved, d.at
	d.mu.Unlock()
	if at.IsZero() {
		select {
		case <-wake:
		case <-moved:
		}
		return
	}
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-wake:
	case <-moved:
	case <-t.C:
	}
}
