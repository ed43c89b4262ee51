package tree

import (
	"context"
	"slices"

	"github.com/spacestore/space/capsule"
)

// Create makes a regular file and opens it, whatever its mode says. Without
// OpenExcl it opens the file there is, if cred may.
func (fs *FS) Create(ctx context.Context, cred *Cred, dir uint64, name string, new New, flags OpenFlags) (*File, Attr, error) {
	if flags&OpenExcl == 0 { // the usual case of O_CREAT on what exists takes no update
		a, err := fs.Lookup(ctx, cred, dir, name)
		if err == nil {
			return fs.openExisting(ctx, cred, a, flags)
		}
		if capsule.KindOf(err) != capsule.NotFound {
			return nil, Attr{}, err
		}
	}
	for {
		in, err := fs.create(ctx, cred, dir, name, Regular, new)
		if err == nil {
			f, err := fs.openUnleased(ctx, in.Ino, nil, flags&^OpenTrunc)
			if err == nil {
				f.cred = cred
			}
			return f, in.Attr, err
		}
		if capsule.KindOf(err) != capsule.Exists || flags&OpenExcl != 0 {
			return nil, Attr{}, err
		}
		a, err := fs.Lookup(ctx, cred, dir, name) // someone was faster
		if err == nil {
			return fs.openExisting(ctx, cred, a, flags)
		}
		if capsule.KindOf(err) != capsule.NotFound {
			return nil, Attr{}, err
		}
	}
}

// Tmpfile makes a regular file without a name in a directory and opens it, as
// O_TMPFILE does. With OpenExcl it never gets one; without, Link can give it one
// while it is open.
func (fs *FS) Tmpfile(ctx context.Context, cred *Cred, dir uint64, new New, flags OpenFlags) (*File, Attr, error) {
	var in *inode
	var held *node // so that the file is not taken for one that nobody needs
	err := fs.update(ctx, func(t *txn) error {
		d, err := t.dir(dir, cred)
		if err != nil {
			return err
		}
		if err := t.writable(d, cred); err != nil {
			return err
		}
		if in, err = t.newInode(Regular); err != nil {
			return err
		}
		in.Nlink = 0
		in.setFlag(unborn, flags&OpenExcl == 0)
		held = fs.nodes.hold(in.Ino)
		if err := t.inherit(d, in, cred, new); err != nil {
			return err
		}
		return t.tx.Set(reclaimKey(in.Ino), []byte{rowVersion})
	})
	if held != nil {
		defer fs.release(held)
	}
	if err != nil {
		return nil, Attr{}, err
	}
	f, err := fs.openUnleased(ctx, in.Ino, nil, flags&^(OpenTrunc|OpenExcl))
	if err == nil {
		f.cred = cred
	}
	return f, in.Attr, err
}

func (fs *FS) openExisting(ctx context.Context, cred *Cred, a Attr, flags OpenFlags) (*File, Attr, error) {
	if a.Type == Directory {
		return nil, Attr{}, isDir(a.Ino)
	}
	f, err := fs.Open(ctx, cred, a.Ino, flags)
	if err == nil && flags&OpenTrunc != 0 {
		a, err = fs.GetAttr(ctx, a.Ino)
	}
	return f, a, err
}

func isDir(ino uint64) error { return capsule.Errorf(capsule.IsDir, "inode %d is a directory", ino) }

// Mkdir makes a directory.
func (fs *FS) Mkdir(ctx context.Context, cred *Cred, dir uint64, name string, new New) (Attr, error) {
	return attrOf(fs.create(ctx, cred, dir, name, Directory, new))
}

// Mknod makes an inode of any type but a directory or symbolic link.
func (fs *FS) Mknod(ctx context.Context, cred *Cred, dir uint64, name string, typ Type, new New) (Attr, error) {
	if !typ.valid() || typ == Directory || typ == Symlink {
		return Attr{}, capsule.Errorf(capsule.Invalid, "mknod makes no inode of type %d", typ)
	}
	return attrOf(fs.create(ctx, cred, dir, name, typ, new))
}

// Symlink makes a symbolic link to new.Target, which is any text.
func (fs *FS) Symlink(ctx context.Context, cred *Cred, dir uint64, name string, new New) (Attr, error) {
	switch {
	case new.Target == "":
		return Attr{}, capsule.Errorf(capsule.NotFound, "a symbolic link needs a target")
	case len(new.Target) > MaxTarget:
		return Attr{}, capsule.Errorf(capsule.NameTooLong, "a target of %d bytes; the limit is %d", len(new.Target), MaxTarget)
	case slices.Contains([]byte(new.Target), 0):
		return Attr{}, capsule.Errorf(capsule.Invalid, "a symbolic link's target holds a NUL")
	}
	return attrOf(fs.create(ctx, cred, dir, name, Symlink, new))
}

func attrOf(in *inode, err error) (Attr, error) {
	if err != nil {
		return Attr{}, err
	}
	return in.Attr, nil
}

