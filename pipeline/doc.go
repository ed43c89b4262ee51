// Package pipeline turns bytes into sealed segments and back: chunk, hash,
// compress, encrypt. It is pure: no files, no clock, no state but scratch
// memory, so every function can be tested with bytes alone.
//
//   - [Chunker] cuts a byte stream where its content says so, under a key.
//   - [Hasher] names a chunk: its [SegmentID], a keyed BLAKE3-256.
//   - [Codec] and [Compressor] shrink it, when it shrinks.
//   - [Cipher] seals and opens it: XAES-256-GCM, or a keyed checksum where a
//     policy turned encryption off.
//   - [Seal] makes a record: a self-describing header and the sealed payload,
//     ready for a segment log (docs/format.md has the layout). [Open] reads it
//     all, [OpenFrames] a part, if it is one that did not compress.
//   - [Splitter] and [Ordered] stream: blocks of whole chunks in, work on every
//     core, results out in order, with a fixed number of blocks in memory.
//
// Values with scratch memory ([Hasher], [Compressor]) belong to one goroutine
// at a time; everything else may be shared.
package pipeline
