// Package metafs is the file system that the metadata engine, Pebble, works on:
// it seals every byte that Pebble writes, so that names, sizes and extent maps
// never reach the disk in the clear, and verifies every byte that Pebble reads,
// so that a damaged metadata file is an error and never other data.
//
//   - [FS] is the sealing file system ([New]).
//   - [Keys] is where its keys come from; a file says which version sealed it.
//   - [FS.Err] and [FS.Fail]: the fail-stop rule, below.
//   - [FS.Reseal], [FS.OldestKeyVersion]: key rotation.
//
// # Fail-stop
//
// Pebble does not survive a failed write or sync of its log, its manifest or its
// directory: depending on where the error surfaces it calls Logger.Fatalf,
// panics with a mutex held, panics on a goroutine of its own, or makes the
// runtime abort the process. (And where Fatalf returns, the failed commit is
// reported as a success.) So it never sees such an error. At the first one, FS
// latches it, which freezes the disk as it is, and from then on answers "done"
// to every operation that Pebble cannot do without, doing nothing: writes and
// syncs of log files, creating them, syncing and listing directories, renaming
// and removing. Therefore:
//
//	An operation of Pebble's (Open, Apply, Flush, Close) has succeeded only if
//	it returned nil and FS.Err is nil afterwards.
//
// Check in this order; acknowledge nothing otherwise. The database may then be
// closed in peace and opened again on a new FS, which recovers exactly what was
// durable. Pebble's logger must call [FS.Fail] from Fatalf and return. A failed
// table does not latch: Pebble gives it up and tries again, after a wait that FS
// imposes. But it tries for ever, and where it does so to flush its memory,
// Open, Flush, a commit and Close can wait for ever too; so five failed flushes
// in a row latch as well. Flushes after the failure go to memory, which lets
// everything that waits for them return.
//
// # File format
//
// Integers are little-endian unless said. Every file that is not a marker starts
// with a header of 64 bytes:
//
//	 0  8  magic "SPCMETA" and the format version, 1
//	 8  1  mode: 1 table, 2 log
//	 9  3  zero
//	12  4  version of the metadata key
//	16 24  salt, random
//	40  4  zero
//	44 16  tag: AES-256-GCM of nothing with bytes 0-43 as associated data,
//	       nonce: twelve bytes 0xff
//	60  4  CRC-32C of bytes 0-59, which tells a damaged header from a wrong key
//
// HKDF-SHA256 of the metadata key with the salt and the info string "space
// metafs file 1" gives 64 bytes: the file's AES-256-GCM key, and an AES-256 key
// for the check words below. As no two files share a key, an offset in the file
// is a nonce; files are append-only, so no nonce comes twice. Nonces are 12
// bytes: a use (one byte), three zeros, and a 64-bit big-endian number.
//
// A table (mode 1; names in .sst and .blob) is written once and read at random.
// Its content is cut into frames of 4096 bytes, of which the last, and only it,
// may be shorter (and is empty if the file is). Each is followed on disk by its
// 16-byte tag; nonce: use 0, or 1 for the last frame, and the frame's number. So
// a table cut short at a frame's end does not verify. The content's size follows
// from the file's. A table is durable when Close returns; Sync before that does
// nothing, because the last frame is not known yet.
//
// A log (mode 2; all others: WAL, MANIFEST, OPTIONS, temporary files) is a
// sequence of frames, one for each Write of up to 64 KiB, larger writes being
// split:
//
//	 0  1  kind: 1 data, 2 mark (no content), 3 end (no content)
//	 1  3  length of the content
//	 4  6  synced: all of the file below this offset was durable when the
//	       frame was written
//	10  8  check word: the first 8 bytes of the AES encryption of bytes 0-9
//	       followed by the low 6 bytes of the frame's offset
//	18  …  content, encrypted, and 16 bytes of tag; nonce: use 2 and the frame's
//	       offset; associated data: bytes 0-17
//
// Sync is followed by a mark frame, so that what was just synced has a witness;
// except in a WAL (.log), which is synced at every commit, the mark is synced
// too. Close writes and syncs an end frame.
//
// A WAL is extended ahead with zeros, 64 KiB and then as much as it has, up to
// 4 MiB at a time, and frames overwrite them: so a sync of a few of them is
// one write and one flush of the disk, without a new size and new blocks in the
// journal of the file system below, which took as long again. No frame begins
// with a zero. On a full disk, and while syncs are rare, a WAL grows frame by frame.
//
// # Torn or damaged
//
// A power cut may leave any rubbish at the end of a log, from the first byte
// that was not synced, and zeros in any place where a frame was not synced. Pebble expects to read up to there and then io.EOF.
// Damage to what had been synced looks the same at first. So when a frame does
// not verify, the reader looks for a check word further on, at any offset, that
// is right for its place: if one says that the bad place had been synced, the
// file is damaged: an error of kind capsule.Damaged, which Pebble knows as
// corruption. If none does, the log ends there.
//
// The header of a log is synced before its first frame is written: a WAL with at
// most a header's size is empty, and a bad header in front of more is damage.
// Other logs are read only after they were synced (the marker points to them, or
// they were renamed), so one that is empty is damaged.
//
// What stays unseen: damage to the last synced frame of a WAL whose mark is gone
// too, damaged with it or lost in a power cut; a WAL cut short at the end; files
// removed, or replaced by older or other files of the same store (nothing binds
// a file to its name); and the marker files, which have no content and whose
// names Pebble checks.
package metafs
