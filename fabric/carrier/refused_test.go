package carrier

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spacestore/space/fabric/identity"
)

// TestRefusedOverHTTPS: whatever it is that refuses, Dial says which after the
// first try.
func TestRefusedOverHTTPS(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a := f.node()
	cert, roots := webCert(t)
	// server counts the connections, or requests, that a try costs.
	server := func(h http.HandlerFunc, cert tls.Certificate, count *atomic.Int32) string {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			count.Add(1)
			h(w, r)
		}))
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.URL
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "go away", code) }
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	deadProxy, _ := url.Parse(gone.URL)
	proxy := httptest.NewServer(status(http.StatusForbidden))
	t.Cleanup(proxy.Close)
	refusing, _ := url.Parse(proxy.URL)
	var unseen, answered atomic.Int32
	for what, c := range map[string]struct {
		addr  string
		count *atomic.Int32
		tries int32
		proxy *url.URL
		web   bool
		says  string
	}{
		"nobody listens":            {addr: strings.Replace(gone.URL, "http:", "https:", 1), web: true, says: "connection refused"},
		"not found":                 {addr: server(status(404), cert, &answered), count: &answered, tries: 1, web: true, says: "404 Not Found"},
		"no credentials":            {addr: server(status(401), cert, &answered), count: &answered, tries: 1, web: true, says: "401 Unauthorized"},
		"forbidden":                 {addr: server(status(403), cert, &answered), count: &answered, tries: 1, web: true, says: "403 Forbidden"},
		"a redirection":             {addr: server(status(302), cert, &answered), count: &answered, tries: 1, web: true, says: "302 Found"},
		"answers that are no relay": {addr: server(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, cert, &answered), count: &answered, tries: 1, web: true, says: "relay:"},
		"not of the fabric":         {addr: server(status(200), cert, &unseen), count: &unseen, says: "tls:"},
		"no proxy there":            {addr: "https://192.0.2.1", proxy: deadProxy, web: true, says: "proxyconnect"},
		"a proxy that refuses":      {addr: "https://192.0.2.1", proxy: refusing, web: true, says: "the proxy " + proxy.URL + " refuses to connect: 403 Forbidden"},
	} {
		if c.count != nil {
			c.count.Store(0)
		}
		h := NewHTTPS(a, HTTPSOptions{Web: c.web, roots: roots, proxy: http.ProxyURL(c.proxy)})
		_, err := h.Dial(timeout(t), c.addr, identity.NodeID{})
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", what, err, c.says)
		}
		if c.count != nil && c.count.Load() != c.tries {
			t.Errorf("%s: it was tried %d times", what, c.count.Load())
		}
	}
	// A node that is not of this fabric is told so by TLS.
	b := f.node()
	l := listen(t, NewHTTPS(b, HTTPSOptions{}))
	_, err := NewHTTPS(newFabric(t).node(), HTTPSOptions{}).Dial(timeout(t), l.Addr(), b.ID())
	if err == nil || !strings.Contains(err.Error(), "identity:") && !strings.Contains(err.Error(), "tls:") {
		t.Errorf("a node of another fabric: %v", err)
	}
}

// TestTheReasonArrives: who is refused by a server is told by TLS's alert, though
// it has sent more than the server has read.
func TestTheReasonArrives(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	b := f.node()
	l := listen(t, NewTLS(b, TLSOptions{}))
	c := newFabric(t).node().ClientConfig(identity.NodeID{})
	c.VerifyConnection = nil // it trusts anybody
	conn, err := tls.Dial("tcp", l.Addr(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(make([]byte, 40_000)) // it may fail already
	var alert tls.AlertError
	var op *net.OpError
	if _, err := io.Copy(io.Discard, conn); !errors.As(err, &op) || !errors.As(err, &alert) && op.Op != "remote error" {
		t.Errorf("it hears %v", err)
	}
}

// TestThroughProxy makes links through an HTTP proxy, by CONNECT.
func TestThroughProxy(t *testing.T) {
	t.Parallel()
	cert, roots := webCert(t)
	f := newFabric(t)
	a, b := f.node(), f.node()
	l := listen(t, NewHTTPS(b, HTTPSOptions{Cert: &cert}))
	var tunnels atomic.Int32
	var ways sync.WaitGroup
	ways.Add(1) // the test itself: handlers may add while it waits
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Header.Get("Proxy-Authorization") == "" {
			http.Error(w, "CONNECT only, with a password", http.StatusProxyAuthRequired)
			return
		}
		there, err := net.Dial("tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		here, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, err = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		}
		if err != nil {
			t.Error(err)
			there.Close()
			return
		}
		tunnels.Add(1)
		for _, ends := range [][2]net.Conn{{here, there}, {there, here}} {
			ways.Go(func() {
				io.Copy(ends[0], ends[1]) // ends when one of them is closed
				ends[0].Close()
				ends[1].Close()
			})
		}
	}))
	defer proxy.Close()
	to, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	to.User = url.UserPassword("name", "password")
	c := NewHTTPS(a, HTTPSOptions{Web: true, roots: roots, proxy: http.ProxyURL(to)})
	near, far := connect(t, c, l, l.Addr(), b.ID())
	if near.Peer() != b.ID() || far.Peer() != a.ID() {
		t.Error("the ends do not know each other")
	}
	write(t, far, "answer")
	read(t, near, "answer")
	if tunnels.Load() == 0 {
		t.Error("the proxy was not asked")
	}
	near.Close()
	far.Close()
	l.Close()
	ways.Done()
	ways.Wait() // with the links, the proxy's connections end
}
