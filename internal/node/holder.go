package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/holder"
	"github.com/spacestore/space/views"
	"github.com/spacestore/space/views/fuse"
)

// HolderLogName is the holder's log file in SPACE_HOME.
const HolderLogName = "holder.log"

// readyFD is where a holder tells its starter that it listens.
const readyFD = 3

const (
	// holderLimit is how often in a row a holder is replaced that ends at once.
	holderLimit = 10
	// holderStable is how long a holder has to live for its end not to be "at once".
	holderStable = 2 * time.Second
)

// mountHolder is the node's end of the holder, which it starts when it is needed.
// It keeps the FUSE view's mounts. Should the holder end, however that comes, the
// next one gets them from here.
type mountHolder struct {
	o Options

	mu      sync.Mutex
	client  *holder.Client // nil: none
	kept    map[string]holder.Mount
	since   time.Time // when the holder came
	ends    int       // of holders that ended at once, in a row
	leaving bool      // the next node may have the holder already
}

var _ fuse.Holder = (*mountHolder)(nil)

func newMountHolder(o Options) *mountHolder {
	return &mountHolder{o: o, kept: map[string]holder.Mount{}}
}

// Hold implements fuse.Holder.
func (h *mountHolder) Hold(id string, about []byte, device, memory *os.File) error {
	m, err := duplicate(holder.Mount{ID: id, About: about, Device: device, Memory: memory})
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for try := 0; ; try++ {
		err := h.connect()
		if err == nil {
			err = h.client.Hold(id, about, m.Device, m.Memory)
		}
		if err == nil {
			h.kept[id] = m
			return nil
		}
		if capsule.KindOf(err) != capsule.Unavailable || try > 0 {
			m.Close()
			return err
		}
		h.disconnect()
	}
}

// Release implements fuse.Holder.
func (h *mountHolder) Release(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m, ok := h.kept[id]; ok {
		m.Close()
		delete(h.kept, id)
	}
	if h.client != nil && h.client.Release(id) != nil {
		h.disconnect()
	}
}

// adopt goes on with a holder that was there, and what it keeps.
func (h *mountHolder) adopt(c *holder.Client, held []holder.Mount) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range held {
		if own, err := duplicate(m); err == nil {
			h.kept[m.ID] = own
		} else {
			h.o.Log.Warn("a mount will end with this node if the holder of mounts does", "id", m.ID, "err", err)
		}
	}
	h.use(c)
}

// leave leaves the holder to the next node.
func (h *mountHolder) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaving = true
}

// end lets go of the holder when the node has ended.
func (h *mountHolder) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaving = true
	if h.client != nil {
		h.disconnect()
	}
	for id, m := range h.kept {
		m.Close()
		delete(h.kept, id)
	}
}

func duplicate(m holder.Mount) (holder.Mount, error) {
	own := holder.Mount{ID: m.ID, About: m.About}
	for _, f := range []struct {
		from *os.File
		to   **os.File
	}{{m.Device, &own.Device}, {m.Memory, &own.Memory}} {
		fd, err := unix.FcntlInt(f.from.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			own.Close()
			return own, capsule.Wrap(capsule.IO, err, "duplicate a descriptor of mount %s", m.ID)
		}
		*f.to = os.NewFile(uintptr(fd), f.from.Name())
	}
	return own, nil
}

