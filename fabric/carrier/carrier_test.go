package carrier

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/internal/testenv/faultnet"
)

// carriers are all there are. The tests of this file hold for each.
var carriers = map[string]func(*identity.Node) Carrier{
	"tls":   func(n *identity.Node) Carrier { return NewTLS(n, TLSOptions{}) },
	"quic":  NewQUIC,
	"https": func(n *identity.Node) Carrier { return NewHTTPS(n, HTTPSOptions{}) },
}

func each(t *testing.T, fn func(t *testing.T, f *fabric, make func(*identity.Node) Carrier)) {
	t.Parallel()
	for name, c := range carriers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fn(t, newFabric(t), c)
		})
	}
}

func TestBothEndsKnowEachOther(t *testing.T) {
	each(t, func(t *testing.T, f *fabric, carrier func(*identity.Node) Carrier) {
		a, b := f.node(), f.node()
		l := listen(t, carrier(b))
		for _, to := range []identity.NodeID{b.ID(), {}} {
			near, far := connect(t, carrier(a), l, l.Addr(), to)
			if near.Peer() != b.ID() || far.Peer() != a.ID() {
				t.Errorf("peers are %s and %s, want %s and %s", near.Peer(), far.Peer(), b.ID(), a.ID())
			}
			write(t, far, "answer")
			read(t, near, "answer")
		}
	})
}

func TestStrangersAreRefused(t *testing.T) {
	each(t, func(t *testing.T, f *fabric, carrier func(*identity.Node) Carrier) {
		b := f.node()
		l := listen(t, carrier(b))
		revoked := f.node()
		list, err := f.Revoke(revoked.ID())
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Revoke(list); err != nil {
			t.Fatal(err)
		}
		for what, c := range map[string]struct {
			from *identity.Node
			to   identity.NodeID
		}{
			"a node of another fabric": {newFabric(t).node(), b.ID()},
			"a revoked node":           {revoked, b.ID()},
			"who looks for another":    {f.node(), f.node().ID()},
		} {
			if err := useless(timeout(t), carrier(c.from), l.Addr(), c.to); err == nil {
				t.Errorf("%s got through", what)
			}
		}
		// Nobody was let in: the first link is the next good node's.
		good := f.node()
		_, far := connect(t, carrier(good), l, l.Addr(), b.ID())
		if far.Peer() != good.ID() {
			t.Errorf("the first link is of %s", far.Peer())
		}
	})
}

// useless dials, and reads from what it got: with TLS 1.3 a client learns from
// its first read that it was refused.
func useless(ctx context.Context, c Carrier, addr string, to identity.NodeID) error {
	l, err := c.Dial(ctx, addr, to)
	if err != nil {
		return err
	}
	defer l.Close()
	l.Write([]byte("x"))
	_, err = l.Read(make([]byte, 1))
	return err
}

func TestRevocationCutsLinks(t *testing.T) {
	each(t, func(t *testing.T, f *fabric, carrier func(*identity.Node) Carrier) {
		a, b, c := f.node(), f.node(), f.node()
		l := listen(t, carrier(b))
		near, far := connect(t, carrier(a), l, l.Addr(), b.ID())
		other, otherFar := connect(t, carrier(c), l, l.Addr(), b.ID())
		waits := make(chan error, 2)
		for _, link := range []Link{near, far} {
			go func() {
				_, err := link.Read(make([]byte, 1))
				waits <- err
			}()
		}
		list, err := f.Revoke(a.ID())
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Revoke(list); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			select {
			case err := <-waits:
				if err == nil {
					t.Error("a byte came")
				}
			case <-time.After(hung):
				t.Fatal("the link lives")
			}
		}
		write(t, other, "still here")
		read(t, otherFar, "still here")
	})
}

