package fuse

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/scratch"
	"github.com/spacestore/space/views"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// Node IDs and handles of drafts begin here, beyond those of versions.
const (
	draftNodes   = 1 << 62
	draftHandles = 1 << 62
)

// objectSystem shows one object as fileSystem does, and takes writes. Whoever
// opens the content for writing gets a draft in place of the version there is:
// a node of its own, that begins as that version and becomes the next one when
// it is synced or closed. Readers keep what they have until then, and after.
//
// An open for writing finds the node of a version. It is answered with ESTALE,
// as one that comes too late is, and the lookup of the second try with the draft.
// Lookups that run at the same time share their answer, so the second try may
// still have a version's node, and a reader a draft's. They get a handle on what
// they want there, past the page cache (FOPEN_DIRECT_IO), which is another file's.
type objectSystem struct {
	*fileSystem
	dir string // for scratch files

	writers retries // threads that will look the draft up
	written handleTable[*draftHandle]

	mu    sync.Mutex
	draft *draft // the one there is; nil: none
	last  uint64 // number of drafts made
}

// draft is the next version of the content, which all who write share.
type draft struct {
	node uint64
	base Reader // the version it began as

	opens int // under objectSystem.mu

	mu      sync.Mutex // one change, or storing it, at a time
	file    *scratch.File
	version uint64 // that it will replace; 0: any
	changed bool   // since it was stored last
	written bool   // by more than a truncation to nothing
	at      time.Time
}

// draftHandle is a draft opened by somebody.
type draftHandle struct {
	f    *objectSystem
	d    *draft
	by   int          // the process; 0: it is out of sight
	refs atomic.Int32 // the open itself and the requests under way, some of which may outlast it
}

func (h *draftHandle) hold() { h.refs.Add(1) }

func (h *draftHandle) close() {
	if h.refs.Add(-1) == 0 {
		h.f.release(h.d, 1)
	}
}

func newObjectSystem(store Store, only capsule.ID, scratch string, log *slog.Logger) *objectSystem {
	f := &objectSystem{fileSystem: newFileSystem(store, only, log), dir: scratch}
	f.mode = 0o644
	return f
}

func (f *objectSystem) options() gofuse.MountOptions {
	o := f.fileSystem.options()
	o.ExtraCapabilities |= gofuse.CAP_ATOMIC_O_TRUNC // what is opened empty is another draft than one made empty
	return o
}

func (f *objectSystem) readOnly() bool { return false }

func (f *objectSystem) close() {
	f.written.closeAll()
	f.mu.Lock()
	d := f.draft
	f.draft = nil
	f.mu.Unlock()
	if d != nil {
		f.end(d)
	}
	f.fileSystem.close()
}

// begin returns the draft, or makes one of the current version. opens is how
// many open files are to be released.
func (f *objectSystem) begin(ctx context.Context, opens int) (*draft, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.draft != nil && f.draft.opens > 0 {
		f.draft.opens += opens
		return f.draft, nil
	}
	base, err := f.store.Open(ctx, f.only)
	if err != nil {
		return nil, err
	}
	if f.draft != nil { // looked up and not opened
		if f.draft.base.Info().Version == base.Info().Version {
			base.Close()
			f.draft.opens += opens
			return f.draft, nil
		}
		f.end(f.draft)
		f.draft = nil
	}
	p := base.Policy()
	if err = views.Gate(p, views.FUSE); err == nil && !p.AllowsWriting(views.FUSE, capsule.Object) {
		err = capsule.Errorf(capsule.ReadOnly, "the policy does not allow to write the object")
	}
	var file *scratch.File
	if err == nil {
		file, err = scratch.New(f.dir, base, base.Info().Size)
	}
	if err != nil {
		base.Close()
		return nil, err
	}
	f.last++
	d := &draft{node: draftNodes + f.last, opens: opens, base: base, file: file, version: base.Info().Version, at: base.Info().Modified}
	f.draft = d
	time.AfterFunc(retryTime, func() { f.release(d, 0) })
	return d, nil
}

