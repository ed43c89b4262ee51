package tree

import (
	"bytes"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
)

// FuzzRows feeds every decoder of rows. What one accepts it must encode to
// something that it reads as the same again.
func FuzzRows(f *testing.F) {
	in := newInode(7, Symlink, time.Unix(1, 2))
	in.target, in.Size = "target", 6
	f.Add(in.encode())
	f.Add((&super{hash: hashKey{1}}).encode())
	f.Add((&totals{next: 2, inodes: 1, bytes: 4096}).encode())
	f.Add((&Quota{Bytes: 1, Inodes: 2}).encode())
	f.Add(entry{5, Regular}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(what string, err, again error, same bool) {
			if err != nil {
				if capsule.KindOf(err) != capsule.Damaged && capsule.KindOf(err) != capsule.Unsupported {
					t.Fatalf("%s: %v", what, err)
				}
			} else if again != nil || !same {
				t.Fatalf("%s: what was encoded reads differently: %v", what, again)
			}
		}
		if r, err := decodeInode(7, b); true {
			q, again := decodeInode(7, r.encode())
			check("inode", err, again, again == nil && *q == *r)
		}
		if r, err := decodeSuper(b); true {
			q, again := decodeSuper(r.encode())
			check("superblock", err, again, q == r)
		}
		if r, err := decodeTotals(b); true {
			q, again := decodeTotals(r.encode())
			check("totals", err, again, q == r)
		}
		if r, err := decodeQuota(b); true {
			q, again := decodeQuota(r.encode())
			check("quota", err, again, q == r)
		}
		if r, err := decodeEntry(b); true {
			q, again := decodeEntry(r.encode())
			check("entry", err, again, q == r)
		}
	})
}

// FuzzKeys feeds the readers of keys.
func FuzzKeys(f *testing.F) {
	f.Add(inodeKey(7))
	f.Add(entryKey(7, 8, "name"))
	f.Add(xattrKey(7, "user.a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ino, ok := parseIno(b); ok && !bytes.Equal(inoKey(b[0], ino), b) {
			t.Fatalf("%x", b)
		}
		if dir, hash, name, ok := parseEntryKey(b); ok && !bytes.Equal(entryKey(dir, hash, name)[1:], b[1:]) {
			t.Fatalf("%x", b)
		}
		if ino, name, ok := parseXattrKey(b); ok && !bytes.Equal(xattrKey(ino, name)[1:], b[1:]) {
			t.Fatalf("%x", b)
		}
	})
}

// FuzzACL feeds the reader of ACLs, and uses what it accepts.
func FuzzACL(f *testing.F) {
	f.Add(acl{{aclUserObj, 7, 0}, {aclUser, 5, 7}, {aclGroupObj, 5, 0}, {aclMask, 5, 0}, {aclOther, 0, 0}}.encode())
	f.Add(acl{{aclUserObj, 6, 0}, {aclGroupObj, 4, 0}, {aclOther, 0, 0}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseACL(b)
		if err != nil || !a.valid() {
			return
		}
		again, err := parseACL(a.encode())
		if err != nil || !again.valid() || again.mode() != a.mode() {
			t.Fatalf("%+v became %+v, %v", a, again, err)
		}
		a.permits(&inode{}, &Cred{UID: 7}, MayRead|MayWrite)
		if a.chmod(0o640); a.mode() != 0o640 {
			t.Fatalf("%o", a.mode())
		}
		if a.restrict(0o604); a.mode() != 0o600 {
			t.Fatalf("%o", a.mode())
		}
	})
}
