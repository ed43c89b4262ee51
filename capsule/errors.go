package capsule

import (
	"context"
	"errors"
	"fmt"
)

// ErrorKind sorts errors by what the caller can do about them.
type ErrorKind uint8

// The error kinds. Their numbers travel in the control API.
const (
	Other       ErrorKind = 0  // a bug or something unforeseen
	Invalid     ErrorKind = 1  // the request can never work as it is
	NotFound    ErrorKind = 2  // no such capsule, name, projection or file
	Exists      ErrorKind = 3  // the name is taken
	Conflict    ErrorKind = 4  // true of the request only in the present state (busy, changed meanwhile)
	Damaged     ErrorKind = 5  // stored bytes failed verification
	NoSpace     ErrorKind = 6  // disk full or quota reached
	ReadOnly    ErrorKind = 7  // the medium or the view takes no writes
	WrongKey    ErrorKind = 8  // the key does not open this store, or none was given
	Locked      ErrorKind = 9  // another process holds the store
	Unavailable ErrorKind = 10 // the store stopped after an I/O failure, or is closing
	Denied      ErrorKind = 11 // policy or permissions say no
	Canceled    ErrorKind = 12 // the caller gave up
	IO          ErrorKind = 13 // the device or file system failed

	// What a POSIX directory tree has to tell apart; see package capsule/tree.
	NotDir       ErrorKind = 14 // a component of the path is no directory
	IsDir        ErrorKind = 15 // it is a directory
	NotEmpty     ErrorKind = 16 // the directory has entries
	NameTooLong  ErrorKind = 17 // a name or path is longer than the limit
	NotPermitted ErrorKind = 18 // whoever asks, or the kind of file, does not allow it (EPERM, where Denied is EACCES)
	TooManyLinks ErrorKind = 19 // the link count is at its limit
	TooLarge     ErrorKind = 20 // beyond the largest size of a file
	Quota        ErrorKind = 21 // the tree's quota is used up
	NoAttribute  ErrorKind = 22 // no extended attribute of that name
	OutOfRange   ErrorKind = 23 // the result does not fit into what the caller gave
	Unsupported  ErrorKind = 24 // not for this kind of capsule, file or view
	Stale        ErrorKind = 25 // the handle's file is gone
	WouldBlock   ErrorKind = 26 // a lock is held by someone else
	CrossDevice  ErrorKind = 27 // the two are not in one tree
	Busy         ErrorKind = 28 // in use in a way that forbids it
	NoDevice     ErrorKind = 29 // beyond the end: no such data (ENXIO)
	Deadlock     ErrorKind = 30 // waiting for the lock would never end
)

var kindNames = [...]string{"error", "invalid", "not found", "exists", "conflict", "damaged", "no space",
	"read-only", "wrong key", "locked", "unavailable", "denied", "canceled", "i/o error",
	"not a directory", "is a directory", "not empty", "name too long", "not permitted", "too many links", "too large", "quota",
	"no attribute", "out of range", "unsupported", "stale", "would block", "cross-device", "busy", "no device", "deadlock"}

func (k ErrorKind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Error is an error with a kind. Its text stands alone: what failed, on what,
// and, where there is something to do, what to do.
type Error struct {
	Kind ErrorKind
	Msg  string
	Err  error // the cause, or nil; not repeated in Msg
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Msg
	}
	if e.Msg == "" {
		return e.Err.Error()
	}
	return e.Msg + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error of the given kind.
func Errorf(k ErrorKind, format string, args ...any) error {
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...)}
}

// Wrap gives err context and, unless err has a kind already, the kind k.
// Wrap of nil is nil.
func Wrap(k ErrorKind, err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	if have := KindOf(err); have != Other {
		k = have
	}
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...), Err: err}
}

// KindOf returns the kind of the outermost *Error in err's chain, Canceled
// for a context's end, and Other where there is none.
func KindOf(err error) ErrorKind {
	var e *Error
	var d *DamageError
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.As(err, &d):
		return Damaged
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return Canceled
	}
	return Other
}

// DamageError says which bytes of which capsule cannot be served because
// their segment failed verification. Its kind is [Damaged].
type DamageError struct {
	Capsule ID
	Off     int64 // first damaged byte of the capsule's content
	Len     int64
	Log     uint64 // segment log number
	LogOff  int64  // position of the record in that log
	Why     string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("capsule %s bytes %d-%d are damaged (segment log %d at %d): %s",
		e.Capsule, e.Off, e.Off+e.Len-1, e.Log, e.LogOff, e.Why)
}
