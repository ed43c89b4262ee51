package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/internal/testenv/freeport"
)

// The exit codes that docs/cli.md promises.
const (
	exitInvalid     = 2
	exitNotFound    = 3
	exitExists      = 4
	exitConflict    = 5
	exitUnavailable = 11
	exitRefused     = 12
	exitCanceled    = 13
)

// eventually waits for something that others bring about.
func eventually(t testing.TB, what string, fn func() error) {
	t.Helper()
	for deadline := time.Now().Add(hung); ; time.Sleep(50 * time.Millisecond) {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// authority makes a fabric and runs its first node.
func authority(t testing.TB) (*box, *server) {
	t.Helper()
	b := newBox(t)
	b.must("fabric", "init", "--name", "first")
	return b, b.fabric()
}

// fabric runs the box's node of the fabric, where it has been before, if it has.
func (b *box) fabric() *server {
	b.t.Helper()
	if b.fabricAt == "" {
		b.fabricAt = "tls://127.0.0.1:" + freeport.Of(b.t)
	}
	return b.start("fabric", "serve", "--listen", b.fabricAt)
}

// joined makes a box whose node is part of first's fabric.
func joined(first *box, name string) *box {
	first.t.Helper()
	b := newBox(first.t)
	token := strings.TrimSpace(first.must("fabric", "token"))
	r := b.run(strings.NewReader(token+"\n"), "fabric", "join", "-", "--name", name)
	if r.code != 0 {
		b.t.Fatalf("failed: %v", r)
	}
	return b
}

// job runs a command that lasts, and returns what it prints first. It ends when
// the test does, or with stop.
func (b *box) job(args ...string) (first string, stop func(unix.Signal) int) {
	b.t.Helper()
	cmd := b.command(context.Background(), args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	hang := time.AfterFunc(hung, func() { cmd.Process.Kill() })
	b.t.Cleanup(func() { hang.Stop(); cmd.Process.Kill() })
	first, err = bufio.NewReader(out).ReadString('\n')
	hang.Stop()
	if err != nil {
		cmd.Wait()
		b.t.Fatalf("spacectl %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(first), func(sig unix.Signal) int {
		cmd.Process.Signal(sig)
		kill := time.AfterFunc(hung, func() { cmd.Process.Kill() })
		defer kill.Stop()
		cmd.Wait()
		b.checkCrash(result{args: args, err: errs.String()})
		return cmd.ProcessState.ExitCode()
	}
}

// fabricStatus is what fabric status prints.
type fabricStatus struct {
	Node     string
	Addrs    []string
	Sessions int
}

func (b *box) fabricStatus() (st fabricStatus) {
	b.t.Helper()
	text := b.must("fabric", "status", "-o", "json")
	if err := json.Unmarshal([]byte(text), &st); err != nil {
		b.t.Fatalf("%v: %.500s", err, text)
	}
	return st
}

// web is a server that tells its name, and echoes what is posted to it.
func web(t testing.TB, name string) (addr string) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			io.Copy(w, r.Body)
			return
		}
		fmt.Fprint(w, name)
	}))
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv.Listener.Addr().String()
}

// ask makes a request over a connection of its own.
func ask(addr string, body []byte) (string, error) {
	c := &http.Client{Timeout: hung, Transport: &http.Transport{DisableKeepAlives: true}}
	var resp *http.Response
	var err error
	if body == nil {
		resp, err = c.Get("http://" + addr)
	} else {
		resp, err = c.Post("http://"+addr, "application/octet-stream", bytes.NewReader(body))
	}
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return string(got), err
}

