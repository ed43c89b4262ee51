package control

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/internal/control/controlpb"
)

// fakeFabric remembers what it was asked for, and has each job say the events.
type fakeFabric struct {
	asked   any
	events  []JobEvent
	err     error
	hold    bool // jobs last until they are told to end
	ended   chan struct{}
	tunnels []fabric.TunnelState
}

func (f *fakeFabric) Status(context.Context) (fabric.Status, error) {
	return fabric.Status{Name: "n", Fabric: [16]byte{1}, Classes: []fabric.ClassState{{Class: frame.DNS, Sent: 3}}}, nil
}
func (f *fakeFabric) Nodes(context.Context) ([]fabric.NodeState, error)     { return nil, f.err }
func (f *fakeFabric) Tunnels(context.Context) ([]fabric.TunnelState, error) { return f.tunnels, f.err }
func (f *fakeFabric) Routes(context.Context) ([]fabric.RouteState, error) {
	return []fabric.RouteState{{Carrier: "tls", RTT: time.Second}}, f.err
}
func (f *fakeFabric) Usage(context.Context) ([]FabricUsage, error) {
	return []FabricUsage{{Scope: "pool", Name: "p", Limit: FabricLimit{Streams: 3}, Refused: 1}}, f.err
}
func (f *fakeFabric) NewToken(_ context.Context, r TokenRequest) (string, error) {
	f.asked = r
	return "secret", f.err
}
func (f *fakeFabric) Revoke(_ context.Context, node string) (string, error) {
	f.asked = node
	return "id", f.err
}

func (f *fakeFabric) Transfers(context.Context) ([]TransferState, error) {
	return []TransferState{{ID: "id", Total: -1, Mirrors: []TransferMirror{{Node: "m"}}}}, f.err
}
func (f *fakeFabric) ChangeTransfer(_ context.Context, c TransferChange) (TransferState, error) {
	f.asked = c
	return TransferState{ID: c.ID, State: TransferPaused}, f.err
}

func (f *fakeFabric) job(ctx context.Context, req any, tell func(JobEvent) error) error {
	f.asked = req
	for _, e := range f.events {
		if err := tell(e); err != nil {
			return err
		}
	}
	if f.hold {
		<-ctx.Done()
		close(f.ended)
	}
	return f.err
}

func (f *fakeFabric) Expose(ctx context.Context, r ExposeRequest, tell func(JobEvent) error) error {
	return f.job(ctx, r, tell)
}
func (f *fakeFabric) Forward(ctx context.Context, r ForwardRequest, tell func(JobEvent) error) error {
	return f.job(ctx, r, tell)
}
func (f *fakeFabric) VPN(ctx context.Context, r VPNRequest, tell func(JobEvent) error) error {
	return f.job(ctx, r, tell)
}
func (f *fakeFabric) Send(ctx context.Context, r SendRequest, tell func(JobEvent) error) error {
	return f.job(ctx, r, tell)
}
func (f *fakeFabric) Receive(ctx context.Context, r ReceiveRequest, tell func(JobEvent) error) error {
	return f.job(ctx, r, tell)
}

func (f *fakeFabric) Accept(ctx context.Context, r AcceptRequest, tell func(JobEvent) error) error {
	return f.job(ctx, r, tell)
}

func serveFabric(t *testing.T, f Fabric) *FabricClient {
	t.Helper()
	home := t.TempDir()
	if _, err := DialFabric(t.Context(), home); !errors.Is(err, ErrNoNode) {
		t.Fatalf("where there is no node: %v", err)
	}
	l, err := ListenFabric(home)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(FabricSocketPath(home)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st.Mode(), err)
	}
	s := NewFabricServer(f, slog.New(slog.DiscardHandler))
	go s.Serve(l)
	t.Cleanup(s.Stop)
	c, err := DialFabric(t.Context(), home)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// What a command asks for arrives as it is, and so does the answer.
