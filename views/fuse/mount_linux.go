package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/ledger"
	"github.com/spacestore/space/views"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	fsType = "fuse.space"

	// maxRead is the largest READ request. Measured, larger ones gain little:
	// several requests are under way anyway, and each has buffers of this size.
	maxRead = 256 << 10

	// maxBackground is how many readahead requests the kernel may have under
	// way; with the size of one it bounds the memory they take.
	maxBackground = 32

	// readAheadKB replaces the kernel's default of 128 KiB, where we may set it.
	readAheadKB = 2048

	// unmountWait bounds how long Close waits for the end of a mount of which no
	// copy is in sight. It lives on where another mount namespace has one.
	unmountWait = 5 * time.Second
)

// system is a file system that a mount serves: objects, a tree or a volume.
type system interface {
	gofuse.RawFileSystem
	// options are what it wants of the kernel, beside what every mount has.
	options() gofuse.MountOptions
	readOnly() bool
	inflight() *inflight
	// watch tells the kernel of changes, from a goroutine of its own, until
	// stop has returned.
	watch(k kernel) (stop func())
	// remember has it keep in a ledger what the process after this one needs,
	// and recall takes up what the process before has kept, and goes on so.
	remember(*ledger.Ledger) error
	recall(context.Context, *ledger.Ledger) error
	// replied returns what is to be told of each answer, if it remembers; or nil.
	replied() func(unique uint64)
	// close lets go of what it holds, after the last request.
	close()
}

// Mount projects a capsule, or the namespace, at o.Target and returns when the
// mount is ready. An error of kind [capsule.Unavailable] says that there is no
// FUSE here, where [Copy] still works.
func Mount(ctx context.Context, store Store, o Options) (*views.Projection, error) {
	if ok, why := Available(); !ok {
		return nil, capsule.Errorf(capsule.Unavailable, "there is no FUSE here: %s", why)
	}
	info, err := admit(ctx, store, &o)
	if err != nil {
		return nil, err
	}
	target, err := freeTarget(o.Target)
	if err != nil {
		return nil, err
	}
	f, err := newSystem(ctx, store, info.Kind, o)
	if err != nil {
		return nil, err
	}
	fd, err := attach(target, f.options().MaxWrite, f.readOnly(), o.AllowOther)
	if err != nil {
		f.close()
		return nil, err
	}
	m := &mount{about: about{
		Version: aboutVersion,
		Options: o,
		Info: views.Info{
			ID:      views.NewID(),
			View:    views.FUSE,
			Target:  target,
			Capsule: o.Capsule,
			Name:    info.Name,
			Mode:    views.ModeFUSE,
			Since:   time.Now(),
		},
	}, done: make(chan struct{}), begun: make(chan struct{})}
	if err := m.start(f, fd, o); err != nil {
		detach(target, true)
		return nil, err
	}
	return &views.Projection{Info: m.about.Info, Backend: m}, nil
}

func newSystem(ctx context.Context, store Store, kind capsule.Kind, o Options) (system, error) {
	switch kind {
	case capsule.Tree:
		return newTreeSystem(ctx, store, o)
	case capsule.Volume:
		return newVolumeSystem(ctx, store, o)
	case capsule.Object:
		if !o.ReadOnly {
			return newObjectSystem(store, o.Capsule, o.Scratch, o.Logger), nil
		}
	}
	return newFileSystem(store, o.Capsule, o.Logger), nil
}

// mount is a running kernel mount.
type mount struct {
	about  about
	done   chan struct{}
	begun  chan struct{} // closed when it is ready, or has failed
	device *device
	kernel *inflight // tells whether the kernel has it still
	holder Holder    // nil: the mount ends with this process
	ledger *ledger.Ledger
}

// start begins a mount, and returns when it is ready. It takes over f and fd,
// also when it fails.
func (m *mount) start(f system, fd int, o Options) error {
	defer close(m.begun)
	m.device = newDevice(f, fd, mountOptions(f, o.Logger), o.Logger)
	err := f.inflight().open(fd)
	if err != nil {
		f.close()
		m.device.close()
		return capsule.Wrap(capsule.IO, err, "duplicate the descriptor of the mount at %s", m.about.Info.Target)
	}
	if err = m.device.begin(); err != nil {
		f.inflight().close()
		f.close()
		m.device.close()
		return capsule.Wrap(capsule.IO, err, "speak FUSE with the kernel for %s", m.about.Info.Target)
	}
	if _, drafts := f.(*objectSystem); o.Holder != nil && !drafts && m.device.canResend() { // drafts can't be handed over
		if err := m.prepare(f); err != nil {
			o.Logger.Warn("the mount will end with this node", "target", m.about.Info.Target, "err", err)
		}
	}
	m.run(f)

	if err := pollOnce(m.about.Info.Target); err != nil {
		return capsule.Wrap(capsule.IO, err, "make the first request to the mount at %s", m.about.Info.Target)
	}
	var st unix.Stat_t
	if err := unix.Stat(m.about.Info.Target, &st); err != nil {
		return capsule.Wrap(capsule.IO, err, "stat the mount at %s", m.about.Info.Target)
	}
	m.about.Dev = fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	// INIT caps readahead at 128 KiB. Raising it takes root; without, our own
	// prefetching has to do.
	_ = os.WriteFile("/sys/class/bdi/"+m.about.Dev+"/read_ahead_kb", fmt.Append(nil, readAheadKB), 0)
	if m.ledger != nil {
		m.hold(o)
	}
	return nil
}

