package tree

import (
	"context"
	"slices"
	"strings"

	"github.com/spacestore/space/capsule"
)

// Limits of extended attributes: those of Linux.
const (
	MaxXattrName  = 255
	MaxXattrValue = 64 << 10
	maxXattrList  = 64 << 10 // all names of an inode, with a NUL after each
)

const capsAttr = "security.capability"

// checkXattr reports whether an inode can have an attribute of that name, and
// whether cred may use it: read it, or with write change it. fs.mu is held.
func (fs *FS) checkXattr(rows Rows, in *inode, cred *Cred, name string, write bool) error {
	switch {
	case name == "" || len(name) > MaxXattrName:
		return capsule.Errorf(capsule.OutOfRange, "the name of an extended attribute of %d bytes; 1 to %d are possible", len(name), MaxXattrName)
	case strings.IndexByte(name, 0) >= 0:
		return capsule.Errorf(capsule.Invalid, "the name of an extended attribute holds a NUL")
	case name == aclAccess || name == aclDefault:
		if in.Type == Symlink {
			return capsule.Errorf(capsule.Unsupported, "symbolic links have no ACL")
		}
		if write && !cred.owns(in) {
			return notOwner(in)
		}
		return nil
	}
	want := MayRead
	if write {
		want = MayWrite
	}
	prefix, rest, sorted := strings.Cut(name, ".")
	if !sorted {
		prefix = ""
	}
	switch prefix {
	case "user":
		if in.Type != Regular && in.Type != Directory {
			if write {
				return capsule.Errorf(capsule.NotPermitted, "only files and directories have user attributes")
			}
			return noAttribute(name)
		}
		if write && in.Type == Directory && in.Mode&sticky != 0 && !cred.owns(in) {
			return notOwner(in)
		}
		if err := fs.permit(rows, in, cred, want); err != nil {
			return err
		}
	case "trusted", "security":
		if write && !cred.privileged() {
			return capsule.Errorf(capsule.NotPermitted, "only root may set %q", name)
		}
		if prefix == "trusted" && !cred.privileged() {
			return noAttribute(name)
		}
	default:
		if err := fs.permit(rows, in, cred, want); err != nil {
			return err
		}
		return capsule.Errorf(capsule.Unsupported, "no extended attributes of the sort of %q", name)
	}
	if rest == "" {
		return capsule.Errorf(capsule.Invalid, "%q is the beginning of a name only", name)
	}
	return nil
}

func noAttribute(name string) error {
	return capsule.Errorf(capsule.NoAttribute, "no attribute %q", name)
}

// GetXattr returns the value of an extended attribute.
func (fs *FS) GetXattr(ctx context.Context, cred *Cred, ino uint64, name string) ([]byte, error) {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	in, err := fs.load(fs.capsule, ino)
	if err != nil {
		return nil, err
	}
	if err := fs.checkXattr(fs.capsule, in, cred, name, false); err != nil {
		return nil, err
	}
	if in.xattrs == 0 { // as with most files; the kernel asks for each that is written
		return nil, noAttribute(name)
	}
	b, err := fs.capsule.Get(xattrKey(ino, name))
	if b == nil && err == nil {
		err = noAttribute(name)
	}
	return b, err
}

// ListXattr returns the names of an inode's extended attributes that cred may see.
func (fs *FS) ListXattr(ctx context.Context, cred *Cred, ino uint64) ([]string, error) {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	in, err := fs.load(fs.capsule, ino)
	if err != nil || in.xattrs == 0 {
		return nil, err
	}
	names, err := xattrNames(fs.capsule, ino)
	if !cred.privileged() {
		names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, "trusted.") })
	}
	return names, err
}

func xattrNames(rows Rows, ino uint64) (names []string, err error) {
	lo, hi := ofInode(keyXattr, ino)
	err = rows.Scan(lo, hi, func(k, v []byte) (bool, error) {
		_, name, ok := parseXattrKey(k)
		if !ok {
			return false, capsule.Errorf(capsule.Damaged, "inode %d has a malformed attribute; check the tree", ino)
		}
		names = append(names, name)
		return true, nil
	})
	return names, err
}

