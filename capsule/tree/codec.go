package tree

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/spacestore/space/capsule"
)

// Rows are versioned by a first byte; numbers are varints.

const rowVersion = 1

type encoder struct{ b []byte }

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) string(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}
func (e *encoder) time(t time.Time) {
	e.int(t.Unix())
	e.uint(uint64(t.Nanosecond()))
}

// decoder reads what encoder wrote. After the first error every read gives zero.
type decoder struct {
	b      []byte
	failed bool
}

// decode begins with a row of our version.
func decode(b []byte) decoder {
	if len(b) == 0 || b[0] != rowVersion {
		return decoder{failed: true}
	}
	return decoder{b: b[1:]}
}

func (d *decoder) fail() { d.b, d.failed = nil, true }

func (d *decoder) uint(limit uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 { return uint32(d.uint(math.MaxUint32)) }

// size reads a number that cannot be negative.
func (d *decoder) size() int64 { return int64(d.uint(math.MaxInt64)) }

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) string(limit uint64) string {
	n := d.uint(limit)
	if n > uint64(len(d.b)) {
		d.fail()
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) time() time.Time {
	sec := d.int()
	return time.Unix(sec, int64(d.uint(999_999_999)))
}

// end returns the error, which trailing bytes are too.
func (d *decoder) end(what string) error {
	if d.failed || len(d.b) > 0 {
		return capsule.Errorf(capsule.Damaged, "tree: a malformed %s", what)
	}
	return nil
}
