package fuse

import (
	"context"
	"io"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/tree"
)

// realStore is the store as the view wants to see it.
type realStore struct {
	*store.Store
	trees *tree.Trees
}

func newRealStore(s *store.Store) realStore { return realStore{s, tree.NewTrees(s)} }

func (s realStore) OpenTree(ctx context.Context, id capsule.ID, snapshot string) (*tree.FS, func(), error) {
	return s.trees.Open(ctx, id, snapshot)
}

func (s realStore) Replace(ctx context.Context, id capsule.ID, version uint64, r io.Reader, size int64) (capsule.Info, error) {
	return s.Store.Put(ctx, store.PutRequest{ID: id, Version: version, Size: size}, r)
}

func (s realStore) OpenVolume(ctx context.Context, id capsule.ID, snapshot string, write bool) (Volume, error) {
	mode := store.ReadVolume
	if write {
		mode = store.WriteVolume
	}
	v, err := s.Store.OpenVolume(ctx, id, snapshot, mode)
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (s realStore) Open(ctx context.Context, id capsule.ID) (Reader, error) {
	r, err := s.Store.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (s realStore) ReadDir(ctx context.Context, dir, after string, limit int) ([]DirEntry, error) {
	entries, err := s.Store.ReadDir(ctx, dir, after, limit)
	out := make([]DirEntry, len(entries))
	for i, e := range entries {
		out[i] = DirEntry(e)
	}
	return out, err
}

func (s realStore) Watch(fn func(Change)) func() {
	return s.Store.Watch(func(c store.Change) { fn(Change(c)) })
}
