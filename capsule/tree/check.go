package tree

import (
	"context"
	"fmt"
	"math"
	"sort"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/clock"
)

// Problem is something wrong in a tree.
type Problem struct {
	Ino      uint64 // 0: it concerns the tree
	What     string
	Repaired bool
}

// Check looks for everything that can be wrong with a tree, and with repair
// puts right what can be. What has no name any more goes to /lost+found. Nobody
// else may change the tree meanwhile; a snapshot is what to check of one in use.
//
// It goes over the rows several times, each time with memory for checkWindow
// inodes; repairs of one pass are what the next one relies on.
func Check(ctx context.Context, c Capsule, repair bool, report func(Problem)) error {
	k := checker{ctx: ctx, c: c, repair: repair && !c.ReadOnly(), report: report}
	for _, pass := range []func() error{k.head, k.root, k.rest, k.inodes, k.names, k.homes, k.cycles, k.links, k.totals} {
		if err := pass(); err != nil {
			return err
		}
	}
	return nil
}

const (
	checkWindow = 128 << 10 // inodes
	checkPage   = 512       // rows
	lostFound   = "lost+found"
)

type checker struct {
	ctx    context.Context
	c      Capsule
	repair bool
	report func(Problem)
	fs     *FS // for repairs; without the background work of an open tree

	count, bytes int64  // of all inodes
	last         uint64 // the highest number
}

// problem reports what is wrong and, where there is a way, puts it right.
func (k *checker) problem(ino uint64, fix func(t *txn) error, format string, args ...any) error {
	p := Problem{Ino: ino, What: fmt.Sprintf(format, args...)}
	if k.repair && fix != nil {
		if err := k.fs.update(k.ctx, fix); err != nil {
			return capsule.Wrap(capsule.Other, err, "repairing inode %d (%s)", ino, p.What)
		}
		p.Repaired = true
	}
	k.report(p)
	return nil
}

// set returns a repair that changes an inode's row.
func set(ino uint64, change func(in *inode)) func(t *txn) error {
	return func(t *txn) error {
		in, err := t.get(ino)
		if err == nil {
			change(in)
			t.staged(in).changed = true
		}
		return err
	}
}

// drop returns a repair that deletes a row.
func drop(key []byte) func(t *txn) error {
	return func(t *txn) error { return t.tx.Delete(key) }
}

// rows calls fn for each row from lo to hi; fn may change rows.
func (k *checker) rows(lo, hi []byte, fn func(key, value []byte) error) error {
	type row struct{ key, value []byte }
	for {
		if err := k.ctx.Err(); err != nil {
			return err
		}
		var page []row
		err := k.c.Scan(lo, hi, func(key, value []byte) (bool, error) {
			page = append(page, row{append([]byte(nil), key...), append([]byte(nil), value...)})
			return len(page) < checkPage, nil
		})
		if err != nil {
			return err
		}
		for _, r := range page {
			if err := fn(r.key, r.value); err != nil {
				return err
			}
		}
		if len(page) < checkPage {
			return nil
		}
		lo = append(page[len(page)-1].key, 0)
	}
}

func kindRange(kind byte) (lo, hi []byte) { return []byte{kind}, []byte{kind + 1} }

// head checks the rows that a tree has one of.
func (k *checker) head() error {
	b, err := k.c.Get(key(keySuper))
	if err != nil {
		return err
	}
	s, err := decodeSuper(b)
	if err != nil {
		return err // without the key of the hash nothing else can be checked
	}
	k.fs = newFS(k.c, clock.System())
	k.fs.hash = s.hash
	k.fs.nodes.init()
	if b, err = k.c.Get(key(keyTotals)); err != nil {
		return err
	}
	if k.fs.totals, err = decodeTotals(b); err != nil {
		k.fs.totals = totals{next: math.MaxUint64} // no new inodes, until the totals are right again
		k.report(Problem{What: err.Error(), Repaired: k.repair})
	}
	if b, err = k.c.Get(key(keyQuota)); err != nil || b == nil {
		return err
	}
	if _, err = decodeQuota(b); err != nil {
		return k.problem(0, drop(key(keyQuota)), "%v", err)
	}
	return nil
}

