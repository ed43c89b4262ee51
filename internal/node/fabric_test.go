package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/internal/control"
)

// fabricHung bounds waits; no assertion depends on it.
const fabricHung = 10 * time.Minute

// newFabricNode runs the fabric's node at home.
func newFabricNode(t *testing.T, home string, cfg FabricConfig) (*fabricNode, *prometheus.Registry) {
	t.Helper()
	if cfg.Listen == nil {
		cfg.Listen = []FabricListen{{Carrier: "tls", Address: "127.0.0.1:0"}}
	}
	reg := prometheus.NewRegistry()
	f, err := startFabric(Target{Home: home, Config: Config{Fabric: &cfg}}, reg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), fabricHung)
		defer cancel()
		if err := f.close(ctx); err != nil {
			t.Error(err)
		}
	})
	return f, reg
}

// Two nodes: what is exposed at one is forwarded to at the other, and metrics
// and spans tell of it.
func TestFabricServices(t *testing.T) {
	spans := make(chan string, 100)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		spans <- string(body)
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	endTraces, err := startTracing(t.Context(), "v1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer otel.SetTracerProvider(noop.NewTracerProvider())

	homes := []string{t.TempDir(), t.TempDir()}
	if m, err := InitFabricOf(homes[0], "first", "", "ops"); err != nil || m.Organization != "ops" {
		t.Fatalf("%+v, %v", m, err)
	}
	first, reg := newFabricNode(t, homes[0], FabricConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), fabricHung)
	defer cancel()
	token, err := first.NewToken(ctx, control.TokenRequest{Life: time.Hour, Uses: 1, Organization: "guests"})
	if err != nil {
		t.Fatal(err)
	}
	member, err := JoinFabric(ctx, homes[1], token, "second", "")
	if err != nil || member.Organization != "guests" {
		t.Fatalf("%+v, %v", member, err)
	}
	if _, err := first.NewToken(ctx, control.TokenRequest{Life: time.Hour, Uses: 1, Organization: "a b"}); capsule.KindOf(err) != capsule.Invalid {
		t.Errorf("a token for nobody's organization: %v", err)
	}
	newFabricNode(t, homes[1], FabricConfig{Expose: []control.ExposeRequest{{Pool: "echo", Address: serveEcho(t)}}})

	// A command asks over the socket.
	c, err := ConnectFabric(ctx, Target{Home: homes[0], Config: Config{LockTimeout: fabricHung}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at := make(chan string, 1)
	done := make(chan error, 1)
	job, end := context.WithCancel(ctx)
	defer end()
	go func() {
		done <- c.Forward(job, control.ForwardRequest{Listen: "127.0.0.1:0", Pool: "echo", Wait: fabricHung}, func(e control.JobEvent) error {
			at <- e.Ready
			return nil
		})
	}()
	var conn net.Conn
	select {
	case addr := <-at:
		if conn, err = net.Dial("tcp", addr); err != nil {
			t.Fatal(err)
		}
	case err := <-done:
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(fabricHung))
	fmt.Fprint(conn, "hello")
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Fatalf("%q: %v", got, err)
	}

	st, err := c.Status(ctx)
	if err != nil || st.Name != "first" || !st.Authority || st.Area != DefaultArea || st.Organization != "ops" || st.Tunnels != 1 {
		t.Errorf("status %+v: %v", st, err)
	}
	tunnels, err := c.Tunnels(ctx)
	if err != nil || len(tunnels) != 1 || tunnels[0].Contract.PoolID != "echo" || tunnels[0].Peer != member.Node || tunnels[0].Sent != 5 {
		t.Errorf("tunnels %+v: %v", tunnels, err)
	}
	routes, err := c.Routes(ctx)
	if err != nil || len(routes) == 0 || routes[0].Peer.String() != member.Node {
		t.Errorf("routes %+v: %v", routes, err)
	}
	nodes, err := c.Nodes(ctx)
	if err != nil || len(nodes) != 2 || nodes[0].Organization != "ops" || nodes[1].Organization != "guests" {
		t.Errorf("nodes %+v: %v", nodes, err)
	}
	metrics := gathered(t, reg)
	for _, want := range []string{
		`space_fabric_info{area="default",fabric="` + member.Fabric + `",name="first",node="` + st.Node.String() + `"} 1`,
		"space_fabric_tunnels 1", `space_fabric_forward_connections{side="forward"} 1`, `space_fabric_forward_bytes_total{direction="in",side="forward"} 5`,
		`space_fabric_route_up{carrier="tls",name="second",peer="` + member.Node + `",via=""} 1`, `space_fabric_sent_bytes_total{class="interactive"} `,
		`space_fabric_tunnels_asked_total{result="opened"} 1`, `space_fabric_delay_seconds_bucket{class="interactive",le="+Inf"} `,
		`space_fabric_queued_bytes{class="bulk"} 0`, "space_fabric_window_limit_bytes ",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}

	// The command goes, and with it the job and its tunnel.
	end()
	if err := <-done; err == nil {
		t.Error("a job that was cut off says that it is done")
	}
	for {
		if list, err := c.Tunnels(ctx); err != nil {
			t.Fatal(err)
		} else if len(list) == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	endTraces()
	close(spans)
	all := ""
	for body := range spans {
		all += body
	}
	for _, want := range []string{"fabric.tunnel.open", "fabric.pool", "echo"} {
		if !strings.Contains(all, want) {
			t.Errorf("spans lack %q", want)
		}
	}
	if m := gathered(t, reg); !strings.Contains(m, `space_fabric_forward_connections_total{side="forward"} 1`) {
		t.Error("what ended is no longer counted")
	}
}

func gathered(t *testing.T, reg *prometheus.Registry) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	addr, wait, err := serveMetrics(ctx, "127.0.0.1:0", reg, func() error { return nil }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer wait()
	defer cancel()
	resp, err := http.Get("http://" + addr.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v", resp.Status, err)
	}
	return string(text)
}

// Errors of the fabric come with a kind, and say what to do.
// TestFabricJoinThroughRelay has a node join and work that reaches nothing but a
// relay over HTTPS, and be told when it is shut out.
func TestFabricJoinThroughRelay(t *testing.T) {
	homes := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	ctx, cancel := context.WithTimeout(t.Context(), fabricHung)
	defer cancel()
	if _, err := InitFabric(homes[0], "authority", ""); err != nil {
		t.Fatal(err)
	}
	authority, _ := newFabricNode(t, homes[0], FabricConfig{})
	join := func(home, name string, addrs []string) Member {
		t.Helper()
		token, err := authority.NewToken(ctx, control.TokenRequest{Life: time.Hour, Uses: 1, Addresses: addrs})
		if err != nil {
			t.Fatal(err)
		}
		m, err := JoinFabric(ctx, home, token, name, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := JoinFabric(ctx, t.TempDir(), token, name, ""); capsule.KindOf(err) != capsule.Denied {
			t.Errorf("the token twice: %v", err)
		}
		return m
	}
	join(homes[1], "relay", nil)
	relay, _ := newFabricNode(t, homes[1], FabricConfig{Relay: true, Listen: []FabricListen{{Carrier: "https", Address: "127.0.0.1:0"}}})
	waitFabric(t, "the relay knows the authority's node", func() bool {
		nodes, _ := relay.Nodes(ctx)
		return len(nodes) == 2
	})
	inner := join(homes[2], "inner", relay.Addrs())
	node, _ := newFabricNode(t, homes[2], FabricConfig{Listen: []FabricListen{}})
	waitFabric(t, "it knows all", func() bool {
		nodes, _ := node.Nodes(ctx)
		return len(nodes) == 3
	})
	if st, _ := node.Status(ctx); !st.Rejected.IsZero() {
		t.Errorf("shut out at %v", st.Rejected)
	}
	if _, err := authority.Revoke(ctx, inner.Node); err != nil {
		t.Fatal(err)
	}
	waitFabric(t, "the node learns that it is shut out", func() bool {
		st, _ := node.Status(ctx)
		return !st.Rejected.IsZero()
	})
}

func waitFabric(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(fabricHung); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// TestFabricDamage has files of an identity that make no sense, and keys that
// others can read.
func TestFabricDamage(t *testing.T) {
	home := t.TempDir()
	if _, err := InitFabric(home, "first", ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"node.key", "node.pem", "revoked.crl", "authority.key", "authority.pem", "authority.json", "fabric.json"} {
		path := filepath.Join(FabricDir(home), name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, whole[:len(whole)/3], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := openFabric(home); capsule.KindOf(err) != capsule.Damaged {
			t.Errorf("%s cut off: %v", name, err)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := InitFabric(home, "again", ""); capsule.KindOf(err) != capsule.Exists || !strings.Contains(err.Error(), FabricDir(home)) {
		t.Errorf("init again: %v", err)
	}
	if err := os.Chmod(filepath.Join(FabricDir(home), "node.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct {
		mode os.FileMode
		want bool
	}{{0o700, false}, {0o755, true}} {
		if err := os.Chmod(FabricDir(home), one.mode); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		warnOfReaders(home, slog.New(slog.NewTextHandler(&said, nil)))
		if strings.Contains(said.String(), "node.key") != one.want || strings.Contains(said.String(), "authority.key") {
			t.Errorf("in a directory of mode %o: %q", one.mode, said.String())
		}
	}
}

// TestFabricTokenAddress has tokens name where nobody can join.
func TestFabricTokenAddress(t *testing.T) {
	home := t.TempDir()
	if _, err := InitFabric(home, "first", ""); err != nil {
		t.Fatal(err)
	}
	for addr, good := range map[string]bool{"10.0.0.1:7420": true, "tls://10.0.0.1:7420": true, "https://relay.example/x": true,
		"quic://10.0.0.1:7420": false, "foo://x": false, "10.0.0.1": false, "": false} {
		_, err := NewFabricToken(t.Context(), Target{Home: home, Config: Config{LockTimeout: fabricHung}}, control.TokenRequest{Life: time.Hour, Uses: 1, Addresses: []string{addr}})
		if good != (err == nil) || !good && capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

func TestFabricErrorKinds(t *testing.T) {
	for _, one := range []struct {
		err  error
		kind capsule.ErrorKind
		says string
	}{
		{&fabric.RefusedError{Limit: "streams of pool build", Retry: 1500 * time.Millisecond}, capsule.Conflict, "try again in 2s"},
		{&fabric.RefusedError{Limit: "tunnels"}, capsule.Conflict, "try again later"},
		{fmt.Errorf("x: %w", fabric.ErrNoProvider), capsule.NotFound, "provides"},
		{fabric.ErrNoAuthority, capsule.Unsupported, "do this there"},
		{fabric.ErrClosed, capsule.Unavailable, "closed"},
		{fmt.Errorf("%w: b: no way", fabric.ErrUnreachable), capsule.Unavailable, "b: no way"},
		{&net.OpError{Op: "dial", Err: io.EOF}, capsule.Unavailable, "dial"},
		{io.EOF, capsule.Other, "EOF"},
	} {
		if err := fabricError(one.err); capsule.KindOf(err) != one.kind || !strings.Contains(err.Error(), one.says) {
			t.Errorf("%v became %v, kind %v", one.err, err, capsule.KindOf(err))
		}
	}
	err := noProvider("web", "tcp-forward", []fabric.NodeState{{Name: "b"}, {Name: "a", Services: []fabric.ServiceState{{Pool: "ssh", Kind: "tcp-forward"}, {Pool: "x", Kind: "y"}}}})
	if want := "no node provides the pool web (tcp-forward) now; nodes that are known: a, b; pools of that kind: ssh"; err.Error() != want {
		t.Errorf("%v", err)
	}
	if l := firstOf(strings.Fields("l k j i h g f e d c b a")); len(l) != 11 || l[10] != "and 2 more" {
		t.Errorf("%q", l)
	}
}

// TestFabricNodeEnds: tunnels to a service of a node that ends, and which may be elsewhere,
// are not ended with it.
func TestFabricNodeEnds(t *testing.T) {
	nodes := trio(t)
	ctx, cancel := context.WithTimeout(t.Context(), fabricHung)
	defer cancel()
	var ended [3]chan error
	for i, n := range nodes[1:] {
		ended[i+1] = make(chan error, 1)
		ready := make(chan struct{})
		go func() {
			ended[i+1] <- n.provide(n.ctx, fabric.Service{Profile: profile("tcp-forward"), Pool: "echo"}, func(control.JobEvent) error {
				close(ready)
				return nil
			}, func(ctx context.Context, t *fabric.Tunnel) error {
				_, err := t.Accept(ctx)
				return err
			})
		}()
		select {
		case <-ready:
		case err := <-ended[i+1]:
			t.Fatal(err)
		}
	}
	waitFabric(t, "both to provide it", func() bool {
		n := 0
		for _, s := range nodes[0].Node.Nodes() {
			for _, s := range s.Services {
				if s.Pool == "echo" {
					n++
				}
			}
		}
		return n == 2
	})
	tun, err := nodes[0].tunnel(ctx, fabric.Request{Profile: profile("tcp-forward"), Pool: "echo"})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	at := 1
	if tun.Peer() == nodes[2].ID() {
		at = 2
	}
	nodes[at].quit(errFabricEnds)
	if err := <-ended[at]; err != nil {
		t.Error(err)
	}
	if err := nodes[at].Drain(ctx); err != nil {
		t.Error(err)
	}
	waitFabric(t, "the move", func() bool { return tun.Err() != nil || tun.Peer() == nodes[3-at].ID() })
	if err := tun.Err(); err != nil {
		t.Error(err)
	}
}
