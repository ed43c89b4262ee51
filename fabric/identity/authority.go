package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/internal/vfs"
)

// Errors that callers tell apart. All others are of a broken or hostile peer,
// or of the disk.
var (
	// ErrExists is Create's answer where there is an authority already.
	ErrExists = errors.New("identity: there is a fabric authority here already")
	// ErrToken refuses a join: the token is unknown, used up or expired.
	ErrToken = errors.New("identity: the join token is not valid (any more); make a new one")
	// ErrNotAuthority is of a server that has not shown the authority's certificate.
	ErrNotAuthority = errors.New("identity: the server is not the fabric's authority")
	// ErrDamaged is of files of an identity that make no sense.
	ErrDamaged = errors.New("the identity is damaged; restore its directory, or take it away and join again")
	// ErrRevoked refuses a node whose certificates were revoked.
	ErrRevoked = errors.New("identity: the node was revoked")
)

// damaged marks what is wrong with the content of a file, not with reading it.
func damaged(err error) error {
	var of *fs.PathError
	if err == nil || errors.As(err, &of) || errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", err, ErrDamaged)
}

// Lifetimes.
const (
	rootLife = 20 * 365 * 24 * time.Hour
	// CertLife is how long a node's certificate lasts; [Node] asks for the next
	// one after two thirds of it.
	CertLife = 7 * 24 * time.Hour
	// skew is by how much the clocks of two nodes may differ.
	skew = 5 * time.Minute

	maxTokens  = 1024
	maxRevoked = 65536
)

// Files of an authority, in its directory.
const (
	rootKeyFile  = "authority.key"
	rootCertFile = "authority.pem"
	stateFile    = "authority.json"
)

// Authority is a fabric's certificate authority. One process has it open. It
// may be used from many goroutines.
type Authority struct {
	fs    vfs.FS
	dir   string
	clock clock.Clock
	key   ed25519.PrivateKey
	cert  *x509.Certificate
	id    FabricID

	mu    sync.Mutex
	state authorityState
}

// authorityState is what changes, in stateFile.
type authorityState struct {
	Tokens  map[string]*tokenRecord `json:"tokens"`  // by ID in hex
	Revoked []NodeID                `json:"revoked"` // oldest first
	Number  int64                   `json:"number"`  // of the newest revocation list
}

