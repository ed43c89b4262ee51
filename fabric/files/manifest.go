package files

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/zeebo/blake3"
)

// Limits of a share.
const (
	// maxManifest is how many bytes of memory a manifest may take, its index included:
	// more than half a million files with paths of 60 bytes.
	maxManifest = 64 << 20
	maxPath     = 4096
	maxSize     = 1 << 57 // bytes of all contents
)

// errTooMany is of a share, of anybody's, that is beyond that.
var errTooMany = fmt.Errorf("files: the list of its files takes more than %d MiB; share parts of it, or an archive", maxManifest>>20)

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
// directory, what is in it, each after its directory and in the order of paths. It may
// be large, and be somebody else's: what is held is its text, and where in that the
// entries are.
type manifest struct {
	text   string
	begins []uint32 // in text, of each entry
	offset []int64  // of each entry's contents; one without has that of what follows
	size   int64    // of all contents
	files  int64
}

// indexSize is what an entry takes in memory beside its text.
const indexSize = 4 + 8

// newManifest returns the manifest of these entries.
//
// Its text is the magic, then for each entry kind and flags (u8), permissions (u16),
// mtime (i64), size (u64), lengths of path, target and extended attributes (u16), these
// three. Numbers are big-endian.
func newManifest(entries []entry) *manifest {
	n := len(manifestMagic)
	for i := range entries {
		n += entries[i].length()
	}
	var t strings.Builder
	t.Grow(n)
	t.WriteString(manifestMagic)
	m := &manifest{begins: make([]uint32, 0, len(entries)), offset: make([]int64, 0, len(entries))}
	var b []byte
	for i := range entries {
		e := &entries[i]
		m.add(t.Len(), e)
		flags := byte(0)
		if e.sparse {
			flags |= flagSparse
		}
		b = append(b[:0], byte(e.kind), flags)
		b = binary.BigEndian.AppendUint16(b, uint16(permBits(e.perm)))
		b = binary.BigEndian.AppendUint64(b, uint64(e.mtime))
		b = binary.BigEndian.AppendUint64(b, uint64(e.size))
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.path)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.target)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.xattrs)))
		t.Write(append(append(append(b, e.path...), e.target...), e.xattrs...))
	}
	m.text = t.String()
	return m
}

// add puts the next entry, whose text begins at a byte, into the index.
func (m *manifest) add(at int, e *entry) {
	m.begins = append(m.begins, uint32(at))
	m.offset = append(m.offset, m.size)
	if e.kind == regular {
		m.size += e.size
		m.files++
	}
}

// count returns how many entries there are.
func (m *manifest) count() int { return len(m.begins) }

// entry returns an entry.
func (m *manifest) entry(i int) *entry {
	e, _, err := decodeEntry(m.text[m.begins[i]:])
	if err != nil {
		panic(err) // it was read before
	}
	e.offset = m.offset[i]
	return &e
}

// leastRoom is what anything below the share itself takes up on a disk at least, about.
const leastRoom = 4 << 10

// room returns how many bytes the share takes up: millions of directories have none.
func (m *manifest) room() (n int64) {
	for i := range m.count() {
		if n += m.length(i); i > 0 {
			n += max(0, leastRoom-m.length(i))
		}
	}
	return n
}

// twins returns two paths that are the same but for the case of letters; "", "": there are
// none.
func (m *manifest) twins() (a, b string) {
	seen := map[string]int{}
	for i := range m.count() {
		p := m.entry(i).path
		folded := strings.ToLower(strings.ToUpper(p))
		if k, ok := seen[folded]; ok {
			return m.entry(k).path, p
		}
		seen[folded] = i
	}
	return "", ""
}

// find returns the entry of a path.
func (m *manifest) find(path string) (i int, ok bool) {
	return slices.BinarySearchFunc(m.begins, path, func(at uint32, path string) int {
		e, _, err := decodeEntry(m.text[at:])
		if err != nil {
			panic(err)
		}
		return strings.Compare(e.path, path)
	})
}

// length returns how many bytes an entry has in a manifest's text.
func (e *entry) length() int { return entryHead + len(e.path) + len(e.target) + len(e.xattrs) }

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
	if !strings.HasPrefix(text, manifestMagic) {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrManifest)
	}
	m := &manifest{text: text}
	last, dir := "", "" // dir: the parent of the one before, which is there
	for at := len(manifestMagic); at < len(text); {
		e, n, err := decodeEntry(text[at:])
		if err != nil {
			return nil, fmt.Errorf("%w: entry %d", ErrManifest, m.count())
		}
		if len(text)+(m.count()+1)*indexSize > maxManifest {
			return nil, fmt.Errorf("%w: %w", ErrManifest, errTooMany)
		}
		first := m.count() == 0
		up := parent(e.path)
		switch {
		case first != (e.path == ""), !first && !validPath(e.path), !first && e.path <= last,
			!first && !(up == dir && m.count() > 1) && !m.isDirectory(up), len(e.path) > maxPath, len(e.target) > maxPath:
			return nil, fmt.Errorf("%w: path %.80q", ErrManifest, e.path)
		case !m.possible(&e), first && e.kind != regular && e.kind != directory: // a link alone would lead out of where it is made
			return nil, fmt.Errorf("%w: %.80q: kind %d, %d bytes", ErrManifest, e.path, e.kind, e.size)
		}
		last, dir = e.path, up
		m.add(at, &e)
		if m.size > maxSize {
			return nil, fmt.Errorf("%w: it is too large", ErrManifest)
		}
		at += n
	}
	if m.count() == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrManifest)
	}
	return m, nil
}

// isDirectory reports whether a path is one of a directory.
func (m *manifest) isDirectory(path string) bool {
	i, ok := m.find(path)
	return ok && m.entry(i).kind == directory
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
		i, ok := m.find(e.target)
		return e.size == 0 && ok && m.entry(i).kind == regular && e.xattrs == "" && !e.sparse
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
	if m.count() != o.count() || m.size != o.size {
		return false
	}
	for i := range m.count() {
		a, b := m.entry(i), o.entry(i)
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
	for i := range m.count() {
		e := m.entry(i)
		b := append([]byte{byte(e.kind)}, e.path...)
		b = append(append(append(b, 0), e.target...), 0)
		h.Write(binary.BigEndian.AppendUint64(b, uint64(e.size)))
	}
	return contentsPrefix + hex.EncodeToString(h.Sum(nil)[:16])
}

// at returns the index of the regular file that has the byte at offset off of the
// contents.
func (m *manifest) at(off int64) int {
	lo, hi := 0, m.count()
	for lo < hi { // the last entry that begins at off or before, and is no empty one
		mid := (lo + hi) / 2
		if m.offset[mid] <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	for lo--; lo >= 0; lo-- {
		if m.length(lo) > 0 {
			return lo
		}
	}
	return -1
}

// length returns how many bytes an entry's contents have.
func (m *manifest) length(i int) int64 {
	if i == m.count()-1 {
		return m.size - m.offset[i]
	}
	return m.offset[i+1] - m.offset[i]
}

// each calls fn for the parts of files that n bytes at off of the contents are.
func (m *manifest) each(off int64, n int, fn func(i int, at int64, from, to int) error) error {
	if n == 0 {
		return nil
	}
	done := 0
	for i := m.at(off); i >= 0 && i < m.count() && done < n; i++ {
		size := m.length(i)
		if size == 0 {
			continue
		}
		at := off + int64(done) - m.offset[i]
		if at < 0 || at >= size {
			break
		}
		part := int(min(size-at, int64(n-done)))
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
