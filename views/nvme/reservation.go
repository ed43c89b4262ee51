package nvme

import (
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

// maxRegistrants bounds the hosts that are registered with a namespace.
const maxRegistrants = 256

// hostID tells hosts apart in reservations.
type hostID = [16]byte

// reservations are a namespace's: who is registered, and who holds it (Base
// 8.19). They are guarded by the namespace's gate; a change takes it alone.
type reservations struct {
	generation  uint32
	persistent  bool // PTPL: they survive a power cut
	kind        uint8
	holder      hostID // of kinds with one holder
	registrants map[hostID]uint64
	saved       bool // the persister has something
}

// allRegistrants reports whether every registrant holds the reservation.
func (r *reservations) allRegistrants() bool {
	return r.kind == wire.ReservWriteExclusiveAll || r.kind == wire.ReservExclusiveAll
}

// registrantsOnly reports whether registrants have the rights of a holder.
func (r *reservations) registrantsOnly() bool {
	return r.kind == wire.ReservWriteExclusiveReg || r.kind == wire.ReservExclusiveReg || r.allRegistrants()
}

// holds reports whether a host holds the reservation.
func (r *reservations) holds(id hostID) bool {
	if r.kind == wire.ReservNone {
		return false
	}
	if r.allRegistrants() {
		_, ok := r.registrants[id]
		return ok
	}
	return r.holder == id
}

// allows reports whether a host may read or write (Base figure 431).
func (r *reservations) allows(id hostID, write bool) bool {
	switch r.kind {
	case wire.ReservNone:
		return true
	case wire.ReservWriteExclusive, wire.ReservWriteExclusiveReg, wire.ReservWriteExclusiveAll:
		if !write {
			return true
		}
	}
	if r.registrantsOnly() {
		_, ok := r.registrants[id]
		return ok
	}
	return r.holder == id
}

func (r *reservations) clone() reservations {
	c := *r
	c.registrants = maps.Clone(r.registrants)
	return c
}

// release ends the reservation.
func (r *reservations) release() { r.kind, r.holder = wire.ReservNone, hostID{} }

// unregister removes a registrant and what it held.
func (r *reservations) unregister(id hostID) {
	held := r.holds(id)
	delete(r.registrants, id)
	if held && (!r.allRegistrants() || len(r.registrants) == 0) {
		r.release()
	}
}

// savedReservations is how reservations are kept, as JSON.
type savedReservations struct {
	Version     int               `json:"version"`
	Generation  uint32            `json:"generation"`
	Type        uint8             `json:"type,omitempty"`
	Holder      string            `json:"holder,omitempty"`
	Registrants map[string]uint64 `json:"registrants"`
}

func (r *reservations) encode() ([]byte, error) {
	s := savedReservations{Version: 1, Generation: r.generation, Type: r.kind, Registrants: map[string]uint64{}}
	if r.kind != wire.ReservNone && !r.allRegistrants() {
		s.Holder = hex.EncodeToString(r.holder[:])
	}
	for id, key := range r.registrants {
		s.Registrants[hex.EncodeToString(id[:])] = key
	}
	return json.Marshal(s)
}

func (r *reservations) decode(p []byte) error {
	bad := func(why string, args ...any) error {
		return capsule.Errorf(capsule.Damaged, "saved reservations: "+why, args...)
	}
	var s savedReservations
	if err := json.Unmarshal(p, &s); err != nil {
		return bad("%v", err)
	}
	if s.Version != 1 || s.Type > wire.ReservExclusiveAll || len(s.Registrants) > maxRegistrants {
		return bad("version %d, type %d, %d registrants", s.Version, s.Type, len(s.Registrants))
	}
	id := func(text string) (id hostID, err error) {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != len(id) {
			return id, bad("%q is no host identifier", text)
		}
		return hostID(b), nil
	}
	*r = reservations{generation: s.Generation, persistent: true, kind: s.Type, registrants: map[hostID]uint64{}, saved: true}
	for text, key := range s.Registrants {
		h, err := id(text)
		if err != nil {
			return err
		}
		r.registrants[h] = key
	}
	if r.kind == wire.ReservNone {
		return nil
	}
	if r.allRegistrants() {
		if len(r.registrants) == 0 {
			return bad("held by nobody")
		}
		return nil
	}
	h, err := id(s.Holder)
	if err != nil {
		return err
	}
	if _, ok := r.registrants[h]; !ok {
		return bad("the holder is not registered")
	}
	r.holder = h
	return nil
}

// load reads what was saved.
func (r *reservations) load(s *subsystem, ns *namespace) error {
	r.registrants = map[hostID]uint64{}
	if s.t.o.Persister == nil {
		return nil
	}
	p, err := s.t.o.Persister.LoadReservations(s.NQN, ns.NSID)
	if err != nil {
		return capsule.Wrap(capsule.IO, err, "reservations of namespace %d of %s", ns.NSID, s.NQN)
	}
	if len(p) == 0 {
		return nil
	}
	return capsule.Wrap(capsule.Damaged, r.decode(p), "namespace %d of %s", ns.NSID, s.NQN)
}

// notice is what a host is told about reservations.
type notice struct {
	host hostID
	kind uint8
}

// changeReservations runs change on a copy of the namespace's reservations,
// with nobody reading or writing, and when it succeeds makes the copy durable
// and then the truth. Then it tells hosts.
func (cmd *command) changeReservations(change func(r *reservations, me hostID) (wire.Status, []notice)) (wire.Status, uint64) {
	ctrl := cmd.c.ctrl
	s, notices := cmd.ns.change(ctrl.s, func(r *reservations) (wire.Status, []notice) { return change(r, ctrl.hostID) })
	ctrl.s.tellReservations(cmd.ns.NSID, notices)
	return s, 0
}

func (ns *namespace) change(s *subsystem, change func(*reservations) (wire.Status, []notice)) (wire.Status, []notice) {
	ns.lockGate()
	defer ns.unlockGate()
	if ns.removed {
		return wire.InvalidNamespace | wire.DNR, nil
	}
	r := ns.resv.clone()
	status, notices := change(&r)
	if status != wire.Success {
		return status, nil
	}
	if err := r.save(s, ns); err != nil {
		s.t.log.Error("cannot save reservations", "subsystem", s.NQN, "namespace", ns.NSID, "error", err)
		return wire.InternalError, nil
	}
	ns.resv = r
	return wire.Success, notices
}

// save makes reservations durable if they are to be, and forgets what was
// saved if they are not.
func (r *reservations) save(s *subsystem, ns *namespace) error {
	p := s.t.o.Persister
	if p == nil || !r.persistent && !r.saved {
		return nil
	}
	var b []byte
	if r.persistent {
		var err error
		if b, err = r.encode(); err != nil {
			return err
		}
	}
	if err := p.SaveReservations(s.NQN, ns.NSID, b); err != nil {
		return err
	}
	r.saved = r.persistent
	return nil
}

// tellReservations tells hosts on all their controllers.
func (s *subsystem) tellReservations(nsid uint32, notices []notice) {
	if len(notices) == 0 {
		return
	}
	for _, c := range s.list() {
		for _, n := range notices {
			if c.hostID == n.host {
				c.reservationNotice(nsid, n.kind)
			}
		}
	}
}

// others makes a notice of a kind for all registrants but one.
func (r *reservations) others(me hostID, kind uint8) (list []notice) {
	for id := range r.registrants {
		if id != me {
			list = append(list, notice{id, kind})
		}
	}
	return list
}

// persist handles CPTPL, the change of persistence that a register asks for.
func (r *reservations) persist(cptpl uint32, possible bool) wire.Status {
	switch cptpl {
	case wire.ReservPersistNoChange:
	case wire.ReservPersistOff:
		r.persistent = false
	case wire.ReservPersistOn:
		if !possible {
			return wire.InvalidField | wire.DNR
		}
		r.persistent = true
	default:
		return wire.InvalidField | wire.DNR
	}
	return wire.Success
}

// reservRegister registers, unregisters or changes a key (Base 7.6).
func (cmd *command) reservRegister() (wire.Status, uint64) {
	dw := cmd.sqe.CDW(10)
	action, ignore, cptpl := dw&7, dw&wire.ReservIgnoreKey != 0, dw>>30
	current, key := le.Uint64(cmd.buf), le.Uint64(cmd.buf[8:])
	return cmd.changeReservations(func(r *reservations, me hostID) (wire.Status, []notice) {
		if s := r.persist(cptpl, cmd.c.t.o.Persister != nil); s != wire.Success {
			return s, nil
		}
		have, registered := r.registrants[me]
		conflict := wire.ReservationConflict | wire.DNR
		switch action {
		case wire.ReservActRegister:
			switch {
			case key == 0:
				return wire.InvalidField | wire.DNR, nil
			case registered && have != key:
				return conflict, nil
			case registered:
				return wire.Success, nil
			case len(r.registrants) >= maxRegistrants:
				return wire.InternalError | wire.DNR, nil
			}
			r.registrants[me] = key
		case wire.ReservActUnregister:
			if !registered || !ignore && have != current {
				return conflict, nil
			}
			only, held := r.registrantsOnly(), r.kind
			r.unregister(me)
			r.generation++
			if held != wire.ReservNone && r.kind == wire.ReservNone && only {
				return wire.Success, r.others(me, wire.ReservLogRelease)
			}
			return wire.Success, nil
		case wire.ReservActReplace:
			switch {
			case key == 0:
				return wire.InvalidField | wire.DNR, nil
			case !registered || !ignore && have != current:
				return conflict, nil
			}
			r.registrants[me] = key
		default:
			return wire.InvalidField | wire.DNR, nil
		}
		r.generation++
		return wire.Success, nil
	})
}

// reservAcquire acquires a reservation, or takes it and registrations from
// others (Base 7.5). A preempt needs nothing more to abort others' commands:
// those that have begun have ended when reservations change, and those that
// have not will find that they may not.
func (cmd *command) reservAcquire() (wire.Status, uint64) {
	dw := cmd.sqe.CDW(10)
	action, ignore, kind := dw&7, dw&wire.ReservIgnoreKey != 0, uint8(dw>>8)
	current, other := le.Uint64(cmd.buf), le.Uint64(cmd.buf[8:])
	invalid := wire.InvalidField | wire.DNR
	conflict := wire.ReservationConflict | wire.DNR
	return cmd.changeReservations(func(r *reservations, me hostID) (wire.Status, []notice) {
		if ignore || kind == wire.ReservNone || kind > wire.ReservExclusiveAll || action > wire.ReservActPreemptAbort {
			return invalid, nil
		}
		if have, ok := r.registrants[me]; !ok || have != current {
			return conflict, nil
		}
		if action == wire.ReservActAcquire {
			switch {
			case r.kind == wire.ReservNone:
				r.kind, r.holder = kind, me
			case !r.holds(me) || r.kind != kind:
				return conflict, nil
			}
			return wire.Success, nil
		}
		return r.preempt(me, other, kind)
	})
}

// preempt unregisters hosts by their key, and takes over the reservation if it
// was theirs (Base 8.19.6).
func (r *reservations) preempt(me hostID, key uint64, kind uint8) (wire.Status, []notice) {
	take := r.kind != wire.ReservNone && (r.allRegistrants() && key == 0 || !r.allRegistrants() && r.registrants[r.holder] == key)
	if key == 0 && !take {
		return wire.InvalidField | wire.DNR, nil
	}
	var notices []notice
	gone := 0
	before, only := *r, r.registrantsOnly()
	for id, k := range maps.Clone(r.registrants) {
		if k != key && key != 0 || id == me {
			continue
		}
		gone++
		notices = append(notices, notice{id, wire.ReservLogRegistration})
		if take && before.holds(id) {
			notices = append(notices, notice{id, wire.ReservLogPreempted})
		}
		delete(r.registrants, id)
	}
	if gone == 0 && !take {
		return wire.ReservationConflict | wire.DNR, nil
	}
	r.generation++
	if take {
		if only && kind != before.kind {
			notices = append(notices, r.others(me, wire.ReservLogRelease)...)
		}
		r.kind, r.holder = kind, me
	}
	return wire.Success, notices
}

// reservRelease releases the reservation, or clears all registrations (Base 7.7).
func (cmd *command) reservRelease() (wire.Status, uint64) {
	dw := cmd.sqe.CDW(10)
	action, ignore, kind := dw&7, dw&wire.ReservIgnoreKey != 0, uint8(dw>>8)
	current := le.Uint64(cmd.buf)
	return cmd.changeReservations(func(r *reservations, me hostID) (wire.Status, []notice) {
		if ignore || action > wire.ReservActClear {
			return wire.InvalidField | wire.DNR, nil
		}
		if have, ok := r.registrants[me]; !ok || have != current {
			return wire.ReservationConflict | wire.DNR, nil
		}
		if action == wire.ReservActClear {
			notices := r.others(me, wire.ReservLogPreempted)
			clear(r.registrants)
			r.release()
			r.generation++
			return wire.Success, notices
		}
		switch {
		case !r.holds(me):
			return wire.Success, nil // nothing of its own to release (Base 8.19.7)
		case r.kind != kind:
			return wire.InvalidField | wire.DNR, nil
		}
		only := r.registrantsOnly()
		r.release()
		if only {
			return wire.Success, r.others(me, wire.ReservLogRelease)
		}
		return wire.Success, nil
	})
}

func (cmd *command) reservReportLength() (int, wire.Status) {
	n := (uint64(cmd.sqe.CDW(10)) + 1) * 4
	if n > uint64(cmd.c.t.o.MaxTransfer) {
		return 0, wire.InvalidField | wire.DNR
	}
	if cmd.sqe.CDW(11)&1 == 0 {
		return 0, wire.HostIDInconsistent | wire.DNR // host identifiers have 128 bits
	}
	return int(n), wire.Success
}

// reservReport tells who is registered and who holds the reservation (Base 7.8).
func (cmd *command) reservReport() (wire.Status, uint64) {
	controllers := map[hostID]uint16{}
	for _, c := range cmd.c.ctrl.s.list() {
		if old, ok := controllers[c.hostID]; !ok || c.id < old {
			controllers[c.hostID] = c.id
		}
	}
	ns := cmd.ns
	ns.gate.RLock()
	defer ns.gate.RUnlock()
	if ns.removed {
		return wire.InvalidNamespace | wire.DNR, 0
	}
	st := wire.ReservStatus{Generation: ns.resv.generation, Type: ns.resv.kind}
	if ns.resv.persistent {
		st.PTPLS = 1
	}
	for id, key := range ns.resv.registrants {
		r := wire.Registrant{CNTLID: wire.DynamicCNTLID, Holder: ns.resv.holds(id), HostID: id, Key: key}
		if c, ok := controllers[id]; ok {
			r.CNTLID = c
		}
		st.Registrants = append(st.Registrants, r)
	}
	slices.SortFunc(st.Registrants, func(a, b wire.Registrant) int { return slices.Compare(a.HostID[:], b.HostID[:]) })
	clear(cmd.buf)
	copy(cmd.buf, wire.AppendReservStatus(nil, st, true))
	return wire.Success, 0
}

// setPersistence is the reservation persistence feature (Base 5.27.1.26).
func (ns *namespace) setPersistence(c *controller, on bool) wire.Status {
	s, _ := ns.change(c.s, func(r *reservations) (wire.Status, []notice) {
		if on && c.s.t.o.Persister == nil {
			return wire.InvalidField | wire.DNR, nil
		}
		r.persistent = on
		return wire.Success, nil
	})
	return s
}

func (ns *namespace) persistence() uint64 {
	ns.gate.RLock()
	defer ns.gate.RUnlock()
	if ns.resv.persistent {
		return 1
	}
	return 0
}

// setReservMask is the reservation notification mask feature (Base
// 5.27.1.25): which notices a host does not want.
func (c *controller) setReservMask(nsid, mask uint32) wire.Status {
	ids := []uint32{nsid}
	if nsid == wire.BroadcastNSID {
		ids = c.s.nsids(0)
	} else if c.s.namespace(nsid) == nil {
		return wire.InvalidNamespace | wire.DNR
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		c.features.resvMask[id] = mask
	}
	return wire.Success
}
