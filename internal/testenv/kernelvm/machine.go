//go:build linux

package kernelvm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spacestore/space/internal/testenv/kernelvm/agent"
)

// Host is the test's loopback as the guest sees it.
const Host = "10.0.2.2"

// Patience is how long a single thing may take before it counts as hung. No
// test waits for it unless something is wrong.
const Patience = 10 * time.Minute

// memory of the guest, in MiB.
const memory = 768

// Machine is a running virtual machine.
type Machine struct {
	Kernel  string // as in its /proc/version
	dir     string
	qemu    *exec.Cmd
	console tail
	monitor *monitor
	conn    net.Conn // to the agent
	send    sync.Mutex
	out     *gob.Encoder

	ended chan struct{} // closed when QEMU has ended
	why   error         // how; set before ended is closed

	mu     sync.Mutex
	last   uint32 // job
	jobs   map[uint32]*Job
	log    []string      // the kernel's
	logged chan struct{} // closed and replaced when log grows
}

// Boot starts a machine, which runs until the test ends.
func Boot(t testing.TB) *Machine {
	t.Helper()
	if testing.Short() {
		t.Skip("a test machine takes its time: not with -short")
	}
	if _, err := os.Stat("/usr/bin/dpkg"); err != nil || runtime.GOARCH != "amd64" {
		t.Skip("no test machine: it takes Debian on amd64")
	}
	began := time.Now()
	m, err := boot()
	if err != nil {
		t.Fatalf("cannot boot the test machine: %v", err)
	}
	t.Logf("booted in %v: %s", time.Since(began).Round(100*time.Millisecond), m.Kernel)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the test machine's console ended with:\n%s", m.console.String())
			t.Logf("its kernel's log ended with:\n%s", m.LogTail(80))
		}
		m.close()
	})
	return m
}

func boot() (_ *Machine, err error) {
	files, err := build()
	if err != nil {
		return nil, err
	}
	// Not t.TempDir: sockets have short names.
	dir, err := os.MkdirTemp("", "kernelvm-")
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: dir, ended: make(chan struct{}), jobs: make(map[uint32]*Job), logged: make(chan struct{})}
	defer func() {
		if err != nil {
			m.close()
			err = fmt.Errorf("%w; its console ended with:\n%s", err, m.console.String())
		}
	}()
	initrd := filepath.Join(dir, "initrd")
	if err := makeInitrd(initrd, filepath.Join(files, "initrd"), dir); err != nil {
		return nil, err
	}
	agents, err := net.Listen("unix", filepath.Join(dir, "agent"))
	if err != nil {
		return nil, err
	}
	defer agents.Close()
	monitors, err := net.Listen("unix", filepath.Join(dir, "monitor"))
	if err != nil {
		return nil, err
	}
	defer monitors.Close()
	if err := m.start(files, initrd); err != nil {
		return nil, err
	}
	// Whoever waits below is woken when QEMU ends, or takes too long.
	ready, giveUp := context.WithTimeout(context.Background(), Patience)
	defer giveUp()
	go func() {
		select {
		case <-m.ended:
		case <-ready.Done():
		}
		agents.Close()
		monitors.Close()
	}()
	conn, err := monitors.Accept()
	if err != nil {
		return nil, m.failed(err)
	}
	if m.monitor, err = newMonitor(conn); err != nil {
		return nil, m.failed(err)
	}
	if m.conn, err = agents.Accept(); err != nil {
		return nil, m.failed(err)
	}
	m.out = gob.NewEncoder(m.conn)
	in := gob.NewDecoder(bufio.NewReaderSize(m.conn, agent.MaxData))
	m.conn.SetReadDeadline(time.Now().Add(Patience))
	var hello agent.Message
	if err := in.Decode(&hello); err != nil {
		return nil, m.failed(fmt.Errorf("waiting for the agent: %w", err))
	}
	m.conn.SetReadDeadline(time.Time{})
	m.Kernel = string(hello.Data)
	go m.receive(in)
	return m, nil
}

// failed adds to an error how QEMU ended, if it did.
func (m *Machine) failed(err error) error {
	select {
	case <-m.ended:
		return fmt.Errorf("QEMU ended: %w", m.why)
	default:
		return err
	}
}

