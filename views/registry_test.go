package views

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
)

type fakeBackend struct {
	done  chan struct{}
	busy  bool
	lazy  bool
	tries int
}

func (b *fakeBackend) Done() <-chan struct{} { return b.done }

func (b *fakeBackend) Close(lazy bool) error {
	b.tries++
	b.lazy = lazy
	if b.busy && !lazy {
		return capsule.Errorf(capsule.Conflict, "busy")
	}
	select {
	case <-b.done:
	default:
		close(b.done)
	}
	return nil
}

func start(t *testing.T, r *Registry, target string, since int) (*Projection, *fakeBackend) {
	t.Helper()
	b := &fakeBackend{done: make(chan struct{})}
	p, err := r.Start(func() (*Projection, error) {
		return &Projection{Info: Info{Target: target, Since: time.Unix(int64(since), 0)}, Backend: b}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p, b
}

func TestRegistry(t *testing.T) {
	idle := make(chan struct{}, 10)
	r := NewRegistry(func() { idle <- struct{}{} })
	second, _ := start(t, r, "/b", 2)
	first, fb := start(t, r, "/a", 1)
	list := r.List()
	if len(list) != 2 || list[0].ID != first.ID || list[1].ID != second.ID || first.ID == second.ID {
		t.Errorf("list is %+v", list)
	}
	for _, ref := range []string{first.ID, "/a"} {
		if p, err := r.Find(ref); err != nil || p != first {
			t.Errorf("find %q: %v, %v", ref, p, err)
		}
	}
	if _, err := r.Find("/c"); capsule.KindOf(err) != capsule.NotFound || !strings.Contains(err.Error(), "/c") {
		t.Errorf("find of nothing: %v", err)
	}
	if r.Seal() {
		t.Error("sealed with projections running")
	}
	// One ends by itself, one is closed; then the node hears of it, once.
	close(fb.done)
	if err := second.Close(false); err != nil {
		t.Fatal(err)
	}
	<-idle
	if len(r.List()) != 0 || len(idle) != 0 {
		t.Errorf("left %v, told %d times more", r.List(), len(idle))
	}
	if !r.Seal() {
		t.Error("not sealed though idle")
	}
	_, err := r.Start(func() (*Projection, error) { t.Error("started"); return nil, errors.New("x") })
	if capsule.KindOf(err) != capsule.Unavailable {
		t.Errorf("start after the seal: %v", err)
	}
}

func TestRegistryFindsThroughLinks(t *testing.T) {
	r := NewRegistry(func() {})
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	p, _ := start(t, r, filepath.Join(dir, "m"), 1)
	if got, err := r.Find(filepath.Join(link, "m")); err != nil || got != p {
		t.Errorf("found %v, %v", got, err)
	}
}

// What has left its target goes on under its ID; the target's name is the next one's.
func TestRegistryFindsTheNewest(t *testing.T) {
	r := NewRegistry(func() {})
	var newest *Projection
	for i := range 20 {
		newest, _ = start(t, r, "/m", i)
	}
	if got, err := r.Find("/m"); err != nil || got != newest {
		t.Errorf("found %+v, %v", got, err)
	}
}

func TestRegistryStartFails(t *testing.T) {
	idle := make(chan struct{}, 10)
	r := NewRegistry(func() { idle <- struct{}{} })
	boom := errors.New("boom")
	_, err := r.Start(func() (*Projection, error) {
		if r.Seal() {
			t.Error("sealed while one starts")
		}
		return nil, boom
	})
	if err != boom {
		t.Errorf("error is %v", err)
	}
	<-idle // a node that was started for this one must not stay for ever
}

func TestRegistryIsBounded(t *testing.T) {
	r := NewRegistry(func() {})
	for i := range MaxProjections {
		start(t, r, "/x", i)
	}
	_, err := r.Start(func() (*Projection, error) { t.Error("started"); return nil, errors.New("x") })
	if capsule.KindOf(err) != capsule.Unavailable || !strings.Contains(err.Error(), "1024") {
		t.Errorf("error is %v", err)
	}
}

func TestCloseAll(t *testing.T) {
	idle := make(chan struct{}, 10)
	r := NewRegistry(func() { idle <- struct{}{} })
	_, a := start(t, r, "/a", 1)
	_, b := start(t, r, "/b", 2)
	b.busy = true
	if errs := r.CloseAll(); len(errs) != 0 {
		t.Error(errs)
	}
	<-idle
	if a.tries != 1 || b.tries != 1 || !b.lazy {
		t.Errorf("closed %+v %+v", a, b)
	}
}

func TestGate(t *testing.T) {
	if err := Gate(capsule.DefaultPolicy(), FUSE); err != nil {
		t.Error(err)
	}
	err := Gate(&capsule.Policy{Views: capsule.Views{"nfs"}}, FUSE)
	if capsule.KindOf(err) != capsule.Denied || !strings.Contains(err.Error(), "fuse") {
		t.Errorf("error is %v", err)
	}
}
