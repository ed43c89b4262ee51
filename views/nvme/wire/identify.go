package wire

// IdentifyLen is the length of every identify structure.
const IdentifyLen = 4096

// IdentifyController is CNS 01h (Base figure 275, NVM figure 100).
type IdentifyController struct {
	VID, SSVID uint16
	Serial     string // 20
	Model      string // 40
	Firmware   string // 8
	RAB        uint8
	IEEE       [3]byte
	CMIC       uint8
	MDTS       uint8
	CNTLID     uint16
	Version    uint32
	RTD3R      uint32
	RTD3E      uint32
	OAES       uint32
	CTRATT     uint32
	Type       uint8 // CNTRLTYPE
	CRDT1      uint16
	OACS       uint16
	ACL        uint8
	AERL       uint8
	FRMW       uint8
	LPA        uint8
	ELPE       uint8
	NPSS       uint8
	WCTemp     uint16
	CCTemp     uint16
	TNVMCap    uint64 // of 128 bits
	UNVMCap    uint64
	KAS        uint16
	ANATT      uint8
	ANACap     uint8
	ANAGrpMax  uint32
	NANAGrpID  uint32
	SQES, CQES uint8
	MaxCmd     uint16
	NN         uint32
	ONCS       uint16
	Fuses      uint16
	FNA        uint8
	VWC        uint8
	AWUN       uint16
	AWUPF      uint16
	NWPC       uint8
	ACWU       uint16
	OCFS       uint16
	SGLS       uint32
	MNAN       uint32
	SubNQN     string
	IOCCSZ     uint32
	IORCSZ     uint32
	ICDOff     uint16
	FCAtt      uint8
	MSDBD      uint8
	OFCS       uint16
	MaxPower   uint16 // of power state 0
}

func (c *IdentifyController) size() int { return IdentifyLen }

func (c *IdentifyController) fields(f fields) {
	f.u16(0, &c.VID)
	f.u16(2, &c.SSVID)
	f.ascii(4, 20, &c.Serial)
	f.ascii(24, 40, &c.Model)
	f.ascii(64, 8, &c.Firmware)
	f.u8(72, &c.RAB)
	f.bytes(73, c.IEEE[:])
	f.u8(76, &c.CMIC)
	f.u8(77, &c.MDTS)
	f.u16(78, &c.CNTLID)
	f.u32(80, &c.Version)
	f.u32(84, &c.RTD3R)
	f.u32(88, &c.RTD3E)
	f.u32(92, &c.OAES)
	f.u32(96, &c.CTRATT)
	f.u8(111, &c.Type)
	f.u16(128, &c.CRDT1)
	f.u16(256, &c.OACS)
	f.u8(258, &c.ACL)
	f.u8(259, &c.AERL)
	f.u8(260, &c.FRMW)
	f.u8(261, &c.LPA)
	f.u8(262, &c.ELPE)
	f.u8(263, &c.NPSS)
	f.u16(266, &c.WCTemp)
	f.u16(268, &c.CCTemp)
	f.u128(280, &c.TNVMCap)
	f.u128(296, &c.UNVMCap)
	f.u16(320, &c.KAS)
	f.u8(342, &c.ANATT)
	f.u8(343, &c.ANACap)
	f.u32(344, &c.ANAGrpMax)
	f.u32(348, &c.NANAGrpID)
	f.u8(512, &c.SQES)
	f.u8(513, &c.CQES)
	f.u16(514, &c.MaxCmd)
	f.u32(516, &c.NN)
	f.u16(520, &c.ONCS)
	f.u16(522, &c.Fuses)
	f.u8(524, &c.FNA)
	f.u8(525, &c.VWC)
	f.u16(526, &c.AWUN)
	f.u16(528, &c.AWUPF)
	f.u8(531, &c.NWPC)
	f.u16(532, &c.ACWU)
	f.u16(534, &c.OCFS)
	f.u32(536, &c.SGLS)
	f.u32(540, &c.MNAN)
	f.utf8(768, 256, &c.SubNQN)
	f.u32(1792, &c.IOCCSZ)
	f.u32(1796, &c.IORCSZ)
	f.u16(1800, &c.ICDOff)
	f.u8(1802, &c.FCAtt)
	f.u8(1803, &c.MSDBD)
	f.u16(1804, &c.OFCS)
	f.u16(2048, &c.MaxPower)
}

