package wire

import (
	"fmt"
	"strings"
)

// fields goes through the fields of a structure at their offsets, in one of two
// directions: into the bytes, or out of them. Each structure lists its fields
// once, in a method that takes a fields.
type fields struct {
	b   []byte
	put bool
}

func (f fields) u8(off int, v *uint8) {
	if f.put {
		f.b[off] = *v
	} else {
		*v = f.b[off]
	}
}

func (f fields) u16(off int, v *uint16) {
	if f.put {
		le.PutUint16(f.b[off:], *v)
	} else {
		*v = le.Uint16(f.b[off:])
	}
}

func (f fields) u32(off int, v *uint32) {
	if f.put {
		le.PutUint32(f.b[off:], *v)
	} else {
		*v = le.Uint32(f.b[off:])
	}
}

func (f fields) u64(off int, v *uint64) {
	if f.put {
		le.PutUint64(f.b[off:], *v)
	} else {
		*v = le.Uint64(f.b[off:])
	}
}

// u128 is a 128-bit number of which we use the lower half.
func (f fields) u128(off int, v *uint64) { f.u64(off, v) }

func (f fields) bytes(off int, v []byte) {
	if f.put {
		copy(f.b[off:], v)
	} else {
		copy(v, f.b[off:])
	}
}

// ascii is text padded with spaces.
func (f fields) ascii(off, n int, v *string) {
	if !f.put {
		*v = strings.TrimRight(string(f.b[off:off+n]), " \x00")
		return
	}
	for i := copy(f.b[off:off+n], *v); i < n; i++ {
		f.b[off+i] = ' '
	}
}

// utf8 is text that a zero byte ends.
func (f fields) utf8(off, n int, v *string) {
	if f.put {
		copy(f.b[off:off+n-1], *v)
		return
	}
	*v, _, _ = strings.Cut(string(f.b[off:off+n]), "\x00")
}

// structure is one that lists its fields.
type structure interface {
	fields(fields)
	size() int
}

func appendStructure(b []byte, s structure) []byte {
	n := len(b)
	b = append(b, make([]byte, s.size())...)
	s.fields(fields{b[n:], true})
	return b
}

func parseStructure(b []byte, s structure) error {
	if len(b) < s.size() {
		return fmt.Errorf("%d bytes are too few for a structure of %d", len(b), s.size())
	}
	s.fields(fields{b, false})
	return nil
}