// TestFabricForward forwards to a service that two nodes expose, kills the one
// that serves, then the other one, and starts the first again.
func TestFabricForward(t *testing.T) {
	t.Parallel()
	a, s := authority(t)
	nodes, servers := map[string]*box{}, map[string]*server{}
	for _, name := range []string{"left", "right"} {
		b := joined(a, name)
		write(t, filepath.Join(b.home, "space.yaml"), []byte("fabric:\n  expose:\n    - {pool: web, address: \""+web(t, name)+"\"}\n"))
		nodes[name], servers[name] = b, b.fabric()
	}
	at, stop := a.job("fabric", "forward", "127.0.0.1:0", "web", "--wait", hung.String())
	var serving string
	eventually(t, "forward", func() (err error) {
		serving, err = ask(at, nil)
		return err
	})
	data := random(51, 3<<20)
	if got, err := ask(at, data); err != nil || got != string(data) {
		t.Errorf("%d bytes came back as %d: %v", len(data), len(got), err)
	}
	other := map[string]string{"left": "right", "right": "left"}[serving]
	servers[serving].stop(unix.SIGKILL)
	eventually(t, "failover", func() error {
		got, err := ask(at, nil)
		if err == nil && got != other {
			err = fmt.Errorf("%q answered, and not %q", got, other)
		}
		return err
	})
	servers[other].stop(unix.SIGKILL)
	servers[serving] = nodes[serving].fabric()
	eventually(t, "a restarted node", func() error {
		got, err := ask(at, data)
		if err == nil && got != string(data) {
			t.Errorf("%d bytes came back as %d", len(data), len(got))
		}
		return err
	})
	if out := a.must("fabric", "tunnels", "-o", "json"); !strings.Contains(out, `"version":"space.fabric_stream_registry.v1"`) || !strings.Contains(out, `"state":"up"`) {
		t.Errorf("tunnels: %s", out)
	}
	for _, of := range []string{"status", "nodes", "routes", "tunnels"} {
		if out := a.must("fabric", of); !strings.Contains(out, serving) && of != "status" && of != "tunnels" {
			t.Errorf("fabric %s does not tell of %s:\n%s", of, serving, out)
		}
	}
	if out := a.must("fabric", "top", "--interval", "100ms"); !strings.Contains(out, "web/tcp-forward") {
		t.Errorf("top does not show the tunnel:\n%s", out)
	}
	if code := stop(unix.SIGINT); code != 0 {
		t.Errorf("forward ended with %d after Ctrl-C", code)
	}
	if code := s.stop(unix.SIGTERM); code != 0 {
		t.Errorf("fabric serve ended with %d after SIGTERM:\n%s", code, s.errs)
	}
}

// TestFabricRevocation cuts a node off while a connection leads there, and it
// does not come back.
func TestFabricRevocation(t *testing.T) {
	t.Parallel()
	a, _ := authority(t)
	b := joined(a, "second")
	b.fabric()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // an echo
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	b.job("fabric", "expose", "echo", l.Addr().String())
	at, _ := a.job("fabric", "forward", "0", "echo", "--wait", hung.String())
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(hung))
	if _, err := io.WriteString(c, "before"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "before" {
		t.Fatalf("%q: %v", got, err)
	}
	id := b.fabricStatus().Node
	b.mustFail([]int{exitInvalid}, "fabric", "revoke", id) // it is not the authority's node
	if out := strings.TrimSpace(a.must("fabric", "revoke", "second")); out != id {
		t.Errorf("revoke printed %q, not %s", out, id)
	}
	if n, err := c.Read(got); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the revocation: %d bytes, %v", n, err)
	}
	eventually(t, "sessions end", func() error {
		if n := a.fabricStatus().Sessions; n > 0 {
			return fmt.Errorf("%d sessions", n)
		}
		return nil
	})
	a.mustFail([]int{exitNotFound, exitRefused}, "fabric", "forward", "0", "echo", "--wait", "100ms")
	// It begins anew, and nobody lets it in: what it asks for fails.
	r := b.run(nil, "fabric", "forward", "0", "nothing", "--wait", "100ms")
	if n := a.fabricStatus().Sessions; n > 0 || r.code == 0 {
		t.Errorf("the revoked node came back: %d sessions, %v", n, r)
	}
}

