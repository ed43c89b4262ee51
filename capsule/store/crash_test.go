package store

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/testenv/seed"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

var crashRounds = flag.Int("crash-rounds", 1, "how often to cut the power at each step")

// step is one operation of the crash workload: what it does to a store and
// what that makes of the model.
type step struct {
	name  string
	do    func(s *Store) error
	model func(m state)
}

func putStep(name string, data []byte) step {
	return step{"put " + name, func(s *Store) error {
		_, err := s.Put(context.Background(), PutRequest{Name: name, Size: -1}, bytes.NewReader(data))
		return err
	}, func(m state) { m[name] = string(data) }}
}

// noteStep sets a note, or takes it away where value is "".
func noteStep(name, note, value string) step {
	return step{"note " + name, byName(name, func(s *Store, id capsule.ID) error {
		var v []byte
		if value != "" {
			v = []byte(value)
		}
		return s.SetNote(context.Background(), id, note, v)
	}), func(m state) {
		if m[noteOf(name, note)] = value; value == "" {
			delete(m, noteOf(name, note))
		}
	}}
}

func byName(name string, do func(s *Store, id capsule.ID) error) func(*Store) error {
	return func(s *Store) error {
		info, err := s.Resolve(context.Background(), name)
		if err != nil {
			return err
		}
		return do(s, info.ID)
	}
}

func crashWorkload() []step {
	ctx := context.Background()
	shared := random(1, 120<<10)
	// More extents than fit into a capsule's record, so that pages are written.
	large := append(random(2, 1600<<10), shared...)
	none := func(state) {}
	gc := step{"gc", func(s *Store) error {
		_, err := s.GC(ctx, GCOptions{MinDead: 0.01, Recompress: true}, nil)
		return err
	}, none}
	policy := capsule.DefaultPolicy()
	policy.Compression = "zstd:3"
	return []step{
		putStep("a", shared),
		putStep("dir/b", append(text(3, 90<<10), shared...)),
		putStep("large", large),
		noteStep("large", "view", "goes with its capsule"),
		noteStep("a", "view", "first"),
		{"note of the store", func(s *Store) error { return s.SetNote(ctx, capsule.ID{}, "who", []byte("me")) },
			func(m state) { m[noteOf("", "who")] = "me" }},
		putStep("a", random(4, 50<<10)),
		{"rename", byName("dir/b", func(s *Store, id capsule.ID) error {
			_, err := s.Rename(ctx, id, "c")
			return err
		}), func(m state) { m["c"] = m["dir/b"]; delete(m, "dir/b") }},
		putStep("empty", nil),
		{"set policy", byName("c", func(s *Store, id capsule.ID) error { return s.SetPolicy(ctx, id, policy) }), none},
		{"remove large", byName("large", func(s *Store, id capsule.ID) error { return s.Remove(ctx, id) }),
			func(m state) { delete(m, "large"); delete(m, noteOf("large", "view")) }},
		noteStep("a", "view", "second"),
		noteStep("c", "view", "stays"),
		noteStep("c", "another", "goes"),
		gc,
		putStep("c", text(5, 200<<10)),
		{"rotate key", func(s *Store) error { return s.RotateKey(nil) }, none},
		putStep("d", large[:300<<10]),
		gc,
		{"remove a", byName("a", func(s *Store, id capsule.ID) error { return s.Remove(ctx, id) }),
			func(m state) { delete(m, "a"); delete(m, noteOf("a", "view")) }},
		noteStep("c", "another", ""),
		putStep("e", shared),
	}
}

// runSteps runs steps until one fails and returns the state acknowledged, and
// the one that the failed step would have led to.
func runSteps(s *Store, steps []step) (done, next state) {
	done = state{}
	for _, st := range steps {
		next = done.clone()
		st.model(next)
		if err := st.do(s); err != nil {
			return done, next
		}
		done = next
	}
	return done, done
}

// wantOneOf checks that a store is intact and holds exactly one of two states.
func wantOneOf(t *testing.T, s *Store, a, b state) {
	t.Helper()
	got, err := readState(s)
	if err != nil {
		t.Fatal(err)
	}
	if !equalStates(got, a) && !equalStates(got, b) {
		t.Fatalf("the store holds\n  %v\nacknowledged was\n  %v\nunder way was\n  %v", got, a, b)
	}
	wantClean(t, s)
}

func equalStates(a, b state) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// The power is cut at every I/O operation of a life of puts, replacements,
// removals, collections and a key rotation; then again during the recovery.
// What was acknowledged is there, whole; what was under way is there or not;
// nothing else is; and the store works on.
func TestPowerCutAtEveryStep(t *testing.T) {
	steps := append(crashWorkload(), putAllStep())
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	if done, _ := runSteps(s, steps); len(done) != 12 {
		t.Fatalf("the workload does not run through: %v", done)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	total := disk.Ops()
	stride := 1
	if testing.Short() {
		stride = 23
	}
	t.Logf("%d I/O operations", total)
	rng := seed.Rand(t)
	for round := range *crashRounds {
		for n := rng.IntN(stride); n < total; n += stride {
			seed := rng.Uint64()
			t.Run(fmt.Sprintf("round %d cut %d seed %d", round, n, seed), func(t *testing.T) {
				t.Parallel()
				cutAndRecover(t, steps, n, seed)
			})
		}
	}
}

func cutAndRecover(t *testing.T, steps []step, n int, seed uint64) {
	disk := vfstest.NewPowerCut()
	disk.CutAt(n)
	done, next := state{}, state{}
	if s, err := openOn(disk); err == nil {
		done, next = runSteps(s, steps)
		s.Close()
	}
	r := rand.New(rand.NewPCG(seed, 1))
	disk = disk.Clone(seed)
	if r.IntN(2) == 0 { // once more, while it recovers
		disk.CutAt(disk.Ops() + r.IntN(60))
		if s, err := openOn(disk); err == nil {
			s.Close()
		}
		disk = disk.Clone(seed + 1)
	}
	s, err := openOn(disk)
	if err != nil {
		t.Fatalf("open after the power cut: %v", err)
	}
	defer s.Close()
	wantOneOf(t, s, done, next)
	if _, err := s.GC(context.Background(), GCOptions{MinDead: 0.01}, nil); err != nil {
		t.Fatalf("gc after the power cut: %v", err)
	}
	put(t, s, "after", text(9, 100<<10))
	for _, m := range []state{done, next} {
		m["after"] = string(text(9, 100<<10))
	}
	wantOneOf(t, s, done, next)
}
