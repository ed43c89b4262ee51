// Package vpn carries IP packets, of IPv4 and IPv6, between TUN devices of two hosts over a
// tunnel's packet plane.
//
//   - [Exit] is the side that leads somewhere: one device for many tunnels. It
//     hands out addresses.
//   - [Client] is the side that wants to go there.
//   - [Device] is a network interface of this host; [OpenTUN] makes one.
//
// # Addresses
//
// A client asks for an address on a stream of class control, which stays open
// for as long as the address is used; closing it gives the address back. A lease
// belongs to a tunnel: a client whose tunnel comes back, by another route or to
// an exit that has restarted, gets the address it had where it is free. The first
// address of each pool is the exit's own. An exit has a pool of IPv4, one of IPv6, or
// both, and a tunnel gets an address of each. Peers that are older than IPv6 here,
// and those whose MTU is too small for it, get one of IPv4 alone; a host that has no
// IPv6 does without. When a tunnel moves to another node, the
// control stream ends, and the client asks the new exit; its address may then be
// another one.
//
// # What passes
//
// The exit drops what does not come from the address that the tunnel has leased,
// so no client speaks for another. The client drops what is not for its address.
// Both drop what is no IP packet of the length that it says.
// Packets are never waited for: they go in batches of what is there, and are
// dropped, and counted, where the way is too slow. DNS (port 53) goes on a stream
// of class DNS of its own, so that names resolve while a download fills the
// packet plane.
//
// The tunnel carries packets of any size. Where a client's MTU is smaller than its
// exit's, the exit answers packets that may not be fragmented with what ICMP has for
// that (IPv4: fragmentation needed; IPv6: packet too big), so that path MTU discovery
// works; others arrive whole.
//
// # What is left to the operator
//
// The exit's host passes packets on if it is told to: net.ipv4.ip_forward=1,
// net.ipv6.conf.all.forwarding=1, and for addresses that the networks behind it do not know,
//
//	nft add table ip vpn
//	nft add chain ip vpn postrouting '{ type nat hook postrouting priority srcnat; }'
//	nft add rule ip vpn postrouting ip saddr 10.77.0.0/16 oifname != "fabric0" masquerade
//
// A client that routes everything into the tunnel must leave out the addresses over
// which the fabric itself reaches its nodes: see [ClientOptions.Around]. Whoever says
// which these are must not take any node's word for it: what goes to them goes past the
// tunnel, of all programs of the host.
//
// Links, addresses and routes are set by rtnetlink, with github.com/vishvananda/netlink:
// so no ip(8) need be installed, and errors are the kernel's own, not a program's text.
package vpn