// Create makes a new fabric's authority in dir, which must have none.
func Create(fsys vfs.FS, dir string, clk clock.Clock) (*Authority, error) {
	if err := makeDir(fsys, dir); err != nil {
		return nil, err
	}
	if _, err := fsys.Stat(fsys.PathJoin(dir, rootKeyFile)); err == nil {
		return nil, fmt.Errorf("%w: %s", ErrExists, dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("fabric authority: %w", err)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	id := FabricID(randomID())
	now := clk.Now()
	tmpl := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(id[:]),
		Subject:               pkix.Name{CommonName: "fabric " + id.String()},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		return nil, fmt.Errorf("fabric authority: %w", err)
	}
	// The key comes last: with it the authority is there.
	for _, f := range []struct {
		name string
		b    []byte
	}{
		{stateFile, []byte("{}\n")},
		{rootCertFile, pemOf(certBlock, der)},
		{rootKeyFile, pemOfKey(key)},
	} {
		if err := vfs.WriteFileAtomic(fsys, fsys.PathJoin(dir, f.name), f.b); err != nil {
			return nil, fmt.Errorf("fabric authority: %w", err)
		}
	}
	return OpenAuthority(fsys, dir, clk)
}

// OpenAuthority opens the authority in dir.
func OpenAuthority(fsys vfs.FS, dir string, clk clock.Clock) (*Authority, error) {
	a := &Authority{fs: fsys, dir: dir, clock: clk}
	var err error
	if a.key, err = readKey(fsys, fsys.PathJoin(dir, rootKeyFile)); err != nil {
		return nil, err
	}
	certs, err := readCerts(fsys, fsys.PathJoin(dir, rootCertFile))
	if err != nil {
		return nil, err
	}
	a.cert = certs[0]
	if a.id, err = fabricOf(a.cert); err != nil {
		return nil, damaged(fmt.Errorf("fabric authority: %w", err))
	}
	if !a.key.Public().(ed25519.PublicKey).Equal(a.cert.PublicKey) {
		return nil, damaged(fmt.Errorf("fabric authority: %s does not fit %s", rootKeyFile, rootCertFile))
	}
	b, err := vfs.ReadFile(fsys, fsys.PathJoin(dir, stateFile))
	if err != nil {
		return nil, fmt.Errorf("fabric authority: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a.state); err != nil {
		return nil, damaged(fmt.Errorf("fabric authority: %s: %w", stateFile, err))
	}
	if a.state.Tokens == nil {
		a.state.Tokens = map[string]*tokenRecord{}
	}
	return a, nil
}

// makeDir makes a directory, durably. The one it lies in exists.
func makeDir(fsys vfs.FS, dir string) error {
	err := fsys.MkdirAll(dir, 0o700)
	if err == nil {
		err = vfs.SyncDir(fsys, fsys.PathDir(dir))
	}
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}

// fabricOf returns which fabric a root certificate is the authority of.
func fabricOf(root *x509.Certificate) (id FabricID, err error) {
	if !root.IsCA || root.SerialNumber.BitLen() > 8*len(id) {
		return id, errors.New("the certificate is not a fabric authority's")
	}
	root.SerialNumber.FillBytes(id[:])
	return id, nil
}

// Fabric returns the fabric's ID.
func (a *Authority) Fabric() FabricID { return a.id }

// change makes the state what fn makes of it, durably, or leaves it alone.
func (a *Authority) change(fn func(s *authorityState) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	b, err := json.Marshal(&a.state)
	if err != nil {
		return err
	}
	next := authorityState{Tokens: map[string]*tokenRecord{}}
	if err := json.Unmarshal(b, &next); err != nil {
		return err
	}
	if err := fn(&next); err != nil {
		return err
	}
	if b, err = json.MarshalIndent(&next, "", "  "); err != nil {
		return err
	}
	if err := vfs.WriteFileAtomic(a.fs, a.fs.PathJoin(a.dir, stateFile), append(b, '\n')); err != nil {
		return fmt.Errorf("fabric authority: %w", err)
	}
	a.state = next
	return nil
}

// NewToken makes a token with which uses nodes of the default organization may join
// until it expires.
func (a *Authority) NewToken(life time.Duration, uses int, addrs []string) (Token, error) {
	return a.NewTokenOf(DefaultOrganization, life, uses, addrs)
}

// NewTokenOf is NewToken for nodes of an organization, which their certificates name.
func (a *Authority) NewTokenOf(organization string, life time.Duration, uses int, addrs []string) (Token, error) {
	if life <= 0 || uses < 1 {
		return Token{}, errors.New("a join token lasts for a while and admits at least one node")
	}
	if err := checkOrganization(organization); err != nil {
		return Token{}, err
	}
	t, err := newToken(sha256.Sum256(a.cert.Raw), a.clock.Now().Add(life), addrs)
	if err != nil {
		return t, err
	}
	return t, a.change(func(s *authorityState) error {
		for id, r := range s.Tokens {
			if a.clock.Now().After(r.Expires) {
				delete(s.Tokens, id)
			}
		}
		if len(s.Tokens) >= maxTokens {
			return fmt.Errorf("%d join tokens are valid, the most there can be; wait for some to expire", maxTokens)
		}
		sum := sha256.Sum256(t.secret[:])
		s.Tokens[hex.EncodeToString(t.id[:])] = &tokenRecord{Hash: sum[:], Expires: t.Expires, Uses: uses, Organization: organization}
		return nil
	})
}

// JoinRequest is what a node shows to be admitted, over a connection on which
// it has checked the authority's fingerprint.
type JoinRequest struct {
	TokenID []byte `json:"token_id"`
	Secret  []byte `json:"secret"`
	CSR     []byte `json:"csr"` // PKCS #10, DER; its key becomes the node's
}

// Grant is what the authority gives a node.
type Grant struct {
	Cert        []byte `json:"cert"` // DER
	Root        []byte `json:"root"`
	Revocations []byte `json:"revocations"`
}

// Join admits a node. The token's use is durable before Join returns, so a
// node that lost the answer needs another one.
func (a *Authority) Join(req JoinRequest) (Grant, error) {
	pub, err := keyOf(req.CSR)
	if err != nil {
		return Grant{}, err
	}
	good := func(s *authorityState) bool {
		r := s.Tokens[hex.EncodeToString(req.TokenID)]
		return r != nil && r.admits(req.Secret) && !a.clock.Now().After(r.Expires)
	}
	a.mu.Lock()
	ok := good(&a.state) // strangers are not worth a copy of the state
	a.mu.Unlock()
	if !ok {
		return Grant{}, ErrToken
	}
	var organization string
	err = a.change(func(s *authorityState) error {
		if !good(s) {
			return ErrToken
		}
		id := hex.EncodeToString(req.TokenID)
		organization = s.Tokens[id].Organization
		if s.Tokens[id].Uses--; s.Tokens[id].Uses == 0 {
			delete(s.Tokens, id)
		}
		return nil
	})
	if err != nil {
		return Grant{}, err
	}
	return a.grant(NodeID(randomID()), organization, pub)
}

// Vouch has a node, which is where the authority is, show the authority's
// certificate to those who join: they know it by their token's fingerprint, and show
// the token to nobody else.
func (a *Authority) Vouch(n *Node) {
	n.door.Store(&tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key, Leaf: a.cert})
}

// Renew gives a node the next certificate. The caller has authenticated the
// node by its present one, which names the organization that it stays of.
func (a *Authority) Renew(n NodeID, organization string, csr []byte) (Grant, error) {
	pub, err := keyOf(csr)
	if err != nil {
		return Grant{}, err
	}
	a.mu.Lock()
	revoked := slices.Contains(a.state.Revoked, n)
	a.mu.Unlock()
	if revoked {
		return Grant{}, fmt.Errorf("%w: %s", ErrRevoked, n)
	}
	return a.grant(n, organization, pub)
}

// keyOf returns the key that a certificate request proves to have.
func keyOf(csr []byte) (ed25519.PublicKey, error) {
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("identity: certificate request: %w", err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("identity: certificate request: %w", err)
	}
	pub, ok := r.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("identity: certificate request: the key is not an Ed25519 one")
	}
	return pub, nil
}

