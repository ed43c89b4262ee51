package store

import (
	"math"
	"sync"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/lock"
	"github.com/spacestore/space/internal/notify"
)

// VolumeMode is what a volume is opened for.
type VolumeMode uint8

// The modes.
const (
	ReadVolume  VolumeMode = iota
	WriteVolume            // beside others
	// OwnVolume is for who cannot share: nobody else may write. Reading it, as
	// for an export, is always possible.
	OwnVolume
)

// volumeUsers is what all who have a volume open share.
type volumeUsers struct {
	locks lock.Table

	mu       sync.Mutex
	writers  int
	owned    bool
	watchers map[*volumeWatcher]struct{}
}

func (u *volumeUsers) join(mode VolumeMode) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case mode == ReadVolume:
		return nil
	case u.owned:
		return capsule.Errorf(capsule.Busy, "the volume is in use by one who does not share it")
	case mode == OwnVolume && u.writers > 0:
		return capsule.Errorf(capsule.Busy, "the volume is open for writing elsewhere")
	}
	u.writers++
	u.owned = mode == OwnVolume
	return nil
}

func (u *volumeUsers) leave(mode VolumeMode) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if mode == ReadVolume {
		return
	}
	u.writers--
	u.owned = false
}

// volumeWatcher is one who is told what others write.
type volumeWatcher struct {
	who   *Volume
	queue *notify.Queue[volumeChange]
}

type volumeChange struct{ off, n int64 }

const maxVolumeChanges = 1024 // that wait for one watcher

func (u *volumeUsers) watch(who *Volume, fn func(off, n int64)) (cancel func()) {
	w := &volumeWatcher{who: who, queue: notify.New(maxVolumeChanges, volumeChange{0, math.MaxInt64})}
	w.queue.Watch(func(c volumeChange) { fn(c.off, c.n) })
	var running sync.WaitGroup
	running.Go(w.queue.Run)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.watchers == nil {
		u.watchers = map[*volumeWatcher]struct{}{}
	}
	u.watchers[w] = struct{}{}
	return func() {
		u.mu.Lock()
		delete(u.watchers, w)
		u.mu.Unlock()
		w.queue.Stop()
		running.Wait()
	}
}

// changed tells all but who made it of a change that is visible.
func (u *volumeUsers) changed(by *Volume, off, n int64) {
	if n == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for w := range u.watchers {
		if w.who != by {
			w.queue.Notify(volumeChange{off, n})
		}
	}
}
