package tree

import (
	"context"
	"math"
	"testing"
)

func TestWatch(t *testing.T) {
	fs, _ := newTree(t)
	d := mkdir(t, fs, Root, "d")
	got := make(chan Event, 100)
	cancel := fs.Watch(func(e Event) { got <- e })
	me := WithOrigin(ctx, "me")
	f, a, err := fs.Create(me, nil, d, "f", New{Mode: 0o644}, OpenRead|OpenWrite)
	kind(t, err, fine, "create")
	f.WriteAt(ctx, []byte("data"), 10)
	fs.Rename(me, nil, d, "f", Root, "g", 0)
	fs.SetAttr(ctx, nil, a.Ino, SetAttr{Set: SetSize, Size: 3})
	for i, want := range []Event{
		{Kind: Added, Dir: d, Name: "f", Ino: a.Ino, Origin: "me"},
		{Kind: Written, Ino: a.Ino, Off: 10, Len: 4},
		{Kind: Removed, Dir: d, Name: "f", Ino: a.Ino, Origin: "me"},
		{Kind: Added, Dir: Root, Name: "g", Ino: a.Ino, Origin: "me"},
		{Kind: Written, Ino: a.Ino, Off: 3, Len: math.MaxInt64},
		{Kind: Changed, Ino: a.Ino},
	} {
		if e := <-got; e != want {
			t.Fatalf("event %d is %+v, want %+v", i, e, want)
		}
	}
	cancel()
	f.Close()

	// One who does not keep up is told so.
	hold, held := make(chan bool), make(chan bool, 1)
	cancel = fs.Watch(func(e Event) {
		if e.Kind != Overflow {
			select {
			case held <- true:
			default:
			}
			<-hold
			return
		}
		got <- e
	})
	defer cancel()
	f = must(fs.Open(ctx, nil, a.Ino, OpenWrite))(t)
	for range maxEvents + 10 {
		f.WriteAt(ctx, []byte("x"), 0)
	}
	<-held
	close(hold)
	if e := <-got; e.Kind != Overflow {
		t.Fatalf("%+v", e)
	}
	f.Close()
}

// A watcher that leaves out what it caused itself hears all that others do,
// however much it does meanwhile.
func TestWatchOthers(t *testing.T) {
	fs, _ := newTree(t)
	me, other := WithOrigin(ctx, "me"), WithOrigin(ctx, "other")
	f, a, err := fs.Create(ctx, nil, Root, "f", New{Mode: 0o644}, OpenRead|OpenWrite)
	kind(t, err, fine, "create")
	defer f.Close()
	got := make(chan Event, maxEvents)
	cancel := fs.WatchOthers("me", func(e Event) { got <- e })
	defer cancel()
	write := func(by context.Context, off int64) {
		t.Helper()
		if _, err := f.WriteAt(by, []byte("x"), off); err != nil {
			t.Fatal(err)
		}
	}
	next := func(by any, off int64) {
		t.Helper()
		want := Event{Kind: Written, Ino: a.Ino, Off: off, Len: 1, Origin: by}
		if e := <-got; e != want {
			t.Fatalf("%+v, want %+v", e, want)
		}
	}
	for range maxEvents + 10 { // which would be an Overflow, were they queued
		write(me, 1)
	}
	write(other, 2)
	write(me, 3)
	write(ctx, 4)
	next("other", 2)
	next(nil, 4)

	all := make(chan Event, maxEvents) // one who wants all of it changes nothing for the first
	cancelAll := fs.Watch(func(e Event) { all <- e })
	write(me, 5)
	write(other, 6)
	next("other", 6)
	for _, want := range []int64{5, 6} {
		if e := <-all; e.Off != want {
			t.Fatalf("%+v, want offset %d", e, want)
		}
	}
	cancelAll()
}
