package transfer

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/spacestore/space/capsule"
)

// FileError gives an error of the user's file system its kind and context. Nil
// stays nil.
func FileError(err error, format string, args ...any) error {
	kind := capsule.IO
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = capsule.NotFound
	case errors.Is(err, fs.ErrExist):
		kind = capsule.Exists
	case errors.Is(err, fs.ErrPermission):
		kind = capsule.Denied
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = capsule.NoSpace
	case errors.Is(err, syscall.EROFS):
		kind = capsule.ReadOnly
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP),
		errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		kind = capsule.Invalid
	}
	return capsule.Wrap(kind, err, format, args...)
}
