package files

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"strings"
	"time"

	"github.com/zeebo/blake3"
)

// Limits of a share.
const (
	MaxEntries  = 4 << 20
	maxManifest = 256 << 20 // bytes
	maxPath     = 4096
	maxSize     = 1 << 57 // bytes of all contents
)

const manifestMagic = "space-files/1\n"

// kind is what an entry is.
type kind uint8

const (
	regular   kind = 1
	directory kind = 2
	symlink   kind = 3
)

// entry is a file, directory or symbolic link. The path of the share itself is "".
type entry struct {
	path   string // with slashes, relative to the share
	kind   kind
	perm   fs.FileMode // permission bits, and the sticky bit
	mtime  int64       // nanoseconds since 1970
	size   int64       // of a regular file
	target string      // of a symbolic link
	offset int64       // of a regular file's first byte in the contents; follows from the others
}

func (e *entry) modTime() time.Time { return time.Unix(0, e.mtime) }

// manifest is what a share consists of: the share itself, then, where it is a
// directory, what is in it, each after its directory and in the order of paths.
type manifest struct {
	entries []entry
	size    int64 // of all contents
	files   int64
}

// encode returns the manifest's bytes: the magic, then for each entry kind (u8),
// permissions (u16), mtime (i64), size (u64), lengths of path and target (u16), both.
// Numbers are big-endian.
func (m *manifest) encode() []byte {
	b := []byte(manifestMagic)
	for i := range m.entries {
		e := &m.entries[i]
		b = append(b, byte(e.kind))
		b = binary.BigEndian.AppendUint16(b, uint16(permBits(e.perm)))
		b = binary.BigEndian.AppendUint64(b, uint64(e.mtime))
		b = binary.BigEndian.AppendUint64(b, uint64(e.size))
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.path)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.target)))
		b = append(append(b, e.path...), e.target...)
	}
	return b
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

const entryHead = 1 + 2 + 8 + 8 + 2 + 2

// ErrManifest is of a share that can't be made below one directory, or is not one.
var ErrManifest = errors.New("files: the manifest is not valid")

// decodeManifest reads a manifest of somebody else's, and checks that what it
// says can be made below one directory.
func decodeManifest(b []byte) (*manifest, error) {
	rest, ok := strings.CutPrefix(string(b), manifestMagic) // paths share this one copy
	if !ok {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrManifest)
	}
	m := &manifest{}
	dirs := map[string]bool{}
	for last := ""; rest != ""; {
		if len(rest) < entryHead || len(m.entries) == MaxEntries {
			return nil, fmt.Errorf("%w: entry %d", ErrManifest, len(m.entries))
		}
		h := []byte(rest[:entryHead])
		perm := binary.BigEndian.Uint16(h[1:])
		e := entry{kind: kind(h[0]), perm: fs.FileMode(perm & 0o777), mtime: int64(binary.BigEndian.Uint64(h[3:]))}
		if perm&stickyBit != 0 {
			e.perm |= fs.ModeSticky
		}
		size := binary.BigEndian.Uint64(h[11:])
		np, nt := int(binary.BigEndian.Uint16(h[19:])), int(binary.BigEndian.Uint16(h[21:]))
		if rest = rest[entryHead:]; len(rest) < np+nt {
			return nil, fmt.Errorf("%w: entry %d is cut off", ErrManifest, len(m.entries))
		}
		e.path, e.target, rest = rest[:np], rest[np:np+nt], rest[np+nt:]
		first := len(m.entries) == 0
		switch {
		case first != (e.path == ""), !first && !validPath(e.path), !first && e.path <= last, !first && !dirs[parent(e.path)],
			np > maxPath, nt > maxPath:
			return nil, fmt.Errorf("%w: path %.80q", ErrManifest, e.path)
		case e.kind == regular && (size > maxSize || nt > 0), e.kind != regular && size > 0,
			e.kind == directory && nt > 0, e.kind == symlink && (nt == 0 || strings.ContainsRune(e.target, 0)), e.kind < regular || e.kind > symlink:
			return nil, fmt.Errorf("%w: %.80q: kind %d, %d bytes", ErrManifest, e.path, e.kind, size)
		}
		last = e.path
		if e.kind == directory {
			dirs[e.path] = true
		}
		if e.offset = m.size; e.kind == regular {
			e.size = int64(size)
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
		if a.path != b.path || a.kind != b.kind || a.size != b.size {
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
		h.Write(binary.BigEndian.AppendUint64(append(b, 0), uint64(e.size)))
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
