package tree_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/testenv/seed"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

var crashRounds = flag.Int("crash-rounds", 1, "how often to go through the power cuts")

// onDisk is the options of a small store.
func onDisk(disk vfs.FS) store.Options {
	return store.Options{Dir: "/space", FS: disk, LogBytes: 256 << 10, Keys: keyring.Source{MasterKey: strings.Repeat("5a", 32)}, Logger: slog.New(slog.DiscardHandler)}
}

func openStore(disk vfs.FS) (*store.Store, error) {
	o := onDisk(disk)
	o.LiveBytes = 64 << 10
	return store.Open(context.Background(), o)
}

// makeTree makes a tree and opens it.
func makeTree(t *testing.T, s *store.Store) (id capsule.ID, fs *tree.FS, done func()) {
	t.Helper()
	info, err := tree.NewTrees(s).Create(t.Context(), "t", nil, tree.New{Mode: 0o755}, tree.Quota{})
	if err != nil {
		t.Fatal(err)
	}
	fs, done, err = openTree(s, info.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	return info.ID, fs, done
}

func openTree(s *store.Store, id capsule.ID, snapshot string) (*tree.FS, func(), error) {
	return tree.NewTrees(s).Open(context.Background(), id, snapshot)
}

// list is what a tree shows: names and contents, in a fixed order.
func list(fs *tree.FS) (string, error) {
	ctx := context.Background()
	var lines []string
	var walk func(dir uint64, path string) error
	walk = func(dir uint64, path string) error {
		var entries []tree.Entry
		if err := fs.ReadDirPlus(ctx, nil, dir, 0, func(e tree.Entry) bool {
			entries = append(entries, e)
			return true
		}); err != nil {
			return err
		}
		for _, e := range entries {
			p := path + "/" + e.Name
			switch e.Type {
			case tree.Directory:
				lines = append(lines, p+"/")
				if err := walk(e.Ino, p); err != nil {
					return err
				}
			case tree.Regular:
				f, err := fs.Open(ctx, nil, e.Ino, tree.OpenRead)
				if err != nil {
					return err
				}
				b := make([]byte, e.Attr.Size)
				n, err := f.ReadAt(ctx, b, 0)
				f.Close()
				if n < len(b) {
					return fmt.Errorf("%s: %d of %d bytes: %w", p, n, len(b), err)
				}
				if len(b) > 16<<10 {
					sum := sha256.Sum256(b)
					b = sum[:]
				}
				lines = append(lines, fmt.Sprintf("%s %d links %x", p, e.Attr.Nlink, b))
			}
		}
		return nil
	}
	err := walk(tree.Root, "")
	slices.Sort(lines)
	return strings.Join(lines, "\n"), err
}

// treeRun is what a workload had made of a tree when the power went.
type treeRun struct {
	id     capsule.ID
	states []string
	synced int
	snap   string // the tree as a snapshot that is there shows it
	ops    int
}

func treeWorkload(disk *vfstest.PowerCut, seed uint64) (run treeRun) {
	ctx := context.Background()
	s, err := openStore(disk)
	if err != nil {
		return run
	}
	defer func() {
		s.Close()
		run.ops = disk.Ops()
	}()
	info, err := tree.NewTrees(s).Create(ctx, "t", nil, tree.New{Mode: 0o755}, tree.Quota{})
	if err != nil {
		return run
	}
	run.id = info.ID
	fs, done, err := openTree(s, info.ID, "")
	if err != nil {
		return run
	}
	defer done()
	note := func() bool {
		st, err := list(fs)
		if err == nil {
			run.states = append(run.states, st)
		}
		return err == nil
	}
	if !note() {
		return run
	}
	r := rand.New(rand.NewPCG(seed, 5))
	dirs := []uint64{tree.Root}
	name := func() string { return fmt.Sprint("n", r.IntN(6)) }
	for i := range 70 {
		dir := dirs[r.IntN(len(dirs))]
		var err error
		switch op := r.IntN(12); {
		case op < 2:
			var a tree.Attr
			if a, err = fs.Mkdir(ctx, nil, dir, name(), tree.New{Mode: 0o755}); err == nil {
				dirs = append(dirs, a.Ino)
			}
		case op < 6:
			var f *tree.File
			if f, _, err = fs.Create(ctx, nil, dir, name(), tree.New{Mode: 0o644}, tree.OpenWrite); err == nil {
				if !note() { // still empty
					return run
				}
				_, err = f.WriteAt(ctx, bytes.Repeat([]byte{byte(i)}, 1+r.IntN(900)), int64(r.IntN(500)))
				f.Close()
			}
		case op < 7:
			err = fs.Unlink(ctx, nil, dir, name())
		case op < 9:
			err = fs.Rename(ctx, nil, dir, name(), dirs[r.IntN(len(dirs))], name(), 0)
		case op < 10:
			if i > 10 && run.snap == "" {
				if _, err := s.Snapshot(ctx, info.ID, "s"); err != nil {
					return run
				}
				run.synced = len(run.states) - 1
				run.snap = run.states[run.synced]
			}
			continue
		default:
			if fs.Sync(ctx) != nil {
				return run
			}
			run.synced = len(run.states) - 1
			continue
		}
		if k := capsule.KindOf(err); err != nil && (k == capsule.Unavailable || k == capsule.Other || k == capsule.IO) {
			return run
		}
		if !note() {
			return run
		}
	}
	return run
}

// After a power cut a tree is one that a prefix of its operations made, at least
// up to the last sync; what a snapshot shows is what it was; and the tree can be
// changed and removed.
func TestPowerCutOnStore(t *testing.T) {
	total := treeWorkload(vfstest.NewPowerCut(), 1)
	if len(total.states) < 30 || total.snap == "" {
		t.Fatalf("the workload makes %d states, snapshot %q", len(total.states), total.snap)
	}
	cuts := 80
	if testing.Short() {
		cuts = 15
	}
	rng := seed.Rand(t)
	for i := range cuts * *crashRounds {
		seed := rng.Uint64()
		n := rng.IntN(total.ops)
		t.Run(fmt.Sprintf("%d cut %d seed %d", i, n, seed), func(t *testing.T) {
			t.Parallel()
			disk := vfstest.NewPowerCut()
			disk.CutAt(n)
			run := treeWorkload(disk, 1)
			// A state in which an operation was under way is one of the whole
			// workload's.
			states := append(run.states, total.states[min(len(run.states), len(total.states)):]...)
			s, err := openStore(disk.Clone(seed))
			if err != nil {
				t.Fatalf("open after the power cut: %v", err)
			}
			defer s.Close()
			if run.id.IsZero() {
				return
			}
			fs, done, err := openTree(s, run.id, "")
			if err != nil {
				t.Fatal(err)
			}
			defer done()
			got, err := list(fs)
			if err != nil {
				t.Fatal(err)
			}
			if len(run.states) > 0 && !slices.Contains(states[run.synced:], got) {
				t.Fatalf("the tree is none of its states from the synced one on:\n%.3000s", got)
			}
			if run.snap != "" {
				sfs, sdone, err := openTree(s, run.id, "s")
				if err != nil {
					t.Fatal(err)
				}
				got, err := list(sfs)
				sdone()
				if err != nil || got != run.snap {
					t.Fatalf("the snapshot is not what it was: %v", err)
				}
			}
			if _, err := fs.Mkdir(t.Context(), nil, tree.Root, "after", tree.New{Mode: 0o755}); err != nil {
				t.Fatal(err)
			}
			rep, err := s.Verify(t.Context(), store.VerifyOptions{}, nil)
			if err != nil || !rep.OK() {
				t.Fatalf("verify: %+v, %v", rep, err)
			}
		})
	}
}

// A tree in use is checked as a snapshot and repaired only when nobody uses it.
func TestCheckOnStore(t *testing.T) {
	ctx := t.Context()
	s, err := openStore(vfstest.NewPowerCut())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	trees := tree.NewTrees(s)
	info, err := trees.Create(ctx, "t", nil, tree.New{Mode: 0o755}, tree.Quota{})
	if err != nil {
		t.Fatal(err)
	}
	fs, done, err := trees.Open(ctx, info.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Mkdir(ctx, nil, tree.Root, "d", tree.New{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	for i := range 700 { // more than a page of the check
		f, _, err := fs.Create(ctx, nil, tree.Root, fmt.Sprint("f", i), tree.New{Mode: 0o644}, tree.OpenWrite)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	bad := func(p tree.Problem) { t.Errorf("found %+v", p) }
	if err := trees.Check(ctx, info.ID, false, bad); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Snapshots(ctx, info.ID); err != nil || len(list) > 0 {
		t.Errorf("the check left %v, %v", list, err)
	}
	if err := trees.Check(ctx, info.ID, true, bad); capsule.KindOf(err) != capsule.Conflict {
		t.Errorf("repair of a tree in use: %v", err)
	}
	done()
	if err := trees.Check(ctx, info.ID, true, bad); err != nil {
		t.Fatal(err)
	}
}
