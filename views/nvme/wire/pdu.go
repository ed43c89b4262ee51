package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

var le = binary.LittleEndian

// PDUType is the first byte of a PDU (TCP 3.6).
type PDUType uint8

// The PDU types.
const (
	TypeICReq       PDUType = 0x00
	TypeICResp      PDUType = 0x01
	TypeH2CTermReq  PDUType = 0x02
	TypeC2HTermReq  PDUType = 0x03
	TypeCapsuleCmd  PDUType = 0x04
	TypeCapsuleResp PDUType = 0x05
	TypeH2CData     PDUType = 0x06
	TypeC2HData     PDUType = 0x07
	TypeR2T         PDUType = 0x09
)

var pduNames = map[PDUType]string{TypeICReq: "ICReq", TypeICResp: "ICResp", TypeH2CTermReq: "H2CTermReq",
	TypeC2HTermReq: "C2HTermReq", TypeCapsuleCmd: "CapsuleCmd", TypeCapsuleResp: "CapsuleResp",
	TypeH2CData: "H2CData", TypeC2HData: "C2HData", TypeR2T: "R2T"}

func (t PDUType) String() string {
	if n := pduNames[t]; n != "" {
		return n
	}
	return fmt.Sprintf("PDU type %02xh", uint8(t))
}

// Flags of a PDU's common header.
const (
	FlagHeaderDigest = 1 << 0
	FlagDataDigest   = 1 << 1
	FlagLast         = 1 << 2 // H2CData, C2HData: the last PDU of the transfer
	FlagSuccess      = 1 << 3 // C2HData: no response capsule follows, the command succeeded
)

// Lengths of PDU headers.
const (
	CommonLen      = 8
	ICLen          = 128
	CapsuleCmdLen  = CommonLen + SQELen
	CapsuleRespLen = CommonLen + CQELen
	DataLen        = 24 // H2CData and C2HData
	R2TLen         = 24
	TermReqLen     = 24
	MaxTermReqLen  = 152 // with the header of the PDU in error
	DigestLen      = 4
)

// Limits that the specification sets or that we set on every peer.
const (
	// MinH2CData is the smallest MAXH2CDATA there may be (TCP 3.6.2.3).
	MinH2CData = 4096
	// maxHeaderPad is the largest alignment a peer can ask for, HPDA or CPDA 31.
	maxPDA = 31
)

// headerLen is the length that a PDU's header must have; 0: no such type.
func headerLen(t PDUType) int {
	switch t {
	case TypeICReq, TypeICResp:
		return ICLen
	case TypeH2CTermReq, TypeC2HTermReq:
		return TermReqLen
	case TypeCapsuleCmd:
		return CapsuleCmdLen
	case TypeCapsuleResp:
		return CapsuleRespLen
	case TypeH2CData, TypeC2HData:
		return DataLen
	case TypeR2T:
		return R2TLen
	}
	return 0
}

// hasData reports whether a PDU type may have data.
func hasData(t PDUType) bool {
	return t == TypeCapsuleCmd || t == TypeH2CData || t == TypeC2HData || t == TypeH2CTermReq || t == TypeC2HTermReq
}

// hasDigests reports whether a PDU type takes part in digests (TCP 3.3.1).
func hasDigests(t PDUType) bool {
	switch t {
	case TypeICReq, TypeICResp, TypeH2CTermReq, TypeC2HTermReq:
		return false
	}
	return true
}

// FES is the fatal error status of a termination request (TCP 3.6.2.4).
type FES uint16

// The fatal error statuses.
const (
	FESInvalidHeader    FES = 1 // FEI: offset of the field
	FESSequence         FES = 2
	FESHeaderDigest     FES = 3 // FEI: the digest received
	FESOutOfRange       FES = 4
	FESLimitExceeded    FES = 5 // to a controller's termination: R2T limit; to a host's: data transfer limit
	FESUnsupportedParam FES = 6 // FEI: offset of the field
)

var fesNames = [...]string{0: "", 1: "invalid PDU header field", 2: "PDU sequence error", 3: "header digest error",
	4: "data transfer out of range", 5: "data transfer limit exceeded", 6: "unsupported parameter"}

func (f FES) String() string {
	if int(f) < len(fesNames) && f > 0 {
		return fesNames[f]
	}
	return fmt.Sprintf("fatal error status %d", uint16(f))
}

// ProtocolError is a violation of the transport by the peer, after which the
// connection has to end with a termination request.
type ProtocolError struct {
	FES    FES
	FEI    uint32 // further information, by FES
	Header []byte // of the PDU in error, as far as it is known
	Msg    string
}

func (e *ProtocolError) Error() string { return fmt.Sprintf("%s: %s", e.FES, e.Msg) }

// ICReq is the first PDU of a connection (TCP 3.6.2.2).
type ICReq struct {
	PFV                      uint16
	HPDA                     uint8 // data that the host receives begins at a multiple of (HPDA+1)*4
	HeaderDigest, DataDigest bool
	MaxR2T                   uint32 // outstanding R2Ts per command, less one
}

