package tree

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/spacestore/space/capsule"
)

// txn is one operation: an update of the capsule and, once that succeeded, of
// what is in memory.
type txn struct {
	fs  *FS
	tx  Tx
	ctx context.Context

	locked bool // fs.mu is held
	now    time.Time
	totals totals
	quota  Quota
	inodes []staged
	events []Event
	queue  []uint64 // for the reclaimer
	room   [4]staged
}

// staged is an inode that the operation looked at, in a copy of its own.
type staged struct {
	in      *inode
	changed bool
	touched bool // changed for whoever looks at it
	gone    bool
}

// update runs fn as one operation. fn may first write content; it takes the
// metadata with t.lock, or any method that does, and keeps it to the end. It is
// run again if a lease was in the way.
func (fs *FS) update(ctx context.Context, fn func(t *txn) error) error {
	return fs.unleased(ctx, func() error { return fs.tryUpdate(ctx, fn) })
}

func (fs *FS) tryUpdate(ctx context.Context, fn func(t *txn) error) error {
	if fs.ReadOnly() {
		return capsule.Errorf(capsule.ReadOnly, "the tree is read-only")
	}
	t := &txn{fs: fs, ctx: ctx}
	t.inodes = t.room[:0]
	defer func() {
		if t.locked {
			fs.mu.Unlock()
		}
	}()
	err := fs.capsule.Update(ctx, func(tx Tx) error {
		t.tx = tx
		if err := fn(t); err != nil {
			return err
		}
		t.lock()
		return t.flush()
	})
	if err == nil {
		t.publish()
	}
	return err
}

func (t *txn) lock() {
	if !t.locked {
		t.fs.mu.Lock()
		t.locked = true
		t.now = plainTime(t.fs.clock.Now())
		t.totals, t.quota = t.fs.totals, t.fs.quota
	}
}

// get returns the operation's copy of an inode.
func (t *txn) get(ino uint64) (*inode, error) {
	t.lock()
	for i := range t.inodes {
		if s := &t.inodes[i]; s.in.Ino == ino {
			return s.in, nil
		}
	}
	in, err := t.fs.load(t.tx, ino)
	if err != nil {
		return nil, err
	}
	copied := *in
	t.inodes = append(t.inodes, staged{in: &copied})
	return &copied, nil
}

// dir returns a directory that cred may look names up in.
func (t *txn) dir(ino uint64, cred *Cred) (*inode, error) {
	in, err := t.get(ino)
	if err != nil {
		return nil, err
	}
	return in, t.fs.searchable(t.tx, in, cred)
}

func (t *txn) staged(in *inode) *staged {
	for i := range t.inodes {
		if t.inodes[i].in == in {
			return &t.inodes[i]
		}
	}
	panic("tree: an inode of another operation")
}

// changed notes that an inode's attributes change: ctime and change counter.
func (t *txn) changed(in *inode) {
	in.Ctime = t.now
	s := t.staged(in)
	s.touched = true
	if !s.changed {
		s.changed = true
		in.Change++
	}
}

// modified notes that the content of a file or directory changes.
func (t *txn) modified(in *inode) {
	in.Mtime = t.now
	t.changed(in)
}

func newInode(ino uint64, typ Type, now time.Time) *inode {
	in := &inode{}
	in.Ino, in.Type, in.Gen = ino, typ, rand.Uint32()
	in.Atime, in.Mtime, in.Ctime, in.Btime = now, now, now, now
	in.Nlink, in.Change = 1, 1
	if typ == Directory {
		in.Nlink = 2
	}
	return in
}

// newInode takes the next number, if the quota allows.
func (t *txn) newInode(typ Type) (*inode, error) {
	t.lock()
	if t.quota.Inodes > 0 && t.totals.inodes >= t.quota.Inodes {
		return nil, capsule.Errorf(capsule.Quota, "the tree's quota of %d files is used up", t.quota.Inodes)
	}
	in := newInode(t.totals.next, typ, t.now)
	t.totals.next++
	t.totals.inodes++
	t.inodes = append(t.inodes, staged{in: in, changed: true})
	return in, nil
}

// allocated notes that a file's content takes n bytes more, or less.
func (t *txn) allocated(in *inode, n int64) error {
	if n == 0 {
		return nil
	}
	if n > 0 && t.quota.Bytes > 0 && t.totals.bytes+n > t.quota.Bytes {
		return capsule.Errorf(capsule.Quota, "the tree's quota of %d bytes is used up", t.quota.Bytes)
	}
	if in.Alloc+n < 0 || t.totals.bytes+n < 0 {
		return capsule.Errorf(capsule.Damaged, "inode %d gives up more space than it has; check the tree", in.Ino)
	}
	in.Alloc += n
	t.totals.bytes += n
	t.staged(in).changed = true
	return nil
}

// event tells the watchers, if the operation succeeds.
func (t *txn) event(e Event) { t.events = append(t.events, e) }

// flush writes the rows of what changed.
func (t *txn) flush() error {
	for _, s := range t.inodes {
		if s.touched && s.in.Type == Regular {
			if err := t.fs.leased(s.in.Ino, originOf(t.ctx), true); err != nil {
				return err
			}
		}
		switch {
		case s.gone:
			if err := t.tx.Delete(inodeKey(s.in.Ino)); err != nil {
				return err
			}
		case s.changed:
			if err := t.tx.Set(inodeKey(s.in.Ino), s.in.encode()); err != nil {
				return err
			}
		}
	}
	if t.totals != t.fs.totals {
		return t.tx.Set(key(keyTotals), t.totals.encode())
	}
	return nil
}

// publish makes memory agree with the rows.
func (t *txn) publish() {
	fs := t.fs
	for _, s := range t.inodes {
		switch {
		case s.gone:
			fs.nodes.drop(s.in.Ino)
		case s.changed:
			if fs.nodes.put(s.in) {
				t.queue = append(t.queue, s.in.Ino)
			}
		}
	}
	fs.totals, fs.quota = t.totals, t.quota
	fs.notify(t.ctx, t.events)
	fs.reclaimer.add(t.queue...)
}
