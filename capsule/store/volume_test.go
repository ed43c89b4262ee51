package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/testenv/seed"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// openSmall is openOn with little memory for changes, so that they move to
// segments at any moment.
func openSmall(fsys vfs.FS, live int64) (*Store, error) {
	return Open(context.Background(), Options{Dir: "/space", FS: fsys, Keys: testKey, Logger: quietLog(),
		LogBytes: 256 << 10, LiveBytes: live, memtable: 16 << 10})
}

func newVolume(t testing.TB, s *Store, name string, size int64) *Volume {
	t.Helper()
	info, err := s.Create(context.Background(), CreateRequest{Kind: capsule.Volume, Name: name, Size: size, BlockSize: 512}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return openVolume(t, s, info.ID, "")
}

func openVolume(t testing.TB, s *Store, id capsule.ID, snapshot string) *Volume {
	t.Helper()
	v, err := s.OpenVolume(context.Background(), id, snapshot, WriteVolume)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func wantBytes(t testing.TB, v *Volume, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := v.ReadAt(got, 0); err != nil {
		t.Fatalf("read: %d, %v", n, err)
	}
	if i := firstDifference(got, want); i >= 0 {
		t.Fatalf("byte %d of %d is %#x, should be %#x", i, len(want), got[i], want[i])
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// modelVolume is what a volume and its snapshots should hold.
type modelVolume struct {
	id    capsule.ID
	v     *Volume
	data  []byte
	snaps map[string][]byte
}

// Random operations on volumes, their snapshots and clones give what the same
// operations on byte slices give, through checkpoints, collections and
// reopening; at the end all references and sums are right, and removing it all
// leaves nothing.
func TestVolumesModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			volumesModel(t, seed, 400)
		})
	}
}

func volumesModel(t *testing.T, seed uint64, steps int) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(seed, 3))
	disk := vfstest.NewPowerCut()
	s, err := openSmall(disk, 128<<10<<(seed%3))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	const size = 1<<20 + 512
	var all []*modelVolume
	add := func(name string) {
		v := newVolume(t, s, name, size)
		all = append(all, &modelVolume{id: v.Info().ID, v: v, data: make([]byte, size), snaps: map[string][]byte{}})
	}
	add("first")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	names := 0
	for step := range steps {
		m := all[r.IntN(len(all))]
		off := r.Int64N(int64(len(m.data)))
		n := min(int64(len(m.data))-off, r.Int64N(8<<10)+1)
		if r.IntN(10) == 0 {
			n = min(int64(len(m.data))-off, r.Int64N(300<<10)+1)
		}
		snap := ""
		for snap = range m.snaps {
			break
		}
		switch op := r.IntN(100); {
		case op < 55:
			p := random(uint64(step), int(n))
			if op < 20 {
				p = text(uint64(step), int(n))
			}
			if _, err := m.v.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			copy(m.data[off:], p)
		case op < 65:
			must(m.v.Trim(ctx, off, n))
			clear(m.data[off : off+n])
		case op < 70:
			to := r.Int64N(int64(len(m.data)))
			n = min(n, int64(len(m.data))-to)
			if to < off+n && off < to+n {
				continue
			}
			var done int64
			must(m.v.Update(ctx, func(u *Update) (err error) {
				done, _, err = u.Copy(volumeFile, to, volumeFile, off, n)
				return err
			}))
			copy(m.data[to:to+done], m.data[off:off+done])
		case op < 74:
			names++
			name := fmt.Sprint("s", names)
			_, err := s.Snapshot(ctx, m.id, name)
			must(err)
			m.snaps[name] = slices.Clone(m.data)
		case op < 77 && snap != "":
			must(s.DeleteSnapshot(ctx, m.id, snap))
			delete(m.snaps, snap)
		case op < 79 && snap != "" && len(all) < 6:
			names++
			info, err := s.Clone(ctx, m.id, snap, fmt.Sprint("clone", names))
			must(err)
			all = append(all, &modelVolume{id: info.ID, v: openVolume(t, s, info.ID, ""),
				data: slices.Clone(m.snaps[snap]), snaps: map[string][]byte{}})
		case op < 81 && snap != "":
			must(m.v.Close())
			_, err := s.Rollback(ctx, m.id, snap)
			must(err)
			m.v, m.data = openVolume(t, s, m.id, ""), slices.Clone(m.snaps[snap])
		case op < 82:
			grown := int64(len(m.data)) + 4096
			_, err := s.ResizeVolume(ctx, m.id, grown)
			must(err)
			m.data = append(m.data, make([]byte, 4096)...)
		case op < 84:
			must(s.checkpoint())
		case op < 85:
			_, err := s.GC(ctx, GCOptions{MinDead: 0.01}, nil)
			must(err)
		case op < 86:
			must(s.Close())
			s, err = openSmall(disk, 256<<10)
			must(err)
			for _, m := range all {
				m.v = openVolume(t, s, m.id, "")
			}
		case op < 88 && snap != "":
			v := openVolume(t, s, m.id, snap)
			wantBytes(t, v, m.snaps[snap])
			v.Close()
		case op < 89 && len(all) > 1 && len(m.snaps) == 0:
			m.v.Close()
			must(s.Remove(ctx, m.id))
			all = slices.DeleteFunc(all, func(x *modelVolume) bool { return x == m })
		default:
			got := make([]byte, n)
			if _, err := m.v.ReadAt(got, off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, m.data[off:off+n]) {
				t.Fatalf("step %d: bytes %d to %d are wrong", step, off, off+n)
			}
		}
	}
	for _, m := range all {
		wantBytes(t, m.v, m.data)
		for name, want := range m.snaps {
			v := openVolume(t, s, m.id, name)
			wantBytes(t, v, want)
			v.Close()
		}
	}
	_, err = s.Usage(ctx)
	must(err)
	wantClean(t, s)
	for _, m := range all {
		m.v.Close()
		for name := range m.snaps {
			must(s.DeleteSnapshot(ctx, m.id, name))
		}
		must(s.Remove(ctx, m.id))
	}
	u, err := s.Usage(ctx)
	must(err)
	if u.Capsules != 0 || u.LogicalBytes != 0 || u.StoredBytes != 0 || u.Segments != 0 {
		t.Fatalf("with everything removed there is left %+v", u)
	}
	wantClean(t, s)
	for _, k := range []byte{keyRow, keyNode, keyFamily, keySnapshot, keyShared, keyPolicy} {
		must(s.kv.scan([]byte{k}, []byte{k + 1}, func(key, _ []byte) (bool, error) {
			t.Errorf("left over: %q", key)
			return true, nil
		}))
	}
}

