package nvme

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/views/nvme/wire"
)

// tick is how often keep-alive and deadlines are looked at: by one goroutine
// for the whole target.
const tick = time.Second

// Target serves subsystems on ports. Its methods may be called from many goroutines.
type Target struct {
	o     Options
	clock clock.Clock
	log   *slog.Logger
	mem   budget
	stats targetStats
	since time.Time

	mu         sync.Mutex
	closed     bool
	subsystems map[string]*subsystem
	discovery  *subsystem
	ports      map[*port]struct{}
	conns      map[*conn]struct{}
	halfOpen   []*conn // in the order of their coming
	generation uint64  // of the discovery log page

	stop    chan struct{}
	running sync.WaitGroup // goroutines
}

// port is a port that is being served.
type port struct {
	Port
	l net.Listener
}

func (o Options) withDefaults() (Options, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	o.MaxConns = cmp.Or(o.MaxConns, 4096)
	o.MaxHalfOpen = cmp.Or(o.MaxHalfOpen, 256)
	o.MaxControllers = cmp.Or(o.MaxControllers, 1024)
	o.MaxIOQueues = cmp.Or(o.MaxIOQueues, 64)
	o.QueueDepth = cmp.Or(o.QueueDepth, 128)
	o.MaxTransfer = cmp.Or(o.MaxTransfer, 1<<20)
	o.InCapsule = cmp.Or(o.InCapsule, 16<<10)
	o.MaxH2CData = cmp.Or(o.MaxH2CData, 1<<20)
	o.R2TSize = cmp.Or(o.R2TSize, o.MaxTransfer)
	o.Memory = cmp.Or(o.Memory, 256<<20)
	o.ConnMemory = cmp.Or(o.ConnMemory, min(32<<20, o.Memory))
	o.Workers = cmp.Or(o.Workers, 64)
	o.HandshakeTimeout = cmp.Or(o.HandshakeTimeout, 10*time.Second)
	o.StallTimeout = cmp.Or(o.StallTimeout, time.Minute)
	switch {
	case o.MaxConns < 1, o.MaxHalfOpen < 1, o.MaxControllers < 1 || o.MaxControllers > maxCNTLID, o.Workers < 1:
		return o, capsule.Errorf(capsule.Invalid, "an NVMe target needs connections, controllers (at most %d) and workers", maxCNTLID)
	case o.MaxIOQueues < 1 || o.MaxIOQueues > 65535:
		return o, capsule.Errorf(capsule.Invalid, "a controller may have 1 to 65535 I/O queues, not %d", o.MaxIOQueues)
	case o.QueueDepth < minAdminDepth || o.QueueDepth > 4096:
		return o, capsule.Errorf(capsule.Invalid, "queues may be %d to 4096 deep, not %d", minAdminDepth, o.QueueDepth)
	case o.MaxTransfer < 4096 || o.MaxTransfer > 32<<20 || o.MaxTransfer&(o.MaxTransfer-1) != 0:
		return o, capsule.Errorf(capsule.Invalid, "the largest transfer has to be a power of two from 4 KiB to 32 MiB, not %d", o.MaxTransfer)
	case o.InCapsule < 0 || o.InCapsule > 1<<20 || o.InCapsule%16 != 0:
		return o, capsule.Errorf(capsule.Invalid, "data in capsules has to be a multiple of 16 of at most 1 MiB, not %d", o.InCapsule)
	case o.MaxH2CData < wire.MinH2CData || o.MaxH2CData%4 != 0 || o.MaxH2CData > 32<<20:
		return o, capsule.Errorf(capsule.Invalid, "a data PDU has to hold a multiple of 4 from 4 KiB to 32 MiB, not %d", o.MaxH2CData)
	case o.R2TSize < 512 || o.R2TSize%4 != 0:
		return o, capsule.Errorf(capsule.Invalid, "an R2T has to ask for a multiple of 4 of at least 512 bytes, not %d", o.R2TSize)
	case o.ConnMemory < int64(o.MaxTransfer) || o.Memory < o.ConnMemory:
		return o, capsule.Errorf(capsule.Invalid, "memory for data: %d bytes in all and %d for a connection do not fit transfers of %d", o.Memory, o.ConnMemory, o.MaxTransfer)
	}
	return o, nil
}

// New returns a target without subsystems but for the discovery service.
func New(o Options) (*Target, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	t := &Target{o: o, clock: o.Clock, log: o.Logger, subsystems: map[string]*subsystem{}, ports: map[*port]struct{}{},
		conns: map[*conn]struct{}{}, generation: 1, stop: make(chan struct{}), since: o.Clock.Now()}
	t.mem.limit = o.Memory
	t.discovery = newSubsystem(t, Subsystem{NQN: wire.DiscoveryNQN, Serial: "discovery", Model: defaultModel, AllowAnyHost: true})
	t.discovery.discovery = true
	t.running.Add(1)
	go t.watch(t.clock.After(tick))
	return t, nil
}

