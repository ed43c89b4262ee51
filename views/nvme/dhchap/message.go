package dhchap

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/spacestore/space/capsule"
)

// MaxMessage is longer than any message: a host may receive into a buffer of
// this size, and a controller need not take more.
const MaxMessage = 4096

// Messages begin with their type, their number in it, two reserved bytes and
// the transaction.
const (
	typeCommon = 0x00
	typeDHCHAP = 0x01

	idNegotiate = 0x00
	idChallenge = 0x01
	idReply     = 0x02
	idSuccess1  = 0x03
	idSuccess2  = 0x04
	idFailure2  = 0xf0
	idFailure1  = 0xf1

	protocolDHCHAP = 0x01

	headerSize     = 16 // of challenge, reply, success1 and success2
	negotiateSize  = 8
	descriptorSize = 64
	groupsAt       = 34 // the second half of a descriptor's list
	maxIDs         = 30 // each half's length
	failureSize    = 8
)

// Reason says why authentication failed.
type Reason uint8

// The reasons ("reason code explanations").
const (
	Failed           Reason = 1 // the response is wrong, or there is no secret to check it with
	NotUsable        Reason = 2 // no common authentication protocol
	ConcatMismatch   Reason = 3 // secure channel concatenation asked for and not to be had
	HashUnusable     Reason = 4 // no common hash function
	GroupUnusable    Reason = 5 // no common Diffie-Hellman group, or a value that is none of it
	IncorrectPayload Reason = 6 // a message that cannot be read
	IncorrectMessage Reason = 7 // a message out of its order
)

var reasons = [...]string{
	Failed:           "the secrets do not match",
	NotUsable:        "no common authentication protocol",
	ConcatMismatch:   "secure channel concatenation is not available",
	HashUnusable:     "no common hash function",
	GroupUnusable:    "no common Diffie-Hellman group",
	IncorrectPayload: "a message could not be read",
	IncorrectMessage: "a message came out of its order",
}

