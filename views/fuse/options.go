package fuse

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"syscall"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views"
)

// contentName is the one file of a capsule's projection.
const contentName = "content"

// Options say what to project, and where.
type Options struct {
	Capsule    capsule.ID // zero: the whole namespace
	Snapshot   string     // of a tree or volume: show this snapshot of it
	Target     string     // an existing directory
	ReadOnly   bool       // take no writes; the policy may say so too, and of objects it has to allow them
	Scratch    string     // directory for what is being written to an object; "": the system's
	AllowOther bool       // let other users in; without root, /etc/fuse.conf has to allow it
	Logger     *slog.Logger
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
