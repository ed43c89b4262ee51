//go:build linux

package tree

import (
	"errors"
	"flag"
	"fmt"

	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/testenv/seed"
)

var hostSeed = flag.Uint64("host-seed", 0, "replay one run of TestAgainstHost")

// errnos is how a view would translate errors, to compare with the host's.
var errnos = map[capsule.ErrorKind]unix.Errno{
	capsule.Invalid: unix.EINVAL, capsule.NotFound: unix.ENOENT, capsule.Exists: unix.EEXIST, capsule.Denied: unix.EACCES,
	capsule.NotDir: unix.ENOTDIR, capsule.IsDir: unix.EISDIR, capsule.NotEmpty: unix.ENOTEMPTY, capsule.NameTooLong: unix.ENAMETOOLONG,
	capsule.NotPermitted: unix.EPERM, capsule.NoAttribute: unix.ENODATA, capsule.Unsupported: unix.EOPNOTSUPP, capsule.OutOfRange: unix.ERANGE,
	capsule.TooLarge: unix.EFBIG, capsule.NoDevice: unix.ENXIO,
}

func errno(err error) string {
	if err == nil {
		return "ok"
	}
	var no unix.Errno
	if !errors.As(err, &no) {
		var ok bool
		if no, ok = errnos[capsule.KindOf(err)]; !ok {
			return err.Error()
		}
	}
	if no == unix.EFBIG {
		no = unix.EINVAL // ext4's limits are lower
	}
	return unix.ErrnoName(no)
}

// pair is the tree beside a directory of the host, for one operation at a time.
type pair struct {
	t    *testing.T
	fs   *FS
	host string
	cred *Cred
	log  []string
}

// as runs fn with the identity of p.cred on this thread.
func (p *pair) as(fn func() error) error {
	if p.cred.UID != 0 {
		groups := make([]uint32, len(p.cred.Groups))
		copy(groups, p.cred.Groups)
		if err := setgroups(groups); err != nil {
			p.t.Fatal(err)
		}
		unix.SetfsgidRetGid(int(p.cred.GID))
		unix.SetfsuidRetUid(int(p.cred.UID))
		defer func() {
			unix.SetfsuidRetUid(0)
			unix.SetfsgidRetGid(0)
			if err := setgroups(nil); err != nil {
				p.t.Fatal(err)
			}
		}()
	}
	return fn()
}

// walk finds a path in the tree as the kernel would.
func (p *pair) walk(path string) (uint64, error) {
	ino := Root
	names := strings.Split(strings.Trim(path, "/"), "/")
	for i, name := range names {
		if name == "" {
			continue
		}
		a, err := p.fs.Lookup(ctx, p.cred, ino, name)
		if err != nil {
			return 0, err
		}
		ino = a.Ino
		if a.Type == Symlink && (i < len(names)-1 || strings.HasSuffix(path, "/")) {
			return 0, unix.ENOENT // links lead nowhere
		}
	}
	return ino, nil
}

// parent is walk for the directory of a path.
func (p *pair) parent(path string) (uint64, string, error) {
	dir, name := filepath.Split(path)
	ino, err := p.walk(dir)
	if err == nil {
		if _, err = p.fs.Lookup(ctx, p.cred, ino, "no such name"); capsule.KindOf(err) == capsule.NotFound {
			err = nil // the kernel has checked the directory before it goes on
		}
	}
	return ino, name, err
}

// same does an operation on both sides.
func (p *pair) same(what string, tree func() error, host func() error) {
	p.t.Helper()
	got := errno(tree())
	want := errno(p.as(host))
	p.log = append(p.log, fmt.Sprintf("%s as %d: %s", what, p.cred.UID, want))
	if got != want {
		p.fail("%s as %+v: %s, the host says %s", what, p.cred, got, want)
	}
}

func (p *pair) fail(format string, args ...any) {
	p.t.Helper()
	for _, l := range p.log[max(0, len(p.log)-25):] {
		p.t.Log(strings.ReplaceAll(l, long, "N"))
	}
	p.t.Fatal(strings.ReplaceAll(fmt.Sprintf(format, args...), long, "N"))
}

// long is the longest name.
var long = strings.Repeat("n", MaxName)

