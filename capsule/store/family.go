package store

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// family is a living capsule with all that was ever cloned from it, and their
// snapshots: a tree of nodes. Each row has versions, one at each node where
// it changed; a node sees, of each row, the version at the nearest of its
// ancestors and itself. So a snapshot or a clone is a new node and nothing
// else. A node's number is lower than its parent's: in key order, the first
// version that a node can see is the one it sees.
type family struct {
	id uint64

	mu    sync.Mutex // orders the changes of all its capsules; guards what follows
	nodes nodeTable
	open  map[*lineage]struct{}
}

// familySealer says how changes of a family's capsules are sealed.
type familySealer struct {
	policy  *capsule.Policy
	hashers *sync.Pool
}

// nodeTable has the nodes of a family.
type nodeTable map[uint32]nodeRow

// next returns the number for a new node.
func (t nodeTable) next() (uint32, error) {
	low := uint32(math.MaxUint32)
	for n := range t {
		low = min(low, n)
	}
	if low == noNode+1 {
		return 0, capsule.Errorf(capsule.Other, "the capsule has had 4 billion snapshots and clones; copy it")
	}
	return low - 1, nil
}

// sortedNodes returns the numbers of all nodes, children before parents.
func sortedNodes(t nodeTable) []uint32 { return slices.Sorted(maps.Keys(t)) }

// lineage is one open living capsule or snapshot: where its rows are to be
// found. All handles on a capsule share one.
type lineage struct {
	capsule  capsule.ID
	snapshot string // "": the capsule itself
	family   *family
	view     atomic.Pointer[view]
	size     atomic.Int64 // of a volume
	users    volumeUsers
	refs     int // under Store.lineages' lock
}

// view is a node and its ancestors, nearest first.
type view struct {
	family uint64
	node   uint32
	up     []uint32 // ascending, as numbers are
}

func (t nodeTable) view(family uint64, node uint32) *view {
	v := &view{family: family, node: node}
	for n := t[node].parent; n != noNode && len(v.up) <= len(t); n = t[n].parent {
		v.up = append(v.up, n)
	}
	return v
}

// sees reports whether a version at node is one that v may see.
func (v *view) sees(node uint32) bool {
	if node == v.node {
		return true
	}
	_, ok := slices.BinarySearch(v.up, node)
	return ok
}

// lineages are the open ones.
type lineages struct {
	sync.Mutex
	open     map[lineageKey]*lineage
	families map[uint64]*family
}

type lineageKey struct {
	capsule  capsule.ID
	snapshot string
}

// loadFamily returns a family, with its nodes. s.lineages is held.
func (s *Store) loadFamily(id uint64) (*family, error) {
	if f := s.lineages.families[id]; f != nil {
		return f, nil
	}
	nodes, err := readNodes(s.kv, id)
	if err != nil {
		return nil, err
	}
	f := &family{id: id, nodes: nodes, open: map[*lineage]struct{}{}}
	s.lineages.families[id] = f
	return f, nil
}

// readNodes returns a family's nodes as the metadata has them.
func readNodes(r kvReader, id uint64) (nodeTable, error) {
	nodes := nodeTable{}
	lo := nodeKey(id, 0)[:9]
	err := r.scan(lo, prefixEnd(lo), func(k, v []byte) (bool, error) {
		row, err := decodeNode(v)
		if err == nil && len(k) != 13 {
			err = capsule.Errorf(capsule.Damaged, "malformed metadata key %x", k)
		}
		if err != nil {
			return false, err
		}
		n := binary.BigEndian.Uint32(k[9:])
		if row.parent != noNode && row.parent <= n {
			return false, capsule.Errorf(capsule.Damaged, "node %d of family %d comes before its parent", n, id)
		}
		nodes[n] = row
		return true, nil
	})
	return nodes, err
}

// sealers remembers how changes of families are sealed. Its lock is a leaf.
type sealers struct {
	sync.Mutex
	of map[uint64]*familySealer
}

// sealerOf returns how changes of a family are sealed.
func (s *Store) sealerOf(id uint64) (*familySealer, error) {
	s.sealers.Lock()
	defer s.sealers.Unlock()
	if fs := s.sealers.of[id]; fs != nil {
		return fs, nil
	}
	b, err := s.kv.get(familyKey(id))
	if err == nil && b == nil {
		err = capsule.Errorf(capsule.Damaged, "family %d has no record", id)
	}
	if err != nil {
		return nil, err
	}
	row, err := decodeFamily(b)
	if err != nil {
		return nil, err
	}
	fs := &familySealer{hashers: s.hashers}
	if fs.policy, err = s.policy(s.kv, row.policy); err != nil {
		return nil, err
	}
	if encrypted := fs.policy.Encryption != "disabled"; !encrypted || row.domain != [16]byte{} {
		fs.hashers = s.newHashers(&content{domain: row.domain}, encrypted)
	}
	s.sealers.of[id] = fs
	return fs, nil
}

// forgetSealer has the next change look up how a family is sealed.
func (s *Store) forgetSealer(id uint64) {
	s.sealers.Lock()
	defer s.sealers.Unlock()
	delete(s.sealers.of, id)
}

// sealing says how a segment is sealed now.
func (fs *familySealer) sealing(s *Store) pipeline.Sealing { return s.sealing(fs.policy) }

// version returns what a view sees of a row, and at which node.
func (s *Store) version(v *view, prefix []byte) (r row, node uint32, err error) {
	r, err = s.rawRow(atNode(prefix, v.node))
	if err != nil || r.state != rowAbsent || len(v.up) == 0 {
		return r, v.node, err
	}
	// Meanwhile the pruner may have moved what was above to the view's own node.
	return s.newest(v, v.node, prefix)
}

// inherited returns what a view would see of a row without a version of its own.
func (s *Store) inherited(v *view, prefix []byte) (r row, node uint32, err error) {
	if len(v.up) == 0 {
		return row{state: rowAbsent}, v.node, nil
	}
	return s.newest(v, v.up[0], prefix)
}

// newest returns what a view sees of a row at a node or above it.
func (s *Store) newest(v *view, from uint32, prefix []byte) (r row, node uint32, err error) {
	r.state = rowAbsent
	err = s.scanRows(atNode(prefix, from), prefixEnd(prefix), nil, func(x *row) (bool, error) {
		_, _, n, err := splitRow(x.key)
		if err != nil || !v.sees(n) {
			return true, err
		}
		r, node = *x, n
		return false, nil
	})
	return r, node, err
}
