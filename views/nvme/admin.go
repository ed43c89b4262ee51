package nvme

import (
	"encoding/binary"
	"time"

	"github.com/spacestore/space/views/nvme/wire"
)

var le = binary.LittleEndian

// The admin commands (Base 5, figure 138). Discovery controllers have the same,
// with fewer log pages, features and structures (Base 4.5).
var adminOps map[uint8]*operation

// persistFeature is set features where it has to be durable.
var persistFeature = &operation{run: (*command).setFeatures, dir: toController, length: (*command).setFeaturesLength, device: true}

func init() { // since the effects log is made of the tables
	adminOps = map[uint8]*operation{
		wire.OpIdentify:    {run: (*command).identify, dir: toHost, length: func(*command) (int, wire.Status) { return wire.IdentifyLen, wire.Success }},
		wire.OpGetLogPage:  {run: (*command).logPage, dir: toHost, length: (*command).logPageLength},
		wire.OpSetFeatures: {run: (*command).setFeatures, dir: toController, length: (*command).setFeaturesLength},
		wire.OpGetFeatures: {run: (*command).getFeatures, dir: toHost, length: (*command).getFeaturesLength},
		wire.OpAsyncEvent:  {run: (*command).asyncEvent},
		wire.OpAbort:       {run: (*command).abortCommand},
		wire.OpKeepAlive:   {run: func(*command) (wire.Status, uint64) { return wire.Success, 0 }},
	}
}

// adminOp finds what an admin command is to do.
func (c *controller) adminOp(sqe *wire.SQE) *operation {
	if sqe.Opcode() == wire.OpSetFeatures && uint8(sqe.CDW(10)) == wire.FeatReservPersist {
		return persistFeature
	}
	return adminOps[sqe.Opcode()]
}

// abortCommand aborts a command that has not begun (Base 5.1). The result's
// lowest bit says that it was not.
func (cmd *command) abortCommand() (wire.Status, uint64) {
	c := cmd.c.ctrl
	qid, cid := uint16(cmd.sqe.CDW(10)), uint16(cmd.sqe.CDW(10)>>16)
	if qid == 0 {
		if c.abortAsyncEvent(cid) || c.admin.abort(cid) {
			return wire.Success, 0
		}
		return wire.Success, 1
	}
	c.mu.Lock()
	q := c.queues[qid]
	c.mu.Unlock()
	if q == nil {
		return wire.InvalidField | wire.DNR, 0
	}
	if q.abort(cid) {
		return wire.Success, 0
	}
	return wire.Success, 1
}

// features are a controller's (Base 5.27.1).
type features struct {
	arbitration  uint32
	power        uint32
	temperature  map[uint32]uint32 // threshold by sensor and type
	recovery     uint32
	atomicity    uint32
	asyncEvents  uint32
	timestamp    uint64 // milliseconds, when it was set
	timestampAt  time.Time
	timestampSet bool
	queues       uint32
	resvMask     map[uint32]uint32
	writeCache   uint32
}

// defaultTemperature is the over temperature threshold, the under one being 0.
const defaultTemperature = 353 // kelvin

func defaultFeatures() features {
	return features{writeCache: 1, temperature: map[uint32]uint32{}, resvMask: map[uint32]uint32{}}
}

// feature describes a feature.
type feature struct {
	changeable   bool
	perNamespace bool
	data         int  // bytes of data that go with it
	discovery    bool // of discovery controllers too
	io           bool // of I/O controllers; all but those for discovery alone
}

