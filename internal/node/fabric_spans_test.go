package node

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/internal/control"
)

// spansOf keeps the spans of a test.
type spansOf struct {
	t   *testing.T
	all *tracetest.InMemoryExporter
}

func recordSpans(t *testing.T) spansOf {
	all := tracetest.NewInMemoryExporter()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(all)))
	t.Cleanup(func() { otel.SetTracerProvider(noop.NewTracerProvider()) })
	return spansOf{t, all}
}

// wait returns the first span of a name that has the attributes, once there is one.
func (s spansOf) wait(name string, want ...attribute.KeyValue) (found tracetest.SpanStub) {
	s.t.Helper()
	waitFabric(s.t, "a span "+name, func() bool {
		for _, span := range s.all.GetSpans() {
			if span.Name == name && !slices.ContainsFunc(want, func(kv attribute.KeyValue) bool { return !slices.Contains(span.Attributes, kv) }) {
				found = span
				return true
			}
		}
		return false
	})
	return found
}

// about returns what a span tells of something.
func about(span tracetest.SpanStub, key string) attribute.Value {
	for _, kv := range span.Attributes {
		if string(kv.Key) == key {
			return kv.Value
		}
	}
	return attribute.Value{}
}

// serveEcho returns the address of a server that sends back what it gets, until the
// test ends.
func serveEcho(t *testing.T) string {
	t.Helper()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return echo.Addr().String()
}

// offerEcho has a node expose such a server.
func offerEcho(t *testing.T, pool string, f *fabricNode) {
	t.Helper()
	address := serveEcho(t)
	runJob(t, func(ctx context.Context, tell func(control.JobEvent) error) error {
		return f.Expose(ctx, control.ExposeRequest{Pool: pool, Address: address}, tell)
	})
}

// runJob runs a job until the test ends, or stop is called, and returns when it is ready.
func runJob(t *testing.T, job func(context.Context, func(control.JobEvent) error) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- job(ctx, func(e control.JobEvent) error {
			if e.Ready != "" {
				ready <- struct{}{}
			}
			return nil
		})
	}()
	ended := false
	stop = func() {
		if !ended {
			ended = true
			cancel()
			<-done
		}
	}
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	return stop
}

// trio makes a fabric of three nodes that know each other.
func trio(t *testing.T) (nodes [3]*fabricNode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fabricHung)
	defer cancel()
	for i, name := range []string{"first", "second", "third"} {
		home := t.TempDir()
		if i == 0 {
			if _, err := InitFabric(home, name, ""); err != nil {
				t.Fatal(err)
			}
		} else {
			token, err := nodes[0].NewToken(ctx, control.TokenRequest{Life: time.Hour, Uses: 1})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := JoinFabric(ctx, home, token, name, ""); err != nil {
				t.Fatal(err)
			}
		}
		nodes[i], _ = newFabricNode(t, home, FabricConfig{})
	}
	for _, n := range nodes {
		waitFabric(t, "each to know all", func() bool { return len(n.Node.Nodes()) == len(nodes) })
	}
	return nodes
}

