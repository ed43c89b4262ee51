package vpn

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/fabric/tunneltest"
	"github.com/spacestore/space/internal/testenv/netns"
)

// tunIn opens a TUN device in a namespace.
func tunIn(t testing.TB, n *netns.NS) (d Device) {
	t.Helper()
	err := n.Do(func() (err error) {
		d, err = OpenTUN("")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// road is a client's host, an exit's host, and a host beyond, at 192.0.2.1.
type road struct {
	client, exit, beyond *netns.NS
	dev                  Device
	c                    *Client
	e                    *Exit
	lease                Lease
	stop                 func() error // of the client
}

func newRoad(t *testing.T, mtu, clientMTU int) *road {
	t.Helper()
	r := &road{client: netns.New(t), exit: netns.New(t), beyond: netns.New(t)}
	netns.Connect(t, r.exit, r.beyond, "192.0.2.2/24", "192.0.2.1/24")
	netns.Connect(t, r.exit, r.beyond, "2001:db8::2/64", "2001:db8::1/64")
	r.exit.Forward(t)
	r.beyond.Route(t, "10.77.0.0/24", "192.0.2.2")
	r.beyond.Route(t, "fd77::/64", "2001:db8::2")
	var err error
	if r.e, err = NewExit(ExitOptions{Device: tunIn(t, r.exit), Pools: nets("10.77.0.0/24", "fd77::/64"), MTU: mtu}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.e.Close() })
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, r.e, far, 1)
	leases := make(chan Lease, 100)
	r.dev = tunIn(t, r.client)
	if r.c, err = NewClient(ClientOptions{Device: r.dev, MTU: clientMTU, Routes: nets("0.0.0.0/0", "::/0"),
		Leased: func(l Lease) { leases <- l }}); err != nil {
		t.Fatal(err)
	}
	r.stop = run(t, r.c, near)
	r.lease = wait(t, "a lease", leases)
	return r
}

// TestHosts sends what hosts send through two TUN devices.
func TestHosts(t *testing.T) {
	r := newRoad(t, 0, 0)
	t.Run("ping", func(t *testing.T) {
		for _, to := range []string{"10.77.0.1", "192.0.2.1", "fd77::1", "2001:db8::1"} {
			ping(t, r.client, to)
		}
		ping(t, r.beyond, r.lease.V4.Addr.Addr().String())
		ping(t, r.beyond, r.lease.V6.Addr.Addr().String())
	})
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		t.Run("UDP "+to, func(t *testing.T) { udpBothWays(t, r, to) })
		t.Run("TCP "+to, func(t *testing.T) { tcpBothWays(t, r, to) })
	}

	if names := r.client.Interfaces(t); !slices.Contains(names, r.dev.Name()) {
		t.Fatalf("the client's host has no %s but %v", r.dev.Name(), names)
	}
	if err := r.stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	if err := r.e.Close(); err != nil {
		t.Error(err)
	}
	if names := append(r.client.Interfaces(t), r.exit.Interfaces(t)...); slices.Contains(names, r.dev.Name()) {
		t.Errorf("interfaces are left: %v", names)
	}
}

// TestLargePackets has TCP through devices of the largest MTU.
func TestLargePackets(t *testing.T) {
	tcpBothWays(t, newRoad(t, MaxMTU, 0), "192.0.2.1")
}

// TestSmallClient has a client with a smaller MTU than its exit: hosts beyond that
// send more at once hear of it.
func TestSmallClient(t *testing.T) {
	r := newRoad(t, 1500, MinMTU6)
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		tcpBothWays(t, r, to)
	}
	for f, a := range r.lease.byFamily() {
		network, level, option, mode := "udp4", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
		if family(f) == v6 {
			network, level, option, mode = "udp6", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
		}
		c, err := r.beyond.Dial(network, net.JoinHostPort(a.Addr.Addr().String(), "9"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err == nil {
			err = errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, mode) }), err)
		}
		if err != nil {
			t.Fatal(err)
		}
		until(t, "the sender hears of the MTU", func() bool {
			_, err := c.Write(make([]byte, 1400))
			return errors.Is(err, unix.EMSGSIZE)
		})
	}
}

