package vfstest_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

func create(t *testing.T, fs vfs.FS, name string, content []byte, sync bool) {
	t.Helper()
	f, err := fs.Create(name, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(bytes.Clone(content)); err != nil {
		t.Fatal(err)
	}
	if sync {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
}

func syncDir(t *testing.T, fs vfs.FS, dir string) {
	t.Helper()
	d, err := fs.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFaults(t *testing.T) {
	fs := vfstest.NewFaults(vfs.NewMem())
	bad := errors.New("bad")
	create(t, fs, "f", []byte("0123456789"), false)
	fs.Set(func(op vfstest.Op) error {
		switch {
		case op.Kind == vfstest.Write && op.Path == "g" && op.Off == 4:
			return &vfstest.Short{N: 3, Err: syscall.ENOSPC}
		case op.Kind == vfstest.Sync && op.Path == "g", op.Kind == vfstest.Sync && op.Path == "":
			return bad
		case op.Kind == vfstest.Read && op.Off == 2:
			return bad
		}
		return nil
	})
	g, err := fs.Create("g", "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Write([]byte("abcd")); err != nil {
		t.Fatal(err)
	}
	if n, err := g.Write([]byte("efgh")); n != 3 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("short write: %d, %v", n, err)
	}
	for _, sync := range []func() error{g.Sync, g.SyncData} {
		if err := sync(); !errors.Is(err, bad) {
			t.Fatal("sync:", err)
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := fs.OpenDir("")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Sync(); !errors.Is(err, bad) {
		t.Fatal("directory sync:", err)
	}
	f, err := fs.Open("f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, 1), 2); !errors.Is(err, bad) {
		t.Fatal("read:", err)
	}
	fs.Set(nil)
	if got := read(t, fs, "g"); string(got) != "abcdefg" {
		t.Fatalf("g holds %q", got)
	}
	if n := fs.Count(vfstest.Sync); n != 3 {
		t.Fatalf("counted %d syncs, want 3", n)
	}
}

func TestDiskFull(t *testing.T) {
	fs := vfstest.NewDiskFull(vfs.NewMem(), 10)
	create(t, fs, "a", []byte("123456"), false)
	f, err := fs.Create("b", "test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Write([]byte("abcdef"))
	if n != 4 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write on a full disk: %d, %v", n, err)
	}
	if u, _ := fs.GetDiskUsage(""); u.AvailBytes != 0 {
		t.Fatalf("%d bytes free on a full disk", u.AvailBytes)
	}
	if err := fs.Link("a", "c"); err != nil {
		t.Fatal(err)
	}
	if err := fs.Remove("a"); err != nil {
		t.Fatal(err)
	}
	if fs.Used() != 10 {
		t.Fatal("room given back while a link is left")
	}
	if err := fs.Rename("c", "d"); err != nil {
		t.Fatal(err)
	}
	if err := fs.Remove("d"); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Write([]byte("ef")); n != 2 || err != nil {
		t.Fatalf("write with room again: %d, %v", n, err)
	}
	fs.SetBudget(7)
	if n, err := f.Write([]byte("ghi")); n != 1 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write: %d, %v", n, err)
	}
	if got := read(t, fs, "b"); string(got) != "abcdefg" {
		t.Fatalf("b holds %q", got)
	}
}

// Synced bytes and names survive in every clone; what was not synced survives
// in some and is gone in others.
func TestPowerCutClone(t *testing.T) {
	p := vfstest.NewPowerCut()
	synced := bytes.Repeat([]byte("s"), 5000)
	create(t, p, "/kept", synced, true)
	create(t, p, "/gone", synced, true)
	create(t, p, "/moved", synced, true)
	syncDir(t, p, "/")
	create(t, p, "/new", bytes.Repeat([]byte("n"), 20000), false)
	if err := p.Remove("/gone"); err != nil {
		t.Fatal(err)
	}
	if err := p.Rename("/moved", "/here"); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	const seeds = 64
	for seed := range uint64(seeds) {
		c := p.Clone(seed)
		if got := read(t, c, "/kept"); !bytes.Equal(got, synced) {
			t.Fatalf("seed %d: synced file has %d bytes", seed, len(got))
		}
		names, err := c.List("/")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			seen[n]++
		}
		if !slices.Contains(names, "moved") && !slices.Contains(names, "here") {
			t.Fatalf("seed %d: a renamed file has neither name", seed)
		}
		if slices.Contains(names, "new") {
			b := read(t, c, "/new")
			if len(b) > 0 && len(b) < 20000 || bytes.ContainsRune(b, 0) {
				seen["torn"]++
			}
		}
		// What a clone shows is durable: another cut at once changes nothing.
		again, err := c.Clone(0).List("/")
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		slices.Sort(again)
		if !slices.Equal(names, again) {
			t.Fatalf("seed %d: a second cut turned %v into %v", seed, names, again)
		}
	}
	for _, n := range []string{"new", "gone", "here", "moved", "torn"} {
		if seen[n] == 0 || seen[n] == seeds {
			t.Errorf("%q in %d of %d clones, want some", n, seen[n], seeds)
		}
	}
}

// After the cut nothing works and nothing changes any more; locks are free on
// the machine that comes back.
func TestPowerCutAt(t *testing.T) {
	write := func(p *vfstest.PowerCut) error {
		l, err := p.Lock("/LOCK")
		if err != nil {
			return err
		}
		_ = l // held when the power goes
		f, err := p.Create("/f", "test")
		if err != nil {
			return err
		}
		defer f.Close()
		for range 3 {
			if _, err := f.Write(bytes.Repeat([]byte("x"), 100)); err != nil {
				return err
			}
			if err := f.Sync(); err != nil {
				return err
			}
		}
		return nil
	}
	p := vfstest.NewPowerCut()
	if err := write(p); err != nil {
		t.Fatal(err)
	}
	torn := false
	for n := range p.Ops() {
		p := vfstest.NewPowerCut()
		p.CutAt(n)
		if err := write(p); !errors.Is(err, vfstest.ErrPowerCut) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if !p.Off() || p.Ops() != n {
			t.Fatalf("cut at %d: %d operations were done", n, p.Ops())
		}
		if _, err := p.Open("/f"); !errors.Is(err, vfstest.ErrPowerCut) {
			t.Fatal("read without power:", err)
		}
		c := p.Clone(1)
		if l, err := c.Lock("/LOCK"); err != nil {
			t.Fatal("lock after the cut:", err)
		} else {
			l.Close()
		}
		if n >= 2 {
			torn = torn || len(read(t, c, "/f"))%100 != 0
		}
	}
	if !torn {
		t.Error("no cut tore a write")
	}
}
