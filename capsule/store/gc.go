package store

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// GCOptions say how far garbage collection goes.
type GCOptions struct {
	MinDead    float64 // rewrite logs of which at least this part is dead; 0: a tenth
	Recompress bool    // also pack with a denser codec what a put stored with a fast one

	minAgain float64 // recompress logs of which at least this part is worth it
	// background has it make way for other calls, unless space is short, and
	// for other garbage collections.
	background bool
}

// GCReport says what garbage collection did.
type GCReport struct {
	LogsRemoved  int   `json:"logs_removed"`
	LogsMoved    int   `json:"logs_moved"`   // of those, how many had live segments to move first
	FreedBytes   int64 `json:"freed_bytes"`  // of removed logs
	MovedBytes   int64 `json:"moved_bytes"`  // of records written again
	Recompressed int64 `json:"recompressed"` // segments
	Resealed     int64 `json:"resealed"`     // segments and metadata tables sealed again under the current key
	Unmovable    int   `json:"unmovable"`    // logs kept because of damage; run verify
}

const (
	defaultMinDead = 0.1
	// In the background a log is rewritten only when that gains much.
	backgroundMinDead  = 0.5
	backgroundMinAgain = 0.25
	// smallLogs is how many logs of less than a quarter of their full size
	// are worth merging.
	smallLogs = 8
	// moveBatch bounds the memory and the length of one commit of a move.
	moveBatch = 1 << 20
	// tidyEvery is how often a long-lived node looks for work of this kind, and
	// muchEvery how often for so much of it that it cannot wait.
	tidyEvery = 30 * time.Second
	muchEvery = 5 * time.Second
	// longestRetry bounds how long it is left alone after it failed again and again.
	longestRetry = 10 * time.Minute
	// muchGarbage is how much garbage there may be before its collection makes
	// way for nobody. In a store with more than that in use it is as much.
	muchGarbage = 1 << 30
)

// GC gives space that nothing refers to back to the file system, while reads
// and writes go on: it waits for removed contents to be released, then removes
// logs without live segments and rewrites those that are mostly dead, and merges
// those that stayed small. It also seals again what lies under an older data key. progress may be nil; it is
// told log bytes looked at, of how many.
func (s *Store) GC(ctx context.Context, o GCOptions, progress func(done, total int64)) (GCReport, error) {
	var rep GCReport
	if err := s.enter(); err != nil {
		return rep, err
	}
	defer s.leave()
	if o.MinDead < 0 || o.MinDead > 1 {
		return rep, capsule.Errorf(capsule.Invalid, "the dead part of a log is between 0 and 1, not %g", o.MinDead)
	}
	if o.MinDead == 0 {
		o.MinDead = defaultMinDead
	}
	if err := s.acquireMoving(ctx, o.background); err != nil {
		return rep, err
	}
	defer s.moving.release()
	err := s.collectGarbage(ctx, o, &rep, progress)
	s.tally.collected(&rep)
	if err != nil {
		err = capsule.Wrap(ioKind(err), err, "collect garbage")
	}
	return rep, err
}

func (s *Store) collectGarbage(ctx context.Context, o GCOptions, rep *GCReport, progress func(done, total int64)) error {
	if err := s.settle(ctx); err != nil {
		return err
	}
	if err := s.writable(); err != nil {
		return err
	}
	todo, err := s.candidates(o, rep)
	if err != nil {
		return err
	}
	var total, done int64
	for _, c := range todo {
		total += c.size
		if s.logs.Active(c.log) {
			s.logs.Rotate() // it must not take what is moved out of it
		}
	}
	pace := func(context.Context) error { return nil }
	if o.background {
		pace = (&yielder{s: s}).step
	}
	for _, c := range todo {
		left, err := s.moveLog(ctx, c.log, o, rep, pace, func(at int64) {
			if progress != nil {
				progress(done+at, total)
			}
		})
		if err != nil {
			return err
		}
		done += c.size
		if left > 0 {
			row, err := s.logRow(c.log)
			if err != nil {
				return err
			}
			rep.Unmovable++
			s.stuck[c.log] = row.live
			s.log.Warn("a segment log could not be emptied; run spacectl verify", "log", c.log, "damaged_segments", left)
			continue
		}
		rep.LogsMoved++
		if err := s.removeLog(c.log, c.size, rep); err != nil {
			return err
		}
	}
	return s.resealMeta(ctx, rep)
}