// TestFabricTokens joins with tokens that are no good.
func TestFabricTokens(t *testing.T) {
	t.Parallel()
	a, s := authority(t)
	token := strings.TrimSpace(a.must("fabric", "token", "--uses", "2"))
	one, two, three := newBox(t), newBox(t), newBox(t)
	one.must("fabric", "join", token)
	if r := one.mustFail([]int{exitExists}, "fabric", "join", token); !strings.Contains(r.err, "already") {
		t.Errorf("said: %v", r)
	}
	two.must("fabric", "join", token, "--name", "two", "--area", "south")
	if r := three.mustFail([]int{exitRefused}, "fabric", "join", token); !strings.Contains(r.err, "token") {
		t.Errorf("said: %v", r)
	}
	expired := strings.TrimSpace(a.must("fabric", "token", "--expires", "1ns"))
	if r := three.mustFail([]int{exitRefused}, "fabric", "join", expired); !strings.Contains(r.err, "expired") {
		t.Errorf("said: %v", r)
	}
	for _, bad := range []string{"", "x", token[:len(token)-1], token[:20] + "A" + token[21:] + "A"} {
		three.mustFail([]int{exitInvalid}, "fabric", "join", bad)
	}
	a.mustFail([]int{exitInvalid}, "fabric", "token", "--uses", "0")
	one.fabric()
	if r := one.mustFail([]int{exitInvalid}, "fabric", "token"); !strings.Contains(r.err, "authority") {
		t.Errorf("said: %v", r)
	}
	s.stop(unix.SIGTERM)
	left := strings.TrimSpace(a.must("fabric", "token", "--address", "tls://127.0.0.1:1")) // the authority's files will do
	if r := three.mustFail([]int{exitUnavailable}, "fabric", "join", left); !strings.Contains(r.err, "127.0.0.1:1") {
		t.Errorf("said: %v", r)
	}
	if _, err := os.Stat(filepath.Join(three.home, "fabric", "node.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a join that failed left an identity: %v", err)
	}
}

// TestFabricErrors does what can't work; each time something says what to do.
func TestFabricErrors(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	says := func(code int, want string, args ...string) {
		t.Helper()
		if r := b.mustFail([]int{code}, args...); !strings.Contains(r.err, want) {
			t.Errorf("want %q: %v", want, r)
		}
	}
	for _, args := range [][]string{{"status"}, {"serve"}, {"top"}, {"expose", "a", "1"}, {"forward", "0", "a"}, {"send", "/dev/null"}, {"receive", "a"}, {"vpn"}} {
		says(exitNotFound, "spacectl fabric init", append([]string{"fabric"}, args...)...)
	}
	b.must("fabric", "init")
	says(exitExists, "already", "fabric", "init")
	says(exitUnavailable, "spacectl fabric serve", "fabric", "status")
	says(exitInvalid, "--listen", "fabric", "serve", "--listen", "127.0.0.1:1")
	says(exitInvalid, "--seeds", "fabric", "serve", "--seeds", "somewhere")
	says(exitInvalid, "--listen https://", "fabric", "relay")
	b.vars = []string{"SPACE_FABRIC_AREA=a b"}
	says(exitInvalid, "SPACE_FABRIC_AREA", "fabric", "serve")
	b.vars = nil
	config := filepath.Join(b.home, "space.yaml")
	for text, want := range map[string]string{
		"listen: [tls://:1, x]":                    "space.yaml:3: listen",
		"listne: []":                               "space.yaml:3: unknown setting",
		"expose:\n    - {pool: web}":               "space.yaml:4: expose wants",
		"expose:\n    - {pool: a b, address: x:1}": "space.yaml:4: pool",
		"forward:\n    - {listen: x, pool: web}":   "space.yaml:4: listen",
		"limits: {node: {tunnels: -1}}":            "space.yaml:3: tunnels",
		"vpn:\n    - {exit: true}":                 "space.yaml:4: vpn",
		"share: [{name: x}]":                       "space.yaml:3: share",
		"relay: perhaps":                           "space.yaml:3: relay",
		"seeds: [http://x]":                        "space.yaml:3: seeds",
		"listen: [{address: tls://:1, cert: c}]":   "space.yaml:3: listen: cert",
		"advertise: tls://1.2.3.4:5,tls://1.2.3:5": "space.yaml:3: advertise",
	} {
		write(t, config, []byte("# settings\nfabric:\n  "+text+"\n"))
		says(exitInvalid, want, "fabric", "serve")
	}
	os.Remove(config)
	s := b.fabric()
	says(exitConflict, "another process", "fabric", "serve", "--listen", "none")
	says(exitNotFound, "no node provides the pool nowhere", "fabric", "forward", "0", "nowhere", "--wait", "1ms")
	says(exitInvalid, "pool", "fabric", "expose", "a b", "1")
	says(exitInvalid, "address", "fabric", "forward", "nonsense", "web", "--wait", "1ms")
	says(exitNotFound, "no node named", "fabric", "revoke", "nobody")
	says(exitInvalid, "authority's own node", "fabric", "revoke", b.fabricStatus().Node)
	if code := s.stop(unix.SIGTERM); code != 0 {
		t.Errorf("fabric serve ended with %d", code)
	}
}