// release ends opens of a draft, and the draft if nobody uses it any more.
func (f *objectSystem) release(d *draft, opens int) {
	f.mu.Lock()
	d.opens -= opens
	last := d.opens == 0 && f.draft == d
	if last {
		f.draft = nil
	}
	f.mu.Unlock()
	if last {
		f.end(d)
	}
}

// end stores what a draft nobody uses has that is not stored yet, and frees it.
func (f *objectSystem) end(d *draft) {
	if err := f.publish(context.Background(), d, false); err != nil {
		f.log.Error("what was written to an object is lost: it could not be stored when the file was closed", "capsule", f.only, "err", err)
	}
	d.file.Close()
	d.base.Close()
}

// publish stores a draft as the object's next version, if it changed. With
// written a truncation alone does not count: a shell that is about to write has
// closed a descriptor.
func (f *objectSystem) publish(ctx context.Context, d *draft, written bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.changed || written && !d.written {
		return nil
	}
	size := d.file.Size()
	info, err := f.store.Replace(ctx, f.only, d.version, io.NewSectionReader(d.file, 0, size), size)
	if err != nil {
		return err
	}
	d.version, d.changed, d.written, d.at = info.Version, false, false, info.Modified
	return nil
}

// change does something to a draft's content.
func (d *draft) change(fn func(file *scratch.File) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed, d.at = true, time.Now()
	return fn(d.file)
}

// write writes at off, or if that is negative at the end.
func (d *draft) write(p []byte, off int64) (n int, err error) {
	err = d.change(func(file *scratch.File) error {
		d.written = true
		if off < 0 {
			off = file.Size()
		}
		n, err = file.WriteAt(p, off)
		return err
	})
	return n, err
}

func (d *draft) truncate(size int64) error {
	return d.change(func(file *scratch.File) error {
		if size == 0 {
			d.version = 0 // nothing of what it began as is left
		} else {
			d.written = true
		}
		return file.Truncate(size)
	})
}

// do runs what may wait for the store or the disk.
func (f *objectSystem) do(what string, req *gofuse.InHeader, cancel <-chan struct{}, fn func(ctx context.Context) error) gofuse.Status {
	ctx, rq := f.requests.beginContext(req, cancel)
	err := fn(ctx)
	switch {
	case !rq.finish():
		return gofuse.EINTR
	case err != nil:
		return f.fail(what, f.only.String(), err)
	}
	return gofuse.OK
}

func (f *objectSystem) fillDraft(a *gofuse.Attr, d *draft) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a.Ino = capsuleIno(f.only)
	a.Owner = gofuse.Owner{Uid: f.uid, Gid: f.gid}
	a.Blksize = blockSize
	a.Mode = syscall.S_IFREG | f.mode
	a.Nlink = 1
	a.Size = uint64(d.file.Size())
	a.Blocks = (a.Size + 511) / 512
	a.SetTimes(&d.at, &d.at, &d.at)
}

func (f *objectSystem) Lookup(cancel <-chan struct{}, req *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	if name == contentName && f.writers.expected(req.Pid, contentName) {
		status := f.do("begin a draft", req, cancel, func(ctx context.Context) error {
			d, err := f.begin(ctx, 0)
			if err == nil {
				out.NodeId = d.node
				f.fillDraft(&out.Attr, d)
			}
			return err
		})
		if status.Ok() || status == gofuse.EINTR {
			return status
		}
		// The open that follows meets the error again, and can say so.
	}
	status := f.fileSystem.Lookup(cancel, req, name, out)
	out.SetEntryTimeout(0) // somebody else may be given the draft by this name
	return status
}

func (f *objectSystem) Forget(id, count uint64) {
	if id < draftNodes {
		f.fileSystem.Forget(id, count)
	}
}

func (f *objectSystem) GetAttr(cancel <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if in.NodeId < draftNodes {
		return f.fileSystem.GetAttr(cancel, in, out)
	}
	return f.do("stat", &in.InHeader, cancel, func(ctx context.Context) error { return f.draftAttr(ctx, in.NodeId, &out.Attr) })
}

