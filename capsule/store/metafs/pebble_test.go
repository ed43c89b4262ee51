package metafs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/metafs"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// A database of some size on a real disk: everything written is read back,
// from memory, from tables, after compaction and after opening it again.
func TestPebble(t *testing.T) {
	n, batch := 100_000, 1000
	if testing.Short() {
		n = 20_000
	}
	key := func(i int) string { return fmt.Sprintf("key %06d", i) }
	val := func(i int) string { return fmt.Sprintf("value %d %d", i, i*i) }
	dir := filepath.Join(t.TempDir(), "meta")
	open := func() (*pebble.DB, *metafs.FS) {
		fs := metafs.New(vfs.OS(), newKeys(1), nil)
		d, err := pebble.Open(dir, &pebble.Options{FS: fs, Logger: logger{fs}, MemTableSize: 1 << 20, Cache: testCache})
		must(t, errors.Join(err, fs.Err()))
		return d, fs
	}
	check := func(d *pebble.DB) {
		t.Helper()
		it, err := d.NewIter(nil)
		must(t, err)
		i := 0
		for it.First(); it.Valid(); it.Next() {
			if string(it.Key()) != key(i) || string(it.Value()) != val(i) {
				t.Fatalf("at %d: %q = %q", i, it.Key(), it.Value())
			}
			i++
		}
		must(t, it.Close())
		if i != n {
			t.Fatalf("%d keys of %d", i, n)
		}
		for _, i := range []int{0, 1, n / 2, n - 1} {
			v, c, err := d.Get([]byte(key(i)))
			if err != nil || string(v) != val(i) {
				t.Fatalf("get %d: %q, %v", i, v, err)
			}
			c.Close()
		}
	}
	d, fs := open()
	perm := rand.New(rand.NewPCG(1, 2)).Perm(n)
	for len(perm) > 0 {
		b := d.NewBatch()
		for _, i := range perm[:batch] {
			b.Set([]byte(key(i)), []byte(val(i)), nil)
		}
		must(t, d.Apply(b, pebble.NoSync))
		perm = perm[batch:]
	}
	check(d)
	must(t, d.Flush())
	check(d)
	must(t, d.Close())
	must(t, fs.Err())
	d, fs = open()
	check(d)
	must(t, d.Compact(context.Background(), []byte("k"), []byte("l"), true))
	check(d)
	must(t, d.Close())
	must(t, fs.Err())
}

// workload commits pairs of keys, some again and again, with flushes between.
// It returns what was acknowledged, and the batch that was not, if any.
func workload(d *db) (acked, unsure map[string]string, err error) {
	acked = map[string]string{}
	for i := range 36 {
		kv := []string{}
		for j := range 2 {
			k := fmt.Sprintf("key %02d %d", i%20, j)
			kv = append(kv, k, value(fmt.Sprintf("%s, %d", k, i), 200+i*60))
		}
		unsure = map[string]string{kv[0]: kv[1], kv[2]: kv[3]}
		if err := d.put(kv...); err != nil {
			return acked, unsure, err
		}
		maps.Copy(acked, unsure)
		unsure = nil
		if i%9 == 8 {
			if err := d.flush(); err != nil {
				return acked, nil, err
			}
		}
	}
	return acked, nil, nil
}

// checkDB verifies that the database holds what was acknowledged and of the
// rest all or nothing.
func checkDB(d *db, acked, unsure map[string]string) error {
	got, err := d.scan()
	if err != nil {
		return err
	}
	if maps.Equal(got, acked) {
		return nil
	}
	with := maps.Clone(acked)
	maps.Copy(with, unsure)
	if maps.Equal(got, with) {
		return nil
	}
	for k, v := range acked {
		if got[k] != v && unsure[k] == "" {
			return fmt.Errorf("%q is lost or wrong (%d of %d keys there)", k, len(got), len(acked))
		}
	}
	return fmt.Errorf("half a batch, or what was never written: %d keys, %d acknowledged, %d unsure", len(got), len(acked), len(unsure))
}

