package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/journal"
	"github.com/spacestore/space/pipeline"
)

// Live is an open volume, tree, or snapshot of one: numbered files of bytes,
// and rows of metadata beside them, both changed in atomic updates. It is what
// package tree and the volumes are made of. It may be used from many
// goroutines, and a capsule may be opened many times. Close it.
type Live struct {
	s    *Store
	line *lineage
	info capsule.Info
	own  living
}

// OpenLive opens a volume or tree, or a snapshot of it if snapshot is not "".
func (s *Store) OpenLive(ctx context.Context, id capsule.ID, snapshot string) (*Live, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	l := &s.lineages
	l.Lock()
	defer l.Unlock()
	rec, err := getCapsule(s.kv, id)
	if err != nil {
		return nil, err
	}
	if rec.kind == capsule.Object {
		return nil, capsule.Errorf(capsule.Unsupported, "capsule %s is an object; only volumes and trees are changed in place", id)
	}
	own := rec.living
	if snapshot != "" {
		snap, err := getSnapshot(s.kv, id, snapshot)
		if err != nil {
			return nil, err
		}
		own = snap.living
	}
	info := rec.info(id)
	info.Size = own.size
	k := lineageKey{id, snapshot}
	line := l.open[k]
	if line == nil {
		f, err := s.loadFamily(own.family)
		if err != nil {
			return nil, err
		}
		line = &lineage{capsule: id, snapshot: snapshot, family: f}
		f.mu.Lock()
		if _, ok := f.nodes[own.node]; !ok {
			f.mu.Unlock()
			return nil, capsule.Errorf(capsule.Damaged, "capsule %s has no node %d", id, own.node)
		}
		line.view.Store(f.nodes.view(own.family, own.node))
		line.size.Store(own.size)
		f.open[line] = struct{}{}
		f.mu.Unlock()
		l.open[k] = line
	}
	line.refs++
	return &Live{s: s, line: line, info: info, own: own}, nil
}

// Close lets go of the capsule.
func (l *Live) Close() error {
	ls := &l.s.lineages
	ls.Lock()
	defer ls.Unlock()
	if l.line.refs--; l.line.refs > 0 {
		return nil
	}
	k := lineageKey{l.line.capsule, l.line.snapshot}
	if ls.open[k] == l.line {
		delete(ls.open, k)
	}
	f := l.line.family
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, l.line)
	if len(f.surplus()) > 0 {
		l.s.prune(f.id)
	}
	return nil
}

// Info tells what the capsule was when it was opened.
func (l *Live) Info() capsule.Info { return l.info }

// ReadOnly reports whether this is a snapshot.
func (l *Live) ReadOnly() bool { return l.line.snapshot != "" }

// Same reports whether both are the same capsule, or the same snapshot and not
// two that had its name.
func (l *Live) Same(o *Live) bool { return l.line == o.line }

// Get returns a row's value, or nil where there is none.
func (l *Live) Get(key []byte) ([]byte, error) {
	l.s.idle.calls.Add(1)
	r, _, err := l.version(func(v *view) []byte { return metaPrefix(v.family, key) })
	if err != nil || r.state != rowData {
		return nil, err
	}
	return r.value, nil
}

// version returns what is seen of a row, and at which node. What an earlier view saw
// may have been moved to the node of a later one while it was looked up.
func (l *Live) version(prefix func(v *view) []byte) (r row, node uint32, err error) {
	for {
		v := l.line.view.Load()
		if r, node, err = l.s.version(v, prefix(v)); err != nil || l.line.view.Load() == v {
			return r, node, err
		}
	}
}

// Scan calls fn for each row with lo <= key < hi, in order, until fn returns
// false or an error. key and value are fn's only until it returns, and fn must
// not call the store. No key may be the beginning of another, or of hi.
func (l *Live) Scan(lo, hi []byte, fn func(key, value []byte) (bool, error)) error {
	l.s.idle.calls.Add(1)
	return l.s.scanMeta(l.line.view.Load, lo, hi, nil, fn)
}

