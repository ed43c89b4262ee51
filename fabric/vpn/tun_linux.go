package vpn

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/spacestore/space/fabric/frame"
)

// tun is a TUN device of Linux: whole IP packets, nothing before them.
type tun struct {
	name  string
	file  *os.File
	raw   syscall.RawConn
	arena []byte   // that received packets lie in
	batch [][]byte // them

	mu     sync.Mutex // of everything below, and of Configure and Close
	nl     *netlink.Handle
	link   netlink.Link
	now    Config
	bypass []netlink.Route // that Configure has made
	closed bool
}

// OpenTUN makes a TUN device in the network namespace of the calling thread.
// In name, %d stands for the first number that is free; "" is fabric%d. It needs
// CAP_NET_ADMIN. The device lives as long as this process does not close it.
func OpenTUN(name string) (Device, error) {
	if name == "" {
		name = "fabric%d"
	}
	t, err := openTUN(name)
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("vpn: a network interface takes CAP_NET_ADMIN (root): %w", err)
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("vpn: this kernel has no TUN (modprobe tun): %w", err)
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("vpn: interface %q is there already: %w", name, err)
	case err != nil:
		return nil, fmt.Errorf("vpn: opening interface %q: %w", name, err)
	}
	return t, nil
}

func openTUN(name string) (_ *tun, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Only now, as a TUN that is no interface yet can't be polled.
	t := &tun{name: ifr.Name(), file: os.NewFile(uintptr(fd), "/dev/net/tun"),
		arena: make([]byte, frame.MaxPacketBytes), batch: make([][]byte, 0, frame.MaxPackets)}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return nil, err
	}
	if t.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, err
	}
	t.link, err = t.nl.LinkByName(t.name)
	return t, err
}

func (t *tun) Name() string { return t.name }

// Receive implements Device.
func (t *tun) Receive() ([][]byte, error) {
	batch, at := t.batch[:0], 0
	var err error
	rerr := t.raw.Read(func(fd uintptr) bool {
		for len(batch) < frame.MaxPackets && at+MaxMTU <= len(t.arena) {
			var n int
			n, err = unix.Read(int(fd), t.arena[at:at+MaxMTU])
			switch err {
			case nil:
				batch = append(batch, t.arena[at:at+n:at+n])
				at += n
			case unix.EINTR:
			case unix.EAGAIN:
				err = nil
				return len(batch) > 0 // otherwise wait
			default:
				return true
			}
		}
		return true
	})
	if rerr != nil {
		err = os.ErrClosed // there is no other reason
	}
	if err != nil && len(batch) == 0 {
		return nil, fmt.Errorf("vpn: reading from %s: %w", t.name, err)
	}
	return batch, nil
}

// Send implements Device.
func (t *tun) Send(packets [][]byte) (refused int, err error) {
	rerr := t.raw.Write(func(fd uintptr) bool {
		for len(packets) > 0 {
			var werr error
			if _, werr = unix.Write(int(fd), packets[0]); werr == unix.EAGAIN {
				return false
			}
			switch werr {
			case unix.EINTR:
				continue
			case nil:
			case unix.EINVAL, unix.ENOBUFS, unix.ENOMEM, unix.EIO: // EIO: the interface is down
				refused++
			default:
				err = werr
				return true
			}
			packets = packets[1:]
		}
		return true
	})
	if rerr != nil {
		err = os.ErrClosed // there is no other reason
	}
	if err != nil {
		return refused, fmt.Errorf("vpn: writing to %s: %w", t.name, err)
	}
	return refused, nil
}

// Configure implements Device.
func (t *tun) Configure(c Config) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return net.ErrClosed
	}
	if err := t.configure(c); err != nil {
		return fmt.Errorf("vpn: setting up interface %s: %w", t.name, err)
	}
	t.now.MTU, t.now.Bypass = c.MTU, c.Bypass
	return nil
}

