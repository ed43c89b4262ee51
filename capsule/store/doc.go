// Package store keeps capsules: content in sealed segments (package seglog),
// and what is known of it in metadata (Pebble, under package metafs).
//
// # Types
//
// [Store] is the store; one process holds it at a time. [Reader] reads one
// version of one object's content. [Live] is an open volume or tree, [Volume] a
// volume; [Update] changes one. [DataReader] is what a volume is made of.
// [Notes] are what others keep with a capsule. [PutRequest], [CreateRequest],
// [ListQuery], [GCOptions] and [VerifyOptions] are what the longer calls take.
//
// # What is on disk
//
// A capsule's record names its content. A content is an immutable list of
// extents, each a segment or a hole; few extents lie in the record, many in
// pages of their own. A segment's row says in which log its record lies and
// how many extents refer to it. DESIGN.md tells why, docs/format.md the bytes.
//
// Volumes and trees have rows with versions instead, and blocks that are lists
// of pieces of segments. Their changes are in the journal (package journal) and
// in memory first.
//
// # Durability
//
// Every change goes through one place, commit: it syncs the segment logs, then
// commits one metadata batch with a synced write-ahead log; calls that arrive
// meanwhile share the next round (group commit). A content under construction
// is marked as such before its first page is written, so that a crash leaves
// something to clean up and never something half there. After a failed sync
// the store takes no more changes until it is opened again: it never retries
// an fsync.
//
// # Invariants
//
//   - A segment's reference count is the number of extents that name it, in
//     contents that are live, under construction, or removed and not yet released.
//   - A row is deleted in the batch that drops its count to zero, unless a put
//     under way has promised itself the segment (a pin); then a marker row
//     stays so that it is looked at again.
//   - A log is removed only after the commit that leaves it without live bytes
//     is durable, and no put has records in it that no row names yet.
//
// # Locking
//
// The leader of a commit round owns all metadata writes; rounds never overlap.
// Lock order: lineages, then a family, then overlay.updating, then
// overlay.mu, then round, content pins, segment pins, and leaf
// locks (sealers, cache, logs, journal, watchers). What runs inside a round
// takes none of those before it. Appending comes after updating and before
// overlay.mu. Put compresses and reads without a lock; an update that writes
// whole blocks seals them under its family's. Nobody waits for
// a segment that another put is to settle while he has one to settle himself: all
// that he has sealed is in the logs before he waits.
package store
