package tree

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
)

const fine = capsule.Other // in tables of expected kinds: no error

func TestFormatAndOpen(t *testing.T) {
	m := newMemory()
	_, err := Open(ctx, m, Options{})
	kind(t, err, capsule.NotFound, "open of an empty capsule")
	kind(t, Format(ctx, m, New{Mode: 0o2750, UID: 3, GID: 4}, time.Unix(5, 6)), fine, "format")
	kind(t, Format(ctx, m, New{}, time.Now()), capsule.Exists, "format twice")
	fs := openTree(t, m)
	a := attr(t, fs, Root)
	if a.Ino != 1 || a.Type != Directory || a.Mode != 0o2750 || a.UID != 3 || a.GID != 4 || a.Nlink != 2 || a.Parent != Root || !a.Btime.Equal(time.Unix(5, 6)) {
		t.Fatalf("%+v", a)
	}
	if a.StatMode() != 0o042750 {
		t.Fatalf("%o", a.StatMode())
	}
	if u := fs.Usage(); u.Inodes != 1 || u.Bytes != 0 {
		t.Fatalf("%+v", u)
	}
}

func TestNames(t *testing.T) {
	fs, _ := newTree(t)
	for _, c := range []struct {
		name string
		want capsule.ErrorKind
	}{
		{"a", fine}, {"a", capsule.Exists}, {strings.Repeat("x", 255), fine}, {strings.Repeat("x", 256), capsule.NameTooLong},
		{"", capsule.Invalid}, {".", capsule.Invalid}, {"..", capsule.Invalid}, {"a/b", capsule.Invalid}, {"a\x00", capsule.Invalid},
		{"\xff\xfe\n", fine}, {"...", fine},
	} {
		_, err := fs.Mkdir(ctx, nil, Root, c.name, New{Mode: 0o755})
		kind(t, err, c.want, fmt.Sprintf("mkdir %q", c.name))
	}
	if n := attr(t, fs, Root); n.Nlink != 6 || n.Size != 4 {
		t.Fatalf("%+v", n)
	}
}

// What each operation does to the times and change counters of what it touches.
func TestTimes(t *testing.T) {
	fs, _ := newTree(t)
	d := mkdir(t, fs, Root, "d")
	e := mkdir(t, fs, Root, "e")
	f := mkfile(t, fs, d, "f", "data").Ino
	type touched struct{ d, e, f string } // "m": mtime, "c": ctime
	for _, c := range []struct {
		what string
		op   func() error
		want touched
	}{
		{"lookup", func() error { _, err := fs.Lookup(ctx, nil, d, "f"); return err }, touched{}},
		{"link", func() error { _, err := fs.Link(ctx, nil, f, e, "g"); return err }, touched{e: "mc", f: "c"}},
		{"unlink", func() error { return fs.Unlink(ctx, nil, e, "g") }, touched{e: "mc", f: "c"}},
		{"rename across", func() error { return fs.Rename(ctx, nil, d, "f", e, "f", 0) }, touched{d: "mc", e: "mc", f: "c"}},
		{"rename back", func() error { return fs.Rename(ctx, nil, e, "f", d, "f", 0) }, touched{d: "mc", e: "mc", f: "c"}},
		{"rename to itself", func() error { return fs.Rename(ctx, nil, d, "f", d, "f", 0) }, touched{}},
		{"chmod", func() error { _, err := fs.SetAttr(ctx, nil, f, SetAttr{Set: SetMode, Mode: 0o600}); return err }, touched{f: "c"}},
		{"truncate", func() error { _, err := fs.SetAttr(ctx, nil, f, SetAttr{Set: SetSize, Size: 2}); return err }, touched{f: "mc"}},
		{"xattr", func() error { return fs.SetXattr(ctx, nil, f, "user.a", []byte("b"), 0) }, touched{f: "c"}},
		{"write", func() error {
			h := must(fs.Open(ctx, nil, f, OpenWrite))(t)
			defer h.Close()
			_, err := h.WriteAt(ctx, []byte("x"), 0)
			return err
		}, touched{f: "mc"}},
		{"read", func() error { content(t, fs, f); return nil }, touched{}},
		{"mkdir", func() error { _, err := fs.Mkdir(ctx, nil, d, "x", New{}); return err }, touched{d: "mc"}},
		{"rmdir", func() error { return fs.Rmdir(ctx, nil, d, "x") }, touched{d: "mc"}},
	} {
		before := []Attr{attr(t, fs, d), attr(t, fs, e), attr(t, fs, f)}
		kind(t, c.op(), fine, c.what)
		for i, want := range []string{c.want.d, c.want.e, c.want.f} {
			a, b := before[i], attr(t, fs, before[i].Ino)
			got := ""
			if !a.Mtime.Equal(b.Mtime) {
				got += "m"
			}
			if !a.Ctime.Equal(b.Ctime) {
				got += "c"
			}
			if got != want || (b.Change > a.Change) != (want != "") {
				t.Errorf("%s: inode %d has %q changed and change %d after %d, want %q", c.what, a.Ino, got, b.Change, a.Change, want)
			}
		}
	}
}

