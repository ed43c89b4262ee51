package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/internal/testenv/seed"
)

// need skips a test without a program; make test installs them.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
}

// workTree makes a tree in a box and a directory to mount it on.
func workTree(t testing.TB) (b *box, dir string) {
	t.Helper()
	needFUSE(t)
	b = newBox(t)
	b.vars = []string{"SPACE_MOUNT_WAIT=0"} // a mount ends with its node: who uses it must not wait for the next one
	dir = filepath.Join(openTempDir(t), "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.must("tree", "create", "work")
	unmountAll(t, dir)
	return b, dir
}

// openTempDir returns a directory that all users can reach.
func openTempDir(t testing.TB) string {
	dir := t.TempDir()
	for p := dir; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		_ = os.Chmod(p, 0o755) // those above are others', and open as a rule
	}
	return dir
}

// sample is a directory with what backups have to keep.
func sample(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "sample")
	for i := range 60 {
		write(t, filepath.Join(dir, fmt.Sprint("dir", i%7), fmt.Sprint("sub", i%3), fmt.Sprint("file", i)), random(uint64(i), i*i*97%300_000))
	}
	write(t, filepath.Join(dir, strings.Repeat("n", 255)), []byte("a long name"))
	write(t, filepath.Join(dir, "not \xff UTF-8\n"), []byte("an odd name"))
	f := filepath.Join(dir, "dir1", "sub1", "file1")
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 6, 1<<32 - 1}, {2, 4, 1234}, {4, 4, 1<<32 - 1}, {16, 6, 1<<32 - 1}, {32, 0, 1<<32 - 1}} {
		acl = binary.LittleEndian.AppendUint16(acl, uint16(e[0]))
		acl = binary.LittleEndian.AppendUint16(acl, uint16(e[1]))
		acl = binary.LittleEndian.AppendUint32(acl, e[2])
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer sparse.Close()
	for what, err := range map[string]error{
		"hard link": os.Link(f, filepath.Join(dir, "hard")),
		"symlink":   os.Symlink("dir1/none", filepath.Join(dir, "soft")),
		"fifo":      unix.Mkfifo(filepath.Join(dir, "fifo"), 0o620),
		"mode":      os.Chmod(filepath.Join(dir, "dir2"), 0o1770|os.ModeSticky),
		"set-ID":    unix.Chmod(filepath.Join(dir, "dir3"), 0o2750),
		"times":     os.Chtimes(filepath.Join(dir, "dir4"), time.Unix(12345, 6789), time.Unix(98765, 123456789)),
		"xattr":     unix.Setxattr(f, "user.note", []byte("kept\x00whole"), 0),
		"ACL":       unix.Setxattr(filepath.Join(dir, "dir5", "sub0", "file12"), "system.posix_acl_access", acl, 0),
		"size":      sparse.Truncate(5 << 20),
		"data":      func() error { _, err := sparse.WriteAt([]byte("end"), 5<<20-3); return err }(),
	} {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	return dir
}

// TestRsync copies with rsync to a mount and back. A second run finds nothing to do.
func TestRsync(t *testing.T) {
	t.Parallel()
	need(t, "rsync")
	b, dir := workTree(t)
	src, back := sample(t), t.TempDir()
	b.must("project", "mount", "work", "--target", dir)
	out := b.sh(t.TempDir(), fmt.Sprintf(`
		sync() { rsync -aHAX --checksum --numeric-ids --delete "$@"; }
		sync %[1]s/ %[2]s/
		sync %[2]s/ %[3]s/
		sync -n --itemize-changes %[1]s/ %[3]s/
		sync -n --itemize-changes %[1]s/ %[2]s/
		diff -r --no-dereference -x fifo %[1]s %[3]s
		spacectl project unmount %[2]s
		spacectl fsck > /dev/null`, src, dir, back))
	if out != "" {
		t.Errorf("what rsync brought is not what it took:\n%s", out)
	}
}

// TestTarRoundTrip unpacks a tar in a mount, and packs it again.
func TestTarRoundTrip(t *testing.T) {
	t.Parallel()
	need(t, "tar", "sha256sum")
	b, dir := workTree(t)
	src, back := sample(t), t.TempDir()
	b.must("project", "mount", "work", "--target", dir)
	out := b.sh(t.TempDir(), fmt.Sprintf(`
		pack() { tar --xattrs --acls --sort=name --numeric-owner -C "$1" -cf - .; }
		unpack() { tar --xattrs --acls --numeric-owner -C "$1" -xpf -; }
		sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
		pack %[1]s | unpack %[2]s
		sums %[1]s > want
		sums %[2]s > there
		cmp want there
		spacectl project unmount %[2]s
		spacectl project mount work --target %[2]s
		pack %[2]s | unpack %[3]s
		sums %[3]s > again
		cmp want again
		wc -l < want
		spacectl project unmount %[2]s`, src, dir, back))
	if n, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || n < 60 {
		t.Errorf("%s sums were compared, %v", out, err)
	}
}

// database runs psql and its like against a server in a mount.
type database struct {
	t    *testing.T
	bin  string // of the newest PostgreSQL
	data string
	run  string // for its socket
	as   *syscall.Credential
}

func newDatabase(t *testing.T, dir string) *database {
	t.Helper()
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		t.Skip("there is no PostgreSQL")
	}
	run, err := os.MkdirTemp("", "space-e2e-pg-") // short: it goes into a socket address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	d := &database{t: t, bin: bins[len(bins)-1], data: filepath.Join(dir, "pg"), run: run}
	if os.Geteuid() == 0 { // which it does not run as
		const nobody = 65534
		d.as = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := os.Chown(run, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func (d *database) command(name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	d.t.Cleanup(cancel)
	return d.commandIn(ctx, name, args...)
}

func (d *database) commandIn(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, name), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: d.as}
	cmd.Dir = d.run
	cmd.Env = append(os.Environ(), "PGHOST="+d.run, "PGUSER=space", "PGDATABASE=postgres", "LC_ALL=C", "HOME="+d.run)
	return cmd
}

func (d *database) must(name string, args ...string) string {
	d.t.Helper()
	out, err := d.command(name, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// start runs a server and returns when it takes connections.
func (d *database) start() (kill func()) {
	d.t.Helper()
	log, err := os.Create(filepath.Join(d.run, "log"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	cmd := d.commandIn(context.Background(), "postgres", "-D", d.data, "-k", d.run, "-c", "listen_addresses=", "-c", "shared_buffers=8MB", "-c", "max_connections=10",
		"-c", "dynamic_shared_memory_type=mmap", "-c", "autovacuum=off")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		pid := cmd.Process.Pid
		_ = unix.Kill(pid, unix.SIGSTOP) // so that it starts no more
		all := children(pid)
		_ = unix.Kill(pid, unix.SIGKILL)
		for _, child := range all {
			_ = unix.Kill(child, unix.SIGKILL)
		}
		cmd.Wait()
		for _, child := range all {
			for deadline := time.Now().Add(hung); alive(child) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			}
		}
	})
	d.t.Cleanup(kill)
	for deadline := time.Now().Add(hung); d.command("pg_isready", "-q").Run() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			d.t.Fatalf("PostgreSQL does not become ready:\n%s", text)
		}
	}
	return kill
}