// After a power cut a volume holds what a prefix of its writes made of it, at
// least up to the last flush that returned; snapshots hold what they held.
func TestVolumePowerCut(t *testing.T) {
	total := volumeWorkload(t, vfstest.NewPowerCut(), 1).ops
	cuts := 60
	if testing.Short() {
		cuts = 12
	}
	rng := seed.Rand(t)
	for i := range cuts * *crashRounds {
		seed := rng.Uint64()
		n := rng.IntN(total)
		t.Run(fmt.Sprintf("%d cut %d seed %d", i, n, seed), func(t *testing.T) {
			t.Parallel()
			disk := vfstest.NewPowerCut()
			disk.CutAt(n)
			run := volumeWorkload(t, disk, 1)
			disk = disk.Clone(seed)
			if seed%2 == 0 { // once more, while it recovers
				disk.CutAt(disk.Ops() + int(seed>>8%40))
				if s, err := openSmall(disk, 64<<10); err == nil {
					s.Close()
				}
				disk = disk.Clone(seed + 1)
			}
			s, err := openSmall(disk, 64<<10)
			if err != nil {
				t.Fatalf("open after the power cut: %v", err)
			}
			defer s.Close()
			run.check(t, s)
			wantClean(t, s)
			if _, err := s.GC(context.Background(), GCOptions{MinDead: 0.01}, nil); err != nil {
				t.Fatal(err)
			}
			wantClean(t, s)
		})
	}
}

// volumeRun is what a workload did before the power went.
type volumeRun struct {
	id     capsule.ID
	states [][]byte // after each operation; the last may not have been made
	synced int      // index of the last state acknowledged as durable
	snaps  map[string][]byte
	maybe  string // a snapshot under way
	ops    int
}

