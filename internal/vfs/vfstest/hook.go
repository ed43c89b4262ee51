package vfstest

import (
	"io"
	"os"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Kind is what a file system operation does.
type Kind int

// The kinds of operation.
const (
	Create Kind = iota + 1 // also ReuseForWrite
	Open
	OpenReadWrite
	OpenDir
	Read  // also ReadAt
	Write // also WriteAt
	Sync  // also SyncData; of a file or a directory
	SyncTo
	Close
	Remove // also RemoveAll
	Rename
	Link
	Mkdir
	Lock
	List
	Stat // also a file's
)

var kindNames = [...]string{"none", "create", "open", "open for writing", "open directory", "read", "write", "sync",
	"sync to", "close", "remove", "rename", "link", "mkdir", "lock", "list", "stat"}

func (k Kind) String() string { return kindNames[k] }

// Op is one operation on a file system.
type Op struct {
	Kind Kind
	Path string
	To   string // Rename and Link: the new name
	Off  int64  // Read, Write, SyncTo: where
	Len  int    // Read, Write: how many bytes
}

// Mutates reports whether the operation can change what a machine finds after
// a power cut.
func (o Op) Mutates() bool {
	switch o.Kind {
	case Create, OpenReadWrite, Write, Sync, Remove, Rename, Link, Mkdir, Lock:
		return true
	}
	return false
}

// A runner decides what becomes of each operation. It calls do at most once;
// limit cuts a Read or a Write short and is ignored by everything else.
type runner interface {
	run(op Op, do func(limit int) (int, error)) (int, error)
}

// hookFS passes every operation on under through a runner.
type hookFS struct {
	under vfs.FS
	r     runner
}

func (h *hookFS) do(op Op, f func() error) error {
	_, err := h.r.run(op, func(int) (int, error) { return 0, f() })
	return err
}

func (h *hookFS) file(op Op, open func() (vfs.File, error)) (vfs.File, error) {
	var f vfs.File
	err := h.do(op, func() (err error) {
		f, err = open()
		return err
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	return &hookFile{File: f, h: h, path: op.Path}, nil
}

func (h *hookFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return h.file(Op{Kind: Create, Path: name}, func() (vfs.File, error) { return h.under.Create(name, c) })
}

func (h *hookFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	// As the interface allows: a new file under the new name. The two steps are
	// two operations, because a power cut can fall between them.
	if err := h.Remove(oldname); err != nil {
		return nil, err
	}
	return h.Create(newname, c)
}

func (h *hookFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return h.file(Op{Kind: Open, Path: name}, func() (vfs.File, error) { return h.under.Open(name, opts...) })
}

func (h *hookFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return h.file(Op{Kind: OpenReadWrite, Path: name}, func() (vfs.File, error) {
		return h.under.OpenReadWrite(name, c, opts...)
	})
}

func (h *hookFS) OpenDir(name string) (vfs.File, error) {
	return h.file(Op{Kind: OpenDir, Path: name}, func() (vfs.File, error) { return h.under.OpenDir(name) })
}

func (h *hookFS) Remove(name string) error {
	return h.do(Op{Kind: Remove, Path: name}, func() error { return h.under.Remove(name) })
}

func (h *hookFS) RemoveAll(name string) error {
	return h.do(Op{Kind: Remove, Path: name}, func() error { return h.under.RemoveAll(name) })
}

func (h *hookFS) Rename(oldname, newname string) error {
	return h.do(Op{Kind: Rename, Path: oldname, To: newname}, func() error { return h.under.Rename(oldname, newname) })
}

func (h *hookFS) Link(oldname, newname string) error {
	return h.do(Op{Kind: Link, Path: oldname, To: newname}, func() error { return h.under.Link(oldname, newname) })
}

func (h *hookFS) MkdirAll(dir string, perm os.FileMode) error {
	return h.do(Op{Kind: Mkdir, Path: dir}, func() error { return h.under.MkdirAll(dir, perm) })
}

func (h *hookFS) Lock(name string) (io.Closer, error) {
	var c io.Closer
	err := h.do(Op{Kind: Lock, Path: name}, func() (err error) {
		c, err = h.under.Lock(name)
		return err
	})
	return c, err
}

func (h *hookFS) List(dir string) ([]string, error) {
	var names []string
	err := h.do(Op{Kind: List, Path: dir}, func() (err error) {
		names, err = h.under.List(dir)
		return err
	})
	return names, err
}

func (h *hookFS) Stat(name string) (vfs.FileInfo, error) {
	var fi vfs.FileInfo
	err := h.do(Op{Kind: Stat, Path: name}, func() (err error) {
		fi, err = h.under.Stat(name)
		return err
	})
	return fi, err
}

func (h *hookFS) PathBase(path string) string                     { return h.under.PathBase(path) }
func (h *hookFS) PathJoin(elem ...string) string                  { return h.under.PathJoin(elem...) }
func (h *hookFS) PathDir(path string) string                      { return h.under.PathDir(path) }
func (h *hookFS) GetDiskUsage(path string) (vfs.DiskUsage, error) { return h.under.GetDiskUsage(path) }
func (h *hookFS) Unwrap() vfs.FS                                  { return h.under }

// hookFile passes a file's operations through its file system's runner.
type hookFile struct {
	vfs.File
	h     *hookFS
	path  string
	wrote atomic.Int64 // where the next Write goes
	read  atomic.Int64 // where the next Read comes from
}

func (f *hookFile) do(kind Kind, off int64, fn func() error) error {
	return f.h.do(Op{Kind: kind, Path: f.path, Off: off}, fn)
}

func (f *hookFile) Read(p []byte) (int, error) {
	n, err := f.h.r.run(Op{Kind: Read, Path: f.path, Off: f.read.Load(), Len: len(p)},
		func(limit int) (int, error) { return f.File.Read(p[:limit]) })
	f.read.Add(int64(n))
	return n, err
}

func (f *hookFile) ReadAt(p []byte, off int64) (int, error) {
	return f.h.r.run(Op{Kind: Read, Path: f.path, Off: off, Len: len(p)},
		func(limit int) (int, error) { return f.File.ReadAt(p[:limit], off) })
}

func (f *hookFile) Write(p []byte) (int, error) {
	n, err := f.h.r.run(Op{Kind: Write, Path: f.path, Off: f.wrote.Load(), Len: len(p)},
		func(limit int) (int, error) { return f.File.Write(p[:limit]) })
	f.wrote.Add(int64(n))
	return n, err
}

func (f *hookFile) WriteAt(p []byte, off int64) (int, error) {
	return f.h.r.run(Op{Kind: Write, Path: f.path, Off: off, Len: len(p)},
		func(limit int) (int, error) { return f.File.WriteAt(p[:limit], off) })
}

func (f *hookFile) Sync() error     { return f.do(Sync, 0, f.File.Sync) }
func (f *hookFile) SyncData() error { return f.do(Sync, 0, f.File.SyncData) }

func (f *hookFile) SyncTo(length int64) (full bool, err error) {
	err = f.do(SyncTo, length, func() (err error) {
		full, err = f.File.SyncTo(length)
		return err
	})
	return full, err
}

// Close releases the file under it even where the runner fails the operation.
func (f *hookFile) Close() error {
	closed := false
	err := f.do(Close, 0, func() error {
		closed = true
		return f.File.Close()
	})
	if !closed {
		f.File.Close()
	}
	return err
}

func (f *hookFile) Stat() (vfs.FileInfo, error) {
	var fi vfs.FileInfo
	err := f.do(Stat, 0, func() (err error) {
		fi, err = f.File.Stat()
		return err
	})
	return fi, err
}
