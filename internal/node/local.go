package node

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/views"
)

// Local is the control API over a store that this process holds, without
// projections: those need a node.
type Local struct {
	store   *store.Store
	trees   *tree.Trees
	version string
	started time.Time
}

var _ control.API = (*Local)(nil)

func newLocal(s *store.Store, version string) *Local {
	return &Local{store: s, trees: tree.NewTrees(s), version: version, started: time.Now()}
}

// Close closes the store.
func (l *Local) Close() error { return l.store.Close() }

// Put implements control.API.
func (l *Local) Put(ctx context.Context, req store.PutRequest, r io.Reader) (capsule.Info, error) {
	return l.store.Put(ctx, req, r)
}

// PutAll implements control.API.
func (l *Local) PutAll(ctx context.Context, contents []store.Content, taken func()) []store.PutResult {
	return l.store.PutAll(ctx, contents, taken)
}

// Get implements control.API.
func (l *Local) Get(ctx context.Context, req control.GetRequest, begin func(capsule.Info) (io.Writer, error)) error {
	info, err := l.store.Resolve(ctx, req.Ref)
	if err != nil {
		return err
	}
	r, err := l.store.Open(ctx, info.ID)
	if err != nil {
		return err
	}
	defer r.Close()
	info = r.Info() // of the version that Open pinned
	if req.Offset < 0 || req.Offset > info.Size {
		return capsule.Errorf(capsule.Invalid, "offset %d is outside of capsule %s, which holds %d bytes", req.Offset, info.ID, info.Size)
	}
	n := info.Size - req.Offset
	if req.Length >= 0 {
		n = min(n, req.Length)
	}
	w, err := begin(info)
	if err != nil {
		return err
	}
	_, err = r.Stream(ctx, w, req.Offset, n)
	return err
}

// Resolve implements control.API.
func (l *Local) Resolve(ctx context.Context, ref string) (capsule.Info, error) {
	return l.store.Resolve(ctx, ref)
}

// Stat implements control.API.
func (l *Local) Stat(ctx context.Context, ref string) (capsule.Stat, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return capsule.Stat{}, err
	}
	return l.store.Stat(ctx, info.ID)
}

// List implements control.API.
func (l *Local) List(ctx context.Context, q store.ListQuery) (store.Page, error) {
	return l.store.List(ctx, q)
}

// Rename implements control.API.
func (l *Local) Rename(ctx context.Context, ref, name string) (capsule.Info, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return capsule.Info{}, err
	}
	return l.store.Rename(ctx, info.ID, name)
}

// Remove implements control.API.
func (l *Local) Remove(ctx context.Context, ref string) (capsule.Info, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return capsule.Info{}, err
	}
	return info, l.store.Remove(ctx, info.ID)
}

// Policy implements control.API.
func (l *Local) Policy(ctx context.Context, ref string) (*capsule.Policy, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	return l.store.Policy(ctx, info.ID)
}

// SetPolicy implements control.API.
func (l *Local) SetPolicy(ctx context.Context, ref string, p *capsule.Policy) (capsule.Info, error) {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return capsule.Info{}, err
	}
	return info, l.store.SetPolicy(ctx, info.ID, p)
}

// Usage implements control.API.
func (l *Local) Usage(ctx context.Context) (capsule.Usage, error) { return l.store.Usage(ctx) }

// GC implements control.API.
func (l *Local) GC(ctx context.Context, o store.GCOptions, progress func(done, total int64)) (store.GCReport, error) {
	return l.store.GC(ctx, o, progress)
}

// Verify implements control.API.
func (l *Local) Verify(ctx context.Context, req control.VerifyRequest, progress func(done, total int64)) (store.VerifyReport, error) {
	o := store.VerifyOptions{Rate: req.Rate, Resume: req.Resume, Metadata: req.Metadata}
	if req.Ref != "" {
		info, err := l.store.Resolve(ctx, req.Ref)
		if err != nil {
			return store.VerifyReport{}, err
		}
		o.ID = info.ID
	}
	return l.store.Verify(ctx, o, progress)
}

// Keys implements control.API.
func (l *Local) Keys(context.Context) (keyring.Info, error) { return l.store.Keys(), nil }

// RotateKey implements control.API.
func (l *Local) RotateKey(_ context.Context, master *keyring.Source) (keyring.Info, error) {
	if err := l.store.RotateKey(master); err != nil {
		return keyring.Info{}, err
	}
	return l.store.Keys(), nil
}

// ExportKey implements control.API.
func (l *Local) ExportKey(context.Context) (string, error) { return l.store.ExportKey() }

// Mount implements control.API.
func (l *Local) Mount(_ context.Context, req control.MountRequest) (views.Info, error) {
	return views.Info{}, capsule.Errorf(capsule.Unavailable, "mount %s: no node is running", req.Target)
}

// Projections implements control.API.
func (l *Local) Projections(context.Context) ([]views.Info, error) { return nil, nil }

// Clients implements control.API.
func (l *Local) Clients(context.Context) ([]views.Client, error) { return nil, nil }

// Unmount implements control.API. Nothing runs, but what would run again with
// the next node can be ended.
func (l *Local) Unmount(ctx context.Context, ref string, _ bool) (views.Info, error) {
	return forgetNVMe(ctx, l.store, ref)
}

// Wait implements control.API.
func (l *Local) Wait(_ context.Context, ref string) error { return noProjection(ref) }

func noProjection(ref string) error {
	return capsule.Errorf(capsule.NotFound, "no projection %q: no node is running", ref)
}

// Status implements control.API.
func (l *Local) Status(context.Context) (control.Status, error) {
	return control.Status{Version: l.version, PID: os.Getpid(), Started: l.started}, nil
}

// Shutdown implements control.API.
func (l *Local) Shutdown(context.Context) error {
	return capsule.Errorf(capsule.NotFound, "no node is running")
}
