// Package files copies files and directories between nodes: verified, resumable,
// from several nodes at once.
//
//   - [Share] is a file or directory that is offered; Serve gives it to whoever
//     opens streams of a tunnel.
//   - [Receive] fetches one, from mirrors that all have it.
//   - Manifest, what a share consists of, travels first.
//
// # How it is moved
//
// A share is two payloads of package bulk: the manifest, and the contents of all
// its files one after the other, in the manifest's order. So small files share
// chunks and cost no round trips, a large one is many chunks, and resuming, mirrors,
// verification and blame are bulk's.
//
// # At the receiver
//
// What comes is written below a hidden directory beside the target,
// .NAME.space-part, with the journal and the manifest that it belongs to. When all
// of it is there and durable it is renamed to the target, in one step, and the
// directory removed. An interrupted transfer goes on from there, if what is offered
// is still the same; else it starts over. A lock keeps a second one out.
//
// Manifests come from other nodes. Their paths are checked, files are opened below
// the hidden directory alone (os.Root), and symbolic links are made when everything
// else is done, so that nothing is ever written through one. Set-user-ID and
// set-group-ID bits are not carried over.
//
// # What is carried
//
// Regular files, directories and symbolic links, with their permissions and times
// of modification. Hard links become files of their own; what else there is, such
// as sockets and devices, is left out and counted.
package files
