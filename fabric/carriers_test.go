package fabric

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
)

// The same nodes over real sockets: TLS, QUIC and HTTPS, directly and through a
// node that passes on.
func TestCarriers(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	before := goleak.IgnoreCurrent()
	// Carriers keep what they have shared for a moment, until what was written
	// last has gone out.
	defer waitFor(t, "the end of the carriers' connections", func() bool { return goleak.Find(before) == nil })
	for _, name := range []string{"tls", "quic", "https", viaCarrier} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 0)
			defer w.close()
			carriers := func(o *Options, listen bool) {
				o.Dial = []carrier.Carrier{carrier.NewTLS(o.Identity, carrier.TLSOptions{}), carrier.NewQUIC(o.Identity),
					carrier.NewHTTPS(o.Identity, carrier.HTTPSOptions{})}
				o.Listen, o.Seeds = nil, nil
				for _, c := range o.Dial {
					if listen && (c.Name() == name || name == viaCarrier) {
						addr := "127.0.0.1:0"
						o.Listen = append(o.Listen, Listen{Carrier: c, Addr: addr})
					}
				}
			}
			a := w.node(t, "a", "one", func(o *Options) { carriers(o, true); o.Relay = true })
			at := func(o *Options) { carriers(o, false); o.Seeds = a.Addrs() }
			b, far := w.node(t, "b", "one", at), a
			if name == viaCarrier {
				far = w.node(t, "c", "one", at)
			}
			echo(t, far, "pool")
			var tun *Tunnel
			for {
				news := b.Changed()
				var err error
				tun, err = b.Tunnel(ctx, Request{Profile: testProfile, Pool: "pool", Kind: "echo"})
				if err == nil {
					break
				}
				if !errors.Is(err, ErrNoProvider) {
					t.Fatal(err)
				}
				select {
				case <-news:
				case <-ctx.Done():
					t.Fatal(ctx.Err())
				}
			}
			if got := say(t, tun, payload(1, 3_000_000)); got != far.o.Name {
				t.Errorf("%q has answered", got)
			}
			if st, err := tun.Open(ctx, frame.Bulk, []byte("header")); err != nil {
				t.Error(err)
			} else {
				st.Close()
			}
			if r, ok := routeTo(b, far); !ok || r.Carrier != name {
				t.Errorf("route %+v", r)
			}
		})
	}
}
