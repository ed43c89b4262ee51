package control

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/admit"
	"github.com/spacestore/space/internal/control/controlpb"
)

// Fabric is what the commands of `spacectl fabric` ask of a node of the fabric.
type Fabric interface {
	Status(ctx context.Context) (fabric.Status, error)
	Nodes(ctx context.Context) ([]fabric.NodeState, error)
	Tunnels(ctx context.Context) ([]fabric.TunnelState, error)
	Routes(ctx context.Context) ([]fabric.RouteState, error)
	// Usage lists what counts for whom, and the limits.
	Usage(ctx context.Context) ([]FabricUsage, error)
	// NewToken makes a join token, on the authority's node.
	NewToken(ctx context.Context, req TokenRequest) (string, error)
	// Revoke shuts a node out, by its ID or name, and returns its ID.
	Revoke(ctx context.Context, node string) (string, error)

	// Transfers lists those that run.
	Transfers(ctx context.Context) ([]TransferState, error)
	// ChangeTransfer changes one, and returns what it is then.
	ChangeTransfer(ctx context.Context, c TransferChange) (TransferState, error)

	// The jobs run until ctx ends or they are done; they tell how they go, from
	// one goroutine at a time. What tell returns ends the job.
	Expose(ctx context.Context, req ExposeRequest, tell func(JobEvent) error) error
	Forward(ctx context.Context, req ForwardRequest, tell func(JobEvent) error) error
	VPN(ctx context.Context, req VPNRequest, tell func(JobEvent) error) error
	Send(ctx context.Context, req SendRequest, tell func(JobEvent) error) error
	Receive(ctx context.Context, req ReceiveRequest, tell func(JobEvent) error) error
	Accept(ctx context.Context, req AcceptRequest, tell func(JobEvent) error) error
}

// FabricUsage is what the node, or one route, pool, organization or service, has
// in use, and may have.
type FabricUsage struct {
	Scope   string        `json:"scope"`
	Name    string        `json:"name,omitempty"`
	Used    admit.Numbers `json:"used"`
	Limit   FabricLimit   `json:"limit"`
	Refused int64         `json:"refused"` // ever
}

// FabricLimit is an admit.Limit; 0: none.
type FabricLimit struct {
	Sessions int64 `json:"sessions"`
	Tunnels  int64 `json:"tunnels"`
	Streams  int64 `json:"streams"`
	Window   int64 `json:"window_bytes"`
	Rate     int64 `json:"bytes_per_second"`
	Burst    int64 `json:"burst_bytes"`
}

// TokenRequest asks for a join token.
type TokenRequest struct {
	Life      time.Duration
	Uses      int
	Addresses []string // where the fabric can be joined; none: where the node listens
	// Organization is whose nodes may join with it; "": the default one's.
	Organization string
}

// ExposeRequest offers the TCP service at an address as a pool.
type ExposeRequest struct {
	Pool          string
	Address       string   // host:port, or unix:PATH; "": those who forward have to say
	Allow         []string // what else they may ask for (see package forward)
	Peers         []string // nodes that may, by ID; none: all of the fabric
	ProxyProtocol bool     // tell the service who calls
	Connections   int      // at a time; 0: as the fabric has it
}

// ForwardRequest carries connections to an address here to a pool.
type ForwardRequest struct {
	Listen string // host:port
	Pool   string
	Kind   string        // "": tcp-forward
	Target string        // what to ask the other end for; "": what it exposes
	Bulk   bool          // its traffic goes after interactive one
	Wait   time.Duration // for a node that provides it
}

// VPNRequest carries packets of a TUN device: to an exit, or, as one, from many.
type VPNRequest struct {
	Exit     bool          // be the way out for others, instead of using one
	Networks []string      // of an exit: whose addresses it gives out, such as 10.77.0.0/24 and fd77::/64
	Device   string        // "": the kernel names it
	MTU      int           // 0: as usual
	Pool     string        // "": ipv4-egress
	Routes   []string      // of a client: networks that are reached through the tunnel
	Bypass   []string      // of a client: those that are not, although a route covers them
	Wait     time.Duration // for a node that provides it
}

