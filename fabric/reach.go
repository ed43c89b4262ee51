package fabric

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/spacestore/space/fabric/identity"
)

// Linked returns the addresses that links go to now which were dialed here, and are of no
// relay's: at each, a node has shown its certificate.
func (n *Node) Linked() (addrs []netip.Addr) {
	for _, p := range n.allPeers() {
		for _, r := range p.all() {
			for _, c := range r.linkConns() {
				if !c.way.direct() {
					continue
				}
				switch a := c.RemoteAddr().(type) {
				case *net.TCPAddr:
					addrs = append(addrs, a.AddrPort().Addr())
				case *net.UDPAddr:
					addrs = append(addrs, a.AddrPort().Addr())
				}
			}
		}
	}
	return addrs
}

// Answers makes sure that a node is at an address, as Options.Seeds has them: it makes a
// link, for which the node has to show its certificate, and closes it.
func (n *Node) Answers(ctx context.Context, id identity.NodeID, url string) error {
	k, err := addrOf(url)
	if err != nil {
		return err
	}
	for _, c := range n.o.Dial {
		if c.Name() != k.carrier {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, wayTime)
		defer cancel()
		l, err := c.Dial(ctx, k.addr, id)
		if err != nil {
			return err
		}
		return l.Close()
	}
	return fmt.Errorf("fabric: no carrier %q here", k.carrier)
}
