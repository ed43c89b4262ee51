package store

import (
	"context"
	"encoding/base64"
	"strings"

	"github.com/spacestore/space/capsule"
)

// Info tells about a capsule.
func (s *Store) Info(ctx context.Context, id capsule.ID) (capsule.Info, error) {
	if err := s.enter(); err != nil {
		return capsule.Info{}, err
	}
	defer s.leave()
	rec, err := getCapsule(s.kv, id)
	return rec.info(id), err
}

// Resolve finds the capsule that ref means: its ID, or else its name.
func (s *Store) Resolve(ctx context.Context, ref string) (capsule.Info, error) {
	if err := s.enter(); err != nil {
		return capsule.Info{}, err
	}
	defer s.leave()
	if id, err := capsule.ParseID(ref); err == nil {
		rec, err := getCapsule(s.kv, id)
		if capsule.KindOf(err) != capsule.NotFound {
			return rec.info(id), err
		}
	} else if err := capsule.CheckName(ref); err != nil {
		return capsule.Info{}, err
	}
	id, err := lookupName(s.kv, ref)
	if err == nil && id.IsZero() {
		err = capsule.Errorf(capsule.NotFound, "no capsule has the ID or name %q", ref)
	}
	if err != nil {
		return capsule.Info{}, err
	}
	rec, err := getCapsule(s.kv, id)
	return rec.info(id), err
}

// Policy returns a capsule's policy, the default one where it has none of its own.
func (s *Store) Policy(ctx context.Context, id capsule.ID) (*capsule.Policy, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	rec, err := getCapsule(s.kv, id)
	if err != nil {
		return nil, err
	}
	return s.policy(s.kv, rec.policy)
}

// SetPolicy gives a capsule another policy. What it says about how bytes are
// sealed holds from the next put on.
func (s *Store) SetPolicy(ctx context.Context, id capsule.ID, p *capsule.Policy) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	pid, text := policyKeyText(p)
	var family uint64
	defer func() { s.forgetSealer(family) }()
	return s.commit(synced, func(t *tx) error {
		rec, err := t.capsule(id)
		if err != nil || rec.policy == pid {
			return err
		}
		if rec.kind != capsule.Object {
			family = rec.living.family
			if err := t.setFamilyPolicy(rec.living.family, pid, text); err != nil {
				return err
			}
		}
		if err := t.addPolicyRef(pid, text, 1); err != nil {
			return err
		}
		if err := t.addPolicyRef(rec.policy, "", -1); err != nil {
			return err
		}
		rec.policy = pid
		t.changes = append(t.changes, Change{ID: id, Name: rec.name})
		return t.b.set(capsuleKey(id), rec.encode())
	})
}

// Rename gives a capsule another name; "" leaves it without one.
func (s *Store) Rename(ctx context.Context, id capsule.ID, name string) (capsule.Info, error) {
	if err := s.enter(); err != nil {
		return capsule.Info{}, err
	}
	defer s.leave()
	if name != "" {
		if err := capsule.CheckName(name); err != nil {
			return capsule.Info{}, err
		}
	}
	var info capsule.Info
	err := s.commit(synced, func(t *tx) error {
		rec, err := t.capsule(id)
		if err != nil {
			return err
		}
		if rec.name != name {
			if name != "" {
				if err := t.checkUnused(name, id); err != nil {
					return err
				}
			}
			if err := t.setName(id, &rec.name, &name); err != nil {
				return err
			}
			t.changes = append(t.changes, Change{ID: id, Name: name, OldName: rec.name})
			rec.name = name
		}
		info = rec.info(id)
		return t.b.set(capsuleKey(id), rec.encode())
	})
	return info, err
}

