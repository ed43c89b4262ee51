//go:build linux

package kernelvm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// network is what QEMU calls the guest's network.
const network = "net"

// monitor is QEMU's own control, QMP.
type monitor struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
}

func newMonitor(conn net.Conn) (*monitor, error) {
	q := &monitor{conn: conn, in: bufio.NewReader(conn)}
	if _, err := q.in.ReadBytes('\n'); err != nil { // the greeting
		return nil, fmt.Errorf("QEMU's monitor: %w", err)
	}
	_, err := q.do("qmp_capabilities", nil)
	return q, err
}

// do executes a command and returns its answer.
func (q *monitor) do(command string, args map[string]any) (json.RawMessage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	req, err := json.Marshal(map[string]any{"execute": command, "arguments": args})
	if args == nil {
		req, err = json.Marshal(map[string]any{"execute": command})
	}
	if err != nil {
		return nil, err
	}
	if _, err := q.conn.Write(append(req, '\n')); err != nil {
		return nil, fmt.Errorf("QEMU's monitor: %w", err)
	}
	for {
		line, err := q.in.ReadBytes('\n')
		if err != nil {
			return nil, fmt.Errorf("QEMU's monitor: %w", err)
		}
		var answer struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &answer); err != nil {
			return nil, fmt.Errorf("QEMU's monitor: %w", err)
		}
		switch {
		case answer.Error != nil:
			return nil, fmt.Errorf("QEMU's monitor: %s: %s", command, answer.Error.Desc)
		case answer.Return != nil:
			return answer.Return, nil
		}
		// An event: not asked for.
	}
}

// human executes a command of the monitor for people.
func (q *monitor) human(line string) (string, error) {
	raw, err := q.do("human-monitor-command", map[string]any{"command-line": line})
	if err != nil {
		return "", err
	}
	var text string
	err = json.Unmarshal(raw, &text)
	return text, err
}

// Forward makes a TCP port of the guest reachable on the test's loopback, and
// returns its address there.
func (m *Machine) Forward(t testing.TB, guestPort int) string {
	t.Helper()
	before, err := m.forwards(guestPort)
	if err != nil {
		t.Fatal(err)
	}
	if said, err := m.monitor.human(fmt.Sprintf("hostfwd_add %s tcp:127.0.0.1:0-10.0.2.15:%d", network, guestPort)); err != nil || said != "" {
		t.Fatalf("cannot forward the guest's port %d: %s%v", guestPort, said, err)
	}
	after, err := m.forwards(guestPort)
	if err != nil {
		t.Fatal(err)
	}
	for port := range after {
		if !before[port] {
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		}
	}
	t.Fatalf("QEMU does not list the forwarding of port %d", guestPort)
	return ""
}

// A line of "info usernet": protocol and state, descriptor, source, its port,
// destination, its port, and what is queued.
var forwardLine = regexp.MustCompile(`TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+10\.0\.2\.15\s+(\d+)`)

func (m *Machine) forwards(guestPort int) (map[int]bool, error) {
	text, err := m.monitor.human("info usernet")
	if err != nil {
		return nil, err
	}
	ports := map[int]bool{}
	for line := range strings.Lines(text) {
		if f := forwardLine.FindStringSubmatch(line); f != nil && f[2] == strconv.Itoa(guestPort) {
			port, err := strconv.Atoi(f[1])
			if err != nil {
				return nil, err
			}
			ports[port] = true
		}
	}
	return ports, nil
}
