package metafs

import (
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs"
)

const (
	maxFrame    = 64 << 10 // content of a log's frame
	frameHeader = 18
	maxSealed   = frameHeader + maxFrame + tagSize

	// A WAL is extended ahead with zeros, first by firstStep, then by as much
	// as it has, up to mostStep, while less than rareSync is written from one
	// sync to the next: else it is not worth it.
	firstStep = 64 << 10
	mostStep  = 4 << 20
	rareSync  = 256 << 10
)

// zeros is what a WAL is extended with, as often as it takes.
var zeros [64 << 10]byte

// Kinds of log frame.
const (
	frameData = 1
	frameMark = 2
	frameEnd  = 3
)

// logFrame is a log frame's header.
type logFrame struct {
	kind   byte
	length int   // of the content
	synced int64 // offset in the file
}

func (f logFrame) sealedSize() int64 { return int64(frameHeader + f.length + tagSize) }

// appendLogFrame appends the frame with the given content for offset off.
func (s *sealer) appendLogFrame(b []byte, off int64, f logFrame, content []byte) []byte {
	start := len(b)
	b = append(b, f.kind)
	b = append(b, byte(f.length), byte(f.length>>8), byte(f.length>>16))
	b = binary.LittleEndian.AppendUint64(b, uint64(f.synced))[:start+10]
	b = binary.LittleEndian.AppendUint64(b, s.checkWord(b[start:], off))
	return s.aead.Seal(b, nonce(useLog, uint64(off))[:], content, b[start:start+frameHeader])
}

// checkWord binds a frame's header to its offset: a one-block PRF, so that a
// search can test an offset in nanoseconds and cannot be fooled.
func (s *sealer) checkWord(h []byte, off int64) uint64 {
	var in, out [16]byte
	copy(in[:10], h)
	var o [8]byte
	binary.LittleEndian.PutUint64(o[:], uint64(off))
	copy(in[10:], o[:6])
	s.check.Encrypt(out[:], in[:])
	return binary.LittleEndian.Uint64(out[:])
}

// parseLogFrame reads a frame's header without checking it; ok is false where
// no valid one can look like this.
func parseLogFrame(h []byte, off int64) (f logFrame, ok bool) {
	f.kind = h[0]
	f.length = int(h[1]) | int(h[2])<<8 | int(h[3])<<16
	var v [8]byte
	copy(v[:], h[4:10])
	f.synced = int64(binary.LittleEndian.Uint64(v[:]))
	ok = f.kind >= frameData && f.kind <= frameEnd && f.synced <= off && f.synced >= headerSize &&
		(f.kind == frameData) == (f.length > 0) && f.length <= maxFrame
	return f, ok
}

// logWriter seals a log. Write and Sync may be called at the same time.
//
// It reports no errors; see the package's documentation on fail-stop. A nil
// File is a log that could not be created.
type logWriter struct {
	vfs.File
	fs   *FS
	name string
	wal  bool
	s    *sealer

	mu     sync.Mutex // held while writing
	off    int64      // in the sealed file
	ready  int64      // the sealed file has zeros from off up to here; -1: it is not extended
	data   int64      // end of the last data frame in it
	size   int64      // of the content
	buf    []byte
	synced atomic.Int64
}

// newLogWriter writes and syncs the header.
func newLogWriter(fs *FS, f vfs.File, name string, h []byte, s *sealer) (*logWriter, error) {
	w := &logWriter{File: f, fs: fs, name: name, wal: isWAL(name), s: s, off: headerSize}
	if !w.wal {
		w.ready = -1
	}
	if err := fs.writeAt(f, name, h, 0); err != nil {
		return nil, err
	}
	if err := f.SyncData(); err != nil {
		return nil, ioError(err, "sync", name)
	}
	w.data = headerSize
	w.synced.Store(headerSize)
	return w, nil
}