func (s *Store) scanMeta(from func() *view, lo, hi []byte, local *btree.BTreeG[row], fn func(key, value []byte) (bool, error)) error {
	family := from().family
	return s.scanVersions(from, metaPrefix(family, lo), metaPrefix(family, hi), local, func(logical string, r *row) (bool, error) {
		// A key that lo goes on from sorts before it, but its rows do not.
		key := []byte(logical[1:])
		if r.state != rowData || bytes.Compare(key, lo) < 0 {
			return true, nil
		}
		return fn(key, r.value)
	})
}

// scanVersions calls fn with what a view sees of each row between two prefixes. The
// view is taken when no row can move any more: see [Live.version].
func (s *Store) scanVersions(from func() *view, lo, hi []byte, local *btree.BTreeG[row], fn func(logical string, r *row) (bool, error)) error {
	var v *view
	seen := ""
	return s.scanRows(lo, hi, local, func(r *row) (bool, error) {
		if v == nil {
			v = from()
		}
		_, logical, node, err := splitRow(r.key)
		if err != nil || logical == seen || !v.sees(node) {
			return true, err
		}
		seen = logical
		if !r.there() {
			return true, nil
		}
		return fn(logical, r)
	})
}

// ReadAt fills p from a file's content. What was never written is zeros, and
// there is no end: the caller knows the size. A damaged range gives a
// *capsule.DamageError and the number of good bytes before it.
func (l *Live) ReadAt(ctx context.Context, file uint64, p []byte, off int64) (n int, err error) {
	if err := l.s.enter(); err != nil {
		return 0, err
	}
	defer l.s.leave()
	if err := checkRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	workers := min(runtime.GOMAXPROCS(0), len(p)/readShare)
	if workers < 2 {
		return l.read(ctx, file, p, off)
	}
	// Each takes a run of blocks; the first part that fails says how far it went.
	share := int64(len(p)/workers+BlockSize-1) / BlockSize * BlockSize
	type part struct {
		from, n int
		err     error
	}
	parts := make([]part, 0, workers)
	for from := 0; from < len(p); {
		parts = append(parts, part{from: from})
		from += int(share - (off+int64(from))%BlockSize)
	}
	var others sync.WaitGroup
	for i := range parts {
		part, to := &parts[i], len(p)
		if i+1 < len(parts) {
			to = parts[i+1].from
		}
		do := func() { part.n, part.err = l.read(ctx, file, p[part.from:to], off+int64(part.from)) }
		if i+1 < len(parts) {
			others.Go(do)
		} else {
			do()
		}
	}
	others.Wait()
	for _, part := range parts {
		if n += part.n; part.err != nil {
			return n, part.err
		}
	}
	return n, nil
}

// readShare is how much each of several goroutines at least reads of a range.
const readShare = 4 * BlockSize

// read is ReadAt on one goroutine.
func (l *Live) read(ctx context.Context, file uint64, p []byte, off int64) (n int, err error) {
	for n < len(p) {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		at := off + int64(n)
		from, to := blockRange(at/BlockSize, at, off+int64(len(p)))
		if err := l.readBlock(file, at/BlockSize, from, p[n:n+int(to-from)]); err != nil {
			return n, err
		}
		n += int(to - from)
	}
	return n, nil
}

// readTries is how often a block that cannot be read is looked up again.
const readTries = 4

// readBlock fills p from a block of a file. A block that is changed while it
// is read may lose the segments it had: then it is looked up again.
func (l *Live) readBlock(file uint64, index int64, off uint32, p []byte) error {
	for try := 0; ; try++ {
		prefix := func(v *view) []byte { return blockPrefix(v.family, file, index) }
		r, node, err := l.version(prefix)
		if err != nil {
			return capsule.Wrap(ioKind(err), err, "capsule %s", l.line.capsule)
		}
		if r.state != rowBlock {
			clear(p)
			return nil
		}
		err = l.s.readBlock(r.block, off, p)
		if err == nil {
			return nil
		}
		if again, node2, rerr := l.version(prefix); rerr == nil && try < readTries &&
			(node2 != node || again.state != rowBlock || again.block != r.block && string(again.encode()) != string(r.encode())) {
			continue
		}
		return l.damage(index*BlockSize, err)
	}
}

