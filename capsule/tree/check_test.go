package tree

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// sample makes a tree with some of everything.
func sample(t testing.TB) (*FS, *memory) {
	fs, m := newTree(t)
	d := mkdir(t, fs, Root, "d")
	e := mkdir(t, fs, d, "e")
	f := mkfile(t, fs, e, "f", "content of f")
	must(fs.Link(ctx, nil, f.Ino, Root, "link"))(t)
	must(fs.Symlink(ctx, nil, d, "s", New{Target: "e/f"}))(t)
	must(fs.Mknod(ctx, nil, d, "p", FIFO, New{Mode: 0o600}))(t)
	kind(t, fs.SetXattr(ctx, nil, f.Ino, "user.a", []byte("b"), 0), fine, "xattr")
	a := acl{{aclUserObj, 7, 0}, {aclUser, 5, 7}, {aclGroupObj, 5, 0}, {aclMask, 5, 0}, {aclOther, 0, 0}}
	kind(t, fs.SetXattr(ctx, nil, e, aclDefault, a.encode(), 0), fine, "acl")
	mkfile(t, fs, e, "with-acl", "x")
	kind(t, fs.SetQuota(ctx, Quota{Bytes: 1 << 30, Inodes: 1 << 20}), fine, "quota")
	return fs, m
}

// check returns the problems that Check reports.
func check(t testing.TB, m *memory, repair bool) (list []Problem) {
	t.Helper()
	if err := Check(ctx, m, repair, func(p Problem) { list = append(list, p) }); err != nil {
		t.Fatalf("check: %v", err)
	}
	return list
}

func TestCheckFindsAndRepairs(t *testing.T) {
	change := func(path string, fn func(in *inode)) func(fs *FS, tx Tx) error {
		return func(fs *FS, tx Tx) error {
			in, err := readInode(tx, at(fs, path))
			if err != nil {
				return err
			}
			fn(in)
			return tx.Set(inodeKey(in.Ino), in.encode())
		}
	}
	for _, c := range []struct {
		what   string
		damage func(fs *FS, tx Tx) error
		want   string // in what is reported
		lost   int    // inodes in lost+found afterwards
	}{
		{"links", change("d/e/f", func(in *inode) { in.Nlink = 7 }), "2 links, not 7", 0},
		{"links of a directory", change("d", func(in *inode) { in.Nlink = 2 }), "3 links, not 2", 0},
		{"no links", change("d/s", func(in *inode) { in.Nlink = 0 }), "1 links, not 0", 0},
		{"entries", change("d", func(in *inode) { in.Size = 9 }), "3 entries, not 9", 0},
		{"parent", change("d/e", func(in *inode) { in.Parent = Root }), "does not know", 0},
		{"home of a file", change("d/s", func(in *inode) { in.hash++ }), "has not the name", 0},
		{"allocated", change("d/e/f", func(in *inode) { in.Alloc = 5 }), "4096 bytes are allocated", 0},
		{"symlink", change("d/s", func(in *inode) { in.Size = 1 }), "says 1", 0},
		{"flags", change("d/e/with-acl", func(in *inode) { in.flags = 0 }), "extended attributes", 0},
		{"trim", change("d/e/f", func(in *inode) { in.setFlag(hasTrim, true) }), "something to reclaim", 0},
		{"totals", func(fs *FS, tx Tx) error { return tx.Set(key(keyTotals), (&totals{next: 2}).encode()) }, "free next", 0},
		{"totals gone", func(fs *FS, tx Tx) error { return tx.Delete(key(keyTotals)) }, "row of totals", 0},
		{"quota", func(fs *FS, tx Tx) error { return tx.Set(key(keyQuota), []byte("x")) }, "quota", 0},
		{"entry gone", func(fs *FS, tx Tx) error { return tx.Delete(entryKey(at(fs, "d"), fs.hash.sum("s"), "s")) }, "no name", 1},
		{"directory's entry gone", func(fs *FS, tx Tx) error { return tx.Delete(entryKey(Root, fs.hash.sum("d"), "d")) }, "no name", 1},
		{"directory gone", func(fs *FS, tx Tx) error { return tx.Delete(inodeKey(at(fs, "d"))) }, "no directory", 3},
		{"inode gone", func(fs *FS, tx Tx) error { return tx.Delete(inodeKey(at(fs, "d/s"))) }, "not there", 0},
		{"attributes left", func(fs *FS, tx Tx) error { return tx.Set(xattrKey(999, "user.a"), nil) }, "not there", 0},
		{"reclaim", func(fs *FS, tx Tx) error { return tx.Set(reclaimKey(at(fs, "d")), []byte{rowVersion}) }, "nothing to reclaim", 0},
		{"entry of the wrong type", func(fs *FS, tx Tx) error {
			return tx.Set(entryKey(at(fs, "d"), fs.hash.sum("s"), "s"), entry{at(fs, "d/s"), Regular}.encode())
		}, "has type", 0},
		{"entry with a wrong hash", func(fs *FS, tx Tx) error {
			return tx.Set(entryKey(Root, 77, "wrong"), entry{at(fs, "d/s"), Symlink}.encode())
		}, "no look-up finds", 0},
		{"malformed entry", func(fs *FS, tx Tx) error {
			return tx.Set(entryKey(Root, fs.hash.sum("x"), "x"), []byte("garbage"))
		}, "malformed", 0},
		{"second name of a directory", func(fs *FS, tx Tx) error {
			return tx.Set(entryKey(Root, fs.hash.sum("x"), "x"), entry{at(fs, "d/e"), Directory}.encode())
		}, "second name", 0},
		{"a name of the root", func(fs *FS, tx Tx) error {
			return tx.Set(entryKey(at(fs, "d"), fs.hash.sum("x"), "x"), entry{Root, Directory}.encode())
		}, "names the root", 0},
		{"malformed ACL", func(fs *FS, tx Tx) error { return tx.Set(xattrKey(at(fs, "d/e/with-acl"), aclAccess), []byte("x")) }, "ACL", 0},
		{"parent of the root", change("", func(in *inode) { in.Parent = 5 }), "above the root", 0},
		{"cycle", func(fs *FS, tx Tx) error {
			// d is in e, and e in d; the root has it no more
			d, e := at(fs, "d"), at(fs, "d/e")
			if err := tx.Delete(entryKey(Root, fs.hash.sum("d"), "d")); err != nil {
				return err
			}
			if err := tx.Set(entryKey(e, fs.hash.sum("d"), "d"), entry{d, Directory}.encode()); err != nil {
				return err
			}
			return change("d", func(in *inode) { in.Parent = e })(fs, tx)
		}, "in itself", 1},
	} {
		t.Run(c.what, func(t *testing.T) {
			fs, m := sample(t)
			clean(t, m)
			kind(t, m.Update(ctx, func(tx Tx) error { return c.damage(fs, tx) }), fine, "damage")
			for _, repair := range []bool{false, true} {
				found := check(t, m, repair)
				if !strings.Contains(fmt.Sprint(found), c.want) {
					t.Fatalf("repair %v: %+v; want %q", repair, found, c.want)
				}
				for _, p := range found {
					if p.Repaired != repair {
						t.Fatalf("repair %v: %+v", repair, p)
					}
				}
			}
			clean(t, m)
			again := openTree(t, m)
			lost, err := again.Lookup(ctx, nil, Root, lostFound)
			if (err == nil) != (c.lost > 0) || err == nil && len(list(t, again, lost.Ino)) != c.lost {
				t.Fatalf("lost+found: %+v, %v; want %d", lost, err, c.lost)
			}
			if again.ReadOnly() {
				t.Fatal("read-only")
			}
		})
	}
}

