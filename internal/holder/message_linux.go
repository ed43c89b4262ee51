package holder

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
)

// SocketName is the holder's socket in SPACE_HOME.
const SocketName = "holder.sock"

// SocketPath is where the holder of the store at home listens.
func SocketPath(home string) string { return filepath.Join(home, SocketName) }

const (
	// protocol is the version of what node and holder say to each other. They can
	// be of different versions of this program: what one does not know it ignores.
	protocol = 1

	maxMessage = 64 << 10
	// MaxMounts bounds the mounts that a holder keeps.
	MaxMounts = 1024
)

// message is a request or an answer.
type message struct {
	Op      string `json:"op,omitempty"`
	Version int    `json:"version,omitempty"`

	Wait      time.Duration `json:"wait,omitempty"`      // hello
	Ephemeral bool          `json:"ephemeral,omitempty"` // hello
	ID        string        `json:"id,omitempty"`
	About     []byte        `json:"about,omitempty"`

	Mounts int               `json:"mounts,omitempty"` // so many messages follow
	Kind   capsule.ErrorKind `json:"kind,omitempty"`
	Error  string            `json:"error,omitempty"`
}

func failed(err error) message { return message{Kind: capsule.KindOf(err), Error: err.Error()} }

func (m message) err() error {
	if m.Error == "" {
		return nil
	}
	return &capsule.Error{Kind: m.Kind, Msg: m.Error}
}

func send(conn *net.UnixConn, m message, files ...*os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return capsule.Errorf(capsule.TooLarge, "a message of %d bytes for the holder", len(b))
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(b, rights, nil)
	return err
}

// receive reads one message. The files are the caller's to close, also with an error.
func receive(conn *net.UnixConn) (m message, files []*os.File, err error) {
	b, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := conn.ReadMsgUnix(b, oob)
	files = filesIn(oob[:oobn])
	switch {
	case err != nil:
		return m, files, err
	case n == 0:
		return m, files, net.ErrClosed
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		return m, files, capsule.Errorf(capsule.Invalid, "a message that is too long")
	}
	m, err = parse(b[:n])
	return m, files, err
}

func parse(b []byte) (m message, err error) {
	if err := json.Unmarshal(b, &m); err != nil {
		return m, capsule.Errorf(capsule.Invalid, "a malformed message: %v", err)
	}
	if m.Mounts < 0 || m.Mounts > MaxMounts || m.Wait < 0 {
		return m, capsule.Errorf(capsule.Invalid, "a message with numbers out of bounds")
	}
	return m, nil
}

const maxFiles = 2 // with a message

func filesIn(oob []byte) (files []*os.File) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range all {
		fds, err := unix.ParseUnixRights(&all[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "held"))
		}
	}
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
