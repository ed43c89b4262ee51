package tree

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/lock"
	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/internal/notify"
)

// Options are how a tree is opened.
type Options struct {
	Clock clock.Clock // nil: the system's
	// HoldOrphans keeps files that have no name any more until Reclaim is called,
	// so that a view that takes over open files can open them again first.
	HoldOrphans bool
}

// FS is an open tree. All views of a tree on a node share one.
type FS struct {
	capsule Capsule
	clock   clock.Clock
	hash    hashKey

	mu     sync.RWMutex // the tree's metadata: rows, cached inodes, and:
	totals totals
	quota  Quota

	nodes     nodeTable
	open      atomic.Int64 // files
	locks     lock.Table
	leases    leases
	audience  audience
	watchers  *notify.Queue[Event]
	watching  sync.WaitGroup // for the watchers to end
	reclaimer reclaimer
}

// Format makes an empty tree of an empty capsule, with a root as new says.
func Format(ctx context.Context, c Capsule, new New, now time.Time) error {
	return c.Update(ctx, func(tx Tx) error { return format(tx, new, now) })
}

func format(tx Tx, new New, now time.Time) error {
	b, err := tx.Get(key(keySuper))
	if err != nil {
		return err
	}
	if b != nil {
		return capsule.Errorf(capsule.Exists, "tree: the capsule holds a tree already")
	}
	var s super
	rand.Read(s.hash[:]) // never fails (crypto/rand.Read)
	root := newInode(Root, Directory, plainTime(now))
	root.Mode = new.Mode &^ new.Umask & permBits
	root.UID, root.GID = new.UID, new.GID
	root.Parent = Root
	t := totals{next: Root + 1, inodes: 1}
	for _, row := range []struct{ key, value []byte }{
		{key(keySuper), s.encode()},
		{key(keyTotals), t.encode()},
		{inodeKey(Root), root.encode()},
	} {
		if err := tx.Set(row.key, row.value); err != nil {
			return err
		}
	}
	return nil
}

// newFS returns a tree without its background work.
func newFS(c Capsule, clk clock.Clock) *FS {
	return &FS{capsule: c, clock: clk, watchers: notify.New(maxEvents, Event{Kind: Overflow})}
}

// Open opens the tree in c, and begins to reclaim what a crash left unless c is
// read-only.
func Open(ctx context.Context, c Capsule, opt Options) (*FS, error) {
	if opt.Clock == nil {
		opt.Clock = clock.System()
	}
	fs := newFS(c, opt.Clock)
	b, err := c.Get(key(keySuper))
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, capsule.Errorf(capsule.NotFound, "tree: the capsule holds no tree")
	}
	s, err := decodeSuper(b)
	if err != nil {
		return nil, err
	}
	fs.hash = s.hash
	if b, err = c.Get(key(keyTotals)); err != nil {
		return nil, err
	}
	if fs.totals, err = decodeTotals(b); err != nil {
		return nil, err
	}
	if b, err = c.Get(key(keyQuota)); err != nil {
		return nil, err
	}
	if b != nil {
		if fs.quota, err = decodeQuota(b); err != nil {
			return nil, err
		}
	}
	fs.nodes.init()
	fs.watching.Go(fs.watchers.Run)
	fs.reclaimer.start(fs, opt.HoldOrphans)
	return fs, nil
}

// Close ends background work and waits for it. Open files, locks and leases are
// forgotten; orphans go when the tree is opened next.
func (fs *FS) Close() error {
	fs.leases.close()
	fs.reclaimer.close()
	fs.watchers.Stop()
	fs.watching.Wait()
	return nil
}

// Sync makes durable what had returned before.
func (fs *FS) Sync(ctx context.Context) error { return fs.capsule.Sync(ctx) }

// ReadOnly tells whether the tree takes no changes: it is a snapshot.
func (fs *FS) ReadOnly() bool { return fs.capsule.ReadOnly() }

// Locks are the locks on the tree's files, by inode.
func (fs *FS) Locks() *lock.Table { return &fs.locks }

// Usage tells what the tree holds.
func (fs *FS) Usage() Usage {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	return Usage{Bytes: fs.totals.bytes, Inodes: fs.totals.inodes, Quota: fs.quota}
}

// SetQuota sets the tree's limits. What is beyond them already stays.
func (fs *FS) SetQuota(ctx context.Context, q Quota) error {
	if err := q.check(); err != nil {
		return err
	}
	return fs.update(ctx, func(t *txn) error {
		t.lock()
		t.quota = q
		return t.tx.Set(key(keyQuota), q.encode())
	})
}

func (q *Quota) check() error {
	if q.Bytes < 0 || q.Inodes < 0 {
		return capsule.Errorf(capsule.Invalid, "a quota cannot be negative")
	}
	return nil
}

// load returns an inode, from the cache or rows. fs.mu is held.
func (fs *FS) load(rows Rows, ino uint64) (*inode, error) {
	if in := fs.nodes.get(ino); in != nil {
		return in, nil
	}
	in, err := readInode(rows, ino)
	if err != nil {
		return nil, err
	}
	fs.nodes.put(in)
	return in, nil
}

func readInode(rows Rows, ino uint64) (*inode, error) {
	b, err := rows.Get(inodeKey(ino))
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, stale(ino)
	}
	in, err := decodeInode(ino, b)
	return in, capsule.Wrap(capsule.Damaged, err, "inode %d", ino)
}

func stale(ino uint64) error { return capsule.Errorf(capsule.Stale, "inode %d is gone", ino) }

// inode returns an inode as it is now.
func (fs *FS) inode(ino uint64) (*inode, error) {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	return fs.load(fs.capsule, ino)
}

// GetAttr returns an inode's attributes.
func (fs *FS) GetAttr(ctx context.Context, ino uint64) (Attr, error) {
	in, err := fs.inode(ino)
	if err != nil {
		return Attr{}, err
	}
	return in.Attr, nil
}

// Readlink returns a symbolic link's target.
func (fs *FS) Readlink(ctx context.Context, ino uint64) (string, error) {
	in, err := fs.inode(ino)
	if err != nil {
		return "", err
	}
	if in.Type != Symlink {
		return "", capsule.Errorf(capsule.Invalid, "inode %d is no symbolic link", ino)
	}
	return in.target, nil
}

// plainTime drops what a row does not keep.
func plainTime(t time.Time) time.Time { return time.Unix(t.Unix(), int64(t.Nanosecond())) }
