package agent

import (
	"encoding/gob"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// client talks to an agent as the test's end does, one message at a time.
type client struct {
	t   *testing.T
	out *gob.Encoder
	in  *gob.Decoder
}

func serve(t *testing.T, log string) *client {
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- Serve(theirs, "Linux 1.2", strings.NewReader(log)) }()
	t.Cleanup(func() {
		theirs.Close()
		ours.Close()
		<-done
	})
	return &client{t, gob.NewEncoder(ours), gob.NewDecoder(ours)}
}

func (c *client) send(m Message) {
	c.t.Helper()
	if err := c.out.Encode(m); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) next() Message {
	c.t.Helper()
	var m Message
	if err := c.in.Decode(&m); err != nil {
		c.t.Fatal(err)
	}
	return m
}

// end collects a job's output until it ends.
func (c *client) end(job uint32) (stdout, stderr string, status int) {
	c.t.Helper()
	for {
		m := c.next()
		switch {
		case m.Kind == Log:
		case m.Job != job:
			c.t.Fatalf("a message of job %d, want one of %d", m.Job, job)
		case m.Kind == Stdout:
			stdout += string(m.Data)
		case m.Kind == Stderr:
			stderr += string(m.Data)
		case m.Kind == Exit:
			return stdout, stderr, m.Status
		}
	}
}

func TestRunsScripts(t *testing.T) {
	c := serve(t, "")
	if m := c.next(); m.Kind != Hello || string(m.Data) != "Linux 1.2" {
		t.Fatalf("the first message is %+v", m)
	}
	for i, test := range []struct {
		script, stdout, stderr string
		status                 int
	}{
		{"echo out; echo err >&2", "out\n", "err\n", 0},
		{"echo before; false; echo after", "before\n", "", 1},
		{"exit 7", "", "", 7},
		{"kill -TERM $$", "", "", 143},
		{"head -c 200000 /dev/zero | tr '\\0' x", strings.Repeat("x", 200000), "", 0},
	} {
		job := uint32(i + 1)
		c.send(Message{Kind: Run, Job: job, Data: []byte(test.script)})
		stdout, stderr, status := c.end(job)
		if stdout != test.stdout || stderr != test.stderr || status != test.status {
			t.Errorf("%s: status %d, stdout %.40q, stderr %q", test.script, status, stdout, stderr)
		}
	}
}

func TestKillEndsAllOfAJob(t *testing.T) {
	c := serve(t, "")
	c.next()
	// The job's output ends when its last process has gone.
	c.send(Message{Kind: Run, Job: 1, Data: []byte("sleep 1000 & echo started; sleep 1000")})
	if m := c.next(); string(m.Data) != "started\n" {
		t.Fatalf("got %+v", m)
	}
	c.send(Message{Kind: Kill, Job: 1})
	if _, _, status := c.end(1); status != 137 {
		t.Errorf("status %d, want 137", status)
	}
	c.send(Message{Kind: Kill, Job: 1}) // none of that name: nothing happens
	c.send(Message{Kind: Run, Job: 2, Data: []byte("echo on")})
	if out, _, _ := c.end(2); out != "on\n" {
		t.Errorf("after a kill: %q", out)
	}
}

func TestPut(t *testing.T) {
	c := serve(t, "")
	c.next()
	name := filepath.Join(t.TempDir(), "new", "file")
	c.send(Message{Kind: Put, Job: 1, Path: name, Data: []byte("one")})
	c.end(1)
	c.send(Message{Kind: Put, Job: 2, Path: name, Append: true, Data: []byte("two")})
	c.end(2)
	if got, err := os.ReadFile(name); err != nil || string(got) != "onetwo" {
		t.Errorf("%q, %v", got, err)
	}
	c.send(Message{Kind: Put, Job: 3, Path: "/proc/nowhere/file"})
	if _, stderr, status := c.end(3); status != 126 || stderr == "" {
		t.Errorf("status %d, %q", status, stderr)
	}
}

func TestPassesOnTheKernelsLog(t *testing.T) {
	c := serve(t, "6,339,5140900,-;NET: Registered PF_NETLINK\n SUBSYSTEM=net\n")
	c.next()
	if m := c.next(); m.Kind != Log || string(m.Data) != "5.140s NET: Registered PF_NETLINK" {
		t.Errorf("%+v: %q", m, m.Data)
	}
}
