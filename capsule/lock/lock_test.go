package lock

import (
	"context"
	"math"
	"testing"

	"github.com/spacestore/space/capsule"
)

var ctx = context.Background()

const fine = capsule.Other // in tables of expected kinds: no error

func kind(t testing.TB, err error, want capsule.ErrorKind, what string) {
	t.Helper()
	if (err == nil) != (want == fine) || err != nil && capsule.KindOf(err) != want {
		t.Fatalf("%s: %v, want %v", what, err, want)
	}
}

func TestLocks(t *testing.T) {
	table := &Table{}
	type step struct {
		owner       string
		first, last int64
		op          byte // r, w: lock; u: unlock
		want        capsule.ErrorKind
	}
	for _, c := range []struct {
		what  string
		space Space
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
					table.Unlock(7, c.space, s.owner, s.first, s.last)
					continue
				}
				l := Lock{Owner: s.owner, Write: s.op == 'w', First: s.first, Last: s.last}
				blocker, blocked := table.Test(7, c.space, l)
				if blocked != (s.want == capsule.WouldBlock) || blocked && blocker.Owner == s.owner {
					t.Fatalf("step %d: test says %+v, %v", i, blocker, blocked)
				}
				kind(t, table.Set(ctx, 7, c.space, l, false), s.want, "step")
			}
			table.Release(func(owner any) bool { return true })
			if table.n != 0 || len(table.files) != 0 {
				t.Fatalf("%d locks on %d files are left", table.n, len(table.files))
			}
		})
	}
}

func TestLockWaits(t *testing.T) {
	table := &Table{}
	all := func(owner string) Lock { return Lock{Owner: owner, Write: true, Last: math.MaxInt64} }
	waiting := func(n int) {
		t.Helper()
		for { // until n wait
			table.mu.Lock()
			have := 0
			for _, f := range table.files {
				have += f.waiters
			}
			table.mu.Unlock()
			if have == n {
				return
			}
		}
	}
	kind(t, table.Set(ctx, 1, POSIX, all("a"), true), fine, "a locks 1")
	kind(t, table.Set(ctx, 2, POSIX, all("b"), true), fine, "b locks 2")
	got := make(chan error)
	go func() { got <- table.Set(ctx, 1, POSIX, all("b"), true) }()
	waiting(1)
	kind(t, table.Set(ctx, 2, POSIX, all("a"), true), capsule.Deadlock, "a waits for b, who waits for a")
	kind(t, table.Set(ctx, 2, POSIX, all("a"), false), capsule.WouldBlock, "a asks for 2")

	limited, cancel := context.WithCancel(ctx)
	go func() { got <- table.Set(limited, 1, POSIX, all("c"), true) }()
	waiting(2)
	cancel()
	kind(t, <-got, capsule.Canceled, "c gives up")

	table.Unlock(1, POSIX, "a", 0, math.MaxInt64)
	kind(t, <-got, fine, "b gets 1")
	table.Release(func(owner any) bool { return owner == "b" })
	kind(t, table.Set(ctx, 2, POSIX, all("a"), false), fine, "a locks 2")
}
