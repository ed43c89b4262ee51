package store

import (
	"context"
	"encoding/binary"
	"sync"
	"unsafe"

	"github.com/tidwall/btree"

	"github.com/spacestore/space/capsule"
)

// row is one version of a row of a living capsule.
type row struct {
	key   string // family, logical key, node: see rowKey
	state rowState
	value []byte     // of rowData
	block *liveBlock // of rowBlock
}

type rowState uint8

// The states of a row; those but rowAbsent are the first byte on disk.
const (
	rowHidden rowState = 0 // hides what an older node has
	rowData   rowState = 1
	rowBlock  rowState = 2
	rowAbsent rowState = 255 // in memory only: what is on disk is deleted
)

// there reports whether a reader finds anything.
func (r *row) there() bool {
	return r.state == rowData || r.state == rowBlock && len(r.block.pieces) > 0
}

func (r *row) encode() []byte {
	e := encoder{[]byte{byte(r.state)}}
	switch r.state {
	case rowData:
		e.bytes(r.value)
	case rowBlock:
		e.block(r.block)
	}
	return e.b
}

// decodeRow reads a row's value. The row's value aliases v.
func decodeRow(key string, v []byte) (row, error) {
	r := row{key: key}
	d := decoder{b: v}
	if len(v) == 0 {
		d.fail()
		return r, d.end("row")
	}
	r.state, d.b = rowState(v[0]), v[1:]
	switch r.state {
	case rowHidden:
	case rowData:
		r.value, d.b = d.b, nil
	case rowBlock:
		r.block = d.block()
	default:
		d.fail()
	}
	return r, d.end("row")
}

// rowBytes is about what a row takes in memory beside its key and value.
const rowBytes = 160

func (r *row) memory() int64 {
	n := int64(len(r.key)+len(r.value)) + rowBytes
	if r.block != nil {
		for i := range r.block.pieces {
			n += int64(cap(r.block.pieces[i].mem)) + int64(unsafe.Sizeof(piece{}))
		}
	}
	return n
}

func newRows() *btree.BTreeG[row] {
	return btree.NewBTreeGOptions(func(a, b row) bool { return a.key < b.key }, btree.Options{NoLocks: true, Degree: 32})
}

// generation is the changes of a stretch of the journal, newest value each.
type generation struct {
	rows      *btree.BTreeG[row]
	bytes     int64
	journaled int64  // bytes of its changes in the journal
	last      uint64 // the journal's number of its last change, once it is frozen
	pins      []*pin // segments that its rows name and the metadata may not know yet
}

// overlay is what has changed since the metadata was last brought up to date:
// a generation that takes changes, over one that is on its way to disk.
type overlay struct {
	// updating is held, shared, from an update's first look at a row until its
	// changes are in the active generation: so none builds on rows of a
	// generation older than the one that is frozen.
	updating sync.RWMutex

	mu     sync.RWMutex
	moved  *sync.Cond // on mu: frozen or stuck has changed
	active *generation
	frozen *generation // nil: none
	stuck  error       // why frozen does not get to disk
	limit  int64       // bytes of active above which changes wait for frozen

	// merged are segments that the last checkpoint had no more use for, because
	// it sealed blocks of many pieces anew. Rows of the active generation that
	// were made meanwhile may still name them. Guarded by Store.checkpointing.
	merged []*pin
}

func newOverlay(limit int64) *overlay {
	o := &overlay{active: &generation{rows: newRows()}, limit: limit}
	o.moved = sync.NewCond(&o.mu)
	return o
}

// memory is about how many bytes of changes are held.
func (o *overlay) memory() int64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	n := o.active.bytes
	if o.frozen != nil {
		n += o.frozen.bytes
	}
	return n
}

// journaled is how many bytes of the journal the changes take.
func (o *overlay) journaled() int64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	n := o.active.journaled
	if o.frozen != nil {
		n += o.frozen.journaled
	}
	return n
}

// room waits until there is room for more changes, which may take so many bytes
// of the journal for each generation. more tells the checkpointer.
func (o *overlay) room(ctx context.Context, journal int64, more func()) error {
	o.mu.RLock()
	ok := o.active.bytes < o.limit && o.active.journaled < journal
	o.mu.RUnlock()
	if ok {
		return nil
	}
	defer context.AfterFunc(ctx, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.moved.Broadcast()
	})()
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.active.bytes >= o.limit || o.active.journaled >= journal {
		more()
		if o.stuck != nil {
			return o.stuck
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		o.moved.Wait()
	}
	return nil
}

// get finds a row among the changes. o.mu is held.
func (o *overlay) get(key string) (row, bool) {
	if r, ok := o.active.rows.Get(row{key: key}); ok {
		return r, true
	}
	if o.frozen != nil {
		return o.frozen.rows.Get(row{key: key})
	}
	return row{}, false
}

// set takes a change. o.mu is held.
func (o *overlay) set(r row) {
	g := o.active
	g.bytes += r.memory()
	if old, had := g.rows.Set(r); had {
		g.bytes -= old.memory()
	}
}

// rawRow returns a row as it is now; its state is rowAbsent where there is none.
func (s *Store) rawRow(key []byte) (row, error) {
	s.overlay.mu.RLock()
	r, ok := s.overlay.get(unsafe.String(unsafe.SliceData(key), len(key)))
	s.overlay.mu.RUnlock()
	if ok {
		return r, nil
	}
	return storedRow(s.kv, key)
}