func (l *Live) damage(start int64, err error) error {
	var at *pieceError
	var seg *segmentError
	if errors.As(err, &at) && errors.As(err, &seg) {
		l.s.tally.damaged.Add(1)
		return &capsule.DamageError{Capsule: l.line.capsule, Off: start + int64(at.off), Len: int64(at.n),
			Log: seg.log, LogOff: seg.off, Why: seg.err.Error()}
	}
	return capsule.Wrap(ioKind(err), err, "capsule %s", l.line.capsule)
}

// NextData returns the first range of a file at or after off and before limit
// that was written and not punched; start == end: there is none. It may end
// before the data does.
func (l *Live) NextData(ctx context.Context, file uint64, off, limit int64) (start, end int64, err error) {
	if off < 0 || limit <= off {
		return off, off, nil
	}
	v := l.line.view.Load()
	start, end = -1, -1
	lo, hi := blockPrefix(v.family, file, off/BlockSize), prefixEnd(blockPrefix(v.family, file, (limit-1)/BlockSize))
	blocks := 0
	err = l.s.scanVersions(l.line.view.Load, lo, hi, nil, func(logical string, r *row) (bool, error) {
		_, index, ok := blockOf(logical)
		if !ok || r.state != rowBlock {
			return false, capsule.Errorf(capsule.Damaged, "capsule %s: malformed block key", l.line.capsule)
		}
		for i := range r.block.pieces {
			p := &r.block.pieces[i]
			from, to := max(index*BlockSize+int64(p.off), off), min(index*BlockSize+int64(p.end()), limit)
			switch {
			case to <= from:
			case start < 0:
				start, end = from, to
			case from == end:
				end = to
			default:
				return false, nil
			}
		}
		blocks++
		return (start < 0 || end == (index+1)*BlockSize) && (start < 0 || blocks < 4096) && ctx.Err() == nil, nil
	})
	if err == nil {
		err = ctx.Err()
	}
	if start < 0 {
		return limit, limit, err
	}
	return start, end, err
}

// Sync returns when all updates that had returned before the call are durable.
func (l *Live) Sync(context.Context) error {
	if err := l.s.enter(); err != nil {
		return err
	}
	defer l.s.leave()
	return l.s.syncJournal()
}

// syncJournal makes all changes so far durable: first the segments that the
// journal's records name. What else is in the segment logs, puts and a checkpoint
// under way for example, is not waited for.
func (s *Store) syncJournal() error {
	if err := s.writable(); err != nil {
		return err
	}
	last := s.journal.Last()
	var err error
	if named := s.named.records.Load(); named > s.named.synced.Load() {
		if err = s.logs.Sync(); err == nil {
			s.named.raise(named)
		}
	}
	if err == nil {
		err = s.journal.Sync(last)
	}
	if err != nil {
		s.fail(err)
		return s.writable()
	}
	return nil
}

// namedSegments counts the journal's records that name segments which were new
// then, and of how many the segments are durable.
type namedSegments struct {
	records atomic.Uint64 // raised before the journal has the record
	synced  atomic.Uint64
}

func (n *namedSegments) raise(synced uint64) {
	for {
		old := n.synced.Load()
		if synced <= old || n.synced.CompareAndSwap(old, synced) {
			return
		}
	}
}

// Update is a change under way: all of it is made, or none. Its reads see its
// own changes.
type Update struct {
	l      *Live
	v      *view
	local  *btree.BTreeG[row]
	record []byte // for the journal
	data   int    // bytes of content
	pins   []*pin // of segments sealed for it
}

// view is what an update sees: no row moves while there is one.
func (u *Update) view() *view { return u.v }

const (
	// maxUpdate bounds the content that one update may write, in bytes.
	maxUpdate = 1 << 20
	// updateBlocks bounds the blocks that one Punch or Copy touches.
	updateBlocks = 512
	// maxRowKey and maxRowValue bound the rows of a capsule.
	maxRowKey   = 1 << 10
	maxRowValue = 64 << 10
)

