package files

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/zeebo/blake3"
)

// Limits of a share.
const (
	MaxEntries  = 4 << 20
	maxManifest = 256 << 20 // bytes
	maxPath     = 4096
	maxSize     = 1 << 57 // bytes of all contents
)

const manifestMagic = "space-files/2\n"

// kind is what an entry is.
type kind uint8

const (
	regular   kind = 1
	directory kind = 2
	symlink   kind = 3
	hardlink  kind = 4 // another name of a regular file
)

// flagSparse is of a regular file that has holes.
const flagSparse = 1

// entry is a file, directory or link. The path of the share itself is "".
type entry struct {
	path   string // with slashes, relative to the share
	kind   kind
	sparse bool
	perm   fs.FileMode // permission bits, and the sticky bit
	mtime  int64       // nanoseconds since 1970
	size   int64       // of a regular file
	target string      // of a symbolic link; of another name, the path of the entry before it that is the file
	xattrs string      // extended attributes, see appendXattr
	offset int64       // of a regular file's first byte in the contents; follows from the others
}

// manifest is what a share consists of: the share itself, then, where it is a
// directory, what is in it, each after its directory and in the order of paths.
type manifest struct {
	entries []entry
	size    int64 // of all contents
	files   int64
}

// encode returns the manifest's bytes: the magic, then for each entry kind and
// flags (u8), permissions (u16), mtime (i64), size (u64), lengths of path, target
// and extended attributes (u16), these three. Numbers are big-endian.
func (m *manifest) encode() []byte {
	b := []byte(manifestMagic)
	for i := range m.entries {
		e := &m.entries[i]
		flags := byte(0)
		if e.sparse {
			flags |= flagSparse
		}
		b = append(b, byte(e.kind), flags)
		b = binary.BigEndian.AppendUint16(b, uint16(permBits(e.perm)))
		b = binary.BigEndian.AppendUint64(b, uint64(e.mtime))
		b = binary.BigEndian.AppendUint64(b, uint64(e.size))
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.path)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.target)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.xattrs)))
		b = append(append(append(b, e.path...), e.target...), e.xattrs...)
	}
	return b
}

// maxXattrs is how many bytes the extended attributes of an entry may have.
const maxXattrs = 1<<16 - 1

// appendXattr appends an attribute: lengths of name (u8) and value (u16), both.
func appendXattr(b []byte, name string, value []byte) []byte {
	b = append(b, byte(len(name)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return append(append(b, name...), value...)
}

// xattrPrefix is that of the attributes which are carried: those that mean nothing
// to the system.
const xattrPrefix = "user."

// eachXattr calls fn for each attribute, and reports whether they are well formed.
func (e *entry) eachXattr(fn func(name, value string) error) (ok bool, err error) {
	for b := e.xattrs; b != ""; {
		if len(b) < 3 {
			return false, nil
		}
		nn, nv := int(b[0]), int(b[1])<<8|int(b[2])
		if b = b[3:]; len(b) < nn+nv || !strings.HasPrefix(b[:nn], xattrPrefix) || strings.ContainsRune(b[:nn], 0) {
			return false, nil
		}
		if err := fn(b[:nn], b[nn:nn+nv]); err != nil {
			return true, err
		}
		b = b[nn+nv:]
	}
	return true, nil
}

// stickyBit is the sticky bit as chmod(2) has it.
const stickyBit = 0o1000

func permBits(m fs.FileMode) uint32 {
	p := uint32(m.Perm())
	if m&fs.ModeSticky != 0 {
		p |= stickyBit
	}
	return p
}

// permOf is the inverse of permBits.
func permOf(bits uint16) fs.FileMode {
	m := fs.FileMode(bits & 0o777)
	if bits&stickyBit != 0 {
		m |= fs.ModeSticky
	}
	return m
}

const entryHead = 1 + 1 + 2 + 8 + 8 + 2 + 2 + 2

// ErrManifest is of a share that can't be made below one directory, or is not one.
var ErrManifest = errors.New("files: the manifest is not valid")

// decodeManifest reads a manifest of somebody else's, and checks that what it
// says can be made below one directory.
func decodeManifest(text string) (*manifest, error) {
	rest, ok := strings.CutPrefix(text, manifestMagic)
	if !ok {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrManifest)
	}
	m := &manifest{}
	dirs := map[string]bool{}
	for last := ""; rest != ""; {
		e, n, err := decodeEntry(rest)
		if err != nil || len(m.entries) == MaxEntries {
			return nil, fmt.Errorf("%w: entry %d", ErrManifest, len(m.entries))
		}
		rest = rest[n:]
		first := len(m.entries) == 0
		switch {
		case first != (e.path == ""), !first && !validPath(e.path), !first && e.path <= last, !first && !dirs[parent(e.path)],
			len(e.path) > maxPath, len(e.target) > maxPath:
			return nil, fmt.Errorf("%w: path %.80q", ErrManifest, e.path)
		case !m.possible(&e):
			return nil, fmt.Errorf("%w: %.80q: kind %d, %d bytes", ErrManifest, e.path, e.kind, e.size)
		}
		last = e.path
		if e.kind == directory {
			dirs[e.path] = true
		}
		if e.offset = m.size; e.kind == regular {
			m.size += e.size
			m.files++
			if m.size > maxSize {
				return nil, fmt.Errorf("%w: it is too large", ErrManifest)
			}
		}
		m.entries = append(m.entries, e)
	}
	if len(m.entries) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrManifest)
	}
	return m, nil
}

