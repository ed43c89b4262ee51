package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spacestore/space/views/nvme"
	"github.com/spacestore/space/views/nvme/dhchap"
)

// memoryDisk is a device in memory.
type memoryDisk struct {
	mu sync.Mutex
	b  []byte
}

func (d *memoryDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.b[off:]), nil
}

func (d *memoryDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.b[off:], p), nil
}

func (d *memoryDisk) Trim(context.Context, int64, int64) error { return nil }
func (d *memoryDisk) Flush(context.Context) error              { return nil }
func (d *memoryDisk) Size() int64                              { return int64(len(d.b)) }
func (d *memoryDisk) BlockSize() int                           { return 4096 }
func (d *memoryDisk) ReadOnly() bool                           { return false }

func (d *memoryDisk) NextData(_ context.Context, off int64) (int64, int64, error) {
	if off < d.Size() {
		return off, d.Size(), nil
	}
	return 0, 0, io.EOF
}

const cliNQN = "nqn.2026-11.org.example:cli"

// nvmeTarget serves one namespace of 4 MiB and returns the target's address.
func nvmeTarget(t *testing.T, sub nvme.Subsystem) (*memoryDisk, string) {
	t.Helper()
	target, err := nvme.New(nvme.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { target.Serve(l, nvme.Port{ID: 1}) })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		target.Close(ctx)
		wg.Wait()
	})
	sub.NQN, sub.Serial = cliNQN, "cli"
	if err := target.AddSubsystem(sub); err != nil {
		t.Fatal(err)
	}
	d := &memoryDisk{b: make([]byte, 4<<20)}
	if err := target.AddNamespace(cliNQN, nvme.Namespace{NSID: 3, UUID: [16]byte{7}, NGUID: [16]byte{7}, Device: d}); err != nil {
		t.Fatal(err)
	}
	return d, l.Addr().String()
}

