package metafs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/metafs"
	"github.com/spacestore/space/internal/testenv/seed"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

func init() { seed.Rapid() }

const (
	tableName = "/000001.sst"
	walName   = "/000002.log"
	otherName = "/MANIFEST-000003"
)

// Whatever is written to a file and however it is read, it reads like a
// plain file.
func TestLikePlainFile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := pebblevfs.NewMem()
		fs := metafs.New(mem, newKeys(1), nil)
		name := rapid.SampledFrom([]string{tableName, "/1.blob", walName, otherName, "/t.dbtmp"}).Draw(t, "name")
		f, err := fs.Create(name, "test")
		must2(t, err)
		var want []byte
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for _, size := range rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 5, 100, 4095, 4096, 4097, 8192, 65536, 65537, 200000}), 0, 8).Draw(t, "writes") {
			b := make([]byte, size)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			want = append(want, b...)
			n, err := f.Write(b)
			must2(t, err)
			if n != size {
				t.Fatalf("wrote %d of %d", n, size)
			}
			switch rng.IntN(4) {
			case 0:
				must2(t, f.Sync())
			case 1:
				must2(t, f.SyncData())
			case 2:
				_, err := f.SyncTo(int64(len(want)))
				must2(t, err)
			}
		}
		fi, err := f.Stat()
		must2(t, err)
		if fi.Size() != int64(len(want)) {
			t.Fatalf("size while writing is %d, want %d", fi.Size(), len(want))
		}
		must2(t, f.Close())
		fi, err = fs.Stat(name)
		must2(t, err)
		if fi.Size() != int64(len(want)) {
			t.Fatalf("size is %d, want %d", fi.Size(), len(want))
		}
		plain := bytes.NewReader(want)
		r, err := fs.Open(name)
		must2(t, err)
		defer r.Close()
		for range 20 {
			off := rng.Int64N(int64(len(want)) + 10)
			a, b := make([]byte, rng.IntN(30000)), make([]byte, 30000)
			n, err := r.ReadAt(a, off)
			m, wantErr := plain.ReadAt(b[:len(a)], off)
			if len(a) == 0 {
				continue // readers differ on it, and none need it
			}
			if n != m || err != wantErr || !bytes.Equal(a[:n], b[:m]) {
				t.Fatalf("read of %d at %d: %d, %v, want %d, %v", len(a), off, n, err, m, wantErr)
			}
		}
		got, err := io.ReadAll(r)
		must2(t, err)
		if !bytes.Equal(got, want) {
			t.Fatal("content differs")
		}
	})
}

