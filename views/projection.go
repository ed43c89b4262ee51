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
	ModeTCP  Mode = "tcp"  // over the network
)

// Info is what a listing says of a projection.
type Info struct {
	ID      string     `json:"id"` // given by the view or the Registry
	View    string     `json:"view"`
	Target  string     `json:"target"`  // a directory, absolute, symbolic links resolved; or what clients connect to
	Capsule capsule.ID `json:"capsule"` // zero: the whole namespace
	Name    string     `json:"name"`    // the capsule's, when the projection began
	Mode    Mode       `json:"mode"`
	Since   time.Time  `json:"since"`
	Note    string     `json:"note,omitempty"` // what its user should know
	NVMe    *Namespace `json:"nvme,omitempty"` // of the nvme view alone
}

// Namespace is what a listing says of a capsule as an NVMe namespace.
type Namespace struct {
	NQN        string     `json:"nqn"` // of the subsystem
	NSID       uint32     `json:"nsid"`
	UUID       capsule.ID `json:"uuid"`
	ReadOnly   bool       `json:"read_only"`
	Snapshot   string     `json:"snapshot,omitempty"`
	Addresses  []string   `json:"addresses"`
	Hosts      []string   `json:"hosts"`      // that may connect; none: any
	Configured bool       `json:"configured"` // in space.yaml
}

// Client is somebody who uses projections over the network.
type Client struct {
	View       string    `json:"view"`
	Subsystem  string    `json:"subsystem"`
	Host       string    `json:"host"`
	Address    string    `json:"address"`
	Controller uint16    `json:"controller"`
	Since      time.Time `json:"since"`
	Queues     int       `json:"queues"`
	Reads      Traffic   `json:"reads"`
	Writes     Traffic   `json:"writes"`
}

// Traffic is what went in one direction since the client came, and how long it took.
type Traffic struct {
	Operations uint64           `json:"operations"`
	Bytes      uint64           `json:"bytes"`
	P50        capsule.Duration `json:"p50"`
	P99        capsule.Duration `json:"p99"`
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
	// Describe, if not nil, brings up to date what of Info changes.
	Describe func(*Info)
}

// NewID returns an ID for a projection. A view that gives its projections IDs,
// so as to know them again, gives such; the Registry gives the others theirs.
func NewID() string { return capsule.NewID(time.Now()).String()[28:] }
