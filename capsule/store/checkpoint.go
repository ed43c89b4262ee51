package store

import (
	"encoding/binary"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

const (
	// defaultLive is how many bytes of changes are collected in memory before
	// those that make more wait for the disk.
	defaultLive = 32 << 20
	// defaultCommitInterval bounds how long a change stays not durable.
	defaultCommitInterval = time.Second
	// checkpointEvery is how often changes become part of the metadata though
	// there are few.
	checkpointEvery = 10 * time.Second
	// stuckRetry is how long a full disk is left alone.
	stuckRetry = time.Second
)

// wakeCheckpointer makes the checkpointer look.
func (s *Store) wakeCheckpointer() {
	select {
	case s.checkpointWake <- struct{}{}:
	default: // it will look anyway
	}
}

// checkpointer makes changes durable every commit interval, and part of the
// metadata and the segments when there are enough of them.
func (s *Store) checkpointer() {
	last := s.now()
	for {
		select {
		case <-s.checkpointWake:
		case <-s.clock.After(s.commitInterval):
			// A failure is latched, and said by whoever comes next.
			if now := s.now(); s.syncJournal() == nil && now.Sub(last) < checkpointEvery && !now.Before(last) {
				continue
			}
		case <-s.quit.Done():
			return
		}
		last = s.now()
		if err := s.checkpoint(); err != nil && s.quit.Err() == nil && s.writable() == nil {
			s.log.Warn("changes stay in the journal for now", "error", err)
			select {
			case <-s.clock.After(stuckRetry):
			case <-s.quit.Done():
			}
		}
	}
}

// checkpoint makes all changes so far part of the metadata and the segments.
func (s *Store) checkpoint() error { return s.checkpointTo(0) }

// checkpointTo is checkpoint; number is the journal's last record while it is
// being replayed, otherwise 0.
func (s *Store) checkpointTo(number uint64) error {
	s.checkpointing.Lock()
	defer s.checkpointing.Unlock()
	err := s.writable()
	for again := true; again && err == nil; {
		again, err = s.checkpointOnce(number)
	}
	o := s.overlay
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stuck = err
	o.moved.Broadcast()
	return err
}

// checkpointOnce brings one generation to disk. again tells that it was one
// left over from an earlier attempt, and there may be another.
func (s *Store) checkpointOnce(number uint64) (again bool, err error) {
	if number == 0 {
		if _, err := s.journal.Cut(); err != nil {
			s.fail(err)
			return false, s.writable()
		}
	}
	o := s.overlay
	o.updating.Lock()
	o.mu.Lock()
	g := o.frozen
	again = g != nil
	if g == nil && o.active.rows.Len() > 0 {
		g = o.active
		if g.last = number; number == 0 {
			g.last = s.journal.Last()
		}
		o.frozen, o.active = g, &generation{rows: newRows()}
		o.moved.Broadcast()
	}
	o.mu.Unlock()
	if g == nil {
		s.releaseMerged(nil) // no update is under way that could name them
	}
	o.updating.Unlock()
	if g == nil {
		// Files of the journal that were cut need not stay.
		return false, s.journal.Release(s.journal.Last())
	}
	if err := s.apply(g); err != nil {
		return false, err
	}
	o.mu.Lock()
	o.frozen = nil
	o.moved.Broadcast()
	o.mu.Unlock()
	if number == 0 {
		err = s.journal.Release(g.last)
	}
	return again, err
}

// sealJob is a block on its way to segments.
type sealJob struct {
	r      row
	sealer *familySealer
	bytes  int
	out    *liveBlock
	pins   []*pin // of the segments sealed
	merged []*pin // of segments that out does not name any more
}

// sealBatch is how many bytes of blocks one worker takes at a time.
const sealBatch = 1 << 20

// apply makes a generation part of the metadata: it seals what is not sealed,
// and commits all rows at once, with the references they add and drop.
func (s *Store) apply(g *generation) error {
	var jobs []*sealJob
	var err error
	g.rows.Scan(func(r row) bool {
		if r.state != rowBlock || !r.block.dirty() && len(r.block.pieces) <= maxPieces {
			return true
		}
		var family uint64
		if family, _, _, err = splitRow(r.key); err != nil {
			return false
		}
		var fs *familySealer
		if fs, err = s.sealerOf(family); err != nil {
			return false
		}
		j := &sealJob{r: r, sealer: fs}
		for i := range r.block.pieces {
			j.bytes += len(r.block.pieces[i].mem)
		}
		jobs = append(jobs, j)
		return true
	})
	if err != nil {
		return err
	}
	var merged []*pin
	defer func() {
		for _, j := range jobs {
			for _, p := range j.pins {
				s.pins.release(p)
			}
			merged = append(merged, j.merged...)
		}
		if err == nil {
			for _, p := range g.pins {
				s.pins.release(p)
			}
		}
		// After a failure, until the next attempt has succeeded.
		s.releaseMerged(merged)
	}()
	// A rotation meanwhile must not drop a key that is used here.
	key := s.keys.current().version
	s.pins.useKey(key)
	defer s.pins.unuseKey(key)
	if err = s.sealAll(jobs, sealBatch); err == nil {
		err = s.commit(synced, func(t *tx) error { return t.applyRows(g, jobs) })
	}
	return err
}

// releaseMerged lets go of the segments that the checkpoint before the last
// one merged, and keeps those of the last.
func (s *Store) releaseMerged(pins []*pin) {
	for _, p := range s.overlay.merged {
		s.pins.release(p)
	}
	if len(s.overlay.merged) > 0 {
		s.wakeReaper()
	}
	s.overlay.merged = pins
}

// sealAll seals jobs on all cores, about batch bytes at a time on each.
func (s *Store) sealAll(jobs []*sealJob, batch int) error {
	var batches [][]*sealJob
	for start, i, n := 0, 0, 0; i < len(jobs); i++ {
		if n += jobs[i].bytes; n >= batch || i == len(jobs)-1 {
			batches = append(batches, jobs[start:i+1])
			start, n = i+1, 0
		}
	}
	return parallel(len(batches), func(i int) error { return s.seal(batches[i]) })
}

// parallel calls fn with 0 to n-1 on all cores, the caller's first: work that
// takes less time than it takes to wake another one is done by then. After an
// error it begins nothing more.
func parallel(n int, fn func(i int) error) error {
	var next atomic.Int64
	var failed atomic.Bool
	var once sync.Once
	var first error
	work := func() {
		for i := next.Add(1) - 1; i < int64(n) && !failed.Load(); i = next.Add(1) - 1 {
			if err := fn(int(i)); err != nil {
				once.Do(func() { first = err })
				failed.Store(true)
			}
		}
	}
	var others sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), n) - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
	return first
}

