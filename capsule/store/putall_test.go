package store

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

func contentNamed(name string, data []byte) Content {
	return Content{PutRequest{Name: name, Size: int64(len(data))}, data}
}

// severalContents are new and known, small and large, and one replaces what
// the crash workload leaves.
func severalContents() []Content {
	shared := random(1, 120<<10)
	return []Content{
		contentNamed("all/empty", nil),
		contentNamed("all/hole", make([]byte, 300<<10)),
		contentNamed("all/paged", append(random(20, 1200<<10), shared...)),
		contentNamed("all/new", text(21, 20<<10)),
		contentNamed("all/same", text(21, 20<<10)),
		contentNamed("all/shared", shared),
		contentNamed("c", shared[:60<<10]),
	}
}

// putAllStep puts several contents. They share a commit round, so that a power
// cut leaves all or none, though that is promised only of each by itself.
func putAllStep() step {
	contents := severalContents()
	return step{"put all", func(s *Store) error {
		for _, r := range s.PutAll(context.Background(), contents, nil) {
			if r.Err != nil {
				return r.Err
			}
		}
		return nil
	}, func(m state) {
		for _, c := range contents {
			m[c.Name] = string(c.Data)
		}
	}}
}

// Puts that are made together do what each would alone: what they store is
// there, shared as far as it is equal, and those that fail leave the others alone.
func TestPutAll(t *testing.T) {
	s := newStore(t)
	old := put(t, s, "c", text(30, 70<<10))
	put(t, s, "taken", []byte("t"))
	reader, err := s.Open(t.Context(), old.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()

	contents := severalContents()
	good := len(contents)
	again := contentNamed("all/new", []byte("again"))
	exclusive, short, unnamed, private := contentNamed("taken", nil), contentNamed("short", []byte("123")), contentNamed("", []byte("unnamed")), contentNamed("all/private", text(21, 20<<10))
	exclusive.Exclusive = true
	short.Size = 4
	unnamed.Size = -1
	private.Policy = alone()
	contents = append(contents, again, unnamed, private,
		exclusive, short, contentNamed("all/new/below", nil), contentNamed("../x", nil))
	wrong := map[string]capsule.ErrorKind{"taken": capsule.Exists, "short": capsule.Invalid, "all/new/below": capsule.Exists, "../x": capsule.Invalid}

	taken := 0
	results := s.PutAll(t.Context(), contents, func() { taken++ })
	if taken != 1 {
		t.Errorf("taken was called %d times", taken)
	}
	for i, r := range results {
		c := contents[i]
		if kind, fails := wrong[c.Name]; fails {
			wantKind(t, r.Err, kind)
			continue
		}
		if r.Err != nil {
			t.Fatalf("put %q: %v", c.Name, r.Err)
		}
		if r.Info.Name != c.Name || r.Info.Size != int64(len(c.Data)) {
			t.Errorf("%q is %+v", c.Name, r.Info)
		}
		if c.Name != "all/new" {
			wantContent(t, s, r.Info.ID, c.Data)
		}
	}
	if replaced := results[good-1].Info; replaced.ID != old.ID || replaced.Version != old.Version+1 {
		t.Errorf("%+v does not replace %+v", replaced, old)
	}
	if first, second := results[3].Info, results[good].Info; first.ID != second.ID || second.Version != 2 {
		t.Errorf("the same name twice gives %+v and then %+v", first, second)
	}
	wantContent(t, s, results[3].Info.ID, again.Data)
	var b bytes.Buffer
	if _, err := reader.Stream(t.Context(), &b, 0, -1); err != nil || !bytes.Equal(b.Bytes(), text(30, 70<<10)) {
		t.Errorf("the reader of what was replaced got %d bytes, %v", b.Len(), err)
	}
	if m, err := readState(s); err != nil || len(m) != good+3 { // with "taken", "" and "all/private"
		t.Errorf("the store holds %d names, %v: %v", len(m), err, m)
	}
	wantClean(t, s)
	wantNoPins(t, s)
}

// wantNoPins fails if a put that is over left a promise behind.
func wantNoPins(t *testing.T, s *Store) {
	t.Helper()
	n := 0
	for i := range s.pins.shards {
		n += len(s.pins.shards[i].pins)
	}
	if n+len(s.pins.held.logs)+len(s.pins.held.keys) > 0 {
		t.Errorf("left behind: %d pins, logs %v, keys %v", n, s.pins.held.logs, s.pins.held.keys)
	}
}

// Puts that are made together in several places at once, of the same contents in
// other orders, wait for each other's segments and never in a circle.
func TestPutAllAtOnce(t *testing.T) {
	s := newStore(t)
	const contents, rounds = 8, 12
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for round := range rounds {
				var batch []Content
				for i := range contents {
					n := (i*(w+1) + w) % contents // some of them twice, in an order of its own
					data := random(uint64(100+round*contents+n), 40<<10+n)
					batch = append(batch, contentNamed(fmt.Sprintf("%d/%d/%d", w, round, i), data))
				}
				for i, r := range s.PutAll(context.Background(), batch, nil) {
					if r.Err != nil {
						t.Errorf("put %q: %v", batch[i].Name, r.Err)
					}
				}
			}
		})
	}
	wg.Wait()
	u, err := s.Usage(t.Context())
	if err != nil || u.Capsules != 6*rounds*contents {
		t.Errorf("%+v, %v", u, err)
	}
	wantClean(t, s)
	wantNoPins(t, s)
}

