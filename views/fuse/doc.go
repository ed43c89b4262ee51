// Package fuse is the FUSE view: it shows a tree as it is, an object or a
// volume as a directory with the file "content", or the whole namespace of
// objects as a directory tree. Trees and volumes can be written.
//
//   - [Mount] makes a kernel mount and returns when it is ready for use.
//   - [Copy] is the portable fallback where [Available] says there is no FUSE:
//     it writes the content to plain files under the target.
//   - [Store] and [Reader] are what the view needs of the store.
//
// Each kind of capsule has a file system of its own (fileSystem for objects,
// treeSystem, volumeSystem); the mount, the device, interrupts and errors are
// common to them.
//
// # Objects: versions and caching
//
// A FUSE node (what the kernel calls an inode and keeps pages for) stands for
// one version of one capsule under one path, and never changes. So its
// attributes and pages are valid for ever, every open may keep the page cache,
// and the pages of two versions can't mix. st_ino, in contrast, follows from
// the capsule's ID alone.
//
// A directory entry is valid for [entryTimeout], and the store's change
// notifications invalidate it sooner. Open doesn't rely on either: it pins the
// store's current version and, if that isn't the node's, answers ESTALE, upon
// which the kernel looks the path up again and opens what it finds. An open
// thus always gets the newest version, and a handle keeps the one it has.
//
// # Trees: caching
//
// A FUSE node is an inode of the tree. The kernel keeps all it learns; what is
// changed under the mount's own origin it knows, and of what others change it
// is told by the tree's events. Writes go through (no write-back cache: the
// kernel would take no size or time from us any more).
//
// # Locking
//
// No lock is held across a call into the store or into the kernel, but for
// that of one open directory, which only its own users wait for. Change
// notifications reach the kernel from a goroutine of their own, because the
// kernel may hold a directory's lock while it waits for our answer to a lookup
// in it.
//
// # The device
//
// The kernel is spoken to by device, on go-fuse's protocol server; go-fuse's own
// server can't go on with a mount that another process began. Who has read a
// request that is answered at once does so before anybody reads the next one,
// since waking somebody costs as much as the answer (crew). READ requests of
// objects don't go through it, which would copy what is read: they are answered
// from the memory that it was decoded into.
//
// # Going on in another process
//
// With a [Holder] a mount outlives its process. What the next one needs is put
// into a ledger (package ledger) before the kernel gets the answer that makes it
// needed: handles, inodes removed in use, locks, changes not answered yet; of
// objects the nodes. [Recall] takes it up, for all mounts before any of them
// goes on; [Recalled.Resume] then has the kernel send what was not answered.
// Handle numbers hold the number of the process, so that none is given twice. The
// store has handed a change to the operating system when it acknowledges it
// (store.Options.Push).
// docs/fuse.md has the rules for requests that come twice. What is kept has one
// version, aboutVersion, which changes with any of it.
//
// # Interrupts
//
// The kernel reports every signal that a waiting process gets, harmless ones
// too. As on a disk or NFS, only a fatal one ends the wait: a read that failed
// for SIGURG or SIGWINCH would surprise programs, and kill them where the read
// was a page fault. A killed process can't go before its requests are answered,
// so those that wait for the store are answered in their handlers' place.
//
// # Sequential reading
//
// A handle that is read from one end to the other gets a stream: the store
// decodes ahead on all cores, as it does for a whole copy, and READ requests
// are answered from what is decoded, in the store's own buffers. Streams are few, bounded in memory, and
// end when their reader pauses; reading goes on without them, with prefetching.
//
// # Damage
//
// A read request that touches a damaged range fails whole with EIO. A short
// answer would be wrong: to the kernel that is the end of the file, and it
// fills the rest with zeros. After a failed request the kernel reads page by
// page, so that only damaged pages stay unreadable.
package fuse