func volumeWorkload(t *testing.T, disk *vfstest.PowerCut, seed uint64) (run volumeRun) {
	ctx := context.Background()
	run.snaps = map[string][]byte{}
	s, err := openSmall(disk, 64<<10)
	if err != nil {
		return run
	}
	defer func() {
		s.Close()
		run.ops = disk.Ops()
	}()
	info, err := s.Create(ctx, CreateRequest{Kind: capsule.Volume, Name: "v", Size: 256 << 10}, nil)
	if err != nil {
		return run
	}
	run.id = info.ID
	v, err := s.OpenVolume(ctx, info.ID, "", WriteVolume)
	if err != nil {
		return run
	}
	r := rand.New(rand.NewPCG(seed, 1))
	state := make([]byte, 256<<10)
	run.states = append(run.states, slices.Clone(state))
	step := func(n int, err error) bool {
		run.states = append(run.states, slices.Clone(state))
		return err == nil
	}
	for i := range 60 {
		off := r.IntN(len(state))
		n := min(len(state)-off, 1+r.IntN(12<<10))
		if i%5 == 0 { // whole blocks, which take another way
			n = min(len(state)-off, 70<<10+r.IntN(100<<10))
		}
		switch op := r.IntN(10); {
		case op < 6:
			p := random(uint64(i), n)
			copy(state[off:], p)
			if !step(v.WriteAt(p, int64(off))) {
				return run
			}
		case op < 7:
			clear(state[off : off+n])
			if !step(0, v.Trim(ctx, int64(off), int64(n))) {
				return run
			}
		case op < 9:
			if v.Flush(ctx) != nil {
				return run
			}
			run.synced = len(run.states) - 1
		default:
			name := fmt.Sprint("s", i)
			run.maybe = name
			if _, err := s.Snapshot(ctx, info.ID, name); err != nil {
				return run
			}
			run.maybe, run.snaps[name] = "", slices.Clone(state)
			run.synced = len(run.states) - 1
			if len(run.snaps) > 2 {
				for old := range run.snaps {
					if old != name {
						delete(run.snaps, old)
						run.maybe = old
						if s.DeleteSnapshot(ctx, info.ID, old) != nil {
							return run
						}
						run.maybe = ""
						break
					}
				}
			}
		}
	}
	return run
}

func (run *volumeRun) check(t *testing.T, s *Store) {
	t.Helper()
	ctx := context.Background()
	if run.id.IsZero() {
		return
	}
	v, err := s.OpenVolume(ctx, run.id, "", WriteVolume)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	got := make([]byte, v.Size())
	if _, err := v.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if len(run.states) > 0 && !slices.ContainsFunc(run.states[run.synced:], func(b []byte) bool { return bytes.Equal(b, got) }) {
		t.Fatalf("the volume holds no state from the %dth, which was flushed, to the %dth", run.synced, len(run.states)-1)
	}
	list, err := s.Snapshots(ctx, run.id)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, snap := range list {
		want, ok := run.snaps[snap.Name]
		if !ok && snap.Name == run.maybe {
			continue
		}
		if !ok {
			t.Fatalf("there is a snapshot %q", snap.Name)
		}
		found++
		sv := openVolume(t, s, run.id, snap.Name)
		wantBytes(t, sv, want)
		sv.Close()
	}
	if found != len(run.snaps) {
		t.Fatalf("%d of %d snapshots are there", found, len(run.snaps))
	}
}

