package vfstest

import (
	"errors"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// ErrPowerCut is what every operation returns once the power is off.
var ErrPowerCut = errors.New("power cut")

// PowerCut is a machine's file system in memory, up to and after a power cut.
// See the package's documentation for what a cut does.
type PowerCut struct {
	hookFS
	mem *vfs.MemFS

	mu      sync.Mutex
	ops     int
	cutAt   int // ops let through; negative: no cut
	off     bool
	removed map[string]removal // names taken away since their directory's last Sync
}

type removal int

const (
	byRemove removal = iota
	byRename
)

// NewPowerCut returns an empty file system with the power on.
func NewPowerCut() *PowerCut { return newPowerCut(vfs.NewCrashableMem()) }

func newPowerCut(mem *vfs.MemFS) *PowerCut {
	p := &PowerCut{mem: mem, cutAt: -1, removed: make(map[string]removal)}
	p.hookFS = hookFS{under: mem, r: p}
	return p
}

// CutAt cuts the power after n mutating operations (see [Op.Mutates]), counted
// from the start as [PowerCut.Ops] does; at once, if there were more already.
// The operation on which the power goes, all others after it, and reads, fail
// with [ErrPowerCut].
func (p *PowerCut) CutAt(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutAt = n
	p.off = p.ops > n
}

// Ops returns how many mutating operations were done: the range of n worth
// giving to CutAt.
func (p *PowerCut) Ops() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ops
}

// Off reports whether the power has gone.
func (p *PowerCut) Off() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.off
}

// Clone returns what the machine finds when it comes back, in one of the ways
// that the cut allows: of what was not synced it has a random part, chosen by
// seed. Every fourth seed keeps nothing (0, 4, …), the next one everything
// (1, 5, …), others a percentage. As nothing changes once the power is off,
// the clone is of the moment of the cut however late it is taken; with the
// power still on it is of now.
func (p *PowerCut) Clone(seed uint64) *PowerCut {
	p.mu.Lock()
	defer p.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed, 0))
	percent := 1 + rng.IntN(99)
	switch seed % 4 {
	case 0:
		percent = 0
	case 1:
		percent = 100
	}
	c := p.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
	// MemFS always brings unsynced removals back. Real ones may have happened.
	for _, name := range slices.Sorted(maps.Keys(p.removed)) {
		if rng.IntN(100) >= percent || p.removed[name] == byRename && percent < 100 {
			continue
		}
		// An absent name is fine: its creation was not synced either. Sync makes
		// the removal part of the clone's durable state.
		if err := c.RemoveAll(name); err == nil {
			if d, err := c.OpenDir(path.Dir(name)); err == nil {
				d.Sync()
				d.Close()
			}
		}
	}
	return newPowerCut(c)
}

// run does mutating operations one at a time, so that a cut has a place.
func (p *PowerCut) run(op Op, do func(int) (int, error)) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !op.Mutates() {
		if p.off {
			return 0, ErrPowerCut
		}
		return do(op.Len)
	}
	if p.off {
		return 0, ErrPowerCut
	}
	if p.cutAt >= 0 && p.ops >= p.cutAt {
		p.off = true
		if op.Kind == Write && op.Len > 0 {
			do(int(splitmix(uint64(p.ops)) % uint64(op.Len+1))) // torn at some byte
		}
		return 0, ErrPowerCut
	}
	p.ops++
	n, err := do(op.Len)
	if err == nil {
		p.note(op)
	}
	return n, err
}

// note keeps the record of unsynced removals.
func (p *PowerCut) note(op Op) {
	name := path.Clean(op.Path)
	switch op.Kind {
	case Create, OpenReadWrite, Lock:
		delete(p.removed, name)
	case Remove:
		p.removed[name] = byRemove
	case Rename:
		p.removed[name] = byRename
		delete(p.removed, path.Clean(op.To))
	case Link:
		delete(p.removed, path.Clean(op.To))
	case Sync:
		for r := range p.removed {
			if path.Dir(r) == name {
				delete(p.removed, r)
			}
		}
	}
}

// splitmix scatters a small number.
func splitmix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
