package fuse

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/ledger"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// lives is a tree that is served by one process after the other, without a kernel.
type lives struct {
	t  *testing.T
	s  realStore
	id capsule.ID
	l  *ledger.Ledger
	f  *treeSystem
}

func newLives(t *testing.T) *lives {
	s, id := newTreeStore(t, tree.Quota{})
	l, err := ledger.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	v := &lives{t: t, s: s, id: id, l: l}
	v.f = v.system()
	if err := v.f.remember(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.f.close() })
	return v
}

func (v *lives) system() *treeSystem {
	v.t.Helper()
	f, err := newTreeSystem(context.Background(), v.s, Options{Capsule: v.id, Logger: new(logBuffer).logger()})
	if err != nil {
		v.t.Fatal(err)
	}
	return f.(*treeSystem)
}

// next is the next process: all that the one before knew is in the ledger.
func (v *lives) next() {
	v.t.Helper()
	fd, err := unix.FcntlInt(v.l.File().Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		v.t.Fatal(err)
	}
	l, err := ledger.Open(os.NewFile(uintptr(fd), "ledger"))
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { l.Close() })
	old := v.f
	old.memory.ledger, old.locks.ledger = nil, nil // it takes nothing back
	v.f = v.system()
	old.locks.close()
	if err := v.f.recall(context.Background(), l); err != nil {
		v.t.Fatal(err)
	}
	old.close()
	v.l = l
}

func head(unique, node uint64) gofuse.InHeader {
	return gofuse.InHeader{Unique: unique, NodeId: node, Caller: gofuse.Caller{Pid: uint32(os.Getpid())}}
}

