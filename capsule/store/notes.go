package store

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/spacestore/space/capsule"
)

// Notes are small values by name that somebody above the store keeps with a
// capsule, or, under the zero ID, with the store: how a view shows it, say. The
// store does not look into them. They go with their capsule; snapshots and
// clones have none of its notes, and a rollback leaves them.
type Notes map[string][]byte

// Limits of the notes of one capsule.
const (
	MaxNote     = 64 << 10 // bytes of one
	MaxNoteName = 64       // bytes of a name
	maxNotes    = 256 << 10
)

// All notes of a capsule are one row, so that removing a capsule asks for one
// key and not for a range of them, most of the time to find nothing.

func (n Notes) encode() []byte {
	e := encoder{[]byte{recordVersion}}
	e.uint(uint64(len(n)))
	for _, name := range slices.Sorted(maps.Keys(n)) {
		e.string(name)
		e.string(string(n[name]))
	}
	return e.b
}

func decodeNotes(b []byte) (Notes, error) {
	d := decoder{b: b}
	d.version()
	n := d.uint()
	notes, last := Notes{}, ""
	for range n {
		name, value := d.string(), d.string()
		if d.err == nil && (name <= last || checkNote(name, []byte(value)) != nil) {
			d.fail()
		}
		if d.err != nil {
			break
		}
		notes[name], last = []byte(value), name
	}
	if n == 0 {
		d.fail() // such a row is not kept
	}
	return notes, d.end("notes")
}

func checkNote(name string, value []byte) error {
	if name == "" || len(name) > MaxNoteName {
		return capsule.Errorf(capsule.Invalid, "a note's name has 1 to %d bytes, not %d", MaxNoteName, len(name))
	}
	if len(value) > MaxNote {
		return capsule.Errorf(capsule.TooLarge, "note %q has %d bytes; at most %d are kept", name, len(value), MaxNote)
	}
	return nil
}

// getNotes returns the notes of a capsule, or of the store for the zero ID.
func getNotes(r kvReader, id capsule.ID) (Notes, error) {
	b, err := r.get(notesKey(id))
	if err != nil || b == nil {
		return nil, err
	}
	notes, err := decodeNotes(b)
	return notes, capsule.Wrap(capsule.Damaged, err, "capsule %s", id)
}

// SetNote keeps value with a capsule under name, durably; nil takes the note
// away. The zero ID means the store.
func (s *Store) SetNote(ctx context.Context, id capsule.ID, name string, value []byte) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := checkNote(name, value); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.commit(synced, func(t *tx) error {
		if !id.IsZero() {
			if _, err := t.capsule(id); err != nil {
				return err
			}
		}
		notes, err := getNotes(t.b, id)
		if err != nil {
			return err
		}
		if old, ok := notes[name]; ok == (value != nil) && bytes.Equal(old, value) {
			return nil
		}
		if notes == nil {
			notes = Notes{}
		}
		if value == nil {
			delete(notes, name)
		} else {
			notes[name] = value
		}
		if len(notes) == 0 {
			return t.b.delete(notesKey(id))
		}
		row := notes.encode()
		if len(row) > maxNotes && value != nil {
			return capsule.Errorf(capsule.TooLarge, "the notes of capsule %s would have %d bytes; at most %d are kept", id, len(row), maxNotes)
		}
		return t.b.set(notesKey(id), row)
	})
}

// Note returns a note of a capsule, or of the store for the zero ID; nil is none.
func (s *Store) Note(ctx context.Context, id capsule.ID, name string) ([]byte, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	notes, err := getNotes(s.kv, id)
	return notes[name], err
}

// Noted is a capsule that has notes.
type Noted struct {
	ID    capsule.ID
	Notes Notes
}

// Noted returns up to limit capsules that have notes, by ID, from the first
// after the one given on. The store's own notes are not among them.
func (s *Store) Noted(ctx context.Context, after capsule.ID, limit int) ([]Noted, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	var list []Noted
	err := s.kv.scan(append(notesKey(after), 0), []byte{keyNotes + 1}, func(k, v []byte) (bool, error) {
		var id capsule.ID
		copy(id[:], k[1:])
		notes, err := decodeNotes(v)
		if err != nil {
			return false, capsule.Wrap(capsule.Damaged, err, "capsule %s", id)
		}
		list = append(list, Noted{id, notes})
		return len(list) < limit, ctx.Err()
	})
	return list, err
}

// checkNotes checks that all notes can be read and belong to something.
func checkNotes(r kvReader, rep *VerifyReport) error {
	return r.scan([]byte{keyNotes}, []byte{keyNotes + 1}, func(k, v []byte) (bool, error) {
		var id capsule.ID
		copy(id[:], k[1:])
		if _, err := decodeNotes(v); err != nil {
			rep.problem("capsule %s: %v", id, err)
		}
		if id.IsZero() {
			return true, nil
		}
		b, err := r.get(capsuleKey(id))
		if err == nil && b == nil {
			rep.problem("there are notes of capsule %s, which is not there", id)
		}
		return true, err
	})
}