// Serve serves a port until the listener fails or the target is closed, which
// is no error. It closes the listener.
func (t *Target) Serve(l net.Listener, p Port) error {
	defer l.Close()
	if p.ID == 0 {
		return capsule.Errorf(capsule.Invalid, "a port needs a number")
	}
	pt := &port{p, l}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	for other := range t.ports {
		if other.ID == p.ID {
			t.mu.Unlock()
			return capsule.Errorf(capsule.Exists, "port %d is being served already, on %s", p.ID, other.l.Addr())
		}
	}
	t.ports[pt] = struct{}{}
	t.running.Add(1)
	t.mu.Unlock()
	defer t.running.Done()
	t.discoveryChanged()
	defer func() {
		t.mu.Lock()
		delete(t.ports, pt)
		t.mu.Unlock()
		t.discoveryChanged()
	}()
	for {
		nc, err := l.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			switch {
			case t.isClosed():
				return nil
			case errors.As(err, &temporary) && temporary.Temporary():
				// Out of file descriptors, say: connections that end make room.
				t.log.Error("cannot accept an NVMe/TCP connection", "error", err)
				select {
				case <-t.clock.After(tick):
				case <-t.stop:
				}
				continue
			}
			return capsule.Wrap(capsule.IO, err, "port %d", p.ID)
		}
		t.accept(pt, nc)
	}
}

func (t *Target) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// accept starts a connection, if there is room for it. Of those that have not
// said who they are the oldest gives way.
func (t *Target) accept(p *port, nc net.Conn) {
	t.mu.Lock()
	if t.closed || len(t.conns) >= t.o.MaxConns && len(t.halfOpen) == 0 {
		t.mu.Unlock()
		t.stats.refused.Add(1)
		nc.Close()
		return
	}
	var oldest *conn
	if len(t.halfOpen) >= t.o.MaxHalfOpen || len(t.conns) >= t.o.MaxConns {
		oldest = t.halfOpen[0]
		t.halfOpen = t.halfOpen[1:]
		delete(t.conns, oldest)
		t.stats.refused.Add(1)
	}
	c := newConn(t, p, nc)
	t.conns[c] = struct{}{}
	t.halfOpen = append(t.halfOpen, c)
	t.stats.accepted.Add(1)
	t.running.Add(1)
	t.mu.Unlock()
	if oldest != nil {
		oldest.close()
	}
	go func() {
		defer t.running.Done()
		c.serve()
	}()
}

// settled notes that a connection has said who it is.
func (t *Target) settled(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.halfOpen = slices.DeleteFunc(t.halfOpen, func(o *conn) bool { return o == c })
}

// lingers notes that a connection is about to end and has so long for it as a
// new one to begin.
func (t *Target) lingers(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.since = t.clock.Now()
	if _, ok := t.conns[c]; ok && !slices.Contains(t.halfOpen, c) {
		t.halfOpen = append(t.halfOpen, c)
	}
}

func (t *Target) connLeft(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
	t.halfOpen = slices.DeleteFunc(t.halfOpen, func(o *conn) bool { return o == c })
}

// flushSoon has another goroutine send what a connection has to send.
func (t *Target) flushSoon(c *conn) {
	t.running.Add(1)
	go func() {
		defer t.running.Done()
		c.flush()
	}()
}

// watch ends what is overdue: connections that do not say who they are, hosts
// that owe us data or do not take ours, controllers that are not kept alive.
func (t *Target) watch(next <-chan time.Time) {
	defer t.running.Done()
	for {
		select {
		case <-t.stop:
			return
		case <-next:
		}
		next = t.clock.After(tick)
		t.check(t.clock.Now())
	}
}

func (t *Target) check(now time.Time) {
	t.mu.Lock()
	conns := slices.Collect(maps.Keys(t.conns))
	var late []*conn
	for _, c := range t.halfOpen {
		if now.Sub(c.since) > t.o.HandshakeTimeout {
			late = append(late, c)
		}
	}
	subsystems := append(slices.Collect(maps.Values(t.subsystems)), t.discovery)
	t.mu.Unlock()
	for _, c := range late {
		t.log.Info("a connection took too long to say who it is", "remote", c.nc.RemoteAddr().String(), "port", c.port.ID)
		c.close()
	}
	for _, c := range conns {
		if c.stalled(now) {
			t.log.Warn("connection ended: the host neither sends nor takes data", "remote", c.nc.RemoteAddr().String(),
				"port", c.port.ID, "host", c.hostNQN(), "timeout", t.o.StallTimeout)
			c.close()
		}
	}
	for _, s := range subsystems {
		for _, ctrl := range s.list() {
			if ctrl.expired(now) {
				t.stats.keepAliveExpired.Add(1)
				ctrl.end("keep-alive timeout")
			}
		}
	}
}

// Close stops accepting, lets commands in flight finish and be answered until
// ctx ends, and closes all connections. It returns an error if commands did
// not finish; their devices must not be closed before they do.
func (t *Target) Close(ctx context.Context) error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.stop)
	}
	for p := range t.ports {
		p.l.Close()
	}
	conns := slices.Collect(maps.Keys(t.conns))
	t.mu.Unlock()
	for _, c := range conns {
		c.drain()
	}
	done := make(chan struct{})
	go func() {
		t.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	for _, c := range conns {
		c.close()
	}
	select {
	case <-done:
		return nil
	case <-time.After(closeGrace):
		return capsule.Errorf(capsule.Busy, "NVMe commands are still waiting for their devices")
	}
}

