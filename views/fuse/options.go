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
	Target     string     // an existing directory
	AllowOther bool       // let other users in; without root, /etc/fuse.conf has to allow it
	Logger     *slog.Logger
}

// admit checks that a capsule may be projected and returns its facts. The
// namespace always may: each of its capsules is checked when it is opened.
func admit(ctx context.Context, store Store, id capsule.ID) (capsule.Info, error) {
	if id.IsZero() {
		return capsule.Info{}, nil
	}
	r, err := store.Open(ctx, id)
	if err != nil {
		return capsule.Info{}, err
	}
	defer r.Close()
	info := r.Info()
	if info.Kind == capsule.Tree {
		return info, capsule.Errorf(capsule.Invalid, "capsule %s is a tree; this view shows objects and volumes", id)
	}
	return info, capsule.Wrap(capsule.Denied, views.Gate(r.Policy(), views.FUSE), "project capsule %s", id)
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
