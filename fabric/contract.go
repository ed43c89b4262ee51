package fabric

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// ContractVersion names the form of Contract.
const ContractVersion = "space.fabric_service_tunnel.v1"

// Contract is what a service knows of its tunnel. TunnelID is the only identity
// that lasts; the service IDs are aliases of it, and lease and generation change
// with the route.
type Contract struct {
	TunnelID        TunnelID      `json:"tunnel_id"`
	PoolID          string        `json:"pool_id"`
	ServiceID       string        `json:"service_id"`
	LocalServiceID  string        `json:"local_service_id"`
	RemoteServiceID string        `json:"remote_service_id"`
	ServiceKind     string        `json:"service_kind"`
	ServiceClass    string        `json:"service_class"`
	ServiceRole     string        `json:"service_role"`
	RouteLeaseID    string        `json:"route_lease_id"`
	RouteGeneration uint64        `json:"route_generation"`
	DataPlane       string        `json:"data_plane"` // "streams" or "packets"
	TrafficClasses  []frame.Class `json:"traffic_classes"`
	StreamShards    int           `json:"stream_shards"` // connections that one stream may be spread over
}

// TunnelID names a tunnel for life.
type TunnelID [16]byte

// String returns 32 hex digits.
func (t TunnelID) String() string { return fmt.Sprintf("%x", t[:]) }

// MarshalText implements encoding.TextMarshaler.
func (t TunnelID) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *TunnelID) UnmarshalText(b []byte) error {
	var id TunnelID
	if n, err := hex.Decode(id[:], b[:min(len(b), 2*len(id))]); err != nil || n != len(id) || len(b) != 2*len(id) {
		return errors.New("fabric: a tunnel ID is 32 hex digits")
	}
	*t = id
	return nil
}

// Stream is a reliable, ordered flow in a tunnel. It goes on, without a byte
// lost or doubled, when the tunnel's route changes; it ends with an error when the
// node at its other end is gone.
type Stream interface {
	net.Conn
	// CloseWrite tells the other end that nothing follows. Reads go on.
	CloseWrite() error
	// Reset ends the stream at once, at both ends. code and text are for the peer.
	Reset(code uint32, text string)
	Class() frame.Class
	// Header returns what the opener has said of the stream.
	Header() []byte
}

// Opener is an end of a tunnel that can open streams.
type Opener interface {
	// Open opens a stream. Where the tunnel has no route just now, it waits for
	// one until ctx is done. header is at most MaxHeader bytes.
	Open(ctx context.Context, class frame.Class, header []byte) (Stream, error)
}

// Accepter is an end of a tunnel to which the other one opens streams.
type Accepter interface {
	// Accept returns the next stream. It fails when ctx is done or the tunnel
	// has ended.
	Accept(ctx context.Context) (Stream, error)
}

// MaxHeader bounds what a stream's opener says of it, in bytes.
const MaxHeader = 2 << 10

// RefusedError says that something is beyond a limit, whose, and when to come
// back.
type RefusedError struct {
	Limit string        // such as "streams of pool build"
	Retry time.Duration // after which it may go; 0: unknown
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.Retry <= 0 {
		return "fabric: refused: " + e.Limit
	}
	return fmt.Sprintf("fabric: refused: %s; try again in %v", e.Limit, e.Retry)
}
