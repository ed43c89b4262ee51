package store

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// The metadata's key space, by first byte. docs/format.md describes each.
const (
	keyCapsule   = 'c' // + capsule ID                -> capsuleRecord
	keyName      = 'n' // + name                      -> capsule ID
	keyUnnamed   = 'u' // + capsule ID                -> nothing
	keyPage      = 'e' // + content ID + start offset -> extents
	keySegment   = 's' // + segment ID                -> segmentRow
	keyZero      = 'z' // + segment ID                -> nothing: a row without references waits
	keyBuilding  = 'w' // + content ID                -> nothing: content under construction
	keyGarbage   = 'g' // + content ID                -> content that nothing refers to any more
	keyLog       = 'l' // + log number                -> logRow
	keyPolicy    = 'p' // + policy ID                 -> policyRow
	keyTotals    = 't' //                             -> totals
	keyVerify    = 'v' //                             -> where a verify run got to
	keyFamily    = 'f' // + family                    -> familyRow
	keyNode      = 'd' // + family + node             -> nodeRow
	keyRow       = 'r' // + family + key + node       -> a row of a living capsule (overlay.go)
	keySnapshot  = 'x' // + capsule ID + name         -> snapshotRow
	keyShared    = 'o' // + content ID                -> how many records name the content, if not one
	keyRetention = 'k' // + capsule ID                -> retentionRow
	keyNotes     = 'm' // + capsule ID, or zeros      -> Notes
	keyApplied   = 'j' //                             -> the journal's last record that is part of the metadata
)

// contentID names one content for ever; it is random.
type contentID [16]byte

// extent is a run of a content: a segment, or a hole of any length.
type extent struct {
	len  int64
	hole bool
	id   pipeline.SegmentID
}

// content is an immutable list of extents.
type content struct {
	id      contentID
	size    int64
	domain  [16]byte // the dedup domain of its own, or zero: the store's
	pages   uint64   // extent pages; 0: the extents are in inline
	inline  []extent
	extents int64 // that hold data
}

const (
	inlineExtents = 16  // more go to pages
	pageExtents   = 256 // extents of a full page
)

type capsuleRecord struct {
	kind     capsule.Kind
	name     string
	version  uint64
	created  int64 // Unix nanoseconds
	modified int64
	policy   policyID // zero: the default policy
	content  content  // of an object
	living   living   // of the other kinds
}

// living says where a living capsule's rows are.
type living struct {
	family uint64
	node   uint32 // the one that takes changes
	size   int64  // of a volume
	block  uint64 // logical block size of a volume
}

func (r *capsuleRecord) info(id capsule.ID) capsule.Info {
	return capsule.Info{ID: id, Kind: r.kind, Name: r.name, Size: r.size(), Version: r.version,
		Created: time.Unix(0, r.created).UTC(), Modified: time.Unix(0, r.modified).UTC()}
}

func (r *capsuleRecord) size() int64 {
	if r.kind == capsule.Object {
		return r.content.size
	}
	return r.living.size
}

// familyRow is what the capsules of a family have in common.
type familyRow struct {
	domain [16]byte // the dedup domain of its own, or zero: the store's
	policy policyID // how changes are sealed
}

// noNode is no node's number.
const noNode = 0

// nodeRow is a node of a family's tree: a capsule, a snapshot, or what both
// were once made from.
type nodeRow struct {
	parent uint32 // noNode: none
	owner  ownerKind
}

type ownerKind uint8

const (
	ownerNone     ownerKind = 0
	ownerCapsule  ownerKind = 1
	ownerSnapshot ownerKind = 2
)

// snapshotRow is what a snapshot's name leads to.
type snapshotRow struct {
	created int64
	order   uint64  // among the capsule's snapshots, by when they were taken
	content content // of an object
	living  living  // of the other kinds
}

// policyID is the truncated hash of a policy's canonical text.
type policyID [16]byte

type policyRow struct {
	refs int64
	text string
}