func must2(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// writeLog writes count numbered records of a log, syncing after every one
// whose number is in synced. It does not close the log.
func writeLog(t testing.TB, fs vfs.FS, name string, count int, synced ...int) vfs.File {
	t.Helper()
	f, err := fs.Create(name, "test")
	must(t, err)
	for i := range count {
		_, err := fmt.Fprintf(f, "record %04d;", i)
		must(t, err)
		for _, s := range synced {
			if s == i {
				must(t, f.Sync())
			}
		}
	}
	return f
}

func records(b []byte) int { return strings.Count(string(b), ";") }

// find returns the offset in a sealed log of the frame with record i: records
// are 12 bytes, frames have 34 more, marks follow syncs.
func frameOffset(i int, marks int) int { return 64 + i*(12+34) + marks*34 }

func TestLogTornOrDamaged(t *testing.T) {
	const n = 10
	tests := []struct {
		name   string
		synced []int
		closed bool
		break_ func(b []byte) []byte
		want   int // records, or -1 for damage
	}{
		{"nothing", nil, false, func(b []byte) []byte { return b }, n},
		{"unsynced tail cut", []int{5}, false, func(b []byte) []byte { return b[:frameOffset(n, 1)-5] }, n - 1},
		{"zeros ahead cut", []int{5}, false, func(b []byte) []byte { return b[:frameOffset(n, 1)] }, n},
		{"rubbish for zeros ahead", []int{5}, false, func(b []byte) []byte { return append(b[:frameOffset(n, 1)], bytes.Repeat([]byte{1, 9, 0}, 999)...) }, n},
		{"unsynced tail zeroed", []int{5}, false, func(b []byte) []byte { clear(b[frameOffset(8, 1):]); return b }, 8},
		{"unsynced record, later ones good", []int{5}, false, func(b []byte) []byte { b[frameOffset(7, 1)+20] ^= 1; return b }, 7},
		{"synced record", []int{5}, false, func(b []byte) []byte { b[frameOffset(2, 0)+20] ^= 1; return b }, -1},
		{"synced record's header", []int{5}, false, func(b []byte) []byte { b[frameOffset(2, 0)+1] ^= 1; return b }, -1},
		{"last synced record", []int{5}, false, func(b []byte) []byte { b[frameOffset(5, 0)+20] ^= 1; return b }, -1},
		{"last synced record, nothing after it", []int{9}, false, func(b []byte) []byte { b[frameOffset(9, 0)+20] ^= 1; return b }, -1},
		{"many synced records", []int{5}, false, func(b []byte) []byte { clear(b[frameOffset(1, 0):frameOffset(4, 0)]); return b }, -1},
		{"last record of a closed file", nil, true, func(b []byte) []byte { b[frameOffset(9, 0)+20] ^= 1; return b }, -1},
		{"end of a closed file", nil, true, func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, n},
		{"rubbish after the end", nil, true, func(b []byte) []byte { return append(b, make([]byte, 5000)...) }, n},
		{"header", []int{5}, false, func(b []byte) []byte { b[20] ^= 1; return b }, -1},
	}
	for _, tt := range tests {
		for _, name := range []string{walName, otherName} {
			t.Run(tt.name+name, func(t *testing.T) {
				mem := pebblevfs.NewMem()
				fs := metafs.New(mem, newKeys(1), nil)
				f := writeLog(t, fs, name, n, tt.synced...)
				if tt.closed {
					must(t, f.Close())
				}
				b, err := mem.UnsafeGetFileDataBuffer(name)
				must(t, err)
				replace(t, mem, name, tt.break_(bytes.Clone(b)))
				got, err := readAll(fs, name)
				switch {
				case tt.want >= 0 && (err != nil || records(got) != tt.want):
					t.Fatalf("read %d records, %v; want %d", records(got), err, tt.want)
				case tt.want < 0 && (capsule.KindOf(err) != capsule.Damaged || !pebble.IsCorruptionError(err)):
					t.Fatalf("read %d records, %v; want damage", records(got), err)
				case tt.want < 0 && !strings.Contains(err.Error(), name):
					t.Errorf("error does not name the file: %v", err)
				}
			})
		}
	}
}

// A WAL's syncs find its size as it was, but for few; where the disk has no
// room ahead, it goes on as long as there is room for what is written.
func TestExtendedAhead(t *testing.T) {
	const n, room = 2000, 1 << 20
	for _, budget := range []int64{room, 180 << 10, 64 + n*(12+34+34)} {
		disk := vfstest.NewDiskFull(pebblevfs.NewMem(), budget)
		fs := metafs.New(disk, newKeys(1), nil)
		f, err := fs.Create(walName, "test")
		must(t, err)
		sizes := map[int64]bool{}
		for i := range n {
			_, err := fmt.Fprintf(f, "record %04d;", i)
			must(t, err)
			must(t, f.SyncData())
			fi, err := disk.Stat(walName)
			must(t, err)
			sizes[fi.Size()] = true
		}
		must(t, fs.Err())
		if got, err := readAll(fs, walName); err != nil || records(got) != n {
			t.Errorf("with room for %d bytes: read %d records, %v", budget, records(got), err)
		}
		if budget == room && len(sizes) > 3 {
			t.Errorf("%d synced writes found the file in %d sizes", n, len(sizes))
		}
	}
}

func replace(t testing.TB, fs vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := fs.Create(name, "test")
	must(t, err)
	_, err = f.Write(b)
	must(t, err)
	must(t, f.Close())
}

// A WAL that was only just created is empty after a power cut; a manifest or
// table of which nothing is left is not an empty one.
func TestShortFiles(t *testing.T) {
	mem := pebblevfs.NewMem()
	fs := metafs.New(mem, newKeys(1), nil)
	writeLog(t, fs, walName, 0)
	whole, err := mem.UnsafeGetFileDataBuffer(walName)
	must(t, err)
	for size := range len(whole) + 1 {
		for _, b := range [][]byte{whole[:size], make([]byte, size)} {
			for _, name := range []string{walName, otherName, tableName} {
				replace(t, mem, name, bytes.Clone(b))
				got, err := readAll(fs, name)
				if name == walName {
					if err != nil || len(got) != 0 {
						t.Fatalf("WAL of %d bytes: %v", size, err)
					}
				} else if capsule.KindOf(err) != capsule.Damaged {
					t.Fatalf("%s of %d bytes: %v", name, size, err)
				}
			}
		}
	}
}

// No single wrong bit and no lost end of a table goes unseen.
func TestTableDamage(t *testing.T) {
	mem := pebblevfs.NewMem()
	fs := metafs.New(mem, newKeys(1), nil)
	f, err := fs.Create(tableName, "test")
	must(t, err)
	content := []byte(value("content", 3*4096))
	_, err = f.Write(bytes.Clone(content))
	must(t, err)
	must(t, f.Close())
	whole, err := mem.UnsafeGetFileDataBuffer(tableName)
	must(t, err)
	whole = bytes.Clone(whole)
	for off := 0; off < len(whole); off += 1 + off/100 {
		b := bytes.Clone(whole)
		b[off] ^= 0x10
		replace(t, mem, tableName, b)
		if _, err := readAll(fs, tableName); err == nil {
			t.Fatalf("a wrong bit at %d was not seen", off)
		}
	}
	for _, size := range []int{0, 64, 80, 64 + 4096 + 16, 64 + 2*(4096+16), len(whole) - 1} {
		replace(t, mem, tableName, whole[:size:size])
		if _, err := readAll(fs, tableName); capsule.KindOf(err) != capsule.Damaged {
			t.Fatalf("table cut to %d bytes: %v", size, err)
		}
	}
}

func TestTableConcurrentReads(t *testing.T) {
	fs := metafs.New(pebblevfs.NewMem(), newKeys(1), nil)
	f, err := fs.Create(tableName, "test")
	must(t, err)
	content := []byte(value("content", 300000))
	_, err = f.Write(bytes.Clone(content))
	must(t, err)
	must(t, f.Close())
	r, err := fs.Open(tableName)
	must(t, err)
	defer r.Close()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 0))
			for range 200 {
				off := rng.IntN(len(content))
				p := make([]byte, rng.IntN(len(content)-off)+1)
				if _, err := r.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, content[off:off+len(p)]) {
					t.Errorf("read of %d at %d: %v", len(p), off, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestKeys(t *testing.T) {
	mem := pebblevfs.NewMem()
	for _, name := range []string{tableName, walName, otherName} {
		f := writeLog(t, metafs.New(mem, newKeys(2), nil), name, 3)
		must(t, f.Close())
		if _, err := readAll(metafs.New(mem, newKeys(3), nil), name); err != nil {
			t.Fatal("an older key that is still known:", err)
		}
		other := newKeys(2)
		other[1][5] = 99
		for what, k := range map[string]keys{"another key": other, "unknown version": newKeys(1)} {
			if _, err := readAll(metafs.New(mem, k, nil), name); capsule.KindOf(err) != capsule.WrongKey {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
}

// A full disk gets one call for help per shortage, and nothing is lost or doubled
// where that helps.
func TestDiskFullRetry(t *testing.T) {
	for _, name := range []string{tableName, walName} {
		disk := vfstest.NewDiskFull(pebblevfs.NewMem(), 1000)
		calls := 0
		fs := metafs.New(disk, newKeys(1), func() { calls++; disk.SetBudget(200000) })
		f, err := fs.Create(name, "test")
		must(t, err)
		want := []byte(value("content", 150000))
		_, err = f.Write(bytes.Clone(want))
		must(t, err)
		must(t, f.Close())
		must(t, fs.Err())
		got, err := readAll(fs, name)
		if err != nil || !bytes.Equal(got, want) || calls != 1 {
			t.Fatalf("%s: %d bytes, %v, %d calls", name, len(got), err, calls)
		}
	}
}

// A full disk fails a table and nothing else; it freezes everything if a log
// needs room.
func TestDiskFullForGood(t *testing.T) {
	disk := vfstest.NewDiskFull(pebblevfs.NewMem(), 1000)
	calls := 0
	fs := metafs.New(disk, newKeys(1), func() { calls++ })
	f, err := fs.Create(tableName, "test")
	must(t, err)
	_, err = f.Write(make([]byte, 200000))
	if err == nil {
		err = f.Close()
	} else {
		f.Close()
	}
	if capsule.KindOf(err) != capsule.NoSpace || calls != 1 {
		t.Fatalf("%v after %d calls", err, calls)
	}
	must(t, fs.Err())
	must(t, fs.Remove(tableName))
	f = writeLog(t, fs, walName, 1000)
	must(t, f.Close())
	if capsule.KindOf(fs.Err()) != capsule.NoSpace {
		t.Fatal("no failure:", fs.Err())
	}
}

// After a failed sync the disk is left alone: nothing is written, renamed or
// removed, and no sync is tried again.
func TestFailStop(t *testing.T) {
	faults := vfstest.NewFaults(pebblevfs.NewMem())
	fs := metafs.New(faults, newKeys(1), nil)
	must(t, writeLog(t, fs, otherName, 3).Close())
	f := writeLog(t, fs, walName, 3)
	faults.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Sync {
			return syscall.EIO
		}
		return nil
	})
	must(t, f.Sync())
	if capsule.KindOf(fs.Err()) != capsule.IO || !errors.Is(fs.Err(), syscall.EIO) {
		t.Fatal("failure is", fs.Err())
	}
	select {
	case <-fs.Failed():
	default:
		t.Fatal("Failed is not closed")
	}
	faults.Set(func(op vfstest.Op) error {
		if op.Mutates() {
			t.Errorf("%v of %s on a frozen disk", op.Kind, op.Path)
		}
		return nil
	})
	_, err := f.Write([]byte("more"))
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	must(t, fs.Remove(otherName))
	must(t, fs.Rename(otherName, "/x"))
	must(t, writeLog(t, fs, "/000009.log", 3, 2).Close())
	d, err := fs.OpenDir("/")
	must(t, err)
	must(t, d.Sync())
	must(t, d.Close())
	if got, err := readAll(fs, otherName); err != nil || records(got) != 3 {
		t.Fatal("reading on a frozen disk:", err)
	}
	if _, err := fs.Stat("/000009.log"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a file was created:", err)
	}
}
