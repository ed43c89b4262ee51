package fuse

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/spacestore/space/capsule"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// dirPage is how many entries are held of an open directory, whatever its size.
const dirPage = 512

// dirHandle is an open directory. The offset that the kernel sees after an
// entry counts the entries before it, "." and ".." included, in the order in
// which this handle listed them; so it stays good while names come and go.
type dirHandle struct {
	path string
	fh   uint64

	mu      sync.Mutex
	loaded  bool
	page    int        // number of the page that entries are
	entries []DirEntry // dirPage of them, or fewer on the last page
	marks   []string   // marks[i] is the name after which page i begins
	kept    []uint64   // numbers of marks[1:] in the mount's memory, if it has one; 0: not there
	closed  bool
}

// cut forgets all marks but the first n.
func (d *dirHandle) cut(f *fileSystem, n int) {
	d.marks = d.marks[:n]
	if f.memory == nil {
		return
	}
	for _, number := range d.kept[n-1:] {
		f.memory.Delete(keptPage, number)
	}
	d.kept = d.kept[:n-1]
}

// dirTable maps the kernel's directory handles. Its zero value is ready.
type dirTable struct {
	mu   sync.Mutex
	next uint64
	open map[uint64]*dirHandle

	pages atomic.Uint64 // number of the last mark in the mount's memory
}

func (f *fileSystem) OpenDir(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return gofuse.Status(syscall.ESTALE)
	}
	t := &f.dirs
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[uint64]*dirHandle{}
	}
	t.next++
	if f.memory != nil {
		if err := f.memory.Put(keptDir, t.next, []byte(n.path)); err != nil {
			return f.fail("open", n.path, err)
		}
	}
	t.open[t.next] = &dirHandle{path: n.path, fh: t.next, marks: []string{""}}
	out.Fh = t.next
	return gofuse.OK
}

func (f *fileSystem) ReleaseDir(in *gofuse.ReleaseIn) {
	f.dirs.mu.Lock()
	d := f.dirs.open[in.Fh]
	delete(f.dirs.open, in.Fh)
	f.dirs.mu.Unlock()
	if f.memory != nil && d != nil {
		f.memory.Delete(keptDir, in.Fh)
		d.mu.Lock() // a request may outlast it
		defer d.mu.Unlock()
		d.closed = true
		d.cut(f, 1)
	}
}

func (f *fileSystem) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.list(cancel, in, func(e gofuse.DirEntry, _ *DirEntry, _ string) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus is ReadDir and a lookup of every entry in one.
func (f *fileSystem) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.list(cancel, in, func(e gofuse.DirEntry, de *DirEntry, p string) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if de != nil {
			f.fillEntry(entry, p, de.Info, de.Dir)
		}
		return true
	})
}

// list passes the entries from an offset on to add, until that has no room
// left or the page ends; the kernel asks for the rest. The entry in the store
// is nil for "." and "..".
func (f *fileSystem) list(cancel <-chan struct{}, in *gofuse.ReadIn, add func(e gofuse.DirEntry, de *DirEntry, p string) bool) gofuse.Status {
	const dots = 2
	f.dirs.mu.Lock()
	d := f.dirs.open[in.Fh]
	f.dirs.mu.Unlock()
	if d == nil {
		return gofuse.EBADF
	}
	if in.Offset > 1<<40 { // no directory is that long
		return gofuse.EINVAL
	}
	off := int(in.Offset)
	up, _ := split(d.path)
	for i, e := range [dots]gofuse.DirEntry{{Name: ".", Ino: dirIno(d.path)}, {Name: "..", Ino: dirIno(up)}} {
		e.Mode, e.Off = syscall.S_IFDIR, uint64(i+1)
		if off == i {
			if !add(e, nil, "") {
				return gofuse.OK
			}
			off++
		}
	}
	ctx, rq := f.requests.beginContext(&in.InHeader, cancel)
	defer rq.finish()
	entries, err := d.from(ctx, f, off-dots, in.Offset == 0)
	if !rq.finish() {
		return gofuse.EINTR
	}
	if err != nil {
		return f.fail("list", d.path, err)
	}
	for i := range entries {
		de := &entries[i]
		off++
		p := join(d.path, de.Name)
		e := gofuse.DirEntry{Name: de.Name, Mode: syscall.S_IFREG, Ino: capsuleIno(de.Info.ID), Off: uint64(off)}
		if de.Dir {
			e.Mode, e.Ino = syscall.S_IFDIR, dirIno(p)
		}
		if !add(e, de, p) {
			break
		}
	}
	return gofuse.OK
}

// from returns entry number n of the listing and those after it on its page;
// none at the end. rewind starts the listing afresh.
func (d *dirHandle) from(ctx context.Context, f *fileSystem, n int, rewind bool) ([]DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if rewind {
		d.loaded = false
		d.cut(f, 1)
	}
	for page := n / dirPage; !d.loaded || d.page != page; {
		// The page itself, or the last one before it that can be found.
		if err := d.load(ctx, f, min(page, len(d.marks)-1)); err != nil {
			return nil, err
		}
		if d.page < page && len(d.entries) < dirPage {
			return nil, nil // behind the end
		}
	}
	return d.entries[min(n%dirPage, len(d.entries)):], nil
}

func (d *dirHandle) load(ctx context.Context, f *fileSystem, page int) error {
	entries, err := f.entries(ctx, d.path, d.marks[page])
	if err != nil {
		return err
	}
	d.page, d.entries, d.loaded = page, entries, true
	if len(entries) < dirPage {
		return nil
	}
	last := entries[dirPage-1].Name
	if len(d.marks) > page+1 && d.marks[page+1] != last {
		// Names came or went on this page: what follows is paged anew, so that
		// none is skipped or shown twice.
		d.cut(f, page+1)
	}
	if len(d.marks) == page+1 {
		d.marks = append(d.marks, last)
		if f.memory != nil {
			number := f.dirs.pages.Add(1)
			// Where there is no room the next process counts the entries again.
			if d.closed || f.memory.Put(keptPage, number, append(words(d.fh, uint64(page+1)), last...)) != nil {
				number = 0
			}
			d.kept = append(d.kept, number)
		}
	}
	return nil
}

// entries returns the page of a directory that begins after a name.
func (f *fileSystem) entries(ctx context.Context, dir, after string) ([]DirEntry, error) {
	if f.only.IsZero() {
		entries, err := f.store.ReadDir(ctx, dir, after, dirPage)
		if capsule.KindOf(err) == capsule.NotFound { // its last capsule is gone
			return nil, nil
		}
		return entries, err
	}
	if after != "" {
		return nil, nil
	}
	info, err := f.store.Info(ctx, f.only)
	if capsule.KindOf(err) == capsule.NotFound {
		return nil, nil
	}
	return []DirEntry{{Name: contentName, Info: info}}, err
}
