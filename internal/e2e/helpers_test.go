package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// spacectl is the binary under test.
var spacectl string

func TestMain(m *testing.M) {
	if what := os.Getenv(clientEnv); what != "" {
		os.Exit(beClient(what))
	}
	flag.Parse()
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "space-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	spacectl = filepath.Join(dir, "spacectl")
	build := exec.Command("go", "build", "-o", spacectl, "github.com/spacestore/space/cmd/spacectl")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build spacectl: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// The exit codes that docs/cli.md promises.
const (
	exitDamaged  = 6
	exitNoSpace  = 7
	exitReadOnly = 8
)

// hung is how long a command may take before the test calls it hung. No
// assertion depends on it.
const hung = 3 * time.Minute

// box is a store and the environment in which its user works.
type box struct {
	t    testing.TB
	home string
	// wrap comes before every command line.
	wrap []string
	// vars are added to the environment.
	vars []string
	// spacectl is the program, unless it is the one that all tests use.
	spacectl string
	// fabricAt is where its node of the fabric listens.
	fabricAt string
}

func newBox(t testing.TB) *box { return &box{t: t, home: filepath.Join(t.TempDir(), "home")} }

func (b *box) command(ctx context.Context, args ...string) *exec.Cmd {
	program := spacectl
	if b.spacectl != "" {
		program = b.spacectl
	}
	line := append(append([]string{}, b.wrap...), program)
	line = append(line, args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = b.env()
	cmd.WaitDelay = time.Minute // a node in the background must not hold our pipes
	return cmd
}

// env is the test's own environment without what would lead to another store. A node
// that is slow to answer, or to end, is waited for.
func (b *box) env() []string {
	env := []string{"SPACE_HOME=" + b.home, "SPACE_LOCK_TIMEOUT=2m"}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SPACE_") && !strings.HasPrefix(kv, "NOTIFY_SOCKET=") {
			env = append(env, kv)
		}
	}
	return append(env, b.vars...)
}

// result is how a command ended.
type result struct {
	args     []string
	out, err string
	code     int // -1: killed
}

func (r result) String() string {
	return fmt.Sprintf("spacectl %s: exit code %d\nstdout: %.2000s\nstderr: %.4000s", strings.Join(r.args, " "), r.code, r.out, r.err)
}

// run runs a command to its end. Whatever it is told, it must end in time, and
// without a panic.
func (b *box) run(stdin io.Reader, args ...string) result {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	defer cancel()
	cmd := b.command(ctx, args...)
	cmd.Stdin = stdin
	r := b.finish(cmd, cmd.Run)
	if ctx.Err() != nil {
		b.t.Fatalf("hung: %v", r)
	}
	return r
}

// finish runs fn, which runs cmd or waits for it.
func (b *box) finish(cmd *exec.Cmd, fn func() error) result {
	b.t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := fn()
	r := result{args: cmd.Args[1:], out: out.String(), err: errs.String(), code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		b.t.Fatalf("%v: %v", r, err)
	}
	b.checkCrash(r)
	return r
}

var crashed = regexp.MustCompile(`(?m)^panic: |^fatal error: |^goroutine \d+ \[|internal error:|^unexpected fault`)

func (b *box) checkCrash(r result) {
	b.t.Helper()
	if crashed.MatchString(r.err) {
		b.t.Errorf("crashed: %v", r)
	}
}

// must runs a command that has to succeed and returns its standard output.
func (b *box) must(args ...string) string {
	b.t.Helper()
	r := b.run(nil, args...)
	if r.code != 0 {
		b.t.Fatalf("failed: %v", r)
	}
	return r.out
}

// mustFail runs a command that has to fail with one of the exit codes.
func (b *box) mustFail(codes []int, args ...string) result {
	b.t.Helper()
	r := b.run(nil, args...)
	for _, code := range codes {
		if r.code == code {
			return r
		}
	}
	b.t.Fatalf("want exit code %v: %v", codes, r)
	return r
}

// put stores data under a name and returns the ID.
func (b *box) put(name string, data []byte) string {
	b.t.Helper()
	r := b.run(bytes.NewReader(data), "put", "-", "--name", name)
	if r.code != 0 {
		b.t.Fatalf("failed: %v", r)
	}
	return printedID(r.out)
}

var idLine = regexp.MustCompile(`^([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\n`)

