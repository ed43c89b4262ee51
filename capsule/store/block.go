package store

import (
	"math"
	"slices"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// BlockSize is the size of the aligned blocks that the content of living
// capsules is kept in, in bytes: the unit of extent rows and of sharing.
const BlockSize = 64 << 10

const (
	// maxPieces is how many pieces of segments a block may have on disk; one
	// with more is sealed again as a whole. It bounds what a read costs and
	// how many dead bytes segments keep alive.
	maxPieces = 8
	// maxMemPieces is the same for a block in memory, where sealing is near.
	maxMemPieces = 32
)

// liveBlock is the content of one aligned block: pieces in order that do not
// overlap, with holes of zeros between them. A block is never changed; a
// write makes a new one.
type liveBlock struct{ pieces []piece }

// piece is a run of a block: a part of a segment, or bytes not sealed yet.
type piece struct {
	off, n uint32 // in the block
	mem    []byte // n bytes, or nil: in the segment

	id     pipeline.SegmentID
	segOff uint32 // of the piece's first byte in the segment
	segLen uint32 // of the segment's plaintext
}

func (p *piece) end() uint32 { return p.off + p.n }

// cut returns the part of p in [from, to), which must not be empty.
func (p piece) cut(from, to uint32) piece {
	from, to = max(from, p.off), min(to, p.end())
	if p.mem != nil {
		p.mem = p.mem[from-p.off : to-p.off : to-p.off]
	} else {
		p.segOff += from - p.off
	}
	p.off, p.n = from, to-from
	return p
}

// allocated returns how many bytes are no hole.
func (b *liveBlock) allocated() (n int64) {
	if b != nil {
		for i := range b.pieces {
			n += int64(b.pieces[i].n)
		}
	}
	return n
}

// replace returns b with what it has in [from, to) replaced by pieces.
func (b *liveBlock) replace(from, to uint32, with ...piece) *liveBlock {
	out := &liveBlock{pieces: make([]piece, 0, len(with)+2)}
	var old []piece
	if b != nil {
		old = b.pieces
		out.pieces = make([]piece, 0, len(old)+len(with)+1)
	}
	i := 0
	for ; i < len(old) && old[i].off < from; i++ {
		out.pieces = append(out.pieces, old[i].cut(0, from))
	}
	out.pieces = append(out.pieces, with...)
	if i > 0 && old[i-1].end() > to { // reaches over the whole range
		out.pieces = append(out.pieces, old[i-1].cut(to, BlockSize))
	}
	for ; i < len(old); i++ {
		if old[i].end() > to {
			out.pieces = append(out.pieces, old[i].cut(to, BlockSize))
		}
	}
	return out
}

// write returns b with p at off. A run that p goes on from grows in place:
// whoever reads the old block does not look beyond its length.
func (b *liveBlock) write(off uint32, p []byte) *liveBlock {
	end := off + uint32(len(p))
	if b != nil {
		for i := range b.pieces {
			if q := &b.pieces[i]; q.mem != nil && q.end() == off {
				mem := append(q.grown(len(p)), p...)
				return b.replace(q.off, end, piece{off: q.off, n: uint32(len(mem)), mem: mem})
			}
		}
	}
	return b.replace(off, end, piece{off: off, n: uint32(len(p)), mem: slices.Clone(p)})
}

// grown returns the memory of a piece with room for n more bytes: it doubles,
// up to what the block can hold, so that a file that is written bit by bit is
// not copied often.
func (p *piece) grown(n int) []byte {
	if cap(p.mem)-len(p.mem) >= n {
		return p.mem
	}
	return append(make([]byte, 0, min(max(2*cap(p.mem), len(p.mem)+n), BlockSize-int(p.off))), p.mem...)
}

// shared returns b so that neither it nor what it was made from can grow into
// the memory of the other.
func (b *liveBlock) shared() *liveBlock {
	if b == nil {
		return nil
	}
	out := &liveBlock{pieces: slices.Clone(b.pieces)}
	for i := range out.pieces {
		out.pieces[i].mem = slices.Clip(out.pieces[i].mem)
	}
	return out
}

// slice returns the pieces of [from, to), moved by delta.
func (b *liveBlock) slice(from, to uint32, delta int64) (out []piece) {
	if b == nil {
		return nil
	}
	for _, p := range b.pieces {
		if p.end() > from && p.off < to {
			p = p.cut(from, to)
			p.off = uint32(int64(p.off) + delta)
			out = append(out, p)
		}
	}
	return out
}

func (b *liveBlock) dirty() bool {
	return slices.ContainsFunc(b.pieces, func(p piece) bool { return p.mem != nil })
}

// Encodings of pieces: off, n<<1|inline, then n bytes, or the segment.

func (e *encoder) block(b *liveBlock) {
	e.uint(uint64(len(b.pieces)))
	for i := range b.pieces {
		p := &b.pieces[i]
		e.uint(uint64(p.off))
		if p.mem != nil {
			e.uint(uint64(p.n)<<1 | 1)
			e.bytes(p.mem)
			continue
		}
		e.uint(uint64(p.n) << 1)
		e.bytes(p.id[:])
		e.uint(uint64(p.segOff))
		e.uint(uint64(p.segLen))
	}
}

func (d *decoder) block() *liveBlock {
	n := d.uint()
	if n > uint64(len(d.b)/3) { // each takes at least three bytes
		d.fail()
		return nil
	}
	b := &liveBlock{pieces: make([]piece, n)}
	at := uint64(0)
	for i := range b.pieces {
		p := &b.pieces[i]
		off, v := d.uint(), d.uint()
		length := v >> 1
		if off < at || off > BlockSize || length == 0 || length > BlockSize-off {
			d.fail()
			return nil
		}
		at = off + length
		p.off, p.n = uint32(off), uint32(length)
		if v&1 == 1 {
			p.mem = make([]byte, length)
			d.bytes(p.mem)
		} else {
			d.bytes(p.id[:])
			segOff, segLen := d.uint(), d.uint()
			if segLen > pipeline.MaxChunk || segOff > segLen || length > segLen-segOff {
				d.fail()
				return nil
			}
			p.segOff, p.segLen = uint32(segOff), uint32(segLen)
		}
		if d.err != nil {
			return nil
		}
	}
	return b
}

// readBlock fills p with a block's bytes from off on.
func (s *Store) readBlock(b *liveBlock, off uint32, p []byte) error {
	at := off
	for i := range b.pieces {
		q := &b.pieces[i]
		if q.end() <= at {
			continue
		}
		if q.off >= off+uint32(len(p)) {
			break
		}
		if q.off > at {
			clear(p[at-off : q.off-off])
			at = q.off
		}
		n := min(q.end(), off+uint32(len(p))) - at
		dst := p[at-off : at-off+n]
		if q.mem != nil {
			copy(dst, q.mem[at-q.off:])
		} else {
			x := extent{len: int64(q.segLen), id: q.id}
			if err := s.readSegment(x, int64(q.segOff+at-q.off), dst); err != nil {
				return &pieceError{q.off, q.n, q.id, err}
			}
		}
		at += n
	}
	if at < off+uint32(len(p)) {
		clear(p[at-off:])
	}
	return nil
}

// flatten returns a block with the content of b and one piece for each run
// between holes. What cannot be read stays as it is, a piece of its own: it
// must neither be lost nor keep the rest from going on.
func (s *Store) flatten(b *liveBlock) *liveBlock {
	out := &liveBlock{}
	joins := false // whether the last piece of out may grow
	for _, p := range b.pieces {
		mem := make([]byte, p.n)
		if err := s.readBlock(&liveBlock{pieces: []piece{p}}, p.off, mem); err != nil {
			out.pieces = append(out.pieces, p)
			joins = false
			continue
		}
		if n := len(out.pieces); joins && out.pieces[n-1].end() == p.off {
			last := &out.pieces[n-1]
			last.mem = append(last.mem, mem...)
			last.n += p.n
			continue
		}
		p = piece{off: p.off, n: p.n, mem: mem}
		out.pieces = append(out.pieces, p)
		joins = true
	}
	return out
}

// pieceError says which piece of a block cannot be read.
type pieceError struct {
	off, n uint32
	id     pipeline.SegmentID
	err    error
}

func (e *pieceError) Error() string { return e.err.Error() }
func (e *pieceError) Unwrap() error { return e.err }

// blockRange returns the part of [off, end) in the block with the given index,
// relative to the block.
func blockRange(index, off, end int64) (from, to uint32) {
	start := index * BlockSize
	return uint32(max(off-start, 0)), uint32(min(end-start, BlockSize))
}

// checkRange fails for a range that no content can have.
func checkRange(off, n int64) error {
	if off < 0 || n < 0 || n > math.MaxInt64-off-BlockSize {
		return capsule.Errorf(capsule.Invalid, "no content has %d bytes at offset %d", n, off)
	}
	return nil
}
