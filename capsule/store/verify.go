package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sort"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// VerifyOptions say what to verify and how fast.
type VerifyOptions struct {
	ID       capsule.ID // zero: the whole store
	Metadata bool       // of the whole store: check what is known of it alone, reading no segment
	Rate     int64      // bytes per second of logs to read; 0: as fast as it goes
	Resume   bool       // go on where an earlier run of the whole store was stopped
}

// Damage is a range of a capsule that cannot be served.
type Damage struct {
	Capsule capsule.ID `json:"capsule"`
	Name    string     `json:"name"`
	File    uint64     `json:"file,omitempty"` // of a volume or tree: which of its files
	Off     int64      `json:"offset"`
	Len     int64      `json:"length"`
	Log     uint64     `json:"log"`
	LogOff  int64      `json:"log_offset"`
	Why     string     `json:"why"`
}

// VerifyReport says what was verified and what was found.
type VerifyReport struct {
	Capsules int64    `json:"capsules"`
	Segments int64    `json:"segments"`
	Bytes    int64    `json:"bytes"`    // of records
	Damage   []Damage `json:"damage"`   // at most maxFindings
	Problems []string `json:"problems"` // metadata that contradicts itself; at most maxFindings
}

// OK reports whether nothing was found.
func (r *VerifyReport) OK() bool { return len(r.Damage) == 0 && len(r.Problems) == 0 }

const maxFindings = 1000