// TestFabricLimits asks a node for more than it gives.
func TestFabricLimits(t *testing.T) {
	t.Parallel()
	a, _ := authority(t)
	b := joined(a, "second")
	write(t, filepath.Join(b.home, "space.yaml"), []byte("fabric:\n  limits:\n    named: [{scope: pool, name: web, tunnels: 1}]\n  expose: [{pool: web, address: \""+web(t, "here")+"\"}]\n"))
	b.fabric()
	at, stop := a.job("fabric", "forward", "0", "web", "--wait", hung.String())
	if r := a.mustFail([]int{exitConflict}, "fabric", "forward", "0", "web"); !strings.Contains(r.err, "pool web") || !strings.Contains(r.err, "try again") {
		t.Errorf("said: %v", r)
	}
	if got, err := ask(at, nil); err != nil || got != "here" {
		t.Errorf("the one that was let in: %q, %v", got, err)
	}
	if out := b.must("fabric", "limits"); !strings.Contains(out, "1 of 1") {
		t.Errorf("limits:\n%s", out)
	}
	stop(unix.SIGTERM)
	eventually(t, "room again", func() error {
		if out := b.must("fabric", "limits"); !strings.Contains(out, "0 of 1") {
			return errors.New(out)
		}
		return nil
	})
	a.job("fabric", "forward", "0", "web", "--wait", hung.String())
}

// TestFabricSocket looks at who can ask a node, and that one that was killed
// leaves nothing in the way.
func TestFabricSocket(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.home = filepath.Join(openTempDir(t), "home")
	b.must("fabric", "init")
	s := b.fabric()
	socket := filepath.Join(b.home, "fabric.sock")
	st, err := os.Stat(socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", st.Mode(), err)
	}
	for _, name := range []string{"fabric", "fabric/node.key", "fabric/authority.key"} {
		if st, err := os.Stat(filepath.Join(b.home, name)); err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("others may look into %s: %v %v", name, st.Mode(), err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chmod(b.home, 0o711); err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(openTempDir(t), "spacectl")
		if err := copyProgram(spacectl, program); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "fabric", "status")
		cmd.Env = b.env()
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if r := b.finish(cmd, cmd.Run); r.code != exitRefused {
			t.Errorf("another user asked: %v", r)
		}
	}
	s.stop(unix.SIGKILL)
	b.mustFail([]int{exitUnavailable}, "fabric", "status")
	b.fabric()
	b.must("fabric", "status")
}

