package main

import (
	"github.com/spacestore/space/capsule"
)

// exitCodes is the one table from error kinds to exit codes; docs/cli.md shows
// it.
var exitCodes = [...]int{
	capsule.Other:       1,
	capsule.Invalid:     2,
	capsule.NotFound:    3,
	capsule.Exists:      4,
	capsule.Conflict:    5,
	capsule.Damaged:     6,
	capsule.NoSpace:     7,
	capsule.ReadOnly:    8,
	capsule.WrongKey:    9,
	capsule.Locked:      10,
	capsule.Unavailable: 11,
	capsule.Denied:      12,
	capsule.Canceled:    13,
	capsule.IO:          14,

	// A shell has no use for the finer kinds.
	capsule.NotDir:       2,
	capsule.IsDir:        2,
	capsule.NotEmpty:     5,
	capsule.NameTooLong:  2,
	capsule.NotPermitted: 12,
	capsule.TooManyLinks: 7,
	capsule.TooLarge:     2,
	capsule.Quota:        7,
	capsule.NoAttribute:  3,
	capsule.OutOfRange:   2,
	capsule.Unsupported:  2,
	capsule.Stale:        3,
	capsule.WouldBlock:   5,
	capsule.CrossDevice:  2,
	capsule.Busy:         5,
	capsule.NoDevice:     2,
	capsule.Deadlock:     5,
}

const (
	exitInternal = 70  // a panic
	exitSignal   = 128 // plus the signal's number
)

func exitCode(err error) int {
	kind := capsule.KindOf(err)
	if int(kind) < len(exitCodes) {
		return exitCodes[kind]
	}
	return exitCodes[capsule.Other]
}