// compare compares everything there is.
func (p *pair) compare() {
	p.t.Helper()
	links := map[uint64]uint64{} // inodes there to inodes here
	var walk func(dir uint64, path string)
	walk = func(dir uint64, path string) {
		p.t.Helper()
		var st unix.Stat_t
		if err := unix.Lstat(p.host+path, &st); err != nil {
			p.fail("%s: %v", path, err)
		}
		a, err := p.fs.GetAttr(ctx, dir)
		if err != nil {
			p.fail("%s: %v", path, err)
		}
		if have, ok := links[st.Ino]; ok && have != a.Ino {
			p.fail("%s: inode %d here, %d elsewhere", path, a.Ino, have)
		}
		links[st.Ino] = a.Ino
		if a.StatMode() != st.Mode || a.UID != st.Uid || a.GID != st.Gid || uint64(a.Nlink) != uint64(st.Nlink) || a.Type != Directory && a.Size != st.Size || a.Rdev != st.Rdev {
			p.fail("%s is %o %d:%d %d links %d bytes rdev %d, the host has %o %d:%d %d links %d bytes rdev %d", path,
				a.StatMode(), a.UID, a.GID, a.Nlink, a.Size, a.Rdev, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Rdev)
		}
		names := must(p.fs.ListXattr(ctx, nil, a.Ino))(p.t)
		sort.Strings(names)
		hostNames := hostXattrs(p.t, p.host+path)
		if !slices.Equal(names, hostNames) {
			p.fail("%s has attributes %q, the host %q", path, names, hostNames)
		}
		for _, n := range names {
			v := must(p.fs.GetXattr(ctx, nil, a.Ino, n))(p.t)
			b := make([]byte, 4096)
			k, err := unix.Lgetxattr(p.host+path, n, b)
			if err != nil || string(v) != string(b[:k]) {
				p.fail("%s: attribute %q is %x, the host has %x, %v", path, n, v, b[:max(k, 0)], err)
			}
		}
		switch a.Type {
		case Symlink:
			target, err := os.Readlink(p.host + path)
			if got := must(p.fs.Readlink(ctx, a.Ino))(p.t); got != target || err != nil {
				p.fail("%s: %q, %q", path, got, target)
			}
		case Regular:
			want, err := os.ReadFile(p.host + path)
			if got := content(p.t, p.fs, a.Ino); string(got) != string(want) || err != nil {
				p.fail("%s: contents of %d and %d bytes differ (%v)", path, len(got), len(want), err)
			}
		case Directory:
			entries := list(p.t, p.fs, dir)
			if int64(len(entries)) != a.Size {
				p.fail("%s: size %d for %d entries", path, a.Size, len(entries))
			}
			hostEntries, err := os.ReadDir(p.host + path)
			if err != nil || len(hostEntries) != len(entries) {
				p.fail("%s: %d entries, the host has %d (%v)", path, len(entries), len(hostEntries), err)
			}
			for _, e := range hostEntries {
				here, ok := entries[e.Name()]
				if !ok {
					p.fail("%s/%s is missing", path, e.Name())
				}
				if here.Attr.Type != here.Type {
					p.fail("%s/%s: type %d, %d", path, e.Name(), here.Type, here.Attr.Type)
				}
				if here.Type == Directory && here.Attr.Parent != dir {
					p.fail("%s/%s: parent is %d", path, e.Name(), here.Attr.Parent)
				}
				walk(here.Ino, path+"/"+e.Name())
			}
		}
	}
	walk(Root, "")
}

func hostXattrs(t *testing.T, path string) (names []string) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		t.Fatal(err)
	}
	for s := range strings.SplitSeq(string(b[:n]), "\x00") {
		if s != "" {
			names = append(names, s)
		}
	}
	sort.Strings(names)
	return names
}

