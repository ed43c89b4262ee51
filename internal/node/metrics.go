package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/views"
)

// Whoever scrapes gets little of the node: a few requests at a time, each for
// a short time, with small headers.
const (
	metricsTimeout  = 10 * time.Second
	metricsInFlight = 4
	metricsHeader   = 16 << 10
)

// serveMetrics serves /metrics and /healthz at addr until ctx ends. It returns
// the address, which has a port where addr's is 0, and how to wait for the end.
func serveMetrics(ctx context.Context, addr string, reg prometheus.Gatherer, healthy func() error, log *slog.Logger) (net.Addr, func(), error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, nil, capsule.Wrap(capsule.IO, err, "metrics_listen")
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: metricsInFlight, Timeout: metricsTimeout}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	srv := &http.Server{Handler: mux, ReadTimeout: metricsTimeout, WriteTimeout: 2 * metricsTimeout, IdleTimeout: time.Minute,
		MaxHeaderBytes: metricsHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := srv.Serve(l); err != http.ErrServerClosed {
			log.Error("metrics are no longer served", "error", err)
		}
	}()
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	log.Info("metrics are served", "address", l.Addr().String())
	return l.Addr(), func() {
		stop()
		srv.Close()
		<-ended
	}, nil
}

// healthy says why the node should not be used, if so.
func (n *node) healthy() error {
	if n.draining.Load() {
		return errEnding
	}
	return n.store.Failed()
}

// metrics are what Prometheus is told of this node.
func (n *node) metrics() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		buildInfo(n.version),
		&storeCollector{counters: n.store.Counters, projections: n.projections.List},
	)
	return reg
}

// storeCollector tells of the store and what it is projected as. It asks when
// it is asked, so it costs nothing in between.
type storeCollector struct {
	counters    func() (store.Counters, error)
	projections func() []views.Info
}

// storeMetric is a number that Counters has.
type storeMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*store.Counters) float64
}

func gauge(name, help string, value func(*store.Counters) float64) storeMetric {
	return storeMetric{prometheus.NewDesc("space_"+name, help, nil, nil), prometheus.GaugeValue, value}
}

func counter(name, help string, value func(*store.Counters) float64) storeMetric {
	return storeMetric{prometheus.NewDesc("space_"+name, help, nil, nil), prometheus.CounterValue, value}
}

var storeMetrics = []storeMetric{
	gauge("store_capsules", "Capsules in the store.", func(c *store.Counters) float64 { return float64(c.Capsules) }),
	gauge("store_segments", "Distinct segments in the store.", func(c *store.Counters) float64 { return float64(c.Segments) }),
	gauge("store_logical_bytes", "Bytes of the capsules' contents, snapshots included.", func(c *store.Counters) float64 { return float64(c.LogicalBytes) }),
	gauge("store_unique_bytes", "Bytes of the contents after deduplication.", func(c *store.Counters) float64 { return float64(c.UniqueBytes) }),
	gauge("store_stored_bytes", "Bytes of the contents after deduplication and compression, sealed.", func(c *store.Counters) float64 { return float64(c.StoredBytes) }),
	gauge("store_pending_bytes", "Bytes of removed contents that are being released.", func(c *store.Counters) float64 { return float64(c.PendingBytes) }),
	gauge("store_metadata_bytes", "Bytes of metadata on the disk.", func(c *store.Counters) float64 { return float64(c.MetaBytes) }),
	gauge("store_free_bytes", "Bytes that the disk has left for contents.", func(c *store.Counters) float64 { return float64(c.FreeBytes) }),
	gauge("store_cache_bytes", "Bytes of decoded segments in memory.", func(c *store.Counters) float64 { return float64(c.CacheBytes) }),
	gauge("store_failed", "1 if the store takes no more changes, after an I/O failure.", func(c *store.Counters) float64 { return truth(c.Failed != nil) }),
	gauge("journal_pending_bytes", "Bytes of changes of volumes and trees in the journal and in memory, not in segments yet.", func(c *store.Counters) float64 { return float64(c.ChangeBytes) }),
	counter("journal_records_total", "Changes that the journal has taken since the store was made.", func(c *store.Counters) float64 { return float64(c.JournalRecords) }),
	counter("store_damaged_reads_total", "Reads that a damaged segment has failed.", func(c *store.Counters) float64 { return float64(c.Damaged) }),
	counter("gc_runs_total", "Garbage collections.", func(c *store.Counters) float64 { return float64(c.GCRuns) }),
	counter("gc_freed_bytes_total", "Bytes of segment logs given back to the file system.", func(c *store.Counters) float64 { return float64(c.GC.FreedBytes) }),
	counter("gc_moved_bytes_total", "Bytes of records written again by garbage collections.", func(c *store.Counters) float64 { return float64(c.GC.MovedBytes) }),
	counter("gc_recompressed_segments_total", "Segments compressed denser by garbage collections.", func(c *store.Counters) float64 { return float64(c.GC.Recompressed) }),
	counter("gc_resealed_total", "Segments and metadata tables sealed again under the current key.", func(c *store.Counters) float64 { return float64(c.GC.Resealed) }),
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// buildInfo tells which version runs.
func buildInfo(version string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "space_build_info", Help: "1; the label says which version runs.",
		ConstLabels: prometheus.Labels{"version": version}}, func() float64 { return 1 })
}

var projectionsDesc = prometheus.NewDesc("space_projections", "Running projections, by view.", []string{"view"}, nil)

// Describe implements prometheus.Collector.
func (c *storeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range storeMetrics {
		ch <- m.desc
	}
	ch <- projectionsDesc
}

// Collect implements prometheus.Collector.
func (c *storeCollector) Collect(ch chan<- prometheus.Metric) {
	byView := map[string]int{views.FUSE: 0, views.NVMe: 0}
	for _, p := range c.projections() {
		byView[p.View]++
	}
	for view, n := range byView {
		ch <- prometheus.MustNewConstMetric(projectionsDesc, prometheus.GaugeValue, float64(n), view)
	}
	now, err := c.counters()
	if err != nil { // the store is closed
		return
	}
	for _, m := range storeMetrics {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&now))
	}
}
