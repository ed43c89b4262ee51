package nvme

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/views/nvme/wire"
)

const (
	// adminWorkers is how many admin commands of a controller may wait for
	// what is durable at a time.
	adminWorkers = 2
	// maxAERs is how many asynchronous event requests may be outstanding.
	maxAERs = 4
	// errorEntries is how many entries the error log keeps.
	errorEntries = 64
	// keepAliveUnit is KAS: the granularity of keep-alive timeouts, 1 s.
	keepAliveUnit = 10
	// briefKATO ends discovery controllers whose hosts went silent without
	// having asked for keep-alive.
	briefKATO = 2 * time.Minute
)

// controller is a host's association with a subsystem (Base 3.1).
//
// Locks: its own may be taken under the subsystem's, and a connection's under it.
type controller struct {
	s       *subsystem
	id      uint16
	port    *port
	admin   *conn
	hostNQN string
	hostID  [16]byte
	host    Host
	since   time.Time
	brief   bool // a discovery controller without keep-alive
	log     *slog.Logger
	stats   ioStats
	workers workers // for admin commands that wait for what is durable

	mu       sync.Mutex
	ended    bool
	cc, csts uint32
	kato     uint32 // milliseconds
	lastSeen time.Time
	queues   map[uint16]*conn
	features features
	events   events
	errors   errorLog
}

// enabled is for who holds c.mu.
func (c *controller) enabled() bool { return c.csts&wire.CSTSReady != 0 }

// acceptsAdmin refuses admin commands to a controller that is not ready.
func (c *controller) acceptsAdmin(*wire.SQE) wire.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.enabled() {
		return wire.CommandSequenceError | wire.DNR
	}
	return wire.Success
}

// capabilities returns CAP (Base 3.1.3.1).
func (c *controller) capabilities() uint64 {
	return uint64(c.s.t.o.QueueDepth-1) | // MQES
		1<<16 | // CQR: queues lie in one piece
		15<<24 | // TO: 7.5 s to become ready
		1<<37 | 1<<43 // CSS: the NVM command set, and CC.CSS may be 6
}

