package tree

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
)

// Pipe lets one side write what the other reads, and returns the error that
// came first.
func Pipe(write func(io.Writer) error, read func(io.Reader) error) error {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := write(w)
		w.CloseWithError(err)
		written <- err
	}()
	err := read(r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // what pads a tar
	}
	r.CloseWithError(errReaderGone)
	if werr := <-written; werr != nil && !errors.Is(werr, errReaderGone) {
		return werr
	}
	return err
}

var errReaderGone = errors.New("nobody reads any more")

// hostError gives an error of the host its kind.
func hostError(err error, name string) error {
	kind := capsule.IO
	switch {
	case errors.Is(err, os.ErrNotExist):
		kind = capsule.NotFound
	case errors.Is(err, os.ErrExist):
		kind = capsule.Exists
	case errors.Is(err, os.ErrPermission):
		kind = capsule.Denied
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		kind = capsule.NoSpace
	}
	return capsule.Wrap(kind, err, "%s", name)
}

// PackDir writes a directory of the host as a tar, as FS.Import wants it. Sockets
// are left out.
func PackDir(ctx context.Context, host string, w io.Writer) error {
	root, err := os.OpenRoot(host)
	if err != nil {
		return hostError(err, host)
	}
	defer root.Close()
	p := packer{ctx: ctx, host: host, root: root, w: tar.NewWriter(w), linked: map[[2]uint64]string{}}
	if err := p.dir("."); err != nil {
		return err
	}
	return p.w.Close()
}

type packer struct {
	ctx    context.Context
	host   string
	root   *os.Root
	w      *tar.Writer
	linked map[[2]uint64]string // first name of files that have several, by device and inode
}

func (p *packer) dir(name string) error {
	d, err := p.root.Open(name)
	if err != nil {
		return hostError(err, name)
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(dirPage)
		for _, n := range names {
			if err := p.entry(filepath.Join(name, n)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return hostError(err, name)
		}
	}
}

func (p *packer) entry(name string) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	info, err := p.root.Lstat(name)
	if err != nil {
		return hostError(err, name)
	}
	st := info.Sys().(*syscall.Stat_t)
	h := &tar.Header{Format: tar.FormatPAX, Name: name, Mode: int64(st.Mode & permBits), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), AccessTime: time.Unix(st.Atim.Unix()), PAXRecords: map[string]string{}}
	switch Type(st.Mode >> 12) {
	case Regular:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case Directory:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case Symlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = p.root.Readlink(name); err != nil {
			return hostError(err, name)
		}
	case FIFO:
		h.Typeflag = tar.TypeFifo
	case CharDev, BlockDev:
		h.Typeflag = tar.TypeChar
		if Type(st.Mode>>12) == BlockDev {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = devNumbers(st.Rdev)
	default:
		return nil
	}
	inode := [2]uint64{st.Dev, st.Ino}
	if first := p.linked[inode]; first != "" {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	} else if h.Typeflag != tar.TypeDir && st.Nlink > 1 {
		p.linked[inode] = name
	}
	if h.Typeflag != tar.TypeLink {
		if err := hostXattrsOf(filepath.Join(p.host, name), h); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeReg {
		return p.file(name, h)
	}
	if err := p.w.WriteHeader(h); err != nil {
		return capsule.Wrap(capsule.IO, err, "%s", name)
	}
	if h.Typeflag == tar.TypeDir {
		return p.dir(name)
	}
	return nil
}

func (p *packer) file(name string, h *tar.Header) error {
	f, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return hostError(err, name)
	}
	defer f.Close()
	if err := p.w.WriteHeader(h); err != nil {
		return capsule.Wrap(capsule.IO, err, "%s", name)
	}
	if n, err := io.CopyN(p.w, f, h.Size); err == io.EOF {
		return capsule.Errorf(capsule.Conflict, "%s got shorter while it was read: %d bytes rather than %d", name, n, h.Size)
	} else if err != nil {
		return hostError(err, name)
	}
	return nil
}

// hostXattrsOf puts a host file's extended attributes into a header: those that
// a tree can have.
func hostXattrsOf(path string, h *tar.Header) error {
	list := make([]byte, maxXattrList)
	n, err := unix.Llistxattr(path, list)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return hostError(err, path)
	}
	value := make([]byte, MaxXattrValue)
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		known := name == aclAccess || name == aclDefault ||
			slices.Contains([]string{"user", "trusted", "security"}, name[:max(strings.IndexByte(name, '.'), 0)])
		if !known {
			continue
		}
		k, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return hostError(err, path)
		}
		h.PAXRecords[paxXattr+name] = string(value[:k])
	}
	return nil
}

// UnpackDir unpacks a tar of Export into a directory of the host, where nothing
// of the same names may be, directories excepted. Owners, devices and attributes
// that only root may set are left out for others.
func UnpackDir(ctx context.Context, host string, r io.Reader) error {
	root, err := os.OpenRoot(host)
	if err != nil {
		return hostError(err, host)
	}
	defer root.Close()
	u := unpacker{host: host, root: root, isRoot: os.Geteuid() == 0, buf: make([]byte, maxWrite)}
	var dirs []*tar.Header // whose times and modes are set when nothing more goes into them
	for t := tar.NewReader(r); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, t); err != nil {
			return hostError(err, h.Name)
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h)
		}
	}
	for _, h := range slices.Backward(dirs) {
		if err := u.attributes(h); err != nil {
			return hostError(err, h.Name)
		}
	}
	return nil
}

type unpacker struct {
	host   string
	root   *os.Root
	isRoot bool
	buf    []byte
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name := strings.TrimSuffix(h.Name, "/")
	path := filepath.Join(u.host, name)
	dev := int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if err = u.root.Mkdir(name, 0o700); errors.Is(err, os.ErrExist) {
			info, serr := u.root.Lstat(name)
			if serr == nil && info.IsDir() {
				err = nil
			}
		}
		return err
	case tar.TypeLink:
		return u.root.Link(h.Linkname, name)
	case tar.TypeReg:
		err = u.file(name, h.Size, content)
	case tar.TypeSymlink:
		err = u.root.Symlink(h.Linkname, name)
	case tar.TypeFifo:
		err = unix.Mknod(path, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar, tar.TypeBlock:
		if !u.isRoot {
			return nil
		}
		mode := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			mode = unix.S_IFBLK
		}
		err = unix.Mknod(path, mode|0o600, dev)
	}
	if err != nil {
		return err
	}
	return u.attributes(h)
}

func (u *unpacker) file(name string, size int64, content io.Reader) error {
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = unpack(content, u.buf, func(p []byte, off int64) error {
		_, err := f.WriteAt(p, off)
		return err
	})
	return errors.Join(err, f.Truncate(size), f.Close())
}

// attributes gives a file of the host what its header says, in the order in
// which one setting does not undo another.
func (u *unpacker) attributes(h *tar.Header) error {
	name := strings.TrimSuffix(h.Name, "/")
	path := filepath.Join(u.host, name)
	if u.isRoot {
		if err := u.root.Lchown(name, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(unix.AT_FDCWD, path, uint32(h.Mode)&permBits, 0); err != nil {
			return err
		}
	}
	for k, v := range h.PAXRecords {
		attr, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			continue
		}
		err := unix.Lsetxattr(path, attr, []byte(v), 0)
		if err != nil && (u.isRoot || !errors.Is(err, unix.EPERM)) {
			return err
		}
	}
	times := []unix.Timespec{unixTime(h.AccessTime), unixTime(h.ModTime)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW)
}

func unixTime(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
