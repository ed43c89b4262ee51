// Package scratch keeps content that is being changed, before it is stored: a
// [File] begins as what another one holds, takes writes anywhere, and is gone
// when it is closed or its process ends.
//
// What is written lies in an unlinked file of the system's, sealed block by block
// with a key that is nowhere but in memory, so that nothing is in the clear on
// disk and nothing can be read afterwards. Memory is one block, and some tens of
// bytes for each 64 KiB written.
//
// Locking: one mutex in each File.
package scratch
