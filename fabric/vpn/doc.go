// Package vpn carries IPv4 packets between TUN devices of two hosts over a
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
// address of the pool is the exit's own. When a tunnel moves to another node, the
// control stream ends, and the client asks the new exit; its address may then be
// another one.
//
// # What passes
//
// The exit drops what does not come from the address that the tunnel has leased,
// so no client speaks for another. The client drops what is not for its address.
// Both drop what is no IPv4 packet of the length that it says; IPv6 is not carried.
// Packets are never waited for: they go in batches of what is there, and are
// dropped, and counted, where the way is too slow. DNS (port 53) goes on a stream
// of class DNS of its own, so that names resolve while a download fills the
// packet plane.
//
// # What is left to the operator
//
// The exit's host passes packets on if it is told to: net.ipv4.ip_forward=1, and
// for addresses that the networks behind it do not know,
//
//	nft add table ip vpn
//	nft add chain ip vpn postrouting '{ type nat hook postrouting priority srcnat; }'
//	nft add rule ip vpn postrouting ip saddr 10.77.0.0/16 oifname != "fabric0" masquerade
//
// A client that routes everything into the tunnel has to leave out the addresses
// over which the fabric itself reaches its nodes: see [Config.Bypass].
//
// Links, addresses and routes are set by rtnetlink, with github.com/vishvananda/netlink:
// so no ip(8) need be installed, and errors are the kernel's own, not a program's text.
package vpn
