package fuse

import (
	"syscall"

	"github.com/spacestore/space/capsule"
)

// errnos is what each kind of error is to a process that uses a mount.
var errnos = map[capsule.ErrorKind]syscall.Errno{
	capsule.Other:       syscall.EIO,
	capsule.Invalid:     syscall.EINVAL,
	capsule.NotFound:    syscall.ENOENT,
	capsule.Exists:      syscall.EEXIST,
	capsule.Conflict:    syscall.EBUSY,
	capsule.Damaged:     syscall.EIO,
	capsule.NoSpace:     syscall.ENOSPC,
	capsule.ReadOnly:    syscall.EROFS,
	capsule.WrongKey:    syscall.EACCES,
	capsule.Locked:      syscall.EBUSY,
	capsule.Unavailable: syscall.EIO,
	capsule.Denied:      syscall.EACCES,
	capsule.Canceled:    syscall.EINTR,
	capsule.IO:          syscall.EIO,
}

func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if e, ok := errnos[capsule.KindOf(err)]; ok {
		return e
	}
	return syscall.EIO
}
