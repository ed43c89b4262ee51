package fuse

import (
	"context"
	"io"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/lock"
	"github.com/spacestore/space/capsule/tree"
)

// Store is what the view needs of the store.
type Store interface {
	// Open pins the capsule's current version until the Reader is closed.
	Open(ctx context.Context, id capsule.ID) (Reader, error)
	// Replace stores a new version of an object, of size bytes from r. Unless
	// version is 0 it is a Conflict if the current one is not that.
	Replace(ctx context.Context, id capsule.ID, version uint64, r io.Reader, size int64) (capsule.Info, error)
	// OpenTree returns the tree that all views of a capsule share, or of its
	// snapshot unless that is "", and what to call when it is needed no more.
	OpenTree(ctx context.Context, id capsule.ID, snapshot string) (t *tree.FS, done func(), err error)
	OpenVolume(ctx context.Context, id capsule.ID, snapshot string, write bool) (Volume, error)
	Info(ctx context.Context, id capsule.ID) (capsule.Info, error)
	Policy(ctx context.Context, id capsule.ID) (*capsule.Policy, error)
	// ReadDir lists up to limit entries of a directory of the namespace ("" is
	// its root), those after the component after, sorted.
	ReadDir(ctx context.Context, dir, after string, limit int) ([]DirEntry, error)
	// LookupName finds one path of the namespace: a capsule or a directory.
	LookupName(ctx context.Context, path string) (info capsule.Info, dir bool, err error)
	Usage(ctx context.Context) (capsule.Usage, error)
	// FreeBytes is what the disk has left for content.
	FreeBytes() int64
	// Watch calls fn after changes, never from inside a store operation, until
	// cancel is called.
	Watch(fn func(Change)) (cancel func())
}

// Reader reads one version of a capsule. It is safe for concurrent use.
type Reader interface {
	Info() capsule.Info
	Policy() *capsule.Policy
	// ReadAt returns a *capsule.DamageError for a damaged range.
	io.ReaderAt
	// Prefetch makes coming reads of a range cheaper, in the background.
	Prefetch(off, n int64)
	// Stream writes n bytes from off on to w.
	Stream(ctx context.Context, w io.Writer, off, n int64) (int64, error)
	// Lend is Stream to take, which has p until it calls done.
	Lend(ctx context.Context, off, n int64, take func(p []byte, done func()) error) error
	Close() error
}

// Volume is an open volume, or a snapshot of one.
type Volume interface {
	Size() int64
	ReadOnly() bool
	io.ReaderAt
	io.WriterAt
	Flush(ctx context.Context) error
	Trim(ctx context.Context, off, n int64) error
	NextData(ctx context.Context, off int64) (start, end int64, err error)
	// Locks are shared by all views of the volume.
	Locks() *lock.Table
	// Watch calls fn, on a goroutine of its own, after what others changed,
	// until cancel has returned: n bytes from off on, or the size.
	Watch(fn func(off, n int64)) (cancel func())
	Close() error
}

// DirEntry is one entry of a namespace directory.
type DirEntry struct {
	Name string // the component
	Dir  bool
	Info capsule.Info // zero for a directory
}

// Change says what changed in the store.
type Change struct {
	ID      capsule.ID
	Name    string
	OldName string
	Removed bool
	All     bool // changes were dropped: anything may have changed
}
