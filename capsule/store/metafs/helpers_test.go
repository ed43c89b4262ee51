package metafs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/spacestore/space/capsule/store/metafs"
	"github.com/spacestore/space/internal/vfs"
)

// keys is a key ring: version i+1 at index i; the last is current.
type keys [][32]byte

func newKeys(n int) keys {
	k := make(keys, n)
	for i := range k {
		k[i][0], k[i][31] = byte(i+1), 7
	}
	return k
}

func (k keys) Current() (uint32, [32]byte) { return uint32(len(k)), k[len(k)-1] }

func (k keys) Key(v uint32) ([32]byte, bool) {
	if v < 1 || int(v) > len(k) || k[v-1] == [32]byte{} {
		return [32]byte{}, false
	}
	return k[v-1], true
}

// db is a Pebble database used as the store must use it: a call has succeeded
// only if the file system has not failed after it.
type db struct {
	*pebble.DB
	fs *metafs.FS
}

type logger struct{ fs *metafs.FS }

func (logger) Infof(string, ...any)  {}
func (logger) Errorf(string, ...any) {}
func (l logger) Fatalf(format string, args ...any) {
	l.fs.Fail(fmt.Errorf(format, args...))
}

// openDB opens a small database: a few tens of commits bring flushes, log
// rotations and compactions.
func openDB(fs *metafs.FS) (*db, error) { return openDBWith(fs, func(*pebble.Options) {}) }

var testCache = pebble.NewCache(1 << 20)

func openDBWith(fs *metafs.FS, change func(*pebble.Options)) (*db, error) {
	o := &pebble.Options{
		FS:                    fs,
		Logger:                logger{fs},
		EventListener:         &pebble.EventListener{DataCorruption: func(pebble.DataCorruptionInfo) {}},
		MemTableSize:          64 << 10,
		L0CompactionThreshold: 2,
		MaxManifestFileSize:   2 << 10,
		FormatMajorVersion:    pebble.FormatNewest,
		Cache:                 testCache,
	}
	change(o)
	d, err := pebble.Open("/meta", o)
	if err == nil && fs.Err() != nil {
		err = errors.Join(fs.Err(), d.Close())
	}
	if err != nil {
		return nil, err
	}
	return &db{d, fs}, nil
}

// put commits some pairs in one batch.
func (d *db) put(kv ...string) error {
	b := d.NewBatch()
	for i := 0; i < len(kv); i += 2 {
		b.Set([]byte(kv[i]), []byte(kv[i+1]), nil)
	}
	if err := d.Apply(b, pebble.Sync); err != nil {
		return err
	}
	return d.fs.Err()
}

func (d *db) flush() error {
	done, err := d.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-done:
	case <-d.fs.Failed():
	}
	return d.fs.Err()
}

// scan returns all there is.
func (d *db) scan() (map[string]string, error) {
	it, err := d.NewIter(nil)
	if err != nil {
		return nil, err
	}
	got := map[string]string{}
	for it.First(); it.Valid(); it.Next() {
		got[string(it.Key())] = string(it.Value())
	}
	return got, it.Close()
}

func mustOpen(t testing.TB, under vfs.FS, k metafs.Keys) *db {
	t.Helper()
	d, err := openDB(metafs.New(under, k, nil))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// value is incompressible and tells what it is the value of.
func value(key string, n int) string {
	rng := rand.New(rand.NewPCG(uint64(len(key)), uint64(key[len(key)-1])+uint64(key[0])<<8))
	var b bytes.Buffer
	b.WriteString(key)
	for b.Len() < n {
		b.WriteByte(byte(rng.Uint32()))
	}
	return b.String()
}

func readAll(fs vfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// onDisk returns the bytes of every file of a directory; writing to them
// changes the files.
func onDisk(t testing.TB, mem *pebblevfs.MemFS, dir string) map[string][]byte {
	t.Helper()
	names, err := mem.List(dir)
	must(t, err)
	files := map[string][]byte{}
	for _, n := range names {
		b, err := mem.UnsafeGetFileDataBuffer(dir + "/" + n)
		must(t, err)
		files[n] = b
	}
	return files
}

func clone(mem *pebblevfs.MemFS) *pebblevfs.MemFS {
	return mem.CrashClone(pebblevfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
}