// A clock that steps back takes times back with it, and hides no change.
func TestClockStepsBack(t *testing.T) {
	m := newMemory()
	kind(t, Format(ctx, m, New{Mode: 0o755}, time.Unix(1e9, 5)), fine, "format")
	clock := &manual{time.Unix(2e9, 7)}
	fs := must(Open(ctx, m, Options{Clock: clock}))(t)
	defer fs.Close()
	a := mkfile(t, fs, Root, "f", "content")
	seen := attr(t, fs, a.Ino)
	for _, step := range []time.Duration{-time.Second, -time.Hour, -50000 * time.Hour, time.Minute, -time.Nanosecond} {
		old := openTree(t, m.snapshot())
		clock.t = seen.Mtime.Add(step - time.Second)
		f := must(fs.Open(ctx, nil, a.Ino, OpenRead|OpenWrite))(t)
		must(f.WriteAt(ctx, []byte("changed"), 0))(t)
		f.Close()
		now := attr(t, fs, a.Ino)
		if want := seen.Mtime.Add(step); !now.Mtime.Equal(want) || !now.Ctime.Equal(want) {
			t.Errorf("a step of %s: mtime %s, ctime %s, want %s", step, now.Mtime, now.Ctime, want)
		}
		if now.Change <= seen.Change {
			t.Errorf("a step of %s: the change counter went from %d to %d", step, seen.Change, now.Change)
		}
		var found []string
		kind(t, Diff(ctx, old, fs, func(d Difference) error {
			found = append(found, d.Kind.String()+d.Path)
			return nil
		}), fine, "diff")
		if len(found) != 1 || found[0] != "modified/f" {
			t.Errorf("a step of %s: the differences are %q", step, found)
		}
		seen = now
	}
	clean(t, m)
}

