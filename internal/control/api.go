package control

import (
	"context"
	"io"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/views"
)

// API is what the commands of spacectl are written against. A ref is a
// capsule's ID or its name.
type API interface {
	Capsules
	Volumes
	Snapshots
	Trees
	Maintenance
	Keyring
	Projections
	Node
}

// Capsules are the operations on single capsules and their list.
type Capsules interface {
	Put(ctx context.Context, req store.PutRequest, r io.Reader) (capsule.Info, error)
	// PutAll is Put for several contents at once, each whole or not at all. It
	// calls taken, if set, when it needs their bytes no more.
	PutAll(ctx context.Context, contents []store.Content, taken func()) []store.PutResult
	// Get calls begin once, with the version of the capsule that it serves,
	// and then writes the range to the writer that begin returned.
	Get(ctx context.Context, req GetRequest, begin func(capsule.Info) (io.Writer, error)) error
	Resolve(ctx context.Context, ref string) (capsule.Info, error)
	Stat(ctx context.Context, ref string) (capsule.Stat, error)
	List(ctx context.Context, q store.ListQuery) (store.Page, error)
	Rename(ctx context.Context, ref, name string) (capsule.Info, error)
	Remove(ctx context.Context, ref string) (capsule.Info, error)
	Policy(ctx context.Context, ref string) (*capsule.Policy, error)
	SetPolicy(ctx context.Context, ref string, p *capsule.Policy) (capsule.Info, error)
}

// GetRequest asks for Length bytes of a capsule from Offset; a negative Length
// means all that follow.
type GetRequest struct {
	Ref    string
	Offset int64
	Length int64
}

// Volumes are the operations on volumes alone.
type Volumes interface {
	// CreateVolume makes a volume; the request's kind is not looked at.
	CreateVolume(ctx context.Context, req store.CreateRequest) (capsule.Info, error)
	ResizeVolume(ctx context.Context, ref string, size int64) (capsule.Info, error)
	ImportVolume(ctx context.Context, req store.CreateRequest, r store.DataReader) (capsule.Info, error)
	// ExportVolume calls begin once, with what it is about to write, and then
	// writes all that is no hole to what begin returned, at ascending offsets.
	ExportVolume(ctx context.Context, req ExportRequest, begin func(capsule.Info) (io.WriterAt, error)) error
}

// ExportRequest asks for a volume or tree as it is, or as it was in a snapshot.
type ExportRequest struct {
	Ref      string
	Snapshot string // "": as it is
}

// Snapshots are the operations on a capsule's snapshots.
type Snapshots interface {
	Snapshot(ctx context.Context, ref, name string) (capsule.Snapshot, error)
	// Snapshots lists the oldest first.
	Snapshots(ctx context.Context, ref string) ([]capsule.Snapshot, error)
	DeleteSnapshot(ctx context.Context, ref, name string) error
	Rollback(ctx context.Context, ref, snapshot string) (capsule.Info, error)
	Clone(ctx context.Context, ref, snapshot, name string) (capsule.Info, error)
	// Diff calls fn with what may have changed from one snapshot of a volume or
	// object to another, or, if to is "", to now (see store.Store.Diff).
	Diff(ctx context.Context, req DiffRequest, fn func(store.Range) error) error
	SnapshotPolicy(ctx context.Context, ref string) (capsule.SnapshotPolicy, error)
	SetSnapshotPolicy(ctx context.Context, ref string, p capsule.SnapshotPolicy) (capsule.SnapshotPolicy, error)
}

// DiffRequest asks what changed between two snapshots of a capsule.
type DiffRequest struct {
	Ref  string
	From string
	To   string // "": the capsule as it is
}

// Trees are the operations on directory trees that need no mount.
type Trees interface {
	CreateTree(ctx context.Context, req CreateTreeRequest) (capsule.Info, error)
	// TreeQuota changes what the request has of a tree's limits, and returns what
	// is used of them then.
	TreeQuota(ctx context.Context, req TreeQuotaRequest) (tree.Usage, error)
	// ImportTree unpacks a tar into a tree.
	ImportTree(ctx context.Context, ref string, tar io.Reader) error
	// ExportTree writes a tree as a tar, as it is at one moment.
	ExportTree(ctx context.Context, req ExportRequest, tar io.Writer) error
	// ListTree calls fn with the entries of a directory, or with what else the
	// path names.
	ListTree(ctx context.Context, req ListTreeRequest, fn func(TreeEntry) error) error
	// CheckTree calls fn with all that is wrong in a tree, and with repair puts
	// right what it can.
	CheckTree(ctx context.Context, ref string, repair bool, fn func(tree.Problem)) error
	// DiffTree calls fn with the paths that changed from one snapshot to
	// another, or, if to is "", to now (see tree.Diff).
	DiffTree(ctx context.Context, req DiffRequest, fn func(TreeChange) error) error
}

