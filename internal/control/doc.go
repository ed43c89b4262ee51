// Package control is how a command reaches the store, whoever holds it.
//
// [API] is the set of operations that the command line needs. There are two
// ways to one: internal/node implements it over a store that this process
// opened, and [Client] implements it over the control socket of a node that
// holds the store already. A command can't tell the difference, errors
// included: an error crosses the socket with its text and its
// [capsule.ErrorKind] (see errors.go, the one table between kinds and gRPC
// codes).
//
// [Fabric] is the same for a node of the fabric, on a socket of its own, and has
// only the one implementation over it: its jobs need a node that runs.
//
// [Server] puts either on a socket. Rules of the wire:
//
//   - The socket is a file of mode 0600 and each end checks the other's user
//     ID (SO_PEERCRED): only the node's own user and root get in.
//   - No message is over 4 MiB, no content message over 1 MiB; the numbers of
//     connections and streams are bounded; a stream on which nothing moves is
//     ended (see [Limits]).
//   - Content goes in messages of their own through a codec that neither
//     copies nor allocates per byte (codec.go); everything else is plain
//     protobuf.
//   - A put counts only when the client said so: one whose client vanishes
//     half way stores nothing.
//   - Every string is checked before it reaches the API behind.
package control
