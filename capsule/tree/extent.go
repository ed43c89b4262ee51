package tree

import (
	"context"

	"github.com/spacestore/space/capsule"
)

// Allocate changes what is allocated in a range of the file, as fallocate(2).
func (f *File) Allocate(ctx context.Context, mode AllocMode, off, n int64) error {
	f.node.data.Lock()
	defer f.node.data.Unlock()
	if n == 0 {
		return capsule.Errorf(capsule.Invalid, "an empty range")
	}
	if err := f.growTo(ctx, off, n); err != nil {
		return err
	}
	switch mode {
	case Allocate, KeepSize:
		if q := f.fs.Usage(); q.Quota.Bytes > 0 && n > q.Quota.Bytes {
			return capsule.Errorf(capsule.Quota, "%d bytes are more than the tree's quota of %d", n, q.Quota.Bytes)
		}
	case PunchHole, ZeroRange, ZeroKeep:
		if err := f.zero(ctx, off, off+n); err != nil {
			return err
		}
	default:
		return capsule.Errorf(capsule.Unsupported, "unknown mode %d of fallocate", mode)
	}
	if mode == PunchHole || mode == ZeroKeep {
		return nil
	}
	return f.fs.update(ctx, func(t *txn) error {
		in, err := t.get(f.node.ino)
		if err != nil {
			return err
		}
		if mode == KeepSize || off+n <= in.Size {
			return f.wrote(t, in.Size, 0, 0)
		}
		return f.wrote(t, in.Size, off+n-in.Size, 0)
	})
}

// zero makes a hole of [off, end), in as many updates as it takes.
func (f *File) zero(ctx context.Context, off, end int64) error {
	for off < end {
		var next int64
		err := f.fs.update(ctx, func(t *txn) (err error) {
			var freed int64
			if next, freed, err = t.tx.Punch(f.node.ino, off, end); err != nil {
				return err
			}
			in, err := t.get(f.node.ino)
			if err != nil {
				return err
			}
			t.modified(in)
			t.event(Event{Kind: Written, Ino: in.Ino, Off: off, Len: next - off})
			if err := t.written(in, f.cred); err != nil {
				return err
			}
			return t.allocated(in, -freed)
		})
		if err != nil {
			return err
		}
		off = next
	}
	return nil
}

// SeekData returns where data begins at or after off. NoDevice: nowhere.
func (f *File) SeekData(ctx context.Context, off int64) (int64, error) {
	return f.seek(ctx, off, func(in *inode) (int64, error) {
		start, end, err := f.fs.capsule.NextData(ctx, in.Ino, off, in.Size)
		if err == nil && start == end {
			err = beyond(off)
		}
		return start, err
	})
}

// SeekHole returns where a hole begins at or after off; there is one at the
// file's end. NoDevice: off is beyond that.
func (f *File) SeekHole(ctx context.Context, off int64) (int64, error) {
	return f.seek(ctx, off, func(in *inode) (int64, error) {
		at := off
		for at < in.Size {
			start, end, err := f.fs.capsule.NextData(ctx, in.Ino, at, in.Size)
			if err != nil {
				return 0, err
			}
			if start == end || start > at {
				break
			}
			at = end
		}
		return min(at, in.Size), nil
	})
}

func (f *File) seek(ctx context.Context, off int64, find func(in *inode) (int64, error)) (int64, error) {
	f.node.data.RLock()
	defer f.node.data.RUnlock()
	in, err := f.regular(0)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= in.Size {
		return 0, beyond(off)
	}
	return find(in)
}

func beyond(off int64) error { return capsule.Errorf(capsule.NoDevice, "no data at or after %d", off) }

// CopyRange makes n bytes of dst from dstOff on share what src has from srcOff
// on. It returns how many: fewer at the end of src, or where an error came
// after the first ones.
func CopyRange(ctx context.Context, dst *File, dstOff int64, src *File, srcOff, n int64) (int64, error) {
	if dst.fs != src.fs {
		return 0, capsule.Errorf(capsule.CrossDevice, "the files are in two trees")
	}
	switch a, b := dst.node, src.node; {
	case a == b:
		a.data.Lock()
		defer a.data.Unlock()
	case a.ino < b.ino:
		a.data.Lock()
		defer a.data.Unlock()
		b.data.RLock()
		defer b.data.RUnlock()
	default:
		b.data.RLock()
		defer b.data.RUnlock()
		a.data.Lock()
		defer a.data.Unlock()
	}
	in, err := src.regular(OpenRead)
	if err != nil {
		return 0, err
	}
	if srcOff < 0 || n < 0 {
		return 0, capsule.Errorf(capsule.Invalid, "a range of %d bytes from %d", n, srcOff)
	}
	n = max(min(n, in.Size-srcOff), 0)
	if dst.node == src.node && dstOff < srcOff+n && srcOff < dstOff+n {
		return 0, capsule.Errorf(capsule.Invalid, "the ranges overlap")
	}
	if err := dst.growTo(ctx, dstOff, n); err != nil {
		return 0, err
	}
	var copied int64
	for copied < n {
		var done int64
		err := dst.fs.update(ctx, func(t *txn) (err error) {
			var grew int64
			done, grew, err = t.tx.Copy(dst.node.ino, dstOff+copied, src.node.ino, srcOff+copied, n-copied)
			if err != nil {
				return err
			}
			return dst.wrote(t, dstOff+copied, done, grew)
		})
		if err != nil {
			return copied, err
		}
		copied += done
	}
	return copied, nil
}
