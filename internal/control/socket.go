package control

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"google.golang.org/grpc/credentials"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/unixsocket"
)

// SocketName is the control socket's name in SPACE_HOME.
const SocketName = "space.sock"

// SocketPath is where the node that holds the store at home listens.
func SocketPath(home string) string { return filepath.Join(home, SocketName) }

// Listen makes the control socket of the store at home. The caller holds the
// store's lock, so a socket that is there already was left by a process that
// died; the new one replaces it in one step.
func Listen(home string) (net.Listener, error) { return listen(SocketPath(home)) }

func listen(path string) (net.Listener, error) {
	l, err := unixsocket.Listen("unix", path)
	if err != nil {
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
	short, release, err := unixsocket.ShortPath(path)
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
	if err := unixsocket.CheckPeer(conn); err != nil {
		return nil, nil, capsule.Wrap(capsule.Other, err, "control socket")
	}
	return conn, peerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
}
