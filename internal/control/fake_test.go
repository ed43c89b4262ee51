package control

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/views"
)

// fake is an API of which a test gives the calls that it is about; the others
// answer with next to nothing.
type fake struct {
	put    func(context.Context, store.PutRequest, io.Reader) (capsule.Info, error)
	get    func(context.Context, GetRequest, func(capsule.Info) (io.Writer, error)) error
	stat   func(ref string) (capsule.Stat, error)
	verify func(progress func(done, total int64)) (store.VerifyReport, error)

	importVolume func(store.CreateRequest, store.DataReader) (capsule.Info, error)
	exportVolume func(ExportRequest, io.WriterAt) error
	diff         func(DiffRequest, func(store.Range) error) error
	diffTree     func(DiffRequest, func(TreeChange) error) error
	snapshots    []capsule.Snapshot
	policy       capsule.SnapshotPolicy
	mount        MountRequest // the last one
	projection   views.Info
	clients      []views.Client
	called       string // the last call that changes something, and what it was given
}

var _ API = (*fake)(nil)

func (f *fake) Put(ctx context.Context, req store.PutRequest, r io.Reader) (capsule.Info, error) {
	if f.put != nil {
		return f.put(ctx, req, r)
	}
	n, err := io.Copy(io.Discard, r)
	return capsule.Info{Size: n}, err
}

func (f *fake) PutAll(context.Context, []store.Content, func()) []store.PutResult {
	panic("a client puts one by one")
}

func (f *fake) Get(ctx context.Context, req GetRequest, begin func(capsule.Info) (io.Writer, error)) error {
	if f.get != nil {
		return f.get(ctx, req, begin)
	}
	_, err := begin(capsule.Info{})
	return err
}

func (f *fake) Stat(_ context.Context, ref string) (capsule.Stat, error) {
	if f.stat != nil {
		return f.stat(ref)
	}
	return capsule.Stat{}, nil
}

func (f *fake) Verify(_ context.Context, _ VerifyRequest, progress func(done, total int64)) (store.VerifyReport, error) {
	if f.verify != nil {
		return f.verify(progress)
	}
	return store.VerifyReport{}, nil
}

func (f *fake) note(format string, args ...any) error {
	f.called = fmt.Sprintf(format, args...)
	return nil
}

func (f *fake) CreateVolume(_ context.Context, r store.CreateRequest) (capsule.Info, error) {
	return capsule.Info{Name: r.Name}, f.note("create %s %d %d %v", r.Name, r.Size, r.BlockSize, r.Policy != nil)
}
func (f *fake) ResizeVolume(_ context.Context, ref string, size int64) (capsule.Info, error) {
	return capsule.Info{Size: size}, f.note("resize %s %d", ref, size)
}
func (f *fake) ImportVolume(_ context.Context, req store.CreateRequest, r store.DataReader) (capsule.Info, error) {
	if f.importVolume != nil {
		return f.importVolume(req, r)
	}
	for buf := make([]byte, 100); ; {
		if _, off, err := r.ReadData(buf); err == io.EOF {
			return capsule.Info{Size: off}, nil
		} else if err != nil {
			return capsule.Info{}, err
		}
	}
}
func (f *fake) ExportVolume(_ context.Context, req ExportRequest, begin func(capsule.Info) (io.WriterAt, error)) error {
	w, err := begin(capsule.Info{Name: req.Ref, Size: 1 << 40})
	if err != nil || f.exportVolume == nil {
		return err
	}
	return f.exportVolume(req, w)
}
func (f *fake) Snapshot(_ context.Context, ref, name string) (capsule.Snapshot, error) {
	return capsule.Snapshot{Name: name, Created: time.Unix(1, 2).UTC(), Size: 3}, f.note("snapshot %s %s", ref, name)
}
func (f *fake) Snapshots(context.Context, string) ([]capsule.Snapshot, error) {
	return f.snapshots, nil
}
func (f *fake) DeleteSnapshot(_ context.Context, ref, name string) error {
	return f.note("delete %s %s", ref, name)
}
func (f *fake) Rollback(_ context.Context, ref, snapshot string) (capsule.Info, error) {
	return capsule.Info{Name: ref}, f.note("rollback %s %s", ref, snapshot)
}
func (f *fake) Clone(_ context.Context, ref, snapshot, name string) (capsule.Info, error) {
	return capsule.Info{Name: name}, f.note("clone %s %s %s", ref, snapshot, name)
}
func (f *fake) Diff(_ context.Context, req DiffRequest, fn func(store.Range) error) error {
	if f.diff == nil {
		return nil
	}
	return f.diff(req, fn)
}
func (f *fake) SnapshotPolicy(context.Context, string) (capsule.SnapshotPolicy, error) {
	return f.policy, nil
}
func (f *fake) SetSnapshotPolicy(_ context.Context, ref string, p capsule.SnapshotPolicy) (capsule.SnapshotPolicy, error) {
	f.policy = p
	return p, f.note("policy %s", ref)
}

