package node

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/forward"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/fabric/vpn"
)

// fabricCounts are what a node of the fabric counts beside the fabric itself.
type fabricCounts struct {
	tunnelsOpened, tunnelsFailed, routeChanges atomic.Int64
	exposed, forwarded                         runningSum[forward.Stats]
	given, taken                               transferCounts
	vpnExit, vpnClient                         runningSum[vpn.Stats]
}

// transferCounts are of transfers in one direction.
type transferCounts struct {
	running, done, failed, bytes atomic.Int64
}

// stats are counts that can be summed up.
type stats[T any] interface{ Plus(T) T }

// runningSum is the sum of what services count, those that have ended too. Gauges
// of those that have ended are zero by then.
type runningSum[T stats[T]] struct {
	mu   sync.Mutex
	next int
	live map[int]func() T
	past T
}

// track has stats in the sum; its owner calls done at its end.
func (s *runningSum[T]) track(stats func() T) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live == nil {
		s.live = map[int]func() T{}
	}
	id := s.next
	s.next++
	s.live[id] = stats
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.past = s.past.Plus(stats())
		delete(s.live, id)
	}
}

func (s *runningSum[T]) sum() T {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.past
	for _, stats := range s.live {
		sum = sum.Plus(stats())
	}
	return sum
}

// running is how many are in the sum that have not ended.
func (s *runningSum[T]) running() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// fabricMetric is a number of the fabric's node.
type fabricMetric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func fabricGauge(name, help string, labels ...string) fabricMetric {
	return fabricMetric{prometheus.NewDesc("space_fabric_"+name, help, labels, nil), prometheus.GaugeValue}
}

func fabricCounter(name, help string, labels ...string) fabricMetric {
	return fabricMetric{prometheus.NewDesc("space_fabric_"+name, help, labels, nil), prometheus.CounterValue}
}

