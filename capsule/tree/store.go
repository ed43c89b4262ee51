package tree

import (
	"context"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
)

// Create makes a tree capsule with an empty tree in it: both, or neither.
func Create(ctx context.Context, s *store.Store, req store.CreateRequest, new New, now time.Time) (capsule.Info, error) {
	req.Kind = capsule.Tree
	return s.Create(ctx, req, func(u *store.Update) error { return format(u, new, now) })
}

// Live makes a [Capsule] of an open tree capsule. Close l after the FS.
func Live(l *store.Live) Capsule { return live{l} }

type live struct{ *store.Live }

func (l live) Update(ctx context.Context, fn func(Tx) error) error {
	return l.Live.Update(ctx, func(u *store.Update) error { return fn(u) })
}