// ping sends echo requests of several sizes until each was answered.
func ping(t *testing.T, from *netns.NS, to string) {
	t.Helper()
	network, any, echo, reply := "ip4:icmp", "0.0.0.0", byte(8), byte(0)
	if addr(to).Is6() {
		network, any, echo, reply = "ip6:ipv6-icmp", "::", 128, 129
	}
	c, err := from.ListenPacket(network, any)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	deadline := time.Now().Add(patience)
	for seq, size := range []int{0, 56, 1400, 4000} { // the last one in fragments
		b := binary.BigEndian.AppendUint32([]byte{echo, 0, 0, 0}, uint32(7<<16|seq))
		b = append(b, randomBytes(uint64(seq), size)...)
		if echo == 8 {
			binary.BigEndian.PutUint16(b[2:], checksum(0, b)) // that of IPv6 is the kernel's
		}
		want := slices.Clone(b)
		want[0], want[2], want[3] = reply, 0, 0
		got := make([]byte, 1<<16)
		for {
			if _, err := c.WriteTo(b, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			n, who, err := c.ReadFrom(got)
			if err == nil && who.String() == to && n >= 8 && got[0] == reply {
				got[2], got[3] = 0, 0
				if bytes.Equal(got[:n], want) {
					break
				}
			}
			if err != nil && !os.IsTimeout(err) || time.Now().After(deadline) {
				t.Fatalf("no answer from %s to %d bytes: %v", to, size, err)
			}
		}
	}
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // never fails
	return b
}

// udpBothWays sends datagrams to an echo service as fast as they go, and again
// those that were lost, until all have come back whole.
func udpBothWays(t *testing.T, r *road, beyond string) {
	const n, size, burst = 4000, 1000, 50 // a socket has room for 90
	s, err := r.beyond.ListenPacket("udp", net.JoinHostPort(beyond, "0"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2000)
		for {
			k, who, err := s.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = s.WriteTo(b[:k], who) // what is lost is sent again
		}
	})
	defer wg.Wait()
	defer s.Close()
	c, err := r.client.Dial("udp", s.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	payload := randomBytes(3, n+size)
	datagram := func(i int) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(i)), payload[i:i+size]...)
	}
	missing := make([]int, n)
	for i := range missing {
		missing[i] = i
	}
	sent := 0
	got := make([]byte, 2000)
	for end := time.Now().Add(patience); len(missing) > 0; {
		if time.Now().After(end) {
			t.Fatalf("%d datagrams of %d never come back", len(missing), n)
		}
		now := missing[:min(burst, len(missing))]
		for _, i := range now {
			sent++
			if _, err := c.Write(datagram(i)); err != nil && !errors.Is(err, unix.ENOBUFS) {
				t.Fatal(err)
			}
		}
		back := map[int]bool{}
		for len(back) < len(now) {
			if err := c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			k, err := c.Read(got)
			if os.IsTimeout(err) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			i := int(binary.BigEndian.Uint32(got))
			if i >= n || !bytes.Equal(got[:k], datagram(i)) {
				t.Fatalf("%d bytes that nobody has sent", k)
			}
			back[i] = true
		}
		missing = slices.DeleteFunc(missing, func(i int) bool { return back[i] })
	}
	t.Logf("%d datagrams of %d bytes there and back, %d lost", n, size, sent-n)
}

// tcpBothWays sends bytes to a service that answers with their hash, and with
// bytes of its own.
func tcpBothWays(t *testing.T, r *road, beyond string) {
	t.Helper()
	const size = 16 << 20
	there, back := randomBytes(1, size), randomBytes(2, size)
	l, err := r.beyond.Listen("tcp", net.JoinHostPort(beyond, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		var got []byte
		var rerr error
		var wg sync.WaitGroup
		wg.Go(func() { got, rerr = io.ReadAll(c) })
		_, err = c.Write(back)
		wg.Wait()
		sum := sha256.Sum256(got)
		_, err2 := c.Write(sum[:])
		served <- errors.Join(err, rerr, err2)
	}()
	began := time.Now()
	conn, err := r.client.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var werr error
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := conn.Write(there)
		werr = errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	})
	got, err := io.ReadAll(conn)
	wg.Wait()
	sum := sha256.Sum256(there)
	if err := errors.Join(err, werr, <-served); err != nil || !bytes.Equal(got, append(back, sum[:]...)) {
		t.Errorf("%d bytes of %d, %v", len(got), size+len(sum), err)
	}
	t.Logf("%d MiB each way in %v; the client's packets: %+v", size>>20, time.Since(began).Round(time.Millisecond), r.c.Stats())
}