func TestNVMeTools(t *testing.T) {
	d, address := nvmeTarget(t, nvme.Subsystem{AllowAnyHost: true})
	c := newCLI(t)

	var found struct{ Entries []nvmeEntry }
	r := c.run("-o", "json", "nvme", "discover", address)
	if err := json.Unmarshal([]byte(r.stdout), &found); err != nil || r.code != 0 {
		t.Fatalf("%+v: %v", r, err)
	}
	listed := false
	for _, e := range found.Entries {
		listed = listed || e.NQN == cliNQN && net.JoinHostPort(e.Address, e.Port) == address
	}
	if !listed {
		t.Errorf("discover lists %+v", found)
	}
	if r := c.run("nvme", "discover", address); !strings.Contains(r.stdout, cliNQN) {
		t.Errorf("discover: %+v", r)
	}

	var id nvmeController
	r = c.run("-o", "json", "nvme", "identify", address)
	if err := json.Unmarshal([]byte(r.stdout), &id); err != nil || id.NQN != cliNQN || len(id.Namespaces) != 1 || id.Namespaces[0].NSID != 3 ||
		id.Namespaces[0].Size != 4<<20 || id.Namespaces[0].BlockSize != 4096 || id.Namespaces[0].UUID != "07000000-0000-0000-0000-000000000000" {
		t.Errorf("identify: %+v of %+v: %v", id, r, err)
	}
	if r := c.run("nvme", "identify", address, "--hdr-digest", "--data-digest"); !strings.Contains(r.stdout, "4.19 MB") {
		t.Errorf("identify: %+v", r)
	}

	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	want := content(1_000_001)
	if err := os.WriteFile(in, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := c.run("nvme", "write", address, in, "--offset", "4096"); r.code != 2 || !strings.Contains(r.stderr, "--overwrite") {
		t.Errorf("write without a yes: %+v", r)
	}
	if r := c.run("nvme", "write", address, in, "--offset", "4096", "--overwrite"); r.code != 0 {
		t.Fatalf("write: %+v", r)
	}
	written := make([]byte, len(want))
	if d.ReadAt(written, 4096); !bytes.Equal(written, want) {
		t.Error("write wrote something else")
	}
	if r := c.run("nvme", "read", address, "--offset", "4096", "--length", "1000001", "--out", out, "--nsid", "3", "--nqn", cliNQN); r.code != 0 {
		t.Fatalf("read: %+v", r)
	}
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read made a file of %d bytes, %v", len(got), err)
	}
	if r := c.run("nvme", "read", address, "--offset", "4097", "--length", "10"); r.stdout != string(want[1:11]) {
		t.Errorf("read to a pipe: %q", r.stdout)
	}

	var b struct {
		Commands int64
		Iops     float64
		Reads    struct {
			P50 int64 `json:"p50_ns"`
		}
	}
	r = c.run("-o", "json", "nvme", "bench", address, "--commands", "500", "--queues", "2", "--depth", "8")
	if err := json.Unmarshal([]byte(r.stdout), &b); err != nil || b.Commands != 500 || b.Iops <= 0 || b.Reads.P50 <= 0 {
		t.Errorf("bench: %+v of %+v, %v", b, r, err)
	}
	if r := c.run("nvme", "bench", address, "--commands", "100", "--pattern", "randrw", "--overwrite"); !strings.Contains(r.stdout, "P99.9") || !strings.Contains(r.stdout, "write") {
		t.Errorf("bench: %+v", r)
	}
	if r := c.run("nvme", "bench", address, "--pattern", "write"); r.code != 2 || !strings.Contains(r.stderr, "--overwrite") {
		t.Errorf("bench without a yes: %+v", r)
	}

	for name, x := range map[string]struct {
		args []string
		code int
		says string
	}{
		"nobody there":   {[]string{"nvme", "identify", "127.0.0.1:1", "--nqn", cliNQN}, 11, "refused"},
		"no subsystem":   {[]string{"nvme", "identify", address, "--nqn", cliNQN + "x"}, 3, "no subsystem"},
		"no namespace":   {[]string{"nvme", "read", address, "--nsid", "9", "--out", "-"}, 3, "namespace 9"},
		"beyond the end": {[]string{"nvme", "read", address, "--offset", "5MiB", "--out", "-"}, 2, "namespace 3"},
		"too large":      {[]string{"nvme", "write", address, in, "--offset", "4MiB", "--overwrite"}, 2, "has room for 0"},
		"in mid-block":   {[]string{"nvme", "write", address, in, "--offset", "5", "--overwrite"}, 2, "block"},
		"pattern":        {[]string{"nvme", "bench", address, "--pattern", "up"}, 2, "randread"},
		"secret":         {[]string{"nvme", "identify", address, "--secret-file", in}, 2, "DHHC-1"},
	} {
		if r := c.run(x.args...); r.code != x.code || !strings.Contains(r.stderr, x.says) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestNVMeToolsAuthenticate(t *testing.T) {
	c := newCLI(t)
	r := c.run("nvme", "gen-key", "--hash", "sha256")
	secret := strings.TrimSpace(r.stdout)
	if _, err := dhchap.ParseSecret(secret); err != nil || r.code != 0 {
		t.Fatalf("gen-key: %+v, %v", r, err)
	}
	const name = "nqn.2014-08.org.nvmexpress:uuid:01020304-0000-0000-0000-000000000000"
	_, address := nvmeTarget(t, nvme.Subsystem{Hosts: []nvme.Host{{NQN: name, Secret: secret}}})
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := c.run("nvme", "identify", address, "--nqn", cliNQN, "--host-nqn", name, "--secret-file", file); r.code != 0 {
		t.Errorf("with the secret: %+v", r)
	}
	if r := c.run("nvme", "identify", address, "--nqn", cliNQN, "--host-nqn", name); r.code != 12 || !strings.Contains(r.stderr, "authentication") {
		t.Errorf("without it: %+v", r)
	}
	if r := c.run("nvme", "identify", address, "--nqn", cliNQN); r.code != 12 {
		t.Errorf("another host: %+v", r)
	}
	c.env = append(c.env, "SPACE_NVME_SECRET="+secret)
	if r := c.run("nvme", "identify", address, "--nqn", cliNQN, "--host-nqn", name); r.code != 0 {
		t.Errorf("with the secret in the environment: %+v", r)
	}
}
