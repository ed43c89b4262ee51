package views

import (
	"time"

	"github.com/spacestore/space/capsule"
)

// Mode is how a projection reaches its users.
type Mode string

// The modes of projections.
const (
	ModeFUSE Mode = "fuse" // a live kernel mount
	ModeCopy Mode = "copy" // plain files, where there is no FUSE
)

// Info is what a listing says of a projection.
type Info struct {
	ID      string     `json:"id"` // given by the view or the Registry
	View    string     `json:"view"`
	Target  string     `json:"target"`  // absolute, symbolic links resolved
	Capsule capsule.ID `json:"capsule"` // zero: the whole namespace
	Name    string     `json:"name"`    // the capsule's, when the projection began
	Mode    Mode       `json:"mode"`
	Since   time.Time  `json:"since"`
	Note    string     `json:"note,omitempty"` // what its user should know
}

// Backend is the part of a view that runs one projection.
type Backend interface {
	// Close ends the projection. It fails with [capsule.Conflict] while
	// someone uses it, unless lazy is set: then the projection leaves its
	// target at once and ends when its last user does. Closing a projection
	// that has ended does nothing.
	Close(lazy bool) error
	// Done is closed when the projection has ended, for whatever reason.
	Done() <-chan struct{}
}

// Projection is one running projection.
type Projection struct {
	Info
	Backend
}
