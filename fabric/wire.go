package fabric

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
)

// The first byte of a stream's header in a session says what the stream is.
const (
	streamControl = 1 // the session's one control stream: messages, see below
	streamTunnel  = 2 // then the tunnel's ID, with its sender's side; then the header of its opener
	streamPass    = 3 // then hops and a node: a link that is to be passed on to it; of a node that joins then where it comes from
	streamCall    = 4 // then a name: one request, and the answer
)

// Codes of resets that this package sends.
const (
	codeNoTunnel = 16 // there is no such tunnel (any more)
	codeRefused  = 17 // beyond a limit
	codeNoWay    = 18 // a link can't be passed on
	codeGarbage  = 19
)

// side is the bit of a tunnel's ID that says which end has sent something: IDs
// are made without it, and the provider's end adds it. So both ends of a tunnel
// can be on one node.
const side = 1

// sided returns the tunnel's ID as one of its ends sends it.
func sided(id TunnelID, opener bool) TunnelID {
	id[15] &^= side
	if !opener {
		id[15] |= side
	}
	return id
}

// tunnelKey names an end of a tunnel on this node.
type tunnelKey struct {
	id     TunnelID
	opener bool
}

// receiverOf returns which end a sided ID was sent to.
func receiverOf(id TunnelID) tunnelKey {
	return tunnelKey{sided(id, true), id[15]&side != 0}
}

// tunnelHeader returns the session header of a tunnel's stream.
func tunnelHeader(id TunnelID, opener bool, header []byte) []byte {
	id = sided(id, opener)
	b := make([]byte, 0, 1+len(id)+len(header))
	return append(append(append(b, streamTunnel), id[:]...), header...)
}

// passHeader returns the session header of a link that is passed on.
func passHeader(to identity.NodeID, hops uint8) []byte {
	return append([]byte{streamPass, hops}, to[:]...)
}

// joinHeader is likewise for the connection of a node that joins, which has come from an
// address; not valid: that is not known. Older nodes leave that alone.
func joinHeader(to identity.NodeID, from netip.Addr) []byte {
	if !from.IsValid() {
		from = netip.IPv6Unspecified()
	}
	return append(passHeader(to, 0), from.AsSlice()...)
}

// streamHead is what a stream's session header says.
type streamHead struct {
	what   byte
	tunnel tunnelKey       // streamTunnel: the receiver's end
	to     identity.NodeID // streamPass
	hops   uint8
	joins  bool       // streamPass: it is of a node that joins
	from   netip.Addr // and has come from there; not valid: that is not known
	rest   []byte     // streamTunnel: the opener's header; streamCall: the name
}

func parseHead(b []byte) (h streamHead, err error) {
	if len(b) == 0 {
		return h, fmt.Errorf("%w: a stream without a header", frame.ErrProtocol)
	}
	h.what, b = b[0], b[1:]
	switch h.what {
	case streamControl:
		return h, nil
	case streamTunnel:
		if len(b) < 16 || len(b) > 16+MaxHeader {
			break
		}
		h.tunnel, h.rest = receiverOf(TunnelID(b[:16])), b[16:]
		return h, nil
	case streamPass:
		if len(b) < 17 {
			break
		}
		h.hops, h.to = b[0], identity.NodeID(b[1:17])
		if from, ok := netip.AddrFromSlice(b[17:]); ok && h.hops == 0 {
			h.joins = true
			if !from.IsUnspecified() {
				h.from = from.Unmap()
			}
		}
		return h, nil
	case streamCall:
		if len(b) > 64 {
			break
		}
		h.rest = b
		return h, nil
	}
	return h, fmt.Errorf("%w: a stream with a header of kind %d and %d bytes", frame.ErrProtocol, h.what, len(b))
}

// Messages of the control stream: u32 length, kind, body. Kinds that are unknown
// are skipped.
const (
	msgHello       = 1 // hello, JSON; first, from both ends
	msgCommand     = 2 // a signed command, see package identity; its body is JSON
	msgDigest      = 3 // what the sender has of the directory
	msgRecords     = 4 // signed records of the directory
	msgRevocations = 5 // the authority's list
)

// maxMessage bounds a message's body.
const maxMessage = 4 << 20

// message is one of the control stream's.
type message struct {
	kind byte
	body []byte
}

func (m message) encode() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 5+len(m.body)), uint32(len(m.body)))
	return append(append(b, m.kind), m.body...)
}

// readMessage reads the next message. Memory grows with what has come, not with
// what was announced.
func readMessage(r io.Reader) (m message, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return m, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return m, fmt.Errorf("%w: a control message of %d bytes", frame.ErrProtocol, n)
	}
	m.kind = head[4]
	if m.body, err = readAtMost(r, int(n)); err == nil && len(m.body) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	return m, err
}

// readAtMost reads up to n bytes.
func readAtMost(r io.Reader, n int) ([]byte, error) {
	if n <= 64<<10 {
		b := make([]byte, n)
		k, err := io.ReadFull(r, b)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			err = nil
		}
		return b[:k], err
	}
	return io.ReadAll(io.LimitReader(r, int64(n)))
}

