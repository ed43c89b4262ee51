package host

import (
	"errors"
	"fmt"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

// ErrDataDigest says that data from the target arrived damaged, on the network
// or on either side of it. The connection goes on.
var ErrDataDigest = errors.New("the data came damaged: its digest does not match")

// ErrQueueFull says that as many commands as the queue has room for are in flight.
var ErrQueueFull = errors.New("the queue is full")

// errClosed is what commands return after a queue was closed by its owner.
var errClosed = capsule.Errorf(capsule.Canceled, "the connection is closed")

// TerminatedError says that the target ended the connection because of what it
// thinks we did wrong.
type TerminatedError struct {
	FES wire.FES
	FEI uint32
}

func (e *TerminatedError) Error() string {
	return fmt.Sprintf("the target ended the connection: %v (further information %#x)", e.FES, e.FEI)
}

// CommandError is a command's status other than success.
type CommandError struct {
	What   string // the command, and what of
	Status wire.Status
	Result uint64

	name string // of the status of such a command
	kind capsule.ErrorKind
}

func newCommandError(what string, c *wire.SQE, s wire.Status, result uint64) *CommandError {
	return &CommandError{what, s, result, s.Of(c), kindOf(c, s)}
}

func (e *CommandError) Error() string { return e.What + ": " + e.name }

// Unwrap gives the error its kind.
func (e *CommandError) Unwrap() error {
	return &capsule.Error{Kind: e.kind, Err: wire.StatusError(e.Status)}
}

// kindOf is the one table from statuses to kinds of errors.
func kindOf(c *wire.SQE, s wire.Status) capsule.ErrorKind {
	if c.Opcode() != wire.OpFabrics {
		switch s.Code() {
		case wire.ConflictingAttributes, wire.InvalidProtectionInfo:
			return capsule.Invalid
		case wire.ReadOnlyRange:
			return capsule.ReadOnly
		case wire.CommandSizeLimit:
			return capsule.TooLarge
		}
	}
	switch s.Code() {
	case wire.InvalidField, wire.InvalidFormat, wire.InvalidQueueID, wire.InvalidQueueSize, wire.SGLInvalidLength,
		wire.SGLInvalidNumber, wire.SGLInvalidType, wire.SGLInvalidOffset, wire.HostIDInconsistent, wire.KeepAliveInvalid:
		return capsule.Invalid
	case wire.InvalidOpcode, wire.InvalidLogPage, wire.FeatureNotChangeable, wire.FeatureNotNamespace, wire.FeatureNotSaveable:
		return capsule.Unsupported
	case wire.InvalidNamespace, wire.ConnectInvalidParam, wire.InvalidControllerID:
		return capsule.NotFound
	case wire.LBARange:
		return capsule.OutOfRange
	case wire.CapacityExceeded:
		return capsule.NoSpace
	case wire.WriteProtected:
		return capsule.ReadOnly
	case wire.UnrecoveredRead, wire.DeallocatedRead:
		return capsule.Damaged
	case wire.CompareFailure, wire.CommandSequenceError:
		return capsule.Conflict
	case wire.ReservationConflict, wire.AccessDenied, wire.AuthRequired, wire.ConnectInvalidHost:
		return capsule.Denied
	case wire.NamespaceNotReady, wire.ConnectBusy, wire.ANAPersistentLoss, wire.ANAInaccessible, wire.ANATransition:
		return capsule.Unavailable
	case wire.AbortRequested, wire.AbortSQDeletion, wire.AbortedByHost, wire.PreemptAbort:
		return capsule.Canceled
	}
	return capsule.IO
}
