package node

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/views"
)

var errEnding = capsule.Errorf(capsule.Unavailable, "the node is about to end; try again")

// Mount implements control.API.
func (n *node) Mount(ctx context.Context, req control.MountRequest) (views.Info, error) {
	if n.draining.Load() {
		return views.Info{}, errEnding
	}
	start, spanName := n.mount, "fuse_mount"
	switch req.View {
	case "", views.FUSE:
	case views.NVMe:
		if info, found, err := n.nvme.change(ctx, req); found || err != nil {
			return info, err
		}
		start, spanName = n.nvme.project, "nvme_project"
	default:
		return views.Info{}, capsule.Errorf(capsule.Invalid, "the view %q is not in this version of SPACE; there are %s and %s", req.View, views.FUSE, views.NVMe)
	}
	p, err := n.project(func() (p *views.Projection, err error) {
		err = span(ctx, spanName, func(ctx context.Context) error {
			p, err = start(ctx, req)
			return err
		}, attribute.String("capsule", req.Ref), attribute.String("target", req.Target))
		return p, err
	}, "projection started")
	if err != nil {
		return views.Info{}, err
	}
	return p.Info, nil
}

// project runs start and lists its projection until it ends.
func (n *node) project(start func() (*views.Projection, error), said string) (*views.Projection, error) {
	p, err := n.projections.Start(start)
	if err != nil {
		return nil, err
	}
	n.log.Info(said, "id", p.ID, "view", p.View, "mode", p.Mode, "capsule", p.Capsule, "target", p.Target)
	go func() {
		<-p.Done()
		n.log.Info("projection ended", "id", p.ID, "target", p.Target)
	}()
	return p, nil
}

// Projections implements control.API.
func (n *node) Projections(context.Context) ([]views.Info, error) { return n.projections.List(), nil }

// Clients implements control.API.
func (n *node) Clients(context.Context) ([]views.Client, error) { return n.nvme.clients(), nil }

// lingerer is a projection that may go on after its Close, where that can't end it.
type lingerer interface {
	// Lingers says why it goes on; "": it ends.
	Lingers() string
}

// Unmount implements control.API.
func (n *node) Unmount(ctx context.Context, ref string, lazy bool) (views.Info, error) {
	p, err := n.projections.Find(ref)
	if err != nil {
		return views.Info{}, err
	}
	if err := p.Close(lazy); err != nil {
		return views.Info{}, err
	}
	info := p.Info
	info.Note = "" // it was about its use
	if lazy {      // it ends when its last user does
		return info, nil
	}
	if l, ok := p.Backend.(lingerer); ok {
		if info.Note = l.Lingers(); info.Note != "" {
			n.log.Info("projection lingers", "id", p.ID, "target", p.Target, "why", info.Note)
			return info, nil
		}
	}
	if err := ended(ctx, p); err != nil {
		return info, err
	}
	if n.endIfIdle() {
		// Whoever asked may run the next command at once: that must not find
		// the socket of a node that is about to end.
		select {
		case <-n.gone:
		case <-ctx.Done():
		}
	}
	return info, nil
}

// Wait implements control.API.
func (n *node) Wait(ctx context.Context, ref string) error {
	p, err := n.projections.Find(ref)
	if err != nil {
		return err
	}
	return ended(ctx, p)
}

func ended(ctx context.Context, p *views.Projection) error {
	select {
	case <-p.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// endIfIdle ends an ephemeral node that projects nothing.
func (n *node) endIfIdle() bool {
	if !n.ephemeral || !n.begun.Load() || !n.projections.Seal() {
		return false
	}
	n.quit()
	return true
}

// closeProjections ends all projections. One that is busy gets until ctx ends
// and is then detached (umount -l): what has it open gets errors when this
// process ends.
func (n *node) closeProjections(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.nvme.close(ctx); err != nil {
			n.log.Error("the nvme target has not ended properly", "error", err)
		}
	})
	for _, info := range n.projections.List() {
		if n.left[info.ID] {
			continue
		}
		p, err := n.projections.Find(info.ID)
		if err != nil || p.View == views.NVMe {
			continue // ended meanwhile, or by its target, which drains as a whole
		}
		wg.Go(func() {
			for p.Close(false) != nil {
				select {
				case <-p.Done():
					return
				case <-ctx.Done():
					n.log.Warn("projection is busy; detaching it", "target", p.Target)
					return
				case <-time.After(4 * retryInterval):
				}
			}
		})
	}
	wg.Wait()
	if len(n.left) > 0 {
		return // and what was detached ends with this process
	}
	for _, err := range n.projections.CloseAll() {
		n.log.Error("a projection could not be ended; fusermount3 -uz on its target helps", "error", err)
	}
	if n.holder != nil {
		for _, info := range n.projections.List() { // in use still, and not for the next node
			n.holder.Release(info.ID)
		}
	}
}