// root checks that there is a root directory.
func (k *checker) root() error {
	in, err := readInode(k.c, Root)
	switch kind := capsule.KindOf(err); {
	case err == nil && in.Type == Directory && in.Nlink > 0:
		if in.Parent == Root {
			return nil
		}
		return k.problem(Root, set(Root, func(in *inode) { in.Parent = Root }), "inode %d is said to be above the root", in.Parent)
	case err != nil && kind != capsule.Stale && kind != capsule.Damaged:
		return err
	case !k.repair:
		return capsule.Errorf(capsule.Damaged, "the root directory is not there, or unreadable")
	}
	return k.problem(Root, func(t *txn) error {
		t.lock()
		in := newInode(Root, Directory, t.now)
		in.Mode, in.Parent = 0o755, Root
		t.inodes = append(t.inodes, staged{in: in, changed: true})
		return nil
	}, "the root directory is not there, or unreadable; owner and mode of the new one are a guess")
}

// inodes checks each inode by itself, with its attributes and content.
func (k *checker) inodes() error {
	lo, hi := kindRange(keyInode)
	return k.rows(lo, hi, func(key, value []byte) error {
		ino, ok := parseIno(key)
		if !ok {
			return k.problem(0, drop(key), "a row that is no inode's: %x", key)
		}
		in, err := decodeInode(ino, value)
		if err != nil {
			return k.problem(ino, nil, "%v", err)
		}
		if err := k.xattrs(in); err != nil {
			return err
		}
		if in.Nlink > 0 && !in.has(hasTrim) {
			if alloc, err := k.allocated(ino); err != nil {
				return err
			} else if alloc != in.Alloc {
				if err := k.problem(ino, set(ino, func(in *inode) { in.Alloc = alloc }), "%d bytes are allocated, not %d", alloc, in.Alloc); err != nil {
					return err
				}
			}
		}
		if in.Type == Symlink && in.Size != int64(len(in.target)) {
			return k.problem(ino, set(ino, func(in *inode) { in.Size = int64(len(in.target)) }), "a symbolic link of %d bytes says %d", len(in.target), in.Size)
		}
		if in.Nlink > 0 && !in.has(hasTrim) {
			return nil
		}
		row, err := k.c.Get(reclaimKey(ino))
		if err != nil || row != nil {
			return err
		}
		return k.problem(ino, func(t *txn) error { return t.tx.Set(reclaimKey(ino), []byte{rowVersion}) }, "nothing says that it has something to reclaim")
	})
}

func (k *checker) allocated(ino uint64) (sum int64, err error) {
	for off := int64(0); ; {
		start, end, err := k.c.NextData(k.ctx, ino, off, toEnd)
		if err != nil || start == end {
			return sum, err
		}
		sum += end - start
		off = end
	}
}

// xattrs checks what an inode says of its attributes.
func (k *checker) xattrs(in *inode) error {
	names, err := xattrNames(k.c, in.Ino)
	if capsule.KindOf(err) == capsule.Damaged {
		return nil // reported before
	}
	if err != nil {
		return err
	}
	var size int64
	var flags uint8
	for _, name := range names {
		if name == aclAccess || name == aclDefault {
			if _, err := readACL(k.c, in.Ino, name); capsule.KindOf(err) == capsule.Damaged {
				if err := k.problem(in.Ino, drop(xattrKey(in.Ino, name)), "%v", err); err != nil {
					return err
				}
				if k.repair {
					continue
				}
			} else if err != nil {
				return err
			}
		}
		size += int64(len(name)) + 1
		flags |= xattrFlag(name)
	}
	if size > maxXattrList {
		return k.problem(in.Ino, nil, "its attributes are too many")
	}
	const other = hasTrim | unborn
	if size == in.xattrs && flags == in.flags&^other {
		return nil
	}
	return k.problem(in.Ino, set(in.Ino, func(in *inode) { in.xattrs, in.flags = size, flags|in.flags&other }),
		"what it says of its extended attributes is not so")
}