// segmentRow says where a segment's record is.
type segmentRow struct {
	log       uint64
	off       int64
	recordLen int64
	plainLen  int64
	key       uint32
	again     bool // a denser codec is likely to gain
	refs      int64
}

// logRow sums up the live records of a log: those that a segment row names.
type logRow struct {
	live      int64  // their bytes
	again     int64  // bytes of those a denser codec is likely to shrink
	oldestKey uint32 // oldest data key version that any record was sealed under; 0: no record yet
}

// totals are the store's sums, changed in the same batch as what they sum up.
type totals struct {
	capsules int64
	logical  int64
	segments int64
	unique   int64
	stored   int64
	pending  int64
}

// Encodings are versioned by a first byte; numbers are varints.

const recordVersion = 1

type encoder struct{ b []byte }

func (e *encoder) uint(v uint64)  { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)    { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) bytes(p []byte) { e.b = append(e.b, p...) }
func (e *encoder) string(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}
func (e *encoder) bool(v bool) {
	if v {
		e.b = append(e.b, 1)
	} else {
		e.b = append(e.b, 0)
	}
}

// decoder reads what encoder wrote. After the first error every read gives zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	if d.err == nil {
		d.err = capsule.Errorf(capsule.Damaged, "malformed metadata record")
	}
	d.b = nil
}

