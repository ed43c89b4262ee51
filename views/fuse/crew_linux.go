package fuse

import (
	"sync"
	"time"
)

// patience is how long nobody reads requests because all are at work, before
// somebody else begins to.
const patience = 5 * time.Millisecond

// crew counts the goroutines that read a device's requests and work on them,
// and says when one is to join or leave.
//
// A goroutine that waits in read(2) keeps one of Go's processors. If all are
// kept so, the runtime takes them back and gives them out again with each
// request, which costs as much as answering it; and so does waking another
// goroutine to read while this one works. So one processor is left free, and who
// has a request that needs no waiting works on it while nobody reads, for as
// long as patience allows.
type crew struct {
	most int // that wait for a request
	join func()

	mu      sync.Mutex
	waiting int
	members int
	taken   uint64 // requests
	looked  uint64 // taken when the clock was set
	clock   *time.Timer
	ticking bool
	done    chan struct{} // closed when the last one has left
}

// newCrew returns a crew with one member. join starts another one.
func newCrew(most int, join func()) *crew {
	return &crew{most: most, join: join, members: 1, done: make(chan struct{})}
}

// wait has a member wait for a request. On false enough do: it has left.
func (c *crew) wait() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting >= c.most {
		c.left()
		return false
	}
	c.waiting++
	return true
}

// take says that a member waits no more but works on a request, which may take
// long or not. many tells that more are at work than are to wait: requests that
// were taken for short ones may be stuck, and there can be as many as the kernel has.
func (c *crew) take(long bool) (many bool) {
	c.mu.Lock()
	c.waiting--
	c.taken++
	many = c.members-c.waiting > c.most
	join := c.waiting == 0 && (long || c.members < c.most)
	switch {
	case join:
		c.members++
	case c.waiting == 0 && !c.ticking:
		c.set()
	}
	c.mu.Unlock()
	if join {
		c.join()
	}
	return many
}

// leave says that a member ends, which waited or not.
func (c *crew) leave(waited bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if waited {
		c.waiting--
	}
	c.left()
}

func (c *crew) left() {
	if c.members--; c.members == 0 {
		close(c.done)
	}
}

// set has look called when patience is over. c.mu is held.
func (c *crew) set() {
	c.looked, c.ticking = c.taken, true
	if c.clock == nil {
		c.clock = time.AfterFunc(patience, c.look)
	} else {
		c.clock.Reset(patience)
	}
}

// look has somebody join if all have been at the same requests since the clock
// was set.
func (c *crew) look() {
	c.mu.Lock()
	c.ticking = false
	join := false
	if c.members > 0 && c.waiting == 0 {
		if join = c.taken == c.looked; join {
			c.members++
		} else {
			c.set()
		}
	}
	c.mu.Unlock()
	if join {
		c.join()
	}
}
