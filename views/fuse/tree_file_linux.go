package fuse

import (
	"bytes"
	"io"
	"math"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/tree"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// treeFile is an open file of a tree.
type treeFile struct {
	*tree.File
	refs atomic.Int32 // the open itself and the requests under way, some of which may outlast it
}

func newTreeFile(file *tree.File) *treeFile {
	h := &treeFile{File: file}
	h.refs.Store(1)
	return h
}

func (h *treeFile) hold() { h.refs.Add(1) }

func (h *treeFile) close() {
	if h.refs.Add(-1) == 0 {
		h.File.Close()
	}
}

// openFlagsOf returns what a file is opened for. Every one can be read: the
// kernel fills pages through whatever handle it has.
func openFlagsOf(flags uint32) tree.OpenFlags {
	open := tree.OpenRead
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		open |= tree.OpenWrite
	}
	if flags&syscall.O_TRUNC != 0 {
		open |= tree.OpenWrite | tree.OpenTrunc
	}
	return open
}

func (f *treeSystem) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if !f.admitted() {
		return gofuse.EACCES
	}
	if fh, ok := f.memory.opened(in.Unique); ok {
		out.Fh = fh
		return gofuse.OK
	}
	var file *tree.File
	status := f.do("open", &in.InHeader, cancel, func() (err error) {
		if file, err = f.tree.Open(f.ctx, asRoot, in.NodeId, openFlagsOf(in.Flags)); err != nil {
			return err
		}
		if in.Mode&gofuse.OPEN_KILL_SUIDGID != 0 {
			return f.killPrivileges(in.NodeId, &in.InHeader)
		}
		return nil
	})
	return f.opened(status, file, in.Flags, in.Unique, out)
}

// opened gives the kernel a handle for an open file, if there is one and the
// kernel still wants it. Pages stay good from one open to the next, since we
// tell of all changes.
func (f *treeSystem) opened(status gofuse.Status, file *tree.File, flags uint32, unique uint64, out *gofuse.OpenOut) gofuse.Status {
	switch {
	case status.Ok():
		out.Fh = f.files.add(newTreeFile(file))
		if err := f.memory.open(out.Fh, file.Ino(), flags, unique); err != nil {
			f.files.close(out.Fh)
			return f.status("open", &gofuse.InHeader{NodeId: file.Ino()}, err)
		}
		if f.memory.pagesGood(file.Ino()) {
			out.OpenFlags = gofuse.FOPEN_KEEP_CACHE
		}
	case file != nil:
		file.Close()
	}
	return status
}

func (f *treeSystem) Create(cancel <-chan struct{}, in *gofuse.CreateIn, name string, out *gofuse.CreateOut) gofuse.Status {
	if !f.admitted() {
		return gofuse.EACCES
	}
	flags := openFlagsOf(in.Flags)
	if in.Flags&syscall.O_EXCL != 0 {
		flags |= tree.OpenExcl
	}
	var file *tree.File
	var a tree.Attr
	if status, done := f.createdBefore(cancel, in, out); done {
		return status
	}
	status := f.do("create", &in.InHeader, cancel, func() (err error) {
		file, a, err = f.tree.Create(f.ctx, nil, in.NodeId, name, newOf(&in.InHeader, in.Mode, in.Umask), flags)
		if cameAgain(in.Unique) && capsule.KindOf(err) == capsule.Exists {
			// The process before was killed between making the file and noting that.
			file, a, err = f.tree.Create(f.ctx, nil, in.NodeId, name, newOf(&in.InHeader, in.Mode, in.Umask), flags&^tree.OpenExcl)
		}
		if err != nil || in.OpenFlags&gofuse.OPEN_KILL_SUIDGID == 0 || a.Change == 1 {
			return err // a new file keeps what it was made with
		}
		if err = f.killPrivileges(a.Ino, &in.InHeader); err == nil {
			a, err = f.tree.GetAttr(f.ctx, a.Ino)
		}
		return err
	})
	if status = f.opened(status, file, in.Flags, in.Unique, &out.OpenOut); status.Ok() {
		f.fillEntry(&out.EntryOut, &a)
	}
	return status
}

// createdBefore answers a request for a new file that an earlier process has
// carried out.
func (f *treeSystem) createdBefore(cancel <-chan struct{}, in *gofuse.CreateIn, out *gofuse.CreateOut) (status gofuse.Status, done bool) {
	fh, ok := f.memory.opened(in.Unique)
	if !ok {
		return 0, false
	}
	h := f.files.use(fh)
	if h == nil {
		return 0, false
	}
	defer h.close()
	var a tree.Attr
	status = f.do("create", &in.InHeader, cancel, func() (err error) {
		a, err = f.tree.GetAttr(f.ctx, h.Ino())
		return err
	})
	if status.Ok() {
		out.Fh = fh
		f.fillEntry(&out.EntryOut, &a)
	}
	return status, true
}

// Tmpfile is open with O_TMPFILE.
func (f *treeSystem) Tmpfile(cancel <-chan struct{}, in *gofuse.CreateIn, out *gofuse.CreateOut) gofuse.Status {
	if !f.admitted() {
		return gofuse.EACCES
	}
	flags := openFlagsOf(in.Flags)
	if in.Flags&syscall.O_EXCL != 0 {
		flags |= tree.OpenExcl
	}
	if status, done := f.createdBefore(cancel, in, out); done {
		return status
	}
	var file *tree.File
	var a tree.Attr
	status := f.do("tmpfile", &in.InHeader, cancel, func() (err error) {
		file, a, err = f.tree.Tmpfile(f.ctx, nil, in.NodeId, newOf(&in.InHeader, in.Mode, in.Umask), flags)
		return err
	})
	if status = f.opened(status, file, in.Flags, in.Unique, &out.OpenOut); status.Ok() {
		f.fillEntry(&out.EntryOut, &a)
	}
	return status
}

