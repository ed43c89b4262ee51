package vpn

import (
	"fmt"
	"net/netip"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/identity"
)

// Tunnel is what this package needs of a fabric's tunnel.
type Tunnel interface {
	fabric.Opener
	fabric.Accepter
	// SendPackets sends packets, which it does not keep. They may be lost.
	SendPackets(packets [][]byte) error
	// HandlePackets says who takes in packets. They are the handler's own.
	HandlePackets(handle func(packets [][]byte))
	// Peer is the node at the other end now; Changed is closed when it may not
	// be that any more.
	Peer() identity.NodeID
	Changed() <-chan struct{}
	// Done is closed when the tunnel has ended for good; Err says why.
	Done() <-chan struct{}
	Err() error
}

// Device is a network interface that this process is the other end of.
type Device interface {
	Name() string
	// Configure sets the interface up. It may be called again.
	Configure(Config) error
	// Receive waits for packets that the host sends into the interface, and
	// returns those that are there, at most frame.MaxPackets of them with
	// frame.MaxPacketBytes in all. They are valid until the next call. One
	// goroutine may call it.
	Receive() ([][]byte, error)
	// Send gives packets to the host. It returns how many the host did not want.
	Send(packets [][]byte) (refused int, err error)
	// Close takes the interface away, and ends Receive.
	Close() error
}

// Config is how an interface is set up.
type Config struct {
	Addrs  []netip.Prefix // its own addresses, and the networks that it leads to
	MTU    int            // in bytes
	Routes []netip.Prefix // that lead into it, besides
	// Bypass keeps going the way it goes without the interface, where a route
	// would cover it.
	Bypass []netip.Prefix
	// Around is addresses of which the same holds, as far as there is a way now.
	Around []netip.Addr
}

// MTUs that are possible, and usual. What the tunnel itself adds does not
// count: it carries packets in frames of its own, of any size.
const (
	MinMTU     = 576
	MinMTU6    = 1280 // of IPv6 (RFC 8200 §5)
	MaxMTU     = 65535
	DefaultMTU = 1500
)

func checkPrefixes(ps []netip.Prefix) error {
	for _, p := range ps {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("vpn: %v is no network", p)
		}
	}
	return nil
}

func checkMTU(mtu int) error {
	if mtu < MinMTU || mtu > MaxMTU {
		return fmt.Errorf("vpn: an MTU of %d; it may be %d to %d", mtu, MinMTU, MaxMTU)
	}
	return nil
}

// Stats are counts of a client's or an exit's life. Packets that were dropped
// are in none of the first four.
type Stats struct {
	SentPackets, SentBytes         int64 // into tunnels
	ReceivedPackets, ReceivedBytes int64 // out of tunnels, into the device
	Malformed                      int64 // no IP packet
	Foreign                        int64 // from or for an address that is not the tunnel's
	Dropped                        int64 // for want of room, or because the host refused
}

// Plus returns the sum of both.
func (s Stats) Plus(o Stats) Stats {
	return Stats{s.SentPackets + o.SentPackets, s.SentBytes + o.SentBytes, s.ReceivedPackets + o.ReceivedPackets, s.ReceivedBytes + o.ReceivedBytes,
		s.Malformed + o.Malformed, s.Foreign + o.Foreign, s.Dropped + o.Dropped}
}
