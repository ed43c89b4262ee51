// Package bulk copies a payload of any size from one or several mirrors to a
// sink, verified chunk by chunk, and goes on where it was stopped.
//
//   - [Source] is a payload to give; [Serve] gives it over one stream.
//   - [Mirror] opens streams to a place that has the payload; [Sink] takes it.
//   - [Transfer] fetches: several streams, several mirrors at once. It can be
//     paused, slowed, drained and cancelled, and tells how far it is.
//   - [Journal] remembers which chunks are there, over crashes.
//
// Streams are any io.ReadWriteCloser, one conversation each; wire.go has the
// messages. A stream must take in a few small requests while the other end
// still talks; Close must end reads and writes that wait.
//
// # Integrity
//
// A payload is chunks of equal size, the last one shorter. Each chunk is
// checked against its BLAKE3-256 before it is written, and the final hash, the
// [Root], is BLAKE3-256 over the size and all chunk hashes, so that it can be
// checked after a resume without reading anything again. Chunk hashes come
// from the first mirror that answers; every chunk of every mirror must agree
// with them, and one that does not is blamed on its mirror. Who knows the root
// beforehand gives it ([Options.Want]), and then need not trust any mirror.
//
// # Durability
//
// A chunk is noted in the journal after it was written. Notes that a sync of
// the sink covers hold after a power cut; later ones hold as long as the
// machine has not restarted, that is after a crash of the process. When Wait
// returns nil, all of the payload is durable in the sink.
//
// # Memory
//
// A transfer holds at most two chunks for each stream.
package bulk
