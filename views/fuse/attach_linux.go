package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spacestore/space/capsule"

	"golang.org/x/sys/unix"
)

const fuseDevice = "/dev/fuse"

// Available reports whether this process can make FUSE mounts, and if not, why
// and what would help.
func Available() (bool, string) {
	if _, err := os.Stat(fuseDevice); err != nil {
		return false, fuseDevice + " is missing; load the kernel's fuse module, or give the container the device"
	}
	if os.Geteuid() == 0 {
		fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
			return true, ""
		}
		return false, fmt.Sprintf("%s can't be opened (%v); load the kernel's fuse module, or give the container the device", fuseDevice, err)
	}
	if err := unix.Access(fuseDevice, unix.R_OK|unix.W_OK); err != nil {
		return false, fuseDevice + " is not open to this user; `chmod 666 /dev/fuse` as root makes it as most systems have it"
	}
	if _, err := fusermount(); err != nil {
		return false, "fusermount3 is not installed, which mounts for users other than root; install the package fuse3"
	}
	return true, ""
}

func fusermount() (string, error) {
	p, err := exec.LookPath("fusermount3")
	if err != nil {
		p, err = exec.LookPath("fusermount")
	}
	return p, err
}

// attach mounts on target and returns the open /dev/fuse. Root mounts itself;
// others, and root in a container that may not, go through fusermount3.
func attach(target string, maxIO int, readOnly, allowOther bool) (int, error) {
	options := []string{"default_permissions", fmt.Sprintf("max_read=%d", maxIO)}
	if allowOther {
		options = append(options, "allow_other")
	}
	flags, names := uintptr(unix.MS_NOSUID|unix.MS_NODEV), []string{"nosuid", "nodev", "fsname=space", "subtype=space"}
	if readOnly {
		flags, names = flags|unix.MS_RDONLY, append(names, "ro")
	}
	if os.Geteuid() == 0 {
		fd, err := attachDirect(target, flags, options)
		if _, look := fusermount(); err != unix.EPERM || look != nil {
			return fd, mountError(target, err)
		}
	}
	fd, err := attachHelper(target, append(options, names...))
	return fd, mountError(target, err)
}

func mountError(target string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO):
		return capsule.Wrap(capsule.Unavailable, err, "mount on %s (no FUSE here, or no permission for it)", target)
	}
	return capsule.Wrap(capsule.IO, err, "mount on %s", target)
}

func attachDirect(target string, flags uintptr, options []string) (int, error) {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	options = append(options, fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d", fd, unix.S_IFDIR, os.Geteuid(), os.Getegid()))
	if err := unix.Mount("space", target, fsType, flags, strings.Join(options, ",")); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// attachHelper runs fusermount3, which is set-uid root, mounts, and passes the
// open /dev/fuse back over a socket.
func attachHelper(target string, options []string) (int, error) {
	bin, err := fusermount()
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount3")
	defer theirs.Close()
	cmd := exec.Command(bin, "-o", strings.Join(options, ","), "--", target)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	if out, err := cmd.CombinedOutput(); err != nil {
		return -1, helperError(out, err)
	}
	fd, err := receiveFD(pair[0])
	if err != nil {
		return -1, fmt.Errorf("receive %s from %s: %w", fuseDevice, bin, err)
	}
	return fd, nil
}

// helperError is what fusermount3 said, or how it ended where it said nothing.
func helperError(out []byte, err error) error {
	said := string(bytes.TrimSpace(out))
	switch {
	case said == "":
		return err
	case strings.Contains(said, "user_allow_other"):
		return capsule.Errorf(capsule.Denied, "%s; without root, other users can be let in only where that line is", said)
	case strings.Contains(said, "Operation not permitted"):
		return fmt.Errorf("%s: %w", said, unix.EPERM)
	case strings.Contains(said, "no write access"), strings.Contains(said, "not owned"):
		return capsule.Errorf(capsule.Denied, "%s; without root, the target has to be the user's own", said)
	case strings.Contains(said, "usy"): // "Device or resource busy", "target is busy"
		return fmt.Errorf("%s: %w", said, unix.EBUSY)
	}
	return errors.New(said)
}

func receiveFD(socket int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, errors.Join(errors.New("no control message"), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.Join(errors.New("no file descriptor"), err)
	}
	return fds[0], nil
}

// detach unmounts target: at once, or lazily, when its last user is gone.
func detach(target string, lazy bool) error {
	flags, args := unix.UMOUNT_NOFOLLOW, []string{"-u"}
	if lazy {
		flags |= unix.MNT_DETACH
		args = append(args, "-z")
	}
	err := unix.Unmount(target, flags)
	if err != unix.EPERM {
		return err
	}
	bin, err := fusermount()
	if err != nil {
		return unix.EPERM
	}
	if out, err := exec.Command(bin, append(args, "--", target)...).CombinedOutput(); err != nil {
		return helperError(out, err)
	}
	return nil
}
