package store

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/journal"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/capsule/store/metafs"
	"github.com/spacestore/space/capsule/store/seglog"
	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/internal/notify"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/pipeline"
)

// Options say where a store is and how it may use the machine.
type Options struct {
	Dir        string         // SPACE_HOME; created at first use
	FS         vfs.FS         // nil: the operating system's
	Keys       keyring.Source // where the master key comes from
	Logger     *slog.Logger   // nil: the default one
	Clock      clock.Clock    // nil: the system's
	CacheBytes int64          // decoded segments kept in memory; 0: 64 MiB
	LogBytes   int64          // size at which a segment log is full; 0: 256 MiB
	LiveBytes  int64          // changes of volumes and trees kept in memory, twice; 0: 32 MiB
	Background bool           // collect garbage, re-seal and recompress while idle

	// CommitInterval bounds how long a change of a volume or tree that nobody
	// syncs stays not durable; 0: one second.
	CommitInterval time.Duration

	// Push hands each change of a volume or tree to the operating system before
	// it is acknowledged: so the end of this process, however it comes, takes
	// none, synced or not. Without it that may take what a power cut may.
	Push bool

	memtable uint64 // of the metadata engine, in bytes; tests make it small
}

const (
	defaultCache = 64 << 20
	defaultLog   = 256 << 20
	minLog       = 4 << 20
	// minReserve is disk space kept for metadata and for collecting garbage:
	// no content is taken that would eat into it (see reserve).
	minReserve = 32 << 20
	ballast    = 1 << 20 // see fullDisk
)

// Store is an open store. Its methods may be called from many goroutines.
type Store struct {
	fs          vfs.FS
	dir         string
	log         *slog.Logger
	clock       clock.Clock
	lock        io.Closer
	ring        *keyring.Ring
	rotating    sync.Mutex
	keys        *keyCache
	metaFS      *metafs.FS
	kv          *kv
	logs        *seglog.Set
	logBytes    int64
	muchGarbage int64
	chunker     *pipeline.Chunker
	hashers     *sync.Pool // of the store's own dedup domain
	pages       pageCache
	cache       *segmentCache
	tokens      tokens
	pins        inflight
	readers     contentPins
	dirs        dirCache // of the round's leader

	round    sync.Mutex // guards leading and waiting
	leading  bool
	applying sync.Mutex // held by the leader whose round makes its changes
	waiting  []*commitRequest

	totals   totals // of the round's leader
	totalsMu sync.Mutex
	shown    totals // what others see

	ownPolicies atomic.Bool // false: every capsule has the default policy

	lineages       lineages
	sealers        sealers
	overlay        *overlay
	journal        *journal.Journal
	commitInterval time.Duration
	push           bool // see Options
	named          namedSegments
	checkpointing  sync.Mutex // one checkpoint at a time
	checkpointWake chan struct{}
	pruner         pruner

	failure        atomic.Pointer[error]
	space          spaceGauge   // for what makes the store grow
	spaceToMove    spaceGauge   // for the rest
	spaceToMerge   spaceGauge   // for what was promised room
	spaceToCompact spaceGauge   // for tables made of tables
	appending      sync.Mutex   // held while records are granted room and appended
	free           atomic.Int64 // bytes that were left for what makes the store grow, when the kernel was asked last
	tally          tally
	watchers       *notify.Queue[Change]

	life     life
	idle     idleness
	quit     context.Context
	stop     context.CancelFunc
	wg       sync.WaitGroup
	reapWake chan struct{}
	passes   passes
	moving   tokens           // one: a single garbage collection or verification at a time; guards stuck
	stuck    map[uint64]int64 // live bytes of logs that damage kept from being emptied
}

