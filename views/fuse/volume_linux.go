package fuse

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/lock"
	"github.com/spacestore/space/internal/ledger"
	"github.com/spacestore/space/views"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// volumeNode is the node ID and inode number of a volume's content.
const volumeNode = gofuse.FUSE_ROOT_ID + 1

// volumeSystem shows a volume as a file of its size that can be written in
// place. The kernel keeps pages until it is told that another view changed them.
type volumeSystem struct {
	noEntries

	volume   Volume
	id       capsule.ID
	ro       bool
	log      *slog.Logger
	messages limiter
	uid, gid uint32
	created  time.Time
	denied   atomic.Bool // by the policy, as it is now
	store    Store
	locks    locks
	opens    atomic.Uint64 // numbers for handles
	requests inflight
	stale    bool // the kernel may have pages from the time of an earlier process
}

func newVolumeSystem(ctx context.Context, store Store, o Options) (system, error) {
	info, err := store.Info(ctx, o.Capsule)
	if err != nil {
		return nil, err
	}
	v, err := store.OpenVolume(ctx, o.Capsule, o.Snapshot, !o.ReadOnly)
	if err != nil {
		return nil, err
	}
	return &volumeSystem{
		noEntries: noEntries{gofuse.NewDefaultRawFileSystem()},
		volume:    v,
		id:        o.Capsule,
		ro:        v.ReadOnly(),
		log:       o.Logger,
		uid:       uint32(os.Geteuid()),
		gid:       uint32(os.Getegid()),
		created:   info.Created,
		store:     store,
		locks:     locks{Table: v.Locks()},
	}, nil
}

func (f *volumeSystem) options() gofuse.MountOptions {
	return gofuse.MountOptions{
		MaxWrite:             maxIO,
		EnableLocks:          true,
		DisableXAttrs:        true,
		ExtraCapabilities:    gofuse.CAP_ASYNC_DIO | gofuse.CAP_HANDLE_KILLPRIV_V2 | gofuse.CAP_NO_OPENDIR_SUPPORT,
		DisabledCapabilities: gofuse.CAP_AUTO_INVAL_DATA | gofuse.CAP_PASSTHROUGH,
	}
}

func (f *volumeSystem) readOnly() bool { return f.ro }

func (f *volumeSystem) inflight() *inflight { return &f.requests }

// watch passes on what others changed. What it calls may wait for requests
// under way, so it runs on the watchers' goroutines.
func (f *volumeSystem) watch(k kernel) (stop func()) {
	var telling sync.WaitGroup
	if f.stale {
		telling.Go(func() { k.InodeNotify(volumeNode, 0, 0) })
	}
	unwatchVolume := f.volume.Watch(func(off, n int64) { k.InodeNotify(volumeNode, off, n) })
	unwatchStore := f.store.Watch(func(c Change) {
		if c.All || c.ID == f.id {
			f.askPolicy()
		}
	})
	return func() {
		unwatchVolume()
		unwatchStore()
		telling.Wait()
	}
}

// askPolicy looks at the policy again, which may have changed.
func (f *volumeSystem) askPolicy() {
	if p, err := f.store.Policy(context.Background(), f.id); err == nil {
		f.denied.Store(views.Gate(p, views.FUSE) != nil)
	}
}

// remember has the mount keep what the process after this one needs: locks.
// Node IDs are fixed, and handles have no state.
func (f *volumeSystem) remember(l *ledger.Ledger) error {
	first, err := newLife(l)
	if err != nil {
		return err
	}
	f.opens.Store(first)
	f.locks.ledger = l
	return nil
}

// recall takes up what the process before has kept. What others changed since,
// it did not tell of.
func (f *volumeSystem) recall(ctx context.Context, l *ledger.Ledger) error {
	f.stale = true
	f.askPolicy()
	f.locks.recall(ctx, l)
	return f.remember(l)
}

func (f *volumeSystem) replied() func(uint64) { return nil }

func (f *volumeSystem) close() {
	f.locks.close()
	f.volume.Close()
}

func (f *volumeSystem) do(what string, req *gofuse.InHeader, cancel <-chan struct{}, fn func(ctx context.Context) error) gofuse.Status {
	ctx, rq := f.requests.beginContext(req, cancel)
	err := fn(ctx)
	if !rq.finish() {
		return gofuse.EINTR
	}
	return f.status(what, err)
}

func (f *volumeSystem) status(what string, err error) gofuse.Status {
	errno := errnoOf(err)
	if errno == syscall.EIO && f.messages.allow(what+"\x00"+err.Error()) {
		f.log.Error("FUSE request failed", "op", what, "capsule", f.id, "errno", errno.Error(), "err", err)
	}
	return gofuse.Status(errno)
}

func (f *volumeSystem) fillAttr(a *gofuse.Attr, node uint64) {
	a.Ino = node
	a.Owner = gofuse.Owner{Uid: f.uid, Gid: f.gid}
	a.Blksize = bestIO
	a.SetTimes(&f.created, &f.created, &f.created)
	if node == gofuse.FUSE_ROOT_ID {
		a.Mode, a.Nlink = syscall.S_IFDIR|0o555, 2
		return
	}
	a.Mode, a.Nlink = syscall.S_IFREG|0o600, 1
	a.Size = uint64(f.volume.Size())
	a.Blocks = (a.Size + 511) / 512
}