func TestFabricOverSocket(t *testing.T) {
	f := &fakeFabric{events: []JobEvent{{Ready: "at"}, {Note: "by the way"}, {Transfer: &TransferState{ID: "i", Bytes: 1, Total: -1, Resumed: 2, Files: 3, Since: time.Unix(1, 0).UTC(), ETA: new(2.5), Mirrors: []TransferMirror{{Node: "m", Out: "o"}}}}}}
	f.tunnels = make([]fabric.TunnelState, 160)
	for i := range f.tunnels {
		f.tunnels[i] = fabric.TunnelState{Peer: "p", Contract: fabric.Contract{TunnelID: fabric.TunnelID{byte(i)}, TrafficClasses: []frame.Class{frame.Bulk}},
			Streams: make([]fabric.StreamState, fabric.MaxRegistered)}
	}
	c := serveFabric(t, f)
	ctx := t.Context()
	if st, err := c.Status(ctx); err != nil || st.Name != "n" || st.Fabric != [16]byte{1} || st.Classes[0].Class != frame.DNS {
		t.Errorf("status %+v: %v", st, err)
	}
	if list, err := c.Nodes(ctx); err != nil || len(list) != 0 {
		t.Errorf("nodes %v: %v", list, err)
	}
	if list, err := c.Routes(ctx); err != nil || len(list) != 1 || list[0].RTT != time.Second {
		t.Errorf("routes %v: %v", list, err)
	}
	if list, err := c.Usage(ctx); err != nil || len(list) != 1 || list[0].Limit.Streams != 3 || list[0].Scope != "pool" {
		t.Errorf("usage %v: %v", list, err)
	}
	// More than fits into one message.
	if list, err := c.Tunnels(ctx); err != nil || !reflect.DeepEqual(list, f.tunnels) {
		t.Errorf("%d tunnels: %v", len(list), err)
	}
	token := TokenRequest{Life: time.Hour, Uses: 3, Addresses: []string{"tls://a:1"}, Organization: "ops"}
	if text, err := c.NewToken(ctx, token); err != nil || text != "secret" || !reflect.DeepEqual(f.asked, token) {
		t.Errorf("token %q for %+v: %v", text, f.asked, err)
	}
	if id, err := c.Revoke(ctx, "node"); err != nil || id != "id" || f.asked != "node" {
		t.Errorf("revoke %q: %v", id, err)
	}
	if list, err := c.Transfers(ctx); err != nil || len(list) != 1 || list[0].ID != "id" || list[0].Mirrors[0].Node != "m" {
		t.Errorf("transfers %v: %v", list, err)
	}
	for _, change := range []TransferChange{{ID: "i", Cancel: true}, {ID: "i", Paused: new(false)}, {ID: "i", Rate: new(int64(0)), Background: new(true)}} {
		if st, err := c.ChangeTransfer(ctx, change); err != nil || st.ID != "i" || st.State != TransferPaused || !reflect.DeepEqual(f.asked, change) {
			t.Errorf("asked for %+v, arrived %+v: %v", change, f.asked, err)
		}
	}
	for _, one := range jobs(c) {
		var got []JobEvent
		if err := one.run(ctx, func(e JobEvent) error { got = append(got, e); return nil }); err != nil || !reflect.DeepEqual(got, f.events) {
			t.Errorf("%T: %+v: %v", one.req, got, err)
		}
		if !reflect.DeepEqual(f.asked, one.req) {
			t.Errorf("asked for %+v, arrived %+v", one.req, f.asked)
		}
	}
	f.err = capsule.Errorf(capsule.Conflict, "refused; try again in 2s")
	for _, one := range jobs(c) {
		if err := one.run(ctx, func(JobEvent) error { return nil }); capsule.KindOf(err) != capsule.Conflict || err.Error() != f.err.Error() {
			t.Errorf("%T: %v", one.req, err)
		}
	}
}

type fabricJob struct {
	req any
	run func(context.Context, func(JobEvent) error) error
}

func jobs(c Fabric) []fabricJob {
	e := ExposeRequest{Pool: "p", Address: "a:1", Allow: []string{"b:*"}, Peers: []string{"c"}, ProxyProtocol: true, Connections: 5}
	f := ForwardRequest{Listen: "l:1", Pool: "p", Kind: "k", Target: "t:1", Bulk: true, Wait: time.Second}
	v := VPNRequest{Exit: true, Networks: []string{"n"}, Device: "d", MTU: 1500, Pool: "p", Routes: []string{"r"}, Bypass: []string{"b"}, Wait: time.Second}
	s := SendRequest{Path: "/p", Name: "n", Times: 2, SkipUnreadable: true, To: "to", Rate: 5, Background: true, Wait: time.Second}
	a := AcceptRequest{Into: "/d", From: []string{"a", "b"}, MaxSize: 7, Times: 3}
	r := ReceiveRequest{Name: "n", Target: "/t", Rate: 3, Mirrors: 4, Wait: time.Second, Background: true, From: []string{"a", "b"}}
	return []fabricJob{
		{e, func(ctx context.Context, tell func(JobEvent) error) error { return c.Expose(ctx, e, tell) }},
		{f, func(ctx context.Context, tell func(JobEvent) error) error { return c.Forward(ctx, f, tell) }},
		{v, func(ctx context.Context, tell func(JobEvent) error) error { return c.VPN(ctx, v, tell) }},
		{s, func(ctx context.Context, tell func(JobEvent) error) error { return c.Send(ctx, s, tell) }},
		{a, func(ctx context.Context, tell func(JobEvent) error) error { return c.Accept(ctx, a, tell) }},
		{r, func(ctx context.Context, tell func(JobEvent) error) error { return c.Receive(ctx, r, tell) }},
	}
}

