package metafs

import "github.com/spacestore/space/capsule"

// Err returns the failure that froze the disk, or nil. Once set it stays; only
// a new FS starts afresh. See the package's documentation for when to ask.
func (fs *FS) Err() error {
	if e := fs.fail.Load(); e != nil {
		return *e
	}
	return nil
}

// Failed returns a channel that is closed once Err is set.
func (fs *FS) Failed() <-chan struct{} { return fs.failed }

// Fail freezes the disk because of err, unless an earlier failure did. The
// error that [FS.Err] returns has err's kind, or is Unavailable.
func (fs *FS) Fail(err error) {
	err = capsule.Wrap(capsule.Unavailable, err, "the metadata stopped; what is on disk is safe, open the store again")
	if fs.fail.CompareAndSwap(nil, &err) {
		close(fs.failed)
	}
}
