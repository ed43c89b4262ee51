package tree

import (
	"context"

	"github.com/spacestore/space/capsule"
)

// SetAttr changes attributes, all or none, and returns them.
func (fs *FS) SetAttr(ctx context.Context, cred *Cred, ino uint64, set SetAttr) (Attr, error) {
	return fs.setAttr(ctx, cred, ino, set, false)
}

// setAttr is SetAttr; mayTruncate: the caller has a file open for writing.
func (fs *FS) setAttr(ctx context.Context, cred *Cred, ino uint64, set SetAttr, mayTruncate bool) (Attr, error) {
	if set.Set&SetSize != 0 {
		if set.Size < 0 {
			return Attr{}, capsule.Errorf(capsule.Invalid, "a size of %d", set.Size)
		}
		if set.Size > MaxSize {
			return Attr{}, tooLarge()
		}
		// Whoever has a lease may have to write before it returns it, for
		// which it needs the file's data lock.
		if err := fs.unleased(ctx, func() error { return fs.leased(ino, originOf(ctx), true) }); err != nil {
			return Attr{}, err
		}
		n := fs.nodes.hold(ino)
		defer fs.release(n)
		n.data.Lock()
		defer n.data.Unlock()
		if err := fs.finishTrim(ctx, ino); err != nil {
			return Attr{}, err
		}
	}
	var in *inode
	err := fs.update(ctx, func(t *txn) (err error) {
		if in, err = t.get(ino); err != nil {
			return err
		}
		if set.Set&SetSize != 0 {
			if err := t.setSize(in, cred, set.Size, mayTruncate); err != nil {
				return err
			}
		}
		if set.Set&(SetUID|SetGID) != 0 {
			if err := t.chown(in, cred, set); err != nil {
				return err
			}
		}
		if set.Set&SetMode != 0 {
			if err := t.chmod(in, cred, set.Mode); err != nil {
				return err
			}
		}
		if err := t.setTimes(in, cred, set); err != nil {
			return err
		}
		if set.Set != 0 {
			t.changed(in)
			t.event(Event{Kind: Changed, Ino: ino})
		}
		return nil
	})
	return attrOf(in, err)
}

func tooLarge() error {
	return capsule.Errorf(capsule.TooLarge, "beyond the largest size of a file, %d bytes", int64(MaxSize))
}

func (t *txn) chmod(in *inode, cred *Cred, mode uint32) error {
	if in.Type == Symlink {
		return capsule.Errorf(capsule.Unsupported, "symbolic links have no mode")
	}
	if !cred.owns(in) {
		return notOwner(in)
	}
	in.Mode = mode & permBits
	if !cred.keepsSetGID(in.GID) {
		in.Mode &^= setGID
	}
	if !in.has(hasACL) {
		return nil
	}
	a, err := readACL(t.tx, in.Ino, aclAccess)
	if err != nil {
		return err
	}
	a.chmod(in.Mode)
	return t.putXattr(in, aclAccess, a.encode())
}

func (t *txn) chown(in *inode, cred *Cred, set SetAttr) error {
	uid, gid := in.UID, in.GID
	if set.Set&SetUID != 0 {
		uid = set.UID
	}
	if set.Set&SetGID != 0 {
		gid = set.GID
	}
	if !cred.privileged() {
		if cred.UID != in.UID || uid != in.UID || gid != in.GID && !cred.inGroup(gid) {
			return capsule.Errorf(capsule.NotPermitted, "inode %d: only root may give files away", in.Ino)
		}
	}
	if in.Type != Directory { // for root too, as Linux does
		if err := t.dropPrivileges(in, cred); err != nil {
			return err
		}
	}
	in.UID, in.GID = uid, gid
	return nil
}

// dropPrivileges takes from a file what gives rights to those who execute it.
func (t *txn) dropPrivileges(in *inode, cred *Cred) error {
	drop := uint32(setUID)
	if in.Mode&groupExec != 0 || !cred.keepsSetGID(in.GID) {
		drop |= setGID
	}
	if in.Mode&drop != 0 {
		in.Mode &^= drop
		t.changed(in)
	}
	if in.has(hasCaps) {
		t.changed(in)
		return t.dropXattr(in, capsAttr)
	}
	return nil
}

func (t *txn) setTimes(in *inode, cred *Cred, set SetAttr) error {
	if set.Set&(SetAtime|SetMtime) != 0 && !cred.owns(in) {
		return notOwner(in)
	}
	if set.Set&(SetAtimeNow|SetMtimeNow) != 0 && !cred.owns(in) {
		if err := t.fs.permit(t.tx, in, cred, MayWrite); err != nil {
			return err
		}
	}
	switch {
	case set.Set&SetAtime != 0:
		in.Atime = plainTime(set.Atime)
	case set.Set&SetAtimeNow != 0:
		in.Atime = t.now
	}
	switch {
	case set.Set&SetMtime != 0:
		in.Mtime = plainTime(set.Mtime)
	case set.Set&SetMtimeNow != 0:
		in.Mtime = t.now
	}
	return nil
}

// setSize makes a file shorter or longer. Its data lock is held, and there is
// nothing left to trim.
func (t *txn) setSize(in *inode, cred *Cred, size int64, mayTruncate bool) error {
	switch in.Type {
	case Regular:
	case Directory:
		return isDir(in.Ino)
	default:
		return capsule.Errorf(capsule.Invalid, "inode %d is no regular file", in.Ino)
	}
	if !mayTruncate {
		if err := t.fs.permit(t.tx, in, cred, MayWrite); err != nil {
			return err
		}
	}
	from := min(size, in.Size)
	shrinks := size < in.Size
	in.Size = size
	t.modified(in)
	t.event(Event{Kind: Written, Ino: in.Ino, Off: from, Len: toEnd})
	if cred != nil {
		if err := t.written(in, cred); err != nil {
			return err
		}
	}
	if !shrinks {
		return nil
	}
	next, err := t.punch(in, size)
	if next == toEnd || err != nil {
		return err
	}
	in.setFlag(hasTrim, true)
	t.queue = append(t.queue, in.Ino)
	return t.tx.Set(reclaimKey(in.Ino), []byte{rowVersion})
}
