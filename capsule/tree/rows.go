package tree

import (
	"encoding/binary"
	"math"

	"github.com/spacestore/space/capsule"
)

// The rows of a tree, by the first byte of the key. DESIGN.md describes them.
const (
	keySuper   = 's' //                               -> super
	keyTotals  = 't' //                               -> totals
	keyQuota   = 'q' //                               -> Quota
	keyInode   = 'i' // + inode                       -> inode
	keyEntry   = 'd' // + directory + hash + name + 0 -> entry
	keyXattr   = 'x' // + inode + name + 0            -> the value as it is
	keyReclaim = 'r' // + inode                       -> nothing but the version
)

func key(kind byte) []byte { return []byte{kind} }

func inoKey(kind byte, ino uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 48), kind), ino)
}

func inodeKey(ino uint64) []byte   { return inoKey(keyInode, ino) }
func reclaimKey(ino uint64) []byte { return inoKey(keyReclaim, ino) }

func xattrKey(ino uint64, name string) []byte {
	return append(append(inoKey(keyXattr, ino), name...), 0)
}

func entryKey(dir, hash uint64, name string) []byte {
	b := binary.BigEndian.AppendUint64(inoKey(keyEntry, dir), hash)
	return append(append(b, name...), 0)
}

// ofInode returns the bounds of the rows of a kind that belong to an inode.
func ofInode(kind byte, ino uint64) (lo, hi []byte) {
	return inoKey(kind, ino), next(inoKey(kind, ino))
}

// next returns the first key after all that begin with key, which is not all 0xff.
func next(key []byte) []byte {
	for i := len(key) - 1; ; i-- {
		if key[i]++; key[i] != 0 {
			return key[:i+1]
		}
	}
}

// parseIno reads the inode of a key of the form of inoKey.
func parseIno(key []byte) (uint64, bool) {
	if len(key) != 9 {
		return 0, false
	}
	return binary.BigEndian.Uint64(key[1:]), true
}

// parseXattrKey is xattrKey backwards.
func parseXattrKey(key []byte) (ino uint64, name string, ok bool) {
	if len(key) < 11 || key[len(key)-1] != 0 {
		return 0, "", false
	}
	return binary.BigEndian.Uint64(key[1:]), string(key[9 : len(key)-1]), true
}

// parseEntryKey is entryKey backwards.
func parseEntryKey(key []byte) (dir, hash uint64, name string, ok bool) {
	if len(key) < 19 || key[len(key)-1] != 0 {
		return 0, 0, "", false
	}
	return binary.BigEndian.Uint64(key[1:]), binary.BigEndian.Uint64(key[9:]), string(key[17 : len(key)-1]), true
}

// super is what does not change after Format.
type super struct {
	hash hashKey // of names in directories
}

func (s *super) encode() []byte {
	return append([]byte{rowVersion}, s.hash[:]...)
}

func decodeSuper(b []byte) (s super, err error) {
	if len(b) > 0 && b[0] > rowVersion {
		return s, capsule.Errorf(capsule.Unsupported, "tree: written in format %d by a newer release; this one knows %d", b[0], rowVersion)
	}
	d := decode(b)
	d.b = d.b[copy(s.hash[:], d.b):]
	if len(b) != 1+len(s.hash) {
		d.fail()
	}
	return s, d.end("superblock")
}

// totals are exact, and change in the same update as what they sum up.
type totals struct {
	next   uint64 // number of the next inode
	inodes int64
	bytes  int64 // allocated
}

func (t *totals) encode() []byte {
	e := encoder{[]byte{rowVersion}}
	e.uint(t.next)
	e.uint(uint64(t.inodes))
	e.uint(uint64(t.bytes))
	return e.b
}

func decodeTotals(b []byte) (t totals, err error) {
	d := decode(b)
	t.next = d.uint(math.MaxUint64)
	t.inodes = d.size()
	t.bytes = d.size()
	return t, d.end("row of totals")
}

func (q *Quota) encode() []byte {
	e := encoder{[]byte{rowVersion}}
	e.uint(uint64(q.Bytes))
	e.uint(uint64(q.Inodes))
	return e.b
}

func decodeQuota(b []byte) (q Quota, err error) {
	d := decode(b)
	q.Bytes = d.size()
	q.Inodes = d.size()
	return q, d.end("quota")
}

// Bits of inode.flags.
const (
	hasTrim       = 1 << iota // content beyond the size is left over
	hasACL                    // there is an access ACL beyond what Mode says
	hasDefaultACL             //
	hasCaps                   // there is a security.capability, which a write takes away
	unborn                    // made without a name, and may get one still
	allFlags      = 1<<iota - 1
)

// inode is the row of an inode, immutable once it is in the cache.
type inode struct {
	Attr
	hash   uint64 // of the entry in Parent that names it; 0 where that is not known
	target string // of a symbolic link
	xattrs int64  // length of the list of extended attributes, with a NUL after each
	flags  uint8
}

func (in *inode) has(flag uint8) bool { return in.flags&flag != 0 }

func (in *inode) setFlag(flag uint8, on bool) {
	in.flags &^= flag
	if on {
		in.flags |= flag
	}
}

func (in *inode) encode() []byte {
	e := encoder{append(make([]byte, 0, 128+len(in.target)), rowVersion)}
	e.uint(uint64(in.Gen))
	e.uint(uint64(in.Type))
	e.uint(uint64(in.Mode))
	e.uint(uint64(in.UID))
	e.uint(uint64(in.GID))
	e.uint(in.Rdev)
	e.uint(uint64(in.Nlink))
	e.uint(uint64(in.Size))
	e.uint(uint64(in.Alloc))
	e.time(in.Atime)
	e.time(in.Mtime)
	e.time(in.Ctime)
	e.time(in.Btime)
	e.uint(in.Change)
	e.uint(in.Parent)
	e.uint(in.hash)
	e.string(in.target)
	e.uint(uint64(in.xattrs))
	e.uint(uint64(in.flags))
	return e.b
}

func decodeInode(ino uint64, b []byte) (*inode, error) {
	d := decode(b)
	in := &inode{}
	in.Ino = ino
	in.Gen = d.uint32()
	in.Type = Type(d.uint(math.MaxUint8))
	in.Mode = uint32(d.uint(permBits))
	in.UID = d.uint32()
	in.GID = d.uint32()
	in.Rdev = d.uint(math.MaxUint64)
	in.Nlink = d.uint32()
	in.Size = d.size()
	in.Alloc = d.size()
	in.Atime = d.time()
	in.Mtime = d.time()
	in.Ctime = d.time()
	in.Btime = d.time()
	in.Change = d.uint(math.MaxUint64)
	in.Parent = d.uint(math.MaxUint64)
	in.hash = d.uint(maxHash)
	in.target = d.string(MaxTarget)
	in.xattrs = d.size()
	in.flags = uint8(d.uint(allFlags))
	if !in.Type.valid() || in.Size > MaxSize || in.Nlink > MaxLinks || in.xattrs > maxXattrList {
		d.fail()
	}
	return in, d.end("inode")
}

// entry is what a directory's row says of a name.
type entry struct {
	ino uint64
	typ Type
}

func (n entry) encode() []byte {
	e := encoder{append(make([]byte, 0, 12), rowVersion)}
	e.uint(n.ino)
	e.uint(uint64(n.typ))
	return e.b
}

func decodeEntry(b []byte) (n entry, err error) {
	d := decode(b)
	n.ino = d.uint(math.MaxUint64)
	n.typ = Type(d.uint(math.MaxUint8))
	if !n.typ.valid() {
		d.fail()
	}
	return n, d.end("directory entry")
}
