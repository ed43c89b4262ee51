// Package session carries streams and packets between two nodes over any
// number of links, and keeps the streams when links come and go.
//
//   - [Session] is what two nodes have in common; [Endpoint] makes sessions,
//     on links that it dials or accepts, and dials again what was lost.
//   - [Stream] is a reliable, ordered flow with a class, a [net.Conn] with
//     CloseWrite and Reset.
//   - Links come and go under a session: [Endpoint] dials anew what was lost,
//     [Session.Relink] moves a session to other links while its streams flow,
//     without loss and without sending anything twice, [Session.Retire] takes one
//     link out of use, [Session.Links] and [Session.Changed] show them.
//   - A link that says when it ends ([Expiring]) is replaced before; one that is
//     [Reserved] is never lent to bulk.
//   - A link is any net.Conn that authenticates its peer and keeps its bytes
//     secret and whole: the session trusts what it says of identity.
//
// fabric/DESIGN.md tells how streams survive links, how windows grow, and in
// which order classes go.
//
// # Locking
//
// A session has one lock, taken for moments: no read, write or callback happens
// under it. Each link has a goroutine that reads and one that writes; a session
// has one that measures its links and gives up dead ones.
//
// # Memory
//
// A stream holds at most a window of bytes that nobody has read, and about a
// window of bytes that the peer has not acknowledged. A session has at most
// MaxStreams, and as many that nobody has accepted as its backlog. A [Budget]
// bounds the windows of all sessions of a node together, and a share of it those
// with one peer; bytes that have come count until they are read, whatever became
// of their stream. A peer that does not take in what is to be said to it of its
// streams is given up. An idle link keeps no buffers but 4 KiB to read into; large
// payloads lie in pooled memory.
//
// # What can be seen
//
// [Session.Stats] counts by class: bytes and frames, what waits, and how long it
// did; [Session.Streams] and [Stream.State] tell where each stream is,
// [Session.Links] what each link has done.
package session
