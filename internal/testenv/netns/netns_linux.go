package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is a network namespace. It ends with its test.
type NS struct {
	file *os.File // keeps the namespace
	nl   *netlink.Handle

	routes []netlink.Route // that Route has made
}

// New makes a namespace with nothing but a loopback interface, which is up. It
// needs root; without it, the test is skipped.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	n := &NS{}
	if err := apart(func() error { return n.init() }); err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() {
		n.nl.Close()
		n.file.Close()
	})
	return n
}

// apart runs f on a thread that nothing else runs on, now or later.
func apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

func (n *NS) init() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	n.file = f
	if n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	return n.nl.LinkSetUp(lo)
}

// Path returns the namespace as a file, for nsenter(1), as long as this process
// lives.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Do runs f in the namespace: sockets and processes that f makes itself are
// there, and stay. Goroutines that f starts are not.
func (n *NS) Do(f func() error) error {
	return apart(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the namespace: %w", err)
		}
		return f()
	})
}

// Listen is net.Listen in the namespace.
func (n *NS) Listen(network, addr string) (l net.Listener, err error) {
	err = n.Do(func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

// ListenPacket is net.ListenPacket in the namespace.
func (n *NS) ListenPacket(network, addr string) (c net.PacketConn, err error) {
	err = n.Do(func() (err error) {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	return c, err
}

// Dial is net.Dial in the namespace, to one address, not a name.
func (n *NS) Dial(network, addr string) (c net.Conn, err error) {
	err = n.Do(func() (err error) {
		c, err = net.Dial(network, addr)
		return err
	})
	return c, err
}

// Start starts a process in the namespace. Whoever waits for it does so as
// usual.
func (n *NS) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Run runs a command in the namespace, such as one of iproute2, and fails the
// test with what it says if it fails.
func (n *NS) Run(t testing.TB, name string, args ...string) {
	t.Helper()
	err := n.Do(func() error {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
}

// Forward has the namespace pass packets on between its interfaces.
func (n *NS) Forward(t testing.TB) {
	t.Helper()
	err := n.Do(func() error {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // this kernel has no IPv6
		}
		return errors.Join(err, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Address gives the host itself an address, as in 192.0.2.1/32, whatever the
// interface that packets for it come in at.
func (n *NS) Address(t testing.TB, addr string) {
	t.Helper()
	lo, err := n.nl.LinkByName("lo")
	if err == nil {
		err = n.nl.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(addr))})
	}
	if err != nil {
		t.Fatalf("address %s: %v", addr, err)
	}
}

// Route leads dst, such as 0.0.0.0/0, through a gateway.
func (n *NS) Route(t testing.TB, dst, gateway string) {
	t.Helper()
	r := netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), Gw: netip.MustParseAddr(gateway).AsSlice()}
	if err := n.nl.RouteAdd(&r); err != nil {
		t.Fatalf("route to %s through %s: %v", dst, gateway, err)
	}
	n.routes = append(n.routes, r)
}

// Interfaces returns the names of the namespace's interfaces.
func (n *NS) Interfaces(t testing.TB) (names []string) {
	t.Helper()
	links, err := n.nl.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

// Cable joins two namespaces: an interface in each.
type Cable struct {
	Name string // of both interfaces
	ends [2]end
}

type end struct {
	ns   *NS
	addr netip.Prefix
	link netlink.Link
}

var cables atomic.Uint32

// Connect lays a cable between two namespaces. addrA and addrB are the
// addresses of its ends with their network, as in 10.1.0.1/24.
func Connect(t testing.TB, a, b *NS, addrA, addrB string) *Cable {
	t.Helper()
	c := &Cable{fmt.Sprintf("veth%d", cables.Add(1)), [2]end{
		{ns: a, addr: netip.MustParsePrefix(addrA)}, {ns: b, addr: netip.MustParsePrefix(addrB)}}}
	if err := c.lay(); err != nil {
		t.Fatalf("a cable with %s and %s: %v", addrA, addrB, err)
	}
	return c
}

func (c *Cable) lay() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = c.Name
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: c.Name, PeerNamespace: netlink.NsFd(int(c.ends[1].ns.file.Fd()))}
	if err := c.ends[0].ns.nl.LinkAdd(v); err != nil {
		return err
	}
	for i := range c.ends {
		e := &c.ends[i]
		var err error
		if e.link, err = e.ns.nl.LinkByName(c.Name); err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: ipNet(e.addr)}
		if e.addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // it can be used at once
		}
		if err := errors.Join(e.ns.nl.AddrAdd(e.link, a), e.ns.nl.LinkSetUp(e.link)); err != nil {
			return err
		}
	}
	return nil
}

// Cut has the cable lose all packets between its addresses without a word, as
// when a switch between two hosts dies: interfaces, addresses and routes stay.
func (c *Cable) Cut(t testing.TB) {
	t.Helper()
	for i := range c.ends {
		if err := c.ends[i].ns.nl.NeighSet(c.stranger(i)); err != nil {
			t.Fatalf("cutting %s: %v", c.Name, err)
		}
	}
}

// stranger says of the other end of the cable that it is where nobody is.
func (c *Cable) stranger(i int) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: c.ends[i].link.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: c.ends[1-i].addr.Addr().AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
}

// Unplug takes the interface of the first namespace down: there, nothing can
// be sent over the cable any more; the second one's has no carrier.
func (c *Cable) Unplug(t testing.TB) {
	t.Helper()
	if err := c.ends[0].ns.nl.LinkSetDown(c.ends[0].link); err != nil {
		t.Fatalf("unplugging %s: %v", c.Name, err)
	}
}

// Mend undoes Cut and Unplug.
func (c *Cable) Mend(t testing.TB) {
	t.Helper()
	for i := range c.ends {
		n := c.ends[i].ns
		if err := n.nl.NeighDel(c.stranger(i)); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatalf("mending %s: %v", c.Name, err)
		}
		if err := n.nl.LinkSetUp(c.ends[i].link); err != nil {
			t.Fatalf("mending %s: %v", c.Name, err)
		}
		for _, r := range n.routes { // those over the cable went with its interface
			if err := n.nl.RouteAdd(&r); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENETUNREACH) {
				t.Fatalf("mending %s: route %v: %v", c.Name, r, err)
			}
		}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