// closeGrace is how long goroutines have to see that their connection is gone.
const closeGrace = 5 * time.Second

func (t *Target) subsystem(nqn string) (*subsystem, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.subsystems[nqn]; s != nil {
		return s, nil
	}
	return nil, capsule.Errorf(capsule.NotFound, "there is no NVMe subsystem %s", nqn)
}

// AddSubsystem adds a subsystem; discovery controllers are told.
func (t *Target) AddSubsystem(s Subsystem) error {
	if err := s.check(); err != nil {
		return err
	}
	sub := newSubsystem(t, s)
	if err := sub.setHosts(s.AllowAnyHost, s.Hosts); err != nil {
		return err
	}
	t.mu.Lock()
	if t.subsystems[s.NQN] != nil {
		t.mu.Unlock()
		return capsule.Errorf(capsule.Exists, "there is an NVMe subsystem %s already", s.NQN)
	}
	t.subsystems[s.NQN] = sub
	t.mu.Unlock()
	t.discoveryChanged()
	return nil
}

// RemoveSubsystem ends a subsystem's controllers and removes it and its
// namespaces. When it returns their devices are not used any more.
func (t *Target) RemoveSubsystem(nqn string) error {
	s, err := t.subsystem(nqn)
	if err != nil {
		return err
	}
	t.mu.Lock()
	delete(t.subsystems, nqn)
	t.mu.Unlock()
	s.remove()
	t.discoveryChanged()
	return nil
}

// SetHosts changes who may connect. Controllers of hosts that no longer may,
// or whose secret is another one now, are ended.
func (t *Target) SetHosts(nqn string, allowAny bool, hosts []Host) error {
	s, err := t.subsystem(nqn)
	if err != nil {
		return err
	}
	if err := s.setHosts(allowAny, hosts); err != nil {
		return err
	}
	t.discoveryChanged()
	return nil
}

// SetPorts changes the ports at which hosts reach a subsystem; nil means all.
// Controllers that came through another one are ended.
func (t *Target) SetPorts(nqn string, ports []uint16) error {
	s, err := t.subsystem(nqn)
	if err != nil {
		return err
	}
	s.setPorts(ports)
	t.discoveryChanged()
	return nil
}

// AddNamespace adds a namespace; connected hosts are told.
func (t *Target) AddNamespace(nqn string, ns Namespace) error {
	s, err := t.subsystem(nqn)
	if err != nil {
		return err
	}
	return s.addNamespace(ns)
}

// RemoveNamespace removes a namespace; connected hosts are told. When it
// returns the device is not used any more.
func (t *Target) RemoveNamespace(nqn string, nsid uint32) error {
	s, err := t.subsystem(nqn)
	if err != nil {
		return err
	}
	return s.removeNamespace(nsid)
}

// Resized tells connected hosts that a namespace's device has another size.
func (t *Target) Resized(nqn string, nsid uint32) error {
	s, err := t.subsystem(nqn)
	if err != nil {
		return err
	}
	if s.namespace(nsid) == nil {
		return noNamespace(nqn, nsid)
	}
	s.namespaceChanged(nsid)
	return nil
}

// SetANA sets the access that a port gives to an ANA group of a subsystem;
// connected hosts are told. Every group is [Optimized] until then.
func (t *Target) SetANA(nqn string, port uint16, group uint32, state ANAState) error {
	s, err := t.subsystem(nqn)
	if err != nil {
		return err
	}
	return s.setANA(port, group, state)
}

// Disconnect ends a controller.
func (t *Target) Disconnect(nqn string, cntlid uint16) error {
	s := t.discovery
	if nqn != wire.DiscoveryNQN {
		var err error
		if s, err = t.subsystem(nqn); err != nil {
			return err
		}
	}
	c := s.controller(cntlid)
	if c == nil {
		return capsule.Errorf(capsule.NotFound, "subsystem %s has no controller %d", nqn, cntlid)
	}
	c.end("disconnected by the target's operator")
	return nil
}

// Controllers lists the controllers, by subsystem and number.
func (t *Target) Controllers() (list []ControllerInfo) {
	for _, s := range t.all() {
		for _, c := range s.list() {
			list = append(list, c.info())
		}
	}
	slices.SortFunc(list, func(a, b ControllerInfo) int {
		return cmp.Or(cmp.Compare(a.Subsystem, b.Subsystem), cmp.Compare(a.CNTLID, b.CNTLID))
	})
	return list
}

// all returns all subsystems.
func (t *Target) all() []*subsystem {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append(slices.Collect(maps.Values(t.subsystems)), t.discovery)
}

// targetStats are the counters of a target.
type targetStats struct {
	accepted, refused            atomic.Uint64
	protocolErrors, digestErrors atomic.Uint64
	keepAliveExpired             atomic.Uint64
	authFailures                 atomic.Uint64
	mediaErrors                  atomic.Uint64
	io                           ioStats
}
