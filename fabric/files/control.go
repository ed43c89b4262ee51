package files

import (
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

// Control changes the settings of a Receive while that runs. What was set is kept with
// what has arrived, and holds for the next Receive of the same target too, until that
// is whole. The zero value is usable.
type Control struct {
	mu   sync.Mutex
	now  Settings
	path string         // where they are kept; "": nowhere yet
	t    *bulk.Transfer // that runs; nil: none
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

// ErrNotRunning is of a transfer that has not begun, or has ended.
var ErrNotRunning = errors.New("files: the transfer does not run now")

// Change has fn change the settings.
func (c *Control) Change(fn func(*Settings)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.path == "" {
		return ErrNotRunning
	}
	next := c.now
	fn(&next)
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
	return nil
}

// end takes no more changes.
func (c *Control) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.path = ""
}

// attach has a transfer do as is said.
func (c *Control) attach(t *bulk.Transfer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
	c.apply()
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
	if s.Class != frame.Background {
		s.Class = frame.Bulk
	}
	return s
}
