package identity

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/internal/testenv/manualclock"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// fabric is an authority with what its tests need.
type fabric struct {
	t     *testing.T
	fs    *vfstest.PowerCut
	clock *manualclock.Clock
	*Authority
	nodes int
}

func newFabric(t *testing.T) *fabric {
	f := &fabric{t: t, fs: vfstest.NewPowerCut(), clock: manualclock.New()}
	var err error
	if f.Authority, err = Create(f.fs, "/ca", f.clock); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fabric) token(life time.Duration, uses int) Token {
	f.t.Helper()
	tok, err := f.NewToken(life, uses, []string{"127.0.0.1:7000"})
	if err != nil {
		f.t.Fatal(err)
	}
	return tok
}

// join admits a node with a token.
func (f *fabric) join(tok Token) (*Node, error) {
	f.t.Helper()
	key, csr, err := NewRequest()
	if err != nil {
		f.t.Fatal(err)
	}
	g, err := f.Join(tok.JoinRequest(csr))
	if err != nil {
		return nil, err
	}
	f.nodes++
	return Accept(f.fs, fmt.Sprintf("/node%d", f.nodes), f.clock, key, g, &tok)
}

func (f *fabric) node() *Node {
	f.t.Helper()
	n, err := f.join(f.token(time.Hour, 1))
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// shaken is what came of a TLS connection.
type shaken struct {
	server, client error // what each end says to it
	peers          [2]NodeID
}

// shake makes a TLS connection.
func shake(t *testing.T, server, client *tls.Config) (x shaken) {
	t.Helper()
	// No net.Pipe: both ends would wait where one refuses while the other still writes.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		} else {
			a.Close()
		}
		done <- err
	}()
	if x.client = c.Handshake(); x.client == nil {
		_, x.client = io.ReadFull(c, make([]byte, 1)) // in TLS 1.3 a refusal comes after the client's handshake
	} else {
		b.Close()
	}
	x.server = <-done
	if x.server == nil && x.client == nil {
		x.peers[0], _ = Peer(s.ConnectionState())
		x.peers[1], _ = Peer(c.ConnectionState())
	}
	return x
}

func TestNodesKnowEachOther(t *testing.T) {
	f := newFabric(t)
	one, two := f.node(), f.node()
	x := shake(t, one.ServerConfig(false), two.ClientConfig(one.ID()))
	if x.server != nil || x.client != nil || x.peers != [2]NodeID{two.ID(), one.ID()} {
		t.Errorf("%+v", x)
	}
	if x := shake(t, one.ServerConfig(false), two.ClientConfig(two.ID())); x.client == nil {
		t.Error("a node answered in another one's place")
	}
	if x := shake(t, one.ServerConfig(false), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{Protocol}}); x.server == nil {
		t.Error("a client without a certificate got in")
	}
	stranger := newFabric(t).node()
	if x := shake(t, one.ServerConfig(false), stranger.ClientConfig(NodeID{})); x.server == nil {
		t.Error("a node of another fabric got in")
	}
	if x := shake(t, stranger.ServerConfig(false), one.ClientConfig(NodeID{})); x.client == nil {
		t.Error("a node of another fabric was believed")
	}
	old := two.ClientConfig(NodeID{})
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if x := shake(t, one.ServerConfig(false), old); x.server == nil {
		t.Error("TLS 1.2 was spoken")
	}
}

