package tree

import (
	"context"
	"sync"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
)

// live is a capsule of the store as trees want it.
type live struct{ *store.Live }

func (l live) Update(ctx context.Context, fn func(tx Tx) error) error {
	return l.Live.Update(ctx, func(u *store.Update) error { return fn(u) })
}

// Trees are the trees of a store that are open: each once, whatever views it
// is shown through, since open files, locks and news of changes are in [FS].
type Trees struct {
	store *store.Store

	mu       sync.Mutex
	holding  bool // orphans stay, until Reclaim
	open     map[shareKey]*share
	checking map[capsule.ID]bool // by Check, for repair
}

type shareKey struct {
	id       capsule.ID
	snapshot string
}

// share is an open tree and how many use it.
type share struct {
	fs   *FS
	live *store.Live
	uses int
}

// NewTrees returns the trees of a store.
func NewTrees(s *store.Store) *Trees {
	return &Trees{store: s, open: map[shareKey]*share{}, checking: map[capsule.ID]bool{}}
}

// Create makes a capsule with an empty tree, of which new says how the root is.
func (t *Trees) Create(ctx context.Context, name string, policy *capsule.Policy, new New, quota Quota) (capsule.Info, error) {
	if err := quota.check(); err != nil {
		return capsule.Info{}, err
	}
	req := store.CreateRequest{Kind: capsule.Tree, Name: name, Policy: policy}
	return t.store.Create(ctx, req, func(u *store.Update) error {
		if err := format(u, new, time.Now()); err != nil || quota == (Quota{}) {
			return err
		}
		return u.Set(key(keyQuota), quota.encode())
	})
}

// HoldOrphans keeps files that have no name any more in all trees until Reclaim
// is called: views that take over open files can open them again first.
func (t *Trees) HoldOrphans() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.holding = true
}

// Reclaim begins to free the orphans that HoldOrphans kept.
func (t *Trees) Reclaim() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.holding = false
	for _, s := range t.open {
		s.fs.Reclaim()
	}
}

// Open returns a tree, or a snapshot of it unless that is "". Whoever opened it
// calls done when it is needed no more.
func (t *Trees) Open(ctx context.Context, id capsule.ID, snapshot string) (fs *FS, done func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.checking[id] && snapshot == "" {
		return nil, nil, capsule.Errorf(capsule.Conflict, "capsule %s is being repaired; try again when that is done", id)
	}
	k := shareKey{id, snapshot}
	l, err := t.store.OpenLive(ctx, id, snapshot)
	if err != nil {
		return nil, nil, err
	}
	s := t.open[k]
	if s != nil && s.live.Same(l) {
		l.Close()
	} else { // of a snapshot: another one may have had the name
		if s, err = newShare(ctx, l, t.holding); err != nil {
			l.Close()
			return nil, nil, err
		}
		t.open[k] = s
	}
	s.uses++
	return s.fs, sync.OnceFunc(func() { t.release(k, s) }), nil
}

func newShare(ctx context.Context, l *store.Live, holdOrphans bool) (*share, error) {
	info := l.Info()
	if info.Kind != capsule.Tree {
		return nil, capsule.Errorf(capsule.Unsupported, "capsule %s is a %s and no tree", info.ID, info.Kind)
	}
	fs, err := Open(ctx, live{l}, Options{HoldOrphans: holdOrphans})
	if err != nil {
		return nil, capsule.Wrap(capsule.Other, err, "capsule %s", info.ID)
	}
	return &share{fs: fs, live: l}, nil
}

func (t *Trees) release(k shareKey, s *share) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.uses--; s.uses > 0 {
		return
	}
	if t.open[k] == s {
		delete(t.open, k)
	}
	s.fs.Close()
	s.live.Close()
}

// Check is [Check] for a tree of the store. Without repair it looks at a
// snapshot, so whoever uses the tree goes on. With it nobody may have the tree open.
func (t *Trees) Check(ctx context.Context, id capsule.ID, repair bool, report func(Problem)) error {
	if !repair {
		return t.AtRest(ctx, id, "fsck", func(snapshot string) error { return t.check(ctx, id, snapshot, report) })
	}
	if err := t.reserve(id); err != nil {
		return err
	}
	defer t.unreserve(id)
	return t.check(ctx, id, "", report)
}

// check checks a snapshot, or if that is "" the tree itself, which it repairs.
func (t *Trees) check(ctx context.Context, id capsule.ID, snapshot string, report func(Problem)) error {
	repair := snapshot == ""
	l, err := t.store.OpenLive(ctx, id, snapshot)
	if err != nil {
		return err
	}
	defer l.Close()
	if kind := l.Info().Kind; kind != capsule.Tree {
		return capsule.Errorf(capsule.Unsupported, "capsule %s is a %s and no tree", id, kind)
	}
	if err := Check(ctx, live{l}, repair, report); err != nil || !repair {
		return err
	}
	return l.Sync(ctx)
}

// AtRest calls fn with the name of a snapshot that is there while fn runs: the
// tree at one moment, whoever goes on with it. The name begins with why.
func (t *Trees) AtRest(ctx context.Context, id capsule.ID, why string, fn func(snapshot string) error) (err error) {
	snapshot := why + "-" + capsule.NewID(time.Now()).String()
	if _, err := t.store.Snapshot(ctx, id, snapshot); err != nil {
		return err
	}
	defer func() {
		if derr := t.store.DeleteSnapshot(context.WithoutCancel(ctx), id, snapshot); err == nil {
			err = derr
		}
	}()
	return fn(snapshot)
}

// Diff is [Diff] for two snapshots of a tree of the store; to may be "": the
// tree as it is.
func (t *Trees) Diff(ctx context.Context, id capsule.ID, from, to string, fn func(Difference) error) error {
	if to == "" {
		return t.AtRest(ctx, id, "diff", func(now string) error { return t.Diff(ctx, id, from, now, fn) })
	}
	old, done, err := t.Open(ctx, id, from)
	if err != nil {
		return err
	}
	defer done()
	new, done, err := t.Open(ctx, id, to)
	if err != nil {
		return err
	}
	defer done()
	return Diff(ctx, old, new, fn)
}

// reserve keeps a tree for a check alone.
func (t *Trees) reserve(id capsule.ID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[shareKey{id: id}] != nil || t.checking[id] {
		return capsule.Errorf(capsule.Conflict, "capsule %s is in use; end its projections, then repair it", id)
	}
	t.checking[id] = true
	return nil
}

func (t *Trees) unreserve(id capsule.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.checking, id)
}