func TestRename(t *testing.T) {
	for _, c := range []struct {
		from, to string
		flags    RenameFlags
		want     capsule.ErrorKind
	}{
		{"f", "new", 0, fine},
		{"f", "g", 0, fine},
		{"f", "d", 0, capsule.IsDir},
		{"d", "f", 0, capsule.NotDir},
		{"d", "empty", 0, fine},
		{"d", "e", 0, capsule.NotEmpty},
		{"d", "d/x", 0, capsule.Invalid},
		{"d", "d/sub/x", 0, capsule.Invalid},
		{"d/sub", "d", 0, capsule.NotEmpty},
		{"d/sub", "d", RenameExchange, capsule.Invalid},
		{"d/sub", "e/sub", 0, fine},
		{"none", "x", 0, capsule.NotFound},
		{"f", "g", RenameNoReplace, capsule.Exists},
		{"f", "h", RenameNoReplace, fine},
		{"f", "h", RenameExchange, capsule.NotFound},
		{"f", "d/sub", RenameExchange, fine},
		{"d", "empty", RenameExchange, fine},
		{"f", "f2", 0, fine}, // two names of one inode
		{"f", "g", RenameNoReplace | RenameExchange, capsule.Invalid},
	} {
		t.Run(fmt.Sprintf("%s to %s %d", c.from, c.to, c.flags), func(t *testing.T) {
			fs, m := newTree(t)
			d, e := mkdir(t, fs, Root, "d"), mkdir(t, fs, Root, "e")
			mkdir(t, fs, Root, "empty")
			sub := mkdir(t, fs, d, "sub")
			mkfile(t, fs, e, "x", "x")
			f := mkfile(t, fs, Root, "f", "f")
			must(fs.Link(ctx, nil, f.Ino, Root, "f2"))(t)
			mkfile(t, fs, Root, "g", "g")
			place := func(p string) (uint64, string) {
				dirs := map[string]uint64{"": Root, "d": d, "e": e, "d/sub": sub}
				i := strings.LastIndexByte(p, '/')
				return dirs[p[:max(i, 0)]], p[i+1:]
			}
			fd, fn := place(c.from)
			td, tn := place(c.to)
			src, _ := fs.Lookup(ctx, nil, fd, fn)
			dst, _ := fs.Lookup(ctx, nil, td, tn)
			kind(t, fs.Rename(ctx, nil, fd, fn, td, tn, c.flags), c.want, "rename")
			if c.want == fine && src.Ino != dst.Ino {
				if a, err := fs.Lookup(ctx, nil, td, tn); err != nil || a.Ino != src.Ino {
					t.Fatalf("%+v, %v", a, err)
				}
				a, err := fs.Lookup(ctx, nil, fd, fn)
				if c.flags == RenameExchange && a.Ino != dst.Ino || c.flags != RenameExchange && capsule.KindOf(err) != capsule.NotFound {
					t.Fatalf("%+v, %v", a, err)
				}
			}
			clean(t, m)
		})
	}
}

