package fuse

import "sync"

// openFile is what a file handle of the kernel's stands for. It has a first
// reference from the start, which close gives up.
type openFile interface {
	hold()
	close()
}

// handleTable maps the kernel's file handles. Its zero value is ready.
type handleTable[F openFile] struct {
	mu   sync.RWMutex
	next uint64
	open map[uint64]F
}

func (t *handleTable[F]) add(f F) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[uint64]F{}
	}
	t.next++
	t.open[t.next] = f
	return t.next
}

// begin has the numbers of handles begin after first.
func (t *handleTable[F]) begin(first uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = first
}

// restore gives a file the number that it had in an earlier process.
func (t *handleTable[F]) restore(fh uint64, f F) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[uint64]F{}
	}
	t.open[fh] = f
}

// use returns a handle's file with one more reference, or nil.
func (t *handleTable[F]) use(fh uint64) F {
	t.mu.RLock()
	defer t.mu.RUnlock()
	f, ok := t.open[fh]
	if ok {
		f.hold()
	}
	return f
}

func (t *handleTable[F]) close(fh uint64) {
	t.mu.Lock()
	f, ok := t.open[fh]
	delete(t.open, fh)
	t.mu.Unlock()
	if ok {
		f.close()
	}
}

func (t *handleTable[F]) closeAll() {
	t.mu.Lock()
	open := t.open
	t.open = nil
	t.mu.Unlock()
	for _, f := range open {
		f.close()
	}
}
