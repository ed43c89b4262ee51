package fabric

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
)

// Options are for a node. Identity is needed, everything else may be left out.
type Options struct {
	Identity  *identity.Node
	Authority *identity.Authority // nil: it is elsewhere

	Name         string // for people
	Area         string // whose nodes know all of each other
	Organization string // that this node's own tunnels count for, unless they say

	Listen []Listen
	Dial   []carrier.Carrier // the ways out, the best first
	Seeds  []string          // where other nodes are: "tls://host:port", "quic://host:port", "https://…"
	Relay  bool              // pass links of others on
	Links  int               // of a session; 0: 3

	Log *slog.Logger // nil: nothing is logged
}

// Listen is where a node takes in links.
type Listen struct {
	Carrier   carrier.Carrier
	Addr      string
	Advertise string // what others dial; "": the listener's own address
}

// Errors that callers tell apart; see RefusedError too.
var (
	// ErrClosed is of a node, provider or tunnel that was closed.
	ErrClosed = errors.New("fabric: closed")
	// ErrNoProvider is Tunnel's answer where no node that is known provides
	// the service.
	ErrNoProvider = errors.New("fabric: no node provides that service")
	// ErrNoAuthority is of what only the authority's node can do.
	ErrNoAuthority = errors.New("fabric: the authority is at another node; do that there")
)

// Service is what a node provides to others.
type Service struct {
	Profile Profile // Pool, Kind and Role below come from it where they are ""
	Pool    string
	Kind    string
	Role    string
	ID      string // for people; "": the kind
	Backlog int    // tunnels that nobody has accepted; 0: 64
}

// Request is what a service wants a tunnel for.
type Request struct {
	Profile        Profile // Pool, Kind and Role below come from it where they are ""
	Pool           string
	Kind           string
	Role           string
	LocalServiceID string     // for people; "": the kind
	Organization   string     // "": the node's own
	Apart          []TunnelID // to another node than those of these tunnels, such as for a mirror
}

var (
	_ Opener   = (*Tunnel)(nil)
	_ Accepter = (*Tunnel)(nil)
)

var errTODO = errors.New("fabric: not yet")

// Node is this node of the fabric. It may be used from many goroutines.
type Node struct{}

// Start starts a node.
func Start(o Options) (*Node, error) { return nil, errTODO }

// Close ends the node, its tunnels and its sessions.
func (n *Node) Close() error { return nil }

// Drain has the tunnels that others hold to this node move to other nodes,
// where their profile allows it, and takes in no more. It returns when they
// have, or with ctx; Close comes next.
func (n *Node) Drain(ctx context.Context) error { return errTODO }

// ID returns the node's name.
func (n *Node) ID() identity.NodeID { return identity.NodeID{} }

// Addrs returns where the node can be reached, as Options.Seeds has it.
func (n *Node) Addrs() []string { return nil }

// Provide offers a service to the fabric until the Provider is closed.
func (n *Node) Provide(s Service) (*Provider, error) { return nil, errTODO }

// Tunnel asks for a tunnel. It returns when a node of the pool has accepted.
// The error is a *RefusedError when all that could be reached have refused.
func (n *Node) Tunnel(ctx context.Context, r Request) (*Tunnel, error) { return nil, errTODO }

// Status returns the node's numbers.
func (n *Node) Status() Status { return Status{} }

// Tunnels returns the stream registry.
func (n *Node) Tunnels() []TunnelState { return nil }

// Routes returns the routes in use.
func (n *Node) Routes() []RouteState { return nil }

// Nodes returns what the directory knows.
func (n *Node) Nodes() []NodeState { return nil }

// NewToken makes a join token, on the authority's node. addrs nil: where this
// node listens.
func (n *Node) NewToken(life time.Duration, uses int, addrs []string) (identity.Token, error) {
	return identity.Token{}, ErrNoAuthority
}

// Revoke shuts a node out of the fabric, for good, on the authority's node.
func (n *Node) Revoke(id identity.NodeID) error { return ErrNoAuthority }

// Provider is a service that this node provides.
type Provider struct{}

// Accept returns the next tunnel that somebody has asked for.
func (p *Provider) Accept(ctx context.Context) (*Tunnel, error) { return nil, errTODO }

// Close ends the offer. Tunnels stay.
func (p *Provider) Close() error { return nil }

// Tunnel is an end of a tunnel; both ends are alike. It may be used from many
// goroutines.
type Tunnel struct{}

// ID returns the tunnel's name, the same at both ends and for life.
func (t *Tunnel) ID() TunnelID { return TunnelID{} }

// Contract returns the contract as it is now.
func (t *Tunnel) Contract() Contract { return Contract{} }

// Peer returns the node at the other end, now.
func (t *Tunnel) Peer() identity.NodeID { return identity.NodeID{} }

// Changed returns a channel that is closed when the contract's lease or
// generation, or the peer, is no longer what it was.
func (t *Tunnel) Changed() <-chan struct{} { return nil }

// Done is closed when the tunnel has ended.
func (t *Tunnel) Done() <-chan struct{} { return nil }

// Err returns why the tunnel has ended, or nil.
func (t *Tunnel) Err() error { return nil }

// Close ends the tunnel at both ends. What was written to streams still goes
// out.
func (t *Tunnel) Close() error { return nil }

// Open implements Opener.
func (t *Tunnel) Open(ctx context.Context, class frame.Class, header []byte) (Stream, error) {
	return nil, errTODO
}

// Accept implements Accepter.
func (t *Tunnel) Accept(ctx context.Context) (Stream, error) { return nil, errTODO }

// SendPackets sends packets. They are lost where the way is too slow for them,
// the oldest first, and while there is no route; that is no error.
func (t *Tunnel) SendPackets(packets [][]byte) error { return errTODO }

// HandlePackets has fn called with the packets that come, from one goroutine at
// a time for each link; they are fn's own. Before it is called they are dropped.
func (t *Tunnel) HandlePackets(fn func(packets [][]byte)) {}
