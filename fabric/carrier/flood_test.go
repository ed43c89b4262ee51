package carrier

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/relay"
)

// TestCrowdAtTheWeb has more strangers than there are places hold a listener that shows a
// certificate of the web, all from the address that members come from too: with
// connections on which nothing comes, not even a handshake, or no request, or one that
// makes no sense, and with relayed connections of which nobody shows who it is. The links
// there are go on, and new ones are made.
func TestCrowdAtTheWeb(t *testing.T) {
	t.Parallel()
	const crowd = maxExchanges + 16
	f := newFabric(t)
	gate, early, late := f.node(), f.node(), f.node()
	cert, pool := webCert(t)
	l := listen(t, NewHTTPS(gate, HTTPSOptions{Cert: &cert}))
	at := strings.TrimPrefix(l.Addr(), "https://")
	near, far := connect(t, NewHTTPS(early, HTTPSOptions{Web: true, roots: pool}), l, l.Addr(), gate.ID())
	inUse := func(when string) {
		t.Helper()
		write(t, near, "ping")
		read(t, far, "ping")
		write(t, far, "pong")
		read(t, near, "pong")
		one, other := connect(t, NewHTTPS(late, HTTPSOptions{Web: true, roots: pool}), l, l.Addr(), gate.ID())
		if other.Peer() != late.ID() {
			t.Errorf("%s: the wrong node came in", when)
		}
		write(t, other, "hello")
		read(t, one, "hello")
		one.Close()
		other.Close()
	}
	inUse("before")
	dial := func() net.Conn {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for range crowd {
		dial()
	}
	inUse("silence before the handshake")
	client := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
	for _, one := range []struct {
		name, says string
		times      int
	}{
		{"silence", "", crowd},
		{"requests that do not end", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", 200},
		{"garbage", "\x16\x03garbage\r\n\r\n", 200},
	} {
		for range one.times {
			c := tls.Client(dial(), client)
			c.SetDeadline(time.Now().Add(hung))
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, one.says) // where it is not too late already
		}
		inUse(one.name)
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: client}}
	defer web.CloseIdleConnections()
	for done := 0; done < crowd; {
		var ops []relay.Op
		for range 8 {
			var id relay.ID
			binary.BigEndian.PutUint64(id[:], uint64(done))
			ops = append(ops, relay.Op{Kind: relay.Connect, Session: id}, relay.Op{Kind: relay.Data, Session: id, Numbered: true, Data: []byte("\x16\x03\x01")})
			done++
		}
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, l.Addr(), bytes.NewReader(relay.EncodeOps(ops)))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := web.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	inUse("relayed connections of nobody")
}
