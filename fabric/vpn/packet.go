package vpn

import (
	"encoding/binary"
	"net/netip"
)

// packet is what this package looks at of an IPv4 packet.
type packet struct {
	src, dst netip.Addr
	dns      bool // TCP or UDP from or to port 53
}

const (
	minHeader = 20
	tcp, udp  = 6, 17
	dnsPort   = 53
)

// parse looks at a packet, of which nothing is trusted.
func parse(b []byte) (p packet, ok bool) {
	if len(b) < minHeader || b[0]>>4 != 4 {
		return p, false
	}
	header := int(b[0]&15) * 4
	if header < minHeader || header > len(b) || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
		return p, false
	}
	p.src = netip.AddrFrom4([4]byte(b[12:16]))
	p.dst = netip.AddrFrom4([4]byte(b[16:20]))
	first := binary.BigEndian.Uint16(b[6:])&0x1fff == 0 // fragment; others have no ports
	if (b[9] == tcp || b[9] == udp) && first && len(b) >= header+4 {
		ports := b[header:]
		p.dns = binary.BigEndian.Uint16(ports) == dnsPort || binary.BigEndian.Uint16(ports[2:]) == dnsPort
	}
	return p, true
}
