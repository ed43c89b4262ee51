package store

import (
	"context"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// Usage sums up the whole store, exactly: what was removed before the call is
// no longer counted, unless a reader still holds it (PendingBytes).
func (s *Store) Usage(ctx context.Context) (capsule.Usage, error) {
	if err := s.enter(); err != nil {
		return capsule.Usage{}, err
	}
	defer s.leave()
	if err := s.settle(ctx); err != nil {
		return capsule.Usage{}, err
	}
	s.totalsMu.Lock()
	t := s.shown
	s.totalsMu.Unlock()
	u := capsule.Usage{
		Capsules: t.capsules, Segments: t.segments, LogicalBytes: t.logical,
		UniqueBytes: t.unique, StoredBytes: t.stored, PendingBytes: t.pending,
		MetaBytes: s.kv.diskBytes(),
	}
	size, err := s.logBytesTotal()
	if err != nil {
		return u, err
	}
	u.DeadBytes = max(size-u.StoredBytes, 0)
	u.DiskBytes = size + u.MetaBytes
	if d, err := s.fs.GetDiskUsage(s.dir); err == nil {
		u.FreeBytes = int64(d.AvailBytes)
	}
	u.Ratio = ratio(u.LogicalBytes, u.StoredBytes)
	u.DedupRatio = ratio(u.LogicalBytes, u.UniqueBytes)
	return u, nil
}

// logBytesTotal is how long all segment logs are together.
func (s *Store) logBytesTotal() (size int64, err error) {
	logs, err := s.logs.Logs()
	for _, log := range logs {
		n, err := s.logs.Size(log)
		if err != nil {
			continue // removed meanwhile
		}
		size += n
	}
	return size, err
}

// FreeBytes is what the disk has left for content, before compression.
func (s *Store) FreeBytes() int64 {
	u, err := s.fs.GetDiskUsage(s.dir)
	if err != nil {
		return 0
	}
	return int64(u.AvailBytes - min(u.AvailBytes, s.reserve(u.TotalBytes)))
}

func ratio(a, b int64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// segmentsPerPass bounds the memory of walks that must remember each distinct
// segment: larger contents are walked several times, each time looking only at
// a part of all segment IDs.
const segmentsPerPass = 1 << 19

// inPass reports whether an ID belongs to pass i of n. IDs are uniformly
// distributed, so each pass sees about as many.
func inPass(id pipeline.SegmentID, i, n int64) bool {
	return (int64(id[0])<<16|int64(id[1])<<8|int64(id[2]))%n == i
}

// Stat tells what a capsule costs. It looks at all its metadata, and first has
// what a volume or tree keeps in memory sealed, so that it counts.
func (s *Store) Stat(ctx context.Context, id capsule.ID) (capsule.Stat, error) {
	if err := s.enter(); err != nil {
		return capsule.Stat{}, err
	}
	defer s.leave()
	if rec, err := getCapsule(s.kv, id); err != nil {
		return capsule.Stat{}, err
	} else if rec.kind != capsule.Object {
		if err := s.checkpoint(); err != nil {
			return capsule.Stat{}, err
		}
	}
	var st capsule.Stat
	err := s.kv.snapshot(func(r kvReader) error {
		rec, err := getCapsule(r, id)
		if err != nil {
			return err
		}
		st.Info = rec.info(id)
		if st.Policy, err = s.policy(r, rec.policy); err != nil {
			return err
		}
		st.NotEnforced = st.Policy.NotEnforced()
		walk := s.livingUses
		if rec.kind == capsule.Object {
			walk = s.objectUses
		}
		if err := countUses(ctx, r, id, &rec, &st, walk); err != nil {
			return err
		}
		st.Ratio = ratio(st.AllocatedBytes, st.StoredBytes)
		if rec.kind != capsule.Tree {
			st.HoleBytes = st.Size - st.AllocatedBytes
		}
		if rec.kind == capsule.Object {
			st.Ratio = ratio(st.Size, st.StoredBytes)
		}
		return nil
	})
	return st, err
}

// use is a reference to a segment by a capsule or a snapshot of it.
type use struct {
	id    pipeline.SegmentID
	n     int64
	shown bool // the capsule itself has these n bytes, as it is now
	own   bool // no other capsule has this reference
}

// usesWalk calls fn with the uses of a capsule and its snapshots.
type usesWalk func(ctx context.Context, r kvReader, id capsule.ID, rec *capsuleRecord, fn func(use)) error

// countUses sums up what a capsule refers to.
func countUses(ctx context.Context, r kvReader, id capsule.ID, rec *capsuleRecord, st *capsule.Stat, walk usesWalk) error {
	var all int64
	err := walk(ctx, r, id, rec, func(u use) {
		all++
		if u.shown {
			st.Segments++
			st.AllocatedBytes += u.n
		}
	})
	if err != nil {
		return err
	}
	passes := all/segmentsPerPass + 1
	for i := range passes {
		type count struct {
			own   int64
			shown bool
		}
		uses := map[pipeline.SegmentID]count{}
		err := walk(ctx, r, id, rec, func(u use) {
			if !inPass(u.id, i, passes) {
				return
			}
			c := uses[u.id]
			c.shown = c.shown || u.shown
			if u.own {
				c.own++
			}
			uses[u.id] = c
		})
		if err != nil {
			return err
		}
		for seg, c := range uses {
			if !c.shown {
				continue
			}
			b, err := r.get(segmentKey(seg))
			if err != nil {
				return err
			}
			row, err := decodeSegment(b)
			if err != nil {
				return err
			}
			st.UniqueBytes += row.plainLen
			st.StoredBytes += row.recordLen
			if row.refs == c.own {
				st.OwnBytes += row.recordLen
			}
		}
	}
	return nil
}

// objectUses is the walk over an object's contents. A content that several
// records name has its references once.
func (s *Store) objectUses(ctx context.Context, r kvReader, id capsule.ID, rec *capsuleRecord, fn func(use)) error {
	contents := map[contentID]*content{rec.content.id: &rec.content}
	named := map[contentID]uint64{rec.content.id: 1}
	err := eachSnapshot(r, id, func(_ string, snap *snapshotRow) error {
		contents[snap.content.id] = &snap.content
		named[snap.content.id]++
		return nil
	})
	if err != nil {
		return err
	}
	for cid, c := range contents {
		all, err := shares(r, c)
		if err != nil {
			return err
		}
		err = pages(ctx, r, c, func(_ int64, list []extent) error {
			for _, x := range list {
				if !x.hole {
					fn(use{id: x.id, n: x.len, shown: cid == rec.content.id, own: named[cid] == all})
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// livingUses is the walk over the blocks of a volume or tree. Versions at nodes
// that lead to other capsules too are not its own.
func (s *Store) livingUses(ctx context.Context, r kvReader, id capsule.ID, rec *capsuleRecord, fn func(use)) error {
	family := rec.living.family
	nodes, err := readNodes(r, family)
	if err != nil {
		return err
	}
	mine := map[uint32]bool{rec.living.node: true}
	err = eachSnapshot(r, id, func(_ string, snap *snapshotRow) error {
		mine[snap.living.node] = true
		return nil
	})
	if err != nil {
		return err
	}
	shared := map[uint32]bool{}
	for n, row := range nodes {
		if row.owner == ownerNone || mine[n] {
			continue
		}
		for ; n != noNode && !shared[n]; n = nodes[n].parent {
			shared[n] = true
		}
	}
	v, seen := nodes.view(family, rec.living.node), ""
	lo := append(rowPrefix(family), rowSpaceBlock)
	return r.scan(lo, prefixEnd(lo), func(k, b []byte) (bool, error) {
		_, logical, node, err := splitRow(string(k))
		if err != nil {
			return false, err
		}
		x, err := decodeRow(string(k), b)
		if err != nil {
			return false, err
		}
		shown := logical != seen && v.sees(node)
		if shown {
			seen = logical
		}
		if x.state == rowBlock && (shown || !shared[node]) {
			for i := range x.block.pieces {
				p := &x.block.pieces[i]
				fn(use{id: p.id, n: int64(p.n), shown: shown, own: !shared[node]})
			}
		}
		return true, ctx.Err()
	})
}
