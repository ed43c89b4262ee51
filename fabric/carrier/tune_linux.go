package carrier

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// unsent is how much of what was written a socket may hold back: an interactive
// frame can't overtake what is there. Bytes.
const unsent = 64 << 10

// tune prepares a TCP socket for links.
func tune(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	}); cerr != nil {
		return cerr
	}
	return err
}
