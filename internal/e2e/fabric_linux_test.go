package e2e

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/internal/testenv/netns"
)

// onHost makes a box whose commands run on a host of their own.
func onHost(t testing.TB, host *netns.NS) *box {
	b := newBox(t)
	b.wrap = []string{"nsenter", "--net=" + host.Path(), "--"}
	return b
}

// TestFabricAcrossHosts has three hosts, of which each has a cable to both others.
// A VPN and a forwarded service go over the direct one, and on over the third host
// when that cable is cut in the middle of it.
func TestFabricAcrossHosts(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("nsenter"); err != nil {
		t.Fatal(err)
	}
	left, middle, right := netns.New(t), netns.New(t), netns.New(t)
	direct := netns.Connect(t, left, right, "10.1.0.1/24", "10.1.0.2/24")
	netns.Connect(t, left, middle, "10.2.0.1/24", "10.2.0.2/24")
	netns.Connect(t, right, middle, "10.3.0.1/24", "10.3.0.2/24")

	m := onHost(t, middle)
	m.must("fabric", "init", "--name", "middle")
	m.start("fabric", "serve", "--relay", "--listen", "tls://10.2.0.2:7420,tls://10.3.0.2:7420")
	token := strings.TrimSpace(m.must("fabric", "token", "--uses", "2"))
	join := func(host *netns.NS, name, listen string) *box {
		b := onHost(t, host)
		if r := b.run(strings.NewReader(token+"\n"), "fabric", "join", "-", "--name", name); r.code != 0 {
			t.Fatalf("failed: %v", r)
		}
		b.start("fabric", "serve", "--listen", listen)
		return b
	}
	r := join(right, "right", "tls://10.1.0.2:7420")
	l := join(left, "left", "tls://10.1.0.1:7420")

	// An echo on the right, reached through a VPN and through a forwarded port.
	service, err := right.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	go func() {
		for {
			c, err := service.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(service.Addr().String())
	r.job("fabric", "expose", "echo", "127.0.0.1:"+port)
	_, endExit := r.job("fabric", "vpn", "--exit", "--network", "10.77.0.0/24,fd77::/64", "--device", "exit0")
	forwarded, _ := l.job("fabric", "forward", "0", "echo", "--wait", hung.String())
	_, endVPN := l.job("fabric", "vpn", "--device", "vpn0", "--wait", hung.String())

	through := map[string]net.Conn{"the forwarded port": nil, "the VPN": nil, "the VPN in IPv6": nil}
	for what, addr := range map[string]string{"the forwarded port": forwarded, "the VPN": "10.77.0.1:" + port, "the VPN in IPv6": "[fd77::1]:" + port} {
		c, err := left.Dial("tcp", addr)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer c.Close()
		through[what] = c
	}
	data := random(77, 4<<20)
	both := func(when string) {
		t.Helper()
		for what, c := range through {
			c.SetDeadline(time.Now().Add(hung))
			go c.Write(data)
			got := make([]byte, len(data))
			if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("through %s, %s: %d bytes have come back, %v", what, when, n, err)
			}
		}
	}
	both("over the direct cable")
	// While more is under way.
	moved := make(chan error, 1)
	c := through["the forwarded port"]
	go func() {
		c.SetDeadline(time.Now().Add(hung))
		_, err := c.Write(data)
		moved <- err
	}()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got[:len(got)/4]); err != nil {
		t.Fatal(err)
	}
	direct.Cut(t)
	if _, err := io.ReadFull(c, got[len(got)/4:]); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("when the cable was cut in the middle: %v", err)
	}
	if err := <-moved; err != nil {
		t.Error(err)
	}
	both("over the third host")
	if out := l.must("fabric", "routes"); !strings.Contains(out, "middle") {
		t.Errorf("no route over the third host:\n%s", out)
	}

	for what, end := range map[string]func(unix.Signal) int{"vpn": endVPN, "vpn --exit": endExit} {
		if code := end(unix.SIGINT); code != 0 {
			t.Errorf("%s ended with %d", what, code)
		}
	}
	for _, host := range []*netns.NS{left, right} {
		eventually(t, "no device is left", func() error {
			for _, name := range host.Interfaces(t) {
				if name == "vpn0" || name == "exit0" {
					return errors.New(name + " is still there")
				}
			}
			return nil
		})
	}
}
