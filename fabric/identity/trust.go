package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spacestore/space/internal/clock"
)

// Trust is what a node believes of others. It may be used from many goroutines.
type Trust struct {
	clock  clock.Clock
	fabric FabricID
	root   *x509.Certificate
	pool   *x509.CertPool

	mu      sync.Mutex
	number  int64
	list    []byte
	revoked map[NodeID]bool
	live    map[NodeID]map[*watched]struct{}
}

// watched is something, such as a session, that ends when its peer is revoked.
type watched struct{ cut func() }

// newTrust returns the trust in a fabric of which the root is known for sure.
func newTrust(root *x509.Certificate, clk clock.Clock) (*Trust, error) {
	id, err := fabricOf(root)
	if err != nil {
		return nil, err
	}
	t := &Trust{clock: clk, fabric: id, root: root, pool: x509.NewCertPool(), revoked: map[NodeID]bool{}, live: map[NodeID]map[*watched]struct{}{}}
	t.pool.AddCert(root)
	return t, nil
}

// Fabric returns the fabric's ID.
func (t *Trust) Fabric() FabricID { return t.fabric }

// Update takes in a revocation list and cuts what it revokes. An older list
// than the one in force changes nothing and is no error; news reports whether
// it was a newer one, which other nodes should hear of.
func (t *Trust) Update(list []byte) (news bool, err error) {
	l, err := x509.ParseRevocationList(list)
	if err != nil {
		return false, fmt.Errorf("identity: revocation list: %w", err)
	}
	if err := l.CheckSignatureFrom(t.root); err != nil {
		return false, fmt.Errorf("identity: revocation list: %w", err)
	}
	if l.Number == nil || !l.Number.IsInt64() || len(l.RevokedCertificateEntries) > maxRevoked {
		return false, errors.New("identity: revocation list: not one of a fabric's authority")
	}
	revoked := make(map[NodeID]bool, len(l.RevokedCertificateEntries))
	for _, e := range l.RevokedCertificateEntries {
		revoked[nodeOfSerial(e.SerialNumber)] = true
	}
	t.mu.Lock()
	if l.Number.Int64() <= t.number {
		t.mu.Unlock()
		return false, nil
	}
	t.number, t.list, t.revoked = l.Number.Int64(), list, revoked
	var cut []func()
	for n := range revoked {
		for w := range t.live[n] {
			cut = append(cut, w.cut)
		}
	}
	t.mu.Unlock()
	for _, fn := range cut {
		fn()
	}
	return true, nil
}

// Revocations returns the list in force.
func (t *Trust) Revocations() []byte {
	_, list := t.inForce()
	return list
}

// inForce returns the list in force and its number; 0: there is none yet.
func (t *Trust) inForce() (number int64, list []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.number, t.list
}

// Watch has cut called when node n is revoked, and at once if it is already.
// Stop ends that.
func (t *Trust) Watch(n NodeID, cut func()) (stop func()) {
	w := &watched{cut}
	t.mu.Lock()
	revoked := t.revoked[n]
	if t.live[n] == nil {
		t.live[n] = map[*watched]struct{}{}
	}
	t.live[n][w] = struct{}{}
	t.mu.Unlock()
	if revoked {
		cut()
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if delete(t.live[n], w); len(t.live[n]) == 0 {
			delete(t.live, n)
		}
	}
}

// clockLook is how long a watch for a certificate's end trusts that the clock goes
// on as it did.
const clockLook = time.Hour

// expiry calls cut when a time has passed.
type expiry struct {
	clock clock.Clock
	at    time.Time
	cut   func()

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

// look calls cut if it is time, and else looks again later. It returns how much
// time is left.
func (e *expiry) look() time.Duration {
	left := e.at.Sub(e.clock.Now())
	e.mu.Lock()
	over := left <= 0 && !e.stopped
	if left > 0 && !e.stopped {
		e.timer = time.AfterFunc(min(left, clockLook), func() { e.look() })
	}
	e.mu.Unlock()
	if over {
		e.cut()
	}
	return left
}

func (e *expiry) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopped = true
	if e.timer != nil {
		e.timer.Stop()
	}
}

// Check reports which node a certificate is for: signed by the fabric's
// authority, valid now, not revoked.
func (t *Trust) Check(c *x509.Certificate) (NodeID, error) {
	_, err := c.Verify(x509.VerifyOptions{Roots: t.pool, CurrentTime: t.clock.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return NodeID{}, fmt.Errorf("identity: %w", err)
	}
	n, err := nodeOf(c, t.fabric)
	if err != nil {
		return NodeID{}, fmt.Errorf("identity: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.revoked[n] {
		return NodeID{}, fmt.Errorf("%w: %s", ErrRevoked, n)
	}
	return n, nil
}

// Peer returns which node is at the other end of a connection that was made
// with this package's TLS settings.
func Peer(cs tls.ConnectionState) (NodeID, error) {
	if len(cs.PeerCertificates) == 0 {
		return NodeID{}, errors.New("identity: the peer has shown no certificate")
	}
	return nodeOfSerial(cs.PeerCertificates[0].SerialNumber), nil
}

// PeerOrganization returns whose node is at the other end of such a connection, as the
// authority has it.
func PeerOrganization(cs tls.ConnectionState) string {
	if len(cs.PeerCertificates) == 0 {
		return DefaultOrganization
	}
	return organizationOf(cs.PeerCertificates[0])
}
