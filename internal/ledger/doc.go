// Package ledger is memory that outlives its process: a small map of numbered
// entries in a memory file (memfd). Whoever has a descriptor of the file can
// open the ledger again after its writer was killed at any moment, and finds
// each entry either as it was put last or as it was before.
//
// Nothing of it is ever on a disk, and putting an entry costs a copy and no
// system call.
//
// # Format
//
// Integers are in the machine's order: a ledger never leaves it. A page with
// the header: the magic number, the format's version, and the state, one word
// that is replaced at once: which half is in use (the top bit) and where it
// ends. Then two halves of the same size. A half is a sequence of records:
//
//	 0  4  length of the record, a multiple of 8
//	 4  4  length of the value; all ones: the entry is deleted
//	 8  4  kind of the entry
//	12  4  zero
//	16  8  number of the entry
//	24  …  the value, padded with zeros
//
// A record counts once the state says that the half ends behind it. When a half
// has more dead records than living ones, the living go to the other half and
// the state changes over; the old half's memory is given back.
package ledger
