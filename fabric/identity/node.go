package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/internal/vfs"
)

// Files of a node's identity, in its directory.
const (
	nodeKeyFile  = "node.key"
	nodeCertFile = "node.pem" // the node's certificate, then the root
	revokedFile  = "revoked.crl"
)

// Node is a node's own identity. It may be used from many goroutines.
type Node struct {
	fs    vfs.FS
	dir   string
	clock clock.Clock
	key   ed25519.PrivateKey
	id    NodeID
	cert  atomic.Pointer[tls.Certificate]
	door  atomic.Pointer[tls.Certificate] // see Authority.Vouch; nil: the authority is elsewhere
	*Trust

	revoking sync.Mutex // of lists on their way to the disk
	stored   int64      // the number of the one that is there
}

// NewRequest makes a key and the request with which its holder asks for a
// certificate. Keep the key for [Accept].
func NewRequest() (key ed25519.PrivateKey, csr []byte, err error) {
	if _, key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, nil, err
	}
	csr, err = requestFor(key)
	return key, csr, err
}

func requestFor(key ed25519.PrivateKey) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("identity: certificate request: %w", err)
	}
	return csr, nil
}

// JoinRequest returns what to send to the authority to join with this token.
func (t Token) JoinRequest(csr []byte) JoinRequest {
	return JoinRequest{TokenID: t.id[:], Secret: t.secret[:], CSR: csr}
}

// ClientConfig returns the TLS settings with which a node that has no
// certificate yet reaches the authority that the token is for, and nobody else:
// other nodes of the fabric, and those that were revoked, are not to see the token.
func (t Token) ClientConfig(clk clock.Clock) *tls.Config {
	return joinConfig(clk, func(chain []*x509.Certificate) error {
		if _, err := t.root(chain[:1]); err != nil {
			return fmt.Errorf("%w that the join token is for", ErrNotAuthority)
		}
		return nil
	})
}

// AuthorityConfig returns the TLS settings with which a node makes sure that it is the
// authority's node that is at the other end, see [Authority.Vouch], and goes on no
// further.
func (n *Node) AuthorityConfig() *tls.Config {
	return joinConfig(n.clock, func(chain []*x509.Certificate) error {
		if !chain[0].Equal(n.root) {
			return ErrNotAuthority
		}
		return nil
	})
}

// RelayConfig is likewise for reaching any node of the fabric, which passes on what
// it can't read.
func (t Token) RelayConfig(clk clock.Clock) *tls.Config {
	return joinConfig(clk, func(chain []*x509.Certificate) error {
		root, err := t.root(chain)
		if err != nil || root == chain[0] {
			return err
		}
		trust, err := newTrust(root, clk)
		if err != nil {
			return err
		}
		_, err = trust.Check(chain[0])
		return err
	})
}

// joinConfig is for a client that shows no certificate.
func joinConfig(clk clock.Clock, verify func(chain []*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Time:               clk.Now,
		InsecureSkipVerify: true, // VerifyConnection does it: there is no host name
		NextProtos:         []string{JoinProtocol},
		VerifyConnection:   func(cs tls.ConnectionState) error { return verify(cs.PeerCertificates) }, // at least one: TLS
	}
}

// root finds the certificate that the token names.
func (t Token) root(chain []*x509.Certificate) (*x509.Certificate, error) {
	for _, c := range chain {
		if sha256.Sum256(c.Raw) == t.fingerprint {
			return c, nil
		}
	}
	return nil, errors.New("identity: the server does not belong to the fabric that the join token is for")
}

// Accept makes a node of a grant, and writes it to dir. token is nil when the
// authority itself, in this process, gave it.
func Accept(fsys vfs.FS, dir string, clk clock.Clock, key ed25519.PrivateKey, g Grant, token *Token) (*Node, error) {
	root, err := x509.ParseCertificate(g.Root)
	if err != nil {
		return nil, fmt.Errorf("identity: the fabric's root: %w", err)
	}
	if token != nil {
		if _, err := token.root([]*x509.Certificate{root}); err != nil {
			return nil, err
		}
	}
	if err := makeDir(fsys, dir); err != nil {
		return nil, err
	}
	n := &Node{fs: fsys, dir: dir, clock: clk, key: key}
	if n.Trust, err = newTrust(root, clk); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if err := vfs.WriteFileAtomic(fsys, fsys.PathJoin(dir, nodeKeyFile), pemOfKey(key)); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return n, n.Renewed(g)
}

// OpenNode opens the identity in dir.
func OpenNode(fsys vfs.FS, dir string, clk clock.Clock) (*Node, error) {
	n := &Node{fs: fsys, dir: dir, clock: clk}
	var err error
	if n.key, err = readKey(fsys, fsys.PathJoin(dir, nodeKeyFile)); err != nil {
		return nil, err
	}
	certs, err := readCerts(fsys, fsys.PathJoin(dir, nodeCertFile))
	if err != nil {
		return nil, err
	}
	if len(certs) != 2 {
		return nil, damaged(fmt.Errorf("identity: %s must hold the node's certificate and the root", nodeCertFile))
	}
	if n.Trust, err = newTrust(certs[1], clk); err != nil {
		return nil, damaged(fmt.Errorf("identity: %s: %w", nodeCertFile, err))
	}
	list, err := vfs.ReadFile(fsys, fsys.PathJoin(dir, revokedFile))
	if err == nil {
		_, err = n.Trust.Update(list)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, damaged(fmt.Errorf("identity: %s: %w", revokedFile, err))
	}
	n.stored, _ = n.inForce()
	// One that has expired is no error: the node has to join again, or its
	// clock is wrong, and both are for TLS to say.
	id, err := nodeOf(certs[0], n.fabric)
	if err != nil {
		return nil, damaged(fmt.Errorf("identity: %s: %w", nodeCertFile, err))
	}
	return n, damaged(n.use(id, certs[0]))
}

