package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/spacestore/space/capsule"
)

// CreateRequest says what volume or tree to make.
type CreateRequest struct {
	Kind      capsule.Kind // Volume or Tree
	Name      string       // "": unnamed; one that is taken is an error
	Size      int64        // of a volume, in bytes
	BlockSize int          // logical block size of a volume: 512 or 4096; 0: 4096
	Policy    *capsule.Policy
}

// MaxVolume is the size limit of a volume, in bytes.
const MaxVolume = 64 << 40

func (r *CreateRequest) check() error {
	switch r.Kind {
	case capsule.Volume:
		if r.BlockSize == 0 {
			r.BlockSize = 4096
		}
		if r.BlockSize != 512 && r.BlockSize != 4096 {
			return capsule.Errorf(capsule.Invalid, "a volume's block size is 512 or 4096 bytes, not %d", r.BlockSize)
		}
		if err := checkVolumeSize(r.Size, int64(r.BlockSize)); err != nil {
			return err
		}
	case capsule.Tree:
		r.Size, r.BlockSize = 0, 0
	default:
		return capsule.Errorf(capsule.Invalid, "only volumes and trees are created; objects are put")
	}
	if r.Name != "" {
		return capsule.CheckName(r.Name)
	}
	return nil
}

func checkVolumeSize(size, block int64) error {
	if size <= 0 || size > MaxVolume {
		return capsule.Errorf(capsule.Invalid, "a volume has at least one block of %d bytes and at most 64 TiB, not %d bytes", block, size)
	}
	if more := size % block; more != 0 {
		return capsule.Errorf(capsule.Invalid, "a volume's size is a multiple of its block size, %d bytes: not %d, but %d would do", block, size, size-more+block)
	}
	return nil
}

// Create makes an empty volume or tree. init, if not nil, makes the first
// changes to it: either the capsule appears with them, or not at all.
func (s *Store) Create(ctx context.Context, req CreateRequest, init func(*Update) error) (capsule.Info, error) {
	if err := s.enter(); err != nil {
		return capsule.Info{}, err
	}
	defer s.leave()
	if err := req.check(); err != nil {
		return capsule.Info{}, err
	}
	return s.makeLiving(ctx, req, func(l *Live) error {
		if init == nil {
			return nil
		}
		return l.Update(ctx, init)
	})
}

// makeLiving makes a volume or tree of what fill writes, and of the size that it
// leaves in l.own. The capsule appears with all of it, or not at all.
func (s *Store) makeLiving(ctx context.Context, req CreateRequest, fill func(l *Live) error) (capsule.Info, error) {
	if req.Policy == nil {
		req.Policy = capsule.DefaultPolicy()
	}
	policy, text := policyKeyText(req.Policy)
	var raw [8]byte
	rand.Read(raw[:]) // never fails (crypto/rand.Read)
	own := living{family: binary.BigEndian.Uint64(raw[:]), node: math.MaxUint32, size: req.Size, block: uint64(req.BlockSize)}
	fam := familyRow{policy: policy}
	if !req.Policy.Dedupe {
		copy(fam.domain[:], raw[:])
		fam.domain[15] = 1
	}
	// The family is known, and open, before it is on disk, so that the pruner
	// does not take it for one that is left over.
	id := capsule.NewID(s.now())
	f := &family{id: own.family, nodes: nodeTable{own.node: {}}, open: map[*lineage]struct{}{}}
	l := &Live{s: s, own: own, line: &lineage{capsule: id, family: f}}
	l.line.view.Store(f.nodes.view(own.family, own.node))
	f.open[l.line] = struct{}{}
	s.lineages.Lock()
	s.lineages.families[own.family] = f
	s.lineages.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.open, l.line)
		if len(f.surplus()) > 0 {
			s.prune(own.family)
		}
	}()
	// First a family that belongs to nobody: if we do not get further, it is
	// pruned.
	err := s.commit(synced, func(t *tx) error {
		if err := t.addPolicyRef(policy, text, 1); err != nil {
			return err
		}
		if err := t.b.set(familyKey(own.family), fam.encode()); err != nil {
			return err
		}
		return t.b.set(nodeKey(own.family, own.node), (&nodeRow{}).encode())
	})
	if err != nil {
		return capsule.Info{}, err
	}
	if err := fill(l); err != nil {
		return capsule.Info{}, err
	}
	if err := s.syncJournal(); err != nil {
		return capsule.Info{}, err
	}
	return s.name(f, l.own, req.Kind, id, req.Name, policy, text)
}

