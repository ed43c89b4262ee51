package tree

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
)

func importDir(fs *FS, host string) error {
	return Pipe(func(w io.Writer) error { return PackDir(ctx, host, w) },
		func(r io.Reader) error { return fs.Import(ctx, Root, r) })
}

func exportDir(fs *FS, host string) error {
	return Pipe(func(w io.Writer) error { return fs.Export(ctx, Root, w) },
		func(r io.Reader) error { return UnpackDir(ctx, host, r) })
}

// A tree goes to the host and comes back the same.
func TestHostRoundTrip(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for owners and devices")
	}
	fs, _ := sample(t)
	d := at(fs, "d")
	must(fs.Mknod(ctx, nil, d, "dev", CharDev, New{Mode: 0o600, Rdev: unix.Mkdev(259, 70000)}))(t)
	a := mkfile(t, fs, d, "suid", "x")
	must(fs.SetAttr(ctx, nil, a.Ino, SetAttr{Set: SetUID | SetGID | SetMtime, UID: 7, GID: 5, Mtime: time.Unix(1000, 123456789)}))(t)
	must(fs.SetAttr(ctx, nil, a.Ino, SetAttr{Set: SetMode, Mode: 0o6755}))(t)
	f := must(fs.Open(ctx, nil, mkfile(t, fs, Root, "sparse", "").Ino, OpenWrite))(t)
	f.WriteAt(ctx, bytes.Repeat([]byte("in the middle"), 30000), 3<<20)
	f.Truncate(ctx, 5<<20)
	f.Close()
	host := t.TempDir()
	kind(t, exportDir(fs, host), fine, "export")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(host, "sparse"), &st); err != nil || st.Size != 5<<20 || st.Blocks*512 > 1<<20 {
		t.Fatalf("%+v, %v", st, err)
	}
	to, m := newTree(t)
	kind(t, importDir(to, host), fine, "import")
	want, got := snapshotOf(t, fs, Root), snapshotOf(t, to, Root)
	for p, f := range want {
		if got[p] != f {
			t.Errorf("%s is %+v\nwant %+v", p, got[p], f)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d paths, want %d", len(got), len(want))
	}
	to.Close()
	clean(t, m)
	kind(t, exportDir(fs, host), capsule.Exists, "export over what is there")
	kind(t, importDir(to, filepath.Join(host, "none")), capsule.NotFound, "import of nothing")
}
