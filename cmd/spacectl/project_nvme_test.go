package main

import (
	"bytes"
	"context"
	enc "encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/views"
	"github.com/spacestore/space/views/nvme/host"
	"github.com/spacestore/space/views/nvme/wire"
)

// projectNVMe projects capsules and returns what the command said of them.
func (c *cli) projectNVMe(args ...string) []views.Info {
	c.t.Helper()
	var v struct{ Projections []views.Info }
	if err := json.Unmarshal([]byte(c.ok(append([]string{"-o", "json", "project", "--view", "nvme"}, args...)...)), &v); err != nil {
		c.t.Fatal(err)
	}
	return v.Projections
}

func (c *cli) listProjections() []views.Info {
	c.t.Helper()
	var v struct{ Projections []views.Info }
	if err := json.Unmarshal([]byte(c.ok("-o", "json", "project", "list")), &v); err != nil {
		c.t.Fatal(err)
	}
	return v.Projections
}

// nvmeHost connects to a projection, as often as it takes.
func nvmeHost(t *testing.T, p views.Info, o host.Options) (*host.Controller, *host.Queue, *host.Namespace) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	t.Cleanup(cancel)
	ctrl, err := host.Connect(ctx, p.NVMe.Addresses[0], p.NVMe.NQN, o)
	for ; errors.Is(err, syscall.ECONNREFUSED) && ctx.Err() == nil; ctrl, err = host.Connect(ctx, p.NVMe.Addresses[0], p.NVMe.NQN, o) {
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ctrl.Close() })
	queues, err := ctrl.OpenQueues(ctx, 1, 16)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := ctrl.Namespace(ctx, p.NVMe.NSID)
	if err != nil {
		t.Fatal(err)
	}
	return ctrl, queues[0], ns
}