func TestDeadlinesAndClose(t *testing.T) {
	each(t, func(t *testing.T, f *fabric, carrier func(*identity.Node) Carrier) {
		a, b := f.node(), f.node()
		l := listen(t, carrier(b))
		near, far := connect(t, carrier(a), l, l.Addr(), b.ID())
		near.SetReadDeadline(time.Now().Add(-time.Second))
		_, err := near.Read(make([]byte, 1))
		var ne net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) && !(errors.As(err, &ne) && ne.Timeout()) {
			t.Errorf("a read after its deadline: %v", err)
		}
		near.SetReadDeadline(time.Time{})
		write(t, far, "later")
		read(t, near, "later")

		done := make(chan error, 2)
		go func() {
			_, err := near.Read(make([]byte, 1))
			done <- err
		}()
		go func() {
			b := make([]byte, 1<<20)
			for {
				if _, err := near.Write(b); err != nil { // nobody reads at the other end
					done <- err
					return
				}
			}
		}()
		near.Close()
		for range 2 {
			select {
			case err := <-done:
				if err == nil {
					t.Error("no error from a link that is closed")
				}
			case <-time.After(hung):
				t.Fatal("Close leaves reads or writes waiting")
			}
		}
		// The other end learns of it.
		far.SetReadDeadline(time.Now().Add(hung))
		if _, err := io.Copy(io.Discard, far); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the other end does not learn of it")
		}
	})
}

func TestBigTransfers(t *testing.T) {
	each(t, func(t *testing.T, f *fabric, carrier func(*identity.Node) Carrier) {
		a, b := f.node(), f.node()
		l, ca := listen(t, carrier(b)), carrier(a)
		const links, size = 4, 2 << 20
		var wg sync.WaitGroup
		defer wg.Wait()
		for i := range links {
			near, far := connect(t, ca, l, l.Addr(), b.ID())
			for _, d := range [][2]Link{{near, far}, {far, near}} {
				data := bytes.Repeat([]byte{byte(i), 1, 2, 3, 4, 5, 6}, size/7)
				wg.Go(func() {
					if _, err := d[0].Write(data); err != nil {
						t.Errorf("write: %v", err)
					}
				})
				wg.Go(func() {
					got := make([]byte, len(data))
					d[1].SetReadDeadline(time.Now().Add(hung))
					if _, err := io.ReadFull(d[1], got); err != nil || !bytes.Equal(got, data) {
						t.Errorf("the bytes did not come as they were: %v", err)
					}
				})
			}
		}
	})
}

func TestListenerClose(t *testing.T) {
	each(t, func(t *testing.T, f *fabric, carrier func(*identity.Node) Carrier) {
		a, b := f.node(), f.node()
		l := listen(t, carrier(b))
		connect(t, carrier(a), l, l.Addr(), b.ID())
		got := make(chan error, 1)
		go func() {
			_, err := l.Accept(timeout(t))
			got <- err
		}()
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		select {
		case err := <-got:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("accept: %v", err)
			}
		case <-time.After(hung):
			t.Fatal("Accept waits on")
		}
		ctx, cancel := context.WithTimeout(timeout(t), 3*time.Second)
		defer cancel()
		if err := useless(ctx, carrier(a), l.Addr(), b.ID()); err == nil {
			t.Error("a link was made to a listener that is closed")
		}
	})
}

