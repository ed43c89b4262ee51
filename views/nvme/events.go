package nvme

import (
	"slices"

	"github.com/spacestore/space/views/nvme/wire"
)

// The kinds of asynchronous events (Base 5.2.1). Each is told once until the
// host has read the log page that says more.
type eventKind uint8

const (
	eventNamespace eventKind = iota
	eventANA
	eventDiscovery
	eventReservation
	eventKinds
)

var eventInfo = [eventKinds]struct {
	enable uint32 // bit of the async event configuration; 0: always
	result uint32
}{
	eventNamespace:   {wire.EventsNamespace, wire.EventResult(wire.EventNotice, wire.NoticeNamespace, wire.LogChangedNS)},
	eventANA:         {wire.EventsANA, wire.EventResult(wire.EventNotice, wire.NoticeANA, wire.LogANA)},
	eventDiscovery:   {wire.EventsDiscovery, wire.EventResult(wire.EventNotice, wire.NoticeDiscovery, wire.LogDiscovery)},
	eventReservation: {0, wire.EventResult(wire.EventIO, wire.IOReservation, wire.LogReservations)},
}

// events are a controller's asynchronous events.
type events struct {
	enabled uint32
	waiting []uint16         // outstanding requests
	pending [eventKinds]bool // to be told
	masked  [eventKinds]bool // told, and the log page not read since
	changed []uint32         // changed namespaces; one more than the log holds: too many
	notices []wire.ReservNotice
	counter uint64 // of reservation notices
}

// maxNotices bounds the reservation notices that wait to be read.
const maxNotices = 64

// asyncEvent takes an asynchronous event request: it is answered when there is
// something to tell (Base 5.2).
func (cmd *command) asyncEvent() (wire.Status, uint64) {
	c := cmd.c.ctrl
	c.mu.Lock()
	defer c.mu.Unlock()
	e := &c.events
	for k := range eventKinds {
		if e.pending[k] {
			e.pending[k], e.masked[k] = false, true
			return wire.Success, uint64(eventInfo[k].result)
		}
	}
	if len(e.waiting) >= maxAERs {
		return wire.AERLimitExceeded | wire.DNR, 0
	}
	e.waiting = append(e.waiting, cmd.tag)
	return pendingAnswer, 0
}

// event tells the host of something, if it wants to know.
func (c *controller) event(k eventKind) {
	c.mu.Lock()
	cmd := c.raise(k)
	c.mu.Unlock()
	c.answerEvent(cmd, k)
}

// raise notes an event and returns the request that it answers, nil if there
// is none. Callers hold c.mu.
func (c *controller) raise(k eventKind) *command {
	e := &c.events
	if c.ended || e.masked[k] || e.pending[k] || eventInfo[k].enable != 0 && e.enabled&eventInfo[k].enable == 0 {
		return nil
	}
	if len(e.waiting) == 0 {
		e.pending[k] = true
		return nil
	}
	e.masked[k] = true
	cmd := c.admin.command(e.waiting[0])
	e.waiting = e.waiting[1:]
	return cmd
}

// answerEvent answers the request that raise returned.
func (c *controller) answerEvent(cmd *command, k eventKind) {
	if cmd != nil {
		cmd.complete(wire.Success, uint64(eventInfo[k].result))
		c.s.t.flushSoon(c.admin)
	}
}

// told notes that the host has read a log page: it can be told anew.
func (c *controller) told(k eventKind) { c.events.masked[k] = false }

// abortAsyncEvent aborts an outstanding request.
func (c *controller) abortAsyncEvent(cid uint16) bool {
	c.mu.Lock()
	e := &c.events
	var cmd *command
	for i, tag := range e.waiting {
		if x := c.admin.command(tag); x.sqe.CID() == cid {
			cmd = x
			e.waiting = slices.Delete(e.waiting, i, i+1)
			break
		}
	}
	c.mu.Unlock()
	if cmd == nil {
		return false
	}
	cmd.complete(wire.AbortRequested, 0)
	return true
}

// command returns the command in a slot.
func (c *conn) command(tag uint16) *command {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots[tag]
}

// namespaceChanged notes that a namespace has changed, come or gone.
func (c *controller) namespaceChanged(nsid uint32) {
	c.mu.Lock()
	e := &c.events
	if !slices.Contains(e.changed, nsid) && len(e.changed) <= wire.MaxChangedNS {
		e.changed = append(e.changed, nsid)
	}
	cmd := c.raise(eventNamespace)
	c.mu.Unlock()
	c.answerEvent(cmd, eventNamespace)
}

// reservationNotice tells a host what became of a namespace's reservation.
func (c *controller) reservationNotice(nsid uint32, kind uint8) {
	c.mu.Lock()
	if c.features.resvMask[nsid]&(1<<kind) != 0 || c.s.discovery {
		c.mu.Unlock()
		return
	}
	e := &c.events
	e.counter++
	if e.counter == 0 {
		e.counter = 1
	}
	if len(e.notices) == maxNotices {
		e.notices = e.notices[1:]
	}
	e.notices = append(e.notices, wire.ReservNotice{Count: e.counter, Type: kind, NSID: nsid})
	cmd := c.raise(eventReservation)
	c.mu.Unlock()
	c.answerEvent(cmd, eventReservation)
}

// discoveryChanged counts a change of what discovery tells, and tells hosts.
func (t *Target) discoveryChanged() {
	t.mu.Lock()
	t.generation++
	t.mu.Unlock()
	for _, c := range t.discovery.list() {
		c.event(eventDiscovery)
	}
}
