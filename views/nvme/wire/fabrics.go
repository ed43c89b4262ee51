package wire

import "strings"

// DiscoveryNQN is the discovery service that every target has (Base 4.5).
const DiscoveryNQN = "nqn.2014-08.org.nvmexpress.discovery"

// MaxNQN is the length of the longest NVMe qualified name.
const MaxNQN = 223

// ValidNQN reports whether s has the form of an NVMe qualified name (Base 4.5).
func ValidNQN(s string) bool {
	if len(s) > MaxNQN || len(s) < len("nqn.yyyy-mm.x") || !strings.HasPrefix(s, "nqn.") {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	d := s[4:12]
	for i := range len("yyyy-mm") {
		if i == 4 && d[i] != '-' || i != 4 && (d[i] < '0' || d[i] > '9') {
			return false
		}
	}
	return d[7] == '.'
}

// Connect is the fabrics command that makes a connection a queue (Base 6.3).
type Connect struct {
	RecFmt  uint16
	QID     uint16
	SQSize  uint16 // less one
	CAttr   uint8
	KATO    uint32 // milliseconds; admin queue alone
	HostID  [16]byte
	CNTLID  uint16
	SubNQN  string
	HostNQN string
}

// ConnectDataLen is the length of a connect's data.
const ConnectDataLen = 1024

// Offsets of a connect's fields, in the command and in its data, for the
// result of one that has invalid parameters.
const (
	ConnectOffRecFmt  = 40
	ConnectOffQID     = 42
	ConnectOffSQSize  = 44
	ConnectOffCAttr   = 46
	ConnectOffKATO    = 48
	ConnectOffHostID  = 0
	ConnectOffCNTLID  = 16
	ConnectOffSubNQN  = 256
	ConnectOffHostNQN = 512
)

// InvalidParam is the result of a connect with an invalid parameter: IPO and IATTR.
func InvalidParam(inData bool, offset uint16) uint64 {
	if inData {
		return uint64(offset) | 1<<16
	}
	return uint64(offset)
}

func (c *Connect) command(f fields) {
	f.u16(ConnectOffRecFmt, &c.RecFmt)
	f.u16(ConnectOffQID, &c.QID)
	f.u16(ConnectOffSQSize, &c.SQSize)
	f.u8(ConnectOffCAttr, &c.CAttr)
	f.u32(ConnectOffKATO, &c.KATO)
}

func (c *Connect) size() int { return ConnectDataLen }

func (c *Connect) fields(f fields) {
	f.bytes(ConnectOffHostID, c.HostID[:])
	f.u16(ConnectOffCNTLID, &c.CNTLID)
	f.utf8(ConnectOffSubNQN, 256, &c.SubNQN)
	f.utf8(ConnectOffHostNQN, 256, &c.HostNQN)
}

// Command sets the command's part in an SQE.
func (c *Connect) Command(s *SQE) {
	s.SetFabrics(FCConnect)
	c.command(fields{s[:], true})
}

// AppendData appends the data's part.
func (c *Connect) AppendData(b []byte) []byte { return appendStructure(b, c) }

// ParseConnect reads a connect command and its data.
func ParseConnect(s *SQE, data []byte) (c Connect, err error) {
	c.command(fields{s[:], false})
	return c, parseStructure(data, &c)
}

// Property is a property get or set command (Base 6.4, 6.5).
type Property struct {
	Wide   bool // 8 bytes rather than 4
	Offset uint32
	Value  uint64 // set alone
}

// Set makes s a property set.
func (p Property) Set(s *SQE) {
	p.Get(s)
	s[4] = FCPropertySet
	le.PutUint64(s[48:], p.Value)
}

// Get makes s a property get.
func (p Property) Get(s *SQE) {
	s.SetFabrics(FCPropertyGet)
	if s[40] = 0; p.Wide {
		s[40] = 1
	}
	le.PutUint32(s[44:], p.Offset)
}

// ParseProperty reads a property get or set; ok is false for a size that there
// is none of.
func ParseProperty(s *SQE) (p Property, ok bool) {
	return Property{Wide: s[40]&7 == 1, Offset: le.Uint32(s[44:]), Value: le.Uint64(s[48:])}, s[40]&7 <= 1
}

// Auth is an authentication send or receive command (Base 6.1, 6.2).
type Auth struct {
	SPSP0, SPSP1, SECP uint8
	Length             uint32 // TL or AL
}

// The security protocol of in-band authentication.
const (
	AuthSECP  = 0xe9
	AuthSPSP0 = 1
	AuthSPSP1 = 1
)

// Command makes s an authentication command of the given type.
func (a Auth) Command(s *SQE, fctype uint8) {
	s.SetFabrics(fctype)
	s[41], s[42], s[43] = a.SPSP0, a.SPSP1, a.SECP
	le.PutUint32(s[44:], a.Length)
}

// ParseAuth reads an authentication command.
func ParseAuth(s *SQE) Auth {
	return Auth{SPSP0: s[41], SPSP1: s[42], SECP: s[43], Length: le.Uint32(s[44:])}
}
