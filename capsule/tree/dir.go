package tree

import (
	"context"

	"github.com/spacestore/space/capsule"
)

// checkName reports whether name can stand in a directory.
func checkName(name string) error {
	switch {
	case len(name) > MaxName:
		return capsule.Errorf(capsule.NameTooLong, "a name of %d bytes; the limit is %d", len(name), MaxName)
	case name == "" || name == "." || name == "..":
		return capsule.Errorf(capsule.Invalid, "%q cannot name a file", name)
	}
	for i := range len(name) {
		if name[i] == 0 || name[i] == '/' {
			return capsule.Errorf(capsule.Invalid, "%q cannot name a file: it holds a slash or a NUL", name)
		}
	}
	return nil
}

func notFound(name string) error {
	return capsule.Errorf(capsule.NotFound, "%q: no such file or directory", name)
}

// find returns the entry of a name in a directory; nil: there is none.
func (fs *FS) find(rows Rows, dir uint64, name string) (*entry, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	b, err := rows.Get(entryKey(dir, fs.hash.sum(name), name))
	if b == nil || err != nil {
		return nil, err
	}
	n, err := decodeEntry(b)
	if err != nil {
		return nil, capsule.Wrap(capsule.Damaged, err, "%q in directory %d", name, dir)
	}
	return &n, nil
}

// linked returns the inode that an entry names.
func (fs *FS) linked(rows Rows, dir uint64, name string, n *entry) (*inode, error) {
	in, err := fs.load(rows, n.ino)
	return in, dangling(err, dir, name)
}

// dangling turns the error of a missing inode, which for an entry is damage.
func dangling(err error, dir uint64, name string) error {
	if capsule.KindOf(err) == capsule.Stale {
		return capsule.Errorf(capsule.Damaged, "%q in directory %d names an inode that is not there; check the tree", name, dir)
	}
	return err
}

// Lookup returns what a name in a directory names.
func (fs *FS) Lookup(ctx context.Context, cred *Cred, dir uint64, name string) (Attr, error) {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	d, err := fs.load(fs.capsule, dir)
	if err != nil {
		return Attr{}, err
	}
	if err := fs.searchable(fs.capsule, d, cred); err != nil {
		return Attr{}, err
	}
	n, err := fs.find(fs.capsule, dir, name)
	if err != nil {
		return Attr{}, err
	}
	if n == nil {
		return Attr{}, notFound(name)
	}
	in, err := fs.linked(fs.capsule, dir, name, n)
	if err != nil {
		return Attr{}, err
	}
	return in.Attr, nil
}

// Entry is a directory's entry.
type Entry struct {
	Name   string
	Ino    uint64
	Type   Type
	Cookie uint64 // where ReadDir goes on after this entry
	Attr   Attr   // by ReadDirPlus
}

const dirPage = 256 // entries read at once

// ReadDir calls fn for the entries after cookie until fn returns false. fn may
// call the tree. Entries that are there all the time are given once; those
// that come or go meanwhile once or not at all. "." and ".." are not among them.
func (fs *FS) ReadDir(ctx context.Context, cred *Cred, dir, cookie uint64, fn func(Entry) bool) error {
	return fs.readDir(ctx, cred, dir, cookie, false, fn)
}

// ReadDirPlus is ReadDir with attributes, for which fn's caller needs to be
// allowed to search the directory too.
func (fs *FS) ReadDirPlus(ctx context.Context, cred *Cred, dir, cookie uint64, fn func(Entry) bool) error {
	return fs.readDir(ctx, cred, dir, cookie, true, fn)
}

func (fs *FS) readDir(ctx context.Context, cred *Cred, dir, cookie uint64, plus bool, fn func(Entry) bool) error {
	page := make([]Entry, 0, 16)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		if page, err = fs.dirPage(cred, dir, cookie, plus, page[:0]); err != nil {
			return err
		}
		for _, e := range page {
			if !fn(e) {
				return nil
			}
		}
		if len(page) < dirPage {
			return nil
		}
		cookie = page[len(page)-1].Cookie
	}
}

func (fs *FS) dirPage(cred *Cred, dir, cookie uint64, plus bool, page []Entry) ([]Entry, error) {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	d, err := fs.load(fs.capsule, dir)
	if err != nil {
		return nil, err
	}
	if d.Type != Directory {
		return nil, capsule.Errorf(capsule.NotDir, "inode %d is no directory", dir)
	}
	want := MayRead
	if plus {
		want |= MayExec
	}
	if err := fs.permit(fs.capsule, d, cred, want); err != nil {
		return nil, err
	}
	page, err = scanDir(fs.capsule, dir, cookie, dirPage, page)
	if err != nil || !plus {
		return page, err
	}
	for i := range page {
		e := &page[i]
		in, err := fs.load(fs.capsule, e.Ino)
		if err != nil {
			return nil, dangling(err, dir, e.Name)
		}
		e.Attr = in.Attr
	}
	return page, nil
}

// scanDir appends at most limit entries of a directory after cookie.
func scanDir(rows Rows, dir, cookie uint64, limit int, page []Entry) ([]Entry, error) {
	from := cookie >> cookieBits // entries with this hash come again, and those up to cookie are left out
	lo := entryKey(dir, from, "")[:17]
	_, hi := ofInode(keyEntry, dir)
	last, nth := uint64(0), uint64(0) // how many entries had the hash of the last one
	err := rows.Scan(lo, hi, func(k, v []byte) (bool, error) {
		_, hash, name, ok := parseEntryKey(k)
		if !ok || hash > maxHash {
			return false, capsule.Errorf(capsule.Damaged, "directory %d has a malformed entry; check the tree", dir)
		}
		if nth++; hash != last {
			last, nth = hash, 0
		}
		if nth >= 1<<cookieBits {
			return false, capsule.Errorf(capsule.Damaged, "directory %d has too many names with one hash; check the tree", dir)
		}
		pos := hash<<cookieBits | nth
		if pos <= cookie {
			return true, nil
		}
		n, err := decodeEntry(v)
		if err != nil {
			return false, capsule.Wrap(capsule.Damaged, err, "%q in directory %d", name, dir)
		}
		page = append(page, Entry{Name: name, Ino: n.ino, Type: n.typ, Cookie: pos})
		return len(page) < limit, nil
	})
	return page, err
}
