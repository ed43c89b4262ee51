package fuse

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/ledger"
	"github.com/spacestore/space/views"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// entryTimeout bounds how long a name may show an old version in stat,
	// should a change notification be lost. Opens are exact without it.
	entryTimeout = time.Second

	// forever is for what can't change: the attributes of a version.
	forever = 365 * 24 * time.Hour

	blockSize = 4096
)

// maxNodes is how many nodes the kernel may refer to before it is asked to
// let go of some. It would otherwise keep all it ever saw while its own
// memory lasts, and each costs us some hundred bytes. A variable for tests.
var maxNodes = 1 << 16

// fileSystem answers the kernel's requests. It is made on the raw interface
// of go-fuse rather than on its tree of inodes: node IDs have to be ours, one
// for each version, and nodes cost less memory.
type fileSystem struct {
	noEntries

	store    Store
	only     capsule.ID // the one capsule to show; zero: the namespace
	log      *slog.Logger
	messages limiter
	uid, gid uint32
	mode     uint32 // of files
	started  time.Time

	nodes    *nodeTable
	lookups  atomic.Int64 // new references since the last pruning
	prune    chan struct{}
	handles  handleTable[*handle]
	retries  retries
	dirs     dirTable
	streams  atomic.Int64 // handles that are read sequentially
	requests inflight
	memory   *ledger.Ledger // of open files and nodes, for the process after this one; may be nil
}

func newFileSystem(store Store, only capsule.ID, log *slog.Logger) *fileSystem {
	now := time.Now()
	return &fileSystem{
		noEntries: noEntries{gofuse.NewDefaultRawFileSystem()},
		store:     store,
		only:      only,
		log:       log,
		uid:       uint32(os.Geteuid()),
		gid:       uint32(os.Getegid()),
		mode:      0o444,
		started:   now,
		nodes:     newNodeTable(now),
		prune:     make(chan struct{}, 1),
	}
}

func (f *fileSystem) options() gofuse.MountOptions {
	return gofuse.MountOptions{
		MaxWrite:          maxRead,
		DisableXAttrs:     true,
		ExtraCapabilities: gofuse.CAP_READDIRPLUS_AUTO,
		// A node's content never changes, and no file backs it.
		DisabledCapabilities: gofuse.CAP_AUTO_INVAL_DATA | gofuse.CAP_PASSTHROUGH,
	}
}

func (f *fileSystem) readOnly() bool { return true }

func (f *fileSystem) inflight() *inflight { return &f.requests }

func (f *fileSystem) interrupt(unique uint64) bool { return f.requests.interrupt(unique) }

func (f *fileSystem) watch(k kernel) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	n := newNotifier(f, k)
	unwatch := f.store.Watch(n.changed)
	var notifying sync.WaitGroup
	notifying.Go(func() { n.run(ctx) })
	return func() {
		unwatch()
		cancel()
		notifying.Wait()
	}
}

func (f *fileSystem) close() {
	f.handles.closeAll()
	f.retries.closeAll()
}

// find returns the facts of one path.
func (f *fileSystem) find(ctx context.Context, p string) (info capsule.Info, dir bool, err error) {
	if f.only.IsZero() {
		return f.store.LookupName(ctx, p)
	}
	if p != contentName {
		return info, false, capsule.Errorf(capsule.NotFound, "no file %q", p)
	}
	info, err = f.store.Info(ctx, f.only)
	return info, false, err
}

func (f *fileSystem) Lookup(cancel <-chan struct{}, req *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	parent := f.nodes.get(req.NodeId)
	if parent == nil {
		return gofuse.Status(syscall.ESTALE)
	}
	if len(name) > capsule.MaxComponent {
		return gofuse.Status(syscall.ENAMETOOLONG)
	}
	p := join(parent.path, name)
	ctx, rq := f.requests.beginContext(req, cancel)
	defer rq.finish()
	info, dir, err := f.find(ctx, p)
	var pinned Reader
	if err == nil && !dir && f.retries.expected(req.Pid, p) {
		if pinned, err = f.store.Open(ctx, info.ID); err == nil && f.shows(pinned, p) {
			info = pinned.Info()
		} else if err == nil { // renamed just now
			pinned.Close()
			pinned = nil
		}
	}
	if !rq.finish() {
		if pinned != nil {
			pinned.Close()
		}
		return gofuse.EINTR
	}
	switch kind := capsule.KindOf(err); {
	case err == nil:
	case kind == capsule.NotFound || kind == capsule.Invalid:
		return gofuse.ENOENT // what can't be a name has no file
	default:
		return f.fail("look up", p, err)
	}
	f.fillEntry(out, p, info, dir)
	if pinned != nil {
		f.retries.pin(req.Pid, p, out.NodeId, pinned)
	}
	return gofuse.OK
}