// Open opens the store in o.Dir, or creates one where there is none. Errors
// have the kind Locked if another process holds it, WrongKey if the key does
// not fit (nothing was touched then), Damaged or IO.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	s := &Store{fs: o.FS, dir: o.Dir, log: o.Logger, clock: o.Clock, reapWake: make(chan struct{}, 1), dirs: dirCache{}, stuck: map[uint64]int64{}, muchGarbage: muchGarbage}
	s.passes.Cond.L = &s.passes.Mutex
	s.life.Cond.L = &s.life.Mutex
	s.idle.wake = make(chan struct{}, 1)
	if s.fs == nil {
		s.fs = vfs.OS()
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.clock == nil {
		s.clock = clock.System()
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = defaultCache
	}
	if o.LiveBytes == 0 {
		o.LiveBytes = defaultLive
	}
	s.push = o.Push
	if s.commitInterval = o.CommitInterval; s.commitInterval == 0 {
		s.commitInterval = defaultCommitInterval
	}
	s.overlay, s.checkpointWake = newOverlay(o.LiveBytes), make(chan struct{}, 1)
	s.free.Store(math.MaxInt64) // until the first change asks
	s.pins.init()
	s.watchers = notify.New(maxChanges, Change{All: true})
	s.lineages.open, s.lineages.families = map[lineageKey]*lineage{}, map[uint64]*family{}
	s.sealers.of = map[uint64]*familySealer{}
	s.pruner.init(s)
	s.cache = newSegmentCache(o.CacheBytes)
	s.tokens, s.moving = newTokens(blockTokens), newTokens(1)
	s.quit, s.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = capsule.Wrap(ioKind(err), err, "open store %s", s.dir)
			s.release()
		}
	}()

	if err := s.fs.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	if s.logBytes = o.LogBytes; s.logBytes == 0 {
		s.logBytes = defaultLog
	}
	if o.memtable == 0 {
		o.memtable = metaMemtable
	}
	if u, err := s.fs.GetDiskUsage(s.dir); err == nil {
		// On a full disk a log must fit into what is reserved, to be rewritten, and
		// what the metadata engine has in its own log, to be put into tables.
		if o.LogBytes == 0 {
			s.logBytes = min(s.logBytes, max(minLog, int64(u.TotalBytes/64)))
		}
		o.memtable = min(o.memtable, max(minMemtable, u.TotalBytes/64))
	}
	if s.lock, err = s.fs.Lock(s.path("lock")); err != nil {
		// What opening the lock file says is a PathError; the rest is about
		// the lock, fcntl(2) F_SETLK, or says that this process has it.
		var pathErr *os.PathError
		if !errors.As(err, &pathErr) && (errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) ||
			strings.Contains(err.Error(), "lock held by current process")) {
			err = capsule.Wrap(capsule.Locked, err, "another process holds the store")
		}
		return nil, err
	}
	if err := s.openFormat(o.Keys); err != nil {
		return nil, err
	}
	if s.keys, err = newKeyCache(s.ring); err != nil {
		return nil, err
	}
	s.chunker = pipeline.NewChunker(s.ring.ChunkKey())
	s.hashers = s.newHashers(&content{}, true)
	s.metaFS = metafs.New(s.fs, metaKeys{s.ring}, s.fullDisk)
	s.metaFS.LimitCompactions(s.checkSpaceToCompact)
	if err := s.makeBallast(); err != nil {
		s.log.Warn("no room for the disk-full ballast; free some space", "error", err)
	}
	if s.kv, err = openKV(s.metaFS, s.path("meta"), o.memtable, s.log); err != nil {
		return nil, err
	}
	if err := s.recover(); err != nil {
		return nil, err
	}
	if s.logs, err = seglog.Open(s.fs, s.path("segments"), s.logBytes, 0); err != nil {
		return nil, err
	}
	if err := s.openJournal(); err != nil {
		return nil, err
	}
	s.wg.Go(s.reaper)
	s.wg.Go(s.watchers.Run)
	s.wg.Go(s.checkpointer)
	s.wg.Go(s.pruner.run)
	if o.Background {
		s.wg.Go(s.tidy)
	}
	return s, nil
}

func (s *Store) path(elem ...string) string {
	return s.fs.PathJoin(append([]string{s.dir}, elem...)...)
}

