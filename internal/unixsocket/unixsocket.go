// Package unixsocket is what the sockets in SPACE_HOME have in common: paths of
// any length, replacement of what a dead process left, and a check of who is at
// the other end.
package unixsocket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
)

// ShortPath returns a name for a socket that fits into an address (108 bytes)
// however long path is: through a descriptor of its directory. It is good until
// release is called.
func ShortPath(path string) (short string, release func(), err error) {
	if len(path) < 100 {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path)), func() { unix.Close(fd) }, nil
}

// Listen makes a socket, of network "unix" or "unixpacket", for the user alone.
// One that is there already is replaced in one step. Closing the listener leaves
// the socket's name.
func Listen(network, path string) (*net.UnixListener, error) {
	temp := path + ".new"
	short, release, err := ShortPath(temp)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: short, Net: network})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(temp, 0o600); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		l.Close()
		os.Remove(temp)
		return nil, err
	}
	return l, nil
}

// CheckPeer fails unless the process at the other end of conn is the user's own, or root's.
func CheckPeer(conn net.Conn) error {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return capsule.Errorf(capsule.Denied, "the connection is no Unix socket")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return os.NewSyscallError("getsockopt SO_PEERCRED", cerr)
	}
	if !Allowed(os.Geteuid(), int(cred.Uid)) {
		return capsule.Errorf(capsule.Denied, "the process at the other end of the socket belongs to user %d, this one to user %d", cred.Uid, os.Geteuid())
	}
	return nil
}

// Allowed lets a user's own processes and root's talk to each other.
func Allowed(us, them int) bool { return us == them || us == 0 || them == 0 }