// create makes an inode with a name.
func (fs *FS) create(ctx context.Context, cred *Cred, dir uint64, name string, typ Type, new New) (in *inode, err error) {
	err = fs.update(ctx, func(t *txn) error {
		d, err := t.vacant(dir, name, cred)
		if err != nil {
			return err
		}
		if typ.device() && !cred.privileged() {
			return capsule.Errorf(capsule.NotPermitted, "only root may make devices")
		}
		if in, err = t.newInode(typ); err != nil {
			return err
		}
		if typ.device() {
			in.Rdev = new.Rdev
		}
		if typ == Symlink {
			in.target, in.Size = new.Target, int64(len(new.Target))
		}
		if err := t.inherit(d, in, cred, new); err != nil {
			return err
		}
		return t.add(d, name, in)
	})
	return in, err
}

// inherit gives a new inode its owner, mode and ACLs, by what cred asked for
// and what the directory says.
func (t *txn) inherit(dir, in *inode, cred *Cred, new New) error {
	in.UID, in.GID = new.UID, new.GID
	if cred != nil {
		in.UID, in.GID = cred.UID, cred.GID
	}
	in.Mode = new.Mode & permBits
	if in.Type == Symlink {
		in.Mode = 0o777
	}
	if in.Type == Directory {
		in.Mode &= 0o777 | sticky
	}
	if dir.Mode&setGID != 0 {
		in.GID = dir.GID
		if in.Type == Directory {
			in.Mode |= setGID
		} else if in.Mode&groupExec != 0 && !cred.keepsSetGID(in.GID) {
			in.Mode &^= setGID
		}
	}
	if in.Type == Symlink {
		return nil
	}
	if !dir.has(hasDefaultACL) {
		in.Mode &^= new.Umask & 0o777
		return nil
	}
	a, err := readACL(t.tx, dir.Ino, aclDefault)
	if err != nil {
		return err
	}
	if in.Type == Directory {
		if err := t.putXattr(in, aclDefault, a.encode()); err != nil {
			return err
		}
	}
	a.restrict(in.Mode)
	in.Mode = in.Mode&^0o777 | a.mode()
	if a.minimal() {
		return nil
	}
	return t.putXattr(in, aclAccess, a.encode())
}

// vacant returns a directory in which cred may make something of a name that
// is not taken.
func (t *txn) vacant(dir uint64, name string, cred *Cred) (*inode, error) {
	d, err := t.dir(dir, cred)
	if err != nil {
		return nil, err
	}
	n, err := t.fs.find(t.tx, dir, name)
	if err != nil {
		return nil, err
	}
	if n != nil {
		return nil, capsule.Errorf(capsule.Exists, "%q exists", name)
	}
	return d, t.writable(d, cred)
}

// writable checks that entries of a directory can change, and cred may do that.
func (t *txn) writable(d *inode, cred *Cred) error {
	if d.Nlink == 0 {
		return capsule.Errorf(capsule.NotFound, "directory %d has been removed", d.Ino)
	}
	return t.fs.permit(t.tx, d, cred, MayWrite|MayExec)
}

// add gives an inode a name, which is vacant.
func (t *txn) add(d *inode, name string, in *inode) error {
	if in.Type == Directory {
		if d.Nlink >= MaxLinks {
			return tooManyLinks(d)
		}
		d.Nlink++
	}
	d.Size++
	t.modified(d)
	return t.point(d, name, in)
}

// point makes an entry name an inode.
func (t *txn) point(d *inode, name string, in *inode) error {
	hash := t.fs.hash.sum(name)
	in.Parent, in.hash = d.Ino, hash
	t.event(Event{Kind: Added, Dir: d.Ino, Name: name, Ino: in.Ino})
	return t.tx.Set(entryKey(d.Ino, hash, name), entry{in.Ino, in.Type}.encode())
}

func tooManyLinks(in *inode) error {
	return capsule.Errorf(capsule.TooManyLinks, "inode %d has %d links, the limit", in.Ino, in.Nlink)
}

// Link gives an inode that is no directory one more name.
func (fs *FS) Link(ctx context.Context, cred *Cred, ino, dir uint64, name string) (Attr, error) {
	var in *inode
	err := fs.update(ctx, func(t *txn) error {
		var err error
		if in, err = t.get(ino); err != nil {
			return err
		}
		d, err := t.vacant(dir, name, cred)
		switch {
		case err != nil:
			return err
		case in.Type == Directory:
			return capsule.Errorf(capsule.NotPermitted, "inode %d is a directory: it has one name", ino)
		case in.Nlink == 0 && !in.has(unborn):
			return capsule.Errorf(capsule.NotFound, "inode %d has been removed", ino)
		case in.Nlink >= MaxLinks:
			return tooManyLinks(in)
		}
		in.Nlink++
		t.changed(in)
		t.event(Event{Kind: Changed, Ino: ino})
		if in.has(unborn) {
			in.setFlag(unborn, false)
			if !in.has(hasTrim) {
				if err := t.tx.Delete(reclaimKey(ino)); err != nil {
					return err
				}
			}
		}
		return t.add(d, name, in)
	})
	return attrOf(in, err)
}
