package fuse

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/tree"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// asRoot is whom changes of content and attributes are made for. The kernel
// has checked permissions; but the tree is to take capabilities from a file
// that changes, as for everyone.
var asRoot = &tree.Cred{}

// killedBits are the permissions that a file loses when someone unprivileged
// changes it, or anyone gives it away (HANDLE_KILLPRIV_V2).
func killedBits(a *tree.Attr, by *gofuse.InHeader) uint32 {
	bits := a.Mode & (unix.S_ISUID | unix.S_ISGID)
	if a.Mode&(unix.S_ISGID|unix.S_IXGRP) == unix.S_ISGID && (by.Uid == 0 || inGroup(by, a.GID)) {
		bits &^= unix.S_ISGID
	}
	return bits
}

// inGroup tells whether who asks is in a group. Its supplementary groups a
// request does not say.
func inGroup(by *gofuse.InHeader, gid uint32) bool {
	if by.Gid == gid {
		return true
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", by.Pid))
	if err != nil { // it is in another container, say
		return false
	}
	for line := range strings.Lines(string(status)) {
		if groups, ok := strings.CutPrefix(line, "Groups:"); ok {
			return slices.Contains(strings.Fields(groups), fmt.Sprint(gid))
		}
	}
	return false
}

func fillTreeAttr(out *gofuse.Attr, a *tree.Attr) {
	out.Ino = a.Ino
	out.Size = uint64(a.Size)
	out.Blocks = uint64(a.Alloc+511) / 512
	out.SetTimes(&a.Atime, &a.Mtime, &a.Ctime)
	out.Mode = a.StatMode()
	out.Nlink = a.Nlink
	out.Owner = gofuse.Owner{Uid: a.UID, Gid: a.GID}
	out.Rdev = uint32(a.Rdev)
	out.Blksize = bestIO
}

func (f *treeSystem) attr(req *gofuse.InHeader, cancel <-chan struct{}) (a tree.Attr, status gofuse.Status) {
	status = f.do("getattr", req, cancel, func() (err error) {
		a, err = f.tree.GetAttr(f.ctx, req.NodeId)
		return err
	})
	return a, status
}

func (f *treeSystem) GetAttr(cancel <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	a, status := f.attr(&in.InHeader, cancel)
	if status.Ok() {
		fillTreeAttr(&out.Attr, &a)
		out.SetTimeout(f.valid)
	}
	return status
}

// Statx is asked for the time of creation alone.
func (f *treeSystem) Statx(cancel <-chan struct{}, in *gofuse.StatxIn, out *gofuse.StatxOut) gofuse.Status {
	a, status := f.attr(&in.InHeader, cancel)
	if status.Ok() {
		var attr gofuse.Attr
		fillTreeAttr(&attr, &a)
		fillStatx(out, &attr, a.Btime)
		out.SetTimeout(f.valid)
	}
	return status
}

func (f *treeSystem) SetAttr(cancel <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	var set tree.SetAttr
	for _, s := range [...]struct {
		valid uint32
		set   tree.Set
	}{
		{gofuse.FATTR_MODE, tree.SetMode},
		{gofuse.FATTR_UID, tree.SetUID},
		{gofuse.FATTR_GID, tree.SetGID},
		{gofuse.FATTR_SIZE, tree.SetSize},
	} {
		if in.Valid&s.valid != 0 {
			set.Set |= s.set
		}
	}
	set.Set |= setTime(in.Valid, gofuse.FATTR_ATIME, gofuse.FATTR_ATIME_NOW, tree.SetAtime, tree.SetAtimeNow)
	set.Set |= setTime(in.Valid, gofuse.FATTR_MTIME, gofuse.FATTR_MTIME_NOW, tree.SetMtime, tree.SetMtimeNow)
	set.Mode = in.Mode & 0o7777
	set.UID, set.GID = in.Uid, in.Gid
	set.Size = int64(in.Size)
	set.Atime = time.Unix(int64(in.Atime), int64(in.Atimensec))
	set.Mtime = time.Unix(int64(in.Mtime), int64(in.Mtimensec))
	var a tree.Attr
	status := f.do("setattr", &in.InHeader, cancel, func() (err error) {
		// What sets nothing is chown(2) without an owner, which Linux takes for one all the same.
		if set.Set == 0 || in.Valid&(gofuse.FATTR_KILL_SUIDGID|gofuse.FATTR_MODE) == gofuse.FATTR_KILL_SUIDGID {
			if a, err = f.tree.GetAttr(f.ctx, in.NodeId); err != nil {
				return err
			}
			if set.Set == 0 {
				set.Set, set.UID = tree.SetUID, a.UID
			}
			if bits := killedBits(&a, &in.InHeader); bits != 0 && a.Type != tree.Directory {
				set.Set |= tree.SetMode
				set.Mode = a.Mode &^ bits
			}
		}
		a, err = f.tree.SetAttr(f.ctx, asRoot, in.NodeId, set)
		return err
	})
	if status.Ok() {
		fillTreeAttr(&out.Attr, &a)
		out.SetTimeout(f.valid)
	}
	return status
}

func setTime(valid, given, now uint32, setGiven, setNow tree.Set) tree.Set {
	switch {
	case valid&now != 0:
		return setNow
	case valid&given != 0:
		return setGiven
	}
	return 0
}

// killPrivileges takes set-ID bits from a file that someone unprivileged wrote.
func (f *treeSystem) killPrivileges(ino uint64, by *gofuse.InHeader) error {
	a, err := f.tree.GetAttr(f.ctx, ino)
	if err != nil {
		return err
	}
	bits := killedBits(&a, by)
	if bits == 0 {
		return nil
	}
	_, err = f.tree.SetAttr(f.ctx, asRoot, ino, tree.SetAttr{Set: tree.SetMode, Mode: a.Mode &^ bits})
	return err
}

func (f *treeSystem) GetXAttr(cancel <-chan struct{}, req *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	var v []byte
	status := f.do("getxattr", req, cancel, func() (err error) {
		v, err = f.tree.GetXattr(f.ctx, nil, req.NodeId, name)
		return err
	})
	if !status.Ok() {
		return 0, status
	}
	return fillXattr(dest, v)
}

// fillXattr answers with a value or list, or how long it is.
func fillXattr(dest, v []byte) (uint32, gofuse.Status) {
	if len(dest) < len(v) {
		return uint32(len(v)), gofuse.ERANGE
	}
	return uint32(copy(dest, v)), gofuse.OK
}

// ListXAttr asks as the process, which may not see all names.
func (f *treeSystem) ListXAttr(cancel <-chan struct{}, req *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	var list []byte
	status := f.do("listxattr", req, cancel, func() error {
		names, err := f.tree.ListXattr(f.ctx, &tree.Cred{UID: req.Uid, GID: req.Gid}, req.NodeId)
		for _, name := range names {
			list = append(append(list, name...), 0)
		}
		return err
	})
	if !status.Ok() {
		return 0, status
	}
	return fillXattr(dest, list)
}

func (f *treeSystem) SetXAttr(cancel <-chan struct{}, in *gofuse.SetXAttrIn, name string, value []byte) gofuse.Status {
	return f.do("setxattr", &in.InHeader, cancel, func() error {
		flags := tree.XattrFlags(in.Flags)
		if cameAgain(in.Unique) {
			flags = 0 // it may be there because of this request, or replaced already
		}
		err := f.tree.SetXattr(f.ctx, nil, in.NodeId, name, value, flags)
		if err != nil || in.SetXAttrFlags&gofuse.SETXATTR_ACL_KILL_SGID == 0 {
			return err
		}
		a, err := f.tree.GetAttr(f.ctx, in.NodeId)
		if err != nil || a.Mode&unix.S_ISGID == 0 {
			return err
		}
		_, err = f.tree.SetAttr(f.ctx, asRoot, in.NodeId, tree.SetAttr{Set: tree.SetMode, Mode: a.Mode &^ unix.S_ISGID})
		return err
	})
}

func (f *treeSystem) RemoveXAttr(cancel <-chan struct{}, req *gofuse.InHeader, name string) gofuse.Status {
	return f.do("removexattr", req, cancel, func() error {
		err := f.tree.RemoveXattr(f.ctx, nil, req.NodeId, name)
		if cameAgain(req.Unique) && capsule.KindOf(err) == capsule.NoAttribute {
			return nil
		}
		return err
	})
}

func (f *treeSystem) Readlink(cancel <-chan struct{}, req *gofuse.InHeader) ([]byte, gofuse.Status) {
	var target string
	status := f.do("readlink", req, cancel, func() (err error) {
		target, err = f.tree.Readlink(f.ctx, req.NodeId)
		return err
	})
	return []byte(target), status
}
