package node

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// A manifest says what is sent: the magic, then for each entry its type (a byte),
// permissions, time of modification, size, path and target of a link, numbers as
// varints and texts after their length. A directory comes before what is in it.
// The first entry is what was named on the command line, with the path ".".

const manifestMagic = "space-files/1\n"

// Bounds of a manifest.
const (
	maxManifest = 64 << 20 // bytes
	maxEntries  = 1 << 20
)

// Types of entries.
const (
	entryFile = 1
	entryDir  = 2
	entryLink = 3
)

// fileEntry is a file, directory or symbolic link that is sent.
type fileEntry struct {
	kind   byte
	perm   fs.FileMode
	mtime  time.Time
	size   int64
	path   string // slash-separated, relative
	target string // of a link
}

func appendManifest(b []byte, entries []fileEntry) []byte {
	b = append(b, manifestMagic...)
	for _, e := range entries {
		b = append(b, e.kind)
		b = binary.AppendUvarint(b, uint64(e.perm.Perm()))
		b = binary.AppendVarint(b, e.mtime.UnixNano())
		b = binary.AppendUvarint(b, uint64(e.size))
		for _, text := range []string{e.path, e.target} {
			b = append(binary.AppendUvarint(b, uint64(len(text))), text...)
		}
	}
	return b
}

var errManifest = errors.New("the list of files from the other node makes no sense")

// parseManifest reads a manifest from a node that may be hostile: nothing in what
// it returns leads out of the directory that it is written to.
func parseManifest(b []byte) ([]fileEntry, error) {
	rest, ok := strings.CutPrefix(string(b), manifestMagic)
	if !ok {
		return nil, errManifest
	}
	b = []byte(rest)
	bad := false
	uvarint := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			bad, b = true, nil
			return 0
		}
		b = b[n:]
		return v
	}
	text := func() string {
		n := uvarint()
		if bad || n > uint64(len(b)) {
			bad = true
			return ""
		}
		t := string(b[:n])
		b = b[n:]
		return t
	}
	var entries []fileEntry
	seen := map[string]byte{} // type by path
	for len(b) > 0 && !bad {
		e := fileEntry{kind: b[0]}
		b = b[1:]
		e.perm = fs.FileMode(uvarint()) & fs.ModePerm
		ns, n := binary.Varint(b)
		if n <= 0 {
			return nil, errManifest
		}
		b = b[n:]
		e.mtime = time.Unix(0, ns)
		e.size = int64(uvarint())
		e.path, e.target = text(), text()
		if bad || len(entries) == maxEntries || !e.valid(len(entries) == 0) {
			return nil, errManifest
		}
		if len(entries) > 0 && (seen[e.path] != 0 || seen[path.Dir(e.path)] != entryDir) {
			return nil, errManifest // twice, or in what is no directory
		}
		seen[e.path] = e.kind
		entries = append(entries, e)
	}
	if bad || len(entries) == 0 {
		return nil, errManifest
	}
	return entries, nil
}

func (e *fileEntry) valid(first bool) bool {
	if strings.ContainsRune(e.path, 0) || strings.ContainsRune(e.target, 0) || e.size < 0 {
		return false
	}
	switch {
	case first:
		return e.path == "." && (e.kind == entryFile || e.kind == entryDir && e.size == 0) && e.target == ""
	case e.path == "." || path.Clean(e.path) != e.path || !filepath.IsLocal(filepath.FromSlash(e.path)):
		return false
	}
	switch e.kind {
	case entryFile:
		return e.target == ""
	case entryDir:
		return e.target == "" && e.size == 0
	case entryLink:
		return e.target != "" && e.size == 0
	}
	return false
}
