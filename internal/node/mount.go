package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
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
	var info views.Info
	o.Ready = func(api control.API) (err error) {
		if info, err = api.Mount(ctx, req); err != nil {
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
			if info.View == views.NVMe { // else it would come again with the next node
				_, uerr := o.unmountLocal(context.WithoutCancel(ctx), info.ID, info.Target)
				err = errors.Join(err, uerr)
			}
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
			return t.unmountLocal(ctx, ref, target)
		}
		return views.Info{}, err
	}
	return views.Info{View: views.FUSE, Target: target, Mode: views.ModeFUSE, Note: "its node had died"}, clearDead(target)
}

// unmountLocal is Unmount where no node runs.
func (t Target) unmountLocal(ctx context.Context, ref, target string) (info views.Info, err error) {
	if _, err := os.Stat(t.Home); errors.Is(err, fs.ErrNotExist) {
		return info, noProjection(target) // and no store, which asking would make
	}
	c, err := Connect(ctx, t)
	if err != nil {
		return info, err
	}
	info, err = c.Unmount(ctx, ref, false)
	if capsule.KindOf(err) == capsule.NotFound {
		err = capsule.Errorf(capsule.NotFound, "nothing is projected at %s; no node is running", target)
	}
	return info, errors.Join(err, c.Close())
}

// clearDead detaches a FUSE mount that nobody serves any more.
func clearDead(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == unix.EPERM { // not root: the helper may
		err = exec.Command("fusermount3", "-u", "-z", "--", target).Run()
	}
	return capsule.Wrap(capsule.IO, err, "clear the dead mount at %s", target)
}

// Clients lists who uses the node's projections over the network.
func Clients(ctx context.Context, t Target) ([]views.Client, error) {
	c, err := t.reach(ctx)
	if errors.Is(err, control.ErrNoNode) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Clients(ctx)
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
