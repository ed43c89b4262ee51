package tree

import (
	"context"

	"github.com/spacestore/space/capsule"
)

// Rename moves what a name names to another name, replacing what that names.
// The order of the errors is Linux's.
func (fs *FS) Rename(ctx context.Context, cred *Cred, dir uint64, name string, newDir uint64, newName string, flags RenameFlags) error {
	if flags > RenameExchange {
		return capsule.Errorf(capsule.Invalid, "rename cannot both keep and exchange")
	}
	return fs.update(ctx, func(t *txn) error {
		r := rename{txn: t, cred: cred, name: name, newName: newName, exchange: flags == RenameExchange}
		if err := r.look(dir, newDir, flags); err != nil {
			return err
		}
		if r.in == r.old {
			return nil // two names of one inode: nothing happens, says POSIX
		}
		if err := r.check(); err != nil {
			return err
		}
		if r.exchange {
			return r.swap()
		}
		return r.move()
	})
}

type rename struct {
	*txn
	cred          *Cred
	name, newName string
	exchange      bool
	d, newD       *inode
	in            *inode // what name names
	old           *inode // what newName names, or nil
}

// look finds the four inodes.
func (r *rename) look(dir, newDir uint64, flags RenameFlags) (err error) {
	if _, err = r.dir(dir, r.cred); err != nil {
		return err
	}
	if r.newD, err = r.dir(newDir, r.cred); err != nil {
		return err
	}
	if r.d, r.in, err = r.existing(dir, r.name, r.cred); err != nil {
		return err
	}
	_, r.old, err = r.existing(newDir, r.newName, r.cred)
	switch {
	case capsule.KindOf(err) == capsule.NotFound:
		if r.exchange {
			return err
		}
	case err != nil:
		return err
	case flags == RenameNoReplace:
		return capsule.Errorf(capsule.Exists, "%q exists", r.newName)
	}
	if r.d == r.newD {
		return nil
	}
	above, err := r.above(r.in, r.newD)
	if err != nil {
		return err
	}
	if above {
		return capsule.Errorf(capsule.Invalid, "directory %d cannot go into itself", r.in.Ino)
	}
	if r.old == nil {
		return nil
	}
	if above, err = r.above(r.old, r.d); err != nil {
		return err
	}
	if above && r.exchange {
		return capsule.Errorf(capsule.Invalid, "directory %d cannot go into itself", r.old.Ino)
	}
	if above {
		return notEmpty(r.old)
	}
	return nil
}

// above tells whether in is d or a directory above it.
func (r *rename) above(in, d *inode) (bool, error) {
	if in.Type != Directory {
		return false, nil
	}
	for range r.totals.inodes + 1 {
		if d.Ino == in.Ino {
			return true, nil
		}
		if d.Ino == Root {
			return false, nil
		}
		up, err := r.fs.load(r.tx, d.Parent)
		if err != nil {
			return false, capsule.Errorf(capsule.Damaged, "directory %d is in none; check the tree", d.Ino)
		}
		d = up
	}
	return false, capsule.Errorf(capsule.Damaged, "directory %d is in itself; check the tree", d.Ino)
}

// check applies permissions and the rules of replacing.
func (r *rename) check() error {
	if err := r.removable(r.d, r.in, r.cred); err != nil {
		return err
	}
	isDirectory := r.in.Type == Directory
	if r.old == nil {
		if err := r.writable(r.newD, r.cred); err != nil {
			return err
		}
	} else {
		if err := r.removable(r.newD, r.old, r.cred); err != nil {
			return err
		}
		if !r.exchange && isDirectory && r.old.Type != Directory {
			return capsule.Errorf(capsule.NotDir, "%q is no directory", r.newName)
		}
		if !r.exchange && !isDirectory && r.old.Type == Directory {
			return isDir(r.old.Ino)
		}
	}
	if r.d != r.newD { // a directory that moves has its ".." changed
		if isDirectory {
			if err := r.fs.permit(r.tx, r.in, r.cred, MayWrite); err != nil {
				return err
			}
		}
		if r.exchange && r.old.Type == Directory {
			if err := r.fs.permit(r.tx, r.old, r.cred, MayWrite); err != nil {
				return err
			}
		}
	}
	if !r.exchange && r.old != nil && isDirectory && r.old.Size > 0 {
		return notEmpty(r.old)
	}
	return nil
}

func (r *rename) move() error {
	if r.old != nil {
		if err := r.take(r.newD, r.newName, r.old); err != nil {
			return err
		}
		if err := r.unlinked(r.old); err != nil {
			return err
		}
	}
	if err := r.take(r.d, r.name, r.in); err != nil {
		return err
	}
	r.changed(r.in)
	return r.add(r.newD, r.newName, r.in)
}

func (r *rename) swap() error {
	if err := r.take(r.d, r.name, r.in); err != nil {
		return err
	}
	if err := r.take(r.newD, r.newName, r.old); err != nil {
		return err
	}
	r.changed(r.in)
	r.changed(r.old)
	if err := r.add(r.d, r.name, r.old); err != nil {
		return err
	}
	return r.add(r.newD, r.newName, r.in)
}
