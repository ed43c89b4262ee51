package fabric

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
)

// The same nodes over real sockets: TLS, QUIC and HTTPS, directly and through a
// node that passes on.
func TestCarriers(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
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
			if name == viaCarrier {
				return
			}
			// Who is at an address shows it there.
			if err := b.Answers(ctx, a.ID(), a.Addrs()[0]); err != nil {
				t.Error(err)
			}
			if err := b.Answers(ctx, b.ID(), a.Addrs()[0]); err == nil {
				t.Error("a node is where it is not")
			}
			if linked := b.Linked(); (len(linked) > 0) == (name == "https") || len(linked) > 0 && !linked[0].IsLoopback() {
				t.Errorf("links go to %v", linked)
			}
		})
	}
}

// BenchmarkBulk sends over one stream of a tunnel, over TLS on the loopback.
func BenchmarkBulk(b *testing.B) {
	w := newWorld(b, 0)
	defer w.close()
	tls := func(seeds []string, listen bool) func(*Options) {
		return func(o *Options) {
			c := carrier.NewTLS(o.Identity, carrier.TLSOptions{})
			o.Dial, o.Seeds, o.Listen = []carrier.Carrier{c}, seeds, nil
			if listen {
				o.Listen = []Listen{{Carrier: c, Addr: "127.0.0.1:0"}}
			}
		}
	}
	far := w.node(b, "far", "one", tls(nil, true))
	near := w.node(b, "near", "one", tls(far.Addrs(), false))
	p, err := far.Provide(Service{Profile: testProfile, Pool: "pool", Kind: "echo"})
	if err != nil {
		b.Fatal(err)
	}
	tun := w.open(b, near, testProfile, "pool")
	other, err := p.Accept(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	st, err := tun.Open(context.Background(), frame.Bulk, nil)
	if err != nil {
		b.Fatal(err)
	}
	block := payload(1, 1<<20)
	b.SetBytes(int64(len(block)))
	done := make(chan error, 1)
	go func() {
		in, err := other.Accept(context.Background())
		if err == nil {
			_, err = io.CopyN(io.Discard, in, int64(b.N)*int64(len(block)))
		}
		done <- err
	}()
	b.ResetTimer()
	for range b.N {
		if _, err := st.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
