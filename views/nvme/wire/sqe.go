package wire

// Lengths of queue entries.
const (
	SQELen = 64
	CQELen = 16
)

// SQE is a submission queue entry (Base 3.3.3.1). The zero value is a flush of
// namespace 0.
type SQE [SQELen]byte

// Opcode returns the command's opcode; which command that is depends on the queue.
func (c *SQE) Opcode() uint8 { return c[0] }

// Fuse returns [FuseNone], [FuseFirst] or [FuseSecond].
func (c *SQE) Fuse() uint8 { return c[1] & 3 }

// PSDT returns how data is described: over fabrics 1 or 2, by SGLs.
func (c *SQE) PSDT() uint8 { return c[1] >> 6 }

// CID returns the command's ID.
func (c *SQE) CID() uint16 { return le.Uint16(c[2:]) }

// NSID returns the namespace.
func (c *SQE) NSID() uint32 { return le.Uint32(c[4:]) }

// FCType returns the type of a fabrics command.
func (c *SQE) FCType() uint8 { return c[4] }

// CDW returns a command dword, 2, 3, or 10 to 15.
func (c *SQE) CDW(n int) uint32 { return le.Uint32(c[4*n:]) }

// SLBA returns the first block of an I/O command.
func (c *SQE) SLBA() uint64 { return le.Uint64(c[40:]) }

// Blocks returns the number of blocks of an I/O command.
func (c *SQE) Blocks() uint32 { return uint32(le.Uint16(c[48:])) + 1 }

// SGL returns the command's data descriptor (Base 4.1.2).
func (c *SQE) SGL() SGL {
	return SGL{Address: le.Uint64(c[24:]), Length: le.Uint32(c[32:]), Type: c[39]}
}

// SetOpcode sets the opcode, with SGLs for data, as all fabrics have them.
func (c *SQE) SetOpcode(op uint8) { c[0], c[1] = op, 1<<6 }

// SetFuse makes the command one of a fused pair.
func (c *SQE) SetFuse(f uint8) { c[1] = c[1]&^3 | f }

// SetCID sets the command's ID.
func (c *SQE) SetCID(id uint16) { le.PutUint16(c[2:], id) }

// SetNSID sets the namespace.
func (c *SQE) SetNSID(id uint32) { le.PutUint32(c[4:], id) }

// SetFabrics makes it a fabrics command of the given type.
func (c *SQE) SetFabrics(fctype uint8) {
	c.SetOpcode(OpFabrics)
	c[4] = fctype
}

// SetCDW sets a command dword.
func (c *SQE) SetCDW(n int, v uint32) { le.PutUint32(c[4*n:], v) }

// SetRange sets the blocks of an I/O command: the first and how many, 1 to 65,536.
func (c *SQE) SetRange(slba uint64, blocks uint32) {
	le.PutUint64(c[40:], slba)
	le.PutUint16(c[48:], uint16(blocks-1))
}

// SetSGL sets the data descriptor.
func (c *SQE) SetSGL(s SGL) {
	le.PutUint64(c[24:], s.Address)
	le.PutUint32(c[32:], s.Length)
	c[36], c[37], c[38], c[39] = 0, 0, 0, s.Type
}

// The values of [SQE.Fuse].
const (
	FuseNone   = 0
	FuseFirst  = 1
	FuseSecond = 2
)

// SGL is a data descriptor (Base 4.1.2.1).
type SGL struct {
	Address uint64
	Length  uint32
	Type    uint8 // descriptor type in the upper, subtype in the lower half
}

// The descriptors that NVMe/TCP has (TCP 3.2).
const (
	SGLInCapsule = 0x01 // data block, offset into the capsule's data
	SGLTransport = 0x5a // transport data block: data follows in data PDUs
)

// CQE is a completion queue entry (Base 3.3.3.2).
type CQE struct {
	Result uint64 // dwords 0 and 1
	SQHead uint16
	SQID   uint16
	CID    uint16
	Status Status
}

func (c CQE) put(b []byte) {
	le.PutUint64(b, c.Result)
	le.PutUint16(b[8:], c.SQHead)
	le.PutUint16(b[10:], c.SQID)
	le.PutUint16(b[12:], c.CID)
	le.PutUint16(b[14:], uint16(c.Status)<<1)
}

// ParseCQE reads a CQE from the header of a response capsule.
func ParseCQE(h []byte) CQE {
	b := h[CommonLen:]
	return CQE{Result: le.Uint64(b), SQHead: le.Uint16(b[8:]), SQID: le.Uint16(b[10:]), CID: le.Uint16(b[12:]),
		Status: Status(le.Uint16(b[14:]) >> 1)}
}

// ParseSQE copies an SQE from the header of a command capsule.
func ParseSQE(h []byte, c *SQE) { copy(c[:], h[CommonLen:]) }
