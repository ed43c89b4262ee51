package carrier

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/relay"
)

// HTTPSOptions are for [NewHTTPS]; with the zero value both ends of an exchange
// show certificates of the fabric.
type HTTPSOptions struct {
	// Cert is what a listener shows instead, such as a certificate of the web's;
	// clients then show none before the handshake of the link inside.
	Cert *tls.Certificate
	// Web has a server that is dialed show a certificate which this system trusts
	// for the URL's host, instead of one of the fabric. So does an inspecting proxy.
	Web bool
	// Joins is for listeners.
	Joins Joins
	// Header is sent with each request, such as credentials for a proxy.
	Header http.Header

	roots *x509.CertPool                        // in place of the system's
	proxy func(*http.Request) (*url.URL, error) // in place of the environment's
}

const (
	maxExchanges  = 1024            // connections of one listener on which members' requests come
	maxStrange    = 64              // besides, of nodes that join, and show nothing
	maxStrangeWeb = 512             // likewise where nobody shows anything: of all that are not known yet
	requestTime   = time.Minute     // for a request to come in whole
	httpIdle      = 2 * time.Minute // between two requests on one connection
	httpsLinger   = 2 * time.Second // a relay client without links ends after
)

// httpsCarrier is TLS between two nodes, moved by single HTTPS exchanges, for
// networks where nothing else gets out: see package relay. Proxies are those that
// the environment names.
type httpsCarrier struct {
	id *identity.Node
	o  HTTPSOptions

	mu      sync.Mutex
	clients map[string]*relayClient // by URL
}

// relayClient is shared by the links to one URL.
type relayClient struct {
	*relay.Client
	links int // guarded by httpsCarrier.mu
	web   *http.Transport
}

// NewHTTPS returns the carrier over HTTPS exchanges.
func NewHTTPS(id *identity.Node, o HTTPSOptions) Carrier {
	if o.proxy == nil {
		o.proxy = http.ProxyFromEnvironment
	}
	return &httpsCarrier{id: id, o: o, clients: map[string]*relayClient{}}
}

// Name implements Carrier.
func (*httpsCarrier) Name() string { return "https" }

// Dial implements Carrier.
func (h *httpsCarrier) Dial(ctx context.Context, addr string, to identity.NodeID) (Link, error) {
	if err := checkURL(addr); err != nil {
		return nil, err
	}
	c := h.hold(addr)
	conn, err := c.Dial(ctx)
	if err != nil {
		h.release(addr, c)
		return nil, fmt.Errorf("carrier: %w", err)
	}
	// The handshake closes the connection where it fails.
	return Wrap(ctx, &relayed{Conn: conn, release: func() { h.release(addr, c) }}, h.id, to, false)
}

func checkURL(addr string) error {
	if u, err := url.Parse(addr); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return fmt.Errorf("carrier: %.80q is not the URL of a relay: https://HOST[:PORT][/PATH]", addr)
	}
	return nil
}

// relayed is a relayed connection that gives its client back.
type relayed struct {
	*relay.Conn
	once    sync.Once
	release func()
}

// Close implements net.Conn.
func (r *relayed) Close() error {
	err := r.Conn.Close()
	r.once.Do(r.release)
	return err
}

func (h *httpsCarrier) hold(addr string) *relayClient {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.clients[addr]
	if c == nil {
		config := webConfig(h.o.roots)
		if !h.o.Web {
			config = h.id.ClientConfig(identity.NodeID{})
		}
		c = newRelayClient(addr, config, h.o.proxy, h.o.Header)
		h.clients[addr] = c
	}
	c.links++
	return c
}

// webConfig is for servers that show certificates of the web. roots nil: the
// system's.
func webConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
}

