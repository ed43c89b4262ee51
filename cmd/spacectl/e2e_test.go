package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The tests here run the real binary, in homes of their own.

var (
	binary     string
	buildFlags []string // -race when the tests themselves are built so
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "spacectl-test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "spacectl")
		if out, err := exec.Command("go", append(append([]string{"build", "-o", binary}, buildFlags...), ".")...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// cli runs commands on one store.
type cli struct {
	t    testing.TB
	home string
	env  []string
}

func newCLI(t testing.TB) *cli {
	c := &cli{t: t, home: filepath.Join(t.TempDir(), "home")}
	t.Cleanup(c.stopNode)
	return c
}

// stopNode ends what a failed test left running.
func (c *cli) stopNode() {
	for _, p := range c.projections() {
		c.run("project", "unmount", "--lazy", p)
	}
	if pid := c.nodePID(); pid > 0 && c.socketExists() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (c *cli) projections() (targets []string) {
	var v struct{ Projections []struct{ Target string } }
	json.Unmarshal([]byte(c.run("-o", "json", "project", "list").stdout), &v)
	for _, p := range v.Projections {
		targets = append(targets, p.Target)
	}
	return targets
}

func (c *cli) socketExists() bool {
	_, err := os.Lstat(filepath.Join(c.home, "space.sock"))
	return err == nil
}

var readyLine = regexp.MustCompile(`msg="node is ready".* pid=(\d+)`)

// nodePID is the process ID of the last background node.
func (c *cli) nodePID() int {
	log, _ := os.ReadFile(filepath.Join(c.home, "node.log"))
	all := readyLine.FindAllSubmatch(log, -1)
	if len(all) == 0 {
		return 0
	}
	pid, _ := strconv.Atoi(string(all[len(all)-1][1]))
	return pid
}

func (c *cli) nodesStarted() int {
	log, _ := os.ReadFile(filepath.Join(c.home, "node.log"))
	return len(readyLine.FindAll(log, -1))
}

type result struct {
	stdout, stderr string
	code           int
}

// testTime bounds every command, so that a hang is a failure and no more.
const testTime = 5 * time.Minute

func (c *cli) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	c.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, binary, args...)
	// A node that is slow to answer, or to end, is waited for.
	cmd.Env = append(append(os.Environ(), "SPACE_HOME="+c.home, "SPACE_LOCK_TIMEOUT=2m"), c.env...)
	return cmd
}

func (c *cli) run(args ...string) result { return c.runIn("", args...) }

func (c *cli) runIn(stdin string, args ...string) result {
	cmd := c.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("%v: %v", args, err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// ok runs a command that must succeed and returns its output.
func (c *cli) ok(args ...string) string {
	c.t.Helper()
	r := c.run(args...)
	if r.code != 0 {
		c.t.Fatalf("spacectl %q: exit code %d\n%s%s", args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// put stores content and returns the capsule's ID.
func (c *cli) put(content []byte, args ...string) string {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "in")
	write(c.t, file, content)
	return strings.TrimSpace(c.ok(append([]string{"put", file}, args...)...))
}

// get returns a capsule's content.
func (c *cli) get(args ...string) []byte {
	c.t.Helper()
	return []byte(c.ok(append([]string{"get"}, args...)...))
}

// serve starts a node in the foreground and returns when it is ready.
func (c *cli) serve(args ...string) *server {
	c.t.Helper()
	cmd := c.command(append([]string{"serve"}, args...)...)
	s := &server{cmd: cmd, t: c.t, changed: make(chan struct{}, 1)}
	cmd.Stderr = s
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	s.waitFor("node is ready")
	return s
}

// server is a running `spacectl serve` and its log.
type server struct {
	cmd     *exec.Cmd
	t       testing.TB
	mu      sync.Mutex
	log     bytes.Buffer
	changed chan struct{}
}

func (s *server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return s.log.Write(p)
}

func (s *server) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func (s *server) waitFor(text string) {
	s.t.Helper()
	timeout := time.After(testTime)
	for !strings.Contains(s.text(), text) {
		select {
		case <-s.changed:
		case <-timeout:
			s.t.Fatalf("the node did not log %q:\n%s", text, s.text())
		}
	}
}

// stop ends the node as systemd does.
func (s *server) stop() {
	s.t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("serve: %v\n%s", err, s.text())
	}
}

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{7})
	r.Read(b)
	return b
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o666); err != nil {
		t.Fatal(err)
	}
}

func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: other content (%d bytes, want %d)", what, len(got), len(want))
	}
}

func sameFile(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	same(t, path, got, want)
}