func (r *VerifyReport) problem(format string, args ...any) {
	if len(r.Problems) < maxFindings {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// Verify reads, authenticates, decodes and hashes every live segment, or those
// of one capsule, and checks that the metadata's counts agree with each other.
// What it finds is in the report; an error means that it could not finish.
// progress may be nil; it is told bytes of logs, or of the capsule.
func (s *Store) Verify(ctx context.Context, o VerifyOptions, progress func(done, total int64)) (VerifyReport, error) {
	rep := VerifyReport{Damage: []Damage{}, Problems: []string{}}
	if err := s.enter(); err != nil {
		return rep, err
	}
	defer s.leave()
	if o.Rate < 0 {
		return rep, capsule.Errorf(capsule.Invalid, "the rate is negative")
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	p := &pacer{s: s, rate: o.Rate, start: s.now()}
	var err error
	if o.Metadata && o.ID.IsZero() {
		if err = s.settle(ctx); err == nil {
			err = s.checkMetadata(ctx, &rep, nil)
		}
	} else if o.ID.IsZero() {
		// Moving segments while counting them would look like damage.
		if err := s.acquireMoving(ctx, false); err != nil {
			return rep, err
		}
		defer s.moving.release()
		err = s.verifyStore(ctx, o, &rep, p, progress)
	} else {
		err = s.verifyCapsule(ctx, o.ID, &rep, p, progress)
	}
	if err != nil {
		err = capsule.Wrap(ioKind(err), err, "verify")
	}
	return rep, err
}

// pacer keeps reading at a rate.
type pacer struct {
	s     *Store
	rate  int64
	start time.Time
	done  int64
}

func (p *pacer) wait(ctx context.Context, n int64) error {
	p.done += n
	if p.rate > 0 {
		due := time.Duration(float64(p.done) / float64(p.rate) * float64(time.Second))
		if ahead := due - p.s.now().Sub(p.start); ahead > 0 {
			select {
			case <-p.s.clock.After(ahead):
			case <-ctx.Done():
			case <-p.s.quit.Done():
			}
		}
	}
	if err := p.s.quit.Err(); err != nil {
		return capsule.Errorf(capsule.Unavailable, "the store is closing")
	}
	return ctx.Err()
}

// verifyCapsule reads one capsule's segments.
func (s *Store) verifyCapsule(ctx context.Context, id capsule.ID, rep *VerifyReport, p *pacer, progress func(done, total int64)) error {
	if rec, err := getCapsule(s.kv, id); err != nil {
		return err
	} else if rec.kind != capsule.Object {
		return s.verifyLiving(ctx, id, rep, p)
	}
	r, err := s.openForVerify(id)
	if err != nil {
		return err
	}
	defer r.Close()
	rep.Capsules = 1
	var buf []byte
	err = pages(ctx, s.kv, &r.c, func(start int64, list []extent) error {
		for _, x := range list {
			if !x.hole {
				row, err := s.readRecord(x.id, &buf)
				if err == nil {
					err = s.checkRecord(buf, x.id, &r.c)
				}
				if err != nil && capsule.KindOf(err) == capsule.Canceled {
					return err
				}
				if err != nil && len(rep.Damage) < maxFindings {
					rep.Damage = append(rep.Damage, Damage{id, r.info.Name, 0, start, x.len, row.log, row.off, err.Error()})
				}
				rep.Segments++
				rep.Bytes += row.recordLen
				if err := p.wait(ctx, row.recordLen); err != nil {
					return err
				}
			}
			start += x.len
			progress(start, r.c.size)
		}
		return nil
	})
	if capsule.KindOf(err) == capsule.Damaged {
		rep.problem("capsule %s: %v", id, err)
		return nil
	}
	return err
}

// verifyLiving reads the segments of a volume or tree.
func (s *Store) verifyLiving(ctx context.Context, id capsule.ID, rep *VerifyReport, p *pacer) error {
	l, err := s.OpenLive(ctx, id, "")
	if err != nil {
		return err
	}
	defer l.Close()
	rep.Capsules = 1
	v := l.line.view.Load()
	var buf []byte
	for next := rowPrefix(v.family); next != nil; {
		var batch []row
		lo := next
		next = nil
		err := s.scanVersions(l.line.view.Load, lo, prefixEnd(metaPrefix(v.family, nil)), nil, func(_ string, r *row) (bool, error) {
			if len(batch) == pruneBatch {
				next = []byte(r.key[:len(r.key)-nodeSize])
				return false, nil
			}
			if r.state == rowBlock {
				batch = append(batch, *r)
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, r := range batch {
			_, logical, _, _ := splitRow(r.key)
			file, index, _ := blockOf(logical)
			for i := range r.block.pieces {
				q := &r.block.pieces[i]
				if q.mem != nil {
					continue
				}
				row, err := s.readRecord(q.id, &buf)
				if err == nil {
					err = s.checkRecord(buf, q.id, nil)
				}
				if err != nil && capsule.KindOf(err) == capsule.Canceled {
					return err
				}
				if err != nil && len(rep.Damage) < maxFindings && !s.changed(&r) {
					rep.Damage = append(rep.Damage, Damage{id, l.info.Name, file, index*BlockSize + int64(q.off), int64(q.n), row.log, row.off, err.Error()})
				}
				rep.Segments++
				rep.Bytes += row.recordLen
				if err := p.wait(ctx, row.recordLen); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// changed reports whether a row is not any more what it was.
func (s *Store) changed(r *row) bool {
	now, err := s.rawRow([]byte(r.key))
	return err == nil && (now.state != r.state || string(now.encode()) != string(r.encode()))
}

// openForVerify is Open for a caller that is inside the store already.
func (s *Store) openForVerify(id capsule.ID) (*Reader, error) {
	s.readers.Lock()
	defer s.readers.Unlock()
	rec, err := getCapsule(s.kv, id)
	if err != nil {
		return nil, err
	}
	s.readers.add(rec.content.id, 1)
	return &Reader{s: s, info: rec.info(id), c: rec.content}, nil
}

// checkRecord verifies a record to the last: authentication, decoding, and
// that the plaintext has the segment's ID. The ID depends on the dedup domain,
// which only the content knows: without c, that the record was sealed for this
// ID has to do.
func (s *Store) checkRecord(rec []byte, id pipeline.SegmentID, c *content) error {
	plain, h, err := pipeline.Open(nil, rec, s.keys)
	if err != nil {
		return err
	}
	if h.ID != id {
		return fmt.Errorf("%w: another segment's record is there", pipeline.ErrCorrupt)
	}
	if c == nil || pipeline.NewHasher(s.domainKey(c, h.Encrypted)).Sum(plain) == id {
		return nil
	}
	return fmt.Errorf("%w: the content is not what its ID says", pipeline.ErrCorrupt)
}

// badSegment is a segment that failed verification.
type badSegment struct {
	row segmentRow
	why string
}

// verifyStore reads all logs front to back, which is the fastest way through a
// disk, then looks for what the logs should have had and did not.
func (s *Store) verifyStore(ctx context.Context, o VerifyOptions, rep *VerifyReport, p *pacer, progress func(done, total int64)) error {
	if err := s.settle(ctx); err != nil {
		return err
	}
	var from uint64
	if b, err := s.kv.get([]byte{keyVerify}); err != nil {
		return err
	} else if o.Resume && len(b) == 8 {
		from = binary.BigEndian.Uint64(b)
	}
	logs, err := s.logs.Logs()
	if err != nil {
		return err
	}
	var total, done int64
	sizes := map[uint64]int64{}
	for _, log := range logs {
		if log < from {
			continue
		}
		n, err := s.logs.Size(log)
		if err != nil {
			return err
		}
		sizes[log] = n
		total += n
	}
	bad := map[pipeline.SegmentID]badSegment{}
	suspect := map[uint64]bool{} // logs that do not have all they should
	for _, log := range logs {
		size, ok := sizes[log]
		if !ok {
			continue
		}
		var good int64
		err := s.logs.Scan(log, func(off int64, h pipeline.Header, rec []byte) (bool, error) {
			progress(done+off, total)
			if err := p.wait(ctx, int64(len(rec))); err != nil {
				return false, err
			}
			row, live, err := s.liveRecord(h.ID, log, off)
			if err != nil {
				return false, err
			}
			if !live {
				_, _, err := pipeline.Unseal(rec, s.keys)
				return err == nil, nil
			}
			rep.Segments++
			rep.Bytes += row.recordLen
			if err := s.checkRecord(rec, h.ID, nil); err != nil {
				if len(bad) < maxFindings {
					bad[h.ID] = badSegment{row, err.Error()}
				}
				return false, nil
			}
			good += row.recordLen
			return true, nil
		}, nil)
		if k := capsule.KindOf(err); k == capsule.Canceled || k == capsule.Unavailable {
			return err
		}
		row, rerr := s.logRow(log)
		if rerr != nil {
			return rerr
		}
		if err != nil || row.live > good {
			suspect[log] = true
		}
		done += size
		progress(done, total)
		// So that Resume does not begin at the front again.
		if err := s.commit(lazy, func(t *tx) error {
			return t.b.set([]byte{keyVerify}, binary.BigEndian.AppendUint64(nil, log+1))
		}); err != nil && capsule.KindOf(err) != capsule.Unavailable {
			return err
		}
	}
	if err := s.missing(ctx, logs, suspect, bad); err != nil {
		return err
	}
	if err := s.checkMetadata(ctx, rep, bad); err != nil {
		return err
	}
	err = s.commit(lazy, func(t *tx) error { return t.b.delete([]byte{keyVerify}) })
	if capsule.KindOf(err) == capsule.Unavailable {
		err = nil
	}
	return err
}

// missing adds to bad the segments whose rows point to where no intact record
// was found: into a log that does not have all it should, that is gone, or that
// is newer than the list of logs. Reading them one by one has the last word.
func (s *Store) missing(ctx context.Context, logs []uint64, suspect map[uint64]bool, bad map[pipeline.SegmentID]badSegment) error {
	there := make(map[uint64]bool, len(logs))
	for _, log := range logs {
		there[log] = true
	}
	lost := false
	err := s.kv.scan([]byte{keyLog}, []byte{keyLog + 1}, func(k, v []byte) (bool, error) {
		row, err := decodeLog(v)
		log := binary.BigEndian.Uint64(k[1:])
		lost = lost || row.live > 0 && !there[log]
		return true, err
	})
	if err != nil || !lost && len(suspect) == 0 {
		return err
	}
	var buf []byte
	return s.kv.scan([]byte{keySegment}, []byte{keySegment + 1}, func(k, v []byte) (bool, error) {
		row, err := decodeSegment(v)
		if err != nil {
			return false, err
		}
		if err := s.quit.Err(); err != nil {
			return false, capsule.Errorf(capsule.Unavailable, "the store is closing")
		}
		if there[row.log] && !suspect[row.log] {
			return true, ctx.Err()
		}
		var id pipeline.SegmentID
		copy(id[:], k[1:])
		buf = resize(buf, int(row.recordLen))
		err = s.logs.ReadAt(row.log, buf, row.off)
		if err == nil {
			err = s.checkRecord(buf, id, nil)
		}
		if err != nil && len(bad) < maxFindings {
			bad[id] = badSegment{row, err.Error()}
		}
		return true, ctx.Err()
	})
}

// checkMetadata walks all contents: it names the capsules that bad segments
// belong to, and checks counts and sums against what is really there.
func (s *Store) checkMetadata(ctx context.Context, rep *VerifyReport, bad map[pipeline.SegmentID]badSegment) error {
	s.totalsMu.Lock()
	segments := s.shown.segments
	s.totalsMu.Unlock()
	passes := segments/segmentsPerPass + 1
	for pass := range passes {
		// All commits wait while a snapshot is taken, so it is consistent.
		var view kvSnapshot
		var t totals
		if err := s.commit(lazy, func(*tx) error {
			view, t = s.kv.newSnapshot(), s.totals // both without what this round changes
			return nil
		}); capsule.KindOf(err) == capsule.Unavailable {
			s.totalsMu.Lock()
			view, t = s.kv.newSnapshot(), s.shown
			s.totalsMu.Unlock()
		} else if err != nil {
			return err
		}
		err := s.checkPass(ctx, view, t, rep, bad, pass, passes)
		view.close()
		if err != nil {
			return err
		}
	}
	sort.Slice(rep.Damage, func(i, j int) bool {
		a, b := rep.Damage[i], rep.Damage[j]
		return a.Name < b.Name || a.Name == b.Name && (a.Capsule.String() < b.Capsule.String() || a.Capsule == b.Capsule && a.Off < b.Off)
	})
	return nil
}

func (s *Store) checkPass(ctx context.Context, r kvReader, want totals, rep *VerifyReport, bad map[pipeline.SegmentID]badSegment, pass, passes int64) error {
	uses := map[pipeline.SegmentID]int64{}
	var sum totals
	walk := func(c *content, visit func(off int64, x extent)) error {
		return pages(ctx, r, c, func(start int64, list []extent) error {
			for _, x := range list {
				if !x.hole && inPass(x.id, pass, passes) {
					uses[x.id]++
					if visit != nil {
						visit(start, x)
					}
				}
				start += x.len
			}
			return nil
		})
	}
	// A content that several records name is counted once.
	shared := map[contentID]bool{}
	first := func(c *content) (bool, error) {
		b, err := r.get(contentKey(keyShared, c.id))
		if err != nil || b == nil || !shared[c.id] {
			shared[c.id] = b != nil
			return true, err
		}
		return false, nil
	}
	owners := map[uint64]Damage{} // families by a capsule of theirs
	count := func(list []extent) {
		for _, x := range list {
			if !x.hole && inPass(x.id, pass, passes) {
				uses[x.id]++
			}
		}
	}
	// Contents on their way in or out have only some of their pages.
	countPages := func(id []byte) error {
		lo := key(keyPage, id)
		return r.scan(lo, prefixEnd(lo), func(_, v []byte) (bool, error) {
			list, err := decodePage(v, 0)
			if err != nil {
				rep.problem("extent page of content %x: %v", id, err)
			}
			count(list)
			return true, ctx.Err()
		})
	}
	err := r.scan([]byte{keyCapsule}, []byte{keyCapsule + 1}, func(k, v []byte) (bool, error) {
		var id capsule.ID
		copy(id[:], k[1:])
		rec, err := decodeCapsule(v)
		if err != nil {
			rep.problem("capsule %s: %v", id, err)
			return true, nil
		}
		sum.capsules++
		sum.logical += rec.content.size
		if pass == 0 {
			rep.Capsules++
			s.checkNames(r, id, &rec, rep)
		}
		if rec.kind != capsule.Object {
			owners[rec.living.family] = Damage{Capsule: id, Name: rec.name}
			return true, nil
		}
		if once, err := first(&rec.content); err != nil || !once {
			return true, err
		}
		err = walk(&rec.content, func(off int64, x extent) {
			b, isBad := bad[x.id]
			if !isBad || len(rep.Damage) >= maxFindings {
				return
			}
			rep.Damage = append(rep.Damage, Damage{id, rec.name, 0, off, x.len, b.row.log, b.row.off, b.why})
		})
		if capsule.KindOf(err) == capsule.Damaged {
			rep.problem("capsule %s: %v", id, err)
			err = nil
		}
		return true, err
	})
	if err != nil {
		return err
	}
	err = r.scan([]byte{keySnapshot}, []byte{keySnapshot + 1}, func(k, v []byte) (bool, error) {
		snap, err := decodeSnapshot(v)
		if err != nil {
			rep.problem("snapshot %x: %v", k[1:], err)
			return true, nil
		}
		sum.logical += snap.content.size
		if once, err := first(&snap.content); err != nil || !once {
			return true, err
		}
		return true, walk(&snap.content, nil)
	})
	if err != nil {
		return err
	}
	err = r.scan([]byte{keyRow}, []byte{keyRow + 1}, func(k, v []byte) (bool, error) {
		family, logical, _, err := splitRow(string(k))
		var x row
		if err == nil {
			x, err = decodeRow(string(k), v)
		}
		if err != nil {
			rep.problem("row %x: %v", k, err)
			return true, nil
		}
		if x.state != rowBlock {
			return true, nil
		}
		file, index, ok := blockOf(logical)
		if !ok {
			rep.problem("row %x has a block and is none", k)
			return true, nil
		}
		for i := range x.block.pieces {
			q := &x.block.pieces[i]
			if pass == 0 {
				sum.logical += int64(q.n)
			}
			if q.mem != nil || !inPass(q.id, pass, passes) {
				continue
			}
			uses[q.id]++
			if b, isBad := bad[q.id]; isBad && len(rep.Damage) < maxFindings {
				d := owners[family]
				d.File, d.Off, d.Len, d.Log, d.LogOff, d.Why = file, index*BlockSize+int64(q.off), int64(q.n), b.row.log, b.row.off, b.why
				rep.Damage = append(rep.Damage, d)
			}
		}
		return true, ctx.Err()
	})
	if err != nil {
		return err
	}
	err = r.scan([]byte{keyGarbage}, []byte{keyGarbage + 1}, func(k, v []byte) (bool, error) {
		c, err := decodeContent(v)
		if err != nil {
			rep.problem("removed content %x: %v", k[1:], err)
			return true, nil
		}
		sum.pending += c.size
		count(c.inline)
		return true, countPages(k[1:])
	})
	if err == nil {
		err = r.scan([]byte{keyBuilding}, []byte{keyBuilding + 1}, func(k, _ []byte) (bool, error) {
			return true, countPages(k[1:])
		})
	}
	if err != nil {
		return err
	}
	logs := map[uint64]int64{}
	err = r.scan([]byte{keySegment}, []byte{keySegment + 1}, func(k, v []byte) (bool, error) {
		var id pipeline.SegmentID
		copy(id[:], k[1:])
		row, err := decodeSegment(v)
		if err != nil {
			rep.problem("segment %s: %v", id, err)
			return true, nil
		}
		if pass == 0 {
			sum.segments++
			sum.unique += row.plainLen
			sum.stored += row.recordLen
			logs[row.log] += row.recordLen
		}
		if inPass(id, pass, passes) {
			if uses[id] != row.refs {
				rep.problem("segment %s: its row counts %d references, there are %d", id, row.refs, uses[id])
			}
			delete(uses, id)
		}
		return true, ctx.Err()
	})
	if err != nil {
		return err
	}
	for id, n := range uses {
		rep.problem("segment %s: %d references, but no row says where it is", id, n)
	}
	if pass > 0 {
		return nil
	}
	if sum != want {
		rep.problem("the store's totals are %+v, counted are %+v", want, sum)
	}
	if err := checkNotes(r, rep); err != nil {
		return err
	}
	return r.scan([]byte{keyLog}, []byte{keyLog + 1}, func(k, v []byte) (bool, error) {
		log := binary.BigEndian.Uint64(k[1:])
		row, err := decodeLog(v)
		if err != nil || row.live != logs[log] {
			rep.problem("segment log %d: its row counts %d live bytes, there are %d", log, row.live, logs[log])
		}
		return true, nil
	})
}

// checkNames checks that a capsule is in the name index as it should be.
func (s *Store) checkNames(r kvReader, id capsule.ID, rec *capsuleRecord, rep *VerifyReport) {
	if rec.name == "" {
		if b, err := r.get(unnamedKey(id)); err != nil || b == nil {
			rep.problem("capsule %s: is missing in listings", id)
		}
		return
	}
	if have, err := lookupName(r, rec.name); err != nil || have != id {
		rep.problem("capsule %s: its name %q leads to %s", id, rec.name, have)
	}
}

var _ io.ReaderAt = (*Reader)(nil)
