package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"github.com/spacestore/space/capsule"
	"io"
	"path"
	"strings"
	"time"
)

// Extended attributes, ACLs among them, are PAX records of this prefix, as GNU
// tar, libarchive and container images have them.
const paxXattr = "SCHILY.xattr."

// Export writes what is under a directory as a tar, with all attributes. Two
// names of one file are a hard link. Sockets are left out, which tar does not
// know, and holes are zeros. Take a snapshot to export of a tree in use.
func (fs *FS) Export(ctx context.Context, dir uint64, w io.Writer) error {
	x := exporter{fs: fs, ctx: ctx, w: tar.NewWriter(w), linked: map[uint64]string{}}
	if err := x.dir(dir, ""); err != nil {
		return err
	}
	return x.w.Close()
}

type exporter struct {
	fs     *FS
	ctx    context.Context
	w      *tar.Writer
	linked map[uint64]string // first name of files that have several
	buf    []byte
}

func (x *exporter) dir(dir uint64, prefix string) (err error) {
	readErr := x.fs.ReadDirPlus(x.ctx, nil, dir, 0, func(e Entry) bool {
		err = x.entry(e, prefix+e.Name)
		return err == nil
	})
	return errors.Join(err, readErr)
}

func (x *exporter) entry(e Entry, name string) error {
	a := &e.Attr
	h := &tar.Header{Format: tar.FormatPAX, Name: name, Mode: int64(a.Mode), Uid: int(a.UID), Gid: int(a.GID),
		ModTime: a.Mtime, AccessTime: a.Atime, ChangeTime: a.Ctime, PAXRecords: map[string]string{}}
	switch a.Type {
	case Regular:
		h.Typeflag, h.Size = tar.TypeReg, a.Size
	case Directory:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case Symlink:
		target, err := x.fs.Readlink(x.ctx, e.Ino)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case FIFO:
		h.Typeflag = tar.TypeFifo
	case CharDev, BlockDev:
		h.Typeflag = tar.TypeChar
		if a.Type == BlockDev {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = devNumbers(a.Rdev)
	case Socket:
		return nil
	}
	if first := x.linked[e.Ino]; first != "" {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	} else if a.Type != Directory && a.Nlink > 1 {
		x.linked[e.Ino] = name
	}
	if h.Typeflag != tar.TypeLink {
		all, err := x.fs.xattrs(e.Ino)
		if err != nil {
			return err
		}
		for name, value := range all {
			h.PAXRecords[paxXattr+name] = string(value)
		}
	}
	if err := x.w.WriteHeader(h); err != nil {
		return capsule.Wrap(capsule.IO, err, "%s: writing the tar", name)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return x.dir(e.Ino, name+"/")
	case tar.TypeReg:
		return x.content(e.Ino, h.Size)
	}
	return nil
}

// content writes size bytes of a file: zeros, where it got shorter meanwhile.
func (x *exporter) content(ino uint64, size int64) error {
	f, err := x.fs.Open(x.ctx, nil, ino, OpenRead)
	if err != nil {
		return err
	}
	defer f.Close()
	if x.buf == nil {
		x.buf = make([]byte, maxWrite)
	}
	for off := int64(0); off < size; {
		p := x.buf[:min(int64(len(x.buf)), size-off)]
		n, err := f.ReadAt(x.ctx, p, off)
		if err != nil && err != io.EOF {
			return err
		}
		clear(p[n:])
		if _, err := x.w.Write(p); err != nil {
			return capsule.Wrap(capsule.IO, err, "writing the tar")
		}
		off += int64(len(p))
	}
	return nil
}

// Import unpacks a tar into a directory, with owners and all attributes.
// Directories that exist get what the tar says; other things of the same name
// are replaced. Nothing is ever written outside of the directory: names are
// relative to it, and symbolic links are not followed.
func (fs *FS) Import(ctx context.Context, dir uint64, r io.Reader) error {
	m := importer{fs: fs, ctx: ctx, dir: dir, buf: make([]byte, maxWrite), times: map[uint64]*tar.Header{}}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return m.finish()
		}
		if err != nil {
			return capsule.Wrap(capsule.Invalid, err, "reading the tar")
		}
		if err := m.entry(h, t); err != nil {
			return capsule.Wrap(capsule.Other, err, "%s", h.Name)
		}
	}
}

