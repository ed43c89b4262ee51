package metafs_test

import (
	"bytes"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/metafs"
)

// fixedKeys give the seeds, which are written anew in each run, one key.
var fixedKeys = newKeys(1)

// FuzzReader reads hostile files: an error or a prefix of what was written,
// in either mode, and never a panic. The input says where a good file is changed, so
// that the fuzzer gets past the header: at offset at, cut bytes are replaced by ins.
func FuzzReader(f *testing.F) {
	f.Add(uint8(1), uint32(348), uint32(75), []byte("0")) // ReadAt before damage, after meeting it
	for which := range uint8(4) {
		f.Add(which, uint32(0), uint32(0), []byte{})
		f.Add(which, uint32(70), uint32(1), []byte{0})
		f.Add(which, uint32(64), uint32(40), []byte{})
		f.Add(which, uint32(200), uint32(1<<20), []byte("\x01\x10\x00\x00\x40\x00\x00\x00\x00\x00"))
		f.Add(which, uint32(0), uint32(1<<20), []byte("SPCMETA\x01"))
		f.Add(which, uint32(12), uint32(4), []byte{9, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, which uint8, at, cut uint32, ins []byte) {
		mem := pebblevfs.NewMem()
		fs := metafs.New(mem, fixedKeys, nil)
		name := []string{walName, otherName, tableName, "/000001.blob"}[which%4]
		w := writeLog(t, fs, name, 20, 3, 12)
		must(t, w.Close())
		want, err := readAll(fs, name)
		must(t, err)
		b, err := mem.UnsafeGetFileDataBuffer(name)
		must(t, err)
		start := min(int(at), len(b))
		end := min(start+int(cut), len(b))
		changed := append(append(bytes.Clone(b[:start]), ins...), b[end:]...)
		replace(t, mem, name, changed)

		got, err := readAll(fs, name)
		if !bytes.HasPrefix(want, got) {
			t.Fatalf("read what was never written: %q", got)
		}
		if kind := capsule.KindOf(err); err != nil && kind != capsule.Damaged && kind != capsule.WrongKey {
			t.Fatalf("error of kind %v: %v", kind, err)
		}
		if r, err := fs.Open(name); err == nil {
			p := make([]byte, 300)
			for _, off := range []int64{0, 50, 8000, 100} {
				if n, _ := r.ReadAt(p, off); n > 0 && !bytes.HasPrefix(want[off:], p[:n]) {
					t.Fatalf("read at %d what was never written", off)
				}
			}
			if _, err := r.Stat(); err != nil {
				t.Fatal(err)
			}
			r.Close()
		}
	})
}