func mountOptions(f system, log *slog.Logger) *gofuse.MountOptions {
	o := f.options()
	o.MaxBackground = maxBackground
	o.MaxReadAhead = readAheadKB << 10
	o.Logger = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	o.PanicHandler = func(p any) gofuse.Status { // one bad request must not take all mounts down
		log.Error("panic in a FUSE request", "panic", p, "stack", string(debug.Stack()))
		return gofuse.EIO
	}
	return &o
}

// run answers the kernel from now on, on goroutines of its own.
func (m *mount) run(f system) {
	m.kernel = f.inflight()
	stop := f.watch(m.device)
	go func() {
		m.device.serve()
		if m.device.hasLeft() {
			return // the next process goes on
		}
		<-m.begun
		stop()
		f.close()
		f.inflight().close()
		m.device.close()
		if m.holder != nil {
			m.holder.Release(m.about.Info.ID)
		}
		if m.ledger != nil {
			_ = m.ledger.Close() // it was memory
		}
		close(m.done)
	}()
}

// pollOnce makes the kernel ask whether the mount can poll files, which
// go-fuse denies once and for all. Otherwise a Go program that serves the
// mount it reads, as tests and the node may, can use up its threads in
// epoll and deadlock. The name is go-fuse's own.
func pollOnce(target string) (err error) {
	fd := -1
	// Signals interrupt both, such as those by which Go's scheduler moves threads on.
	for err = unix.EINTR; err == unix.EINTR; {
		fd, err = unix.Open(target+"/.go-fuse-epoll-hack", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for err = unix.EINTR; err == unix.EINTR; {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	}
	return err
}

func (m *mount) Done() <-chan struct{} { return m.done }

// Close unmounts. The mount may have been unmounted, moved or covered by
// another one behind our back; only our own is touched.
func (m *mount) Close(lazy bool) error {
	select {
	case <-m.done:
		return nil
	default:
	}
	all, err := mountPoints()
	if err != nil {
		return capsule.Wrap(capsule.IO, err, "look for the mount at %s", m.about.Info.Target)
	}
	for _, mp := range all {
		if mp.dev != m.about.Dev {
			continue
		}
		if top, _, err := mountedAt(mp.path); err == nil && top.dev != m.about.Dev {
			return capsule.Errorf(capsule.Conflict, "another file system (%s) is mounted over %s; unmount that first", top.fsType, mp.path)
		}
		err := detach(mp.path, lazy)
		if errors.Is(err, unix.EBUSY) {
			return capsule.Errorf(capsule.Conflict, "%s is in use: %s; end that, or unmount lazily (--lazy)", mp.path, users(mp.path))
		}
		if err != nil {
			return capsule.Wrap(capsule.IO, err, "unmount %s", mp.path)
		}
	}
	if lazy || !m.kernel.released() && copies(m.about.Dev) != "" {
		return nil
	}
	select {
	case <-m.done:
	case <-time.After(unmountWait):
	}
	return nil
}

// Lingers tells, of a mount that was closed, who uses it still: a copy in another
// mount namespace is not ours to unmount. It is "" if the mount ends.
func (m *mount) Lingers() string {
	who := copies(m.about.Dev)
	if m.kernel.released() {
		return ""
	}
	if who == "" {
		return "unmounted, but in use still, and served until that ends: by a process that is out of sight here, or files open since a lazy unmount"
	}
	return "unmounted, but another mount namespace has a copy of it, which is served until it goes: " + who
}

// freeTarget returns the directory to mount on: absolute, without symbolic
// links, and not a mount point. What a dead mount of ours left there goes.
func freeTarget(target string) (string, error) {
	p, err := filepath.Abs(target)
	if err != nil {
		return "", capsule.Wrap(capsule.IO, err, "mount target %s", target)
	}
	resolved, err := filepath.EvalSymlinks(p)
	var pe *fs.PathError
	if errors.Is(err, unix.ENOTCONN) && errors.As(err, &pe) && buryDead(pe.Path) {
		return freeTarget(target)
	}
	if err != nil {
		return "", targetError(target, err)
	}
	// Opened as a directory, because the kernel may know a dead mount's
	// attributes still.
	fd, err := unix.Open(resolved, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	} else if err == unix.ENOTCONN && buryDead(resolved) {
		return freeTarget(target)
	} else if err != unix.EACCES { // a directory that we can't list can be mounted on
		return "", targetError(target, err)
	}
	if m, ok, err := mountedAt(resolved); err != nil {
		return "", capsule.Wrap(capsule.IO, err, "mount target %s", target)
	} else if ok {
		return "", capsule.Errorf(capsule.Conflict,
			"%s is a mount point already (%s from %s); unmount that first, or choose another target", resolved, m.fsType, m.source)
	}
	return resolved, nil
}

// buryDead unmounts what is at p if it is a mount of ours whose server is
// gone, and reports whether it did.
func buryDead(p string) bool {
	m, ok, err := mountedAt(p)
	return err == nil && ok && m.fsType == fsType && detach(p, true) == nil
}