// hello is what both ends of a session say first on its control stream.
type hello struct {
	Life  identity.Epoch `json:"life"` // that commands have to name
	Epoch uint64         `json:"epoch"`
	Name  string         `json:"name"`
	Area  string         `json:"area"`
	// Organization is whose the sender is, for older nodes, which take its word for it.
	Organization string `json:"organization,omitempty"`
	Relay        bool   `json:"relay"`
	// Revoked is the number of the revocation list that the sender has.
	Revoked int64      `json:"revoked"`
	Route   *routeBody `json:"route,omitempty"` // from the dialer: the lease to begin with
}

// Kinds of commands, and their bodies.
const (
	cmdOpen   = "open"   // openBody: answered by cmdOpened
	cmdOpened = "opened" // openedBody
	cmdClose  = "close"  // closeBody
	cmdRoute  = "route"  // routeBody, from the session's dialer; answered by cmdLeased
	cmdLeased = "leased" // routeBody
	cmdMoved  = "moved"  // movedBody, from the tunnels' opener
	cmdDrain  = "drain"  // nothing: the sender is about to go
)

// openBody asks for a tunnel, or for a new route of one.
type openBody struct {
	ID         uint64        `json:"id"`
	Tunnel     TunnelID      `json:"tunnel"`
	Pool       string        `json:"pool"`
	Kind       string        `json:"kind"`
	Role       string        `json:"role"`
	Class      string        `json:"class"`
	Plane      string        `json:"plane"`
	Classes    []frame.Class `json:"classes"`
	Shards     int           `json:"shards"`
	Failover   bool          `json:"failover"`
	Service    string        `json:"service"` // LocalServiceID of the asking end
	Generation uint64        `json:"generation"`
}

// openedBody answers it.
type openedBody struct {
	ID      uint64        `json:"id"`
	Service string        `json:"service"`
	Limit   string        `json:"limit,omitempty"` // refused: which limit
	Retry   time.Duration `json:"retry,omitempty"`
	Error   string        `json:"error,omitempty"`  // refused: anything else
	Absent  bool          `json:"absent,omitempty"` // the service is not provided there (any more)
}

// closeBody ends tunnels at the other end. Their IDs have their sender's side.
// Generations are those that their sender knew of, one for each: where the other
// end has agreed on a later one, the tunnel stays. Streams are how many their
// sender has opened in each over this session: those that are still under way are
// taken in before the tunnel ends. Older nodes say nothing of them.
type closeBody struct {
	Tunnels     []TunnelID `json:"tunnels"`
	Generations []uint64   `json:"generations,omitempty"`
	Streams     []uint64   `json:"streams,omitempty"`
}

// each calls fn for each tunnel. Where its generation was not said, it is the last
// there can be, and where its streams were not, none.
func (b *closeBody) each(fn func(id TunnelID, gen, streams uint64)) {
	for i, id := range b.Tunnels {
		gen, streams := uint64(math.MaxUint64), uint64(0)
		if i < len(b.Generations) {
			gen = b.Generations[i]
		}
		if i < len(b.Streams) {
			streams = b.Streams[i]
		}
		fn(id, gen, streams)
	}
}

// routeBody renews a session's lease and says how its links go.
type routeBody struct {
	Lease      string        `json:"lease"`
	Epoch      uint64        `json:"epoch"`
	Generation uint64        `json:"generation"`
	Life       time.Duration `json:"life"`
	Carrier    string        `json:"carrier"`
	Via        string        `json:"via,omitempty"`
}

// movedBody tells tunnels' generations.
type movedBody struct {
	Tunnels []movedTunnel `json:"tunnels"`
}

type movedTunnel struct {
	ID         TunnelID `json:"id"`
	Generation uint64   `json:"generation"`
}

// Limits of what commands may say.
const (
	maxName    = 256 // bytes of each name
	maxBatch   = 512 // tunnels in a movedBody or closeBody
	maxClasses = int(frame.Classes)
)

// check refuses a request that nobody makes in good faith.
func (o *openBody) check() error {
	for _, s := range []string{o.Pool, o.Kind, o.Role, o.Class, o.Plane, o.Service} {
		if len(s) > maxName {
			return fmt.Errorf("%w: a name of %d bytes", frame.ErrProtocol, len(s))
		}
	}
	if o.Plane != StreamsPlane && o.Plane != PacketsPlane || len(o.Classes) == 0 || len(o.Classes) > maxClasses || o.Shards < 1 || o.Tunnel[15]&side != 0 {
		return fmt.Errorf("%w: not a tunnel that can be", frame.ErrProtocol)
	}
	for _, c := range o.Classes {
		if c >= frame.Classes {
			return fmt.Errorf("%w: a tunnel of class %d", frame.ErrProtocol, c)
		}
	}
	return nil
}