// A job ends with the command that asked for it: when it is told to, and when it
// has had enough.
func TestFabricJobEndsWithItsCommand(t *testing.T) {
	for i := range jobs(&fakeFabric{}) {
		f := &fakeFabric{events: []JobEvent{{Ready: "at"}}, hold: true, ended: make(chan struct{})}
		c := serveFabric(t, f)
		enough := errors.New("enough")
		if err := jobs(c)[i].run(t.Context(), func(JobEvent) error { return enough }); err != enough {
			t.Errorf("%v", err)
		}
		<-f.ended
		f.ended = make(chan struct{})
		ctx, cancel := context.WithCancelCause(t.Context())
		if err := jobs(c)[i].run(ctx, func(JobEvent) error { cancel(enough); return nil }); err != enough {
			t.Errorf("%v", err)
		}
		<-f.ended
	}
}

// Requests that no command makes are refused before the node sees them.
func TestFabricHostileRequests(t *testing.T) {
	f := &fakeFabric{}
	c := serveFabric(t, f)
	ctx := t.Context()
	long := strings.Repeat("x", 600)
	var many []string
	for range 100 {
		many = append(many, "x")
	}
	quiet := func(JobEvent) error { return nil }
	for name, err := range map[string]error{
		"long pool":           c.Expose(ctx, ExposeRequest{Pool: long}, quiet),
		"NUL":                 c.Forward(ctx, ForwardRequest{Pool: "a\x00b"}, quiet),
		"many routes":         c.VPN(ctx, VPNRequest{Routes: many}, quiet),
		"huge MTU":            c.VPN(ctx, VPNRequest{MTU: 1 << 20}, quiet),
		"relative path":       c.Send(ctx, SendRequest{Path: "a", Name: "n"}, quiet),
		"dirty path":          c.Receive(ctx, ReceiveRequest{Target: "/a/../b", Name: "n"}, quiet),
		"negative rate":       c.Receive(ctx, ReceiveRequest{Target: "/a", Name: "n", Rate: -1}, quiet),
		"slower than nothing": c.Send(ctx, SendRequest{Path: "/a", Name: "n", To: "b", Rate: -1}, quiet),
		"relative directory":  c.Accept(ctx, AcceptRequest{Into: "a", From: []string{"b"}}, quiet),
		"less than nothing":   c.Accept(ctx, AcceptRequest{Into: "/a", MaxSize: -1}, quiet),
		"many senders":        c.Accept(ctx, AcceptRequest{Into: "/a", From: many}, quiet),
		"a negative limit":    second(c.ChangeTransfer(ctx, TransferChange{ID: "i", Rate: new(int64(-1))})),
		"long transfer":       second(c.ChangeTransfer(ctx, TransferChange{ID: long})),
		"no life":             second(c.NewToken(ctx, TokenRequest{Uses: 1})),
		"no uses":             second(c.NewToken(ctx, TokenRequest{Life: 1})),
		"many addresses":      second(c.NewToken(ctx, TokenRequest{Life: 1, Uses: 1, Addresses: many})),
		"long node":           second(c.Revoke(ctx, long)),
		"odd organization":    second(c.NewToken(ctx, TokenRequest{Life: 1, Uses: 1, Organization: "a\x00b"})),
	} {
		if capsule.KindOf(err) != capsule.Invalid || f.asked != nil {
			t.Errorf("%s: %v; asked %+v", name, err, f.asked)
		}
	}
	// The store's API is not there.
	if _, err := controlpb.NewCapsulesClient(c.cc).Remove(ctx, &controlpb.Ref{Ref: "a"}); err == nil {
		t.Error("the fabric's socket serves the store")
	}
}

func second[T any](_ T, err error) error { return err }
