package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// constants are what numbers can be called.
var constants = map[string]int64{
	"RDONLY": unix.O_RDONLY, "WRONLY": unix.O_WRONLY, "RDWR": unix.O_RDWR, "CREAT": unix.O_CREAT, "EXCL": unix.O_EXCL, "TRUNC": unix.O_TRUNC,
	"APPEND": unix.O_APPEND, "NOFOLLOW": unix.O_NOFOLLOW, "DIRECTORY": unix.O_DIRECTORY, "NONBLOCK": unix.O_NONBLOCK, "PATH": unix.O_PATH,
	"TMPFILE": unix.O_TMPFILE, "SYNC": unix.O_SYNC, "NOATIME": unix.O_NOATIME, "DIRECT": unix.O_DIRECT,
	"NOREPLACE": unix.RENAME_NOREPLACE, "EXCHANGE": unix.RENAME_EXCHANGE,
	"NOW": unix.UTIME_NOW, "OMIT": unix.UTIME_OMIT,
	"KEEP": unix.FALLOC_FL_KEEP_SIZE, "PUNCH": unix.FALLOC_FL_PUNCH_HOLE, "ZERO": unix.FALLOC_FL_ZERO_RANGE,
	"CREATE": unix.XATTR_CREATE, "REPLACE": unix.XATTR_REPLACE,
	"HOLE": unix.SEEK_HOLE, "DATA": unix.SEEK_DATA, "SET": unix.SEEK_SET, "CUR": unix.SEEK_CUR, "END": unix.SEEK_END,
	"RDLCK": unix.F_RDLCK, "WRLCK": unix.F_WRLCK, "UNLCK": unix.F_UNLCK,
	"SH": unix.LOCK_SH, "EX": unix.LOCK_EX, "UN": unix.LOCK_UN, "NB": unix.LOCK_NB,
}

// call is something to ask of a file system. Its arguments are paths and numbers;
// F is the name of an open file.
type call struct {
	args int // at least
	do   func(w *world, a []string) (string, error)
}

// plain is a call that returns nothing but an error.
func plain(args int, do func(w *world, a []string) error) call {
	return call{args, func(w *world, a []string) (string, error) { return "", do(w, a) }}
}

func mode(s string) uint32 { return uint32(number(s)) }

