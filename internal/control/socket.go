package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"

	"github.com/spacestore/space/capsule"
)

// SocketName is the control socket's name in SPACE_HOME.
const SocketName = "space.sock"

// SocketPath is where the node that holds the store at home listens.
func SocketPath(home string) string { return filepath.Join(home, SocketName) }

// shortPath returns a name for the file base of directory dir that fits into
// a socket address (108 bytes) however long dir's own path is: a path through
// a descriptor of dir. It is good until release is called.
func shortPath(path string) (short string, release func(), err error) {
	if len(path) < 100 {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path)), func() { unix.Close(fd) }, nil
}

// Listen makes the control socket of the store at home. The caller holds the
// store's lock, so a socket that is there already was left by a process that
// died; the new one replaces it in one step.
func Listen(home string) (net.Listener, error) {
	path := SocketPath(home)
	temp := path + ".new"
	short, release, err := shortPath(temp)
	if err != nil {
		return nil, capsule.Wrap(capsule.IO, err, "control socket %s", path)
	}
	defer release()
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, capsule.Wrap(capsule.IO, err, "control socket %s", path)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, capsule.Wrap(capsule.IO, err, "control socket %s", path)
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(temp, 0o600); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		l.Close()
		os.Remove(temp)
		return nil, capsule.Wrap(capsule.IO, err, "control socket %s", path)
	}
	return &listener{UnixListener: l, path: path, slots: make(chan struct{}, maxConnections)}, nil
}

// maxConnections bounds what many clients at once can cost.
const maxConnections = 64

// listener removes the socket when it closes and bounds the connections.
type listener struct {
	*net.UnixListener
	path  string
	slots chan struct{}
	once  sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.UnixListener.Accept()
	if err != nil {
		return nil, err
	}
	l.slots <- struct{}{}
	return &countedConn{Conn: conn, release: func() { <-l.slots }}, nil
}

func (l *listener) Close() error {
	l.once.Do(func() { os.Remove(l.path) })
	return l.UnixListener.Close()
}

// countedConn gives its slot back when it closes.
type countedConn struct {
	net.Conn
	once    sync.Once
	release func()
}

func (c *countedConn) Close() error {
	c.once.Do(c.release)
	return c.Conn.Close()
}

func (c *countedConn) SyscallConn() (syscall.RawConn, error) {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return sc.SyscallConn()
}

// dialSocket connects to the socket at path.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	short, release, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}

// peerCredentials are transport credentials for a Unix socket: nothing is
// encrypted, for nothing leaves the machine, but each end learns from the
// kernel who the other is and hangs up on anyone else's process.
type peerCredentials struct{}

type peerInfo struct{ credentials.CommonAuthInfo }

func (peerInfo) AuthType() string { return "peercred" }

func (peerCredentials) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return checkPeer(conn)
}

func (peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return checkPeer(conn)
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

func (p peerCredentials) Clone() credentials.TransportCredentials { return p }
func (peerCredentials) OverrideServerName(string) error           { return nil }

func checkPeer(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, nil, capsule.Errorf(capsule.Denied, "the control API is served on a Unix socket alone")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, nil, err
	}
	if cerr != nil {
		return nil, nil, os.NewSyscallError("getsockopt SO_PEERCRED", cerr)
	}
	if !peerAllowed(os.Geteuid(), int(cred.Uid)) {
		return nil, nil, capsule.Errorf(capsule.Denied, "the process at the other end of the control socket belongs to user %d, this one to user %d", cred.Uid, os.Geteuid())
	}
	return conn, peerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
}

// peerAllowed lets a user's own processes and root's talk to each other.
func peerAllowed(us, them int) bool { return us == them || us == 0 || them == 0 }
