package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs"
)

const (
	// MaxRecord bounds a record, in bytes.
	MaxRecord = 4 << 20
	// bufferLimit is how much waits in memory to be written.
	bufferLimit = 1 << 20

	category = "space-journal"
	suffix   = ".log"
)

// ErrEnd is what a replay function returns, wrapped or not, for a record that
// depends on what a power cut took: it and all after it were never durable, and
// are left out.
var ErrEnd = errors.New("the journal ends here")

// FS is a file system that latches its first failed write or sync and answers
// "done" from then on, as metafs does.
type FS interface {
	vfs.FS
	Err() error
}

// Journal is an open journal. Its methods may be called from many goroutines.
type Journal struct {
	fs  FS
	dir string

	mu      sync.Mutex
	moved   sync.Cond // signals that somebody has written or synced, to those few who are not in waiters
	waiters []*waiter // in the order in which they came
	writing bool      // somebody writes what was queued
	syncing bool      // somebody syncs or ends a file
	pushes  int       // calls of Push since the last sync began
	usual   int       // how many there were between the two syncs before
	last    uint64    // number of the last record appended
	written uint64    // all records up to this one are written
	synced  uint64    // all records up to this one are durable
	current vfs.File  // has record number written, if that is not durable
	queue   []chunk   // what is to be written; the last one grows
	buffers [][]byte  // used ones, to grow again
	files   []file    // oldest first; the last one takes records
	next    uint64    // name of the next file
	ended   bool      // a replay has found the end; the records after it only count
	closed  bool
}

// chunk is bytes on their way to a file.
type chunk struct {
	w    vfs.File
	b    []byte
	last uint64 // number of the last record in b, or of the one before
	end  bool   // the file takes nothing after b
}

// file is a journal file.
type file struct {
	name  string
	w     vfs.File // nil: of the process before
	first uint64   // number of its first record, if it is of this process
	last  uint64   // number of its last record, once it takes no more
}

// Open replays the records after number after, in order, and returns the
// journal, which goes on behind the last of them. A gap between after and the
// records that are there is damage.
func Open(fs FS, dir string, after uint64, replay func(number uint64, record []byte) error) (*Journal, error) {
	j := &Journal{fs: fs, dir: dir, last: after}
	j.moved.L = &j.mu
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := vfs.SyncDir(fs, fs.PathDir(dir)); err != nil {
		return nil, err
	}
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, base := range names {
		hex, ok := strings.CutSuffix(base, suffix)
		n, err := strconv.ParseUint(hex, 16, 64)
		if !ok || err != nil || len(hex) != 16 {
			continue
		}
		j.next = n + 1
		name := fs.PathJoin(dir, base)
		if err := j.replay(name, after, replay); err != nil {
			return nil, fmt.Errorf("journal %s: %w", name, err)
		}
		j.files = append(j.files, file{name: name, last: j.last})
	}
	j.written, j.synced = j.last, j.last
	return j, nil
}

// replay goes through one file, and makes durable what it has: the process that
// wrote it may have ended before it did.
func (j *Journal) replay(name string, after uint64, fn func(uint64, []byte) error) error {
	f, err := j.fs.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := j.replayFile(f, fn); err != nil || j.last == after {
		return err
	}
	return f.Sync()
}

func (j *Journal) replayFile(f vfs.File, fn func(uint64, []byte) error) error {
	r := bufio.NewReaderSize(f, 256<<10)
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return endOf(err)
	}
	number := binary.BigEndian.Uint64(head[:])
	if number == 0 || number > j.last+1 {
		return capsule.Errorf(capsule.Damaged, "records %d to %d are missing", j.last+1, number-1)
	}
	var rec []byte
	for ; ; number++ {
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return endOf(err)
		}
		if n > MaxRecord {
			return capsule.Errorf(capsule.Damaged, "record %d claims %d bytes", number, n)
		}
		rec = slices.Grow(rec[:0], int(n))[:n]
		if _, err := io.ReadFull(r, rec); err != nil {
			return endOf(err)
		}
		if number <= j.last {
			continue // part of the metadata already
		}
		if !j.ended {
			switch err := fn(number, rec); {
			case errors.Is(err, ErrEnd):
				j.ended = true
			case err != nil:
				return fmt.Errorf("record %d: %w", number, err)
			}
		}
		j.last = number
	}
}