// start runs QEMU.
func (m *Machine) start(files, initrd string) error {
	m.qemu = exec.Command("qemu-system-x86_64",
		"-machine", "q35", "-accel", "tcg", "-cpu", "max,la57=off", "-smp", "1", "-m", fmt.Sprint(memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=monitor,path="+filepath.Join(m.dir, "monitor"), "-mon", "chardev=monitor,mode=control",
		"-chardev", "socket,id=agent,path="+filepath.Join(m.dir, "agent"),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent",
		"-drive", "if=none,id=usr,format=raw,readonly=on,file="+filepath.Join(files, "usr.img"), "-device", "virtio-blk-pci,drive=usr",
		"-netdev", "user,id="+network+",ipv6=off", "-device", "virtio-net-pci,romfile=,netdev="+network,
		"-kernel", filepath.Join(files, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 loglevel=4 quiet panic=-1 oops=panic nokaslr mitigations=off init_on_alloc=0 "+
			"random.trust_cpu=on tsc=reliable no_timer_check net.ifnames=0 nowatchdog rcupdate.rcu_cpu_stall_suppress=1 hardened_usercopy=off "+
			fmt.Sprintf("nvme_core.io_timeout=%d", int(Patience.Seconds())))
	m.qemu.Stdout, m.qemu.Stderr = &m.console, &m.console
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that started QEMU, so it is kept.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := m.qemu.Start()
		started <- err
		if err != nil {
			return
		}
		m.why = errors.New("exit status 0")
		if err := m.qemu.Wait(); err != nil {
			m.why = err
		}
		close(m.ended)
	}()
	if err := <-started; err != nil {
		m.qemu = nil
		return err
	}
	return nil
}

// close ends the machine.
func (m *Machine) close() {
	if m.qemu != nil {
		m.qemu.Process.Kill() // it may have ended already
		<-m.ended
	}
	if m.monitor != nil {
		m.monitor.conn.Close()
	}
	if m.conn != nil {
		m.conn.Close()
	}
	os.RemoveAll(m.dir)
}

// receive hands out what the agent sends.
func (m *Machine) receive(in *gob.Decoder) {
	for {
		var msg agent.Message
		if err := in.Decode(&msg); err != nil {
			m.mu.Lock()
			for id, j := range m.jobs {
				j.end(-1)
				delete(m.jobs, id)
			}
			m.jobs = nil
			m.mu.Unlock()
			return
		}
		m.mu.Lock()
		j := m.jobs[msg.Job]
		switch {
		case msg.Kind == agent.Log:
			m.log = append(m.log, string(msg.Data))
			close(m.logged)
			m.logged = make(chan struct{})
		case j == nil:
		case msg.Kind == agent.Stdout:
			j.wrote(&j.stdout, msg.Data)
		case msg.Kind == agent.Stderr:
			j.wrote(&j.stderr, msg.Data)
		case msg.Kind == agent.Exit:
			j.end(msg.Status)
			delete(m.jobs, msg.Job)
		}
		m.mu.Unlock()
	}
}

// post sends a message about a new job.
func (m *Machine) post(msgs ...agent.Message) *Job {
	j := &Job{m: m, done: make(chan struct{}), grown: make(chan struct{})}
	m.mu.Lock()
	m.last++
	j.id = m.last
	if m.jobs == nil { // the machine has ended
		j.end(-1)
		m.mu.Unlock()
		return j
	}
	m.jobs[j.id] = j
	m.mu.Unlock()
	for _, msg := range msgs {
		msg.Job = j.id
		m.tell(msg)
	}
	return j
}

func (m *Machine) tell(msg agent.Message) {
	m.send.Lock()
	defer m.send.Unlock()
	// An error means that the machine has ended; receive says so to all jobs.
	_ = m.out.Encode(msg)
}

// Start runs a script for /bin/sh -e in the guest, beside what runs already.
// It is killed at the end of the test if it still runs.
func (m *Machine) Start(t testing.TB, script string) *Job {
	t.Helper()
	j := m.post(agent.Message{Kind: agent.Run, Data: []byte(script)})
	t.Cleanup(j.Kill)
	return j
}

// Try runs a script to its end, however that is.
func (m *Machine) Try(t testing.TB, script string) Result {
	t.Helper()
	return m.Start(t, script).Wait(t)
}

// Run runs a script that has to succeed, and returns what it wrote to its
// standard output.
func (m *Machine) Run(t testing.TB, script string) string {
	t.Helper()
	return m.Start(t, script).Must(t)
}

// Put writes a file in the guest; scripts may run it.
func (m *Machine) Put(t testing.TB, path string, data []byte) {
	t.Helper()
	for first := true; first || len(data) > 0; first = false {
		n := min(len(data), agent.MaxData)
		r := m.post(agent.Message{Kind: agent.Put, Path: path, Append: !first, Data: data[:n]}).Wait(t)
		if r.Status != 0 {
			t.Fatalf("cannot write %s in the test machine: %v", path, r)
		}
		data = data[n:]
	}
}

// Logged returns what the guest's kernel has logged since the mark that an
// earlier call returned, or since it is up for 0, and the mark for a later call.
func (m *Machine) Logged(mark int) (lines []string, next int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log[mark:len(m.log):len(m.log)], len(m.log)
}

// LogTail returns the last n lines of the kernel's log.
func (m *Machine) LogTail(n int) string {
	lines, _ := m.Logged(0)
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// WaitLog waits until the kernel has logged a line with all of words in it,
// after the mark.
func (m *Machine) WaitLog(t testing.TB, mark int, words ...string) {
	t.Helper()
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	for {
		m.mu.Lock()
		lines, grown := m.log[mark:], m.logged
		m.mu.Unlock()
	lines:
		for _, line := range lines {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return
		}
		select {
		case <-grown:
		case <-m.ended:
			t.Fatalf("the test machine ended (%v) while waiting for %q in its kernel's log:\n%s", m.why, words, strings.Join(lines, "\n"))
		case <-timeout.C:
			t.Fatalf("the kernel has not logged %q within %v, but:\n%s", words, Patience, strings.Join(lines, "\n"))
		}
	}
}

// Job is a script that runs in the guest.
type Job struct {
	m    *Machine
	id   uint32
	done chan struct{}
	// Under m.mu until done is closed.
	stdout, stderr bytes.Buffer
	grown          chan struct{} // closed and replaced when the output grows
	status         int
}

func (j *Job) wrote(b *bytes.Buffer, p []byte) {
	b.Write(p)
	close(j.grown)
	j.grown = make(chan struct{})
}

func (j *Job) end(status int) {
	j.status = status
	close(j.done)
}

// Done is closed when the job has ended.
func (j *Job) Done() <-chan struct{} { return j.done }

// Kill ends the job and every process of it.
func (j *Job) Kill() {
	select {
	case <-j.done:
	default:
		j.m.tell(agent.Message{Kind: agent.Kill, Job: j.id})
	}
}

// Wait waits for the job's end. A job that takes longer than [Patience] fails
// the test, as does the end of the machine.
func (j *Job) Wait(t testing.TB) Result {
	t.Helper()
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	select {
	case <-j.done:
	case <-timeout.C:
		j.m.mu.Lock()
		defer j.m.mu.Unlock()
		t.Fatalf("a script in the test machine hung:\nstdout: %s\nstderr: %s", &j.stdout, &j.stderr)
	}
	if j.status < 0 {
		t.Fatalf("the test machine ended while a script ran in it\nstdout: %s\nstderr: %s", &j.stdout, &j.stderr)
	}
	return Result{Status: j.status, Stdout: j.stdout.String(), Stderr: j.stderr.String()}
}

// Must waits for the job's end, which has to be a good one, and returns its
// standard output.
func (j *Job) Must(t testing.TB) string {
	t.Helper()
	r := j.Wait(t)
	if r.Status != 0 {
		t.Fatalf("a script failed in the test machine: %v\nThe kernel's log ended with:\n%s", r, j.m.LogTail(30))
	}
	return r.Stdout
}

// WaitFor waits until the job has written text to its standard output.
func (j *Job) WaitFor(t testing.TB, text string) {
	t.Helper()
	j.WaitCount(t, text, 1)
}

// WaitCount waits until the job has written text n times.
func (j *Job) WaitCount(t testing.TB, text string, n int) {
	t.Helper()
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	for {
		j.m.mu.Lock()
		seen, grown := bytes.Count(j.stdout.Bytes(), []byte(text)) >= n, j.grown
		j.m.mu.Unlock()
		if seen {
			return
		}
		select {
		case <-grown:
			continue
		case <-j.done:
		case <-timeout.C:
		}
		j.m.mu.Lock()
		defer j.m.mu.Unlock()
		if bytes.Count(j.stdout.Bytes(), []byte(text)) >= n {
			return
		}
		t.Fatalf("a script has not written %q %d times (it ended or hung):\nstdout: %s\nstderr: %s", text, n, &j.stdout, &j.stderr)
	}
}

// Output returns what the job has written to its standard output so far.
func (j *Job) Output() string {
	j.m.mu.Lock()
	defer j.m.mu.Unlock()
	return j.stdout.String()
}

// Result is how a script ended.
type Result struct {
	Status         int // 128 and the signal's number if it was killed
	Stdout, Stderr string
}

func (r Result) String() string {
	return fmt.Sprintf("status %d\nstdout: %s\nstderr: %s", r.Status, lastBytes(r.Stdout, 8<<10), lastBytes(r.Stderr, 8<<10))
}

func lastBytes(s string, n int) string {
	if len(s) > n {
		return "[...]" + s[len(s)-n:]
	}
	return s
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 16 << 10

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if len(l.buf) > 2*tailSize {
		l.buf = append(l.buf[:0], l.buf[len(l.buf)-tailSize:]...)
	}
	return len(p), nil
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return lastBytes(string(l.buf), tailSize)
}