// storedRow returns a row as the metadata has it.
func storedRow(r kvReader, key []byte) (row, error) {
	v, err := r.get(key)
	if err != nil || v == nil {
		return row{state: rowAbsent}, err
	}
	return decodeRow(string(key), v)
}

// rowCursor goes through rows in order.
type rowCursor interface {
	// next returns the next row; false: there is none, or an error.
	next() (row, bool, error)
	close() error
}

type btreeCursor struct {
	it    btree.IterG[row]
	lo    string
	hi    string
	begun bool
}

func newBtreeCursor(rows *btree.BTreeG[row], lo, hi string) *btreeCursor {
	return &btreeCursor{it: rows.Iter(), lo: lo, hi: hi}
}

func (c *btreeCursor) next() (row, bool, error) {
	ok := false
	if c.begun {
		ok = c.it.Next()
	} else {
		ok, c.begun = c.it.Seek(row{key: c.lo}), true
	}
	if !ok || c.it.Item().key >= c.hi {
		return row{}, false, nil
	}
	return c.it.Item(), true, nil
}

func (c *btreeCursor) close() error { c.it.Release(); return nil }

// scanRows calls fn for each row in [lo, hi) as it is now, with local, if not
// nil, over all. Rows that are absent are left out. fn must not look at rows.
func (s *Store) scanRows(lo, hi []byte, local *btree.BTreeG[row], fn func(r *row) (bool, error)) (err error) {
	s.overlay.mu.RLock()
	defer s.overlay.mu.RUnlock()
	var cursors []rowCursor // the newest first
	for _, rows := range []*btree.BTreeG[row]{local, s.overlay.active.rows, s.overlay.frozenRows()} {
		if rows != nil && rows.Len() > 0 {
			cursors = append(cursors, newBtreeCursor(rows, string(lo), string(hi)))
		}
	}
	stored, err := s.kv.cursor(lo, hi)
	if err != nil {
		return err
	}
	cursors = append(cursors, stored)
	defer func() {
		for _, c := range cursors {
			if cerr := c.close(); err == nil {
				err = cerr
			}
		}
	}()
	heads := make([]row, len(cursors))
	live := make([]bool, len(cursors))
	for i, c := range cursors {
		if heads[i], live[i], err = c.next(); err != nil {
			return err
		}
	}
	for {
		least := -1
		for i := range heads {
			if live[i] && (least < 0 || heads[i].key < heads[least].key) {
				least = i
			}
		}
		if least < 0 {
			return nil
		}
		r := heads[least]
		for i := range heads {
			if live[i] && heads[i].key == r.key {
				if heads[i], live[i], err = cursors[i].next(); err != nil {
					return err
				}
			}
		}
		if r.state == rowAbsent {
			continue
		}
		if more, err := fn(&r); err != nil || !more {
			return err
		}
	}
}

func (o *overlay) frozenRows() *btree.BTreeG[row] {
	if o.frozen == nil {
		return nil
	}
	return o.frozen.rows
}

// Keys of rows: the family, the logical key, and the node, so that the
// versions of a row lie together, the newest node first. A logical key is
// either a tree's, after rowSpaceMeta, or names a block: file and index.
const (
	rowSpaceBlock = 0
	rowSpaceMeta  = 1
)

const nodeSize = 4

// rowSpaceAt is where in a row's key its space is.
const rowSpaceAt = 9

// rowPrefix begins all rows of a family.
func rowPrefix(family uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{keyRow}, family)
}

func metaPrefix(family uint64, key []byte) []byte {
	b := append(make([]byte, 0, 10+len(key)+nodeSize), keyRow)
	b = binary.BigEndian.AppendUint64(b, family)
	return append(append(b, rowSpaceMeta), key...)
}

func blockPrefix(family, file uint64, index int64) []byte {
	b := append(make([]byte, 0, 26+nodeSize), keyRow)
	b = binary.BigEndian.AppendUint64(b, family)
	b = append(b, rowSpaceBlock)
	b = binary.BigEndian.AppendUint64(b, file)
	return binary.BigEndian.AppendUint64(b, uint64(index))
}

// atNode completes a row's key.
func atNode(prefix []byte, node uint32) []byte {
	return binary.BigEndian.AppendUint32(prefix[:len(prefix):len(prefix)], node)
}

// splitRow takes a row's key apart.
func splitRow(key string) (family uint64, logical string, node uint32, err error) {
	if len(key) < 10+nodeSize || key[0] != keyRow {
		return 0, "", 0, capsule.Errorf(capsule.Damaged, "malformed metadata key %x", key)
	}
	family = binary.BigEndian.Uint64([]byte(key[1:9]))
	at := len(key) - nodeSize
	return family, key[rowSpaceAt:at], binary.BigEndian.Uint32([]byte(key[at:])), nil
}

// blockOf returns the file and index that a block's logical key names.
func blockOf(logical string) (file uint64, index int64, ok bool) {
	if len(logical) != 17 || logical[0] != rowSpaceBlock {
		return 0, 0, false
	}
	return binary.BigEndian.Uint64([]byte(logical[1:9])), int64(binary.BigEndian.Uint64([]byte(logical[9:]))), true
}