// candidate is a log worth rewriting.
type candidate struct {
	log  uint64
	size int64
	live int64
}

// candidates removes the logs without live segments, since moving others needs
// room, and returns those worth rewriting.
func (s *Store) candidates(o GCOptions, rep *GCReport) (todo []candidate, err error) {
	logs, err := s.logs.Logs()
	if err != nil {
		return nil, err
	}
	var small []candidate
	for _, log := range logs {
		size, err := s.logs.Size(log)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		row, err := s.logRow(log)
		if err != nil {
			return nil, err
		}
		c := candidate{log, size, row.live}
		dead := size - row.live
		switch {
		case row.live > 0 && s.stuck[log] == row.live: // nothing has changed since it failed
			rep.Unmovable++
		case row.live == 0 && !s.logs.Active(log):
			if err := s.removeLog(log, size, rep); err != nil {
				return nil, err
			}
		case dead > 0 && float64(dead) >= o.MinDead*float64(size),
			row.live > 0 && row.oldestKey < s.keys.current().version,
			o.Recompress && row.again > 0 && float64(row.again) >= o.minAgain*float64(size):
			todo = append(todo, c)
		case size < s.logBytes/4 && !s.logs.Active(log):
			small = append(small, c)
		}
	}
	if len(small) >= smallLogs {
		todo = append(todo, small...)
	}
	// The least to move first: on a full disk each makes room for the next.
	slices.SortFunc(todo, func(a, b candidate) int { return cmp.Compare(a.live, b.live) })
	return todo, nil
}

// commitDurably makes all metadata changes so far durable.
func (s *Store) commitDurably() error {
	return s.commit(synced, func(t *tx) error { return t.b.set([]byte{keyTotals}, t.totals.encode()) })
}

// giveBack removes the logs that nothing refers to after a put that the disk had no
// room for: what it had written is of no use to anybody any more. What lies between
// live segments stays for garbage collection. If that is under way, it does all of it.
func (s *Store) giveBack(ctx context.Context) {
	select {
	case s.moving <- struct{}{}:
	default:
		return
	}
	defer s.moving.release()
	var rep GCReport
	err := s.awaitReaper(ctx) // the put's pages refer to some
	if err == nil {
		err = s.removeDeadLogs(&rep)
	}
	if rep.LogsRemoved > 0 {
		s.tally.collected(&rep)
	}
	if err != nil && ctx.Err() == nil && s.writable() == nil {
		s.log.Warn("the space of a put that failed is not free yet", "error", err)
	}
}

