package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/internal/holder"
)

// endHolder ends the process that keeps mounts, if there is one, and returns
// when it is gone.
func (b *box) endHolder() {
	b.t.Helper()
	pid := b.peer("unixpacket", "holder.sock")
	if pid <= 0 {
		return
	}
	b.endProcess(pid)
}

// endProcess kills a process of the box's, and returns when it is gone.
func (b *box) endProcess(pid int) {
	b.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has gone by itself
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return
	}
	for deadline := time.Now().Add(hung); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
		if err == unix.EINTR { // such as by the end of a child
			continue
		}
		if err != nil || n == 0 {
			b.t.Errorf("process %d does not end: %v", pid, err)
		}
		return
	}
}

// peer is the process that listens on a socket in SPACE_HOME; 0: there is none.
func (b *box) peer(network, name string) int {
	b.t.Helper()
	dir, err := os.MkdirTemp("", "s") // the address must be short
	if err != nil {
		b.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Symlink(b.home, filepath.Join(dir, "h")); err != nil {
		b.t.Fatal(err)
	}
	conn, err := net.Dial(network, filepath.Join(dir, "h", name))
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		b.t.Fatal(err)
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// patient has mounts wait for their node however slow this machine is.
const patient = "SPACE_MOUNT_WAIT=1h"

// newMounted returns a store with a node, and a mount of what args name.
func newMounted(t *testing.T, prepare func(b *box), args ...string) (*box, *server, string) {
	t.Helper()
	needFUSE(t)
	b := newBox(t)
	b.vars = []string{patient}
	dir := t.TempDir()
	unmountAll(t, dir)
	t.Cleanup(b.endHolder)
	prepare(b)
	s := b.serve()
	b.must(append([]string{"project", "mount", "--target", dir}, args...)...)
	return b, s, dir
}

func makeTree(b *box) { b.must("tree", "create", "work") }

// finish unmounts, ends the node, and sees that nothing of it is left.
func (b *box) endMounted(s *server, dir string) {
	b.t.Helper()
	b.must("project", "unmount", dir)
	if code := s.stop(unix.SIGTERM); code != 0 {
		b.t.Errorf("serve ended with %d:\n%s", code, s.errs)
	}
	if r := b.run(nil, "fsck"); r.code != 0 {
		b.t.Errorf("fsck: %v", r)
	}
}

// TestRestartKeepsFiles ends the node in every way while a process has files
// open, removed, locked and mapped, works in a removed directory and lists one.
func TestRestartKeepsFiles(t *testing.T) {
	t.Parallel()
	b, s, dir := newMounted(t, makeTree, "work")
	c := startClient(t, "files", dir)
	try := startClient(t, "try", dir)
	c.tell("look")
	c.want("good")
	for i, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGKILL, unix.SIGTERM} {
		if i == 2 {
			b.spacectl = newerSpacectl(t)
		}
		code := s.stop(sig)
		if sig == unix.SIGTERM && code != 0 {
			t.Errorf("serve ended with %d after SIGTERM:\n%s", code, s.errs)
		}
		c.tell("look") // it waits for the next node
		if out := b.must("project", "list"); !strings.Contains(out, dir) {
			t.Errorf("the mount that waits is not listed: %s", out)
		}
		s = b.serve()
		c.want("good")
		try.tell("look") // a lock is in the way of other processes alone
		try.want("locked")
		c.tell("look")
		c.want("good")
	}
	c.finish()
	b.endMounted(s, dir)
	if !strings.Contains(s.errs.String(), "version=newer") {
		t.Errorf("the node was not replaced by a newer one:\n%s", s.errs)
	}
}

// touch makes a file, in another process: see client.
func touch(t *testing.T, path string) {
	t.Helper()
	if out, err := exec.Command("touch", path).CombinedOutput(); err != nil {
		t.Fatalf("touch: %v: %s", err, out)
	}
}

// newerSpacectl builds spacectl as another version.
func newerSpacectl(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "spacectl")
	cmd := exec.Command("go", "build", "-ldflags", "-X main.release=newer", "-o", path, "github.com/spacestore/space/cmd/spacectl")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build another version: %v\n%s", err, out)
	}
	return path
}

