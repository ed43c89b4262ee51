package node

import (
	"context"
	"io"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control"
)

// CreateVolume implements control.API.
func (l *Local) CreateVolume(ctx context.Context, req store.CreateRequest) (capsule.Info, error) {
	req.Kind = capsule.Volume
	return l.store.Create(ctx, req, nil)
}

// ResizeVolume implements control.API.
func (l *Local) ResizeVolume(ctx context.Context, ref string, size int64) (capsule.Info, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return capsule.Info{}, err
	}
	return l.store.ResizeVolume(ctx, info.ID, size)
}

// ImportVolume implements control.API.
func (l *Local) ImportVolume(ctx context.Context, req store.CreateRequest, r store.DataReader) (capsule.Info, error) {
	return l.store.Import(ctx, req, r)
}

// ExportVolume implements control.API.
func (l *Local) ExportVolume(ctx context.Context, req control.ExportRequest, begin func(capsule.Info) (io.WriterAt, error)) error {
	info, err := l.store.Resolve(ctx, req.Ref)
	if err != nil {
		return err
	}
	v, err := l.store.OpenVolume(ctx, info.ID, req.Snapshot, store.ReadVolume)
	if err != nil {
		return err
	}
	defer v.Close()
	w, err := begin(v.Info())
	if err != nil {
		return err
	}
	return v.Export(ctx, w)
}

// Snapshot implements control.API.
func (l *Local) Snapshot(ctx context.Context, ref, name string) (capsule.Snapshot, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return capsule.Snapshot{}, err
	}
	return l.store.Snapshot(ctx, info.ID, name)
}

// Snapshots implements control.API.
func (l *Local) Snapshots(ctx context.Context, ref string) ([]capsule.Snapshot, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	return l.store.Snapshots(ctx, info.ID)
}

// DeleteSnapshot implements control.API.
func (l *Local) DeleteSnapshot(ctx context.Context, ref, name string) error {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	return l.store.DeleteSnapshot(ctx, info.ID, name)
}

// Rollback implements control.API.
func (l *Local) Rollback(ctx context.Context, ref, snapshot string) (capsule.Info, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return capsule.Info{}, err
	}
	return l.store.Rollback(ctx, info.ID, snapshot)
}

// Clone implements control.API.
func (l *Local) Clone(ctx context.Context, ref, snapshot, name string) (capsule.Info, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return capsule.Info{}, err
	}
	return l.store.Clone(ctx, info.ID, snapshot, name)
}

// Diff implements control.API.
func (l *Local) Diff(ctx context.Context, req control.DiffRequest, fn func(store.Range) error) error {
	info, err := l.store.Resolve(ctx, req.Ref)
	if err != nil {
		return err
	}
	return l.store.Diff(ctx, info.ID, req.From, req.To, fn)
}

// SnapshotPolicy implements control.API.
func (l *Local) SnapshotPolicy(ctx context.Context, ref string) (capsule.SnapshotPolicy, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return capsule.SnapshotPolicy{}, err
	}
	return l.store.SnapshotPolicy(ctx, info.ID)
}

// SetSnapshotPolicy implements control.API.
func (l *Local) SetSnapshotPolicy(ctx context.Context, ref string, p capsule.SnapshotPolicy) (capsule.SnapshotPolicy, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return capsule.SnapshotPolicy{}, err
	}
	if err := l.store.SetSnapshotPolicy(ctx, info.ID, p); err != nil {
		return capsule.SnapshotPolicy{}, err
	}
	return l.store.SnapshotPolicy(ctx, info.ID)
}
