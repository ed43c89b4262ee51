package wire

// Opcodes of I/O commands (NVM figure 18).
const (
	OpFlush              = 0x00
	OpWrite              = 0x01
	OpRead               = 0x02
	OpWriteUncorrectable = 0x04
	OpCompare            = 0x05
	OpWriteZeroes        = 0x08
	OpDSM                = 0x09
	OpVerify             = 0x0c
	OpReservRegister     = 0x0d
	OpReservReport       = 0x0e
	OpReservAcquire      = 0x11
	OpReservRelease      = 0x15
	OpCopy               = 0x19
)

// Opcodes of admin commands (Base figure 138), and of fabrics commands on
// every queue.
const (
	OpGetLogPage  = 0x02
	OpIdentify    = 0x06
	OpAbort       = 0x08
	OpSetFeatures = 0x09
	OpGetFeatures = 0x0a
	OpAsyncEvent  = 0x0c
	OpKeepAlive   = 0x18
	OpFabrics     = 0x7f
)

// Types of fabrics commands (Base figure 386).
const (
	FCPropertySet = 0x00
	FCConnect     = 0x01
	FCPropertyGet = 0x04
	FCAuthSend    = 0x05
	FCAuthReceive = 0x06
	FCDisconnect  = 0x08
)

// OpcodeName returns the name of a command on an admin or I/O queue.
func OpcodeName(admin bool, c *SQE) string {
	if c.Opcode() == OpFabrics {
		if n := fabricsNames[c.FCType()]; n != "" {
			return n
		}
		return "fabrics command"
	}
	names := ioNames
	if admin {
		names = adminNames
	}
	if n := names[c.Opcode()]; n != "" {
		return n
	}
	return "unknown command"
}

var (
	fabricsNames = map[uint8]string{FCPropertySet: "property set", FCConnect: "connect", FCPropertyGet: "property get",
		FCAuthSend: "authentication send", FCAuthReceive: "authentication receive", FCDisconnect: "disconnect"}
	ioNames = map[uint8]string{OpFlush: "flush", OpWrite: "write", OpRead: "read", OpWriteUncorrectable: "write uncorrectable",
		OpCompare: "compare", OpWriteZeroes: "write zeroes", OpDSM: "dataset management", OpVerify: "verify",
		OpReservRegister: "reservation register", OpReservReport: "reservation report", OpReservAcquire: "reservation acquire",
		OpReservRelease: "reservation release", OpCopy: "copy"}
	adminNames = map[uint8]string{OpGetLogPage: "get log page", OpIdentify: "identify", OpAbort: "abort", OpSetFeatures: "set features",
		OpGetFeatures: "get features", OpAsyncEvent: "asynchronous event request", OpKeepAlive: "keep alive"}
)

// Bits of I/O commands.
const (
	FUA             = 1 << 30 // CDW12 of read, write, compare, verify, write zeroes
	LimitedRetry    = 1 << 31 // CDW12
	Deallocate      = 1 << 25 // CDW12 of write zeroes
	PRInfo          = 0xf << 26
	DSMDeallocate   = 1 << 2 // CDW11 of dataset management
	DSMRangeLen     = 16
	DSMMaxRanges    = 256
	CopyRangeLen    = 32
	MaxBlocks       = 1 << 16 // of one command
	BroadcastNSID   = 0xffffffff
	DynamicCNTLID   = 0xffff
	StaticCNTLIDMax = 0xffef
)

// Controller properties (Base 3.1.3).
const (
	PropCAP  = 0x00
	PropVS   = 0x08
	PropCC   = 0x14
	PropCSTS = 0x1c
	PropNSSR = 0x20
)

// Bits of CC and CSTS.
const (
	CCEnable       = 1 << 0
	CCShutdownMask = 3 << 14
	CSTSReady      = 1 << 0
	CSTSFatal      = 1 << 1
	CSTSShutMask   = 3 << 2
	CSTSShutDone   = 2 << 2
)

// Version20 is VS of a controller for version 2.0 of the base specification.
const Version20 = 2 << 16

// Connect command attributes, CATTR (Base 6.3).
const (
	ConnectDisableSQFlow = 1 << 2
)

// What a connect's result asks for: in-band authentication.
const AuthRequiredATR = 1 << 17