// TestRestartLingering starts the next node while the one before, which was told
// to end, is not gone yet: the traces that it has left find a deaf collector. What
// the kernel asks meanwhile must not be lost with it.
func TestRestartLingering(t *testing.T) {
	t.Parallel()
	collector, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer collector.Close()
	b, s, dir := newMounted(t, func(b *box) {
		b.vars = append(b.vars, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+collector.Addr().String())
		makeTree(b)
	}, "work")
	touch(t, filepath.Join(dir, "f"))
	c := startClient(t, "wait", dir)
	if err := s.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(hung); b.peer("unix", "space.sock") != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the node that was told to end takes requests still")
		}
	}
	b.vars = []string{patient}
	next := b.serve("--lock-timeout", "2m")
	for range 20 { // more than the node before has goroutines that read requests
		c.tell("look")
		c.want("good")
	}
	c.finish()
	if code := s.stop(unix.SIGTERM); code != 0 {
		t.Errorf("serve ended with %d after SIGTERM:\n%s", code, s.errs)
	}
	b.endMounted(next, dir)
}

// TestRestartUnderLoad kills the node again and again while programs work in
// its mount. They notice nothing.
func TestRestartUnderLoad(t *testing.T) {
	t.Parallel()
	b, s, dir := newMounted(t, makeTree, "work")
	src := filepath.Join(t.TempDir(), "src")
	for i := range 120 {
		write(t, filepath.Join(src, fmt.Sprint("d", i%7), fmt.Sprint(i)), random(uint64(i), i*i*7))
	}
	b.sh(src, `git init -q && git add . && git -c user.name=x -c user.email=x@x commit -qm x && tar -cf ../src.tar .git d*`)
	for _, d := range []string{"churn", "git", "tar"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	type end struct {
		what string
		err  error
		out  []byte
	}
	ends := make(chan end, 3)
	stop := filepath.Join(t.TempDir(), "stop")
	for what, script := range map[string]string{
		"git": `while [ ! -e "$STOP" ]; do
			rm -rf git/clone && git clone -q "$SRC" git/clone && git -C git/clone fsck --strict && diff -r "$SRC/d3" git/clone/d3; done`,
		"tar": `while [ ! -e "$STOP" ]; do
			rm -rf tar/x && mkdir tar/x && tar -C tar/x -xf "$SRC.tar" && diff -r "$SRC" tar/x; done`,
		"dd": `while [ ! -e "$STOP" ]; do
			dd if="$SRC.tar" of=dd bs=17k conv=notrunc status=none && cmp "$SRC.tar" dd; done`,
	} {
		// The shell goes there, not the fork: that would keep all others waiting.
		cmd := exec.Command("bash", "-euo", "pipefail", "-c", `cd "$MOUNT"; `+script)
		cmd.Env = append(os.Environ(), "MOUNT="+dir, "STOP="+stop, "SRC="+src, "GIT_CONFIG_GLOBAL=/dev/null")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			err := cmd.Wait()
			ends <- end{what, err, out.Bytes()}
		}()
	}
	c := startClient(t, "churn", filepath.Join(dir, "churn"))
	kills := 6
	if testing.Short() {
		kills = 3
	}
	for range kills {
		for range 6 { // it has got on
			c.want("more")
		}
		s.stop(unix.SIGKILL)
		for len(c.lines) > 0 {
			c.line()
		}
		s = b.serve()
		select {
		case e := <-ends:
			t.Fatalf("%s: %v\n%.4000s", e.what, e.err, e.out)
		default:
		}
	}
	write(t, stop, nil)
	c.finish()
	for range 3 {
		select {
		case e := <-ends:
			if e.err != nil {
				t.Errorf("%s: %v\n%.4000s", e.what, e.err, e.out)
			}
		case <-time.After(hung):
			t.Fatal("a program in the mount hangs")
		}
	}
	b.endMounted(s, dir)
}

// manyObjects is more than a page of a listing.
const manyObjects = 700

// TestRestartNamespace is about mounts of all objects.
func TestRestartNamespace(t *testing.T) {
	t.Parallel()
	b, s, dir := newMounted(t, func(b *box) {
		src := filepath.Join(t.TempDir(), "many")
		for i := range manyObjects {
			write(t, filepath.Join(src, fmt.Sprint(i)), fmt.Append(nil, i))
		}
		b.must("put", "-r", src)
		b.put("large", random(1, 5<<20))
	}, "--all")
	c := startClient(t, "namespace", dir)
	b.killUnder(c, s, dir, 3)
}

// killUnder kills the node under a client so many times, and has the client look
// before, meanwhile, and at last end.
func (b *box) killUnder(c *client, s *server, dir string, times int) {
	b.t.Helper()
	for range times {
		c.tell("look")
		c.want("good")
		s.stop(unix.SIGKILL)
		c.tell("look")
		s = b.serve()
		c.want("good")
	}
	c.finish()
	b.endMounted(s, dir)
}

func TestRestartVolume(t *testing.T) {
	t.Parallel()
	b, s, dir := newMounted(t, func(b *box) { b.must("volume", "create", "disk", "--size", "4MiB") }, "disk")
	c := startClient(t, "volume", dir)
	b.killUnder(c, s, dir, 4)
}

