// Package frame is what nodes of a fabric say to each other: binary frames of
// a fixed head and a body of at most 8 MiB.
//
// A head is 8 bytes: version, type, flags, class, length of the body (u32).
// Numbers are big-endian. A reader skips frames of a type it does not know, and
// bytes at the end of a body that it does not know, so newer nodes can speak to
// older ones. A version that it does not know ends the connection: versions
// are agreed on in Hello, which has the same form in all of them.
//
// The package encodes and decodes; it keeps nothing and starts nothing.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// The versions of the protocol that this package speaks. A frame's head has the
// version that its form is of, so that an older peer can read all frames but
// those that it must not be sent.
const (
	MinVersion = 1
	MaxVersion = 2 // Reset says when to come back
)

// Sizes, in bytes.
const (
	HeadSize   = 8
	MaxBody    = 8 << 20
	DataSize   = 16 // of a Data frame's body, before open header and payload
	WindowSize = 24 // of one entry of a Window frame
	MaxOpen    = 4 << 10
	MaxCommand = 128 << 10
	MaxText    = 512

	MaxPackets     = 2048    // in one Packets frame
	MaxPacketBytes = 4 << 20 // of it
)

// Type is what a frame is.
type Type uint8

// The types.
const (
	Hello   Type = 1  // first on a link, from both ends
	Data    Type = 2  // bytes of a stream
	Window  Type = 3  // what has come of streams, and what there is room for
	Reset   Type = 4  // a stream ends at once
	Packets Type = 5  // packets of a tunnel; may be lost
	Ping    Type = 6  // u64, to be sent back
	Pong    Type = 7  // u64, from the Ping
	Command Type = 8  // a signed control command
	GoAway  Type = 9  // the session ends; u32 code, text
	Retire  Type = 10 // the link is about to be closed: send over others
)

// Flags.
const (
	FlagFin    = 1 << 0 // Data: nothing follows
	FlagOpen   = 1 << 1 // Data at offset 0: u16 length and open header precede the payload
	FlagAnswer = 1 << 0 // Reset: answers one. Retire: nothing is under way over the link from here
	FlagResume = 1 << 0 // Hello: the session must be known already
)

// Class is the priority of what a frame carries; lower numbers go first.
type Class uint8

// The classes.
const (
	Control Class = iota
	Interactive
	DNS
	Packet
	Bulk
	Background
	Classes // how many there are
)

var classNames = [Classes]string{"control", "interactive", "dns", "packet", "bulk", "background"}

func (c Class) String() string {
	if c < Classes {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// ParseClass reads what String returns.
func ParseClass(s string) (Class, error) {
	for c, name := range classNames {
		if s == name {
			return Class(c), nil
		}
	}
	return 0, fmt.Errorf("%.32q is not a traffic class (control, interactive, dns, packet, bulk, background)", s)
}

// MarshalText implements encoding.TextMarshaler.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Class) UnmarshalText(b []byte) (err error) {
	*c, err = ParseClass(string(b))
	return err
}

// ErrProtocol is of all errors that a peer makes in what it sends.
var ErrProtocol = errors.New("fabric: the peer breaks the protocol")

func protocolf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)
}

// Head is a frame's head.
type Head struct {
	Version uint8
	Type    Type
	Flags   uint8
	Class   Class
	Length  int // of the body
}

// Put writes the head into b, which has HeadSize bytes.
func (h Head) Put(b []byte) {
	b[0], b[1], b[2], b[3] = h.Version, byte(h.Type), h.Flags, byte(h.Class)
	binary.BigEndian.PutUint32(b[4:], uint32(h.Length))
}

// ReadHead reads a head. The error is io.EOF only where no byte of a head has
// come.
func ReadHead(r io.Reader) (h Head, err error) {
	var b [HeadSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, err
	}
	n := binary.BigEndian.Uint32(b[4:])
	h = Head{b[0], Type(b[1]), b[2], Class(b[3]), int(n)}
	if n > MaxBody {
		return h, protocolf("a frame of %d bytes", n)
	}
	if h.Type != Hello && (h.Version < MinVersion || h.Version > MaxVersion) {
		return h, protocolf("version %d", h.Version)
	}
	if h.Class >= Classes {
		return h, protocolf("class %d", h.Class)
	}
	return h, nil
}

// ReadBody reads a frame's body of at most limit bytes.
func ReadBody(r io.Reader, h Head, limit int) ([]byte, error) {
	if h.Length > limit {
		return nil, protocolf("%d bytes in a frame of type %d", h.Length, h.Type)
	}
	b := make([]byte, h.Length)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, unexpected(err)
	}
	return b, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Append appends a whole frame to b; its version is MinVersion if h has none.