// TestCrowd has a thousand strangers at a listener who send garbage, or nothing.
// They are in nobody's way, and of them nothing is left.
func TestCrowd(t *testing.T) { // not parallel: it counts goroutines
	for name, carrier := range carriers {
		t.Run(name, func(t *testing.T) {
			f := newFabric(t)
			a, b := f.node(), f.node()
			before := runtime.NumGoroutine()
			c := carrier(b)
			l, err := c.Listen(timeout(t), "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addr := l.Addr()
			network, host := "tcp", addr
			switch name {
			case "quic":
				network = "udp"
			case "https":
				host = addr[len("https://"):]
			}
			crowd := make([]net.Conn, 1000)
			for i := range crowd {
				if crowd[i], err = net.Dial(network, host); err != nil {
					t.Fatal(err)
				}
				if i%2 == 0 {
					crowd[i].Write(bytes.Repeat([]byte{byte(i), 22, 3, 1}, 300))
				}
			}
			near, far := connect(t, carrier(a), l, addr, b.ID())
			write(t, far, "hello")
			read(t, near, "hello")
			for _, c := range crowd {
				c.Close()
			}
			near.Close()
			far.Close()
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			settle(t, before+8) // what the runtime and HTTP keep
		})
	}
}

// TestSessionsUnderFaults runs sessions over each carrier through a bad network.
// Every byte arrives, once.
func TestSessionsUnderFaults(t *testing.T) {
	faults := map[string]func(set func(faultnet.Fault), cut func(), far func()){
		"cut": func(_ func(faultnet.Fault), cut, _ func()) { cut() },
		"slow and far": func(set func(faultnet.Fault), _, _ func()) {
			set(faultnet.Fault{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond, Rate: 8 << 20})
		},
		"loss and reordering": func(set func(faultnet.Fault), _, _ func()) { set(faultnet.Fault{Loss: 0.02, Reorder: 0.02}) },
		"black hole": func(set func(faultnet.Fault), _, far func()) {
			set(faultnet.Blackhole)
			far()
			set(faultnet.Fault{})
		},
		"half open to the dialer": func(set func(faultnet.Fault), _, far func()) {
			set(faultnet.Fault{Down: true})
			far()
			set(faultnet.Fault{})
		},
		"half open to the server": func(set func(faultnet.Fault), _, far func()) {
			set(faultnet.Fault{Up: true})
			far()
			set(faultnet.Fault{})
		},
	}
	each(t, func(t *testing.T, f *fabric, carrier func(*identity.Node) Carrier) {
		for name, fault := range faults {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				a, b := f.node(), f.node()
				ca := carrier(a)
				l := listen(t, carrier(b))
				addr, set, cut := faulty(t, ca.Name(), l.Addr())
				server, client := session.NewEndpoint(session.Options{}), session.NewEndpoint(session.Options{})
				t.Cleanup(func() { client.Close(); server.Close() })
				fresh := sessions(l, server)
				ctx := timeout(t)
				links := make(chan struct{}, 1024)
				near, err := client.Dial(ctx, b.ID().String(), 2, func(ctx context.Context, _ int) (net.Conn, error) {
					select {
					case links <- struct{}{}:
					default:
					}
					return ca.Dial(ctx, addr, b.ID())
				})
				if err != nil {
					t.Fatal(err)
				}
				far := <-fresh
				const size = 3 << 20
				data := bytes.Repeat([]byte("seven b"), size/7)
				var wg sync.WaitGroup
				st, err := near.Open(frame.Bulk, nil)
				if err != nil {
					t.Fatal(err)
				}
				half := make(chan struct{})
				wg.Go(func() {
					defer st.CloseWrite()
					st.Write(data[:size/2])
					close(half)
					if _, err := st.Write(data[size/2:]); err != nil {
						t.Errorf("write: %v", err)
					}
				})
				in, err := far.Accept(ctx)
				if err != nil {
					t.Fatal(err)
				}
				h := blake3.New()
				if _, err := io.CopyN(h, in, size/4); err != nil {
					t.Fatal(err)
				}
				for len(links) > 0 {
					<-links
				}
				fault(set, cut, func() { // the session notices, and dials again
					select {
					case <-links:
					case <-ctx.Done():
						t.Error("the session does not notice that nothing passes")
					}
				})
				if _, err := io.Copy(h, in); err != nil {
					t.Fatal(err)
				}
				wg.Wait()
				want := blake3.Sum256(data)
				if !bytes.Equal(h.Sum(nil), want[:]) {
					t.Error("the bytes did not come as they were sent")
				}
			})
		}
	})
}

// faulty puts a bad network in front of a listener.
func faulty(t *testing.T, carrier, addr string) (at string, set func(faultnet.Fault), cut func()) {
	switch carrier {
	case "quic":
		p := faultnet.NewUDP(t, addr)
		return p.Addr(), p.Set, func() { // nothing tells of a cut: the packets stay away for a while
			p.Set(faultnet.Fault{Loss: 0.5})
			p.Set(faultnet.Fault{})
		}
	case "https":
		p := faultnet.NewTCP(t, addr[len("https://"):])
		return "https://" + p.Addr(), p.Set, p.Cut
	}
	p := faultnet.NewTCP(t, addr)
	return p.Addr(), p.Set, p.Cut
}

