package tree

import (
	"context"
	"math"
	"testing"

	"github.com/spacestore/space/capsule"
)

func TestLocks(t *testing.T) {
	fs, _ := newTree(t)
	type step struct {
		owner       string
		first, last int64
		op          byte // r, w: lock; u: unlock
		want        capsule.ErrorKind
	}
	for _, c := range []struct {
		what  string
		space LockSpace
		steps []step
	}{
		{"shared", POSIX, []step{{"a", 0, 9, 'r', fine}, {"b", 5, 20, 'r', fine}, {"a", 5, 5, 'w', capsule.WouldBlock}, {"b", 5, 20, 'u', fine}, {"a", 5, 5, 'w', fine}, {"b", 0, 4, 'r', fine}, {"b", 5, 5, 'r', capsule.WouldBlock}, {"b", 6, 9, 'w', capsule.WouldBlock}, {"b", 10, math.MaxInt64, 'w', fine}}},
		{"split", POSIX, []step{{"a", 0, math.MaxInt64, 'w', fine}, {"a", 10, 19, 'u', fine}, {"b", 10, 19, 'w', fine}, {"b", 9, 9, 'r', capsule.WouldBlock}, {"b", 20, 20, 'r', capsule.WouldBlock}, {"a", 0, math.MaxInt64, 'u', fine}, {"b", 0, math.MaxInt64, 'w', fine}}},
		{"join", POSIX, []step{{"a", 0, 9, 'w', fine}, {"a", 10, 19, 'w', fine}, {"a", 5, 14, 'u', fine}, {"b", 5, 14, 'w', fine}, {"b", 15, 15, 'w', capsule.WouldBlock}}},
		{"downgrade", POSIX, []step{{"a", 0, 9, 'w', fine}, {"a", 0, 9, 'r', fine}, {"b", 0, 9, 'r', fine}}},
		{"flock", Flock, []step{{"a", 0, math.MaxInt64, 'r', fine}, {"b", 0, math.MaxInt64, 'r', fine}, {"a", 0, math.MaxInt64, 'w', capsule.WouldBlock}, {"b", 0, math.MaxInt64, 'w', fine}}},
		{"bad", POSIX, []step{{"a", 5, 4, 'r', capsule.Invalid}, {"a", -1, 4, 'r', capsule.Invalid}}},
	} {
		t.Run(c.what, func(t *testing.T) {
			for i, s := range c.steps {
				if s.op == 'u' {
					fs.Unlock(7, c.space, s.owner, s.first, s.last)
					continue
				}
				l := Lock{Owner: s.owner, Write: s.op == 'w', First: s.first, Last: s.last}
				blocker, blocked := fs.TestLock(7, c.space, l)
				if blocked != (s.want == capsule.WouldBlock) || blocked && blocker.Owner == s.owner {
					t.Fatalf("step %d: test says %+v, %v", i, blocker, blocked)
				}
				kind(t, fs.SetLock(ctx, 7, c.space, l, false), s.want, "step")
			}
			fs.ReleaseLocks(func(owner any) bool { return true })
			if fs.locks.n != 0 || len(fs.locks.files) != 0 {
				t.Fatalf("%d locks on %d files are left", fs.locks.n, len(fs.locks.files))
			}
		})
	}
}

func TestLockWaits(t *testing.T) {
	fs, _ := newTree(t)
	all := func(owner string) Lock { return Lock{Owner: owner, Write: true, Last: math.MaxInt64} }
	waiting := func(n int) {
		t.Helper()
		for { // until n wait
			fs.locks.mu.Lock()
			have := 0
			for _, f := range fs.locks.files {
				have += f.waiters
			}
			fs.locks.mu.Unlock()
			if have == n {
				return
			}
		}
	}
	kind(t, fs.SetLock(ctx, 1, POSIX, all("a"), true), fine, "a locks 1")
	kind(t, fs.SetLock(ctx, 2, POSIX, all("b"), true), fine, "b locks 2")
	got := make(chan error)
	go func() { got <- fs.SetLock(ctx, 1, POSIX, all("b"), true) }()
	waiting(1)
	kind(t, fs.SetLock(ctx, 2, POSIX, all("a"), true), capsule.Deadlock, "a waits for b, who waits for a")
	kind(t, fs.SetLock(ctx, 2, POSIX, all("a"), false), capsule.WouldBlock, "a asks for 2")

	limited, cancel := context.WithCancel(ctx)
	go func() { got <- fs.SetLock(limited, 1, POSIX, all("c"), true) }()
	waiting(2)
	cancel()
	kind(t, <-got, capsule.Canceled, "c gives up")

	fs.Unlock(1, POSIX, "a", 0, math.MaxInt64)
	kind(t, <-got, fine, "b gets 1")
	fs.ReleaseLocks(func(owner any) bool { return owner == "b" })
	kind(t, fs.SetLock(ctx, 2, POSIX, all("a"), false), fine, "a locks 2")
}

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
