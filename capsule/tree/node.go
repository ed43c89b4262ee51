package tree

import "sync"

// node is an inode in memory: cached, or held by open files and operations on
// its content.
type node struct {
	ino  uint64
	data sync.RWMutex // the content and the size

	// Under leases.mu, of a node that is held:
	openers []opener
	leases  []*Lease
	recalls int // under way

	// Under nodeTable.mu:
	refs       int
	in         *inode // nil: not loaded, or the inode is gone
	prev, next *node  // in the list of those that nobody holds
}

// nodeTable has the nodes by number. It keeps those that are held, and the
// maxCache others that were used last.
type nodeTable struct {
	mu   sync.Mutex
	m    map[uint64]*node
	idle node // head of the ring of nodes that nobody holds, the last used first
	n    int  // their number
}

func (t *nodeTable) init() {
	t.m = map[uint64]*node{}
	t.idle.prev, t.idle.next = &t.idle, &t.idle
}

func (t *nodeTable) unlink(n *node) {
	if n.next != nil {
		n.prev.next, n.next.prev = n.next, n.prev
		n.prev, n.next = nil, nil
		t.n--
	}
}

// settle gives a node that nobody holds its place, or none without an inode.
func (t *nodeTable) settle(n *node) {
	t.unlink(n)
	switch {
	case n.refs > 0:
	case n.in == nil:
		delete(t.m, n.ino)
	default:
		n.prev, n.next = &t.idle, t.idle.next
		n.prev.next, n.next.prev = n, n
		if t.n++; t.n > maxCache {
			last := t.idle.prev
			t.unlink(last)
			delete(t.m, last.ino)
		}
	}
}

func (t *nodeTable) node(ino uint64) *node {
	n := t.m[ino]
	if n == nil {
		n = &node{ino: ino}
		t.m[ino] = n
	}
	return n
}

// get returns the cached inode, or nil.
func (t *nodeTable) get(ino uint64) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.m[ino]
	if n == nil {
		return nil
	}
	t.settle(n)
	return n.in
}

// put caches an inode, and tells whether it is an orphan that nobody holds.
// FS.mu is held since the inode's row was read or written.
func (t *nodeTable) put(in *inode) (orphan bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.node(in.Ino)
	n.in = in
	t.settle(n)
	return n.refs == 0 && in.Nlink == 0
}

// drop forgets an inode that is gone.
func (t *nodeTable) drop(ino uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.m[ino]; n != nil {
		n.in = nil
		t.settle(n)
	}
}

// hold keeps a node until it is released as often.
func (t *nodeTable) hold(ino uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.node(ino)
	n.refs++
	t.settle(n)
	return n
}

// release lets go of a node, and tells whether that leaves an orphan.
func (t *nodeTable) release(n *node) (orphan bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.refs--
	orphan = n.refs == 0 && n.in != nil && n.in.Nlink == 0
	t.settle(n)
	return orphan
}

// peek returns a node if somebody holds it.
func (t *nodeTable) peek(ino uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.m[ino]; n != nil && n.refs > 0 {
		return n
	}
	return nil
}

func (t *nodeTable) held(ino uint64) bool {
	return t.peek(ino) != nil
}
