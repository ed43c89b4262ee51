package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// commitRequest is one caller's share of a commit round: changes that are made
// or fail one by one.
type commitRequest struct {
	applies []func(*tx) error
	errs    []error // of each
	mode    commitMode
	turn    chan bool // true: lead the next round; false: done, see errs
}

// fail gives the changes that have not failed yet an error.
func (r *commitRequest) fail(err error) {
	for i := range r.errs {
		if r.errs[i] == nil {
			r.errs[i] = err
		}
	}
}

// commitMode says what must be durable when.
type commitMode int

const (
	// lazy changes may be lost, or not, in a power cut until a synced round
	// follows. They must not name records.
	lazy commitMode = iota
	// naming changes are lazy ones that say where records are. What the engine
	// has not been told to sync it may still write at any time, and a row
	// that survives a power cut must never name bytes that did not: so the
	// logs are synced before.
	naming
	// synced changes are durable when commit returns.
	synced
)

// commit runs apply in the next commit round and returns when its changes are
// visible and, if synced, durable. Changes of rounds never overlap: apply sees the changes
// of all before it. An apply must make all its checks before its first change;
// an error after a change fails everyone in the round.
//
// The first caller to find no round running leads one; those that come
// meanwhile wait, and one of them leads the next round for all of them. A lone
// caller hands nothing over.
func (s *Store) commit(mode commitMode, apply func(*tx) error) error {
	return s.commitAll(mode, []func(*tx) error{apply})[0]
}

// commitAll is commit for several changes that go into the same round. It
// returns the error of each; one that fails its checks leaves the others alone.
func (s *Store) commitAll(mode commitMode, applies []func(*tx) error) []error {
	r := &commitRequest{applies: applies, errs: make([]error, len(applies)), mode: mode}
	if err := s.writable(); err != nil {
		r.fail(err)
		return r.errs
	}
	s.round.Lock()
	if s.leading {
		r.turn = make(chan bool, 1)
		s.waiting = append(s.waiting, r)
		s.round.Unlock()
		if lead := <-r.turn; !lead {
			return r.errs
		}
		s.round.Lock()
	}
	s.leading = true
	group := make([]*commitRequest, 1, 1+len(s.waiting))
	group[0] = r
	for _, w := range s.waiting {
		if w != r {
			group = append(group, w)
		}
	}
	s.waiting = s.waiting[:0]
	s.round.Unlock()

	// While this round commits, the next one already syncs the logs.
	err := s.syncLogs(group)
	s.applying.Lock()
	s.round.Lock()
	s.leading = len(s.waiting) > 0
	if s.leading {
		s.waiting[0].turn <- true
	}
	s.round.Unlock()
	s.runRound(group, err)
	s.applying.Unlock()
	for _, w := range group[1:] {
		w.turn <- false
	}
	return r.errs
}

// syncLogs makes durable what a round's changes may name.
func (s *Store) syncLogs(group []*commitRequest) error {
	if roundMode(group) < naming {
		return nil
	}
	err := s.writable()
	if err == nil {
		if err = s.logs.Sync(); err != nil {
			s.fail(err)
			err = s.writable()
		}
	}
	return err
}

// roundMode is the strictest mode that anyone in a round asks for.
func roundMode(group []*commitRequest) commitMode {
	mode := lazy
	for _, r := range group {
		mode = max(mode, r.mode)
	}
	return mode
}

