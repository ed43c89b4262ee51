package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// Reader reads one version of a capsule's content, whatever happens to the
// capsule meanwhile. It may be used from many goroutines. Close it.
type Reader struct {
	s      *Store
	info   capsule.Info
	policy *capsule.Policy
	c      content
	closed atomic.Bool

	inline *page // the extents, where they lie in the capsule's record

	prefetching atomic.Int32
}

// page is a decoded extent page with the place of each extent.
type page struct {
	content    contentID
	start, end int64
	list       []extent
	starts     []int64 // offset of each extent in the content
}

func newPage(start int64, list []extent) *page {
	p := &page{start: start, list: list, starts: make([]int64, len(list))}
	for i, x := range list {
		p.starts[i] = start
		start += x.len
	}
	p.end = start
	return p
}

// find returns the index of the extent that holds off.
func (p *page) find(off int64) int {
	return sort.Search(len(p.starts), func(i int) bool { return p.starts[i] > off }) - 1
}

// pageCache remembers decoded extent pages, which never change. A page is kept
// in the slot of the 2 MiB that it was looked up for, so in several, but it
// is rare that two pages want one.
type pageCache [1024]atomic.Pointer[page]

func (c *pageCache) slot(id contentID, off int64) *atomic.Pointer[page] {
	h := binary.LittleEndian.Uint64(id[:]) + uint64(off>>21)*0x9e3779b97f4a7c15
	return &c[h>>32%uint64(len(c))]
}

// Open returns a reader of the capsule's present content.
func (s *Store) Open(ctx context.Context, id capsule.ID) (*Reader, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	// Reading the record and pinning its content must be one step for the
	// reaper, which looks at the pins after the record has changed.
	s.readers.Lock()
	rec, err := getCapsule(s.kv, id)
	if err == nil && rec.kind != capsule.Object {
		err = capsule.Errorf(capsule.Unsupported, "capsule %s is a %s; spacectl %s export writes what it holds", id, rec.kind, rec.kind)
	}
	if err == nil {
		s.readers.add(rec.content.id, 1)
	}
	s.readers.Unlock()
	if err != nil {
		return nil, err
	}
	r := &Reader{s: s, info: rec.info(id), c: rec.content}
	if r.policy, err = s.policy(s.kv, rec.policy); err != nil {
		r.Close()
		return nil, err
	}
	if rec.content.pages == 0 {
		r.inline = newPage(0, rec.content.inline)
	}
	return r, nil
}

// Info tells what the capsule was when it was opened.
func (r *Reader) Info() capsule.Info { return r.info }

// Policy is the capsule's policy when it was opened.
func (r *Reader) Policy() *capsule.Policy { return r.policy }

// Close lets the store release the content if nothing refers to it any more.
func (r *Reader) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	r.s.readers.Lock()
	left := r.s.readers.add(r.c.id, -1)
	r.s.readers.Unlock()
	if left == 0 {
		r.s.wakeReaper()
	}
	return nil
}

// pageAt returns the page that holds off, which must be inside the content.
func (r *Reader) pageAt(off int64) (*page, error) {
	if r.inline != nil {
		return r.inline, nil
	}
	slot := r.s.pages.slot(r.c.id, off)
	if p := slot.Load(); p != nil && p.content == r.c.id && off >= p.start && off < p.end {
		return p, nil
	}
	lo := contentKey(keyPage, r.c.id)
	k, v, err := r.s.kv.seekLast(lo, pageKey(r.c.id, off+1))
	if err != nil {
		return nil, err
	}
	if k != nil {
		start := int64(binary.BigEndian.Uint64(k[len(lo):]))
		list, err := decodePage(v, start)
		if err != nil {
			return nil, err
		}
		if p := newPage(start, list); off < p.end {
			p.content = r.c.id
			slot.Store(p)
			return p, nil
		}
	}
	return nil, capsule.Errorf(capsule.Damaged, "the extents of byte %d are missing", off)
}

