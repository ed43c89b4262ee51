package node

import (
	"context"
	"log/slog"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/clock"
)

// keeper takes the snapshots that snapshot policies ask for, and removes those
// of its own that are too many. It is told the time by a clock that may step:
// however far it does, no more than one snapshot is taken at once, and the
// next one is due after one interval.
type keeper struct {
	store *store.Store
	clock clock.Clock
	log   *slog.Logger
	wake  chan struct{}
}

// keepEvery is how often policies are looked at at least: so late a step of the
// clock is noticed, and what failed is tried again.
const keepEvery = time.Minute

func newKeeper(s *store.Store, c clock.Clock, log *slog.Logger) *keeper {
	return &keeper{store: s, clock: c, log: log, wake: make(chan struct{}, 1)}
}

// look has the keeper look at the policies now.
func (k *keeper) look() {
	select {
	case k.wake <- struct{}{}:
	default: // it will
	}
}

// run keeps to the policies until ctx ends.
func (k *keeper) run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-k.clock.After(k.pass(ctx)):
		case <-k.wake:
		case <-ctx.Done():
		}
	}
}

// pass looks at all policies once. It returns when to do so again.
func (k *keeper) pass(ctx context.Context) time.Duration {
	next := keepEvery
	for after := (capsule.ID{}); ; {
		page, err := k.store.Retentions(ctx, after, 256)
		if err != nil && ctx.Err() == nil {
			k.log.Error("snapshot policies cannot be read", "error", err)
		}
		if len(page) == 0 || err != nil {
			return next
		}
		for _, r := range page {
			wait, err := k.keep(ctx, r)
			if err != nil {
				if ctx.Err() != nil {
					return next
				}
				wait = keepEvery
				if capsule.KindOf(err) != capsule.NotFound { // else removed meanwhile
					k.log.Error("automatic snapshot failed; it is tried again", "capsule", r.ID, "error", err)
				}
			}
			next = min(next, wait)
		}
		after = page[len(page)-1].ID
	}
}

// keep does what one policy asks for now. It returns when that may be again.
func (k *keeper) keep(ctx context.Context, r store.Retention) (time.Duration, error) {
	now, every := k.clock.Now(), time.Duration(r.Every)
	elapsed := now.Sub(r.Last)
	switch {
	case r.Last.IsZero():
		elapsed = every // the first
	case elapsed < 0:
		// The clock stepped back. To wait until it gets there again could take
		// years: count from now.
		return every, k.store.SnapshotWasDue(ctx, r.ID, now)
	case elapsed < every:
		return every - elapsed, nil
	}
	snap, err := k.store.Snapshot(ctx, r.ID, capsule.AutoSnapshotName(now))
	if capsule.KindOf(err) == capsule.Exists {
		return time.Second, nil // the clock stepped back to when one was taken; the next second has another name
	}
	if err != nil {
		return 0, err
	}
	k.log.Info("automatic snapshot taken", "capsule", r.ID, "snapshot", snap.Name)
	// Due were all that were missed too, of which this is the one.
	late := elapsed % every
	if err := k.store.SnapshotWasDue(ctx, r.ID, now.Add(-late)); err != nil {
		return 0, err
	}
	return every - late, k.prune(ctx, r)
}

// prune removes the oldest automatic snapshots beyond those to keep.
func (k *keeper) prune(ctx context.Context, r store.Retention) error {
	list, err := k.store.Snapshots(ctx, r.ID)
	if err != nil {
		return err
	}
	kept := 0
	for i := len(list) - 1; i >= 0; i-- {
		name := list[i].Name
		if !capsule.IsAutoSnapshot(name) {
			continue
		}
		if kept++; kept <= r.Keep {
			continue
		}
		if err := k.store.DeleteSnapshot(ctx, r.ID, name); err != nil && capsule.KindOf(err) != capsule.NotFound {
			return err
		}
		k.log.Info("automatic snapshot removed", "capsule", r.ID, "snapshot", name)
	}
	return nil
}