// seal makes segments of what jobs have in memory, and appends those that are
// new to the logs.
func (s *Store) seal(jobs []*sealJob) error {
	c := newCoder()
	defer coders.Put(c)
	var err error
	for _, j := range jobs {
		if err == nil {
			err = s.sealOne(j, c)
		}
	}
	if err := s.appendSealed(c, err, s.checkSpaceToMerge); err != nil {
		return err
	}
	for _, j := range jobs {
		if err := settled(j.pins); err != nil { // some are sealed by somebody else
			return err
		}
	}
	return nil
}

// sealOne finds or makes the segments of one block.
func (s *Store) sealOne(j *sealJob, c *coder) error {
	b := j.r.block
	runs := 0 // pieces once runs of memory are joined
	for i := range b.pieces {
		if i == 0 || b.pieces[i].mem == nil || b.pieces[i-1].mem == nil || b.pieces[i].off != b.pieces[i-1].end() {
			runs++
		}
	}
	if runs > maxPieces {
		if err := s.pinMerged(j, b); err != nil {
			return err
		}
		b = s.flatten(b)
	}
	h := j.sealer.hashers.Get().(*pipeline.Hasher)
	defer j.sealer.hashers.Put(h)
	sealing := j.sealer.sealing(s)
	out := &liveBlock{}
	for i := 0; i < len(b.pieces); i++ {
		p := b.pieces[i]
		if p.mem == nil {
			out.pieces = append(out.pieces, p)
			continue
		}
		plain := p.mem
		for n := i + 1; n < len(b.pieces) && b.pieces[n].mem != nil && b.pieces[n].off == b.pieces[i].end(); n++ {
			if n == i+1 {
				plain = append(make([]byte, 0, BlockSize), plain...)
			}
			plain = append(plain, b.pieces[n].mem...)
			i = n
		}
		id := h.Sum(plain)
		out.pieces = append(out.pieces, piece{off: p.off, n: uint32(len(plain)), id: id, segLen: uint32(len(plain))})
		pin, err := s.pinSegment(c, id, plain, sealing)
		j.pins = append(j.pins, pin)
		if err != nil {
			return err
		}
	}
	j.out = out
	return nil
}