// runRound makes a round's changes, unless syncing the logs for them failed
// with err, and sets each request's errors.
func (s *Store) runRound(group []*commitRequest, err error) {
	fail := func(err error) {
		for _, r := range group {
			r.fail(err)
		}
	}
	if err == nil {
		err = s.writable()
	}
	if err != nil {
		fail(err)
		return
	}
	t := &tx{s: s, b: s.kv.newBatch(), totals: s.totals}
	done := false
	defer func() {
		if !done {
			clear(s.dirs) // it may hold names of the round that failed
		}
		for _, fn := range t.after {
			fn()
		}
	}()
	for _, r := range group {
		for i, apply := range r.applies {
			before := t.b.len()
			r.errs[i] = apply(t)
			if r.errs[i] != nil && t.b.len() != before {
				fail(r.errs[i])
				t.b.discard()
				return
			}
		}
	}
	if t.b.len() == 0 {
		t.b.discard()
		return
	}
	if err := t.finish(); err != nil {
		fail(err)
		t.b.discard()
		return
	}
	if err := t.b.commit(roundMode(group) == synced); err != nil {
		s.fail(err)
		fail(s.writable())
		return
	}
	done = true
	s.setTotals(t.totals)
	s.watchers.Notify(t.changes...)
}

// tx is the metadata as one round leaves it so far.
type tx struct {
	s       *Store
	b       *kvBatch
	totals  totals
	logs    map[uint64]logRow // changed rows
	changes []Change
	alone   string   // the name that findName found to be no other's beginning
	after   []func() // to run when the round is over, whatever its end
}

// finish writes what is kept in memory during a round.
func (t *tx) finish() error {
	for log, row := range t.logs {
		if row.live == 0 && row.oldestKey == 0 {
			continue
		}
		if err := t.b.set(logKey(log), row.encode()); err != nil {
			return err
		}
	}
	return t.b.set([]byte{keyTotals}, t.totals.encode())
}

func (t *tx) log(n uint64) (logRow, error) {
	if row, ok := t.logs[n]; ok {
		return row, nil
	}
	b, err := t.b.get(logKey(n))
	if b == nil || err != nil {
		return logRow{}, err
	}
	return decodeLog(b)
}

// countLog adds a segment row to its log's sums, or takes it away (sign -1).
func (t *tx) countLog(row segmentRow, sign int64) error {
	l, err := t.log(row.log)
	if err != nil {
		return err
	}
	l.live += sign * row.recordLen
	if row.again {
		l.again += sign * row.recordLen
	}
	if sign > 0 && (l.oldestKey == 0 || row.key < l.oldestKey) {
		l.oldestKey = row.key
	}
	if t.logs == nil {
		t.logs = map[uint64]logRow{}
	}
	t.logs[row.log] = l
	return nil
}

func (t *tx) segment(id pipeline.SegmentID) (row segmentRow, ok bool, err error) {
	b, err := t.b.get(segmentKey(id))
	if b == nil || err != nil {
		return row, false, err
	}
	row, err = decodeSegment(b)
	return row, true, err
}

func (t *tx) setSegment(id pipeline.SegmentID, row segmentRow) error {
	var buf [64]byte
	return t.b.set(segmentKey(id), row.encode(buf[:0]))
}

// addRefs counts one more reference for each extent's segment, naming those
// that have no row yet. pins are those of the extents that hold data.
func (t *tx) addRefs(list []extent, pins []*pin) error {
	n := 0
	for _, x := range list {
		if x.hole {
			continue
		}
		p := pins[n]
		n++
		var row segmentRow
		var ok bool
		var err error
		if p.hasRow() {
			if row, ok, err = t.segment(x.id); err != nil {
				return err
			}
		}
		if !ok {
			if p.stored {
				return capsule.Errorf(capsule.Other, "segment %s vanished under its pin", x.id)
			}
			row, p.named = p.row, true
			if err := t.countLog(row, 1); err != nil {
				return err
			}
			t.totals.segments++
			t.totals.unique += row.plainLen
			t.totals.stored += row.recordLen
		} else if row.refs == 0 {
			if err := t.b.delete(zeroKey(x.id)); err != nil {
				return err
			}
		}
		row.refs++
		if err := t.setSegment(x.id, row); err != nil {
			return err
		}
	}
	return nil
}

