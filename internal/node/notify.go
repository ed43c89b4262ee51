package node

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"
)

// notify tells systemd about our state (sd_notify(3)); without systemd it does
// nothing. A failure is not worth more: systemd times out and says so.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' { // the abstract namespace
		path = "\x00" + path[1:]
	}
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		return
	}
	defer conn.Close()
	conn.Write([]byte(state))
}

// watchdog tells systemd that we live, twice as often as it asked for, until
// ctx ends.
func watchdog(ctx context.Context) {
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || us <= 1 {
		return
	}
	t := time.NewTicker(time.Duration(us) * time.Microsecond / 2)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			notify("WATCHDOG=1")
		}
	}
}