func (a *Authority) grant(n NodeID, organization string, pub ed25519.PublicKey) (Grant, error) {
	var tail [4]byte
	rand.Read(tail[:]) // never fails (crypto/rand.Read)
	now := a.clock.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serialOf(n, binary.BigEndian.Uint32(tail[:])),
		Subject:               subjectOf(n, organization),
		URIs:                  []*url.URL{a.id.uri(n)},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(CertLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, a.cert, pub, a.key)
	if err != nil {
		return Grant{}, fmt.Errorf("identity: issue a certificate: %w", err)
	}
	list, err := a.Revocations()
	return Grant{Cert: der, Root: a.cert.Raw, Revocations: list}, err
}

// Revoke makes all certificates of a node worthless and returns the list that
// says so, for every node of the fabric.
func (a *Authority) Revoke(n NodeID) ([]byte, error) {
	err := a.change(func(s *authorityState) error {
		if slices.Contains(s.Revoked, n) {
			return nil
		}
		if len(s.Revoked) >= maxRevoked {
			return fmt.Errorf("identity: %d nodes are revoked, the most there can be; make a new fabric", maxRevoked)
		}
		s.Revoked = append(s.Revoked, n)
		s.Number++
		return nil
	})
	if err != nil {
		return nil, err
	}
	return a.Revocations()
}

// Revocations returns the newest revocation list, signed.
func (a *Authority) Revocations() ([]byte, error) {
	a.mu.Lock()
	s := a.state
	a.mu.Unlock()
	now := a.clock.Now()
	tmpl := &x509.RevocationList{Number: big.NewInt(s.Number + 1), ThisUpdate: now.Add(-skew), NextUpdate: now.Add(rootLife)}
	for _, n := range s.Revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serialOf(n, 0), RevocationTime: now})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.cert, a.key)
	if err != nil {
		return nil, fmt.Errorf("identity: sign the revocation list: %w", err)
	}
	return der, nil
}

const (
	certBlock = "CERTIFICATE"
	keyBlock  = "PRIVATE KEY"
)

func pemOf(block string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der})
}

func pemOfKey(key ed25519.PrivateKey) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err) // every Ed25519 key has that form
	}
	return pemOf(keyBlock, der)
}

func readKey(fsys vfs.FS, path string) (ed25519.PrivateKey, error) {
	b, err := vfs.ReadFile(fsys, path)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != keyBlock {
		return nil, damaged(fmt.Errorf("identity: %s holds no private key", path))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, damaged(fmt.Errorf("identity: %s: %w", path, err))
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, damaged(fmt.Errorf("identity: %s holds no Ed25519 key", path))
	}
	return ed, nil
}

// readCerts returns a file's certificates, at least one.
func readCerts(fsys vfs.FS, path string) (certs []*x509.Certificate, err error) {
	b, err := vfs.ReadFile(fsys, path)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, damaged(fmt.Errorf("identity: %s: %w", path, err))
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, damaged(fmt.Errorf("identity: %s holds no certificate", path))
	}
	return certs, nil
}
