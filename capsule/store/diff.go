package store

import (
	"bytes"
	"context"
	"crypto/sha256"

	"github.com/spacestore/space/capsule"
)

// Range is a run of a capsule's bytes.
type Range struct {
	Off int64 `json:"offset"`
	Len int64 `json:"length"`
}

// Diff calls fn with the ranges in which a capsule may differ between two of
// its snapshots, in order; everything else is the same in both. A snapshot ""
// is the capsule as it is now. Only metadata is read, so bytes that were
// written again as they were can count as changed. An object that changed has
// one range, all of it.
func (s *Store) Diff(ctx context.Context, id capsule.ID, from, to string, fn func(Range) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	rec, err := getCapsule(s.kv, id)
	if err != nil {
		return err
	}
	if rec.kind == capsule.Object {
		return s.diffObject(ctx, id, from, to, fn)
	}
	a, err := s.OpenVolume(ctx, id, from, ReadVolume)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := s.OpenVolume(ctx, id, to, ReadVolume)
	if err != nil {
		return err
	}
	defer b.Close()
	return diffVolumes(ctx, a, b, fn)
}

// diffObject compares lists of extents by their hashes.
func (s *Store) diffObject(ctx context.Context, id capsule.ID, from, to string, fn func(Range) error) error {
	var size [2]int64
	var sum [2][sha256.Size]byte
	err := s.kv.snapshot(func(r kvReader) error {
		for i, name := range []string{from, to} {
			rec, err := getCapsule(r, id)
			if err == nil && name != "" {
				var snap snapshotRow
				snap, err = getSnapshot(r, id, name)
				rec.content = snap.content
			}
			if err != nil {
				return err
			}
			h := sha256.New()
			var e encoder
			err = pages(ctx, r, &rec.content, func(_ int64, list []extent) error {
				for j := range list {
					e.b = e.b[:0]
					e.extents(list[j : j+1])
					h.Write(e.b)
				}
				return nil
			})
			if err != nil {
				return err
			}
			size[i] = rec.content.size
			h.Sum(sum[i][:0])
		}
		return nil
	})
	if err != nil || sum[0] == sum[1] {
		return err
	}
	return fn(Range{0, max(size[0], size[1])})
}

// diffBatch bounds the blocks that are compared under the overlay's lock.
const diffBatch = 1024

func diffVolumes(ctx context.Context, a, b *Volume, fn func(Range) error) error {
	family := a.line.family.id
	lo, hi := blockPrefix(family, volumeFile, 0), prefixEnd(blockPrefix(family, volumeFile, MaxVolume/BlockSize))
	var found []Range // the last one may go on
	for lo != nil {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		var err error
		if lo, err = diffBlocks(a, b, lo, hi, &found); err != nil {
			return err
		}
		keep := 1
		if lo == nil {
			keep = 0
		}
		for ; len(found) > keep; found = found[1:] {
			if err := fn(found[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

// diffBlocks compares a batch of blocks from lo on, adds to found, and returns
// where to go on, nil at the end.
func diffBlocks(a, b *Volume, lo, hi []byte, found *[]Range) (next []byte, err error) {
	type side struct {
		view  *view
		block *liveBlock
		node  uint32 // that the block is from; noNode: none is known yet
	}
	sides := [2]side{{view: a.line.view.Load()}, {view: b.line.view.Load()}}
	logical, blocks := "", 0
	compare := func() error {
		if sides[0].node == sides[1].node {
			return nil
		}
		_, index, ok := blockOf(logical)
		if !ok {
			return capsule.Errorf(capsule.Damaged, "capsule %s: malformed block key", a.line.capsule)
		}
		sides[0].block.diff(sides[1].block, func(from, to uint32) {
			off, n := index*BlockSize+int64(from), int64(to-from)
			if last := len(*found) - 1; last >= 0 && (*found)[last].Off+(*found)[last].Len == off {
				(*found)[last].Len += n
			} else {
				*found = append(*found, Range{off, n})
			}
		})
		return nil
	}
	err = a.s.scanRows(lo, hi, nil, func(r *row) (bool, error) {
		_, l, node, err := splitRow(r.key)
		if err != nil {
			return false, err
		}
		if l != logical {
			if err := compare(); err != nil {
				return false, err
			}
			if blocks++; blocks > diffBatch {
				next = []byte(r.key)
				return false, nil
			}
			logical = l
			for i := range sides {
				sides[i].block, sides[i].node = nil, noNode
			}
		}
		for i := range sides {
			if x := &sides[i]; x.node == noNode && x.view.sees(node) {
				x.node, x.block = node, r.block
			}
		}
		return true, nil
	})
	if err == nil && next == nil {
		err = compare()
	}
	return next, err
}

// diff calls fn with the ranges in which b may differ from other.
func (b *liveBlock) diff(other *liveBlock, fn func(from, to uint32)) {
	x, y := b.all(), other.all()
	for at := uint32(0); at < BlockSize; {
		var p, q *piece // what is at at; nil: a hole
		end := uint32(BlockSize)
		for _, side := range []struct {
			rest *[]piece
			p    **piece
		}{{&x, &p}, {&y, &q}} {
			for len(*side.rest) > 0 && (*side.rest)[0].end() <= at {
				*side.rest = (*side.rest)[1:]
			}
			if len(*side.rest) == 0 {
				continue
			}
			if first := &(*side.rest)[0]; first.off > at {
				end = min(end, first.off)
			} else {
				*side.p = first
				end = min(end, first.end())
			}
		}
		if !samePiece(p, q, at, end) {
			fn(at, end)
		}
		at = end
	}
}

func (b *liveBlock) all() []piece {
	if b == nil {
		return nil
	}
	return b.pieces
}

// samePiece reports whether two pieces are known to have the same bytes in
// [from, to), which lies in both.
func samePiece(p, q *piece, from, to uint32) bool {
	switch {
	case p == nil || q == nil:
		return p == q
	case p.mem != nil && q.mem != nil:
		return bytes.Equal(p.mem[from-p.off:to-p.off], q.mem[from-q.off:to-q.off])
	case p.mem != nil || q.mem != nil:
		return false
	}
	return p.id == q.id && p.segOff-p.off == q.segOff-q.off
}