func (f *objectSystem) Statx(cancel <-chan struct{}, in *gofuse.StatxIn, out *gofuse.StatxOut) gofuse.Status {
	if in.NodeId < draftNodes {
		return f.fileSystem.Statx(cancel, in, out)
	}
	return f.do("stat", &in.InHeader, cancel, func(ctx context.Context) error {
		info, err := f.store.Info(ctx, f.only)
		var a gofuse.Attr
		if err == nil {
			err = f.draftAttr(ctx, in.NodeId, &a)
		}
		fillStatx(out, &a, info.Created)
		return err
	})
}

// draftAttr returns what is known of a draft by its node, or when it is no
// more, of what it became.
func (f *objectSystem) draftAttr(ctx context.Context, id uint64, a *gofuse.Attr) error {
	f.mu.Lock()
	d := f.draft
	f.mu.Unlock()
	if d != nil && d.node == id {
		f.fillDraft(a, d)
		return nil
	}
	info, err := f.store.Info(ctx, f.only)
	if err == nil {
		f.fillAttr(a, &node{info: info})
	}
	return err
}

// SetAttr sets the size. Times are taken and not kept; nothing else changes.
func (f *objectSystem) SetAttr(cancel <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if in.Valid&(gofuse.FATTR_MODE|gofuse.FATTR_UID|gofuse.FATTR_GID) != 0 {
		return gofuse.EPERM
	}
	if in.Valid&gofuse.FATTR_SIZE == 0 {
		return f.GetAttr(cancel, &gofuse.GetAttrIn{InHeader: in.InHeader}, out)
	}
	if in.Valid&gofuse.FATTR_FH != 0 {
		return f.with("truncate", in.Fh, &in.InHeader, cancel, func(_ context.Context, d *draft) error {
			err := d.truncate(int64(in.Size))
			f.fillDraft(&out.Attr, d)
			return err
		})
	}
	if f.comesBack(in.NodeId, in.Pid) {
		return gofuse.Status(syscall.ESTALE)
	}
	return f.do("truncate", &in.InHeader, cancel, func(ctx context.Context) error {
		d, err := f.begin(ctx, 1)
		if err != nil {
			return err
		}
		defer f.release(d, 1)
		if err = d.truncate(int64(in.Size)); err == nil {
			err = f.publish(ctx, d, false)
		}
		f.fillDraft(&out.Attr, d)
		return err
	})
}

// comesBack has a thread that wants to write, and has found the node of a
// version, try again and look up the draft; once.
func (f *objectSystem) comesBack(node uint64, thread uint32) bool {
	second := f.writers.expected(thread, contentName)
	f.writers.take(thread, 0)
	if second || thread == 0 || node >= draftNodes { // 0 is out of sight: its lookup could not be told from others'
		return false
	}
	f.writers.expect(thread, contentName)
	return true
}

func (f *objectSystem) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if in.Flags&(syscall.O_ACCMODE|syscall.O_TRUNC) == syscall.O_RDONLY {
		if in.NodeId < draftNodes {
			second := f.retries.expected(in.Pid, contentName)
			if status := f.fileSystem.Open(cancel, in, out); !second || status != gofuse.Status(syscall.ESTALE) {
				return status
			}
		}
		return f.openCurrent(cancel, in, out)
	}
	if f.comesBack(in.NodeId, in.Pid) {
		return gofuse.Status(syscall.ESTALE)
	}
	var d *draft
	status := f.do("open", &in.InHeader, cancel, func(ctx context.Context) (err error) {
		if d, err = f.begin(ctx, 1); err == nil && in.Flags&syscall.O_TRUNC != 0 {
			err = d.truncate(0)
		}
		return err
	})
	switch {
	case status.Ok():
		h := &draftHandle{f: f, d: d, by: processOf(in.Pid)}
		h.refs.Store(1)
		out.Fh = draftHandles + f.written.add(h)
		if out.OpenFlags = gofuse.FOPEN_KEEP_CACHE; d.node != in.NodeId {
			out.OpenFlags = gofuse.FOPEN_DIRECT_IO
		}
	case d != nil:
		f.release(d, 1)
	}
	return status
}

// openCurrent opens the current version for a reader that has another's node.
func (f *objectSystem) openCurrent(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	var r Reader
	status := f.do("open", &in.InHeader, cancel, func(ctx context.Context) (err error) {
		if r, err = f.store.Open(ctx, f.only); err == nil {
			err = views.Gate(r.Policy(), views.FUSE)
		}
		return err
	})
	switch {
	case status.Ok():
		out.Fh = f.handles.add(newHandle(r, &f.streams))
		out.OpenFlags = gofuse.FOPEN_DIRECT_IO
	case r != nil:
		r.Close()
	}
	return status
}

