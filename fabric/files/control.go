package files

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/internal/vfs"
)

// Settings are what can be told to a transfer that runs.
type Settings struct {
	Paused bool
	Rate   int64       // bytes a second at most; 0: as fast as it goes
	Class  frame.Class // Bulk or Background
}

// Change is what is to be changed of settings; nil: that stays as it is.
type Change struct {
	Paused *bool        `json:"paused,omitempty"`
	Rate   *int64       `json:"bytes_per_second,omitempty"`
	Class  *frame.Class `json:"class,omitempty"`
}

// and returns both changes, other after c.
func (c Change) and(other Change) Change {
	return Change{cmp.Or(other.Paused, c.Paused), cmp.Or(other.Rate, c.Rate), cmp.Or(other.Class, c.Class)}
}

func (c Change) apply(s *Settings) {
	if c.Paused != nil {
		s.Paused = *c.Paused
	}
	if c.Rate != nil {
		s.Rate = max(*c.Rate, 0)
	}
	if c.Class != nil {
		s.Class = known(*c.Class)
	}
}

// known returns the class that a transfer may have for one that is asked for.
func known(c frame.Class) frame.Class {
	if c != frame.Background {
		return frame.Bulk
	}
	return c
}

// Control changes the settings of a Receive while that runs. What was set is kept with
// what has arrived, and holds for the next Receive of the same target too, until that
// is whole. The zero value is usable.
type Control struct {
	mu    sync.Mutex
	now   Settings
	early Change // before it began
	path  string // where they are kept; "": it has not begun
	ended bool
	t     *bulk.Transfer // that runs; nil: none
}

// Settings returns the present ones.
func (c *Control) Settings() Settings {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// class is that of streams that are opened now.
func (c *Control) class() frame.Class {
	if now := c.Settings(); now.Class != 0 {
		return now.Class
	}
	return frame.Bulk
}

// ErrEnded is of a transfer that has ended.
var ErrEnded = errors.New("files: the transfer has ended")

// Change changes the settings, durably where the Receive has begun.
func (c *Control) Change(what Change) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return ErrEnded
	}
	if c.path == "" {
		c.early = c.early.and(what)
		return nil
	}
	return c.change(what)
}

func (c *Control) change(what Change) error {
	next := c.now
	what.apply(&next)
	if next == c.now {
		return nil
	}
	if err := vfs.WriteFileAtomic(vfs.OS(), c.path, []byte(next.String())); err != nil {
		return fmt.Errorf("files: %w", sinkError(err))
	}
	reopen := next.Class != c.now.Class
	c.now = next
	c.apply()
	if c.t != nil && reopen {
		c.t.Reopen()
	}
	return nil
}

// apply tells the transfer. Called with the lock held.
func (c *Control) apply() {
	if c.t == nil {
		return
	}
	c.t.SetRate(c.now.Rate)
	if c.now.Paused {
		c.t.Pause()
	} else {
		c.t.Resume()
	}
}

// begin takes in what was set before, but for what is said now.
func (c *Control) begin(path string, said Settings) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("files: %w", err)
	}
	c.now = parseSettings(string(b))
	if said.Rate != 0 {
		c.now.Rate = said.Rate
	}
	if said.Class != 0 {
		c.now.Class = said.Class
	}
	c.path = path
	return c.change(c.early)
}

// end takes no more changes.
func (c *Control) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
}

// attach has a transfer do as is said. Its streams are of a class, perhaps of the present.
func (c *Control) attach(t *bulk.Transfer, class frame.Class) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
	c.apply()
	if c.now.Class != class {
		t.Reopen()
	}
}

const settingsMagic = "space-files-settings/1"

func (s Settings) String() string {
	paused := 0
	if s.Paused {
		paused = 1
	}
	return fmt.Sprintf("%s %d %d %d\n", settingsMagic, paused, s.Rate, s.Class)
}

// parseSettings reads what String has made; what it can't read is as usual.
func parseSettings(text string) Settings {
	var s Settings
	var paused int
	if _, err := fmt.Sscanf(text, settingsMagic+" %d %d %d\n", &paused, &s.Rate, &s.Class); err != nil || s.Rate < 0 {
		s, paused = Settings{}, 0
	}
	s.Paused = paused == 1
	s.Class = known(s.Class)
	return s
}