// endOf is nil for the end of a file, also in the middle of a record.
func endOf(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// Append takes a record and returns its number. It is durable only after Sync.
func (j *Journal) Append(record []byte) (uint64, error) {
	if len(record) > MaxRecord {
		return 0, capsule.Errorf(capsule.Invalid, "a journal record of %d bytes is over the limit of %d", len(record), MaxRecord)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.queuedBytes() > bufferLimit {
		err := j.write()
		j.wake()
		if err != nil {
			return 0, err
		}
	}
	if err := j.fs.Err(); err != nil {
		return 0, err
	}
	if j.closed {
		return 0, capsule.Errorf(capsule.Unavailable, "the journal is closed")
	}
	if n := len(j.files); n == 0 || j.files[n-1].w == nil {
		w, name, err := j.create()
		if err != nil {
			return 0, err
		}
		j.use(w, name)
	}
	c := &j.queue[len(j.queue)-1]
	c.b = binary.AppendUvarint(c.b, uint64(len(record)))
	c.b = append(c.b, record...)
	j.last++
	c.last = j.last
	return j.last, nil
}

// queuedBytes returns how many bytes are to be written.
func (j *Journal) queuedBytes() (n int) {
	for _, c := range j.queue {
		n += len(c.b)
	}
	return n
}

// create makes an empty file whose name is durable.
func (j *Journal) create() (vfs.File, string, error) {
	name := j.fs.PathJoin(j.dir, fmt.Sprintf("%016x%s", j.next, suffix))
	j.next++
	w, err := j.fs.Create(name, category)
	if err == nil {
		err = vfs.SyncDir(j.fs, j.dir)
	}
	if err == nil {
		err = j.fs.Err()
	}
	return w, name, err
}

// use has the next records go to a new file.
func (j *Journal) use(w vfs.File, name string) {
	j.files = append(j.files, file{name: name, w: w, first: j.last + 1})
	c := chunk{w: w, b: j.buffer(), last: j.last}
	c.b = binary.BigEndian.AppendUint64(c.b, j.last+1)
	j.queue = append(j.queue, c)
}

func (j *Journal) buffer() []byte {
	if n := len(j.buffers); n > 0 {
		b := j.buffers[n-1]
		j.buffers = j.buffers[:n-1]
		return b[:0]
	}
	return nil
}

// Last returns the number of the last record appended.
func (j *Journal) Last() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// Sync returns when all records up to number are durable. After an error
// nothing may be assumed of them, nor of any later ones.
func (j *Journal) Sync(number uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.synced < number {
		var err error
		switch {
		case j.syncing, j.writing && j.written < number:
			err = j.wait(number, true)
		case j.written < number:
			// All that came while the disk synced, at once. Then this one syncs,
			// which wakes others, unless that is done or somebody else is at it.
			if err = j.write(); err != nil || j.syncing || j.synced >= number {
				j.wake()
			}
		default:
			j.usual, j.pushes = j.pushes, 0
			err = j.settle(all(j.current.SyncData))
		}
		if err != nil {
			return err
		}
	}
	return j.fs.Err()
}

// Push returns when all records up to number are the operating system's: they
// outlive this process, if not a power cut. When a Sync is to be expected, it
// has the disk begin.
func (j *Journal) Push(number uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pushes++
	due := j.pushes == j.usual && !j.syncing
	for j.written < number {
		var err error
		if j.writing {
			err = j.wait(number, false)
		} else {
			err = j.write()
			j.wake()
		}
		if err != nil {
			return err
		}
	}
	if due && !j.syncing && j.synced < number {
		w := j.current
		return j.settle(func() (bool, error) { return w.SyncTo(math.MaxInt64) })
	}
	return j.fs.Err()
}

// waiter is somebody for whom others write or sync.
type waiter struct {
	number  uint64        // the record that has to be written
	durable bool          // and synced
	turn    chan struct{} // gives a value when that is so, or the waiter is to do it
}

var waiters = sync.Pool{New: func() any { return &waiter{turn: make(chan struct{}, 1)} }}

// wait returns when a record is written, or durable, or when the caller is to
// look again who does that. j.mu is held, but not meanwhile.
func (j *Journal) wait(number uint64, durable bool) error {
	w := waiters.Get().(*waiter)
	defer waiters.Put(w)
	w.number, w.durable = number, durable
	j.waiters = append(j.waiters, w)
	j.mu.Unlock()
	<-w.turn
	j.mu.Lock()
	err := j.fs.Err()
	if err != nil { // which may have come after this one was chosen
		j.wake()
	}
	return err
}

// wake is called by whoever has written or synced, or will not after all. It
// wakes those who have what they wait for, all of them after a failure, and of
// the others only whom it takes for the next write and the next sync: they call
// it in their turn. j.mu is held.
func (j *Journal) wake() {
	failed := j.fs.Err() != nil
	var writer, syncer *waiter
	rest := j.waiters[:0]
	for _, w := range j.waiters {
		switch {
		case failed, w.number <= j.synced, !w.durable && w.number <= j.written:
			w.turn <- struct{}{}
		case w.durable && syncer == nil && !j.syncing && (w.number <= j.written || !j.writing):
			syncer = w
		case !w.durable && writer == nil && !j.writing:
			writer = w
		default:
			rest = append(rest, w)
		}
	}
	clear(j.waiters[len(rest):])
	j.waiters = rest
	// The last one to be woken is the first to run, so that the disk is at work
	// again before those who are done go on.
	for _, w := range []*waiter{writer, syncer} {
		if w != nil {
			w.turn <- struct{}{}
		}
	}
}

// write writes what is queued, or waits if somebody else is at it. j.mu is
// held, but not meanwhile.
func (j *Journal) write() error {
	if j.writing {
		j.moved.Wait()
		return j.fs.Err()
	}
	j.writing = true
	queue := j.queue
	j.queue = nil
	if n := len(queue); n > 0 && !queue[n-1].end {
		j.queue = append(j.queue, chunk{w: queue[n-1].w, b: j.buffer(), last: queue[n-1].last})
	}
	var err error
	for _, c := range queue {
		if len(c.b) > 0 {
			j.mu.Unlock()
			_, err = c.w.Write(c.b)
			j.mu.Lock()
		}
		if err == nil {
			err = j.fs.Err()
		}
		if err != nil {
			break
		}
		j.written, j.current = c.last, c.w
		if c.end { // Close syncs
			if err = j.settle(all(c.w.Close)); err != nil {
				break
			}
		}
	}
	for _, c := range queue {
		if cap(c.b) <= 2*bufferLimit && len(j.buffers) < 4 {
			j.buffers = append(j.buffers, c.b)
		}
	}
	j.writing = false
	j.moved.Broadcast()
	return err
}

// settle has a method of the current file at work on what is written to it, once
// nobody else is. how reports whether all of that is durable then.
func (j *Journal) settle(how func() (durable bool, err error)) error {
	for j.syncing {
		j.moved.Wait()
	}
	j.syncing = true
	number := j.written
	j.wake() // whose records are written, and who writes meanwhile
	j.mu.Unlock()
	durable, err := how()
	if ferr := j.fs.Err(); ferr != nil {
		err = ferr
	}
	j.mu.Lock()
	j.syncing = false
	if err == nil && durable {
		j.synced = max(j.synced, number)
	}
	j.moved.Broadcast()
	j.wake()
	return err
}

// all is settle's argument for what makes all of a file durable.
func all(sync func() error) func() (bool, error) {
	return func() (bool, error) { return true, sync() }
}

// Cut ends the present file, if it has records: later ones go to a new one. It returns the
// number of the last record before the cut. Nothing is written or synced here
// but the new file's name.
func (j *Journal) Cut() (uint64, error) {
	j.mu.Lock()
	n := len(j.files)
	if n == 0 || j.files[n-1].w == nil || j.files[n-1].first > j.last { // there is none, or it has no records
		defer j.mu.Unlock()
		return j.last, nil
	}
	j.mu.Unlock()
	w, name, err := j.create() // only the one who cuts creates, once there is a file
	if err != nil {
		return 0, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.files[len(j.files)-1].last = j.last
	c := &j.queue[len(j.queue)-1]
	c.end, c.last = true, j.last
	j.use(w, name)
	return j.last, nil
}

// Release removes the files whose records are all numbered number or less.
// The caller has made durable what they say.
func (j *Journal) Release(number uint64) error {
	j.mu.Lock()
	var names []string
	for len(j.files) > 0 {
		f := j.files[0]
		if f.w != nil && len(j.files) == 1 || f.last > number || j.queued(f.w) {
			break
		}
		names = append(names, f.name)
		j.files = j.files[1:]
	}
	j.mu.Unlock()
	for _, name := range names {
		if err := j.fs.Remove(name); err != nil {
			return err
		}
	}
	return j.fs.Err()
}

// queued reports whether something is still to be written to a file.
func (j *Journal) queued(w vfs.File) bool {
	return w != nil && (j.writing || slices.ContainsFunc(j.queue, func(c chunk) bool { return c.w == w }))
}

// Close writes and syncs what is left.
func (j *Journal) Close() error {
	err := j.Sync(j.Last())
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.writing || j.syncing {
		j.moved.Wait()
	}
	j.closed = true
	if n := len(j.files); n > 0 && j.files[n-1].w != nil {
		if cerr := j.files[n-1].w.Close(); err == nil {
			err = cerr
		}
		j.files[n-1].w = nil
	}
	return err
}
