package forward

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"
)

// proxySignature begins every header of the PROXY protocol, version 2.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// announceTime bounds how long a service may take to take in the header.
const announceTime = 10 * time.Second

// announce tells a service who is calling.
func announce(conn net.Conn, source netip.AddrPort) error {
	if err := conn.SetWriteDeadline(time.Now().Add(announceTime)); err != nil {
		return err
	}
	target, _ := netip.ParseAddrPort(conn.RemoteAddr().String()) // invalid for a Unix socket
	if _, err := conn.Write(proxyHeader(source, target)); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}

// proxyHeader returns the header for a connection from source to target. Where
// the source is not known, it says that nothing is.
func proxyHeader(source, target netip.AddrPort) []byte {
	const version, local, proxy, tcp4, tcp6 = 0x20, 0, 1, 0x11, 0x21
	b := []byte(proxySignature)
	src := source.Addr().Unmap()
	if !src.IsValid() {
		return append(b, version|local, 0, 0, 0)
	}
	dst := target.Addr().Unmap()
	family := byte(tcp4)
	if src.Is6() {
		family = tcp6
	}
	if dst.BitLen() != src.BitLen() { // the two can't stand in one header
		dst = netip.IPv4Unspecified()
		if src.Is6() {
			dst = netip.IPv6Unspecified()
		}
	}
	b = append(b, version|proxy, family)
	b = binary.BigEndian.AppendUint16(b, uint16(src.BitLen()/8*2+4))
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, source.Port())
	return binary.BigEndian.AppendUint16(b, target.Port())
}
