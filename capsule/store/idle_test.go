package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// handClock hands timers of one length to its test, which lets them end. Others
// do not end.
type handClock struct {
	clock.Clock
	length time.Duration
	timers chan chan time.Time
}

func newHandClock(length time.Duration) *handClock {
	return &handClock{clock.System(), length, make(chan chan time.Time)}
}

func (c *handClock) After(d time.Duration) <-chan time.Time {
	if d != c.length {
		return nil
	}
	t := make(chan time.Time, 1)
	c.timers <- t
	return t
}

// next waits for a timer.
func (c *handClock) next(t *testing.T) chan time.Time {
	t.Helper()
	select {
	case timer := <-c.timers:
		return timer
	case <-time.After(time.Minute):
		t.Fatal("no timer is set")
		return nil
	}
}

func storeWithClock(t *testing.T, c clock.Clock, fs vfs.FS) *Store {
	t.Helper()
	s, err := Open(context.Background(), Options{Dir: "/space", FS: fs, Keys: testKey, Logger: quietLog(),
		LogBytes: 256 << 10, Clock: c, CommitInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Background work waits while the store is called, for some time before each
// step, and not at all in an idle store.
func TestBackgroundMakesWay(t *testing.T) {
	c := newHandClock(idleAfter)
	s := storeWithClock(t, c, vfstest.NewPowerCut())
	if err := s.enter(); err != nil { // as background work is a call itself
		t.Fatal(err)
	}
	defer s.leave()
	y := &yielder{s: s}
	step := func() chan error {
		done := make(chan error)
		go func() { done <- y.step(t.Context()) }()
		return done
	}
	call := func() {
		if _, err := s.Usage(t.Context()); err != nil {
			t.Error(err)
		}
	}
	call()
	done := step()
	c.next(t) <- time.Time{} // and nobody called meanwhile
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := <-step(); err != nil { // sets no timer, or would hang
		t.Fatal(err)
	}
	call()
	done = step()
	for range longestPause / idleAfter {
		timer := c.next(t)
		call()
		timer <- time.Time{}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// recompress collects garbage in the background, and returns where it says how that ended.
func recompress(t *testing.T, s *Store) <-chan error {
	background := make(chan error)
	go func() {
		_, err := s.GC(t.Context(), GCOptions{Recompress: true, background: true}, nil)
		background <- err
	}()
	return background
}

// Whoever collects garbage himself does not wait for what makes way for others.
func TestBackgroundMakesWayForGC(t *testing.T) {
	c := newHandClock(idleAfter)
	s := storeWithClock(t, c, vfstest.NewPowerCut())
	want := text(1, 1<<20)
	id := put(t, s, "x", want).ID
	background := recompress(t, s)
	c.next(t) // never ends
	rep, err := s.GC(t.Context(), GCOptions{Recompress: true}, nil)
	if err != nil || rep.Recompressed == 0 {
		t.Errorf("%d segments are recompressed, %v", rep.Recompressed, err)
	}
	if err := <-background; !errors.Is(err, errMakeWay) {
		t.Errorf("in the background: %v", err)
	}
	wantContent(t, s, id, want)
}

// Background work that has begun waits no more once there is much garbage, though
// the disk has room.
func TestBackgroundHurriesWhenGarbageIsMuch(t *testing.T) {
	c := newHandClock(idleAfter)
	s := storeWithClock(t, c, vfstest.NewPowerCut())
	s.muchGarbage = 1 << 20
	want := text(1, 4<<20)
	id := put(t, s, "x", want).ID
	background := recompress(t, s)
	timer := c.next(t)
	if err := s.enter(); err != nil { // somebody who uses the store all the time
		t.Fatal(err)
	}
	defer s.leave()
	if err := s.Remove(t.Context(), put(t, s, "y", random(2, 8<<20)).ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Usage(t.Context()); err != nil { // after which it is dropped indeed
		t.Fatal(err)
	}
	timer <- time.Time{}
	select {
	case err := <-background:
		if err != nil {
			t.Fatal(err)
		}
	case <-c.timers:
		t.Fatal("it makes way while there is more garbage than content")
	}
	wantContent(t, s, id, want)
}

// Background work that has begun waits no more once space is short.
func TestBackgroundHurriesWhenSpaceIsShort(t *testing.T) {
	c := newHandClock(idleAfter)
	disk := vfstest.NewDiskFull(vfstest.NewPowerCut(), 1<<30)
	s := storeWithClock(t, c, disk)
	want := text(1, 4<<20)
	id := put(t, s, "x", want).ID
	background := recompress(t, s)
	timer := c.next(t)
	if err := s.enter(); err != nil { // somebody who uses the store all the time
		t.Fatal(err)
	}
	defer s.leave()
	disk.SetBudget(disk.Used() * 3 / 2)
	timer <- time.Time{}
	select {
	case err := <-background:
		if err != nil {
			t.Fatal(err)
		}
	case <-c.timers:
		t.Fatal("garbage waits on a disk that is nearly full")
	}
	wantContent(t, s, id, want)
}

// What is written and not committed yet is no garbage, however much it is.
func TestUncommittedIsNoGarbage(t *testing.T) {
	c := newHandClock(time.Nanosecond) // no timer ends
	s := storeWithClock(t, c, vfstest.NewPowerCut())
	s.muchGarbage = 1 << 20
	v := newVolume(t, s, "v", 8<<20)
	defer v.Close()
	p := random(1, 8<<20)
	for off := 0; off < len(p); off += 1 << 20 {
		if _, err := v.WriteAt(p[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if size, err := s.logBytesTotal(); err != nil || size < 8<<20 {
		t.Fatalf("%d bytes are written, %v", size, err)
	}
	if s.garbageIsMuch() {
		t.Fatal("what was just written counts as garbage")
	}
	if err := s.checkpointAll(); err != nil {
		t.Fatal(err)
	}
	if n := s.pins.heldBytes(); n != 0 {
		t.Errorf("%d bytes are still held after the checkpoint", n)
	}
	for range 2 { // the first one only makes it garbage
		if err := v.Trim(t.Context(), 0, 8<<20); err != nil {
			t.Fatal(err)
		}
		if err := s.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !s.garbageIsMuch() {
		t.Fatal("what was removed does not count as garbage")
	}
}

// A garbage collection in the background that keeps failing is tried less and less
// often, and logs each reason once. When much is removed it is tried at once.
func TestBackgroundBacksOff(t *testing.T) {
	c := newHandClock(muchEvery)
	faults := vfstest.NewFaults(vfstest.NewPowerCut())
	var logged bytes.Buffer
	s, err := Open(t.Context(), Options{Dir: "/space", FS: faults, Keys: testKey, Logger: slog.New(slog.NewTextHandler(&logged, nil)),
		LogBytes: 256 << 10, Clock: c, CommitInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.muchGarbage = 1 << 10
	remove := func(id capsule.ID) {
		t.Helper()
		if err := s.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := s.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	kept := put(t, s, "kept", random(2, 1<<20)).ID
	remove(put(t, s, "x", random(1, 3<<20)).ID)
	fail := func(errno error) {
		faults.Set(func(op vfstest.Op) error {
			if op.Kind == vfstest.Remove && strings.HasSuffix(op.Path, ".seg") {
				return errno
			}
			return nil
		})
	}
	s.wg.Go(s.tidy)
	timer := c.next(t)
	runsOf := func() int64 {
		counters, err := s.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return counters.GCRuns
	}
	wantAfter := func(ticks int, runs int64, reasons int) {
		t.Helper()
		before := runsOf()
		for range ticks {
			timer <- time.Time{}
			timer = c.next(t)
		}
		if n := runsOf() - before; n != runs {
			t.Errorf("%d garbage collections in %d rounds, not %d", n, ticks, runs)
		}
		if n := strings.Count(logged.String(), "background garbage collection"); n != reasons {
			t.Errorf("%d messages, not %d:\n%s", n, reasons, logged.String())
		}
	}
	fail(syscall.EIO)
	wantAfter(1, 1, 1)
	wantAfter(5, 0, 1)
	wantAfter(1, 1, 1)
	wantAfter(11, 0, 1)
	fail(syscall.EPERM)
	wantAfter(1, 1, 2)
	wantAfter(1000, 9, 2) // every two minutes, four, eight, then ten
	remove(kept)
	wantAfter(1, 1, 2)
	wantAfter(8, 0, 2)
	remove(put(t, s, "small", random(3, 100)).ID)
	wantAfter(8, 0, 2)
	faults.Set(nil)
	wantAfter(106, 1, 2)
	if size, err := s.logBytesTotal(); err != nil || size != 0 {
		t.Errorf("%d bytes are left, %v", size, err)
	}
}
