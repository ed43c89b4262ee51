package store

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/metafs"
)

// kv is the metadata engine. What the store needs of one is little: point
// reads, ordered scans, and an atomic batch that can be read while it is being
// filled and committed with or without a synced log. Everything about Pebble
// stays in this file.
type kv struct {
	db    *pebble.DB
	cache *pebble.Cache
	fs    *metafs.FS     // knows whether the engine can still be trusted
	calls sync.WaitGroup // of do that have not returned
}

// kvReader is what can be read from: the engine or a batch over it.
type kvReader interface {
	// get returns nil where there is no such key.
	get(key []byte) ([]byte, error)
	// scan calls fn for each key in [lo, hi) in order until fn returns false
	// or an error. key and value are fn's only until it returns.
	scan(lo, hi []byte, fn func(key, value []byte) (bool, error)) error
}

// failedCloseWait bounds how long closing waits for an engine that has failed.
const failedCloseWait = 5 * time.Second

const (
	metaCache    = 32 << 20
	metaMemtable = 8 << 20
	minMemtable  = 256 << 10
)

func openKV(fsys *metafs.FS, dir string, memtable uint64, log *slog.Logger) (*kv, error) {
	k := &kv{cache: pebble.NewCache(metaCache), fs: fsys}
	opts := &pebble.Options{
		FS:                          fsys,
		Cache:                       k.cache,
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                memtable,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		// Never stop writes because compactions lag: one that cannot find room
		// would then hang every commit, removals included.
		L0StopWritesThreshold: 1000,
		MaxOpenFiles:          256,
		MaxManifestFileSize:   4 << 20,
		Logger:                kvLogger{fsys, log},
		EventListener:         &pebble.EventListener{DataCorruption: func(i pebble.DataCorruptionInfo) { log.Error("damaged metadata", "file", i.Path, "error", i.Details) }},
	}
	for i := range opts.Levels {
		l := &opts.Levels[i]
		l.BlockSize = 16 << 10
		l.FilterPolicy = bloom.FilterPolicy(10)
		l.FilterType = pebble.TableFilter
		l.Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	}
	if err := markFormat(fsys, dir); err != nil {
		k.cache.Unref()
		return nil, kvError(err, "create metadata")
	}
	db, err := pebble.Open(dir, opts)
	if err == nil && fsys.Err() != nil {
		db.Close()
		err = fsys.Err()
	}
	if err != nil {
		k.cache.Unref()
		return nil, kvError(err, "open metadata")
	}
	k.db = db
	return k, nil
}

// markFormat says in an empty directory that the engine to be made there has its
// newest format. Else it makes the oldest and goes through all formats from
// there, which costs four syncs each.
func markFormat(fsys *metafs.FS, dir string) error {
	if names, err := fsys.List(dir); err != nil || len(names) > 0 {
		return err
	}
	marker, _, err := atomicfs.LocateMarkerInListing(fsys, dir, "format-version", nil)
	if err != nil {
		return err
	}
	err = marker.Move(pebble.FormatNewest.String())
	if cerr := marker.Close(); err == nil {
		err = cerr
	}
	return err
}

// failed returns the error after which the engine takes no more changes.
func (k *kv) failed() error { return k.fs.Err() }

// do runs a call of the engine that may wait for a flush, which on a disk that
// has failed never comes; and it has succeeded only if the disk has not failed
// meanwhile (see package metafs).
func (k *kv) do(what string, call func() error) error {
	if err := k.failed(); err != nil {
		return err
	}
	done := make(chan error, 1)
	k.calls.Go(func() { done <- call() })
	select {
	case err := <-done:
		if err != nil {
			k.fs.Fail(err)
			return kvError(err, what)
		}
	case <-k.fs.Failed():
	}
	return k.failed()
}

// kvError gives an error of the engine a kind.
func kvError(err error, what string) error {
	if err == nil {
		return nil
	}
	kind := ioKind(err)
	if pebble.IsCorruptionError(err) {
		kind = capsule.Damaged
	}
	return capsule.Wrap(kind, err, "%s", what)
}

func (k *kv) get(key []byte) ([]byte, error) { return kvGet(k.db, key) }

func kvGet(r pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, kvError(err, "read metadata")
	}
	v = append(make([]byte, 0, len(v)), v...)
	closer.Close()
	return v, nil
}

// view calls fn with the value of key, uncopied, and tells whether there is one.
func (k *kv) view(key []byte, fn func(v []byte) error) (bool, error) {
	v, closer, err := k.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, kvError(err, "read metadata")
	}
	defer closer.Close()
	return true, fn(v)
}

func (k *kv) scan(lo, hi []byte, fn func(key, value []byte) (bool, error)) error {
	return kvScan(k.db, lo, hi, fn)
}