// dead reports whether there is nothing to do any more.
func (w *logWriter) dead() bool { return w.File == nil || w.fs.Err() != nil }

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for rest := p; len(rest) > 0; {
		n := min(len(rest), maxFrame)
		w.append(frameData, rest[:n])
		rest = rest[n:]
	}
	w.size += int64(len(p))
	return len(p), nil
}

// append writes one frame. w.mu is held.
func (w *logWriter) append(kind byte, content []byte) {
	if w.dead() {
		return
	}
	w.buf = w.s.appendLogFrame(w.buf[:0], w.off, logFrame{kind, len(content), w.synced.Load()}, content)
	err := w.extend(w.off + int64(len(w.buf)))
	if err == nil {
		err = w.fs.writeAt(w.File, w.name, w.buf, w.off)
	}
	if err != nil {
		w.fs.Fail(err)
		return
	}
	w.off += int64(len(w.buf))
	if kind == frameData {
		w.data = w.off
	}
}

// extend makes sure that a WAL has room up to end, zeros that were written
// before: so most syncs find the file's size and its blocks as they were, and
// need not make durable more than what was written. Where the disk has no room
// for that, the file grows with each write. w.mu is held.
func (w *logWriter) extend(end int64) error {
	if w.ready < 0 || end <= w.ready || end-w.synced.Load() > rareSync {
		return nil
	}
	from := max(w.ready, w.off)
	to := max(end, from+min(max(from, firstStep), mostStep))
	for from < to {
		n, err := w.File.WriteAt(zeros[:min(to-from, int64(len(zeros)))], from)
		if isFull(err) {
			w.ready = -1
			return nil
		}
		if err != nil {
			return ioError(err, "write", w.name)
		}
		from += int64(n)
	}
	w.ready = to
	return nil
}

// written returns how far there is content that a sync must make durable.
func (w *logWriter) written() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.data
}

// sync makes the file durable as it is at the call and says so in it.
func (w *logWriter) sync(sync func() error) {
	off := w.written()
	if w.dead() {
		return
	}
	if err := sync(); err != nil {
		w.fs.Fail(ioError(err, "sync", w.name))
		return
	}
	w.raise(off)
	w.mu.Lock()
	w.append(frameMark, nil)
	w.mu.Unlock()
}

// raise notes that the file is durable below off.
func (w *logWriter) raise(off int64) {
	for {
		old := w.synced.Load()
		if off <= old || w.synced.CompareAndSwap(old, off) {
			return
		}
	}
}

func (w *logWriter) Sync() error {
	w.syncAll(func() error { return w.File.Sync() })
	return nil
}

func (w *logWriter) SyncData() error {
	w.syncAll(func() error { return w.File.SyncData() })
	return nil
}

// syncAll syncs, and where syncs are rare also the mark that witnesses it.
func (w *logWriter) syncAll(sync func() error) {
	w.sync(sync)
	if w.wal || w.dead() {
		return
	}
	if err := sync(); err != nil {
		w.fs.Fail(ioError(err, "sync", w.name))
	}
}

// SyncTo passes the hint on; sealing only makes a file's prefix longer.
func (w *logWriter) SyncTo(length int64) (bool, error) {
	off := w.written()
	if w.dead() {
		return false, nil
	}
	full, err := w.File.SyncTo(length)
	if err != nil {
		w.fs.Fail(ioError(err, "sync", w.name))
		return false, nil
	}
	if full {
		w.raise(off)
	}
	return full, nil
}

func (w *logWriter) Close() error {
	if w.File == nil {
		return nil
	}
	defer w.fs.finish(w.name)
	if w.written() > w.synced.Load() {
		w.sync(w.File.SyncData)
	}
	w.mu.Lock()
	w.append(frameEnd, nil)
	w.mu.Unlock()
	if !w.dead() {
		if err := w.File.SyncData(); err != nil {
			w.fs.Fail(ioError(err, "sync", w.name))
		}
	}
	if err := w.File.Close(); err != nil {
		w.fs.Fail(ioError(err, "close", w.name))
	}
	return nil
}

