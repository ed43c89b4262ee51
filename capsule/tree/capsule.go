package tree

import "context"

// Capsule is what a tree needs of the store: ordered rows for the metadata,
// numbered files for the content, and atomic updates of both together. The
// store's *store.Live is one. It may be used from many goroutines.
type Capsule interface {
	Rows
	// Update runs fn and makes all its changes, or none if fn or the store
	// fails. Updates of one capsule run one after the other, in the order in
	// which a power cut may lose them: what survives is always a prefix. It
	// returns when the changes are visible; Sync makes them durable.
	Update(ctx context.Context, fn func(tx Tx) error) error
	// Sync returns when all updates that had returned before the call are durable.
	Sync(ctx context.Context) error
	// Settle returns when all updates that had returned before the call survive
	// the end of this process, though not a power cut.
	Settle() error
	// ReadAt fills p from a file's content; what was never written is zeros.
	// Files have no length here: the tree keeps sizes. Damage gives the
	// number of good bytes and a *capsule.DamageError.
	ReadAt(ctx context.Context, file uint64, p []byte, off int64) (int, error)
	// NextData returns the first range of a file that was written, at or after
	// off and before limit; start == end: there is none.
	NextData(ctx context.Context, file uint64, off, limit int64) (start, end int64, err error)
	// ReadOnly tells whether Update fails: a snapshot.
	ReadOnly() bool
}

// Rows are the capsule's metadata. No key may be the beginning of another
// (end variable parts with a byte that they cannot hold). Keys are at most 1 KiB
// long and values 64 KiB.
type Rows interface {
	// Get returns nil where there is no such row.
	Get(key []byte) ([]byte, error)
	// Scan calls fn for each row with lo <= key < hi in order until fn returns
	// false or an error. key and value are fn's only until it returns, and fn
	// must not call the capsule. No key may be the beginning of hi; lo may go on
	// from a key, to begin behind it.
	Scan(lo, hi []byte, fn func(key, value []byte) (bool, error)) error
}

// Tx is an update under way. Its reads see its own changes.
type Tx interface {
	Rows
	Set(key, value []byte) error
	Delete(key []byte) error
	// Write puts p into a file's content (at most 1 MiB in all of an update) and
	// returns by how many bytes what is allocated for the file grew.
	Write(file uint64, off int64, p []byte) (grew int64, err error)
	// Punch makes zeros of [off, end) of a file's content, giving up its
	// space; end may be math.MaxInt64. It goes as far as one update may and returns where it stopped
	// (end, when it is done) and by how many bytes the allocation shrank.
	Punch(file uint64, off, end int64) (next, freed int64, err error)
	// Copy makes [dstOff, dstOff+n) of file dst share what [srcOff, srcOff+n) of
	// file src holds. Like Punch it may stop early.
	Copy(dst uint64, dstOff int64, src uint64, srcOff, n int64) (done, grew int64, err error)
}