func copyProgram(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// TestFabricBesideStore runs both in one node.
func TestFabricBesideStore(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	write(t, filepath.Join(b.home, "space.yaml"), []byte("fabric:\n  listen: [tls://127.0.0.1:0]\n"))
	if r := b.mustFail([]int{exitNotFound}, "serve"); !strings.Contains(r.err, "spacectl fabric init") {
		t.Errorf("said: %v", r)
	}
	b.must("fabric", "init", "--name", "both")
	s := b.serve()
	data := random(52, 1<<20)
	b.put("a", data)
	if out := b.must("fabric", "status"); !strings.Contains(out, "tls://127.0.0.1:") {
		t.Errorf("status:\n%s", out)
	}
	if got := b.must("get", "a"); got != string(data) {
		t.Error("the store gave other data")
	}
	if code := s.stop(unix.SIGTERM); code != 0 {
		t.Errorf("serve ended with %d:\n%s", code, s.errs)
	}
}

// TestFabricSSH logs in, and copies, through a forwarded port.
func TestFabricSSH(t *testing.T) {
	t.Parallel()
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		sshd = "/usr/sbin/sshd" // which is in the PATH of root alone
	}
	need(t, "ssh", "ssh-keygen", sshd)
	dir := t.TempDir()
	for _, name := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if os.Geteuid() == 0 { // where it drops its privileges; an init makes it
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	public, err := os.ReadFile(filepath.Join(dir, "user.pub"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "authorized"), public)
	write(t, filepath.Join(dir, "config"), fmt.Appendf(nil, "HostKey %[1]s/host\nAuthorizedKeysFile %[1]s/authorized\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n", dir))
	// A server for each connection, as inetd does it: no port has to be found.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f, err := c.(*net.TCPConn).File()
			c.Close()
			if err != nil {
				t.Error(err)
				return
			}
			cmd := exec.Command(sshd, "-i", "-e", "-f", filepath.Join(dir, "config"))
			cmd.Stdin, cmd.Stdout = f, f
			if err := cmd.Start(); err != nil {
				t.Error(err)
			}
			f.Close()
			go cmd.Wait()
		}
	}()
	a, _ := authority(t)
	b := joined(a, "second")
	b.fabric()
	b.job("fabric", "expose", "ssh", l.Addr().String())
	at, _ := a.job("fabric", "forward", "0", "ssh", "--wait", hung.String())
	_, port, _ := net.SplitHostPort(at)
	data := random(53, 2<<20)
	cmd := exec.Command("ssh", "-F", "none", "-p", port, "-i", filepath.Join(dir, "user"), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile="+filepath.Join(dir, "known"), "-o", "ConnectTimeout=120", "127.0.0.1", "cat")
	cmd.Stdin = bytes.NewReader(data)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	kill := time.AfterFunc(hung, func() { cmd.Process.Kill() })
	defer kill.Stop()
	if err := cmd.Run(); err != nil || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("ssh: %v, %d bytes came back of %d\n%s", err, out.Len(), len(data), errs.String())
	}
}

// TestFabricPostgreSQL reaches a database, which listens at a Unix socket alone,
// through the fabric.
func TestFabricPostgreSQL(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, t.TempDir())
	d.data = filepath.Join(d.run, "data")
	d.must("initdb", "-D", d.data, "-U", "space", "-A", "trust", "-N", "--no-instructions")
	d.start()
	a, _ := authority(t)
	b := joined(a, "second")
	b.fabric()
	b.job("fabric", "expose", "db", "unix:"+filepath.Join(d.run, ".s.PGSQL.5432"))
	at, _ := a.job("fabric", "forward", "0", "db", "--wait", hung.String())
	host, port, _ := net.SplitHostPort(at)
	to := []string{"-h", host, "-p", port}
	d.must("psql", append(to, "-qc", "CREATE TABLE t AS SELECT i, md5(i::text) AS m FROM generate_series(1, 20000) i")...)
	want := d.must("psql", "-Atc", "SELECT md5(string_agg(m, '' ORDER BY i)) FROM t")
	rows := d.must("psql", append(to, "-Atc", "SELECT m FROM t ORDER BY i")...)
	if n := strings.Count(rows, "\n") + 1; n != 20000 {
		t.Errorf("%d rows came", n)
	}
	if got := d.must("psql", append(to, "-Atc", "SELECT md5(string_agg(m, '' ORDER BY i)) FROM t")...); got != want || len(got) != 32 {
		t.Errorf("the sum is %q through the fabric and %q beside it", got, want)
	}
	d.must("pgbench", append(to, "-i", "-q", "-s", "1")...)
	d.must("pgbench", append(to, "-n", "-c", "2", "-t", "30")...)
	if n := d.check(); n != 60 {
		t.Errorf("%d transactions of 60", n)
	}
}

// received is what fabric receive prints.
type received struct {
	Bytes   int64  `json:"bytes"`
	Resumed int64  `json:"resumed_bytes"`
	Files   int64  `json:"files"`
	Hash    string `json:"hash"`
	Path    string `json:"path"`
}

func (b *box) receive(args ...string) (r received) {
	b.t.Helper()
	return transferred(b.t, b.must(append([]string{"fabric", "receive", "-o", "json", "--wait", hung.String()}, args...)...))
}

// transferred is the last line that a transfer prints; those before it tell how far it is.
func transferred(t testing.TB, text string) (r received) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines {
		var one struct {
			Event string  `json:"event"`
			ID    string  `json:"id"`
			Total int64   `json:"total_bytes"`
			Rate  int64   `json:"bytes_per_second"`
			ETA   float64 `json:"eta_seconds"`
			received
		}
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%v: %.500s", err, line)
		}
		if last := i == len(lines)-1; last != (one.Event == "done") || !last && one.Event != "progress" || len(one.ID) != 8 || last && len(one.Hash) != 64 {
			t.Errorf("line %d of %d: %.500s", i, len(lines), line)
		}
		r = one.received
	}
	return r
}

