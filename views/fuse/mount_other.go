//go:build !linux

package fuse

import (
	"context"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views"
)

// Available reports whether this process can make FUSE mounts, and if not, why
// and what would help.
func Available() (bool, string) { return false, "the FUSE view is for Linux alone" }

// Mount fails with [capsule.Unavailable]; [Copy] works.
func Mount(context.Context, Store, Options) (*views.Projection, error) {
	_, why := Available()
	return nil, capsule.Errorf(capsule.Unavailable, "there is no FUSE here: %s", why)
}
