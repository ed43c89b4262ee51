package node

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/spacestore/space/capsule"
)

// Spans go to the collector that the environment names, at the latest when the
// node ends; without one nothing is made.
func TestTracing(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
	stop, err := startTracing(t.Context(), "v1", log)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	_, s := tracer().Start(t.Context(), "nothing")
	if s.IsRecording() {
		t.Error("spans are recorded for nobody")
	}
	got := make(chan string, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- r.URL.Path + "\n" + string(body)
	}))
	defer srv.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", srv.URL)
	if stop, err = startTracing(t.Context(), "v1", log); err != nil {
		t.Fatal(err)
	}
	defer otel.SetTracerProvider(noop.NewTracerProvider())
	denied := capsule.Errorf(capsule.Denied, "the policy says no")
	err = span(t.Context(), "nvme_project", func(ctx context.Context) error {
		return span(ctx, "inner", func(context.Context) error { return denied })
	}, attribute.String("capsule", "some"))
	if err != denied {
		t.Errorf("error became %v", err)
	}
	stop()
	close(got)
	all := ""
	for body := range got {
		all += body
	}
	for _, want := range []string{"/v1/traces", "nvme_project", "inner", "some", "the policy says no", "denied", "service.name", "space", "v1"} {
		if !strings.Contains(all, want) {
			t.Errorf("what was sent lacks %q", want)
		}
	}
}