// TreeQuotaRequest asks for a tree's limits, to be changed where it has others: 0
// is no limit.
type TreeQuotaRequest struct {
	Ref           string
	Bytes, Inodes *int64
}

// ListTreeRequest asks for a directory of a tree.
type ListTreeRequest struct {
	Ref      string
	Snapshot string // "": as it is
	Path     string // slash-separated; "" is the top directory
}

// TreeEntry is what a listing of a tree says of one name.
type TreeEntry struct {
	Name   string    `json:"name"`
	Mode   uint32    `json:"mode"` // as stat(2) has it
	Nlink  uint32    `json:"nlink"`
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Size   int64     `json:"size"`
	Mtime  time.Time `json:"mtime"`
	Inode  uint64    `json:"inode"`
	Target string    `json:"target,omitempty"` // of a symbolic link
}

// TreeChange is a path that two snapshots of a tree do not have in common.
type TreeChange struct {
	Change string `json:"change"` // added, removed, modified, renamed
	Path   string `json:"path"`
	From   string `json:"from,omitempty"` // of what was renamed: its path before
	Mode   uint32 `json:"mode"`           // as stat(2) has it
	Size   int64  `json:"size"`
	Inode  uint64 `json:"inode"`
}

// CreateTreeRequest asks for an empty tree whose root belongs to UID and GID.
type CreateTreeRequest struct {
	Name     string
	Policy   *capsule.Policy // nil: the default
	Quota    tree.Quota
	UID, GID uint32
}

// Maintenance is about the store as a whole. Progress functions may be nil
// and are called from one goroutine at a time.
type Maintenance interface {
	Usage(ctx context.Context) (capsule.Usage, error)
	GC(ctx context.Context, o store.GCOptions, progress func(done, total int64)) (store.GCReport, error)
	Verify(ctx context.Context, req VerifyRequest, progress func(done, total int64)) (store.VerifyReport, error)
}

// VerifyRequest asks for a check of one capsule, or of the whole store when
// Ref is empty.
type VerifyRequest struct {
	Ref    string
	Rate   int64 // bytes per second; 0: as fast as it goes
	Resume bool
	// Metadata asks, of the whole store, to check what is known of it alone.
	Metadata bool
}

// Keyring is about the store's keys. ExportKey returns secrets; the socket
// lets only the store's own user and root ask.
type Keyring interface {
	Keys(ctx context.Context) (keyring.Info, error)
	// RotateKey makes new keys. master is the new master key; nil keeps the
	// kind there is (see keyring.Ring.Rotate).
	RotateKey(ctx context.Context, master *keyring.Source) (keyring.Info, error)
	ExportKey(ctx context.Context) (string, error)
}

// Projections are the capsules a node exposes at the moment. A projection is
// named by its ID or its target.
type Projections interface {
	Mount(ctx context.Context, req MountRequest) (views.Info, error)
	Projections(ctx context.Context) ([]views.Info, error)
	// Clients lists who uses them over the network.
	Clients(ctx context.Context) ([]views.Client, error)
	Unmount(ctx context.Context, ref string, lazy bool) (views.Info, error)
	// Wait returns when the projection has ended.
	Wait(ctx context.Context, ref string) error
}

// MountRequest asks for one capsule, or with All for the namespace, at the
// directory Target, an absolute path, or over the network.
type MountRequest struct {
	View       string // "" means fuse
	Ref        string
	All        bool
	Target     string
	AllowOther bool
	ReadOnly   bool
	Snapshot   string // of a tree or volume; "": what it is now
	NVMe       NVMeExport
}

// NVMeExport says how the nvme view is to show a capsule; what is empty, the
// node chooses.
type NVMeExport struct {
	Listen []string // addresses, host:port
	NQN    string   // of the subsystem
	NSID   uint32
	Hosts  []NVMeHost // that may connect; none: any
}

// NVMeHost is a host that may connect.
type NVMeHost struct {
	NQN        string `json:"nqn"`
	Secret     string `json:"secret,omitempty"`      // "": it need not authenticate
	CtrlSecret string `json:"ctrl_secret,omitempty"` // "": we do not authenticate to it
}

// Node is about the process that answers.
type Node interface {
	Status(ctx context.Context) (Status, error)
	Shutdown(ctx context.Context) error
}

// Status says who answers.
type Status struct {
	Version     string    `json:"version"`
	PID         int       `json:"pid"`
	Ephemeral   bool      `json:"ephemeral"` // ends with its last projection
	Draining    bool      `json:"draining"`
	Started     time.Time `json:"started"`
	Projections int       `json:"projections"`
}
