package nvme

import (
	"context"
	"log/slog"
	"time"

	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/views/nvme/wire"
)

// Device is what a namespace stands on. It may be used from many goroutines.
// Its errors have kinds (package capsule).
type Device interface {
	// ReadAt reads len(p) bytes, whole blocks inside the device. Bytes that
	// are damaged are a *capsule.DamageError.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes whole blocks; they can be read when it returns.
	WriteAt(p []byte, off int64) (int, error)
	// Trim makes zeroes of a range and gives its space back.
	Trim(ctx context.Context, off, n int64) error
	// Flush returns when every write and trim that had returned before is durable.
	Flush(ctx context.Context) error
	// Size returns the size in bytes; after it has grown, [Target.Resized] is called.
	Size() int64
	// BlockSize returns 512 or 4096.
	BlockSize() int
	// ReadOnly reports whether the device takes no writes.
	ReadOnly() bool
	// NextData returns the first range at or behind off that may hold
	// anything but zeroes; io.EOF: none.
	NextData(ctx context.Context, off int64) (start, end int64, err error)
}

// Persister keeps a namespace's reservations where they survive a power cut.
type Persister interface {
	// LoadReservations returns what was saved last, nil if nothing was.
	LoadReservations(nqn string, nsid uint32) ([]byte, error)
	// SaveReservations returns when state is durable.
	SaveReservations(nqn string, nsid uint32, state []byte) error
}

// Options are a target's settings. Zero values mean the defaults.
type Options struct {
	Logger    *slog.Logger
	Clock     clock.Clock // for keep-alive and deadlines
	Persister Persister   // nil: reservations last as long as the target

	MaxConns       int   // connections, 4096
	MaxHalfOpen    int   // of which are not yet a queue, 256; the oldest gives way
	MaxControllers int   // controllers of one subsystem, 1024
	MaxIOQueues    int   // I/O queues of one controller, 64
	QueueDepth     int   // commands outstanding in one queue, 128
	MaxTransfer    int   // bytes of one command, a power of two from 4 KiB; 1 MiB
	InCapsule      int   // bytes of data that a command capsule may bring, 16 KiB
	MaxH2CData     int   // bytes of one H2CData PDU, 1 MiB
	R2TSize        int   // bytes that one R2T asks for, MaxTransfer
	Memory         int64 // bytes of data of all commands, 256 MiB
	ConnMemory     int64 // bytes of data of one connection's commands, 32 MiB
	Workers        int   // operations that may wait for one namespace's device at a time, 64

	HandshakeTimeout time.Duration // from accepting to the connect command, 10 s
	StallTimeout     time.Duration // for a host that owes us data or does not take ours, 60 s
}

// Port is an address that hosts connect to.
type Port struct {
	ID uint16 // not 0; ANA states are kept by it
	// Address and Service are what discovery tells hosts: IP address and port
	// number. If they are empty, the listener's are told, and for a listener
	// on all addresses the one by which the asking host came.
	Address, Service string
	// DiscoveryOnly is for the discovery port, 8009: no subsystem but the
	// discovery service can be reached by it.
	DiscoveryOnly bool
}

// Subsystem is what hosts connect to.
type Subsystem struct {
	NQN          string // nqn.yyyy-mm.reverse.domain:name
	Serial       string // at most 20 characters of ASCII
	Model        string // at most 40
	AllowAnyHost bool   // who is not in Hosts may connect too, without a secret
	Hosts        []Host
	Ports        []uint16 // IDs of the ports at which hosts reach it; nil: all
}

// Host is a host that may connect to a subsystem.
type Host struct {
	NQN string
	// Secret is the host's DH-HMAC-CHAP secret, "DHHC-1:...". If it is not
	// empty the host has to prove that it knows it.
	Secret string
	// CtrlSecret is the secret by which we prove ourselves, if the host asks.
	CtrlSecret string
}

// Namespace is a disk in a subsystem.
type Namespace struct {
	NSID     uint32 // 1 to 1024
	NGUID    [16]byte
	UUID     [16]byte
	Device   Device
	ReadOnly bool   // in addition to the device's own
	ANAGroup uint32 // 0: group 1
	// AtomicWrite is up to how many bytes a write is whole or not there after
	// a power cut. 0: one block.
	AtomicWrite int
}

// ANAState is the access that a port gives to a group of namespaces.
type ANAState = wire.ANAState

// The ANA states.
const (
	Optimized    = wire.ANAOptimized
	NonOptimized = wire.ANANonOptimized
	Inaccessible = wire.ANAInaccess
	Lost         = wire.ANALoss
	Changing     = wire.ANAChange
)

// ControllerInfo describes a host's association with a subsystem.
type ControllerInfo struct {
	Subsystem     string
	CNTLID        uint16
	HostNQN       string
	HostID        [16]byte
	Port          uint16
	Remote        string // address of the admin queue's connection
	Queues        int    // I/O queues
	Since         time.Time
	Discovery     bool
	Authenticated bool
	Stats
}

// Stats counts a controller's work, or all controllers'.
type Stats struct {
	Reads, Writes, Flushes, Others uint64 // I/O commands completed
	ReadBytes, WriteBytes          uint64
	Errors                         uint64 // of them with another status than success
	ReadP50, ReadP99               time.Duration
	WriteP50, WriteP99             time.Duration
}

// Totals describes the whole target.
type Totals struct {
	Stats
	Subsystems, Namespaces, Controllers, Queues int
	Connections, HalfOpen                       int
	MemoryUsed, MemoryLimit                     int64  // bytes of commands' data
	Accepted, Refused                           uint64 // connections
	ProtocolErrors, DigestErrors                uint64
	KeepAliveExpired, AuthFailures              uint64
	MediaErrors                                 uint64
}