func TestFileContent(t *testing.T) {
	fs, m := newTree(t)
	m.punchMax = 2
	f, _, err := fs.Create(ctx, nil, Root, "f", New{Mode: 0o644}, OpenRead|OpenWrite)
	kind(t, err, fine, "create")
	defer f.Close()
	big := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
	if n, err := f.WriteAt(ctx, big, 5); n != len(big) || err != nil {
		t.Fatal(n, err)
	}
	if got := content(t, fs, f.Ino()); !bytes.Equal(got[5:], big) || !bytes.Equal(got[:5], make([]byte, 5)) {
		t.Fatal("content differs")
	}
	kind(t, f.Truncate(ctx, 10), fine, "truncate")
	kind(t, f.Truncate(ctx, 1<<20), fine, "truncate") // while the rest may be trimmed still
	want := make([]byte, 1<<20)
	copy(want[5:], big[:5])
	if got := content(t, fs, f.Ino()); !bytes.Equal(got, want) {
		t.Fatal("what was cut off came back")
	}
	if off, n, err := f.Append(ctx, []byte("end")); off != 1<<20 || n != 3 || err != nil {
		t.Fatal(off, n, err)
	}
	if a := attr(t, fs, f.Ino()); a.Size != 1<<20+3 || a.Alloc != 2*blockSize {
		t.Fatalf("%+v", a)
	}
	for _, c := range []struct {
		hole bool
		off  int64
		want int64
	}{{false, 0, 0}, {false, 5000, 1 << 20}, {true, 0, 4096}, {true, 5000, 5000}, {true, 1 << 20, 1<<20 + 3}, {false, 1<<20 + 3, -1}, {true, 1<<20 + 3, -1}, {false, -1, -1}} {
		seek := f.SeekData
		if c.hole {
			seek = f.SeekHole
		}
		got, err := seek(ctx, c.off)
		if c.want < 0 {
			kind(t, err, capsule.NoDevice, "seek")
		} else if got != c.want || err != nil {
			t.Errorf("seek(hole %v) from %d: %d, %v; want %d", c.hole, c.off, got, err, c.want)
		}
	}
	kind(t, f.Allocate(ctx, PunchHole, 1<<20, 2), fine, "punch")
	kind(t, f.Allocate(ctx, ZeroRange, 1<<20, 10), fine, "zero")
	kind(t, f.Allocate(ctx, KeepSize, 1<<20, 100), fine, "keep")
	kind(t, f.Allocate(ctx, Allocate, 0, 0), capsule.Invalid, "nothing")
	if a := attr(t, fs, f.Ino()); a.Size != 1<<20+10 {
		t.Fatalf("%+v", a)
	}
	g, _, err := fs.Create(ctx, nil, Root, "g", New{Mode: 0o644}, OpenRead|OpenWrite)
	kind(t, err, fine, "create")
	defer g.Close()
	if n, err := CopyRange(ctx, g, 3, f, 5, 1<<30); n != 1<<20+5 || err != nil {
		t.Fatal(n, err)
	}
	if got := content(t, fs, g.Ino()); !bytes.Equal(got[3:], content(t, fs, f.Ino())[5:]) {
		t.Fatal("the copy differs")
	}
	_, err = CopyRange(ctx, f, 10, f, 5, 100)
	kind(t, err, capsule.Invalid, "overlapping copy")
	_, err = f.WriteAt(ctx, []byte("x"), MaxSize)
	kind(t, err, capsule.TooLarge, "write beyond the largest size")
	kind(t, f.Truncate(ctx, MaxSize+1), capsule.TooLarge, "truncate beyond the largest size")
	if n, err := f.ReadAt(ctx, make([]byte, 10), 1<<20+10); n != 0 || err != io.EOF {
		t.Fatal(n, err)
	}
	fs.Close()
	clean(t, m)
}

func TestOrphans(t *testing.T) {
	fs, m := newTree(t)
	m.punchMax = 1
	a := mkfile(t, fs, Root, "f", strings.Repeat("x", 5*blockSize))
	kind(t, fs.SetXattr(ctx, nil, a.Ino, "user.a", []byte("b"), 0), fine, "xattr")
	f := must(fs.Open(ctx, nil, a.Ino, OpenRead|OpenWrite))(t)
	kind(t, fs.Unlink(ctx, nil, Root, "f"), fine, "unlink")
	if a := attr(t, fs, a.Ino); a.Nlink != 0 {
		t.Fatalf("%+v", a)
	}
	if n, err := f.WriteAt(ctx, []byte("still"), 0); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	_, err := fs.Link(ctx, nil, a.Ino, Root, "g")
	kind(t, err, capsule.NotFound, "link of an orphan")

	// After a crash it goes, unless it is held for a view that comes back.
	crashed := &memory{}
	crashed.root.Store(m.root.Load())
	held, err := Open(ctx, crashed, Options{HoldOrphans: true})
	kind(t, err, fine, "open")
	g := must(held.Open(ctx, nil, a.Ino, OpenRead))(t)
	held.Reclaim()
	if got := string(content(t, held, a.Ino)); !strings.HasPrefix(got, "stillx") {
		t.Fatalf("%.10q", got)
	}
	g.Close()
	held.reclaimAll(ctx)
	gone(t, held, crashed, a.Ino)
	held.Close()

	f.Close()
	fs.reclaimAll(ctx)
	gone(t, fs, m, a.Ino)
}

func gone(t *testing.T, fs *FS, m *memory, ino uint64) {
	t.Helper()
	_, err := fs.GetAttr(ctx, ino)
	kind(t, err, capsule.Stale, "an orphan that nobody holds")
	if u := fs.Usage(); u.Inodes != 1 || u.Bytes != 0 {
		t.Fatalf("%+v", u)
	}
	fs.Close()
	clean(t, m)
}

