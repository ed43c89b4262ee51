package nvme

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/wire"
)

const (
	defaultModel = "SPACE volume"
	// maxCNTLID is the largest controller ID we give out (Base 6.3: to FFEFh).
	maxCNTLID = wire.StaticCNTLIDMax
	// maxNamespaces bounds the namespaces of a subsystem to what one list holds.
	maxNamespaces = 1024
	// maxANAGroup is ANAGRPMAX.
	maxANAGroup = 128
	// lockStripes is how many ranges of a namespace can be locked apart.
	lockStripes = 64
	// deviceAtom is the aligned range in which reads and writes of a device
	// are atomic to each other.
	deviceAtom = 64 << 10
	// quickDevice is how fast a device has to be lately so that readers do
	// small operations themselves.
	quickDevice = 100 * time.Microsecond
)

// subsystem is a subsystem or the discovery service.
type subsystem struct {
	t *Target
	Subsystem
	discovery bool

	// Read by every command, replaced as a whole under mu.
	namespaces atomic.Pointer[map[uint32]*namespace]
	ana        atomic.Pointer[map[anaKey]ANAState] // what is not optimized

	mu          sync.Mutex
	removed     bool
	allowAny    bool
	hosts       map[string]host
	ports       []uint16 // as Subsystem.Ports
	controllers map[uint16]*controller
	nextID      uint16
	lingering   map[*conn]string // closed connections with commands at devices, and their hosts
	anaChange   uint64
	anaChanges  map[uint32]uint64 // by group
}

// anaKey is an ANA group at a port.
type anaKey struct {
	port  uint16
	group uint32
}

type host struct {
	Host
	secret, ctrlSecret dhchap.Secret
}

// namespace is a namespace and what is going on with it.
type namespace struct {
	Namespace
	shift     uint // log 2 of the block size
	workers   workers
	latency   atomic.Int64 // of small operations lately, ns
	exclusive atomic.Int32 // who holds or waits for the gate alone

	// gate is held by every command from the check of what it may do to the
	// end of what it does, and alone by who changes reservations, compares
	// and writes, or removes the namespace: after a change of reservations no
	// write goes on that they forbid.
	gate    sync.RWMutex
	removed bool
	resv    reservations

	stripes [lockStripes]sync.RWMutex
}

func (s Subsystem) check() error {
	switch {
	case !wire.ValidNQN(s.NQN) || s.NQN == wire.DiscoveryNQN:
		return capsule.Errorf(capsule.Invalid, "%q is no name for an NVMe subsystem: nqn.yyyy-mm.reverse.domain:name", s.NQN)
	case !isASCII(s.Serial, 20) || s.Serial == "":
		return capsule.Errorf(capsule.Invalid, "a serial number has 1 to 20 characters of ASCII, not %q", s.Serial)
	case !isASCII(s.Model, 40):
		return capsule.Errorf(capsule.Invalid, "a model has up to 40 characters of ASCII, not %q", s.Model)
	}
	return nil
}

func isASCII(s string, n int) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= n
}

func newSubsystem(t *Target, s Subsystem) *subsystem {
	if s.Model == "" {
		s.Model = defaultModel
	}
	sub := &subsystem{t: t, Subsystem: s, allowAny: s.AllowAnyHost, ports: s.Ports, controllers: map[uint16]*controller{},
		lingering: map[*conn]string{}, anaChanges: map[uint32]uint64{}, nextID: 1}
	sub.namespaces.Store(&map[uint32]*namespace{})
	return sub
}

// setHosts changes who may connect.
func (s *subsystem) setHosts(allowAny bool, list []Host) error {
	hosts := map[string]host{}
	for _, h := range list {
		if !wire.ValidNQN(h.NQN) {
			return capsule.Errorf(capsule.Invalid, "%q is no host's NQN", h.NQN)
		}
		x := host{Host: h}
		var err error
		if h.Secret != "" {
			if x.secret, err = dhchap.ParseSecret(h.Secret); err != nil {
				return capsule.Wrap(capsule.Invalid, err, "the secret of host %s", h.NQN)
			}
		}
		if h.CtrlSecret != "" {
			if h.Secret == "" {
				return capsule.Errorf(capsule.Invalid, "host %s has a secret for the controller and none for itself", h.NQN)
			}
			if x.ctrlSecret, err = dhchap.ParseSecret(h.CtrlSecret); err != nil {
				return capsule.Wrap(capsule.Invalid, err, "the controller's secret for host %s", h.NQN)
			}
		}
		hosts[h.NQN] = x
	}
	s.mu.Lock()
	old := s.hosts
	s.allowAny, s.hosts = allowAny, hosts
	var out []*controller
	for _, c := range s.controllers {
		now, listed := hosts[c.hostNQN]
		if !listed && !allowAny || now.Host != old[c.hostNQN].Host && now.Secret != "" {
			out = append(out, c)
		}
	}
	s.mu.Unlock()
	for _, c := range out {
		c.end("the host may not connect any more, or has another secret")
	}
	return nil
}