var (
	fabricInfo      = fabricGauge("info", "1; the labels say which node of which fabric this is.", "fabric", "node", "name", "area")
	fabricNodes     = fabricGauge("nodes", "Nodes that the directory knows, this one too.")
	fabricSessions  = fabricGauge("sessions", "Sessions with other nodes.")
	fabricTunnels   = fabricGauge("tunnels", "Tunnels that end here.")
	fabricStreams   = fabricGauge("streams", "Streams in tunnels that end here.")
	fabricPassed    = fabricGauge("relayed_links", "Links of other nodes that pass through this one.")
	fabricFailovers = fabricCounter("failovers_total", "Tunnels that went on with another node.")
	fabricRefused   = fabricCounter("refused_total", "Tunnels and streams that were refused for a limit.")
	fabricRefusals  = fabricCounter("limit_refusals_total", "Refusals, by whose limit it was, and of what.", "scope", "what")
	fabricRenewal   = fabricGauge("certificate_renewal_seconds", "When the node asks for its next certificate, in seconds since 1970.")

	classSent     = fabricCounter("sent_bytes_total", "Bytes sent, by traffic class.", "class")
	classReceived = fabricCounter("received_bytes_total", "Bytes received, by traffic class.", "class")
	classDropped  = fabricCounter("dropped_total", "Frames of packets that were dropped because the way was too slow, by traffic class.", "class")
	classQueued   = fabricGauge("queued_bytes", "Bytes that no link has taken yet, by traffic class.", "class")
	classDelay    = fabricMetric{prometheus.NewDesc("space_fabric_delay_seconds", "How long frames waited for their turn at a link, by traffic class.", []string{"class"}, nil), 0}

	fabricWindows     = fabricGauge("window_bytes", "Bytes that windows of streams take.")
	fabricWindowLimit = fabricGauge("window_limit_bytes", "Bytes that windows of streams may take together.")

	routeUp         = fabricGauge("route_up", "1 if the route to a peer works now.", "peer", "name", "carrier", "via")
	routeLinks      = fabricGauge("route_links", "Links to a peer.", "peer")
	routeTunnels    = fabricGauge("route_tunnels", "Tunnels that use the route to a peer.", "peer")
	routeRTT        = fabricGauge("route_rtt_seconds", "Round trip to a peer, smoothed.", "peer")
	routeLoss       = fabricGauge("route_loss_ratio", "Part of the bytes to a peer that went twice, lately.", "peer")
	routeThroughput = fabricGauge("route_throughput_bytes", "Bytes a second to and from a peer, lately.", "peer")
	routeLost       = fabricCounter("route_lost_links_total", "Links to a peer that broke.", "peer")
	routeGeneration = fabricGauge("route_generation", "How often the route to a peer has changed.", "peer")

	tunnelsAsked  = fabricCounter("tunnels_asked_total", "Tunnels that this node has asked for, by result.", "result")
	routeChanges  = fabricCounter("route_changes_total", "Changes of route of tunnels that this node has asked for.")
	forwardActive = fabricGauge("forward_connections", "TCP connections carried now, by side: forward or expose.", "side")
	forwardTotal  = fabricCounter("forward_connections_total", "TCP connections, by side.", "side")
	forwardFailed = fabricCounter("forward_failed_total", "TCP connections that were refused, reset or broken, by side.", "side")
	forwardBytes  = fabricCounter("forward_bytes_total", "Bytes of TCP connections, by side and direction: into the tunnel or out of it.", "side", "direction")

	vpnRunning = fabricGauge("vpn_devices", "Network devices of the VPN, by side: client or exit.", "side")
	vpnPackets = fabricCounter("vpn_packets_total", "IP packets carried, by side and direction: into the tunnel or out of it.", "side", "direction")
	vpnBytes   = fabricCounter("vpn_bytes_total", "Bytes of IP packets carried, by side and direction.", "side", "direction")
	vpnDropped = fabricCounter("vpn_dropped_packets_total", "IP packets dropped, by side and reason: room, foreign (of an address that is not the tunnel's) or malformed.", "side", "reason")

	transfersNow    = fabricGauge("transfers", "Transfers of files that run, by direction: send or receive.", "direction")
	transfersTotal  = fabricCounter("transfers_total", "Transfers of files that have ended, by direction and result.", "direction", "result")
	transferredByte = fabricCounter("transferred_bytes_total", "Bytes of files that transfers have moved, by direction.", "direction")

	fabricMetrics = []fabricMetric{fabricInfo, fabricNodes, fabricSessions, fabricTunnels, fabricStreams, fabricPassed, fabricFailovers, fabricRefused, fabricRefusals,
		fabricRenewal, classSent, classReceived, classDropped, classQueued, classDelay, fabricWindows, fabricWindowLimit, routeUp, routeLinks, routeTunnels, routeRTT, routeLoss, routeThroughput, routeLost,
		routeGeneration, tunnelsAsked, routeChanges, forwardActive, forwardTotal, forwardFailed, forwardBytes, vpnRunning, vpnPackets, vpnBytes, vpnDropped, transfersNow, transfersTotal, transferredByte}
)

// maxRouteMetrics bounds the peers that metrics name.
const maxRouteMetrics = 1000

// fabricCollector tells Prometheus of a node of the fabric. It asks when it is
// asked.
type fabricCollector struct{ f *fabricNode }

func (f *fabricNode) collector() prometheus.Collector { return fabricCollector{f} }