// printedID is the ID on the first line of what put printed, or "".
func printedID(out string) string {
	if m := idLine.FindStringSubmatch(out); m != nil {
		return m[1]
	}
	return ""
}

// entry is what list says of a capsule.
type entry struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// list returns all capsules by name.
func (b *box) list() map[string]entry {
	b.t.Helper()
	m, err := parseList(b.must("list", "--all", "-o", "json"))
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

func parseList(text string) (map[string]entry, error) {
	var page struct {
		Capsules []entry `json:"capsules"`
	}
	if err := json.Unmarshal([]byte(text), &page); err != nil {
		return nil, fmt.Errorf("list printed no JSON: %w: %.500s", err, text)
	}
	m := make(map[string]entry, len(page.Capsules))
	for _, e := range page.Capsules {
		m[e.Name] = e
	}
	return m, nil
}

type usage struct {
	Stored, Dead, Disk, Pending int64
}

func (b *box) df() usage {
	b.t.Helper()
	var u struct {
		Stored  int64 `json:"stored_bytes"`
		Dead    int64 `json:"dead_bytes"`
		Disk    int64 `json:"disk_bytes"`
		Pending int64 `json:"pending_bytes"`
	}
	if err := json.Unmarshal([]byte(b.must("df", "-o", "json")), &u); err != nil {
		b.t.Fatal(err)
	}
	return usage(u)
}

// server is a node that the test runs.
type server struct {
	b    *box
	cmd  *exec.Cmd
	errs *bytes.Buffer
	end  chan error
}

// serve runs a node and returns when it says that it is ready.
func (b *box) serve(args ...string) *server {
	b.t.Helper()
	return b.start(append([]string{"serve"}, args...)...)
}

// start runs a command that serves, and returns when it says that it is ready.
func (b *box) start(line ...string) *server {
	b.t.Helper()
	dir, err := os.MkdirTemp("", "space-e2e-notify-") // short: it goes into a socket address
	if err != nil {
		b.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unixgram"})
	if err != nil {
		b.t.Fatal(err)
	}
	defer ready.Close()
	// It may run as another user.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "s"), 0o777)); err != nil {
		b.t.Fatal(err)
	}
	s := &server{b: b, cmd: b.command(context.Background(), line...), errs: new(bytes.Buffer), end: make(chan error, 1)}
	s.cmd.Env = append(s.cmd.Env, "NOTIFY_SOCKET="+filepath.Join(dir, "s"))
	s.cmd.Stderr = s.errs
	s.cmd.Stdout = s.errs
	if err := s.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	go func() {
		s.end <- s.cmd.Wait()
		ready.Close()
	}()
	b.t.Cleanup(func() { s.cmd.Process.Kill() })
	buf := make([]byte, 64)
	ready.SetReadDeadline(time.Now().Add(hung))
	if n, err := ready.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		s.cmd.Process.Kill()
		<-s.end
		b.t.Fatalf("%s did not become ready: %v\n%s", strings.Join(line, " "), err, s.errs)
	}
	return s
}

// stop sends a signal, waits, and returns the exit code.
func (s *server) stop(sig unix.Signal) int {
	s.b.t.Helper()
	s.cmd.Process.Signal(sig)
	select {
	case <-s.end:
	case <-time.After(hung):
		s.b.t.Fatalf("serve does not end after %v", sig)
	}
	r := result{args: []string{"serve"}, err: s.errs.String(), code: s.cmd.ProcessState.ExitCode()}
	s.b.checkCrash(r)
	return r.code
}

// random returns n bytes that do not compress and follow from seed.
func random(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

func sum(p []byte) [32]byte { return sha256.Sum256(p) }

// needMount skips a test where this process may not mount.
func needMount(t testing.TB) {
	t.Helper()
	if err := exec.Command("unshare", "-m", "true").Run(); err != nil {
		t.Skip("mounting a file system of its own takes root, and a container that may mount")
	}
}

func needFUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	f.Close()
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// sh runs a script as a user would type it, one line after the other in one shell.
func (b *box) sh(dir, script string) string {
	b.t.Helper()
	return b.shFor(hung, dir, script)
}

// shFor is sh for a script that may take longer.
func (b *box) shFor(limit time.Duration, dir, script string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(b.env(), "PATH="+filepath.Dir(spacectl)+":"+os.Getenv("PATH"))
	cmd.WaitDelay = time.Minute
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		b.t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return string(out)
}
