package fuse

import (
	"encoding/json"
	"hash/fnv"
	"path"
	"sync"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/ledger"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// node is what the kernel knows under one node ID: a directory, or one
// version of a capsule at one path.
type node struct {
	id   uint64
	path string // in the mount; "" is the root
	dir  bool
	info capsule.Info // of a file; never changes

	// Guarded by the table's lock.
	lookups uint64    // references that the kernel holds
	lost    bool      // it is not in the ledger
	changed time.Time // of a directory: when an entry in it last did
}

// ino is the inode number that programs see. A capsule keeps it through
// replacements and renames, which is why it is not the node ID.
func (n *node) ino() uint64 {
	if n.dir {
		return dirIno(n.path)
	}
	return capsuleIno(n.info.ID)
}

func capsuleIno(id capsule.ID) uint64 { return inoOf(id[:]) }

func dirIno(p string) uint64 {
	if p == "" {
		return gofuse.FUSE_ROOT_ID
	}
	return inoOf([]byte(p))
}

func inoOf(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b)
	// 0 means none, 1 is the root, and all ones is go-fuse's own.
	if ino := h.Sum64(); ino > gofuse.FUSE_ROOT_ID && ino+1 != 0 {
		return ino
	}
	return 2
}

// fileKey identifies a file's node. The path is part of it so that an open by
// a name that now means another capsule can be told from one that is right.
type fileKey struct {
	path    string
	id      capsule.ID
	version uint64
}

// nodeTable holds the nodes that the kernel refers to.
type nodeTable struct {
	mu    sync.Mutex
	next  uint64 // node IDs are never used twice
	byID  map[uint64]*node
	dirs  map[string]*node
	files map[fileKey]*node

	ledger *ledger.Ledger // keeps the nodes for the process after this one; may be nil
}

func newNodeTable(now time.Time) *nodeTable {
	root := &node{id: gofuse.FUSE_ROOT_ID, dir: true, changed: now}
	return &nodeTable{
		next:  gofuse.FUSE_ROOT_ID + 1,
		byID:  map[uint64]*node{root.id: root},
		dirs:  map[string]*node{"": root},
		files: map[fileKey]*node{},
	}
}

func (t *nodeTable) get(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

func (t *nodeTable) dir(p string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dirs[p]
}

// lookupDir returns the node of a directory, with one more reference.
func (t *nodeTable) lookupDir(p string, now time.Time) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.dirs[p]
	if n == nil {
		n = t.add(&node{path: p, dir: true, changed: now})
		t.dirs[p] = n
	}
	t.refer(n)
	return n
}

// refer takes one more reference to a node. The caller holds t.mu.
func (t *nodeTable) refer(n *node) {
	if n.lookups++; t.ledger == nil || n.lost {
		return
	}
	if n.lookups == 1 {
		b, err := json.Marshal(keptAs(n))
		if err == nil {
			err = t.ledger.Put(keptNode, n.id, b)
		}
		if n.lost = err != nil; n.lost { // there is no room: it ends with this process
			return
		}
	}
	if t.ledger.Put(keptLookups, n.id, words(n.lookups)) != nil {
		n.lost = true
	}
}

// keptNodeOf is a node as it is kept in a ledger.
type keptNodeOf struct {
	Path     string     `json:"path"`
	Dir      bool       `json:"dir,omitempty"`
	ID       capsule.ID `json:"id"`
	Name     string     `json:"name,omitempty"`
	Size     int64      `json:"size,omitempty"`
	Version  uint64     `json:"version,omitempty"`
	Created  time.Time  `json:"created"`
	Modified time.Time  `json:"modified"`
}

func keptAs(n *node) keptNodeOf {
	i := n.info
	return keptNodeOf{n.path, n.dir, i.ID, i.Name, i.Size, i.Version, i.Created, i.Modified}
}

func (k keptNodeOf) info() capsule.Info {
	return capsule.Info{ID: k.ID, Name: k.Name, Size: k.Size, Version: k.Version, Created: k.Created, Modified: k.Modified}
}

// recall takes up the nodes that the process before has kept.
func (t *nodeTable) recall(l *ledger.Ledger) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range l.All(keptNode) {
		t.next = max(t.next, e.Number+1)
		var k keptNodeOf
		refs, _ := l.Get(keptLookups, e.Number)
		w := wordsOf(refs, 1)
		if json.Unmarshal(e.Value, &k) != nil || w == nil || e.Number <= gofuse.FUSE_ROOT_ID {
			l.Delete(keptNode, e.Number)
			l.Delete(keptLookups, e.Number)
			continue
		}
		n := &node{id: e.Number, path: k.Path, dir: k.Dir, info: k.info(), lookups: w[0], changed: time.Now()}
		t.byID[n.id] = n
		if n.dir {
			t.dirs[n.path] = n
		} else {
			t.files[fileKey{n.path, n.info.ID, n.info.Version}] = n
		}
	}
}

// lookupFile returns the node of one version of a capsule at a path, with one
// more reference.
func (t *nodeTable) lookupFile(p string, info capsule.Info) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := fileKey{p, info.ID, info.Version}
	n := t.files[key]
	if n == nil {
		n = t.add(&node{path: p, info: info})
		t.files[key] = n
	}
	t.refer(n)
	return n
}

func (t *nodeTable) add(n *node) *node {
	n.id = t.next
	t.next++
	t.byID[n.id] = n
	return n
}

// forget drops references of the kernel's.
func (t *nodeTable) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == gofuse.FUSE_ROOT_ID {
		return
	}
	if n.lookups -= min(count, n.lookups); n.lookups > 0 {
		if t.ledger != nil && !n.lost {
			_ = t.ledger.Put(keptLookups, n.id, words(n.lookups)) // with the room that it had
		}
		return
	}
	if t.ledger != nil {
		t.ledger.Delete(keptNode, id)
		t.ledger.Delete(keptLookups, id)
	}
	delete(t.byID, id)
	if n.dir {
		delete(t.dirs, n.path)
	} else {
		delete(t.files, fileKey{n.path, n.info.ID, n.info.Version})
	}
}

func (t *nodeTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}

// touch notes that a directory's entries changed.
func (t *nodeTable) touch(p string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.dirs[p]; n != nil {
		n.changed = now
	}
}

func (t *nodeTable) changedAt(n *node) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.changed
}

// paths returns the path of every node but the root.
func (t *nodeTable) paths() map[string]struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[string]struct{}, len(t.byID))
	for _, n := range t.byID {
		if n.path != "" {
			all[n.path] = struct{}{}
		}
	}
	return all
}

// some returns up to count nodes, in no order, but not the root.
func (t *nodeTable) some(count int) []*node {
	t.mu.Lock()
	defer t.mu.Unlock()
	var nodes []*node
	for _, n := range t.byID {
		if len(nodes) >= count {
			break
		}
		if n.id != gofuse.FUSE_ROOT_ID {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// split cuts a path into its directory and its last component.
func split(p string) (dir, name string) {
	dir, name = path.Split(p)
	return path.Clean("/" + dir)[1:], name
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