// newRelayClient returns a client for the relay at a URL.
func newRelayClient(addr string, config *tls.Config, proxy func(*http.Request) (*url.URL, error), header http.Header) *relayClient {
	web := &http.Transport{
		Proxy:                  proxy,
		DialContext:            func(ctx context.Context, _, a string) (net.Conn, error) { return dialTCP(ctx, a) },
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    handshakeTime,
		IdleConnTimeout:        httpIdle / 2, // before the server's
		MaxIdleConnsPerHost:    64,
		MaxConnsPerHost:        64,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
		Protocols:              new(http.Protocols),
	}
	web.Protocols.SetHTTP1(true)
	web.OnProxyConnectResponse = func(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
		if resp.StatusCode == http.StatusOK {
			return nil
		}
		return fmt.Errorf("the proxy %s refuses to connect: %s", proxy.Redacted(), resp.Status)
	}
	x := &relay.HTTP{URL: addr, Client: &http.Client{Transport: web, CheckRedirect: noRedirect}, Header: header}
	return &relayClient{Client: relay.NewClient(x, relay.ClientOptions{Name: addr}), web: web}
}

func (c *relayClient) close() {
	c.Client.Close()
	c.web.CloseIdleConnections()
}

// noRedirect keeps what a relay is sent with that relay.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (h *httpsCarrier) release(addr string, c *relayClient) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.links--; c.links > 0 {
		return
	}
	// What was written last is still on its way.
	time.AfterFunc(httpsLinger, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if c.links > 0 || h.clients[addr] != c {
			return
		}
		delete(h.clients, addr)
		c.close()
	})
}

// Listen implements Carrier.
func (h *httpsCarrier) Listen(ctx context.Context, addr string) (Listener, error) {
	l, err := listenTCP(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("carrier: %w", err)
	}
	// Who joins gets as far as the relay without a certificate, and inside no
	// further than to ask for one.
	config := h.id.ServerConfig(h.o.Joins.any())
	if h.o.Cert != nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*h.o.Cert}, NextProtos: []string{"http/1.1"}}
	}
	s := &httpsListener{l: l, outer: newAcceptor(h.id, config, Joins{}), inner: newAcceptor(h.id, h.id.ServerConfig(h.o.Joins.Admit != nil), h.o.Joins)}
	s.conns = newExchanges(h.id, l.Addr(), h.o.Cert != nil, s.outer.ctx.Done())
	s.outer.done = s.conns.put
	s.relay = relay.NewServer(relay.ServerOptions{Name: "https://" + l.Addr().String(), MaxSessions: maxExchanges, MaxStrange: maxStrangeWeb, Heard: s.conns.heard})
	s.http = &http.Server{Handler: s.relay, ReadTimeout: requestTime, ReadHeaderTimeout: handshakeTime, IdleTimeout: httpIdle,
		ConnContext:    func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, exchangeKey{}, c) },
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0)} // strangers' mistakes would fill the log
	s.outer.wg.Go(func() { s.outer.serve(l) })
	s.outer.wg.Go(func() { s.http.Serve(s.conns) }) // until it is closed
	s.inner.wg.Go(func() { s.inner.serve(s.relay) })
	return s, nil
}

type httpsListener struct {
	l     net.Listener
	outer *acceptor // of connections, on which requests come
	conns *exchanges
	http  *http.Server
	relay *relay.Server
	inner *acceptor // of links
}

// Accept implements Listener.
func (l *httpsListener) Accept(ctx context.Context) (Link, error) { return l.inner.accept(ctx) }

// Addr implements Listener.
func (l *httpsListener) Addr() string { return "https://" + l.l.Addr().String() }

// Close implements Listener.
func (l *httpsListener) Close() error {
	l.outer.quit()
	err := errors.Join(l.l.Close(), l.http.Close(), l.relay.Close())
	l.outer.close()
	l.inner.close()
	return err
}

// How much is known of who is at the other end of a connection on which requests come.
const (
	silent  = iota // nothing: no exchange has come
	strange        // exchanges, for relayed connections of nobody that is known
	member         // a node of the fabric
	ranks
)

// exchanges hands connections to the HTTP server. Strangers have a share of their own,
// so that however many they are, members find a place.
type exchanges struct {
	id    *identity.Node
	addr  net.Addr
	web   bool // no certificate says who comes
	most  int  // connections of strangers
	ready chan net.Conn
	done  <-chan struct{}

	mu    sync.Mutex
	conns [ranks][]net.Conn // the oldest first
	rank  map[net.Conn]int  // of each
}

func newExchanges(id *identity.Node, addr net.Addr, web bool, done <-chan struct{}) *exchanges {
	most := maxStrange
	if web {
		most = maxStrangeWeb
	}
	return &exchanges{id: id, addr: addr, web: web, most: most, ready: make(chan net.Conn), done: done, rank: map[net.Conn]int{}}
}

