package carrier

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/identity/identitytest"
	"github.com/spacestore/space/internal/clock"
)

// TestJoin admits a node that has nothing but a token, once.
func TestJoin(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	gate := f.node()
	f.Vouch(gate)
	l := listen(t, NewTLS(gate, TLSOptions{Joins: Joins{Admit: func(c net.Conn) { ServeJoin(c, f) }}}))
	token, err := f.NewToken(time.Hour, 1, []string{"quic://127.0.0.1:1", "https://127.0.0.1:1", "tls://" + l.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	g, err := JoinVia(timeout(t), token, csr)
	if err != nil {
		t.Fatal(err)
	}
	n := f.accept(key, g.Grant, token)
	if near, _ := connect(t, NewTLS(n, TLSOptions{}), l, l.Addr(), gate.ID()); near.Peer() != gate.ID() {
		t.Errorf("the peer is %s", near.Peer())
	}
	if _, err := JoinVia(timeout(t), token, csr); !errors.Is(err, identity.ErrToken) {
		t.Errorf("a token was used twice: %v", err)
	}
	// A token of another fabric is not shown to this one.
	other := newFabric(t)
	if token, err = other.NewToken(time.Hour, 1, []string{l.Addr()}); err != nil {
		t.Fatal(err)
	}
	if _, err := JoinVia(timeout(t), token, csr); err == nil || errors.Is(err, identity.ErrToken) {
		t.Errorf("the authority of another fabric: %v", err)
	}
	// Where nobody is admitted, nobody is.
	closed := listen(t, NewTLS(gate, TLSOptions{}))
	if token, err = f.NewToken(time.Hour, 1, []string{closed.Addr()}); err != nil {
		t.Fatal(err)
	}
	if _, err := JoinVia(timeout(t), token, csr); err == nil {
		t.Error("a node was admitted where nobody should be")
	}
}

// passTo carries a connection on to a listener, and ends it with that.
func passTo(t *testing.T, c net.Conn, addr string) {
	defer c.Close()
	to, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer to.Close()
	go func() {
		io.Copy(to, c)
		to.Close()
	}()
	io.Copy(c, to)
}

// TestJoinOverHTTPS admits nodes that get out over HTTPS alone: where the listener
// shows a certificate of the fabric, where it shows one of the web, and where it is
// at a node that passes them on to the authority's.
func TestJoinOverHTTPS(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	gate, other := f.node(), f.node()
	f.Vouch(gate)
	admit := Joins{Admit: func(c net.Conn) { ServeJoin(c, f) }}
	cert, pool := webCert(t)
	behind := listen(t, NewTLS(gate, TLSOptions{Joins: admit}))
	pass := Joins{Pass: func(c net.Conn) { passTo(t, c, behind.Addr()) }}
	for name, one := range map[string]struct {
		l   Listener
		web bool
	}{
		"own certificate":           {listen(t, NewHTTPS(gate, HTTPSOptions{Joins: admit})), false},
		"certificate of the web":    {listen(t, NewHTTPS(gate, HTTPSOptions{Joins: admit, Cert: &cert})), true},
		"passed on":                 {listen(t, NewHTTPS(other, HTTPSOptions{Joins: pass})), false},
		"passed on, of the web":     {listen(t, NewHTTPS(other, HTTPSOptions{Joins: pass, Cert: &cert})), true},
		"passed on, over TLS alone": {listen(t, NewTLS(other, TLSOptions{Joins: pass})), false},
	} {
		addr := one.l.Addr()
		token, err := f.NewToken(time.Hour, 1, []string{addr})
		if err != nil {
			t.Fatal(err)
		}
		key, csr, err := identity.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		j, err := joinVia(timeout(t), token, csr, pool)
		if err != nil || j.Web != one.web {
			t.Errorf("%s: web %v, %v", name, j.Web, err)
			continue
		}
		n := f.accept(key, j.Grant, token)
		// The listener still takes in nodes that have a certificate.
		var c Carrier = NewHTTPS(n, HTTPSOptions{Web: one.web, roots: pool})
		at := gate.ID()
		if name[0] == 'p' {
			at = other.ID()
		}
		if _, ok := one.l.(*tlsListener); ok {
			c = NewTLS(n, TLSOptions{})
		}
		if near, far := connect(t, c, one.l, addr, at); near.Peer() != at || far.Peer() != n.ID() {
			t.Errorf("%s: the ends do not know each other", name)
		}
		if _, err := joinVia(timeout(t), token, csr, pool); !errors.Is(err, identity.ErrToken) {
			t.Errorf("%s: a token was used twice: %v", name, err)
		}
		// A token of another fabric is not shown to this one.
		stranger, err := newFabric(t).NewToken(time.Hour, 1, []string{addr})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := joinVia(timeout(t), stranger, csr, pool); err == nil || errors.Is(err, identity.ErrToken) {
			t.Errorf("%s: the authority of another fabric: %v", name, err)
		}
	}
	closed := listen(t, NewHTTPS(gate, HTTPSOptions{}))
	token, err := f.NewToken(time.Hour, 1, []string{closed.Addr(), "https://"})
	if err != nil {
		t.Fatal(err)
	}
	_, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := JoinVia(timeout(t), token, csr); err == nil {
		t.Error("a node was admitted where nobody should be")
	}
}

// TestFalseAuthority has nodes of the fabric that are not the authority's answer those
// who join: whoever is on the way, or was revoked. None of them sees a token.
func TestFalseAuthority(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	liar := f.node()
	var seen atomic.Int64
	lie := Joins{Admit: func(c net.Conn) {
		var req identity.JoinRequest
		if readMessage(c, maxJoin, &req) == nil {
			seen.Add(1)
		}
		writeMessage(c, joinAnswer{Token: true})
	}}
	cert, pool := webCert(t)
	for name, l := range map[string]Listener{
		"tls":               listen(t, NewTLS(liar, TLSOptions{Joins: lie})),
		"https":             listen(t, NewHTTPS(liar, HTTPSOptions{Joins: lie})),
		"https, of the web": listen(t, NewHTTPS(liar, HTTPSOptions{Joins: lie, Cert: &cert})),
	} {
		_, csr := identitytest.Request(t)
		if _, err := joinVia(timeout(t), f.Token(t, l.Addr()), csr, pool); err == nil || errors.Is(err, identity.ErrToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := seen.Load(); n > 0 {
		t.Errorf("a node that is not the authority's was shown %d tokens", n)
	}
}

// TestSilentJoiners has many come to join who ask for nothing: others still join.
func TestSilentJoiners(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	var served atomic.Int64
	gate := f.node()
	f.Vouch(gate)
	l := listen(t, NewTLS(gate, TLSOptions{Joins: Joins{Admit: func(c net.Conn) {
		served.Add(1)
		ServeJoin(c, f)
	}}}))
	token := f.Token(t, l.Addr())
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}, Config: token.ClientConfig(clock.System())}
	for range 2 * maxJoins {
		c, err := d.DialContext(timeout(t), "tcp", l.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for served.Load() < 2*maxJoins {
		time.Sleep(time.Millisecond)
	}
	_, csr := identitytest.Request(t)
	if _, err := JoinVia(timeout(t), token, csr); err != nil {
		t.Error(err)
	}
}

// TestSilentJoinersOverHTTPS is likewise: who holds connections on which requests
// could come keeps nobody else from joining.
func TestSilentJoinersOverHTTPS(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	gate := f.node()
	f.Vouch(gate)
	l := listen(t, NewHTTPS(gate, HTTPSOptions{Joins: Joins{Admit: func(c net.Conn) { ServeJoin(c, f) }}}))
	token := f.Token(t, l.Addr())
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}, Config: token.RelayConfig(clock.System())}
	for range maxStrange {
		c, err := d.DialContext(timeout(t), "tcp", strings.TrimPrefix(l.Addr(), "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		write(t, c, "GET / HTTP/1.1\r\nHost: relay\r\n\r\n")
		read(t, c, "HTTP/1.1") // it is served, and may ask again
	}
	_, csr := identitytest.Request(t)
	if _, err := JoinVia(timeout(t), token, csr); err != nil {
		t.Error(err)
	}
}

// refusing is an authority that never admits.
type refusing struct{}

func (refusing) Join(identity.JoinRequest) (identity.Grant, error) {
	return identity.Grant{}, errors.New("no")
}

// conn is a connection on which a peer has sent all it will.
type conn struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *conn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *conn) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *conn) SetDeadline(time.Time) error { return nil }

func FuzzServeJoin(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Add(append([]byte{0, 0, 0, 42}, `{"token_id":"AAAA","secret":"","csr":null}`...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &conn{in: bytes.NewReader(b)}
		if err := ServeJoin(c, refusing{}); err == nil {
			t.Error("a node was admitted")
		}
		var a joinAnswer
		if err := readMessage(&c.out, maxList, &a); err == nil && a.Grant != nil {
			t.Error("a grant was given")
		}
		readMessage(bytes.NewReader(b), maxList, &a)
	})
}

// TestJoinTriesAgain has a node pass on who joins to others that are not the authority's
// before it comes to the one that is: who joins asks again until then, and no more when the
// authority has said that the token is not good.
func TestJoinTriesAgain(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	gate, liar, between := f.node(), f.node(), f.node()
	f.Vouch(gate)
	doors := []Listener{
		listen(t, NewTLS(liar, TLSOptions{Joins: Joins{Admit: func(c net.Conn) { writeMessage(c, joinAnswer{Token: true}) }}})),
		listen(t, NewTLS(liar, TLSOptions{})),
		listen(t, NewTLS(gate, TLSOptions{Joins: Joins{Admit: func(c net.Conn) { ServeJoin(c, f) }}})),
	}
	var came atomic.Int64
	pass := Joins{Pass: func(c net.Conn) { passTo(t, c, doors[min(came.Add(1)-1, 2)].Addr()) }}
	cert, pool := webCert(t)
	for name, l := range map[string]Listener{
		"tls":               listen(t, NewTLS(between, TLSOptions{Joins: pass})),
		"https":             listen(t, NewHTTPS(between, HTTPSOptions{Joins: pass})),
		"https, of the web": listen(t, NewHTTPS(between, HTTPSOptions{Joins: pass, Cert: &cert})),
	} {
		_, csr := identitytest.Request(t)
		token := f.Token(t, l.Addr())
		came.Store(0)
		j, err := joinVia(timeout(t), token, csr, pool)
		if n := came.Load(); err != nil || n != 3 || j.Web != strings.HasSuffix(name, "web") {
			t.Errorf("%s: %d connections were made, web %v, %v", name, n, j.Web, err)
		}
		if _, err := joinVia(timeout(t), token, csr, pool); !errors.Is(err, identity.ErrToken) || came.Load() != 4 {
			t.Errorf("%s: a token twice: %v, over %d connections", name, err, came.Load()-3)
		}
	}
}