func (r Reason) String() string {
	if r >= Failed && int(r) < len(reasons) {
		return reasons[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// FailureError is the end of an authentication that did not succeed.
type FailureError struct {
	Reason Reason
	Peer   bool // the other side says so
}

func (e *FailureError) Error() string {
	if e.Peer {
		return "authentication failed, says the other side: " + e.Reason.String()
	}
	return "authentication failed: " + e.Reason.String()
}

// Unwrap gives the error its kind.
func (e *FailureError) Unwrap() error {
	return &capsule.Error{Kind: capsule.Denied, Msg: e.Reason.String()}
}

// Negotiate is the host's first message: what it can do, best first.
type Negotiate struct {
	Transaction   uint16
	SecureChannel uint8 // 0: no secure channel concatenation
	Hashes        []Hash
	Groups        []Group
}

// Challenge is the controller's answer.
type Challenge struct {
	Transaction uint16
	Hash        Hash
	Group       Group
	Sequence    uint32
	Value       []byte // as long as Hash's results
	Public      []byte // as long as Group's prime
}

// Reply is the host's response, and its own challenge if it wants the
// controller to prove itself.
type Reply struct {
	Transaction uint16
	Sequence    uint32
	Response    []byte
	Challenge   []byte // nil: none
	Public      []byte
}

// Success1 tells the host that it is authenticated, with the controller's
// response if it was asked for.
type Success1 struct {
	Transaction uint16
	HashSize    int
	Response    []byte // nil: none
}

// Success2 tells the controller that it is authenticated.
type Success2 struct {
	Transaction uint16
}

// Failure ends the protocol, from either side.
type Failure struct {
	Transaction uint16
	Host        bool // the host sends it (Failure2), not the controller (Failure1)
	Reason      Reason
}

func header(size int, kind, id byte, transaction uint16) []byte {
	b := make([]byte, size)
	b[0], b[1] = kind, id
	binary.LittleEndian.PutUint16(b[4:], transaction)
	return b
}

// Append appends the message to b.
func (m *Negotiate) Append(b []byte) []byte {
	p := header(negotiateSize+descriptorSize, typeCommon, idNegotiate, m.Transaction)
	p[6] = m.SecureChannel
	p[7] = 1 // one descriptor
	d := p[negotiateSize:]
	d[0] = protocolDHCHAP
	hashes, groups := m.Hashes[:min(len(m.Hashes), maxIDs)], m.Groups[:min(len(m.Groups), maxIDs)]
	d[2], d[3] = byte(len(hashes)), byte(len(groups))
	for i, h := range hashes {
		d[4+i] = byte(h)
	}
	for i, g := range groups {
		d[groupsAt+i] = byte(g)
	}
	return append(b, p...)
}

// Append appends the message to b.
func (m *Challenge) Append(b []byte) []byte {
	p := header(headerSize, typeDHCHAP, idChallenge, m.Transaction)
	p[6] = byte(len(m.Value))
	p[8], p[9] = byte(m.Hash), byte(m.Group)
	binary.LittleEndian.PutUint16(p[10:], uint16(len(m.Public)))
	binary.LittleEndian.PutUint32(p[12:], m.Sequence)
	return append(append(append(b, p...), m.Value...), m.Public...)
}

// Append appends the message to b.
func (m *Reply) Append(b []byte) []byte {
	p := header(headerSize, typeDHCHAP, idReply, m.Transaction)
	p[6] = byte(len(m.Response))
	challenge := m.Challenge
	if challenge != nil {
		p[8] = 1
	} else {
		challenge = make([]byte, len(m.Response))
	}
	binary.LittleEndian.PutUint16(p[10:], uint16(len(m.Public)))
	binary.LittleEndian.PutUint32(p[12:], m.Sequence)
	return append(append(append(append(b, p...), m.Response...), challenge...), m.Public...)
}

// Append appends the message to b.
func (m *Success1) Append(b []byte) []byte {
	p := header(headerSize+m.HashSize, typeDHCHAP, idSuccess1, m.Transaction)
	p[6] = byte(m.HashSize)
	if m.Response != nil {
		p[8] = 1
		copy(p[headerSize:], m.Response)
	}
	return append(b, p...)
}

// Append appends the message to b.
func (m *Success2) Append(b []byte) []byte {
	return append(b, header(headerSize, typeDHCHAP, idSuccess2, m.Transaction)...)
}

// Append appends the message to b.
func (m *Failure) Append(b []byte) []byte {
	id := byte(idFailure1)
	if m.Host {
		id = idFailure2
	}
	p := header(failureSize, typeCommon, id, m.Transaction)
	p[6], p[7] = 1, byte(m.Reason) // 1: "authentication failure", the only code
	return append(b, p...)
}

// errPayload is a parser's answer to bytes that are not the message.
var errPayload = &FailureError{Reason: IncorrectPayload}

// Parse reads the message in p into one of this package's message types, which
// then refers to p. Bytes after the message are no fault: a receive buffer may
// be longer. What it refuses is a *[FailureError].
func Parse(p []byte) (any, error) {
	if len(p) < failureSize {
		return nil, errPayload
	}
	tid := binary.LittleEndian.Uint16(p[4:])
	switch [2]byte{p[0], p[1]} {
	case [2]byte{typeCommon, idNegotiate}:
		m, err := parseNegotiate(p, tid)
		if err != nil {
			return nil, err // a nil *Negotiate is no nil any
		}
		return m, nil
	case [2]byte{typeCommon, idFailure1}, [2]byte{typeCommon, idFailure2}:
		return &Failure{Transaction: tid, Host: p[1] == idFailure2, Reason: Reason(p[7])}, nil
	}
	if p[0] != typeDHCHAP {
		return nil, &FailureError{Reason: IncorrectMessage}
	}
	if len(p) < headerSize {
		return nil, errPayload
	}
	size := int(p[6])
	body := p[headerSize:]
	switch p[1] {
	case idChallenge:
		public := int(binary.LittleEndian.Uint16(p[10:]))
		m := &Challenge{Transaction: tid, Hash: Hash(p[8]), Group: Group(p[9]), Sequence: binary.LittleEndian.Uint32(p[12:])}
		switch {
		case !m.Hash.valid() || m.Hash.Size() != size:
			return nil, &FailureError{Reason: HashUnusable}
		case !m.Group.valid():
			return nil, &FailureError{Reason: GroupUnusable}
		case public != m.Group.size() || len(body) < size+public:
			return nil, errPayload
		}
		m.Value = body[:size:size]
		m.Public = body[size : size+public : size+public]
		return m, nil
	case idReply:
		public := int(binary.LittleEndian.Uint16(p[10:]))
		m := &Reply{Transaction: tid, Sequence: binary.LittleEndian.Uint32(p[12:])}
		if size == 0 || len(body) < 2*size+public {
			return nil, errPayload
		}
		m.Response = body[:size:size]
		if p[8]&1 != 0 {
			m.Challenge = body[size : 2*size : 2*size]
		}
		m.Public = body[2*size : 2*size+public : 2*size+public]
		return m, nil
	case idSuccess1:
		m := &Success1{Transaction: tid, HashSize: size}
		if p[8]&1 != 0 {
			if len(body) < size {
				return nil, errPayload
			}
			m.Response = body[:size:size]
		}
		return m, nil
	case idSuccess2:
		return &Success2{Transaction: tid}, nil
	}
	return nil, &FailureError{Reason: IncorrectMessage}
}

// parseNegotiate leaves out the algorithms that this package does not know.
func parseNegotiate(p []byte, tid uint16) (*Negotiate, error) {
	m := &Negotiate{Transaction: tid, SecureChannel: p[6]}
	n := int(p[7])
	if len(p) < negotiateSize+n*descriptorSize {
		return nil, errPayload
	}
	for d := range slices.Chunk(p[negotiateSize:negotiateSize+n*descriptorSize], descriptorSize) {
		if d[0] != protocolDHCHAP {
			continue // another protocol
		}
		if d[2] > maxIDs || d[3] > maxIDs {
			return nil, errPayload
		}
		for _, h := range d[4 : 4+d[2]] {
			if Hash(h).valid() {
				m.Hashes = append(m.Hashes, Hash(h))
			}
		}
		for _, g := range d[groupsAt : groupsAt+d[3]] {
			if Group(g).valid() {
				m.Groups = append(m.Groups, Group(g))
			}
		}
		return m, nil
	}
	return nil, &FailureError{Reason: NotUsable}
}