// partOf is where what has been received of a target is.
func partOf(target string) string {
	return filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+".space-part")
}

// underWay waits until a part of what is received has been noted.
func underWay(t testing.TB, target string) {
	t.Helper()
	eventually(t, "a part of it", func() error {
		st, err := os.Stat(filepath.Join(partOf(target), "journal"))
		if err == nil && st.Size() < 120 {
			err = errors.New("nothing is noted")
		}
		return err
	})
}

// TestFabricTransfer sends a file and a directory, while the receiving node, and
// one of two that offer it, are killed.
func TestFabricTransfer(t *testing.T) {
	t.Parallel()
	a, s := authority(t)
	data := random(54, 24<<20)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), data)
	share := []byte("fabric:\n  share: [{name: file, path: \"" + filepath.Join(dir, "file") + "\"}]\n")
	var senders []*server
	for _, name := range []string{"left", "right"} {
		b := joined(a, name)
		write(t, filepath.Join(b.home, "space.yaml"), share)
		senders = append(senders, b.fabric())
	}
	target := filepath.Join(dir, "got")
	// Slowly, and the node that receives is killed.
	slow := func(rate string) (*exec.Cmd, *bytes.Buffer) {
		cmd := a.command(context.Background(), "fabric", "receive", "file", "--out", target, "--rate", rate, "--wait", hung.String())
		errs := &bytes.Buffer{}
		cmd.Stderr = errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		return cmd, errs
	}
	cmd, _ := slow("2MB")
	underWay(t, target)
	s.stop(unix.SIGKILL)
	if cmd.Wait(); cmd.ProcessState.ExitCode() != exitUnavailable {
		t.Errorf("receive ended with %d when its node was killed", cmd.ProcessState.ExitCode())
	}
	if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a part of the file has its name: %v", err)
	}
	a.fabric()
	// Again, and one of those that send is.
	before, _ := filepath.Glob(filepath.Join(partOf(target), "journal"))
	cmd, errs := slow("8MB")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	eventually(t, "more of it", func() error {
		if out := a.must("fabric", "tunnels"); strings.Count(out, "file/files") == 0 && len(ended) == 0 {
			return errors.New(out)
		}
		return nil
	})
	senders[0].stop(unix.SIGKILL)
	if err := <-ended; err != nil {
		t.Errorf("receive with one of two senders killed: %v\n%s", err, errs.String())
	}
	if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, data) || len(before) == 0 {
		t.Errorf("%d bytes of %d, journals %q: %v", len(got), len(data), before, err)
	}
	if left, _ := filepath.Glob(partOf(target)); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}

	// A directory, once; the sender is told, and ends.
	tree := filepath.Join(dir, "tree")
	for i := range 40 {
		write(t, filepath.Join(tree, fmt.Sprint("dir", i%5), fmt.Sprint("file", i)), random(uint64(100+i), i*i*37))
	}
	write(t, filepath.Join(tree, "empty"), nil)
	if err := errors.Join(os.Symlink("dir1/none", filepath.Join(tree, "soft")), os.Chmod(filepath.Join(tree, "dir2"), 0o500),
		os.Chtimes(filepath.Join(tree, "empty"), time.Unix(1, 2), time.Unix(3, 4)), unix.Mkfifo(filepath.Join(tree, "fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	b := joined(a, "third")
	b.fabric()
	name, stop := b.job("fabric", "send", tree)
	if name != "tree" {
		t.Errorf("send printed %q", name)
	}
	if r := a.receive("tree", "--out", filepath.Join(dir, "copy")); r.Files != 41 || r.Resumed != 0 {
		t.Errorf("received %+v", r)
	}
	if code := stop(0); code != 0 {
		t.Errorf("send ended with %d", code)
	}
	out := a.sh(dir, "rm tree/fifo; diff -r --no-dereference tree copy && stat -c '%a %Y %F' tree/dir2 tree/empty tree/soft > x; stat -c '%a %Y %F' copy/dir2 copy/empty copy/soft > y; cmp <(grep -v link x) <(grep -v link y)")
	if out != "" {
		t.Errorf("the copy is another one:\n%s", out)
	}
	a.mustFail([]int{exitExists}, "fabric", "receive", "tree", "--out", filepath.Join(dir, "copy"))
}

// TestFabricPush sends a directory to a node that has agreed in its settings, which is
// killed on the way, and so is the command; a transfer is slowed, paused and let go on.
func TestFabricPush(t *testing.T) {
	t.Parallel()
	a, _ := authority(t)
	dir := t.TempDir()
	tree, into := filepath.Join(dir, "a tree"), filepath.Join(dir, "in")
	write(t, filepath.Join(tree, "large"), random(56, 24<<20))
	write(t, filepath.Join(tree, "sub", "small"), []byte("x"))
	if err := os.Mkdir(into, 0o700); err != nil {
		t.Fatal(err)
	}
	b := joined(a, "second")
	var self struct{ Node string }
	if err := json.Unmarshal([]byte(a.must("fabric", "status", "-o", "json")), &self); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(b.home, "space.yaml"), []byte("fabric:\n  accept: [{into: \""+into+"\", from: [\""+self.Node+"\"]}]\n"))
	s := b.fabric()
	eventually(t, "the other node", func() error {
		if out := a.must("fabric", "nodes"); !strings.Contains(out, "files-inbox") {
			return errors.New(out)
		}
		return nil
	})
	push := func(args ...string) (*exec.Cmd, *bytes.Buffer) {
		cmd := a.command(context.Background(), append([]string{"fabric", "send", tree, "--to", "second", "-o", "json", "--wait", hung.String()}, args...)...)
		out := &bytes.Buffer{}
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		return cmd, out
	}
	target := filepath.Join(into, "a tree")
	cmd, _ := push("--rate", "2MB") // so that it is not done before it is killed, on a slow machine
	underWay(t, target)
	cmd.Process.Kill()
	cmd.Wait()
	cmd, out := push("--rate", "1MB")
	transfers := func(b *box, kind string) (list []map[string]any) {
		var v struct{ Transfers []map[string]any }
		if err := json.Unmarshal([]byte(b.must("fabric", "transfers", "-o", "json")), &v); err != nil {
			t.Fatal(err)
		}
		for _, one := range v.Transfers {
			if one["kind"] == kind {
				list = append(list, one)
			}
		}
		return list
	}
	state := func(b *box, kind, key string, want any) (id string) {
		eventually(t, fmt.Sprint(kind, " ", key, " ", want), func() error {
			list := transfers(b, kind)
			if len(list) != 1 || list[0][key] != want {
				return fmt.Errorf("%v", list)
			}
			id = list[0]["id"].(string)
			return nil
		})
		return id
	}
	id := state(a, "push", "limit_bytes_per_second", 1e6)
	a.must("fabric", "transfers", "pause", id)
	state(a, "push", "state", "paused")
	there := state(b, "accept", "state", "paused")
	s.stop(unix.SIGKILL) // it is paused when it is back
	b.fabric()
	state(b, "accept", "state", "paused")
	if table := b.must("fabric", "transfers"); !strings.Contains(table, there) || !strings.Contains(table, "a tree") {
		t.Errorf("transfers:\n%s", table)
	}
	b.must("fabric", "transfers", "limit", there, "--rate", "none", "--priority", "background")
	state(a, "push", "priority", "background")
	a.must("fabric", "transfers", "resume", id)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %.500s", err, out)
	}
	if r := transferred(t, out.String()); r.Files != 2 || r.Bytes != 24<<20+1 || r.Resumed == 0 {
		t.Errorf("sent %+v", r)
	}
	if out := a.sh(dir, "diff -r 'a tree' 'in/a tree'"); out != "" {
		t.Errorf("the contents differ: %s", out)
	}
	a.mustFail([]int{exitExists}, "fabric", "send", tree, "--to", "second")
	a.mustFail([]int{exitRefused}, "fabric", "send", tree, "--to", "second", "--name", ".ssh")
	a.mustFail([]int{exitNotFound}, "fabric", "transfers", "pause", id)
	_, stop := b.job("fabric", "send", filepath.Join(tree, "large"))
	slow := a.command(context.Background(), "fabric", "receive", "large", "--out", filepath.Join(dir, "large"), "--rate", "100kB", "--wait", hung.String())
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slow.Process.Kill() })
	id = state(a, "receive", "state", "running")
	a.must("fabric", "transfers", "cancel", id)
	if slow.Wait(); slow.ProcessState.ExitCode() != exitCanceled {
		t.Errorf("receive ended with %d when it was cancelled", slow.ProcessState.ExitCode())
	}
	b.must("fabric", "transfers", "cancel", state(b, "offer", "name", "large"))
	if code := stop(0); code != exitCanceled {
		t.Errorf("send ended with %d when it was cancelled", code)
	}
	b.mustFail([]int{exitNotFound}, "fabric", "send", tree, "--to", self.Node, "--wait", "0s") // which has not agreed
}

