package keyring

import (
	"errors"
	"io"
	iofs "io/fs"
	"syscall"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs"
)

// readFile reads a file of at most limit bytes and returns its permission
// bits, or 0 on a file system that has none.
func readFile(fs vfs.FS, path string, limit int64) ([]byte, iofs.FileMode, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	mode := info.Mode().Perm()
	if info.Sys() == nil { // in memory
		mode = 0
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, 0, err
	}
	if int64(len(data)) > limit {
		return nil, 0, capsule.Errorf(capsule.Damaged, "longer than the %d bytes it may have", limit)
	}
	return data, mode, nil
}

// ioKind sorts the file system's errors.
func ioKind(err error) capsule.ErrorKind {
	switch {
	case errors.Is(err, iofs.ErrNotExist):
		return capsule.NotFound
	case errors.Is(err, iofs.ErrPermission):
		return capsule.Denied
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return capsule.NoSpace
	case errors.Is(err, syscall.EROFS):
		return capsule.ReadOnly
	}
	return capsule.IO
}
