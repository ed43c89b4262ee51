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

	capsule.NotDir:       syscall.ENOTDIR,
	capsule.IsDir:        syscall.EISDIR,
	capsule.NotEmpty:     syscall.ENOTEMPTY,
	capsule.NameTooLong:  syscall.ENAMETOOLONG,
	capsule.NotPermitted: syscall.EPERM,
	capsule.TooManyLinks: syscall.EMLINK,
	capsule.TooLarge:     syscall.EFBIG,
	capsule.Quota:        syscall.EDQUOT,
	capsule.NoAttribute:  syscall.ENODATA,
	capsule.OutOfRange:   syscall.ERANGE,
	capsule.Unsupported:  syscall.EOPNOTSUPP,
	capsule.Stale:        syscall.ESTALE,
	capsule.WouldBlock:   syscall.EAGAIN,
	capsule.CrossDevice:  syscall.EXDEV,
	capsule.Busy:         syscall.EBUSY,
	capsule.NoDevice:     syscall.ENXIO,
	capsule.Deadlock:     syscall.EDEADLK,
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
