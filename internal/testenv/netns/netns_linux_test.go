package netns

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestHosts(t *testing.T) {
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	a, router, b := New(t), New(t), New(t)
	Connect(t, a, router, "10.1.0.2/24", "10.1.0.1/24")
	Connect(t, b, router, "10.2.0.2/24", "10.2.0.1/24")
	router.Forward(t)
	a.Route(t, "0.0.0.0/0", "10.1.0.1")
	b.Route(t, "0.0.0.0/0", "10.2.0.1")
	echo := listen(t, b, "10.2.0.2:0")
	c, err := a.Dial("tcp", echo)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := say(c, "over two cables"); err != nil {
		t.Fatal(err)
	}

	cmd := exec.Command("/bin/cat", "/proc/net/dev")
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := a.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, name := range a.Interfaces(t) {
		if !bytes.Contains(out.Bytes(), []byte(name)) {
			t.Errorf("a process in the namespace has no %s:\n%s", name, &out)
		}
	}
	after, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before) {
		t.Errorf("this machine's interfaces have become %v", after)
	}
}

func TestCutAndMend(t *testing.T) {
	for name, end := range map[string]func(*Cable, testing.TB){"cut": (*Cable).Cut, "unplugged": (*Cable).Unplug} {
		t.Run(name, func(t *testing.T) {
			a, b := New(t), New(t)
			cable := Connect(t, a, b, "10.1.0.1/24", "10.1.0.2/24")
			a.Route(t, "192.0.2.0/24", "10.1.0.2")
			c, err := a.Dial("tcp", listen(t, b, "10.1.0.2:0"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := say(c, "before"); err != nil {
				t.Fatal(err)
			}
			end(cable, t)
			if _, err := c.Write([]byte("during")); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 10)); !os.IsTimeout(err) {
				t.Fatalf("%d bytes, %v over a cable that is no more", n, err)
			}
			cable.Mend(t)
			if err := c.SetReadDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len("during"))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "during" {
				t.Fatalf("%q, %v", got, err)
			}
			routes, err := a.nl.RouteList(nil, netlink.FAMILY_V4)
			if err != nil {
				t.Fatal(err)
			}
			if len(routes) != 2 {
				t.Errorf("routes %v", routes)
			}
		})
	}
}

// TestNothingIsLeft looks for the interface of a cable whose test is over.
func TestNothingIsLeft(t *testing.T) {
	keep := New(t)
	var gone []string
	t.Run("inner", func(t *testing.T) {
		gone = append(gone, Connect(t, New(t), New(t), "10.1.0.1/24", "10.1.0.2/24").Name)
	})
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if slices.Contains(gone, i.Name) {
			t.Errorf("%s is on this machine", i.Name)
		}
	}
	if names := keep.Interfaces(t); len(names) == 0 || names[0] != "lo" {
		t.Errorf("interfaces %v", names)
	}
}

// listen starts an echo service.
func listen(t *testing.T, n *NS, addr string) string {
	t.Helper()
	l, err := n.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func say(c net.Conn, what string) error {
	if _, err := io.WriteString(c, what); err != nil {
		return err
	}
	got := make([]byte, len(what))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != what {
		return io.ErrUnexpectedEOF
	}
	return nil
}