// shows reports whether what r reads is at path p.
func (f *fileSystem) shows(r Reader, p string) bool {
	return !f.only.IsZero() || r.Info().Name == p
}

// fillEntry answers a lookup: it takes a reference for the kernel.
func (f *fileSystem) fillEntry(out *gofuse.EntryOut, p string, info capsule.Info, dir bool) {
	var n *node
	if dir {
		n = f.nodes.lookupDir(p, f.started)
		out.SetAttrTimeout(entryTimeout)
	} else {
		n = f.nodes.lookupFile(p, info)
		out.SetAttrTimeout(forever)
	}
	out.NodeId = n.id
	out.SetEntryTimeout(entryTimeout)
	f.fillAttr(&out.Attr, n)

	if f.lookups.Add(1) > int64(maxNodes/4) && f.nodes.len() > maxNodes {
		select {
		case f.prune <- struct{}{}:
			f.lookups.Store(0)
		default:
		}
	}
}

func (f *fileSystem) Forget(id, count uint64) { f.nodes.forget(id, count) }

func (f *fileSystem) fillAttr(a *gofuse.Attr, n *node) {
	a.Ino = n.ino()
	a.Owner = gofuse.Owner{Uid: f.uid, Gid: f.gid}
	a.Blksize = blockSize
	if n.dir {
		t := f.nodes.changedAt(n)
		a.Mode = syscall.S_IFDIR | 0o555
		a.Nlink = 2
		a.SetTimes(&t, &t, &t)
		return
	}
	// ctime is the content's time too: a file whose content changed must not
	// keep its change time. The time of creation is in statx.
	t := n.info.Modified
	a.Mode = syscall.S_IFREG | f.mode
	a.Nlink = 1
	a.Size = uint64(n.info.Size)
	a.Blocks = (a.Size + 511) / 512
	a.SetTimes(&t, &t, &t)
}

func (f *fileSystem) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return gofuse.Status(syscall.ESTALE)
	}
	f.fillAttr(&out.Attr, n)
	if n.dir {
		out.SetTimeout(entryTimeout)
	} else {
		out.SetTimeout(forever)
	}
	return gofuse.OK
}

// Statx is asked for the time of creation alone.
func (f *fileSystem) Statx(_ <-chan struct{}, in *gofuse.StatxIn, out *gofuse.StatxOut) gofuse.Status {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return gofuse.Status(syscall.ESTALE)
	}
	var a gofuse.Attr
	f.fillAttr(&a, n)
	if n.dir {
		fillStatx(out, &a, time.Time{})
		out.SetTimeout(entryTimeout)
	} else {
		fillStatx(out, &a, n.info.Created)
		out.SetTimeout(forever)
	}
	return gofuse.OK
}

// fillStatx answers with attributes and, unless zero, the time of creation.
func fillStatx(out *gofuse.StatxOut, a *gofuse.Attr, created time.Time) {
	timeOf := func(sec uint64, nsec uint32) gofuse.SxTime { return gofuse.SxTime{Sec: sec, Nsec: nsec} }
	out.Statx = gofuse.Statx{
		Mask:      unix.STATX_BASIC_STATS,
		Blksize:   a.Blksize,
		Nlink:     a.Nlink,
		Uid:       a.Uid,
		Gid:       a.Gid,
		Mode:      uint16(a.Mode),
		Ino:       a.Ino,
		Size:      a.Size,
		Blocks:    a.Blocks,
		Atime:     timeOf(a.Atime, a.Atimensec),
		Mtime:     timeOf(a.Mtime, a.Mtimensec),
		Ctime:     timeOf(a.Ctime, a.Ctimensec),
		RdevMajor: unix.Major(uint64(a.Rdev)),
		RdevMinor: unix.Minor(uint64(a.Rdev)),
	}
	if !created.IsZero() {
		out.Mask |= unix.STATX_BTIME
		out.Btime = timeOf(uint64(created.Unix()), uint32(created.Nanosecond()))
	}
}

