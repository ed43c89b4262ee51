package node

import (
	"context"
	"io"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/views"
	"github.com/spacestore/space/views/fuse"
)

// mount projects through the FUSE view, or where there is no FUSE through its
// portable fallback.
func (n *node) mount(ctx context.Context, req control.MountRequest) (*views.Projection, error) {
	o := fuse.Options{Target: req.Target, Snapshot: req.Snapshot, ReadOnly: req.ReadOnly, Scratch: n.home, AllowOther: req.AllowOther, Logger: n.log}
	if n.holder != nil {
		o.Holder = n.holder
	}
	if !req.All {
		info, err := n.store.Resolve(ctx, req.Ref)
		if err != nil {
			return nil, err
		}
		o.Capsule = info.ID
	}
	s := fuseStore{n.store, n.trees}
	if ok, why := fuse.Available(); !ok {
		n.log.Warn("no FUSE here; writing plain files instead", "why", why, "target", req.Target)
		return fuse.Copy(ctx, s, o)
	}
	p, err := fuse.Mount(ctx, s, o)
	if capsule.KindOf(err) == capsule.Unavailable { // the device is there, but we may not mount
		n.log.Warn("no FUSE here; writing plain files instead", "why", err, "target", req.Target)
		return fuse.Copy(ctx, s, o)
	}
	return p, err
}

// fuseStore is the store as the FUSE view wants to see it.
type fuseStore struct {
	*store.Store
	trees *tree.Trees
}

func (s fuseStore) OpenTree(ctx context.Context, id capsule.ID, snapshot string) (*tree.FS, func(), error) {
	return s.trees.Open(ctx, id, snapshot)
}

func (s fuseStore) Replace(ctx context.Context, id capsule.ID, version uint64, r io.Reader, size int64) (capsule.Info, error) {
	return s.Store.Put(ctx, store.PutRequest{ID: id, Version: version, Size: size}, r)
}

func (s fuseStore) OpenVolume(ctx context.Context, id capsule.ID, snapshot string, write bool) (fuse.Volume, error) {
	mode := store.ReadVolume
	if write {
		mode = store.WriteVolume
	}
	v, err := s.Store.OpenVolume(ctx, id, snapshot, mode)
	if err != nil {
		return nil, err // and not a nil *store.Volume
	}
	return v, nil
}

func (s fuseStore) Open(ctx context.Context, id capsule.ID) (fuse.Reader, error) {
	r, err := s.Store.Open(ctx, id)
	if err != nil {
		return nil, err // and not a nil *store.Reader
	}
	return r, nil
}

func (s fuseStore) ReadDir(ctx context.Context, dir, after string, limit int) ([]fuse.DirEntry, error) {
	entries, err := s.Store.ReadDir(ctx, dir, after, limit)
	out := make([]fuse.DirEntry, len(entries))
	for i, e := range entries {
		out[i] = fuse.DirEntry(e)
	}
	return out, err
}

func (s fuseStore) Watch(fn func(fuse.Change)) (cancel func()) {
	return s.Store.Watch(func(c store.Change) { fn(fuse.Change(c)) })
}