// step does one random operation.
func (p *pair) step(r *rand.Rand) {
	p.t.Helper()
	creds := []*Cred{{}, {}, {UID: 1, GID: 1}, {UID: 1, GID: 1, Groups: []uint32{2}}, {UID: 2, GID: 2}, {UID: 3, GID: 3, Groups: []uint32{1, 2}}}
	p.cred = creds[r.IntN(len(creds))]
	parts := []string{"a", "b", "c", "d"}
	if r.IntN(5) == 0 {
		parts = append(parts, long)
	}
	if r.IntN(20) == 0 {
		parts = append(parts, long+"n")
	}
	path := func() string {
		s := ""
		for range 1 + r.IntN(3) {
			s += "/" + parts[r.IntN(len(parts))]
		}
		return s
	}
	a, b := path(), path()
	mode := uint32([]int{0o755, 0o777, 0o700, 0o644, 0o666, 0o1777, 0o2775, 0o6755, 0o070, 0o007, 0o4711, 0o2745, 0}[r.IntN(13)])
	umask := uint32([]int{0, 0o022, 0o077}[r.IntN(3)])
	id := uint32(r.IntN(4))
	ids := func() (uint32, uint32) { return id, uint32(r.IntN(4)) }
	masked := func(fn func() error) func() error {
		return func() error {
			old := unix.Umask(int(umask))
			defer unix.Umask(old)
			return fn()
		}
	}
	make := func(what string, tree func(dir uint64, name string, n New) error, host func() error) {
		p.same(fmt.Sprintf("%s %s %o &^ %o", what, a, mode, umask), func() error {
			dir, name, err := p.parent(a)
			if err != nil {
				return err
			}
			return tree(dir, name, New{Mode: mode, Umask: umask, Rdev: unix.Mkdev(1, 3), Target: "nowhere" + b})
		}, masked(host))
	}
	onFile := func(what string, flags OpenFlags, hostFlags int, tree func(f *File) error, host func(f *os.File) error) {
		p.same(what+" "+a, func() error {
			ino, err := p.walk(a)
			if err != nil {
				return err
			}
			if attr := attr(p.t, p.fs, ino); attr.Type != Regular && attr.Type != Directory {
				return unix.ELOOP
			}
			f, err := p.fs.Open(ctx, p.cred, ino, flags)
			if err != nil {
				return err
			}
			defer f.Close()
			return tree(f)
		}, func() error {
			var st unix.Stat_t
			if err := unix.Lstat(p.host+a, &st); err != nil {
				return err
			}
			if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
				return unix.ELOOP
			}
			f, err := os.OpenFile(p.host+a, hostFlags|unix.O_NOFOLLOW, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			return host(f)
		})
	}
	onInode := func(what string, tree func(ino uint64) error, host func() error) {
		p.same(what+" "+a, func() error {
			ino, err := p.walk(a)
			if err != nil {
				return err
			}
			return tree(ino)
		}, host)
	}
	switch op := r.IntN(24); op {
	case 0, 1, 2:
		make("mkdir", func(d uint64, n string, new New) error { _, err := p.fs.Mkdir(ctx, p.cred, d, n, new); return err },
			func() error { return unix.Mkdir(p.host+a, mode) })
	case 3, 4, 5:
		excl := r.IntN(2) == 0
		flags, hostFlags := OpenRead|OpenWrite, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK
		if excl {
			flags, hostFlags = flags|OpenExcl, hostFlags|unix.O_EXCL
		}
		if r.IntN(3) == 0 {
			flags, hostFlags = flags|OpenTrunc, hostFlags|unix.O_TRUNC
		}
		make(fmt.Sprintf("create %x", flags), func(d uint64, n string, new New) error {
			if x, err := p.fs.Lookup(ctx, p.cred, d, n); err == nil && !excl && x.Type != Regular && x.Type != Directory {
				return unix.ELOOP
			}
			f, _, err := p.fs.Create(ctx, p.cred, d, n, new, flags)
			if err != nil {
				return err
			}
			return f.Close()
		}, func() error {
			var st unix.Stat_t
			if err := unix.Lstat(p.host+a, &st); err == nil && !excl && st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return unix.ELOOP
			}
			fd, err := unix.Open(p.host+a, hostFlags, mode)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		})
	case 6:
		types := map[Type]uint32{FIFO: unix.S_IFIFO, Socket: unix.S_IFSOCK, CharDev: unix.S_IFCHR, Regular: unix.S_IFREG}
		typ := []Type{FIFO, Socket, CharDev, Regular}[r.IntN(4)]
		make(fmt.Sprintf("mknod %d", typ), func(d uint64, n string, new New) error {
			_, err := p.fs.Mknod(ctx, p.cred, d, n, typ, new)
			return err
		}, func() error { return unix.Mknod(p.host+a, types[typ]|mode, int(unix.Mkdev(1, 3))) })
	case 7:
		make("symlink", func(d uint64, n string, new New) error { _, err := p.fs.Symlink(ctx, p.cred, d, n, new); return err },
			func() error { return unix.Symlink("nowhere"+b, p.host+a) })
	case 8:
		p.cred = &Cred{} // fs.protected_hardlinks is a rule above the file system
		p.same("link "+a+" "+b, func() error {
			ino, err := p.walk(a)
			if err != nil {
				return err
			}
			d, n, err := p.parent(b)
			if err != nil {
				return err
			}
			_, err = p.fs.Link(ctx, p.cred, ino, d, n)
			return err
		}, func() error { return unix.Link(p.host+a, p.host+b) })
	case 9, 10:
		p.same("unlink "+a, func() error {
			d, n, err := p.parent(a)
			if err != nil {
				return err
			}
			return p.fs.Unlink(ctx, p.cred, d, n)
		}, func() error { return unix.Unlink(p.host + a) })
	case 11:
		p.same("rmdir "+a, func() error {
			d, n, err := p.parent(a)
			if err != nil {
				return err
			}
			return p.fs.Rmdir(ctx, p.cred, d, n)
		}, func() error { return unix.Rmdir(p.host + a) })
	case 12, 13, 14:
		flags := []RenameFlags{0, 0, RenameNoReplace, RenameExchange}[r.IntN(4)]
		p.same(fmt.Sprintf("rename %s %s %d", a, b, flags), func() error {
			d, n, err := p.parent(a)
			if err != nil {
				return err
			}
			d2, n2, err := p.parent(b)
			if err != nil {
				return err
			}
			return p.fs.Rename(ctx, p.cred, d, n, d2, n2, flags)
		}, func() error {
			return unix.Renameat2(unix.AT_FDCWD, p.host+a, unix.AT_FDCWD, p.host+b, uint(flags))
		})
	case 15, 16:
		onInode(fmt.Sprintf("chmod %o", mode), func(ino uint64) error {
			_, err := p.fs.SetAttr(ctx, p.cred, ino, SetAttr{Set: SetMode, Mode: mode})
			return err
		}, func() error { return unix.Fchmodat(unix.AT_FDCWD, p.host+a, mode, unix.AT_SYMLINK_NOFOLLOW) })
	case 17:
		uid, gid := ids()
		set, hostUID, hostGID := SetAttr{UID: uid, GID: gid}, -1, -1
		if r.IntN(2) == 0 {
			set.Set, hostUID = set.Set|SetUID, int(uid)
		}
		if r.IntN(4) > 0 {
			set.Set, hostGID = set.Set|SetGID, int(gid)
		}
		onInode(fmt.Sprintf("chown %d %d", hostUID, hostGID), func(ino uint64) error {
			if set.Set == 0 {
				return nil // the kernel's own case
			}
			_, err := p.fs.SetAttr(ctx, p.cred, ino, set)
			return err
		}, func() error {
			if set.Set == 0 {
				var st unix.Stat_t
				return unix.Lstat(p.host+a, &st)
			}
			return unix.Lchown(p.host+a, hostUID, hostGID)
		})
	case 18:
		size := int64(r.IntN(3 * blockSize))
		onFile(fmt.Sprintf("truncate %d", size), OpenWrite, os.O_WRONLY, func(f *File) error { return f.Truncate(ctx, size) },
			func(f *os.File) error { return f.Truncate(size) })
	case 19, 20:
		data := []byte(strings.Repeat(string(rune('a'+r.IntN(26))), 1+r.IntN(2*blockSize)))
		off := int64(r.IntN(3 * blockSize))
		if r.IntN(2) == 0 {
			onFile(fmt.Sprintf("write %d at %d", len(data), off), OpenWrite, os.O_WRONLY, func(f *File) error { _, err := f.WriteAt(ctx, data, off); return err },
				func(f *os.File) error { _, err := f.WriteAt(data, off); return err })
		} else {
			onFile(fmt.Sprintf("append %d", len(data)), OpenWrite, os.O_WRONLY|os.O_APPEND, func(f *File) error { _, _, err := f.Append(ctx, data); return err },
				func(f *os.File) error { _, err := f.Write(data); return err })
		}
	case 21:
		off, n := int64(r.IntN(3*blockSize)), int64(r.IntN(2*blockSize))
		m := AllocMode(r.IntN(5))
		hostMode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE}[m]
		onFile(fmt.Sprintf("fallocate %d %d %d", m, off, n), OpenWrite, os.O_WRONLY, func(f *File) error { return f.Allocate(ctx, m, off, n) },
			func(f *os.File) error { return unix.Fallocate(int(f.Fd()), hostMode, off, n) })
	case 22:
		name := []string{"user.x", "user.y", "trusted.t", "security.s", "user.", "other.o", "user." + strings.Repeat("l", 250), "user.z"}[r.IntN(8)]
		if !strings.HasPrefix(name, "user.") {
			p.cred = &Cred{} // fsuid leaves CAP_SYS_ADMIN
		}
		value := []byte(strings.Repeat("v", r.IntN(50)))
		flags := XattrFlags(r.IntN(3))
		switch r.IntN(4) {
		case 0:
			onInode("removexattr "+name, func(ino uint64) error { return p.fs.RemoveXattr(ctx, p.cred, ino, name) },
				func() error { return unix.Lremovexattr(p.host+a, name) })
		case 1:
			onInode("getxattr "+name, func(ino uint64) error { _, err := p.fs.GetXattr(ctx, p.cred, ino, name); return err },
				func() error { _, err := unix.Lgetxattr(p.host+a, name, nil); return err })
		default:
			onInode(fmt.Sprintf("setxattr %s %d", name, flags), func(ino uint64) error { return p.fs.SetXattr(ctx, p.cred, ino, name, value, flags) },
				func() error { return unix.Lsetxattr(p.host+a, name, value, int(flags)) })
		}
	case 23:
		name := []string{aclAccess, aclDefault}[r.IntN(2)]
		value := randomACL(r)
		if r.IntN(6) == 0 {
			onInode("removexattr "+name, func(ino uint64) error { return p.fs.RemoveXattr(ctx, p.cred, ino, name) },
				func() error { return unix.Lremovexattr(p.host+a, name) })
		} else {
			onInode(fmt.Sprintf("setxattr %s %x", name, value), func(ino uint64) error { return p.fs.SetXattr(ctx, p.cred, ino, name, value, 0) },
				func() error { return unix.Lsetxattr(p.host+a, name, value, 0) })
		}
	}
	// What can be seen is the same for everyone.
	p.cred = creds[r.IntN(len(creds))]
	want := Access(r.IntN(8))
	onInode(fmt.Sprintf("access %d", want), func(ino uint64) error {
		return p.fs.Access(ctx, p.cred, ino, want)
	}, func() error {
		var st unix.Stat_t
		if err := unix.Lstat(p.host+a, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return nil
		}
		return unix.Faccessat2(unix.AT_FDCWD, p.host+a, uint32(want), unix.AT_EACCESS)
	})
}

