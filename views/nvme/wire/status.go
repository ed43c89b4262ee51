package wire

import "fmt"

// Status is the status of a completion: the status code in the low 8 bits, the
// status code type in the 3 above, the command retry delay, More, and Do Not
// Retry (Base 3.3.3.2.1).
type Status uint16

// What a status holds besides its code.
const (
	StatusMore Status = 1 << 13
	DNR        Status = 1 << 14 // do not retry
	codeMask   Status = 0x7ff
)

// The status codes: generic (Base figure 94), NVM generic (NVM figure 15),
// command specific, media and data integrity, path related.
const (
	Success              Status = 0x000
	InvalidOpcode        Status = 0x001
	InvalidField         Status = 0x002
	CommandIDConflict    Status = 0x003
	DataTransferError    Status = 0x004
	InternalError        Status = 0x006
	AbortRequested       Status = 0x007
	AbortSQDeletion      Status = 0x008
	FailedFused          Status = 0x009
	MissingFused         Status = 0x00a
	InvalidNamespace     Status = 0x00b
	CommandSequenceError Status = 0x00c
	SGLInvalidNumber     Status = 0x00e
	SGLInvalidLength     Status = 0x00f
	SGLInvalidType       Status = 0x011
	SGLInvalidOffset     Status = 0x016
	HostIDInconsistent   Status = 0x018
	KeepAliveExpired     Status = 0x019
	KeepAliveInvalid     Status = 0x01a
	PreemptAbort         Status = 0x01b
	WriteProtected       Status = 0x020
	TransientTransport   Status = 0x022
	LBARange             Status = 0x080
	CapacityExceeded     Status = 0x081
	NamespaceNotReady    Status = 0x082
	ReservationConflict  Status = 0x083

	InvalidQueueID       Status = 0x101
	InvalidQueueSize     Status = 0x102
	AbortLimitExceeded   Status = 0x103
	AERLimitExceeded     Status = 0x105
	InvalidLogPage       Status = 0x109
	InvalidFormat        Status = 0x10a
	FeatureNotSaveable   Status = 0x10d
	FeatureNotChangeable Status = 0x10e
	FeatureNotNamespace  Status = 0x10f
	InvalidControllerID  Status = 0x11f
	ConnectIncompatible  Status = 0x180
	ConnectBusy          Status = 0x181
	ConnectInvalidParam  Status = 0x182
	ConnectRestart       Status = 0x183
	ConnectInvalidHost   Status = 0x184
	InvalidQueueType     Status = 0x185
	DiscoverRestart      Status = 0x190
	AuthRequired         Status = 0x191

	// Of commands of the NVM command set, which has some codes of the fabrics commands'.
	ConflictingAttributes Status = 0x180
	InvalidProtectionInfo Status = 0x181
	ReadOnlyRange         Status = 0x182
	CommandSizeLimit      Status = 0x183

	WriteFault          Status = 0x280
	UnrecoveredRead     Status = 0x281
	CompareFailure      Status = 0x285
	AccessDenied        Status = 0x286
	DeallocatedRead     Status = 0x287
	PathInternal        Status = 0x300
	ANAPersistentLoss   Status = 0x301
	ANAInaccessible     Status = 0x302
	ANATransition       Status = 0x303
	ControllerPathError Status = 0x360
	HostPathError       Status = 0x370
	AbortedByHost       Status = 0x371
)

var statusNames = map[Status]string{
	Success: "success", InvalidOpcode: "invalid command opcode", InvalidField: "invalid field in command",
	CommandIDConflict: "command ID conflict", DataTransferError: "data transfer error", InternalError: "internal error",
	AbortRequested: "command abort requested", AbortSQDeletion: "aborted: queue deleted", FailedFused: "aborted: the other fused command failed",
	MissingFused: "aborted: the other fused command is missing", InvalidNamespace: "invalid namespace or format",
	CommandSequenceError: "command sequence error", SGLInvalidNumber: "invalid number of SGL descriptors",
	SGLInvalidLength: "invalid data SGL length", SGLInvalidType: "invalid SGL descriptor type", SGLInvalidOffset: "invalid SGL offset",
	HostIDInconsistent: "host identifier inconsistent format", KeepAliveExpired: "keep alive timer expired",
	KeepAliveInvalid: "keep alive timeout invalid", PreemptAbort: "aborted: preempted", WriteProtected: "namespace is write protected",
	TransientTransport: "transient transport error", LBARange: "LBA out of range", CapacityExceeded: "capacity exceeded",
	NamespaceNotReady: "namespace not ready", ReservationConflict: "reservation conflict",
	InvalidQueueID: "invalid queue identifier", InvalidQueueSize: "invalid queue size", AbortLimitExceeded: "abort command limit exceeded",
	AERLimitExceeded: "asynchronous event request limit exceeded", InvalidLogPage: "invalid log page", InvalidFormat: "invalid format",
	FeatureNotSaveable: "feature not saveable", FeatureNotChangeable: "feature not changeable", FeatureNotNamespace: "feature not namespace specific",
	InvalidControllerID: "invalid controller identifier", ConnectIncompatible: "connect: incompatible format", ConnectBusy: "connect: controller busy",
	ConnectInvalidParam: "connect: invalid parameters", ConnectRestart: "connect: restart discovery", ConnectInvalidHost: "connect: invalid host",
	InvalidQueueType: "invalid queue type", DiscoverRestart: "discover restart", AuthRequired: "authentication required",
	WriteFault: "write fault", UnrecoveredRead: "unrecovered read error", CompareFailure: "compare failure", AccessDenied: "access denied",
	DeallocatedRead: "deallocated or unwritten block", PathInternal: "internal path error", ANAPersistentLoss: "asymmetric access persistent loss",
	ANAInaccessible: "asymmetric access inaccessible", ANATransition: "asymmetric access transition",
	ControllerPathError: "controller pathing error", HostPathError: "host pathing error", AbortedByHost: "command aborted by host",
}

// nvmNames are what the NVM command set calls codes that fabrics commands have too.
var nvmNames = map[Status]string{ConflictingAttributes: "conflicting attributes", InvalidProtectionInfo: "invalid protection information",
	ReadOnlyRange: "attempted write to read only range", CommandSizeLimit: "command size limit exceeded"}

// Code returns the status without More, Do Not Retry and the retry delay.
func (s Status) Code() Status { return s & codeMask }

// String returns the code's name, as that of a fabrics command where others
// have the code too, and "do not retry" where that is set.
func (s Status) String() string { return s.name(statusNames[s.Code()]) }

// Of is String for the status of a command.
func (s Status) Of(c *SQE) string {
	if name := nvmNames[s.Code()]; name != "" && c.Opcode() != OpFabrics {
		return s.name(name)
	}
	return s.String()
}

func (s Status) name(name string) string {
	if name == "" {
		name = fmt.Sprintf("status %xh, type %d", uint8(s), s.Code()>>8)
	}
	if s&DNR != 0 {
		name += " (do not retry)"
	}
	return name
}

// Err returns s as an error, nil for success.
func (s Status) Err() error {
	if s.Code() == Success {
		return nil
	}
	return StatusError(s)
}

// StatusError is a status other than success as an error.
type StatusError Status

func (e StatusError) Error() string {
	return fmt.Sprintf("NVMe status %03xh: %s", uint16(Status(e).Code()), Status(e))
}