// name makes a node a new capsule's.
func (s *Store) name(f *family, own living, kind capsule.Kind, id capsule.ID, name string, policy policyID, text string) (capsule.Info, error) {
	now := s.now().UnixNano()
	rec := capsuleRecord{kind: kind, name: name, version: 1, created: now, modified: now, policy: policy, living: own}
	f.mu.Lock()
	defer f.mu.Unlock()
	node := f.nodes[own.node]
	node.owner = ownerCapsule
	err := s.commit(synced, func(t *tx) error {
		if name != "" {
			if err := t.checkUnused(name, id); err != nil {
				return err
			}
		}
		if err := t.addPolicyRef(policy, text, 1); err != nil {
			return err
		}
		if err := t.setName(id, nil, &name); err != nil {
			return err
		}
		if err := t.b.set(nodeKey(own.family, own.node), node.encode()); err != nil {
			return err
		}
		t.totals.capsules++
		t.changes = append(t.changes, Change{ID: id, Name: name})
		return t.b.set(capsuleKey(id), rec.encode())
	})
	if err != nil {
		return capsule.Info{}, err
	}
	f.nodes[own.node] = node
	return rec.info(id), nil
}

// removeLiving removes a volume or tree. Whoever has it open goes on.
func (s *Store) removeLiving(id capsule.ID) error {
	return s.changeFamily(id, func(f *family, rec *capsuleRecord) error {
		node := f.nodes[rec.living.node]
		node.owner = ownerNone
		err := s.commit(synced, func(t *tx) error {
			rec, err := t.remove(id)
			if err != nil {
				return err
			}
			return t.b.set(nodeKey(f.id, rec.living.node), node.encode())
		})
		if err != nil {
			return err
		}
		f.nodes[rec.living.node] = node
		// A capsule opened from now on is another one.
		delete(s.lineages.open, lineageKey{capsule: id})
		s.prune(f.id)
		return nil
	})
}

// setFamilyPolicy says how changes of a family's capsules are sealed from now on.
func (t *tx) setFamilyPolicy(family uint64, policy policyID, text string) error {
	b, err := t.b.get(familyKey(family))
	if err != nil {
		return err
	}
	row, err := decodeFamily(b)
	if err != nil {
		return err
	}
	if err := t.addPolicyRef(policy, text, 1); err != nil {
		return err
	}
	if err := t.addPolicyRef(row.policy, "", -1); err != nil {
		return err
	}
	row.policy = policy
	return t.b.set(familyKey(family), row.encode())
}

// changeFamily calls fn with a living capsule's family and record, which stay
// as they are meanwhile, s.lineages and the family being locked.
func (s *Store) changeFamily(id capsule.ID, fn func(*family, *capsuleRecord) error) error {
	s.lineages.Lock()
	defer s.lineages.Unlock()
	rec, err := getCapsule(s.kv, id)
	if err != nil {
		return err
	}
	if rec.kind == capsule.Object {
		return capsule.Errorf(capsule.Unsupported, "capsule %s is an object", id)
	}
	f, err := s.loadFamily(rec.living.family)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return fn(f, &rec)
}

