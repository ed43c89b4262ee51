package store

import "github.com/spacestore/space/capsule"

// Change tells a watcher what to look at again.
type Change struct {
	ID      capsule.ID
	Name    string // now
	OldName string // before, where it differs
	Removed bool
	All     bool // changes were dropped: look at everything again
}

const maxChanges = 4096 // that wait for the watchers

// Watch calls fn after each change that has become durable, until cancel is
// called. fn runs on one goroutine for all watchers and may call the store.
// When watchers fall behind, changes are replaced by one that says All.
func (s *Store) Watch(fn func(Change)) (cancel func()) { return s.watchers.Watch(fn) }
