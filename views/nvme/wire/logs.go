package wire

// DiscoveryHeader begins the discovery log page (Base figure 264).
type DiscoveryHeader struct {
	Generation uint64
	Records    uint64
	Format     uint16
}

// DiscoveryLen is the length of the discovery log page's header, and of each entry.
const DiscoveryLen = 1024

func (d *DiscoveryHeader) size() int { return DiscoveryLen }

func (d *DiscoveryHeader) fields(f fields) {
	f.u64(0, &d.Generation)
	f.u64(8, &d.Records)
	f.u16(16, &d.Format)
}

// Append appends the structure.
func (d *DiscoveryHeader) Append(b []byte) []byte { return appendStructure(b, d) }

// Parse reads the structure.
func (d *DiscoveryHeader) Parse(b []byte) error { return parseStructure(b, d) }

// DiscoveryEntry is one way to reach a subsystem (Base figure 265).
type DiscoveryEntry struct {
	TrType  uint8
	AdrFam  uint8
	SubType uint8
	TReq    uint8
	PortID  uint16
	CNTLID  uint16
	ASQSz   uint16
	EFlags  uint16
	TrSvcID string
	SubNQN  string
	TrAddr  string
	SecType uint8 // TSAS of TCP: 0 none, 1 TLS 1.2, 2 TLS 1.3
}

// Values of a discovery entry.
const (
	TrTypeTCP         = 3
	AdrFamIPv4        = 1
	AdrFamIPv6        = 2
	SubTypeReferral   = 1 // to a discovery service
	SubTypeNVM        = 2
	SubTypeCurrent    = 3 // this discovery service
	TReqNotSpecified  = 0
	TReqRequired      = 1
	TReqNotRequired   = 2
	TReqDisableSQFlow = 1 << 2
	EFlagsPersistent  = 1 << 1 // explicit persistent connections
	EFlagsDuplicate   = 1 << 0
)

func (d *DiscoveryEntry) size() int { return DiscoveryLen }

func (d *DiscoveryEntry) fields(f fields) {
	f.u8(0, &d.TrType)
	f.u8(1, &d.AdrFam)
	f.u8(2, &d.SubType)
	f.u8(3, &d.TReq)
	f.u16(4, &d.PortID)
	f.u16(6, &d.CNTLID)
	f.u16(8, &d.ASQSz)
	f.u16(10, &d.EFlags)
	f.ascii(32, 32, &d.TrSvcID)
	f.utf8(256, 256, &d.SubNQN)
	f.ascii(512, 256, &d.TrAddr)
	f.u8(768, &d.SecType)
}

// Append appends the structure.
func (d *DiscoveryEntry) Append(b []byte) []byte { return appendStructure(b, d) }

// Parse reads the structure.
func (d *DiscoveryEntry) Parse(b []byte) error { return parseStructure(b, d) }

// ErrorEntry is an entry of the error information log (Base figure 205).
type ErrorEntry struct {
	Count    uint64
	SQID     uint16
	CID      uint16
	Status   Status
	Location uint16 // parameter error: byte, and bit in the upper half
	LBA      uint64
	NSID     uint32
	TrType   uint8
}

// ErrorEntryLen is the length of an error log entry.
const ErrorEntryLen = 64

func (e *ErrorEntry) size() int { return ErrorEntryLen }

func (e *ErrorEntry) fields(f fields) {
	status := uint16(e.Status) << 1
	f.u64(0, &e.Count)
	f.u16(8, &e.SQID)
	f.u16(10, &e.CID)
	f.u16(12, &status)
	f.u16(14, &e.Location)
	f.u64(16, &e.LBA)
	f.u32(24, &e.NSID)
	f.u8(29, &e.TrType)
	e.Status = Status(status >> 1)
}

// Append appends the structure.
func (e *ErrorEntry) Append(b []byte) []byte { return appendStructure(b, e) }

// Parse reads the structure.
func (e *ErrorEntry) Parse(b []byte) error { return parseStructure(b, e) }

// SMART is the health information log (Base figure 206).
type SMART struct {
	Warning        uint8
	Temperature    uint16 // kelvin
	Spare          uint8  // percent
	SpareThreshold uint8
	Used           uint8  // percent
	DataRead       uint64 // of 128 bits: units of 1000 * 512 bytes, rounded up
	DataWritten    uint64
	Reads          uint64
	Writes         uint64
	BusyMinutes    uint64
	PowerCycles    uint64
	PowerOnHours   uint64
	UnsafeShutdown uint64
	MediaErrors    uint64
	ErrorEntries   uint64
}

// SMARTLen is the length of the health information log.
const SMARTLen = 512

func (s *SMART) size() int { return SMARTLen }

func (s *SMART) fields(f fields) {
	f.u8(0, &s.Warning)
	f.u16(1, &s.Temperature)
	f.u8(3, &s.Spare)
	f.u8(4, &s.SpareThreshold)
	f.u8(5, &s.Used)
	f.u128(32, &s.DataRead)
	f.u128(48, &s.DataWritten)
	f.u128(64, &s.Reads)
	f.u128(80, &s.Writes)
	f.u128(96, &s.BusyMinutes)
	f.u128(112, &s.PowerCycles)
	f.u128(128, &s.PowerOnHours)
	f.u128(144, &s.UnsafeShutdown)
	f.u128(160, &s.MediaErrors)
	f.u128(176, &s.ErrorEntries)
}

// Append appends the structure.
func (s *SMART) Append(b []byte) []byte { return appendStructure(b, s) }

// Parse reads the structure.
func (s *SMART) Parse(b []byte) error { return parseStructure(b, s) }

// Warnings of a health information log.
const (
	WarnReliability = 1 << 2
	WarnReadOnly    = 1 << 3
)