// Update runs fn and makes the changes it asks for, all of them or, if fn or
// the store fails, none. Updates of one capsule run one after the other. When
// it returns, the changes are visible; Sync makes them durable; a power cut
// loses the last of them first.
func (l *Live) Update(ctx context.Context, fn func(*Update) error) error {
	s := l.s
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if l.ReadOnly() {
		return capsule.Errorf(capsule.ReadOnly, "a snapshot takes no changes")
	}
	if err := s.overlay.room(ctx, s.mostUnmerged(), s.wakeCheckpointer); err != nil {
		return err
	}
	number, err := func() (uint64, error) {
		l.line.family.mu.Lock()
		defer l.line.family.mu.Unlock()
		return s.update(l, l.line.view.Load(), fn)
	}()
	if err == nil && s.push {
		if err := s.journal.Push(number); err != nil {
			s.fail(err)
			return s.writable()
		}
	}
	return err
}

// update is Update for a caller that holds the family's lock. It returns the
// number of its record in the journal, 0 if there is nothing to be changed.
func (s *Store) update(l *Live, v *view, fn func(*Update) error) (number uint64, err error) {
	s.overlay.updating.RLock()
	defer s.overlay.updating.RUnlock()
	buf := updateRecords.Get().(*[]byte)
	u := &Update{l: l, v: v, local: newRows(), record: (*buf)[:0]}
	defer func() {
		if *buf = u.record; cap(*buf) <= keptRecord {
			updateRecords.Put(buf)
		}
	}()
	if err = fn(u); err == nil && len(u.record) > 0 {
		number, err = u.commit()
	}
	if err != nil {
		for _, p := range u.pins {
			s.pins.release(p)
		}
	}
	return number, err
}

// updateRecords are buffers for the records of updates.
var updateRecords = sync.Pool{New: func() any { return new([]byte) }}

// keptRecord is how large a buffer may be to be used again.
const keptRecord = 128 << 10

// commit makes an update's changes.
func (u *Update) commit() (number uint64, err error) {
	s := u.l.s
	if err := s.writable(); err != nil {
		return 0, err
	}
	need := (1 + mergeCost) * int64(len(u.record))
	if err := s.checkSpace(need); capsule.KindOf(err) == capsule.NoSpace {
		if grows, gerr := u.grows(); gerr != nil {
			return 0, gerr
		} else if !grows {
			err = s.checkSpaceToMove(need)
		}
		if err != nil {
			return 0, err
		}
	} else if err != nil {
		return 0, err
	}
	most := s.mostUnmerged()
	o := s.overlay
	if len(u.pins) > 0 {
		s.named.records.Add(1)
	}
	o.mu.Lock()
	number, err = s.journal.Append(u.record)
	if err == nil {
		u.local.Scan(func(r row) bool {
			o.set(r)
			return true
		})
		o.active.pins = append(o.active.pins, u.pins...)
		for _, p := range u.pins {
			o.active.bytes += p.row.plainLen / sealedShare
		}
	}
	o.active.journaled += int64(len(u.record))
	full := o.active.bytes >= o.limit/2 || o.active.journaled >= most/2
	o.mu.Unlock()
	if err != nil {
		s.fail(err)
		return 0, s.writable()
	}
	if full {
		s.wakeCheckpointer()
	}
	return number, nil
}

// moreOfOld is by how many bytes a row may grow without being taken for one of
// what makes a capsule grow: times and counters take more or less.
const moreOfOld = 64

// grows reports whether there is more in a tree or volume after the update than
// before: rows, content, or long values. What does not grow may use the reserve.
func (u *Update) grows() (bool, error) {
	if u.v == nil { // pruning
		return false, nil
	}
	var rows, bytes, content int64
	var err error
	u.local.Scan(func(r row) bool {
		var old row
		if old, _, err = u.l.s.version(u.v, []byte(r.key[:len(r.key)-nodeSize])); err != nil {
			return false
		}
		for sign, r := range map[int64]*row{1: &r, -1: &old} {
			if r.there() {
				rows += sign
				bytes += sign * int64(len(r.value))
				content += sign * r.block.allocated()
			}
		}
		return true
	})
	return u.data > 0 || rows > 0 || bytes > moreOfOld || content > 0, err
}