// randomACL returns an ACL, which is valid most of the time.
func randomACL(r *rand.Rand) []byte {
	perm := func() uint16 { return uint16(r.IntN(8)) }
	const none = 1<<32 - 1
	a := acl{{aclUserObj, perm(), none}}
	if r.IntN(2) == 0 {
		a = append(a, aclEntry{aclUser, perm(), uint32(r.IntN(4))})
	}
	a = append(a, aclEntry{aclGroupObj, perm(), none})
	for i := range r.IntN(3) {
		a = append(a, aclEntry{aclGroup, perm(), uint32(1 + i)})
	}
	if len(a) > 2 || r.IntN(2) == 0 {
		a = append(a, aclEntry{aclMask, perm(), none})
	}
	a = append(a, aclEntry{aclOther, perm(), none})
	b := a.encode()
	switch r.IntN(12) {
	case 0:
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
	case 1:
		b = b[:len(b)-8]
	case 2:
		b = b[:4]
	}
	return b
}

// Random operations by several users on the tree and on a directory of the
// host have the same results, errno for errno.
func TestAgainstHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be several users")
	}
	rounds, steps := 40, 400
	if testing.Short() {
		rounds = 8
	}
	start := seed.Of(t)
	if *hostSeed != 0 {
		start, rounds = *hostSeed, 1
	}
	runtime.LockOSThread() // never unlocked: a thread whose identity changed is not used again
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		t.Fatal(err) // so that umask is this thread's
	}
	for i := range rounds {
		seed := start + uint64(i)
		dir := t.TempDir()
		for up := dir; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
			os.Chmod(up, 0o755)
		}
		host := filepath.Join(dir, "root")
		if err := os.Mkdir(host, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(host, 0o777); err != nil {
			t.Fatal(err)
		}
		m := newMemory()
		m.punchMax = 1
		if err := Format(ctx, m, New{Mode: 0o777}, (&manual{}).Now()); err != nil {
			t.Fatal(err)
		}
		fs := openTree(t, m)
		p := &pair{t: t, fs: fs, host: host}
		r := rand.New(rand.NewPCG(seed, 1))
		t.Logf("-host-seed %d", seed)
		for n := range steps {
			p.step(r)
			if n%40 == 39 {
				p.compare()
			}
		}
		fs.reclaimAll(ctx)
		fs.Close()
		clean(t, m)
	}
}

// setgroups sets the groups of this thread alone.
func setgroups(groups []uint32) error {
	var first *uint32
	if len(groups) > 0 {
		first = &groups[0]
	}
	return rawSetgroups(len(groups), first)
}

func rawSetgroups(n int, first *uint32) error {
	if _, _, no := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(n), uintptr(unsafe.Pointer(first)), 0); no != 0 {
		return no
	}
	return nil
}