func Append(b []byte, h Head, body ...[]byte) []byte {
	h.Version, h.Length = max(h.Version, MinVersion), 0
	for _, p := range body {
		h.Length += len(p)
	}
	var head [HeadSize]byte
	h.Put(head[:])
	b = append(b, head[:]...)
	for _, p := range body {
		b = append(b, p...)
	}
	return b
}

// HelloBody is what both ends say first.
type HelloBody struct {
	Min, Max uint8    // versions that the sender speaks
	Link     uint8    // what the dialer means the link for: LinkReserved, or anything
	Session  [16]byte // the dialer's choice; the answer repeats it
	Life     [16]byte // changes when the sender restarts
}

// LinkReserved is the Link of one that is not to be lent to bulk.
const LinkReserved = 1

const helloSize = 3 + 16 + 16

// Encode returns the whole frame.
func (h HelloBody) Encode(flags uint8) []byte {
	b := append([]byte{h.Min, h.Max, h.Link}, h.Session[:]...)
	return Append(nil, Head{Type: Hello, Flags: flags}, append(b, h.Life[:]...))
}

// ReadHello reads a Hello frame, which must come first.
func ReadHello(r io.Reader) (h HelloBody, flags uint8, err error) {
	head, err := ReadHead(r)
	if err != nil {
		return h, 0, unexpected(err)
	}
	if head.Type == GoAway {
		return h, 0, ReadGoAway(r, head)
	}
	if head.Type != Hello || head.Length < helloSize || head.Length > helloSize+MaxText {
		return h, 0, protocolf("a frame of type %d where Hello belongs", head.Type)
	}
	b, err := ReadBody(r, head, helloSize+MaxText)
	if err != nil {
		return h, 0, err
	}
	h.Min, h.Max, h.Link = b[0], b[1], b[2]
	copy(h.Session[:], b[3:])
	copy(h.Life[:], b[19:])
	if h.Min > h.Max {
		return h, 0, protocolf("versions %d to %d", h.Min, h.Max)
	}
	return h, head.Flags, nil
}

// Agree returns the highest version that both ends speak; this one speaks those
// up to max.
func (h HelloBody) Agree(max uint8) (uint8, error) {
	v := min(h.Max, max)
	if v < h.Min || v < MinVersion {
		return 0, fmt.Errorf("fabric: the peer speaks versions %d to %d of the protocol, this node %d to %d; upgrade the older one",
			h.Min, h.Max, MinVersion, max)
	}
	return v, nil
}

// PutData writes the beginning of a Data frame's body into b.
func PutData(b []byte, stream, offset uint64) {
	binary.BigEndian.PutUint64(b, stream)
	binary.BigEndian.PutUint64(b[8:], offset)
}

// ReadData reads the beginning of a Data frame's body, and the open header if
// there is one. payload is how many bytes of the body remain in r.
func ReadData(r io.Reader, h Head) (stream, offset uint64, open []byte, payload int, err error) {
	var b [DataSize + 2]byte
	n := DataSize
	if h.Flags&FlagOpen != 0 {
		n += 2
	}
	if h.Length < n {
		return 0, 0, nil, 0, protocolf("%d bytes in a Data frame", h.Length)
	}
	if _, err := io.ReadFull(r, b[:n]); err != nil {
		return 0, 0, nil, 0, unexpected(err)
	}
	stream, offset = binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])
	if h.Flags&FlagOpen != 0 {
		k := int(binary.BigEndian.Uint16(b[DataSize:]))
		if k > MaxOpen || h.Length < n+k || offset != 0 {
			return 0, 0, nil, 0, protocolf("an open header of %d bytes at offset %d", k, offset)
		}
		open = make([]byte, k)
		if _, err := io.ReadFull(r, open); err != nil {
			return 0, 0, nil, 0, unexpected(err)
		}
		n += k
	}
	payload = h.Length - n
	if offset > 1<<62 || stream == 0 {
		return 0, 0, nil, 0, protocolf("stream %d, offset %d", stream, offset)
	}
	return stream, offset, open, payload, nil
}

// WindowEntry is what a receiver says of one stream.
type WindowEntry struct {
	Stream   uint64
	Received uint64 // all bytes below have come
	Limit    uint64 // bytes below may be sent; NoReader: nobody reads, send no more
}

// NoReader is the Limit of a stream that nobody reads any more.
const NoReader = 1<<64 - 1

// AppendWindow appends an entry to a Window frame's body.
func AppendWindow(b []byte, e WindowEntry) []byte {
	b = binary.BigEndian.AppendUint64(b, e.Stream)
	b = binary.BigEndian.AppendUint64(b, e.Received)
	return binary.BigEndian.AppendUint64(b, e.Limit)
}

