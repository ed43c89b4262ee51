package store

import (
	"context"
	"encoding/binary"
	"sync"

	"github.com/spacestore/space/capsule"
)

// pruner takes away, in the background, the versions of rows that no capsule
// and no snapshot can see any more, and the nodes that had them.
type pruner struct {
	s     *Store
	mu    sync.Mutex
	cond  sync.Cond
	todo  map[uint64]struct{}
	busy  bool
	ended bool
}

func (p *pruner) init(s *Store) {
	p.s = s
	p.cond.L = &p.mu
	p.todo = map[uint64]struct{}{}
	p.busy = true // until run has found what there is
}

// prune has the pruner look at a family.
func (s *Store) prune(family uint64) {
	p := &s.pruner
	p.mu.Lock()
	defer p.mu.Unlock()
	p.todo[family] = struct{}{}
	p.cond.Broadcast()
}

func (p *pruner) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.cond.Broadcast()
}

// settle waits until all families noted before the call have been looked at.
func (p *pruner) settle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for (p.busy || len(p.todo) > 0) && !p.ended {
		p.cond.Wait()
	}
}

func (p *pruner) run() {
	if err := p.findAll(); err != nil {
		p.s.log.Error("looking for what removed volumes and trees left behind failed", "error", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = false
	for {
		p.cond.Broadcast()
		for len(p.todo) == 0 && !p.ended {
			p.cond.Wait()
		}
		if p.ended {
			return
		}
		var id uint64
		for id = range p.todo {
			break
		}
		delete(p.todo, id)
		p.busy = true
		p.mu.Unlock()
		if err := p.s.pruneFamily(p.s.quit, id); err != nil && p.s.quit.Err() == nil {
			p.s.log.Error("releasing removed volumes, trees or snapshots failed; it goes on at the next removal or start", "error", err)
		}
		p.mu.Lock()
		p.busy = false
	}
}

// findAll notes the families that a process before us left unpruned.
func (p *pruner) findAll() error {
	return p.s.kv.scan([]byte{keyNode}, []byte{keyNode + 1}, func(k, v []byte) (bool, error) {
		row, err := decodeNode(v)
		if err == nil && row.owner == ownerNone && len(k) == 13 {
			p.s.prune(binary.BigEndian.Uint64(k[1:9]))
		}
		return p.s.quit.Err() == nil, err
	})
}

// dropped is the target of versions that nobody sees.
const dropped = noNode

// targets says for each node where its versions belong: at itself, at its
// only descendant that anybody can still look from, or nowhere. f.mu is held.
func (f *family) targets() map[uint32]uint32 {
	kept := map[uint32]bool{}
	for n, row := range f.nodes {
		kept[n] = row.owner != ownerNone
	}
	for line := range f.open {
		kept[line.view.Load().node] = true
	}
	// Children have lower numbers than their parents: go up from the lowest.
	live := map[uint32][]uint32{} // the children that matter
	target := map[uint32]uint32{}
	for _, n := range sortedNodes(f.nodes) {
		switch c := live[n]; {
		case kept[n] || len(c) > 1:
			target[n] = n
		case len(c) == 1:
			target[n] = target[c[0]]
		default:
			target[n] = dropped
		}
		if target[n] != dropped {
			live[f.nodes[n].parent] = append(live[f.nodes[n].parent], n)
		}
	}
	return target
}

// surplus returns the nodes that could go. f.mu is held.
func (f *family) surplus() (gone []uint32) {
	for n, t := range f.targets() {
		if n != t {
			gone = append(gone, n)
		}
	}
	return gone
}

// pruneBatch bounds the rows that one batch of a pass looks at.
const pruneBatch = 1024

// pruneFamily goes once over all rows of a family.
func (s *Store) pruneFamily(ctx context.Context, id uint64) error {
	s.lineages.Lock()
	f, err := s.loadFamily(id)
	s.lineages.Unlock()
	if err != nil {
		return err
	}
	f.mu.Lock()
	gone := f.surplus() // what can go at the end; nothing brings it back meanwhile
	empty := len(f.nodes) == 0
	f.mu.Unlock()
	if len(gone) == 0 && !empty {
		return nil
	}
	for next := rowPrefix(id); next != nil; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.overlay.room(ctx, s.mostUnmerged(), s.wakeCheckpointer); err != nil {
			return err
		}
		if next, err = s.pruneRows(f, next); err != nil {
			return err
		}
	}
	// The rows' new places must be durable before the old nodes are unknown,
	// and nothing of a family that ends may wait to be sealed.
	if err := s.syncJournal(); err != nil {
		return err
	}
	for range 2 { // what is on its way, and what came after it
		if err := s.checkpoint(); err != nil {
			return err
		}
	}
	return s.dropNodes(f, gone)
}

// pruneRows looks at a batch of rows from lo on, and returns where to go on.
func (s *Store) pruneRows(f *family, lo []byte) (next []byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	target := f.targets()
	_, err = s.update(&Live{s: s}, nil, func(u *Update) error {
		next, err = s.pruneGroups(u, f.id, lo, target)
		return err
	})
	return next, err
}

// pruneGroups prunes the versions of rows from lo on, as far as one update may.
func (s *Store) pruneGroups(u *Update, family uint64, lo []byte, target map[uint32]uint32) (next []byte, err error) {
	var group []row // the versions of one row
	done := func() {
		have := map[uint32]bool{}
		for i, r := range group {
			prefix := []byte(r.key[:len(r.key)-nodeSize])
			_, _, n, _ := splitRow(r.key)
			to, known := target[n]
			switch {
			case !known:
				to = dropped // a node that is gone
			case r.state == rowHidden && i == len(group)-1:
				to = dropped // hides nothing
			}
			if to == dropped || have[to] {
				u.remove(r.key)
				continue
			}
			have[to] = true
			if to != n {
				u.remove(r.key)
				r.key = string(atNode(prefix, to))
				u.set(r)
			}
		}
		group = group[:0]
	}
	seen := 0
	err = s.scanRows(lo, prefixEnd(rowPrefix(family)), nil, func(r *row) (bool, error) {
		if len(group) > 0 && group[0].key[:len(group[0].key)-nodeSize] != r.key[:len(r.key)-nodeSize] {
			done()
			if seen > pruneBatch || len(u.record) > maxUpdate {
				next = []byte(r.key)
				return false, nil
			}
		}
		if _, _, _, err := splitRow(r.key); err != nil {
			return false, err
		}
		seen++
		group = append(group, *r)
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	done()
	return next, nil
}

// dropNodes forgets nodes that no row is at any more.
func (s *Store) dropNodes(f *family, gone []uint32) error {
	s.lineages.Lock()
	defer s.lineages.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	nodes := nodeTable{}
	for n, row := range f.nodes {
		nodes[n] = row
	}
	changed := map[uint32]bool{}
	for _, n := range gone {
		for c, row := range nodes {
			if row.parent == n {
				row.parent = nodes[n].parent
				nodes[c] = row
				changed[c] = true
			}
		}
		delete(nodes, n)
		changed[n] = true
	}
	err := s.commit(synced, func(t *tx) error {
		var old familyRow
		if len(nodes) == 0 {
			b, err := t.b.get(familyKey(f.id))
			if b == nil || err != nil {
				return err
			}
			if old, err = decodeFamily(b); err != nil {
				return err
			}
		}
		for n := range changed {
			row, ok := nodes[n]
			var err error
			if ok {
				err = t.b.set(nodeKey(f.id, n), row.encode())
			} else {
				err = t.b.delete(nodeKey(f.id, n))
			}
			if err != nil {
				return err
			}
		}
		if len(nodes) > 0 {
			return nil
		}
		if err := t.addPolicyRef(old.policy, "", -1); err != nil {
			return err
		}
		return t.b.delete(familyKey(f.id))
	})
	if err != nil {
		return capsule.Wrap(ioKind(err), err, "forget removed snapshots")
	}
	f.nodes = nodes
	for line := range f.open {
		line.view.Store(nodes.view(f.id, line.view.Load().node))
	}
	if len(nodes) == 0 && len(f.open) == 0 {
		delete(s.lineages.families, f.id)
		s.forgetSealer(f.id)
	}
	return nil
}