// ReadAt implements io.ReaderAt. A damaged range gives a *capsule.DamageError
// and the number of good bytes before it.
func (r *Reader) ReadAt(p []byte, off int64) (n int, err error) {
	if err := r.s.enter(); err != nil {
		return 0, err
	}
	defer r.s.leave()
	if off < 0 {
		return 0, capsule.Errorf(capsule.Invalid, "read at negative offset %d", off)
	}
	for n < len(p) {
		at := off + int64(n)
		if at >= r.c.size || at < 0 {
			return n, io.EOF
		}
		pg, err := r.pageAt(at)
		if err != nil {
			return n, r.context(err)
		}
		i := pg.find(at)
		x, start := pg.list[i], pg.starts[i]
		want := p[n:min(int64(len(p)), int64(n)+start+x.len-at)]
		if x.hole {
			clear(want)
		} else {
			if err := r.s.readSegment(x, at-start, want); err != nil {
				return n, r.damage(err, start, x.len)
			}
		}
		n += len(want)
	}
	return n, nil
}

func (r *Reader) context(err error) error {
	return capsule.Wrap(ioKind(err), err, "read capsule %s", r.info.ID)
}

// damage turns an error about one extent's segment into one about this capsule.
func (r *Reader) damage(err error, off, n int64) error {
	var d *segmentError
	if errors.As(err, &d) {
		r.s.tally.damaged.Add(1)
		return &capsule.DamageError{Capsule: r.info.ID, Off: off, Len: n, Log: d.log, LogOff: d.off, Why: d.err.Error()}
	}
	return r.context(err)
}

// segmentError says where a segment's record should have been intact.
type segmentError struct {
	log uint64
	off int64
	err error
}

func (e *segmentError) Error() string {
	return fmt.Sprintf("segment log %d at %d: %v", e.log, e.off, e.err)
}
func (e *segmentError) Unwrap() error { return e.err }

// readSegment fills p with an extent's plain bytes from off on. What is read
// for the first time is decoded in place, a few bytes of a segment without the
// rest if it has frames; what is read again soon is kept, as a whole. So whoever
// reads much once does not empty the cache for others, and saves a copy.
func (s *Store) readSegment(x extent, off int64, p []byte) error {
	done := false
	s.cache.peek(x.id, func(q []byte) {
		if done = int64(len(q)) == x.len; done {
			copy(p, q[off:])
		}
	})
	if done {
		return nil
	}
	before := s.cache.recent(x.id, int64(len(p)), x.len)
	again := before >= worthWhole
	if !again && int64(len(p)) == x.len {
		_, err := s.decode(p[:0:len(p)], x)
		return err
	}
	if !again && s.readFrames(x, off, p, before > 0) {
		return nil
	}
	err := s.segment(x, func(q []byte) { copy(p, q[off:]) })
	if err != nil && again && s.readFrames(x, off, p, false) {
		return nil // the damage is elsewhere in the segment
	}
	return err
}

// readFrames fills p with an extent's plain bytes from off on, reading nothing
// else, and reports whether it did: the segment may have no frames, be on the
// move or be damaged, which reading it as a whole tells apart. With more, the
// kernel is asked for the rest of the segment, which is likely to be read next.
func (s *Store) readFrames(x extent, off int64, p []byte, more bool) bool {
	row, err := s.segmentRow(x.id)
	n := int(x.len)
	if err != nil || row.plainLen != x.len || row.recordLen != int64(pipeline.FramedLen(n)) {
		return false
	}
	buf := records.Get().(*[]byte)
	defer records.Put(buf)
	from, to := pipeline.Frames(n, int(off), len(p))
	*buf = resize(*buf, to-from)
	if err := s.logs.ReadAt(row.log, *buf, row.off+int64(from)); err != nil {
		return false
	}
	if more {
		s.logs.Prefetch(row.log, row.off, row.recordLen)
	}
	h := pipeline.Header{ID: x.id, Again: row.again, Key: row.key, PlainLen: n}
	return pipeline.OpenFrames(p, *buf, h, int(off), s.keys) == nil
}

// segment calls fn with an extent's plain bytes, from the cache if they are
// there. They are fn's only until it returns.
func (s *Store) segment(x extent, fn func(p []byte)) error {
	var n int
	err := s.cache.use(x.id, int(x.len), func(dst []byte) ([]byte, error) { return s.decode(dst, x) }, func(p []byte) {
		if n = len(p); int64(n) == x.len {
			fn(p)
		}
	})
	if err == nil && int64(n) != x.len {
		err = capsule.Errorf(capsule.Damaged, "segment %s has %d bytes, an extent says %d", x.id, n, x.len)
	}
	return err
}

// decode appends an extent's plain bytes to dst, which has room for them.
func (s *Store) decode(dst []byte, x extent) ([]byte, error) {
	buf := records.Get().(*[]byte)
	defer records.Put(buf)
	row, err := s.readRecord(x.id, buf)
	if err != nil {
		return nil, err
	}
	return s.openRecord(dst, *buf, x, row)
}

