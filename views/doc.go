// Package views is what every protocol adapter shares. A view (FUSE, NFS, …)
// turns protocol operations into store calls; a projection is one capsule, or
// the whole namespace, exposed through one view at one target.
//
//   - [Gate]: the policy check that comes before anything is exposed.
//   - [Projection]: a running projection. A view makes one from a [Backend]
//     that can end it and tell when it has ended.
//   - [Registry]: the projections of one node: bounded in number, found by ID
//     or target, and gone from the list as soon as they end, whoever ended
//     them. It tells the node when the last one is gone.
//
// Locking: a Registry never holds its lock while it starts or closes a
// projection, because both can take as long as a slow client wants.
package views