// remove takes away a capsule's record and what goes with it, but not its
// content. A capsule with snapshots stays.
func (t *tx) remove(id capsule.ID) (capsuleRecord, error) {
	rec, err := t.capsule(id)
	if err != nil {
		return rec, err
	}
	if n, err := countSnapshots(t.b, id); err != nil {
		return rec, err
	} else if n > 0 {
		return rec, capsule.Errorf(capsule.Conflict, "capsule %s has %d snapshots; delete them first (spacectl snapshot rm)", id, n)
	}
	if err := t.addPolicyRef(rec.policy, "", -1); err != nil {
		return rec, err
	}
	if err := t.setName(id, &rec.name, nil); err != nil {
		return rec, err
	}
	for _, k := range [][]byte{retentionKey(id), notesKey(id)} {
		if err := t.drop(k); err != nil {
			return rec, err
		}
	}
	t.totals.capsules--
	t.changes = append(t.changes, Change{ID: id, OldName: rec.name, Removed: true})
	return rec, t.b.delete(capsuleKey(id))
}

// drop deletes a row that most often is not there, which leaves no tombstone then.
func (t *tx) drop(key []byte) error {
	b, err := t.b.get(key)
	if err != nil || b == nil {
		return err
	}
	return t.b.delete(key)
}

// Remove removes a capsule. Readers that have it open go on; its space comes
// back when they are done and the garbage has been collected.
func (s *Store) Remove(ctx context.Context, id capsule.ID) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if rec, err := getCapsule(s.kv, id); err != nil {
		return err
	} else if rec.kind != capsule.Object {
		return s.removeLiving(id)
	}
	return s.commit(synced, func(t *tx) error {
		rec, err := t.remove(id)
		if err != nil {
			return err
		}
		t.totals.logical -= rec.content.size
		return t.discard(&rec.content)
	})
}

// ListQuery selects a page of a listing.
type ListQuery struct {
	Prefix string // of names; "" selects all, the unnamed too
	Cursor string // Page.Next of the page before; "" starts
	Limit  int    // entries at most; 0: 1000
}

// Page is a part of a listing.
type Page struct {
	Capsules []capsule.Info `json:"capsules"`
	Next     string         `json:"next,omitempty"` // cursor of the next page; "" at the end
}

const maxPage = 10000

// List returns capsules in a fixed order: those without a name by ID, then the
// others by name, compared as bytes. Capsules that come or go while a listing
// is paged through may or may not show; all others show exactly once.
func (s *Store) List(ctx context.Context, q ListQuery) (Page, error) {
	if err := s.enter(); err != nil {
		return Page{}, err
	}
	defer s.leave()
	if q.Limit < 0 {
		return Page{}, capsule.Errorf(capsule.Invalid, "the limit of a listing is negative")
	}
	if q.Limit == 0 {
		q.Limit = 1000
	}
	q.Limit = min(q.Limit, maxPage)
	after, err := base64.RawURLEncoding.DecodeString(q.Cursor)
	if err != nil || len(after) > 0 && after[0] != keyName && after[0] != keyUnnamed {
		return Page{}, capsule.Errorf(capsule.Invalid, "%.64q is not a cursor that a listing returned", q.Cursor)
	}
	var page Page
	err = s.kv.snapshot(func(r kvReader) error {
		var last []byte
		visit := func(k, v []byte) (bool, error) {
			if len(page.Capsules) == q.Limit {
				page.Next = base64.RawURLEncoding.EncodeToString(last)
				return false, nil
			}
			raw := v
			if k[0] == keyUnnamed {
				raw = k[1:]
			}
			var id capsule.ID
			if copy(id[:], raw) != len(id) {
				return false, capsule.Errorf(capsule.Damaged, "malformed name index entry %q", k)
			}
			rec, err := getCapsule(r, id)
			if err != nil {
				return false, err
			}
			last = append(last[:0], k...)
			page.Capsules = append(page.Capsules, rec.info(id))
			return true, ctx.Err()
		}
		if q.Prefix == "" && (len(after) == 0 || after[0] == keyUnnamed) {
			if err := r.scan(afterKey([]byte{keyUnnamed}, after), []byte{keyUnnamed + 1}, visit); err != nil || page.Next != "" {
				return err
			}
		}
		lo := nameKey(q.Prefix)
		return r.scan(afterKey(lo, after), prefixEnd(lo), visit)
	})
	return page, err
}

