package fabric

import "github.com/spacestore/space/fabric/frame"

// Profile is what a kind of service needs of its tunnels, so that services do
// not have to say it each time.
type Profile struct {
	Name    string
	Kind    string        // of the remote service; "": the caller says
	Pool    string        // where it usually is; "": the caller says
	Class   string        // of the service: frame.Class's name, or vpn_packets
	Role    string        // that a node needs to provide it; "": none
	Plane   string        // StreamsPlane or PacketsPlane
	Classes []frame.Class // that its traffic may have
	Shards  int           // see Contract
	// Failover: when the remote node fails, another one of the pool will do.
	Failover bool
}

// Data planes.
const (
	StreamsPlane = "streams"
	PacketsPlane = "packets"
)

// Profiles are those that come with the fabric.
var Profiles = []Profile{
	{Name: "capsule-replication", Kind: "capsule-replication", Class: "bulk", Plane: StreamsPlane,
		Classes: []frame.Class{frame.Control, frame.Interactive, frame.Bulk, frame.Background}, Shards: 4},
	{Name: "artifact-store", Kind: "artifact-store", Class: "bulk", Plane: StreamsPlane,
		Classes: []frame.Class{frame.Interactive, frame.Bulk, frame.Background}, Shards: 4, Failover: true},
	{Name: "raft", Kind: "raft", Class: "interactive", Plane: StreamsPlane,
		Classes: []frame.Class{frame.Control, frame.Interactive, frame.Bulk}, Shards: 1},
	{Name: "control", Kind: "control", Class: "control", Plane: StreamsPlane,
		Classes: []frame.Class{frame.Control}, Shards: 1, Failover: true},
	{Name: "tcp-forward", Kind: "tcp-forward", Class: "interactive", Plane: StreamsPlane,
		Classes: []frame.Class{frame.Interactive, frame.Bulk}, Shards: 2, Failover: true},
	{Name: "vpn-packets", Kind: "vpn-exit", Pool: "ipv4-egress", Class: "vpn_packets", Role: "ipv4-egress", Plane: PacketsPlane,
		Classes: []frame.Class{frame.Control, frame.DNS, frame.Packet}, Shards: 1, Failover: true},
}
