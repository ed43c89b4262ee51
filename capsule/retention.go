package capsule

import (
	"strings"
	"time"
)

// SnapshotPolicy says that a node takes snapshots of a capsule by itself, and
// how many of them stay. The zero SnapshotPolicy is none.
type SnapshotPolicy struct {
	Every Duration  `json:"every"` // 0: no snapshots are taken
	Keep  int       `json:"keep"`
	Last  time.Time `json:"last,omitzero"` // when one was due the last time
}

// Limits of snapshot policies. More frequent snapshots would cost more than
// they are worth: removing one looks at all of a capsule's metadata.
const (
	MinSnapshotEvery = time.Minute
	MaxSnapshotEvery = 10 * 365 * 24 * time.Hour
	MaxSnapshotKeep  = 1000
)

// Check reports whether a node can follow the policy.
func (p SnapshotPolicy) Check() error {
	switch every := time.Duration(p.Every); {
	case every == 0 && p.Keep == 0:
		return nil
	case every < MinSnapshotEvery || every > MaxSnapshotEvery:
		return Errorf(Invalid, "snapshots can be taken every %s to %s, not every %s", MinSnapshotEvery, MaxSnapshotEvery, every)
	case p.Keep < 1 || p.Keep > MaxSnapshotKeep:
		return Errorf(Invalid, "1 to %d automatic snapshots can be kept, not %d", MaxSnapshotKeep, p.Keep)
	}
	return nil
}

const (
	snapshotTime = "20060102T150405Z"
	autoPrefix   = "auto-"
)

// SnapshotName is the name of a snapshot that is given none: the time in UTC.
func SnapshotName(t time.Time) string { return t.UTC().Format(snapshotTime) }

// AutoSnapshotName is the name of an automatic snapshot.
func AutoSnapshotName(t time.Time) string { return autoPrefix + SnapshotName(t) }

// IsAutoSnapshot reports whether a snapshot's name is that of an automatic one.
func IsAutoSnapshot(name string) bool {
	text, ok := strings.CutPrefix(name, autoPrefix)
	_, err := time.Parse(snapshotTime, text)
	return ok && err == nil
}