func (w *logWriter) Fd() uintptr {
	if w.File == nil {
		return invalidFd
	}
	return w.File.Fd()
}

func (w *logWriter) Stat() (vfs.FileInfo, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return writerInfo(w.fs, w.name, w.size), nil
}

func (w *logWriter) Preallocate(int64, int64) error     { return nil }
func (w *logWriter) Prefetch(int64, int64) error        { return nil }
func (w *logWriter) Read([]byte) (int, error)           { return 0, errWriteOnly }
func (w *logWriter) ReadAt([]byte, int64) (int, error)  { return 0, errWriteOnly }
func (w *logWriter) WriteAt([]byte, int64) (int, error) { return 0, errAppendOnly }

// logReader opens a log as it was when it was opened. It reads in order;
// reading elsewhere costs a walk from the nearest place it remembers.
type logReader struct {
	vfs.File
	name  string
	wal   bool
	s     *sealer // nil: a WAL that holds nothing
	limit int64   // of the sealed file

	mu     sync.Mutex
	pos    int64 // of Read, in the content
	next   place // of the frame after the present one
	frame  []byte
	start  int64 // of the present frame, in the content
	places []place
	end    *logEnd // once found
	window []byte  // the sealed file from winOff on
	winOff int64
	plain  []byte
}

// place is where a frame begins, in the content and in the sealed file.
type place struct{ content, sealed int64 }

// logEnd is where a log ends, and how.
type logEnd struct {
	at  place
	err error // io.EOF, or what is wrong
}

// placeEvery is how far apart the remembered places are.
const placeEvery = 1 << 20

func newLogReader(f vfs.File, name string, physical int64, s *sealer, wal bool) *logReader {
	first := place{0, headerSize}
	r := &logReader{File: f, name: name, wal: wal, s: s, limit: physical, next: first, places: []place{first}}
	if s == nil {
		r.end = &logEnd{first, io.EOF}
	}
	return r
}

func (r *logReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.readAt(p, r.pos)
	r.pos += int64(n)
	if n > 0 {
		err = nil // comes again at the next Read
	}
	return n, err
}

func (r *logReader) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if off < 0 {
		return 0, errOffset
	}
	return r.readAt(p, off)
}

func (r *logReader) readAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		if err := r.seek(off + int64(n)); err != nil {
			return n, err
		}
		n += copy(p[n:], r.frame[off+int64(n)-r.start:])
	}
	return n, nil
}

// seek makes the frame with the content's byte at off the present one.
func (r *logReader) seek(off int64) error {
	if off < r.start {
		i := len(r.places) - 1
		for r.places[i].content > off {
			i--
		}
		r.next, r.frame, r.start = r.places[i], nil, r.places[i].content
	}
	for off >= r.start+int64(len(r.frame)) {
		if err := r.advance(); err != nil {
			return err
		}
	}
	return nil
}

// advance goes on to the next frame that has content.
func (r *logReader) advance() error {
	for {
		if r.end != nil && r.next.sealed >= r.end.at.sealed {
			return r.end.err
		}
		at := r.next
		r.frame, r.start = nil, at.content // its buffer is used again
		f, content, err := r.readFrame(at.sealed)
		if err == errBadFrame {
			err = r.judge(at.sealed)
		}
		if err == io.EOF && at.sealed == headerSize && !r.wal {
			err = damaged(r.name, at.sealed, "nothing in the file verifies")
		}
		switch {
		case err == io.EOF || capsule.KindOf(err) == capsule.Damaged:
			r.end = &logEnd{at, err}
			return err
		case err != nil: // a read that may succeed the next time
			return err
		}
		if f.kind == frameEnd {
			r.end = &logEnd{at, io.EOF}
			return io.EOF
		}
		r.next = place{at.content + int64(f.length), at.sealed + f.sealedSize()}
		if at.content-r.places[len(r.places)-1].content >= placeEvery {
			r.places = append(r.places, at)
		}
		if f.kind == frameData {
			r.frame, r.start = content, at.content
			return nil
		}
	}
}

