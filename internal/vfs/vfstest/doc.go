// Package vfstest has the file systems that tests put under the store:
//
//   - [Faults] fails, or shortens, any operation a test picks, and counts them.
//   - [DiskFull] is a disk of a given size.
//   - [PowerCut] is a machine in memory whose power goes off after any given
//     operation, and shows what such a machine can find when it comes back.
//
// # What a power cut does here
//
// PowerCut is built on Pebble's crashable MemFS. After a cut:
//
//   - Bytes that a Sync (or SyncData) of their file covered are there.
//   - Of each unsynced 4 KiB block, counted from the start of the file, either
//     the whole newest content is there or none of it; each block falls
//     independently, so writes reach the disk in any order. An absent block
//     below the end of a kept one reads as zeros.
//   - The write that the cut interrupts has been applied up to some byte,
//     then counts as unsynced like any other. So a write is torn at any byte,
//     once per cut; elsewhere blocks are not torn inside.
//   - Names: what a directory Sync covered is there; each later creation is
//     there or not, independently of others and of the file's content; each
//     later removal has happened or not.
//   - An unsynced rename is seen done, not done, or with both names there, never
//     with neither (as long as the old name was durable). Journaling file
//     systems never show both; code that survives this survives those.
//   - SyncTo promises nothing, as its contract says.
//
// Not modelled: sectors damaged by the cut outside what was being written, a
// file's length growing without its data beyond block granularity, disks that
// lie about flushes. MemFS has no way to shorten a file, and so there is no
// unsynced truncation to lose.
//
// Locks die with the machine: a clone can be opened at once, while the store
// that was cut off still runs into errors.
package vfstest