// TestTunnelSpans follows a tunnel from its opening over its move to another node to its end:
// all in one trace, with what it is, where it leads and what it has carried; and one that
// does not come about.
func TestTunnelSpans(t *testing.T) {
	spans := recordSpans(t)
	nodes := trio(t)
	offerEcho(t, "echo", nodes[1])
	offerEcho(t, "echo", nodes[2])
	me := nodes[0]
	waitFabric(t, "both to provide it", func() bool {
		n := 0
		for _, s := range me.Node.Nodes() {
			n += len(slices.DeleteFunc(slices.Clone(s.Services), func(s fabric.ServiceState) bool { return s.Pool != "echo" }))
		}
		return n == 2
	})
	ctx, cancel := context.WithTimeout(t.Context(), fabricHung)
	defer cancel()
	tun, err := me.tunnel(ctx, fabric.Request{Profile: profile("tcp-forward"), Pool: "echo"})
	if err != nil {
		t.Fatal(err)
	}
	which := attribute.String("fabric.tunnel", tun.ID().String())
	opener, provider := attribute.String("fabric.side", "opener"), attribute.String("fabric.side", "provider")
	open := spans.wait("fabric.tunnel.open", which, opener, attribute.String("fabric.pool", "echo"), attribute.String("fabric.kind", "tcp-forward"),
		attribute.String("fabric.peer", tun.Peer().String()), attribute.String("fabric.organization", "default"), attribute.Int64("fabric.generation", 1))
	if open.Status.Code == codes.Error || about(open, "fabric.route").AsString() == "" {
		t.Errorf("%+v", open)
	}
	spans.wait("fabric.tunnel.accept", which, provider, attribute.String("fabric.peer", me.ID().String()))

	at := slices.IndexFunc(nodes[:], func(n *fabricNode) bool { return n.ID() == tun.Peer() })
	if _, err := me.Revoke(ctx, nodes[at].ID().String()); err != nil { // it has no time to say goodbye
		t.Fatal(err)
	}
	moved := spans.wait("fabric.route.change", which, opener, attribute.Bool("fabric.failover", true), attribute.String("fabric.peer", nodes[3-at].ID().String()))
	if moved.SpanContext.TraceID() != open.SpanContext.TraceID() || moved.Parent.SpanID() != open.SpanContext.SpanID() || about(moved, "fabric.generation").AsInt64() < 2 {
		t.Errorf("%+v", moved)
	}
	tun.Close()
	spans.wait("fabric.tunnel.close", which, provider, attribute.String("fabric.peer", me.ID().String()))
	ended := spans.wait("fabric.tunnel.close", which, opener, attribute.Int64("fabric.streams", 0), attribute.Int64("fabric.sent_bytes", 0))
	if ended.SpanContext.TraceID() != open.SpanContext.TraceID() || ended.Status.Code == codes.Error || about(ended, "fabric.why").AsString() == "" {
		t.Errorf("%+v", ended)
	}

	if _, err := me.tunnel(ctx, fabric.Request{Profile: profile("tcp-forward"), Pool: "nobody"}); err == nil {
		t.Fatal("a tunnel to nobody")
	}
	failed := spans.wait("fabric.tunnel.open", attribute.String("fabric.pool", "nobody"))
	if failed.Status.Code != codes.Error || about(failed, "error.type").AsString() != capsule.NotFound.String() {
		t.Errorf("%+v", failed)
	}
}

// TestTransferSpans: both ends of a transfer tell how much of what has come, and of one that
// fails why it did.
func TestTransferSpans(t *testing.T) {
	spans := recordSpans(t)
	nodes := trio(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "it")
	content := make([]byte, 3_000_000) // without holes
	for i := range content {
		content[i] = byte(1 + i%251)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	stop := runJob(t, func(ctx context.Context, tell func(control.JobEvent) error) error {
		return nodes[1].Send(ctx, control.SendRequest{Path: path, Name: "it"}, tell)
	})
	ctx, cancel := context.WithTimeout(t.Context(), fabricHung)
	defer cancel()
	quiet := func(control.JobEvent) error { return nil }
	req := control.ReceiveRequest{Name: "it", Target: filepath.Join(dir, "got"), Wait: fabricHung}
	if err := nodes[2].Receive(ctx, req, quiet); err != nil {
		t.Fatal(err)
	}
	got := spans.wait("fabric.transfer", attribute.String("fabric.pool", "it"), attribute.Int64("fabric.bytes", 3_000_000), attribute.Int64("fabric.resumed_bytes", 0),
		attribute.Int64("fabric.files", 1), attribute.Int("fabric.mirrors", 1), attribute.Int("fabric.mirrors_out", 0))
	if got.Status.Code == codes.Error || about(got, "fabric.fetched_bytes").AsInt64() < 3_000_000 {
		t.Errorf("%+v", got)
	}
	tunnel := spans.wait("fabric.tunnel.open", attribute.String("fabric.pool", "it"), attribute.String("fabric.kind", filesKind), attribute.String("fabric.peer", nodes[1].ID().String()))
	if tunnel.Parent.SpanID() != got.SpanContext.SpanID() {
		t.Errorf("the tunnel of a transfer is not its part: %+v", tunnel)
	}
	gave := spans.wait("fabric.give", attribute.String("fabric.pool", "it"), attribute.String("fabric.peer", nodes[2].ID().String()))
	if gave.Status.Code == codes.Error {
		t.Errorf("%+v", gave)
	}
	if closed := spans.wait("fabric.tunnel.close", attribute.String("fabric.pool", "it"), attribute.String("fabric.side", "opener")); about(closed, "fabric.received_bytes").AsInt64() < 3_000_000 {
		t.Errorf("%+v", closed)
	}

	stop()
	spans.all.Reset()
	req = control.ReceiveRequest{Name: "other", Target: filepath.Join(dir, "other")}
	if err := nodes[2].Receive(ctx, req, quiet); err == nil {
		t.Fatal("what nobody offers has come")
	}
	failed := spans.wait("fabric.transfer", attribute.String("fabric.pool", "other"))
	if failed.Status.Code != codes.Error || failed.Status.Description == "" || about(failed, "error.type").AsString() != capsule.NotFound.String() {
		t.Errorf("%+v", failed)
	}
}
