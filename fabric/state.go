package fabric

import (
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
)

// RegistryVersion names the form of TunnelState and StreamState.
const RegistryVersion = "space.fabric_stream_registry.v1"

// Status is a node, in numbers.
type Status struct {
	Node         identity.NodeID   `json:"node"`
	Fabric       identity.FabricID `json:"fabric"`
	Name         string            `json:"name"`
	Area         string            `json:"area"`
	Organization string            `json:"organization"` // as its certificate says
	Addrs        []string          `json:"addrs"`        // where it listens, as Options.Seeds has them
	Relay        bool              `json:"relay"`
	Authority    bool              `json:"authority"`
	Draining     bool              `json:"draining"`
	Started      time.Time         `json:"started"`
	CertRenewal  time.Time         `json:"certificate_renewal"`           // when it asks for the next certificate
	Rejected     time.Time         `json:"certificate_rejected,omitzero"` // when another node did not take the certificate, lately
	Nodes        int               `json:"nodes"`                         // that its directory knows
	Sessions     int               `json:"sessions"`
	Tunnels      int               `json:"tunnels"`
	Streams      int               `json:"streams"`
	PassedOn     int               `json:"passed_on"`          // connections that pass through this node now
	Windows      int64             `json:"window_bytes"`       // that all streams' windows have taken
	WindowLimit  int64             `json:"window_limit_bytes"` // of the node
	Failovers    int64             `json:"failovers"`          // tunnels that went on with another node
	Refused      int64             `json:"refused"`            // tunnels and streams beyond a limit
	Classes      []ClassState      `json:"classes"`
}

// ClassState is what a class has moved since the node started.
type ClassState struct {
	Class    frame.Class `json:"class"`
	Sent     int64       `json:"sent_bytes"`
	Received int64       `json:"received_bytes"`
	Dropped  int64       `json:"dropped"`      // frames of packets
	Queued   int64       `json:"queued_bytes"` // that no link has taken, now
	Delay    DelayState  `json:"delay"`
}

// DelayState is how long frames waited for their turn: how many for up to each
// of session.DelayBounds, and, the last one, for longer.
type DelayState struct {
	Buckets []int64       `json:"buckets"`
	Sum     time.Duration `json:"sum_ns"`
	Max     time.Duration `json:"max_ns"`
}

// TunnelState is a tunnel in the stream registry.
type TunnelState struct {
	Version      string        `json:"version"` // RegistryVersion
	Contract     Contract      `json:"contract"`
	Organization string        `json:"organization,omitempty"`
	Opener       bool          `json:"opener"` // this end has asked for the tunnel
	State        string        `json:"state"`  // "opening", "up", "no route", "closed"
	Peer         string        `json:"peer"`   // node
	Route        string        `json:"route"`  // as RouteState has it: carrier, and through whom
	Opened       time.Time     `json:"opened"`
	Sent         int64         `json:"sent_bytes"`
	Received     int64         `json:"received_bytes"`
	StreamsEver  int64         `json:"streams_ever"`
	Streams      []StreamState `json:"streams"`           // at most MaxRegistered of them
	Omitted      int           `json:"omitted,omitempty"` // streams beyond that
}

// StreamState is a stream in the registry.
type StreamState struct {
	ID       uint64      `json:"id"` // in its session
	Class    frame.Class `json:"class"`
	Opener   bool        `json:"opener"` // it was opened at this end
	State    string      `json:"state"`  // "open", "half closed (here)", "half closed (peer)"
	Sent     int64       `json:"sent_bytes"`
	Received int64       `json:"received_bytes"`
	Opened   time.Time   `json:"opened"`
}

// MaxRegistered is how many streams a TunnelState lists.
const MaxRegistered = 256

// RouteState is how the links to a peer go now, and how well.
type RouteState struct {
	Peer       identity.NodeID `json:"peer"`
	Name       string          `json:"name,omitempty"` // of the peer
	Carrier    string          `json:"carrier"`        // of the best link
	Via        string          `json:"via,omitempty"`  // the node that passes it on
	Dialed     bool            `json:"dialed"`         // from here
	State      string          `json:"state"`          // "up", "down"
	Links      int             `json:"links"`
	Tunnels    int             `json:"tunnels"`
	LeaseID    string          `json:"lease_id"`
	Epoch      uint64          `json:"epoch"`
	Generation uint64          `json:"generation"`
	Expires    time.Time       `json:"lease_expires"`
	RTT        time.Duration   `json:"rtt_ns"`           // smoothed; 0: not measured yet
	Loss       float64         `json:"loss"`             // part of the bytes that went twice, lately
	Throughput int64           `json:"throughput_bytes"` // a second, both ways, lately
	LostLinks  int64           `json:"lost_links"`
	Since      time.Time       `json:"since"`
}

// NodeState is what the directory tells of a node.
type NodeState struct {
	Node identity.NodeID `json:"node"`
	Name string          `json:"name"`
	Area string          `json:"area"`
	// Organization is whose it is, as its certificate says.
	Organization string         `json:"organization"`
	Addrs        []string       `json:"addrs"`
	Relay        bool           `json:"relay"`
	Services     []ServiceState `json:"services"`
	Self         bool           `json:"self"`
	Session      bool           `json:"session"` // there is one now
	Expires      time.Time      `json:"expires"`
}

// ServiceState is a service that a node provides.
type ServiceState struct {
	Pool string `json:"pool"`
	Kind string `json:"kind"`
	Role string `json:"role,omitempty"`
}
