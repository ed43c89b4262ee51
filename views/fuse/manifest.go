//go:build unix

package fuse

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/spacestore/space/capsule"
)

// manifestName is the file in the target that lists the copies made there.
const manifestName = ".space-copy"

// maxManifestLine bounds one entry: a path of MaxName bytes, each escaped, and
// some numbers.
const maxManifestLine = 6*capsule.MaxName + 1024

// manifestEntry is one line of the manifest: a file as it was made, or a
// directory that was.
type manifestEntry struct {
	Path    string     `json:"path"`
	Dir     bool       `json:"dir,omitempty"`
	Size    int64      `json:"size,omitempty"`
	Mtime   int64      `json:"mtime,omitempty"` // Unix nanoseconds
	Ino     uint64     `json:"ino,omitempty"`
	Capsule capsule.ID `json:"capsule,omitzero"`
	Version uint64     `json:"version,omitempty"`
}

// unchanged reports whether the file is the one that was made, as it was made.
func (e *manifestEntry) unchanged(root *os.Root) bool {
	st, err := root.Lstat(e.Path)
	return err == nil && st.Mode().IsRegular() && st.Size() == e.Size &&
		st.ModTime().UnixNano() == e.Mtime && inodeOf(st) == e.Ino
}

func inodeOf(st fs.FileInfo) uint64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return uint64(s.Ino)
	}
	return 0
}

// manifest is the open list. It is read as a stream, so that it can be longer
// than memory, and locked, so that one process at a time copies to a target.
type manifest struct {
	root *os.Root
	f    *os.File
}

func openManifest(root *os.Root) (*manifest, error) {
	f, err := root.OpenFile(manifestName, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, targetIO(err, "open %s in %s", manifestName, root.Name())
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		f.Close()
		return nil, capsule.Errorf(capsule.Conflict, "something is projected to %s already; unmount that first", root.Name())
	}
	// A blank line, should the last one have been cut short.
	if _, err := f.WriteString("\n"); err != nil {
		f.Close()
		return nil, targetIO(err, "write %s in %s", manifestName, root.Name())
	}
	return &manifest{root, f}, nil
}

func (m *manifest) add(e manifestEntry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = m.f.Write(append(line, '\n'))
	return err
}

// each calls fn for every entry until that fails.
func (m *manifest) each(fn func(manifestEntry) error) error {
	// The section ends where the file does now: fn may add entries.
	size, err := m.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return parseManifest(io.NewSectionReader(m.f, 0, size), fn)
}

// parseManifest skips lines that it can't read, such as the half line that a
// power cut leaves: a file of which nothing is known is never touched.
func parseManifest(r io.Reader, fn func(manifestEntry) error) error {
	br := bufio.NewReaderSize(r, maxManifestLine)
	skip := false
	for {
		line, err := br.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			skip = true
			continue
		}
		if err != nil && err != io.EOF {
			return err
		}
		var e manifestEntry
		if !skip && len(bytes.TrimSpace(line)) > 0 && json.Unmarshal(line, &e) == nil && fs.ValidPath(e.Path) && e.Path != "." {
			if err := fn(e); err != nil {
				return err
			}
		}
		skip = false
		if err == io.EOF {
			return nil
		}
	}
}

// remove deletes the list, and lets go of the lock.
func (m *manifest) remove() error {
	if err := m.root.Remove(manifestName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return m.f.Close()
}