// TestFabricTransferDirectory sends a directory with links, holes, attributes and modes,
// whose receiving node is killed on the way, and once more to a place that is taken.
func TestFabricTransferDirectory(t *testing.T) {
	t.Parallel()
	a, s := authority(t)
	dir := t.TempDir()
	tree, target := filepath.Join(dir, "tree"), filepath.Join(dir, "copy")
	for i := range 20 {
		write(t, filepath.Join(tree, fmt.Sprint("dir", i%3), fmt.Sprint("file", i)), random(uint64(200+i), i*i*91))
	}
	write(t, filepath.Join(tree, "large"), random(55, 24<<20))
	out := a.sh(tree, `
ln dir1/file1 dir2/twin; ln large dir0/large
ln -s ../dir1/file1 dir2/soft; ln -s /nowhere dangling
truncate -s 64M sparse; printf end | dd of=sparse bs=1 seek=33554432 conv=notrunc status=none
mkdir empty; chmod 0750 empty; chmod 0400 dir1/file4; chmod 01755 dir0; chmod 0555 dir1
touch -h -d @1000000000.5 dangling dir1/file1 sparse`)
	if out != "" {
		t.Fatal(out)
	}
	t.Cleanup(func() { a.sh(dir, "chmod -R u+w .") }) // for whoever removes it
	attribute := unix.Setxattr(filepath.Join(tree, "large"), "user.color", []byte("blue"), 0)
	b := joined(a, "second")
	b.fabric()
	name, stop := b.job("fabric", "send", tree)
	if name != "tree" {
		t.Errorf("send printed %q", name)
	}

	cmd := a.command(context.Background(), "fabric", "receive", "tree", "--out", target, "--rate", "2MB", "--wait", hung.String())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	underWay(t, target)
	s.stop(unix.SIGKILL)
	if cmd.Wait(); cmd.ProcessState.ExitCode() != exitUnavailable {
		t.Errorf("receive ended with %d when its node was killed", cmd.ProcessState.ExitCode())
	}
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a part of the directory has its name: %v", err)
	}
	a.fabric()
	if r := a.receive("tree", "--out", target); r.Files != 22 || r.Resumed == 0 || r.Bytes < 88<<20 {
		t.Errorf("received %+v", r)
	}
	if code := stop(0); code != 0 {
		t.Errorf("send ended with %d", code)
	}

	const list = `find . -printf '%p %y %m %n %T@ %l\n' | sort`
	if got, want := a.sh(target, list), a.sh(tree, list); got != want {
		t.Errorf("the copy is\n%s\nand was\n%s", got, want)
	}
	if out := a.sh(dir, "diff -r --no-dereference tree copy"); out != "" {
		t.Errorf("the contents differ: %s", out)
	}
	if out := a.sh(target, "test dir1/file1 -ef dir2/twin && test large -ef dir0/large && test $(stat -c %b sparse) -lt 65536 || echo no"); out != "" {
		t.Error("links or holes are missing")
	}
	if attribute == nil {
		value := make([]byte, 16)
		if n, err := unix.Getxattr(filepath.Join(target, "large"), "user.color", value); err != nil || string(value[:n]) != "blue" {
			t.Errorf("attribute: %q, %v", value[:max(n, 0)], err)
		}
	}
	if left, _ := filepath.Glob(partOf(target)); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	a.mustFail([]int{exitExists}, "fabric", "receive", "tree", "--out", target)
}
