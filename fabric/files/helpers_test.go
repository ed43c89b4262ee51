package files

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// utimes sets the time of modification, of a symbolic link itself too.
func utimes(path string, at syscall.Timespec) error {
	ts := []unix.Timespec{unix.Timespec(at), unix.Timespec(at)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
}

func syncfs(f *os.File) error { return unix.Syncfs(int(f.Fd())) }
