package metafs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/spacestore/space/internal/vfs"
)

const invalidFd = pebblevfs.InvalidFd

// Keys gives the metadata keys. Its methods may be called at any time, from
// any goroutine.
type Keys interface {
	// Current returns the key for new files.
	Current() (version uint32, key [32]byte)
	// Key returns the key of a version, if it is still known.
	Key(version uint32) ([32]byte, bool)
}

// FS is a sealing file system for one Pebble database. It implements
// [vfs.FS]; see the package's documentation for how it differs from others.
type FS struct {
	vfs.FS // below; what is not overridden needs no sealing
	keys   Keys

	fail   atomic.Pointer[error] // the latched failure
	failed chan struct{}         // closed after fail is set

	full struct {
		sync.Mutex
		call  func()
		calls atomic.Uint64
	}

	compact     func(n int64) error // see LimitCompactions
	flushes     tries               // of tables made from memory
	compactions tries               // of tables made from tables

	lists sync.Map // directory -> its last listing, []string

	// lost has the tables that were flushed after the failure.
	lost *pebblevfs.MemFS

	// names orders Reseal's rename after anything that takes a table's name
	// away, and guards writing.
	names sync.Mutex
	// writing has the key versions of the files being written: what is on disk
	// of them may not show it yet.
	writing map[string]uint32
}

// New returns a file system that keeps sealed files on under. If onDiskFull is
// not nil, it is called when a write finds no room, and the write is tried
// once more after it has returned; writes that failed meanwhile share the call.
func New(under vfs.FS, keys Keys, onDiskFull func()) *FS {
	fs := &FS{FS: under, keys: keys, failed: make(chan struct{}), lost: pebblevfs.NewMem(), writing: make(map[string]uint32)}
	fs.full.call = onDiskFull
	return fs
}

// Unwrap returns nil: what is below is of no use without this.
func (fs *FS) Unwrap() vfs.FS { return nil }

// kind is how a file is kept, which follows from its name when it is created.
type kind int

const (
	logFile kind = iota
	tableFile
	markerFile // empty; the information is in the name
)

func kindOf(name string) kind {
	switch base := filepath.Base(name); {
	case strings.HasPrefix(base, "marker."):
		return markerFile
	case isTable(base):
		return tableFile
	}
	return logFile
}

func isTable(name string) bool {
	return strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob")
}
func isWAL(name string) bool { return strings.HasSuffix(name, ".log") }

// Create implements [vfs.FS]. It fails for tables alone.
func (fs *FS) Create(name string, c vfs.Category) (vfs.File, error) {
	k := kindOf(name)
	if k == tableFile {
		return fs.createTable(name, c)
	}
	if k == markerFile {
		return fs.createMarker(name, c)
	}
	if fs.Err() == nil {
		w, err := fs.createLog(name, c)
		if err == nil {
			return w, nil
		}
		fs.Fail(err)
	}
	return &logWriter{fs: fs, name: name}, nil
}

func (fs *FS) createLog(name string, c vfs.Category) (*logWriter, error) {
	h, s := fs.begin(name, modeLog)
	f, err := fs.create(name, c)
	if err != nil {
		fs.finish(name)
		return nil, err
	}
	w, err := newLogWriter(fs, f, name, h, s)
	if err != nil {
		fs.finish(name)
		f.Close()
	}
	return w, err
}

func (fs *FS) newTable(name string, c vfs.Category) (*tableWriter, error) {
	h, s := fs.begin(name, modeTable)
	f, err := fs.create(name, c)
	if err != nil {
		fs.finish(name)
		return nil, err
	}
	return newTableWriter(fs, f, name, h, s), nil
}

// createMarker creates a marker between two syncs of its directory. Pebble moves a
// marker by creating the new one, removing the old one and syncing the
// directory once. That relies on names becoming durable in the order of the
// operations, which not every file system promises: a new marker alone could
// point to a manifest whose name was lost, and a removal alone would leave no
// marker, which means an empty database.
func (fs *FS) createMarker(name string, c vfs.Category) (vfs.File, error) {
	dir := fs.PathDir(name)
	if err := fs.syncDir(dir); err != nil {
		fs.Fail(err)
	}
	if fs.Err() == nil {
		f, err := fs.create(name, c)
		if err == nil {
			if err = fs.syncDir(dir); err == nil {
				return marker{f}, nil
			}
			f.Close()
		}
		fs.Fail(err)
	}
	return &logWriter{fs: fs, name: name}, nil
}

func (fs *FS) createTable(name string, c vfs.Category) (vfs.File, error) {
	t := &fs.compactions
	if c == flushCategory {
		t = &fs.flushes
	}
	t.wait()
	if err := fs.Err(); err != nil {
		if c == flushCategory {
			return fs.lost.Create(fs.PathBase(name), c)
		}
		t.done(err)
		return nil, err
	}
	w, err := fs.newTable(name, c)
	if err != nil {
		fs.tableDone(t, err)
		return nil, err
	}
	w.done = func(err error) { fs.tableDone(t, err) }
	if t == &fs.compactions {
		w.room = fs.compact
	}
	return w, nil
}

