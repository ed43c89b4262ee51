package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/holder"
)

// Target says which store a command means and how to get at it.
type Target struct {
	Home    string // absolute
	Keys    keyring.Source
	Config  Config
	Log     *slog.Logger
	Version string
	// Waiting, when set, is told once that another process holds the store
	// and is being waited for.
	Waiting func(msg string)
}

// Conn is the API of a store and the end of using it.
type Conn interface {
	control.API
	Close() error
}

// Connect returns the API of the node that holds the store, or else opens the
// store itself.
func Connect(ctx context.Context, t Target) (Conn, error) {
	return t.retry(ctx, func() (Conn, error) {
		c, err := t.dial(ctx)
		if !errors.Is(err, control.ErrNoNode) {
			return c, err
		}
		return t.openLocal(ctx)
	})
}

// dial is control.Dial as a Conn, nil on error.
func (t Target) dial(ctx context.Context) (Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, max(t.Config.LockTimeout, time.Second), capsule.Errorf(capsule.Unavailable,
		"the node at %s does not answer; `spacectl serve` may be stopped or overloaded", control.SocketPath(t.Home)))
	defer cancel()
	c, err := control.Dial(ctx, t.Home)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// reach is dial for those that need a node or nothing: one that is on its way
// out is waited for.
func (t Target) reach(ctx context.Context) (Conn, error) {
	return t.retry(ctx, func() (Conn, error) { return t.dial(ctx) })
}

func (t Target) openLocal(ctx context.Context) (Conn, error) {
	s, err := t.openStore(ctx, false)
	if err != nil {
		return nil, err
	}
	l := newLocal(s, t.Version)
	if _, err := os.Lstat(holder.SocketPath(t.Home)); err == nil {
		l.trees.HoldOrphans() // a mount that waits for the next node may have them open
	}
	return l, nil
}

// openStore opens the store, for a command or for a node, which serves. What a
// node has acknowledged to clients that outlive it (a mount, an NVMe host)
// outlives it too, however it ends: they do not say it again.
func (t Target) openStore(ctx context.Context, serves bool) (*store.Store, error) {
	if err := t.checkOwner(); err != nil {
		return nil, err
	}
	return store.Open(ctx, store.Options{Dir: t.Home, Keys: t.Keys, Logger: t.Log, CacheBytes: t.Config.CacheSize,
		Background: serves && t.Config.Background, Push: serves})
}

// checkOwner keeps root out of another user's store, who could not open it any
// more with the files that root makes there. Through that user's node root may.
func (t Target) checkOwner() error {
	var st unix.Stat_t
	if os.Geteuid() != 0 || unix.Stat(filepath.Join(t.Home, store.FormatName), &st) != nil || st.Uid == 0 {
		return nil // what is wrong with it the store finds out
	}
	name := fmt.Sprintf("'#%d'", st.Uid)
	if u, err := user.LookupId(fmt.Sprint(st.Uid)); err == nil {
		name = u.Username
	}
	return capsule.Errorf(capsule.Denied,
		"the store at %s belongs to %s, who could not open what root writes there: use `sudo -u %s spacectl …`, or chown the store to root", t.Home, name, name)
}

// retryInterval is short beside what people notice and long beside a try.
const retryInterval = 25 * time.Millisecond

// retry calls try until it succeeds, fails for good, or has found the store
// taken (or its node on the way out) for the lock timeout.
func (t Target) retry(ctx context.Context, try func() (Conn, error)) (Conn, error) {
	start := time.Now()
	told := false
	for {
		c, err := try()
		if err == nil {
			return c, nil
		}
		kind := capsule.KindOf(err)
		if kind != capsule.Locked && kind != capsule.Unavailable {
			return nil, err
		}
		waited := time.Since(start)
		if waited >= t.Config.LockTimeout {
			if kind == capsule.Locked {
				err = capsule.Errorf(capsule.Locked, "the store at %s is in use by %s; waited %s for it: try again, or wait longer with --lock-timeout",
					t.Home, lockHolder(filepath.Join(t.Home, lockName)), waited.Round(time.Millisecond))
			}
			return nil, err
		}
		if !told && waited > time.Second && t.Waiting != nil {
			told = true
			t.Waiting(fmt.Sprintf("waiting for %s to leave the store at %s", lockHolder(filepath.Join(t.Home, lockName)), t.Home))
		}
		select {
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// lockName is the store's lock file in SPACE_HOME.
const lockName = "lock"

// lockHolder says which process holds the lock on the file at path, as far as
// the kernel tells (/proc/locks).
func lockHolder(path string) string {
	const unknown = "another process"
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return unknown
	}
	table, err := os.ReadFile("/proc/locks")
	if err != nil {
		return unknown
	}
	return holderIn(string(table), unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino, unknown)
}

// holderIn finds a file in the text of /proc/locks, whose lines are like
// "1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF".
func holderIn(table string, major, minor uint32, inode uint64, unknown string) string {
	file := fmt.Sprintf("%02x:%02x:%d", major, minor, inode)
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) >= 6 && f[5] == file {
			if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
				return "process " + f[4]
			}
		}
	}
	return unknown
}