// clean checks that there is nothing wrong.
func clean(t testing.TB, m *memory) {
	t.Helper()
	err := Check(ctx, m, false, func(p Problem) { t.Errorf("check: %+v", p) })
	if err != nil || t.Failed() {
		t.Fatalf("check: %v", err)
	}
}

func TestLimits(t *testing.T) {
	fs, m := newTree(t)
	f := mkfile(t, fs, Root, "f", "x")
	d := mkdir(t, fs, Root, "d")
	fs.Close()
	kind(t, m.Update(ctx, func(tx Tx) error {
		for _, ino := range []uint64{f.Ino, d} {
			in, err := readInode(tx, ino)
			if err != nil {
				return err
			}
			in.Nlink = MaxLinks
			if err := tx.Set(inodeKey(ino), in.encode()); err != nil {
				return err
			}
		}
		return nil
	}), fine, "update")
	fs = openTree(t, m)
	_, err := fs.Link(ctx, nil, f.Ino, Root, "g")
	kind(t, err, capsule.TooManyLinks, "one link more")
	_, err = fs.Mkdir(ctx, nil, d, "sub", New{})
	kind(t, err, capsule.TooManyLinks, "one directory more")
	sub := mkdir(t, fs, Root, "sub")
	kind(t, fs.Rename(ctx, nil, Root, "sub", d, "sub", 0), capsule.TooManyLinks, "one directory more")
	if a := attr(t, fs, sub); a.Parent != Root {
		t.Fatalf("%+v", a)
	}

	for _, c := range []struct {
		name  string
		value int
		want  capsule.ErrorKind
	}{
		{"user." + strings.Repeat("n", 250), MaxXattrValue, fine},
		{"user." + strings.Repeat("n", 251), 1, capsule.OutOfRange},
		{"user.big", MaxXattrValue + 1, capsule.TooLarge},
		{"user.empty", 0, fine},
		{"user.\x00", 1, capsule.Invalid},
		{"system.other", 1, capsule.Unsupported},
	} {
		err := fs.SetXattr(ctx, nil, f.Ino, c.name, make([]byte, c.value), 0)
		kind(t, err, c.want, fmt.Sprintf("setxattr %.20q", c.name))
		if c.want == fine {
			if v := must(fs.GetXattr(ctx, nil, f.Ino, c.name))(t); len(v) != c.value {
				t.Fatalf("%.20q has %d bytes, want %d", c.name, len(v), c.value)
			}
		}
	}
	for i := 0; err == nil || i == 0 || capsule.KindOf(err) == capsule.TooManyLinks; i++ {
		err = fs.SetXattr(ctx, nil, f.Ino, fmt.Sprintf("user.%0200d", i), nil, 0)
	}
	kind(t, err, capsule.NoSpace, "attributes without end")
	if names := must(fs.ListXattr(ctx, nil, f.Ino))(t); len(names) < 300 {
		t.Fatalf("%d attributes", len(names))
	}

	for target, want := range map[string]capsule.ErrorKind{
		strings.Repeat("t", MaxTarget): fine, strings.Repeat("t", MaxTarget+1): capsule.NameTooLong, "": capsule.NotFound, "a\x00b": capsule.Invalid,
	} {
		_, err := fs.Symlink(ctx, nil, Root, "symlink", New{Target: target})
		kind(t, err, want, fmt.Sprintf("symlink to %.10q", target))
	}
	_, err = fs.Mknod(ctx, nil, Root, "x", Directory, New{})
	kind(t, err, capsule.Invalid, "mknod of a directory")
}