// dropRefs counts one reference less for each extent's segment. Rows without
// references are deleted, or marked where a put has them pinned.
func (t *tx) dropRefs(list []extent) error {
	// All checks before the first change, so that a damaged count fails this
	// content alone and not everyone in the round.
	uses := map[pipeline.SegmentID]int64{}
	for _, x := range list {
		if !x.hole {
			uses[x.id]++
		}
	}
	for id, n := range uses {
		row, ok, err := t.segment(id)
		if err != nil {
			return err
		}
		if !ok || row.refs < n {
			return capsule.Errorf(capsule.Damaged, "reference count of segment %s is too low; run spacectl verify", id)
		}
	}
	for _, x := range list {
		if x.hole {
			continue
		}
		row, _, err := t.segment(x.id)
		if err != nil {
			return err
		}
		row.refs--
		if row.refs > 0 {
			if err := t.setSegment(x.id, row); err != nil {
				return err
			}
			continue
		}
		if err := t.dropSegment(x.id, row); err != nil {
			return err
		}
	}
	return nil
}

// dropSegment deletes a row without references, unless a put has it pinned.
func (t *tx) dropSegment(id pipeline.SegmentID, row segmentRow) error {
	done := t.s.pins.condemn(id)
	if done == nil {
		if err := t.b.set(zeroKey(id), nil); err != nil {
			return err
		}
		return t.setSegment(id, row)
	}
	t.after = append(t.after, done)
	if err := t.countLog(row, -1); err != nil {
		return err
	}
	t.totals.segments--
	t.totals.unique -= row.plainLen
	t.totals.stored -= row.recordLen
	if err := t.b.delete(zeroKey(id)); err != nil {
		return err
	}
	return t.b.delete(segmentKey(id))
}

// capsule returns a capsule's record, or a NotFound error.
func (t *tx) capsule(id capsule.ID) (capsuleRecord, error) { return getCapsule(t.b, id) }

func getCapsule(r kvReader, id capsule.ID) (capsuleRecord, error) {
	b, err := r.get(capsuleKey(id))
	if err != nil {
		return capsuleRecord{}, err
	}
	if b == nil {
		return capsuleRecord{}, capsule.Errorf(capsule.NotFound, "no capsule has the ID %s", id)
	}
	rec, err := decodeCapsule(b)
	return rec, capsule.Wrap(capsule.Damaged, err, "capsule %s", id)
}

// lookupName returns the capsule that has name, or the zero ID.
func lookupName(r kvReader, name string) (id capsule.ID, err error) {
	b, err := r.get(nameKey(name))
	if err == nil && b != nil && copy(id[:], b) != len(id) {
		err = malformedName(name)
	}
	return id, err
}

// findName is lookupName for a name that is to be given if no capsule has it:
// the same search tells checkFree, called next, that there is nothing below it.
func (t *tx) findName(name string) (id capsule.ID, err error) {
	k := nameKey(name)
	t.alone = name
	err = t.b.scan(k, prefixEnd(k), func(found, v []byte) (bool, error) {
		t.alone = ""
		if len(found) == len(k) && copy(id[:], v) != len(id) {
			return false, malformedName(name)
		}
		return false, nil
	})
	return id, err
}

func malformedName(name string) error {
	return capsule.Errorf(capsule.Damaged, "malformed name record of %q", name)
}

func nameTaken(name string, by capsule.ID) error {
	return capsule.Errorf(capsule.Exists, "the name %q is taken by capsule %s", name, by)
}

// checkUnused fails if a capsule, self, cannot be given name.
func (t *tx) checkUnused(name string, self capsule.ID) error {
	if id, err := t.findName(name); err != nil {
		return err
	} else if !id.IsZero() {
		return nameTaken(name, id)
	}
	return t.checkFree(name, self)
}

