package fuse

import (
	"sync"
	"time"
)

// retryTime is how long a thread has to come back after ESTALE. It needs a
// few microseconds.
const retryTime = time.Second

// retries remembers the threads whose open was answered with ESTALE. The
// kernel tries once more, and hands a second ESTALE to the program. So that a
// capsule which is replaced all the time can't cause that, the lookup of the
// second try pins what it finds for the open of the second try. The open still
// gets a version that was current while it ran.
type retries struct {
	mu sync.Mutex
	of map[uint32]*retry // by thread
}

type retry struct {
	path   string
	node   uint64
	pinned Reader // nil before the lookup
}

// expect notes that a thread is about to try again.
func (t *retries) expect(thread uint32, path string) {
	if thread == 0 { // out of sight
		return
	}
	r := &retry{path: path}
	t.mu.Lock()
	old := t.of[thread]
	if t.of == nil {
		t.of = map[uint32]*retry{}
	}
	t.of[thread] = r
	t.mu.Unlock()
	old.drop()
	time.AfterFunc(retryTime, func() {
		t.mu.Lock()
		expired := t.of[thread] == r
		if expired {
			delete(t.of, thread)
		}
		t.mu.Unlock()
		if expired {
			r.drop()
		}
	})
}

// expected reports whether a thread's lookup of path belongs to a second try.
func (t *retries) expected(thread uint32, path string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.of[thread]
	return r != nil && r.path == path
}

// pin keeps a reader for the open that follows. It takes the reader over.
func (t *retries) pin(thread uint32, path string, node uint64, pinned Reader) {
	t.mu.Lock()
	r := t.of[thread]
	if r != nil && r.path == path {
		r.node, r.pinned, pinned = node, pinned, r.pinned
	}
	t.mu.Unlock()
	if pinned != nil { // an earlier one, or this one where it came too late
		pinned.Close()
	}
}

// take ends a thread's second try, if it is in one, and returns what its
// lookup pinned for a node; nil where that is nothing.
func (t *retries) take(thread uint32, node uint64) Reader {
	t.mu.Lock()
	r := t.of[thread]
	delete(t.of, thread)
	t.mu.Unlock()
	if r != nil && r.pinned != nil && r.node == node {
		return r.pinned
	}
	r.drop()
	return nil
}

func (t *retries) closeAll() {
	t.mu.Lock()
	all := t.of
	t.of = nil
	t.mu.Unlock()
	for _, r := range all {
		r.drop()
	}
}

// drop closes what is pinned by r, which is in no table any more.
func (r *retry) drop() {
	if r != nil && r.pinned != nil {
		r.pinned.Close()
	}
}
