package nvme

import (
	"github.com/prometheus/client_golang/prometheus"
)

// collector gives a target's counters to Prometheus. Hosts are no labels:
// there may be any number of them.
type collector struct{ t *Target }

// Collector returns the target's metrics.
func (t *Target) Collector() prometheus.Collector { return collector{t} }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("space_nvme_"+name, help, labels, nil)
}

var (
	descCommands    = desc("commands_total", "I/O commands completed.", "command")
	descErrors      = desc("command_errors_total", "I/O commands completed with a status other than success.")
	descBytes       = desc("bytes_total", "Bytes read and written by I/O commands.", "direction")
	descLatency     = desc("command_duration_seconds", "Time from a command's capsule to its answer.", "command")
	descControllers = desc("controllers", "Controllers, which are hosts' associations with subsystems.")
	descQueues      = desc("io_queues", "I/O queues.")
	descConns       = desc("connections", "Connections, by state.", "state")
	descAccepted    = desc("connections_accepted_total", "Connections accepted.")
	descRefused     = desc("connections_refused_total", "Connections refused or dropped for want of room.")
	descNamespaces  = desc("namespaces", "Namespaces.")
	descSubsystems  = desc("subsystems", "Subsystems.")
	descMemory      = desc("memory_bytes", "Memory for commands' data, in use and the limit.", "kind")
	descProtocol    = desc("protocol_errors_total", "Connections ended because a host broke the rules of the transport.")
	descDigest      = desc("digest_errors_total", "Data that arrived with a wrong digest.")
	descKeepAlive   = desc("keep_alive_expired_total", "Controllers ended because their host went silent.")
	descAuth        = desc("authentication_failures_total", "Hosts that did not authenticate.")
	descMedia       = desc("media_errors_total", "Commands that failed on damaged data.")
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descCommands, descErrors, descBytes, descLatency, descControllers, descQueues, descConns, descAccepted,
		descRefused, descNamespaces, descSubsystems, descMemory, descProtocol, descDigest, descKeepAlive, descAuth, descMedia} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	t := c.t.Totals()
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter(descCommands, t.Reads, "read")
	counter(descCommands, t.Writes, "write")
	counter(descCommands, t.Flushes, "flush")
	counter(descCommands, t.Others, "other")
	counter(descErrors, t.Errors)
	counter(descBytes, t.ReadBytes, "read")
	counter(descBytes, t.WriteBytes, "write")
	counter(descAccepted, t.Accepted)
	counter(descRefused, t.Refused)
	counter(descProtocol, t.ProtocolErrors)
	counter(descDigest, t.DigestErrors)
	counter(descKeepAlive, t.KeepAliveExpired)
	counter(descAuth, t.AuthFailures)
	counter(descMedia, t.MediaErrors)
	gauge(descControllers, float64(t.Controllers))
	gauge(descQueues, float64(t.Queues))
	gauge(descConns, float64(t.HalfOpen), "half-open")
	gauge(descConns, float64(t.Connections-t.HalfOpen), "open")
	gauge(descNamespaces, float64(t.Namespaces))
	gauge(descSubsystems, float64(t.Subsystems))
	gauge(descMemory, float64(t.MemoryUsed), "used")
	gauge(descMemory, float64(t.MemoryLimit), "limit")
	for name, h := range map[string]*histogram{"read": &c.t.stats.io.readTime, "write": &c.t.stats.io.writeTime} {
		ch <- h.metric(name)
	}
}

// metric returns the histogram with a bucket for each power of two from about
// a microsecond to about a minute.
func (h *histogram) metric(label string) prometheus.Metric {
	const first, last = 8, 34 // powers of two of nanoseconds, less 2
	buckets := map[float64]uint64{}
	count, sum := uint64(0), 0.0
	for i := range h {
		n := h[i].Load()
		count += n
		sum += float64(n) * upper(i).Seconds()
		if p := i / 4; i%4 == 3 && p >= first && p <= last {
			buckets[upper(i).Seconds()] = count
		}
	}
	return prometheus.MustNewConstHistogram(descLatency, count, sum, buckets, label)
}
