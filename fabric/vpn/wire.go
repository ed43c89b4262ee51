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

// Lease is what an exit gives to a tunnel: an address of IPv4, of IPv6, or one of
// each.
type Lease struct {
	V4, V6 Assigned
	MTU    int
}

// Assigned is one address of a lease; the zero value is none.
type Assigned struct {
	Addr    netip.Prefix // with the network that it is in
	Gateway netip.Addr   // the exit's own address in it
}

func (a Assigned) ok() bool { return a.Addr.IsValid() }

func (l *Lease) of(f family) *Assigned {
	if f == v6 {
		return &l.V6
	}
	return &l.V4
}

func (l Lease) byFamily() [families]Assigned { return [families]Assigned{v4: l.V4, v6: l.V6} }

// Addrs returns the lease's addresses, with their networks.
func (l Lease) Addrs() (list []netip.Prefix) {
	for _, a := range l.byFamily() {
		if a.ok() {
			list = append(list, a.Addr)
		}
	}
	return list
}

// hello is what a client asks for.
type hello struct {
	mtu  int                  // the most that it wants
	want [families]netip.Addr // the addresses that it had; invalid: none
	six  bool                 // it takes an address of IPv6; older ones do not say
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

// What older peers say and give ends before what is of IPv6.
const (
	helloSize  = 6
	helloSize6 = helloSize + 16
	leaseSize  = 11
	leaseSize6 = leaseSize + 33
)

func (h hello) write(w io.Writer) error {
	b := binary.BigEndian.AppendUint16(nil, uint16(h.mtu))
	b = appendAddr(b, v4, h.want[v4])
	if h.six {
		b = appendAddr(b, v6, h.want[v6])
	}
	return writeMessage(w, b)
}

func (h *hello) read(r io.Reader) error {
	b, err := readMessage(r, helloSize)
	if err != nil {
		return err
	}
	*h = hello{mtu: int(binary.BigEndian.Uint16(b)), six: len(b) >= helloSize6}
	h.want[v4] = cutAddr(v4, b[2:])
	if h.six {
		h.want[v6] = cutAddr(v6, b[helloSize:])
	}
	return checkMTU(h.mtu)
}

func (l Lease) write(w io.Writer) error {
	b := appendAssigned(nil, v4, l.V4)
	b = binary.BigEndian.AppendUint16(b, uint16(l.MTU))
	if l.V6.ok() {
		b = appendAssigned(b, v6, l.V6)
	}
	return writeMessage(w, b)
}

func (l *Lease) read(r io.Reader) error {
	b, err := readMessage(r, leaseSize)
	if err != nil {
		return err
	}
	*l = Lease{V4: cutAssigned(v4, b), MTU: int(binary.BigEndian.Uint16(b[9:]))}
	if len(b) >= leaseSize6 {
		l.V6 = cutAssigned(v6, b[leaseSize:])
	}
	if err := checkMTU(l.MTU); err != nil {
		return err
	}
	none := true
	for f, a := range l.byFamily() {
		if a == (Assigned{}) {
			continue
		}
		none = false
		network := a.Addr.Masked()
		if !a.ok() || !family(f).fits(network) || !usable(network, a.Addr.Addr()) || !usable(network, a.Gateway) || a.Addr.Addr() == a.Gateway {
			return errors.New("vpn: the exit gives an address that can't be used")
		}
	}
	if none || l.V6.ok() && l.MTU < MinMTU6 {
		return errors.New("vpn: the exit gives no address that can be used")
	}
	return nil
}

// appendAddr appends an address; one that is not valid is zeros.
func appendAddr(b []byte, f family, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(b, make([]byte, f.size())...)
	}
	return append(b, a.AsSlice()...)
}

func cutAddr(f family, b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b[:f.size()])
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

func appendAssigned(b []byte, f family, a Assigned) []byte {
	b = append(appendAddr(b, f, a.Addr.Addr()), byte(max(a.Addr.Bits(), 0)))
	return appendAddr(b, f, a.Gateway)
}

func cutAssigned(f family, b []byte) Assigned {
	n := f.size()
	addr, bits, gateway := cutAddr(f, b), int(b[n]), cutAddr(f, b[n+1:])
	if !addr.IsValid() && bits == 0 && !gateway.IsValid() {
		return Assigned{}
	}
	return Assigned{netip.PrefixFrom(addr, bits), gateway}
}
