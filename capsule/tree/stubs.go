package tree

import (
	"context"
	"io"
	"time"

	"github.com/spacestore/space/internal/clock"
)

// Signatures to build against; bodies follow.

// Options are how a tree is opened.
type Options struct {
	Clock clock.Clock
	// HoldOrphans keeps files that have no name any more until Reclaim is called,
	// so that a view that takes over open files can open them again first.
	HoldOrphans bool
}

// FS is an open tree.
type FS struct{}

// Format makes an empty tree of an empty capsule: a root with new's mode and owner.
func Format(ctx context.Context, c Capsule, new New, now time.Time) error { panic("TODO") }

// Open opens the tree in c.
func Open(ctx context.Context, c Capsule, opt Options) (*FS, error) { panic("TODO") }

// Close ends background work. Open files and locks are forgotten.
func (fs *FS) Close() error                   { panic("TODO") }
func (fs *FS) Sync(ctx context.Context) error { panic("TODO") }
func (fs *FS) ReadOnly() bool                 { panic("TODO") }

// Reclaim begins to free what HoldOrphans kept.
func (fs *FS) Reclaim() { panic("TODO") }

func (fs *FS) Usage(ctx context.Context) (Usage, error)             { panic("TODO") }
func (fs *FS) SetQuota(ctx context.Context, q Quota) error          { panic("TODO") }
func (fs *FS) Path(ctx context.Context, ino uint64) (string, error) { panic("TODO") }

func (fs *FS) Lookup(ctx context.Context, cred *Cred, dir uint64, name string) (Attr, error) {
	panic("TODO")
}
func (fs *FS) GetAttr(ctx context.Context, ino uint64) (Attr, error) { panic("TODO") }
func (fs *FS) SetAttr(ctx context.Context, cred *Cred, ino uint64, set SetAttr) (Attr, error) {
	panic("TODO")
}
func (fs *FS) Access(ctx context.Context, cred *Cred, ino uint64, want Access) error { panic("TODO") }

// AccessMask returns what of want is allowed (NFS ACCESS).
func (fs *FS) AccessMask(ctx context.Context, cred *Cred, ino uint64, want Access) (Access, error) {
	panic("TODO")
}

// ReadDir calls fn for the entries after cookie until it returns false. fn may call fs.
func (fs *FS) ReadDir(ctx context.Context, cred *Cred, dir, cookie uint64, fn func(Entry) bool) error {
	panic("TODO")
}
func (fs *FS) ReadDirPlus(ctx context.Context, cred *Cred, dir, cookie uint64, fn func(Entry) bool) error {
	panic("TODO")
}

// Create makes a regular file, or without OpenExcl opens the one there is.
func (fs *FS) Create(ctx context.Context, cred *Cred, dir uint64, name string, new New, flags OpenFlags) (*File, Attr, error) {
	panic("TODO")
}
func (fs *FS) Mkdir(ctx context.Context, cred *Cred, dir uint64, name string, new New) (Attr, error) {
	panic("TODO")
}
func (fs *FS) Mknod(ctx context.Context, cred *Cred, dir uint64, name string, t Type, new New) (Attr, error) {
	panic("TODO")
}
func (fs *FS) Symlink(ctx context.Context, cred *Cred, dir uint64, name string, new New) (Attr, error) {
	panic("TODO")
}
func (fs *FS) Readlink(ctx context.Context, ino uint64) (string, error) { panic("TODO") }
func (fs *FS) Link(ctx context.Context, cred *Cred, ino, dir uint64, name string) (Attr, error) {
	panic("TODO")
}
func (fs *FS) Unlink(ctx context.Context, cred *Cred, dir uint64, name string) error { panic("TODO") }
func (fs *FS) Rmdir(ctx context.Context, cred *Cred, dir uint64, name string) error  { panic("TODO") }
func (fs *FS) Rename(ctx context.Context, cred *Cred, dir uint64, name string, newDir uint64, newName string, flags RenameFlags) error {
	panic("TODO")
}

func (fs *FS) GetXattr(ctx context.Context, cred *Cred, ino uint64, name string) ([]byte, error) {
	panic("TODO")
}
func (fs *FS) SetXattr(ctx context.Context, cred *Cred, ino uint64, name string, value []byte, flags XattrFlags) error {
	panic("TODO")
}
func (fs *FS) ListXattr(ctx context.Context, cred *Cred, ino uint64) ([]string, error) {
	panic("TODO")
}
func (fs *FS) RemoveXattr(ctx context.Context, cred *Cred, ino uint64, name string) error {
	panic("TODO")
}

// Open opens an inode of any type: a directory or a special file can be held
// and synced, not read. An orphan can be opened while it is there.
func (fs *FS) Open(ctx context.Context, cred *Cred, ino uint64, flags OpenFlags) (*File, error) {
	panic("TODO")
}

