package tree

import (
	"context"
	"io"
	"math"
	"sync"

	"github.com/spacestore/space/capsule"
)

// File is an open file. It keeps the inode from being freed.
type File struct {
	fs     *FS
	node   *node
	cred   *Cred
	flags  OpenFlags
	origin any // who opened it
	once   sync.Once
}

const toEnd = math.MaxInt64 // length of a range that ends with the file

// Open opens an inode of any type: what is no regular file can be held and
// synced, not read or written. An orphan can be opened while somebody holds it,
// or while Options.HoldOrphans keeps it.
func (fs *FS) Open(ctx context.Context, cred *Cred, ino uint64, flags OpenFlags) (*File, error) {
	f, err := fs.openUnleased(ctx, ino, cred, flags)
	if err != nil || flags&OpenTrunc == 0 {
		return f, err
	}
	if err := f.Truncate(ctx, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openUnleased is openNode once no lease is in the way.
func (fs *FS) openUnleased(ctx context.Context, ino uint64, cred *Cred, flags OpenFlags) (f *File, err error) {
	err = fs.unleased(ctx, func() (err error) {
		f, err = fs.openNode(ino, cred, flags, originOf(ctx))
		return err
	})
	return f, err
}

func (fs *FS) openNode(ino uint64, cred *Cred, flags OpenFlags, origin any) (*File, error) {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	in, err := fs.load(fs.capsule, ino)
	if err != nil {
		return nil, err
	}
	if in.Nlink == 0 && !fs.nodes.held(ino) && !fs.reclaimer.holding.Load() && !fs.ReadOnly() {
		return nil, stale(ino)
	}
	var want Access
	if flags&OpenRead != 0 {
		want |= MayRead
	}
	if flags.writes() {
		want |= MayWrite
		if in.Type == Directory {
			return nil, isDir(ino)
		}
		if fs.ReadOnly() && in.Type == Regular {
			return nil, capsule.Errorf(capsule.ReadOnly, "the tree is read-only")
		}
	}
	if err := fs.permit(fs.capsule, in, cred, want); err != nil {
		return nil, err
	}
	if fs.open.Add(1) > MaxOpen {
		fs.open.Add(-1)
		return nil, capsule.Errorf(capsule.Busy, "%d files are open, the limit", MaxOpen)
	}
	n := fs.nodes.hold(ino)
	if err := fs.opened(n, origin, flags.writes()); err != nil {
		fs.open.Add(-1)
		fs.release(n)
		return nil, err
	}
	return &File{fs: fs, node: n, cred: cred, flags: flags, origin: origin}, nil
}

// Ino returns the file's inode number.
func (f *File) Ino() uint64 { return f.node.ino }

// Close lets go of the inode; nobody uses the file meanwhile or later. Locks
// are the views' to release.
func (f *File) Close() error {
	f.once.Do(func() {
		f.fs.open.Add(-1)
		f.fs.closed(f.node, f.origin, f.flags.writes())
		f.fs.release(f.node)
	})
	return nil
}

// Sync makes the file durable as it is, metadata included, and all that was
// changed in the tree before.
func (f *File) Sync(ctx context.Context) error { return f.fs.Sync(ctx) }

// regular returns the inode of a regular file that was opened for all of want.
func (f *File) regular(want OpenFlags) (*inode, error) {
	in, err := f.fs.inode(f.node.ino)
	switch {
	case err != nil:
		return nil, err
	case in.Type == Directory:
		return nil, isDir(in.Ino)
	case in.Type != Regular:
		return nil, capsule.Errorf(capsule.Invalid, "inode %d is no regular file", in.Ino)
	case want&^f.flags != 0:
		return nil, capsule.Errorf(capsule.Invalid, "inode %d was not opened for that", in.Ino)
	}
	return in, nil
}

// ReadAt reads from the file; at its end it returns io.EOF.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	f.node.data.RLock()
	defer f.node.data.RUnlock()
	in, err := f.regular(OpenRead)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, capsule.Errorf(capsule.Invalid, "an offset of %d", off)
	}
	if off >= in.Size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), in.Size-off))
	got, err := f.fs.capsule.ReadAt(ctx, in.Ino, p[:n], off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return got, err
}

// WriteAt writes to the file. A large write takes several updates; an error in
// between leaves the first ones, and n tells how much. Of what is more than the
// quota allows as much is written as fits.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	f.node.data.Lock()
	defer f.node.data.Unlock()
	return f.write(ctx, p, off)
}

// Append writes at the file's end, and tells where that was.
func (f *File) Append(ctx context.Context, p []byte) (off int64, n int, err error) {
	f.node.data.Lock()
	defer f.node.data.Unlock()
	in, err := f.regular(OpenWrite)
	if err != nil {
		return 0, 0, err
	}
	n, err = f.write(ctx, p, in.Size)
	return in.Size, n, err
}

// growTo checks that the file may reach an end, and makes it ready for that. The data lock is held.
func (f *File) growTo(ctx context.Context, off, n int64) error {
	in, err := f.regular(OpenWrite)
	switch {
	case err != nil:
		return err
	case off < 0 || n < 0:
		return capsule.Errorf(capsule.Invalid, "a range of %d bytes from %d", n, off)
	case off > MaxSize-n:
		return tooLarge()
	case in.has(hasTrim):
		return f.fs.finishTrim(ctx, in.Ino)
	}
	return nil
}

func (f *File) write(ctx context.Context, p []byte, off int64) (n int, err error) {
	if err := f.growTo(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	most := int64(maxWrite)
	for n < len(p) {
		at := off + int64(n)
		piece := p[n:min(len(p), n+int(most-at%most))] // to a multiple, as the store's blocks are
		err := f.fs.update(ctx, func(t *txn) error {
			grew, err := t.tx.Write(f.node.ino, at, piece)
			if err != nil {
				return err
			}
			return f.wrote(t, at, int64(len(piece)), grew)
		})
		switch end := at + int64(len(piece)) - 1; {
		case err == nil:
			n += len(piece)
		case capsule.KindOf(err) == capsule.Quota && at/blockSize < end/blockSize:
			// What there is room for is written, as POSIX has it.
			for most /= 2; most > blockSize && most > end-at; most /= 2 {
			}
		default:
			return n, err
		}
	}
	return n, nil
}

// wrote notes in the inode what was written to its content.
func (f *File) wrote(t *txn, off, n, grew int64) error {
	in, err := t.get(f.node.ino)
	if err != nil {
		return err
	}
	t.modified(in)
	if n > 0 {
		t.event(Event{Kind: Written, Ino: in.Ino, Off: off, Len: n})
		in.Size = max(in.Size, off+n)
	}
	if err := t.written(in, f.cred); err != nil {
		return err
	}
	return t.allocated(in, grew)
}

// written takes set-ID bits and capabilities from a file that cred changed,
// where the caller does not do that.
func (t *txn) written(in *inode, cred *Cred) error {
	switch {
	case cred == nil:
		return nil
	case cred.privileged():
		if in.has(hasCaps) {
			return t.dropXattr(in, capsAttr)
		}
		return nil
	}
	return t.dropPrivileges(in, cred)
}

// Truncate sets the file's size.
func (f *File) Truncate(ctx context.Context, size int64) error {
	if _, err := f.regular(OpenWrite); err != nil {
		return err
	}
	_, err := f.fs.setAttr(ctx, f.cred, f.node.ino, SetAttr{Set: SetSize, Size: size}, true)
	return err
}
