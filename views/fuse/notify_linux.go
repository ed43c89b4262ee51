package fuse

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/capsule"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// maxPending bounds the paths that wait to be invalidated. Beyond it all are.
const maxPending = 4096

// kernel is what notifiers need of a go-fuse server.
type kernel interface {
	EntryNotify(parent uint64, name string) gofuse.Status
	InodeNotify(node uint64, off, length int64) gofuse.Status
	PruneNotify(nodes []uint64) gofuse.Status
}

// notifier tells the kernel of changes, from a goroutine of its own: the
// kernel may make it wait for a lookup that is under way.
type notifier struct {
	fs     *fileSystem
	kernel kernel

	mu      sync.Mutex
	pending map[string]struct{} // paths
	all     bool
	wake    chan struct{}
}

func newNotifier(fs *fileSystem, k kernel) *notifier {
	return &notifier{fs: fs, kernel: k, pending: map[string]struct{}{}, wake: make(chan struct{}, 1)}
}

// changed takes note of a change in the store. It never waits.
func (n *notifier) changed(c Change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case c.All:
		n.all = true
	case n.fs.only.IsZero():
		for _, name := range []string{c.Name, c.OldName} {
			if name != "" {
				n.pending[name] = struct{}{}
			}
		}
	case c.ID == n.fs.only:
		n.pending[contentName] = struct{}{}
	}
	if n.all || len(n.pending) > maxPending {
		n.all = true
		clear(n.pending)
	}
	if n.all || len(n.pending) > 0 {
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
}

// run passes changes on until ctx ends.
func (n *notifier) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		case <-n.fs.prune:
			n.prune()
			continue
		}
		n.mu.Lock()
		paths, all := n.pending, n.all
		n.pending, n.all = map[string]struct{}{}, false
		n.mu.Unlock()
		if all {
			paths = n.fs.nodes.paths()
		}
		now := time.Now()
		for p := range paths {
			if ctx.Err() != nil {
				return
			}
			n.invalidate(ctx, p, now)
		}
	}
}

// invalidate makes the kernel look a path up again, and the directories above
// it that went with it.
func (n *notifier) invalidate(ctx context.Context, p string, now time.Time) {
	for {
		dir, name := split(p)
		if parent := n.fs.nodes.dir(dir); parent != nil {
			n.fs.nodes.touch(dir, now)
			n.kernel.EntryNotify(parent.id, name)
		}
		if dir == "" {
			return
		}
		// A directory that is still there keeps its entry: losing it would
		// disturb those who work in it.
		if _, isDir, err := n.fs.find(ctx, dir); err == nil && isDir || err != nil && capsule.KindOf(err) != capsule.NotFound {
			return
		}
		p = dir
	}
}

// prune asks the kernel to let go of nodes that nobody uses. Kernels before
// 6.18 can't be asked that; there the entries of files are invalidated, which
// costs those who use them a lookup.
func (n *notifier) prune() {
	excess := n.fs.nodes.len() - maxNodes*3/4
	for batch := range slices.Chunk(n.fs.nodes.some(excess), 1024) {
		ids := make([]uint64, len(batch))
		for i, node := range batch {
			ids[i] = node.id
		}
		if n.kernel.PruneNotify(ids).Ok() {
			continue
		}
		for _, node := range batch {
			dir, name := split(node.path)
			if parent := n.fs.nodes.dir(dir); parent != nil && !node.dir {
				n.kernel.EntryNotify(parent.id, name)
			}
		}
	}
}