var featureTable = map[uint8]feature{
	wire.FeatArbitration:    {changeable: true, io: true},
	wire.FeatPower:          {changeable: true, io: true},
	wire.FeatTemperature:    {changeable: true, io: true},
	wire.FeatErrorRecovery:  {changeable: true, io: true, perNamespace: true},
	wire.FeatWriteCache:     {changeable: true, io: true},
	wire.FeatQueues:         {changeable: true, io: true},
	wire.FeatWriteAtomicity: {changeable: true, io: true},
	wire.FeatAsyncEvents:    {changeable: true, io: true, discovery: true},
	wire.FeatTimestamp:      {changeable: true, io: true, data: 8},
	wire.FeatKATO:           {changeable: true, io: true, discovery: true},
	wire.FeatHostID:         {io: true, discovery: true, data: 16},
	wire.FeatReservMask:     {changeable: true, io: true, perNamespace: true},
	wire.FeatReservPersist:  {changeable: true, io: true, perNamespace: true},
	wire.FeatWriteProtect:   {io: true, perNamespace: true},
}

func (cmd *command) feature() (id uint8, f feature, ok bool) {
	id = uint8(cmd.sqe.CDW(10))
	f, ok = featureTable[id]
	if cmd.c.ctrl.s.discovery {
		ok = ok && f.discovery
	} else {
		ok = ok && f.io
	}
	return id, f, ok
}

func (cmd *command) setFeaturesLength() (int, wire.Status) {
	_, f, ok := cmd.feature()
	if !ok {
		return 0, wire.InvalidField | wire.DNR
	}
	if !f.changeable {
		return 0, wire.FeatureNotChangeable | wire.DNR
	}
	if cmd.sqe.CDW(10)&wire.FeatureSaveBit != 0 {
		return 0, wire.FeatureNotSaveable | wire.DNR
	}
	if nsid := cmd.sqe.NSID(); !f.perNamespace && nsid != 0 && nsid != wire.BroadcastNSID {
		return 0, wire.FeatureNotNamespace | wire.DNR
	}
	return f.data, wire.Success
}

func (cmd *command) getFeaturesLength() (int, wire.Status) {
	_, f, ok := cmd.feature()
	if !ok {
		return 0, wire.InvalidField | wire.DNR
	}
	if cmd.sqe.CDW(10)>>8&7 == wire.FeatureSelSupported {
		return 0, wire.Success
	}
	return f.data, wire.Success
}

