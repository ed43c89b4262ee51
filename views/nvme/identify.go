package nvme

import (
	"math/bits"

	"github.com/spacestore/space/views/nvme/wire"
)

// firmware is FR: what we speak, since hosts show it.
const firmware = "1.0"

// identify describes the controller and its namespaces (Base 5.17). cmd.buf is
// all zeroes.
func (cmd *command) identify() (wire.Status, uint64) {
	c := cmd.c.ctrl
	s := c.s
	cns, csi := uint8(cmd.sqe.CDW(10)), uint8(cmd.sqe.CDW(11)>>24)
	nsid := cmd.sqe.NSID()
	out := cmd.buf[:0]
	if cns == wire.CNSController {
		c.describe().Append(out)
		return wire.Success, 0
	}
	if s.discovery {
		return wire.InvalidField | wire.DNR, 0
	}
	switch cns {
	case wire.CNSNamespaceCSI, wire.CNSControllerCSI, wire.CNSActiveCSI, wire.CNSAllocatedCSI, wire.CNSNamespaceAllocCSI:
		if csi != 0 {
			return wire.InvalidField | wire.DNR, 0 // the NVM command set alone
		}
	}
	switch cns {
	case wire.CNSNamespace, wire.CNSNamespaceAllocated, wire.CNSNamespaceCSI, wire.CNSNamespaceAllocCSI, wire.CNSNamespaceCommon, wire.CNSDescriptors:
		ns := s.namespace(nsid)
		switch {
		case nsid == wire.BroadcastNSID && cns == wire.CNSNamespace:
			// What all namespaces have in common: not their sizes.
			d := wire.IdentifyNamespace{LBADataSize: 9}
			d.Append(out)
			return wire.Success, 0
		case nsid == 0 || nsid > MaxNSID:
			return wire.InvalidNamespace | wire.DNR, 0
		case ns == nil && cns == wire.CNSDescriptors:
			return wire.InvalidNamespace | wire.DNR, 0
		case ns == nil:
			return wire.Success, 0 // inactive: all zeroes (Base 3.2.1.5)
		}
		switch cns {
		case wire.CNSNamespace, wire.CNSNamespaceAllocated:
			c.describeNamespace(ns).Append(out)
		case wire.CNSNamespaceCommon:
			d := wire.IdentifyNamespaceCommon{NSFeat: 0, NMIC: wire.NMICShared, RESCap: c.reservCap(), ANAGrpID: ns.ANAGroup, NStat: 1}
			if ns.readOnly() {
				d.NSAttr = wire.NSAttrWriteProtect
			}
			d.Append(out)
		case wire.CNSDescriptors:
			appendDescriptors(out, ns)
		}
		// CNS 05h and 1Bh have only zeroes for namespaces without metadata.
	case wire.CNSActiveNamespaces, wire.CNSActiveCSI, wire.CNSAllocated, wire.CNSAllocatedCSI:
		if nsid >= wire.BroadcastNSID-1 {
			return wire.InvalidNamespace | wire.DNR, 0
		}
		for i, id := range s.nsids(nsid) {
			if i == wire.IdentifyLen/4 {
				break
			}
			le.PutUint32(cmd.buf[4*i:], id)
		}
	case wire.CNSControllerCSI:
		// All zeroes: write zeroes, verify and dataset management have no limits.
	case wire.CNSControllersOf, wire.CNSControllers:
		if cns == wire.CNSControllersOf && s.namespace(nsid) == nil {
			return wire.InvalidNamespace | wire.DNR, 0
		}
		from := uint16(cmd.sqe.CDW(10) >> 16)
		n := 0
		for _, id := range s.controllerIDs() {
			if id >= from && n < wire.IdentifyLen/2-1 {
				n++
				le.PutUint16(cmd.buf[2*n:], id)
			}
		}
		le.PutUint16(cmd.buf, uint16(n))
	case wire.CNSCommandSets:
		if from := uint16(cmd.sqe.CDW(10) >> 16); from != wire.DynamicCNTLID && from != c.id && from != 0 {
			return wire.InvalidControllerID | wire.DNR, 0
		}
		le.PutUint64(cmd.buf, 1) // combination 0: the NVM command set
	default:
		return wire.InvalidField | wire.DNR, 0
	}
	return wire.Success, 0
}

// MaxNSID is NN, the largest number that a namespace may have. Some hosts go
// through all numbers.
const MaxNSID = maxNamespaces

// reservCap returns RESCAP: all types, and persistence if there is who keeps them.
func (c *controller) reservCap() uint8 {
	if c.s.t.o.Persister == nil {
		return wire.ReservCapAll &^ 1
	}
	return wire.ReservCapAll
}