type importer struct {
	fs    *FS
	ctx   context.Context
	dir   uint64
	buf   []byte
	times map[uint64]*tar.Header // of directories, which are set when nothing more goes into them
}

// place returns where a name of the tar belongs; directories on the way that
// are missing are made. An empty name stands for the directory itself.
func (m *importer) place(name string) (dir uint64, base string, err error) {
	clean := strings.Trim(path.Clean("/"+name), "/")
	if clean == "" {
		return m.dir, "", nil
	}
	dir = m.dir
	parts := strings.Split(clean, "/")
	for _, part := range parts[:len(parts)-1] {
		a, err := m.fs.Lookup(m.ctx, nil, dir, part)
		if capsule.KindOf(err) == capsule.NotFound {
			a, err = m.fs.Mkdir(m.ctx, nil, dir, part, New{Mode: 0o755})
		}
		if err != nil {
			return 0, "", err
		}
		if a.Type != Directory {
			return 0, "", capsule.Errorf(capsule.NotDir, "%q is no directory", part)
		}
		dir = a.Ino
	}
	return dir, parts[len(parts)-1], nil
}

func (m *importer) entry(h *tar.Header, content io.Reader) error {
	dir, name, err := m.place(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return capsule.Errorf(capsule.Invalid, "not a name")
		}
		return m.attributes(dir, h)
	}
	old, err := m.fs.Lookup(m.ctx, nil, dir, name)
	switch {
	case capsule.KindOf(err) == capsule.NotFound:
	case err != nil:
		return err
	case old.Type == Directory && h.Typeflag == tar.TypeDir:
		return m.attributes(old.Ino, h)
	case old.Type != Directory:
		if h.Typeflag == tar.TypeLink {
			if to, base, err := m.place(h.Linkname); err == nil {
				if a, err := m.fs.Lookup(m.ctx, nil, to, base); err == nil && a.Ino == old.Ino {
					return nil // it is that link already
				}
			}
		}
		if err := m.fs.Unlink(m.ctx, nil, dir, name); err != nil {
			return err
		}
	}
	new := New{Mode: 0o600, Target: h.Linkname, Rdev: makedev(h.Devmajor, h.Devminor)}
	var a Attr
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return m.file(dir, name, h, content)
	case tar.TypeLink:
		to, base, err := m.place(h.Linkname)
		if err != nil {
			return err
		}
		target, err := m.fs.Lookup(m.ctx, nil, to, base)
		if err != nil {
			return err
		}
		_, err = m.fs.Link(m.ctx, nil, target.Ino, dir, name)
		return err
	case tar.TypeDir:
		a, err = m.fs.Mkdir(m.ctx, nil, dir, name, new)
	case tar.TypeSymlink:
		a, err = m.fs.Symlink(m.ctx, nil, dir, name, new)
	case tar.TypeFifo:
		a, err = m.fs.Mknod(m.ctx, nil, dir, name, FIFO, new)
	case tar.TypeChar:
		a, err = m.fs.Mknod(m.ctx, nil, dir, name, CharDev, new)
	case tar.TypeBlock:
		a, err = m.fs.Mknod(m.ctx, nil, dir, name, BlockDev, new)
	default:
		return capsule.Errorf(capsule.Unsupported, "a tar entry of type %q", h.Typeflag)
	}
	if err != nil {
		return err
	}
	return m.attributes(a.Ino, h)
}