// StatFs shows a full disk with the logical size of what is projected.
func (f *fileSystem) StatFs(cancel <-chan struct{}, req *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	ctx, rq := f.requests.beginContext(req, cancel)
	defer rq.finish()
	var bytes, files int64
	var err error
	if f.only.IsZero() {
		var u capsule.Usage
		u, err = f.store.Usage(ctx)
		bytes, files = u.LogicalBytes, u.Capsules
	} else {
		var info capsule.Info
		info, err = f.store.Info(ctx, f.only)
		bytes, files = info.Size, 1
		if capsule.KindOf(err) == capsule.NotFound { // removed: nothing is left
			files, err = 0, nil
		}
	}
	if err != nil {
		return f.fail("statfs", "", err)
	}
	out.Bsize, out.Frsize = blockSize, blockSize
	out.Blocks = (uint64(bytes) + blockSize - 1) / blockSize
	out.Files = uint64(files)
	out.NameLen = capsule.MaxComponent
	return gofuse.OK
}

// Flush has nothing to do; ENOSYS tells the kernel not to ask again.
func (f *fileSystem) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.ENOSYS }

func (f *fileSystem) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return gofuse.Status(syscall.ESTALE)
	}
	if in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return gofuse.EROFS
	}
	ctx, rq := f.requests.beginContext(&in.InHeader, cancel)
	defer rq.finish()
	r, err := f.openVersion(ctx, n)
	if !rq.finish() {
		if err == nil {
			r.Close()
		}
		return gofuse.EINTR
	}
	pinned := f.retries.take(in.Pid, n.id)
	switch {
	case err == errNotCurrent && pinned != nil:
		r, err = pinned, nil
	case pinned != nil:
		pinned.Close()
	case err == errNotCurrent:
		f.retries.expect(in.Pid, n.path)
		return gofuse.Status(syscall.ESTALE)
	}
	if err == nil {
		if err = views.Gate(r.Policy(), views.FUSE); err != nil {
			r.Close()
		}
	}
	if err != nil {
		return f.fail("open", n.path, err)
	}
	out.Fh = f.handles.add(newHandle(r, &f.streams))
	if f.memory != nil {
		if err := f.memory.Put(keptHandle, out.Fh, words(n.id)); err != nil {
			f.handles.close(out.Fh)
			return f.fail("open", n.path, err)
		}
	}
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE
	return gofuse.OK
}

// errNotCurrent says that a node's version is not the one its path has now.
// The kernel is told ESTALE, looks the path up again and opens what it finds.
var errNotCurrent = capsule.Errorf(capsule.Conflict, "not the current version")

func (f *fileSystem) openVersion(ctx context.Context, n *node) (Reader, error) {
	r, err := f.store.Open(ctx, n.info.ID)
	if capsule.KindOf(err) == capsule.NotFound {
		return nil, errNotCurrent
	}
	if err != nil {
		return nil, err
	}
	if r.Info().Version != n.info.Version || !f.shows(r, n.path) {
		r.Close()
		return nil, errNotCurrent
	}
	return r, nil
}

// fail logs an error that the user of the mount sees as a bare number, and
// returns that number. A path that isn't there and a policy's refusal are
// answers, not failures.
func (f *fileSystem) fail(what, p string, err error) gofuse.Status {
	errno := errnoOf(err)
	switch errno {
	case syscall.ENOENT, syscall.EACCES, syscall.EROFS, syscall.EINTR:
	default:
		if f.messages.allow(what + "\x00" + p + "\x00" + err.Error()) {
			// Names stay out of it: the log may lie beside data that is encrypted.
			f.log.Error("FUSE request failed", "op", what, "errno", errno.Error(), "err", err)
		}
	}
	return gofuse.Status(errno)
}
