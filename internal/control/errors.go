package control

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control/controlpb"
)

// kindCodes is the one table between error kinds and gRPC codes. The kind
// itself travels in the status details; the code is for generic clients.
var kindCodes = [...]codes.Code{
	capsule.Other:       codes.Unknown,
	capsule.Invalid:     codes.InvalidArgument,
	capsule.NotFound:    codes.NotFound,
	capsule.Exists:      codes.AlreadyExists,
	capsule.Conflict:    codes.Aborted,
	capsule.Damaged:     codes.DataLoss,
	capsule.NoSpace:     codes.ResourceExhausted,
	capsule.ReadOnly:    codes.FailedPrecondition,
	capsule.WrongKey:    codes.Unauthenticated,
	capsule.Locked:      codes.Aborted,
	capsule.Unavailable: codes.Unavailable,
	capsule.Denied:      codes.PermissionDenied,
	capsule.Canceled:    codes.Canceled,
	capsule.IO:          codes.Internal,

	capsule.NotDir:       codes.InvalidArgument,
	capsule.IsDir:        codes.InvalidArgument,
	capsule.NotEmpty:     codes.FailedPrecondition,
	capsule.NameTooLong:  codes.InvalidArgument,
	capsule.NotPermitted: codes.PermissionDenied,
	capsule.TooManyLinks: codes.FailedPrecondition,
	capsule.TooLarge:     codes.OutOfRange,
	capsule.Quota:        codes.ResourceExhausted,
	capsule.NoAttribute:  codes.NotFound,
	capsule.OutOfRange:   codes.OutOfRange,
	capsule.Unsupported:  codes.Unimplemented,
	capsule.Stale:        codes.NotFound,
	capsule.WouldBlock:   codes.Aborted,
	capsule.CrossDevice:  codes.InvalidArgument,
	capsule.Busy:         codes.Aborted,
	capsule.NoDevice:     codes.OutOfRange,
	capsule.Deadlock:     codes.Aborted,
}

// toStatus makes the gRPC form of an error.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	kind := capsule.KindOf(err)
	code := codes.Unknown
	if int(kind) < len(kindCodes) {
		code = kindCodes[kind]
	}
	detail := &controlpb.ErrorDetail{Kind: uint32(kind), Message: clip(err.Error(), 8<<10)}
	var d *capsule.DamageError
	if errors.As(err, &d) {
		detail.Damage = &controlpb.Damage{Capsule: d.Capsule[:], Off: d.Off, Len: d.Len, Log: d.Log, LogOff: d.LogOff, Why: clip(d.Why, 1<<10)}
	}
	st := status.New(code, clip(err.Error(), 1<<10))
	if with, derr := st.WithDetails(detail); derr == nil {
		st = with
	}
	return st.Err()
}

// remoteError is an error that happened in the node: its text and kind, and
// the damage behind it for callers that look for a *capsule.DamageError.
type remoteError struct {
	msg string
	err error // a *capsule.Error or *capsule.DamageError that carries the kind
}

func (e *remoteError) Error() string { return e.msg }
func (e *remoteError) Unwrap() error { return e.err }

// fromStatus turns what gRPC returned back into the error that toStatus was
// given, or explains what happened to the connection.
func (c conn) fromStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range st.Details() {
		detail, ok := d.(*controlpb.ErrorDetail)
		if !ok {
			continue
		}
		if dm := detail.GetDamage(); dm != nil {
			id, _ := idFrom(dm.GetCapsule())
			return &remoteError{detail.GetMessage(), &capsule.DamageError{Capsule: id, Off: dm.GetOff(), Len: dm.GetLen(),
				Log: dm.GetLog(), LogOff: dm.GetLogOff(), Why: dm.GetWhy()}}
		}
		kind := capsule.ErrorKind(min(detail.GetKind(), 255))
		return &capsule.Error{Kind: kind, Msg: detail.GetMessage()}
	}
	// No detail: gRPC itself failed.
	switch st.Code() {
	case codes.Unavailable:
		return capsule.Errorf(capsule.Unavailable, "the node at %s went away (%s); what it acknowledged is stored, so try again", c.socket, st.Message())
	case codes.Canceled, codes.DeadlineExceeded:
		return capsule.Errorf(capsule.Canceled, "the node at %s ended the request: %s", c.socket, st.Message())
	case codes.Unimplemented:
		return capsule.Errorf(capsule.Conflict, "the node at %s is another release of SPACE (%s); restart it", c.socket, st.Message())
	case codes.ResourceExhausted, codes.InvalidArgument:
		return capsule.Errorf(capsule.Invalid, "the node at %s refused the request: %s", c.socket, st.Message())
	}
	return capsule.Errorf(capsule.Other, "the node at %s: %s", c.socket, st.Message())
}

// clip keeps an error's text within what gRPC can carry in a header.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
