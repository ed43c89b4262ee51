package tree

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/spacestore/space/capsule"
)

// scramble does random operations; errors are part of it.
func scramble(fs *FS, r *rand.Rand, steps int) {
	dirs := []uint64{Root}
	var open []*File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	name := func() string { return string(rune('a' + r.IntN(5))) }
	dir := func() uint64 { return dirs[r.IntN(len(dirs))] }
	for range steps {
		switch r.IntN(12) {
		case 0:
			if a, err := fs.Mkdir(ctx, nil, dir(), name(), New{Mode: 0o755}); err == nil {
				dirs = append(dirs, a.Ino)
			}
		case 1, 2, 3:
			if f, _, err := fs.Create(ctx, nil, dir(), name(), New{Mode: 0o644}, OpenRead|OpenWrite); err == nil {
				open = append(open, f)
			}
		case 4:
			fs.Unlink(ctx, nil, dir(), name())
		case 5:
			fs.Rmdir(ctx, nil, dir(), name())
		case 6:
			fs.Rename(ctx, nil, dir(), name(), dir(), name(), RenameFlags(r.IntN(3)))
		case 7:
			if a, err := fs.Lookup(ctx, nil, dir(), name()); err == nil {
				fs.Link(ctx, nil, a.Ino, dir(), name())
				fs.SetXattr(ctx, nil, a.Ino, "user."+name(), []byte(name()), 0)
			}
		default:
			if len(open) == 0 {
				continue
			}
			i := r.IntN(len(open))
			f := open[i]
			switch r.IntN(5) {
			case 0:
				f.Close()
				open = append(open[:i], open[i+1:]...)
			case 1:
				f.Truncate(ctx, int64(r.IntN(20*blockSize)))
			case 2:
				f.Allocate(ctx, PunchHole, int64(r.IntN(10*blockSize)), int64(1+r.IntN(10*blockSize)))
			case 3:
				CopyRange(ctx, f, int64(r.IntN(blockSize)), open[r.IntN(len(open))], int64(r.IntN(blockSize)), 9*blockSize)
			default:
				f.WriteAt(ctx, bytes.Repeat([]byte("x"), 1+r.IntN(8*blockSize)), int64(r.IntN(20*blockSize)))
			}
		}
	}
}

// Whatever prefix of the updates survives, the tree is whole, and after what
// was left to do is done nothing is lost or left over.
func TestCrashAnywhere(t *testing.T) {
	runs := uint64(12)
	if testing.Short() {
		runs = 3
	}
	for seed := range runs {
		r := rand.New(rand.NewPCG(seed, 3))
		fs, m := newTree(t)
		m.keep, m.punchMax = true, 2
		scramble(fs, r, 300)
		fs.Close()
		for n := 1; n <= len(m.history); n += 1 + r.IntN(5) {
			c := m.at(n)
			clean(t, c)
			again := openTree(t, c)
			again.reclaimAll(ctx)
			again.Close()
			clean(t, c)
			if k, _ := again.capsule.(*memory).root.Load().scan("r", "s", func(string, []byte) (bool, error) { return false, nil }); !k {
				t.Fatalf("seed %d, %d updates: something is left to reclaim", seed, n)
			}
		}
	}
}

// What was cut off never comes back, wherever a crash comes between.
func TestCrashWhileTrimming(t *testing.T) {
	fs, m := newTree(t)
	a := mkfile(t, fs, Root, "f", strings.Repeat("x", 20*blockSize))
	m.keep, m.punchMax = true, 3
	f := must(fs.Open(ctx, nil, a.Ino, OpenRead|OpenWrite))(t)
	kind(t, f.Truncate(ctx, 100), fine, "truncate")
	kind(t, f.Truncate(ctx, 30*blockSize), fine, "truncate")
	f.Close()
	fs.Close()
	want := append(bytes.Repeat([]byte("x"), 100), make([]byte, 30*blockSize-100)...)
	for n := 1; n <= len(m.history); n++ {
		again, err := Open(ctx, m.at(n), Options{})
		kind(t, err, fine, "open")
		_, err = again.SetAttr(ctx, nil, a.Ino, SetAttr{Set: SetSize, Size: 30 * blockSize})
		kind(t, err, fine, "grow")
		if got := content(t, again, a.Ino); !bytes.Equal(got, want) {
			t.Fatalf("after %d updates old content came back", n)
		}
		again.Close()
	}
}