// A disk over the network outlives kill -9 of the node that serves it: what was
// flushed is there, its names, who may connect and what is reserved too.
func TestNVMeOutlivesTheNode(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	ctx := context.Background()
	c.ok("volume", "create", "v", "--size", "16MiB")
	c.ok("volume", "create", "w", "--size", "1MiB")
	me := host.Options{HostID: [16]byte{1}}
	s := c.serve()
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, []byte("DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:\n"))
	both := c.projectNVMe("--name", "v", "--name", "w", "--listen", "127.0.0.1:0", "--host", host.HostNQN(me.HostID), "--host", host.HostNQN([16]byte{2})+"=@"+secret)
	if len(both) != 2 || both[0].NVMe.NQN != both[1].NVMe.NQN || both[0].NVMe.NSID != 1 || both[1].NVMe.NSID != 2 || len(both[0].NVMe.Hosts) != 2 ||
		both[0].NVMe.Addresses[0] != both[1].NVMe.Addresses[0] {
		t.Fatalf("%+v %+v", both[0].NVMe, both[1].NVMe)
	}
	p := both[0]
	_, q, ns := nvmeHost(t, p, me)
	data := content(1 << 20)
	for off := 0; off < len(data); off += 64 << 10 {
		if err := ns.Write(ctx, q, uint64(off/ns.BlockSize), data[off:off+64<<10], false); err != nil {
			t.Fatal(err)
		}
	}
	if err := ns.Flush(ctx, q); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*host.Command{ns.Register(wire.ReservActRegister, wire.ReservPersistOn, 0, 5), ns.Acquire(wire.ReservActAcquire, wire.ReservWriteExclusive, 5, 0)} {
		if err := q.Do(ctx, cmd); err != nil {
			t.Fatal(err)
		}
	}
	out := c.ok("project", "list", "--clients")
	if !strings.Contains(out, host.HostNQN(me.HostID)) || !strings.Contains(out, p.NVMe.Addresses[0]) || !strings.Contains(out, p.NVMe.NQN+"#2") {
		t.Errorf("list:\n%s", out)
	}
	c.fails(5, "nvme disconnect", "project", "unmount", p.ID)

	// The node dies in the middle of writes that go on.
	const rewritten = 2 << 20 // where they begin
	flushed, some := new(atomic.Int64), make(chan struct{})
	go func() {
		p := make([]byte, 64<<10)
		for round := int64(1); ; round++ {
			for i := 0; i < len(p); i += 8 {
				enc.LittleEndian.PutUint64(p[i:], uint64(round))
			}
			if ns.Write(ctx, q, uint64(rewritten/ns.BlockSize), p, false) != nil || ns.Flush(ctx, q) != nil {
				return
			}
			if flushed.Store(round); round == 3 {
				close(some)
			}
		}
	}()
	<-some
	s.cmd.Process.Kill()
	s.cmd.Wait()
	if left := c.listProjections(); len(left) != 0 {
		t.Errorf("without a node: %+v", left)
	}
	s = c.serve()
	again := c.listProjections()
	if len(again) != 2 {
		t.Fatalf("after kill -9: %+v", again)
	}
	for i, was := range both {
		now := again[0]
		if now.ID != was.ID {
			now = again[1]
		}
		if now.ID != was.ID || now.NVMe.NQN != was.NVMe.NQN || now.NVMe.NSID != was.NVMe.NSID || now.NVMe.UUID != was.NVMe.UUID ||
			now.NVMe.Addresses[0] != was.NVMe.Addresses[0] || len(now.NVMe.Hosts) != 2 {
			t.Errorf("%d was %+v, is %+v", i, was.NVMe, now.NVMe)
		}
	}
	ctrl, q, ns := nvmeHost(t, p, me)
	got := make([]byte, 64<<10)
	for off := 0; off < len(data); off += len(got) {
		if err := ns.Read(ctx, q, uint64(off/ns.BlockSize), got); err != nil || !bytes.Equal(got, data[off:off+len(got)]) {
			t.Fatalf("at %d after kill -9: %v", off, err)
		}
	}
	if err := ns.Read(ctx, q, uint64(rewritten/ns.BlockSize), got); err != nil {
		t.Fatal(err)
	}
	first := enc.LittleEndian.Uint64(got)
	for i := 0; i < len(got); i += 8 { // one write, and so one round
		if round := enc.LittleEndian.Uint64(got[i:]); round != first || int64(round) < flushed.Load() {
			t.Fatalf("byte %d is of round %d, the first of %d; flushed was %d", i, round, first, flushed.Load())
		}
	}
	report, err := ns.ReservationReport(ctx, q)
	if err != nil || report.Type != wire.ReservWriteExclusive || len(report.Registrants) != 1 || report.Registrants[0].HostID != me.HostID {
		t.Errorf("reservations after kill -9: %+v, %v", report, err)
	}
	for _, o := range []host.Options{{HostID: [16]byte{2}}, {HostID: [16]byte{3}}} { // without the secret; not on the list
		if ctrl, err := host.Connect(ctx, p.NVMe.Addresses[0], p.NVMe.NQN, o); err == nil {
			ctrl.Close()
			t.Errorf("host %x was let in", o.HostID)
		}
	}

	c.ok("volume", "resize", "v", "--size", "32MiB")
	if ns, err = ctrl.Namespace(ctx, 1); err != nil || ns.Size() != 32<<20 {
		t.Errorf("after resize the host sees %d bytes, %v", ns.Size(), err)
	}
	c.ok("project", "unmount", "--lazy", p.ID, both[1].Target)
	if left := c.listProjections(); len(left) != 0 {
		t.Errorf("after unmount: %+v", left)
	}
	s.stop()
}

