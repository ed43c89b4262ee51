package store

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/testenv/seed"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

func init() { seed.Rapid() }

// modelCapsule is what a capsule should be.
type modelCapsule struct {
	name    string
	data    string
	version uint64
	notes   map[string]string
}

// Random operations, restarts and power cuts against a map. Names come from a
// small set, so that replacing, conflicts and prefixes happen all the time;
// contents share pieces, so that reference counts matter.
func TestModel(t *testing.T) {
	pieces := make([][]byte, 8)
	for i := range pieces {
		pieces[i] = random(uint64(i), 24<<10)
	}
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		disk := vfstest.NewPowerCut()
		s, err := openOn(disk)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { s.Close() }()
		model := map[capsule.ID]modelCapsule{}
		names := rapid.SampledFrom([]string{"", "a", "a/b", "a/b/c", "b", "a-b", "z"})
		byName := func(name string) (id capsule.ID, ok bool) {
			for id, c := range model {
				if c.name == name && name != "" {
					return id, true
				}
			}
			return id, false
		}
		clash := func(name string, self capsule.ID) bool {
			for id, c := range model {
				if name != "" && c.name != "" && id != self &&
					(c.name == name || bytes.HasPrefix([]byte(c.name), []byte(name+"/")) || bytes.HasPrefix([]byte(name), []byte(c.name+"/"))) {
					return true
				}
			}
			return false
		}
		some := func() capsule.ID {
			ids := []capsule.ID{{1}}
			for id := range model {
				ids = append(ids, id)
			}
			return ids[rand.IntN(len(ids))]
		}
		reopen := func() {
			if s, err = openOn(disk); err != nil {
				t.Fatalf("reopen: %v", err)
			}
		}
		draw := func(t *rapid.T) (name string, data []byte) {
			name = names.Draw(t, "name")
			for range rapid.IntRange(0, 6).Draw(t, "pieces") {
				data = append(data, pieces[rapid.IntRange(0, len(pieces)-1).Draw(t, "piece")]...)
			}
			return name, data
		}
		wasPut := func(t *rapid.T, name string, data []byte, info capsule.Info, err error) {
			old, replaces := byName(name)
			if !replaces && clash(name, capsule.ID{}) {
				if capsule.KindOf(err) != capsule.Exists {
					t.Fatalf("put %q: %v", name, err)
				}
				return
			}
			if err != nil || replaces && info.ID != old {
				t.Fatalf("put %q: %+v, %v", name, info, err)
			}
			model[info.ID] = modelCapsule{name, string(data), model[info.ID].version + 1, model[info.ID].notes}
			if info.Version != model[info.ID].version {
				t.Fatalf("put %q gives version %d", name, info.Version)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				name, data := draw(t)
				info, err := s.Put(ctx, PutRequest{Name: name, Size: int64(len(data))}, bytes.NewReader(data))
				wasPut(t, name, data, info, err)
			},
			"put all": func(t *rapid.T) {
				var contents []Content
				for range rapid.IntRange(1, 4).Draw(t, "contents") {
					name, data := draw(t)
					contents = append(contents, Content{PutRequest{Name: name, Size: int64(len(data))}, data})
				}
				for i, r := range s.PutAll(ctx, contents, nil) {
					wasPut(t, contents[i].Name, contents[i].Data, r.Info, r.Err)
				}
			},
			"rename": func(t *rapid.T) {
				id, name := some(), names.Draw(t, "name")
				_, err := s.Rename(ctx, id, name)
				c, ok := model[id]
				switch {
				case !ok:
					if capsule.KindOf(err) != capsule.NotFound {
						t.Fatalf("rename of nothing: %v", err)
					}
				case clash(name, id):
					if capsule.KindOf(err) != capsule.Exists {
						t.Fatalf("rename to %q: %v", name, err)
					}
				case err != nil:
					t.Fatalf("rename %q to %q: %v", c.name, name, err)
				default:
					c.name = name
					model[id] = c
				}
			},
			"remove": func(t *rapid.T) {
				id := some()
				_, ok := model[id]
				if err := s.Remove(ctx, id); ok != (err == nil) {
					t.Fatalf("remove: %v", err)
				}
				delete(model, id)
			},
			"note": func(t *rapid.T) {
				id, note := some(), rapid.SampledFrom([]string{"a", "b"}).Draw(t, "note")
				value := rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "value")
				if rapid.Bool().Draw(t, "none") {
					value = nil
				}
				err := s.SetNote(ctx, id, note, value)
				c, ok := model[id]
				if !ok {
					if capsule.KindOf(err) != capsule.NotFound {
						t.Fatalf("note of nothing: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatalf("note: %v", err)
				}
				if c.notes == nil {
					c.notes = map[string]string{}
				}
				if c.notes[note] = string(value); value == nil {
					delete(c.notes, note)
				}
				model[id] = c
			},
			"gc": func(t *rapid.T) {
				if _, err := s.GC(ctx, GCOptions{MinDead: 0.01, Recompress: rapid.Bool().Draw(t, "dense")}, nil); err != nil {
					t.Fatal(err)
				}
			},
			"restart": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				reopen()
			},
			"power cut": func(t *rapid.T) {
				disk.CutAt(0)
				s.Close()
				disk = disk.Clone(rapid.Uint64().Draw(t, "seed"))
				reopen()
			},
			"": func(t *rapid.T) {
				page, err := s.List(ctx, ListQuery{})
				if err != nil || len(page.Capsules) != len(model) {
					t.Fatalf("%d capsules listed, want %d: %v", len(page.Capsules), len(model), err)
				}
				var logical int64
				for _, info := range page.Capsules {
					c := model[info.ID]
					got, err := get(s, info.ID)
					if err != nil || string(got) != c.data || info.Name != c.name || info.Version != c.version {
						t.Fatalf("%s is %+v with %d bytes (%v), want %q version %d with %d", info.ID, info, len(got), err, c.name, c.version, len(c.data))
					}
					notes, err := getNotes(s.kv, info.ID)
					if err != nil || len(notes) != len(c.notes) {
						t.Fatalf("%s has the notes %q, want %q: %v", info.ID, notes, c.notes, err)
					}
					for name, want := range c.notes {
						if got, err := s.Note(ctx, info.ID, name); err != nil || got == nil || string(got) != want {
							t.Fatalf("note %q of %s is %q, want %q: %v", name, info.ID, got, want, err)
						}
					}
					logical += info.Size
				}
				if u, err := s.Usage(ctx); err != nil || u.LogicalBytes != logical || u.Capsules != int64(len(model)) {
					t.Fatalf("usage %+v, %v; want %d bytes in %d capsules", u, err, logical, len(model))
				}
				rep, err := s.Verify(ctx, VerifyOptions{}, nil)
				if err != nil || !rep.OK() {
					t.Fatalf("verify: %+v, %v", rep, err)
				}
			},
		})
	})
}