// Operations in the journal: one byte, the row's key with its length, and what
// follows from the operation. They are replayed on what rows there are, in
// order, which may already show some of their effects.
const (
	opSet    = 1 // the row's value, with its length
	opDelete = 2 // nothing
	opWrite  = 3 // offset in the block, the bytes with their length
	opPunch  = 4 // from, to in the block
	// The block's value, with its length; how many segments it names that the
	// metadata may not know, and of each the ID and its row, with its length.
	// The record may have survived a power cut that the segments did not.
	opSealed = 5
)

// sealedShare is which part of the bytes that updates sealed by themselves
// counts for the size of a generation. They are not in memory, but recovery
// reads them.
const sealedShare = 16

func (u *Update) op(op byte, key string) *encoder {
	e := encoder{append(u.record, op)}
	e.string(key)
	return &e
}

func (u *Update) set(r row) {
	e := u.op(opSet, r.key)
	e.string(string(r.encode()))
	u.record = e.b
	u.local.Set(r)
}

func (u *Update) remove(key string) {
	u.record = u.op(opDelete, key).b
	u.local.Set(row{key: key, state: rowAbsent})
}

// lookup returns what the update sees of a row, and whether the version is
// that of its own node.
func (u *Update) lookup(prefix []byte) (r row, own bool, err error) {
	r, ok := u.local.Get(row{key: string(atNode(prefix, u.v.node))})
	if !ok {
		var node uint32
		r, node, err = u.l.s.version(u.v, prefix)
		return r, node == u.v.node, err
	}
	if r.state == rowAbsent {
		r, _, err = u.l.s.inherited(u.v, prefix)
		return r, false, err
	}
	return r, true, nil
}

// Get returns a row's value, or nil where there is none.
func (u *Update) Get(key []byte) ([]byte, error) {
	r, _, err := u.lookup(metaPrefix(u.v.family, key))
	if err != nil || r.state != rowData {
		return nil, err
	}
	return r.value, nil
}

// Scan is [Live.Scan] as the update sees it.
func (u *Update) Scan(lo, hi []byte, fn func(key, value []byte) (bool, error)) error {
	return u.l.s.scanMeta(u.view, lo, hi, u.local, fn)
}

// Set gives a row a value: keys up to 1 KiB, values up to 64 KiB.
func (u *Update) Set(key, value []byte) error {
	if len(key) == 0 || len(key) > maxRowKey || len(value) > maxRowValue {
		return capsule.Errorf(capsule.Invalid, "no row can have a key of %d and a value of %d bytes", len(key), len(value))
	}
	k := atNode(metaPrefix(u.v.family, key), u.v.node)
	// Not nil, which means that there is no row, even where it is empty.
	u.set(row{key: string(k), state: rowData, value: append([]byte{}, value...)})
	return u.fits()
}

// Delete removes a row, if it is there.
func (u *Update) Delete(key []byte) error {
	return u.hide(metaPrefix(u.v.family, key))
}

// hide makes a row invisible.
func (u *Update) hide(prefix []byte) error {
	k := string(atNode(prefix, u.v.node))
	old, _, err := u.l.s.inherited(u.v, prefix)
	if err != nil {
		return err
	}
	if old.state != rowAbsent && old.there() {
		u.set(row{key: k, state: rowHidden})
	} else {
		u.remove(k)
	}
	return u.fits()
}

// fits fails when the update has become too large for a record.
func (u *Update) fits() error {
	if len(u.record) > journal.MaxRecord {
		return capsule.Errorf(capsule.Invalid, "an update of more than %d bytes", journal.MaxRecord)
	}
	return nil
}

// block returns a block as the update sees it, nil where there is none. If
// change is set, it makes sure that the journal can replay changes to it: a
// version inherited from an older node is copied to this one first.
func (u *Update) block(prefix []byte, change bool) (*liveBlock, error) {
	r, own, err := u.lookup(prefix)
	if err != nil || r.state != rowBlock {
		return nil, err
	}
	if !own {
		r.block = r.block.shared()
		if change {
			r.key = string(atNode(prefix, u.v.node))
			u.set(r)
		}
	}
	return r.block, nil
}