// appendDescriptors appends a namespace's identifiers.
func appendDescriptors(b []byte, ns *namespace) {
	if ns.NGUID != [16]byte{} {
		b = wire.AppendDescriptor(b, wire.Descriptor{Type: wire.DescriptorNGUID, Value: ns.NGUID[:]})
	}
	if ns.UUID != [16]byte{} {
		b = wire.AppendDescriptor(b, wire.Descriptor{Type: wire.DescriptorUUID, Value: ns.UUID[:]})
	}
	wire.AppendDescriptor(b, wire.Descriptor{Type: wire.DescriptorCSI, Value: []byte{0}})
}

// describe returns the controller's identify structure (Base 5.17.2.1).
func (c *controller) describe() *wire.IdentifyController {
	o := &c.s.t.o
	d := &wire.IdentifyController{
		Serial: c.s.Serial, Model: c.s.Model, Firmware: firmware,
		CMIC: wire.CMICMultiPort | wire.CMICMultiController, MDTS: uint8(bits.TrailingZeros(uint(o.MaxTransfer / 4096))),
		CNTLID: c.id, Version: wire.Version20, RTD3E: shutdownMicroseconds, CTRATT: wire.CTRATTHostID128 | wire.CTRATTTrafficKA,
		Type: wire.ControllerIO, AERL: maxAERs - 1, ACL: 3, ELPE: errorEntries - 1, FRMW: 3, LPA: wire.LPAExtended,
		KAS: keepAliveUnit, SQES: 0x66, CQES: 0x44, MaxCmd: uint16(o.QueueDepth),
		SGLS: wire.SGLSSupported | wire.SGLSOffset | wire.SGLSTransport, SubNQN: c.s.NQN,
		IOCCSZ: uint32(wire.SQELen+o.InCapsule) / 16, IORCSZ: wire.CQELen / 16, MSDBD: 1,
	}
	if c.s.discovery {
		d.Type, d.CMIC, d.SQES, d.CQES, d.IOCCSZ, d.IORCSZ = wire.ControllerDiscovery, 0, 0, 0, 0, 0
		d.OAES = wire.EventsDiscovery
		return d
	}
	smallest := o.MaxTransfer >> 9 // in blocks of each size, the least that all do in one
	power := smallest
	for _, ns := range *c.s.namespaces.Load() {
		smallest = min(smallest, o.MaxTransfer>>ns.shift)
		power = min(power, ns.atomicBlocks(o.MaxTransfer))
	}
	d.CMIC |= wire.CMICANA
	d.OAES = wire.EventsNamespace | wire.EventsANA
	d.LPA |= wire.LPAEffects
	d.WCTemp, d.CCTemp = defaultTemperature-10, defaultTemperature
	d.ANATT, d.ANACap, d.ANAGrpMax, d.NANAGrpID = 10, wire.ANACapReports|wire.ANACapGroupFixed, maxANAGroup, maxANAGroup
	d.NN, d.MNAN = MaxNSID, maxNamespaces
	d.ONCS = wire.ONCSCompare | wire.ONCSDSM | wire.ONCSWriteZeroes | wire.ONCSSaveSelect | wire.ONCSReservations |
		wire.ONCSTimestamp | wire.ONCSVerify
	d.Fuses = wire.FusesCompareWrite
	d.VWC = wire.VWCPresent | wire.VWCFlushAll
	d.AWUN, d.AWUPF, d.ACWU = uint16(min(smallest, 65536)-1), uint16(min(power, 65536)-1), uint16(min(smallest, 65536)-1)
	d.OFCS = wire.OFCSDisconnect
	return d
}

// shutdownMicroseconds is RTD3E: how long a host waits for our last flush.
const shutdownMicroseconds = 30_000_000

// describeNamespace returns a namespace's identify structure (NVM 4.1.5.1).
func (c *controller) describeNamespace(ns *namespace) *wire.IdentifyNamespace {
	transfer := c.s.t.o.MaxTransfer
	blocks := func(bytes int) uint16 { return uint16(min(bytes>>ns.shift, 65536) - 1) } // less one, as all these are
	d := &wire.IdentifyNamespace{
		NSZE: ns.blocks(), NCAP: ns.blocks(), NUSE: ns.blocks(),
		NSFeat: wire.NSFeatAtomic | wire.NSFeatOptimal, NMIC: wire.NMICShared, RESCap: c.reservCap(),
		DLFeat: wire.DLFeatZeroes | wire.DLFeatWriteZeroes,
		// Our locks make reads and writes of any size atomic to each other;
		// what a power cut leaves whole is the device's doing.
		NAWUN: blocks(transfer), NACWU: blocks(transfer), NAWUPF: blocks(ns.atomicBlocks(transfer) << ns.shift),
		NPWG: blocks(4096), NPWA: blocks(4096), NPDG: blocks(4096), NPDA: blocks(4096), NOWS: blocks(deviceAtom),
		ANAGrpID: ns.ANAGroup, NGUID: ns.NGUID, LBADataSize: uint8(ns.shift),
	}
	if ns.readOnly() {
		d.NSAttr = wire.NSAttrWriteProtect
	}
	return d
}
