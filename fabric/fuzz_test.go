package fabric

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// FuzzStreamHead reads what a peer says of a stream.
func FuzzStreamHead(f *testing.F) {
	f.Add([]byte{streamControl})
	f.Add(tunnelHeader(TunnelID{1, 2, 3}, false, []byte("header")))
	f.Add(passHeader(identity.NodeID{4, 5}, maxHops))
	f.Add(joinHeader(identity.NodeID{4, 5}, netip.MustParseAddr("192.0.2.1")))
	f.Add(append([]byte{streamCall}, callRenew...))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHead(b)
		if err != nil {
			return
		}
		switch h.what {
		case streamTunnel:
			if got := tunnelHeader(h.tunnel.id, !h.tunnel.opener, h.rest); !bytes.Equal(got, b) {
				t.Errorf("%x was read and is written %x", b, got)
			}
		case streamPass:
			if got := passHeader(h.to, h.hops); !bytes.Equal(got, b[:len(got)]) {
				t.Errorf("%x was read and is written %x", b, got)
			}
			if again, err := parseHead(joinHeader(h.to, h.from)); h.joins && (err != nil || !again.joins || again.from != h.from) {
				t.Errorf("%+v was read and comes back as %+v, %v", h, again, err)
			}
		}
	})
}

// FuzzMessages reads a control stream.
func FuzzMessages(f *testing.F) {
	f.Add(append(message{msgHello, []byte(`{}`)}.encode(), message{msgDigest, []byte("digest")}.encode()...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var again []byte
		for {
			m, err := readMessage(r)
			if err != nil {
				break
			}
			again = append(again, m.encode()...)
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("%x was read and is written %x", b, again)
		}
	})
}

// FuzzCommands obeys whatever a node of the fabric says.
func FuzzCommands(f *testing.F) {
	add := func(kind string, v any) {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(kind, b)
	}
	add(cmdOpen, openBody{ID: 1, Tunnel: TunnelID{2}, Pool: "pool", Kind: "echo", Plane: StreamsPlane, Classes: []frame.Class{frame.Bulk}, Shards: 1})
	add(cmdOpened, openedBody{ID: 1})
	add(cmdClose, closeBody{Tunnels: []TunnelID{{2}}})
	add(cmdClose, closeBody{[]TunnelID{{2}}, []uint64{3}, []uint64{4}})
	add(cmdRoute, routeBody{Lease: "lease", Carrier: "tls", Life: time.Minute})
	add(cmdLeased, routeBody{})
	add(cmdMoved, movedBody{[]movedTunnel{{TunnelID{2}, 7}}})
	add(cmdDrain, struct{}{})
	w := newWorld(f, 0)
	n := w.node(f, "seed", "one")
	f.Cleanup(w.close)
	if _, err := n.Provide(Service{Profile: testProfile, Pool: "pool", Kind: "echo"}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		p, err := n.peer(identity.NodeID{1, 2, 3})
		if err != nil {
			t.Fatal(err)
		}
		r := newRoute(p, false)
		r.s = session.New(false, session.Options{})
		defer r.s.Close()
		r.isHello = true
		// The error ends the session; all else would be a panic.
		_ = r.obey(identity.Command{From: p.id, Kind: kind, Body: body})
		for _, tun := range n.allTunnels() {
			tun.end(ErrClosed, true)
		}
	})
}
