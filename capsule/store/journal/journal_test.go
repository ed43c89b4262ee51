package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/journal"
	"github.com/spacestore/space/capsule/store/metafs"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

type oneKey struct{}

func (oneKey) Current() (uint32, [32]byte)       { return 1, [32]byte{7} }
func (oneKey) Key(v uint32) (k [32]byte, _ bool) { return [32]byte{7}, v == 1 }

func open(t *testing.T, disk vfs.FS, after uint64) (*journal.Journal, []string, error) {
	t.Helper()
	var records []string
	j, err := journal.Open(metafs.New(disk, oneKey{}, nil), "/j", after, func(n uint64, rec []byte) error {
		if want := after + uint64(len(records)) + 1; n != want {
			t.Errorf("record %d is replayed where %d is due", n, want)
		}
		records = append(records, string(rec))
		return nil
	})
	return j, records, err
}

func add(t *testing.T, j *journal.Journal, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		if n, err := j.Append(record(i)); err != nil || n != uint64(i) {
			t.Fatalf("record %d got number %d, %v", i, n, err)
		}
	}
}

func record(i int) []byte { return bytes.Repeat(fmt.Append(nil, i, " "), i%300) }

func wantRecords(t *testing.T, got []string, from, to int) {
	t.Helper()
	if len(got) != to-from+1 {
		t.Fatalf("%d records are replayed, want %d to %d", len(got), from, to)
	}
	for i, rec := range got {
		if rec != string(record(from+i)) {
			t.Fatalf("record %d is wrong", from+i)
		}
	}
}

// What was appended comes back, over cuts and releases and several lives.
func TestReplay(t *testing.T) {
	disk := vfstest.NewPowerCut()
	j, _, err := open(t, disk, 0)
	if err != nil {
		t.Fatal(err)
	}
	add(t, j, 1, 700)
	if n, err := j.Cut(); err != nil || n != 700 {
		t.Fatalf("cut at %d, %v", n, err)
	}
	add(t, j, 701, 900)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, got, err := open(t, disk, 0)
	if err != nil {
		t.Fatal(err)
	}
	wantRecords(t, got, 1, 900)
	add(t, j, 901, 1000)
	if err := j.Sync(1000); err != nil {
		t.Fatal(err)
	}
	if err := j.Release(700); err != nil { // the first file goes
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, got, err = open(t, disk, 750); err != nil {
		t.Fatal(err)
	}
	wantRecords(t, got, 751, 1000)
	if _, _, err := open(t, disk, 600); capsule.KindOf(err) != capsule.Damaged {
		t.Fatalf("with records missing: %v", err)
	}
}

// After a power cut there is a prefix, at least up to what was synced.
func TestPowerCut(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		disk := vfstest.NewPowerCut()
		j, _, err := open(t, disk, 0)
		if err != nil {
			t.Fatal(err)
		}
		disk.CutAt(disk.Ops() + r.IntN(60))
		last, synced := 0, 0
		for range 60 {
			if _, err := j.Append(record(last + 1)); err != nil {
				break
			}
			last++
			regular := seed%2 == 1 // so that pushes have the disk begin
			if regular && j.Push(uint64(last)) != nil {
				break
			}
			if !regular && r.IntN(5) == 0 || regular && last%2 == 0 {
				if j.Sync(uint64(last)) != nil {
					break
				}
				synced = last
			}
			if r.IntN(12) == 0 {
				if _, err := j.Cut(); err != nil {
					break
				}
			}
		}
		_, got, err := open(t, disk.Clone(seed), 0)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if len(got) < synced {
			t.Fatalf("seed %d: %d records of %d synced", seed, len(got), synced)
		}
		wantRecords(t, got, 1, len(got))
	}
}

// A record that cannot be replayed because of a power cut ends the journal for
// good: those after it stay out, and their numbers are not given again.
func TestEnd(t *testing.T) {
	disk := vfstest.NewPowerCut()
	j, _, err := open(t, disk, 0)
	if err != nil {
		t.Fatal(err)
	}
	add(t, j, 1, 30)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	replayed := 0
	j, err = journal.Open(metafs.New(disk, oneKey{}, nil), "/j", 0, func(n uint64, rec []byte) error {
		if n == 20 {
			return fmt.Errorf("gone: %w", journal.ErrEnd)
		}
		replayed++
		return nil
	})
	if err != nil || replayed != 19 {
		t.Fatalf("%d records are replayed, %v", replayed, err)
	}
	if n, err := j.Append([]byte("next")); err != nil || n != 31 {
		t.Fatalf("the next record is %d, %v", n, err)
	}
	boom := errors.New("boom")
	if _, err := journal.Open(metafs.New(disk, oneKey{}, nil), "/j", 0, func(uint64, []byte) error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("an error of the replay becomes %v", err)
	}
}

