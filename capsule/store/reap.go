package store

import (
	"context"
	"encoding/binary"
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
	s.reaped.L.Lock()
	s.reapIdle = false
	s.reaped.L.Unlock()
	select {
	case s.reapWake <- struct{}{}:
	default:
	}
}

// reaper releases what garbage contents refer to, in small commits that let
// others in between. None is synced: a crash brings the garbage back, whole
// pages at a time, and the next reaper goes on.
func (s *Store) reaper() {
	for {
		err := s.reapAll(s.quit)
		if s.quit.Err() != nil || s.writable() != nil {
			err = nil
		}
		if err != nil {
			s.log.Error("releasing removed content failed; trying again in a minute", "error", err)
		}
		s.reaped.L.Lock()
		s.reapIdle = len(s.reapWake) == 0
		s.reaped.L.Unlock()
		s.reaped.Broadcast()
		var again <-chan time.Time
		if err != nil {
			again = s.clock.After(time.Minute)
		}
		select {
		case <-s.reapWake:
		case <-again:
		case <-s.quit.Done():
			s.reaped.L.Lock()
			s.reapIdle = true
			s.reaped.L.Unlock()
			s.reaped.Broadcast()
			return
		}
	}
}

// settle waits until the reaper has released all that no reader holds.
func (s *Store) settle(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.reaped.Broadcast)
	defer stop()
	s.reaped.L.Lock()
	defer s.reaped.L.Unlock()
	for !s.reapIdle && ctx.Err() == nil && s.quit.Err() == nil {
		s.reaped.Wait()
	}
	return ctx.Err()
}

func (s *Store) reapAll(ctx context.Context) error {
	var garbage []content
	err := s.kv.scan([]byte{keyGarbage}, []byte{keyGarbage + 1}, func(k, v []byte) (bool, error) {
		c, err := decodeContent(v)
		if err == nil && !s.readers.pinned(c.id) {
			garbage = append(garbage, c)
		}
		return len(garbage) < 1000, err
	})
	if err != nil {
		return err
	}
	for _, c := range garbage {
		if err := s.reap(ctx, &c); err != nil {
			return capsule.Wrap(ioKind(err), err, "content %x", c.id)
		}
	}
	if err := s.reapZeros(); err != nil {
		return err
	}
	if len(garbage) > 0 {
		s.wakeReaper() // there may be more
	}
	return nil
}

// reap releases one content.
func (s *Store) reap(ctx context.Context, c *content) error {
	lo := contentKey(keyPage, c.id)
	for c.pages > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		var page []byte // key of the first page left
		err := s.commit(false, func(t *tx) error {
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
	return s.commit(false, func(t *tx) error {
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
	var ids []pipeline.SegmentID
	err := s.kv.scan([]byte{keyZero}, []byte{keyZero + 1}, func(k, _ []byte) (bool, error) {
		var id pipeline.SegmentID
		if copy(id[:], k[1:]) != len(id) {
			return false, capsule.Errorf(capsule.Damaged, "malformed metadata key %x", k)
		}
		ids = append(ids, id)
		return len(ids) < 4096, nil
	})
	if err != nil || len(ids) == 0 {
		return err
	}
	return s.commit(false, func(t *tx) error {
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
}
