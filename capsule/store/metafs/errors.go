package metafs

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/cockroachdb/pebble/v2"

	"github.com/spacestore/space/capsule"
)

// Uses of a file that Pebble has no need for.
var (
	errWriteOnly  = errors.New("metafs: a file being written cannot be read through the same handle")
	errReadOnly   = errors.New("metafs: the file is open for reading")
	errAppendOnly = errors.New("metafs: files are append-only")
	errOffset     = errors.New("metafs: negative offset")
)

// errBadFrame means that there is no valid frame at some offset of a log.
var errBadFrame = errors.New("metafs: bad frame")

// damaged says that a file's stored bytes are not what was written. Pebble
// recognises it as corruption.
func damaged(name string, off int64, why string) error {
	return &capsule.Error{
		Kind: capsule.Damaged,
		Msg:  fmt.Sprintf("metadata file %s is damaged at byte %d: %s", name, off, why),
		Err:  pebble.ErrCorruption,
	}
}

func wrongKey(name, format string, args ...any) error {
	return capsule.Errorf(capsule.WrongKey, "metadata file %s %s", name, fmt.Sprintf(format, args...))
}

// ioError wraps what the file system below said.
func ioError(err error, doing, name string) error {
	kind := capsule.IO
	switch {
	case isFull(err):
		kind = capsule.NoSpace
	case errors.Is(err, syscall.EROFS):
		kind = capsule.ReadOnly
	}
	return capsule.Wrap(kind, err, "%s metadata file %s", doing, name)
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
