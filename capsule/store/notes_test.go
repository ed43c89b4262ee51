package store

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// Notes stay with their capsule through a restart, whatever its kind, and only
// with it: a clone and a snapshot have none, a rollback leaves them, and they
// go when it goes.
func TestNotes(t *testing.T) {
	ctx := t.Context()
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	v := newVolume(t, s, "v", 1<<20)
	v.Close()
	volume, object := v.Info().ID, put(t, s, "o", nil).ID
	want := func(id capsule.ID, name, want string) {
		t.Helper()
		if got, err := s.Note(ctx, id, name); err != nil || string(got) != want || (got == nil) != (want == "") {
			t.Errorf("note %q of %s is %q, want %q: %v", name, id, got, want, err)
		}
	}
	for _, id := range []capsule.ID{volume, object, {}} {
		want(id, "n", "")
		must(s.SetNote(ctx, id, "n", []byte("of "+id.String())))
		must(s.SetNote(ctx, id, "m", []byte("m")))
	}
	_, err = s.Snapshot(ctx, volume, "s")
	must(err)
	clone, err := s.Clone(ctx, volume, "s", "c")
	must(err)
	must(s.SetNote(ctx, volume, "n", []byte("changed")))
	_, err = s.Rollback(ctx, volume, "s")
	must(err)
	s.Close()
	s, err = openOn(disk)
	must(err)
	want(volume, "n", "changed")
	want(volume, "m", "m")
	want(object, "n", "of "+object.String())
	want(capsule.ID{}, "n", "of "+capsule.ID{}.String())
	want(clone.ID, "n", "")

	must(s.SetNote(ctx, volume, "m", nil))
	must(s.SetNote(ctx, volume, "m", nil)) // there is none any more
	want(volume, "m", "")
	must(s.DeleteSnapshot(ctx, volume, "s"))
	must(s.Remove(ctx, volume))
	must(s.Remove(ctx, object))
	want(volume, "n", "")
	if page, err := s.Noted(ctx, capsule.ID{}, 10); err != nil || len(page) > 0 {
		t.Errorf("notes are left of %+v: %v", page, err)
	}
	want(capsule.ID{}, "m", "m")
	wantClean(t, s)
}

func TestNoteRefusals(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	id := put(t, s, "o", nil).ID
	for _, name := range []string{"", strings.Repeat("n", MaxNoteName+1)} {
		wantKind(t, s.SetNote(ctx, id, name, []byte("v")), capsule.Invalid)
	}
	wantKind(t, s.SetNote(ctx, id, "n", make([]byte, MaxNote+1)), capsule.TooLarge)
	wantKind(t, s.SetNote(ctx, capsule.NewID(time.Now()), "n", []byte("v")), capsule.NotFound)
	full := false
	for i := range 10 { // all notes together have a limit too, and what fits stays
		err := s.SetNote(ctx, id, string(rune('a'+i)), make([]byte, MaxNote))
		if full = capsule.KindOf(err) == capsule.TooLarge; full {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Note(ctx, id, "a"); !full || err != nil || len(got) != MaxNote {
		t.Errorf("full: %v; the first note has %d bytes, %v", full, len(got), err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	wantKind(t, s.SetNote(canceled, id, "a", nil), capsule.Canceled)
	wantClean(t, s)
}

// A note that cannot be read, or whose capsule is not there, is found.
func TestVerifyKnowsNotes(t *testing.T) {
	s := newStore(t)
	id := put(t, s, "o", nil).ID
	for _, broken := range []struct {
		id  capsule.ID
		row []byte
		say string
	}{{id, []byte{recordVersion, 1, 1, 'n'}, "malformed"}, {capsule.NewID(time.Now()), Notes{"n": nil}.encode(), "not there"}} {
		set := func(row []byte) {
			t.Helper()
			if err := s.commit(synced, func(t *tx) error {
				if row == nil {
					return t.b.delete(notesKey(broken.id))
				}
				return t.b.set(notesKey(broken.id), row)
			}); err != nil {
				t.Fatal(err)
			}
		}
		set(broken.row)
		rep, err := s.Verify(t.Context(), VerifyOptions{Metadata: true}, nil)
		if err != nil || len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0], broken.say) {
			t.Errorf("verify found %q, want %q: %v", rep.Problems, broken.say, err)
		}
		if broken.id == id {
			_, err := s.Note(t.Context(), id, "n")
			wantKind(t, err, capsule.Damaged)
			// It must not keep the capsule from being removed.
			if err := s.Remove(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		set(nil)
	}
	wantClean(t, s)
}

func TestNotesOrder(t *testing.T) {
	for _, n := range []Notes{{"a": []byte("1"), "b": nil}, {"b": bytes.Repeat([]byte{1}, 300)}} {
		if got, err := decodeNotes(n.encode()); err != nil || len(got) != len(n) {
			t.Errorf("%q became %q: %v", n, got, err)
		}
	}
	for _, bad := range [][]byte{nil, {recordVersion}, {recordVersion, 0}, {recordVersion, 2, 1, 'b', 0, 1, 'a', 0}, {recordVersion, 2, 1, 'a', 0, 1, 'a', 0},
		{recordVersion, 1, 0, 0}, {recordVersion, 1, 1, 'a', 0, 0}, {recordVersion, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 'a', 0}} {
		if n, err := decodeNotes(bad); err == nil {
			t.Errorf("%x was read as %q", bad, n)
		}
	}
}
