package vfstest

import (
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Faults is a file system on which a test decides what fails.
type Faults struct {
	hookFS

	mu     sync.Mutex
	fn     func(Op) error
	counts map[Kind]int
}

// NewFaults returns a file system on under with nothing failing yet.
func NewFaults(under vfs.FS) *Faults {
	f := &Faults{counts: make(map[Kind]int)}
	f.hookFS = hookFS{under: under, r: f}
	return f
}

// Set makes fn decide, from now on: an operation for which it returns an error
// is not done and fails with that error, except that a [*Short] does part of
// a Read or Write. fn is called for one operation at a time, before it is
// done. Set(nil) stops all faults.
func (f *Faults) Set(fn func(Op) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fn = fn
}

// Count returns how many operations of the given kinds (all, if none given)
// there were, failed ones included.
func (f *Faults) Count(kinds ...Kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	if len(kinds) == 0 {
		for _, c := range f.counts {
			n += c
		}
	}
	for _, k := range kinds {
		n += f.counts[k]
	}
	return n
}

// Short is a fault in which the first N bytes of a Read or Write are done
// before Err is returned, as when a disk fills up.
type Short struct {
	N   int
	Err error
}

func (s *Short) Error() string { return s.Err.Error() }
func (s *Short) Unwrap() error { return s.Err }

func (f *Faults) run(op Op, do func(int) (int, error)) (int, error) {
	f.mu.Lock()
	f.counts[op.Kind]++
	var err error
	if f.fn != nil {
		err = f.fn(op)
	}
	f.mu.Unlock()
	var short *Short
	switch {
	case err == nil:
		return do(op.Len)
	case errors.As(err, &short) && (op.Kind == Write || op.Kind == Read):
		n, e := do(min(short.N, op.Len))
		if e != nil {
			return n, e
		}
		return n, short.Err
	}
	return 0, err
}
