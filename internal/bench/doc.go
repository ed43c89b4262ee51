// Package bench measures a store, and in the same run the machine under it, so
// that each figure stands beside the limit that binds it. docs/bench.md says
// how to read the result.
//
// [Run] does everything: it makes a temporary directory in [Options].Dir, in it
// the corpora, a plain file to measure the disk with, and stores, and removes
// it at the end, whatever the end is. A round measures every quantity once, in
// a fixed order; the first round is discarded, for memory that is touched for
// the first time is slow, and of the others the [Report] has medians. Nothing
// here judges: there is no rate that is too low.
//
// Files by what they measure: machine.go memory, processor and disk; content.go
// a store with one large capsule; small.go one with many small ones. limits.go
// says which limits bind which operation.
package bench
