package keyring

import (
	"fmt"
	"maps"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// change is something done to a key ring, and the sources that may open it
// after a power cut in the middle of it.
type change struct {
	name  string
	from  Source
	do    func(*Ring) error
	opens []Source
	after uint32 // the current version once it is done
	drops string // a version that no data needs any more
}

var changes = []change{
	{"rotate file", Source{}, func(r *Ring) error { return r.Rotate(nil) }, []Source{{}}, 3, ""},
	{"rotate key", Source{MasterKey: rawKey}, func(r *Ring) error { return r.Rotate(nil) }, []Source{{MasterKey: rawKey}}, 3, ""},
	{"file to key", Source{}, func(r *Ring) error { return r.Rotate(&Source{MasterKey: rawKey}) }, []Source{{}, {MasterKey: rawKey}}, 3, ""},
	{"key to file", Source{MasterKey: rawKey}, func(r *Ring) error { return r.Rotate(&Source{}) }, []Source{{MasterKey: rawKey}, {}}, 3, ""},
	{"drop", Source{}, func(r *Ring) error { return r.DropUnused(func(uint32) bool { return false }) }, []Source{{}}, 2, "1"},
}

// seeds of each step's cuts: nothing of what was not synced is there, all, and two in between.
const seeds = 4

// newMachine is a machine with a store's home directory that is there for good.
func newMachine(t testing.TB) *vfstest.PowerCut {
	t.Helper()
	m := vfstest.NewPowerCut()
	if err := m.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := vfs.SyncDir(m, "/"); err != nil {
		t.Fatal(err)
	}
	return m
}

func openOrCreate(m vfs.FS, src Source) (*Ring, error) {
	r, err := Open(m, home, src, quiet)
	if capsule.KindOf(err) == capsule.NotFound {
		return Create(m, home, src)
	}
	return r, err
}

// TestPowerCutDuringCreate cuts the power at every step of Create, and again
// at every step of the next start.
func TestPowerCutDuringCreate(t *testing.T) {
	t.Parallel()
	for _, src := range []Source{{}, {MasterKey: rawKey}} {
		runs := 0
		for step := 0; ; step++ {
			m := newMachine(t)
			m.CutAt(m.Ops() + step)
			_, err := Create(m, home, src)
			for seed := uint64(step * seeds); seed < uint64(step+1)*seeds; seed++ {
				for step2 := 0; ; step2++ {
					m2 := m.Clone(seed)
					m2.CutAt(step2)
					_, err2 := openOrCreate(m2, src)
					runs++
					r, err3 := openOrCreate(m2.Clone(seed+1), src)
					if err3 != nil || r.Current() != 1 {
						t.Fatalf("step %d, seed %d, step %d: %v", step, seed, step2, err3)
					}
					if err2 == nil && !m2.Off() {
						break
					}
				}
			}
			if err == nil && !m.Off() {
				break
			}
		}
		if runs < 50 {
			t.Errorf("only %d runs", runs)
		}
	}
}

// TestPowerCutDuringChange cuts the power at every step of a change, and again
// at every step of the recovery: the store opens, all its keys in use are
// there, and a change that was acknowledged has happened.
func TestPowerCutDuringChange(t *testing.T) {
	t.Parallel()
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			for step := 0; ; step++ {
				m := newMachine(t)
				r := mustCreate(t, m, c.from)
				if err := r.Rotate(nil); err != nil { // so that there is a version to drop
					t.Fatal(err)
				}
				m.CutAt(m.Ops() + step)
				needed := secretsOf(r)
				delete(needed, "segment "+c.drops)
				delete(needed, "meta "+c.drops)
				err := c.do(r)
				if err != nil && !m.Off() {
					t.Fatal(err)
				}
				for seed := uint64(step * seeds); seed < uint64(step+1)*seeds; seed++ {
					for step2 := 0; ; step2++ {
						m2 := m.Clone(seed)
						m2.CutAt(step2)
						_, err2 := openAny(m2, c.opens)
						again, err3 := openAny(m2.Clone(seed+1), c.opens)
						where := fmt.Sprintf("step %d, seed %d, step %d", step, seed, step2)
						if err3 != nil {
							t.Fatalf("%s: %v", where, err3)
						}
						if !contains(secretsOf(again), needed) {
							t.Fatalf("%s: a key is lost", where)
						}
						if err == nil && (again.Current() != c.after || !maps.Equal(secretsOf(again), secretsOf(r))) {
							t.Fatalf("%s: the change was acknowledged and is not there", where)
						}
						if err2 == nil && !m2.Off() {
							break
						}
					}
				}
				if !m.Off() {
					if step < 8 {
						t.Errorf("only %d steps", step)
					}
					return
				}
			}
		})
	}
}

// openAny opens the ring with the source that fits.
func openAny(m vfs.FS, sources []Source) (r *Ring, err error) {
	for _, src := range sources {
		if r, err = Open(m, home, src, quiet); err == nil {
			return r, nil
		}
	}
	return nil, err
}