// setFeatures sets a feature (Base 5.27).
func (cmd *command) setFeatures() (wire.Status, uint64) {
	c := cmd.c.ctrl
	id := uint8(cmd.sqe.CDW(10))
	v := cmd.sqe.CDW(11)
	switch id {
	case wire.FeatReservMask:
		return c.setReservMask(cmd.sqe.NSID(), v), 0
	case wire.FeatReservPersist:
		ns := c.s.namespace(cmd.sqe.NSID())
		if ns == nil {
			return wire.InvalidNamespace | wire.DNR, 0
		}
		return ns.setPersistence(c, v&1 != 0), 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &c.features
	switch id {
	case wire.FeatArbitration:
		f.arbitration = v
	case wire.FeatPower:
		if v&0x1f != 0 {
			return wire.InvalidField | wire.DNR, 0 // there is one power state
		}
		f.power = v
	case wire.FeatTemperature:
		if v>>20&3 > 1 || v>>16&15 != 0 && v>>16&15 != 15 {
			return wire.InvalidField | wire.DNR, 0
		}
		f.temperature[v>>20&3] = v & 0xffff
	case wire.FeatErrorRecovery:
		f.recovery = v & 0xffff // time-limited recovery; deallocated blocks never fail
	case wire.FeatWriteCache:
		if v&1 == 0 {
			// Without it every write would have to be durable when it is
			// answered; hosts that want that use FUA.
			return wire.FeatureNotChangeable | wire.DNR, 0
		}
	case wire.FeatQueues:
		if len(c.queues) > 0 {
			return wire.CommandSequenceError | wire.DNR, 0
		}
		if v&0xffff == 0xffff || v>>16 == 0xffff {
			return wire.InvalidField | wire.DNR, 0
		}
		n := uint32(c.s.t.o.MaxIOQueues - 1)
		f.queues = min(v&0xffff, n) | min(v>>16, n)<<16
		return wire.Success, uint64(f.queues)
	case wire.FeatWriteAtomicity:
		f.atomicity = v & 1
	case wire.FeatAsyncEvents:
		f.asyncEvents = v
		c.events.enabled = v
	case wire.FeatTimestamp:
		f.timestamp = le.Uint64(append(append(make([]byte, 0, 8), cmd.buf[:6]...), 0, 0))
		f.timestampAt, f.timestampSet = c.s.t.clock.Now(), true
	case wire.FeatKATO:
		c.kato = v
		c.lastSeen = c.s.t.clock.Now()
	default:
		return wire.InvalidField | wire.DNR, 0
	}
	return wire.Success, 0
}

// getFeatures reads a feature (Base 5.15).
func (cmd *command) getFeatures() (wire.Status, uint64) {
	c := cmd.c.ctrl
	id, desc, _ := cmd.feature()
	sel := cmd.sqe.CDW(10) >> 8 & 7
	switch sel {
	case wire.FeatureSelSupported:
		var caps uint64
		if desc.changeable {
			caps |= wire.FeatureChangeable
		}
		if desc.perNamespace {
			caps |= wire.FeaturePerNamespace
		}
		return wire.Success, caps
	case wire.FeatureSelCurrent, wire.FeatureSelDefault, wire.FeatureSelSaved:
	default:
		return wire.InvalidField | wire.DNR, 0
	}
	switch id {
	case wire.FeatReservMask, wire.FeatReservPersist, wire.FeatWriteProtect:
		ns := c.s.namespace(cmd.sqe.NSID())
		if ns == nil {
			return wire.InvalidNamespace | wire.DNR, 0
		}
		switch {
		case id == wire.FeatReservMask:
			c.mu.Lock()
			defer c.mu.Unlock()
			return wire.Success, uint64(c.features.resvMask[ns.NSID])
		case id == wire.FeatReservPersist:
			return wire.Success, ns.persistence()
		case ns.readOnly():
			return wire.Success, wire.WriteProtectPermanent
		}
		return wire.Success, wire.WriteProtectNone
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.features
	if sel != wire.FeatureSelCurrent {
		f = defaultFeatures()
	}
	switch id {
	case wire.FeatArbitration:
		return wire.Success, uint64(f.arbitration)
	case wire.FeatPower:
		return wire.Success, uint64(f.power)
	case wire.FeatTemperature:
		kind := cmd.sqe.CDW(11) >> 20 & 3
		if v, ok := f.temperature[kind]; ok {
			return wire.Success, uint64(v)
		}
		if kind == 0 {
			return wire.Success, defaultTemperature
		}
		return wire.Success, 0
	case wire.FeatErrorRecovery:
		return wire.Success, uint64(f.recovery)
	case wire.FeatWriteCache:
		return wire.Success, uint64(f.writeCache)
	case wire.FeatQueues:
		n := uint64(c.s.t.o.MaxIOQueues - 1)
		if sel == wire.FeatureSelCurrent && f.queues != 0 {
			return wire.Success, uint64(f.queues)
		}
		return wire.Success, n | n<<16
	case wire.FeatWriteAtomicity:
		return wire.Success, uint64(f.atomicity)
	case wire.FeatAsyncEvents:
		return wire.Success, uint64(f.asyncEvents)
	case wire.FeatTimestamp:
		ms := uint64(c.s.t.clock.Now().Sub(c.since).Milliseconds())
		var origin byte
		if f.timestampSet {
			ms = f.timestamp + uint64(c.s.t.clock.Now().Sub(f.timestampAt).Milliseconds())
			origin = 1 << 1
		}
		le.PutUint64(cmd.buf, ms&(1<<48-1)|uint64(origin)<<48)
		return wire.Success, 0
	case wire.FeatKATO:
		return wire.Success, uint64(c.kato)
	case wire.FeatHostID:
		if cmd.sqe.CDW(11)&1 == 0 {
			return wire.HostIDInconsistent | wire.DNR, 0 // over fabrics it has 128 bits
		}
		copy(cmd.buf, c.hostID[:])
		return wire.Success, 0
	}
	return wire.InvalidField | wire.DNR, 0
}