// SendRequest offers a file or directory under a name.
type SendRequest struct {
	Path  string // absolute
	Name  string
	Times int // how many have to receive it whole; 0: it is offered until ctx ends
	// SkipUnreadable leaves out what can't be read, instead of offering nothing.
	SkipUnreadable bool

	// To is a node, by ID or name, that is asked to receive it, and has to have agreed
	// beforehand; "": it is offered to whoever asks. The others are for this.
	To         string
	Rate       int64         // 0: as fast as it goes
	Background bool          // after all other traffic
	Wait       time.Duration // for the node
}

// AcceptRequest takes what other nodes send to this one.
type AcceptRequest struct {
	Into    string   // directory, absolute
	From    []string // the nodes that may, by ID
	MaxSize int64    // of one; 0: any
	Times   int      // how many are taken; 0: it goes on until ctx ends
}

// ReceiveRequest fetches what is offered under a name.
type ReceiveRequest struct {
	Name    string
	Target  string // absolute
	Rate    int64
	Mirrors int           // nodes to fetch from at once; 0: two
	Wait    time.Duration // for a node that provides it
	// Background has it wait for all other traffic.
	Background bool
	// From are the nodes to fetch from, by ID or name: where two have different
	// contents, the first one's count. None: any that have the same.
	From []string
}

// JobEvent is what a job says: what is set of it.
type JobEvent struct {
	Ready    string // it works now; where
	Note     string
	Transfer *TransferState
}

// States of a transfer.
const (
	TransferRunning = "running"
	TransferPaused  = "paused"
	TransferWaiting = "waiting" // for the other end
	TransferDone    = "done"
)

// Kinds of transfers.
const (
	TransferReceive = "receive"
	TransferOffer   = "offer"  // for others to receive
	TransferPush    = "push"   // to a node
	TransferAccept  = "accept" // from a node that pushes
)

// Priorities of a transfer.
const (
	PriorityNormal     = "normal"
	PriorityBackground = "background" // after all other traffic
)

// TransferState is a transfer of files, and how far it is.
type TransferState struct {
	ID       string           `json:"id"`
	Kind     string           `json:"kind"`
	State    string           `json:"state"`
	Name     string           `json:"name"`
	Path     string           `json:"path"`
	Peer     string           `json:"peer,omitempty"` // where there is one alone
	Bytes    int64            `json:"bytes"`
	Total    int64            `json:"total_bytes"`   // -1: not known yet
	Resumed  int64            `json:"resumed_bytes"` // of Bytes, those that were there at the beginning
	Files    int64            `json:"files"`
	Rate     int64            `json:"bytes_per_second"` // lately
	ETA      *float64         `json:"eta_seconds"`      // nil: not known
	Limit    int64            `json:"limit_bytes_per_second"`
	Priority string           `json:"priority"`
	Since    time.Time        `json:"since"`
	Mirrors  []TransferMirror `json:"mirrors,omitempty"`
	Hash     string           `json:"hash,omitempty"` // of all contents, when it is done
}

// TransferMirror is a node that something is received from.
type TransferMirror struct {
	Node    string `json:"node"`
	Bytes   int64  `json:"bytes"`
	Corrupt int    `json:"corrupt_chunks"`
	Failed  int    `json:"failures"`
	Out     string `json:"out,omitempty"` // why nothing more is fetched from it
}

// TransferChange is what is to become of a transfer that runs; nil: that stays as it is.
type TransferChange struct {
	ID         string
	Cancel     bool
	Paused     *bool
	Rate       *int64 // 0: as fast as it goes
	Background *bool
}

// FabricSocketName is the name of the fabric's control socket in SPACE_HOME.
const FabricSocketName = "fabric.sock"

// FabricSocketPath is where the node of the fabric at home listens.
func FabricSocketPath(home string) string { return filepath.Join(home, FabricSocketName) }

// ListenFabric makes the control socket of the fabric's node at home, whose
// lock the caller holds.
func ListenFabric(home string) (net.Listener, error) { return listen(FabricSocketPath(home)) }

// NewFabricServer returns a server for a node of the fabric.
func NewFabricServer(f Fabric, log *slog.Logger) *Server {
	s := newServer(log, DefaultLimits)
	controlpb.RegisterFabricServer(s.grpc, fabricServer{Server: s, fabric: f})
	return s
}

