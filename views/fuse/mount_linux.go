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
	"sync"
	"time"

	"github.com/spacestore/space/capsule"
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
	// way; with maxRead it bounds the memory they take.
	maxBackground = 32

	// readAheadKB replaces the kernel's default of 128 KiB, where we may set it.
	readAheadKB = 2048

	// unmountWait bounds how long Close waits for the end of a mount that the
	// kernel has let go of. It lives on where another mount namespace has it.
	unmountWait = 5 * time.Second
)

// Mount projects a capsule, or the namespace, at o.Target and returns when the
// mount is ready. An error of kind [capsule.Unavailable] says that there is no
// FUSE here, where [Copy] still works.
func Mount(ctx context.Context, store Store, o Options) (*views.Projection, error) {
	if ok, why := Available(); !ok {
		return nil, capsule.Errorf(capsule.Unavailable, "there is no FUSE here: %s", why)
	}
	info, err := admit(ctx, store, o.Capsule)
	if err != nil {
		return nil, err
	}
	target, err := freeTarget(o.Target)
	if err != nil {
		return nil, err
	}
	fd, err := attach(target, o.AllowOther)
	if err != nil {
		return nil, err
	}
	f := newFileSystem(store, o.Capsule, o.Logger)
	m := &mount{target: target, done: make(chan struct{})}
	if err := m.serve(f, fd); err != nil {
		detach(target, true)
		return nil, err
	}
	return &views.Projection{
		Info: views.Info{
			View:    views.FUSE,
			Target:  target,
			Capsule: o.Capsule,
			Name:    info.Name,
			Mode:    views.ModeFUSE,
			Since:   f.started,
		},
		Backend: m,
	}, nil
}

// mount is a running kernel mount.
type mount struct {
	target string
	dev    string // major:minor, as in mountinfo
	done   chan struct{}
}

// serve starts to answer the kernel on fd, which it takes over, and returns
// when the mount is ready.
func (m *mount) serve(f *fileSystem, fd int) error {
	if err := f.requests.open(fd); err != nil {
		return capsule.Wrap(capsule.IO, err, "duplicate the descriptor of the mount at %s", m.target)
	}
	// go-fuse takes an open /dev/fuse by this name. We mount ourselves to see
	// what fusermount3 has to say when it fails.
	server, err := gofuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", fd), &gofuse.MountOptions{
		FsName:            "space",
		Name:              "space",
		MaxWrite:          maxRead,
		MaxBackground:     maxBackground,
		MaxReadAhead:      readAheadKB << 10,
		DisableXAttrs:     true,
		DisableSplice:     true, // our data is in memory, not in a file
		ExtraCapabilities: gofuse.CAP_READDIRPLUS_AUTO,
		// A node's content never changes, and no file backs it.
		DisabledCapabilities: gofuse.CAP_AUTO_INVAL_DATA | gofuse.CAP_PASSTHROUGH,
		Logger:               slog.NewLogLogger(f.log.Handler(), slog.LevelDebug),
		PanicHandler: func(p any) gofuse.Status { // one bad request must not take all mounts down
			f.log.Error("panic in a FUSE request", "panic", p, "stack", string(debug.Stack()))
			return gofuse.EIO
		},
	})
	if err != nil {
		f.requests.close()
		return capsule.Wrap(capsule.IO, err, "speak FUSE with the kernel for %s", m.target)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := newNotifier(f, server)
	unwatch := f.store.Watch(n.changed)
	var notifying sync.WaitGroup
	notifying.Go(func() { n.run(ctx) })
	go func() {
		server.Serve()
		unwatch()
		cancel()
		notifying.Wait()
		f.handles.closeAll()
		f.retries.closeAll()
		f.requests.close()
		close(m.done)
	}()

	if err := pollOnce(m.target); err != nil {
		return capsule.Wrap(capsule.IO, err, "make the first request to the mount at %s", m.target)
	}
	var st unix.Stat_t
	if err := unix.Stat(m.target, &st); err != nil {
		return capsule.Wrap(capsule.IO, err, "stat the mount at %s", m.target)
	}
	m.dev = fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	// INIT caps readahead at 128 KiB. Raising it takes root; without, our own
	// prefetching has to do.
	_ = os.WriteFile("/sys/class/bdi/"+m.dev+"/read_ahead_kb", fmt.Append(nil, readAheadKB), 0)
	return nil
}

// pollOnce makes the kernel ask whether the mount can poll files, which
// go-fuse denies once and for all. Otherwise a Go program that serves the
// mount it reads, as tests and the node may, can use up its threads in
// epoll and deadlock. The name is go-fuse's own.
func pollOnce(target string) error {
	fd, err := unix.Open(target+"/.go-fuse-epoll-hack", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
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
		return capsule.Wrap(capsule.IO, err, "look for the mount at %s", m.target)
	}
	for _, mp := range all {
		if mp.dev != m.dev {
			continue
		}
		if top, _, err := mountedAt(mp.path); err == nil && top.dev != m.dev {
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
	if lazy {
		return nil
	}
	select {
	case <-m.done:
	case <-time.After(unmountWait):
	}
	return nil
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
