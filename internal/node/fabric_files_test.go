package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/internal/control"
)

// TestFabricFiles has two nodes that offer different contents under one name, and one
// that says whose it wants.
func TestFabricFiles(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), fabricHung)
	defer cancel()
	dir := t.TempDir()
	offer := func(f *fabricNode, text string) {
		t.Helper()
		path := filepath.Join(dir, text)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		ready, done := make(chan struct{}), make(chan error, 1)
		job, end := context.WithCancel(ctx)
		go func() {
			done <- f.Send(job, control.SendRequest{Path: path, Name: "it"}, func(e control.JobEvent) error {
				if e.Ready != "" {
					close(ready)
				}
				return nil
			})
		}()
		t.Cleanup(func() { end(); <-done })
		select {
		case <-ready:
		case err := <-done:
			t.Fatal(err)
		}
	}
	home := t.TempDir()
	if _, err := InitFabric(home, "first", ""); err != nil {
		t.Fatal(err)
	}
	first, _ := newFabricNode(t, home, FabricConfig{})
	join := func(name string) *fabricNode {
		t.Helper()
		token, err := first.NewToken(ctx, control.TokenRequest{Life: time.Hour, Uses: 1})
		if err != nil {
			t.Fatal(err)
		}
		home := t.TempDir()
		if _, err := JoinFabric(ctx, home, token, name, ""); err != nil {
			t.Fatal(err)
		}
		f, _ := newFabricNode(t, home, FabricConfig{})
		return f
	}
	second, third := join("second"), join("third")
	offer(first, "one")
	offer(second, "two")
	receive := func(to string, from ...string) (string, error) {
		target := filepath.Join(dir, to)
		for { // until the directory knows both
			err := third.Receive(ctx, control.ReceiveRequest{Name: "it", Target: target, From: from, Background: true, Wait: fabricHung}, func(control.JobEvent) error { return nil })
			if capsule.KindOf(err) == capsule.NotFound && ctx.Err() == nil {
				continue
			}
			b, _ := os.ReadFile(target)
			return string(b), err
		}
	}
	for name, want := range map[string]string{"first": "one", "second": "two"} {
		if got, err := receive("from-"+name, name); got != want || err != nil {
			t.Errorf("from %s: %q, %v", name, got, err)
		}
	}
	if got, err := receive("both", "second", "first"); got != "two" || err != nil {
		t.Errorf("from both: %q, %v", got, err)
	}
	if _, err := receive("both"); capsule.KindOf(err) != capsule.Exists {
		t.Errorf("again: %v", err)
	}
	for err, want := range map[error]capsule.ErrorKind{
		bulk.ErrDisputed: capsule.Conflict, bulk.ErrFull: capsule.NoSpace, bulk.ErrRoot: capsule.Damaged, bulk.ErrNoMirror: capsule.Unavailable,
	} {
		if e := filesError(err); capsule.KindOf(e) != want || !errors.Is(e, err) {
			t.Errorf("%v: %v", err, e)
		}
	}
}
