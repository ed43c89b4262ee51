package store

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

const (
	// idleAfter is how long nobody has called the store when it is idle.
	idleAfter = 100 * time.Millisecond
	// longestPause bounds how long background work makes way before its next step.
	longestPause = 2 * time.Second
	// hurrySteps is how many steps it takes at least when it cannot make way.
	hurrySteps = 64
)

// idleness is how background work makes way: for calls of the store, between
// two of its steps, and for whoever wants to do such work at once, for good.
type idleness struct {
	calls  atomic.Uint64 // begun so far
	wanted atomic.Int32  // who waits for background work to end
	wake   chan struct{} // has something after wanted was raised
}

// errMakeWay ends background work for which somebody else waits.
var errMakeWay = errors.New("somebody else collects garbage or verifies")

// acquireMoving takes the token for one garbage collection or verification;
// one in the background makes way.
func (s *Store) acquireMoving(ctx context.Context, background bool) error {
	if !background {
		s.idle.wanted.Add(1)
		defer s.idle.wanted.Add(-1)
		select {
		case s.idle.wake <- struct{}{}:
		default:
		}
	}
	return s.moving.acquire(ctx)
}

// yielder has background work make way.
type yielder struct {
	s     *Store
	seen  uint64 // calls, when the store was idle last
	hurry int    // so many steps make no way
}

// step waits before a step until the store is idle, but not long: the work gets
// on, if slowly, in a store that never is. It does not wait when space is short
// or garbage much, which may have become so since the work began. It is for a caller that is
// within one call of the store itself.
func (y *yielder) step(ctx context.Context) error {
	s := y.s
	var pause time.Duration
	for {
		if s.idle.wanted.Load() > 0 {
			return errMakeWay
		}
		if y.hurry > 0 {
			y.hurry--
			return nil
		}
		calls := s.idle.calls.Load()
		if calls == y.seen && s.life.others() == 0 || pause >= longestPause {
			return nil
		}
		if s.spaceIsShort() || s.garbageIsMuch() {
			y.hurry = hurrySteps
			return nil
		}
		y.seen = calls
		select {
		case <-s.clock.After(idleAfter):
			pause += idleAfter
		case <-s.idle.wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.quit.Done():
			return s.quit.Err()
		}
	}
}
