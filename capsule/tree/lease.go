package tree

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/capsule"
)

// LeaseTime is how long a holder may take to return a lease that is recalled.
// Then it is taken away.
const LeaseTime = 45 * time.Second

// MaxLeases is how many leases a tree gives at most.
const MaxLeases = 1 << 16

// Lease lets a view, or a client of one, rely on what it knows of a file without
// asking. While it lasts, nobody else changes the file (a read lease), or opens
// it at all (a write lease): who wants to waits until the holder, who is told,
// has returned it. An NFS delegation is one.
type Lease struct {
	fs     *FS
	node   *node
	origin any
	write  bool
	recall func()
	done   chan struct{} // closed when the lease has ended

	// Under leases.mu:
	recalled bool
	ended    bool
}

// opener is somebody who has a file open, by origin.
type opener struct {
	origin        any
	opens, writes int
}

// leases has what concerns all leases of a tree. Those on one file are in its
// node, which they hold.
type leases struct {
	n       atomic.Int64
	mu      sync.Mutex // and of node.openers, node.leases, node.recalls
	all     map[*Lease]struct{}
	closed  bool
	expires sync.WaitGroup
}

// leasedError says that a lease is in the way of origin.
type leasedError struct {
	ino    uint64
	origin any
	write  bool // of what was to be done
}

func (e *leasedError) Error() string { return "somebody has a lease on the file" }

// Lease gives who has opened f a lease on the file: to write it alone, or to
// read it while nobody writes. Its holder is the origin that f was opened with
// (see [WithOrigin]). It is refused (WouldBlock) where others have the file open
// for what the lease is to keep from them, or where one is being recalled.
//
// recall is called once, on a goroutine of its own, when the lease is to be
// returned. A write lease does not keep others from asking for attributes,
// which are then those that the tree knows.
func (fs *FS) Lease(f *File, write bool, recall func()) (*Lease, error) {
	want := OpenRead
	if write {
		want = OpenWrite
	}
	if _, err := f.regular(want); err != nil {
		return nil, err
	}
	t := &fs.leases
	t.mu.Lock()
	defer t.mu.Unlock()
	n := f.node
	refuse := func(why string) (*Lease, error) {
		return nil, capsule.Errorf(capsule.WouldBlock, "no lease on inode %d: %s", n.ino, why)
	}
	switch {
	case t.closed || len(t.all) >= MaxLeases:
		return refuse("there are too many")
	case n.recalls > 0:
		return refuse("one is being recalled")
	}
	for _, o := range n.openers {
		if o.origin != f.origin && (write || o.writes > 0) {
			return refuse("others have the file open")
		}
	}
	for _, l := range n.leases {
		if write || l.write || l.origin == f.origin {
			return refuse("there is one already")
		}
	}
	l := &Lease{fs: fs, node: fs.nodes.hold(n.ino), origin: f.origin, write: write, recall: recall, done: make(chan struct{})}
	n.leases = append(n.leases, l)
	if t.all == nil {
		t.all = map[*Lease]struct{}{}
	}
	t.all[l] = struct{}{}
	t.n.Add(1)
	return l, nil
}

// Return gives the lease back. It may have ended already.
func (l *Lease) Return() {
	t := &l.fs.leases
	t.mu.Lock()
	ended := l.ended
	if !ended {
		l.ended = true
		close(l.done)
		l.node.leases = slices.DeleteFunc(l.node.leases, func(o *Lease) bool { return o == l })
		delete(t.all, l)
		t.n.Add(-1)
	}
	t.mu.Unlock()
	if !ended {
		l.fs.release(l.node)
	}
}

// Done is closed when the lease has ended: returned, or taken away because its
// holder did not return it in time.
func (l *Lease) Done() <-chan struct{} { return l.done }

// leased returns an error if a lease on the inode is in origin's way.
func (fs *FS) leased(ino uint64, origin any, write bool) error {
	if fs.leases.n.Load() == 0 {
		return nil
	}
	n := fs.nodes.peek(ino)
	if n == nil {
		return nil
	}
	fs.leases.mu.Lock()
	defer fs.leases.mu.Unlock()
	if n.blocked(origin, write) {
		return &leasedError{ino, origin, write}
	}
	return nil
}

// blocked tells whether somebody else's lease is in the way. leases.mu is held.
func (n *node) blocked(origin any, write bool) bool {
	return slices.ContainsFunc(n.leases, func(l *Lease) bool { return l.conflicts(origin, write) })
}

func (l *Lease) conflicts(origin any, write bool) bool {
	return l.origin != origin && (l.write || write)
}

// opened takes note of who opens a file, unless a lease is in the way.
func (fs *FS) opened(n *node, origin any, write bool) error {
	fs.leases.mu.Lock()
	defer fs.leases.mu.Unlock()
	if n.blocked(origin, write) {
		return &leasedError{n.ino, origin, write}
	}
	i := slices.IndexFunc(n.openers, func(o opener) bool { return o.origin == origin })
	if i < 0 {
		i = len(n.openers)
		n.openers = append(n.openers, opener{origin: origin})
	}
	n.openers[i].opens++
	if write {
		n.openers[i].writes++
	}
	return nil
}

func (fs *FS) closed(n *node, origin any, write bool) {
	fs.leases.mu.Lock()
	defer fs.leases.mu.Unlock()
	i := slices.IndexFunc(n.openers, func(o opener) bool { return o.origin == origin })
	o := &n.openers[i]
	if write {
		o.writes--
	}
	if o.opens--; o.opens == 0 {
		n.openers = slices.Delete(n.openers, i, i+1)
	}
}

// unleased calls fn until no lease is in its way, having those recalled.
func (fs *FS) unleased(ctx context.Context, fn func() error) error {
	for {
		err := fn()
		var l *leasedError
		if !errors.As(err, &l) {
			return err
		}
		if err := fs.recall(ctx, l); err != nil {
			return err
		}
	}
}

// recall has the leases returned that are in the way, and waits for that.
func (fs *FS) recall(ctx context.Context, e *leasedError) error {
	n := fs.nodes.hold(e.ino)
	defer fs.release(n)
	t := &fs.leases
	t.mu.Lock()
	n.recalls++ // no new ones meanwhile
	var wait []*Lease
	for _, l := range n.leases {
		if !l.conflicts(e.origin, e.write) {
			continue
		}
		wait = append(wait, l)
		if !l.recalled {
			l.recalled = true
			go l.recall()
			t.expires.Go(l.expire)
		}
	}
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		n.recalls--
	}()
	for _, l := range wait {
		select {
		case <-l.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// expire takes a recalled lease away if it is not returned in time.
func (l *Lease) expire() {
	select {
	case <-l.done:
	case <-l.fs.clock.After(LeaseTime):
		l.Return()
	}
}

// close ends all leases.
func (t *leases) close() {
	t.mu.Lock()
	t.closed = true
	all := make([]*Lease, 0, len(t.all))
	for l := range t.all {
		all = append(all, l)
	}
	t.mu.Unlock()
	for _, l := range all {
		l.Return()
	}
	t.expires.Wait()
}
