// Package files copies files and directories between nodes: verified, resumable,
// from several nodes at once.
//
//   - [Share] is a file or directory that is offered; Serve gives it to whoever
//     opens streams of a tunnel.
//   - [Receive] fetches one, from mirrors that all have it.
//   - Manifest, what a share consists of, travels first.
//   - [Share.Push] asks a node to receive one, [NextPush] is that node's end: it
//     decides whether, and where to, and fetches it like anything else.
//   - [Control] changes a Receive while it runs, and what was set outlives it.
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
// directory removed. An interrupted transfer goes on from there: of contents that have
// changed, those chunks come again. Where the layout is another one, with other names or
// sizes, chunks that are there elsewhere are carried over (carry.go). A lock keeps a
// second one out. Before the rename a mark says what will become the target, so that
// after a kill the next one finds its own result, and only finishes it, and thanks.
//
// When all is there the givers are told. A node's word counts for a giver that has given
// it something since it last said so, and once.
//
// Manifests come from other nodes. One takes at most 64 MiB of memory, and at most two
// are there at a time. Their paths are checked, files are opened below
// the hidden directory alone (os.Root), and symbolic links are made when everything
// else is done, so that nothing is ever written through one. Set-user-ID and
// set-group-ID bits are not carried over.
//
// # What is carried
//
// Regular files with their holes, directories, symbolic and hard links, permissions,
// times of modification and extended attributes of users (user.*). Owners, ACLs and
// other attributes are not, nor those that the receiver's file system has no place for;
// what else there is, such as sockets and devices, is left out and counted. What can't be read is an error, or left out if that is asked for.
package files
