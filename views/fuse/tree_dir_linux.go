package fuse

import (
	"context"
	"syscall"

	"github.com/spacestore/space/capsule/tree"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// OpenDir has nothing to do, since the tree's cookies need no state; ENOSYS
// tells the kernel not to ask again, and to keep what it has read of directories.
func (f *treeSystem) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (f *treeSystem) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.do("readdir", &in.InHeader, cancel, func() error {
		return f.list(in, f.tree.ReadDir, func(e gofuse.DirEntry, _ *tree.Attr) bool { return out.AddDirEntry(e) })
	})
}

// ReadDirPlus is ReadDir and a lookup of every entry in one.
func (f *treeSystem) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	var given []uint64
	status := f.do("readdir", &in.InHeader, cancel, func() error {
		return f.list(in, f.tree.ReadDirPlus, func(e gofuse.DirEntry, a *tree.Attr) bool {
			entry := out.AddDirLookupEntry(e)
			if entry != nil && a != nil {
				f.fillEntry(entry, a)
				given = append(given, a.Ino)
			}
			return entry != nil
		})
	})
	if !status.Ok() { // the kernel does not get them
		for _, ino := range given {
			f.nodes.forget(ino, 1)
		}
	}
	return status
}

type readDir = func(ctx context.Context, cred *tree.Cred, dir, cookie uint64, fn func(tree.Entry) bool) error

// list passes the entries after an offset on to add, until that has no room
// left. Offsets are the tree's cookies, which leave 1 and 2 for "." and "..";
// those have no attributes.
func (f *treeSystem) list(in *gofuse.ReadIn, read readDir, add func(gofuse.DirEntry, *tree.Attr) bool) error {
	const dots = 2
	if in.Offset < dots {
		dir, err := f.tree.GetAttr(f.ctx, in.NodeId)
		if err != nil {
			return err
		}
		for i, e := range [dots]gofuse.DirEntry{{Name: ".", Ino: dir.Ino}, {Name: "..", Ino: dir.Parent}} {
			e.Mode, e.Off = syscall.S_IFDIR, uint64(i+1)
			if in.Offset < e.Off && !add(e, nil) {
				return nil
			}
		}
	}
	cookie := in.Offset
	if cookie <= dots {
		cookie = 0
	}
	return read(f.ctx, nil, in.NodeId, cookie, func(e tree.Entry) bool {
		return add(gofuse.DirEntry{Name: e.Name, Ino: e.Ino, Mode: uint32(e.Type) << 12, Off: e.Cookie}, &e.Attr)
	})
}

func (f *treeSystem) FsyncDir(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	return f.do("fsyncdir", &in.InHeader, cancel, func() error { return f.tree.Sync(f.ctx) })
}
