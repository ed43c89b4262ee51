package tree

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/spacestore/space/capsule"
)

// The names of the attributes that hold ACLs.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// Tags of ACL entries, in the order in which they stand in an ACL.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// acl is a POSIX ACL, or nil for none.
type acl []aclEntry

type aclEntry struct {
	tag  uint16
	perm uint16
	id   uint32 // of a named user or group; else all ones
}

const aclVersion = 2

// parseACL reads the format of Linux's extended attributes, version 2. The
// entries may not be valid.
func parseACL(b []byte) (acl, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if len(b) < 4 || (len(b)-4)%8 != 0 {
		return nil, malformedACL()
	}
	if binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, capsule.Errorf(capsule.Unsupported, "an ACL of an unknown version")
	}
	var a acl
	for b = b[4:]; len(b) > 0; b = b[8:] {
		e := aclEntry{binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])}
		if e.tag > aclOther || bits.OnesCount16(e.tag) != 1 {
			return nil, malformedACL()
		}
		if e.tag != aclUser && e.tag != aclGroup {
			e.id = math.MaxUint32
		}
		a = append(a, e)
	}
	return a, nil
}

func malformedACL() error { return capsule.Errorf(capsule.Invalid, "a malformed ACL") }

func (a acl) encode() []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+8*len(a)), aclVersion)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// valid tells whether the entries are those an ACL needs, in order.
func (a acl) valid() bool {
	expect := uint16(aclUserObj)
	named := false
	for _, e := range a {
		if e.perm > 7 {
			return false
		}
		switch {
		case e.tag == aclUserObj && expect == aclUserObj:
			expect = aclUser
		case e.tag == aclUser && expect == aclUser, e.tag == aclGroup && expect == aclGroup:
			if e.id == math.MaxUint32 {
				return false
			}
			named = true
		case e.tag == aclGroupObj && expect == aclUser:
			expect = aclGroup
		case e.tag == aclMask && expect == aclGroup:
			expect = aclOther
		case e.tag == aclOther && (expect == aclOther || expect == aclGroup && !named):
			expect = 0
		default:
			return false
		}
	}
	return expect == 0
}

// find returns the entry of a tag that stands once; nil: there is none.
func (a acl) find(tag uint16) *aclEntry {
	for i := range a {
		if a[i].tag == tag {
			return &a[i]
		}
	}
	return nil
}

// group returns the entry that the mode's group bits stand for.
func (a acl) group() *aclEntry {
	if m := a.find(aclMask); m != nil {
		return m
	}
	return a.find(aclGroupObj)
}

// mode returns the permissions that stand for the ACL.
func (a acl) mode() uint32 {
	return uint32(a.find(aclUserObj).perm)<<6 | uint32(a.group().perm)<<3 | uint32(a.find(aclOther).perm)
}

// minimal tells whether the mode says all that the ACL does.
func (a acl) minimal() bool { return len(a) == 3 }

// chmod makes the ACL agree with a mode.
func (a acl) chmod(mode uint32) {
	a.find(aclUserObj).perm = uint16(mode >> 6 & 7)
	a.group().perm = uint16(mode >> 3 & 7)
	a.find(aclOther).perm = uint16(mode & 7)
}

// restrict takes from the ACL what a mode does not allow.
func (a acl) restrict(mode uint32) {
	a.find(aclUserObj).perm &= uint16(mode >> 6 & 7)
	a.group().perm &= uint16(mode >> 3 & 7)
	a.find(aclOther).perm &= uint16(mode & 7)
}

// permits tells whether cred, who does not own the inode, may do all of want.
func (a acl) permits(in *inode, cred *Cred, want Access) bool {
	mask := uint16(7)
	if m := a.find(aclMask); m != nil {
		mask = m.perm
	}
	allows := func(perm uint16) bool { return want&^Access(perm) == 0 }
	member := false
	for _, e := range a {
		switch e.tag {
		case aclUser:
			if e.id == cred.UID {
				return allows(e.perm & mask)
			}
		case aclGroupObj, aclGroup:
			if e.tag == aclGroupObj && cred.inGroup(in.GID) || e.tag == aclGroup && cred.inGroup(e.id) {
				if allows(e.perm & mask) { // one entry has to allow it alone
					return true
				}
				member = true
			}
		case aclOther:
			return !member && allows(e.perm)
		}
	}
	return false
}

// readACL returns the ACL that a flag of the inode says is there.
func readACL(rows Rows, ino uint64, name string) (acl, error) {
	b, err := rows.Get(xattrKey(ino, name))
	if err != nil {
		return nil, err
	}
	a, err := parseACL(b)
	if err != nil || !a.valid() {
		return nil, capsule.Errorf(capsule.Damaged, "the ACL of inode %d cannot be read", ino)
	}
	return a, nil
}
