package tree

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/spacestore/space/capsule"
)

// DiffKind is what became of a path.
type DiffKind uint8

// The kinds of difference.
const (
	DiffAdded DiffKind = iota + 1
	DiffRemoved
	DiffModified // content, attributes or extended attributes
	DiffRenamed  // and perhaps modified too
)

func (k DiffKind) String() string {
	switch k {
	case DiffAdded:
		return "added"
	case DiffRemoved:
		return "removed"
	case DiffModified:
		return "modified"
	case DiffRenamed:
		return "renamed"
	}
	return fmt.Sprintf("difference(%d)", uint8(k))
}

// Difference is a path that two views of a tree do not have in common.
type Difference struct {
	Kind DiffKind
	Path string
	From string // of a renamed one: its path before
	Attr Attr   // in the new tree; of a removed one in the old
}

// Diff calls fn for all differences between two views of one tree, neither of
// which changes meanwhile, one directory after the other. Inodes are followed,
// not names: what was renamed is not removed and added, and what is under a
// renamed directory is not mentioned if it stayed where it was in it. Of a file
// with several names one may be called new that is renamed. Directories are
// mentioned where their attributes changed, not where only their entries did.
func Diff(ctx context.Context, old, new *FS, fn func(Difference) error) error {
	if old.hash != new.hash {
		return capsule.Errorf(capsule.Invalid, "the two are not views of one tree")
	}
	d := differ{ctx: ctx, old: old, new: new, fn: fn}
	return d.pair(Root, Root, nil, nil)
}

// differ goes down both trees side by side. Its memory is a directory page for
// each level.
type differ struct {
	ctx      context.Context
	old, new *FS
	fn       func(Difference) error
}

// walker reads the entries of a directory in the order of their keys.
type walker struct {
	fs   *FS
	dir  uint64 // 0: there is none
	page []Entry
	next uint64
	end  bool
}

// peek returns the next entry; nil: there is none.
func (w *walker) peek() (*Entry, error) {
	if len(w.page) == 0 && !w.end && w.dir != 0 {
		page, err := w.fs.dirPage(nil, w.dir, w.next, true, nil)
		if err != nil {
			return nil, err
		}
		w.page, w.end = page, len(page) < dirPage
		if len(page) > 0 {
			w.next = page[len(page)-1].Cookie
		}
	}
	if len(w.page) == 0 {
		return nil, nil
	}
	return &w.page[0], nil
}

func (w *walker) take() { w.page = w.page[1:] }

// pair compares two directories; 0 stands for none.
func (d *differ) pair(oldDir, newDir uint64, oldPath, newPath []string) error {
	a, b := walker{fs: d.old, dir: oldDir}, walker{fs: d.new, dir: newDir}
	for {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		o, err := a.peek()
		if err != nil {
			return err
		}
		n, err := b.peek()
		if err != nil {
			return err
		}
		if o == nil && n == nil {
			return nil
		}
		order := 0
		switch {
		case n == nil:
			order = -1
		case o == nil:
			order = 1
		case o.Cookie>>cookieBits != n.Cookie>>cookieBits:
			if order = 1; o.Cookie < n.Cookie {
				order = -1
			}
		default:
			order = strings.Compare(o.Name, n.Name)
		}
		if order <= 0 {
			a.take()
		}
		if order >= 0 {
			b.take()
		}
		switch {
		case order == 0 && same(&o.Attr, &n.Attr):
			if err := d.kept(o, n, oldPath, newPath); err != nil {
				return err
			}
			continue
		case order < 0:
			n = nil
		case order > 0:
			o = nil
		}
		if o != nil {
			if err := d.gone(oldDir, o, oldPath); err != nil {
				return err
			}
		}
		if n != nil {
			if err := d.come(newDir, n, newPath); err != nil {
				return err
			}
		}
	}
}

// same tells whether two inodes are one, at two times.
func same(a, b *Attr) bool { return a.Ino == b.Ino && a.Gen == b.Gen }

func below(path []string, name string) []string { return append(path[:len(path):len(path)], name) }

func joined(path []string) string { return "/" + strings.Join(path, "/") }

