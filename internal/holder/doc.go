// Package holder keeps kernel mounts while no node serves them.
//
// A holder is a small process beside the node of a store (`spacectl hold`, which
// the node starts with its first mount). It has a duplicate of each mount's
// /dev/fuse and of the memory in which the node notes what its successor needs
// (package ledger), and never looks at either. When the node ends, by whatever
// cause, the kernel keeps the requests of the mount's users until the next node
// takes the descriptors over. If none comes in time, the holder closes them,
// and the requests fail.
//
//   - [Run] is that process.
//   - [Dial] and [Client] are the node's side; commands use them to look and to
//     give a mount up.
//
// # Protocol
//
// The socket is holder.sock in SPACE_HOME, of type SOCK_SEQPACKET; both ends
// check that the other is the same user or root. A message is a JSON object, at
// most [maxMessage] bytes long, with descriptors beside it where the table says so:
//
//	hello    a node is here: version, and how long to wait for the next one.
//	         Answer: how many mounts there are, then a message for each, with
//	         its two descriptors. From here on the connection stands for the
//	         node: when it ends, the node has. A later hello takes its place.
//	hold     keep this mount: id, about, and two descriptors. It may come again,
//	         where the answer was lost
//	release  the mount has ended, or is given up: id
//	list     how many mounts there are, then a message for each
//
// Each request has one answer, with an error or without. A holder that holds
// nothing and has no node ends.
//
// An ephemeral node has nobody who would start the next one: the holder does,
// as often as restartLimit says in a row.
package holder