// LimitCompactions has room asked for the bytes of tables that are made of other
// tables: these take space first and give it back later, and can wait, unlike
// all else that is written here. It is called before the file system is used.
func (fs *FS) LimitCompactions(room func(n int64) error) { fs.compact = room }

func (fs *FS) create(name string, c vfs.Category) (vfs.File, error) {
	fs.names.Lock()
	defer fs.names.Unlock()
	var f vfs.File
	err := fs.retry(func() (err error) {
		f, err = fs.FS.Create(name, c)
		return err
	})
	if err != nil {
		return nil, ioError(err, "create", name)
	}
	return f, nil
}

// ReuseForWrite makes a new file: bytes once sealed are never overwritten.
func (fs *FS) ReuseForWrite(oldname, newname string, c vfs.Category) (vfs.File, error) {
	// Create must not fail, and so neither may this. A WAL that is left over is
	// obsolete, and found to be so at the next Open.
	_ = fs.Remove(oldname)
	return fs.Create(newname, c)
}

// OpenReadWrite is not supported: files are append-only.
func (fs *FS) OpenReadWrite(string, vfs.Category, ...vfs.OpenOption) (vfs.File, error) {
	return nil, errAppendOnly
}

// Open implements [vfs.FS].
func (fs *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if fs.isLost(name) {
		return fs.lost.Open(fs.PathBase(name))
	}
	f, err := fs.FS.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if fi.IsDir() || kindOf(name) == markerFile {
		return f, nil
	}
	r, err := fs.reader(f, name, fi.Size())
	if err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

func (fs *FS) reader(f vfs.File, name string, size int64) (vfs.File, error) {
	h, err := readHeader(f, name, size)
	if err != nil {
		if isWAL(name) && size <= headerSize {
			// Its header was not synced, or nothing was written after it.
			return newLogReader(f, name, headerSize, nil, true), nil
		}
		return nil, err
	}
	s, err := h.open(name, fs.keys)
	if err != nil {
		return nil, err
	}
	if h.mode == modeTable {
		return newTableReader(f, name, size, s)
	}
	return newLogReader(f, name, size, s, isWAL(name)), nil
}

// readHeader reads the header of a file of the given size.
func readHeader(f vfs.File, name string, size int64) (header, error) {
	if size < headerSize {
		return header{}, damaged(name, size, "the file was cut short")
	}
	b := make([]byte, headerSize)
	if n, err := f.ReadAt(b, 0); n < headerSize {
		return header{}, ioError(err, "read", name)
	}
	h, why := parseHeader(b)
	if why != "" {
		return h, damaged(name, 0, why)
	}
	return h, nil
}

// Stat implements [vfs.FS]; sizes are of the content. It has to read a log
// for that, but not a table.
func (fs *FS) Stat(name string) (vfs.FileInfo, error) {
	if fs.isLost(name) {
		return fs.lost.Stat(fs.PathBase(name))
	}
	fi, err := fs.FS.Stat(name)
	if err != nil || fi.IsDir() || kindOf(name) == markerFile {
		return fi, err
	}
	if kindOf(name) == tableFile {
		return info{fi, max(0, tableSize(fi.Size()))}, nil
	}
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// OpenDir implements [vfs.FS].
func (fs *FS) OpenDir(name string) (vfs.File, error) {
	f, err := fs.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return dir{f, fs, name}, nil
}

// Remove implements [vfs.FS].
func (fs *FS) Remove(name string) error {
	return fs.change(func() error { return fs.FS.Remove(name) })
}

// RemoveAll implements [vfs.FS].
func (fs *FS) RemoveAll(name string) error {
	return fs.change(func() error { return fs.FS.RemoveAll(name) })
}

// Rename implements [vfs.FS].
func (fs *FS) Rename(oldname, newname string) error {
	return fs.change(func() error {
		if err := fs.retry(func() error { return fs.FS.Rename(oldname, newname) }); err != nil {
			fs.Fail(ioError(err, "rename", oldname))
		}
		return nil
	})
}

// List implements [vfs.FS]. A directory that was listed before it can only
// fail to be listed by a failure that is latched.
func (fs *FS) List(name string) ([]string, error) {
	names, err := fs.FS.List(name)
	if err == nil {
		fs.lists.Store(name, names)
		return slices.Clone(names), nil
	}
	if last, ok := fs.lists.Load(name); ok {
		fs.Fail(ioError(err, "list the directory of", name))
		return slices.Clone(last.([]string)), nil
	}
	return nil, err
}

// change changes names, unless the disk is frozen: what then looks obsolete
// may be needed by what is really on the disk.
func (fs *FS) change(f func() error) error {
	fs.names.Lock()
	defer fs.names.Unlock()
	if fs.Err() != nil {
		return nil
	}
	return f()
}

// Link implements [vfs.FS].
func (fs *FS) Link(oldname, newname string) error {
	fs.names.Lock()
	defer fs.names.Unlock()
	if err := fs.Err(); err != nil {
		return err
	}
	return fs.retry(func() error { return fs.FS.Link(oldname, newname) })
}

// begin makes the header of a file that is about to be created.
func (fs *FS) begin(name string, mode byte) ([]byte, *sealer) {
	fs.names.Lock()
	defer fs.names.Unlock()
	version, key := fs.keys.Current()
	fs.writing[name] = version
	return newHeader(mode, version, key)
}

// finish ends what begin began.
func (fs *FS) finish(name string) {
	fs.names.Lock()
	defer fs.names.Unlock()
	delete(fs.writing, name)
}

func (fs *FS) isWriting(name string) bool {
	fs.names.Lock()
	defer fs.names.Unlock()
	_, ok := fs.writing[name]
	return ok
}

// oldestWriting returns the oldest key version that a file being written, now or later,
// is sealed under.
func (fs *FS) oldestWriting() uint32 {
	fs.names.Lock()
	defer fs.names.Unlock()
	oldest, _ := fs.keys.Current()
	for _, v := range fs.writing {
		oldest = min(oldest, v)
	}
	return oldest
}

// writeAt writes all of p, or says why not. A write that
// found no room goes on where it stopped, with the same bytes.
func (fs *FS) writeAt(f vfs.File, name string, p []byte, off int64) error {
	n := 0
	err := fs.retry(func() error {
		m, err := f.WriteAt(p[n:], off+int64(n))
		n += m
		return err
	})
	if err != nil {
		return ioError(err, "write", name)
	}
	return nil
}

// retry does f, and again if it found no room and there may be some now.
func (fs *FS) retry(f func() error) error {
	calls := fs.full.calls.Load()
	err := f()
	if err == nil || fs.full.call == nil || !isFull(err) {
		return err
	}
	fs.full.Lock()
	if fs.full.calls.Load() == calls {
		fs.full.call()
		fs.full.calls.Add(1)
	}
	fs.full.Unlock()
	return f()
}

// flushCategory is what Pebble calls the tables that it writes from memory.
const flushCategory = "pebble-memtable-flush"

// flushTries is how many flushes in a row may fail. Pebble tries again for
// ever, and meanwhile Open, Flush, and with them a commit and Close, wait.
const flushTries = 5

// tries counts failures to write a table since the last success.
type tries struct{ failed atomic.Int32 }

// wait is where Pebble, which tries again at once, has to wait, holding no lock:
// on a full disk it would otherwise keep a core and the disk busy.
func (t *tries) wait() {
	const first, most = 10 * time.Millisecond, 320 * time.Millisecond
	if n := t.failed.Load(); n > 1 {
		time.Sleep(min(first<<min(n-2, 5), most))
	}
}

// done notes how a try ended and returns the failures in a row.
func (t *tries) done(err error) int32 {
	if err == nil {
		t.failed.Store(0)
		return 0
	}
	return t.failed.Add(1)
}

func (fs *FS) tableDone(t *tries, err error) {
	if n := t.done(err); t == &fs.flushes && n >= flushTries {
		fs.Fail(err)
	}
}

// isLost reports whether a table exists in memory only, because it was flushed
// after the failure, to get Pebble out of its waiting. There are no more of them than
// there was data waiting to be flushed.
func (fs *FS) isLost(name string) bool {
	if fs.Err() == nil || kindOf(name) != tableFile {
		return false
	}
	_, err := fs.lost.Stat(fs.PathBase(name))
	return err == nil
}

// dir is a directory, open for syncing.
type dir struct {
	vfs.File
	fs   *FS
	name string
}

func (d dir) Sync() error {
	if d.fs.Err() == nil {
		if err := d.File.Sync(); err != nil {
			d.fs.Fail(ioError(err, "sync the directory of", d.name))
		}
	}
	return nil
}

func (d dir) SyncData() error { return d.Sync() }

// syncDir makes a directory's names durable.
func (fs *FS) syncDir(name string) error {
	d, err := fs.OpenDir(name)
	if err != nil {
		return err
	}
	d.Sync() // latches
	return errors.Join(fs.Err(), d.Close())
}

// marker is a file that must stay empty, because it is not sealed.
type marker struct{ vfs.File }

func (marker) Write([]byte) (int, error)          { return 0, errReadOnly }
func (marker) WriteAt([]byte, int64) (int, error) { return 0, errReadOnly }

// info is what is known of a file, but for its size, which is its content's.
type info struct {
	vfs.FileInfo
	size int64
}

func (i info) Size() int64 { return i.size }

// writerInfo describes a file being written without asking the disk, which
// may fail.
func writerInfo(fs *FS, name string, size int64) vfs.FileInfo {
	return newInfo{fs.PathBase(name), size}
}

type newInfo struct {
	name string
	size int64
}

func (i newInfo) Name() string                 { return i.name }
func (i newInfo) Size() int64                  { return i.size }
func (i newInfo) Mode() os.FileMode            { return 0o600 }
func (i newInfo) ModTime() time.Time           { return time.Time{} }
func (i newInfo) IsDir() bool                  { return false }
func (i newInfo) Sys() any                     { return nil }
func (i newInfo) DeviceID() pebblevfs.DeviceID { return pebblevfs.DeviceID{} }

var _ vfs.FS = (*FS)(nil)