// Lengths of other log pages.
const (
	FirmwareLogLen  = 512
	EffectsLogLen   = 4096
	ANAHeaderLen    = 16
	ANAGroupLen     = 32
	ReservLogLen    = 64
	MaxChangedNS    = 1024
	EffectSupported = 1 << 0 // of a command, in the effects log
	EffectData      = 1 << 1 // the command may change data
	EffectNSAttr    = 1 << 3
)

// ANAGroup is a group of namespaces in the ANA log (Base figure 223).
type ANAGroup struct {
	ID     uint32
	Change uint64
	State  ANAState
	NSIDs  []uint32
}

// AppendANALog appends the ANA log page.
func AppendANALog(b []byte, change uint64, groups []ANAGroup) []byte {
	b, h := extend(b, ANAHeaderLen)
	le.PutUint64(h, change)
	le.PutUint16(h[8:], uint16(len(groups)))
	for _, g := range groups {
		var d []byte
		b, d = extend(b, ANAGroupLen)
		le.PutUint32(d, g.ID)
		le.PutUint32(d[4:], uint32(len(g.NSIDs)))
		le.PutUint64(d[8:], g.Change)
		d[16] = byte(g.State)
		for _, id := range g.NSIDs {
			b = le.AppendUint32(b, id)
		}
	}
	return b
}

// ParseANALog reads the ANA log page, as far as it is there.
func ParseANALog(b []byte) (change uint64, groups []ANAGroup) {
	if len(b) < ANAHeaderLen {
		return 0, nil
	}
	change = le.Uint64(b)
	n := int(le.Uint16(b[8:]))
	b = b[ANAHeaderLen:]
	for ; n > 0 && len(b) >= ANAGroupLen; n-- {
		g := ANAGroup{ID: le.Uint32(b), Change: le.Uint64(b[8:]), State: ANAState(b[16] & 0xf)}
		ids := uint64(le.Uint32(b[4:]))
		b = b[ANAGroupLen:]
		for ; ids > 0 && len(b) >= 4; ids-- {
			g.NSIDs = append(g.NSIDs, le.Uint32(b))
			b = b[4:]
		}
		groups = append(groups, g)
	}
	return change, groups
}

// ReservNotice is the reservation notification log page (Base figure 251).
type ReservNotice struct {
	Count     uint64
	Type      uint8
	Available uint8
	NSID      uint32
}

func (r *ReservNotice) size() int { return ReservLogLen }

func (r *ReservNotice) fields(f fields) {
	f.u64(0, &r.Count)
	f.u8(8, &r.Type)
	f.u8(9, &r.Available)
	f.u32(12, &r.NSID)
}

// Append appends the structure.
func (r *ReservNotice) Append(b []byte) []byte { return appendStructure(b, r) }

// Parse reads the structure.
func (r *ReservNotice) Parse(b []byte) error { return parseStructure(b, r) }

// ReservStatus is the data of a reservation report in the extended form (Base
// figure 415).
type ReservStatus struct {
	Generation  uint32
	Type        uint8
	PTPLS       uint8
	Registrants []Registrant
}

// Registrant is one host's registration. A host has one, and a report has one
// entry for each of its controllers.
type Registrant struct {
	CNTLID uint16
	Holder bool
	HostID [16]byte
	Key    uint64
}

// AppendReservStatus appends a reservation report.
func AppendReservStatus(b []byte, r ReservStatus, extended bool) []byte {
	n := 24
	if extended {
		n = 64
	}
	b, h := extend(b, n)
	le.PutUint32(h, r.Generation)
	h[4] = r.Type
	le.PutUint16(h[5:], uint16(len(r.Registrants)))
	h[9] = r.PTPLS
	for _, c := range r.Registrants {
		var d []byte
		b, d = extend(b, n)
		le.PutUint16(d, c.CNTLID)
		if c.Holder {
			d[2] = 1
		}
		if extended {
			le.PutUint64(d[8:], c.Key)
			copy(d[16:32], c.HostID[:])
		} else {
			copy(d[8:16], c.HostID[:])
			le.PutUint64(d[16:], c.Key)
		}
	}
	return b
}

// ParseReservStatus reads a reservation report, as far as it is there.
func ParseReservStatus(b []byte, extended bool) (r ReservStatus) {
	n := 24
	if extended {
		n = 64
	}
	if len(b) < n {
		return r
	}
	r = ReservStatus{Generation: le.Uint32(b), Type: b[4], PTPLS: b[9]}
	left := int(le.Uint16(b[5:]))
	for b = b[n:]; left > 0 && len(b) >= n; b, left = b[n:], left-1 {
		c := Registrant{CNTLID: le.Uint16(b), Holder: b[2]&1 != 0}
		if extended {
			c.Key = le.Uint64(b[8:])
			copy(c.HostID[:], b[16:32])
		} else {
			copy(c.HostID[:8], b[8:16])
			c.Key = le.Uint64(b[16:])
		}
		r.Registrants = append(r.Registrants, c)
	}
	return r
}

// DSMRange is a range of a dataset management command (NVM figure 41).
type DSMRange struct {
	Attributes uint32
	Blocks     uint32
	SLBA       uint64
}

// AppendDSMRange appends a range.
func AppendDSMRange(b []byte, r DSMRange) []byte {
	b = le.AppendUint32(b, r.Attributes)
	b = le.AppendUint32(b, r.Blocks)
	return le.AppendUint64(b, r.SLBA)
}

// ParseDSMRange reads a range of 16 bytes.
func ParseDSMRange(b []byte) DSMRange {
	return DSMRange{le.Uint32(b), le.Uint32(b[4:]), le.Uint64(b[8:])}
}