func (m *importer) file(dir uint64, name string, h *tar.Header, content io.Reader) error {
	f, a, err := m.fs.Create(m.ctx, nil, dir, name, New{Mode: 0o600}, OpenWrite|OpenExcl)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unpack(content, m.buf, func(p []byte, off int64) error {
		_, err := f.WriteAt(m.ctx, p, off)
		return err
	})
	if err != nil {
		return err
	}
	if err := f.Truncate(m.ctx, h.Size); err != nil {
		return err
	}
	return m.attributes(a.Ino, h)
}

// unpack calls write for what a file of a tar holds, without its holes: runs
// of zeros.
func unpack(content io.Reader, buf []byte, write func(p []byte, off int64) error) error {
	const piece = 64 << 10
	var zeros [piece]byte
	for off := int64(0); ; off += int64(len(buf)) {
		n, err := io.ReadFull(content, buf)
		if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
			return capsule.Wrap(capsule.Invalid, err, "reading the tar")
		}
		empty := func(i int) bool { end := min(i+piece, n); return bytes.Equal(buf[i:end], zeros[:end-i]) }
		for i := 0; i < n; {
			end := i + piece
			if empty(i) {
				i = end
				continue
			}
			for end < n && !empty(end) {
				end += piece
			}
			if err := write(buf[i:min(end, n)], off+int64(i)); err != nil {
				return err
			}
			i = end
		}
		if err != nil {
			return nil
		}
	}
}

// attributes gives an inode what its header says. The order matters: a change
// of owner clears set-ID bits, and an ACL sets the mode.
func (m *importer) attributes(ino uint64, h *tar.Header) error {
	set := SetAttr{Set: SetUID | SetGID, UID: uint32(h.Uid), GID: uint32(h.Gid)}
	if _, err := m.fs.SetAttr(m.ctx, nil, ino, set); err != nil {
		return err
	}
	names, err := m.fs.ListXattr(m.ctx, nil, ino)
	if err != nil {
		return err
	}
	for _, name := range names { // such as an ACL that the directory gave it
		if _, keep := h.PAXRecords[paxXattr+name]; !keep {
			if err := m.fs.RemoveXattr(m.ctx, nil, ino, name); err != nil {
				return err
			}
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		if _, err := m.fs.SetAttr(m.ctx, nil, ino, SetAttr{Set: SetMode, Mode: uint32(h.Mode) & permBits}); err != nil {
			return err
		}
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, paxXattr); ok {
			if err := m.fs.SetXattr(m.ctx, nil, ino, name, []byte(v), 0); err != nil {
				return capsule.Wrap(capsule.Other, err, "attribute %q", name)
			}
		}
	}
	if h.Typeflag == tar.TypeDir {
		m.times[ino] = &tar.Header{ModTime: h.ModTime, AccessTime: h.AccessTime}
		return nil
	}
	return m.setTimes(ino, h)
}

func (m *importer) setTimes(ino uint64, h *tar.Header) error {
	set := SetAttr{Set: SetMtime, Mtime: h.ModTime, Atime: h.AccessTime}
	if h.AccessTime != (time.Time{}) {
		set.Set |= SetAtime
	}
	_, err := m.fs.SetAttr(m.ctx, nil, ino, set)
	return err
}

func (m *importer) finish() error {
	for ino, h := range m.times {
		if err := m.setTimes(ino, h); err != nil && capsule.KindOf(err) != capsule.Stale {
			return err
		}
	}
	return nil
}

// makedev and devNumbers convert device numbers as Linux's C library does.
func makedev(major, minor int64) uint64 {
	x, y := uint64(uint32(major)), uint64(uint32(minor))
	return x&0xfff<<8 | x>>12<<44 | y&0xff | y>>8<<20
}

func devNumbers(dev uint64) (major, minor int64) {
	return int64(dev>>8&0xfff | dev>>32&^0xfff), int64(dev&0xff | dev>>12&0xffffff00)
}