// with runs an operation on an open file.
func (f *treeSystem) with(what string, fh uint64, req *gofuse.InHeader, cancel <-chan struct{}, fn func(h *treeFile) error) gofuse.Status {
	h := f.files.use(fh)
	if h == nil {
		return gofuse.EBADF
	}
	defer h.close()
	return f.do(what, req, cancel, func() error { return fn(h) })
}

func (f *treeSystem) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	begun := time.Now()
	defer func() { f.reads.took(time.Since(begun)) }()
	n := 0
	status := f.with("read", in.Fh, &in.InHeader, cancel, func(h *treeFile) (err error) {
		if n, err = h.ReadAt(f.ctx, buf[:in.Size], int64(in.Offset)); err == io.EOF {
			return nil
		}
		return err
	})
	return gofuse.ReadResultData(buf[:n]), status
}

func (f *treeSystem) Write(cancel <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	n := 0
	status := f.with("write", in.Fh, &in.InHeader, cancel, func(h *treeFile) (err error) {
		mapped := in.WriteFlags&gofuse.WRITE_CACHE != 0 // pages of a mapping, and not a call of write(2)
		if in.Flags&syscall.O_APPEND != 0 && !mapped {
			n, err = f.append(h, data, int64(in.Offset), cameAgain(in.Unique))
		} else {
			n, err = h.WriteAt(f.ctx, data, int64(in.Offset))
		}
		if n > 0 && in.WriteFlags&gofuse.WRITE_KILL_SUIDGID != 0 {
			if err := f.killPrivileges(in.NodeId, &in.InHeader); err != nil {
				return err
			}
		}
		if n > 0 && !mapped {
			err = nil // the next write meets it again
		}
		if err == nil && in.Flags&syscall.O_DSYNC != 0 {
			err = h.Sync(f.ctx)
		}
		return err
	})
	return uint32(n), status
}

// append writes at the end of the file. The kernel has put the data where it
// takes the end to be, which is wrong if someone else has appended just now.
// A request that comes again may have been carried out in part.
func (f *treeSystem) append(h *treeFile, data []byte, end int64, again bool) (int, error) {
	if again {
		there := make([]byte, len(data))
		n, err := h.ReadAt(f.ctx, there, end)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if n > 0 && bytes.Equal(there[:n], data[:n]) {
			return h.WriteAt(f.ctx, data, end)
		}
	}
	at, n, err := h.Append(f.ctx, data)
	if at != end {
		f.notifier.inode(h.Ino(), span{0, math.MaxInt64})
	}
	return n, err
}

// Flush comes with every close of a descriptor, which ends POSIX locks.
func (f *treeSystem) Flush(_ <-chan struct{}, in *gofuse.FlushIn) gofuse.Status {
	f.locks.flush(in)
	return gofuse.OK
}

func (f *treeSystem) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	f.locks.release(in)
	f.memory.release(in.Fh)
	f.files.close(in.Fh)
}

func (f *treeSystem) Fsync(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	return f.with("fsync", in.Fh, &in.InHeader, cancel, func(h *treeFile) error { return h.Sync(f.ctx) })
}

// allocModes are the modes of fallocate(2) that there are.
var allocModes = map[uint32]tree.AllocMode{
	0:                        tree.Allocate,
	unix.FALLOC_FL_KEEP_SIZE: tree.KeepSize,
	unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE: tree.PunchHole,
	unix.FALLOC_FL_ZERO_RANGE:                            tree.ZeroRange,
	unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE: tree.ZeroKeep,
}

func (f *treeSystem) Fallocate(cancel <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	mode, ok := allocModes[in.Mode]
	if !ok {
		return gofuse.Status(syscall.EOPNOTSUPP)
	}
	return f.with("fallocate", in.Fh, &in.InHeader, cancel, func(h *treeFile) error {
		err := h.Allocate(f.ctx, mode, int64(in.Offset), int64(in.Length))
		if err == nil && in.Uid != 0 {
			err = f.killPrivileges(in.NodeId, &in.InHeader) // of which the kernel tells for writes alone
		}
		return err
	})
}

// Lseek is asked for data and holes alone.
func (f *treeSystem) Lseek(cancel <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	return f.with("lseek", in.Fh, &in.InHeader, cancel, func(h *treeFile) error {
		seek := h.SeekData
		if in.Whence == unix.SEEK_HOLE {
			seek = h.SeekHole
		} else if in.Whence != unix.SEEK_DATA {
			return capsule.Errorf(capsule.Invalid, "lseek with whence %d", in.Whence)
		}
		at, err := seek(f.ctx, int64(in.Offset))
		out.Offset = uint64(at)
		return err
	})
}

// maxCopy bounds one request, so that it can be interrupted; programs go on.
const maxCopy = 128 << 20

func (f *treeSystem) CopyFileRange(cancel <-chan struct{}, in *gofuse.CopyFileRangeIn) (uint32, gofuse.Status) {
	dst := f.files.use(in.FhOut)
	if dst == nil {
		return 0, gofuse.EBADF
	}
	defer dst.close()
	var n int64
	status := f.with("copy_file_range", in.FhIn, &in.InHeader, cancel, func(src *treeFile) (err error) {
		n, err = tree.CopyRange(f.ctx, dst.File, int64(in.OffOut), src.File, int64(in.OffIn), int64(min(in.Len, maxCopy)))
		if n > 0 {
			err = nil
		}
		if err == nil && in.Uid != 0 {
			err = f.killPrivileges(dst.Ino(), &in.InHeader)
		}
		return err
	})
	return uint32(n), status
}