// removeDeadLogs removes the logs without live segments. The one that takes
// appends takes no more if it is one of them.
func (s *Store) removeDeadLogs(rep *GCReport) error {
	logs, err := s.logs.Logs()
	if err != nil {
		return err
	}
	for _, log := range logs {
		row, err := s.logRow(log)
		if err != nil {
			return err
		}
		if row.live > 0 || s.pins.holds(log) {
			continue
		}
		if s.logs.Active(log) {
			s.logs.Rotate()
		}
		size, err := s.logs.Size(log)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = s.removeLog(log, size, rep)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) logRow(log uint64) (logRow, error) {
	b, err := s.kv.get(logKey(log))
	if b == nil || err != nil {
		return logRow{}, err
	}
	return decodeLog(b)
}

// removeLog removes a log without live segments, unless a put under way has
// records there.
func (s *Store) removeLog(log uint64, size int64, rep *GCReport) error {
	if s.pins.holds(log) {
		return nil
	}
	// A put may have named records between our look at the row and now; its
	// rows are visible before it lets go of its pins.
	row, err := s.logRow(log)
	if err != nil || row.live != 0 {
		return err
	}
	// That nothing refers to the log must be durable before it goes.
	if err := s.commitDurably(); err != nil {
		return err
	}
	if err := s.logs.Remove(log); err != nil {
		return err
	}
	rep.LogsRemoved++
	rep.FreedBytes += size
	return s.commit(lazy, func(t *tx) error {
		delete(t.logs, log)
		return t.b.delete(logKey(log))
	})
}

// moved is a live record's old and new place.
type moved struct {
	id       pipeline.SegmentID
	from, to segmentRow
}

// moveLog writes a log's live records again at the end of the active log. It
// returns how many it had to leave because they are damaged. pace is called before
// each; what lies dead between them takes next to no time.
func (s *Store) moveLog(ctx context.Context, log uint64, o GCOptions, rep *GCReport, pace func(context.Context) error, progress func(at int64)) (left int, err error) {
	var out []byte
	var batch []moved
	var z pipeline.Compressor
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		to, off, err := s.append(out, nil, s.checkSpaceToMove)
		if err != nil {
			return err
		}
		for i := range batch {
			batch[i].to.log, batch[i].to.off = to, batch[i].to.off+off
		}
		rep.MovedBytes += int64(len(out))
		err = s.commit(naming, func(t *tx) error {
			for _, m := range batch {
				row, ok, err := t.segment(m.id)
				if err != nil {
					return err
				}
				if !ok || row.log != m.from.log || row.off != m.from.off {
					continue // removed or stored anew meanwhile
				}
				to := m.to
				to.refs = row.refs
				if err := t.countLog(row, -1); err != nil {
					return err
				}
				if err := t.countLog(to, 1); err != nil {
					return err
				}
				t.totals.stored += to.recordLen - row.recordLen
				if err := t.setSegment(m.id, to); err != nil {
					return err
				}
			}
			return nil
		})
		out, batch = out[:0], batch[:0]
		return err
	}
	key := s.keys.current()
	var scratch []byte
	err = s.logs.Scan(log, func(off int64, h pipeline.Header, rec []byte) (bool, error) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if err := s.quit.Err(); err != nil {
			return false, err
		}
		progress(off)
		row, live, err := s.liveRecord(h.ID, log, off)
		if err != nil {
			return false, err
		}
		if !live {
			_, _, err := pipeline.Unseal(rec, s.keys)
			return err == nil, nil
		}
		if err := pace(ctx); err != nil {
			return false, err
		}
		start := len(out)
		dense, old := o.Recompress && h.Again, h.Key != key.version
		if !dense && !old {
			out = append(out, rec...) // as it is, if it is intact
		}
		h, payload, err := pipeline.Unseal(rec, s.keys)
		if err == nil && dense {
			if scratch, err = pipeline.Decompress(scratch[:0], payload, h.Codec, h.PlainLen); err == nil {
				out, h = pipeline.Seal(out, &z, h.ID, scratch, pipeline.Sealing{Compression: pipeline.Dense,
					Encrypt: h.Encrypted, Key: key.version, Cipher: key.cipher})
				rep.Recompressed++
			}
		} else if err == nil && old {
			out, h = pipeline.Reseal(out, h, payload, key.version, key.cipher)
		}
		if err != nil {
			out = out[:start]
			left++
			return false, nil // stays here, and keeps the log
		}
		if old {
			rep.Resealed++
		}
		batch = append(batch, moved{h.ID, row, segmentRow{off: int64(start), recordLen: int64(h.RecordLen()),
			plainLen: int64(h.PlainLen), key: h.Key, again: h.Again}})
		if len(out) >= moveBatch {
			return true, flush()
		}
		return true, nil
	}, nil)
	if err == nil {
		err = flush()
	}
	return left, err
}

// liveRecord tells whether a segment's row points to a place in a log.
func (s *Store) liveRecord(id pipeline.SegmentID, log uint64, off int64) (row segmentRow, live bool, err error) {
	row, ok, err := s.lookupSegment(id)
	return row, ok && row.log == log && row.off == off, err
}

