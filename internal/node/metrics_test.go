package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/views"
)

func TestMetrics(t *testing.T) {
	s := testStore(t)
	putObject(t, s, "o", []byte("content"))
	reg := prometheus.NewPedanticRegistry()
	failed := false
	reg.MustRegister(buildInfo("v1"), &storeCollector{projections: func() []views.Info { return []views.Info{{View: views.NVMe}, {View: views.NVMe}} },
		counters: func() (store.Counters, error) {
			c, err := s.Counters()
			if failed {
				c.Failed = errors.New("bad disk")
			}
			return c, err
		}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var sick error
	addr, stop, err := serveMetrics(ctx, "127.0.0.1:0", reg, func() error { return sick }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	get := func(path string) (int, string) {
		t.Helper()
		r, err := http.Get("http://" + addr.String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(text)
	}
	code, text := get("/metrics")
	for _, line := range []string{"space_store_capsules 1", "space_store_logical_bytes 7", "space_store_failed 0", `space_projections{view="nvme"} 2`,
		`space_projections{view="fuse"} 0`, `space_build_info{version="v1"} 1`, "space_store_damaged_reads_total 0", "space_gc_runs_total 0"} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
	if code != http.StatusOK {
		t.Errorf("code %d: %s", code, text)
	}
	failed, sick = true, errors.New("bad disk")
	if _, text := get("/metrics"); !strings.Contains(text, "space_store_failed 1\n") {
		t.Error("a store that failed is not told of")
	}
	if code, text := get("/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "bad disk") {
		t.Errorf("health %d: %s", code, text)
	}
	sick = nil
	if code, text := get("/healthz"); code != http.StatusOK || text != "ok\n" {
		t.Errorf("health %d: %s", code, text)
	}
	s.Close() // as at the end of a node: no numbers, but an answer
	if code, text := get("/metrics"); code != http.StatusOK || strings.Contains(text, "space_store_capsules ") {
		t.Errorf("after the store's end: %d %s", code, text)
	}
	stop()
	if _, err := http.Get("http://" + addr.String() + "/healthz"); err == nil {
		t.Error("it answers after its end")
	}
	if _, _, err := serveMetrics(ctx, "127.0.0.1:99999", reg, nil, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a port that does not exist was listened at")
	}
}