// setBlock puts a changed block in place; the journal has the change already.
func (u *Update) setBlock(prefix []byte, b *liveBlock) error {
	if len(b.pieces) > maxMemPieces {
		b = u.l.s.flatten(b)
	}
	u.local.Set(row{key: string(atNode(prefix, u.v.node)), state: rowBlock, block: b})
	return u.fits()
}

// Write puts p into a file's content and returns by how many bytes more is
// allocated for it. One update may write up to 1 MiB.
func (u *Update) Write(file uint64, off int64, p []byte) (grew int64, err error) {
	if err := checkRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	if u.data += len(p); u.data > maxUpdate {
		return 0, capsule.Errorf(capsule.Invalid, "an update of more than %d bytes of content", maxUpdate)
	}
	if full := int(BlockSize-off%BlockSize) % BlockSize; len(p) >= full+BlockSize {
		// Whole blocks need not go through the journal.
		end := full + (len(p)-full)/BlockSize*BlockSize
		u.data -= full // this call counts it again
		if grew, err = u.Write(file, off, p[:full]); err != nil {
			return grew, err
		}
		n, err := u.writeBlocks(file, off+int64(full), p[full:end])
		if grew += n; err != nil {
			return grew, err
		}
		p = p[end:]
		off += int64(end)
	}
	for len(p) > 0 {
		index := off / BlockSize
		from, to := blockRange(index, off, off+int64(len(p)))
		prefix := blockPrefix(u.v.family, file, index)
		old, err := u.block(prefix, true)
		if err != nil {
			return grew, err
		}
		part := p[:to-from]
		e := u.op(opWrite, string(atNode(prefix, u.v.node)))
		e.uint(uint64(from))
		e.uint(uint64(len(part)))
		e.bytes(part)
		u.record = e.b
		b := old.write(from, part)
		grew += b.allocated() - old.allocated()
		if err := u.setBlock(prefix, b); err != nil {
			return grew, err
		}
		p = p[len(part):]
		off += int64(len(part))
	}
	return grew, nil
}

// writeBlocks writes whole blocks: it makes segments of them at once.
func (u *Update) writeBlocks(file uint64, off int64, p []byte) (grew int64, err error) {
	s := u.l.s
	if err := s.checkSpace(int64(len(p))); err != nil {
		return 0, err
	}
	fs, err := s.sealerOf(u.v.family)
	if err != nil {
		return 0, err
	}
	var jobs []*sealJob
	for i := 0; i < len(p); i += BlockSize {
		mem := p[i : i+BlockSize]
		jobs = append(jobs, &sealJob{sealer: fs, bytes: len(mem),
			r: row{block: &liveBlock{pieces: []piece{{n: BlockSize, mem: mem}}}}})
	}
	key := s.keys.current().version
	s.pins.useKey(key)
	defer s.pins.unuseKey(key)
	err = s.sealAll(jobs, 2*BlockSize)
	for _, j := range jobs {
		u.pins = append(u.pins, j.pins...)
	}
	if err != nil {
		return 0, err
	}
	for i, j := range jobs {
		prefix := blockPrefix(u.v.family, file, off/BlockSize+int64(i))
		old, err := u.block(prefix, false)
		if err != nil {
			return grew, err
		}
		r := row{key: string(atNode(prefix, u.v.node)), state: rowBlock, block: j.out}
		e := u.op(opSealed, r.key)
		e.string(string(r.encode()))
		e.pins(j.pins)
		u.record = e.b
		u.local.Set(r)
		grew += BlockSize - old.allocated()
	}
	return grew, u.fits()
}

// pins writes where the segments are that the metadata may not know yet.
func (e *encoder) pins(pins []*pin) {
	var fresh []*pin
	for _, p := range pins {
		if p.row.log != 0 {
			fresh = append(fresh, p)
		}
	}
	e.uint(uint64(len(fresh)))
	for _, p := range fresh {
		e.bytes(p.id[:])
		e.string(string(p.row.encode(nil)))
	}
}

