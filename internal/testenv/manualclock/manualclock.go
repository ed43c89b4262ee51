// Package manualclock is a clock for tests of what never waits but for what it is
// told the time to be.
package manualclock

import (
	"sync"
	"time"
)

// Clock is a clock.Clock that a test sets. It may be used from many goroutines.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// New returns a clock that stands at the same time each time.
func New() *Clock { return &Clock{now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)} }

// Now implements clock.Clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// After implements clock.Clock.
func (c *Clock) After(time.Duration) <-chan time.Time { panic("nothing here waits") }

// Advance moves the clock on.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
