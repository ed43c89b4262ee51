package fuse

import (
	"context"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/views"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

const (
	// maxIO is the largest READ and WRITE of what can be written: one update.
	maxIO = 1 << 20

	// treeTimeout bounds how long the kernel may believe what it knows, should
	// it not have been told of a change.
	treeTimeout = time.Minute

	// bestIO is what st_blksize tells programs to read and write at once: a
	// block of the store.
	bestIO = 64 << 10
)

// treeSystem shows a tree. Node IDs are the tree's inode numbers.
type treeSystem struct {
	gofuse.RawFileSystem // ENOSYS for all that isn't here

	store Store
	id    capsule.ID
	tree  *tree.FS
	done  func()
	ro    bool
	valid time.Duration // of entries and attributes
	log   *slog.Logger

	// ctx marks changes as ours, of which the kernel knows.
	ctx      context.Context
	messages limiter
	denied   atomic.Bool // by the policy, as it is now
	nodes    knownNodes
	files    handleTable[*treeFile]
	locks    locks
	notifier *treeNotifier
	requests inflight
	memory   treeMemory
	reads    pace
	callers  callers
}

func newTreeSystem(ctx context.Context, store Store, o Options) (system, error) {
	t, done, err := store.OpenTree(ctx, o.Capsule, o.Snapshot)
	if err != nil {
		return nil, err
	}
	f := &treeSystem{
		RawFileSystem: gofuse.NewDefaultRawFileSystem(),
		store:         store,
		id:            o.Capsule,
		tree:          t,
		done:          done,
		ro:            o.ReadOnly || t.ReadOnly(),
		valid:         treeTimeout,
		log:           o.Logger,
		locks:         locks{Table: t.Locks()},
	}
	if t.ReadOnly() {
		f.valid = forever
	}
	f.ctx = tree.WithOrigin(context.Background(), f)
	return f, nil
}

func (f *treeSystem) options() gofuse.MountOptions {
	return gofuse.MountOptions{
		MaxWrite:                 maxIO,
		EnableLocks:              true,
		EnableAcl:                true,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true, // we tell what changed
		ExtraCapabilities: gofuse.CAP_READDIRPLUS_AUTO | gofuse.CAP_ATOMIC_O_TRUNC | gofuse.CAP_ASYNC_DIO |
			gofuse.CAP_DONT_MASK | // a default ACL goes before the umask
			gofuse.CAP_HANDLE_KILLPRIV_V2 | gofuse.CAP_SETXATTR_EXT |
			gofuse.CAP_NO_OPENDIR_SUPPORT,
		DisabledCapabilities: gofuse.CAP_PASSTHROUGH, // no file backs ours
	}
}

func (f *treeSystem) readOnly() bool { return f.ro }

func (f *treeSystem) inflight() *inflight { return &f.requests }

func (f *treeSystem) close() {
	f.files.closeAll()
	f.locks.close()
	f.nodes.closeAll()
	f.done()
}

// do runs an operation that may wait for the store. EINTR says that its process
// is being killed and was answered already.
func (f *treeSystem) do(what string, req *gofuse.InHeader, cancel <-chan struct{}, fn func() error) gofuse.Status {
	rq := f.requests.begin(req, cancel)
	err := fn()
	if !rq.finish() {
		return gofuse.EINTR
	}
	return f.status(what, req, err)
}

// status is what an operation's error is to the kernel. What programs can't
// make sense of is logged.
func (f *treeSystem) status(what string, req *gofuse.InHeader, err error) gofuse.Status {
	errno := errnoOf(err)
	if errno == syscall.EIO && f.messages.allow(what+"\x00"+err.Error()) {
		f.log.Error("FUSE request failed", "op", what, "capsule", f.id, "inode", req.NodeId, "errno", errno.Error(), "err", err)
	}
	return gofuse.Status(errno)
}

// admitted reports whether the policy allows to open files.
func (f *treeSystem) admitted() bool { return !f.denied.Load() }

// askPolicy looks at the policy again, which may have changed.
func (f *treeSystem) askPolicy() {
	p, err := f.store.Policy(f.ctx, f.id)
	if err == nil {
		f.denied.Store(views.Gate(p, views.FUSE) != nil)
	}
}

// StatFs shows the tree's quota, or else what the disk has left.
func (f *treeSystem) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	u := f.tree.Usage()
	free := f.store.FreeBytes()
	files := free / blockSize // each takes some space
	if q := u.Quota.Bytes; q > 0 {
		free = min(free, max(q-u.Bytes, 0))
	}
	if q := u.Quota.Inodes; q > 0 {
		files = min(files, max(q-u.Inodes, 0))
	}
	out.Bsize, out.Frsize = bestIO, blockSize
	out.Blocks = uint64(u.Bytes+free) / blockSize
	out.Bfree = uint64(free) / blockSize
	out.Bavail = out.Bfree
	out.Files = uint64(u.Inodes + files)
	out.Ffree = uint64(files)
	out.NameLen = tree.MaxName
	return gofuse.OK
}