type fabricServer struct {
	controlpb.UnimplementedFabricServer
	*Server
	fabric Fabric
}

func (s fabricServer) Status(ctx context.Context, _ *controlpb.FabricRequest) (*controlpb.FabricItem, error) {
	st, err := s.fabric.Status(ctx)
	if err != nil {
		return nil, err
	}
	return fabricItem(st)
}

func fabricItem(v any) (*controlpb.FabricItem, error) {
	text, err := json.Marshal(v)
	return &controlpb.FabricItem{Json: text}, err
}

func (s fabricServer) Nodes(_ *controlpb.FabricRequest, stream grpc.ServerStreamingServer[controlpb.FabricItem]) error {
	return sendItems(stream, s.fabric.Nodes)
}

func (s fabricServer) Tunnels(_ *controlpb.FabricRequest, stream grpc.ServerStreamingServer[controlpb.FabricItem]) error {
	return sendItems(stream, s.fabric.Tunnels)
}

func (s fabricServer) Routes(_ *controlpb.FabricRequest, stream grpc.ServerStreamingServer[controlpb.FabricItem]) error {
	return sendItems(stream, s.fabric.Routes)
}

func (s fabricServer) Usage(_ *controlpb.FabricRequest, stream grpc.ServerStreamingServer[controlpb.FabricItem]) error {
	return sendItems(stream, s.fabric.Usage)
}

func sendItems[T any](stream grpc.ServerStreamingServer[controlpb.FabricItem], list func(context.Context) ([]T, error)) error {
	items, err := list(stream.Context())
	if err != nil {
		return err
	}
	for _, v := range items {
		item, err := fabricItem(v)
		if err != nil {
			return err
		}
		if err := stream.Send(item); err != nil {
			return err
		}
	}
	return nil
}

func (s fabricServer) Transfers(_ *controlpb.FabricRequest, stream grpc.ServerStreamingServer[controlpb.FabricItem]) error {
	return sendItems(stream, s.fabric.Transfers)
}

func (s fabricServer) ChangeTransfer(ctx context.Context, req *controlpb.TransferChange) (*controlpb.FabricItem, error) {
	if err := checkTexts(req.GetId()); err != nil {
		return nil, err
	}
	if err := checkRate(req.GetRate()); err != nil {
		return nil, err
	}
	st, err := s.fabric.ChangeTransfer(ctx, TransferChange{ID: req.GetId(), Cancel: req.GetCancel(), Paused: req.Paused, Rate: req.Rate, Background: req.Background})
	if err != nil {
		return nil, err
	}
	return fabricItem(st)
}

// maxFabricList bounds the lists of one request.
const maxFabricList = 64

func (s fabricServer) NewToken(ctx context.Context, req *controlpb.FabricTokenRequest) (*controlpb.FabricToken, error) {
	if req.GetLifeNano() <= 0 || req.GetUses() < 1 {
		return nil, capsule.Errorf(capsule.Invalid, "fabric token: it has to be good for a time and for at least one node")
	}
	if err := checkTexts(append(slices.Clone(req.GetAddresses()), req.GetOrganization())...); err != nil {
		return nil, err
	}
	text, err := s.fabric.NewToken(ctx, TokenRequest{Life: time.Duration(req.GetLifeNano()), Uses: int(req.GetUses()), Addresses: req.GetAddresses(), Organization: req.GetOrganization()})
	return &controlpb.FabricToken{Text: text}, err
}

func (s fabricServer) Revoke(ctx context.Context, req *controlpb.FabricRevokeRequest) (*controlpb.FabricRevoked, error) {
	if err := checkTexts(req.GetNode()); err != nil {
		return nil, err
	}
	id, err := s.fabric.Revoke(ctx, req.GetNode())
	return &controlpb.FabricRevoked{Node: id}, err
}

func (s fabricServer) Expose(req *controlpb.ExposeRequest, stream grpc.ServerStreamingServer[controlpb.JobEvent]) error {
	return runJob(stream, s.fabric.Expose, ExposeRequest{Pool: req.GetPool(), Address: req.GetAddress(), Allow: req.GetAllow(),
		Peers: req.GetPeers(), ProxyProtocol: req.GetProxyProtocol(), Connections: int(req.GetConnections())},
		slices.Concat(req.GetAllow(), req.GetPeers(), []string{req.GetPool(), req.GetAddress()})...)
}