func (d *decoder) version() {
	if len(d.b) == 0 || d.b[0] != recordVersion {
		d.fail()
		return
	}
	d.b = d.b[1:]
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// size reads a number that cannot be negative.
func (d *decoder) size() int64 {
	v := d.uint()
	if v > math.MaxInt64 {
		d.fail()
		return 0
	}
	return int64(v)
}

func (d *decoder) bool() bool {
	v := d.uint()
	if v > 1 {
		d.fail()
	}
	return v == 1
}

func (d *decoder) bytes(p []byte) {
	if len(d.b) < len(p) {
		d.fail()
		return
	}
	copy(p, d.b)
	d.b = d.b[len(p):]
}

func (d *decoder) string() string {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail()
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

// end returns the error, which trailing bytes are too.
func (d *decoder) end(what string) error {
	if d.err == nil && len(d.b) > 0 {
		d.fail()
	}
	return capsule.Wrap(capsule.Damaged, d.err, "%s", what)
}

func (e *encoder) extents(list []extent) {
	e.uint(uint64(len(list)))
	for i := range list {
		x := &list[i]
		if x.hole {
			e.uint(uint64(x.len)<<1 | 1)
		} else {
			e.uint(uint64(x.len) << 1)
			e.bytes(x.id[:])
		}
	}
}

func (d *decoder) extents(limit uint64) []extent {
	n := d.uint()
	if n > limit {
		d.fail()
		return nil
	}
	list := make([]extent, n)
	for i := range list {
		v := d.uint()
		x := &list[i]
		x.len, x.hole = int64(v>>1), v&1 == 1
		if x.len == 0 || !x.hole && x.len > pipeline.MaxChunk {
			d.fail()
		}
		if !x.hole {
			d.bytes(x.id[:])
		}
		if d.err != nil {
			return nil
		}
	}
	return list
}

func (e *encoder) content(c *content) {
	e.bytes(c.id[:])
	e.uint(uint64(c.size))
	e.bytes(c.domain[:])
	e.uint(c.pages)
	e.uint(uint64(c.extents))
	e.extents(c.inline)
}

func (d *decoder) content(c *content) {
	d.bytes(c.id[:])
	c.size = d.size()
	d.bytes(c.domain[:])
	c.pages = d.uint()
	c.extents = d.size()
	c.inline = d.extents(inlineExtents)
	if c.pages == 0 {
		var sum int64
		for _, x := range c.inline {
			if x.len > math.MaxInt64-sum {
				d.fail()
				return
			}
			sum += x.len
		}
		if sum != c.size {
			d.fail()
		}
	} else if len(c.inline) > 0 {
		d.fail()
	}
}

func (r *capsuleRecord) encode() []byte {
	e := encoder{append(make([]byte, 0, 128), recordVersion, byte(r.kind))}
	e.string(r.name)
	e.uint(r.version)
	e.int(r.created)
	e.int(r.modified)
	e.bytes(r.policy[:])
	e.kindOf(r.kind, &r.content, &r.living)
	return e.b
}

// kindOf writes what depends on a capsule's kind.
func (e *encoder) kindOf(k capsule.Kind, c *content, l *living) {
	if k == capsule.Object {
		e.content(c)
		return
	}
	e.uint(l.family)
	e.uint(uint64(l.node))
	e.uint(uint64(l.size))
	e.uint(l.block)
}

func (d *decoder) kindOf(k capsule.Kind, c *content, l *living) {
	if k == capsule.Object {
		d.content(c)
		return
	}
	l.family = d.uint()
	l.node = d.uint32()
	l.size = d.size()
	l.block = d.uint()
}

func (d *decoder) kind() capsule.Kind {
	v := d.uint()
	if v < uint64(capsule.Object) || v > uint64(capsule.Tree) {
		d.fail()
	}
	return capsule.Kind(v)
}

func (d *decoder) uint32() uint32 {
	v := d.uint()
	if v > math.MaxUint32 {
		d.fail()
	}
	return uint32(v)
}

func (r *snapshotRow) encode(k capsule.Kind) []byte {
	e := encoder{[]byte{recordVersion, byte(k)}}
	e.int(r.created)
	e.uint(r.order)
	e.kindOf(k, &r.content, &r.living)
	return e.b
}

func decodeSnapshot(b []byte) (r snapshotRow, err error) {
	d := decoder{b: b}
	d.version()
	k := d.kind()
	r.created = d.int()
	r.order = d.uint()
	d.kindOf(k, &r.content, &r.living)
	return r, d.end("snapshot row")
}

func (r *familyRow) encode() []byte {
	e := encoder{[]byte{recordVersion}}
	e.bytes(r.domain[:])
	e.bytes(r.policy[:])
	return e.b
}

func decodeFamily(b []byte) (r familyRow, err error) {
	d := decoder{b: b}
	d.version()
	d.bytes(r.domain[:])
	d.bytes(r.policy[:])
	return r, d.end("family row")
}

func (r *nodeRow) encode() []byte {
	e := encoder{[]byte{recordVersion}}
	e.uint(uint64(r.parent))
	e.uint(uint64(r.owner))
	return e.b
}

func decodeNode(b []byte) (r nodeRow, err error) {
	d := decoder{b: b}
	d.version()
	r.parent = d.uint32()
	owner := d.uint()
	if owner > uint64(ownerSnapshot) {
		d.fail()
	}
	r.owner = ownerKind(owner)
	return r, d.end("node row")
}

func decodeCapsule(b []byte) (r capsuleRecord, err error) {
	d := decoder{b: b}
	d.version()
	r.kind = d.kind()
	r.name = d.string()
	r.version = d.uint()
	r.created = d.int()
	r.modified = d.int()
	d.bytes(r.policy[:])
	d.kindOf(r.kind, &r.content, &r.living)
	if d.err == nil && r.name != "" && capsule.CheckName(r.name) != nil {
		d.fail()
	}
	return r, d.end("capsule record")
}

func encodeContent(c *content) []byte {
	e := encoder{[]byte{recordVersion}}
	e.content(c)
	return e.b
}

func decodeContent(b []byte) (c content, err error) {
	d := decoder{b: b}
	d.version()
	d.content(&c)
	return c, d.end("content record")
}

func encodePage(list []extent) []byte {
	e := encoder{append(make([]byte, 0, 16+36*len(list)), recordVersion)}
	e.extents(list)
	return e.b
}

// decodePage reads the page that begins at offset start of its content.
func decodePage(b []byte, start int64) ([]extent, error) {
	d := decoder{b: b}
	d.version()
	list := d.extents(pageExtents)
	for _, x := range list {
		if x.len > math.MaxInt64-start {
			d.fail()
			break
		}
		start += x.len
	}
	return list, d.end("extent page")
}

func (r *segmentRow) encode(b []byte) []byte {
	e := encoder{append(b[:0], recordVersion)}
	e.uint(r.log)
	e.uint(uint64(r.off))
	e.uint(uint64(r.recordLen))
	e.uint(uint64(r.plainLen))
	e.uint(uint64(r.key))
	e.bool(r.again)
	e.uint(uint64(r.refs))
	return e.b
}

func decodeSegment(b []byte) (r segmentRow, err error) {
	d := decoder{b: b}
	d.version()
	r.log = d.uint()
	r.off = d.size()
	r.recordLen = d.size()
	r.plainLen = d.size()
	r.key = d.uint32()
	r.again = d.bool()
	r.refs = d.size()
	if r.recordLen > pipeline.MaxRecord || r.plainLen > pipeline.MaxChunk || r.off > math.MaxInt64-r.recordLen {
		d.fail()
	}
	return r, d.end("segment row")
}

func (r *logRow) encode() []byte {
	e := encoder{[]byte{recordVersion}}
	e.int(r.live)
	e.int(r.again)
	e.uint(uint64(r.oldestKey))
	return e.b
}

func decodeLog(b []byte) (r logRow, err error) {
	d := decoder{b: b}
	d.version()
	r.live = d.int()
	r.again = d.int()
	r.oldestKey = d.uint32()
	return r, d.end("log row")
}

func (r *policyRow) encode() []byte {
	e := encoder{[]byte{recordVersion}}
	e.uint(uint64(r.refs))
	e.string(r.text)
	return e.b
}

func decodePolicy(b []byte) (r policyRow, err error) {
	d := decoder{b: b}
	d.version()
	r.refs = d.size()
	r.text = d.string()
	return r, d.end("policy row")
}

func (t *totals) fields() []*int64 {
	return []*int64{&t.capsules, &t.logical, &t.segments, &t.unique, &t.stored, &t.pending}
}

func (t *totals) encode() []byte {
	e := encoder{[]byte{recordVersion}}
	for _, f := range t.fields() {
		e.int(*f)
	}
	return e.b
}

func decodeTotals(b []byte) (t totals, err error) {
	d := decoder{b: b}
	d.version()
	for _, f := range t.fields() {
		*f = d.int()
	}
	return t, d.end("totals")
}

func key(kind byte, parts ...[]byte) []byte {
	n := 1
	for _, p := range parts {
		n += len(p)
	}
	b := append(make([]byte, 0, n), kind)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func capsuleKey(id capsule.ID) []byte           { return key(keyCapsule, id[:]) }
func nameKey(name string) []byte                { return key(keyName, []byte(name)) }
func unnamedKey(id capsule.ID) []byte           { return key(keyUnnamed, id[:]) }
func segmentKey(id pipeline.SegmentID) []byte   { return key(keySegment, id[:]) }
func zeroKey(id pipeline.SegmentID) []byte      { return key(keyZero, id[:]) }
func contentKey(kind byte, id contentID) []byte { return key(kind, id[:]) }
func policyKey(id policyID) []byte              { return key(keyPolicy, id[:]) }
func logKey(log uint64) []byte                  { return binary.BigEndian.AppendUint64([]byte{keyLog}, log) }
func familyKey(f uint64) []byte                 { return binary.BigEndian.AppendUint64([]byte{keyFamily}, f) }
func nodeKey(f uint64, node uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64([]byte{keyNode}, f), node)
}
func retentionKey(id capsule.ID) []byte             { return key(keyRetention, id[:]) }
func notesKey(id capsule.ID) []byte                 { return key(keyNotes, id[:]) }
func snapshotKey(id capsule.ID, name string) []byte { return key(keySnapshot, id[:], []byte(name)) }
func pageKey(id contentID, start int64) []byte {
	return binary.BigEndian.AppendUint64(key(keyPage, id[:]), uint64(start))
}

// prefixEnd returns the first key after all keys that begin with p.
func prefixEnd(p []byte) []byte {
	end := append([]byte(nil), p...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] != 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}