// readFrame reads and verifies the frame at an offset of the sealed file. It
// returns io.EOF if the file ends right there, and errBadFrame if there is no
// valid frame.
func (r *logReader) readFrame(off int64) (logFrame, []byte, error) {
	if off == r.limit {
		return logFrame{}, nil, io.EOF
	}
	h, err := r.sealed(off, frameHeader)
	if err != nil {
		return logFrame{}, nil, err
	}
	f, ok := r.header(h, off)
	if !ok {
		return f, nil, errBadFrame
	}
	b, err := r.sealed(off, int(f.sealedSize()))
	if err != nil {
		return f, nil, err
	}
	if int64(len(b)) < f.sealedSize() {
		return f, nil, errBadFrame
	}
	r.plain, err = r.s.aead.Open(r.plain[:0], nonce(useLog, uint64(off))[:], b[frameHeader:], b[:frameHeader])
	if err != nil {
		return f, nil, errBadFrame
	}
	return f, r.plain, nil
}

// header parses and checks a frame's header; b starts with it, or is too short.
func (r *logReader) header(b []byte, off int64) (f logFrame, ok bool) {
	if len(b) < frameHeader {
		return f, false
	}
	if f, ok = parseLogFrame(b, off); !ok {
		return f, false
	}
	return f, r.s.checkWord(b[:10], off) == binary.LittleEndian.Uint64(b[10:])
}

// judge decides what a bad frame at off means: io.EOF for a torn end, or an
// error for damage. It searches every later offset for a header that says
// that the file was durable beyond off.
func (r *logReader) judge(off int64) error {
	for q := off + 1; q+frameHeader <= r.limit; {
		b, err := r.sealed(q, maxSealed)
		if err != nil {
			return err
		}
		if len(b) < frameHeader { // shorter than it was when opened
			break
		}
		for ; len(b) >= frameHeader; b, q = b[1:], q+1 {
			if b[0] == 0 { // as most are of what is extended ahead
				continue
			}
			if f, ok := parseLogFrame(b, q); ok && f.synced > off {
				if _, ok := r.header(b, q); ok {
					return damaged(r.name, off, "the frame does not verify, though it was safely stored")
				}
			}
		}
	}
	return io.EOF
}

// sealed returns n bytes of the sealed file, or as many as it has.
func (r *logReader) sealed(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), r.limit-off))
	if off < r.winOff || off+int64(n) > r.winOff+int64(len(r.window)) {
		if r.window == nil {
			r.window = make([]byte, min(2*maxSealed, r.limit))
		}
		w := r.window[:min(int64(cap(r.window)), r.limit-off)]
		m, err := r.File.ReadAt(w, off)
		if err != nil && err != io.EOF {
			r.window = r.window[:0]
			return nil, ioError(err, "read", r.name)
		}
		r.window, r.winOff = w[:m], off
	}
	b := r.window[off-r.winOff:]
	return b[:min(n, len(b))], nil
}

// size walks to the end, or to where damage makes the rest unreadable.
func (r *logReader) size() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.end == nil {
		if r.advance() != nil {
			break
		}
	}
	if r.end == nil { // a read failed and may succeed the next time
		return r.next.content
	}
	return r.end.at.content
}

func (r *logReader) Stat() (vfs.FileInfo, error) {
	fi, err := r.File.Stat()
	if err != nil {
		return nil, err
	}
	return info{fi, r.size()}, nil
}

func (r *logReader) Prefetch(int64, int64) error        { return nil }
func (r *logReader) Write([]byte) (int, error)          { return 0, errReadOnly }
func (r *logReader) WriteAt([]byte, int64) (int, error) { return 0, errReadOnly }