func kvScan(r pebble.Reader, lo, hi []byte, fn func(key, value []byte) (bool, error)) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return kvError(err, "read metadata")
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err == nil {
			ok, err = fn(it.Key(), v)
		}
		if err != nil {
			it.Close()
			return kvError(err, "read metadata")
		}
		if !ok {
			break
		}
	}
	return kvError(it.Close(), "read metadata")
}

// seekLast returns the last key in [lo, hi) and its value, or nil.
func (k *kv) seekLast(lo, hi []byte) (key, value []byte, err error) {
	it, err := k.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return nil, nil, kvError(err, "read metadata")
	}
	if it.Last() {
		v, verr := it.ValueAndErr()
		key, value, err = append(key, it.Key()...), append(value, v...), verr
	}
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	return key, value, kvError(err, "read metadata")
}

// kvCursor is a rowCursor over what is stored.
type kvCursor struct {
	it    *pebble.Iterator
	begun bool
}

func (k *kv) cursor(lo, hi []byte) (*kvCursor, error) {
	it, err := k.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	return &kvCursor{it: it}, kvError(err, "read metadata")
}

func (c *kvCursor) next() (row, bool, error) {
	ok := false
	if c.begun {
		ok = c.it.Next()
	} else {
		ok, c.begun = c.it.First(), true
	}
	if !ok {
		return row{}, false, nil
	}
	v, err := c.it.ValueAndErr()
	if err != nil {
		return row{}, false, kvError(err, "read metadata")
	}
	r, err := decodeRow(string(c.it.Key()), append([]byte(nil), v...))
	return r, err == nil, err
}

func (c *kvCursor) close() error { return kvError(c.it.Close(), "read metadata") }

// snapshot calls fn with an unchanging view of the metadata.
func (k *kv) snapshot(fn func(kvReader) error) error {
	s := k.newSnapshot()
	defer s.close()
	return fn(s)
}

func (k *kv) newSnapshot() kvSnapshot { return kvSnapshot{k.db.NewSnapshot()} }

type kvSnapshot struct{ s *pebble.Snapshot }

func (s kvSnapshot) close() { s.s.Close() }

func (s kvSnapshot) get(key []byte) ([]byte, error) { return kvGet(s.s, key) }
func (s kvSnapshot) scan(lo, hi []byte, fn func(key, value []byte) (bool, error)) error {
	return kvScan(s.s, lo, hi, fn)
}

// kvBatch collects changes that become visible and durable together.
type kvBatch struct {
	k *kv
	b *pebble.Batch
}

func (k *kv) newBatch() *kvBatch { return &kvBatch{k, k.db.NewIndexedBatch()} }

func (b *kvBatch) get(key []byte) ([]byte, error) { return kvGet(b.b, key) }
func (b *kvBatch) scan(lo, hi []byte, fn func(key, value []byte) (bool, error)) error {
	return kvScan(b.b, lo, hi, fn)
}
func (b *kvBatch) set(key, value []byte) error { return b.b.Set(key, value, nil) }
func (b *kvBatch) delete(key []byte) error     { return b.b.Delete(key, nil) }
func (b *kvBatch) len() int                    { return int(b.b.Count()) }
func (b *kvBatch) discard()                    { b.b.Close() }

// commit applies the batch. After an error the engine takes no more: whether
// the batch is durable, the next open will tell.
func (b *kvBatch) commit(sync bool) error {
	mode := pebble.NoSync
	if sync {
		mode = pebble.Sync
	}
	if err := b.k.do("commit metadata", func() error { return b.b.Commit(mode) }); err != nil {
		return err
	}
	return b.b.Close()
}

// flush writes what is in memory to tables.
func (k *kv) flush() error { return k.do("flush metadata", k.db.Flush) }

func (k *kv) diskBytes() int64 { return int64(k.db.Metrics().DiskSpaceUsage()) }

func (k *kv) close() error {
	defer k.cache.Unref()
	if k.failed() != nil {
		// Nothing more reaches the disk. Closing only frees memory, and must
		// wait for calls, of which those that wait for a flush never return.
		done := make(chan struct{})
		go func() {
			defer close(done)
			k.calls.Wait()
			k.db.Close()
		}()
		select {
		case <-done:
		case <-time.After(failedCloseWait):
		}
		return nil
	}
	err := kvError(k.db.Close(), "close metadata")
	if err == nil {
		err = k.failed()
	}
	return err
}

// kvLogger hands Pebble's messages on.
type kvLogger struct {
	fs  *metafs.FS
	log *slog.Logger
}

func (l kvLogger) Infof(format string, args ...any) {
	l.log.Debug("metadata engine: " + fmt.Sprintf(format, args...))
}
func (l kvLogger) Errorf(format string, args ...any) {
	l.log.Error("metadata engine: " + fmt.Sprintf(format, args...))
}

// Fatalf must not end the process: it freezes the disk, as metafs demands.
func (l kvLogger) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	l.log.Error("metadata engine stopped", "error", err)
	l.fs.Fail(err)
}