// The power is cut at every operation of a run, and again during recovery:
// what was acknowledged is there afterwards, whole.
func TestPowerCut(t *testing.T) {
	k := newKeys(1)
	run := func(p *vfstest.PowerCut) (acked, unsure map[string]string) {
		fs := metafs.New(p, k, nil)
		d, err := openDB(fs)
		if err != nil {
			return nil, nil
		}
		acked, unsure, err = workload(d)
		if err != nil && !p.Off() {
			t.Fatal("failed with the power on:", err)
		}
		if err := d.Close(); err != nil && !p.Off() {
			t.Fatal("close with the power on:", err)
		}
		return acked, unsure
	}
	p := vfstest.NewPowerCut()
	if acked, _ := run(p); len(acked) != 40 {
		t.Fatalf("%d keys without a power cut", len(acked))
	}
	step := 1
	if testing.Short() {
		step = 7
	}
	for cut := 0; cut < p.Ops(); cut += step {
		p := vfstest.NewPowerCut()
		p.CutAt(cut)
		acked, unsure := run(p)
		for i := range 2 {
			seed := uint64(2*cut + i)
			// A second cut, somewhere in recovery.
			again := p.Clone(seed)
			again.CutAt(int(seed*7) % 40)
			if d, err := openDB(metafs.New(again, k, nil)); err == nil {
				d.Close()
			}
			last := again.Clone(seed + 1)
			d, err := openDB(metafs.New(last, k, nil))
			if err != nil {
				t.Fatalf("cut at %d, seed %d: open: %v", cut, seed, err)
			}
			if err := checkDB(d, acked, unsure); err != nil {
				t.Fatalf("cut at %d, seed %d: %v", cut, seed, err)
			}
			must(t, d.put("it still", "works"))
			must(t, d.Close())
		}
	}
}

// Whatever single operation fails, for once or from then on: the process
// lives, no call hangs, what was acknowledged before is there when the disk
// works again, and a log that failed acknowledges nothing any more.
func TestPebbleFailStop(t *testing.T) {
	k := newKeys(1)
	count := func() int {
		faults := vfstest.NewFaults(pebblevfs.NewMem())
		d := mustOpen(t, faults, k)
		_, _, err := workload(d)
		must(t, err)
		must(t, d.Close())
		return faults.Count()
	}()
	step := 1
	if testing.Short() {
		step = 11
	}
	for _, lasting := range []bool{false, true} {
		froze := 0
		for at := 0; at < count; at += step {
			mem := pebblevfs.NewMem()
			faults := vfstest.NewFaults(mem)
			n := 0
			faults.Set(func(op vfstest.Op) error {
				n++
				if op.Kind == vfstest.Close || n <= at || !lasting && n > at+1 {
					return nil
				}
				if op.Kind == vfstest.Write {
					return &vfstest.Short{N: op.Len / 2, Err: syscall.EIO}
				}
				return syscall.EIO
			})
			fs := metafs.New(faults, k, nil)
			var acked, unsure map[string]string
			d, err := openDB(fs)
			if err == nil {
				acked, unsure, err = workload(d)
				if fs.Err() != nil {
					froze++
					if err == nil && !errors.Is(fs.Err(), syscall.EIO) {
						t.Fatalf("fault at %d: %v", at, fs.Err())
					}
					if err := d.put("after", "failure"); err == nil {
						t.Fatalf("fault at %d: a commit was acknowledged after %v", at, fs.Err())
					}
				}
				d.Close()
			}
			if unsure == nil {
				unsure = map[string]string{}
			}
			unsure["after"] = "failure"
			faults.Set(nil)
			d = mustOpen(t, faults, k)
			got, err := d.scan()
			must(t, err)
			for k, v := range acked {
				if got[k] != v && (unsure[k] == "" || got[k] != unsure[k]) {
					t.Fatalf("fault at %d (lasting: %v): %q is lost or wrong", at, lasting, k)
				}
			}
			for k, v := range got {
				if acked[k] != v && unsure[k] != v {
					t.Fatalf("fault at %d (lasting: %v): %q was never written", at, lasting, k)
				}
			}
			must(t, d.Close())
		}
		if froze == 0 {
			t.Error("no fault froze the disk")
		}
	}
}

// A disk that was full for a while: commits fail or wait, the process lives,
// and once there is room the store works, with all that was acknowledged.
func TestPebbleDiskFull(t *testing.T) {
	k := newKeys(1)
	for budget := int64(2000); budget < 300_000; budget += 7001 {
		disk := vfstest.NewDiskFull(pebblevfs.NewMem(), budget)
		fs := metafs.New(disk, k, nil)
		var acked, unsure map[string]string
		d, err := openDBWith(fs, func(o *pebble.Options) { o.MemTableSize = 1 << 20 })
		if err == nil {
			acked, unsure, err = workload(d)
			if err != nil && capsule.KindOf(err) != capsule.NoSpace {
				t.Fatalf("budget %d: %v", budget, err)
			}
			disk.SetBudget(10 << 20)
			d.Close()
		}
		disk.SetBudget(10 << 20)
		d = mustOpen(t, disk, k)
		if err := checkDB(d, acked, unsure); err != nil {
			t.Fatalf("budget %d: %v", budget, err)
		}
		must(t, d.Close())
	}
}

// build runs the workload and returns the disk: after a clean close, or as
// after kill -9.
func build(t *testing.T, closed bool) (*pebblevfs.MemFS, map[string]string) {
	mem := pebblevfs.NewCrashableMem()
	d := mustOpen(t, mem, newKeys(1))
	acked, _, err := workload(d)
	must(t, err)
	if closed {
		must(t, d.Close())
		return mem, acked
	}
	defer d.Close()
	return clone(mem), acked
}