var calls = map[string]call{
	// make TYPE PATH [MODE]: mode 0644 or, of a directory, 0755
	"make": plain(2, func(_ *world, a []string) error {
		m := uint32(0o644)
		if a[0] == "dir" {
			m = 0o755
		}
		if len(a) > 2 {
			m = mode(a[2])
		}
		switch a[0] {
		case "dir":
			return unix.Mkdir(a[1], m)
		case "file":
			fd, err := unix.Open(a[1], unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, m)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		case "symlink":
			return unix.Symlink("target", a[1])
		}
		return unix.Mknod(a[1], map[string]uint32{"fifo": unix.S_IFIFO, "block": unix.S_IFBLK, "char": unix.S_IFCHR, "socket": unix.S_IFSOCK, "reg": unix.S_IFREG}[a[0]]|m,
			int(unix.Mkdev(7, 300)))
	}),
	"symlink": plain(2, func(_ *world, a []string) error { return unix.Symlink(a[0], a[1]) }),
	"link":    plain(2, func(_ *world, a []string) error { return unix.Link(a[0], a[1]) }),
	"unlink":  plain(1, func(_ *world, a []string) error { return unix.Unlink(a[0]) }),
	"rmdir":   plain(1, func(_ *world, a []string) error { return unix.Rmdir(a[0]) }),
	"rename": plain(2, func(_ *world, a []string) error {
		flags := uint(0)
		if len(a) > 2 {
			flags = uint(number(a[2]))
		}
		return unix.Renameat2(unix.AT_FDCWD, a[0], unix.AT_FDCWD, a[1], flags)
	}),
	"chmod": plain(2, func(_ *world, a []string) error { return unix.Chmod(a[0], mode(a[1])) }),
	"lchmod": plain(2, func(_ *world, a []string) error {
		return unix.Fchmodat(unix.AT_FDCWD, a[0], mode(a[1]), unix.AT_SYMLINK_NOFOLLOW)
	}),
	"chown":    plain(3, func(_ *world, a []string) error { return unix.Chown(a[0], int(number(a[1])), int(number(a[2]))) }),
	"lchown":   plain(3, func(_ *world, a []string) error { return unix.Lchown(a[0], int(number(a[1])), int(number(a[2]))) }),
	"truncate": plain(2, func(_ *world, a []string) error { return unix.Truncate(a[0], number(a[1])) }),
	"access": plain(2, func(_ *world, a []string) error {
		return unix.Faccessat2(unix.AT_FDCWD, a[0], mode(a[1]), unix.AT_EACCESS)
	}),
	"umask": plain(1, func(_ *world, a []string) error {
		unix.Umask(int(number(a[0])))
		return nil
	}),
	"chdir": plain(1, func(_ *world, a []string) error { return unix.Chdir(a[0]) }),
	// utimens PATH ASEC ANSEC MSEC MNSEC
	"utimens": plain(5, func(_ *world, a []string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, a[0], []unix.Timespec{{Sec: number(a[1]), Nsec: number(a[2])}, {Sec: number(a[3]), Nsec: number(a[4])}}, unix.AT_SYMLINK_NOFOLLOW)
	}),
	"readlink": {1, func(_ *world, a []string) (string, error) {
		buf := make([]byte, 8192)
		n, err := unix.Readlink(a[0], buf)
		return fmt.Sprintf("%q", buf[:max(n, 0)]), err
	}},
	"stat": {1, func(_ *world, a []string) (string, error) {
		var st unix.Stat_t
		err := unix.Stat(a[0], &st)
		return describe(&st), err
	}},
	"lstat": {1, func(_ *world, a []string) (string, error) {
		var st unix.Stat_t
		err := unix.Lstat(a[0], &st)
		return describe(&st), err
	}},
	"times": {1, func(_ *world, a []string) (string, error) {
		var st unix.Stat_t
		err := unix.Lstat(a[0], &st)
		return fmt.Sprintf("%d.%09d %d.%09d", st.Atim.Sec, st.Atim.Nsec, st.Mtim.Sec, st.Mtim.Nsec), err
	}},
	"same": {2, func(_ *world, a []string) (string, error) { // whether two names are of one file
		var x, y unix.Stat_t
		if err := unix.Lstat(a[0], &x); err != nil {
			return "", err
		}
		err := unix.Lstat(a[1], &y)
		return fmt.Sprint(x.Ino == y.Ino), err
	}},
	"ls": {1, func(_ *world, a []string) (string, error) {
		entries, err := os.ReadDir(a[0])
		names := make([]string, len(entries))
		for i, e := range entries {
			names[i] = e.Name() + ":" + e.Type().String()
		}
		return strings.Join(names, " "), bare(err)
	}},
	"cat": {1, func(_ *world, a []string) (string, error) {
		data, err := os.ReadFile(a[0])
		return summary(data), bare(err)
	}},
	"namemax": {1, func(_ *world, a []string) (string, error) {
		var st unix.Statfs_t
		err := unix.Statfs(a[0], &st)
		return fmt.Sprint(st.Namelen), err
	}},
	// mkdirs PATH N: so many directories in each other
	"mkdirs": plain(2, func(_ *world, a []string) error {
		return bare(os.MkdirAll(a[0]+strings.Repeat("/d", int(number(a[1]))), 0o755))
	}),
	// chain PREFIX N: symbolic links that lead from PREFIX1 to PREFIXN
	"chain": plain(2, func(_ *world, a []string) error {
		for i := range number(a[1]) {
			if err := unix.Symlink(fmt.Sprint(a[0], i+2), fmt.Sprint(a[0], i+1)); err != nil {
				return err
			}
		}
		return nil
	}),

	"open": {2, func(w *world, a []string) (string, error) { // PATH FLAGS [MODE [F]]
		m := uint32(0)
		if len(a) > 2 {
			m = mode(a[2])
		}
		fd, err := unix.Open(a[0], int(number(a[1]))|unix.O_CLOEXEC, m)
		if err == nil && len(a) > 3 {
			w.files[a[3]] = fd
		} else if err == nil {
			unix.Close(fd)
		}
		return "", err
	}},
	"close": plain(1, func(w *world, a []string) error {
		fd := w.files[a[0]]
		delete(w.files, a[0])
		return unix.Close(fd)
	}),
	"fstat": {1, func(w *world, a []string) (string, error) {
		var st unix.Stat_t
		err := unix.Fstat(w.files[a[0]], &st)
		return describe(&st), err
	}},
	"fchmod": plain(2, func(w *world, a []string) error { return unix.Fchmod(w.files[a[0]], mode(a[1])) }),
	"fchown": plain(3, func(w *world, a []string) error {
		return unix.Fchown(w.files[a[0]], int(number(a[1])), int(number(a[2])))
	}),
	"ftruncate": plain(2, func(w *world, a []string) error { return unix.Ftruncate(w.files[a[0]], number(a[1])) }),
	"fsync":     plain(1, func(w *world, a []string) error { return unix.Fsync(w.files[a[0]]) }),
	"fallocate": plain(4, func(w *world, a []string) error {
		return unix.Fallocate(w.files[a[0]], mode(a[1]), number(a[2]), number(a[3]))
	}),
	"flink": plain(2, func(w *world, a []string) error { // F PATH
		return unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", w.files[a[0]]), unix.AT_FDCWD, a[1], unix.AT_SYMLINK_FOLLOW)
	}),
	"write": {2, func(w *world, a []string) (string, error) { // F SIZE
		n, err := unix.Write(w.files[a[0]], []byte(strings.Repeat("w", int(number(a[1])))))
		return fmt.Sprint(n), err
	}},
	"pwrite": {3, func(w *world, a []string) (string, error) { // F OFFSET SIZE
		n, err := unix.Pwrite(w.files[a[0]], []byte(strings.Repeat("p", int(number(a[2])))), number(a[1]))
		return fmt.Sprint(n), err
	}},
	"pread": {3, func(w *world, a []string) (string, error) {
		buf := make([]byte, number(a[2]))
		n, err := unix.Pread(w.files[a[0]], buf, number(a[1]))
		return summary(buf[:max(n, 0)]), err
	}},
	"seek": {3, func(w *world, a []string) (string, error) { // F OFFSET WHENCE
		n, err := unix.Seek(w.files[a[0]], number(a[1]), int(number(a[2])))
		return fmt.Sprint(n), err
	}},
	"copy": {5, func(w *world, a []string) (string, error) { // F OFFSET F OFFSET SIZE
		from, to := number(a[1]), number(a[3])
		n, err := unix.CopyFileRange(w.files[a[0]], &from, w.files[a[2]], &to, int(number(a[4])), 0)
		return fmt.Sprint(n, from, to), err
	}},
	"lock": plain(4, func(w *world, a []string) error { // F TYPE START LEN: of the open file description
		l := unix.Flock_t{Type: int16(number(a[1])), Start: number(a[2]), Len: number(a[3])}
		return unix.FcntlFlock(uintptr(w.files[a[0]]), unix.F_OFD_SETLK, &l)
	}),
	"getlock": {4, func(w *world, a []string) (string, error) {
		l := unix.Flock_t{Type: int16(number(a[1])), Start: number(a[2]), Len: number(a[3])}
		err := unix.FcntlFlock(uintptr(w.files[a[0]]), unix.F_OFD_GETLK, &l)
		return fmt.Sprint(l.Type, l.Start, l.Len), err
	}},
	"flock": plain(2, func(w *world, a []string) error { return unix.Flock(w.files[a[0]], int(number(a[1]))|unix.LOCK_NB) }),
	"mmap": {4, func(w *world, a []string) (string, error) { // F OFFSET SIZE BYTE: writes that through a mapping
		m, err := unix.Mmap(w.files[a[0]], number(a[1]), int(number(a[2])), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return "", err
		}
		for i := range m {
			m[i] = a[3][0]
		}
		if err := unix.Msync(m, unix.MS_SYNC); err != nil {
			return "", err
		}
		return "", unix.Munmap(m)
	}},
	"setxattr": plain(3, func(_ *world, a []string) error { // PATH NAME VALUE [FLAGS]
		flags := 0
		if len(a) > 3 {
			flags = int(number(a[3]))
		}
		return unix.Lsetxattr(a[0], a[1], []byte(a[2]), flags)
	}),
	"getxattr": {2, func(_ *world, a []string) (string, error) { // PATH NAME [SIZE]
		size := int64(1000)
		if len(a) > 2 {
			size = number(a[2])
		}
		buf := make([]byte, size)
		n, err := unix.Lgetxattr(a[0], a[1], buf)
		return fmt.Sprintf("%d %q", n, buf[:min(max(n, 0), len(buf))]), err
	}},
	"removexattr": plain(2, func(_ *world, a []string) error { return unix.Lremovexattr(a[0], a[1]) }),
	"listxattr": {1, func(_ *world, a []string) (string, error) {
		buf := make([]byte, 4096)
		n, err := unix.Llistxattr(a[0], buf)
		names := strings.Split(strings.TrimSuffix(string(buf[:max(n, 0)]), "\x00"), "\x00")
		slices.Sort(names)
		return fmt.Sprint(names), err
	}},
	// setacl PATH access|default ENTRY...: an entry is uNUMBER:PERM, gNUMBER:PERM,
	// or of the owner u:, the group g:, the mask m: and others o:
	"setacl": plain(3, func(_ *world, a []string) error {
		return unix.Lsetxattr(a[0], "system.posix_acl_"+a[1], encodeACL(a[2:]), 0)
	}),
	"getacl": {2, func(_ *world, a []string) (string, error) {
		buf := make([]byte, 1000)
		n, err := unix.Lgetxattr(a[0], "system.posix_acl_"+a[1], buf)
		return hex.EncodeToString(buf[:max(n, 0)]), err
	}},
}

