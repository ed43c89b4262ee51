package metafs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/metafs"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// After a rotation, one Reseal, a flush and two opens, nothing needs the old key.
func TestReseal(t *testing.T) {
	// Without compactions, which would rewrite the tables by themselves.
	idle := func(o *pebble.Options) { o.DisableAutomaticCompactions = true }
	mem := pebblevfs.NewCrashableMem()
	d, err := openDBWith(metafs.New(mem, newKeys(1), nil), idle)
	must(t, err)
	acked, _, err := workload(d)
	must(t, err)
	must(t, d.Close())

	ring := newKeys(2)
	fs := metafs.New(mem, ring, nil)
	d, err = openDBWith(fs, idle)
	must(t, err)
	if v, err := fs.OldestKeyVersion("/meta"); err != nil || v != 1 {
		t.Fatalf("oldest key version is %d, %v", v, err)
	}
	replace(t, mem, "/meta/000001.sst.reseal", []byte("left by a crash"))
	it, err := d.NewIter(nil) // keeps the old tables open
	must(t, err)
	it.First()

	n, err := fs.Reseal(t.Context(), "/meta")
	if err != nil || n == 0 {
		t.Fatalf("resealed %d tables: %v", n, err)
	}
	must(t, checkDB(d, acked, nil))
	got := 1
	for it.Next() {
		got++
	}
	must(t, it.Close())
	if got != len(acked) {
		t.Fatalf("the old iterator saw %d keys of %d", got, len(acked))
	}
	if n, err := fs.Reseal(t.Context(), "/meta"); err != nil || n != 0 {
		t.Fatalf("the second time, %d tables: %v", n, err)
	}
	must(t, d.flush())
	must(t, d.Close())
	for range 2 { // Pebble keeps one old MANIFEST
		d = mustOpen(t, mem, ring)
		must(t, d.Close()) // waits for removals
	}
	for name := range onDisk(t, mem, "/meta") {
		if strings.Contains(name, "reseal") {
			t.Error("left behind:", name)
		}
	}
	if v, err := d.fs.OldestKeyVersion("/meta"); err != nil || v != 2 {
		t.Fatalf("oldest key version is %d, %v", v, err)
	}
	retired := newKeys(2)
	retired[0] = [32]byte{}
	d = mustOpen(t, mem, retired)
	must(t, checkDB(d, acked, nil))
	must(t, d.Close())
}

// rotating is a key ring whose current version a test moves.
type rotating struct {
	mu sync.Mutex
	keys
}

func (r *rotating) add() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys = newKeys(len(r.keys) + 1)
}

func (r *rotating) Current() (uint32, [32]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys.Current()
}

func (r *rotating) Key(v uint32) ([32]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys.Key(v)
}

// Rotations and reseals while the database flushes and compacts: nothing is
// lost, and no table that Pebble removed comes back.
func TestResealWhileCompacting(t *testing.T) {
	mem := pebblevfs.NewMem()
	ring := &rotating{keys: newKeys(1)}
	fs := metafs.New(mem, ring, nil)
	d, err := openDB(fs)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			ring.add()
			if _, err := fs.Reseal(ctx, "/meta"); err != nil && !errors.Is(err, context.Canceled) {
				t.Error("reseal:", err)
				return
			}
		}
	})
	want := map[string]string{}
	for i := range 400 {
		k := fmt.Sprint("key ", i%70)
		want[k] = value(fmt.Sprint(i, k), 2000)
		must(t, d.put(k, want[k]))
		if i%50 == 0 {
			must(t, d.Compact(t.Context(), []byte("a"), []byte("z"), false))
		}
	}
	cancel()
	wg.Wait()
	must(t, checkDB(d, want, nil))
	must(t, d.Close())
	d = mustOpen(t, mem, ring)
	must(t, checkDB(d, want, nil))
	must(t, d.Close()) // ends all removals
	live := map[string]bool{}
	d = mustOpen(t, mem, ring)
	levels, err := d.SSTables()
	must(t, err)
	for _, l := range levels {
		for _, s := range l {
			live[fmt.Sprintf("%06d.sst", s.FileNum)] = true
		}
	}
	must(t, d.Close())
	for name := range onDisk(t, mem, "/meta") {
		if strings.HasSuffix(name, ".sst") && !live[name] {
			t.Error("not removed:", name)
		}
	}
}