// propertyGet reads a property (Base 6.4).
func (cmd *command) propertyGet() (wire.Status, uint64) {
	c := cmd.c.ctrl
	p, ok := wire.ParseProperty(&cmd.sqe)
	if !ok || cmd.c.qid != 0 {
		return wire.InvalidField | wire.DNR, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	wide := p.Offset == wire.PropCAP
	if p.Wide != wide {
		return wire.InvalidField | wire.DNR, 0
	}
	switch p.Offset {
	case wire.PropCAP:
		return wire.Success, c.capabilities()
	case wire.PropVS:
		return wire.Success, wire.Version20
	case wire.PropCC:
		return wire.Success, uint64(c.cc)
	case wire.PropCSTS:
		return wire.Success, uint64(c.csts)
	case wire.PropNSSR:
		return wire.Success, 0
	}
	return wire.InvalidField | wire.DNR, 0
}

// propertySet writes a property; only CC can be (Base 6.5).
func (cmd *command) propertySet() (wire.Status, uint64) {
	p, ok := wire.ParseProperty(&cmd.sqe)
	if !ok || cmd.c.qid != 0 || p.Wide || p.Offset != wire.PropCC {
		return wire.InvalidField | wire.DNR, 0
	}
	if !cmd.c.ready.Load() {
		return wire.AuthRequired | wire.DNR, 0
	}
	cmd.c.ctrl.configure(uint32(p.Value))
	return wire.Success, 0
}

// configure sets CC (Base 3.1.3.5): enables, resets, shuts down.
func (c *controller) configure(cc uint32) {
	c.mu.Lock()
	old := c.cc
	c.cc = cc
	var queues []*conn
	var requests []uint16
	enable, was := cc&wire.CCEnable != 0, old&wire.CCEnable != 0
	switch {
	case enable && !was:
		if c.s.discovery || validCC(cc) {
			c.csts = wire.CSTSReady
		} else {
			c.csts = wire.CSTSFatal
		}
		c.lastSeen = c.s.t.clock.Now()
	case !enable && was:
		// A controller level reset (Base 3.7.2): I/O queues and outstanding
		// requests are gone. What is at devices ends by itself.
		for id, q := range c.queues {
			queues = append(queues, q)
			delete(c.queues, id)
		}
		c.csts = 0
		requests = c.events.waiting
		c.events = events{}
		c.features = defaultFeatures()
	}
	shutdown := cc&wire.CCShutdownMask != 0 && old&wire.CCShutdownMask == 0
	if shutdown {
		c.csts = c.csts&^wire.CSTSShutMask | wire.CSTSShutDone>>1 // under way
	}
	c.mu.Unlock()
	for _, tag := range requests {
		c.admin.command(tag).forget()
	}
	for _, q := range queues {
		q.close()
		c.s.linger(q, c.hostNQN)
	}
	if shutdown {
		c.shutDown()
	}
}

// validCC checks what a host asks for when it enables an I/O controller.
func validCC(cc uint32) bool {
	css, mps, ams := cc>>4&7, cc>>7&15, cc>>11&7
	sqes, cqes := cc>>16&15, cc>>20&15
	return (css == 0 || css == 6) && mps == 0 && ams == 0 && sqes == 6 && cqes == 4
}

// shutDown flushes what the host may have written, since it asks for an
// orderly end, and then says that it is done (Base 3.6.2).
func (c *controller) shutDown() {
	t := c.s.t
	t.running.Add(1)
	go func() {
		defer t.running.Done()
		for _, ns := range *c.s.namespaces.Load() {
			if err := ns.flush(); err != nil {
				c.log.Error("flush at shutdown of a controller", "namespace", ns.NSID, "error", err)
			}
		}
		c.mu.Lock()
		c.csts = c.csts&^wire.CSTSShutMask | wire.CSTSShutDone
		c.mu.Unlock()
	}()
}

// expired reports whether the host has not been heard of for too long (Base
// 3.9): any command on any queue is a sign of life.
func (c *controller) expired(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := c.admin.seen.Swap(false)
	for _, q := range c.queues {
		seen = q.seen.Swap(false) || seen
	}
	if seen {
		c.lastSeen = now
	}
	kato := time.Duration(c.kato) * time.Millisecond
	if kato == 0 {
		if !c.brief {
			return false
		}
		kato = briefKATO
	}
	return now.Sub(c.lastSeen) > kato+tick
}

// end ends the controller and its queues. It waits for nothing.
func (c *controller) end(why string) {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	c.ended = true
	conns := []*conn{c.admin}
	for _, q := range c.queues {
		conns = append(conns, q)
	}
	c.mu.Unlock()
	if !c.brief {
		c.log.Info("NVMe controller ended", "subsystem", c.s.NQN, "controller", c.id, "reason", why)
	}
	for _, q := range conns {
		q.close()
		c.s.linger(q, c.hostNQN)
	}
	c.s.mu.Lock()
	delete(c.s.controllers, c.id)
	c.s.mu.Unlock()
}

// left notes that a connection is gone: an I/O queue, or with the admin queue
// all of it.
func (c *controller) left(q *conn) {
	c.s.linger(q, c.hostNQN)
	if q == c.admin {
		c.end("the host closed the connection")
		return
	}
	c.mu.Lock()
	if c.queues[q.qid] == q {
		delete(c.queues, q.qid)
	}
	c.mu.Unlock()
}

// closedQueues returns the queues whose connections are closed.
func (c *controller) closedQueues() []*conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := append(slices.Collect(maps.Values(c.queues)), c.admin)
	return slices.DeleteFunc(all, func(q *conn) bool { return !q.isClosed() })
}

// awaitQueues waits until the I/O queues are gone, or the admin queue is.
func (c *controller) awaitQueues(admin *conn) {
	c.mu.Lock()
	queues := slices.Collect(maps.Values(c.queues))
	c.mu.Unlock()
	for _, q := range queues {
		select {
		case <-q.done:
		case <-admin.done:
			return
		}
	}
}

func (c *controller) info() ControllerInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ControllerInfo{Subsystem: c.s.NQN, CNTLID: c.id, HostNQN: c.hostNQN, HostID: c.hostID, Port: c.port.ID,
		Remote: c.admin.nc.RemoteAddr().String(), Queues: len(c.queues), Since: c.since, Discovery: c.s.discovery,
		Authenticated: c.admin.auth != nil && c.admin.ready.Load(), Stats: c.stats.snapshot()}
}