// TestRestartEphemeral kills a node that nobody would start again: the holder does.
func TestRestartEphemeral(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	b := newBox(t)
	b.vars = []string{patient}
	dir := t.TempDir()
	unmountAll(t, dir)
	t.Cleanup(b.endHolder)
	makeTree(b)
	b.must("project", "mount", "work", "--target", dir)
	c := startClient(t, "files", dir)
	for range 3 {
		c.tell("look")
		c.want("good")
		pid := b.peer("unix", "space.sock")
		if pid == 0 {
			t.Fatal("no node runs")
		}
		b.endProcess(pid)
		c.tell("look")
		c.want("good")
	}
	c.finish()
	b.must("project", "unmount", dir)
}

// TestRestartNobodyComes waits for a node that does not come: then there is an
// error and no hanging, and the mount can be cleared away.
func TestRestartNobodyComes(t *testing.T) {
	t.Parallel()
	b, s, dir := newMounted(t, func(b *box) {
		b.vars = []string{"SPACE_MOUNT_WAIT=100ms"}
		makeTree(b)
	}, "work")
	touch(t, filepath.Join(dir, "f"))
	c := startClient(t, "wait", dir)
	c.tell("look")
	c.want("good")
	s.stop(unix.SIGKILL)
	c.tell("look")
	if l := c.line(); l != "ENOTCONN" && l != "ECONNABORTED" {
		t.Errorf("a mount without a node says %s", l)
	}
	b.must("project", "unmount", dir)
	if _, err := os.Stat(filepath.Join(dir, "f")); !os.IsNotExist(err) {
		t.Errorf("after unmounting: %v", err)
	}
	s = b.serve()
	b.must("project", "mount", "work", "--target", dir)
	if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
		t.Error(err)
	}
	b.endMounted(s, dir)
}

// TestRestartGivenUp unmounts what waits for a node.
func TestRestartGivenUp(t *testing.T) {
	t.Parallel()
	b, s, dir := newMounted(t, makeTree, "work")
	s.stop(unix.SIGKILL)
	b.must("project", "unmount", dir)
	if out := b.must("project", "list", "-o", "json"); strings.Contains(out, dir) {
		t.Errorf("it is listed still: %s", out)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("the target after unmounting: %v, %v", names, err)
	}
}

// TestRestartHolderKilled kills the holder again and again: the node that runs
// gives another one what the first had, and so does the node after it.
func TestRestartHolderKilled(t *testing.T) {
	t.Parallel()
	b, s, dir := newMounted(t, makeTree, "work")
	second := t.TempDir()
	unmountAll(t, second)
	b.must("tree", "create", "other")
	b.must("project", "mount", "other", "--target", second)
	c := startClient(t, "files", dir)
	d := startClient(t, "files", second)
	for range 3 {
		for range 2 {
			b.endHolder()
			b.awaitHeld(2)
		}
		s.stop(unix.SIGKILL)
		c.tell("look")
		d.tell("look")
		s = b.serve()
		c.want("good")
		d.want("good")
	}
	d.finish()
	b.must("project", "unmount", second)
	b.endHolder()
	b.awaitHeld(1) // what has ended is not held again
	c.finish()
	b.endMounted(s, dir)
}

// awaitHeld waits until a holder keeps so many mounts.
func (b *box) awaitHeld(want int) {
	b.t.Helper()
	for deadline := time.Now().Add(hung); ; time.Sleep(10 * time.Millisecond) {
		have := -1
		if c, err := holder.Dial(b.t.Context(), b.home); err == nil {
			if mounts, err := c.List(); err == nil {
				have = len(mounts)
			}
			c.Close()
		}
		if have == want {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("a holder has %d mounts (-1: there is none), want %d", have, want)
		}
	}
}

// TestRestartBothKilled kills the node and then the holder: there is an error
// and no hanging, and the next node can mount again.
func TestRestartBothKilled(t *testing.T) {
	t.Parallel()
	b, s, dir := newMounted(t, makeTree, "work")
	touch(t, filepath.Join(dir, "f"))
	c := startClient(t, "wait", dir)
	s.stop(unix.SIGKILL)
	b.endHolder()
	c.tell("look")
	if l := c.line(); l != "ENOTCONN" && l != "ECONNABORTED" {
		t.Errorf("a mount without a node says %s", l)
	}
	s = b.serve() // the next one has a holder again
	b.must("project", "mount", "work", "--target", dir)
	c = startClient(t, "wait", dir)
	s.stop(unix.SIGKILL)
	s = b.serve()
	c.tell("look")
	c.want("good")
	c.finish()
	b.endMounted(s, dir)
}

