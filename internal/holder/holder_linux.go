package holder

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/unixsocket"
)

const (
	// firstGrace is how long a holder waits for the node that started it.
	firstGrace = time.Minute
	// restartLimit is how often in a row a node is started that ends at once.
	restartLimit = 10
	// restartPause is how long the second start is put off; each later one twice
	// as long as the one before.
	restartPause = 100 * time.Millisecond
	// stable is how long a node has to live for its end not to be "at once".
	stable = 2 * time.Second
	// maxConnections bounds what clients can cost.
	maxConnections = 16
)

// Options are for Run.
type Options struct {
	Home string
	Log  *slog.Logger
	// Restart starts an ephemeral node and returns when it serves, or why not.
	Restart func(ctx context.Context) error
	// Ready is told when the socket is there.
	Ready func()
}

// holder is the state of the process.
type holder struct {
	o     Options
	ctx   context.Context
	end   func()
	slots chan struct{}

	mu       sync.Mutex
	mounts   map[string]Mount
	node     *net.UnixConn // nil: there is none
	hello    message       // the last node's
	since    time.Time     // when it came
	restarts int           // of nodes that ended at once, in a row
	starting bool          // restart is at it
	expire   *time.Timer   // gives the mounts up
}

// Run keeps mounts until there are none and no node, or ctx ends.
func Run(ctx context.Context, o Options) error {
	l, err := unixsocket.Listen("unixpacket", SocketPath(o.Home))
	if err != nil {
		return capsule.Wrap(capsule.IO, err, "holder socket %s", SocketPath(o.Home))
	}
	name, err := os.Lstat(SocketPath(o.Home))
	if err != nil {
		l.Close()
		return capsule.Wrap(capsule.IO, err, "holder socket")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &holder{o: o, ctx: ctx, slots: make(chan struct{}, maxConnections), mounts: map[string]Mount{}}
	h.end = sync.OnceFunc(func() {
		// First the name, unless it is another holder's by now: whoever finds it
		// gone starts the next one.
		if now, err := os.Lstat(SocketPath(o.Home)); err == nil && os.SameFile(name, now) {
			os.Remove(SocketPath(o.Home))
		}
		l.Close()
		cancel()
	})
	stop := context.AfterFunc(ctx, h.end)
	defer stop()
	h.expire = time.AfterFunc(firstGrace, h.giveUp)
	if o.Ready != nil {
		o.Ready()
	}
	var serving sync.WaitGroup
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			break // it was closed
		}
		select {
		case h.slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		serving.Go(func() {
			defer func() { <-h.slots }()
			h.serve(conn)
		})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire.Stop()
	for id := range h.mounts {
		h.drop(id)
	}
	return nil
}

// serve answers the requests of one connection.
func (h *holder) serve(conn *net.UnixConn) {
	defer h.lost(conn)
	defer conn.Close()
	if err := unixsocket.CheckPeer(conn); err != nil {
		h.o.Log.Warn("connection refused", "err", err)
		return
	}
	stop := context.AfterFunc(h.ctx, func() { conn.Close() })
	defer stop()
	for {
		m, files, err := receive(conn)
		if err == nil {
			err = h.answer(conn, m, files)
		} else if closeAll(files); capsule.KindOf(err) == capsule.Invalid {
			err = send(conn, failed(err))
		}
		if err != nil {
			return
		}
	}
}

// answer answers a request. It takes the files over.
func (h *holder) answer(conn *net.UnixConn, m message, files []*os.File) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.Op == "hold" {
		if err := h.hold(m, files); err != nil {
			closeAll(files)
			return send(conn, failed(err))
		}
		return send(conn, message{Version: protocol})
	}
	closeAll(files)
	switch m.Op {
	case "hello":
		if h.node != nil && h.node != conn {
			h.node.Close()
		}
		h.node, h.hello, h.since = conn, m, time.Now()
		h.expire.Stop()
		return h.list(conn, true)
	case "release":
		h.drop(m.ID)
		err := send(conn, message{Version: protocol})
		h.endIfIdle()
		return err
	case "list":
		return h.list(conn, false)
	}
	return send(conn, failed(capsule.Errorf(capsule.Unsupported, "the holder does not know the request %.32q", m.Op)))
}

