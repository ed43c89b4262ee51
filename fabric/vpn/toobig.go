package vpn

import (
	"encoding/binary"
)

// What an answer takes of the packet that is too big, at most: so that it is no
// larger than what passes everywhere (RFC 1812 §4.3.2.3, RFC 4443 §2.4).
const (
	maxAnswer4 = 576
	maxAnswer6 = MinMTU6
)

// tooBig returns the answer to a packet that is larger than its destination's MTU
// and may not be fragmented: IPv4's "fragmentation needed" (RFC 1191), IPv6's
// "packet too big" (RFC 4443 §3.2). nil: there is none to such a packet. It comes
// from the destination: the exit's own address would be taken for a forgery, on a
// packet that comes in at an interface of the exit's host.
func tooBig(b []byte, p packet, mtu int) []byte {
	if p.src.IsUnspecified() || p.src.IsMulticast() || p.dst.IsMulticast() {
		return nil
	}
	if p.src.Is4() {
		header := int(b[0]&15) * 4
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 || b[9] == icmp && (len(b) <= header || !icmpQuery(b[header])) {
			return nil // no answers to answers, or to the rest of something
		}
		quote := b[:min(len(b), maxAnswer4-minHeader-8)]
		a := make([]byte, minHeader+8, minHeader+8+len(quote))
		a[0], a[8], a[9] = 0x45, 64, icmp
		copy(a[12:], p.dst.AsSlice())
		copy(a[16:], p.src.AsSlice())
		a[minHeader], a[minHeader+1] = 3, 4 // unreachable, fragmentation needed
		binary.BigEndian.PutUint16(a[minHeader+6:], uint16(mtu))
		a = append(a, quote...)
		binary.BigEndian.PutUint16(a[2:], uint16(len(a)))
		binary.BigEndian.PutUint16(a[10:], checksum(0, a[:minHeader]))
		binary.BigEndian.PutUint16(a[minHeader+2:], checksum(0, a[minHeader:]))
		return a
	}
	if protocol, rest := transport6(b); protocol == icmp6 && (len(rest) == 0 || rest[0] < 128) {
		return nil // no answers to answers
	}
	quote := b[:min(len(b), maxAnswer6-minHeader6-8)]
	a := make([]byte, minHeader6+8, minHeader6+8+len(quote))
	a[0], a[6], a[7] = 0x60, icmp6, 64
	copy(a[8:], p.dst.AsSlice())
	copy(a[24:], p.src.AsSlice())
	a[minHeader6] = 2 // packet too big
	binary.BigEndian.PutUint32(a[minHeader6+4:], uint32(mtu))
	a = append(a, quote...)
	binary.BigEndian.PutUint16(a[4:], uint16(len(a)-minHeader6))
	// With a pseudo-header (RFC 8200 §8.1): both addresses, length and protocol.
	pseudo := sum(uint32(len(a)-minHeader6)+icmp6, a[8:40])
	binary.BigEndian.PutUint16(a[minHeader6+2:], checksum(pseudo, a[minHeader6:]))
	return a
}

// icmpQuery reports whether a type of ICMP is no error.
func icmpQuery(kind byte) bool {
	switch kind {
	case 3, 4, 5, 11, 12:
		return false
	}
	return true
}

// sum adds 16-bit words up, for checksum.
func sum(n uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		n += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) > 0 {
		n += uint32(b[0]) << 8
	}
	return n
}

// checksum is the internet's (RFC 1071); n is what was summed up before.
func checksum(n uint32, b []byte) uint16 {
	for n = sum(n, b); n > 0xffff; {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}
