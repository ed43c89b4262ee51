package store

import (
	"context"
	"time"

	"github.com/spacestore/space/capsule"
)

// retentionRow is a capsule's snapshot policy. It goes with its capsule.
type retentionRow struct {
	every int64 // nanoseconds
	keep  uint64
	last  int64 // when a snapshot was due the last time, Unix nanoseconds; 0: never
}

func (r *retentionRow) encode() []byte {
	e := encoder{[]byte{recordVersion}}
	e.uint(uint64(r.every))
	e.uint(r.keep)
	e.int(r.last)
	return e.b
}

func decodeRetention(b []byte) (r retentionRow, err error) {
	d := decoder{b: b}
	d.version()
	r.every = d.size()
	r.keep = d.uint()
	r.last = d.int()
	if r.every == 0 || r.public().Check() != nil {
		d.fail()
	}
	return r, d.end("snapshot policy")
}

func (r *retentionRow) public() capsule.SnapshotPolicy {
	p := capsule.SnapshotPolicy{Every: capsule.Duration(r.every), Keep: int(min(r.keep, capsule.MaxSnapshotKeep+1))}
	if r.last != 0 {
		p.Last = time.Unix(0, r.last).UTC()
	}
	return p
}

// getRetention returns a capsule's snapshot policy; the zero row is none.
func getRetention(r kvReader, id capsule.ID) (retentionRow, error) {
	b, err := r.get(retentionKey(id))
	if err != nil || b == nil {
		return retentionRow{}, err
	}
	row, err := decodeRetention(b)
	return row, capsule.Wrap(capsule.Damaged, err, "capsule %s", id)
}

// SnapshotPolicy returns a capsule's snapshot policy.
func (s *Store) SnapshotPolicy(ctx context.Context, id capsule.ID) (capsule.SnapshotPolicy, error) {
	if err := s.enter(); err != nil {
		return capsule.SnapshotPolicy{}, err
	}
	defer s.leave()
	if _, err := getCapsule(s.kv, id); err != nil {
		return capsule.SnapshotPolicy{}, err
	}
	row, err := getRetention(s.kv, id)
	return row.public(), err
}

// SetSnapshotPolicy gives a capsule another snapshot policy. The store keeps
// it; a node acts on it. When a snapshot was due last (p.Last is not looked at)
// stays known while there is a policy.
func (s *Store) SetSnapshotPolicy(ctx context.Context, id capsule.ID, p capsule.SnapshotPolicy) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := p.Check(); err != nil {
		return err
	}
	return s.commit(synced, func(t *tx) error {
		if _, err := t.capsule(id); err != nil {
			return err
		}
		if p.Every == 0 {
			return t.drop(retentionKey(id))
		}
		row, err := getRetention(t.b, id)
		if err != nil {
			return err
		}
		row.every, row.keep = int64(p.Every), uint64(p.Keep)
		return t.b.set(retentionKey(id), row.encode())
	})
}

// SnapshotWasDue notes when a snapshot that a capsule's policy asks for was due.
func (s *Store) SnapshotWasDue(ctx context.Context, id capsule.ID, at time.Time) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return s.commit(synced, func(t *tx) error {
		row, err := getRetention(t.b, id)
		if err != nil || row.every == 0 { // switched off meanwhile
			return err
		}
		row.last = at.UnixNano()
		return t.b.set(retentionKey(id), row.encode())
	})
}

// Retention is a capsule that has a snapshot policy.
type Retention struct {
	ID capsule.ID
	capsule.SnapshotPolicy
}

// Retentions returns up to limit capsules that have a snapshot policy, by ID,
// from the first after the one given on.
func (s *Store) Retentions(ctx context.Context, after capsule.ID, limit int) ([]Retention, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	var list []Retention
	err := s.kv.scan(append(retentionKey(after), 0), []byte{keyRetention + 1}, func(k, v []byte) (bool, error) {
		var id capsule.ID
		copy(id[:], k[1:])
		row, err := decodeRetention(v)
		if err != nil {
			return false, capsule.Wrap(capsule.Damaged, err, "capsule %s", id)
		}
		list = append(list, Retention{id, row.public()})
		return len(list) < limit, ctx.Err()
	})
	return list, err
}