// TestBatch has a host send many packets before anybody reads: one read gets
// them all.
func TestBatch(t *testing.T) {
	n := netns.New(t)
	d := tunIn(t, n)
	if err := d.Configure(Config{Addrs: nets("10.77.0.1/24"), MTU: 1500}); err != nil {
		t.Fatal(err)
	}
	c, err := n.Dial("udp4", "10.77.0.2:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const packets = 300 // the kernel's queue is longer
	for i := range packets {
		if _, err := fmt.Fprint(c, "packet ", i); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for calls := 1; len(got) < packets; calls++ {
		batch, err := d.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range batch {
			if p, ok := parse(b); ok && p.dst == addr("10.77.0.2") {
				got = append(got, string(b[minHeader+8:]))
			}
		}
		if calls > 3 { // a packet of IPv6 may have been first
			t.Fatalf("%d packets in %d reads", len(got), calls)
		}
	}
	for i := range got {
		if want := fmt.Sprint("packet ", i); got[i] != want {
			t.Fatalf("%q, not %q", got[i], want)
		}
	}
}

// TestConfigure changes an interface, and looks at the host's routes.
func TestConfigure(t *testing.T) {
	n, router := netns.New(t), netns.New(t)
	netns.Connect(t, n, router, "10.1.0.2/24", "10.1.0.1/24")
	netns.Connect(t, n, router, "2001:db8:1::2/64", "2001:db8:1::1/64")
	n.Route(t, "0.0.0.0/0", "10.1.0.1")
	n.Route(t, "::/0", "2001:db8:1::1")
	d := tunIn(t, n)
	var nl *netlink.Handle
	if err := n.Do(func() (err error) {
		nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	want := func(ways map[string]string) {
		t.Helper()
		for dst, name := range ways {
			rs, err := nl.RouteGet(net.ParseIP(dst))
			if err != nil {
				t.Fatal(err)
			}
			l, err := nl.LinkByIndex(rs[0].LinkIndex)
			if err != nil {
				t.Fatal(err)
			}
			if (l.Attrs().Name == d.Name()) != (name == "tun") {
				t.Errorf("%s is reached through %s", dst, l.Attrs().Name)
			}
		}
	}
	c := Config{nets("10.77.0.2/24", "fd77::2/64"), 1400, nets("192.0.2.0/24", "2001:db8:2::/48"), nil, nil}
	if err := d.Configure(c); err != nil {
		t.Fatal(err)
	}
	want(map[string]string{"10.77.0.1": "tun", "192.0.2.1": "tun", "198.51.100.1": "cable",
		"fd77::1": "tun", "2001:db8:2::1": "tun", "2001:db8:3::1": "cable"})
	c.Addrs, c.Routes, c.Bypass = nets("10.77.0.3/24", "fd77::3/64"), nets("0.0.0.0/0", "::/0"), nets("198.51.100.1/32", "2001:db8:5::1/128")
	c.Around = []netip.Addr{addr("198.51.100.7"), addr("2001:db8:7::1"), addr("10.1.0.2")} // the last one is the host's own
	for range 2 {
		if err := d.Configure(c); err != nil {
			t.Fatal(err)
		}
		want(map[string]string{"10.77.0.1": "tun", "8.8.8.8": "tun", "198.51.100.1": "cable", "10.1.0.1": "cable",
			"198.51.100.7": "cable", "2001:db8:7::1": "cable",
			"fd77::1": "tun", "2001:db8:3::1": "tun", "2001:db8:5::1": "cable", "2001:db8:1::1": "cable"})
	}
	// A node that is heard of later, such as the next exit, is kept out likewise.
	c.Around = append(c.Around, addr("198.51.100.9"), addr("2001:db8:7::9"), addr("10.77.0.9"))
	if err := d.Configure(c); err != nil {
		t.Fatal(err)
	}
	want(map[string]string{"198.51.100.9": "cable", "2001:db8:7::9": "cable", "10.77.0.9": "tun", "8.8.8.8": "tun"})
	if addrs, err := nl.AddrList(nil, netlink.FAMILY_V6); err != nil || slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() && a.Label == d.Name() }) {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	own := c
	own.Routes = append(nets("10.1.0.0/24"), c.Routes...)
	if err := d.Configure(own); err == nil || !strings.Contains(err.Error(), "has one already") {
		t.Errorf("a route that the host has itself: %v", err)
	}
	want(map[string]string{"10.1.0.1": "cable"})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	rs, err := nl.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	if len(rs) != 2 {
		t.Errorf("routes are left: %v", rs)
	}
	if _, err := d.Receive(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Receive after Close: %v", err)
	}
	if err := d.Configure(c); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Configure after Close: %v", err)
	}
}

// TestNameTaken wants an interface that is there.
func TestNameTaken(t *testing.T) {
	n := netns.New(t)
	d := tunIn(t, n)
	err := n.Do(func() error {
		d, err := OpenTUN(d.Name())
		if err == nil {
			d.Close()
		}
		return err
	})
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("opened twice: %v", err)
	}
}