func (s fabricServer) Forward(req *controlpb.ForwardRequest, stream grpc.ServerStreamingServer[controlpb.JobEvent]) error {
	return runJob(stream, s.fabric.Forward, ForwardRequest{Listen: req.GetListen(), Pool: req.GetPool(), Kind: req.GetKind(),
		Target: req.GetTarget(), Bulk: req.GetBulk(), Wait: time.Duration(req.GetWaitNano())}, req.GetListen(), req.GetPool(), req.GetKind(), req.GetTarget())
}

func (s fabricServer) VPN(req *controlpb.VPNRequest, stream grpc.ServerStreamingServer[controlpb.JobEvent]) error {
	if req.GetMtu() > 65535 {
		return capsule.Errorf(capsule.Invalid, "fabric vpn: no device has packets of %d bytes", req.GetMtu())
	}
	return runJob(stream, s.fabric.VPN, VPNRequest{Exit: req.GetExit(), Networks: req.GetNetworks(), Device: req.GetDevice(), MTU: int(req.GetMtu()),
		Pool: req.GetPool(), Routes: req.GetRoutes(), Bypass: req.GetBypass(), Wait: time.Duration(req.GetWaitNano())},
		slices.Concat([]string{req.GetDevice(), req.GetPool()}, req.GetNetworks(), req.GetRoutes(), req.GetBypass())...)
}

func (s fabricServer) Send(req *controlpb.SendRequest, stream grpc.ServerStreamingServer[controlpb.JobEvent]) error {
	if err := checkTransfer(req.GetPath(), req.GetRate()); err != nil {
		return err
	}
	return runJob(stream, s.fabric.Send, SendRequest{Path: req.GetPath(), Name: req.GetName(), Times: int(req.GetTimes()), SkipUnreadable: req.GetSkipUnreadable(),
		To: req.GetTo(), Rate: req.GetRate(), Background: req.GetBackground(), Wait: time.Duration(req.GetWaitNano())}, req.GetName(), req.GetTo())
}

func (s fabricServer) Accept(req *controlpb.AcceptRequest, stream grpc.ServerStreamingServer[controlpb.JobEvent]) error {
	if req.GetMaxSize() < 0 {
		return capsule.Errorf(capsule.Invalid, "nothing has %d bytes", req.GetMaxSize())
	}
	if err := checkTarget(req.GetInto()); err != nil {
		return err
	}
	return runJob(stream, s.fabric.Accept, AcceptRequest{Into: req.GetInto(), From: req.GetFrom(), MaxSize: req.GetMaxSize(), Times: int(req.GetTimes())}, req.GetFrom()...)
}

func (s fabricServer) Receive(req *controlpb.ReceiveRequest, stream grpc.ServerStreamingServer[controlpb.JobEvent]) error {
	if err := checkTransfer(req.GetTarget(), req.GetRate()); err != nil {
		return err
	}
	return runJob(stream, s.fabric.Receive, ReceiveRequest{Name: req.GetName(), Target: req.GetTarget(), Rate: req.GetRate(), Mirrors: int(req.GetMirrors()), Wait: time.Duration(req.GetWaitNano()),
		Background: req.GetBackground(), From: req.GetFrom()}, append(slices.Clone(req.GetFrom()), req.GetName())...)
}

func checkTransfer(path string, rate int64) error {
	if err := checkRate(rate); err != nil {
		return err
	}
	return checkTarget(path)
}

func checkRate(rate int64) error {
	if rate < 0 {
		return capsule.Errorf(capsule.Invalid, "a rate of %d bytes a second does not exist", rate)
	}
	return nil
}

// checkTexts bounds what a request says; whether it makes sense, the node knows.
func checkTexts(texts ...string) error {
	if len(texts) > maxFabricList {
		return capsule.Errorf(capsule.Invalid, "fabric: at most %d values can be given at once", maxFabricList)
	}
	for _, text := range texts {
		if len(text) > 512 || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return capsule.Errorf(capsule.Invalid, "fabric: %.32q is no name or address", text)
		}
	}
	return nil
}