// MaxWindows is how many entries a Window frame may have.
const MaxWindows = 1024

// ReadWindow reads a Window frame's body.
func ReadWindow(r io.Reader, h Head) ([]WindowEntry, error) {
	b, err := ReadBody(r, h, MaxWindows*WindowSize)
	if err != nil {
		return nil, err
	}
	if len(b)%WindowSize != 0 {
		return nil, protocolf("%d bytes in a Window frame", len(b))
	}
	es := make([]WindowEntry, len(b)/WindowSize)
	for i := range es {
		p := b[i*WindowSize:]
		es[i] = WindowEntry{binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint64(p[16:])}
	}
	return es, nil
}

// ResetBody ends a stream.
type ResetBody struct {
	Stream uint64
	Code   uint32
	Retry  time.Duration // when to come back, in ms; 0: unknown. Since version 2
	Text   string
}

// Encode returns the whole frame, for a peer of a version.
func (r ResetBody) Encode(version, flags uint8) []byte {
	h := Head{Type: Reset, Flags: flags}
	b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, r.Stream), r.Code)
	if r.Retry > 0 && version >= 2 {
		h.Version = 2
		b = binary.BigEndian.AppendUint32(b, uint32(min(r.Retry.Milliseconds(), math.MaxUint32)))
	}
	return Append(nil, h, append(b, r.Text[:min(len(r.Text), MaxText)]...))
}

// ReadReset reads a Reset frame's body.
func ReadReset(r io.Reader, h Head) (x ResetBody, err error) {
	b, err := ReadBody(r, h, 16+MaxText)
	if err != nil {
		return x, err
	}
	if len(b) < 12 || h.Version >= 2 && len(b) < 16 {
		return x, protocolf("%d bytes in a Reset frame", len(b))
	}
	x.Stream, x.Code = binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:])
	b = b[12:]
	if h.Version >= 2 {
		x.Retry = time.Duration(binary.BigEndian.Uint32(b)) * time.Millisecond
		b = b[4:]
	}
	x.Text = string(b)
	return x, nil
}

// ReadNumber reads the body of a Ping or Pong.
func ReadNumber(r io.Reader, h Head) (uint64, error) {
	b, err := ReadBody(r, h, 8)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, protocolf("%d bytes in a Ping", len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}

// Number returns a whole Ping or Pong frame.
func Number(t Type, n uint64) []byte {
	return Append(nil, Head{Type: t}, binary.BigEndian.AppendUint64(nil, n))
}

// AppendPacket appends a packet to a Packets frame's body, which begins with
// the tunnel's ID. ok is false, and b as it was, when it does not fit.
func AppendPacket(b, packet []byte) (_ []byte, ok bool) {
	if len(packet) > 0xffff || len(b)+2+len(packet) > MaxPacketBytes {
		return b, false
	}
	return append(binary.BigEndian.AppendUint16(b, uint16(len(packet))), packet...), true
}

// ReadPackets reads a Packets frame's body. The packets alias one buffer.
func ReadPackets(r io.Reader, h Head) (tunnel [16]byte, packets [][]byte, err error) {
	b, err := ReadBody(r, h, MaxPacketBytes)
	if err != nil {
		return tunnel, nil, err
	}
	if len(b) < len(tunnel) {
		return tunnel, nil, protocolf("%d bytes in a Packets frame", len(b))
	}
	for b = b[copy(tunnel[:], b):]; len(b) > 0; {
		if len(b) < 2 || len(packets) == MaxPackets {
			return tunnel, nil, protocolf("a malformed Packets frame")
		}
		n := int(binary.BigEndian.Uint16(b))
		if len(b) < 2+n {
			return tunnel, nil, protocolf("a packet of %d bytes in %d", n, len(b)-2)
		}
		packets = append(packets, b[2:2+n:2+n])
		b = b[2+n:]
	}
	return tunnel, packets, nil
}

// GoAwayError is why a peer ends the session.
type GoAwayError struct {
	Code uint32
	Text string
}

func (e *GoAwayError) Error() string { return "fabric: the peer says: " + e.Text }

// Encode returns the whole frame.
func (e *GoAwayError) Encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, e.Code)
	return Append(nil, Head{Type: GoAway}, append(b, e.Text[:min(len(e.Text), MaxText)]...))
}

// ReadGoAway reads a GoAway frame's body; the error is a *GoAwayError if the
// frame is right.
func ReadGoAway(r io.Reader, h Head) error {
	b, err := ReadBody(r, h, 4+MaxText)
	if err != nil {
		return err
	}
	if len(b) < 4 {
		return protocolf("%d bytes in a GoAway frame", len(b))
	}
	return &GoAwayError{binary.BigEndian.Uint32(b), string(b[4:])}
}