var records = sync.Pool{New: func() any {
	b := make([]byte, 0, pipeline.MaxRecord)
	return &b
}}

// lookupSegment returns a segment's row, if it has one.
func (s *Store) lookupSegment(id pipeline.SegmentID) (row segmentRow, ok bool, err error) {
	ok, err = s.kv.view(segmentKey(id), func(v []byte) (err error) {
		row, err = decodeSegment(v)
		return err
	})
	return row, ok, err
}

// segmentRow returns the row that a segment in use must have, or will have: a
// change that is not part of the metadata yet has it pinned, and lets go of the
// pin only after its row is there.
func (s *Store) segmentRow(id pipeline.SegmentID) (segmentRow, error) {
	if row, ok := s.pins.row(id); ok {
		return row, nil
	}
	row, ok, err := s.lookupSegment(id)
	if err == nil && !ok {
		err = capsule.Errorf(capsule.Damaged, "segment %s is in no log", id)
	}
	return row, err
}

// readRecord reads a segment's record into *buf. The record may be moved by
// garbage collection between looking it up and reading it: then look again.
func (s *Store) readRecord(id pipeline.SegmentID, buf *[]byte) (segmentRow, error) {
	for try := 0; ; try++ {
		row, err := s.segmentRow(id)
		if err != nil {
			return row, err
		}
		*buf = resize(*buf, int(row.recordLen))
		err = s.logs.ReadAt(row.log, *buf, row.off)
		if err == nil {
			return row, nil
		}
		switch {
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM):
			return row, err // says nothing about the segment
		case !errors.Is(err, fs.ErrNotExist), try == 3:
			return row, &segmentError{row.log, row.off, err}
		}
	}
}

// openRecord verifies and decodes an extent's record, appending to dst.
func (s *Store) openRecord(dst, rec []byte, x extent, row segmentRow) ([]byte, error) {
	h, err := pipeline.ParseHeader(rec)
	if err == nil && (h.ID != x.id || int64(h.PlainLen) != x.len) {
		err = fmt.Errorf("%w: another segment's record is there", pipeline.ErrCorrupt)
	}
	if err == nil {
		dst, _, err = pipeline.Open(dst, rec, s.keys)
	}
	if err != nil {
		return nil, &segmentError{row.log, row.off, err}
	}
	return dst, nil
}