// Punch makes zeros of [off, end) of a file and gives up the space they took.
// end may be math.MaxInt64. It goes as far as one update may: next is where it
// stopped, end when it is done. freed is how much less is allocated.
func (u *Update) Punch(file uint64, off, end int64) (next, freed int64, err error) {
	if off < 0 || end < off {
		return off, 0, capsule.Errorf(capsule.Invalid, "no content has a range from %d to %d", off, end)
	}
	if off == end {
		return end, 0, nil
	}
	type found struct {
		index int64
		b     *liveBlock
	}
	var blocks []found
	next = end
	lo, hi := blockPrefix(u.v.family, file, off/BlockSize), prefixEnd(blockPrefix(u.v.family, file, (end-1)/BlockSize))
	err = u.l.s.scanVersions(u.view, lo, hi, u.local, func(logical string, r *row) (bool, error) {
		_, index, ok := blockOf(logical)
		if !ok || r.state != rowBlock {
			return false, capsule.Errorf(capsule.Damaged, "malformed block key")
		}
		if len(blocks) == updateBlocks {
			next = index * BlockSize
			return false, nil
		}
		blocks = append(blocks, found{index, r.block})
		return true, nil
	})
	if err != nil {
		return off, 0, err
	}
	for _, f := range blocks {
		prefix := blockPrefix(u.v.family, file, f.index)
		from, to := blockRange(f.index, off, end)
		rest := f.b.replace(from, to)
		freed += f.b.allocated() - rest.allocated()
		if len(rest.pieces) == 0 {
			if err := u.hide(prefix); err != nil {
				return off, 0, err
			}
			continue
		}
		if _, err := u.block(prefix, true); err != nil {
			return off, 0, err
		}
		e := u.op(opPunch, string(atNode(prefix, u.v.node)))
		e.uint(uint64(from))
		e.uint(uint64(to))
		u.record = e.b
		if err := u.setBlock(prefix, rest.shared()); err != nil {
			return off, 0, err
		}
	}
	return next, freed, nil
}

// Copy makes [dstOff, dstOff+n) of file dst have what [srcOff, srcOff+n) of file
// src has, sharing its segments. It goes as far as one update may: done is how
// many bytes it did. grew is how much more is allocated for dst.
func (u *Update) Copy(dst uint64, dstOff int64, src uint64, srcOff, n int64) (done, grew int64, err error) {
	if err := checkRange(dstOff, n); err != nil {
		return 0, 0, err
	}
	if err := checkRange(srcOff, n); err != nil {
		return 0, 0, err
	}
	if dst == src && dstOff < srcOff+n && srcOff < dstOff+n {
		return 0, 0, capsule.Errorf(capsule.Invalid, "the ranges to copy overlap")
	}
	for blocks := 0; done < n && blocks < updateBlocks && u.data < maxUpdate; blocks++ {
		to, from := dstOff+done, srcOff+done
		// As much as lies in one block on both sides.
		m := min(n-done, BlockSize-to%BlockSize, BlockSize-from%BlockSize)
		b, err := u.block(blockPrefix(u.v.family, src, from/BlockSize), false)
		if err != nil {
			return done, grew, err
		}
		at := uint32(from % BlockSize)
		pieces := b.shared().slice(at, at+uint32(m), to%BlockSize-from%BlockSize)
		prefix := blockPrefix(u.v.family, dst, to/BlockSize)
		old, err := u.block(prefix, false)
		if err != nil {
			return done, grew, err
		}
		at = uint32(to % BlockSize)
		nb := old.shared().replace(at, at+uint32(m), pieces...)
		if old == nil && len(nb.pieces) == 0 {
			done += m
			continue
		}
		if len(nb.pieces) > maxMemPieces {
			nb = u.l.s.flatten(nb)
		}
		grew += nb.allocated() - old.allocated()
		for i := range nb.pieces {
			u.data += len(nb.pieces[i].mem)
		}
		u.set(row{key: string(atNode(prefix, u.v.node)), state: rowBlock, block: nb})
		if err := u.fits(); err != nil {
			return done, grew, err
		}
		done += m
	}
	return done, grew, nil
}

