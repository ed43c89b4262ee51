// Package bulk copies a payload of any size from one or several mirrors to a
// sink, verified chunk by chunk, and goes on where it was stopped.
//
//   - [Source] is a payload to give; [Serve] gives it over one stream.
//   - [Mirror] opens streams to a place that has the payload; [Sink] takes it.
//   - [Transfer] fetches: several streams, several mirrors at once. It can be
//     paused, slowed, drained, cancelled and given other streams, and tells how far
//     it is. Mirrors may come while it goes on.
//   - [Journal] remembers which chunks are there, over crashes.
//
// Streams are any io.ReadWriteCloser, one conversation each; wire.go has the
// messages. A stream must take in a few small requests while the other end
// still talks; Close must end reads and writes that wait.
//
// # Integrity
//
// A payload is chunks of equal size, the last one shorter. A mirror reads a chunk
// once, hashes it (BLAKE3-256) as it sends it, and says the hash after it. A chunk
// that has another hash than its mirror says is corrupt: it is not written, and
// blamed on the mirror.
//
// The final hash, the root, is BLAKE3-256 over the size and all chunk hashes, so that
// it is checked after a resume without reading anything again. Who knows it
// beforehand gives it ([Options.Want]), and then need not trust any mirror.
// Otherwise one mirror is the authority: the first that answers, or the first in the
// order of trust ([Options.Trusted]). It is asked for its hashes of what came from
// elsewhere, earlier runs included, and for the root. What differs is fetched again;
// if another mirror gave it, that one is out, or, where nothing says who is right,
// the transfer ends with [ErrDisputed]. So a mirror can't have another one blamed.
// One that is trusted more becomes the authority whenever it answers, and is asked for
// all hashes then; one that is trusted less can't put it out while it is away.
//
// # Durability
//
// A chunk is noted in the journal after it was written, and the note is taken back
// before it is written anew. Notes that a sync of
// the sink covers hold after a power cut; later ones hold as long as the
// machine has not restarted, that is after a crash of the process. When Wait
// returns nil, all of the payload is durable in the sink.
//
// # Memory
//
// A transfer holds at most two chunks for each stream, and 128 MiB of them whatever
// the mirrors are.
package bulk
