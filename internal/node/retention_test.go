package node

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// fakeClock is a clock that its test moves.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Time
	passed time.Duration // by which timers go, which no step of the clock disturbs
	timers map[chan time.Time]time.Duration
	armed  chan struct{} // told about each new timer
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), timers: map[chan time.Time]time.Duration{}, armed: make(chan struct{}, 100)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.timers[ch] = c.passed + d
	select {
	case c.armed <- struct{}{}:
	default:
	}
	return ch
}

// step sets the clock without any time passing.
func (c *fakeClock) step(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *fakeClock) advance(d time.Duration) {
	c.step(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passed += d
	for ch, at := range c.timers {
		if at <= c.passed {
			ch <- c.now
			delete(c.timers, ch)
		}
	}
}

// untimed is a clock for the store, whose timers are not what is tested here.
type untimed struct{ *fakeClock }

func (untimed) After(time.Duration) <-chan time.Time { return nil }

// keeping is a keeper, its clock, and a volume under a policy.
type keeping struct {
	*testing.T
	*keeper
	clock *fakeClock
	id    capsule.ID
}

func newKeeping(t *testing.T, every time.Duration, keep int) *keeping {
	c := newFakeClock()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(t.Context(), store.Options{Dir: "/space", FS: vfstest.NewPowerCut(),
		Keys: keyring.Source{MasterKey: strings.Repeat("5a", 32)}, Logger: log, Clock: untimed{c}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	info, err := s.Create(t.Context(), store.CreateRequest{Kind: capsule.Volume, Name: "v", Size: 1 << 20}, nil)
	if err == nil {
		err = s.SetSnapshotPolicy(t.Context(), info.ID, capsule.SnapshotPolicy{Every: capsule.Duration(every), Keep: keep})
	}
	if err != nil {
		t.Fatal(err)
	}
	return &keeping{t, newKeeper(s, c, log), c, info.ID}
}

func (k *keeping) names() []string {
	k.Helper()
	list, err := k.store.Snapshots(k.Context(), k.id)
	if err != nil {
		k.Fatal(err)
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	return names
}

// live has the keeper work for a time, and returns how many snapshots it took.
func (k *keeping) live(d time.Duration) (taken int) {
	k.Helper()
	newest := func() string {
		if names := k.names(); len(names) > 0 {
			return names[len(names)-1]
		}
		return ""
	}
	for end := k.clock.passed + d; ; {
		before := newest()
		wait := k.pass(k.Context())
		if newest() != before {
			taken++
		}
		if wait <= 0 || wait > keepEvery {
			k.Fatalf("the next pass is in %s", wait)
		}
		if k.clock.passed+wait > end {
			k.clock.advance(end - k.clock.passed)
			return taken
		}
		k.clock.advance(wait)
	}
}

func (k *keeping) want(what string, got, lo, hi int) {
	k.Helper()
	if got < lo || got > hi {
		k.Errorf("%s: %d snapshots taken, want %d to %d", what, got, lo, hi)
	}
}

func TestKeeperTakesAndRemoves(t *testing.T) {
	k := newKeeping(t, time.Hour, 3)
	if _, err := k.store.Snapshot(t.Context(), k.id, "by-hand"); err != nil {
		t.Fatal(err)
	}
	k.want("10 hours and a half", k.live(10*time.Hour+30*time.Minute), 11, 11)
	if got := strings.Join(k.names(), " "); got != "by-hand auto-20260301T200000Z auto-20260301T210000Z auto-20260301T220000Z" {
		t.Errorf("there are %s", got)
	}
	k.clock.advance(5*time.Hour + 10*time.Minute) // no node runs
	k.want("after an outage", k.live(time.Minute), 1, 1)
	k.want("the next one, on the hour", k.live(19*time.Minute), 1, 1)
	if err := k.store.SetSnapshotPolicy(t.Context(), k.id, capsule.SnapshotPolicy{}); err != nil {
		t.Fatal(err)
	}
	k.want("switched off", k.live(3*time.Hour), 0, 0)
	if len(k.names()) != 4 {
		t.Errorf("switched off, there are %s", k.names())
	}
}

// Whatever the clock does, snapshots go on at about the right rate, and the
// newest ones are kept.
func TestKeeperBearsClockSteps(t *testing.T) {
	for name, step := range map[string]time.Duration{
		"a second back": -time.Second, "half an hour back": -30 * time.Minute, "a day back": -24 * time.Hour,
		"years back": -30000 * time.Hour, "a day ahead": 24 * time.Hour, "years ahead": 30000 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeping(t, time.Hour, 4)
			k.live(5*time.Hour + 10*time.Minute)
			k.clock.step(step)
			at := k.clock.Now()
			k.want("right after the step", k.live(2*time.Minute), 0, 1)
			k.want("in the 4 hours after it", k.live(4*time.Hour), 3, 5)
			names := k.names()
			if newest := names[len(names)-1]; newest < capsule.AutoSnapshotName(at) || newest > capsule.AutoSnapshotName(k.clock.Now()) {
				t.Errorf("at %s the newest snapshot is %s", k.clock.Now(), newest)
			}
			if len(names) != 4 {
				t.Errorf("there are %s", names)
			}
			k.clock.step(-step)
			k.want("right after the step back", k.live(2*time.Minute), 0, 1)
			k.want("in the 4 hours after that", k.live(4*time.Hour), 3, 5)
		})
	}
}

func TestKeeperRuns(t *testing.T) {
	k := newKeeping(t, time.Hour, 4)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.run(ctx) }()
	<-k.clock.armed // the first pass is over
	if len(k.names()) != 1 {
		t.Errorf("at first, there are %s", k.names())
	}
	object, err := k.store.Put(ctx, store.PutRequest{Name: "o"}, strings.NewReader(""))
	if err == nil {
		err = k.store.SetSnapshotPolicy(ctx, object.ID, capsule.SnapshotPolicy{Every: capsule.Duration(time.Hour), Keep: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	k.look()
	<-k.clock.armed
	if list, err := k.store.Snapshots(ctx, object.ID); err != nil || len(list) != 1 {
		t.Errorf("of the object, there are %v, %v", list, err)
	}
	cancel()
	<-done
}
