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
	logs, err := s.logs.Logs()
	if err != nil {
		return u, err
	}
	var size int64
	for _, log := range logs {
		n, err := s.logs.Size(log)
		if err != nil {
			continue // removed meanwhile
		}
		size += n
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

// Stat tells what a capsule costs. It looks at every extent.
func (s *Store) Stat(ctx context.Context, id capsule.ID) (capsule.Stat, error) {
	if err := s.enter(); err != nil {
		return capsule.Stat{}, err
	}
	defer s.leave()
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
		passes := rec.content.extents/segmentsPerPass + 1
		for i := range passes {
			uses := map[pipeline.SegmentID]int64{}
			err := pages(ctx, r, &rec.content, func(_ int64, list []extent) error {
				for _, x := range list {
					if x.hole {
						if i == 0 {
							st.HoleBytes += x.len
						}
					} else if inPass(x.id, i, passes) {
						uses[x.id]++
						st.Segments++
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			for seg, n := range uses {
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
				if row.refs == n {
					st.OwnBytes += row.recordLen
				}
			}
		}
		st.Ratio = ratio(st.Size, st.StoredBytes)
		return nil
	})
	return st, err
}