// setPorts changes where hosts reach the subsystem.
func (s *subsystem) setPorts(ports []uint16) {
	s.mu.Lock()
	s.ports = ports
	var out []*controller
	for _, c := range s.controllers {
		if ports != nil && !slices.Contains(ports, c.port.ID) {
			out = append(out, c)
		}
	}
	s.mu.Unlock()
	for _, c := range out {
		c.end("the subsystem cannot be reached at this port any more")
	}
}

// at reports whether hosts reach the subsystem at a port.
func (s *subsystem) at(p Port) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !p.DiscoveryOnly && (s.ports == nil || slices.Contains(s.ports, p.ID))
}

// admits returns what a host needs to connect.
func (s *subsystem) admits(nqn string) (h host, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok = s.hosts[nqn]
	return h, ok || s.allowAny
}

func noNamespace(nqn string, nsid uint32) error {
	return capsule.Errorf(capsule.NotFound, "NVMe subsystem %s has no namespace %d", nqn, nsid)
}

func (s *subsystem) namespace(nsid uint32) *namespace { return (*s.namespaces.Load())[nsid] }

// nsids returns the namespaces above after, in order.
func (s *subsystem) nsids(after uint32) []uint32 {
	var ids []uint32
	for id := range *s.namespaces.Load() {
		if id > after {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (s *subsystem) addNamespace(n Namespace) error {
	if n.ANAGroup == 0 {
		n.ANAGroup = 1
	}
	if n.NSID == 0 || n.NSID > MaxNSID || n.Device == nil {
		return capsule.Errorf(capsule.Invalid, "a namespace needs a number from 1 to %d and a device", MaxNSID)
	}
	if n.ANAGroup > maxANAGroup {
		return capsule.Errorf(capsule.Invalid, "ANA groups go from 1 to %d", maxANAGroup)
	}
	block := n.Device.BlockSize()
	if block != 512 && block != 4096 {
		return capsule.Errorf(capsule.Invalid, "blocks of a namespace may have 512 or 4096 bytes, not %d", block)
	}
	ns := &namespace{Namespace: n, shift: uint(bits.TrailingZeros(uint(block))), workers: workers{limit: s.t.o.Workers}}
	if err := ns.resv.load(s, ns); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.namespaces.Load()
	switch {
	case s.removed:
		return capsule.Errorf(capsule.NotFound, "there is no NVMe subsystem %s", s.NQN)
	case old[n.NSID] != nil:
		return capsule.Errorf(capsule.Exists, "NVMe subsystem %s has a namespace %d already", s.NQN, n.NSID)
	}
	m := maps.Clone(old)
	m[n.NSID] = ns
	s.namespaces.Store(&m)
	s.tellNamespace(n.NSID)
	return nil
}

func (s *subsystem) removeNamespace(nsid uint32) error {
	s.mu.Lock()
	ns := s.namespace(nsid)
	if ns == nil {
		s.mu.Unlock()
		return noNamespace(s.NQN, nsid)
	}
	m := maps.Clone(*s.namespaces.Load())
	delete(m, nsid)
	s.namespaces.Store(&m)
	s.tellNamespace(nsid)
	s.mu.Unlock()
	ns.remove()
	return nil
}

// remove waits until nobody uses the device any more.
func (ns *namespace) remove() {
	ns.lockGate()
	defer ns.unlockGate()
	ns.removed = true
}

func (ns *namespace) lockGate() {
	ns.exclusive.Add(1)
	ns.gate.Lock()
}

func (ns *namespace) unlockGate() {
	ns.gate.Unlock()
	ns.exclusive.Add(-1)
}

// namespaceChanged tells hosts that a namespace is not what it was.
func (s *subsystem) namespaceChanged(nsid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tellNamespace(nsid)
}

// tellNamespace is for who holds s.mu.
func (s *subsystem) tellNamespace(nsid uint32) {
	for _, c := range s.controllers {
		c.namespaceChanged(nsid)
	}
}

func (s *subsystem) setANA(port uint16, group uint32, state ANAState) error {
	switch state {
	case Optimized, NonOptimized, Inaccessible, Lost, Changing:
	default:
		return capsule.Errorf(capsule.Invalid, "there is no ANA state %d", state)
	}
	if group == 0 || group > maxANAGroup {
		return capsule.Errorf(capsule.Invalid, "ANA groups go from 1 to %d", maxANAGroup)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := map[anaKey]ANAState{}
	if old := s.ana.Load(); old != nil {
		maps.Copy(m, *old)
	}
	key := anaKey{port, group}
	if before := m[key]; before == state || before == 0 && state == Optimized {
		return nil
	}
	if m[key] = state; state == Optimized {
		delete(m, key)
	}
	if len(m) == 0 {
		s.ana.Store(nil)
	} else {
		s.ana.Store(&m)
	}
	s.anaChange++
	s.anaChanges[group] = s.anaChange
	for _, c := range s.controllers {
		if c.port.ID == port {
			c.event(eventANA)
		}
	}
	return nil
}

// anaState returns the access that a port gives to a group.
func (s *subsystem) anaState(port uint16, group uint32) ANAState {
	if m := s.ana.Load(); m != nil {
		if state, ok := (*m)[anaKey{port, group}]; ok {
			return state
		}
	}
	return Optimized
}

// anaGroups returns the groups that have namespaces, as a port gives them.
func (s *subsystem) anaGroups(port uint16) (change uint64, groups []wire.ANAGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	byGroup := map[uint32][]uint32{}
	for id, ns := range *s.namespaces.Load() {
		byGroup[ns.ANAGroup] = append(byGroup[ns.ANAGroup], id)
	}
	for _, g := range slices.Sorted(maps.Keys(byGroup)) {
		slices.Sort(byGroup[g])
		groups = append(groups, wire.ANAGroup{ID: g, Change: s.anaChanges[g], State: s.anaState(port, g), NSIDs: byGroup[g]})
	}
	return s.anaChange, groups
}

// controllerIDs returns the controllers' IDs, in order.
func (s *subsystem) controllerIDs() []uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.controllers))
}

// list returns the controllers.
func (s *subsystem) list() []*controller {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.controllers))
}