// Set-ID bits and capabilities go when someone changes a file, unless the
// caller sees to that.
func TestPrivilegesGo(t *testing.T) {
	for _, c := range []struct {
		cred *Cred
		mode uint32
		want uint32
		caps bool
	}{
		{nil, 0o6777, 0o6777, true},
		{&Cred{}, 0o6777, 0o6777, false},
		{&Cred{UID: 5, GID: 5}, 0o6777, 0o777, false},
		{&Cred{UID: 5, GID: 5}, 0o2767, 0o767, false},
		{&Cred{UID: 5, GID: 9}, 0o2767, 0o2767, false}, // mandatory locking, by a member of the group
	} {
		for what, op := range map[string]func(fs *FS, ino uint64) error{
			"write": func(fs *FS, ino uint64) error {
				f := must(fs.Open(ctx, c.cred, ino, OpenWrite))(t)
				defer f.Close()
				_, err := f.WriteAt(ctx, []byte("x"), 0)
				return err
			},
			"truncate": func(fs *FS, ino uint64) error {
				_, err := fs.SetAttr(ctx, c.cred, ino, SetAttr{Set: SetSize, Size: 1})
				return err
			},
		} {
			fs, m := newTree(t)
			ino := mkfile(t, fs, Root, "f", "data").Ino
			must(fs.SetAttr(ctx, nil, ino, SetAttr{Set: SetUID | SetGID, UID: 3, GID: 9}))(t)
			kind(t, fs.SetXattr(ctx, nil, ino, capsAttr, []byte("caps"), 0), fine, "setxattr")
			must(fs.SetAttr(ctx, nil, ino, SetAttr{Set: SetMode, Mode: c.mode}))(t)
			kind(t, op(fs, ino), fine, what)
			_, err := fs.GetXattr(ctx, nil, ino, capsAttr)
			if a := attr(t, fs, ino); a.Mode != c.want || (err == nil) != c.caps {
				t.Errorf("%s by %+v: mode %o, capabilities %v; want %o, %v", what, c.cred, a.Mode, err == nil, c.want, c.caps)
			}
			clean(t, m)
		}
	}
}

func TestTmpfile(t *testing.T) {
	fs, m := newTree(t)
	m.keep = true
	f, a, err := fs.Tmpfile(ctx, nil, Root, New{Mode: 0o600}, OpenRead|OpenWrite)
	kind(t, err, fine, "tmpfile")
	f.WriteAt(ctx, []byte("kept"), 0)
	if a.Nlink != 0 || len(list(t, fs, Root)) != 0 {
		t.Fatalf("%+v", a)
	}
	fs.reclaimAll(ctx)
	crashed := openTree(t, m.at(len(m.history))) // loses it
	crashed.reclaimAll(ctx)
	if u := crashed.Usage(); u.Inodes != 1 || u.Bytes != 0 {
		t.Errorf("after a crash the tree holds %+v", u)
	}
	_, err = fs.Link(ctx, nil, a.Ino, Root, "f")
	kind(t, err, fine, "link")
	f.Close()
	fs.reclaimAll(ctx)
	if got := content(t, fs, a.Ino); string(got) != "kept" {
		t.Fatalf("%q", got)
	}
	kind(t, fs.Unlink(ctx, nil, Root, "f"), fine, "unlink")
	_, err = fs.Link(ctx, nil, a.Ino, Root, "f")
	if err == nil {
		t.Error("what was removed has a name again")
	}

	f, a, err = fs.Tmpfile(ctx, nil, Root, New{Mode: 0o600}, OpenRead|OpenWrite|OpenExcl)
	kind(t, err, fine, "tmpfile")
	_, err = fs.Link(ctx, nil, a.Ino, Root, "f")
	kind(t, err, capsule.NotFound, "link of a private one")
	f.Close()
	_, _, err = fs.Tmpfile(ctx, &Cred{UID: 5}, Root, New{Mode: 0o600}, OpenWrite)
	kind(t, err, capsule.Denied, "tmpfile where one may not write")
	fs.reclaimAll(ctx)
	clean(t, m)
}
