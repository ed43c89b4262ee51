package tree

import (
	"context"

	"github.com/spacestore/space/capsule"
)

// Unlink removes a name of something that is no directory.
func (fs *FS) Unlink(ctx context.Context, cred *Cred, dir uint64, name string) error {
	return fs.update(ctx, func(t *txn) error {
		d, in, err := t.victim(dir, name, cred)
		if err != nil {
			return err
		}
		if in.Type == Directory {
			return isDir(in.Ino)
		}
		if err := t.take(d, name, in); err != nil {
			return err
		}
		return t.unlinked(in)
	})
}

// Rmdir removes an empty directory.
func (fs *FS) Rmdir(ctx context.Context, cred *Cred, dir uint64, name string) error {
	return fs.update(ctx, func(t *txn) error {
		d, in, err := t.victim(dir, name, cred)
		if err != nil {
			return err
		}
		if in.Type != Directory {
			return capsule.Errorf(capsule.NotDir, "%q is no directory", name)
		}
		if in.Size > 0 {
			return notEmpty(in)
		}
		if err := t.take(d, name, in); err != nil {
			return err
		}
		return t.unlinked(in)
	})
}

func notEmpty(in *inode) error {
	return capsule.Errorf(capsule.NotEmpty, "directory %d has entries", in.Ino)
}

// existing returns a directory and what a name in it names.
func (t *txn) existing(dir uint64, name string, cred *Cred) (d, in *inode, err error) {
	if d, err = t.dir(dir, cred); err != nil {
		return nil, nil, err
	}
	n, err := t.fs.find(t.tx, dir, name)
	if err != nil {
		return nil, nil, err
	}
	if n == nil {
		return nil, nil, notFound(name)
	}
	in, err = t.get(n.ino)
	return d, in, dangling(err, dir, name)
}

// victim is existing for a name that cred may remove.
func (t *txn) victim(dir uint64, name string, cred *Cred) (d, in *inode, err error) {
	if d, in, err = t.existing(dir, name, cred); err != nil {
		return nil, nil, err
	}
	return d, in, t.removable(d, in, cred)
}

// removable checks that cred may take in's name out of a directory.
func (t *txn) removable(d, in *inode, cred *Cred) error {
	if err := t.writable(d, cred); err != nil {
		return err
	}
	if d.Mode&sticky != 0 && !cred.owns(d) && !cred.owns(in) {
		return capsule.Errorf(capsule.NotPermitted, "inode %d belongs to someone else, in a sticky directory", in.Ino)
	}
	return nil
}

// take removes a name; the inode keeps its links.
func (t *txn) take(d *inode, name string, in *inode) error {
	if in.Type == Directory {
		d.Nlink--
	}
	d.Size--
	t.modified(d)
	t.event(Event{Kind: Removed, Dir: d.Ino, Name: name, Ino: in.Ino})
	hash := t.fs.hash.sum(name)
	if in.Type != Directory && in.Parent == d.Ino && in.hash == hash {
		in.Parent, in.hash = 0, 0 // there may be other names, but who knows which
	}
	return t.tx.Delete(entryKey(d.Ino, hash, name))
}

// Files up to this size are freed in the update that removes their last name.
const smallFile = 1 << 20

// unlinked takes a link from an inode, and frees it if that was the last one
// and nobody holds it.
func (t *txn) unlinked(in *inode) error {
	if in.Type == Directory {
		in.Nlink = 0
	} else {
		in.Nlink--
	}
	t.changed(in)
	t.event(Event{Kind: Changed, Ino: in.Ino})
	if in.Nlink > 0 {
		return nil
	}
	if !t.fs.nodes.held(in.Ino) && in.Alloc <= smallFile && in.xattrs <= 4*MaxXattrName && !in.has(hasTrim) {
		if done, err := t.free(in); done || err != nil {
			return err
		}
	}
	return t.tx.Set(reclaimKey(in.Ino), []byte{rowVersion})
}

// free gives up what an inode without links has, as far as one update goes,
// and then the inode.
func (t *txn) free(in *inode) (done bool, err error) {
	if in.Type == Regular {
		if next, err := t.punch(in, 0); next < toEnd || err != nil {
			return false, err
		}
	}
	if in.xattrs > 0 {
		names, err := xattrNames(t.tx, in.Ino)
		if err != nil {
			return false, err
		}
		for _, name := range names {
			if err := t.tx.Delete(xattrKey(in.Ino, name)); err != nil {
				return false, err
			}
		}
	}
	t.staged(in).gone = true
	t.totals.inodes--
	return true, nil
}

// punch gives up a file's content from off on, as far as one update goes. It
// returns where that was, or toEnd.
func (t *txn) punch(in *inode, off int64) (next int64, err error) {
	next, freed, err := t.tx.Punch(in.Ino, off, toEnd)
	if err != nil {
		return 0, err
	}
	return next, t.allocated(in, -freed)
}
