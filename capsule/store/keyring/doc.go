// Package keyring holds all key material of one store.
//
//   - [Ring]: an open key ring. A master key (KEK, 32 bytes) wraps one block of
//     secrets: the store's hash key and chunker key, which never change, and its
//     data keys, versioned, of which the newest is current. Segments and
//     metadata use keys derived from a data key, one for each purpose.
//   - [Source]: where the master key comes from: a file of the store's own, the
//     environment, or a passphrase. [SourceFromEnv] reads the environment.
//   - [Import] and [Ring.Export]: the master key as a line of text, to keep apart.
//
// Under SPACE_HOME:
//
//	keys/keyring      the header and the wrapped secrets
//	keys/keyring.bak  the same again
//	keys/master.key   the master key, unless it is given from outside
//
// Durability. Each file is replaced whole (temporary file, fsync, rename, fsync
// of the directory), the second copy of the key ring only once the first is
// durable, and a new master key waits durable in keys/master.key.new until both
// copies are. So after a power cut anywhere one copy is whole, its master key
// is there, and [Open] finishes what was begun. A change is adopted in memory
// last, once both copies hold it: no data is sealed with a key that may go away.
//
// Damage. Every file ends in a checksum, and the key ring names the fingerprint
// of its master key, so that "damaged" and "wrong key" are told apart: the kinds
// are [capsule.Damaged] and [capsule.WrongKey]. Open writes nothing until the
// master key has proved right.
//
// A Ring is safe for concurrent use. One process at a time may open a store's
// key ring; the store's lock sees to that.
package keyring