// gate lets a test do something when a table's copy is complete but for its
// sync.
type gate struct {
	vfs.FS
	before func()
}

func (g *gate) Create(name string, c vfs.Category) (vfs.File, error) {
	f, err := g.FS.Create(name, c)
	return gateFile{f, g}, err
}

type gateFile struct {
	vfs.File
	g *gate
}

func (f gateFile) Sync() error {
	f.g.before()
	return f.File.Sync()
}

// A table removed while it is being copied stays removed.
func TestResealRemoved(t *testing.T) {
	mem := pebblevfs.NewMem()
	must(t, writeLog(t, metafs.New(mem, newKeys(1), nil), tableName, 100).Close())
	g := &gate{FS: mem}
	fs := metafs.New(g, newKeys(2), nil)
	g.before = func() { must(t, fs.Remove(tableName)) }
	if n, err := fs.Reseal(t.Context(), "/"); err != nil || n != 0 {
		t.Fatalf("resealed %d: %v", n, err)
	}
	if names, _ := mem.List("/"); len(names) != 0 {
		t.Fatal("there again:", names)
	}
}

// A power cut at any step of a reseal leaves each table whole, under one key
// or the other.
func TestResealPowerCut(t *testing.T) {
	ring := newKeys(2)
	want := map[string][]byte{}
	prepare := func() *vfstest.PowerCut {
		p := vfstest.NewPowerCut()
		fs := metafs.New(p, newKeys(1), nil)
		for i := range 3 {
			name := fmt.Sprintf("/%06d.sst", i)
			f, err := fs.Create(name, "test")
			must(t, err)
			want[name] = []byte(value(name, 10000*i+1))
			_, err = f.Write(bytes.Clone(want[name]))
			must(t, err)
			must(t, f.Close())
		}
		d, err := fs.OpenDir("/")
		must(t, err)
		must(t, d.Sync())
		must(t, d.Close())
		return p
	}
	p := prepare()
	start := p.Ops()
	if n, err := metafs.New(p, ring, nil).Reseal(t.Context(), "/"); err != nil || n != 3 {
		t.Fatalf("resealed %d: %v", n, err)
	}
	for cut := start; cut < p.Ops(); cut++ {
		p := prepare()
		p.CutAt(cut)
		if _, err := metafs.New(p, ring, nil).Reseal(t.Context(), "/"); err == nil {
			t.Fatalf("cut at %d: no error", cut)
		}
		for seed := range uint64(6) {
			c := p.Clone(seed)
			fs := metafs.New(c, ring, nil)
			for range 2 { // as found, and after a reseal that cleans up
				for name, w := range want {
					if got, err := readAll(fs, name); err != nil || !bytes.Equal(got, w) {
						t.Fatalf("cut at %d, seed %d: %s: %v", cut, seed, name, err)
					}
				}
				if _, err := fs.Reseal(t.Context(), "/"); err != nil {
					t.Fatal(err)
				}
			}
			if names, _ := c.List("/"); len(names) != len(want) {
				t.Fatalf("cut at %d, seed %d: left behind: %v", cut, seed, names)
			}
			if v, err := fs.OldestKeyVersion("/"); err != nil || v != 2 {
				t.Fatalf("oldest key version is %d, %v", v, err)
			}
		}
	}
}

// One damaged table does not keep the others under an old key.
func TestResealDamaged(t *testing.T) {
	mem := pebblevfs.NewMem()
	old := metafs.New(mem, newKeys(1), nil)
	names := []string{"/000001.sst", "/000002.sst", "/000003.sst"}
	for _, n := range names {
		must(t, writeLog(t, old, n, 100).Close())
	}
	b, err := mem.UnsafeGetFileDataBuffer(names[1])
	must(t, err)
	b[100] ^= 1
	damagedBytes := bytes.Clone(b)
	n, err := metafs.New(mem, newKeys(2), nil).Reseal(t.Context(), "/")
	if n != 2 || capsule.KindOf(err) != capsule.Damaged || !strings.Contains(err.Error(), names[1]) {
		t.Fatalf("resealed %d: %v", n, err)
	}
	b, err = mem.UnsafeGetFileDataBuffer(names[1])
	if err != nil || !bytes.Equal(b, damagedBytes) {
		t.Fatal("the damaged table was changed:", err)
	}
	if _, err := mem.Stat(names[1] + ".reseal"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("copy left behind:", err)
	}
}