// Objects and volumes that hold the same bytes share segments; whoever comes
// and goes first, the counts stay right.
func TestSharedWithObjects(t *testing.T) {
	ctx := t.Context()
	s, err := openSmall(vfstest.NewPowerCut(), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v := newVolume(t, s, "v", 1<<20)
	rounds := 300
	if testing.Short() {
		rounds = 60
	}
	same := func(i int) []byte { return random(uint64(i%8), 4096) }
	run := make(chan error, 3)
	go func() {
		for i := range rounds {
			if _, err := v.WriteAt(same(i), int64(i%13)<<16); err != nil {
				run <- err
				return
			}
			if i%5 == 0 {
				if err := s.checkpoint(); err != nil {
					run <- err
					return
				}
			}
		}
		run <- nil
	}()
	for w := range 2 {
		go func() {
			for i := range rounds {
				info, err := s.Put(ctx, PutRequest{Name: fmt.Sprint(w), Size: -1}, bytes.NewReader(same(i*3+w)))
				if err == nil && i%4 == 0 {
					err = s.Remove(ctx, info.ID)
				}
				if err != nil {
					run <- err
					return
				}
			}
			run <- nil
		}()
	}
	for range 3 {
		if err := <-run; err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.GC(ctx, GCOptions{MinDead: 0.01}, nil); err != nil {
		t.Fatal(err)
	}
	wantClean(t, s)
}

// A row with an empty value is there: in the update that makes it, in memory,
// on disk, and after the journal was replayed.
func TestEmptyRowValue(t *testing.T) {
	ctx := t.Context()
	disk := vfstest.NewPowerCut()
	s, err := openSmall(disk, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	info, err := s.Create(ctx, CreateRequest{Kind: capsule.Tree}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.OpenLive(ctx, info.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	want := func(where string, get func([]byte) ([]byte, error)) {
		t.Helper()
		if v, err := get([]byte("k")); err != nil || v == nil || len(v) > 0 {
			t.Errorf("%s: %v, %v", where, v, err)
		}
	}
	if err := l.Update(ctx, func(u *Update) error {
		err := u.Set([]byte("k"), nil)
		want("in the update", u.Get)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want("in memory", l.Get)
	if err := l.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	again, err := openSmall(disk.Clone(0), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	replayed, err := again.OpenLive(ctx, info.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	defer replayed.Close()
	want("after a replay", replayed.Get)
	if err := s.checkpointAll(); err != nil {
		t.Fatal(err)
	}
	want("on disk", l.Get)
	l.Close()
}

// With Options.Push the end of the process, however it comes, takes no change
// that was acknowledged, synced or not.
func TestPushOutlivesTheProcess(t *testing.T) {
	mem := pebblevfs.NewCrashableMem()
	opts := Options{Dir: "/space", FS: mem, Keys: testKey, Logger: quietLog(), LogBytes: 256 << 10, memtable: 16 << 10,
		Push: true, CommitInterval: time.Hour}
	s, err := Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	info, err := s.Create(context.Background(), CreateRequest{Kind: capsule.Volume, Size: 2 << 20}, nil)
	if err != nil {
		t.Fatal(err)
	}
	v := openVolume(t, s, info.ID, "")
	want := make([]byte, 2<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range uint64(40) {
		n := 1 + r.IntN(300<<10)
		off := r.IntN(len(want) - n)
		p := random(i, n)
		copy(want[off:], p)
		if _, err := v.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
		if i == 20 {
			if err := s.checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	// What the kernel has stays when a process is killed.
	opts.FS = mem.CrashClone(pebblevfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	s2, err := Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	wantBytes(t, openVolume(t, s2, info.ID, ""), want)
}

// One update takes 1 MiB wherever it begins, and not a byte more.
func TestUnalignedMebibyte(t *testing.T) {
	s, err := openSmall(vfstest.NewPowerCut(), 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v := newVolume(t, s, "v", 4<<20)
	want := make([]byte, 4<<20)
	for _, off := range []int64{0, 512, BlockSize - 512, BlockSize + 4096, 3<<20 - 512} {
		p := random(uint64(off), maxUpdate)
		if n, err := v.WriteAt(p, off); n != len(p) || err != nil {
			t.Fatalf("1 MiB at offset %d: wrote %d, %v", off, n, err)
		}
		copy(want[off:], p)
		wantBytes(t, v, want)
	}
	err = v.Update(t.Context(), func(u *Update) error {
		if _, err := u.Write(volumeFile, 512, want[:maxUpdate]); err != nil {
			return err
		}
		_, err := u.Write(volumeFile, 2<<20, want[:1])
		return err
	})
	if capsule.KindOf(err) != capsule.Invalid {
		t.Fatalf("an update of 1 MiB and a byte: %v", err)
	}
}

// Reads see what was written, also while what a snapshot held moves to its volume
// because the snapshot is deleted.
func TestReadsWhileSnapshotsGo(t *testing.T) {
	ctx := context.Background()
	s, err := openSmall(vfstest.NewPowerCut(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := random(1, 4*BlockSize)
	v := newVolume(t, s, "v", int64(len(want)))
	var readers sync.WaitGroup
	stop := make(chan struct{})
	defer readers.Wait()
	defer close(stop)
	if _, err := v.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		readers.Go(func() {
			got := make([]byte, len(want))
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
					t.Errorf("byte %d is wrong, %v", firstDifference(got, want), err)
					return
				}
			}
		})
	}
	for i := range 60 {
		if t.Failed() {
			return
		}
		name := fmt.Sprint("s", i)
		if _, err := s.Snapshot(ctx, v.Info().ID, name); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteSnapshot(ctx, v.Info().ID, name); err != nil {
			t.Fatal(err)
		}
		s.pruner.settle()
	}
}