// An update that fails changes nothing, in memory neither.
func TestFailedUpdates(t *testing.T) {
	fs, m := newTree(t)
	r := rand.New(rand.NewPCG(1, 4))
	broken, luck := errors.New("broken"), rand.New(rand.NewPCG(2, 4))
	setFail := func(fn func() error) {
		m.updates.Lock()
		defer m.updates.Unlock()
		m.fail = fn
	}
	setFail(func() error {
		if luck.IntN(3) == 0 {
			return broken
		}
		return nil
	})
	for range 30 {
		scramble(fs, r, 50)
		m.updates.Lock() // so that the reclaimer does not come between
		usage, root := fs.Usage(), attr(t, fs, Root)
		fresh := openTree(t, m.snapshot())
		if u, a := fresh.Usage(), attr(t, fresh, Root); u != usage || a != root {
			t.Fatalf("memory has %+v %+v, rows %+v %+v", usage, root, u, a)
		}
		m.updates.Unlock()
	}
	setFail(nil)
	fs.reclaimAll(ctx)
	fs.Close()
	clean(t, m)
}

func TestManyAtOnce(t *testing.T) {
	fs, m := newTree(t)
	m.punchMax = 2
	cancel := fs.Watch(func(e Event) {
		if e.Ino != 0 {
			fs.GetAttr(ctx, e.Ino)
		}
	})
	defer cancel()
	var wg sync.WaitGroup
	for i := range uint64(6) {
		wg.Go(func() { scramble(fs, rand.New(rand.NewPCG(i, 5)), 400) })
	}
	wg.Go(func() {
		for range 200 {
			fs.ReadDirPlus(ctx, nil, Root, 0, func(e Entry) bool { fs.Path(ctx, e.Ino); return true })
		}
	})
	wg.Wait()
	fs.reclaimAll(ctx)
	fs.Close()
	clean(t, m)
}

func TestReadOnly(t *testing.T) {
	_, m := sample(t)
	fs := openTree(t, m.snapshot())
	_, err := fs.Mkdir(ctx, nil, Root, "x", New{})
	kind(t, err, capsule.ReadOnly, "mkdir")
	kind(t, fs.Unlink(ctx, nil, Root, "link"), capsule.ReadOnly, "unlink")
	_, err = fs.Open(ctx, nil, at(fs, "link"), OpenWrite)
	kind(t, err, capsule.ReadOnly, "open for writing")
	if got := content(t, fs, at(fs, "d/e/f")); string(got) != "content of f" {
		t.Fatalf("%q", got)
	}
	if p, err := fs.Path(ctx, at(fs, "d/e/with-acl")); p != "/d/e/with-acl" || err != nil {
		t.Fatal(p, err)
	}
}

func TestQuota(t *testing.T) {
	fs, m := newTree(t)
	kind(t, fs.SetQuota(ctx, Quota{Bytes: 3 * blockSize, Inodes: 3}), fine, "quota")
	kind(t, fs.SetQuota(ctx, Quota{Bytes: -1}), capsule.Invalid, "quota")
	f, _, err := fs.Create(ctx, nil, Root, "f", New{Mode: 0o644}, OpenRead|OpenWrite)
	kind(t, err, fine, "create")
	defer f.Close()
	mkdir(t, fs, Root, "d")
	_, err = fs.Mkdir(ctx, nil, Root, "e", New{})
	kind(t, err, capsule.Quota, "a fourth inode")
	for _, w := range []struct{ len, off, written int }{
		{4 * blockSize, 0, 3 * blockSize},
		{5000, 3*blockSize - 100, 100},    // the rest of what is there already
		{100, 3 * blockSize, 0},           // nothing of it
		{7 * blockSize, 0, 3 * blockSize}, // over what is there
	} {
		if n, err := f.WriteAt(ctx, make([]byte, w.len), int64(w.off)); n != w.written || capsule.KindOf(err) != capsule.Quota {
			t.Errorf("%d of %d bytes written at %d, want %d: %v", n, w.len, w.off, w.written, err)
		}
		if a := attr(t, fs, f.Ino()); a.Size != 3*blockSize {
			t.Errorf("then the file has %d bytes", a.Size)
		}
	}
	kind(t, f.Truncate(ctx, 0), fine, "truncate")
	_, err = f.WriteAt(ctx, make([]byte, 3*blockSize), 1<<30)
	kind(t, err, fine, "write of as much as there is")
	_, err = f.WriteAt(ctx, make([]byte, blockSize), 0)
	kind(t, err, capsule.Quota, "write of more")
	_, err = f.WriteAt(ctx, make([]byte, blockSize), 1<<30)
	kind(t, err, fine, "overwrite")
	kind(t, f.Truncate(ctx, 0), fine, "truncate")
	if u := fs.Usage(); u.Bytes != 0 || u.Inodes != 3 || u.Quota.Bytes != 3*blockSize {
		t.Fatalf("%+v", u)
	}
	kind(t, fs.SetQuota(ctx, Quota{}), fine, "no quota")
	mkdir(t, fs, Root, "e")
	again := openTree(t, m)
	if u := again.Usage(); u != fs.Usage() {
		t.Fatalf("%+v, %+v", u, fs.Usage())
	}
	clean(t, m)
}