// Snapshot keeps a capsule as it is now, under a name of its own. It takes the
// same time whatever the capsule's size.
func (s *Store) Snapshot(ctx context.Context, id capsule.ID, name string) (capsule.Snapshot, error) {
	if err := s.enter(); err != nil {
		return capsule.Snapshot{}, err
	}
	defer s.leave()
	if err := capsule.CheckSnapshotName(name); err != nil {
		return capsule.Snapshot{}, err
	}
	snap := snapshotRow{created: s.now().UnixNano()}
	free := func(r kvReader) (err error) {
		_, err = getSnapshot(r, id, name)
		switch capsule.KindOf(err) {
		case capsule.NotFound:
			snap.order, err = nextSnapshot(r, id)
			return err
		case capsule.Other:
			return capsule.Errorf(capsule.Exists, "capsule %s has a snapshot %q already", id, name)
		}
		return err
	}
	if rec, err := getCapsule(s.kv, id); err != nil {
		return capsule.Snapshot{}, err
	} else if rec.kind == capsule.Object {
		err := s.commit(synced, func(t *tx) error {
			rec, err := t.capsule(id)
			if err == nil {
				err = free(t.b)
			}
			if err != nil {
				return err
			}
			snap.content = rec.content
			if err := t.share(&rec.content); err != nil {
				return err
			}
			t.totals.logical += rec.content.size
			return t.b.set(snapshotKey(id, name), snap.encode(rec.kind))
		})
		return snap.public(name, snap.content.size), err
	}
	err := s.changeFamily(id, func(f *family, rec *capsuleRecord) error {
		next, err := f.nodes.next()
		if err != nil {
			return err
		}
		// What the snapshot shows must not be lost later.
		if err := s.syncJournal(); err != nil {
			return err
		}
		old, fresh := f.nodes[rec.living.node], nodeRow{parent: rec.living.node, owner: ownerCapsule}
		old.owner = ownerSnapshot
		snap.living = rec.living
		err = s.commit(synced, func(t *tx) error {
			rec, err := t.capsule(id)
			if err == nil {
				err = free(t.b)
			}
			if err != nil {
				return err
			}
			rec.living.node = next
			if err := t.b.set(nodeKey(f.id, snap.living.node), old.encode()); err != nil {
				return err
			}
			if err := t.b.set(nodeKey(f.id, next), fresh.encode()); err != nil {
				return err
			}
			if err := t.b.set(snapshotKey(id, name), snap.encode(rec.kind)); err != nil {
				return err
			}
			return t.b.set(capsuleKey(id), rec.encode())
		})
		if err != nil {
			return err
		}
		f.nodes[snap.living.node], f.nodes[next] = old, fresh
		s.moveHead(f, id, next)
		return nil
	})
	return snap.public(name, snap.living.size), err
}

// moveHead has open handles of a capsule follow it to another node.
func (s *Store) moveHead(f *family, id capsule.ID, node uint32) {
	if line := s.lineages.open[lineageKey{capsule: id}]; line != nil {
		line.view.Store(f.nodes.view(f.id, node))
	}
}

func (r *snapshotRow) public(name string, size int64) capsule.Snapshot {
	return capsule.Snapshot{Name: name, Created: time.Unix(0, r.created).UTC(), Size: size}
}

func getSnapshot(r kvReader, id capsule.ID, name string) (snapshotRow, error) {
	b, err := r.get(snapshotKey(id, name))
	if err != nil {
		return snapshotRow{}, err
	}
	if b == nil {
		return snapshotRow{}, capsule.Errorf(capsule.NotFound, "capsule %s has no snapshot %q", id, name)
	}
	row, err := decodeSnapshot(b)
	return row, capsule.Wrap(capsule.Damaged, err, "snapshot %q of capsule %s", name, id)
}

