// Package identitytest makes identities for tests, on disks in memory:
//
//	a := identitytest.New(t, clk)
//	one, other := a.Node(t), a.Node(t)
package identitytest

import (
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// Authority is a new fabric's.
type Authority struct {
	*identity.Authority
	files vfs.FS
	clock clock.Clock
}

// New makes a fabric. A nil clock is the machine's.
func New(t testing.TB, clk clock.Clock) *Authority {
	t.Helper()
	if clk == nil {
		clk = clock.System()
	}
	files := vfstest.NewPowerCut()
	a, err := identity.Create(files, "/authority", clk)
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{a, files, clk}
}

// At opens the authority once more, with another clock. The nodes that it makes keep
// the fabric's.
func (a *Authority) At(t testing.TB, clk clock.Clock) *Authority {
	t.Helper()
	at, err := identity.OpenAuthority(a.files, "/authority", clk)
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{at, a.files, a.clock}
}

// Token makes a token with which one node can join at addrs.
func (a *Authority) Token(t testing.TB, addrs ...string) identity.Token {
	t.Helper()
	token, err := a.NewToken(time.Hour, 1, addrs)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Request makes a node's key, and what it asks for with it.
func Request(t testing.TB) (key ed25519.PrivateKey, csr []byte) {
	t.Helper()
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// Accept makes a node of what the authority has granted.
func (a *Authority) Accept(t testing.TB, key ed25519.PrivateKey, g identity.Grant, token identity.Token) *identity.Node {
	t.Helper()
	n, err := identity.Accept(vfstest.NewPowerCut(), "/node", a.clock, key, g, &token)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Node admits a node.
func (a *Authority) Node(t testing.TB) *identity.Node {
	t.Helper()
	token := a.Token(t)
	key, csr := Request(t)
	g, err := a.Join(token.JoinRequest(csr))
	if err != nil {
		t.Fatal(err)
	}
	return a.Accept(t, key, g, token)
}