func TestJoining(t *testing.T) {
	f := newFabric(t)
	first := f.node()
	tok := f.token(time.Hour, 2)
	parsed, err := ParseToken(" " + tok.String() + "\n")
	if err != nil || parsed.String() != tok.String() || parsed.Addrs[0] != "127.0.0.1:7000" {
		t.Fatalf("%+v, %v", parsed, err)
	}
	// The one who joins knows the authority by the token alone, and takes no other node for it.
	if x := shake(t, first.ServerConfig(true), parsed.ClientConfig(f.clock)); x.client == nil {
		t.Error("the token was shown to a node that is not the authority's")
	}
	if x := shake(t, first.ServerConfig(true), first.AuthorityConfig()); !errors.Is(x.client, ErrNotAuthority) {
		t.Errorf("a node that is not the authority's: %v", x.client)
	}
	if x := shake(t, first.ServerConfig(true), parsed.RelayConfig(f.clock)); x.server != nil || x.client != nil {
		t.Errorf("a node that passes on: %v, %v", x.server, x.client)
	}
	f.Vouch(first)
	if x := shake(t, first.ServerConfig(true), parsed.RelayConfig(f.clock)); x.server != nil || x.client != nil {
		t.Errorf("the authority's node as one that passes on: %v, %v", x.server, x.client)
	}
	if x := shake(t, first.ServerConfig(true), parsed.ClientConfig(f.clock)); x.server != nil || x.client != nil {
		t.Errorf("join: %v, %v", x.server, x.client)
	}
	if x := shake(t, first.ServerConfig(true), first.AuthorityConfig()); x.server != nil || x.client != nil {
		t.Errorf("the authority's node: %v, %v", x.server, x.client)
	}
	if x := shake(t, first.ServerConfig(false), parsed.ClientConfig(f.clock)); x.server == nil {
		t.Error("a node that admits nobody let a stranger connect")
	}
	strange := newFabric(t)
	stranger := strange.node()
	strange.Vouch(stranger)
	for _, c := range []*tls.Config{parsed.ClientConfig(f.clock), parsed.RelayConfig(f.clock)} {
		if x := shake(t, stranger.ServerConfig(true), c); x.client == nil {
			t.Error("the token was shown to another fabric")
		}
	}
	for i, want := range []error{nil, nil, ErrToken} {
		if _, err := f.join(parsed); !errors.Is(err, want) {
			t.Errorf("use %d: %v", i+1, err)
		}
	}
	wrong := f.token(time.Hour, 1)
	wrong.secret[0] ^= 1
	if _, err := f.join(wrong); !errors.Is(err, ErrToken) {
		t.Errorf("a wrong secret: %v", err)
	}
	late := f.token(time.Hour, 1)
	f.clock.Advance(time.Hour + time.Second)
	if _, err := f.join(late); !errors.Is(err, ErrToken) {
		t.Errorf("an expired token: %v", err)
	}
	if _, err := f.Join(JoinRequest{CSR: []byte("garbage")}); err == nil {
		t.Error("a garbage request was granted")
	}
}

// TestTokensSurviveRestart: what was used stays used, what is left is left.
func TestTokensSurviveRestart(t *testing.T) {
	f := newFabric(t)
	used, left := f.token(time.Hour, 1), f.token(time.Hour, 1)
	if _, err := f.join(used); err != nil {
		t.Fatal(err)
	}
	again, err := OpenAuthority(f.fs, "/ca", f.clock)
	if err != nil {
		t.Fatal(err)
	}
	if again.Fabric() != f.Fabric() {
		t.Error("the fabric has another ID")
	}
	f.Authority = again
	if _, err := f.join(used); !errors.Is(err, ErrToken) {
		t.Errorf("a used token: %v", err)
	}
	if _, err := f.join(left); err != nil {
		t.Errorf("an unused token: %v", err)
	}
	if _, err := Create(f.fs, "/ca", f.clock); !errors.Is(err, ErrExists) {
		t.Errorf("a second authority in one place: %v", err)
	}
}