// children returns the processes that a process has started.
func children(parent int) (all []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		var pid, ppid int
		var state rune
		if text, err := os.ReadFile(f); err == nil { // it may have ended
			after := string(text[strings.LastIndexByte(string(text), ')')+1:])
			fmt.Sscanf(string(text), "%d", &pid)
			if n, _ := fmt.Sscanf(after, " %c %d", &state, &ppid); n == 2 && ppid == parent {
				all = append(all, pid)
			}
		}
	}
	return all
}

func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(text), ") Z ")
}

// check wants the books of pgbench to balance, and returns how many
// transactions they have.
func (d *database) check() int {
	d.t.Helper()
	sums := d.must("psql", "-Atc", `SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
		(SELECT sum(bbalance) FROM pgbench_branches), coalesce(sum(delta), 0), count(*) FROM pgbench_history`)
	var a, t, b, h, n int
	if _, err := fmt.Sscanf(strings.ReplaceAll(sums, "|", " "), "%d %d %d %d %d", &a, &t, &b, &h, &n); err != nil || a != t || a != b || a != h {
		d.t.Errorf("the sums are %s (%v)", sums, err)
	}
	return n
}

// TestPostgres runs a database in a mount and kills the node, and all of the
// server, amid transactions: what was committed is there when it runs again.
func TestPostgres(t *testing.T) {
	t.Parallel()
	b, dir := workTree(t)
	d := newDatabase(t, dir)
	mount := func() {
		t.Helper()
		b.must("project", "mount", "work", "--target", dir, "--allow-other")
	}
	s := b.serve()
	mount()
	if d.as != nil {
		if err := os.Chown(dir, int(d.as.Uid), int(d.as.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	d.must("initdb", "-D", d.data, "-U", "space", "-A", "trust", "-N", "--no-instructions") // -N: no fsync of what can be made again
	kill := d.start()
	d.must("pgbench", "-i", "-q", "-s", "1")
	d.must("pgbench", "-n", "-c", "2", "-t", "30")
	committed := d.check()
	if committed != 60 {
		t.Errorf("%d transactions of 60", committed)
	}
	for _, victim := range []string{"server", "node"} {
		bench := d.command("pgbench", "-n", "-c", "2", "-t", "100000")
		bench.Stdout, bench.Stderr = nil, nil
		if err := bench.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(hung); ; { // until it is under way
			n, err := strconv.Atoi(d.must("psql", "-Atc", "SELECT count(*) FROM pgbench_history"))
			if err != nil || time.Now().After(deadline) {
				t.Fatal("pgbench does nothing", err)
			}
			if n > committed+20 {
				committed = n
				break
			}
		}
		if victim == "node" {
			s.stop(unix.SIGKILL)
		}
		kill()
		bench.Wait()
		if victim == "node" {
			b.must("project", "unmount", dir)
			s = b.serve()
			mount()
		}
		kill = d.start()
		n := d.check()
		if n < committed {
			t.Errorf("%d transactions after the %s was killed, %d were committed", n, victim, committed)
		}
		committed = n
		d.must("pgbench", "-n", "-t", "10")
		committed += 10
	}
	d.must("psql", "-qc", "CREATE EXTENSION IF NOT EXISTS amcheck", "-c", "SELECT bt_index_check('pgbench_accounts_pkey', true)")
	kill()
	b.must("project", "unmount", dir)
	b.must("fsck")
	s.stop(unix.SIGTERM)
}

// TestSQLite kills the node under a database in WAL mode. What it said was
// committed is there afterwards.
func TestSQLite(t *testing.T) {
	t.Parallel()
	need(t, "sqlite3")
	b, dir := workTree(t)
	db := filepath.Join(dir, "db")
	committed := 0
	for round := range 3 {
		s := b.serve()
		b.must("project", "mount", "work", "--target", dir)
		if round > 0 {
			out := b.sh(dir, `sqlite3 db "PRAGMA integrity_check; SELECT max(n) FROM t; SELECT count(*) FROM t"`)
			var last, n int
			if _, err := fmt.Sscanf(out, "ok\n%d\n%d", &last, &n); err != nil || last < committed || n != last {
				t.Fatalf("round %d: %q, %d were committed", round, out, committed)
			}
			committed = last
		}
		cmd := exec.Command("sqlite3", "-batch", db)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		fmt.Fprintln(in, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, x BLOB);")
		lines.Scan() // "wal"
		for range 100 {
			fmt.Fprintf(in, "INSERT INTO t VALUES(%d, randomblob(%d)); SELECT %[1]d;\n", committed+1, committed*37%5000)
			if !lines.Scan() || lines.Text() != fmt.Sprint(committed+1) {
				t.Fatalf("round %d: after %d rows it says %q", round, committed, lines.Text())
			}
			committed++
		}
		// One more is under way, or not.
		fmt.Fprintf(in, "INSERT INTO t VALUES(%d, randomblob(100000));\n", committed+1)
		s.stop(unix.SIGKILL)
		cmd.Process.Kill()
		cmd.Wait()
		b.must("project", "unmount", dir)
	}
	b.must("fsck")
}

// TestNeverClosed has clients that do not let go of files: they end, or the
// node does, and what they held is given back.
func TestNeverClosed(t *testing.T) {
	t.Parallel()
	b, dir := workTree(t)
	b.vars = []string{"SPACE_MOUNT_WAIT=0"} // the mount ends with its node
	s := b.serve()
	b.must("project", "mount", "work", "--target", dir)
	held := func(name string) *os.File {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(random(1, 8<<20)); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil { // of its removal
			t.Fatal(err)
		}
		return f
	}
	used := func() int64 {
		t.Helper()
		var st struct {
			Allocated int64 `json:"allocated_bytes"`
		}
		if err := json.Unmarshal([]byte(b.must("stat", "work", "-o", "json")), &st); err != nil {
			t.Fatal(err)
		}
		return st.Allocated
	}
	f := held("a")
	if u := used(); u < 8<<20 {
		t.Errorf("%d bytes are in use while a removed file is open", u)
	}
	f.Close()
	f = held("b")
	if r := b.run(nil, "project", "unmount", dir); r.code == 0 {
		t.Errorf("unmounted with a file open: %v", r)
	}
	s.stop(unix.SIGKILL)
	if _, err := f.Write([]byte("x")); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("a write after the node was killed: %v", err)
	}
	f.Close()
	b.must("project", "unmount", dir)
	s = b.serve()
	b.must("project", "mount", "work", "--target", dir)
	for deadline := time.Now().Add(hung); used() > 1<<20; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are in use, and nobody has a file open", used())
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the tree has %v, %v", entries, err)
	}
	b.must("project", "unmount", dir)
	b.must("fsck")
	s.stop(unix.SIGTERM)
}

// TestSnapshotRemovedWhileMounted removes a snapshot that is mounted: its
// readers go on, and its space is given back when they end.
func TestSnapshotRemovedWhileMounted(t *testing.T) {
	t.Parallel()
	b, dir := workTree(t)
	want := random(5, 3<<20)
	src := t.TempDir()
	write(t, filepath.Join(src, "f"), want)
	b.must("tree", "import", "work", src)
	b.must("snapshot", "create", "work", "s")
	s := b.serve()
	b.must("project", "mount", "work", "--snapshot", "s", "--target", dir)
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b.must("snapshot", "rm", "work", "s")
	write(t, filepath.Join(src, "f"), random(6, 3<<20))
	b.must("tree", "import", "work", src) // what only the snapshot has now is only used by the mount
	b.must("gc")
	got, err := os.ReadFile(filepath.Join(dir, "f"))
	if err != nil || sum(got) != sum(want) {
		t.Errorf("%d bytes of the snapshot, %v", len(got), err)
	}
	other := t.TempDir()
	unmountAll(t, other)
	b.mustFail([]int{3}, "project", "mount", "work", "--snapshot", "s", "--target", other)
	b.must("snapshot", "create", "work", "s") // another one of that name
	b.must("project", "mount", "work", "--snapshot", "s", "--target", other)
	for d, want := range map[string][]byte{dir: want, other: random(6, 3<<20)} {
		if got, err := os.ReadFile(filepath.Join(d, "f")); err != nil || sum(got) != sum(want) {
			t.Errorf("a snapshot of the same name: %d bytes, %v", len(got), err)
		}
	}
	b.must("project", "unmount", other)
	f.Close()
	b.must("project", "unmount", dir)
	b.must("gc")
	b.must("fsck")
	b.must("verify")
	s.stop(unix.SIGTERM)
}

// TestQuotaInMidWrite fills a tree to its quota with one large write. What there
// is room for is written, no byte of the rest, and after something is removed writing goes on.
func TestQuotaInMidWrite(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	b := newBox(t)
	dir := t.TempDir()
	unmountAll(t, dir)
	const room = 4<<20 + 300_000
	b.must("tree", "create", "work", "--quota-bytes", fmt.Sprint(1<<20+room))
	b.must("project", "mount", "work", "--target", dir)
	write(t, filepath.Join(dir, "small"), random(1, 1<<20))
	data := random(2, 16<<20)
	f, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := f.Write(data)
	if !errors.Is(err, unix.EDQUOT) || n > room || n <= room-4096 {
		t.Errorf("%d bytes written, %v", n, err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != int64(n) {
		t.Errorf("the file has %d bytes, %d were written, %v", st.Size(), n, err)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(dir, "small")); err != nil {
		t.Fatal(err)
	}
	m, err := f.Write(data[n:min(n+512<<10, len(data))])
	if err != nil {
		t.Errorf("after something was removed: %v", err)
	}
	f.Close()
	got, err := os.ReadFile(filepath.Join(dir, "large"))
	if err != nil || sum(got) != sum(data[:n+m]) {
		t.Errorf("%d bytes of %d, %v", len(got), n+m, err)
	}
	b.must("project", "unmount", dir)
	b.must("fsck")
}

var fsxFor = flag.Duration("fsx-time", 0, "for how long TestFsx works (0: 1500 operations)")

// TestFsx has the checker of file contents work in a mount, and remount it.
func TestFsx(t *testing.T) {
	t.Parallel()
	b, dir := workTree(t)
	fsx := filepath.Join(t.TempDir(), "fsx")
	if out, err := exec.Command("go", "build", "-o", fsx, "github.com/spacestore/space/scripts/fsx").CombinedOutput(); err != nil {
		t.Fatalf("build fsx: %v\n%s", err, out)
	}
	s := b.serve()
	b.must("project", "mount", "work", "--target", dir)
	how := "-ops 1500"
	if *fsxFor > 0 {
		how = fmt.Sprintf("-time %v", *fsxFor)
	}
	t.Log(b.shFor(*fsxFor+hung, t.TempDir(), fmt.Sprintf(`
		%[1]s -dir %[2]s -seed %[3]d %[4]s -remount 'spacectl project unmount %[2]s && spacectl project mount work --target %[2]s'
		spacectl project unmount %[2]s
		spacectl fsck
		spacectl verify`, fsx, dir, seed.Rand(t).Uint64(), how)))
	s.stop(unix.SIGTERM)
}

// TestPosix asks the mount and the host what POSIX says of files, and wants the
// same answers.
func TestPosix(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("changing users takes root")
	}
	b, dir := workTree(t)
	posix := filepath.Join(t.TempDir(), "posix")
	if out, err := exec.Command("go", "build", "-o", posix, "github.com/spacestore/space/scripts/posix").CombinedOutput(); err != nil {
		t.Fatalf("build posix: %v\n%s", err, out)
	}
	s := b.serve()
	b.must("project", "mount", "work", "--target", dir, "--allow-other")
	host := openTempDir(t)
	b.sh(t.TempDir(), fmt.Sprintf(`
		%[1]s -dir %[2]s/x > host &
		%[1]s -dir %[3]s/x > mount
		wait $!
		wc -l host mount
		diff -U 20 host mount | cut -c -200 | head -n 200`, posix, host, dir))
	b.must("project", "unmount", dir)
	b.must("fsck")
	s.stop(unix.SIGTERM)
}

// TestCrashesAgainstHost does the same random operations in a mount and on the
// host, as several users, and kills the node between: what was synced is the
// same as on the host still, and they go on from there.
func TestCrashesAgainstHost(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("changing users takes root")
	}
	b, dir := workTree(t)
	beside := filepath.Join(t.TempDir(), "beside")
	if out, err := exec.Command("go", "build", "-o", beside, "github.com/spacestore/space/scripts/beside").CombinedOutput(); err != nil {
		t.Fatalf("build beside: %v\n%s", err, out)
	}
	host := filepath.Join(openTempDir(t), "r")
	r := seed.Rand(t)
	for range 4 {
		s := b.serve()
		b.must("project", "mount", "work", "--target", dir, "--allow-other")
		b.sh(dir, fmt.Sprintf("%s -dir r -host %s -threads 2 -ops 500 -seed %d", beside, host, r.Uint64()))
		s.stop(unix.SIGKILL)
		b.must("project", "unmount", dir)
	}
	b.must("fsck")
}

// TestObjectInPlace edits an object in a mount. Nothing of it lies in the clear
// on the disk meanwhile.
func TestObjectInPlace(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	b := newBox(t)
	dir := t.TempDir()
	unmountAll(t, filepath.Join(dir, "d"))
	s := b.serve()
	b.sh(dir, `
		echo 'views: ["fuse:rw"]' > policy
		head -c 3000000 /dev/zero | tr '\0' x > f
		spacectl put f --name o --policy-file policy
		mkdir d
		spacectl project mount o --target d
		(cat f; echo "what must not be seen") > want
		echo "what must not be seen" >> d/content
		cmp want d/content
		spacectl get o | cmp - want`)
	f, err := os.OpenFile(filepath.Join(dir, "d", "content"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("nor this must be seen"), 0); err != nil {
		t.Fatal(err)
	}
	b.sh(dir, `
		spacectl get o | cmp - want
		! grep -r -e "must be seen" -e "must not be seen" "$SPACE_HOME"`)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := b.must("get", "o"); !strings.HasPrefix(got, "nor this must be seenxxx") || len(got) != 3000022 {
		t.Errorf("there are %d bytes: %.30q", len(got), got)
	}
	b.must("project", "unmount", filepath.Join(dir, "d"))
	b.must("verify")
	s.stop(unix.SIGTERM)
}