// Format versions of the whole directory:
//
//	1  the first (docs/format.md)
//	2  records in frames
const formatVersion = 2

// FormatName is the file in a store's directory that says it is one.
const FormatName = "format"

// openFormat checks the format file and opens the key ring, or creates both.
// The format file is written last: without it there is no store yet, so a
// creation that was cut short is done again.
func (s *Store) openFormat(src keyring.Source) error {
	b, err := vfs.ReadFile(s.fs, s.path(FormatName))
	if errors.Is(err, fs.ErrNotExist) {
		return s.create(src)
	}
	if err != nil {
		return err
	}
	version, id, err := parseFormat(b)
	if err != nil {
		return capsule.Wrap(capsule.Damaged, err, "%s", s.path(FormatName))
	}
	if s.ring, err = keyring.Open(s.fs, s.dir, src, s.log); err != nil {
		if capsule.KindOf(err) == capsule.NotFound {
			err = capsule.Wrap(capsule.Other, &capsule.Error{Kind: capsule.Damaged, Err: err},
				"the store has lost its key ring; restore keys/ from a backup")
		}
		return err
	}
	if s.ring.StoreID() != id {
		return capsule.Errorf(capsule.Damaged, "%s and the key ring belong to different stores", s.path(FormatName))
	}
	if version < formatVersion {
		return s.raiseFormat(id)
	}
	return nil
}

// raiseFormat notes in a store of an older format that it has this one, before
// anything is written that older programs would take for damage. What is there
// stays as it is.
func (s *Store) raiseFormat(id [16]byte) error {
	b := encodeFormat(formatVersion, id)
	err := vfs.WriteFileAtomic(s.fs, s.path(FormatName), b)
	if ioKind(err) == capsule.NoSpace {
		s.fullDisk()
		err = vfs.WriteFileAtomic(s.fs, s.path(FormatName), b)
	}
	return err
}