// replay makes the changes of a journal record again: all of them, or, if it
// returns [journal.ErrEnd], none. durable has the segment logs that were made durable
// for it.
func (s *Store) replay(number uint64, rec []byte, durable map[uint64]bool) error {
	d := decoder{b: rec}
	o := s.overlay
	local := newRows()
	for len(d.b) > 0 && d.err == nil {
		op := d.b[0]
		d.b = d.b[1:]
		r, err := s.replayOp(op, &d, local, durable)
		if err != nil {
			return err
		}
		if d.err == nil {
			local.Set(r)
		}
	}
	if d.err != nil {
		return fmt.Errorf("malformed operation: %w", d.err)
	}
	o.mu.Lock()
	local.Scan(func(r row) bool {
		o.set(r)
		return true
	})
	full := o.active.bytes >= o.limit
	o.mu.Unlock()
	if full {
		return s.checkpointTo(number)
	}
	return nil
}

// replayOp returns what an operation makes of its row. A malformed one sets d.err.
func (s *Store) replayOp(op byte, d *decoder, local *btree.BTreeG[row], durable map[uint64]bool) (r row, err error) {
	r = row{key: d.string(), state: rowAbsent}
	if d.err != nil {
		return r, nil
	}
	if _, _, _, err := splitRow(r.key); err != nil {
		return r, err
	}
	switch op {
	case opSet, opSealed:
		v := []byte(d.string())
		if d.err != nil {
			return r, nil
		}
		if r, err = decodeRow(r.key, v); err == nil && op == opSealed {
			err = s.replaySealed(d, durable)
		}
		return r, err
	case opDelete:
		return r, nil
	case opWrite, opPunch:
	default:
		d.fail()
		return r, nil
	}
	old, ok := local.Get(r)
	if !ok {
		if old, err = s.rawRow([]byte(r.key)); err != nil {
			return r, err
		}
	}
	r.state = rowBlock
	from, n := d.uint(), d.uint()
	switch {
	case op == opWrite && from <= BlockSize && n > 0 && n <= BlockSize-from:
		p := make([]byte, n)
		d.bytes(p)
		if d.err != nil {
			return r, nil
		}
		r.block = old.block.write(uint32(from), p)
	case op == opPunch && from <= n && n <= BlockSize:
		r.block = old.block.replace(uint32(from), uint32(n))
	default:
		d.fail()
		return r, nil
	}
	if len(r.block.pieces) > maxMemPieces {
		r.block = s.flatten(r.block)
	}
	return r, err
}

// replaySealed pins the segments that a block names, if they are there. It has
// them durable, as those who find them in the metadata take them to be.
func (s *Store) replaySealed(d *decoder, durable map[uint64]bool) error {
	for n := d.uint(); n > 0 && d.err == nil; n-- {
		var id pipeline.SegmentID
		d.bytes(id[:])
		b := []byte(d.string())
		if d.err != nil {
			break
		}
		at, err := decodeSegment(b)
		if err != nil {
			return err
		}
		pin, first := s.pins.acquire(id)
		s.overlay.active.pins = append(s.overlay.active.pins, pin)
		if !first {
			continue
		}
		if s.findRow(pin) {
			if pin.err != nil {
				return pin.err
			}
			continue
		}
		rec := make([]byte, at.recordLen)
		if err = s.logs.ReadAt(at.log, rec, at.off); err == nil {
			err = s.checkRecord(rec, id, nil)
		}
		if err == nil {
			pin.row = at
			s.pins.hold(at.log, pin)
		}
		s.pins.settle(pin)
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, pipeline.ErrCorrupt):
			return fmt.Errorf("%w: %w", journal.ErrEnd, err)
		default: // says nothing about what is there
			return err
		}
		if !durable[at.log] {
			if err := s.logs.SyncLog(at.log); err != nil {
				return err
			}
			durable[at.log] = true
		}
	}
	return nil
}

// appliedTo returns the number of the journal's last record that is part of the
// metadata.
func (s *Store) appliedTo() (uint64, error) {
	b, err := s.kv.get([]byte{keyApplied})
	if b == nil || err != nil {
		return 0, err
	}
	n, size := binary.Uvarint(b)
	if size != len(b) || n == math.MaxUint64 {
		return 0, capsule.Errorf(capsule.Damaged, "malformed record of what is applied of the journal")
	}
	return n, nil
}