// rest checks that the rows that belong to an inode have one.
func (k *checker) rest() error {
	known, there := uint64(0), false
	exists := func(ino uint64) (bool, error) {
		if ino == known {
			return there, nil
		}
		b, err := k.c.Get(inodeKey(ino))
		known, there = ino, b != nil
		return there, err
	}
	lo, hi := kindRange(keyXattr)
	err := k.rows(lo, hi, func(key, _ []byte) error {
		ino, _, ok := parseXattrKey(key)
		if !ok {
			return k.problem(0, drop(key), "a row that is no attribute's: %x", key)
		}
		if ok, err := exists(ino); ok || err != nil {
			return err
		}
		return k.problem(ino, drop(key), "an attribute of an inode that is not there")
	})
	if err != nil {
		return err
	}
	lo, hi = kindRange(keyReclaim)
	return k.rows(lo, hi, func(key, _ []byte) error {
		ino, ok := parseIno(key)
		if ok {
			in, err := readInode(k.c, ino)
			if err == nil && (in.Nlink == 0 || in.has(hasTrim)) || err != nil && capsule.KindOf(err) != capsule.Stale {
				return nil // as it should be, or reported before
			}
		}
		return k.problem(ino, drop(key), "there is nothing to reclaim")
	})
}

// window is a part of the inodes, in order.
type window struct {
	from, to uint64 // numbers that it covers, from included
	list     []counted
}

// counted is an inode and what the rows of directories say of it.
type counted struct {
	ino, parent, hash uint64
	size              int64
	nlink             uint32
	typ               Type
	unreadable        bool

	links   int64 // entries that name it
	subdirs int64 // entries in it that name directories
	entries int64 // entries in it
}

func (w *window) covers(ino uint64) bool { return w.from <= ino && ino < w.to }

func (w *window) find(ino uint64) *counted {
	i := sort.Search(len(w.list), func(i int) bool { return w.list[i].ino >= ino })
	if i < len(w.list) && w.list[i].ino == ino {
		return &w.list[i]
	}
	return nil
}

// windows calls fn for all inodes, window by window.
func (k *checker) windows(fn func(w *window) error) error {
	w := &window{}
	full := func(to uint64) error {
		w.to = to
		if err := fn(w); err != nil {
			return err
		}
		w.from, w.list = to, w.list[:0]
		return nil
	}
	lo, hi := kindRange(keyInode)
	err := k.rows(lo, hi, func(key, value []byte) error {
		ino, ok := parseIno(key)
		if !ok {
			return nil
		}
		if len(w.list) == checkWindow {
			if err := full(ino); err != nil {
				return err
			}
		}
		in, err := decodeInode(ino, value)
		w.list = append(w.list, counted{ino: ino, parent: in.Parent, hash: in.hash, size: in.Size, nlink: in.Nlink, typ: in.Type, unreadable: err != nil})
		return nil
	})
	if err != nil {
		return err
	}
	return full(math.MaxUint64)
}

// entries calls fn for all entries that can be read.
func (k *checker) entries(fn func(key []byte, dir, hash uint64, name string, n entry) error) error {
	lo, hi := kindRange(keyEntry)
	return k.rows(lo, hi, func(key, value []byte) error {
		dir, hash, name, ok := parseEntryKey(key)
		n, err := decodeEntry(value)
		if !ok || err != nil {
			return nil
		}
		return fn(key, dir, hash, name, n)
	})
}