func (f *fake) Resolve(context.Context, string) (capsule.Info, error) { return capsule.Info{}, nil }
func (f *fake) List(context.Context, store.ListQuery) (store.Page, error) {
	return store.Page{Capsules: []capsule.Info{{Name: "a"}}}, nil
}
func (f *fake) Rename(context.Context, string, string) (capsule.Info, error) {
	return capsule.Info{}, nil
}
func (f *fake) Remove(context.Context, string) (capsule.Info, error) { return capsule.Info{}, nil }
func (f *fake) Policy(context.Context, string) (*capsule.Policy, error) {
	return capsule.DefaultPolicy(), nil
}
func (f *fake) SetPolicy(context.Context, string, *capsule.Policy) (capsule.Info, error) {
	return capsule.Info{}, nil
}
func (f *fake) Usage(context.Context) (capsule.Usage, error) { return capsule.Usage{}, nil }
func (f *fake) GC(context.Context, store.GCOptions, func(done, total int64)) (store.GCReport, error) {
	return store.GCReport{}, nil
}
func (f *fake) Keys(context.Context) (keyring.Info, error) { return keyring.Info{}, nil }
func (f *fake) RotateKey(context.Context, *keyring.Source) (keyring.Info, error) {
	return keyring.Info{}, nil
}
func (f *fake) ExportKey(context.Context) (string, error) { return "", nil }
func (f *fake) CreateTree(context.Context, CreateTreeRequest) (capsule.Info, error) {
	return capsule.Info{}, nil
}

func (f *fake) Mount(_ context.Context, req MountRequest) (views.Info, error) {
	f.mount = req
	return f.projection, nil
}
func (f *fake) Projections(context.Context) ([]views.Info, error) {
	return []views.Info{f.projection}, nil
}
func (f *fake) Clients(context.Context) ([]views.Client, error) { return f.clients, nil }
func (f *fake) Unmount(context.Context, string, bool) (views.Info, error) {
	return views.Info{}, nil
}
func (f *fake) Wait(context.Context, string) error     { return nil }
func (f *fake) Status(context.Context) (Status, error) { return Status{Version: "test"}, nil }
func (f *fake) Shutdown(context.Context) error         { return nil }

// serve puts api on a socket and returns a client of it.
func serve(t testing.TB, api API) *Client {
	return serveAt(t, t.TempDir(), api, DefaultLimits)
}

func serveAt(t testing.TB, home string, api API, limits Limits) *Client {
	t.Helper()
	l, err := Listen(home)
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(api, slog.New(slog.DiscardHandler), limits)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	c, err := Dial(t.Context(), home)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (f *fake) TreeQuota(context.Context, TreeQuotaRequest) (tree.Usage, error) {
	return tree.Usage{}, nil
}
func (f *fake) ImportTree(_ context.Context, _ string, tar io.Reader) error {
	_, err := io.Copy(io.Discard, tar)
	return err
}
func (f *fake) ExportTree(context.Context, ExportRequest, io.Writer) error { return nil }
func (f *fake) ListTree(context.Context, ListTreeRequest, func(TreeEntry) error) error {
	return nil
}
func (f *fake) DiffTree(_ context.Context, req DiffRequest, fn func(TreeChange) error) error {
	if f.diffTree == nil {
		return nil
	}
	return f.diffTree(req, fn)
}
func (f *fake) CheckTree(context.Context, string, bool, func(tree.Problem)) error { return nil }