func countSnapshots(r kvReader, id capsule.ID) (n int, err error) {
	lo := snapshotKey(id, "")
	err = r.scan(lo, prefixEnd(lo), func(_, _ []byte) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// Snapshots returns a capsule's snapshots, the oldest first.
func (s *Store) Snapshots(ctx context.Context, id capsule.ID) ([]capsule.Snapshot, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	if _, err := getCapsule(s.kv, id); err != nil {
		return nil, err
	}
	type ordered struct {
		order uint64
		capsule.Snapshot
	}
	var found []ordered
	err := eachSnapshot(s.kv, id, func(name string, row *snapshotRow) error {
		found = append(found, ordered{row.order, row.public(name, max(row.content.size, row.living.size))})
		return ctx.Err()
	})
	slices.SortFunc(found, func(a, b ordered) int { return cmp.Compare(a.order, b.order) })
	list := make([]capsule.Snapshot, len(found))
	for i := range found {
		list[i] = found[i].Snapshot
	}
	return list, err
}

// eachSnapshot calls fn with a capsule's snapshots, by name.
func eachSnapshot(r kvReader, id capsule.ID, fn func(name string, row *snapshotRow) error) error {
	lo := snapshotKey(id, "")
	return r.scan(lo, prefixEnd(lo), func(k, v []byte) (bool, error) {
		name := string(k[len(lo):])
		row, err := decodeSnapshot(v)
		if err != nil {
			return false, capsule.Wrap(capsule.Damaged, err, "snapshot %q of capsule %s", name, id)
		}
		return true, fn(name, &row)
	})
}

// nextSnapshot returns the place of a new snapshot after a capsule's others:
// the clock, which can step back, does not tell.
func nextSnapshot(r kvReader, id capsule.ID) (order uint64, err error) {
	err = eachSnapshot(r, id, func(_ string, row *snapshotRow) error {
		order = max(order, row.order)
		return nil
	})
	return order + 1, err
}

// DeleteSnapshot removes a snapshot. Whoever has it open goes on; its space
// comes back in the background.
func (s *Store) DeleteSnapshot(ctx context.Context, id capsule.ID, name string) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	rec, err := getCapsule(s.kv, id)
	if err != nil {
		return err
	}
	if rec.kind == capsule.Object {
		return s.commit(synced, func(t *tx) error {
			snap, err := getSnapshot(t.b, id, name)
			if err != nil {
				return err
			}
			t.totals.logical -= snap.content.size
			if err := t.discard(&snap.content); err != nil {
				return err
			}
			return t.b.delete(snapshotKey(id, name))
		})
	}
	return s.changeFamily(id, func(f *family, _ *capsuleRecord) error {
		snap, err := getSnapshot(s.kv, id, name)
		if err != nil {
			return err
		}
		node := f.nodes[snap.living.node]
		node.owner = ownerNone
		err = s.commit(synced, func(t *tx) error {
			if _, err := getSnapshot(t.b, id, name); err != nil {
				return err
			}
			if err := t.b.set(nodeKey(f.id, snap.living.node), node.encode()); err != nil {
				return err
			}
			return t.b.delete(snapshotKey(id, name))
		})
		if err != nil {
			return err
		}
		f.nodes[snap.living.node] = node
		delete(s.lineages.open, lineageKey{id, name})
		s.prune(f.id)
		return nil
	})
}

// Clone makes a new capsule that begins as a snapshot and shares its segments
// until it changes.
func (s *Store) Clone(ctx context.Context, id capsule.ID, snapshot, name string) (capsule.Info, error) {
	if err := s.enter(); err != nil {
		return capsule.Info{}, err
	}
	defer s.leave()
	if name != "" {
		if err := capsule.CheckName(name); err != nil {
			return capsule.Info{}, err
		}
	}
	rec, err := getCapsule(s.kv, id)
	if err != nil {
		return capsule.Info{}, err
	}
	fresh := capsule.NewID(s.now())
	var info capsule.Info
	make := func(t *tx, own *living, f *family, node uint32) error {
		rec, err := t.capsule(id)
		if err != nil {
			return err
		}
		snap, err := getSnapshot(t.b, id, snapshot)
		if err != nil {
			return err
		}
		if name != "" {
			if err := t.checkUnused(name, fresh); err != nil {
				return err
			}
		}
		rec.name, rec.version = name, 1
		rec.created = s.now().UnixNano()
		rec.modified = rec.created
		rec.content, rec.living = snap.content, snap.living
		if rec.kind == capsule.Object {
			if err := t.share(&rec.content); err != nil {
				return err
			}
			t.totals.logical += rec.content.size
		} else {
			rec.living.node = node
			if err := t.b.set(nodeKey(f.id, node), (&nodeRow{parent: snap.living.node, owner: ownerCapsule}).encode()); err != nil {
				return err
			}
			*own = snap.living
		}
		if err := t.addPolicyRef(rec.policy, "", 1); err != nil {
			return err
		}
		if err := t.setName(fresh, nil, &name); err != nil {
			return err
		}
		t.totals.capsules++
		t.changes = append(t.changes, Change{ID: fresh, Name: name})
		info = rec.info(fresh)
		return t.b.set(capsuleKey(fresh), rec.encode())
	}
	if rec.kind == capsule.Object {
		err := s.commit(synced, func(t *tx) error { return make(t, nil, nil, 0) })
		return info, err
	}
	err = s.changeFamily(id, func(f *family, _ *capsuleRecord) error {
		next, err := f.nodes.next()
		if err != nil {
			return err
		}
		var own living
		if err := s.commit(synced, func(t *tx) error { return make(t, &own, f, next) }); err != nil {
			return err
		}
		f.nodes[next] = nodeRow{parent: own.node, owner: ownerCapsule}
		return nil
	})
	return info, err
}

// Rollback makes a capsule again what it was when a snapshot was taken. It
// fails while anybody has the capsule open. Its snapshots stay, later ones too.
func (s *Store) Rollback(ctx context.Context, id capsule.ID, snapshot string) (capsule.Info, error) {
	if err := s.enter(); err != nil {
		return capsule.Info{}, err
	}
	defer s.leave()
	rec, err := getCapsule(s.kv, id)
	if err != nil {
		return capsule.Info{}, err
	}
	var info capsule.Info
	change := func(t *tx, fn func(rec *capsuleRecord, snap *snapshotRow) error) error {
		rec, err := t.capsule(id)
		if err != nil {
			return err
		}
		snap, err := getSnapshot(t.b, id, snapshot)
		if err != nil {
			return err
		}
		if err := fn(&rec, &snap); err != nil {
			return err
		}
		rec.version++
		rec.modified = s.now().UnixNano()
		t.changes = append(t.changes, Change{ID: id, Name: rec.name})
		info = rec.info(id)
		return t.b.set(capsuleKey(id), rec.encode())
	}
	if rec.kind == capsule.Object {
		err := s.commit(synced, func(t *tx) error {
			return change(t, func(rec *capsuleRecord, snap *snapshotRow) error {
				if err := t.share(&snap.content); err != nil {
					return err
				}
				t.totals.logical += snap.content.size - rec.content.size
				old := rec.content
				rec.content = snap.content
				return t.discard(&old)
			})
		})
		return info, err
	}
	err = s.changeFamily(id, func(f *family, rec *capsuleRecord) error {
		if s.lineages.open[lineageKey{capsule: id}] != nil {
			return capsule.Errorf(capsule.Conflict, "capsule %s is in use; end its projections, then roll back", id)
		}
		next, err := f.nodes.next()
		if err != nil {
			return err
		}
		was, now := f.nodes[rec.living.node], nodeRow{owner: ownerCapsule}
		was.owner = ownerNone
		err = s.commit(synced, func(t *tx) error {
			return change(t, func(r *capsuleRecord, snap *snapshotRow) error {
				now.parent = snap.living.node
				r.living = snap.living
				r.living.node = next
				if err := t.b.set(nodeKey(f.id, rec.living.node), was.encode()); err != nil {
					return err
				}
				return t.b.set(nodeKey(f.id, next), now.encode())
			})
		})
		if err != nil {
			return err
		}
		f.nodes[rec.living.node], f.nodes[next] = was, now
		s.prune(f.id)
		return nil
	})
	return info, err
}

// share counts one more record that names a content.
func (t *tx) share(c *content) error {
	n, err := shares(t.b, c)
	if err != nil {
		return err
	}
	return t.b.set(contentKey(keyShared, c.id), binary.AppendUvarint(nil, n+1))
}

// shares returns how many records name a content.
func shares(r kvReader, c *content) (uint64, error) {
	b, err := r.get(contentKey(keyShared, c.id))
	if err != nil || b == nil {
		return 1, err
	}
	n, size := binary.Uvarint(b)
	if size != len(b) || n < 2 {
		return 0, capsule.Errorf(capsule.Damaged, "malformed count of content %x", c.id)
	}
	return n, nil
}
