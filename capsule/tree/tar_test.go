package tree

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
)

// snapshotOf describes a tree but for inode numbers and what a tar cannot hold.
func snapshotOf(t testing.TB, fs *FS, dir uint64) map[string]any {
	type facts struct {
		Attr
		target, content string
		xattrs          string
	}
	all := map[string]any{}
	var walk func(dir uint64, path string)
	walk = func(dir uint64, path string) {
		must(0, fs.ReadDirPlus(ctx, nil, dir, 0, func(e Entry) bool {
			p := path + "/" + e.Name
			f := facts{Attr: e.Attr}
			f.Ino, f.Gen, f.Change, f.Parent, f.Alloc = 0, 0, 0, 0, 0
			f.Ctime, f.Btime = time.Time{}, time.Time{}
			switch e.Type {
			case Regular:
				f.content = string(content(t, fs, e.Ino))
			case Symlink:
				f.target = must(fs.Readlink(ctx, e.Ino))(t)
			}
			for _, name := range must(fs.ListXattr(ctx, nil, e.Ino))(t) {
				f.xattrs += name + "=" + string(must(fs.GetXattr(ctx, nil, e.Ino, name))(t)) + ";"
			}
			all[p] = f
			if e.Type == Directory {
				walk(e.Ino, p)
			}
			return true
		}))(t)
	}
	walk(dir, "")
	return all
}

func TestTarRoundTrip(t *testing.T) {
	fs, m := sample(t)
	d := at(fs, "d")
	must(fs.Mknod(ctx, nil, d, "dev", CharDev, New{Mode: 0o600, Rdev: makedev(259, 70000)}))(t)
	kind(t, fs.SetXattr(ctx, nil, d, "user.binary", []byte("a\x00\xff=\n"), 0), fine, "xattr")
	a := mkfile(t, fs, d, strings.Repeat("long", 50), "x")
	must(fs.SetAttr(ctx, nil, a.Ino, SetAttr{Set: SetUID | SetGID | SetMtime, UID: 3e9, GID: 5, Mtime: time.Unix(-5, 123456789)}))(t)
	must(fs.SetAttr(ctx, nil, a.Ino, SetAttr{Set: SetMode, Mode: 0o6755}))(t)
	f := must(fs.Open(ctx, nil, mkfile(t, fs, Root, "sparse", "").Ino, OpenWrite))(t)
	f.WriteAt(ctx, []byte("in the middle"), 3<<20)
	f.Truncate(ctx, 5<<20)
	f.Close()
	mkdir(t, fs, Root, "into")
	want := snapshotOf(t, fs, Root)
	var b bytes.Buffer
	kind(t, fs.Export(ctx, Root, &b), fine, "export")

	to, m2 := newTree(t)
	into := mkdir(t, to, Root, "into")
	mkfile(t, to, into, "link", "is replaced")
	for range 2 { // the second time over what is there
		kind(t, to.Import(ctx, into, bytes.NewReader(b.Bytes())), fine, "import")
		got := snapshotOf(t, to, into)
		for p, f := range want {
			if got[p] != f {
				t.Errorf("%s is %+v\nwant %+v", p, got[p], f)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d paths, want %d", len(got), len(want))
		}
	}
	if a := attr(t, to, at(to, "into/sparse")); a.Alloc > 128<<10 {
		t.Errorf("a sparse file takes %d bytes", a.Alloc)
	}
	to.reclaimAll(ctx)
	to.Close()
	clean(t, m2)
	clean(t, m)
}

func TestImportStaysInside(t *testing.T) {
	fs, _ := newTree(t)
	into := mkdir(t, fs, Root, "into")
	for _, c := range []struct {
		name string
		want capsule.ErrorKind
	}{{"../../etc/passwd", fine}, {"/abs", fine}, {"out/x", capsule.NotDir}, {"", capsule.Invalid}, {strings.Repeat("n", 256), capsule.NameTooLong}} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(&tar.Header{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "/"})
		w.WriteHeader(&tar.Header{Name: c.name, Typeflag: tar.TypeReg, Mode: 0o644})
		w.Close()
		kind(t, fs.Import(ctx, into, &b), c.want, c.name)
	}
	if n := len(list(t, fs, Root)); n != 1 {
		t.Fatalf("%d entries in the root", n)
	}
	kind(t, fs.Import(ctx, into, strings.NewReader(strings.Repeat("garbage", 1000))), capsule.Invalid, "garbage")
}