func resize(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// Prefetch decodes what lies in [off, off+n) into the cache in the background.
// It may do less, and nothing at all when much is being prefetched already.
func (r *Reader) Prefetch(off, n int64) {
	if off < 0 || n <= 0 || off >= r.c.size {
		return
	}
	n = min(n, r.c.size-off, r.s.cache.limit/4)
	if r.prefetching.Add(1) > 1 {
		r.prefetching.Add(-1)
		return
	}
	go func() {
		defer r.prefetching.Add(-1)
		var wg sync.WaitGroup
		defer wg.Wait()
		limit := newTokens(runtime.GOMAXPROCS(0))
		for at := off; at < off+n && !r.closed.Load(); {
			if r.s.enter() != nil {
				return
			}
			pg, err := r.pageAt(at)
			if err != nil {
				r.s.leave()
				return
			}
			i := pg.find(at)
			x := pg.list[i]
			at = pg.starts[i] + x.len
			if x.hole {
				r.s.leave()
				continue
			}
			limit <- struct{}{}
			wg.Go(func() {
				defer r.s.leave()
				defer limit.release()
				_ = r.s.segment(x, func([]byte) {}) // the read itself will say it
			})
		}
	}()
}

// streamRun bounds how much one worker of a stream reads and decodes at a time.
const streamRun = 1 << 20

// span is a run of extents on its way through a stream.
type span struct {
	list  []extent
	start int64 // of the first extent in the content
	out   []byte
	bad   error // damage after len(out) good bytes
}

var spans = sync.Pool{New: func() any { return new(span) }}

// Stream writes bytes [off, off+n) of the content to w, decoding on all cores,
// in order and in bounded memory; n < 0 means to the end. It returns how many
// bytes w took. It does not use the cache, which a long stream would only
// empty for others.
func (r *Reader) Stream(ctx context.Context, w io.Writer, off, n int64) (written int64, err error) {
	err = r.Lend(ctx, off, n, func(p []byte, done func()) error {
		defer done()
		m, err := w.Write(p)
		written += int64(m)
		if err == nil && m < len(p) {
			err = io.ErrShortWrite
		}
		return err
	})
	return written, err
}

// Lend is Stream for one who takes the bytes where they are: take has p, which
// is some 1 MiB at most, until it calls done, also if it returns an error.
func (r *Reader) Lend(ctx context.Context, off, n int64, take func(p []byte, done func()) error) error {
	if err := r.s.enter(); err != nil {
		return err
	}
	defer r.s.leave()
	if off < 0 {
		return capsule.Errorf(capsule.Invalid, "read at negative offset %d", off)
	}
	if off > r.c.size {
		off = r.c.size
	}
	if n < 0 || n > r.c.size-off {
		n = r.c.size - off
	}
	at, end := off, off+n
	produce := func() (*span, bool, error) {
		if at >= end {
			return nil, false, nil
		}
		sp := spans.Get().(*span)
		sp.list, sp.out, sp.bad = sp.list[:0], sp.out[:0], nil
		for total := int64(0); at < end && total < streamRun; {
			pg, err := r.pageAt(at)
			if err != nil {
				return nil, false, r.context(err)
			}
			i := pg.find(at)
			x, start := pg.list[i], pg.starts[i]
			if len(sp.list) == 0 {
				sp.start = start
			}
			if x.hole {
				// A huge hole goes out in pieces.
				from := max(start, at)
				x.len = min(start+x.len, end) - from
				x.len = min(x.len, streamRun)
				if len(sp.list) == 0 {
					sp.start = from
				} else if from != start {
					break
				}
				start = from
			}
			sp.list = append(sp.list, x)
			total += x.len
			at = start + x.len
		}
		return sp, true, nil
	}
	left := n
	emit := func(sp *span) error {
		p := sp.out
		if sp.start < off {
			p = p[min(off-sp.start, int64(len(p))):]
		}
		p = p[:min(int64(len(p)), left)]
		left -= int64(len(p))
		bad := sp.bad
		if err := take(p, func() { spans.Put(sp) }); err != nil {
			return err
		}
		return bad
	}
	if n <= streamRun {
		for left > 0 {
			sp, _, err := produce()
			if err == nil {
				err = r.decode(sp)
			}
			if err == nil {
				err = emit(sp)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	workers := runtime.GOMAXPROCS(0)
	return pipeline.Ordered(ctx, workers, 2*workers+2, produce,
		func(_ int, sp *span) error { return r.decode(sp) }, emit, func(sp *span) { spans.Put(sp) })
}

// decode fills a span's out. Records that lie one after the other in a log,
// as those of one put do, are read with one call.
func (r *Reader) decode(sp *span) error {
	buf := runs.Get().(*[]byte)
	defer runs.Put(buf)
	at := sp.start
	for i := 0; i < len(sp.list); {
		x := sp.list[i]
		if x.hole {
			sp.out = append(sp.out, make([]byte, x.len)...)
			at += x.len
			i++
			continue
		}
		row, err := r.s.segmentRow(x.id)
		if err != nil {
			sp.bad = r.damage(err, at, x.len)
			return nil
		}
		rows := append(make([]segmentRow, 0, 32), row)
		total := row.recordLen
		for j := i + 1; j < len(sp.list) && !sp.list[j].hole; j++ {
			next, err := r.s.segmentRow(sp.list[j].id)
			if err != nil || next.log != row.log || next.off != row.off+total || total > streamRun {
				break
			}
			rows = append(rows, next)
			total += next.recordLen
		}
		*buf = resize(*buf, int(total))
		whole := r.s.logs.ReadAt(row.log, *buf, row.off) == nil
		rec := *buf
		for _, row := range rows {
			x := sp.list[i]
			good := len(sp.out)
			var p []byte
			err := error(&segmentError{row.log, row.off, io.ErrUnexpectedEOF})
			if whole {
				p, err = r.s.openRecord(sp.out, rec[:row.recordLen], x, row)
				rec = rec[row.recordLen:]
			}
			if err != nil {
				// Moved, cut off or damaged: the careful way tells which.
				err = r.s.segment(x, func(q []byte) { p = append(sp.out[:good], q...) })
			}
			if err != nil {
				sp.out = sp.out[:good]
				sp.bad = r.damage(err, at, x.len)
				return nil
			}
			sp.out = p
			at += x.len
			i++
		}
	}
	return nil
}

var runs = sync.Pool{New: func() any { return new([]byte) }}
