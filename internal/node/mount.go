package node

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/views"
)

// Mount projects through the node that holds the store, and starts one in the
// background where there is none.
func Mount(ctx context.Context, t Target, req control.MountRequest) (info views.Info, err error) {
	_, err = t.retry(ctx, func() (Conn, error) {
		c, err := t.start(ctx)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		info, err = c.Mount(ctx, req)
		return nil, err
	})
	return info, err
}

// RunMount projects and returns when the projection has ended: it asks the
// node that holds the store, or is the node itself where there is none. When
// ctx ends it ends the projection. mounted is told when the projection is ready.
func RunMount(ctx context.Context, o Options, req control.MountRequest, mounted func(views.Info) error) error {
	o.Ephemeral = true
	o.Ready = func(api control.API) error {
		info, err := api.Mount(ctx, req)
		if err != nil {
			return err
		}
		return mounted(info)
	}
	_, err := o.retry(ctx, func() (Conn, error) {
		c, err := o.dial(ctx)
		if err == nil {
			defer c.Close()
			return nil, o.holdMount(ctx, c, req, mounted)
		}
		if errors.Is(err, control.ErrNoNode) {
			err = Run(ctx, o)
		}
		if errors.Is(err, ErrRunning) { // started just now, by another command
			err = errEnding
		}
		return nil, err
	})
	return err
}

// holdMount projects through a node and waits there.
func (o Options) holdMount(ctx context.Context, c Conn, req control.MountRequest, mounted func(views.Info) error) error {
	info, err := c.Mount(ctx, req)
	if err != nil {
		return err
	}
	if err = mounted(info); err == nil {
		err = c.Wait(ctx, info.ID)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = nil // asked to end, and so we do
	}
	end, cancel := context.WithTimeout(o.force(), o.Config.DrainTimeout)
	defer cancel()
	_, uerr := c.Unmount(end, info.ID, false)
	if capsule.KindOf(uerr) == capsule.Conflict {
		o.Log.Warn("projection is busy; detaching it", "target", info.Target)
		_, uerr = c.Unmount(context.WithoutCancel(end), info.ID, true)
	}
	return errors.Join(err, uerr)
}

// Unmount ends a projection, named by its ID or target, through the node. A
// mount whose node died is cleared away without one.
func Unmount(ctx context.Context, t Target, ref string, lazy bool) (views.Info, error) {
	target, err := filepath.Abs(ref)
	if err != nil {
		return views.Info{}, capsule.Wrap(capsule.IO, err, "unmount")
	}
	c, err := t.reach(ctx)
	if err == nil {
		defer c.Close()
		var info views.Info
		if info, err = c.Unmount(ctx, target, lazy); capsule.KindOf(err) == capsule.NotFound && filepath.Base(ref) == ref {
			info, err = c.Unmount(ctx, ref, lazy)
		}
		if capsule.KindOf(err) != capsule.NotFound {
			return info, err
		}
	} else if !errors.Is(err, control.ErrNoNode) {
		return views.Info{}, err
	} else if info, ok, herr := t.giveUp(ctx, ref, target); ok || herr != nil {
		return info, herr
	}
	var st unix.Statfs_t
	if unix.Statfs(target, &st) != unix.ENOTCONN {
		if errors.Is(err, control.ErrNoNode) {
			err = capsule.Errorf(capsule.NotFound, "nothing is projected at %s; no node is running", target)
		}
		return views.Info{}, err
	}
	return views.Info{View: views.FUSE, Target: target, Mode: views.ModeFUSE, Note: "its node had died"}, clearDead(target)
}

// clearDead detaches a FUSE mount that nobody serves any more.
func clearDead(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == unix.EPERM { // not root: the helper may
		err = exec.Command("fusermount3", "-u", "-z", "--", target).Run()
	}
	return capsule.Wrap(capsule.IO, err, "clear the dead mount at %s", target)
}

// Projections lists what the node projects, or where there is none the mounts
// that wait for the next one.
func Projections(ctx context.Context, t Target) ([]views.Info, error) {
	c, err := t.reach(ctx)
	if errors.Is(err, control.ErrNoNode) {
		return t.waiting(ctx)
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Projections(ctx)
}