// decodeEntry reads an entry, and says how many bytes it has.
func decodeEntry(b string) (e entry, n int, err error) {
	if len(b) < entryHead {
		return e, 0, ErrManifest
	}
	h := []byte(b[:entryHead])
	e = entry{kind: kind(h[0]), sparse: h[1]&flagSparse != 0, perm: permOf(binary.BigEndian.Uint16(h[2:])),
		mtime: int64(binary.BigEndian.Uint64(h[4:])), size: int64(binary.BigEndian.Uint64(h[12:]))}
	np, nt, nx := int(binary.BigEndian.Uint16(h[20:])), int(binary.BigEndian.Uint16(h[22:])), int(binary.BigEndian.Uint16(h[24:]))
	if b = b[entryHead:]; len(b) < np+nt+nx {
		return e, 0, ErrManifest
	}
	e.path, e.target, e.xattrs = b[:np], b[np:np+nt], b[np+nt:np+nt+nx]
	return e, entryHead + np + nt + nx, nil
}

// possible reports whether an entry's parts fit together, after the entries that m has.
func (m *manifest) possible(e *entry) bool {
	if ok, _ := e.eachXattr(func(string, string) error { return nil }); !ok {
		return false
	}
	switch e.kind {
	case regular:
		return e.size >= 0 && e.size <= maxSize && e.target == ""
	case directory:
		return e.size == 0 && e.target == "" && !e.sparse
	case symlink:
		return e.size == 0 && e.target != "" && !strings.ContainsRune(e.target, 0) && e.xattrs == "" && !e.sparse
	case hardlink:
		i, ok := slices.BinarySearchFunc(m.entries, e.target, func(a entry, path string) int { return strings.Compare(a.path, path) })
		return e.size == 0 && ok && m.entries[i].kind == regular && e.xattrs == "" && !e.sparse
	}
	return false
}

// validPath reports whether a path stays below where it begins: names between
// slashes, of any bytes, of which none is "." or "..".
func validPath(p string) bool {
	if strings.ContainsRune(p, 0) {
		return false
	}
	for name := range strings.SplitSeq(p, "/") {
		if name == "" || name == "." || name == ".." {
			return false
		}
	}
	return true
}

// parent returns the path of the directory that p is in.
func parent(p string) string {
	if d := path.Dir(p); d != "." {
		return d
	}
	return ""
}

// sameLayout reports whether the contents of two shares have the same form, so
// that what has arrived of one can be part of the other.
func (m *manifest) sameLayout(o *manifest) bool {
	if len(m.entries) != len(o.entries) || m.size != o.size {
		return false
	}
	for i := range m.entries {
		a, b := &m.entries[i], &o.entries[i]
		if a.path != b.path || a.kind != b.kind || a.size != b.size || a.target != b.target {
			return false
		}
	}
	return true
}

// contentsName is the name of the payload with the contents of a share of this
// form. So nobody takes the contents of one for those of another.
func (m *manifest) contentsName() string {
	h := blake3.New()
	for i := range m.entries {
		e := &m.entries[i]
		b := append([]byte{byte(e.kind)}, e.path...)
		b = append(append(append(b, 0), e.target...), 0)
		h.Write(binary.BigEndian.AppendUint64(b, uint64(e.size)))
	}
	return contentsPrefix + hex.EncodeToString(h.Sum(nil)[:16])
}

// at returns the index of the regular file that has the byte at offset off of the
// contents.
func (m *manifest) at(off int64) int {
	lo, hi := 0, len(m.entries)
	for lo < hi { // the last entry that begins at off or before, and is no empty one
		mid := (lo + hi) / 2
		if m.begin(mid) <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	for lo--; lo >= 0; lo-- {
		if e := &m.entries[lo]; e.kind == regular && e.size > 0 {
			return lo
		}
	}
	return -1
}

// begin returns where an entry's contents begin, or would.
func (m *manifest) begin(i int) int64 {
	if i >= len(m.entries) {
		return math.MaxInt64
	}
	return m.entries[i].offset
}

// number sets the offsets. Entries without contents have that of what follows, so
// that they are in order.
func (m *manifest) number() {
	m.size, m.files = 0, 0
	for i := range m.entries {
		e := &m.entries[i]
		e.offset = m.size
		if e.kind == regular {
			m.size += e.size
			m.files++
		}
	}
}

// each calls fn for the parts of files that n bytes at off of the contents are.
func (m *manifest) each(off int64, n int, fn func(i int, at int64, from, to int) error) error {
	if n == 0 {
		return nil
	}
	done := 0
	for i := m.at(off); i >= 0 && i < len(m.entries) && done < n; i++ {
		e := &m.entries[i]
		if e.kind != regular || e.size == 0 {
			continue
		}
		at := off + int64(done) - e.offset
		if at < 0 || at >= e.size {
			break
		}
		part := int(min(e.size-at, int64(n-done)))
		if err := fn(i, at, done, done+part); err != nil {
			return err
		}
		done += part
	}
	if done < n {
		return fmt.Errorf("files: %d bytes at %d are not of the contents", n, off)
	}
	return nil
}