// TestRequestsComeAgain makes each request that is not the same twice, and has
// the next process get it again: once after it was carried out, and once after
// it was lost with the process.
func TestRequestsComeAgain(t *testing.T) {
	v := newLives(t)
	unique := uint64(0)
	root := func() gofuse.InHeader { return head(unique, tree.Root) }
	var entry gofuse.EntryOut
	names := func(f *treeSystem) string {
		out := ""
		err := f.tree.ReadDirPlus(context.Background(), nil, tree.Root, 0, func(e tree.Entry) bool {
			out += e.Name + " "
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, r := range []struct {
		name string
		do   func(f *treeSystem) gofuse.Status
	}{
		{"mkdir", func(f *treeSystem) gofuse.Status {
			return f.Mkdir(nil, &gofuse.MkdirIn{InHeader: root(), Mode: 0o755}, "dir", &entry)
		}},
		{"mknod", func(f *treeSystem) gofuse.Status {
			return f.Mknod(nil, &gofuse.MknodIn{InHeader: root(), Mode: syscall.S_IFIFO | 0o600}, "pipe", &entry)
		}},
		{"symlink", func(f *treeSystem) gofuse.Status {
			h := root()
			return f.Symlink(nil, &h, "to", "symlink", &entry)
		}},
		{"create", func(f *treeSystem) gofuse.Status {
			var out gofuse.CreateOut
			return f.Create(nil, &gofuse.CreateIn{InHeader: root(), Flags: syscall.O_EXCL | syscall.O_RDWR, Mode: 0o600}, "file", &out)
		}},
		{"link", func(f *treeSystem) gofuse.Status {
			a, err := f.tree.Lookup(f.ctx, nil, tree.Root, "file")
			if err != nil {
				t.Fatal(err)
			}
			return f.Link(nil, &gofuse.LinkIn{InHeader: root(), Oldnodeid: a.Ino}, "link", &entry)
		}},
		{"rename", func(f *treeSystem) gofuse.Status {
			return f.Rename(nil, &gofuse.RenameIn{InHeader: root(), Newdir: tree.Root}, "link", "renamed")
		}},
		{"exchange", func(f *treeSystem) gofuse.Status {
			return f.Rename(nil, &gofuse.RenameIn{InHeader: root(), Newdir: tree.Root, Flags: 2}, "symlink", "pipe")
		}},
		{"unlink", func(f *treeSystem) gofuse.Status {
			h := root()
			return f.Unlink(nil, &h, "renamed")
		}},
		{"rmdir", func(f *treeSystem) gofuse.Status {
			h := root()
			return f.Rmdir(nil, &h, "dir")
		}},
		{"setxattr", func(f *treeSystem) gofuse.Status {
			return f.SetXAttr(nil, &gofuse.SetXAttrIn{InHeader: root(), Flags: unix.XATTR_CREATE}, "user.x", []byte("v"))
		}},
		{"removexattr", func(f *treeSystem) gofuse.Status {
			h := root()
			return f.RemoveXAttr(nil, &h, "user.x")
		}},
	} {
		unique += 2
		if status := r.do(v.f); !status.Ok() {
			t.Fatalf("%s: %v", r.name, status)
		}
		want := names(v.f)
		v.next()
		unique |= resent
		for range 2 { // and it may come a third time
			if status := r.do(v.f); !status.Ok() {
				t.Errorf("%s again: %v", r.name, status)
			}
			if got := names(v.f); got != want {
				t.Errorf("%s again: there is %s, want %s", r.name, got, want)
			}
			v.next()
		}
		unique &^= resent
		// The answer has come: the same request by another is another one.
		v.f.memory.replied(unique)
		unique += 2
		switch r.name {
		case "rename", "exchange": // the old name is gone, or it is the way back
			if status := r.do(v.f); r.name == "rename" && status != gofuse.ENOENT {
				t.Errorf("%s by another: %v", r.name, status)
			} else if r.name == "exchange" && !status.Ok() {
				t.Errorf("%s by another: %v", r.name, status)
			}
		default:
			if status := r.do(v.f); status.Ok() {
				t.Errorf("%s by another succeeds", r.name)
			}
		}
	}
}

// TestLostRequestComesAgain notes requests as done whose change was lost with
// the process: they are carried out.
func TestLostRequestComesAgain(t *testing.T) {
	v := newLives(t)
	if err := v.f.memory.note(2, 77); err != nil {
		t.Fatal(err)
	}
	v.next()
	var entry gofuse.EntryOut
	if status := v.f.Mkdir(nil, &gofuse.MkdirIn{InHeader: head(2|resent, tree.Root), Mode: 0o755}, "d", &entry); !status.Ok() || entry.NodeId == 77 {
		t.Fatalf("mkdir: %v, inode %d", status, entry.NodeId)
	}
	if err := v.f.memory.note(4, entry.NodeId); err != nil {
		t.Fatal(err)
	}
	v.next()
	h := head(4|resent, tree.Root)
	if status := v.f.Rmdir(nil, &h, "d"); !status.Ok() {
		t.Fatalf("rmdir: %v", status)
	}
	if _, err := v.f.tree.Lookup(v.f.ctx, nil, tree.Root, "d"); capsule.KindOf(err) != capsule.NotFound {
		t.Errorf("what was removed is there: %v", err)
	}
}

// TestAppendComesAgain appends as a whole, in part, and not at all before.
func TestAppendComesAgain(t *testing.T) {
	for before := range 4 {
		v := newLives(t)
		var out gofuse.CreateOut
		in := &gofuse.CreateIn{InHeader: head(2, tree.Root), Flags: syscall.O_RDWR | syscall.O_APPEND, Mode: 0o600}
		if status := v.f.Create(nil, in, "f", &out); !status.Ok() {
			t.Fatal(status)
		}
		w := func(unique, off uint64, data string) gofuse.Status {
			n, status := v.f.Write(nil, &gofuse.WriteIn{InHeader: head(unique, out.NodeId), Fh: out.Fh, Offset: off,
				Flags: syscall.O_RDWR | syscall.O_APPEND}, []byte(data))
			if status.Ok() && int(n) != len(data) {
				t.Errorf("%d bytes are written of %d", n, len(data))
			}
			return status
		}
		if status := w(4, 0, "one "); !status.Ok() {
			t.Fatal(status)
		}
		if before > 0 {
			if status := w(6, 4, "two"[:before]); !status.Ok() {
				t.Fatal(status)
			}
		}
		v.next()
		if status := w(6|resent, 4, "two"); !status.Ok() {
			t.Fatal(status)
		}
		buf := make([]byte, 100)
		r, status := v.f.Read(nil, &gofuse.ReadIn{InHeader: head(8, out.NodeId), Fh: out.Fh, Size: 100}, buf)
		if b, _ := r.Bytes(nil); !status.Ok() || string(b) != "one two" {
			t.Errorf("after %d bytes of it: %q, %v", before, b, status)
		}
		v.f.close()
	}
}

// TestOpenComesAgain gets the handle that the process before gave, also where
// that was for a file that is removed since.
func TestOpenComesAgain(t *testing.T) {
	v := newLives(t)
	var out gofuse.CreateOut
	if status := v.f.Create(nil, &gofuse.CreateIn{InHeader: head(2, tree.Root), Flags: syscall.O_RDWR, Mode: 0o600}, "f", &out); !status.Ok() {
		t.Fatal(status)
	}
	var one, again, other gofuse.OpenOut
	open := func(unique uint64, out *gofuse.OpenOut) {
		t.Helper()
		if status := v.f.Open(nil, &gofuse.OpenIn{InHeader: head(unique, 2), Flags: syscall.O_RDWR}, out); !status.Ok() {
			t.Fatal(status)
		}
	}
	open(4, &one)
	v.next()
	open(4|resent, &again)
	open(6, &other)
	if again.Fh != one.Fh || other.Fh == one.Fh {
		t.Errorf("handles %#x, again %#x, other %#x", one.Fh, again.Fh, other.Fh)
	}
	release := &gofuse.ReleaseIn{InHeader: head(8, out.NodeId), Fh: one.Fh}
	v.f.Release(nil, release)
	v.next()
	v.f.Release(nil, release) // again
	if h := v.f.files.use(other.Fh); h == nil {
		t.Error("another handle is gone")
	} else {
		h.close()
	}
}

// TestPolicyChangesBetweenLives forbids the view while there is no process.
func TestPolicyChangesBetweenLives(t *testing.T) {
	v := newLives(t)
	volume, err := v.s.Create(context.Background(), store.CreateRequest{Kind: capsule.Volume, Size: 1 << 20}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := *capsule.DefaultPolicy()
	p.Views = capsule.Views{"nfs"}
	for _, id := range []capsule.ID{v.id, volume.ID} {
		if err := v.s.SetPolicy(context.Background(), id, &p); err != nil {
			t.Fatal(err)
		}
	}
	v.next()
	var out gofuse.OpenOut
	if status := v.f.Open(nil, &gofuse.OpenIn{InHeader: head(2, tree.Root), Flags: syscall.O_RDONLY}, &out); status != gofuse.EACCES {
		t.Errorf("open in the tree: %v", status)
	}
	f, err := newVolumeSystem(context.Background(), v.s, Options{Capsule: volume.ID, Logger: new(logBuffer).logger()})
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	l, err := ledger.New()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := f.recall(context.Background(), l); err != nil {
		t.Fatal(err)
	}
	if status := f.Open(nil, &gofuse.OpenIn{InHeader: head(4, volumeNode), Flags: syscall.O_RDONLY}, &out); status != gofuse.EACCES {
		t.Errorf("open of the volume: %v", status)
	}
}

// TestListingsAreForgotten lists a directory again and again through one open
// file: what is kept of it for the next process does not grow, and goes with it.
func TestListingsAreForgotten(t *testing.T) {
	s := newFakeStore()
	for i := range 3*dirPage + 1 {
		s.put(fmt.Sprintf("%04d", i), nil)
	}
	f := newFileSystem(s, capsule.ID{}, new(logBuffer).logger())
	defer f.close()
	l, err := ledger.New()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := f.remember(l); err != nil {
		t.Fatal(err)
	}
	var out gofuse.OpenOut
	if status := f.OpenDir(nil, &gofuse.OpenIn{InHeader: head(2, gofuse.FUSE_ROOT_ID)}, &out); !status.Ok() {
		t.Fatal(status)
	}
	for range 3 {
		for off, more := uint64(0), true; more; {
			more = false
			in := &gofuse.ReadIn{InHeader: head(4, gofuse.FUSE_ROOT_ID), Fh: out.Fh, Offset: off}
			status := f.list(nil, in, func(e gofuse.DirEntry, _ *DirEntry, _ string) bool {
				off, more = e.Off, true
				return true
			})
			if !status.Ok() {
				t.Fatal(status)
			}
		}
		if n := len(l.All(keptPage)); n != 3 {
			t.Errorf("%d pages are kept, want 3", n)
		}
	}
	f.ReleaseDir(&gofuse.ReleaseIn{InHeader: head(6, gofuse.FUSE_ROOT_ID), Fh: out.Fh})
	if n := len(l.All(keptPage)) + len(l.All(keptDir)); n != 0 {
		t.Errorf("%d entries are left of a directory that was closed", n)
	}
}

func TestUnknownAbout(t *testing.T) {
	for text, want := range map[string]capsule.ErrorKind{
		`{"version":2}`: capsule.Unsupported,
		`{`:             capsule.Damaged,
	} {
		if _, err := parseAbout([]byte(text)); capsule.KindOf(err) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzRecall(f *testing.F) {
	f.Add(uint32(keptHandle), uint64(1), words(2, 3, 4))
	f.Add(uint32(keptOrphan), uint64(2), words(1))
	f.Add(uint32(keptLock), uint64(1), words(1, 0, 3, 1, 0, 9, 1, 1))
	f.Add(uint32(keptNode), uint64(2), []byte(`{"path":"a","id":"00000000-0000-0000-0000-000000000000"}`))
	f.Add(uint32(keptPage), uint64(2), append(words(1, 1), "name"...))
	f.Fuzz(func(t *testing.T, kind uint32, number uint64, value []byte) {
		l, err := ledger.New()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if l.Put(ledger.Kind(kind), number, value) != nil {
			return
		}
		l.Put(keptDir, 1, []byte("dir"))
		l.Put(keptLookups, number, words(1))
		objects := newFileSystem(newFakeStore(), capsule.ID{}, new(logBuffer).logger())
		if err := objects.recall(context.Background(), l); err != nil {
			t.Fatal(err)
		}
		objects.close()
	})
}