// TestQUICMigrates has the network of a connection go away while the host has
// another one: the links go on over that, and nobody dials.
func TestQUICMigrates(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a, b := f.node(), f.node()
	l := listen(t, NewQUIC(b))
	// Each socket of the dialer is a network of its own: what comes from it can be
	// held back.
	var mu sync.Mutex
	var sockets []*deafSocket
	c := newQUIC(a, func() (net.PacketConn, error) {
		pc, err := bindAny()
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		s := &deafSocket{PacketConn: pc}
		sockets = append(sockets, s)
		return s, nil
	})
	near, far := connect(t, c, l, l.Addr(), b.ID())
	write(t, far, "up") // with which the handshake is confirmed; before that nobody may migrate
	read(t, near, "up")
	for range 2 {
		mu.Lock()
		had := len(sockets) // a machine that stalls may have taken another path already
		for _, s := range sockets {
			s.deafen()
		}
		mu.Unlock()
		write(t, near, "after")
		read(t, far, "after")
		write(t, far, "and back")
		read(t, near, "and back")
		mu.Lock()
		if len(sockets) <= had {
			t.Error("no other path was taken")
		}
		mu.Unlock()
	}
}

// deafSocket is a socket whose network can go away.
type deafSocket struct {
	net.PacketConn
	mu   sync.Mutex
	deaf bool
}

func (s *deafSocket) deafen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf = true
}

func (s *deafSocket) isDeaf() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deaf
}

func (s *deafSocket) WriteTo(b []byte, a net.Addr) (int, error) {
	if s.isDeaf() {
		return len(b), nil
	}
	return s.PacketConn.WriteTo(b, a)
}

func (s *deafSocket) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, a, err := s.PacketConn.ReadFrom(b)
		if err != nil || !s.isDeaf() {
			return n, a, err
		}
	}
}

// TestHTTPSWithWebCertificate has a listener show a certificate of another
// authority, as one on the web does; inside, both ends know each other.
func TestHTTPSWithWebCertificate(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a, b := f.node(), f.node()
	cert, pool := webCert(t)
	l := listen(t, NewHTTPS(b, HTTPSOptions{Cert: &cert}))
	c := NewHTTPS(a, HTTPSOptions{Web: true, roots: pool})
	near, far := connect(t, c, l, l.Addr(), b.ID())
	if near.Peer() != b.ID() || far.Peer() != a.ID() {
		t.Error("the ends do not know each other")
	}
	if _, err := NewHTTPS(a, HTTPSOptions{Web: true}).Dial(timeout(t), l.Addr(), b.ID()); err == nil {
		t.Error("a certificate of nobody's was trusted")
	}
	for _, bad := range []string{"", "http://127.0.0.1:1", "https://", "https://u:p@127.0.0.1", "127.0.0.1:443"} {
		if _, err := c.Dial(timeout(t), bad, b.ID()); err == nil {
			t.Errorf("%q was dialed", bad)
		}
	}
}

func webCert(t *testing.T) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TestQUICConnections: one node has no more connections at a listener than it may,
// which keeps no other one out, and gets another one when one has ended.
func TestQUICConnections(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a, b, c := f.node(), f.node(), f.node()
	l := listen(t, NewQUIC(b))
	var links []Link
	for range maxQUICConns {
		near, _ := connect(t, NewQUIC(a), l, l.Addr(), b.ID())
		links = append(links, near)
	}
	if err := useless(timeout(t), NewQUIC(a), l.Addr(), b.ID()); err == nil {
		t.Error("there is no end to the connections of one node")
	}
	connect(t, NewQUIC(c), l, l.Addr(), b.ID())
	links[0].(*quicLink).conn.CloseWithError(codeBye, "")
	q := l.(*quicListener)
	for end := time.Now().Add(hung); ; time.Sleep(time.Millisecond) {
		q.mu.Lock()
		n := q.conns[a.ID()]
		q.mu.Unlock()
		if n < maxQUICConns {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d connections are counted", n)
		}
	}
	connect(t, NewQUIC(a), l, l.Addr(), b.ID())
}