// SetXattr sets an extended attribute. An access ACL sets the mode as well, and
// nothing else where the mode says it all.
func (fs *FS) SetXattr(ctx context.Context, cred *Cred, ino uint64, name string, value []byte, flags XattrFlags) error {
	if flags&^(XattrCreate|XattrReplace) != 0 {
		return capsule.Errorf(capsule.Invalid, "unknown flags %#x for an extended attribute", flags)
	}
	if len(value) > MaxXattrValue {
		return capsule.Errorf(capsule.TooLarge, "a value of %d bytes; the limit for extended attributes is %d", len(value), MaxXattrValue)
	}
	isACL := name == aclAccess || name == aclDefault
	var a acl
	if isACL {
		var err error
		if a, err = parseACL(value); err != nil {
			return err
		}
	}
	return fs.update(ctx, func(t *txn) error {
		in, err := t.get(ino)
		if err != nil {
			return err
		}
		if name == aclDefault && in.Type != Directory && in.Type != Symlink {
			if a == nil {
				return nil
			}
			return capsule.Errorf(capsule.Denied, "only directories have a default ACL")
		}
		if err := fs.checkXattr(t.tx, in, cred, name, true); err != nil {
			return err
		}
		if a != nil && !a.valid() {
			return malformedACL()
		}
		old, err := t.tx.Get(xattrKey(ino, name))
		switch {
		case err != nil:
			return err
		case old != nil && flags&XattrCreate != 0:
			return capsule.Errorf(capsule.Exists, "attribute %q exists", name)
		case old == nil && flags&XattrReplace != 0:
			return noAttribute(name)
		}
		t.changed(in)
		t.event(Event{Kind: Changed, Ino: ino})
		if isACL {
			return t.setACL(in, cred, name, a)
		}
		return t.putXattr(in, name, value)
	})
}

// RemoveXattr removes an extended attribute.
func (fs *FS) RemoveXattr(ctx context.Context, cred *Cred, ino uint64, name string) error {
	return fs.update(ctx, func(t *txn) error {
		in, err := t.get(ino)
		if err != nil {
			return err
		}
		if name == aclDefault && in.Type != Directory && in.Type != Symlink {
			return nil
		}
		if err := fs.checkXattr(t.tx, in, cred, name, true); err != nil {
			return err
		}
		old, err := t.tx.Get(xattrKey(ino, name))
		if err != nil {
			return err
		}
		if old == nil {
			if name == aclAccess || name == aclDefault {
				return nil // the ACL is what the mode says, before and after
			}
			return noAttribute(name)
		}
		t.changed(in)
		t.event(Event{Kind: Changed, Ino: ino})
		return t.dropXattr(in, name)
	})
}

// setACL gives an inode an ACL, or takes it away.
func (t *txn) setACL(in *inode, cred *Cred, name string, a acl) error {
	if name == aclAccess && a != nil {
		in.Mode = in.Mode&^0o777 | a.mode()
		if !cred.keepsSetGID(in.GID) {
			in.Mode &^= setGID
		}
		if a.minimal() {
			a = nil
		}
	}
	if a == nil {
		return t.dropXattr(in, name)
	}
	return t.putXattr(in, name, a.encode())
}

// putXattr writes an attribute's row, and what the inode knows of its attributes.
func (t *txn) putXattr(in *inode, name string, value []byte) error {
	k := xattrKey(in.Ino, name)
	old, err := t.tx.Get(k)
	if err != nil {
		return err
	}
	if old == nil {
		if in.xattrs += int64(len(name)) + 1; in.xattrs > maxXattrList {
			return capsule.Errorf(capsule.NoSpace, "inode %d has too many extended attributes", in.Ino)
		}
		in.setFlag(xattrFlag(name), true)
	}
	return t.tx.Set(k, value)
}

// dropXattr undoes putXattr; it does nothing where there is no such attribute.
func (t *txn) dropXattr(in *inode, name string) error {
	k := xattrKey(in.Ino, name)
	old, err := t.tx.Get(k)
	if old == nil || err != nil {
		return err
	}
	in.xattrs = max(in.xattrs-int64(len(name))-1, 0)
	in.setFlag(xattrFlag(name), false)
	return t.tx.Delete(k)
}

// xattrFlag returns the flag that tells that an inode has the attribute, or 0.
func xattrFlag(name string) uint8 {
	switch name {
	case aclAccess:
		return hasACL
	case aclDefault:
		return hasDefaultACL
	case capsAttr:
		return hasCaps
	}
	return 0
}