// Append appends the structure.
func (c *IdentifyController) Append(b []byte) []byte { return appendStructure(b, c) }

// Parse reads the structure.
func (c *IdentifyController) Parse(b []byte) error { return parseStructure(b, c) }

// Controller types, CNTRLTYPE.
const (
	ControllerIO        = 1
	ControllerDiscovery = 2
)

// Bits of an identify controller structure.
const (
	CMICMultiPort       = 1 << 0
	CMICMultiController = 1 << 1
	CMICANA             = 1 << 3
	CTRATTHostID128     = 1 << 0
	CTRATTTrafficKA     = 1 << 6
	LPAEffects          = 1 << 1
	LPAExtended         = 1 << 2 // offsets and lengths of log pages in dwords
	ONCSCompare         = 1 << 0
	ONCSDSM             = 1 << 2
	ONCSWriteZeroes     = 1 << 3
	ONCSSaveSelect      = 1 << 4 // SV in set and SEL in get features
	ONCSReservations    = 1 << 5
	ONCSTimestamp       = 1 << 6
	ONCSVerify          = 1 << 7
	ONCSCopy            = 1 << 8
	FusesCompareWrite   = 1 << 0
	VWCPresent          = 1 << 0
	VWCFlushAll         = 3 << 1 // flush with the broadcast NSID is supported
	SGLSSupported       = 1 << 0
	SGLSOffset          = 1 << 20 // in-capsule data at an offset
	SGLSTransport       = 1 << 21
	ANACapReports       = 0x1f // every state can be reported
	ANACapGroupFixed    = 1 << 6
	ANACapNSGroupID     = 1 << 7
	OFCSDisconnect      = 1 << 0
)

// IdentifyNamespace is CNS 00h (NVM figure 97).
type IdentifyNamespace struct {
	NSZE, NCAP, NUSE       uint64
	NSFeat                 uint8
	NLBAF                  uint8
	FLBAS                  uint8
	MC, DPC, DPS           uint8
	NMIC                   uint8
	RESCap                 uint8
	FPI                    uint8
	DLFeat                 uint8
	NAWUN, NAWUPF, NACWU   uint16
	NABSN, NABO, NABSPF    uint16
	NOIOB                  uint16
	NVMCap                 uint64 // of 128 bits
	NPWG, NPWA             uint16
	NPDG, NPDA, NOWS       uint16
	MSSRL                  uint16
	MCL                    uint32
	MSRC                   uint8
	ANAGrpID               uint32
	NSAttr                 uint8
	NVMSetID, EndGID       uint16
	NGUID                  [16]byte
	EUI64                  [8]byte
	LBAMetadata            uint16 // of LBA format 0
	LBADataSize            uint8  // log 2
	LBARelativePerformance uint8
}

func (n *IdentifyNamespace) size() int { return IdentifyLen }

func (n *IdentifyNamespace) fields(f fields) {
	f.u64(0, &n.NSZE)
	f.u64(8, &n.NCAP)
	f.u64(16, &n.NUSE)
	f.u8(24, &n.NSFeat)
	f.u8(25, &n.NLBAF)
	f.u8(26, &n.FLBAS)
	f.u8(27, &n.MC)
	f.u8(28, &n.DPC)
	f.u8(29, &n.DPS)
	f.u8(30, &n.NMIC)
	f.u8(31, &n.RESCap)
	f.u8(32, &n.FPI)
	f.u8(33, &n.DLFeat)
	f.u16(34, &n.NAWUN)
	f.u16(36, &n.NAWUPF)
	f.u16(38, &n.NACWU)
	f.u16(40, &n.NABSN)
	f.u16(42, &n.NABO)
	f.u16(44, &n.NABSPF)
	f.u16(46, &n.NOIOB)
	f.u128(48, &n.NVMCap)
	f.u16(64, &n.NPWG)
	f.u16(66, &n.NPWA)
	f.u16(68, &n.NPDG)
	f.u16(70, &n.NPDA)
	f.u16(72, &n.NOWS)
	f.u16(74, &n.MSSRL)
	f.u32(76, &n.MCL)
	f.u8(80, &n.MSRC)
	f.u32(92, &n.ANAGrpID)
	f.u8(99, &n.NSAttr)
	f.u16(100, &n.NVMSetID)
	f.u16(102, &n.EndGID)
	f.bytes(104, n.NGUID[:])
	f.bytes(120, n.EUI64[:])
	f.u16(128, &n.LBAMetadata)
	f.u8(130, &n.LBADataSize)
	f.u8(131, &n.LBARelativePerformance)
}