// checkFree fails if name, which no capsule has, would have to be a file
// and a directory at once. The capsule self does not count.
func (t *tx) checkFree(name string, self capsule.ID) error {
	for dir := parent(name); dir != "" && !t.s.dirs.has(dir); dir = parent(dir) {
		id, err := lookupName(t.b, dir)
		if err != nil {
			return err
		}
		if !id.IsZero() && id != self {
			return capsule.Errorf(capsule.Exists, "%q is a capsule, so %q cannot be a name below it", dir, name)
		}
	}
	if t.alone == name {
		return nil
	}
	below := nameKey(name + "/")
	return t.b.scan(below, prefixEnd(below), func(k, v []byte) (bool, error) {
		if !bytes.Equal(v, self[:]) {
			return false, capsule.Errorf(capsule.Exists, "%q is a directory: there is a capsule %q", name, k[1:])
		}
		return true, nil
	})
}

// parent is the directory that a name is in; "" is the root.
func parent(name string) string { return name[:max(strings.LastIndexByte(name, '/'), 0)] }

// dirCache remembers directories of the namespace in which a capsule was just
// named: neither they nor any above them can be capsules. Names that go away
// empty it. It is for the leader of a commit round alone.
type dirCache map[string]struct{}

const maxDirs = 1024

func (d dirCache) has(dir string) bool { _, ok := d[dir]; return ok }

func (d dirCache) add(name string) {
	if len(d) >= maxDirs {
		clear(d)
	}
	d[parent(name)] = struct{}{}
}

// setName moves a capsule's entry in the name index; "" is the index of
// capsules without a name. The caller has checked that the name is free.
func (t *tx) setName(id capsule.ID, from *string, to *string) error {
	if from != nil {
		k := unnamedKey(id)
		if *from != "" {
			k = nameKey(*from)
			clear(t.s.dirs)
		}
		if err := t.b.delete(k); err != nil {
			return err
		}
	}
	if to == nil {
		return nil
	}
	if *to == "" {
		return t.b.set(unnamedKey(id), nil)
	}
	t.alone = ""
	t.s.dirs.add(*to)
	return t.b.set(nameKey(*to), id[:])
}

// addPolicyRef counts one more capsule under a policy, storing its text if new.
func (t *tx) addPolicyRef(id policyID, text string, n int64) error {
	if id == (policyID{}) {
		return nil
	}
	b, err := t.b.get(policyKey(id))
	if err != nil {
		return err
	}
	row := policyRow{text: text}
	if b != nil {
		if row, err = decodePolicy(b); err != nil {
			return err
		}
	}
	if row.refs += n; row.refs <= 0 {
		return t.b.delete(policyKey(id))
	}
	t.s.ownPolicies.Store(true)
	return t.b.set(policyKey(id), row.encode())
}

// discard makes a content garbage, unless another record names it too: the
// reaper will release what it refers to.
func (t *tx) discard(c *content) error {
	n, err := shares(t.b, c)
	switch {
	case err != nil:
		return err
	case n == 2:
		return t.b.delete(contentKey(keyShared, c.id))
	case n > 2:
		return t.b.set(contentKey(keyShared, c.id), binary.AppendUvarint(nil, n-1))
	}
	t.totals.pending += c.size
	t.after = append(t.after, t.s.wakeReaper)
	return t.b.set(contentKey(keyGarbage, c.id), encodeContent(c))
}

// pages calls fn with each page of a content, or its inline extents, in order.
func pages(ctx context.Context, r kvReader, c *content, fn func(start int64, list []extent) error) error {
	if c.pages == 0 {
		if len(c.inline) == 0 {
			return nil
		}
		return fn(0, c.inline)
	}
	next := int64(0)
	lo := contentKey(keyPage, c.id)
	err := r.scan(lo, prefixEnd(lo), func(k, v []byte) (bool, error) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		start := int64(binary.BigEndian.Uint64(k[len(lo):]))
		if start != next {
			return false, capsule.Errorf(capsule.Damaged, "extents of bytes %d to %d are missing", next, start)
		}
		list, err := decodePage(v, start)
		if err != nil {
			return false, err
		}
		for _, x := range list {
			next += x.len
		}
		return true, fn(start, list)
	})
	if err == nil && next != c.size {
		err = capsule.Errorf(capsule.Damaged, "extents of the content end at byte %d of %d", next, c.size)
	}
	return err
}