func needFUSE(t testing.TB) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse")
	}
}

func mkdir(t testing.TB) string {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("fusermount3", "-q", "-u", "-z", dir).Run() }) // what a failed test left
	return dir
}

func TestMainJob(t *testing.T) {
	needFUSE(t)
	c, target, want := newCLI(t), mkdir(t), content(5<<20)
	file := filepath.Join(t.TempDir(), "big.tar")
	write(t, file, want)
	out := c.ok("put", file, "--name", "big")
	if !regexp.MustCompile(`\A[0-9a-f-]{36}\n\z`).MatchString(out) {
		t.Fatalf("put printed %q, want an ID on a line of its own and nothing else", out)
	}
	c.ok("project", "mount", "--id", strings.TrimSpace(out), "--target", target)
	sameFile(t, target+"/content", want)
	c.ok("project", "unmount", target)
	if entries, err := os.ReadDir(target); err != nil || len(entries) > 0 {
		t.Errorf("after unmount: %v %v", entries, err)
	}
	if c.socketExists() {
		t.Error("the node outlives its last projection")
	}
	for _, path := range []string{"segments", "meta"} { // what went in is not on disk in the clear
		filepath.WalkDir(filepath.Join(c.home, path), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, want[:64]) {
					t.Errorf("%s holds plaintext", p)
				}
			}
			return err
		})
	}
}

func TestMountAll(t *testing.T) {
	needFUSE(t)
	c, target := newCLI(t), mkdir(t)
	c.put([]byte("one"), "--name", "a/one")
	c.ok("project", "--view", "fuse", "--all", "--target", target)
	sameFile(t, target+"/a/one", []byte("one"))
	c.put([]byte("two"), "--name", "a/two") // through the node, and visible at once
	sameFile(t, target+"/a/two", []byte("two"))
	c.ok("project", "unmount", target)
}

func TestMountInForegroundEndsWithSignal(t *testing.T) {
	needFUSE(t)
	for name, withNode := range map[string]bool{"without a node": false, "with a node": true} {
		t.Run(name, func(t *testing.T) {
			c, target := newCLI(t), mkdir(t)
			c.put([]byte("content"), "--name", "n")
			if withNode {
				defer c.serve().stop()
			}
			cmd := c.command("-o", "json", "project", "mount", "n", "--target", target, "--foreground")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var info struct{ Target string }
			if err := json.NewDecoder(out).Decode(&info); err != nil || info.Target != target {
				t.Fatalf("%v, target %q", err, info.Target)
			}
			sameFile(t, target+"/content", []byte("content"))
			cmd.Process.Signal(syscall.SIGINT)
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			if entries, err := os.ReadDir(target); err != nil || len(entries) > 0 {
				t.Errorf("after the signal: %v %v", entries, err)
			}
		})
	}
}

func TestSameOutputWithAndWithoutNode(t *testing.T) {
	c := newCLI(t)
	id := c.put(content(3<<20), "--name", "dir/a")
	c.put([]byte("small"), "--name", "b")
	commands := [][]string{
		{"list"}, {"list", "-o", "json"}, {"list", "--prefix", "dir/"}, {"list", "--limit", "1"},
		{"stat", "dir/a"}, {"stat", id, "-o", "json"},
		{"get", "dir/a"}, {"get", "--id", id, "--offset", "1048570", "--length", "99"},
		{"get", "b", "--offset", "6"}, {"get", "b", "--offset", "9223372036854775807", "--length", "9223372036854775807"},
		{"policy", "show", "b"}, {"policy", "show", "b", "-o", "json"},
		{"key", "show"}, {"key", "export"},
		{"verify"}, {"verify", "b", "-o", "json"},
		{"rename", "b", "dir"}, {"rename", "b", "c", "-o", "json"}, {"rename", "c", "b"},
		{"stat", "nothing"}, {"rm", "nothing"}, {"get", "nothing", "-o", "json"},
		{"put", os.DevNull, "--name", "b", "--exclusive"},
	}
	var direct []result
	for _, args := range commands {
		direct = append(direct, c.run(args...))
	}
	defer c.serve().stop()
	for i, args := range commands {
		if got := c.run(args...); got != direct[i] {
			t.Errorf("spacectl %q\nwithout a node %+v\nwith a node %+v", args, clip(direct[i]), clip(got))
		}
	}
}

func clip(r result) result {
	if len(r.stdout) > 500 {
		r.stdout = r.stdout[:500]
	}
	return r
}