func (h *holder) hold(m message, files []*os.File) error {
	if len(files) != maxFiles || m.ID == "" || len(m.ID) > 64 {
		return capsule.Errorf(capsule.Invalid, "a mount to hold has an ID and two descriptors")
	}
	mount := Mount{ID: m.ID, About: m.About, Device: files[0], Memory: files[1]}
	have, ok := h.mounts[m.ID]
	switch {
	case ok && have.same(mount): // it comes again: the answer was lost
		closeAll(files)
		return nil
	case ok:
		return capsule.Errorf(capsule.Exists, "mount %s is held already", m.ID)
	case len(h.mounts) >= MaxMounts:
		return capsule.Errorf(capsule.Busy, "%d mounts are held, the limit", MaxMounts)
	}
	h.mounts[m.ID] = mount
	return nil
}

// same reports whether o is m, held once more. All devices are the same file, but
// each mount has its own memory.
func (m Mount) same(o Mount) bool {
	sameFile := func(a, b *os.File) bool {
		x, err := a.Stat()
		if err != nil {
			return false
		}
		y, err := b.Stat()
		return err == nil && os.SameFile(x, y)
	}
	return bytes.Equal(m.About, o.About) && sameFile(m.Memory, o.Memory) && sameFile(m.Device, o.Device)
}

func (h *holder) drop(id string) {
	if m, ok := h.mounts[id]; ok {
		m.Close()
		delete(h.mounts, id)
	}
}

func (h *holder) list(conn *net.UnixConn, withFiles bool) error {
	all := make([]Mount, 0, len(h.mounts))
	for _, m := range h.mounts {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Mount) int { return cmp.Compare(a.ID, b.ID) })
	if err := send(conn, message{Version: protocol, Mounts: len(all)}); err != nil {
		return err
	}
	for _, m := range all {
		var files []*os.File
		if withFiles {
			files = []*os.File{m.Device, m.Memory}
		}
		// A client that does not read must not stop the holder.
		if err := conn.SetWriteDeadline(time.Now().Add(answerWait)); err != nil {
			return err
		}
		if err := send(conn, message{ID: m.ID, About: m.About}, files...); err != nil {
			return err
		}
	}
	return nil
}

// lost takes note that a connection has ended.
func (h *holder) lost(conn *net.UnixConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.node != conn {
		return
	}
	h.node = nil
	if h.endIfIdle() || h.ctx.Err() != nil {
		return
	}
	h.o.Log.Info("the node has ended; its mounts wait for the next one", "mounts", len(h.mounts), "wait", h.hello.Wait.String())
	h.expire.Reset(h.hello.Wait)
	if h.hello.Ephemeral {
		if time.Since(h.since) >= stable {
			h.restarts = 0
		}
		if !h.starting {
			h.starting = true
			go h.restart()
		}
	}
}

// endIfIdle ends a holder without mounts and node. h.mu is held.
func (h *holder) endIfIdle() bool {
	if h.node != nil || len(h.mounts) > 0 {
		return false
	}
	h.end()
	return true
}

// restart starts nodes until one is here.
func (h *holder) restart() {
	for {
		h.mu.Lock()
		n := h.restarts
		done := h.node != nil || len(h.mounts) == 0 || h.ctx.Err() != nil
		if n >= restartLimit && !done {
			h.o.Log.Error("no node stays; the mounts wait for one that somebody starts")
			done = true
		}
		if h.starting = !done; h.starting {
			h.restarts++
		}
		h.mu.Unlock()
		if done {
			return
		}
		if n > 0 {
			select {
			case <-time.After(restartPause << (n - 1)):
			case <-h.ctx.Done():
				return
			}
		}
		if err := h.o.Restart(h.ctx); err != nil && !errors.Is(err, context.Canceled) {
			h.o.Log.Error("the next node does not start", "err", err)
		}
	}
}

// giveUp closes all mounts: their users get errors.
func (h *holder) giveUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.node != nil {
		return // it came just now
	}
	if len(h.mounts) > 0 {
		h.o.Log.Error("no node has come; giving the mounts up", "mounts", len(h.mounts))
	}
	for id := range h.mounts {
		h.drop(id)
	}
	h.end()
}