// names checks that each entry names what there is, and is where it belongs.
func (k *checker) names() error {
	lo, hi := kindRange(keyEntry)
	err := k.rows(lo, hi, func(key, value []byte) error {
		dir, hash, name, ok := parseEntryKey(key)
		if !ok || checkName(name) != nil || hash != k.fs.hash.sum(name) {
			return k.problem(dir, drop(key), "an entry that no look-up finds: %x", key)
		}
		if _, err := decodeEntry(value); err != nil {
			return k.problem(dir, drop(key), "%q: %v", name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return k.windows(func(w *window) error {
		return k.entries(func(key []byte, dir, hash uint64, name string, n entry) error {
			if w.covers(dir) {
				if d := w.find(dir); d == nil || d.typ != Directory && !d.unreadable {
					return k.problem(dir, drop(key), "it is no directory, but has an entry %q", name)
				}
			}
			if !w.covers(n.ino) {
				return nil
			}
			in := w.find(n.ino)
			switch {
			case in == nil:
				return k.problem(dir, drop(key), "%q names inode %d, which is not there", name, n.ino)
			case in.ino == Root:
				return k.problem(dir, drop(key), "%q names the root", name)
			case in.unreadable:
				return nil
			case in.typ != n.typ:
				return k.problem(dir, func(t *txn) error { return t.tx.Set(key, entry{n.ino, in.typ}.encode()) }, "%q has type %d, not %d", name, in.typ, n.typ)
			}
			return nil
		})
	})
}

// homes checks that each inode that says where it is named is named there. A
// directory has to say so, and has no other name.
func (k *checker) homes() error {
	err := k.windows(func(w *window) error {
		for i := range w.list { // first those that say nothing, or what is not so
			in := &w.list[i]
			if in.unreadable || in.ino == Root || in.hash == 0 {
				in.hash = 0
				continue
			}
			name, err := nameOf(k.c, &inode{Attr: Attr{Ino: in.ino, Parent: in.parent}, hash: in.hash})
			if err != nil {
				return err
			}
			if name != "" || in.nlink == 0 {
				continue
			}
			in.parent, in.hash = 0, 0
			if in.typ != Directory { // of a directory it is found below, or it is lost
				if err := k.problem(in.ino, set(in.ino, func(in *inode) { in.Parent, in.hash = 0, 0 }), "it has not the name it is said to have"); err != nil {
					return err
				}
			}
		}
		return k.entries(func(key []byte, dir, hash uint64, name string, n entry) error {
			if n.typ != Directory || !w.covers(n.ino) || n.ino == Root {
				return nil
			}
			in := w.find(n.ino)
			switch {
			case in == nil || in.unreadable || in.parent == dir && in.hash == hash:
				return nil
			case in.hash != 0:
				return k.problem(dir, drop(key), "%q is a second name of directory %d", name, n.ino)
			}
			in.parent, in.hash = dir, hash
			return k.problem(in.ino, set(in.ino, func(in *inode) { in.Parent, in.hash = dir, hash }), "it does not know that it is in directory %d", dir)
		})
	})
	if err != nil {
		return err
	}
	return k.windows(func(w *window) error { // what has no name at all
		if err := k.tally(w); err != nil {
			return err
		}
		for i := range w.list {
			in := &w.list[i]
			if in.ino == Root || in.unreadable || in.links > 0 || in.nlink == 0 {
				continue
			}
			if err := k.problem(in.ino, func(t *txn) error { return t.rescue(in.ino) }, "it has no name"); err != nil {
				return err
			}
		}
		return nil
	})
}

// rescue gives an inode a name in lost+found.
func (t *txn) rescue(ino uint64) error {
	root, err := t.get(Root)
	if err != nil {
		return err
	}
	n, err := t.fs.find(t.tx, Root, lostFound)
	if err != nil {
		return err
	}
	var dir *inode
	if n != nil {
		if dir, err = t.get(n.ino); err != nil {
			return err
		}
		if dir.Type != Directory {
			return capsule.Errorf(capsule.Exists, "/%s is no directory; move it away", lostFound)
		}
	} else {
		if err := t.numbers(); err != nil {
			return err
		}
		if dir, err = t.newInode(Directory); err != nil {
			return err
		}
		dir.Mode = 0o700
		if err := t.add(root, lostFound, dir); err != nil {
			return err
		}
	}
	in, err := t.get(ino)
	if err != nil {
		return err
	}
	if in.Type != Directory {
		in.Nlink = 1
	}
	t.changed(in)
	return t.add(dir, fmt.Sprintf("#%d", ino), in)
}

// numbers makes sure that the next inode's number was never used; the totals
// may be wrong.
func (t *txn) numbers() error {
	t.lock()
	lo, hi := kindRange(keyInode)
	if t.totals.next < math.MaxUint64 {
		lo = inodeKey(t.totals.next)
	}
	return t.tx.Scan(lo, hi, func(key, _ []byte) (bool, error) {
		if ino, ok := parseIno(key); ok {
			t.totals.next = unused(ino)
		}
		return true, nil
	})
}

// unused returns a number that was never used where last is the highest one in
// use: content of removed inodes that rows know nothing of may be there.
func unused(last uint64) uint64 {
	const gap = 1 << 32
	return last + min(gap, math.MaxUint64-last)
}

// cycles checks that all directories are under the root.
func (k *checker) cycles() error {
	good := map[uint64]bool{}
	lo, hi := kindRange(keyInode)
	return k.rows(lo, hi, func(key, value []byte) error {
		ino, _ := parseIno(key)
		in, err := decodeInode(ino, value)
		if err != nil || in.Type != Directory || in.Nlink == 0 {
			return nil
		}
		var way []uint64
		mark, steps, until := ino, 0, 1 // Brent's algorithm: compare with where the way was at the last power of two
		for at := in; at.Ino != Root && !good[at.Ino]; {
			if len(way) < checkWindow {
				way = append(way, at.Ino)
			}
			up, err := readInode(k.c, at.Parent)
			if err != nil {
				break // lost, or unreadable: reported before
			}
			if up.Ino == mark {
				return k.problem(mark, func(t *txn) error { return t.cut(mark) }, "the directory is in itself")
			}
			if steps++; steps == until {
				mark, until = up.Ino, 2*until
			}
			at = up
		}
		if len(good) > checkWindow {
			clear(good)
		}
		for _, ino := range way {
			good[ino] = true
		}
		return nil
	})
}

// cut takes a directory out of a cycle and gives it a name in lost+found.
func (t *txn) cut(ino uint64) error {
	in, err := t.get(ino)
	if err != nil {
		return err
	}
	d, err := t.get(in.Parent)
	if err != nil {
		return err
	}
	name, err := nameOf(t.tx, in)
	if err != nil {
		return err
	}
	if name != "" {
		if err := t.take(d, name, in); err != nil {
			return err
		}
	}
	return t.rescue(ino)
}

// tally counts what entries say of the inodes of a window.
func (k *checker) tally(w *window) error {
	return k.entries(func(_ []byte, dir, _ uint64, _ string, n entry) error {
		if w.covers(dir) {
			if d := w.find(dir); d != nil {
				d.entries++
				if n.typ == Directory {
					d.subdirs++
				}
			}
		}
		if w.covers(n.ino) {
			if in := w.find(n.ino); in != nil {
				in.links++
			}
		}
		return nil
	})
}

// links checks the counts of links and entries.
func (k *checker) links() error {
	return k.windows(func(w *window) error {
		if err := k.tally(w); err != nil {
			return err
		}
		for i := range w.list {
			in := w.list[i]
			links := in.links
			if in.typ == Directory {
				links = in.subdirs + 2
			}
			if in.unreadable || in.nlink == 0 && in.links == 0 || in.links == 0 && in.ino != Root {
				continue // an orphan, or reported before
			}
			if int64(in.nlink) != links {
				fix := func(t *txn) error {
					if in.nlink == 0 { // it is no orphan
						if err := t.tx.Delete(reclaimKey(in.ino)); err != nil {
							return err
						}
					}
					return set(in.ino, func(in *inode) { in.Nlink = uint32(links) })(t)
				}
				if err := k.problem(in.ino, fix, "%d links, not %d", links, in.nlink); err != nil {
					return err
				}
			}
			if in.typ == Directory && in.size != in.entries {
				if err := k.problem(in.ino, set(in.ino, func(in *inode) { in.Size = w.list[i].entries }), "%d entries, not %d", in.entries, in.size); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// totals checks the sums over all inodes.
func (k *checker) totals() error {
	lo, hi := kindRange(keyInode)
	err := k.rows(lo, hi, func(key, value []byte) error {
		ino, _ := parseIno(key)
		k.last = ino
		k.count++
		if in, err := decodeInode(ino, value); err == nil {
			k.bytes += in.Alloc
		}
		return nil
	})
	if err != nil {
		return err
	}
	have := k.fs.totals
	want := totals{next: have.next, inodes: k.count, bytes: k.bytes}
	if want.next <= k.last || want.next == math.MaxUint64 {
		want.next = unused(k.last)
	}
	if have == want {
		return nil
	}
	return k.problem(0, func(t *txn) error { t.lock(); t.totals = want; return nil },
		"%d inodes with %d bytes, and %d is free next; the totals say %d with %d and %d", want.inodes, want.bytes, want.next, have.inodes, have.bytes, have.next)
}
