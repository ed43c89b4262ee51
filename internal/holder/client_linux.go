package holder

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/unixsocket"
)

// ErrNone says that no holder runs.
var ErrNone = errors.New("no holder is running")

// answerWait bounds how long an answer is waited for: a holder does nothing that lasts.
const answerWait = time.Minute

// Mount is a mount as the holder keeps it. List leaves the files out.
type Mount struct {
	ID             string
	About          []byte
	Device, Memory *os.File
}

// Client is a connection to the holder. It is safe for concurrent use.
type Client struct {
	mu   sync.Mutex
	conn *net.UnixConn
}

// Dial connects to the holder of the store at home.
func Dial(ctx context.Context, home string) (*Client, error) {
	short, release, err := unixsocket.ShortPath(SocketPath(home))
	if err != nil {
		return nil, capsule.Wrap(capsule.IO, err, "holder")
	}
	defer release()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", short)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, capsule.Wrap(capsule.IO, err, "holder")
	}
	if err := unixsocket.CheckPeer(conn); err != nil {
		conn.Close()
		return nil, capsule.Wrap(capsule.Other, err, "holder")
	}
	return &Client{conn: conn.(*net.UnixConn)}, nil
}

// ask sends a request and returns the answer, and what follows it. After an
// error of the connection it is of no more use.
func (c *Client) ask(m message, files ...*os.File) ([]Mount, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.Version = protocol
	fail := func(err error) error {
		c.Close()
		return capsule.Wrap(capsule.Unavailable, err, "the holder of mounts is gone")
	}
	if err := c.conn.SetDeadline(time.Now().Add(answerWait)); err != nil {
		return nil, fail(err)
	}
	if err := send(c.conn, m, files...); err != nil {
		return nil, fail(err)
	}
	answer, extra, err := receive(c.conn)
	closeAll(extra)
	if err != nil {
		return nil, fail(err)
	}
	if err := answer.err(); err != nil {
		return nil, err
	}
	mounts := make([]Mount, 0, answer.Mounts)
	for range answer.Mounts {
		one, files, err := receive(c.conn)
		mount := Mount{ID: one.ID, About: one.About}
		if err == nil && m.Op == "hello" {
			if len(files) == maxFiles {
				mount.Device, mount.Memory = files[0], files[1]
			} else {
				err = capsule.Errorf(capsule.Invalid, "a mount without descriptors")
			}
		}
		if err != nil {
			closeAll(files)
			for _, m := range mounts {
				m.Close()
			}
			return nil, fail(err)
		}
		mounts = append(mounts, mount)
	}
	return mounts, nil
}

// Close closes a mount's files.
func (m Mount) Close() {
	for _, f := range []*os.File{m.Device, m.Memory} {
		if f != nil {
			f.Close()
		}
	}
}

// Hello says that this process is the node now, and returns the mounts that
// there are to go on with. When it ends, the holder waits for the next node for
// as long as wait, and starts it if the node is ephemeral.
func (c *Client) Hello(wait time.Duration, ephemeral bool) ([]Mount, error) {
	return c.ask(message{Op: "hello", Wait: wait, Ephemeral: ephemeral})
}

// Hold has the holder keep a mount.
func (c *Client) Hold(id string, about []byte, device, memory *os.File) error {
	_, err := c.ask(message{Op: "hold", ID: id, About: about}, device, memory)
	return err
}

// Release has the holder let go of a mount.
func (c *Client) Release(id string) error {
	_, err := c.ask(message{Op: "release", ID: id})
	return err
}

// List returns the mounts that are held.
func (c *Client) List() ([]Mount, error) { return c.ask(message{Op: "list"}) }

// Close ends the connection. If it said hello, the holder waits for the next node.
func (c *Client) Close() error {
	_ = c.conn.CloseRead() // of duplicates too: Wait has one
	return c.conn.Close()
}

// Wait returns when the connection has ended, at either end: nil, or why that
// can't be known.
func (c *Client) Wait() error {
	// A descriptor of its own: requests have the other one to themselves.
	f, err := c.conn.File()
	if err != nil {
		return capsule.Wrap(capsule.IO, err, "watch the holder of mounts")
	}
	watched, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return capsule.Wrap(capsule.IO, err, "watch the holder of mounts")
	}
	defer watched.Close()
	raw, err := watched.(*net.UnixConn).SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			_, _ = unix.Poll(p, 0) // an interrupted one is made up for by the next event
			return p[0].Revents != 0
		})
	}
	return capsule.Wrap(capsule.IO, err, "watch the holder of mounts")
}