func init() { calls["exec"] = call{2, execute} }

func describe(st *unix.Stat_t) string {
	s := fmt.Sprintf("%07o %d:%d links %d", st.Mode, st.Uid, st.Gid, st.Nlink)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK:
		s += fmt.Sprint(" size ", st.Size)
	case unix.S_IFBLK, unix.S_IFCHR:
		s += fmt.Sprintf(" device %d,%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	return s
}

// summary is how long each run of equal bytes is.
func summary(data []byte) string {
	s := fmt.Sprint(len(data), ":")
	for i := 0; i < len(data); {
		j := i
		for j < len(data) && data[j] == data[i] {
			j++
		}
		s += fmt.Sprintf(" %d*%q", j-i, data[i])
		i = j
	}
	return s
}

// bare is the system's error in one of package os.
func bare(err error) error {
	for {
		w, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = w.Unwrap()
	}
}

func encodeACL(entries []string) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		who, perm, _ := strings.Cut(e, ":")
		tags := map[byte][2]byte{'u': {1, 2}, 'g': {4, 8}, 'm': {16, 16}, 'o': {32, 32}}[who[0]]
		tag, id := tags[0], uint32(1<<32-1)
		if len(who) > 1 {
			tag, id = tags[1], uint32(number(who[1:]))
		}
		b = append(b, tag, 0, byte(number(perm)), 0, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	return b
}

func setgroups(groups []int) unix.Errno {
	list := make([]uint32, max(len(groups), 1))
	for i, g := range groups {
		list[i] = uint32(g)
	}
	_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0)
	return e
}

// execute (exec PATH CALL;CALL...) makes calls while a program that lies at PATH runs.
func execute(w *world, a []string) (string, error) {
	self, err := exec.LookPath("cat")
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(self)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(a[0], data, 0o755); err != nil {
		return "", bare(err)
	}
	cmd := exec.Command("./" + a[0])
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", bare(err)
	}
	// Once it answers it runs.
	if _, err := in.Write([]byte("x")); err != nil {
		return "", err
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		return "", err
	}
	var answers []string
	for _, one := range strings.Split(strings.Join(a[1:], " "), ";") {
		answers = append(answers, w.call(strings.Fields(one)))
	}
	in.Close()
	return strings.Join(answers, "; "), cmd.Wait()
}