// File is an open file; it keeps the inode from being freed.
type File struct{}

func (f *File) Ino() uint64                                                        { panic("TODO") }
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error)       { panic("TODO") } // io.EOF at the end
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error)      { panic("TODO") }
func (f *File) Append(ctx context.Context, p []byte) (off int64, n int, err error) { panic("TODO") }
func (f *File) Truncate(ctx context.Context, size int64) error                     { panic("TODO") }
func (f *File) Allocate(ctx context.Context, mode AllocMode, off, n int64) error   { panic("TODO") }
func (f *File) SeekData(ctx context.Context, off int64) (int64, error)             { panic("TODO") }
func (f *File) SeekHole(ctx context.Context, off int64) (int64, error)             { panic("TODO") }
func (f *File) Sync(ctx context.Context) error                                     { panic("TODO") }
func (f *File) Close() error                                                       { panic("TODO") } // never fails a second time

// CopyRange copies n bytes of src at srcOff to dst without moving data.
func CopyRange(ctx context.Context, dst *File, dstOff int64, src *File, srcOff, n int64) (int64, error) {
	panic("TODO")
}

// LockSpace tells flock(2) locks from POSIX byte-range locks, which do not see each other.
type LockSpace uint8

const (
	POSIX LockSpace = iota
	Flock
)

// Lock is a lock on bytes First to Last, both included.
type Lock struct {
	Owner any // comparable; includes the view
	Write bool
	First int64
	Last  int64  // math.MaxInt64: whatever there will be
	PID   uint32 // to tell others
}

// SetLock takes a lock, or changes what Owner holds of the range. Without wait
// a conflict is WouldBlock; with it SetLock returns when the lock is held, ctx
// ends (Canceled), or waiting would never end (Deadlock; POSIX only).
func (fs *FS) SetLock(ctx context.Context, ino uint64, space LockSpace, l Lock, wait bool) error {
	panic("TODO")
}

// TestLock returns a lock that is in l's way, if there is one.
func (fs *FS) TestLock(ino uint64, space LockSpace, l Lock) (Lock, bool) { panic("TODO") }

// Unlock gives up what owner holds of bytes first to last.
func (fs *FS) Unlock(ino uint64, space LockSpace, owner any, first, last int64) { panic("TODO") }

// ReleaseLocks gives up all locks of the owners that match says are gone.
func (fs *FS) ReleaseLocks(match func(owner any) bool) { panic("TODO") }

// EventKind is what happened.
type EventKind uint8

const (
	Changed  EventKind = iota + 1 // attributes of Ino
	Written                       // content of Ino, from Off for Len (to the end: math.MaxInt64)
	Added                         // Name in Dir is now Ino
	Removed                       // Name in Dir, which was Ino
	Overflow                      // anything: events were dropped
)

// Event tells a watcher what to look at again.
type Event struct {
	Kind     EventKind
	Ino      uint64
	Dir      uint64
	Name     string
	Off, Len int64
	Origin   any // who did it, from WithOrigin; nil: nobody said
}

// WithOrigin marks what is done under the context as done by origin.
func WithOrigin(ctx context.Context, origin any) context.Context { panic("TODO") }

// Watch calls fn for each event, in order, on a goroutine of its own.
func (fs *FS) Watch(fn func(Event)) (cancel func()) { panic("TODO") }

// Problem is something wrong in a tree.
type Problem struct {
	Ino      uint64
	What     string
	Repaired bool
}

// Check looks for everything that can be wrong with a tree that nobody changes
// meanwhile, and with repair puts right what can be.
func Check(ctx context.Context, c Capsule, repair bool, report func(Problem)) error { panic("TODO") }

// DiffKind is what became of a path.
type DiffKind uint8

// Difference is a path that two snapshots do not have in common.
type Difference struct {
	Kind DiffKind
	Path string
	From string // of a renamed one: its path before
	Attr Attr   // in the new tree; of a removed one in the old
}

// Diff calls fn for all differences of two views of one tree.
func Diff(ctx context.Context, old, new *FS, fn func(Difference) error) error { panic("TODO") }

// Import unpacks a tar into directory dir.
func (fs *FS) Import(ctx context.Context, dir uint64, r io.Reader) error { panic("TODO") }

// Export packs what is under directory dir into a tar.
func (fs *FS) Export(ctx context.Context, dir uint64, w io.Writer) error { panic("TODO") }

// ImportDir copies a directory of the host into directory dir.
func (fs *FS) ImportDir(ctx context.Context, dir uint64, host string) error { panic("TODO") }

// ExportDir copies what is under directory dir into a directory of the host.
func (fs *FS) ExportDir(ctx context.Context, dir uint64, host string) error { panic("TODO") }
