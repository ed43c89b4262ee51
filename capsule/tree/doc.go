// Package tree keeps a POSIX directory tree in a capsule: inodes, directories,
// extended attributes and ACLs as rows, file content as the capsule's files.
// Every view (FUSE, NFS, CSI, tar) works on it, and all views of one tree on a
// node share one [FS], where open files, locks and change notification live.
//
// # Types
//
// [Capsule] is what a tree needs of the store. [FS] is an open tree; its methods
// take inode numbers, never paths. [File] is an open file. [Attr] is what is
// known of an inode, [SetAttr] what to change of it, [New] what a new one is to
// be. [Cred] is who asks. [Event] tells a watcher what changed. [Check] finds
// and repairs what is wrong in a tree, [Diff] compares two snapshots of one,
// [FS.Export] and [FS.Import] speak tar.
//
// # Permissions
//
// Operations take a *[Cred] and apply POSIX permissions, ACLs included, with
// Linux's order of errors. A nil Cred means that the caller has checked, as the
// kernel does for a FUSE mount with default_permissions: nothing is refused,
// and set-user-ID bits stay unless the caller clears them. UID 0 may do anything.
//
// # Names, numbers, cookies
//
// A name is 1 to 255 bytes of anything but '/' and NUL, and not "." or "..";
// those two are the views' business, with [Attr].Parent. Inode 1 is the root.
// A number is never used again in a tree; Gen tells apart files that got the
// same number before and after a roll-back to a snapshot. A number that names
// nothing any more is a Stale error. Directory cookies are positions that stay
// right while the directory changes; 0 is the beginning, 1 and 2 are never used.
//
// # Times
//
// mtime and ctime follow POSIX. Reading does not change atime (noatime): it is
// set at creation and by SetAttr. Change grows with each change of an inode.
//
// # Durability
//
// Each operation is one update of the capsule, so a crash leaves it whole or
// not there, and what survives is a prefix. Two things take several: content
// that is given up (a large file removed or cut short) under a marker row, so
// that it goes on after a crash, and large writes and copies, which a crash may
// leave half done as any file system may. [FS.Sync] and [File.Sync] make
// durable what had returned before.
//
// A file without a name stays while somebody has it open. After a crash it is
// freed when the tree is opened, unless [Options].HoldOrphans keeps it for
// views that take over open files: they open it again by number, and then call
// [FS.Reclaim].
//
// # Memory
//
// The inode cache, the queues of watchers and of the reclaimer, and directory
// pages are bounded by constants; open files, leases and locks by [MaxOpen], [MaxLeases] and lock.Max.
//
// # Leases
//
// A view may get a lease on a file ([FS.Lease]): while it lasts, nobody else
// changes the file, or opens it at all. Operations of other origins have it
// recalled and wait for that, [LeaseTime] at most.
//
// # Locking
//
// Lock order: a file's content (node.data; of two files the lower number first),
// then the capsule's update, then the tree's metadata (FS.mu), then the leaf
// locks: leases before node table, locks, audience, watchers, reclaimer's queue. FS.mu is taken for
// writing inside an update after its content was written, and held until the
// update is visible and the cache has it; readers of metadata never wait for
// content or for the disk.
package tree