// ICResp is the answer to it (TCP 3.6.2.3).
type ICResp struct {
	PFV                      uint16
	CPDA                     uint8
	HeaderDigest, DataDigest bool
	MaxH2CData               uint32 // bytes of data in one H2CData PDU
}

func digestBits(header, data bool) (b byte) {
	if header {
		b |= 1
	}
	if data {
		b |= 2
	}
	return b
}

// Append appends the PDU.
func (p ICReq) Append(b []byte) []byte {
	b, h := extend(b, ICLen)
	putCommon(h, TypeICReq, 0, ICLen, 0, ICLen)
	le.PutUint16(h[8:], p.PFV)
	h[10], h[11] = p.HPDA, digestBits(p.HeaderDigest, p.DataDigest)
	le.PutUint32(h[12:], p.MaxR2T)
	return b
}

// ParseICReq reads an ICReq from the header that [Reader.Next] returned.
func ParseICReq(h []byte) (p ICReq, err error) {
	p = ICReq{PFV: le.Uint16(h[8:]), HPDA: h[10], HeaderDigest: h[11]&1 != 0, DataDigest: h[11]&2 != 0, MaxR2T: le.Uint32(h[12:])}
	switch {
	case p.PFV != 0:
		return p, &ProtocolError{FES: FESUnsupportedParam, FEI: 8, Header: h, Msg: fmt.Sprintf("PDU format version %d", p.PFV)}
	case p.HPDA > maxPDA:
		return p, &ProtocolError{FES: FESInvalidHeader, FEI: 10, Header: h, Msg: fmt.Sprintf("host data alignment %d", p.HPDA)}
	}
	return p, nil
}

// Append appends the PDU.
func (p ICResp) Append(b []byte) []byte {
	b, h := extend(b, ICLen)
	putCommon(h, TypeICResp, 0, ICLen, 0, ICLen)
	le.PutUint16(h[8:], p.PFV)
	h[10], h[11] = p.CPDA, digestBits(p.HeaderDigest, p.DataDigest)
	le.PutUint32(h[12:], p.MaxH2CData)
	return b
}

// ParseICResp reads an ICResp from the header that [Reader.Next] returned.
func ParseICResp(h []byte) (p ICResp, err error) {
	p = ICResp{PFV: le.Uint16(h[8:]), CPDA: h[10], HeaderDigest: h[11]&1 != 0, DataDigest: h[11]&2 != 0, MaxH2CData: le.Uint32(h[12:])}
	switch {
	case p.PFV != 0:
		return p, &ProtocolError{FES: FESUnsupportedParam, FEI: 8, Header: h, Msg: fmt.Sprintf("PDU format version %d", p.PFV)}
	case p.CPDA > maxPDA:
		return p, &ProtocolError{FES: FESInvalidHeader, FEI: 10, Header: h, Msg: fmt.Sprintf("controller data alignment %d", p.CPDA)}
	case p.MaxH2CData < MinH2CData:
		return p, &ProtocolError{FES: FESInvalidHeader, FEI: 12, Header: h, Msg: fmt.Sprintf("MAXH2CDATA %d", p.MaxH2CData)}
	}
	return p, nil
}

// TermReq ends a connection: from the host (H2CTermReq) or from the
// controller (C2HTermReq) (TCP 3.6.2.4 and 3.6.2.5).
type TermReq struct {
	FromHost bool
	FES      FES
	FEI      uint32
	Header   []byte // of the PDU in error, at most 128 bytes of it
}

// Append appends the PDU.
func (p TermReq) Append(b []byte) []byte {
	t := TypeC2HTermReq
	if p.FromHost {
		t = TypeH2CTermReq
	}
	data := p.Header[:min(len(p.Header), MaxTermReqLen-TermReqLen)]
	b, h := extend(b, TermReqLen)
	putCommon(h, t, 0, TermReqLen, 0, TermReqLen+len(data))
	le.PutUint16(h[8:], uint16(p.FES))
	le.PutUint32(h[10:], p.FEI)
	return append(b, data...)
}

// ParseTermReq reads a termination request from the header that [Reader.Next]
// returned; its data is the caller's to read.
func ParseTermReq(h []byte) TermReq {
	return TermReq{FromHost: PDUType(h[0]) == TypeH2CTermReq, FES: FES(le.Uint16(h[8:])), FEI: le.Uint32(h[10:])}
}

// Data is the header of an H2CData or C2HData PDU (TCP 3.6.2.8, 3.6.2.9).
type Data struct {
	CID     uint16 // CCCID: the command's ID
	TTag    uint16 // H2CData alone: the R2T's tag
	Offset  uint32 // DATAO: in the command's data
	Length  uint32 // DATAL
	Last    bool
	Success bool // C2HData alone
}

// ParseData reads a data PDU's header; dataLen is [Reader.DataLen].
func ParseData(h []byte, dataLen int) (Data, error) {
	d := Data{CID: le.Uint16(h[8:]), TTag: le.Uint16(h[10:]), Offset: le.Uint32(h[12:]), Length: le.Uint32(h[16:]),
		Last: h[1]&FlagLast != 0, Success: h[1]&FlagSuccess != 0}
	if uint64(d.Length) != uint64(dataLen) {
		return d, &ProtocolError{FES: FESInvalidHeader, FEI: 16, Header: h, Msg: fmt.Sprintf("DATAL %d with %d bytes of data", d.Length, dataLen)}
	}
	return d, nil
}