// TestRestartUnprivileged is about a user who mounts through fusermount3: the
// node is killed, and told to end, and the next one goes on as it does for root.
func TestRestartUnprivileged(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	b := newBox(t)
	b.vars = []string{patient}
	dir := filepath.Join(openTempDir(t), "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b.spacectl = spacectl
	if os.Geteuid() == 0 { // else all tests here are of such a user
		const uid = 65534 // nobody: fusermount3 wants one who has a name
		open := openTempDir(t)
		b.home = filepath.Join(open, "home")
		b.wrap = append(openFUSE(t, open), "setpriv", fmt.Sprint("--reuid=", uid), fmt.Sprint("--regid=", uid), "--clear-groups", "--")
		for _, p := range []*string{&b.spacectl, &self} { // where they are nobody else may look
			to := filepath.Join(open, filepath.Base(*p))
			if out, err := exec.Command("cp", *p, to).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v: %s", err, out)
			}
			*p = to
		}
		for _, d := range []string{dir, open} {
			if err := os.Chown(d, uid, uid); err != nil {
				t.Fatal(err)
			}
		}
	}
	unmountAll(t, dir)
	t.Cleanup(b.endHolder)
	makeTree(b)
	s := b.serve()
	b.must("project", "mount", "work", "--target", dir)
	line := append(append([]string{}, b.wrap...), self)
	c := startClientBy(t, exec.Command(line[0], line[1:]...), "files", dir)
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGKILL} {
		c.tell("look")
		c.want("good")
		s.stop(sig)
		c.tell("look") // it waits for the next node
		s = b.serve()
		c.want("good")
		b.endHolder()
		b.awaitHeld(1)
	}
	c.finish()
	b.endMounted(s, dir)
}

// openFUSE makes a mount namespace in which every user may open /dev/fuse, as on
// most systems, and returns what runs a command there.
func openFUSE(t *testing.T, dir string) []string {
	t.Helper()
	needMount(t)
	cmd := exec.Command("unshare", "--mount", "sh", "-euc", `
		# Copies of others' mounts, which would keep those from ending.
		awk '$3 == "fuse.space" {print $2}' /proc/self/mounts | xargs -r umount -l
		mknod "$1" c 10 229
		chmod 666 "$1"
		mount --bind "$1" /dev/fuse
		echo ready
		read end`, "sh", filepath.Join(dir, "fuse"))
	cmd.Stderr = os.Stderr
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
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if s := bufio.NewScanner(out); !s.Scan() || s.Text() != "ready" {
		t.Fatal("a mount namespace with a /dev/fuse for all can't be made")
	}
	return []string{"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", cmd.Process.Pid), "--"}
}

// TestRestartInterrupted ends a node with Ctrl-C, and one that was told to
// unmount: its mounts end.
func TestRestartInterrupted(t *testing.T) {
	t.Parallel()
	b, s, dir := newMounted(t, makeTree, "work")
	touch(t, filepath.Join(dir, "f"))
	if code := s.stop(unix.SIGINT); code != 0 {
		t.Errorf("serve ended with %d after SIGINT:\n%s", code, s.errs)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("after SIGINT the target has %v, %v", names, err)
	}
	s = b.serve("--unmount")
	b.must("project", "mount", "work", "--target", dir)
	if code := s.stop(unix.SIGTERM); code != 0 {
		t.Errorf("serve --unmount ended with %d:\n%s", code, s.errs)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("after serve --unmount the target has %v, %v", names, err)
	}
}

// TestRestartBusyEnd ends a node and its mounts while a process has a file open
// past the drain timeout: that gets an error, and does not wait for a node that
// nobody starts.
func TestRestartBusyEnd(t *testing.T) {
	t.Parallel()
	b, s, dir := newMounted(t, func(b *box) {
		b.vars = append(b.vars, "SPACE_DRAIN_TIMEOUT=100ms")
		b.put("n", random(1, 100_000))
	}, "n")
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTERM} {
		c := startClient(t, "read", dir)
		c.tell("look")
		c.want("good")
		s.stop(sig)
		if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
			t.Errorf("after %v the target has %v, %v", sig, names, err)
		}
		c.tell("look")
		if l := c.line(); l != "ENOTCONN" && l != "ECONNABORTED" {
			t.Errorf("after %v a file of the mount says %s", sig, l)
		}
		c.finish()
		s = b.serve("--unmount")
		if out := b.must("project", "list", "-o", "json"); strings.Contains(out, dir) {
			t.Errorf("after %v the next node goes on with what was to end: %s", sig, out)
		}
		b.must("project", "mount", "n", "--target", dir)
	}
	b.endMounted(s, dir)
}