func (t *tun) configure(c Config) error {
	if t.now.MTU != c.MTU {
		if err := t.nl.LinkSetMTU(t.link, c.MTU); err != nil {
			return fmt.Errorf("MTU %d: %w", c.MTU, err)
		}
	}
	for _, a := range slices.Clone(t.now.Addrs) {
		if slices.Contains(c.Addrs, a) {
			continue
		}
		if err := t.nl.AddrDel(t.link, address(a)); err != nil {
			return fmt.Errorf("taking address %v away: %w", a, err)
		}
		t.now.Addrs = slices.DeleteFunc(t.now.Addrs, func(o netip.Prefix) bool { return o == a }) // its routes go with it
	}
	// Without it the kernel gives itself an address of IPv6, and speaks from it.
	// Where there is no IPv6 it can't be said, and need not be.
	_ = t.nl.LinkSetIP6AddrGenMode(t.link, addrGenNone)
	for _, a := range c.Addrs {
		if slices.Contains(t.now.Addrs, a) {
			continue
		}
		if err := t.nl.AddrAdd(t.link, address(a)); err != nil {
			return fmt.Errorf("address %v: %w", a, err)
		}
		t.now.Addrs = append(t.now.Addrs, a)
	}
	if err := t.nl.LinkSetUp(t.link); err != nil {
		return err
	}
	for _, p := range c.Bypass {
		if !slices.Contains(t.now.Bypass, p) {
			if err := t.around(p); err != nil {
				return fmt.Errorf("keeping the way to %v: %w", p, err)
			}
		}
	}
	for _, a := range c.Around {
		if slices.ContainsFunc(c.Routes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			// Without a way there is nothing to keep.
			if err := t.around(netip.PrefixFrom(a, a.BitLen())); err != nil && !noWay(err) {
				return fmt.Errorf("keeping the way to %v: %w", a, err)
			}
		}
	}
	for _, p := range c.Routes {
		from := slices.IndexFunc(c.Addrs, func(a netip.Prefix) bool { return familyOf(a.Addr()) == familyOf(p.Addr()) })
		if from < 0 {
			return fmt.Errorf("route to %v: there is no address of %v", p, familyOf(p.Addr()))
		}
		for _, half := range halves(p) {
			r := netlink.Route{LinkIndex: t.link.Attrs().Index, Dst: ipNet(half), Scope: netlink.SCOPE_LINK, Src: c.Addrs[from].Addr().AsSlice()}
			if err := t.route(&r); err != nil {
				return fmt.Errorf("route to %v: %w", p, err)
			}
		}
	}
	return nil
}

// route makes a route into the interface. One that leads elsewhere is the host's
// own, and stays: nobody would give it back.
func (t *tun) route(r *netlink.Route) error {
	err := t.nl.RouteAdd(r)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	there, err := t.nl.RouteListFiltered(netlink.FAMILY_ALL, r, netlink.RT_FILTER_DST)
	if err != nil {
		return err
	}
	for _, o := range there {
		if o.LinkIndex != r.LinkIndex {
			return fmt.Errorf("the host has one already (%v); take that away first, or give its two halves", o)
		}
	}
	return t.nl.RouteReplace(r)
}

// around makes a route to p that goes as p goes without the interface.
func (t *tun) around(p netip.Prefix) error {
	found, err := t.nl.RouteGet(p.Addr().AsSlice())
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return unix.ENETUNREACH
	}
	if found[0].LinkIndex == t.link.Attrs().Index {
		if slices.ContainsFunc(t.now.Addrs, func(a netip.Prefix) bool { return a.Contains(p.Addr()) }) {
			return nil // of the interface's own network
		}
		if found, err = t.beside(p.Addr()); err != nil {
			return err
		}
	}
	if found[0].Type == unix.RTN_LOCAL {
		return nil
	}
	r := netlink.Route{LinkIndex: found[0].LinkIndex, Gw: found[0].Gw, Dst: ipNet(p), Protocol: unix.RTPROT_STATIC}
	if r.Gw == nil {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := t.nl.RouteAdd(&r); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil // somebody has said so already
		}
		return err
	}
	t.bypass = append(t.bypass, r)
	return nil
}

// beside returns the route that an address had without the interface, whose routes
// cover it already.
func (t *tun) beside(a netip.Addr) ([]netlink.Route, error) {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	all, err := t.nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	best, bits := -1, -1
	for i, r := range all {
		n := 0
		if r.Dst != nil {
			n, _ = r.Dst.Mask.Size()
		}
		if r.LinkIndex == 0 || r.LinkIndex == t.link.Attrs().Index || r.Type != unix.RTN_UNICAST || r.Dst != nil && !r.Dst.Contains(a.AsSlice()) ||
			n < bits || n == bits && r.Priority >= all[best].Priority {
			continue
		}
		best, bits = i, n
	}
	if best < 0 {
		return nil, unix.ENETUNREACH
	}
	return all[best : best+1], nil
}

// noWay reports whether an address can't be reached at all.
func noWay(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL)
}

// halves returns the two halves of the default route, which go before the
// host's own and leave it as it is.
func halves(p netip.Prefix) []netip.Prefix {
	if p.Bits() > 0 {
		return []netip.Prefix{p.Masked()}
	}
	if p.Addr().Is6() {
		return []netip.Prefix{netip.PrefixFrom(netip.IPv6Unspecified(), 1), netip.PrefixFrom(netip.AddrFrom16([16]byte{128}), 1)}
	}
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 1), netip.PrefixFrom(netip.AddrFrom4([4]byte{128}), 1)}
}

// addrGenNone is Linux's IN6_ADDR_GEN_MODE_NONE.
const addrGenNone = 1

// address is an address as the kernel takes it, to be used at once.
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // there is nobody to ask whether it is taken
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Close implements Device. Addresses and routes of the interface go with it.
func (t *tun) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	var errs []error
	for i := range t.bypass {
		if err := t.nl.RouteDel(&t.bypass[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("vpn: taking the route to %v away: %w", t.bypass[i].Dst, err))
		}
	}
	if t.nl != nil {
		t.nl.Close()
	}
	return errors.Join(append(errs, t.file.Close())...)
}