// Many who append and sync at once need fewer writes and syncs than there are of them.
func TestGroupCommit(t *testing.T) {
	faults := vfstest.NewFaults(vfstest.NewPowerCut())
	j, _, err := open(t, faults, 0)
	if err != nil {
		t.Fatal(err)
	}
	add(t, j, 1, 1) // makes the file
	if err := j.Sync(1); err != nil {
		t.Fatal(err)
	}
	var hold sync.WaitGroup
	hold.Add(1)
	first := true
	faults.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Sync && first {
			first = false
			hold.Wait() // the others arrive meanwhile
		}
		return nil
	})
	syncs, writes := faults.Count(vfstest.Sync), faults.Count(vfstest.Write)
	var ready, done sync.WaitGroup
	for range 50 {
		ready.Add(1)
		done.Go(func() {
			n, err := j.Append([]byte("x"))
			ready.Done()
			if err == nil {
				err = j.Sync(n)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	ready.Wait()
	hold.Done()
	done.Wait()
	if n := faults.Count(vfstest.Sync) - syncs; n > 10 {
		t.Errorf("%d syncs for 50 callers", n)
	}
	if n := faults.Count(vfstest.Write) - writes; n > 20 { // marks of syncs among them
		t.Errorf("%d writes for 50 callers", n)
	}
}

// gate is a file system whose syncs of files are held up from close(shut) to
// close(open).
type gate struct {
	vfs.FS
	shut, open, met chan struct{}
	once            sync.Once
}

type gateFile struct {
	vfs.File
	g *gate
}

func (g *gate) Create(name string, c vfs.Category) (vfs.File, error) {
	f, err := g.FS.Create(name, c)
	return gateFile{f, g}, err
}

func (f gateFile) SyncData() error {
	select {
	case <-f.g.shut:
		f.g.once.Do(func() { close(f.g.met) })
		<-f.g.open
	default:
	}
	return f.File.SyncData()
}

// While the disk syncs, what comes is written: once it is pushed, the end of
// the process does not take it.
func TestPushDuringSync(t *testing.T) {
	mem := pebblevfs.NewMem()
	g := &gate{FS: mem, shut: make(chan struct{}), open: make(chan struct{}), met: make(chan struct{})}
	j, _, err := open(t, g, 0)
	if err != nil {
		t.Fatal(err)
	}
	add(t, j, 1, 10)
	if err := j.Sync(10); err != nil {
		t.Fatal(err)
	}
	close(g.shut)
	add(t, j, 11, 20)
	synced := make(chan error)
	go func() { synced <- j.Sync(20) }()
	<-g.met
	add(t, j, 21, 30)
	if err := j.Push(30); err != nil {
		t.Fatal(err)
	}
	_, got, err := open(t, mem, 0) // as the next process would
	if err != nil {
		t.Fatal(err)
	}
	wantRecords(t, got, 1, 30)
	close(g.open)
	if err := <-synced; err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// Where each push has been followed by a sync, the disk begins at the next push:
// that is no sync, and if it fails, nothing may be assumed either.
func TestPushBegins(t *testing.T) {
	faults := vfstest.NewFaults(vfstest.NewPowerCut())
	j, _, err := open(t, faults, 0)
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	push := func(n int) {
		t.Helper()
		for range n {
			i++
			add(t, j, i, i)
			if err := j.Push(uint64(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 3 {
		push(2)
		syncs := faults.Count(vfstest.Sync)
		if err := j.Sync(uint64(i)); err != nil {
			t.Fatal(err)
		}
		if faults.Count(vfstest.Sync) == syncs {
			t.Fatal("nothing is synced")
		}
	}
	begun := faults.Count(vfstest.SyncTo)
	push(1)
	if faults.Count(vfstest.SyncTo) != begun {
		t.Fatal("the disk begins before the last push")
	}
	push(1)
	if faults.Count(vfstest.SyncTo) != begun+1 {
		t.Fatal("the disk does not begin with the push before a sync")
	}
	push(5)
	if faults.Count(vfstest.SyncTo) != begun+1 {
		t.Fatal("the disk begins though no sync came")
	}
	for range 2 {
		if err := j.Sync(uint64(i)); err != nil {
			t.Fatal(err)
		}
		push(1)
	}
	if err := j.Sync(uint64(i)); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	faults.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.SyncTo {
			return boom
		}
		return nil
	})
	i++
	add(t, j, i, i)
	if err := j.Push(uint64(i)); !errors.Is(err, boom) {
		t.Fatalf("a push that the disk fails at: %v", err)
	}
	faults.Set(nil)
	if err := j.Sync(uint64(i)); !errors.Is(err, boom) {
		t.Fatalf("a sync after that: %v", err)
	}
	if _, err := j.Append([]byte("more")); !errors.Is(err, boom) {
		t.Fatalf("an append after that: %v", err)
	}
}

// Many who append, push, sync, cut and release at once, with the power cut in
// the middle: each finds what it synced, and all is in order.
func TestPowerCutAmongMany(t *testing.T) {
	for seed := range uint64(60) {
		disk := vfstest.NewPowerCut()
		j, _, err := open(t, disk, 0)
		if err != nil {
			t.Fatal(err)
		}
		disk.CutAt(disk.Ops() + rand.New(rand.NewPCG(seed, 1)).IntN(120))
		var mu sync.Mutex
		var synced uint64
		var all sync.WaitGroup
		for w := range uint64(6) {
			all.Go(func() {
				r := rand.New(rand.NewPCG(seed, 2+w))
				for range 30 {
					mu.Lock()
					n, err := j.Append(record(int(j.Last() + 1)))
					mu.Unlock()
					if err != nil {
						return
					}
					switch r.IntN(4) {
					case 0:
						if j.Push(n) != nil {
							return
						}
					case 1:
						if j.Sync(n) != nil {
							return
						}
						mu.Lock()
						synced = max(synced, n)
						mu.Unlock()
					}
					if w == 0 && r.IntN(8) == 0 { // as the checkpointer does, alone
						if _, err := j.Cut(); err != nil {
							return
						}
					}
				}
			})
		}
		all.Wait()
		_, got, err := open(t, disk.Clone(seed), 0)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if uint64(len(got)) < synced {
			t.Fatalf("seed %d: %d records of %d synced", seed, len(got), synced)
		}
		wantRecords(t, got, 1, len(got))
	}
}

func TestLimits(t *testing.T) {
	j, _, err := open(t, vfstest.NewPowerCut(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(make([]byte, journal.MaxRecord+1)); capsule.KindOf(err) != capsule.Invalid {
		t.Errorf("a record that is too long: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(nil); capsule.KindOf(err) != capsule.Unavailable {
		t.Errorf("append after close: %v", err)
	}
}
