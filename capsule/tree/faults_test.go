package tree_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/testenv/seed"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

var fullRounds = flag.Int("full-rounds", 0, "how often to fill a disk to the last byte, which takes long")

// wantWhole fails a test unless the tree and the store are clean.
func wantWhole(t *testing.T, s *store.Store, id capsule.ID) {
	t.Helper()
	if err := tree.NewTrees(s).Check(t.Context(), id, false, func(p tree.Problem) { t.Errorf("fsck finds %+v", p) }); err != nil {
		t.Error(err)
	}
	if rep, err := s.Verify(t.Context(), store.VerifyOptions{}, nil); err != nil || !rep.OK() {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}

// writeFile makes a file.
func writeFile(fs *tree.FS, name string, data []byte) error {
	f, _, err := fs.Create(context.Background(), nil, tree.Root, name, tree.New{Mode: 0o644}, tree.OpenWrite)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(context.Background(), data, 0)
	return err
}

// On a disk that is nearly full a tree takes no change that makes it grow, be it
// by metadata alone, and every other one.
func TestNearlyFullDisk(t *testing.T) {
	full := vfstest.NewDiskFull(vfstest.NewPowerCut(), 1<<30)
	clock := stepping{times: make(chan time.Time, 1)}
	o := onDisk(full)
	o.Clock = clock
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	id, fs, done := makeTree(t, s)
	defer done()
	large := make([]byte, 24<<20)
	rand.NewChaCha8([32]byte{1}).Read(large)
	if err := writeFile(fs, "large", large); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(fs, "small", []byte("content")); err != nil {
		t.Fatal(err)
	}
	full.SetBudget(full.Used() * 10 / 9) // a tenth is left, and less than an eighth is for what grows
	clock.times <- time.Unix(3e9, 0)     // so that it is looked at again
	ctx := t.Context()
	small, err := fs.Lookup(ctx, nil, tree.Root, "small")
	if err != nil {
		t.Fatal(err)
	}
	_, mkdir := fs.Mkdir(ctx, nil, tree.Root, "d", tree.New{Mode: 0o755})
	_, link := fs.Link(ctx, nil, small.Ino, tree.Root, "link")
	for what, err := range map[string]error{
		"a file": writeFile(fs, "f", nil), "content": writeFile(fs, "small", []byte("more")), "a directory": mkdir, "a link": link,
		"an attribute": fs.SetXattr(ctx, nil, small.Ino, "user.x", []byte("y"), 0),
	} {
		if capsule.KindOf(err) != capsule.NoSpace {
			t.Errorf("%s more: %v", what, err)
		}
	}
	_, chmod := fs.SetAttr(ctx, nil, small.Ino, tree.SetAttr{Set: tree.SetMode, Mode: 0o600})
	if chmod != nil {
		t.Errorf("change of a mode: %v", chmod)
	}
	if err := fs.Rename(ctx, nil, tree.Root, "small", tree.Root, "other", 0); err != nil {
		t.Errorf("rename: %v", err)
	}
	for _, name := range []string{"other", "large"} {
		if err := fs.Unlink(ctx, nil, tree.Root, name); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if err := fs.Sync(ctx); err != nil {
		t.Error(err)
	}
	wantWhole(t, s, id)
}

// The disk fills up with small changes, which the journal takes first: whoever
// makes more gets a clear error, all that was synced is there, also after a power
// cut, everything can be removed, and then writing goes on.
func TestJournalFull(t *testing.T) {
	for range *fullRounds {
		fillDisk(t)
	}
}

func fillDisk(t *testing.T) {
	disk := vfstest.NewPowerCut()
	full := vfstest.NewDiskFull(disk, 64<<20)
	s, err := openStore(full)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	id, fs, done := makeTree(t, s)
	rng := rand.NewChaCha8([32]byte{1})
	random := func(n int) []byte {
		b := make([]byte, n)
		rng.Read(b)
		return b
	}
	var large int
	for ; full.Used() < 52<<20; large++ {
		if err := writeFile(fs, fmt.Sprint("large", large), random(1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	files, dirs := 0, 0
	grow := func() (err error) {
		for err == nil {
			if err = writeFile(fs, fmt.Sprint("f", files), random(300)); err == nil {
				files++
			}
		}
		return err
	}
	if err := grow(); capsule.KindOf(err) != capsule.NoSpace {
		t.Fatalf("with %d files on a full disk: %v", files, err)
	}
	for err == nil && dirs < 1<<16 {
		if _, err = fs.Mkdir(t.Context(), nil, tree.Root, fmt.Sprint("d", dirs), tree.New{Mode: 0o755}); err == nil {
			dirs++
		}
	}
	if capsule.KindOf(err) != capsule.NoSpace {
		t.Fatalf("with %d directories on a full disk: %v", dirs, err)
	}
	if err := fs.Sync(t.Context()); err != nil {
		t.Fatalf("sync on the full disk: %v", err)
	}
	want, err := list(fs)
	if err != nil {
		t.Fatal(err)
	}
	after, err := openStore(vfstest.NewDiskFull(disk.Clone(0), 64<<20))
	if err != nil {
		t.Fatalf("open after a power cut on the full disk: %v", err)
	}
	again, end, err := openTree(after, id, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := list(again); err != nil || got != want {
		t.Errorf("after a power cut on the full disk the tree is another one: %v", err)
	}
	end()
	wantWhole(t, after, id)
	after.Close()

	if _, err := fs.SetAttr(t.Context(), nil, tree.Root, tree.SetAttr{Set: tree.SetMode, Mode: 0o700}); err != nil {
		t.Errorf("change of a mode on the full disk: %v", err)
	}
	for i := range files + 1 { // the last one is empty
		if err := fs.Unlink(t.Context(), nil, tree.Root, fmt.Sprint("f", i)); err != nil && (i < files || capsule.KindOf(err) != capsule.NotFound) {
			t.Fatalf("remove file %d of %d on the full disk: %v", i, files, err)
		}
	}
	for i := range dirs {
		if err := fs.Rmdir(t.Context(), nil, tree.Root, fmt.Sprint("d", i)); err != nil {
			t.Fatalf("remove directory %d of %d on the full disk: %v", i, dirs, err)
		}
	}
	for i := range large / 2 {
		if err := fs.Unlink(t.Context(), nil, tree.Root, fmt.Sprint("large", i)); err != nil {
			t.Fatalf("remove on the full disk: %v", err)
		}
	}
	if err := fs.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(t.Context(), store.GCOptions{}, nil); err != nil {
		t.Fatalf("gc on the full disk: %v", err)
	}
	for i := range large / 4 {
		if err := writeFile(fs, fmt.Sprint("large", i), random(1<<20)); err != nil {
			t.Fatalf("with room again: %v", err)
		}
	}
	if want, err = list(fs); err != nil {
		t.Fatal(err)
	}
	done()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = openStore(full); err != nil {
		t.Fatal(err)
	}
	if fs, done, err = openTree(s, id, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := list(fs); err != nil || got != want {
		t.Errorf("after all the tree is another one: %v", err)
	}
	done()
	wantWhole(t, s, id)
}

// The journal ends anywhere, or with rubbish. Then the store says that it is
// damaged, or a tree is one that a prefix of its operations made, and whole; all
// of them where nothing but rubbish came after.
func TestJournalTorn(t *testing.T) {
	disk := vfstest.NewPowerCut()
	run := treeWorkload(disk, 1)
	if len(run.states) < 30 {
		t.Fatalf("the workload makes %d states", len(run.states))
	}
	cuts := 60
	if testing.Short() {
		cuts = 12
	}
	// As after a kill -9: all that was written is there.
	ended := vfstest.NewPowerCut()
	ended.CutAt(run.ops - 40)
	run = treeWorkload(ended, 1)
	whole := ended.Clone(1)
	dir := "/space/journal"
	names, err := whole.List(dir)
	if err != nil || len(names) == 0 {
		t.Fatalf("the journal has %v, %v", names, err)
	}
	path := whole.PathJoin(dir, slices.Max(names))
	content, err := vfs.ReadFile(whole, path)
	if err != nil {
		t.Fatal(err)
	}
	rng := seed.Rand(t)
	rubbish := make([]byte, 3000)
	for i := range rubbish {
		rubbish[i] = byte(rng.Uint32())
	}
	for i := range cuts {
		at := rng.IntN(len(content) + 1)
		torn := slices.Clone(content[:at])
		switch i % 3 {
		case 1:
			torn = append(torn, rubbish...)
		case 2:
			torn = append(torn, make([]byte, 5000)...)
		}
		if i < 3 { // nothing is missing
			at, torn = len(content), append(slices.Clone(content), torn[at:]...)
		}
		t.Run(fmt.Sprintf("%d at %d of %d", i, at, len(content)), func(t *testing.T) {
			t.Parallel()
			disk := whole.Clone(1)
			if err := vfs.WriteFileAtomic(disk, path, torn); err != nil {
				t.Fatal(err)
			}
			s, err := openStore(disk)
			if err != nil {
				if at == len(content) || capsule.KindOf(err) != capsule.Damaged {
					t.Fatalf("open: %v (%v)", err, capsule.KindOf(err))
				}
				return
			}
			defer s.Close()
			fs, done, err := openTree(s, run.id, "")
			if err != nil {
				if at == len(content) || capsule.KindOf(err) != capsule.Damaged && capsule.KindOf(err) != capsule.NotFound {
					t.Fatalf("open the tree: %v", err)
				}
				return
			}
			defer done()
			got, err := list(fs)
			if err != nil {
				t.Fatal(err)
			}
			states := run.states
			if at == len(content) {
				states = states[run.synced:]
			}
			if !slices.Contains(states, got) {
				t.Fatalf("the tree is none of its states:\n%.3000s", got)
			}
			if err := writeFile(fs, "after", []byte("content")); err != nil {
				t.Fatal(err)
			}
			wantWhole(t, s, run.id)
		})
	}
}

// stepping is a clock that jumps about.
type stepping struct {
	times chan time.Time // what it shows next
	timer chan time.Time // every timer of its length
	of    time.Duration
}

func (c stepping) Now() time.Time {
	select {
	case now := <-c.times:
		c.times <- now
		return now
	default:
		return time.Unix(2e9, 0)
	}
}

func (c stepping) After(d time.Duration) <-chan time.Time {
	if d == c.of {
		return c.timer
	}
	return nil
}

// Changes become durable after the interval that was asked for, though the clock
// steps back by years, and forth.
func TestClockStepsUnderJournal(t *testing.T) {
	const interval = 17 * time.Second
	clock := stepping{times: make(chan time.Time, 1), timer: make(chan time.Time), of: interval}
	disk := vfstest.NewPowerCut()
	o := onDisk(disk)
	o.Clock, o.CommitInterval = clock, interval
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	id, fs, done := makeTree(t, s)
	defer done()
	// tick lets an interval end, and returns when what was to be done then is.
	tick := func() {
		for range 2 {
			select {
			case clock.timer <- time.Time{}:
			case <-time.After(5 * time.Minute):
				t.Fatal("nobody waits for the interval to end")
			}
		}
	}
	at := time.Unix(2e9, 0)
	for i, step := range []time.Duration{0, -time.Second, -time.Hour, -50000 * time.Hour, time.Second, 90000 * time.Hour, -time.Nanosecond} {
		at = at.Add(step)
		select {
		case <-clock.times:
		default:
		}
		clock.times <- at
		name := fmt.Sprint("f", i)
		if err := writeFile(fs, name, []byte(name)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Snapshot(t.Context(), id, name); err != nil {
			t.Fatal(err)
		}
		tick()
		after, err := openStore(disk.Clone(0))
		if err != nil {
			t.Fatal(err)
		}
		again, end, err := openTree(after, id, "")
		if err != nil {
			t.Fatal(err)
		}
		want, _ := list(fs)
		if got, err := list(again); err != nil || got != want {
			t.Errorf("after a step of %s the last change is not durable: %v", step, err)
		}
		end()
		snapshots, err := after.Snapshots(t.Context(), id)
		if err != nil || len(snapshots) != i+1 {
			t.Errorf("after a step of %s there are %v, %v", step, snapshots, err)
		}
		wantWhole(t, after, id)
		after.Close()
	}
}