// use makes c the holder's connection, and watches over it. h.mu is held.
func (h *mountHolder) use(c *holder.Client) {
	h.client, h.since = c, time.Now()
	go func() {
		if err := c.Wait(); err != nil {
			h.o.Log.Warn("if the holder of mounts ends, that will not be noticed", "err", err)
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.client == c {
			h.replace()
		}
	}()
}

// replace starts another holder in place of one that has ended. h.mu is held.
func (h *mountHolder) replace() {
	h.disconnect()
	if len(h.kept) == 0 || h.leaving {
		return // the next mount starts one, or the next node has it
	}
	if h.ends++; time.Since(h.since) >= holderStable {
		h.ends = 0
	}
	if h.ends > holderLimit {
		h.o.Log.Error("no holder of mounts stays; they will end with this node", "mounts", len(h.kept))
		return
	}
	h.o.Log.Warn("the holder of mounts is gone; another takes its place", "mounts", len(h.kept))
	if err := h.connect(); err != nil {
		h.o.Log.Error("mounts will end with this node", "mounts", len(h.kept), "err", err)
	}
}

func (h *mountHolder) disconnect() {
	h.client.Close()
	h.client = nil
}

// connect has a holder with all that is kept, unless there is one. h.mu is held.
func (h *mountHolder) connect() error {
	if h.client != nil {
		return nil
	}
	fail := func(err error) error {
		return capsule.Wrap(capsule.Unavailable, err, "start a holder of mounts for %s", h.o.Home)
	}
	// If it was the connection alone that ended, it is there still.
	c, held, err := h.hello()
	if errors.Is(err, holder.ErrNone) {
		if err = h.start(); err == nil {
			c, held, err = h.hello()
		}
	}
	if err != nil {
		return fail(err)
	}
	for id, m := range h.kept {
		if held[id] {
			continue
		}
		if err := c.Hold(id, m.About, m.Device, m.Memory); err != nil {
			c.Close()
			return fail(err)
		}
	}
	h.use(c)
	return nil
}

// hello tells the holder that the node is here, and returns what it keeps.
func (h *mountHolder) hello() (*holder.Client, map[string]bool, error) {
	c, err := holder.Dial(context.Background(), h.o.Home)
	if err != nil {
		return nil, nil, err
	}
	mounts, err := c.Hello(h.o.Config.MountWait, h.o.Ephemeral)
	if err != nil {
		c.Close()
		if capsule.KindOf(err) == capsule.Unavailable {
			err = holder.ErrNone // it ends just now
		}
		return nil, nil, err
	}
	held := map[string]bool{}
	for _, m := range mounts {
		held[m.ID] = true
		m.Close()
	}
	return c, held, nil
}

// start starts a holder and returns when it listens.
func (h *mountHolder) start() error {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	defer theirs.Close()
	self, err := ownProgram()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "hold", "--home", h.o.Home, "--lock-timeout", h.o.Config.LockTimeout.String())
	cmd.Dir = "/" // so as to keep no file system busy
	for _, kv := range backgroundEnv(os.Environ()) {
		// It is no service of systemd's.
		if name, _, _ := strings.Cut(kv, "="); name != "NOTIFY_SOCKET" && name != "WATCHDOG_USEC" && name != "WATCHDOG_PID" {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait() // no zombie while we live
	theirs.Close()
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		return errors.New("it died as it started; " + filepath.Join(h.o.Home, HolderLogName) + " may say why")
	}
	return nil
}

// HolderOptions are for RunHolder.
type HolderOptions struct {
	Target
	LogFormat string
	Log       func(w io.Writer, format string, level slog.Level) *slog.Logger
}

// RunHolder is the process that keeps mounts while there is no node.
func RunHolder(ctx context.Context, o HolderOptions) error {
	syscall.CloseOnExec(readyFD)
	ready := os.NewFile(readyFD, "ready")
	if st, err := ready.Stat(); err != nil || st.Mode()&os.ModeNamedPipe == 0 {
		return capsule.Errorf(capsule.Invalid, "hold is how a node starts the process that keeps its mounts; it is of no use by hand")
	}
	w, err := openLogFile(filepath.Join(o.Home, HolderLogName))
	if err != nil {
		return err
	}
	o.Target.Log = o.Log(w, o.LogFormat, max(o.Config.LogLevel, slog.LevelInfo))
	o.Keys.Prompt = nil // there is nobody to ask
	return holder.Run(ctx, holder.Options{
		Home:    o.Home,
		Log:     o.Target.Log,
		Restart: o.spawn,
		Ready: func() {
			ready.Write([]byte{1}) // a starter that has gone needs no answer
			ready.Close()
		},
	})
}

// takeOver goes on with the mounts that an earlier node left.
func (n *node) takeOver(ctx context.Context) {
	c, err := holder.Dial(ctx, n.opts.Home)
	if errors.Is(err, holder.ErrNone) {
		return
	}
	var held []holder.Mount
	if err == nil {
		held, err = c.Hello(n.opts.Config.MountWait, n.ephemeral)
		if capsule.KindOf(err) == capsule.Unavailable { // it ended just now, with what it had
			return
		}
	}
	if err != nil {
		n.log.Error("the mounts of the node before can't be taken over", "err", err)
		return
	}
	if n.holder == nil {
		n.holder = newMountHolder(n.opts)
	}
	n.holder.adopt(c, held)
	n.trees.HoldOrphans()
	ctx = context.WithoutCancel(ctx) // a node that is told to end meanwhile leaves them to the next one
	recalled := map[string]*fuse.Recalled{}
	for _, m := range held {
		r, err := fuse.Recall(ctx, fuseStore{n.store, n.trees}, fuse.Held(m), fuse.Options{Logger: n.log, Holder: n.holder})
		if err != nil {
			n.log.Error("a mount of the node before can't go on; it ends", "id", m.ID, "err", err)
			n.holder.Release(m.ID)
			continue
		}
		recalled[m.ID] = r
	}
	n.trees.Reclaim()
	for id, r := range recalled {
		if _, err := n.project(r.Resume, "projection goes on"); err != nil {
			n.log.Error("a mount of the node before can't go on; it ends", "id", id, "err", err)
			n.holder.Release(id)
		}
	}
}

// leaver is a projection that can be left to the next node.
type leaver interface {
	// Leave returns when that can go on with it, or false where it can't.
	Leave(give <-chan struct{}) bool
}

// handOver leaves the mounts to the next node, where that is possible.
func (n *node) handOver(ctx context.Context) {
	if n.holder != nil {
		n.holder.leave()
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	n.left = map[string]bool{}
	for _, info := range n.projections.List() {
		p, err := n.projections.Find(info.ID)
		if err != nil {
			continue // ended meanwhile
		}
		l, ok := p.Backend.(leaver)
		if !ok {
			continue
		}
		wg.Go(func() {
			if l.Leave(ctx.Done()) {
				n.log.Info("projection is left to the next node", "id", p.ID, "target", p.Target)
				mu.Lock()
				n.left[p.ID] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// waiting lists the mounts that wait for a node.
func (t Target) waiting(ctx context.Context) ([]views.Info, error) {
	c, err := holder.Dial(ctx, t.Home)
	if errors.Is(err, holder.ErrNone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	mounts, err := c.List()
	if capsule.KindOf(err) == capsule.Unavailable { // it ended just now, with what it had
		return nil, nil
	}
	var all []views.Info
	for _, m := range mounts {
		info, err := fuse.HeldInfo(m.About)
		if err != nil {
			info.ID = m.ID
		}
		info.Note = "waits for a node: start one with `spacectl serve`"
		all = append(all, info)
	}
	return all, err
}

// giveUp ends a mount that waits for a node, named by ID or target.
func (t Target) giveUp(ctx context.Context, ref, target string) (info views.Info, ok bool, err error) {
	all, err := t.waiting(ctx)
	if err != nil {
		return info, false, err
	}
	resolved := target
	if dir, err := filepath.EvalSymlinks(filepath.Dir(target)); err == nil {
		resolved = filepath.Join(dir, filepath.Base(target))
	}
	for _, info := range all {
		if info.ID != ref && info.Target != target && info.Target != resolved {
			continue
		}
		c, err := holder.Dial(ctx, t.Home)
		if err != nil {
			return info, true, err
		}
		defer c.Close()
		if err := c.Release(info.ID); err != nil {
			return info, true, err
		}
		info.Note = "its node had ended"
		return info, true, clearDead(info.Target)
	}
	return info, false, nil
}
