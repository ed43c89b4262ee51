package control

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/views"
)

// fake is an API of which a test gives the calls that it is about; the others
// answer with next to nothing.
type fake struct {
	put    func(context.Context, store.PutRequest, io.Reader) (capsule.Info, error)
	get    func(context.Context, GetRequest, func(capsule.Info) (io.Writer, error)) error
	stat   func(ref string) (capsule.Stat, error)
	verify func(progress func(done, total int64)) (store.VerifyReport, error)
}

var _ API = (*fake)(nil)

func (f *fake) Put(ctx context.Context, req store.PutRequest, r io.Reader) (capsule.Info, error) {
	if f.put != nil {
		return f.put(ctx, req, r)
	}
	n, err := io.Copy(io.Discard, r)
	return capsule.Info{Size: n}, err
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

func (f *fake) Mount(context.Context, MountRequest) (views.Info, error) {
	return views.Info{}, nil
}
func (f *fake) Projections(context.Context) ([]views.Info, error) { return nil, nil }
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
