package fuse

import (
	"syscall"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/tree"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// Lookup answers for names that are not there too: the kernel remembers that.
func (f *treeSystem) Lookup(cancel <-chan struct{}, req *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	var a tree.Attr
	absent := false
	status := f.do("lookup", req, cancel, func() (err error) {
		a, err = f.tree.Lookup(f.ctx, nil, req.NodeId, name)
		if absent = capsule.KindOf(err) == capsule.NotFound; absent {
			return nil
		}
		return err
	})
	switch {
	case !status.Ok():
	case absent:
		out.SetEntryTimeout(f.valid)
	default:
		f.fillEntry(out, &a)
	}
	return status
}

// make answers a request that makes a name. If it comes again and the name is
// there, same tells whether that can be what it made.
func (f *treeSystem) make(what string, req *gofuse.InHeader, dir uint64, name string, cancel <-chan struct{}, out *gofuse.EntryOut,
	same func(a *tree.Attr) bool, fn func() (tree.Attr, error)) gofuse.Status {
	var a tree.Attr
	status := f.do(what, req, cancel, func() (err error) {
		if made, ok := f.memory.done(req.Unique); ok {
			if a, err = f.tree.Lookup(f.ctx, nil, dir, name); err == nil && a.Ino == made {
				return nil
			} // else it was lost with the process
		}
		a, err = fn()
		if cameAgain(req.Unique) && capsule.KindOf(err) == capsule.Exists {
			// The process before was killed between making it and noting that.
			if a, err = f.tree.Lookup(f.ctx, nil, dir, name); err == nil && !same(&a) {
				err = capsule.Errorf(capsule.Exists, "%q exists", name)
			}
		}
		if err == nil {
			err = f.memory.note(req.Unique, a.Ino)
		}
		return err
	})
	if status.Ok() {
		f.fillEntry(out, &a)
	}
	return status
}

// newOf is what an inode is to be that a request makes.
func newOf(req *gofuse.InHeader, mode, umask uint32) tree.New {
	return tree.New{Mode: mode & 0o7777, Umask: umask, UID: req.Uid, GID: req.Gid}
}

func (f *treeSystem) Mkdir(cancel <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	same := func(a *tree.Attr) bool { return a.Type == tree.Directory && a.UID == in.Uid && a.Size == 0 }
	return f.make("mkdir", &in.InHeader, in.NodeId, name, cancel, out, same, func() (tree.Attr, error) {
		return f.tree.Mkdir(f.ctx, nil, in.NodeId, name, newOf(&in.InHeader, in.Mode, in.Umask))
	})
}

func (f *treeSystem) Mknod(cancel <-chan struct{}, in *gofuse.MknodIn, name string, out *gofuse.EntryOut) gofuse.Status {
	kind := tree.Type(in.Mode & syscall.S_IFMT >> 12)
	same := func(a *tree.Attr) bool { return a.Type == kind && a.UID == in.Uid && a.Size == 0 }
	return f.make("mknod", &in.InHeader, in.NodeId, name, cancel, out, same, func() (tree.Attr, error) {
		n := newOf(&in.InHeader, in.Mode, in.Umask)
		n.Rdev = uint64(in.Rdev)
		return f.tree.Mknod(f.ctx, nil, in.NodeId, name, kind, n)
	})
}

func (f *treeSystem) Symlink(cancel <-chan struct{}, req *gofuse.InHeader, target, name string, out *gofuse.EntryOut) gofuse.Status {
	same := func(a *tree.Attr) bool {
		there, err := f.tree.Readlink(f.ctx, a.Ino)
		return err == nil && there == target && a.UID == req.Uid
	}
	return f.make("symlink", req, req.NodeId, name, cancel, out, same, func() (tree.Attr, error) {
		n := newOf(req, 0o777, 0)
		n.Target = target
		return f.tree.Symlink(f.ctx, nil, req.NodeId, name, n)
	})
}

func (f *treeSystem) Link(cancel <-chan struct{}, in *gofuse.LinkIn, name string, out *gofuse.EntryOut) gofuse.Status {
	same := func(a *tree.Attr) bool { return a.Ino == in.Oldnodeid }
	return f.make("link", &in.InHeader, in.NodeId, name, cancel, out, same, func() (tree.Attr, error) {
		return f.tree.Link(f.ctx, nil, in.Oldnodeid, in.NodeId, name)
	})
}

func (f *treeSystem) Unlink(cancel <-chan struct{}, req *gofuse.InHeader, name string) gofuse.Status {
	return f.do("unlink", req, cancel, func() error {
		return f.once(req, req.NodeId, name, func() error {
			return f.removing(req.NodeId, name, func() error { return f.tree.Unlink(f.ctx, nil, req.NodeId, name) })
		})
	})
}

func (f *treeSystem) Rmdir(cancel <-chan struct{}, req *gofuse.InHeader, name string) gofuse.Status {
	return f.do("rmdir", req, cancel, func() error {
		return f.once(req, req.NodeId, name, func() error {
			return f.removing(req.NodeId, name, func() error { return f.tree.Rmdir(f.ctx, nil, req.NodeId, name) })
		})
	})
}

func (f *treeSystem) Rename(cancel <-chan struct{}, in *gofuse.RenameIn, name, newName string) gofuse.Status {
	return f.do("rename", &in.InHeader, cancel, func() error {
		if in.Flags > uint32(tree.RenameExchange) {
			return capsule.Errorf(capsule.Invalid, "rename with flags %#x", in.Flags)
		}
		rename := func() error {
			return f.tree.Rename(f.ctx, nil, in.NodeId, name, in.Newdir, newName, tree.RenameFlags(in.Flags))
		}
		return f.once(&in.InHeader, in.NodeId, name, func() error {
			if in.Flags != 0 { // nothing is replaced
				return rename()
			}
			return f.removing(in.Newdir, newName, rename)
		})
	})
}

// once runs fn, which takes name from what it names, unless that has happened
// for the same request already.
func (f *treeSystem) once(req *gofuse.InHeader, dir uint64, name string, fn func() error) error {
	if f.memory.ledger == nil {
		return fn()
	}
	a, err := f.tree.Lookup(f.ctx, nil, dir, name)
	gone := capsule.KindOf(err) == capsule.NotFound
	if err != nil && !gone {
		return fn() // which knows what is wrong
	}
	if was, ok := f.memory.done(req.Unique); ok && (gone || a.Ino != was) {
		return nil
	}
	if gone && cameAgain(req.Unique) {
		return nil // the process before was killed between doing it and noting that
	}
	if err := fn(); err != nil {
		return err
	}
	return f.memory.note(req.Unique, a.Ino)
}

// removing runs fn, which removes what a name names, if it names anything. A
// directory or special file that goes can still be in use without an open file
// that we know of, as a working directory or a pipe: it is kept until the
// kernel forgets it. That of a regular file always is one of ours.
func (f *treeSystem) removing(dir uint64, name string, fn func() error) error {
	a, err := f.tree.Lookup(f.ctx, nil, dir, name)
	if err != nil || a.Type == tree.Regular || a.Type == tree.Symlink {
		return fn() // which knows what is wrong, if anything is
	}
	file, err := f.tree.Open(f.ctx, nil, a.Ino, 0)
	if err != nil {
		return fn()
	}
	if err = fn(); err != nil {
		file.Close()
		return err
	}
	return f.nodes.keep(file)
}
