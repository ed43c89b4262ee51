package vpn

import "sync/atomic"

// batch is packets that came together.
type batch struct {
	packets [][]byte
	size    int // of the memory that they lie in
}

// queue is packets on their way to somebody who may be slow. It never makes who
// puts them in wait.
type queue struct {
	batches chan batch
	limit   int64
	bytes   atomic.Int64
}

func newQueue(limit int) *queue {
	return &queue{batches: make(chan batch, 1024), limit: int64(limit)}
}

// put adds packets, which are the queue's now. It reports whether there was room.
func (q *queue) put(b batch) bool {
	if q.bytes.Add(int64(b.size)) <= q.limit {
		select {
		case q.batches <- b:
			return true
		default:
		}
	}
	q.bytes.Add(-int64(b.size))
	return false
}

// take waits for packets until stop is closed.
func (q *queue) take(stop <-chan struct{}) (b batch, ok bool) {
	select {
	case b = <-q.batches:
		q.bytes.Add(-int64(b.size))
		return b, true
	case <-stop:
		return b, false
	}
}
