package vpn

import (
	"encoding/binary"
	"net/netip"
)

// family is IPv4 or IPv6.
type family uint8

const (
	v4 family = iota
	v6
	families
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return v4
	}
	return v6
}

// String implements fmt.Stringer.
func (f family) String() string {
	if f == v4 {
		return "IPv4"
	}
	return "IPv6"
}

// size is an address's, in bytes.
func (f family) size() int {
	if f == v4 {
		return 4
	}
	return 16
}

// Networks that addresses are handed out of are no larger and no smaller.
func (f family) minBits() int {
	if f == v4 {
		return 8
	}
	return 32
}

func (f family) maxBits() int { return 8*f.size() - 2 }

// fits reports whether addresses can be handed out of a network.
func (f family) fits(p netip.Prefix) bool {
	return p.IsValid() && familyOf(p.Addr()) == f && p.Bits() >= f.minBits() && p.Bits() <= f.maxBits()
}

// usable reports whether a host of a network may have an address. The network's
// own is none, in IPv6 as that of all its routers.
func usable(network netip.Prefix, a netip.Addr) bool {
	return network.Contains(a) && a != network.Addr() && (a.Is6() || a != last(network)) && !a.Is4In6() &&
		!a.IsLoopback() && !a.IsMulticast() && !a.IsUnspecified() && !a.IsLinkLocalUnicast()
}

// last returns the last address of a network of IPv4, which is for all of its hosts.
func last(network netip.Prefix) netip.Addr {
	a := network.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | (1<<(32-network.Bits()) - 1)
	binary.BigEndian.PutUint32(a[:], n)
	return netip.AddrFrom4(a)
}