// Append appends the structure.
func (n *IdentifyNamespace) Append(b []byte) []byte { return appendStructure(b, n) }

// Parse reads the structure.
func (n *IdentifyNamespace) Parse(b []byte) error { return parseStructure(b, n) }

// Bits of an identify namespace structure.
const (
	NSFeatThin         = 1 << 0
	NSFeatAtomic       = 1 << 1 // NAWUN, NAWUPF and NACWU are defined
	NSFeatOptimal      = 1 << 4 // NPWG, NPWA, NPDG, NPDA and NOWS are defined
	NMICShared         = 1 << 0
	DLFeatZeroes       = 1      // deallocated blocks read as zeroes
	DLFeatWriteZeroes  = 1 << 3 // write zeroes takes the deallocate bit
	NSAttrWriteProtect = 1 << 0
)

// IdentifyNamespaceCommon is CNS 08h, what namespaces of all command sets have
// (Base figure 280).
type IdentifyNamespaceCommon struct {
	NSFeat, NMIC, RESCap, FPI uint8
	ANAGrpID                  uint32
	NSAttr                    uint8
	NVMSetID, EndGID          uint16
	NStat                     uint8 // 1: ready
}

func (n *IdentifyNamespaceCommon) size() int { return IdentifyLen }

func (n *IdentifyNamespaceCommon) fields(f fields) {
	f.u8(0, &n.NSFeat)
	f.u8(1, &n.NMIC)
	f.u8(2, &n.RESCap)
	f.u8(3, &n.FPI)
	f.u32(4, &n.ANAGrpID)
	f.u8(8, &n.NSAttr)
	f.u16(10, &n.NVMSetID)
	f.u16(12, &n.EndGID)
	f.u8(14, &n.NStat)
}

// Append appends the structure.
func (n *IdentifyNamespaceCommon) Append(b []byte) []byte { return appendStructure(b, n) }

// Parse reads the structure.
func (n *IdentifyNamespaceCommon) Parse(b []byte) error { return parseStructure(b, n) }

// IdentifyControllerNVM is CNS 06h for the NVM command set (NVM figure 102).
type IdentifyControllerNVM struct {
	VSL, WZSL, WUSL, DMRL uint8
	DMRSL                 uint32
	DMSL                  uint64
}

func (n *IdentifyControllerNVM) size() int { return IdentifyLen }

func (n *IdentifyControllerNVM) fields(f fields) {
	f.u8(0, &n.VSL)
	f.u8(1, &n.WZSL)
	f.u8(2, &n.WUSL)
	f.u8(3, &n.DMRL)
	f.u32(4, &n.DMRSL)
	f.u64(8, &n.DMSL)
}

// Append appends the structure.
func (n *IdentifyControllerNVM) Append(b []byte) []byte { return appendStructure(b, n) }

// Parse reads the structure.
func (n *IdentifyControllerNVM) Parse(b []byte) error { return parseStructure(b, n) }

// Descriptor is one of a namespace's identifiers, CNS 03h (Base figure 278).
type Descriptor struct {
	Type  uint8
	Value []byte
}

// Types of namespace identifiers.
const (
	DescriptorEUI64 = 1
	DescriptorNGUID = 2
	DescriptorUUID  = 3
	DescriptorCSI   = 4 // command set identifier
)

// AppendDescriptor appends a namespace identification descriptor.
func AppendDescriptor(b []byte, d Descriptor) []byte {
	return append(append(b, d.Type, byte(len(d.Value)), 0, 0), d.Value...)
}

// ParseDescriptors reads a list of namespace identification descriptors.
func ParseDescriptors(b []byte) (list []Descriptor) {
	for len(b) >= 4 && b[1] != 0 && 4+int(b[1]) <= len(b) {
		n := 4 + int(b[1])
		list = append(list, Descriptor{b[0], b[4:n]})
		b = b[n:]
	}
	return list
}

// ParseNamespaceList reads a list of namespaces, CNS 02h and log page 04h.
func ParseNamespaceList(b []byte) (list []uint32) {
	for ; len(b) >= 4; b = b[4:] {
		id := le.Uint32(b)
		if id == 0 {
			break
		}
		list = append(list, id)
	}
	return list
}