// An I/O error at each step of puts that are made together: those without an
// error are there after a restart, and those with one are there whole or not at all.
func TestErrorAtEveryStepOfPutAll(t *testing.T) {
	contents := severalContents()
	prepare := func(fsys *vfstest.Faults) (*Store, state) {
		s, err := openOn(fsys)
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, "c", []byte("before"))
		return s, state{"c": "before"}
	}
	counter := vfstest.NewFaults(vfstest.NewPowerCut())
	s, _ := prepare(counter)
	before := counter.Count()
	for _, r := range s.PutAll(t.Context(), contents, nil) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	total := counter.Count() - before
	s.Close()
	t.Logf("%d I/O operations", total)
	for n := range total {
		for _, failure := range []error{syscall.EIO, syscall.ENOSPC} {
			disk := vfstest.NewPowerCut()
			faults := vfstest.NewFaults(disk)
			s, was := prepare(faults)
			at := 0
			faults.Set(func(op vfstest.Op) error {
				if op.Kind == vfstest.Close {
					return nil
				}
				if at++; at == n+1 {
					return failure
				}
				return nil
			})
			results := s.PutAll(t.Context(), contents, nil)
			faults.Set(nil)
			s.Close()
			s, err := openOn(disk)
			if err != nil {
				t.Fatalf("%v at step %d: open: %v", failure, n, err)
			}
			got, err := readState(s)
			if err != nil {
				t.Fatalf("%v at step %d: %v", failure, n, err)
			}
			for i, r := range results {
				name, want := contents[i].Name, string(contents[i].Data)
				have, ok := got[name]
				delete(got, name)
				old, existed := was[name]
				if r.Err == nil && (!ok || have != want) {
					t.Errorf("%v at step %d: %q was acknowledged and has %d bytes of %d (%v)", failure, n, name, len(have), len(want), ok)
				}
				if r.Err != nil && have != want && (ok != existed || have != old) {
					t.Errorf("%v at step %d: %q failed and has %d bytes", failure, n, name, len(have))
				}
			}
			if len(got) > 0 {
				t.Errorf("%v at step %d: the store holds %v besides", failure, n, got)
			}
			wantClean(t, s)
			s.Close()
		}
	}
}

// Puts that were canceled store nothing.
func TestCanceledPutAll(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	for i, r := range s.PutAll(ctx, severalContents(), cancel) {
		if r.Err == nil {
			t.Errorf("content %d was stored", i)
			continue
		}
		wantKind(t, r.Err, capsule.Canceled)
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Capsules != 0 || u.Segments != 0 {
		t.Errorf("%+v, %v", u, err)
	}
	wantClean(t, s)
	wantNoPins(t, s)
}
