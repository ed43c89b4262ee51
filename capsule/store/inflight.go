package store

import (
	"sync"

	"github.com/spacestore/space/pipeline"
)

// pin is a promise about one segment while puts are under way: the segment
// will be there when they commit. It lives from the first put that wants the
// segment until the last one has committed or given up.
type pin struct {
	id   pipeline.SegmentID
	refs int // under the shard's lock

	// done is closed when the fields below are final.
	done   chan struct{}
	dying  bool       // the row is being deleted; look again when done
	stored bool       // a row was found
	row    segmentRow // else: where its record was appended; no row yet
	err    error      // sealing or appending failed

	// named is set once a round has given the segment its row, even one that
	// failed. It belongs to the leader of a commit round.
	named bool
}

// hasRow reports whether there may be a row for the segment. If not, there is
// none, and nobody needs to look: the first to pin the segment found no row
// while everyone else who wants it shares this pin, and a row is made only for
// a pin, by a round's leader, which notes it here.
func (p *pin) hasRow() bool { return p.stored || p.named }

// inflight is the table of pins.
type inflight struct {
	shards [64]struct {
		sync.Mutex
		pins map[pipeline.SegmentID]*pin
	}
	held struct {
		sync.Mutex
		logs  map[uint64]int // pins whose record is in the log and may have no row yet
		keys  map[uint32]int // puts that seal under a data key, and pins so sealed
		bytes int64          // of the records of logs
	}
}

func (t *inflight) init() {
	t.held.logs, t.held.keys = map[uint64]int{}, map[uint32]int{}
}

// acquire pins a segment. first tells the caller that it is the one to settle
// the pin: to look for the row or seal the segment, and then call settle.
func (t *inflight) acquire(id pipeline.SegmentID) (p *pin, first bool) {
	sh := &t.shards[id[0]%64]
	for {
		sh.Lock()
		p := sh.pins[id]
		switch {
		case p == nil:
			p = &pin{id: id, refs: 1, done: make(chan struct{})}
			if sh.pins == nil {
				sh.pins = map[pipeline.SegmentID]*pin{}
			}
			sh.pins[id] = p
			sh.Unlock()
			return p, true
		case p.dying:
			sh.Unlock()
			<-p.done
		default:
			p.refs++
			sh.Unlock()
			return p, false
		}
	}
}

// row returns where the record of a pinned segment is that may have no row yet.
func (t *inflight) row(id pipeline.SegmentID) (row segmentRow, ok bool) {
	sh := &t.shards[id[0]%64]
	sh.Lock()
	p := sh.pins[id]
	sh.Unlock()
	if p == nil {
		return row, false
	}
	select {
	case <-p.done:
		return p.row, p.row.log != 0
	default:
		return row, false
	}
}

// hold notes that the records of pins are in a log, so that the log stays, and
// their data keys too.
func (t *inflight) hold(log uint64, pins ...*pin) {
	t.held.Lock()
	defer t.held.Unlock()
	t.held.logs[log] += len(pins)
	for _, p := range pins {
		t.held.keys[p.row.key]++
		t.held.bytes += p.row.recordLen
	}
}

// heldBytes is how much of the logs is records that may have no row yet.
func (t *inflight) heldBytes() int64 {
	t.held.Lock()
	defer t.held.Unlock()
	return t.held.bytes
}

// holds reports whether records that a log holds may yet be named by a put.
func (t *inflight) holds(log uint64) bool {
	t.held.Lock()
	defer t.held.Unlock()
	return t.held.logs[log] > 0
}

// useKey notes that a put seals under a data key from now on.
func (t *inflight) useKey(key uint32) {
	t.held.Lock()
	defer t.held.Unlock()
	t.held.keys[key]++
}

func (t *inflight) unuseKey(key uint32) {
	t.held.Lock()
	defer t.held.Unlock()
	drop(t.held.keys, key)
}

// usesKey reports whether a row may yet appear whose record is sealed under key.
func (t *inflight) usesKey(key uint32) bool {
	t.held.Lock()
	defer t.held.Unlock()
	return t.held.keys[key] > 0
}

func drop[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] <= 0 {
		delete(m, k)
	}
}

// settle makes the pin's fields final. A failed pin is forgotten at once, so
// that later puts try for themselves.
func (t *inflight) settle(p *pin) {
	if p.err != nil {
		sh := &t.shards[p.id[0]%64]
		sh.Lock()
		delete(sh.pins, p.id)
		sh.Unlock()
	}
	close(p.done)
}

// release gives up one hold on the pin, after the commit or without one.
func (t *inflight) release(p *pin) {
	sh := &t.shards[p.id[0]%64]
	sh.Lock()
	p.refs--
	last := p.refs == 0
	if last && sh.pins[p.id] == p {
		delete(sh.pins, p.id)
	}
	sh.Unlock()
	if last && p.row.log != 0 {
		t.held.Lock()
		defer t.held.Unlock()
		drop(t.held.logs, p.row.log)
		drop(t.held.keys, p.row.key)
		t.held.bytes -= p.row.recordLen
	}
}

// condemn tries to reserve a segment whose last reference is gone for
// deletion. If no put has it pinned, puts that come wait until the returned
// function is called, after the commit; else it returns nil.
func (t *inflight) condemn(id pipeline.SegmentID) func() {
	sh := &t.shards[id[0]%64]
	sh.Lock()
	defer sh.Unlock()
	if sh.pins[id] != nil {
		return nil
	}
	p := &pin{id: id, dying: true, done: make(chan struct{})}
	if sh.pins == nil {
		sh.pins = map[pipeline.SegmentID]*pin{}
	}
	sh.pins[id] = p
	return func() {
		sh.Lock()
		delete(sh.pins, id)
		sh.Unlock()
		close(p.done)
	}
}