// at returns the inode of a path, or 0.
func at(fs *FS, path string) uint64 {
	ino := Root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			break
		}
		a, err := fs.Lookup(ctx, nil, ino, name)
		if err != nil {
			return 0
		}
		ino = a.Ino
	}
	return ino
}

// Whatever happens to rows, Check neither fails nor panics, repairs to a state
// in which it finds nothing more to repair, and the tree can be used.
func TestCheckOfRandomDamage(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		_, m := sample(t)
		var keys []string
		m.root.Load().scan("", "\xfe", func(k string, v []byte) (bool, error) {
			if k[0] != keySuper {
				keys = append(keys, k)
			}
			return true, nil
		})
		kind(t, m.Update(ctx, func(tx Tx) error {
			for range 1 + r.IntN(4) {
				k := []byte(keys[r.IntN(len(keys))])
				v, _ := tx.Get(k)
				switch r.IntN(4) {
				case 0:
					tx.Delete(k)
				case 1:
					if len(v) > 0 {
						v[r.IntN(len(v))] ^= 1 << r.IntN(8)
						tx.Set(k, v)
					}
				case 2:
					other := []byte(keys[r.IntN(len(keys))])
					if other[0] == k[0] {
						tx.Set(other, v)
					}
				case 3:
					if len(k) > 1 {
						tx.Delete(k)
						k[1+r.IntN(len(k)-1)] ^= 1 << r.IntN(8)
						tx.Set(k, v)
					}
				}
			}
			return nil
		}), fine, "damage")
		first := check(t, m, true)
		unrepaired := 0
		for _, p := range first {
			if !p.Repaired {
				unrepaired++
			}
		}
		if second := check(t, m, true); len(second) > unrepaired {
			t.Fatalf("seed %d: first %+v\nthen %+v", seed, first, second)
		}
		fs := openTree(t, m)
		if _, err := fs.Mkdir(ctx, nil, Root, "new", New{Mode: 0o755}); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		fs.Close()
	}
}