// exchangeKey is of the connection that a request has come on, in its context.
type exchangeKey struct{}

// put has a connection served. Where there are too many, it or another one is closed.
func (e *exchanges) put(c *tls.Conn) {
	x := &exchange{Conn: c, e: e, stop: func() {}}
	state := c.ConnectionState()
	if len(state.PeerCertificates) > 0 {
		// Links end by themselves; nobody is to make new ones over it either.
		if _, _, stop, err := e.id.WatchPeer(state, func() { c.NetConn().Close() }); err == nil {
			x.stop = stop
		}
	}
	rank := member
	if e.web || state.NegotiatedProtocol == identity.JoinProtocol {
		rank = silent
	}
	if !e.add(x, rank) {
		x.Close()
		return
	}
	select {
	case e.ready <- x:
	case <-e.done:
		x.Close()
	}
}

// add counts a connection. If it is a member's too much, the place that most of them come
// from makes room, if fewer come from where this one does; else it is too much itself.
// Of strangers the oldest of such a place makes room, before others one of those that
// are silent.
func (e *exchanges) add(c net.Conn, rank int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if rank == member {
		return e.admit(c)
	}
	if len(e.conns[silent])+len(e.conns[strange]) >= e.most {
		from := silent
		if len(e.conns[silent]) == 0 {
			from = strange
		}
		e.oust(e.conns[from][excess(e.conns[from])])
	}
	e.keep(c, rank)
	return true
}

// admit is add for a member's. e.mu is held.
func (e *exchanges) admit(c net.Conn) bool {
	if all := e.conns[member]; len(all) >= maxExchanges {
		old := all[excess(all)]
		crowd, here := 0, 1
		for _, o := range all {
			switch sourceOf(o.RemoteAddr()) {
			case sourceOf(old.RemoteAddr()):
				crowd++
			case sourceOf(c.RemoteAddr()):
				here++
			}
		}
		if crowd <= here || sourceOf(old.RemoteAddr()) == sourceOf(c.RemoteAddr()) {
			return false
		}
		e.oust(old)
	}
	e.keep(c, member)
	return true
}

func (e *exchanges) keep(c net.Conn, rank int) {
	e.conns[rank] = append(e.conns[rank], c)
	e.rank[c] = rank
}

// drop counts a connection no more, if it does still.
func (e *exchanges) drop(c net.Conn) {
	if rank, ok := e.rank[c]; ok {
		e.conns[rank] = without(e.conns[rank], c)
		delete(e.rank, c)
	}
}

// oust closes a connection to make room. e.mu is held.
func (e *exchanges) oust(c net.Conn) {
	e.drop(c)
	go c.Close() // it may take a while: TLS says goodbye
}

// heard takes note of an exchange; known: for a member's relayed connection.
func (e *exchanges) heard(ctx context.Context, known bool) {
	c, _ := ctx.Value(exchangeKey{}).(net.Conn)
	e.mu.Lock()
	defer e.mu.Unlock()
	rank, ok := e.rank[c]
	switch {
	case !ok || rank == member: // the former has made way, and is being closed
	case known:
		e.drop(c)
		if !e.admit(c) {
			go c.Close() // it may take a while: TLS says goodbye
		}
	case rank == silent:
		e.drop(c)
		e.keep(c, strange)
	}
}

// Accept implements net.Listener.
func (e *exchanges) Accept() (net.Conn, error) {
	select {
	case c := <-e.ready:
		return c, nil
	case <-e.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener: the acceptor ends it.
func (*exchanges) Close() error { return nil }

// Addr implements net.Listener.
func (e *exchanges) Addr() net.Addr { return e.addr }

// exchange is a connection that is counted.
type exchange struct {
	*tls.Conn
	e    *exchanges
	stop func() // watching the peer's certificate
	once sync.Once
}

// Close implements net.Conn.
func (c *exchange) Close() error {
	c.once.Do(func() {
		c.stop()
		c.e.mu.Lock()
		defer c.e.mu.Unlock()
		c.e.drop(c)
	})
	return c.Conn.Close()
}