// kept handles a name of one inode on both sides.
func (d *differ) kept(o, n *Entry, oldPath, newPath []string) error {
	path := below(newPath, n.Name)
	changed, err := d.modified(&o.Attr, &n.Attr)
	if err != nil {
		return err
	}
	if changed {
		if err := d.fn(Difference{Kind: DiffModified, Path: joined(path), Attr: n.Attr}); err != nil {
			return err
		}
	}
	if n.Type != Directory {
		return nil
	}
	return d.pair(o.Ino, n.Ino, below(oldPath, o.Name), path)
}

// modified tells whether an inode changed. Of a directory its entries do not
// count, which change its counter, size and times too.
func (d *differ) modified(o, n *Attr) (bool, error) {
	if n.Type != Directory || o.Change == n.Change {
		return o.Change != n.Change, nil
	}
	if o.Mode != n.Mode || o.UID != n.UID || o.GID != n.GID {
		return true, nil
	}
	before, err := d.old.xattrs(o.Ino)
	if err != nil {
		return false, err
	}
	after, err := d.new.xattrs(n.Ino)
	return !maps.EqualFunc(before, after, bytes.Equal), err
}

// xattrs returns all extended attributes of an inode.
func (fs *FS) xattrs(ino uint64) (map[string][]byte, error) {
	names, err := fs.ListXattr(context.Background(), nil, ino)
	if err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	for _, name := range names {
		if all[name], err = fs.GetXattr(context.Background(), nil, ino, name); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// gone handles an entry of the old tree that the new one has not.
func (d *differ) gone(dir uint64, o *Entry, oldPath []string) error {
	path := below(oldPath, o.Name)
	n, err := counterpart(d.new, &o.Attr)
	if err != nil {
		return err
	}
	if n != nil {
		if moved, err := d.moved(o.Ino); moved && d.old.home(o.Ino, dir, o.Name) || err != nil {
			return err // it is reported where it is now
		}
	} else if o.Type == Directory { // what was in it first
		if err := d.pair(o.Ino, 0, path, nil); err != nil {
			return err
		}
	}
	return d.fn(Difference{Kind: DiffRemoved, Path: joined(path), Attr: o.Attr})
}

// come handles an entry of the new tree that the old one has not.
func (d *differ) come(dir uint64, n *Entry, newPath []string) error {
	path := below(newPath, n.Name)
	o, err := counterpart(d.old, &n.Attr)
	if err != nil {
		return err
	}
	diff := Difference{Kind: DiffAdded, Path: joined(path), Attr: n.Attr}
	oldDir := uint64(0)
	var oldPath []string
	if o != nil {
		moved, err := d.moved(n.Ino)
		if err != nil {
			return err
		}
		if moved && d.new.home(n.Ino, dir, n.Name) {
			if diff.From, err = d.old.Path(d.ctx, n.Ino); err != nil {
				return err
			}
			diff.Kind = DiffRenamed
			oldDir, oldPath = n.Ino, strings.Split(diff.From[1:], "/")
		}
	}
	if err := d.fn(diff); err != nil || n.Type != Directory {
		return err
	}
	return d.pair(oldDir, n.Ino, oldPath, path)
}

// counterpart returns what an inode of one tree is in the other; nil: nothing.
func counterpart(fs *FS, a *Attr) (*inode, error) {
	in, err := fs.inode(a.Ino)
	switch {
	case capsule.KindOf(err) == capsule.Stale:
		return nil, nil
	case err != nil:
		return nil, err
	case in.Gen != a.Gen || in.Nlink == 0:
		return nil, nil
	}
	return in, nil
}

// moved tells whether the name by which the old tree knows an inode best is not
// its name in the new tree, and the other way round.
func (d *differ) moved(ino uint64) (bool, error) {
	for _, pair := range [][2]*FS{{d.old, d.new}, {d.new, d.old}} {
		in, err := pair[0].inode(ino)
		if err != nil {
			return false, err
		}
		name, err := nameOf(pair[0].capsule, in)
		if name == "" || err != nil {
			return false, err
		}
		n, err := pair[1].find(pair[1].capsule, in.Parent, name)
		if err != nil || n != nil && n.ino == ino {
			return false, err
		}
	}
	return true, nil
}

// home tells whether a name is the one by which the tree knows an inode best.
func (fs *FS) home(ino, dir uint64, name string) bool {
	in, err := fs.inode(ino)
	return err == nil && in.Parent == dir && in.hash == fs.hash.sum(name)
}
