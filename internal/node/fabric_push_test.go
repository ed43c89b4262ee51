package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/internal/control"
)

// twoNodes are nodes of one fabric that know each other.
func twoNodes(t *testing.T, ctx context.Context) (first, second *fabricNode) {
	t.Helper()
	homes := []string{t.TempDir(), t.TempDir()}
	if _, err := InitFabric(homes[0], "first", ""); err != nil {
		t.Fatal(err)
	}
	first, _ = newFabricNode(t, homes[0], FabricConfig{})
	token, err := first.NewToken(ctx, control.TokenRequest{Life: time.Hour, Uses: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := JoinFabric(ctx, homes[1], token, "second", ""); err != nil {
		t.Fatal(err)
	}
	second, _ = newFabricNode(t, homes[1], FabricConfig{})
	for name := ""; name == ""; { // until the news has come
		changed := first.Changed()
		for _, n := range first.Node.Nodes() {
			if n.Node == second.ID() {
				name = n.Name
			}
		}
		if name == "" {
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			}
		}
	}
	return first, second
}

// job runs a job of a node until the test ends, and returns when it is ready.
func job(t *testing.T, ctx context.Context, run func(context.Context, func(control.JobEvent) error) error, tell func(control.JobEvent)) (end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- run(ctx, func(e control.JobEvent) error {
			if e.Ready != "" {
				close(ready)
			}
			if tell != nil {
				tell(e)
			}
			return nil
		})
		close(done)
	}()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return func() error { cancel(); return <-done }
}

// somethingToPush makes a file, and a directory for it to go to.
func somethingToPush(t *testing.T, name string) (path, into string) {
	t.Helper()
	dir := t.TempDir()
	path, into = filepath.Join(dir, name), filepath.Join(dir, "in")
	if err := errors.Join(os.WriteFile(path, []byte("content"), 0o640), os.Mkdir(into, 0o700)); err != nil {
		t.Fatal(err)
	}
	return path, into
}

// TestFabricPush sends files to a node: which has agreed, has not, or is not the one that
// says it is.
func TestFabricPush(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), fabricHung)
	defer cancel()
	first, second := twoNodes(t, ctx)
	path, into := somethingToPush(t, "some file")
	var last control.TransferState
	send := func(name string, wait time.Duration) error {
		last = control.TransferState{}
		return first.Send(ctx, control.SendRequest{Path: path, Name: name, To: "second", Wait: wait}, func(e control.JobEvent) error {
			if e.Transfer != nil {
				last = *e.Transfer
			}
			return nil
		})
	}
	// Nobody has agreed.
	if err := send("a", 0); capsule.KindOf(err) != capsule.NotFound || !strings.Contains(err.Error(), "fabric accept DIR --from "+first.ID().String()) {
		t.Errorf("to a node that takes nothing: %v", err)
	}
	// Another one takes what is for it.
	p, err := first.Provide(fabric.Service{Profile: pushProfile(), Pool: second.ID().String(), Kind: inboxKind})
	if err != nil {
		t.Fatal(err)
	}
	if err := send("a", 0); capsule.KindOf(err) != capsule.NotFound {
		t.Errorf("to a node that says it is another one: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, r := range []control.AcceptRequest{{Into: into}, {Into: into, From: []string{"first"}}, {Into: path, From: []string{first.ID().String()}}} {
		if err := second.Accept(ctx, r, func(control.JobEvent) error { return nil }); capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("%+v: %v", r, err)
		}
	}
	// It has agreed, but not with this one.
	end := job(t, ctx, func(ctx context.Context, tell func(control.JobEvent) error) error {
		return second.Accept(ctx, control.AcceptRequest{Into: into, From: []string{second.ID().String()}}, tell)
	}, nil)
	if err := send("a", fabricHung); capsule.KindOf(err) != capsule.Denied || !strings.Contains(err.Error(), first.ID().String()) {
		t.Errorf("to a node that takes nothing from this one: %v", err)
	}
	if list, _ := os.ReadDir(into); len(list) > 0 {
		t.Errorf("%v were made", list)
	}
	arrived := make(chan control.TransferState, 10)
	both := job(t, ctx, func(ctx context.Context, tell func(control.JobEvent) error) error {
		return second.Accept(ctx, control.AcceptRequest{Into: into, From: []string{first.ID().String()}, Times: 1, MaxSize: 100}, tell)
	}, func(e control.JobEvent) {
		if e.Transfer != nil && e.Transfer.State == control.TransferDone {
			arrived <- *e.Transfer
		}
	})
	if err := end(); err != nil { // the other rule holds still
		t.Error(err)
	}
	for _, name := range []string{"../a", ".a", "in/a", ""} {
		if err := send(name, fabricHung); name != "" && capsule.KindOf(err) != capsule.Denied || err == nil {
			t.Errorf("as %q: %v", name, err)
		}
	}
	if err := send("some file", fabricHung); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(into, "some file"))
	if err != nil || string(got) != "content" {
		t.Errorf("%q: %v", got, err)
	}
	there := <-arrived
	if there.Path != filepath.Join(into, "some file") || there.Peer != first.ID().String() || there.Bytes != 7 || there.Hash == "" || there.Hash != last.Hash || last.State != control.TransferDone {
		t.Errorf("there %+v, here %+v", there, last)
	}
	if err := both(); err != nil { // enough has come
		t.Error(err)
	}
}

