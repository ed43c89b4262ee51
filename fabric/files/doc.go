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
// still has the same form: of contents that have changed, those chunks come again.
// Else it starts over. A lock keeps a second one out. Before the rename a mark says
// what will become the target, so that after a kill the next one finds its own
// result, and only finishes it.
//
// Manifests come from other nodes. Their paths are checked, files are opened below
// the hidden directory alone (os.Root), and symbolic links are made when everything
// else is done, so that nothing is ever written through one. Set-user-ID and
// set-group-ID bits are not carried over.
//
// # What is carried
//
// Regular files with their holes, directories, symbolic and hard links, permissions,
// times of modification and extended attributes of users (user.*). Owners, ACLs and
// other attributes are not; what else there is, such as sockets and devices, is left
// out and counted. What can't be read is an error, or left out if that is asked for.
package files
