package tree

import (
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
)

// still is a clock that does not go on.
type still struct{ time.Time }

func (c still) Now() time.Time                       { return c.Time }
func (c still) After(time.Duration) <-chan time.Time { return nil }

// The store does with a tree what the capsule in memory does, which the other
// tests use; and Check finds nothing wrong with it.
func TestStoreLikeMemory(t *testing.T) {
	runs, steps := uint64(6), 400
	if testing.Short() {
		runs = 2
	}
	clock := still{time.Unix(1e9, 0)}
	s, err := store.Open(ctx, store.Options{Dir: t.TempDir(), LiveBytes: 64 << 10, Keys: keyring.Source{MasterKey: strings.Repeat("5a", 32)}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for seed := range runs {
		var trees [2]map[string]any
		var usage [2]Usage
		info, err := s.Create(ctx, store.CreateRequest{Kind: capsule.Tree}, func(u *store.Update) error { return format(u, New{Mode: 0o755}, clock.Time) })
		kind(t, err, fine, "create")
		l, err := s.OpenLive(ctx, info.ID, "")
		kind(t, err, fine, "open")
		m := newMemory()
		kind(t, Format(ctx, m, New{Mode: 0o755}, clock.Time), fine, "format")
		for i, c := range []Capsule{m, live{l}} {
			for part := range uint64(2) { // with a new start in between
				fs, err := Open(ctx, c, Options{Clock: clock})
				kind(t, err, fine, "open")
				scramble(fs, rand.New(rand.NewPCG(seed, 7+part)), steps)
				fs.reclaimAll(ctx)
				trees[i], usage[i] = snapshotOf(t, fs, Root), fs.Usage()
				kind(t, fs.Sync(ctx), fine, "sync")
				fs.Close()
			}
			kind(t, Check(ctx, c, false, func(p Problem) { t.Errorf("seed %d: check: %+v", seed, p) }), fine, "check")
		}
		l.Close()
		if usage[0].Inodes != usage[1].Inodes || len(trees[0]) != len(trees[1]) {
			t.Errorf("seed %d: %d paths and %+v, in memory %d and %+v", seed, len(trees[1]), usage[1], len(trees[0]), usage[0])
		}
		for p, want := range trees[0] {
			if trees[1][p] != want {
				t.Errorf("seed %d: %s differs", seed, p)
			}
		}
	}
}