// use makes c the certificate that the node shows.
func (n *Node) use(id NodeID, c *x509.Certificate) error {
	if !n.key.Public().(ed25519.PublicKey).Equal(c.PublicKey) {
		return errors.New("identity: the certificate is for another key")
	}
	n.id = id
	n.cert.Store(&tls.Certificate{Certificate: [][]byte{c.Raw, n.root.Raw}, PrivateKey: n.key, Leaf: c})
	return nil
}

// ID returns the node's name.
func (n *Node) ID() NodeID { return n.id }

// Organization returns whose node it is, as its certificate says.
func (n *Node) Organization() string { return organizationOf(n.cert.Load().Leaf) }

// Expires returns when the certificate ends. Then the node has to join again.
func (n *Node) Expires() time.Time { return n.cert.Load().Leaf.NotAfter }

// RenewAt returns when to ask for the next certificate.
func (n *Node) RenewAt() time.Time {
	c := n.cert.Load().Leaf
	return c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3)
}

// WatchPeer returns which node is at the other end of a connection that was made
// just now with this package's TLS settings, and for how long it is good: until the
// peer's certificate expires, or the one that this node has shown. It has cut
// called then, and when the peer is revoked. Stop ends that.
func (n *Node) WatchPeer(cs tls.ConnectionState, cut func()) (peer NodeID, lasts time.Duration, stop func(), err error) {
	if peer, err = Peer(cs); err != nil {
		return NodeID{}, 0, nil, err
	}
	w := &expiry{clock: n.clock, at: n.cert.Load().Leaf.NotAfter, cut: cut}
	if c := cs.PeerCertificates[0]; c.NotAfter.Before(w.at) {
		w.at = c.NotAfter
	}
	lasts = w.look()
	revoked := n.Watch(peer, cut)
	return peer, lasts, func() {
		revoked()
		w.stop()
	}, nil
}

// RenewRequest returns the request for the next certificate.
func (n *Node) RenewRequest() (csr []byte, err error) { return requestFor(n.key) }

// Renewed takes in the next certificate, durably. Connections that are made
// from now on show it.
func (n *Node) Renewed(g Grant) error {
	c, err := x509.ParseCertificate(g.Cert)
	if err != nil {
		return fmt.Errorf("identity: the new certificate: %w", err)
	}
	if err := n.Revoke(g.Revocations); err != nil {
		return err
	}
	id, err := n.Check(c)
	if err != nil {
		return err
	}
	if !n.id.IsZero() && id != n.id {
		return errors.New("identity: the new certificate is for another node")
	}
	both := append(pemOf(certBlock, c.Raw), pemOf(certBlock, n.root.Raw)...)
	if err := vfs.WriteFileAtomic(n.fs, n.fs.PathJoin(n.dir, nodeCertFile), both); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return n.use(id, c)
}

// Revoke takes in a revocation list, durably: after a restart the node still
// refuses who is on it.
// Where the disk fails it holds all the same, and is written with the next list
// that comes, were it the same.
func (n *Node) Revoke(list []byte) error {
	n.revoking.Lock()
	defer n.revoking.Unlock()
	if _, err := n.Update(list); err != nil {
		return err
	}
	number, list := n.inForce()
	if number == n.stored {
		return nil
	}
	if err := vfs.WriteFileAtomic(n.fs, n.fs.PathJoin(n.dir, revokedFile), list); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	n.stored = number
	return nil
}

// Protocols (ALPN) that this package's TLS settings agree on.
const (
	Protocol     = "space-fabric/1"
	JoinProtocol = "space-fabric-join/1" // the client has no certificate yet
)

// ServerConfig returns the TLS settings for nodes that connect to this one.
// Whoever agrees on JoinProtocol is not authenticated, and must be served
// nothing but [Authority.Join]; with join false nobody is. Where the authority has
// vouched for the node they are shown its certificate, not the node's.
func (n *Node) ServerConfig(join bool) *tls.Config {
	c := n.config()
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error { return n.verify(cs, NodeID{}) }
	if !join {
		return c
	}
	admit := n.config()
	admit.NextProtos = []string{JoinProtocol}
	admit.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if door := n.door.Load(); door != nil {
			return door, nil
		}
		return n.cert.Load(), nil
	}
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == JoinProtocol {
			return admit, nil
		}
		return nil, nil
	}
	return c
}

// ClientConfig returns the TLS settings for connecting to a node; zero: to any
// node of the fabric.
func (n *Node) ClientConfig(to NodeID) *tls.Config {
	c := n.config()
	c.InsecureSkipVerify = true // VerifyConnection does it: there is no host name
	c.VerifyConnection = func(cs tls.ConnectionState) error { return n.verify(cs, to) }
	return c
}

func (n *Node) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{Protocol},
		Time:                   n.clock.Now,
		SessionTicketsDisabled: true, // each connection is checked anew
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return n.cert.Load(), nil },
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return n.cert.Load(), nil },
	}
}

func (n *Node) verify(cs tls.ConnectionState, want NodeID) error {
	if cs.NegotiatedProtocol != Protocol {
		return errors.New("identity: the peer does not speak " + Protocol)
	}
	if len(cs.PeerCertificates) == 0 {
		return errors.New("identity: the peer has shown no certificate")
	}
	id, err := n.Check(cs.PeerCertificates[0])
	if err != nil {
		return err
	}
	if !want.IsZero() && id != want {
		return fmt.Errorf("identity: node %s answers where %s was wanted", id, want)
	}
	return nil
}
