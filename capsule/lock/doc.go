// Package lock keeps the locks that programs take on ranges of files: POSIX
// byte-range locks and flock(2). A [Table] has those of one capsule, be it a
// tree or a volume, and all views of it share the table, so that a lock taken
// through one holds against all others.
//
// Locks are advice: nothing is kept from reading and writing. Owners are the
// views' to tell apart, and a view whose client goes gives up what it held
// ([Table.Release]). A table holds at most [Max] locks. Its lock is a leaf.
package lock
