// Package vfs is the store's one seam to the file system. Every file the
// store keeps, its own and the metadata engine's, is reached through an [FS],
// so that tests can fail any operation, fill the disk, or cut the power
// between any two operations (see the vfstest package).
//
// The interface is Pebble's: the metadata engine needs exactly it, and one
// interface means one set of test file systems. [OS] is the real thing; what
// it creates is readable by its owner alone.
//
// Rules for callers:
//
//   - A file's bytes are durable after Sync of the file, its name after Sync of
//     the directory (OpenDir), in that order.
//   - After a failed Sync nothing is known of the file: never sync it again and
//     believe the answer.
//   - Write may scribble on the buffer it is given.
//   - WriteAt works on files from Create and OpenReadWrite.
package vfs