// R2T asks the host for data of a command (TCP 3.6.2.10).
type R2T struct {
	CID, TTag      uint16
	Offset, Length uint32
}

// ParseR2T reads an R2T from the header that [Reader.Next] returned.
func ParseR2T(h []byte) R2T {
	return R2T{CID: le.Uint16(h[8:]), TTag: le.Uint16(h[10:]), Offset: le.Uint32(h[12:]), Length: le.Uint32(h[16:])}
}

// extend makes b longer by n zeros and returns them as well.
func extend(b []byte, n int) (whole, added []byte) {
	var zeros [128]byte
	b = append(b, zeros[:n]...)
	return b, b[len(b)-n:]
}

func putCommon(h []byte, t PDUType, flags byte, hlen, pdo, plen int) {
	h[0], h[1], h[2], h[3] = byte(t), flags, byte(hlen), byte(pdo)
	le.PutUint32(h[4:], uint32(plen))
}

// Framing is how one side of a connection sends PDUs.
type Framing struct {
	HeaderDigest, DataDigest bool
	PDA                      uint8 // the receiver's: data begins at a multiple of (PDA+1)*4
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Digest returns the CRC32C of bytes, continuing from an earlier digest or
// from 0 (TCP 3.3.1.1).
func Digest(crc uint32, p []byte) uint32 { return crc32.Update(crc, castagnoli, p) }

// begin appends the header of a PDU with n bytes of data, its fields but the
// common ones zero.
func (f Framing) begin(b []byte, t PDUType, flags byte, hlen, n int) (whole, h []byte) {
	plen := hlen
	if f.HeaderDigest {
		flags |= FlagHeaderDigest
		plen += DigestLen
	}
	pdo := 0
	if n > 0 {
		align := (int(f.PDA) + 1) * 4
		pdo = (plen + align - 1) / align * align
		plen = pdo + n
		if f.DataDigest {
			flags |= FlagDataDigest
			plen += DigestLen
		}
	}
	b, h = extend(b, hlen)
	putCommon(h, t, flags, hlen, pdo, plen)
	return b, h
}

// end appends what follows the header h, up to the data.
func (f Framing) end(b, h []byte) []byte {
	n := len(h)
	if f.HeaderDigest {
		b = le.AppendUint32(b, Digest(0, h))
		n += DigestLen
	}
	if pad := int(h[3]) - n; pad > 0 {
		b, _ = extend(b, pad)
	}
	return b
}

// AppendCommand appends the header of a command capsule, after which n bytes
// of in-capsule data have to follow, and [Framing.AppendDigest].
func (f Framing) AppendCommand(b []byte, c *SQE, n int) []byte {
	b, h := f.begin(b, TypeCapsuleCmd, 0, CapsuleCmdLen, n)
	copy(h[CommonLen:], c[:])
	return f.end(b, h)
}

// AppendResponse appends a response capsule.
func (f Framing) AppendResponse(b []byte, c CQE) []byte {
	b, h := f.begin(b, TypeCapsuleResp, 0, CapsuleRespLen, 0)
	c.put(h[CommonLen:])
	return f.end(b, h)
}

// AppendC2HData appends the header of a C2HData PDU, after which d.Length
// bytes of data have to follow, and [Framing.AppendDigest].
func (f Framing) AppendC2HData(b []byte, d Data) []byte { return f.appendData(b, TypeC2HData, d) }

// AppendH2CData is AppendC2HData for the host.
func (f Framing) AppendH2CData(b []byte, d Data) []byte { return f.appendData(b, TypeH2CData, d) }

func (f Framing) appendData(b []byte, t PDUType, d Data) []byte {
	var flags byte
	if d.Last {
		flags |= FlagLast
	}
	if d.Success {
		flags |= FlagSuccess
	}
	b, h := f.begin(b, t, flags, DataLen, int(d.Length))
	le.PutUint16(h[8:], d.CID)
	le.PutUint16(h[10:], d.TTag)
	le.PutUint32(h[12:], d.Offset)
	le.PutUint32(h[16:], d.Length)
	return f.end(b, h)
}

// AppendR2T appends an R2T PDU.
func (f Framing) AppendR2T(b []byte, r R2T) []byte {
	b, h := f.begin(b, TypeR2T, 0, R2TLen, 0)
	le.PutUint16(h[8:], r.CID)
	le.PutUint16(h[10:], r.TTag)
	le.PutUint32(h[12:], r.Offset)
	le.PutUint32(h[16:], r.Length)
	return f.end(b, h)
}

// AppendDigest appends the digest of a PDU's data, if data has digests.
func (f Framing) AppendDigest(b []byte, data ...[]byte) []byte {
	if !f.DataDigest {
		return b
	}
	crc := uint32(0)
	for _, d := range data {
		crc = Digest(crc, d)
	}
	return le.AppendUint32(b, crc)
}