// with runs an operation on an open draft.
func (f *objectSystem) with(what string, fh uint64, req *gofuse.InHeader, cancel <-chan struct{}, fn func(ctx context.Context, d *draft) error) gofuse.Status {
	h := f.written.use(fh - draftHandles)
	if h == nil {
		return gofuse.EBADF
	}
	defer h.close()
	return f.do(what, req, cancel, func(ctx context.Context) error { return fn(ctx, h.d) })
}

func (f *objectSystem) read(in *gofuse.ReadIn, buf []byte) (n int, parts *streamed, status gofuse.Status) {
	if in.Fh < draftHandles {
		return f.fileSystem.read(in, buf)
	}
	status = f.with("read", in.Fh, &in.InHeader, nil, func(_ context.Context, d *draft) (err error) {
		if n, err = d.file.ReadAt(buf[:in.Size], int64(in.Offset)); err == io.EOF {
			return nil
		}
		return err
	})
	return n, nil, status
}

func (f *objectSystem) Write(cancel <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	n := 0
	status := f.with("write", in.Fh, &in.InHeader, cancel, func(ctx context.Context, d *draft) (err error) {
		off := int64(in.Offset)
		if in.Flags&syscall.O_APPEND != 0 && in.WriteFlags&gofuse.WRITE_CACHE == 0 {
			off = -1 // the kernel may take another file's size for the draft's
		}
		// What is written lies on the node's disk until it is stored there: one
		// writer must not take the room that the store keeps for itself.
		if f.store.FreeBytes() < int64(len(data)) {
			return capsule.Errorf(capsule.NoSpace, "the disk has no room for what is written to capsule %s", f.only)
		}
		if n, err = d.write(data, off); err == nil && in.Flags&syscall.O_DSYNC != 0 {
			err = f.publish(ctx, d, false)
		}
		return err
	})
	return uint32(n), status
}

func (f *objectSystem) Fsync(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	if in.Fh < draftHandles {
		return gofuse.OK // what can be read is stored
	}
	return f.with("fsync", in.Fh, &in.InHeader, cancel, func(ctx context.Context, d *draft) error { return f.publish(ctx, d, false) })
}

// Flush comes with every close, which is where a program learns whether its
// writes are stored. Children that a writer forks close the file as well, when
// they end or run another program; that is none of its doing.
func (f *objectSystem) Flush(cancel <-chan struct{}, in *gofuse.FlushIn) gofuse.Status {
	if in.Fh < draftHandles {
		return gofuse.OK
	}
	h := f.written.use(in.Fh - draftHandles)
	if h == nil {
		return gofuse.EBADF
	}
	defer h.close()
	if by := processOf(in.Pid); by != h.by && by != 0 && h.by != 0 {
		return gofuse.OK
	}
	return f.do("close", &in.InHeader, cancel, func(ctx context.Context) error { return f.publish(ctx, h.d, true) })
}

// processOf returns the process that a thread belongs to, or 0 where it is out
// of sight.
func processOf(thread uint32) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil || thread == 0 {
		return 0
	}
	for line := range bytes.Lines(status) {
		if id, ok := bytes.CutPrefix(line, []byte("Tgid:")); ok {
			n, _ := strconv.Atoi(string(bytes.TrimSpace(id)))
			return n
		}
	}
	return 0
}

func (f *objectSystem) Release(cancel <-chan struct{}, in *gofuse.ReleaseIn) {
	if in.Fh < draftHandles {
		f.fileSystem.Release(cancel, in)
		return
	}
	f.written.close(in.Fh - draftHandles)
}

// StatFs shows the disk's room beside the object.
func (f *objectSystem) StatFs(cancel <-chan struct{}, req *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	status := f.fileSystem.StatFs(cancel, req, out)
	out.Bfree = uint64(f.store.FreeBytes()) / blockSize
	out.Bavail = out.Bfree
	out.Blocks += out.Bfree
	return status
}