// Without a node one is started in the background. It stays as long as it
// projects something; if it dies, the next one goes on.
func TestNVMeInTheBackground(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	c.ok("volume", "create", "v", "--size", "1MiB")
	p := c.projectNVMe("--name", "v", "--listen", "127.0.0.1:0")[0]
	out := c.ok("project", "--view", "nvme", "--id", p.Capsule.String()) // again: nothing changes
	if want := "-n " + p.NVMe.NQN; !strings.Contains(out, want) || !strings.HasPrefix(out, "nvme connect -t tcp -a 127.0.0.1 -s ") {
		t.Errorf("it prints %q", out)
	}
	nvmeHost(t, p, host.Options{})
	// What another capsule keeps from being projected leaves this one as it was.
	c.fails(3, "missing", "project", "--view", "nvme", "--name", "v", "--name", "missing")
	if list := c.listProjections(); len(list) != 1 || list[0].ID != p.ID {
		t.Errorf("after a command that failed for another capsule: %+v", list)
	}
	pid := c.nodePID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again := c.projectNVMe("--name", "v")[0]
	if again.ID != p.ID || again.NVMe.Addresses[0] != p.NVMe.Addresses[0] || c.nodesStarted() != 2 {
		t.Errorf("was %+v, is %+v; %d nodes", p.NVMe, again.NVMe, c.nodesStarted())
	}
	nvmeHost(t, p, host.Options{})
	c.ok("project", "unmount", "--lazy", p.ID)
	if c.socketExists() {
		t.Error("the node stays without projections")
	}

	// What a node that died left is ended without one.
	p = c.projectNVMe("--name", "v", "--listen", "127.0.0.1:0")[0]
	if err := syscall.Kill(c.nodePID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.ok("project", "unmount", p.ID)
	c.fails(3, p.ID, "project", "unmount", p.ID)
	s := c.serve()
	if left := c.listProjections(); len(left) != 0 {
		t.Errorf("it came back: %+v", left)
	}
	s.stop()
}

// space.yaml has a node serve capsules by itself, and Prometheus.
func TestNVMeOfSpaceYAML(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	c.ok("volume", "create", "v", "--size", "1MiB")
	write(t, filepath.Join(c.home, "space.yaml"), []byte(`
metrics_listen: 127.0.0.1:0
nvme:
  listen: ["127.0.0.1:0"]
  subsystems:
    - nqn: nqn.2026-11.com.example:disks
      namespaces: [{capsule: v, nsid: 3, read_only: true}]
`))
	s := c.serve()
	list := c.listProjections()
	if len(list) != 1 || !list[0].NVMe.Configured || list[0].NVMe.NSID != 3 || !list[0].NVMe.ReadOnly {
		t.Fatalf("%+v", list)
	}
	if _, _, ns := nvmeHost(t, list[0], host.Options{}); !ns.ReadOnly {
		t.Error("the host may write")
	}
	c.fails(12, "space.yaml", "project", "unmount", "--lazy", list[0].ID)
	address := regexp.MustCompile(`msg="metrics are served" address=(\S+)`).FindStringSubmatch(s.text())
	if address == nil {
		t.Fatalf("no metrics:\n%s", s.text())
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/metrics": "space_store_capsules 1\n"} {
		r, err := http.Get("http://" + address[1] + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(string(text), want) {
			t.Errorf("%s: %d, %v\n%s", path, r.StatusCode, err, text)
		}
	}
	s.stop()
}

func TestNVMeCommandLine(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	c.ok("volume", "create", "v", "--size", "1MiB")
	for says, args := range map[string][]string{
		"name the capsules":    {"project", "--view", "nvme"},
		"--view fuse":          {"project", "--view", "nvme", "--name", "v", "--target", "/mnt"},
		"go with one capsule":  {"project", "--view", "nvme", "--name", "v", "--name", "w", "--nsid", "1"},
		"are for --view nvme":  {"project", "--view", "fuse", "--name", "v", "--target", "/mnt", "--nqn", "nqn.2026-11.a:b"},
		"there are fuse and":   {"project", "--view", "nfs", "--name", "v", "--target", "/mnt"},
		"host:port":            {"project", "--view", "nvme", "--name", "v", "--listen", "localhost"},
		"qualified name":       {"project", "--view", "nvme", "--name", "v", "--listen", "127.0.0.1:0", "--nqn", "disk"},
		"no such file":         {"project", "--view", "nvme", "--name", "v", "--host", "nqn.2026-11.a:h=@nowhere"},
		"no capsule has the":   {"project", "--view", "nvme", "--name", "none", "--listen", "127.0.0.1:0"},
		"not the number of":    {"project", "--view", "nvme", "--name", "v", "--listen", "127.0.0.1:70000"},
		"does not allow the n": {"project", "--view", "nvme", "--name", "v", "--listen", "127.0.0.1:0", "--policy-file", policyFile(t, "views: [fuse]\n")},
	} {
		if r := c.run(args...); r.code == 0 || !strings.Contains(r.stderr, says) {
			t.Errorf("%v: want %q: %+v", args, says, r)
		}
	}
	if left := c.listProjections(); len(left) != 0 {
		t.Errorf("left %+v", left)
	}
	for text, want := range map[string]control.NVMeHost{
		"nqn.a":     {NQN: "nqn.a"},
		"nqn.a=s":   {NQN: "nqn.a", Secret: "s"},
		"nqn.a=s,c": {NQN: "nqn.a", Secret: "s", CtrlSecret: "c"},
		"nqn.a=s==": {NQN: "nqn.a", Secret: "s=="},
	} {
		if got, err := parseHost(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func policyFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