// Identify CNS values (Base figure 273).
const (
	CNSNamespace          = 0x00
	CNSController         = 0x01
	CNSActiveNamespaces   = 0x02
	CNSDescriptors        = 0x03
	CNSNVMSets            = 0x04
	CNSNamespaceCSI       = 0x05
	CNSControllerCSI      = 0x06
	CNSActiveCSI          = 0x07
	CNSNamespaceCommon    = 0x08
	CNSAllocated          = 0x10
	CNSNamespaceAllocated = 0x11
	CNSControllersOf      = 0x12
	CNSControllers        = 0x13
	CNSPrimaryCaps        = 0x14
	CNSSecondary          = 0x15
	CNSAllocatedCSI       = 0x1a
	CNSNamespaceAllocCSI  = 0x1b
	CNSCommandSets        = 0x1c
)

// Log pages (Base figure 202).
const (
	LogSupported     = 0x00
	LogError         = 0x01
	LogSMART         = 0x02
	LogFirmware      = 0x03
	LogChangedNS     = 0x04
	LogEffects       = 0x05
	LogANA           = 0x0c
	LogDiscovery     = 0x70
	LogReservations  = 0x80
	LogSupportedSize = 1024
)

// Features (Base figure 317).
const (
	FeatArbitration       = 0x01
	FeatPower             = 0x02
	FeatTemperature       = 0x04
	FeatErrorRecovery     = 0x05
	FeatWriteCache        = 0x06
	FeatQueues            = 0x07
	FeatWriteAtomicity    = 0x0a
	FeatAsyncEvents       = 0x0b
	FeatTimestamp         = 0x0e
	FeatKATO              = 0x0f
	FeatHostBehavior      = 0x16
	FeatHostID            = 0x81
	FeatReservMask        = 0x82
	FeatReservPersist     = 0x83
	FeatWriteProtect      = 0x84
	FeatureSelCurrent     = 0
	FeatureSelDefault     = 1
	FeatureSelSaved       = 2
	FeatureSelSupported   = 3
	FeatureChangeable     = 1 << 2
	FeaturePerNamespace   = 1 << 1
	FeatureSaveBit        = 1 << 31
	WriteProtectNone      = 0
	WriteProtectPermanent = 3
)

// Asynchronous events: their type, their information and log page, as in the
// result of an asynchronous event request (Base 5.2.1).
const (
	EventError            = 0x0
	EventNotice           = 0x2
	EventIO               = 0x6
	NoticeNamespace       = 0x00
	NoticeANA             = 0x03
	NoticeDiscovery       = 0xf0
	IOReservation         = 0x00
	EventsNamespace       = 1 << 8 // OAES and the async event configuration
	EventsANA             = 1 << 11
	EventsDiscovery       = 1 << 31
	ReservLogRegistration = 1 // types of reservation notifications
	ReservLogRelease      = 2
	ReservLogPreempted    = 3
)

// EventResult is the result of an asynchronous event request.
func EventResult(typ, info, logPage uint8) uint32 {
	return uint32(typ) | uint32(info)<<8 | uint32(logPage)<<16
}

// ANAState is the access that a controller gives to a group of namespaces (Base 8.1.2).
type ANAState uint8

// The ANA states.
const (
	ANAOptimized    ANAState = 0x1
	ANANonOptimized ANAState = 0x2
	ANAInaccess     ANAState = 0x3
	ANALoss         ANAState = 0x4
	ANAChange       ANAState = 0xf
)

// Reservation types (Base 8.19).
const (
	ReservNone                    = 0
	ReservWriteExclusive          = 1
	ReservExclusive               = 2
	ReservWriteExclusiveReg       = 3 // registrants only
	ReservExclusiveReg            = 4
	ReservWriteExclusiveAll       = 5 // all registrants
	ReservExclusiveAll            = 6
	ReservActRegister             = 0 // RREGA
	ReservActUnregister           = 1
	ReservActReplace              = 2
	ReservActAcquire              = 0 // RACQA
	ReservActPreempt              = 1
	ReservActPreemptAbort         = 2
	ReservActRelease              = 0 // RRELA
	ReservActClear                = 1
	ReservIgnoreKey               = 1 << 3
	ReservPersistNoChange         = 0 // CPTPL
	ReservPersistOff              = 2
	ReservPersistOn               = 3
	ReservCapAll            uint8 = 0xff // RESCAP: PTPL, all types, IEKEY as of 1.3
)
