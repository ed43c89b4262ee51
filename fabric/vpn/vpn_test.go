package vpn

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/fabric/tunneltest"
	"github.com/spacestore/space/internal/testenv/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience bounds hangs, nothing else.
const patience = 5 * time.Minute

// paper is a Device in memory.
type paper struct {
	out        chan [][]byte // what the host sends into it
	in         chan []byte   // what the host has got out of it
	configured chan Config
	closed     chan struct{}
	once       sync.Once
}

func newPaper() *paper {
	return &paper{out: make(chan [][]byte), in: make(chan []byte, 1<<14), configured: make(chan Config, 100), closed: make(chan struct{})}
}

func (d *paper) Name() string { return "paper" }

func (d *paper) Configure(c Config) error {
	d.configured <- c
	return nil
}

func (d *paper) Receive() ([][]byte, error) {
	select {
	case ps := <-d.out:
		return ps, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *paper) Send(ps [][]byte) (int, error) {
	for _, p := range ps {
		d.in <- p
	}
	return 0, nil
}

func (d *paper) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// host sends packets into the device.
func (d *paper) host(ps ...[]byte) { d.out <- ps }

// next returns the next packet that the host gets.
func (d *paper) next(t *testing.T) []byte {
	t.Helper()
	select {
	case p := <-d.in:
		return p
	case <-time.After(patience):
		t.Fatal("no packet comes")
		return nil
	}
}

// udpPacket returns an IPv4 packet, whose checksums nobody looks at.
func udpPacket(src, dst netip.Addr, port uint16, payload string) []byte {
	b := make([]byte, minHeader+8, minHeader+8+len(payload))
	b[0], b[9] = 0x45, udp
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[minHeader:], 40000)
	binary.BigEndian.PutUint16(b[minHeader+2:], port)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

var outside = netip.MustParseAddr("192.0.2.1")

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func nets(texts ...string) (list []netip.Prefix) {
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// assigned is what a lease has of one family; "": nothing.
func assigned(addr, gateway string) (a Assigned) {
	if addr != "" {
		a = Assigned{netip.MustParsePrefix(addr), netip.MustParseAddr(gateway)}
	}
	return a
}

// wants is a hello of an older client, which knows IPv4 alone.
func wants(mtu int, a string) hello {
	h := hello{mtu: mtu}
	if a != "" {
		h.want[v4] = addr(a)
	}
	return h
}

func newExit(t *testing.T, pools ...string) (*Exit, *paper) {
	t.Helper()
	d := newPaper()
	e, err := NewExit(ExitOptions{Device: d, Pools: nets(pools...)})
	if err != nil {
		t.Fatal(err)
	}
	<-d.configured
	t.Cleanup(func() { e.Close() })
	return e, d
}

// serve has an exit serve a tunnel until the test ends or stop is called.
func serve(t *testing.T, e *Exit, tunnel Tunnel, id byte) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.Serve(ctx, tunnel, fabric.TunnelID{id}, identity.NodeID{id}); err == nil {
			t.Error("the exit does not say why it has ended")
		}
	})
	stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// run runs a client. stop ends it and returns what Run has returned.
