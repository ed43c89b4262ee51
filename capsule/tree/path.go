package tree

import (
	"context"
	"strings"

	"github.com/spacestore/space/capsule"
)

// Path returns a path of an inode from the root, "/" for the root itself.
// NotFound: it has none, or is a file of which the name that the tree remembers
// was removed while others stay.
func (fs *FS) Path(ctx context.Context, ino uint64) (string, error) {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	names, err := fs.names(ino)
	if err != nil {
		return "", err
	}
	if len(names) == 0 {
		return "/", nil
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(names[i])
	}
	return b.String(), nil
}

// names returns the names on the way from an inode up to the root.
func (fs *FS) names(ino uint64) (names []string, err error) {
	for ino != Root {
		in, err := fs.load(fs.capsule, ino)
		if err != nil {
			return nil, err
		}
		name, err := nameOf(fs.capsule, in)
		if err != nil {
			return nil, err
		}
		if name == "" || in.Nlink == 0 {
			return nil, capsule.Errorf(capsule.NotFound, "no path to inode %d is known", ino)
		}
		if names = append(names, name); int64(len(names)) > fs.totals.inodes {
			return nil, capsule.Errorf(capsule.Damaged, "directory %d is in itself; check the tree", ino)
		}
		ino = in.Parent
	}
	return names, nil
}

// nameOf returns the name by which an inode's Parent knows it; empty: none.
func nameOf(rows Rows, in *inode) (found string, err error) {
	if in.hash == 0 {
		return "", nil
	}
	lo := entryKey(in.Parent, in.hash, "")[:17]
	err = rows.Scan(lo, next(append([]byte(nil), lo...)), func(k, v []byte) (bool, error) {
		_, _, name, ok := parseEntryKey(k)
		n, err := decodeEntry(v)
		if ok && err == nil && n.ino == in.Ino {
			found = name
		}
		return found == "", err
	})
	return found, err
}
