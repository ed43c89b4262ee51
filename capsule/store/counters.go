package store

import (
	"sync"
	"sync/atomic"
)

// Counters is how a store is doing, as far as that is known without looking:
// asking costs next to nothing, however large the store is.
type Counters struct {
	// As in capsule.Usage, but without waiting for what was just removed.
	Capsules, Segments                                              int64
	LogicalBytes, UniqueBytes, StoredBytes, PendingBytes, MetaBytes int64

	FreeBytes      int64  // what the disk has left for content
	CacheBytes     int64  // decoded segments in memory
	ChangeBytes    int64  // changes of volumes and trees in memory that are not in segments yet
	JournalRecords uint64 // changes that the journal has taken, since the store was made

	// Since the store was opened:
	Damaged int64    // reads that a damaged segment has failed
	GCRuns  int64    // garbage collections
	GC      GCReport // what they did, all together

	Failed error // why the store takes no more changes; nil: it does
}

// tally is what Counters counts by events.
type tally struct {
	damaged atomic.Int64
	mu      sync.Mutex
	gcRuns  int64
	gc      GCReport
}

// collected adds what a garbage collection did.
func (c *tally) collected(r *GCReport) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gcRuns++
	c.gc.LogsRemoved += r.LogsRemoved
	c.gc.LogsMoved += r.LogsMoved
	c.gc.FreedBytes += r.FreedBytes
	c.gc.MovedBytes += r.MovedBytes
	c.gc.Recompressed += r.Recompressed
	c.gc.Resealed += r.Resealed
	c.gc.Unmovable += r.Unmovable
}

// Counters tells how the store is doing.
func (s *Store) Counters() (Counters, error) {
	if err := s.enter(); err != nil {
		return Counters{}, err
	}
	defer s.leave()
	s.totalsMu.Lock()
	t := s.shown
	s.totalsMu.Unlock()
	c := Counters{Capsules: t.capsules, Segments: t.segments, LogicalBytes: t.logical, UniqueBytes: t.unique,
		StoredBytes: t.stored, PendingBytes: t.pending, MetaBytes: s.kv.diskBytes(), FreeBytes: s.FreeBytes(),
		CacheBytes: s.cache.bytes(), ChangeBytes: s.overlay.memory(), JournalRecords: s.journal.Last(),
		Damaged: s.tally.damaged.Load(), Failed: s.writable()}
	s.tally.mu.Lock()
	defer s.tally.mu.Unlock()
	c.GCRuns, c.GC = s.tally.gcRuns, s.tally.gc
	return c, nil
}
