package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The seam's types are Pebble's own.
type (
	FS       = vfs.FS
	File     = vfs.File
	FileInfo = vfs.FileInfo
	// Category says what a file is written for. It only labels statistics.
	Category = vfs.DiskWriteCategory
	// OpenOption is advice about how a file will be read.
	OpenOption = vfs.OpenOption
)

// Modes of what [OS] creates.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// OS returns the operating system's file system. It creates files with mode
// 0600 and directories with mode 0700, whatever the caller asks for.
func OS() FS { return osFS{vfs.Default} }

type osFS struct{ FS }

// Pebble's Create, OpenReadWrite, ReuseForWrite and Lock make files with mode
// 0666 less the umask. A chmod afterwards would leave a moment in which
// another user can open the file, so each file is made here, with its right
// mode, before Pebble's function opens it.

func (f osFS) Create(name string, c Category) (File, error) {
	for {
		err := makeFile(name)
		if err == nil {
			return f.FS.OpenReadWrite(name, c)
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		// As the interface demands, an old file of that name is removed, not
		// truncated: other links to it keep their content.
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

func (f osFS) OpenReadWrite(name string, c Category, opts ...OpenOption) (File, error) {
	if err := makeFile(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return f.FS.OpenReadWrite(name, c, opts...)
}

func (f osFS) ReuseForWrite(oldname, newname string, c Category) (File, error) {
	if err := f.Rename(oldname, newname); err != nil {
		return nil, err
	}
	return f.OpenReadWrite(newname, c)
}

func (f osFS) MkdirAll(dir string, _ os.FileMode) error { return f.FS.MkdirAll(dir, dirMode) }

// Lock is safe to call for a file this process holds locked already: makeFile
// then finds the file and opens nothing, where opening and closing it would
// drop the lock (they are fcntl locks).
func (f osFS) Lock(name string) (io.Closer, error) {
	if err := makeFile(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return f.FS.Lock(name)
}

// Unwrap returns nil: going around this file system would lose its modes.
func (osFS) Unwrap() FS { return nil }

// makeFile creates an empty file, or fails with fs.ErrExist.
func makeFile(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	return f.Close()
}
