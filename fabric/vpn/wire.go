package vpn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// Streams have a header of two bytes: the version, and what they are for.
const wireVersion = 1

const (
	kindControl = 1 // hello, lease; then it lives as long as the lease is used
	kindDNS     = 2 // packets both ways
)

// Codes of the resets that end streams of this package.
const (
	CodeMalformed = 0x200 + iota // what came makes no sense
	CodeNoAddress                // the exit's pool is used up
	CodeReplaced                 // the tunnel has opened another stream of the kind
	CodeStopped                  // the exit or client was stopped
)

// Lease is what an exit gives to a tunnel.
type Lease struct {
	Addr    netip.Addr
	Bits    int        // of the network that Addr is in
	Gateway netip.Addr // the exit's own address in it
	MTU     int
}

// hello is what a client asks for.
type hello struct {
	mtu  int        // the most that it wants
	want netip.Addr // the address that it had; invalid: none
}

// Messages are u16 length and body. Bytes at a body's end that are not known
// are from a newer peer, and ignored.
const maxMessage = 1 << 10

func writeMessage(w io.Writer, body []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(body))), body...))
	return err
}

func readMessage(r io.Reader, atLeast int) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n < atLeast || n > maxMessage {
		return nil, fmt.Errorf("vpn: a message of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, noEOF(err)
	}
	return b, nil
}

// noEOF says that an end came too early.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

const (
	helloSize = 6
	leaseSize = 11
)

func (h hello) write(w io.Writer) error {
	b := binary.BigEndian.AppendUint16(nil, uint16(h.mtu))
	want := [4]byte{}
	if h.want.Is4() {
		want = h.want.As4()
	}
	return writeMessage(w, append(b, want[:]...))
}

func (h *hello) read(r io.Reader) error {
	b, err := readMessage(r, helloSize)
	if err != nil {
		return err
	}
	h.mtu, h.want = int(binary.BigEndian.Uint16(b)), netip.Addr{}
	if a := netip.AddrFrom4([4]byte(b[2:6])); !a.IsUnspecified() {
		h.want = a
	}
	return checkMTU(h.mtu)
}

func (l Lease) write(w io.Writer) error {
	addr, gateway := l.Addr.As4(), l.Gateway.As4()
	b := append(addr[:], byte(l.Bits))
	b = append(b, gateway[:]...)
	return writeMessage(w, binary.BigEndian.AppendUint16(b, uint16(l.MTU)))
}

func (l *Lease) read(r io.Reader) error {
	b, err := readMessage(r, leaseSize)
	if err != nil {
		return err
	}
	*l = Lease{Addr: netip.AddrFrom4([4]byte(b)), Bits: int(b[4]), Gateway: netip.AddrFrom4([4]byte(b[5:9])),
		MTU: int(binary.BigEndian.Uint16(b[9:]))}
	if err := checkMTU(l.MTU); err != nil {
		return err
	}
	network := netip.PrefixFrom(l.Addr, l.Bits)
	if !network.IsValid() || l.Bits < minBits || l.Bits > maxBits || !usable(network.Masked(), l.Addr) ||
		!usable(network.Masked(), l.Gateway) || l.Addr == l.Gateway {
		return errors.New("vpn: the exit gives an address that can't be used")
	}
	return nil
}

// Networks that addresses are handed out of are no larger and no smaller.
const (
	minBits = 8
	maxBits = 30
)

// usable reports whether a host of a network may have an address.
func usable(network netip.Prefix, a netip.Addr) bool {
	return network.Contains(a) && a != network.Addr() && a != last(network) &&
		!a.IsLoopback() && !a.IsMulticast() && !a.IsUnspecified() && !a.IsLinkLocalUnicast()
}

// last returns a network's last address.
func last(network netip.Prefix) netip.Addr {
	a := network.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | (1<<(32-network.Bits()) - 1)
	binary.BigEndian.PutUint32(a[:], n)
	return netip.AddrFrom4(a)
}