// Describe implements prometheus.Collector.
func (c fabricCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range fabricMetrics {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c fabricCollector) Collect(ch chan<- prometheus.Metric) {
	send := func(m fabricMetric, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
	}
	st := c.f.Node.Status()
	send(fabricInfo, 1, st.Fabric.String(), st.Node.String(), st.Name, st.Area)
	send(fabricNodes, float64(st.Nodes))
	send(fabricSessions, float64(st.Sessions))
	send(fabricTunnels, float64(st.Tunnels))
	send(fabricStreams, float64(st.Streams))
	send(fabricPassed, float64(st.PassedOn))
	send(fabricFailovers, float64(st.Failovers))
	send(fabricRefused, float64(st.Refused))
	for _, t := range c.f.Node.Totals() {
		for what, n := range t.Refused {
			send(fabricRefusals, float64(n), t.Scope.String(), what)
		}
	}
	send(fabricRenewal, float64(st.CertRenewal.Unix()))
	send(fabricWindows, float64(st.Windows))
	send(fabricWindowLimit, float64(st.WindowLimit))
	for _, class := range st.Classes {
		name := class.Class.String()
		send(classSent, float64(class.Sent), name)
		send(classReceived, float64(class.Received), name)
		send(classDropped, float64(class.Dropped), name)
		send(classQueued, float64(class.Queued), name)
		ch <- delays(class.Delay, name)
	}
	sent := map[string]bool{} // a peer may have more than one session
	for _, r := range c.f.Node.Routes() {
		if peer := r.Peer.String(); !sent[peer] && len(sent) < maxRouteMetrics {
			sent[peer] = true
			c.route(send, peer, r)
		}
	}
	n := &c.f.counts
	send(tunnelsAsked, float64(n.tunnelsOpened.Load()), "opened")
	send(tunnelsAsked, float64(n.tunnelsFailed.Load()), "failed")
	send(routeChanges, float64(n.routeChanges.Load()))
	for side, sum := range map[string]*runningSum[forward.Stats]{"forward": &n.forwarded, "expose": &n.exposed} {
		s := sum.sum()
		send(forwardActive, float64(s.Active), side)
		send(forwardTotal, float64(s.Total), side)
		send(forwardFailed, float64(s.Failed), side)
		send(forwardBytes, float64(s.Sent), side, "in")
		send(forwardBytes, float64(s.Received), side, "out")
	}
	for side, sum := range map[string]*runningSum[vpn.Stats]{"client": &n.vpnClient, "exit": &n.vpnExit} {
		s := sum.sum()
		send(vpnRunning, float64(sum.running()), side)
		send(vpnPackets, float64(s.SentPackets), side, "in")
		send(vpnPackets, float64(s.ReceivedPackets), side, "out")
		send(vpnBytes, float64(s.SentBytes), side, "in")
		send(vpnBytes, float64(s.ReceivedBytes), side, "out")
		send(vpnDropped, float64(s.Dropped), side, "room")
		send(vpnDropped, float64(s.Foreign), side, "foreign")
		send(vpnDropped, float64(s.Malformed), side, "malformed")
	}
	for direction, t := range map[string]*transferCounts{"send": &n.given, "receive": &n.taken} {
		send(transfersNow, float64(t.running.Load()), direction)
		send(transfersTotal, float64(t.done.Load()), direction, "done")
		send(transfersTotal, float64(t.failed.Load()), direction, "failed")
		send(transferredByte, float64(t.bytes.Load()), direction)
	}
}

// delays makes a histogram of a class's delays.
func delays(d fabric.DelayState, class string) prometheus.Metric {
	buckets, count := map[float64]uint64{}, uint64(0)
	for i, n := range d.Buckets {
		count += uint64(n)
		if i < len(session.DelayBounds) {
			buckets[session.DelayBounds[i].Seconds()] = count
		}
	}
	return prometheus.MustNewConstHistogram(classDelay.desc, count, d.Sum.Seconds(), buckets, class)
}

func (c fabricCollector) route(send func(fabricMetric, float64, ...string), peer string, r fabric.RouteState) {
	send(routeUp, truth(r.State == "up"), peer, r.Name, r.Carrier, r.Via)
	send(routeLinks, float64(r.Links), peer)
	send(routeTunnels, float64(r.Tunnels), peer)
	send(routeRTT, r.RTT.Seconds(), peer)
	send(routeLoss, r.Loss, peer)
	send(routeThroughput, float64(r.Throughput), peer)
	send(routeLost, float64(r.LostLinks), peer)
	send(routeGeneration, float64(r.Generation), peer)
}
