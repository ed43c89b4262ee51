package nvme

import (
	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

// statusOf maps what a device failed with to a status. Without [wire.DNR] a
// host may try again.
func statusOf(err error, write bool) wire.Status {
	if err == nil {
		return wire.Success
	}
	switch capsule.KindOf(err) {
	case capsule.Damaged:
		if write {
			return wire.WriteFault
		}
		return wire.UnrecoveredRead | wire.DNR
	case capsule.NoSpace, capsule.Quota:
		return wire.CapacityExceeded | wire.DNR
	case capsule.ReadOnly:
		return wire.WriteProtected | wire.DNR
	case capsule.OutOfRange, capsule.NoDevice, capsule.TooLarge:
		return wire.LBARange | wire.DNR
	case capsule.Invalid:
		return wire.InvalidField | wire.DNR
	case capsule.Unsupported:
		return wire.InvalidOpcode | wire.DNR
	case capsule.Denied, capsule.NotPermitted, capsule.WrongKey:
		return wire.AccessDenied | wire.DNR
	case capsule.NotFound, capsule.Stale:
		return wire.InvalidNamespace | wire.DNR
	case capsule.Unavailable, capsule.Locked, capsule.Busy, capsule.Conflict, capsule.WouldBlock:
		return wire.NamespaceNotReady
	}
	return wire.InternalError
}