// TestPowerCutWhileJoining cuts the power at each I/O operation from the making
// of a fabric to a node's admission. A token that admitted a node admits no
// other one, and an authority or a node is there whole or not at all.
func TestPowerCutWhileJoining(t *testing.T) {
	clk := manualclock.New()
	// life makes a fabric and joins it, as far as the power lasts.
	life := func(disk *vfstest.PowerCut) (tok Token, made, admitted, joined bool) {
		a, err := Create(disk, "/ca", clk)
		if err != nil {
			return tok, false, false, false
		}
		if tok, err = a.NewToken(time.Hour, 1, nil); err != nil {
			return tok, true, false, false
		}
		key, csr, err := NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		g, err := a.Join(tok.JoinRequest(csr))
		if err != nil {
			return tok, true, false, false
		}
		_, err = Accept(disk, "/node", clk, key, g, &tok)
		return tok, true, true, err == nil
	}
	whole := vfstest.NewPowerCut()
	life(whole)
	for n := range whole.Ops() + 1 {
		for seed := range uint64(4) {
			disk := vfstest.NewPowerCut()
			disk.CutAt(n)
			tok, made, admitted, joined := life(disk)
			after := disk.Clone(seed)
			a, err := OpenAuthority(after, "/ca", clk)
			if err != nil {
				if made {
					t.Fatalf("cut %d: the authority that was made is gone: %v", n, err)
				}
				if a, err = Create(after, "/ca", clk); err != nil {
					t.Fatalf("cut %d: half an authority is in the way: %v", n, err)
				}
			}
			_, csr, err := NewRequest()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Join(tok.JoinRequest(csr)); admitted && !errors.Is(err, ErrToken) {
				t.Fatalf("cut %d: the token admits a second node: %v", n, err)
			}
			if _, err := OpenNode(after, "/node", clk); joined && err != nil {
				t.Fatalf("cut %d: the node that had joined is gone: %v", n, err)
			}
		}
	}
}

func TestCertificatesExpireAndRenew(t *testing.T) {
	f := newFabric(t)
	one, two := f.node(), f.node()
	if at := one.RenewAt().Sub(f.clock.Now()); at < CertLife/2 || at > CertLife*3/4 {
		t.Errorf("renewal after %s of %s", at, CertLife)
	}
	f.clock.Advance(CertLife - time.Hour)
	csr, err := two.RenewRequest()
	if err != nil {
		t.Fatal(err)
	}
	g, err := f.Renew(two.ID(), two.Organization(), csr)
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Renewed(g); err != nil {
		t.Fatal(err)
	}
	if err := one.Renewed(g); err == nil {
		t.Error("a node took another one's certificate")
	}
	f.clock.Advance(2 * time.Hour)
	if x := shake(t, one.ServerConfig(false), two.ClientConfig(NodeID{})); x.client == nil {
		t.Error("an expired certificate was believed")
	}
	reopened, err := OpenNode(f.fs, "/node2", f.clock)
	if err != nil || reopened.ID() != two.ID() {
		t.Fatal(err)
	}
	three := f.node()
	if x := shake(t, three.ServerConfig(false), reopened.ClientConfig(three.ID())); x.server != nil || x.client != nil {
		t.Errorf("a renewed certificate: %v, %v", x.server, x.client)
	}
}