// pinMerged pins the segments of a block that is about to be sealed anew:
// updates may be building on the block as it was (see overlay.merged). One that
// is missing stays so: the block goes on naming it (see flatten).
func (s *Store) pinMerged(j *sealJob, b *liveBlock) error {
	for i := range b.pieces {
		if b.pieces[i].mem != nil {
			continue
		}
		p, first := s.pins.acquire(b.pieces[i].id)
		j.merged = append(j.merged, p)
		if first && !s.findRow(p) {
			// Nobody may take it for one that is there.
			p.err = capsule.Errorf(capsule.Damaged, "segment %s is missing", p.id)
			s.pins.settle(p)
		}
		if <-p.done; p.err != nil && capsule.KindOf(p.err) != capsule.Damaged {
			return p.err
		}
	}
	return nil
}

// applyRows commits a generation's rows, all checks first.
func (t *tx) applyRows(g *generation, jobs []*sealJob) error {
	refs := map[pipeline.SegmentID]int64{}
	pins := map[pipeline.SegmentID]*pin{}
	sealed := make(map[string]*liveBlock, len(jobs))
	for _, j := range jobs {
		sealed[j.r.key] = j.out
		for _, p := range j.pins {
			pins[p.id] = p
		}
	}
	for _, p := range g.pins {
		pins[p.id] = p
	}
	var logical int64
	count := func(b *liveBlock, sign int64) {
		for i := range b.pieces {
			refs[b.pieces[i].id] += sign
			logical += sign * int64(b.pieces[i].n)
		}
	}
	var err error
	g.rows.Scan(func(r row) bool {
		if r.key[rowSpaceAt] != rowSpaceBlock {
			return true // refers to no segment, now or before
		}
		var old row
		if old, err = storedRow(t.b, []byte(r.key)); err != nil {
			return false
		}
		if old.state == rowBlock {
			count(old.block, -1)
		}
		if r.state == rowBlock {
			if b := sealed[r.key]; b != nil {
				r.block = b
			}
			count(r.block, 1)
		}
		return true
	})
	if err != nil {
		return err
	}
	rows := make(map[pipeline.SegmentID]segmentRow, len(refs)) // as they are now
	for id, n := range refs {
		row, ok, err := t.segment(id)
		switch {
		case err != nil:
			return err
		case !ok && pins[id] != nil && !pins[id].stored && n > 0:
			pins[id].named = true
			continue
		case !ok || row.refs+n < 0:
			return capsule.Errorf(capsule.Damaged, "reference count of segment %s is too low; run spacectl verify", id)
		}
		rows[id] = row
	}

	for id, n := range refs {
		if n == 0 {
			continue
		}
		row, known := rows[id]
		if !known {
			row = pins[id].row
		}
		if err := t.changeRefs(id, row, known, n); err != nil {
			return err
		}
	}
	g.rows.Scan(func(r row) bool {
		if b := sealed[r.key]; b != nil {
			r.block = b
		}
		if r.state == rowAbsent {
			err = t.b.delete([]byte(r.key))
		} else {
			err = t.b.set([]byte(r.key), r.encode())
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	t.totals.logical += logical
	return t.b.set([]byte{keyApplied}, binary.AppendUvarint(nil, g.last))
}

// changeRefs adds n to a segment's references. row is as it is now, or is to be
// where known says that there is none.
func (t *tx) changeRefs(id pipeline.SegmentID, row segmentRow, known bool, n int64) error {
	if !known {
		if err := t.countLog(row, 1); err != nil {
			return err
		}
		t.totals.segments++
		t.totals.unique += row.plainLen
		t.totals.stored += row.recordLen
	} else if row.refs == 0 {
		if err := t.b.delete(zeroKey(id)); err != nil {
			return err
		}
	}
	if row.refs += n; row.refs == 0 {
		return t.dropSegment(id, row)
	}
	return t.setSegment(id, row)
}

// checkpointAll is checkpoint for whoever needs the journal to be empty.
func (s *Store) checkpointAll() error {
	for {
		if err := s.checkpoint(); err != nil {
			return err
		}
		o := s.overlay
		o.mu.RLock()
		empty := o.frozen == nil && o.active.rows.Len() == 0
		o.mu.RUnlock()
		if empty {
			return nil
		}
	}
}
