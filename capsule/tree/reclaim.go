package tree

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/spacestore/space/capsule"
)

// reclaimer frees what rows under keyReclaim name, on a goroutine of its own.
type reclaimer struct {
	holding atomic.Bool // orphans stay, until Reclaim
	cancel  context.CancelFunc
	done    chan struct{}
	wake    chan struct{}

	mu    sync.Mutex
	queue []uint64
	all   bool // look through all rows
}

const maxQueue = 4096 // inodes; when there are more all rows are looked through

func (r *reclaimer) start(fs *FS, holding bool) {
	r.holding.Store(holding)
	r.wake = make(chan struct{}, 1)
	r.done = make(chan struct{})
	r.cancel = func() {}
	if fs.ReadOnly() {
		close(r.done)
		return
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	r.all = true
	go r.run(ctx, fs)
}

func (r *reclaimer) close() {
	r.cancel()
	<-r.done
}

// add asks for inodes to be looked at; the rows are there.
func (r *reclaimer) add(inos ...uint64) {
	if len(inos) == 0 {
		return
	}
	r.mu.Lock()
	if len(r.queue)+len(inos) > maxQueue {
		r.queue, r.all = r.queue[:0], true
	} else if !r.all {
		r.queue = append(r.queue, inos...)
	}
	r.mu.Unlock()
	r.signal()
}

func (r *reclaimer) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reclaimer) take() (queue []uint64, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	queue, all = r.queue, r.all
	r.queue, r.all = nil, false
	return queue, all
}

func (r *reclaimer) run(ctx context.Context, fs *FS) {
	defer close(r.done)
	for {
		queue, all := r.take()
		for _, ino := range queue {
			fs.reclaim(ctx, ino)
		}
		if all {
			fs.reclaimAll(ctx)
		}
		if queue == nil && !all {
			select {
			case <-r.wake:
			case <-ctx.Done():
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// Reclaim begins to free the orphans that HoldOrphans kept.
func (fs *FS) Reclaim() {
	r := &fs.reclaimer
	r.holding.Store(false)
	r.mu.Lock()
	r.all = true
	r.mu.Unlock()
	r.signal()
}

// reclaimAll looks at every row under keyReclaim.
func (fs *FS) reclaimAll(ctx context.Context) {
	lo, hi := []byte{keyReclaim}, []byte{keyReclaim + 1}
	for ctx.Err() == nil {
		var inos []uint64
		err := fs.capsule.Scan(lo, hi, func(k, v []byte) (bool, error) {
			if ino, ok := parseIno(k); ok {
				inos = append(inos, ino)
			}
			return len(inos) < dirPage, nil
		})
		if err != nil || len(inos) == 0 {
			return
		}
		for _, ino := range inos {
			fs.reclaim(ctx, ino)
		}
		last := inos[len(inos)-1]
		lo = next(reclaimKey(last))
	}
}

// reclaim frees what an inode can give up: all of it, if it is an orphan that
// nobody holds, or what a truncation left over. What fails stays marked, and is
// tried when the tree is opened next.
func (fs *FS) reclaim(ctx context.Context, ino uint64) {
	for done := false; !done; {
		err := fs.update(ctx, func(t *txn) error {
			in, err := t.get(ino)
			if capsule.KindOf(err) == capsule.Stale {
				done = true
				return t.tx.Delete(reclaimKey(ino))
			}
			if err != nil {
				return err
			}
			if in.Nlink > 0 || fs.reclaimer.holding.Load() || fs.nodes.held(ino) {
				done = true
				return nil
			}
			if done, err = t.free(in); done && err == nil {
				err = t.tx.Delete(reclaimKey(ino))
			}
			return err
		})
		if err != nil {
			return
		}
	}
	in, err := fs.inode(ino)
	if err != nil || !in.has(hasTrim) {
		return
	}
	n := fs.nodes.hold(ino)
	defer fs.release(n)
	for from := int64(0); from < toEnd; { // step by step, so that users of the file get in between
		n.data.Lock()
		from, err = fs.trim(ctx, ino, from)
		n.data.Unlock()
		if err != nil {
			return
		}
	}
}

// release lets go of a node; what it kept alive is freed.
func (fs *FS) release(n *node) {
	if fs.nodes.release(n) {
		fs.reclaimer.add(n.ino)
	}
}

// finishTrim gives up what a truncation left beyond a file's size, which must
// not come back when the file grows. The file's data lock is held.
func (fs *FS) finishTrim(ctx context.Context, ino uint64) (err error) {
	for from := int64(0); from < toEnd && err == nil; {
		from, err = fs.trim(ctx, ino, from)
	}
	return err
}

// trim does one step of finishTrim, of which those before got as far as from.
// It returns where the next one begins, or toEnd.
func (fs *FS) trim(ctx context.Context, ino uint64, from int64) (next int64, err error) {
	in, err := fs.inode(ino)
	if err != nil || !in.has(hasTrim) {
		return toEnd, err
	}
	err = fs.update(ctx, func(t *txn) error {
		in, err := t.get(ino)
		if err != nil {
			return err
		}
		next, err = t.punch(in, max(from, in.Size))
		if next < toEnd || err != nil {
			return err
		}
		in.setFlag(hasTrim, false)
		t.staged(in).changed = true
		if in.Nlink == 0 {
			return nil // the row stays for the orphan
		}
		return t.tx.Delete(reclaimKey(ino))
	})
	return next, err
}
