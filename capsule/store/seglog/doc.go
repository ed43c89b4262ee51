// Package seglog keeps the segment logs: append-only files of sealed records
// (package pipeline) under segments/, each up to a maximum size.
//
// One log is active and takes appends; the others are closed for good and only
// read, until garbage collection removes them whole. Log numbers grow for ever
// within one life of the process, and a number that any metadata refers to is
// never given out again. The files carry no header: a record describes itself,
// so a log can be scanned from any point, past any damage.
//
// Durability: Append returns before the bytes are durable. Sync makes every
// byte appended before the call durable, and the directory entries of the
// files with it; the store calls it before it commits metadata that points
// there. After a failed append the active log is left as it is (the torn tail
// is dead bytes) and the next append begins a new one; after a failed Sync the
// caller must stop (an fsync failure is never retried).
//
// Locking: one mutex orders appends; Sync runs beside them; reads take only the
// lock of the cache of open files. Memory: at most [openFiles] open files, and
// nothing per log or per record.
package seglog
