package fuse

import (
	"context"
	"math"
	"sync"

	"github.com/spacestore/space/capsule/tree"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// span is a range of content, from off up to end; off < 0: attributes alone.
type span struct{ off, end int64 }

var attributes, everything = span{-1, -1}, span{0, math.MaxInt64}

// and returns a span that holds both.
func (s span) and(o span) span {
	switch {
	case s.off < 0:
		return o
	case o.off < 0:
		return s
	}
	return span{min(s.off, o.off), max(s.end, o.end)}
}

type dirName struct {
	dir  uint64
	name string
}

// treeNotifier tells the kernel what others changed, from a goroutine of its
// own: the kernel may make it wait for a request that is under way.
type treeNotifier struct {
	f      *treeSystem
	kernel kernel

	mu     sync.Mutex
	inodes map[uint64]span
	names  map[dirName]struct{}
	all    bool     // more than maxPending
	policy bool     // ask for it again
	known  []uint64 // from an earlier process: tell of these too
	wake   chan struct{}
}

// watch tells the kernel of changes until stop has returned.
func (f *treeSystem) watch(k kernel) (stop func()) {
	n := &treeNotifier{f: f, kernel: k, inodes: map[uint64]span{}, names: map[dirName]struct{}{}, wake: make(chan struct{}, 1)}
	f.notifier = n
	if f.nodes.partial { // what changed last the process before may not have told
		n.note(func() {
			n.all = true
			n.known = f.memory.stale
			f.memory.stale = nil
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	unwatchTree := f.tree.WatchOthers(f, n.changed)
	unwatchStore := f.store.Watch(func(c Change) {
		if c.All || c.ID == f.id {
			n.note(func() { n.policy = true })
		}
	})
	var running sync.WaitGroup
	running.Go(func() { n.run(ctx) })
	return func() {
		unwatchTree()
		unwatchStore()
		cancel()
		running.Wait()
	}
}

// note changes what is pending. It never waits.
func (n *treeNotifier) note(fn func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fn()
	if n.all || len(n.inodes)+len(n.names) > maxPending {
		n.all = true
		clear(n.inodes)
		clear(n.names)
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// inode takes note that an inode changed.
func (n *treeNotifier) inode(ino uint64, s span) {
	n.note(func() { n.addInode(ino, s) })
}

func (n *treeNotifier) addInode(ino uint64, s span) {
	if old, ok := n.inodes[ino]; ok {
		s = s.and(old)
	}
	n.inodes[ino] = s
}

// changed takes note of what others did. What came through this mount the
// kernel knows, and it is not told of it.
func (n *treeNotifier) changed(e tree.Event) {
	n.note(func() {
		switch e.Kind {
		case tree.Changed:
			n.addInode(e.Ino, attributes)
		case tree.Written:
			n.addInode(e.Ino, span{e.Off, e.Off + min(e.Len, math.MaxInt64-e.Off)})
		case tree.Added, tree.Removed:
			n.names[dirName{e.Dir, e.Name}] = struct{}{}
			n.addInode(e.Dir, everything) // the listing
		default:
			n.all = true
		}
	})
}

// run passes changes on until ctx ends.
func (n *treeNotifier) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		}
		n.mu.Lock()
		inodes, names, all, policy := n.inodes, n.names, n.all, n.policy
		n.inodes, n.names, n.all, n.policy = map[uint64]span{}, map[dirName]struct{}{}, false, false
		known := n.known
		n.known = nil
		n.mu.Unlock()
		if policy {
			n.f.askPolicy()
		}
		if all {
			// Linux before 6.16 has no such call; there names are right again
			// after treeTimeout.
			n.f.requests.notify(gofuse.NOTIFY_INC_EPOCH)
			for _, ino := range append(n.f.nodes.all(), known...) {
				inodes[ino] = everything
			}
		}
		for d := range names {
			if n.f.nodes.knows(d.dir) {
				n.kernel.EntryNotify(d.dir, d.name)
			}
		}
		for ino, s := range inodes {
			if n.f.nodes.knows(ino) {
				n.kernel.InodeNotify(ino, s.off, s.len())
			}
		}
	}
}

// len is the span's length as the kernel wants it: 0 is to the end.
func (s span) len() int64 {
	if s.end == math.MaxInt64 {
		return 0
	}
	return s.end - s.off
}
