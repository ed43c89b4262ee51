package vpn

import (
	"encoding/binary"
	"net/netip"
)

// packet is what this package looks at of an IP packet.
type packet struct {
	src, dst netip.Addr
	dns      bool // TCP or UDP from or to port 53
	whole    bool // may not be fragmented on its way
}

const (
	minHeader  = 20 // of IPv4
	minHeader6 = 40
	dnsPort    = 53

	// Protocols, and extension headers of IPv6.
	icmp, tcp, udp, icmp6                    = 1, 6, 17, 58
	hopByHop, routing, fragment, destination = 0, 43, 44, 60
	maxExtensions                            = 8 // that are looked through for ports
)

// parse looks at a packet, of which nothing is trusted.
func parse(b []byte) (p packet, ok bool) {
	if len(b) < minHeader {
		return p, false
	}
	var protocol int // -1: unknown, or it is no first fragment, which alone has ports
	var rest []byte
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&15) * 4
		if header < minHeader || header > len(b) || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
			return p, false
		}
		p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		flags := binary.BigEndian.Uint16(b[6:])
		p.whole = flags&0x4000 != 0
		if protocol, rest = int(b[9]), b[header:]; flags&0x1fff != 0 {
			protocol = -1
		}
	case 6:
		if len(b) < minHeader6 || int(binary.BigEndian.Uint16(b[4:])) != len(b)-minHeader6 {
			return p, false
		}
		p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.whole = true
		protocol, rest = transport6(b)
	default:
		return p, false
	}
	if (protocol == tcp || protocol == udp) && len(rest) >= 4 {
		p.dns = binary.BigEndian.Uint16(rest) == dnsPort || binary.BigEndian.Uint16(rest[2:]) == dnsPort
	}
	return p, true
}

// transport6 returns what an IPv6 packet carries behind its extension headers;
// protocol -1: that is not to be seen.
func transport6(b []byte) (protocol int, rest []byte) {
	protocol, rest = int(b[6]), b[minHeader6:]
	for range maxExtensions {
		size := 8
		switch protocol {
		case hopByHop, routing, destination:
			if len(rest) < size {
				return -1, nil
			}
			size += int(rest[1]) * 8
		case fragment:
			if len(rest) < size || binary.BigEndian.Uint16(rest[2:])&^7 != 0 {
				return -1, nil
			}
		default:
			return protocol, rest
		}
		if len(rest) < size {
			return -1, nil
		}
		protocol, rest = int(rest[0]), rest[size:]
	}
	return -1, nil
}