// A flipped bit anywhere in any file is an error or harmless. Markers are
// empty, so there is nothing in them to flip; LOCK likewise.
func TestFlippedBits(t *testing.T) {
	for _, closed := range []bool{true, false} {
		mem, acked := build(t, closed)
		errs, positions := 0, 0
		for name, b := range onDisk(t, mem, "/meta") {
			// As after kill -9 a table may just have been begun.
			if closed && len(b) == 0 && !strings.HasPrefix(name, "marker.") && name != "LOCK" {
				t.Errorf("%s is empty", name)
			}
			at := somePositions(contentLen(b))
			if zero := len(b) - 5; zero > contentLen(b) {
				at = append(at, zero)
			}
			for _, off := range at {
				positions++
				c := clone(mem)
				onDisk(t, c, "/meta")[name][off] ^= 1 << (off % 8)
				d, err := openDB(metafs.New(c, newKeys(1), nil))
				if err == nil {
					var got map[string]string
					if got, err = d.scan(); err == nil && !maps.Equal(got, acked) {
						t.Fatalf("closed %v: bit flipped at %d of %s: %d keys of %d are right", closed, off, name, len(got), len(acked))
					}
					d.Close()
				}
				if err != nil {
					errs++
				}
			}
		}
		t.Logf("closed %v: %d positions, %d noticed", closed, positions, errs)
		if errs < positions/4 {
			t.Errorf("closed %v: only %d of %d flips were noticed", closed, errs, positions)
		}
	}
}

// contentLen is a file's size without the zeros that a WAL is extended with.
func contentLen(b []byte) int { return len(bytes.TrimRight(b, "\x00")) }

// somePositions picks all of a small file, and of a larger one both ends and
// some between.
func somePositions(n int) []int {
	var at []int
	few, first, last := 150, 70, 40
	if testing.Short() {
		few, first, last = 10, 10, 10
	}
	rng := rand.New(rand.NewPCG(uint64(n), 0))
	for i := range n {
		if n <= 2*few || i < first || i >= n-last || rng.IntN(n) < few {
			at = append(at, i)
		}
	}
	return at
}

// Nothing of what is stored can be read on the disk, in files or names.
func TestNoPlaintext(t *testing.T) {
	mem := pebblevfs.NewCrashableMem()
	d := mustOpen(t, mem, newKeys(1))
	const secret = "the-secret-plan"
	for i := range 50 {
		must(t, d.put(fmt.Sprintf("%s key %d", secret, i), fmt.Sprintf("%d %s value", i, strings.Repeat(secret, 100))))
	}
	look := func() {
		for name, b := range onDisk(t, clone(mem), "/meta") {
			for _, s := range []string{secret, "secret", "pebble", "leveldb", "bloom"} {
				if bytes.Contains(b, []byte(s)) {
					t.Errorf("%s contains %q", name, s)
				}
			}
		}
	}
	look()
	must(t, d.flush())
	must(t, d.Compact(context.Background(), []byte("a"), []byte("z"), false))
	look()
	must(t, d.Close())
	look()
}

func TestPebbleWrongKey(t *testing.T) {
	mem, acked := build(t, true)
	before := maps.Clone(onDisk(t, clone(mem), "/meta"))
	wrong := newKeys(1)
	wrong[0][9] ^= 1
	if _, err := openDB(metafs.New(mem, wrong, nil)); capsule.KindOf(err) != capsule.WrongKey {
		t.Fatal("open with a wrong key:", err)
	}
	for name, b := range onDisk(t, mem, "/meta") {
		if !bytes.Equal(before[name], b) {
			t.Errorf("a wrong key changed %s", name)
		}
	}
	d := mustOpen(t, mem, newKeys(1))
	defer d.Close()
	must(t, checkDB(d, acked, nil))
}

// Pebble must not meet a log of zero length as the end of all data when it is
// the log's middle that is bad.
func TestPebbleReportsCorruption(t *testing.T) {
	mem := pebblevfs.NewCrashableMem()
	d := mustOpen(t, mem, newKeys(1))
	for i := range 10 {
		must(t, d.put(fmt.Sprint("key ", i), value("v", 500)))
	}
	c := clone(mem)
	must(t, d.Close())
	files := onDisk(t, c, "/meta")
	logs := slices.DeleteFunc(slices.Collect(maps.Keys(files)), func(n string) bool { return !strings.HasSuffix(n, ".log") })
	if len(logs) != 1 {
		t.Fatal("logs:", logs)
	}
	files[logs[0]][contentLen(files[logs[0]])/2] ^= 4
	_, err := openDB(metafs.New(c, newKeys(1), nil))
	if capsule.KindOf(err) != capsule.Damaged || !pebble.IsCorruptionError(err) || !strings.Contains(err.Error(), logs[0]) {
		t.Fatal("open with a damaged WAL:", err)
	}
}
