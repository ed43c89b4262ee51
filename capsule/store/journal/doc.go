// Package journal keeps small changes in order until they are part of the
// store's metadata and segments: records numbered from 1 without a gap, in
// append-only files that package metafs seals.
//
//   - [Open] replays what the process before left behind and returns a [Journal].
//   - [Journal.Append] takes a record; [Journal.Sync] makes it durable, for all
//     who wait together (group commit), and [Journal.Push] writes it, which is
//     enough for it to outlive the process; [Journal.Cut] begins a new file and
//     [Journal.Release] removes files whose records are no longer needed.
//
// # Durability
//
// What survives a power cut is a prefix of what was appended, at least up to
// the last Sync. A file takes its first byte only after the file before it is
// durable. Write and sync errors are latched below, by metafs: Append and Sync
// then fail for good.
//
// # File format
//
// A file is named by a counter, in 16 hex digits and ".log" (so metafs keeps it
// as it does a write-ahead log). Its content is the number of its first record,
// 8 bytes big-endian, then for each record its length as a varint and its
// bytes. A file without content was prepared and not used. What follows the
// last whole record of the last file was lost in a power cut.
//
// # Locking
//
// One mutex orders appends, which only copy. One caller at a time writes, in
// order, and one at a time syncs, both outside of the mutex. Whoever syncs next is one
// of those who wait for it: he writes all that came meanwhile, syncs, and wakes
// those whose records are durable and one who goes on. Ending a file
// takes both. Memory is bounded: an append that finds [bufferLimit] bytes waiting
// writes them first.
//
// A Push that is usually followed by a Sync, by the number of pushes from one sync
// to the next, has the system begin to write the file: the disk is then at it while the
// caller gets its answer and asks for the sync, which still waits for all of it.
package journal
