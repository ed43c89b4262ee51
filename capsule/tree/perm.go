package tree

import (
	"context"
	"slices"

	"github.com/spacestore/space/capsule"
)

// privileged tells whether permissions do not apply.
func (c *Cred) privileged() bool { return c == nil || c.UID == 0 }

// owns tells whether c may do what only an inode's owner may.
func (c *Cred) owns(in *inode) bool { return c.privileged() || c.UID == in.UID }

func (c *Cred) inGroup(gid uint32) bool {
	return c.GID == gid || slices.Contains(c.Groups, gid)
}

// keepsSetGID tells whether c may leave the set-group-ID bit on what belongs to gid.
func (c *Cred) keepsSetGID(gid uint32) bool { return c.privileged() || c.inGroup(gid) }

func notOwner(in *inode) error {
	return capsule.Errorf(capsule.NotPermitted, "only the owner of inode %d may do that", in.Ino)
}

// permit checks that cred may do all of want. fs.mu is held.
func (fs *FS) permit(rows Rows, in *inode, cred *Cred, want Access) error {
	var allowed Access
	switch {
	case cred == nil:
		return nil
	case cred.UID == 0:
		allowed = MayRead | MayWrite
		if in.Type == Directory || in.Mode&0o111 != 0 {
			allowed |= MayExec
		}
	case cred.UID == in.UID:
		allowed = Access(in.Mode >> 6)
	case in.has(hasACL) && in.Mode&0o070 != 0: // Linux does not look at an ACL whose mask is empty
		a, err := readACL(rows, in.Ino, aclAccess)
		if err != nil {
			return err
		}
		if a.permits(in, cred, want) {
			return nil
		}
	case cred.inGroup(in.GID):
		allowed = Access(in.Mode >> 3)
	default:
		allowed = Access(in.Mode)
	}
	if want&^allowed != 0 {
		return capsule.Errorf(capsule.Denied, "permission denied on inode %d", in.Ino)
	}
	return nil
}

// searchable checks that names can be looked up in an inode.
func (fs *FS) searchable(rows Rows, in *inode, cred *Cred) error {
	if in.Type != Directory {
		return capsule.Errorf(capsule.NotDir, "inode %d is no directory", in.Ino)
	}
	return fs.permit(rows, in, cred, MayExec)
}

// Access checks that cred may do all of want.
func (fs *FS) Access(ctx context.Context, cred *Cred, ino uint64, want Access) error {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	in, err := fs.load(fs.capsule, ino)
	if err != nil {
		return err
	}
	return fs.permit(fs.capsule, in, cred, want)
}

// Allowed returns what of want cred may do.
func (fs *FS) Allowed(ctx context.Context, cred *Cred, ino uint64, want Access) (Access, error) {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	in, err := fs.load(fs.capsule, ino)
	if err != nil {
		return 0, err
	}
	var allowed Access
	for _, bit := range []Access{MayRead, MayWrite, MayExec} {
		switch err := fs.permit(fs.capsule, in, cred, want&bit); {
		case err == nil:
			allowed |= want & bit
		case capsule.KindOf(err) != capsule.Denied:
			return 0, err
		}
	}
	return allowed, nil
}