func (f *volumeSystem) Lookup(_ <-chan struct{}, req *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	if req.NodeId != gofuse.FUSE_ROOT_ID || name != contentName {
		return gofuse.ENOENT
	}
	out.NodeId = volumeNode
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(entryTimeout)
	f.fillAttr(&out.Attr, volumeNode)
	return gofuse.OK
}

func (f *volumeSystem) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	f.fillAttr(&out.Attr, in.NodeId)
	out.SetTimeout(entryTimeout)
	return gofuse.OK
}

// SetAttr takes what changes nothing: programs set times, and the size that is
// there already.
func (f *volumeSystem) SetAttr(_ <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	const times = gofuse.FATTR_ATIME | gofuse.FATTR_MTIME | gofuse.FATTR_CTIME | gofuse.FATTR_ATIME_NOW | gofuse.FATTR_MTIME_NOW |
		gofuse.FATTR_FH | gofuse.FATTR_LOCKOWNER | gofuse.FATTR_KILL_SUIDGID
	if in.Valid&gofuse.FATTR_SIZE != 0 && int64(in.Size) != f.volume.Size() || in.Valid&^(times|gofuse.FATTR_SIZE) != 0 {
		return gofuse.EPERM
	}
	f.fillAttr(&out.Attr, in.NodeId)
	return gofuse.OK
}

func (f *volumeSystem) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (f *volumeSystem) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	for i, e := range []gofuse.DirEntry{
		{Name: ".", Mode: syscall.S_IFDIR, Ino: gofuse.FUSE_ROOT_ID, Off: 1},
		{Name: "..", Mode: syscall.S_IFDIR, Ino: gofuse.FUSE_ROOT_ID, Off: 2},
		{Name: contentName, Mode: syscall.S_IFREG, Ino: volumeNode, Off: 3},
	} {
		if uint64(i) >= in.Offset && !out.AddDirEntry(e) {
			break
		}
	}
	return gofuse.OK
}

func (f *volumeSystem) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if f.denied.Load() {
		return gofuse.EACCES
	}
	out.Fh = f.opens.Add(1)
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE // we tell of all changes
	return gofuse.OK
}

func (f *volumeSystem) Flush(_ <-chan struct{}, in *gofuse.FlushIn) gofuse.Status {
	in.NodeId = lock.Content
	f.locks.flush(in)
	return gofuse.OK
}

func (f *volumeSystem) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	in.NodeId = lock.Content
	f.locks.release(in)
}

func (f *volumeSystem) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	n := 0
	status := f.do("read", &in.InHeader, cancel, func(context.Context) (err error) {
		if n, err = f.volume.ReadAt(buf[:in.Size], int64(in.Offset)); err == io.EOF {
			return nil
		}
		return err
	})
	return gofuse.ReadResultData(buf[:n]), status
}

// Write behaves at the volume's end as a disk does.
func (f *volumeSystem) Write(cancel <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	off := int64(in.Offset)
	room := f.volume.Size() - off
	if room <= 0 {
		return 0, gofuse.Status(syscall.ENOSPC)
	}
	n := 0
	status := f.do("write", &in.InHeader, cancel, func(ctx context.Context) (err error) {
		if n, err = f.volume.WriteAt(data[:min(int64(len(data)), room)], off); err == nil && in.Flags&syscall.O_DSYNC != 0 {
			err = f.volume.Flush(ctx)
		}
		return err
	})
	return uint32(n), status
}

func (f *volumeSystem) Fsync(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	return f.do("fsync", &in.InHeader, cancel, f.volume.Flush)
}

// Fallocate makes holes; there is no other space to give.
func (f *volumeSystem) Fallocate(cancel <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	switch in.Mode {
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
	default:
		return gofuse.Status(syscall.EOPNOTSUPP)
	}
	n := min(int64(in.Length), f.volume.Size()-int64(in.Offset))
	if n <= 0 {
		return gofuse.OK
	}
	return f.do("fallocate", &in.InHeader, cancel, func(ctx context.Context) error {
		return f.volume.Trim(ctx, int64(in.Offset), n)
	})
}

// Lseek is asked for data and holes alone.
func (f *volumeSystem) Lseek(cancel <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	at, size := int64(in.Offset), f.volume.Size()
	if at < 0 || at >= size {
		return gofuse.Status(syscall.ENXIO)
	}
	return f.do("lseek", &in.InHeader, cancel, func(ctx context.Context) error {
		for ; at < size; out.Offset = uint64(at) {
			start, end, err := f.volume.NextData(ctx, at)
			switch {
			case err != nil:
				return err
			case in.Whence == unix.SEEK_DATA && start == end:
				return capsule.Errorf(capsule.NoDevice, "no data at or after %d", at)
			case in.Whence == unix.SEEK_DATA:
				out.Offset = uint64(start)
				return nil
			case start > at || start == end: // a hole
				out.Offset = uint64(at)
				return nil
			}
			at = end
		}
		return nil // the hole at the end
	})
}

// StatFs shows a full disk of the volume's size.
func (f *volumeSystem) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	out.Bsize, out.Frsize = blockSize, blockSize
	out.Blocks = (uint64(f.volume.Size()) + blockSize - 1) / blockSize
	out.Files = 1
	out.NameLen = capsule.MaxComponent
	return gofuse.OK
}