// TestOrganization follows whose a node is from the token over its certificates.
func TestOrganization(t *testing.T) {
	f := newFabric(t)
	tok, err := f.NewTokenOf("Straße & Söhne", time.Hour, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if f.Authority, err = OpenAuthority(f.fs, "/ca", f.clock); err != nil { // it is known after a restart
		t.Fatal(err)
	}
	n, err := f.join(tok)
	if err != nil {
		t.Fatal(err)
	}
	other := f.node()
	for range 2 {
		if n.Organization() != "Straße & Söhne" || other.Organization() != DefaultOrganization {
			t.Fatalf("%q and %q", n.Organization(), other.Organization())
		}
		if rec, err := other.CheckRecord(n.SignRecord(nil)); err != nil || rec.Organization != n.Organization() {
			t.Errorf("a record: %+v, %v", rec, err)
		}
		for _, n := range []*Node{n, other} {
			csr, err := n.RenewRequest()
			if err != nil {
				t.Fatal(err)
			}
			g, err := f.Renew(n.ID(), n.Organization(), csr)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Renewed(g); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, bad := range []string{strings.Repeat("x", 65), "a\x1b[2J", "\xff", "a\nb"} {
		if _, err := f.NewTokenOf(bad, time.Hour, 1, nil); err == nil {
			t.Errorf("a token for organization %q", bad)
		}
	}
}

func TestRevocation(t *testing.T) {
	f := newFabric(t)
	one, two, three := f.node(), f.node(), f.node()
	cut := 0
	stop := one.Watch(two.ID(), func() { cut++ })
	defer one.Watch(three.ID(), func() { t.Error("the wrong node's session was cut") })()
	old, err := f.Revocations()
	if err != nil {
		t.Fatal(err)
	}
	list, err := f.Revoke(two.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Revoke(list); err != nil || cut != 1 {
		t.Fatalf("%v, %d sessions cut", err, cut)
	}
	stop()
	defer one.Watch(two.ID(), func() { cut++ })()
	if cut != 2 {
		t.Error("a session that came late was not cut")
	}
	if x := shake(t, one.ServerConfig(false), two.ClientConfig(NodeID{})); !errors.Is(x.server, ErrRevoked) {
		t.Errorf("a revoked node connects: %v", x.server)
	}
	if err := one.Revoke(old); err != nil { // no error, and no way back
		t.Error(err)
	}
	forged, err := newFabric(t).Revocations()
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Revoke(forged); err == nil {
		t.Error("another fabric's list was taken in")
	}
	reopened, err := OpenNode(f.fs, "/node1", f.clock)
	if err != nil {
		t.Fatal(err)
	}
	if x := shake(t, reopened.ServerConfig(false), two.ClientConfig(NodeID{})); !errors.Is(x.server, ErrRevoked) {
		t.Errorf("after a restart: %v", x.server)
	}
	csr, _ := two.RenewRequest()
	if _, err := f.Renew(two.ID(), two.Organization(), csr); !errors.Is(err, ErrRevoked) {
		t.Errorf("renewal: %v", err)
	}
}

func TestCommands(t *testing.T) {
	f := newFabric(t)
	one, two := f.node(), f.node()
	v, s := one.Verifier(), two.Signer()
	sign := func(s *Signer, body string) []byte {
		t.Helper()
		b, err := s.Sign(one.ID(), v.Life(), "route.set", []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first, second := sign(s, "1"), sign(s, "2")
	for _, b := range [][]byte{second, first} { // they may overtake each other
		c, err := v.Verify(b)
		if err != nil || c.From != two.ID() || c.Kind != "route.set" {
			t.Errorf("%+v, %v", c, err)
		}
	}
	refused := func(what string, b []byte) {
		t.Helper()
		if c, err := v.Verify(b); err == nil {
			t.Errorf("%s was accepted: %+v", what, c)
		}
	}
	refused("a replay", first)
	third := sign(s, "3")
	for range 2 * replayBits {
		if _, err := v.Verify(sign(s, "more")); err != nil {
			t.Fatal(err)
		}
	}
	refused("a command from long ago", third)
	for i := range third {
		bent := bytes.Clone(sign(s, "bent"))
		bent[i%len(bent)] ^= 0x10
		refused(fmt.Sprintf("a command with byte %d bent", i), bent)
	}
	other, err := s.Sign(two.ID(), v.Life(), "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	refused("another node's command", other)
	kept := sign(s, "kept")
	v = one.Verifier() // restarted
	refused("a command for an earlier life", kept)
	f.clock.Advance(time.Second)
	newer := two.Signer()
	if _, err := v.Verify(sign(newer, "x")); err != nil {
		t.Errorf("the signer restarted: %v", err)
	}
	refused("a command of the signer's earlier life", sign(s, "y"))
	list, err := f.Revoke(two.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Revoke(list); err != nil {
		t.Fatal(err)
	}
	refused("a revoked node's command", sign(newer, "z"))
	if _, err := s.Sign(one.ID(), v.Life(), "k", make([]byte, MaxCommand+1)); err == nil {
		t.Error("an endless command was signed")
	}
}

func FuzzToken(f *testing.F) {
	tok, err := newToken([32]byte{1}, time.Unix(1, 0), []string{"a:1", "b:2"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tok.String())
	f.Add(tokenPrefix)
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.String()); err != nil || again.String() != tok.String() {
			t.Fatalf("%+v, %v", again, err)
		}
		if !strings.HasPrefix(tok.String(), tokenPrefix) {
			t.Fatal(tok.String())
		}
	})
}

func FuzzCommand(f *testing.F) {
	fab := newFabric(&testing.T{})
	one, two := fab.node(), fab.node()
	v := one.Verifier()
	b, err := two.Signer().Sign(one.ID(), v.Life(), "k", []byte("body"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := v.Verify(b); err == nil && c.From != two.ID() {
			t.Fatalf("%+v", c)
		}
		if _, err := one.Update(b); err == nil {
			t.Fatal("a revocation list out of nowhere")
		}
	})
}

// TestRevocationOnAFullDisk has the disk refuse a revocation list: it holds at
// once, and is there after a restart when the same list came again.
func TestRevocationOnAFullDisk(t *testing.T) {
	f := newFabric(t)
	f.node()
	two := f.node()
	disk := vfstest.NewFaults(f.fs)
	one, err := OpenNode(disk, "/node1", f.clock)
	if err != nil {
		t.Fatal(err)
	}
	list, err := f.Revoke(two.ID())
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("no space left on device")
	disk.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Write {
			return full
		}
		return nil
	})
	if err := one.Revoke(list); !errors.Is(err, full) {
		t.Errorf("a full disk: %v", err)
	}
	if !one.Revoked(two.ID()) {
		t.Error("the list does not hold")
	}
	disk.Set(nil)
	writes := disk.Count(vfstest.Write)
	for range 2 {
		if err := one.Revoke(list); err != nil {
			t.Error(err)
		}
	}
	if n := disk.Count(vfstest.Write) - writes; n != 1 {
		t.Errorf("it is written %d times", n)
	}
	again, err := OpenNode(f.fs, "/node1", f.clock)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Revoked(two.ID()) {
		t.Error("after a restart it does not hold")
	}
}

// TestDamagedIdentity has every file of an identity cut off.
func TestDamagedIdentity(t *testing.T) {
	f := newFabric(t)
	f.node()
	for _, one := range []struct{ dir, name string }{{"/ca", rootKeyFile}, {"/ca", rootCertFile}, {"/ca", stateFile},
		{"/node1", nodeKeyFile}, {"/node1", nodeCertFile}, {"/node1", revokedFile}} {
		path := f.fs.PathJoin(one.dir, one.name)
		whole, err := vfs.ReadFile(f.fs, path)
		if err != nil {
			t.Fatal(err)
		}
		open := func() (err error) {
			if one.dir == "/ca" {
				_, err = OpenAuthority(f.fs, one.dir, f.clock)
			} else {
				_, err = OpenNode(f.fs, one.dir, f.clock)
			}
			return err
		}
		for _, n := range []int{0, 1, len(whole) / 2} {
			if err := vfs.WriteFileAtomic(f.fs, path, whole[:n]); err != nil {
				t.Fatal(err)
			}
			if err := open(); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d bytes of %s: %v", n, path, err)
			}
		}
		if err := vfs.WriteFileAtomic(f.fs, path, whole); err != nil {
			t.Fatal(err)
		}
		if err := open(); err != nil {
			t.Errorf("%s is whole again: %v", path, err)
		}
	}
}

// TestVerifierForgets has so many nodes send commands that no more can be
// remembered: those whose certificates have ended make room, and they alone.
func TestVerifierForgets(t *testing.T) {
	f := newFabric(t)
	one, two := f.node(), f.node()
	v := one.Verifier()
	for i := range maxIssuers {
		v.issuers[NodeID{1, byte(i), byte(i >> 8), byte(i >> 16)}] = &issuer{until: f.clock.Now().Add(time.Hour)}
	}
	send := func() error {
		c, err := two.Signer().Sign(one.ID(), v.Life(), "kind", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Verify(c)
		return err
	}
	if err := send(); err == nil {
		t.Error("more nodes than can be remembered")
	}
	f.clock.Advance(2 * time.Hour)
	if err := send(); err != nil {
		t.Error(err)
	}
	if len(v.issuers) != 1 {
		t.Errorf("%d nodes are remembered", len(v.issuers))
	}
}