// afterKey returns where a scan from lo begins that has seen all keys up to after.
func afterKey(lo, after []byte) []byte {
	if len(after) == 0 || after[0] != lo[0] || string(after) < string(lo) {
		return lo
	}
	return append(append([]byte(nil), after...), 0)
}

// DirEntry is an entry of the namespace seen as a directory tree.
type DirEntry struct {
	Name string // one component
	Dir  bool
	Info capsule.Info // of the capsule; zero for a directory
}

// ReadDir returns up to limit entries of a directory of the namespace, after
// the entry named after ("" starts), in a fixed order. dir "" is the root. A
// directory is there as long as a capsule is below it.
func (s *Store) ReadDir(ctx context.Context, dir, after string, limit int) ([]DirEntry, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	prefix := ""
	if dir != "" {
		if err := capsule.CheckName(dir); err != nil {
			return nil, err
		}
		prefix = dir + "/"
	}
	lo := nameKey(prefix)
	end := prefixEnd(lo)
	var list []DirEntry
	err := s.kv.snapshot(func(r kvReader) error {
		if after != "" {
			// "a" as a capsule sorts as "a", as a directory as "a/".
			lo = append(nameKey(prefix+after), 0)
			if id, err := lookupName(r, prefix+after); err != nil {
				return err
			} else if id.IsZero() {
				// A directory, unless it has gone since.
				below := nameKey(prefix + after + "/")
				if err := r.scan(below, prefixEnd(below), func(_, _ []byte) (bool, error) {
					lo = prefixEnd(below)
					return false, nil
				}); err != nil {
					return err
				}
			}
		}
		for len(list) < limit && lo != nil {
			if err := ctx.Err(); err != nil {
				return err
			}
			next := []byte(nil)
			err := r.scan(lo, end, func(k, v []byte) (bool, error) {
				rest := string(k[1+len(prefix):])
				if comp, _, isDir := strings.Cut(rest, "/"); isDir {
					list = append(list, DirEntry{Name: comp, Dir: true})
					next = prefixEnd(nameKey(prefix + comp + "/"))
					return false, nil // skip all that is below
				}
				var id capsule.ID
				if copy(id[:], v) != len(id) {
					return false, capsule.Errorf(capsule.Damaged, "malformed name record of %q", k[1:])
				}
				rec, err := getCapsule(r, id)
				if err != nil {
					return false, err
				}
				list = append(list, DirEntry{Name: rest, Info: rec.info(id)})
				return len(list) < limit, nil
			})
			if err != nil {
				return err
			}
			lo = next
		}
		return nil
	})
	return list, err
}

// LookupName tells what a path of the namespace is: a capsule, or a directory
// because there are capsules below it. Otherwise the error's kind is NotFound.
func (s *Store) LookupName(ctx context.Context, path string) (info capsule.Info, dir bool, err error) {
	if err := s.enter(); err != nil {
		return info, false, err
	}
	defer s.leave()
	if err := capsule.CheckName(path); err != nil {
		return info, false, err
	}
	err = s.kv.snapshot(func(r kvReader) error {
		id, err := lookupName(r, path)
		if err != nil {
			return err
		}
		if !id.IsZero() {
			rec, err := getCapsule(r, id)
			info = rec.info(id)
			return err
		}
		lo := nameKey(path + "/")
		return r.scan(lo, prefixEnd(lo), func(_, _ []byte) (bool, error) {
			dir = true
			return false, nil
		})
	})
	if err == nil && !dir && info.ID.IsZero() {
		err = capsule.Errorf(capsule.NotFound, "no capsule has the name %q or one below it", path)
	}
	return info, dir, err
}
