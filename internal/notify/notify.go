// Package notify hands news to whoever watches: [Queue] takes items at any
// time and calls the watchers on a goroutine of its own, in order. So a watcher
// may call whoever notifies it, and never holds that up.
//
// Memory is bounded: when the watchers fall behind by more than the queue's
// limit, what waits is replaced by one item that says so. Locking: the queue's
// lock is a leaf, and no lock is held while a watcher runs.
package notify

import "sync"

// Queue is news on its way to watchers. Make one with [New].
type Queue[T any] struct {
	limit    int
	overflow T

	mu      sync.Mutex
	cond    sync.Cond
	fns     map[int]func(T)
	next    int
	queue   []T
	flooded bool // queue is the overflow item alone
	stopped bool
}

// New returns a queue of at most limit items, which are replaced by overflow
// when there would be more. Something has to call [Queue.Run].
func New[T any](limit int, overflow T) *Queue[T] {
	q := &Queue[T]{limit: limit, overflow: overflow, fns: map[int]func(T){}}
	q.cond.L = &q.mu
	return q
}

// Notify queues items, if anybody watches.
func (q *Queue[T]) Notify(items ...T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case len(items) == 0 || len(q.fns) == 0 || q.flooded:
		return
	case len(q.queue)+len(items) > q.limit:
		q.queue, q.flooded = append(q.queue[:0], q.overflow), true
	default:
		q.queue = append(q.queue, items...)
	}
	q.cond.Signal()
}

// Run calls the watchers until [Queue.Stop].
func (q *Queue[T]) Run() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.queue) == 0 && !q.stopped {
			q.cond.Wait()
		}
		if q.stopped {
			return
		}
		item := q.queue[0]
		q.queue, q.flooded = q.queue[1:], false
		fns := make([]func(T), 0, len(q.fns))
		for _, fn := range q.fns {
			fns = append(fns, fn)
		}
		q.mu.Unlock()
		for _, fn := range fns {
			fn(item)
		}
		q.mu.Lock()
	}
}

// Stop ends Run after the watchers' present call. What waits is dropped.
func (q *Queue[T]) Stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped = true
	q.cond.Broadcast()
}

// Watch calls fn for each item queued from now on, until cancel is called.
func (q *Queue[T]) Watch(fn func(T)) (cancel func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.next
	q.next++
	q.fns[n] = fn
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.fns, n)
	}
}