func (s *Store) create(src keyring.Source) error {
	for _, name := range []string{"meta", "segments"} {
		if names, err := s.fs.List(s.path(name)); err == nil && len(names) > 0 {
			return capsule.Errorf(capsule.Damaged, "the file %q is missing but %s is not empty; restore it from a backup", FormatName, s.path(name))
		}
	}
	var err error
	s.ring, err = keyring.Open(s.fs, s.dir, src, s.log)
	if capsule.KindOf(err) == capsule.NotFound {
		s.ring, err = keyring.Create(s.fs, s.dir, src)
	}
	if err != nil {
		return err
	}
	for _, name := range []string{"meta", "segments"} {
		if err := s.fs.MkdirAll(s.path(name), 0o700); err != nil {
			return err
		}
	}
	if err := vfs.SyncDir(s.fs, s.dir); err != nil {
		return err
	}
	// The store's own directory must not be lost either, nor those above it
	// that may have been made with it.
	for dir := s.dir; s.fs.PathDir(dir) != dir; dir = s.fs.PathDir(dir) {
		if err := vfs.SyncDir(s.fs, s.fs.PathDir(dir)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return vfs.WriteFileAtomic(s.fs, s.path(FormatName), encodeFormat(formatVersion, s.ring.StoreID()))
}

func encodeFormat(version int, id [16]byte) []byte {
	line := fmt.Sprintf("space-store format=%d id=%s", version, hex.EncodeToString(id[:]))
	return fmt.Appendf(nil, "%s crc=%08x\n", line, checksum(line))
}

func parseFormat(b []byte) (version int, id [16]byte, err error) {
	var hexID string
	var crc uint32
	if n, _ := fmt.Sscanf(string(b), "space-store format=%d id=%32s crc=%08x\n", &version, &hexID, &crc); n < 1 {
		return 0, id, errors.New("this is not the format file of a SPACE store")
	}
	if version > formatVersion {
		return 0, id, fmt.Errorf("the store has format %d, this program knows formats up to %d: use a newer spacectl", version, formatVersion)
	}
	raw, herr := hex.DecodeString(hexID)
	if herr == nil {
		copy(id[:], raw)
	}
	if version < 1 || string(encodeFormat(version, id)) != string(b) {
		return 0, id, errors.New("the format file is damaged; restore it from a backup, or write it again from the store ID in keys/keyring")
	}
	return version, id, nil
}

// recover brings the metadata to where nothing is half done: contents that
// were under construction become garbage for the reaper.
func (s *Store) recover() error {
	b, err := s.kv.get([]byte{keyTotals})
	if err != nil {
		return err
	}
	if b != nil {
		if s.totals, err = decodeTotals(b); err != nil {
			return err
		}
	}
	s.shown = s.totals
	policy, _, err := s.kv.seekLast([]byte{keyPolicy}, []byte{keyPolicy + 1})
	if err != nil {
		return err
	}
	s.ownPolicies.Store(policy != nil)
	batch := s.kv.newBatch()
	err = s.kv.scan([]byte{keyBuilding}, []byte{keyBuilding + 1}, func(k, _ []byte) (bool, error) {
		c := content{pages: 1}
		if copy(c.id[:], k[1:]) != len(c.id) {
			return false, capsule.Errorf(capsule.Damaged, "malformed metadata key %x", k)
		}
		if err := batch.delete(k); err != nil {
			return false, err
		}
		return true, batch.set(contentKey(keyGarbage, c.id), encodeContent(&c))
	})
	if err != nil || batch.len() == 0 {
		batch.discard()
		return err
	}
	return batch.commit(true)
}

// openJournal makes again what the process before left in the journal.
func (s *Store) openJournal() error {
	applied, err := s.appliedTo()
	if err != nil {
		return err
	}
	durable := map[uint64]bool{}
	s.journal, err = journal.Open(s.metaFS, s.path("journal"), applied, func(number uint64, rec []byte) error {
		err := s.replay(number, rec, durable)
		if errors.Is(err, journal.ErrEnd) {
			s.log.Info("the last changes before a power cut are gone", "from_record", number, "error", err)
		}
		return err
	})
	if err != nil {
		return err
	}
	if last := s.journal.Last(); last > applied && s.overlay.active.rows.Len() == 0 {
		// Records that a power cut made worthless must not come back, nor be
		// missed if the power goes while their files are removed.
		if err := s.commit(synced, func(t *tx) error { return t.b.set([]byte{keyApplied}, binary.AppendUvarint(nil, last)) }); err != nil {
			return err
		}
	}
	return s.checkpoint()
}

// Close ends the store. Calls under way are waited for; garbage that is left
// is found again by the next Open.
func (s *Store) Close() error {
	s.stop()
	if !s.life.end() {
		return nil
	}
	s.watchers.Stop()
	s.pruner.stop()
	s.wg.Wait()
	var err error
	if s.writable() == nil {
		// What is left in the journal is found again by the next Open, but a
		// store that is whole without it opens faster.
		if err = s.syncJournal(); err == nil {
			if cerr := s.checkpointAll(); cerr != nil {
				s.log.Warn("changes stay in the journal until the next start", "error", cerr)
			}
		}
	}
	return errors.Join(err, s.release())
}

// KeepLock has Close leave the store locked until this process is gone: whoever
// opens it next must find all that this process did at its end.
func (s *Store) KeepLock() {
	locks.Lock()
	defer locks.Unlock()
	locks.kept = append(locks.kept, s.lock)
	s.lock = nil
}

// locks are those that KeepLock left to the end of the process.
var locks struct {
	sync.Mutex
	kept []io.Closer
}

// release frees whatever has been opened.
func (s *Store) release() error {
	var err error
	s.stop()
	if s.journal != nil {
		err = s.journal.Close()
	}
	if s.logs != nil {
		s.logs.Close()
	}
	if s.kv != nil {
		err = errors.Join(err, s.kv.close())
	}
	if s.lock != nil {
		s.lock.Close()
	}
	return err
}

// life counts the calls under way.
type life struct {
	sync.Mutex
	sync.Cond
	calls int
	ended bool
}

// end keeps new calls out and waits for those under way; false: it was called before.
func (l *life) end() bool {
	l.Lock()
	defer l.Unlock()
	if l.ended {
		return false
	}
	l.ended = true
	for l.calls > 0 {
		l.Wait()
	}
	return true
}

// others returns how many calls are under way besides the caller's.
func (l *life) others() int {
	l.Lock()
	defer l.Unlock()
	return l.calls - 1
}

// enter begins a call; leave ends it.
func (s *Store) enter() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.life.ended {
		return capsule.Errorf(capsule.Unavailable, "the store is closed")
	}
	s.life.calls++
	s.idle.calls.Add(1)
	return nil
}

func (s *Store) leave() {
	s.life.Lock()
	defer s.life.Unlock()
	if s.life.calls--; s.life.calls == 0 && s.life.ended {
		s.life.Broadcast()
	}
}

func (s *Store) now() time.Time { return s.clock.Now() }

// fail stops all changes for good. What was acknowledged is safe; what is on
// disk of the rest only the next Open can tell.
func (s *Store) fail(cause error) {
	err := capsule.Wrap(capsule.Unavailable, &capsule.Error{Kind: capsule.Unavailable, Err: cause},
		"the store takes no more changes after an I/O failure; check the disk, then restart the node")
	if s.failure.CompareAndSwap(nil, &err) {
		s.log.Error("store stopped taking changes", "cause", cause)
	}
}

// writable returns the reason why the store takes no changes, if there is one.
func (s *Store) writable() error {
	if e := s.failure.Load(); e != nil {
		return *e
	}
	if err := s.kv.failed(); err != nil {
		s.fail(err)
		return *s.failure.Load()
	}
	return nil
}

// Failed returns why the store takes no changes any more, or nil.
func (s *Store) Failed() error { return s.writable() }

func (s *Store) setTotals(t totals) {
	s.totals = t
	s.totalsMu.Lock()
	s.shown = t
	s.totalsMu.Unlock()
}

// spaceGauge remembers how much room the disk has, so that not every append
// asks the kernel.
type spaceGauge struct {
	sync.Mutex
	budget  int64 // bytes that may be appended before asking again
	checked time.Time
}

// reserve is how much of a disk of total bytes is kept: enough to rewrite a
// segment log, but not more than an eighth.
func (s *Store) reserve(total uint64) uint64 {
	return min(total/8, uint64(max(minReserve, s.logBytes+s.logBytes/4)))
}

// mergeCost is how many bytes on disk a byte of the journal may take before it is
// part of the metadata and the segments: there, in the engine's log, in its tables.
const mergeCost = 3

// checkSpace fails with NoSpace if n more bytes would eat into the reserve, or
// into what the changes in the journal need to get out of it.
func (s *Store) checkSpace(n int64) error {
	return s.space.take(s, n, 256<<20, func(total uint64) uint64 { return s.reserve(total) + s.unmergedCost() })
}

// checkSpaceToMove is checkSpace for garbage collection and for changes that only
// remove, which may go into the reserve but leave metadata its part.
func (s *Store) checkSpaceToMove(n int64) error {
	return s.spaceToMove.take(s, n, 4<<20, func(total uint64) uint64 { return smallReserve(total) + s.unmergedCost() })
}

// checkSpaceToMerge is checkSpace for changes on their way out of the journal.
func (s *Store) checkSpaceToMerge(n int64) error {
	return s.spaceToMerge.take(s, n, 4<<20, smallReserve)
}

// checkSpaceToCompact is checkSpace for the metadata engine's making tables of
// tables, which must not get into the way of removing.
func (s *Store) checkSpaceToCompact(n int64) error {
	return s.spaceToCompact.take(s, n, 4<<20, func(total uint64) uint64 {
		return (s.reserve(total)+smallReserve(total))/2 + s.unmergedCost()
	})
}

func smallReserve(total uint64) uint64 { return min(minReserve/4, total/16) }

// unmergedCost is what is needed on disk to empty the journal.
func (s *Store) unmergedCost() uint64 { return mergeCost * uint64(s.overlay.journaled()) }

// minUnmerged is how many bytes of changes may be in the journal, however full the disk is.
const minUnmerged = 128 << 10

// mostUnmerged is how many bytes of changes may be in the journal for each
// generation before those that make more wait for it to be emptied: few on a
// disk that is nearly full.
func (s *Store) mostUnmerged() int64 { return max(minUnmerged, s.free.Load()/(4*mergeCost)) }

// take takes n bytes of what the disk has beyond what is to be kept, which
// depends on its size. The kernel is asked once a second, and once for each
// most bytes, or an eighth of what there is.
func (g *spaceGauge) take(s *Store, n, most int64, keep func(total uint64) uint64) error {
	g.Lock()
	defer g.Unlock()
	if now := s.now(); g.budget < n || now.Sub(g.checked) > time.Second || now.Before(g.checked) {
		u, err := s.fs.GetDiskUsage(s.dir)
		if err != nil {
			return nil // no such information here; the write itself will tell
		}
		if g == &s.space {
			s.free.Store(int64(min(u.AvailBytes, math.MaxInt64)) - int64(s.reserve(u.TotalBytes)))
		}
		keep := keep(u.TotalBytes)
		if u.AvailBytes < keep+uint64(n) {
			g.budget = 0
			return noSpace(u.AvailBytes, keep)
		}
		g.budget = min(int64(u.AvailBytes-keep), n+min(most, int64(u.AvailBytes-keep)/8))
		g.checked = now
	}
	g.budget -= n
	return nil
}

func noSpace(avail, keep uint64) error {
	return capsule.Errorf(capsule.NoSpace, "disk full: %d MiB left, of which %d MiB are kept in reserve; remove capsules and run spacectl gc, or add space",
		avail>>20, keep>>20)
}

// spaceIsGone forgets what was known of free space, after a write found none.
func (s *Store) spaceIsGone() {
	for _, g := range []*spaceGauge{&s.space, &s.spaceToMove, &s.spaceToMerge, &s.spaceToCompact} {
		g.Lock()
		g.budget = 0
		g.Unlock()
	}
}

func (s *Store) ballastPath() string { return s.path("ballast") }

// makeBallast keeps a file that fullDisk can give up.
func (s *Store) makeBallast() error {
	if st, err := s.fs.Stat(s.ballastPath()); err == nil && st.Size() == ballast {
		return nil
	}
	f, err := s.fs.Create(s.ballastPath(), "space-file")
	if err != nil {
		return err
	}
	// Nothing of it needs to survive: one that is short is made again.
	piece := make([]byte, 64<<10)
	for n := 0; n < ballast && err == nil; n += len(piece) {
		_, err = f.Write(piece)
	}
	return errors.Join(err, f.Close())
}

// fullDisk is called when a metadata write finds no room. Giving up the
// ballast lets the write under way, and removals after it, go through.
func (s *Store) fullDisk() {
	s.spaceIsGone() // or puts would take what the ballast gives back
	if err := s.fs.Remove(s.ballastPath()); err == nil {
		s.log.Error("disk full: released the ballast; remove capsules and run spacectl gc, or add space")
	}
}

// ioKind is the kind of an error that came up from the operating system.
func ioKind(err error) capsule.ErrorKind {
	if k := capsule.KindOf(err); k != capsule.Other {
		return k
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return capsule.NoSpace
	case errors.Is(err, syscall.EROFS):
		return capsule.ReadOnly
	case errors.Is(err, fs.ErrPermission):
		return capsule.Denied
	}
	var errno syscall.Errno
	var pathErr *os.PathError
	if errors.As(err, &errno) || errors.As(err, &pathErr) || errors.Is(err, io.ErrUnexpectedEOF) {
		return capsule.IO
	}
	return capsule.Other
}

// tokens is a counting semaphore.
type tokens chan struct{}

func newTokens(n int) tokens { return make(tokens, n) }

func (t tokens) acquire(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t tokens) release() { <-t }