// TestFabricPushTurn has a node that takes as much as it does from another one already:
// what that sends waits, and what others send does not.
func TestFabricPushTurn(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), fabricHung)
	defer cancel()
	first, second := twoNodes(t, ctx)
	path, into := somethingToPush(t, "file")
	job(t, ctx, func(ctx context.Context, tell func(control.JobEvent) error) error {
		return second.Accept(ctx, control.AcceptRequest{Into: into, From: []string{first.ID().String()}}, tell)
	}, nil)
	var leave []func()
	for range maxPushesOf {
		leave = append(leave, second.inbox.slot(first.ID()))
	}
	if second.inbox.slot(first.ID()) != nil {
		t.Fatal("there is place for one more")
	}
	if other := second.inbox.slot(second.ID()); other == nil {
		t.Fatal("there is none for another node")
	} else {
		other()
	}
	waited := false
	if err := first.Send(ctx, control.SendRequest{Path: path, Name: "file", To: "second", Wait: fabricHung}, func(e control.JobEvent) error {
		if strings.Contains(e.Note, "turn") {
			if waited {
				t.Error("it says again that it waits")
			}
			waited = true
			leave[0]()
		}
		return nil
	}); err != nil || !waited {
		t.Errorf("it waited: %v; %v", waited, err)
	}
	for _, l := range leave[1:] {
		l()
	}
	if got, err := os.ReadFile(filepath.Join(into, "file")); err != nil || string(got) != "content" {
		t.Errorf("%q: %v", got, err)
	}
}

// TestFabricTransfers pauses, slows down and cancels what a node receives, and finds it
// paused when it is started again.
func TestFabricTransfers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), fabricHung)
	defer cancel()
	first, second := twoNodes(t, ctx)
	dir := t.TempDir()
	path, target := filepath.Join(dir, "file"), filepath.Join(dir, "got")
	if err := os.WriteFile(path, make([]byte, 40<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	job(t, ctx, func(ctx context.Context, tell func(control.JobEvent) error) error {
		return first.Send(ctx, control.SendRequest{Path: path, Name: "it"}, tell)
	}, nil)
	only := func(f *fabricNode) control.TransferState {
		list, err := f.Transfers(ctx)
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v: %v", list, err)
		}
		return list[0]
	}
	offer := only(first)
	if offer.Kind != control.TransferOffer || offer.Name != "it" || offer.Path != path {
		t.Errorf("the offer: %+v", offer)
	}
	for _, c := range []control.TransferChange{{ID: offer.ID, Paused: new(true)}, {ID: offer.ID, Background: new(true)}} {
		if _, err := first.ChangeTransfer(ctx, c); capsule.KindOf(err) != capsule.Unsupported {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if st, err := first.ChangeTransfer(ctx, control.TransferChange{ID: offer.ID, Rate: new(int64(1 << 30))}); err != nil || st.Limit != 1<<30 {
		t.Errorf("%+v: %v", st, err)
	}
	if _, err := first.ChangeTransfer(ctx, control.TransferChange{ID: "nothing", Cancel: true}); capsule.KindOf(err) != capsule.NotFound {
		t.Errorf("a transfer that is not there: %v", err)
	}
	// One byte a second: all of its changes come while it runs.
	var id string
	var note string
	receive := func(rate int64, see func(control.TransferState)) error {
		return second.Receive(ctx, control.ReceiveRequest{Name: "it", Target: target, Rate: rate, Wait: fabricHung}, func(e control.JobEvent) error {
			if e.Note != "" {
				note = e.Note
			}
			if e.Transfer != nil {
				see(*e.Transfer)
			}
			return nil
		})
	}
	change := func(c control.TransferChange) {
		c.ID = id
		if _, err := second.ChangeTransfer(ctx, c); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	step := 0
	err := receive(1, func(st control.TransferState) {
		switch {
		case step == 0 && st.State == control.TransferRunning && st.Limit == 1:
			id, step = st.ID, 1
			change(control.TransferChange{Paused: new(true), Background: new(true)})
		case step == 1 && st.State == control.TransferPaused && st.Priority == control.PriorityBackground:
			step = 2
			if now := only(second); now.ID != id || now.State != control.TransferPaused {
				t.Errorf("listed: %+v", now)
			}
			change(control.TransferChange{Cancel: true})
		}
	})
	if step != 2 || capsule.KindOf(err) != capsule.Canceled {
		t.Fatalf("step %d: %v", step, err)
	}
	if list, _ := second.Transfers(ctx); len(list) != 0 {
		t.Errorf("still listed: %+v", list)
	}
	note = ""
	var last control.TransferState
	if err := receive(0, func(st control.TransferState) {
		if last = st; step == 2 && st.State == control.TransferPaused {
			if step = 3; st.ID != id || st.Limit != 1 || st.Priority != control.PriorityBackground || !strings.Contains(note, "transfers resume "+id) {
				t.Errorf("started again: %+v, told %q", st, note)
			}
			change(control.TransferChange{Paused: new(false), Rate: new(int64(0))})
		}
	}); err != nil || step != 3 {
		t.Fatalf("step %d: %v", step, err)
	}
	if fi, err := os.Stat(target); err != nil || fi.Size() != 40<<20 || last.State != control.TransferDone || last.Bytes != 40<<20 || last.Hash == "" || len(last.Mirrors) != 1 {
		t.Errorf("%+v: %v", last, err)
	}
}
