package store

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// contentPins counts the readers of each content; one that is read is not
// released though no capsule refers to it any more.
type contentPins struct {
	sync.Mutex
	n map[contentID]int
}

func (p *contentPins) add(id contentID, n int) (left int) {
	if p.n == nil {
		p.n = map[contentID]int{}
	}
	p.n[id] += n
	if left = p.n[id]; left == 0 {
		delete(p.n, id)
	}
	return left
}

func (p *contentPins) pinned(id contentID) bool {
	p.Lock()
	defer p.Unlock()
	return p.n[id] > 0
}

func (s *Store) wakeReaper() {
	select {
	case s.reapWake <- struct{}{}:
	default: // it will look anyway
	}
}

// passes counts the reaper's passes over all garbage.
type passes struct {
	sync.Mutex
	sync.Cond
	begun, done int64
}

// reaper releases what garbage contents refer to, in small commits that let
// others in between. None is synced: a crash brings the garbage back, whole
// pages at a time, and the next reaper goes on.
func (s *Store) reaper() {
	for {
		s.passes.Lock()
		s.passes.begun++
		s.passes.Unlock()
		err := s.reapAll(s.quit)
		s.passes.Lock()
		s.passes.done = s.passes.begun
		s.passes.Unlock()
		s.passes.Broadcast()
		var again <-chan time.Time
		if err != nil && s.quit.Err() == nil && s.writable() == nil {
			s.log.Error("releasing removed content failed; trying again in a minute", "error", err)
			again = s.clock.After(time.Minute)
		}
		select {
		case <-s.reapWake:
		case <-again:
		case <-s.quit.Done():
			s.passes.Broadcast()
			return
		}
	}
}

// settle waits until the reaper has released all that was removed before the
// call and that no reader holds.
func (s *Store) settle(ctx context.Context) error {
	s.pruner.settle()
	if s.writable() == nil {
		if err := s.checkpointAll(); err != nil { // on a full disk: the journal keeps them
			s.log.Warn("changes stay in the journal for now", "error", err)
		}
	}
	return s.awaitReaper(ctx)
}

// awaitReaper waits until the reaper has gone once over all garbage from now on.
func (s *Store) awaitReaper(ctx context.Context) error {
	p := &s.passes
	wake := func() {
		p.Lock()
		defer p.Unlock()
		p.Broadcast()
	}
	defer context.AfterFunc(ctx, wake)()
	defer context.AfterFunc(s.quit, wake)()
	p.Lock()
	defer p.Unlock()
	want := p.begun + 1 // the pass under way may have looked too early
	s.wakeReaper()
	for p.done < want && ctx.Err() == nil && s.quit.Err() == nil {
		p.Wait()
	}
	if s.quit.Err() != nil {
		return capsule.Errorf(capsule.Unavailable, "the store is closing")
	}
	return ctx.Err()
}

// reapBatch bounds what the reaper holds in memory.
const reapBatch = 1000

// reapAll goes once over all garbage. What fails does not keep it from the rest.
func (s *Store) reapAll(ctx context.Context) error {
	var failed []error
	for lo := []byte{keyGarbage}; lo != nil; {
		var garbage []content
		var next []byte
		err := s.kv.scan(lo, []byte{keyGarbage + 1}, func(k, v []byte) (bool, error) {
			if len(garbage) == reapBatch {
				next = append(next, k...)
				return false, nil
			}
			c, err := decodeContent(v)
			if err != nil {
				failed = append(failed, err)
			} else if !s.readers.pinned(c.id) {
				garbage = append(garbage, c)
			}
			return len(failed) < reapBatch, nil
		})
		if err != nil {
			return err
		}
		for _, c := range garbage {
			if err := s.reap(ctx, &c); err != nil {
				failed = append(failed, capsule.Wrap(ioKind(err), err, "content %x", c.id))
			}
			if ctx.Err() != nil || s.writable() != nil || len(failed) >= reapBatch {
				return errors.Join(failed...)
			}
		}
		lo = next
	}
	if err := s.reapZeros(); err != nil {
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// reap releases one content.
func (s *Store) reap(ctx context.Context, c *content) error {
	lo := contentKey(keyPage, c.id)
	for c.pages > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		var page []byte // key of the first page left
		err := s.commit(lazy, func(t *tx) error {
			var list []extent
			err := t.b.scan(lo, prefixEnd(lo), func(k, v []byte) (_ bool, err error) {
				page = append(page, k...)
				list, err = decodePage(v, int64(binary.BigEndian.Uint64(k[len(lo):])))
				return false, err
			})
			if err != nil || page == nil {
				return err
			}
			if err := t.dropRefs(list); err != nil {
				return err
			}
			return t.b.delete(page)
		})
		if err != nil {
			return err
		}
		if page == nil {
			break
		}
	}
	return s.commit(lazy, func(t *tx) error {
		if err := t.dropRefs(c.inline); err != nil {
			return err
		}
		t.totals.pending -= c.size
		return t.b.delete(contentKey(keyGarbage, c.id))
	})
}

// reapZeros deletes the rows of segments whose last reference went while a put
// had them pinned, once no put has.
func (s *Store) reapZeros() error {
	for lo := []byte{keyZero}; lo != nil; {
		var ids []pipeline.SegmentID
		var next []byte
		err := s.kv.scan(lo, []byte{keyZero + 1}, func(k, _ []byte) (bool, error) {
			if len(ids) == reapBatch {
				next = append(next, k...)
				return false, nil
			}
			var id pipeline.SegmentID
			if copy(id[:], k[1:]) != len(id) {
				return false, capsule.Errorf(capsule.Damaged, "malformed metadata key %x", k)
			}
			ids = append(ids, id)
			return true, nil
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		err = s.commit(lazy, func(t *tx) error {
			for _, id := range ids {
				row, ok, err := t.segment(id)
				if err != nil {
					return err
				}
				if !ok || row.refs > 0 {
					err = t.b.delete(zeroKey(id))
				} else {
					err = t.dropSegment(id, row)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		lo = next
	}
	return nil
}