// resealMeta writes metadata tables under an older data key again, and drops
// data keys that nothing uses any more.
func (s *Store) resealMeta(ctx context.Context, rep *GCReport) error {
	current := s.keys.current().version
	if len(s.ring.Versions()) == 1 {
		return nil
	}
	if err := s.kv.flush(); err != nil {
		return err
	}
	n, err := s.metaFS.Reseal(ctx, s.path("meta"))
	rep.Resealed += int64(n)
	if capsule.KindOf(err) == capsule.Damaged {
		// Perhaps a table that a crash cut short and nothing refers to; if
		// not, reading it will say so. The old keys stay until it is gone.
		s.log.Warn("a metadata table stays under its old data key", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	// Puts first: their rows are there before they let go of the key.
	inUse := map[uint32]bool{}
	for _, v := range s.ring.Versions() {
		inUse[v.Version] = s.pins.usesKey(v.Version)
	}
	if err := s.checkpointAll(); err != nil {
		return err // the journal's files are under the keys they began with
	}
	oldest, err := s.metaFS.OldestKeyVersion(s.path("meta"))
	if err != nil {
		return err
	}
	journal, err := s.metaFS.OldestKeyVersion(s.path("journal"))
	if err != nil {
		return err
	}
	oldest = min(oldest, journal)
	err = s.kv.scan([]byte{keyLog}, []byte{keyLog + 1}, func(_, v []byte) (bool, error) {
		row, err := decodeLog(v)
		if err == nil && row.live > 0 {
			oldest = min(oldest, row.oldestKey)
		}
		return true, err
	})
	if err != nil {
		return err
	}
	return s.ring.DropUnused(func(v uint32) bool { return v >= oldest || v == current || inUse[v] })
}

// tidy collects garbage, seals again and recompresses in the background. After
// each failure it waits twice as long, unless a log's worth was removed since: on a
// full disk somebody may wait for that. It says what is wrong once.
func (s *Store) tidy() {
	var retry time.Duration // how long to wait after a failure; 0: it was none
	var had int64           // bytes stored when it failed
	said := ""
	for waited := time.Duration(0); ; {
		select {
		case <-s.clock.After(muchEvery):
		case <-s.quit.Done():
			return
		}
		waited += muchEvery
		if s.writable() != nil || waited < retry && s.storedBytes() > had-s.logBytes || waited < tidyEvery && !s.garbageIsMuch() {
			continue
		}
		waited = 0
		if s.ballastGone() {
			if err := s.checkSpace(ballast); err == nil {
				_ = s.makeBallast() // the next round tries again
			}
		}
		_, err := s.GC(s.quit, GCOptions{MinDead: backgroundMinDead, Recompress: true, minAgain: backgroundMinAgain, background: true}, nil)
		switch {
		case err == nil:
			retry, said = 0, ""
		case errors.Is(err, errMakeWay), s.quit.Err() != nil:
		default:
			retry, had = min(max(2*retry, tidyEvery), longestRetry), s.storedBytes()
			if text := err.Error(); text != said {
				s.log.Warn("background garbage collection", "error", err)
				said = text
			}
		}
	}
}

// spaceIsShort reports whether the disk is so full that garbage cannot wait.
func (s *Store) spaceIsShort() bool {
	u, err := s.fs.GetDiskUsage(s.dir)
	return err == nil && u.AvailBytes < 4*s.reserve(u.TotalBytes)
}

// garbageIsMuch reports whether there is so much garbage that it cannot wait. Then
// there are logs of which more than half is dead. What puts and updates under way
// have written is none.
func (s *Store) garbageIsMuch() bool {
	held := s.pins.heldBytes() // first: what is committed meanwhile must not count as garbage
	size, err := s.logBytesTotal()
	stored := s.storedBytes()
	return err == nil && size-stored-held > max(s.muchGarbage, stored)
}

// storedBytes is how many bytes of records something refers to.
func (s *Store) storedBytes() int64 {
	s.totalsMu.Lock()
	defer s.totalsMu.Unlock()
	return s.shown.stored
}

func (s *Store) ballastGone() bool {
	_, err := s.fs.Stat(s.ballastPath())
	return errors.Is(err, fs.ErrNotExist)
}
