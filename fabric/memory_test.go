package fabric

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// idleTunnel returns what an idle tunnel costs, both ends together, in bytes.
func idleTunnel(t testing.TB, count int) int64 {
	w := newWorld(t, 0)
	defer w.close()
	a, b := w.node(t, "seed", "one"), w.node(t, "b", "one")
	p, err := b.Provide(Service{Profile: testProfile, Pool: "pool", Kind: "echo"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		for {
			if _, err := p.Accept(ctx); err != nil {
				return
			}
		}
	}()
	w.open(t, a, testProfile, "pool")
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	before := heap()
	tunnels := make([]*Tunnel, count)
	for i := range tunnels {
		tunnels[i], err = a.Tunnel(ctx, Request{Profile: testProfile, Pool: "pool", Kind: "echo"})
		if err != nil {
			t.Fatal(err)
		}
	}
	each := (heap() - before) / int64(count)
	if got := a.Status().Tunnels; got != count+1 {
		t.Errorf("%d tunnels", got)
	}
	return each
}

func TestIdleTunnelIsSmall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if each := idleTunnel(t, 500); each > 50_000 {
			t.Errorf("an idle tunnel costs %d bytes", each)
		}
	})
}

// BenchmarkTunnels opens tunnels between two nodes, and says what each costs.
func BenchmarkTunnels(b *testing.B) {
	begin := time.Now()
	each := idleTunnel(b, max(b.N, 100))
	b.ReportMetric(float64(each), "B/idle-tunnel")
	b.ReportMetric(float64(time.Since(begin).Microseconds())/float64(max(b.N, 100)), "µs/open")
}