func run(t *testing.T, c *Client, tunnel Tunnel) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { err = c.Run(ctx, tunnel) })
	stop = func() error {
		cancel()
		wg.Wait()
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

func newClient(t *testing.T, o ClientOptions) (*Client, *paper, <-chan Lease) {
	t.Helper()
	d, leases := newPaper(), make(chan Lease, 100)
	o.Device, o.Leased = d, func(l Lease) { leases <- l }
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	return c, d, leases
}

func wait[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("waited in vain: %s", what)
	}
	return v
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestPacketsBothWays(t *testing.T) {
	e, exitDev := newExit(t, "10.77.0.0/24")
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	c, dev, leases := newClient(t, ClientOptions{MTU: 1400, Routes: nets("0.0.0.0/0", "::/0")})
	stop := run(t, c, near)
	l := wait(t, "a lease", leases)
	if want := (Lease{V4: assigned("10.77.0.2/24", "10.77.0.1"), MTU: 1400}); l != want {
		t.Fatalf("lease %+v, not %+v", l, want)
	}
	cfg := <-dev.configured
	if !slices.Equal(cfg.Addrs, nets("10.77.0.2/24")) || cfg.MTU != 1400 || len(cfg.Routes) != 1 {
		t.Errorf("the device has become %+v", cfg)
	}
	out := udpPacket(l.V4.Addr.Addr(), outside, 5000, "there")
	dev.host(out, udpPacket(addr("10.77.0.3"), outside, 5000, "of another"), []byte{0x60}, nil)
	if got := exitDev.next(t); !bytes.Equal(got, out) {
		t.Errorf("the exit's host gets %x", got)
	}
	back := udpPacket(outside, l.V4.Addr.Addr(), 5000, "and back")
	exitDev.host(udpPacket(outside, addr("10.77.0.99"), 5000, "to nobody"), back)
	if got := dev.next(t); !bytes.Equal(got, back) {
		t.Errorf("the client's host gets %x", got)
	}
	n := int64(len(out))
	until(t, "the client has counted", func() bool { return c.Stats() == Stats{1, n, 1, int64(len(back)), 2, 1, 0} })
	until(t, "the exit has counted", func() bool { return e.Stats() == Stats{1, int64(len(back)), 1, n, 0, 1, 0} })
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	wait(t, "the device's end", dev.closed)
	until(t, "the address comes back", func() bool { return len(e.Leases()) == 0 })
}

// TestNobodySpeaksForOthers sends packets over a tunnel that are not from its
// address, and what is no packet at all.
func TestNobodySpeaksForOthers(t *testing.T) {
	e, exitDev := newExit(t, "10.77.0.0/24")
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	ready(t, near)
	early := udpPacket(addr("10.77.0.2"), outside, 5000, "before the lease")
	if err := near.SendPackets([][]byte{early}); err != nil {
		t.Fatal(err)
	}
	until(t, "it is refused", func() bool { return e.Stats().Foreign == 1 })
	st := lease(t, near, wants(1500, ""), addr("10.77.0.2"))
	defer st.Close()
	good := udpPacket(addr("10.77.0.2"), outside, 5000, "good")
	cut := append([]byte(nil), good[:len(good)-1]...)
	packets := [][]byte{udpPacket(addr("10.77.0.3"), outside, 5000, "x"), udpPacket(addr("10.77.0.1"), outside, 53, "x"), cut, {}, good}
	if err := near.SendPackets(packets); err != nil {
		t.Fatal(err)
	}
	// DNS takes another way, and is looked at as well.
	dns, err := near.Open(t.Context(), frame.DNS, []byte{wireVersion, kindDNS})
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	query := udpPacket(addr("10.77.0.2"), outside, 53, "query")
	for _, p := range [][]byte{udpPacket(addr("10.77.0.4"), outside, 53, "x"), {1, 2, 3}, query} {
		if _, err := dns.Write(append([]byte{byte(len(p) >> 8), byte(len(p))}, p...)); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]bool{string(exitDev.next(t)): true, string(exitDev.next(t)): true}
	if !got[string(good)] || !got[string(query)] {
		t.Errorf("the host gets %v", got)
	}
	if s := e.Stats(); s.Foreign != 4 || s.Malformed != 3 {
		t.Errorf("%+v", s)
	}
}

// ready waits until a tunnel is served.
func ready(t *testing.T, tunnel Tunnel) {
	t.Helper()
	st, err := tunnel.Open(t.Context(), frame.Control, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Read(make([]byte, 1)); err == nil {
		t.Fatal("a stream without a header is not reset")
	}
}

// lease asks for an address as a client does, and wants one.
func lease(t *testing.T, tunnel Tunnel, h hello, want netip.Addr) fabric.Stream {
	t.Helper()
	st, l, err := ask(t, tunnel, h)
	if err != nil || l.V4.Addr.Addr() != want {
		t.Fatalf("lease %+v, %v; not %v", l, err, want)
	}
	return st
}

func ask(t *testing.T, tunnel Tunnel, h hello) (fabric.Stream, Lease, error) {
	t.Helper()
	st, err := tunnel.Open(t.Context(), frame.Control, []byte{wireVersion, kindControl})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.write(st); err != nil {
		t.Fatal(err)
	}
	var l Lease
	return st, l, l.read(st)
}

// TestDNSHasItsOwnWay has DNS pass while the packet plane is lost.
func TestDNSHasItsOwnWay(t *testing.T) {
	e, exitDev := newExit(t, "10.77.0.0/24")
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	c, dev, leases := newClient(t, ClientOptions{})
	run(t, c, lossy{near})
	l := wait(t, "a lease", leases)
	dev.host(udpPacket(l.V4.Addr.Addr(), outside, 80, "lost"))
	query := udpPacket(l.V4.Addr.Addr(), outside, 53, "query")
	dev.host(query)
	if got := exitDev.next(t); !bytes.Equal(got, query) {
		t.Fatalf("the exit's host gets %x", got)
	}
	until(t, "the loss is counted", func() bool { return c.Stats().Dropped == 1 })
	answer := udpPacket(outside, l.V4.Addr.Addr(), 53, "answer")
	exitDev.host(answer)
	if got := dev.next(t); !bytes.Equal(got, answer) {
		t.Errorf("the client's host gets %x", got)
	}
}

// lossy is a tunnel whose packet plane does not work.
type lossy struct{ *tunneltest.Tunnel }

func (lossy) SendPackets([][]byte) error { return session.ErrLost }

// TestLeaseOutlivesExit has the exit stop serving, and serve again.
func TestLeaseOutlivesExit(t *testing.T) {
	e, _ := newExit(t, "10.77.0.0/24")
	near, far := tunneltest.Pair(t, session.Options{})
	other, otherFar := tunneltest.Pair(t, session.Options{})
	stopServing := serve(t, e, far, 1)
	serve(t, e, otherFar, 2)
	c, _, leases := newClient(t, ClientOptions{})
	run(t, c, near)
	first := wait(t, "a lease", leases)
	stopServing()
	until(t, "the address comes back", func() bool { return len(e.Leases()) == 0 })
	defer lease(t, other, wants(1500, first.V4.Addr.Addr().String()), addr("10.77.0.3")).Close() // it is not anybody's
	serve(t, e, far, 1)
	if again := wait(t, "a lease again", leases); again != first {
		t.Errorf("lease %+v after %+v", again, first)
	}

	// An exit that knows nothing of it gives the address that is wanted.
	e2, _ := newExit(t, "10.77.0.0/24")
	near2, far2 := tunneltest.Pair(t, session.Options{})
	serve(t, e2, far2, 3)
	lease(t, near2, wants(1500, "10.77.0.200"), addr("10.77.0.200")).Close()
}

// TestAnotherExit has the tunnel move to another node while the one before still
// serves its streams.
func TestAnotherExit(t *testing.T) {
	e, _ := newExit(t, "10.77.0.0/24")
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	c, _, leases := newClient(t, ClientOptions{})
	run(t, c, near)
	first := wait(t, "a lease", leases)
	near.Move(identity.NodeID{5})
	if again := wait(t, "a lease from the other", leases); again != first {
		t.Errorf("lease %+v after %+v", again, first)
	}
}

func TestPool(t *testing.T) {
	key := func(n int) leaseKey { return leaseKey{identity.NodeID{byte(n)}, fabric.TunnelID{byte(n)}} }
	p := newPool(netip.MustParsePrefix("10.0.0.0/29")) // 2 to 6
	want := func(k leaseKey, hint, a string) {
		t.Helper()
		h, _ := netip.ParseAddr(hint)
		if got, err := p.lease(k, h); err != nil || got != addr(a) {
			t.Errorf("%v gets %v, %v; not %s", k, got, err, a)
		}
	}
	want(key(1), "", "10.0.0.2")
	want(key(2), "10.0.0.5", "10.0.0.5")
	want(key(3), "10.0.0.5", "10.0.0.3") // somebody's
	want(key(4), "10.0.0.1", "10.0.0.4") // the exit's
	want(key(5), "10.0.0.7", "10.0.0.6") // broadcast
	if a, err := p.lease(key(6), netip.Addr{}); err == nil {
		t.Errorf("a sixth of five: %v", a)
	}
	p.release(key(3))
	p.release(key(1))
	want(key(3), "", "10.0.0.3")
	p.release(key(3))
	want(key(6), "", "10.0.0.2") // the one that is free for the longest
	want(leaseKey{key(3).peer, fabric.TunnelID{99}}, "10.0.0.3", "10.0.0.3")
	if _, err := p.lease(key(1), netip.Addr{}); err == nil {
		t.Error("an address twice")
	}
}

func TestPoolUsedUp(t *testing.T) {
	e, _ := newExit(t, "10.77.0.0/30")
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	defer lease(t, near, wants(1500, ""), addr("10.77.0.2")).Close()
	near2, far2 := tunneltest.Pair(t, session.Options{})
	serve(t, e, far2, 2)
	c, _, _ := newClient(t, ClientOptions{})
	var reset *session.ResetError
	if err := c.Run(t.Context(), near2); !errors.As(err, &reset) || reset.Code != CodeNoAddress {
		t.Errorf("Run: %v", err)
	}
}

// TestNonsense sends an exit what no client says.
func TestNonsense(t *testing.T) {
	e, _ := newExit(t, "10.77.0.0/24")
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	for _, c := range []struct{ header, body string }{
		{"", ""}, {"\x01\x09", ""}, {"\x02\x01", ""},
		{"\x01\x01", "\x00\x01x"},
		{"\x01\x01", "\xff\xff"},
		{"\x01\x01", "\x00\x06\x00\x01\x00\x00\x00\x00"},
		{"\x01\x01", "\x00\x06\x05\xdc\x00\x00\x00\x00more"},
	} {
		st, err := near.Open(t.Context(), frame.Control, []byte(c.header))
		if err != nil {
			t.Fatal(err)
		}
		var reset *session.ResetError
		if _, err := io.WriteString(st, c.body); err != nil && !errors.As(err, &reset) { // the answer may be here already
			t.Fatal(err)
		}
		if _, err := io.ReadAll(st); !errors.As(err, &reset) || reset.Code != CodeMalformed {
			t.Errorf("%q and %q: %v", c.header, c.body, err)
		}
	}
	until(t, "no lease stays", func() bool { return len(e.Leases()) == 0 })
	lease(t, near, wants(1500, ""), addr("10.77.0.2")).Close() // and it still works
}

// TestSecondControlStream has a tunnel ask twice: the later one counts.
func TestSecondControlStream(t *testing.T) {
	e, exitDev := newExit(t, "10.77.0.0/24")
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	st := lease(t, near, wants(1500, ""), addr("10.77.0.2"))
	defer lease(t, near, wants(1500, ""), addr("10.77.0.2")).Close()
	var reset *session.ResetError
	if _, err := io.ReadAll(st); !errors.As(err, &reset) || reset.Code != CodeReplaced {
		t.Errorf("the first stream: %v", err)
	}
	p := udpPacket(addr("10.77.0.2"), outside, 80, "x")
	if err := near.SendPackets([][]byte{p}); err != nil {
		t.Fatal(err)
	}
	if got := exitDev.next(t); !bytes.Equal(got, p) {
		t.Errorf("the host gets %x", got)
	}
}

// TestBadExit has a client meet an exit that gives it nonsense.
func TestBadExit(t *testing.T) {
	for _, l := range []Lease{
		{V4: assigned("10.77.0.2/24", "10.77.0.2"), MTU: 1500}, // its own gateway
		{V4: assigned("127.0.0.2/24", "127.0.0.1"), MTU: 1500},
		{V4: assigned("10.77.0.255/24", "10.77.0.1"), MTU: 1500},
		{V4: assigned("10.77.0.2/24", "10.78.0.1"), MTU: 1500},
		{V4: assigned("10.77.0.2/0", "10.77.0.1"), MTU: 1500},
		{V4: Assigned{Gateway: addr("10.77.0.1")}, MTU: 1500},
		{V4: assigned("10.77.0.2/24", "10.77.0.1"), MTU: 5},
		{V6: assigned("fd77::2/64", "fd77::2"), MTU: 1500},
		{V6: assigned("fd77::/64", "fd77::1"), MTU: 1500},
		{V6: assigned("fd77::2/64", "fd78::1"), MTU: 1500},
		{V6: assigned("fe80::2/64", "fe80::1"), MTU: 1500},
		{V6: assigned("ff02::2/64", "ff02::1"), MTU: 1500},
		{V6: assigned("::ffff:10.0.0.2/96", "::ffff:10.0.0.1"), MTU: 1500},
		{V6: assigned("fd77::2/64", "fd77::1"), MTU: 1279},
		{V4: assigned("10.77.0.2/24", "10.77.0.1"), V6: assigned("fd77::2/8", "fd77::1"), MTU: 1500},
		{MTU: 1500},
	} {
		var b bytes.Buffer
		if err := l.write(&b); err != nil {
			t.Fatal(err)
		}
		var got Lease
		if err := got.read(&b); err == nil {
			t.Errorf("%+v is taken", l)
		}
	}
}

func TestTunnelEnds(t *testing.T) {
	e, _ := newExit(t, "10.77.0.0/24")
	near, far := tunneltest.Pair(t, session.Options{Resume: time.Second})
	served := make(chan error, 1)
	go func() { served <- e.Serve(context.Background(), far, fabric.TunnelID{1}, identity.NodeID{1}) }()
	c, dev, leases := newClient(t, ClientOptions{})
	ran := make(chan error, 1)
	go func() { ran <- c.Run(context.Background(), near) }()
	wait(t, "a lease", leases)
	far.Close()
	if err := wait(t, "the exit's end", served); !gone(err) {
		t.Errorf("Serve: %v", err)
	}
	if err := wait(t, "the client's end", ran); !gone(err) {
		t.Errorf("Run: %v", err)
	}
	wait(t, "the device's end", dev.closed)
}

// TestNextTunnel has a tunnel end, and another one be there, to an exit that has
// restarted.
func TestNextTunnel(t *testing.T) {
	e, _ := newExit(t, "10.77.0.0/24")
	restarted, exitDev := newExit(t, "10.77.0.0/24")
	near, far := tunneltest.Pair(t, session.Options{})
	next, nextFar := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	serve(t, restarted, nextFar, 1)
	c, dev, leases := newClient(t, ClientOptions{Again: func(context.Context) (Tunnel, error) { return next, nil }})
	run(t, c, near)
	first := wait(t, "a lease", leases)
	near.Close()
	if again := wait(t, "a lease again", leases); again != first {
		t.Errorf("lease %+v after %+v", again, first)
	}
	p := udpPacket(first.V4.Addr.Addr(), outside, 80, "x")
	dev.host(p)
	if got := exitDev.next(t); !bytes.Equal(got, p) {
		t.Errorf("the exit's host gets %x", got)
	}
}

// gone reports whether a session has ended: the last word may be lost.
func gone(err error) bool {
	return errors.Is(err, session.ErrClosed) || errors.Is(err, session.ErrLost)
}

func TestExitCloses(t *testing.T) {
	d := newPaper()
	e, err := NewExit(ExitOptions{Device: d, Pools: nets("10.77.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	_, far := tunneltest.Pair(t, session.Options{})
	served := make(chan error, 1)
	go func() { served <- e.Serve(context.Background(), far, fabric.TunnelID{1}, identity.NodeID{1}) }()
	e.Close()
	if err := wait(t, "the end", served); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
	wait(t, "the device's end", d.closed)
}

func TestOptions(t *testing.T) {
	for _, pool := range []string{"10.0.0.0/31", "10.0.0.0/7", "127.0.0.0/24", "224.0.0.0/24", "fd00::/127", "fd00::/16", "fe80::/64", "ff02::/64", "::ffff:10.0.0.0/120"} {
		if _, err := NewExit(ExitOptions{Device: newPaper(), Pools: nets(pool)}); err == nil {
			t.Errorf("a pool of %s", pool)
		}
	}
	if _, err := NewExit(ExitOptions{Device: newPaper()}); err == nil {
		t.Error("no pool")
	}
	if _, err := NewClient(ClientOptions{MTU: 100}); err == nil {
		t.Error("an MTU of 100")
	}
	if _, err := NewExit(ExitOptions{Device: newPaper(), Pools: nets("fd77::/64"), MTU: 1279}); err == nil {
		t.Error("IPv6 with an MTU of 1279")
	}
	if _, err := NewExit(ExitOptions{Device: newPaper(), Pools: nets("fd77::/64", "fd78::/64")}); err == nil {
		t.Error("two networks of IPv6")
	}
	if _, err := NewClient(ClientOptions{Routes: []netip.Prefix{{}}}); err == nil {
		t.Error("a route to nowhere")
	}
}

// TestQueueIsBounded puts more into a queue than it takes.
func TestQueueIsBounded(t *testing.T) {
	q := newQueue(100)
	if !q.put(batch{nil, 60}) || q.put(batch{nil, 60}) || !q.put(batch{nil, 40}) || q.put(batch{nil, 1}) {
		t.Error("not 100 bytes fit")
	}
	if b, ok := q.take(nil); !ok || b.size != 60 {
		t.Errorf("%v %v", b, ok)
	}
	if !q.put(batch{nil, 60}) {
		t.Error("what was taken still counts")
	}
}

// udpPacket6 is udpPacket in IPv6, behind extension headers.
func udpPacket6(src, dst netip.Addr, port uint16, payload string, extensions ...byte) []byte {
	b := make([]byte, minHeader6)
	b[0], b[6] = 0x60, udp
	next := &b[6]
	for _, kind := range extensions {
		*next = kind
		b = append(b, udp, 0, 0, 0, 0, 0, 0, 0)
		next = &b[len(b)-8]
	}
	if len(extensions) > 0 {
		b[6] = extensions[0]
	}
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	b = binary.BigEndian.AppendUint16(b, 40000)
	b = binary.BigEndian.AppendUint16(b, port)
	b = append(append(b, 0, 0, 0, 0), payload...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-minHeader6))
	return b
}

var outside6 = netip.MustParseAddr("2001:db8::1")

// TestBothFamilies has an exit of IPv4 and IPv6 meet clients of its age and older
// ones, and a client meet exits of either.
func TestBothFamilies(t *testing.T) {
	e, exitDev := newExit(t, "10.77.0.0/24", "fd77::/64")
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	c, dev, leases := newClient(t, ClientOptions{Routes: nets("0.0.0.0/0", "::/0")})
	run(t, c, near)
	l := wait(t, "a lease", leases)
	if want := (Lease{assigned("10.77.0.2/24", "10.77.0.1"), assigned("fd77::2/64", "fd77::1"), DefaultMTU}); l != want {
		t.Fatalf("lease %+v, not %+v", l, want)
	}
	if cfg := <-dev.configured; !slices.Equal(cfg.Addrs, nets("10.77.0.2/24", "fd77::2/64")) || len(cfg.Routes) != 2 {
		t.Errorf("the device has become %+v", cfg)
	}
	for _, p := range [][]byte{udpPacket(addr("10.77.0.2"), outside, 80, "4"), udpPacket6(addr("fd77::2"), outside6, 80, "6"),
		udpPacket6(addr("fd77::2"), outside6, 53, "query", hopByHop, destination, fragment)} {
		dev.host(udpPacket6(addr("fd77::3"), outside6, 80, "of another"), p)
		if got := exitDev.next(t); !bytes.Equal(got, p) {
			t.Errorf("the exit's host gets %x, not %x", got, p)
		}
	}
	back := udpPacket6(outside6, addr("fd77::2"), 80, "back")
	exitDev.host(udpPacket6(outside6, addr("fd77::9"), 80, "to nobody"), back)
	if got := dev.next(t); !bytes.Equal(got, back) {
		t.Errorf("the client's host gets %x", got)
	}

	near2, far2 := tunneltest.Pair(t, session.Options{})
	serve(t, e, far2, 2)
	st, l, err := ask(t, near2, wants(1500, "")) // an older client
	if err != nil || l.V6.ok() || l.V4.Addr != netip.MustParsePrefix("10.77.0.3/24") {
		t.Errorf("an older client gets %+v, %v", l, err)
	}
	st.Close()
	st, l, err = ask(t, near2, hello{mtu: 1000, six: true})
	if err != nil || l.V6.ok() {
		t.Errorf("a client with an MTU of 1000 gets %+v, %v", l, err)
	}
	st.Close()

	e6, _ := newExit(t, "fd78::/126")
	near3, far3 := tunneltest.Pair(t, session.Options{})
	serve(t, e6, far3, 3)
	var reset *session.ResetError
	if _, l, err := ask(t, near3, wants(1500, "")); !errors.As(err, &reset) || reset.Code != CodeNoAddress {
		t.Errorf("an older client gets %+v, %v, of an exit of IPv6", l, err)
	}
	c, dev, leases = newClient(t, ClientOptions{Routes: nets("0.0.0.0/0", "::/0")})
	run(t, c, near3)
	if l, cfg := wait(t, "a lease", leases), <-dev.configured; l.V4.ok() || l.V6.Addr != netip.MustParsePrefix("fd78::2/126") ||
		!slices.Equal(cfg.Routes, nets("::/0")) {
		t.Errorf("lease %+v, device %+v", l, cfg)
	}
}

// TestWithoutIPv6 has a client on a host whose devices take no address of IPv6.
func TestWithoutIPv6(t *testing.T) {
	e, _ := newExit(t, "10.77.0.0/24", "fd77::/64")
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	leases := make(chan Lease, 1)
	c, err := NewClient(ClientOptions{Device: old{newPaper()}, Routes: nets("0.0.0.0/0", "::/0"), Leased: func(l Lease) { leases <- l }})
	if err != nil {
		t.Fatal(err)
	}
	run(t, c, near)
	if l := wait(t, "a lease", leases); l.V6.ok() || !l.V4.ok() {
		t.Errorf("lease %+v", l)
	}
}

// old is a device that knows IPv4 alone.
type old struct{ *paper }

func (d old) Configure(c Config) error {
	for _, p := range slices.Concat(c.Addrs, c.Routes) {
		if p.Addr().Is6() {
			return errors.New("permission denied")
		}
	}
	return d.paper.Configure(c)
}

// TestTooBig has hosts beyond the exit send more than a client takes.
func TestTooBig(t *testing.T) {
	e, exitDev := newExit(t, "10.77.0.0/24", "fd77::/64")
	near, far := tunneltest.Pair(t, session.Options{})
	serve(t, e, far, 1)
	c, dev, leases := newClient(t, ClientOptions{MTU: MinMTU6})
	run(t, c, near)
	l := wait(t, "a lease", leases)
	long := strings.Repeat("x", 1400)
	whole := udpPacket(outside, l.V4.Addr.Addr(), 80, long)
	whole[6] = 0x40 // may not be fragmented
	exitDev.host(whole)
	got := exitDev.next(t)
	if p, ok := parse(got); !ok || p.src != l.V4.Addr.Addr() || p.dst != outside || len(got) != 576 || got[20] != 3 || got[21] != 4 ||
		binary.BigEndian.Uint16(got[26:]) != MinMTU6 || !bytes.Equal(got[28:], whole[:548]) || checksum(0, got[:20]) != 0 || checksum(0, got[20:]) != 0 {
		t.Errorf("the answer to IPv4 is %x", got)
	}
	exitDev.host(udpPacket6(outside6, l.V6.Addr.Addr(), 80, long))
	got = exitDev.next(t)
	if p, ok := parse(got); !ok || p.src != l.V6.Addr.Addr() || p.dst != outside6 || len(got) != MinMTU6 || got[40] != 2 || got[41] != 0 ||
		binary.BigEndian.Uint32(got[44:]) != MinMTU6 || checksum(sum(uint32(len(got)-40)+icmp6, got[8:40]), got[40:]) != 0 {
		t.Errorf("the answer to IPv6 is %x", got)
	}
	// What may be fragmented comes whole: the tunnel has no limit of its own.
	loose := udpPacket(outside, l.V4.Addr.Addr(), 80, long)
	exitDev.host(loose)
	if got := dev.next(t); !bytes.Equal(got, loose) {
		t.Errorf("the client's host gets %d bytes of %d", len(got), len(loose))
	}
	// No answers to answers.
	for _, b := range [][]byte{append(whole[:20:20], 3), append(whole[:20:20], 11)} {
		b[9] = icmp
		if p, _ := parse(whole); tooBig(b, p, 500) != nil {
			t.Errorf("an answer to an answer: %x", b)
		}
	}
	six := udpPacket6(outside6, l.V6.Addr.Addr(), 80, "")
	six[6], six[40] = icmp6, 1
	if p, _ := parse(six); tooBig(six, p, 500) != nil {
		t.Error("an answer to an answer of IPv6")
	}
}

// TestPoolOfIPv6 has many come and go: what a pool remembers is bounded.
func TestPoolOfIPv6(t *testing.T) {
	p := newPool(netip.MustParsePrefix("fd77::/64"))
	first := leaseKey{tunnel: fabric.TunnelID{0xff}}
	for i := range maxIdle + 10 {
		k := leaseKey{tunnel: fabric.TunnelID{byte(i), byte(i >> 8)}}
		if i == 0 {
			k = first
		}
		if _, err := p.lease(k, netip.Addr{}); err != nil {
			t.Fatal(err)
		}
		p.release(k)
	}
	if len(p.by) != maxIdle || len(p.owner) != maxIdle || len(p.idle) != maxIdle {
		t.Errorf("%d, %d and %d are remembered", len(p.by), len(p.owner), len(p.idle))
	}
	small := newPool(netip.MustParsePrefix("fd77::/126"))
	for _, want := range []string{"fd77::2", "fd77::3", ""} {
		a, err := small.lease(leaseKey{tunnel: fabric.TunnelID{byte(len(small.by) + 1)}}, netip.Addr{})
		if want == "" && err == nil || want != "" && a != addr(want) {
			t.Errorf("%v, %v; not %s", a, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(udpPacket(addr("10.77.0.2"), outside, 53, "x"))
	f.Add(udpPacket(addr("10.77.0.2"), outside, 80, "x")[:minHeader])
	options := append([]byte{0x46, 0, 0, 28, 0, 0, 0, 0, 64, tcp}, make([]byte, 18)...)
	f.Add(options)
	f.Add(udpPacket6(addr("fd77::2"), outside6, 53, "x", hopByHop, routing, fragment, destination))
	f.Add(udpPacket6(addr("fd77::2"), outside6, 80, ""))
	f.Add([]byte{0x4f, 0, 0, 20, 0, 0, 0, 0, 0, 17, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parse(b)
		if ok && (len(b) < minHeader || p.src.Is4() != p.dst.Is4() || p.src.Is4() && p.src.As4() != [4]byte(b[12:16]) ||
			p.src.Is6() && p.src.As16() != [16]byte(b[8:24])) {
			t.Errorf("%x is from %v to %v", b, p.src, p.dst)
		}
		if ok {
			if a := tooBig(b, p, 1280); a != nil {
				if answer, ok := parse(a); !ok || answer.dst != p.src || answer.src != p.dst || len(a) > MinMTU6 {
					t.Errorf("%x is answered by %x", b, a)
				}
			}
		}
		if !ok && p.dns {
			t.Error("DNS in what is no packet")
		}
	})
}

func FuzzMessages(f *testing.F) {
	var b bytes.Buffer
	if err := (hello{1500, [families]netip.Addr{addr("10.77.0.2"), addr("fd77::2")}, true}).write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	b = bytes.Buffer{}
	if err := (Lease{assigned("10.77.0.2/24", "10.77.0.1"), assigned("fd77::2/64", "fd77::1"), 1500}).write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		var h, h2 hello
		if h.read(bytes.NewReader(b)) == nil {
			var again bytes.Buffer
			if err := errors.Join(h.write(&again), h2.read(&again)); err != nil || h != h2 {
				t.Errorf("%+v becomes %+v, %v", h, h2, err)
			}
		}
		var l, l2 Lease
		if l.read(bytes.NewReader(b)) == nil {
			var again bytes.Buffer
			if err := errors.Join(l.write(&again), l2.read(&again)); err != nil || l != l2 {
				t.Errorf("%+v becomes %+v, %v", l, l2, err)
			}
		}
	})
}