func TestKilledNode(t *testing.T) {
	needFUSE(t)
	c, target, want := newCLI(t), mkdir(t), content(1<<20)
	c.env = append(c.env, "SPACE_MOUNT_WAIT=0") // the mount ends with its node
	id := c.put(want, "--name", "n")
	c.ok("project", "mount", "n", "--target", target)
	c.put([]byte("later"), "--name", "later")
	if err := syscall.Kill(c.nodePID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	same(t, "content", c.get(id), want)
	same(t, "content put through the node", c.get("later"), []byte("later"))
	c.ok("verify")
	c.ok("project", "mount", "n", "--target", target)
	sameFile(t, target+"/content", want)
	if err := syscall.Kill(c.nodePID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.ok("project", "unmount", target) // clears what the dead node left
	if _, err := os.ReadDir(target); err != nil {
		t.Errorf("after unmount: %v", err)
	}
}

func TestConcurrentMountsStartOneNode(t *testing.T) {
	needFUSE(t)
	c := newCLI(t)
	c.put([]byte("content"), "--name", "n")
	const n = 4
	targets, results := make([]string, n), make([]result, n)
	var wg sync.WaitGroup
	for i := range n {
		targets[i] = mkdir(t)
		wg.Go(func() { results[i] = c.run("project", "mount", "n", "--target", targets[i]) })
	}
	wg.Wait()
	for i := range n {
		if results[i].code != 0 {
			t.Errorf("mount %d: %+v", i, results[i])
		}
		sameFile(t, targets[i]+"/content", []byte("content"))
	}
	if got := c.nodesStarted(); got != 1 {
		t.Errorf("%d nodes were started", got)
	}
	c.ok(append([]string{"project", "unmount"}, targets...)...)
	if c.socketExists() {
		t.Error("the node outlives its last projection")
	}
}

// A container, or whoever else has a mount namespace of its own, keeps its copy
// of a mount that is unmounted. The unmount does not wait for that.
func TestUnmountWithCopyElsewhere(t *testing.T) {
	needFUSE(t)
	c, target := newCLI(t), mkdir(t)
	c.put([]byte("content"), "--name", "n")
	c.ok("project", "mount", "n", "--target", target)
	args := []string{"-m", "sh", "-c", `echo ready && read _ && cat "$0/content"`, target}
	if os.Geteuid() != 0 {
		args = append([]string{"-r"}, args...)
	}
	elsewhere := exec.Command("unshare", args...)
	elsewhere.Stderr = os.Stderr
	in, err := elsewhere.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := elsewhere.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { elsewhere.Process.Kill(); elsewhere.Wait() }()
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	r := c.run("project", "unmount", target)
	if r.code != 0 || !strings.Contains(r.stderr, "mount namespace") || !strings.Contains(r.stderr, fmt.Sprintf("process %d (sh)", elsewhere.Process.Pid)) {
		t.Errorf("unmount: %+v", r)
	}
	if entries, err := os.ReadDir(target); err != nil || len(entries) > 0 {
		t.Errorf("after unmount: %v %v", entries, err)
	}

	// The target is free, and its name means what is there now.
	c.put([]byte("other"), "--name", "o")
	c.ok("project", "mount", "o", "--target", target)
	sameFile(t, target+"/content", []byte("other"))
	if r := c.run("project", "unmount", target); r.code != 0 || r.stderr != "" {
		t.Errorf("unmount of the second: %+v", r)
	}
	if entries, err := os.ReadDir(target); err != nil || len(entries) > 0 {
		t.Errorf("after the second unmount: %v %v", entries, err)
	}

	if got := c.projections(); len(got) != 1 {
		t.Errorf("%v are projected", got)
	}
	pid := c.nodePID()
	io.WriteString(in, "\n")
	if rest, err := io.ReadAll(out); err != nil || string(rest) != "content" {
		t.Errorf("the copy has %q, %v", rest, err)
	}
	if err := elsewhere.Wait(); err != nil {
		t.Error(err)
	}
	waitGone(t, pid)
	if c.socketExists() {
		t.Error("the node left its socket behind")
	}
}

func TestNodeEndsAfterExternalUnmount(t *testing.T) {
	needFUSE(t)
	c, target := newCLI(t), mkdir(t)
	c.put([]byte("content"), "--name", "n")
	c.ok("project", "mount", "n", "--target", target)
	if out, err := exec.Command("fusermount3", "-u", target).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pid := c.nodePID()
	waitGone(t, pid)
	if c.socketExists() {
		t.Error("the node left its socket behind")
	}
	c.ok("list")
}

// waitGone returns when a process that is no child of ours has ended.
func waitGone(t testing.TB, pid int) {
	t.Helper()
	fd, _, errno := syscall.Syscall(434, uintptr(pid), 0, 0) // pidfd_open
	if errno == syscall.ESRCH {
		return
	}
	if errno != 0 {
		t.Fatal(errno)
	}
	f := os.NewFile(fd, "pidfd")
	defer f.Close()
	if err := pollIn(int(fd), testTime); err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
}

func TestFailedMountLeavesNoNode(t *testing.T) {
	needFUSE(t)
	c := newCLI(t)
	c.put([]byte("content"), "--name", "n")
	for _, args := range [][]string{
		{"project", "mount", "n", "--target", "/nonexistent/target"},
		{"project", "mount", "nothing", "--target", mkdir(t)},
	} {
		if r := c.run(args...); r.code != 3 || !strings.HasPrefix(r.stderr, "spacectl: project mount") {
			t.Errorf("%q: %+v", args, r)
		}
		waitGone(t, c.nodePID())
	}
	if c.socketExists() {
		t.Error("a node stays")
	}
}

// startPut starts a put from a pipe and returns when some of the content is
// certainly under way.
func (c *cli) startPut(first []byte, args ...string) (*exec.Cmd, io.WriteCloser, *bytes.Buffer) {
	c.t.Helper()
	cmd := c.command(append([]string{"put", "-"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	if _, err := in.Write(first); err != nil { // returns when all but a pipe's worth was read
		c.t.Fatal(err)
	}
	return cmd, in, &out
}

func TestServeDrainsOnSIGTERM(t *testing.T) {
	c, want := newCLI(t), content(16<<20)
	s := c.serve()
	put, in, out := c.startPut(want[:8<<20], "--name", "n")
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.waitFor("node is draining")
	in.Write(want[8<<20:])
	in.Close()
	if err := put.Wait(); err != nil {
		t.Errorf("the put under way: %v\n%s", err, out)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("serve: %v\n%s", err, s.text())
	}
	same(t, "content", c.get("n"), want)
}

func TestServeCutsOffAfterDrainTimeout(t *testing.T) {
	c := newCLI(t)
	s := c.serve("--drain-timeout", "10ms")
	put, in, out := c.startPut(content(8<<20), "--name", "n")
	defer in.Close()
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.cmd.Wait()
	if code := s.cmd.ProcessState.ExitCode(); code != 13 {
		t.Errorf("serve: exit code %d\n%s", code, s.text())
	}
	in.Close()
	if put.Wait(); put.ProcessState.ExitCode() == 0 {
		t.Errorf("the put that was cut off succeeded: %s", out)
	}
	if r := c.run("stat", "n"); r.code != 3 {
		t.Errorf("a part was stored: %+v", r)
	}
	c.ok("verify")
}

// Files of /proc say that they are empty.
func TestPutOfWhatSaysItIsEmpty(t *testing.T) {
	c := newCLI(t)
	want, err := os.ReadFile("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	c.ok("put", "/proc/version", "--name", "v")
	if got := c.ok("get", "v"); got != string(want) {
		t.Errorf("%q was stored of %q", got, want)
	}
	c.ok("put", "-r", "/proc/sys/kernel/random", "--name", "d")
	if want, err = os.ReadFile("/proc/sys/kernel/random/boot_id"); err != nil {
		t.Fatal(err)
	}
	if got := c.ok("get", "d/boot_id"); got != string(want) {
		t.Errorf("in a directory, %q was stored of %q", got, want)
	}
}

// Root would leave files in a user's store that the user can't open.
func TestRootKeepsOutOfOthersStores(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
	c := newCLI(t)
	c.put([]byte("content"), "--name", "n")
	const nobody = 65534
	if err := filepath.WalkDir(c.home, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	}); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"list"}, {"put", os.DevNull, "--name", "x"}, {"serve"}, {"fsck"}} {
		if r := c.run(args...); r.code == 0 || !strings.Contains(r.stderr, "belongs to") || !strings.Contains(r.stderr, "sudo -u") {
			t.Errorf("spacectl %q in another user's store: %+v", args, r)
		}
	}
	filepath.WalkDir(c.home, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		if info, err := d.Info(); err != nil || info.Sys().(*syscall.Stat_t).Uid != nobody {
			t.Errorf("%s is not its user's any more: %v", path, err)
		}
		return nil
	})
	// A directory of somebody else's, as a container may be given one, can hold root's store.
	c.home = filepath.Join(t.TempDir(), "given")
	if err := errors.Join(os.Mkdir(c.home, 0o700), os.Chown(c.home, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	c.put([]byte("content"), "--name", "n")
	same(t, "n", c.get("n"), []byte("content"))
}

func TestInterruptedPutStoresNothing(t *testing.T) {
	for name, withNode := range map[string]bool{"without a node": false, "with a node": true} {
		t.Run(name, func(t *testing.T) {
			c := newCLI(t)
			c.put([]byte("old"), "--name", "n")
			if withNode {
				defer c.serve().stop()
			}
			for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
				put, in, out := c.startPut(content(8<<20), "--name", "n")
				put.Process.Signal(sig)
				put.Wait()
				in.Close()
				if got := put.ProcessState.ExitCode(); got != code {
					t.Errorf("exit code %d, want %d: %s", got, code, out)
				}
			}
			same(t, "content", c.get("n"), []byte("old"))
			c.ok("verify")
			if out := c.ok("list", "-o", "json"); strings.Count(out, `"id"`) != 1 {
				t.Errorf("list: %s", out)
			}
		})
	}
}

func TestStandardInput(t *testing.T) {
	c, want := newCLI(t), string(content(2<<20))
	for _, args := range [][]string{
		{"put", "-", "--name", "n"},
		{"put", "-", "--name", "n", "--size", strconv.Itoa(len(want))},
	} {
		if r := c.runIn(want, args...); r.code != 0 {
			t.Fatalf("%q: %+v", args, r)
		}
		same(t, "content", c.get("n"), []byte(want))
	}
	for _, n := range []int{len(want) - 1, len(want) + 1} {
		if r := c.runIn(want, "put", "-", "--name", "other", "--size", strconv.Itoa(n)); r.code == 0 {
			t.Errorf("%d bytes instead of %d: %+v", len(want), n, r)
		}
	}
	if r := c.run("stat", "other"); r.code != 3 {
		t.Errorf("a stream of the wrong length was stored: %+v", r)
	}
}

func TestTreeRoundTrip(t *testing.T) {
	for name, withNode := range map[string]bool{"without a node": false, "with a node": true} {
		t.Run(name, func(t *testing.T) {
			c, dir := newCLI(t), filepath.Join(t.TempDir(), "tree")
			if withNode {
				defer c.serve().stop()
			}
			files := map[string][]byte{"a": content(3 << 20), "b/empty": {}, "b/c/ü x": []byte("deep"), "z": content(700 << 10)}
			for i := range 300 {
				files[fmt.Sprintf("many/%03d/f", i)] = content(100 + i)
			}
			for path, b := range files {
				write(t, filepath.Join(dir, path), b)
			}
			os.Symlink("a", dir+"/link")
			syscall.Mkfifo(dir+"/fifo", 0o600)
			write(t, dir+"/bad\nname", []byte("x"))

			r := c.run("put", "-r", dir)
			if r.code != 2 || !strings.Contains(r.stderr, `bad\nname`) && !strings.Contains(r.stderr, "control character") ||
				!strings.Contains(r.stderr, "link: skipped: symbolic link") || !strings.Contains(r.stderr, "fifo: skipped: named pipe") {
				t.Errorf("put -r: exit code %d\n%s", r.code, r.stderr)
			}
			var names []string
			for line := range strings.Lines(r.stdout) {
				id, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
				if names = append(names, name); len(id) != 36 {
					t.Errorf("line %q", line)
				}
			}
			if len(names) != len(files) || names[0] != "tree/a" || names[1] != "tree/b/c/ü x" || names[2] != "tree/b/empty" {
				t.Errorf("%d lines for %d files, first %q", len(names), len(files), names[:3])
			}

			out := filepath.Join(t.TempDir(), "out")
			c.ok("get", "-r", "tree", "--out", out)
			count := 0
			filepath.WalkDir(out, func(p string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					rel, _ := filepath.Rel(out, p)
					sameFile(t, p, files[rel])
					count++
				}
				return err
			})
			if count != len(files) {
				t.Errorf("%d files came back of %d", count, len(files))
			}
			c.ok("get", "-r", "tree", "--out", out) // over what is there
			sameFile(t, out+"/a", files["a"])

			c.ok("rm", "-r", "tree/many")
			if r := c.run("list", "--prefix", "tree/", "-o", "json"); strings.Count(r.stdout, `"id"`) != 4 {
				t.Errorf("after rm -r: %s", r.stdout)
			}
		})
	}
}

func TestGetDirStaysInside(t *testing.T) {
	c, dir, outside := newCLI(t), t.TempDir(), t.TempDir()
	c.put([]byte("evil"), "--name", "p/sub/f")
	c.put([]byte("evil"), "--name", "p/g")
	write(t, outside+"/f", []byte("precious"))
	write(t, outside+"/g", []byte("precious"))
	os.Symlink(outside, dir+"/sub")
	os.Symlink(outside+"/g", dir+"/g")
	if r := c.run("get", "-r", "p", "--out", dir); r.code == 0 {
		t.Errorf("get -r through a link: %+v", r)
	}
	sameFile(t, outside+"/f", []byte("precious"))
	sameFile(t, outside+"/g", []byte("precious"))
	sameFile(t, dir+"/g", []byte("evil")) // the link itself was replaced
}

func TestGetFile(t *testing.T) {
	c, dir, want := newCLI(t), t.TempDir(), content(3<<20)
	id := c.put(want, "--name", "n")
	file := filepath.Join(dir, "f")
	c.ok("get", "n", "--out", file)
	sameFile(t, file, want)
	var st struct{ Modified time.Time }
	json.Unmarshal([]byte(c.ok("stat", id, "-o", "json")), &st)
	if fi, err := os.Stat(file); err != nil || !fi.ModTime().Equal(st.Modified) {
		t.Errorf("time of modification %v, the capsule's is %v (%v)", fi.ModTime(), st.Modified, err)
	}
	os.Chmod(file, 0o640)
	c.ok("get", "n", "--out", file, "--offset", "100", "--length", "50")
	sameFile(t, file, want[100:150])
	if fi, _ := os.Stat(file); fi.Mode() != 0o640 {
		t.Errorf("replacing a file changed its mode to %v", fi.Mode())
	}
	c.ok("get", "n", "--out", os.DevNull)
	if r := c.run("get", "nothing", "--out", filepath.Join(dir, "g")); r.code != 3 {
		t.Errorf("get of nothing: %+v", r)
	}
	if r := c.run("get", "n", "--out", dir); r.code != 2 {
		t.Errorf("get to a directory: %+v", r)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

func TestReplaceAndVersions(t *testing.T) {
	c := newCLI(t)
	id := c.put([]byte("one"), "--name", "n")
	if again := c.put([]byte("two"), "--name", "n"); again != id {
		t.Errorf("put under the same name made capsule %s, not %s", again, id)
	}
	if again := c.put([]byte("three"), "--id", id); again != id {
		t.Errorf("put --id made capsule %s, not %s", again, id)
	}
	same(t, "content", c.get("n"), []byte("three"))
}

func TestJSON(t *testing.T) {
	c := newCLI(t)
	dir := filepath.Join(t.TempDir(), "x")
	write(t, dir+"/f", []byte("f"))
	pol := filepath.Join(t.TempDir(), "p.yaml")
	write(t, pol, []byte("compression: none\n"))
	out := t.TempDir()
	for _, args := range [][]string{
		{"put", dir + "/f", "--name", "n"}, {"put", "-r", dir}, {"put", "-r", filepath.Dir(pol), "--name", "empty"},
		{"get", "n", "--out", out + "/o"}, {"get", "-r", "x", "--out", out},
		{"list"}, {"list", "--all"}, {"list", "--prefix", "nothing"}, {"stat", "n"}, {"df"}, {"gc"}, {"verify"},
		{"rename", "n", "m"}, {"policy", "show", "m"}, {"policy", "set", "m", pol}, {"policy", "validate", pol}, {"policy", "default"},
		{"key", "show"}, {"key", "export"}, {"key", "rotate"}, {"project", "list"}, {"version"}, {"rm", "m"},
	} {
		text := c.ok(append(args, "-o", "json")...)
		var v map[string]any
		d := json.NewDecoder(strings.NewReader(text))
		if err := d.Decode(&v); err != nil || d.More() || len(v) == 0 {
			t.Errorf("spacectl %q: %v\n%s", args, err, text)
		}
	}
	r := c.run("stat", "nothing", "-o", "json")
	var v struct {
		Error struct {
			Kind, Message string
			ExitCode      int `json:"exit_code"`
		}
	}
	if err := json.Unmarshal([]byte(r.stderr), &v); err != nil || v.Error.Kind != "not found" || v.Error.ExitCode != r.code || r.stdout != "" {
		t.Errorf("%v %+v", err, r)
	}
}

func TestExitCodes(t *testing.T) {
	c := newCLI(t)
	c.put([]byte("x"), "--name", "n")
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	write(t, bad, []byte("compression: auto\nfoo: 1\n"))
	long := strings.Repeat("x", 4097)
	for _, c2 := range []struct {
		code int
		says string
		args []string
	}{
		{2, "unknown command", []string{"frobnicate"}},
		{2, "unknown flag", []string{"list", "--frobnicate"}},
		{2, "did you mean put or get or list?; see spacectl --help", []string{"lst"}},
		{2, "usage: spacectl put FILE|- [flags] (see spacectl put --help)", []string{"put"}},
		{2, "unexpected argument \"x\"", []string{"list", "x"}},
		{2, "not a cursor", []string{"list", "--cursor", "x"}},
		{2, "not a cursor", []string{"list", "--cursor", "x", "-o", "json"}},
		{2, "output", []string{"list", "-o", "xml"}},
		{2, "policy needs a subcommand", []string{"policy"}},
		{2, "name one capsule", []string{"stat"}},
		{2, "name one capsule", []string{"stat", "a", "--id", "9b2ee3a0-27ab-4a39-a32e-8d1cbbe18b1c"}},
		{2, "not a capsule ID", []string{"stat", "--id", "9b2ee3a0"}},
		{2, "..", []string{"put", os.DevNull, "--name", "../x"}},
		{2, "4097 bytes", []string{"put", os.DevNull, "--name", long}},
		{2, "control character", []string{"put", os.DevNull, "--name", "a\x1bb"}},
		{2, "empty", []string{"put", os.DevNull, "--name", ""}},
		{2, "negative", []string{"put", os.DevNull, "--size", "-5"}},
		{2, "is a directory", []string{"put", filepath.Dir(bad)}},
		{2, "negative", []string{"get", "n", "--offset", "-1"}},
		{2, "outside", []string{"get", "n", "--offset", "9223372036854775807"}},
		{2, "invalid argument", []string{"get", "n", "--offset", "18446744073709551616"}},
		{2, "bad.yaml:2", []string{"policy", "validate", bad}},
		{2, "bad.yaml:2", []string{"put", os.DevNull, "--policy-file", bad}},
		{2, "50MB/s", []string{"verify", "--rate", "fast"}},
		{2, "min-dead", []string{"gc", "--min-dead", "2"}},
		{2, "limit", []string{"list", "--limit", "0"}},
		{2, "not in this version", []string{"project", "--view", "nfs", "--id", "9b2ee3a0-27ab-4a39-a32e-8d1cbbe18b1c", "--target", "/x"}},
		{2, "--target", []string{"project", "mount", "n"}},
		{2, "lock-timeout", []string{"list", "--lock-timeout", "soon"}},
		{3, "no such file", []string{"put", "/nonexistent"}},
		{3, "nothing", []string{"get", "nothing"}},
		{3, "nothing", []string{"get", "-r", "nothing", "--out", t.TempDir()}},
		{3, "nothing", []string{"rm", "nothing"}},
		{3, "/x", []string{"project", "unmount", "/x"}},
		{4, "n", []string{"put", os.DevNull, "--name", "n", "--exclusive"}},
		{0, "", []string{"--help"}},
		{0, "", []string{"completion", "bash"}},
		{0, "", []string{"man", t.TempDir()}},
		{0, "", []string{"version"}},
	} {
		r := c.run(c2.args...)
		if r.code != c2.code || !strings.Contains(r.stderr, c2.says) {
			t.Errorf("spacectl %.200q: exit code %d, want %d and %q:\n%s", c2.args, r.code, c2.code, c2.says, r.stderr)
		}
		prefix := "spacectl: "
		if slices.Contains(c2.args, "json") {
			prefix = `{"error":`
		}
		if r.code != 0 && (!strings.HasPrefix(r.stderr, prefix) || strings.Contains(r.stderr, "goroutine") || r.stdout != "") {
			t.Errorf("spacectl %.200q: %s\nand on standard output: %s", c2.args, r.stderr, r.stdout)
		}
	}
}

func TestCommandsWaitForEachOther(t *testing.T) {
	c := newCLI(t)
	var wg sync.WaitGroup
	results := make([]result, 8)
	for i := range results {
		wg.Go(func() {
			results[i] = c.runIn(fmt.Sprint(i), "put", "-", "--name", fmt.Sprint("n", i), "--lock-timeout", "60s")
		})
	}
	wg.Wait()
	for i, r := range results {
		if r.code != 0 {
			t.Errorf("put %d: %+v", i, r)
		}
		same(t, "content", c.get(fmt.Sprint("n", i)), fmt.Append(nil, i))
	}
}

func TestLockedStoreNamesItsHolder(t *testing.T) {
	c := newCLI(t)
	c.put([]byte("x"), "--name", "n")
	put, in, _ := c.startPut(content(8 << 20))
	r := c.run("list", "--lock-timeout", "50ms")
	if r.code != 10 || !strings.Contains(r.stderr, fmt.Sprintf("process %d", put.Process.Pid)) {
		t.Errorf("list of a store that process %d holds: %+v", put.Process.Pid, r)
	}
	in.Close()
	if err := put.Wait(); err != nil {
		t.Error(err)
	}
}

func TestSecondNodeIsRefused(t *testing.T) {
	c := newCLI(t)
	defer c.serve().stop()
	if r := c.run("serve"); r.code != 5 || !strings.Contains(r.stderr, "running already") {
		t.Errorf("second serve: %+v", r)
	}
}

func TestLongHome(t *testing.T) {
	needFUSE(t)
	c, target := newCLI(t), mkdir(t)
	for len(c.home) < 250 {
		c.home = filepath.Join(c.home, strings.Repeat("d", 50))
	}
	c.put([]byte("content"), "--name", "n")
	c.ok("project", "mount", "n", "--target", target)
	sameFile(t, target+"/content", []byte("content"))
	c.ok("list")
	c.ok("project", "unmount", target)
}

func TestPassphrase(t *testing.T) {
	needFUSE(t)
	c, target := newCLI(t), mkdir(t)
	right := []string{"SPACE_PASSPHRASE=correct horse"}
	c.env = right
	c.put([]byte("content"), "--name", "n")
	for _, env := range [][]string{nil, {"SPACE_PASSPHRASE=wrong"}} {
		c.env = env
		if r := c.run("get", "n"); r.code != 9 || r.stdout != "" {
			t.Errorf("%v: %+v", env, r)
		}
		if r := c.run("project", "mount", "n", "--target", target); r.code != 9 {
			t.Errorf("%v: %+v", env, r)
		}
	}
	// A path that is relative, and good for the node in the background too.
	dir := t.TempDir()
	write(t, dir+"/pass", []byte("correct horse\n"))
	c.env = []string{"SPACE_PASSPHRASE_FILE=pass"}
	cmd := c.command("project", "mount", "n", "--target", target)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.env = nil // the node has the store open
	sameFile(t, target+"/content", []byte("content"))
	same(t, "content", c.get("n"), []byte("content"))
	c.ok("project", "unmount", target)
}

func TestKeyExportAndImport(t *testing.T) {
	c := newCLI(t)
	c.put([]byte("content"), "--name", "n")
	key := c.ok("key", "export")
	if err := os.Remove(filepath.Join(c.home, "keys", "master.key")); err != nil {
		t.Fatal(err)
	}
	if r := c.run("get", "n"); r.code != 9 {
		t.Errorf("without the key: %+v", r)
	}
	if r := c.runIn("space-master-key-v1 00 00", "key", "import", "-"); r.code == 0 {
		t.Errorf("import of rubbish: %+v", r)
	}
	if r := c.runIn(key, "key", "import", "-"); r.code != 0 {
		t.Fatalf("import: %+v", r)
	}
	same(t, "content", c.get("n"), []byte("content"))
}

func TestSettings(t *testing.T) {
	c := newCLI(t)
	c.ok("list")
	file := filepath.Join(c.home, "space.yaml")
	for text, says := range map[string]string{
		"cache_size: 32MiB\nfoo: 1\n":          "space.yaml:2: unknown setting \"foo\"",
		"nvme:\n  listen: [127.0.0.1]\n":       "space.yaml:2: listen: \"127.0.0.1\"",
		"\n\nlog_format: xml\n":                "space.yaml:3: log_format",
		"cache_size: [1]\n":                    "space.yaml:1",
		"a: 'unclosed":                         "space.yaml",
		"lock_timeout: 1s\nlock_timeout: 2s\n": "space.yaml",
	} {
		write(t, file, []byte(text))
		if r := c.run("list"); r.code != 2 || !strings.Contains(r.stderr, says) {
			t.Errorf("%q: %+v", text, r)
		}
	}
	write(t, file, []byte("# all is well\ncache_size: 32MiB\nlog_format: json\n"))
	c.ok("list")
	c.env = []string{"SPACE_CACHE_SIZE=lots"}
	if r := c.run("list"); r.code != 2 || !strings.Contains(r.stderr, "SPACE_CACHE_SIZE") {
		t.Errorf("%+v", r)
	}
}

func TestReaderOfOutputLeaves(t *testing.T) {
	c := newCLI(t)
	c.put(content(8<<20), "--name", "n")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	cmd := c.command("get", "n")
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &errs
	cmd.Run()
	w.Close()
	if code := cmd.ProcessState.ExitCode(); code != 141 || errs.Len() > 0 {
		t.Errorf("exit code %d, %s", code, &errs)
	}
}
