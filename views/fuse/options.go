package fuse

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"syscall"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views"
)

// contentName is the one file of a capsule's projection.
const contentName = "content"

// Options say what to project, and where.
type Options struct {
	Capsule    capsule.ID `json:"capsule"`               // zero: the whole namespace
	Snapshot   string     `json:"snapshot,omitempty"`    // of a tree or volume: show this snapshot of it
	Target     string     `json:"target"`                // an existing directory
	ReadOnly   bool       `json:"read_only,omitempty"`   // take no writes; the policy may say so too, and of objects it has to allow them
	AllowOther bool       `json:"allow_other,omitempty"` // let other users in; without root, /etc/fuse.conf has to allow it

	Scratch string       `json:"-"` // directory for what is being written to an object; "": the system's
	Logger  *slog.Logger `json:"-"`
	Holder  Holder       `json:"-"` // keeps the mount when this process ends; nil: it ends too
}

// Holder keeps mounts for the process after this one.
type Holder interface {
	// Hold keeps duplicates of a mount's descriptors, and what its view says
	// about it, until Release. It may fail, and Release may find nothing.
	Hold(id string, about []byte, device, memory *os.File) error
	Release(id string)
}

// Held is a mount as a holder kept it.
type Held struct {
	ID             string
	About          []byte
	Device, Memory *os.File
}

// admit checks that a capsule may be projected and returns its facts. The
// namespace always may: each of its capsules is checked when it is opened. Where
// the policy does not allow writes, o becomes read-only.
func admit(ctx context.Context, store Store, o *Options) (capsule.Info, error) {
	if o.Capsule.IsZero() {
		return capsule.Info{}, nil
	}
	info, err := store.Info(ctx, o.Capsule)
	if err != nil {
		return info, err
	}
	if info.Kind == capsule.Object && o.Snapshot != "" {
		return info, capsule.Errorf(capsule.Unsupported, "capsule %s is an object, which has no snapshots", o.Capsule)
	}
	p, err := store.Policy(ctx, o.Capsule)
	if err != nil {
		return info, err
	}
	if !p.AllowsWriting(views.FUSE, info.Kind) {
		o.ReadOnly = true
	}
	return info, capsule.Wrap(capsule.Denied, views.Gate(p, views.FUSE), "project capsule %s", o.Capsule)
}

// targetError says why a target is of no use.
func targetError(target string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return capsule.Errorf(capsule.NotFound, "mount target %s does not exist; create it with mkdir first", target)
	case errors.Is(err, syscall.ENOTDIR):
		return capsule.Errorf(capsule.Invalid, "mount target %s is not a directory", target)
	case errors.Is(err, syscall.ENOTCONN):
		return capsule.Errorf(capsule.Conflict, "mount target %s is in a FUSE mount whose server is gone; unmount that with `fusermount3 -u -z`", target)
	case errors.Is(err, fs.ErrPermission):
		return capsule.Wrap(capsule.Denied, err, "mount target %s", target)
	}
	return capsule.Wrap(capsule.IO, err, "mount target %s", target)
}