func (s *subsystem) controller(id uint16) *controller {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.controllers[id]
}

// newID returns a controller ID that has been out of use longest, so that a
// host that is late with a connect does not find somebody else's controller.
// Callers hold s.mu and have checked that there is one.
func (s *subsystem) newID() uint16 {
	for {
		id := s.nextID
		if s.nextID++; s.nextID > maxCNTLID {
			s.nextID = 1
		}
		if s.controllers[id] == nil {
			return id
		}
	}
}

// remove ends all controllers and waits until no device is used any more.
func (s *subsystem) remove() {
	s.mu.Lock()
	s.removed = true
	all := *s.namespaces.Load()
	s.namespaces.Store(&map[uint32]*namespace{})
	s.mu.Unlock()
	for _, c := range s.list() {
		c.end("the subsystem was removed")
	}
	for _, ns := range all {
		ns.remove()
	}
}

// linger notes a closed connection, if it still has commands at devices.
func (s *subsystem) linger(c *conn, hostNQN string) {
	select {
	case <-c.idle:
		return
	default:
	}
	s.mu.Lock()
	_, known := s.lingering[c]
	s.lingering[c] = hostNQN
	s.mu.Unlock()
	if known {
		return
	}
	s.t.running.Add(1)
	go func() {
		defer s.t.running.Done()
		<-c.idle
		s.mu.Lock()
		delete(s.lingering, c)
		s.mu.Unlock()
	}()
}

// awaitLingering waits until a host's commands on connections that are gone
// have ended: before it sends them again, or others that build on them, to a
// new controller. It reports false if the waiting connection ended first.
func (s *subsystem) awaitLingering(c *conn, hostNQN string) bool {
	s.mu.Lock()
	var wait []*conn
	for old, nqn := range s.lingering {
		if nqn == hostNQN {
			wait = append(wait, old)
		}
	}
	for _, ctrl := range s.controllers { // one whose reader has not yet seen that it is closed does not linger yet
		if ctrl.hostNQN == hostNQN {
			wait = append(wait, ctrl.closedQueues()...)
		}
	}
	s.mu.Unlock()
	for _, old := range wait {
		select {
		case <-old.idle:
		case <-c.done:
			return false
		}
	}
	return true
}

// quick reports whether small operations are done at once lately.
func (ns *namespace) quick() bool {
	return ns.latency.Load() < int64(quickDevice) && ns.exclusive.Load() == 0
}

// took notes how long a small operation took. That two at once lose one
// measurement does not matter.
func (ns *namespace) took(d time.Duration) {
	old := ns.latency.Load()
	ns.latency.Store(old + (int64(d)-old)/8)
}

// blocks returns the size in blocks.
func (ns *namespace) blocks() uint64 { return uint64(ns.Device.Size()) >> ns.shift }

// readOnly reports whether writes are refused.
func (ns *namespace) readOnly() bool { return ns.ReadOnly || ns.Device.ReadOnly() }

// atomicBlocks is up to how many blocks a write is whole or not there.
func (ns *namespace) atomicBlocks(limit int) int {
	return max(min(ns.AtomicWrite, limit)>>ns.shift, 1)
}

// lockRange makes reads and writes that are larger than what the device does
// in one atomic to each other. Stripes are locked in order.
func (ns *namespace) lockRange(off int64, n int, write bool) (unlock func()) {
	first, last := off/deviceAtom, (off+int64(n)-1)/deviceAtom
	if first == last {
		return func() {}
	}
	var set uint64
	if last-first >= lockStripes-1 {
		set = ^uint64(0)
	} else {
		for i := first; i <= last; i++ {
			set |= 1 << (i % lockStripes)
		}
	}
	for rest := set; rest != 0; rest &= rest - 1 {
		if m := &ns.stripes[bits.TrailingZeros64(rest)]; write {
			m.Lock()
		} else {
			m.RLock()
		}
	}
	return func() {
		for rest := set; rest != 0; rest &= rest - 1 {
			if m := &ns.stripes[bits.TrailingZeros64(rest)]; write {
				m.Unlock()
			} else {
				m.RUnlock()
			}
		}
	}
}

func (ns *namespace) String() string { return fmt.Sprintf("namespace %d", ns.NSID) }
