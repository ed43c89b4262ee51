// Package forward carries any TCP service over a tunnel: SSH, a database, a
// remote desktop. Who has the service exposes it; who wants it gets a local
// address that leads there.
//
//   - [Exposer] takes in a tunnel's streams and connects each to the service.
//   - [Forwarder] takes in connections of a listener and opens a stream for each.
//   - [Rules] say what a forwarder may ask an exposer to connect to.
//
// # Connections
//
// A connection is one stream. Either side may end its half and still read the
// other's; a connection that is reset on one side is reset on the other. When
// the exposer can't connect, the stream's reset says why, with one of the codes
// here; the forwarder logs that and resets the connection, which is all that TCP
// can say to its client.
//
// A tunnel's change of route is not noticed. While there is no route, new
// connections wait for one, for a bounded time.
//
// # Classes
//
// A stream's class is fixed when it is opened, and nobody knows then what it
// will carry. So the one who forwards says it: interactive by default, which
// goes before bulk; bulk for a port that serves backups or images. Interactive
// streams take turns among themselves, so one that turns out to be big delays
// others of its class by some quanta, not by its size.
//
// # Bounds
//
// Both ends bound their connections. A forwarder that has as many as it may
// leaves further ones in the kernel's backlog; an exposer refuses with
// [CodeBusy]. A connection on which nothing moves holds two goroutines and next to
// no buffers; one whose reader is slow holds up to a window of its stream.
//
// There is no time-out for silence: a shell may be quiet for days. TCP
// keep-alive finds out on both sides whether the other end is still there
// (after about four minutes without an answer), and the session's pings do in
// between.
package forward
