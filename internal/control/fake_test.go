package control

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
)

// fake is an API of which a test gives the calls that it expects.
type fake struct {
	API // nil: any other call panics, which the server must survive
	put func(context.Context, store.PutRequest, io.Reader) (capsule.Info, error)
	get func(context.Context, GetRequest, func(capsule.Info) (io.Writer, error)) error
}

func (f *fake) Put(ctx context.Context, req store.PutRequest, r io.Reader) (capsule.Info, error) {
	return f.put(ctx, req, r)
}

func (f *fake) Get(ctx context.Context, req GetRequest, begin func(capsule.Info) (io.Writer, error)) error {
	return f.get(ctx, req, begin)
}

func (f *fake) Status(context.Context) (Status, error) { return Status{Version: "test"}, nil }

// serve puts api on a socket and returns a client of it.
func serve(t testing.TB, api API) *Client {
	return serveAt(t, t.TempDir(), api, DefaultLimits)
}

func serveAt(t testing.TB, home string, api API, limits Limits) *Client {
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