// runJob runs a job for as long as its stream lives.
func runJob[Req any](stream grpc.ServerStreamingServer[controlpb.JobEvent], job func(context.Context, Req, func(JobEvent) error) error, req Req, texts ...string) error {
	if err := checkTexts(texts...); err != nil {
		return err
	}
	return job(stream.Context(), req, func(e JobEvent) error {
		m := &controlpb.JobEvent{Ready: e.Ready, Note: clip(e.Note, 8<<10)}
		if e.Transfer != nil {
			item, err := fabricItem(e.Transfer)
			if err != nil {
				return err
			}
			m.Transfer = item
		}
		return stream.Send(m)
	})
}

// FabricClient is the API of the fabric's node at the other end of a socket.
type FabricClient struct {
	conn
	fabric controlpb.FabricClient
}

var _ Fabric = (*FabricClient)(nil)

// DialFabric connects to the fabric's node at home. It returns ErrNoNode when
// there is none.
func DialFabric(ctx context.Context, home string) (*FabricClient, error) {
	to, err := dial(ctx, FabricSocketPath(home))
	if err != nil {
		return nil, err
	}
	c := &FabricClient{to, controlpb.NewFabricClient(to.cc)}
	if _, err := c.Status(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// fromStatus explains what happened to a node that keeps nothing.
func (c *FabricClient) fromStatus(ctx context.Context, err error) error {
	if st, ok := status.FromError(err); ok && err != nil && ctx.Err() == nil && st.Code() == codes.Unavailable && len(st.Details()) == 0 {
		return capsule.Errorf(capsule.Unavailable, "the fabric's node at %s has ended; start the command again when it is back", c.socket)
	}
	return c.conn.fromStatus(ctx, err)
}

// Status implements Fabric.
func (c *FabricClient) Status(ctx context.Context) (st fabric.Status, err error) {
	item, err := c.fabric.Status(ctx, &controlpb.FabricRequest{})
	if err != nil {
		return st, c.fromStatus(ctx, err)
	}
	return st, c.decode(item, &st)
}

func (c *FabricClient) decode(item *controlpb.FabricItem, v any) error {
	return capsule.Wrap(capsule.Other, json.Unmarshal(item.GetJson(), v), "the node at %s", c.socket)
}

// Nodes implements Fabric.
func (c *FabricClient) Nodes(ctx context.Context) ([]fabric.NodeState, error) {
	return receiveItems[fabric.NodeState](ctx, c, c.fabric.Nodes)
}

// Tunnels implements Fabric.
func (c *FabricClient) Tunnels(ctx context.Context) ([]fabric.TunnelState, error) {
	return receiveItems[fabric.TunnelState](ctx, c, c.fabric.Tunnels)
}

// Routes implements Fabric.
func (c *FabricClient) Routes(ctx context.Context) ([]fabric.RouteState, error) {
	return receiveItems[fabric.RouteState](ctx, c, c.fabric.Routes)
}

// Usage implements Fabric.
func (c *FabricClient) Usage(ctx context.Context) ([]FabricUsage, error) {
	return receiveItems[FabricUsage](ctx, c, c.fabric.Usage)
}

// Transfers implements Fabric.
func (c *FabricClient) Transfers(ctx context.Context) ([]TransferState, error) {
	return receiveItems[TransferState](ctx, c, c.fabric.Transfers)
}

// ChangeTransfer implements Fabric.
func (c *FabricClient) ChangeTransfer(ctx context.Context, ch TransferChange) (st TransferState, err error) {
	item, err := c.fabric.ChangeTransfer(ctx, &controlpb.TransferChange{Id: ch.ID, Cancel: ch.Cancel, Paused: ch.Paused, Rate: ch.Rate, Background: ch.Background})
	if err != nil {
		return st, c.fromStatus(ctx, err)
	}
	return st, c.decode(item, &st)
}

func receiveItems[T any](ctx context.Context, c *FabricClient,
	ask func(context.Context, *controlpb.FabricRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[controlpb.FabricItem], error)) ([]T, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := ask(ctx, &controlpb.FabricRequest{})
	if err != nil {
		return nil, c.fromStatus(ctx, err)
	}
	list := []T{}
	for {
		item, err := stream.Recv()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return nil, c.fromStatus(ctx, err)
		}
		var v T
		if err := c.decode(item, &v); err != nil {
			return nil, err
		}
		list = append(list, v)
	}
}

// NewToken implements Fabric.
func (c *FabricClient) NewToken(ctx context.Context, req TokenRequest) (string, error) {
	t, err := c.fabric.NewToken(ctx, &controlpb.FabricTokenRequest{LifeNano: int64(req.Life), Uses: int32(min(req.Uses, 1<<30)), Addresses: req.Addresses, Organization: req.Organization})
	return t.GetText(), c.fromStatus(ctx, err)
}

// Revoke implements Fabric.
func (c *FabricClient) Revoke(ctx context.Context, node string) (string, error) {
	r, err := c.fabric.Revoke(ctx, &controlpb.FabricRevokeRequest{Node: node})
	return r.GetNode(), c.fromStatus(ctx, err)
}

// Expose implements Fabric.
func (c *FabricClient) Expose(ctx context.Context, req ExposeRequest, tell func(JobEvent) error) error {
	return followJob(ctx, c, c.fabric.Expose, &controlpb.ExposeRequest{Pool: req.Pool, Address: req.Address, Allow: req.Allow,
		Peers: req.Peers, ProxyProtocol: req.ProxyProtocol, Connections: uint32(max(req.Connections, 0))}, tell)
}

// Forward implements Fabric.
func (c *FabricClient) Forward(ctx context.Context, req ForwardRequest, tell func(JobEvent) error) error {
	return followJob(ctx, c, c.fabric.Forward, &controlpb.ForwardRequest{Listen: req.Listen, Pool: req.Pool, Kind: req.Kind,
		Target: req.Target, Bulk: req.Bulk, WaitNano: int64(req.Wait)}, tell)
}

// VPN implements Fabric.
func (c *FabricClient) VPN(ctx context.Context, req VPNRequest, tell func(JobEvent) error) error {
	return followJob(ctx, c, c.fabric.VPN, &controlpb.VPNRequest{Exit: req.Exit, Networks: req.Networks, Device: req.Device,
		Mtu: uint32(max(req.MTU, 0)), Pool: req.Pool, Routes: req.Routes, Bypass: req.Bypass, WaitNano: int64(req.Wait)}, tell)
}

// Send implements Fabric.
func (c *FabricClient) Send(ctx context.Context, req SendRequest, tell func(JobEvent) error) error {
	return followJob(ctx, c, c.fabric.Send, &controlpb.SendRequest{Path: req.Path, Name: req.Name, Times: uint32(max(req.Times, 0)), SkipUnreadable: req.SkipUnreadable,
		To: req.To, Rate: req.Rate, Background: req.Background, WaitNano: int64(req.Wait)}, tell)
}

// Accept implements Fabric.
func (c *FabricClient) Accept(ctx context.Context, req AcceptRequest, tell func(JobEvent) error) error {
	return followJob(ctx, c, c.fabric.Accept, &controlpb.AcceptRequest{Into: req.Into, From: req.From, MaxSize: req.MaxSize, Times: uint32(max(req.Times, 0))}, tell)
}

// Receive implements Fabric.
func (c *FabricClient) Receive(ctx context.Context, req ReceiveRequest, tell func(JobEvent) error) error {
	return followJob(ctx, c, c.fabric.Receive, &controlpb.ReceiveRequest{Name: req.Name, Target: req.Target, Rate: req.Rate,
		Mirrors: uint32(max(req.Mirrors, 0)), WaitNano: int64(req.Wait), Background: req.Background, From: req.From}, tell)
}

// followJob starts a job and hands on what it says, until it ends.
func followJob[Req any](ctx context.Context, c *FabricClient,
	start func(context.Context, Req, ...grpc.CallOption) (grpc.ServerStreamingClient[controlpb.JobEvent], error), req Req, tell func(JobEvent) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // which ends the job
	stream, err := start(ctx, req)
	if err != nil {
		return c.fromStatus(ctx, err)
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return c.fromStatus(ctx, err)
		}
		e := JobEvent{Ready: m.GetReady(), Note: m.GetNote()}
		if item := m.GetTransfer(); item != nil {
			e.Transfer = &TransferState{}
			if err := c.decode(item, e.Transfer); err != nil {
				return err
			}
		}
		if err := tell(e); err != nil {
			return err
		}
	}
}
