package identity

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// maxCert bounds a certificate in what a node has signed, in bytes.
const maxCert = 4 << 10

// Domains keep a signature over one thing from being taken for another one's.
const (
	commandDomain = "space-fabric-command/1\x00"
	recordDomain  = "space-fabric-record/1\x00"
)

// seal returns a body with the node's certificate and signature: u16 length of
// the certificate, the certificate, the body, the signature.
func (n *Node) seal(domain string, body []byte) []byte {
	cert := n.cert.Load().Leaf.Raw
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(cert)+len(body)+ed25519.SignatureSize), uint16(len(cert)))
	b = append(append(b, cert...), body...)
	return append(b, ed25519.Sign(n.key, append([]byte(domain), body...))...)
}

// cutSealed splits what seal returns and checks nothing.
func cutSealed(b []byte) (cert, body, sig []byte, err error) {
	if len(b) >= 2 {
		n, end := 2+int(binary.BigEndian.Uint16(b)), len(b)-ed25519.SignatureSize
		if n <= 2+maxCert && n <= end {
			return b[2:n], b[n:end], b[end:], nil
		}
	}
	return nil, nil, nil, errors.New("identity: this is nothing that a node has signed")
}

// unseal returns who has signed what seal returns, and the body.
func (t *Trust) unseal(domain string, b []byte) (from NodeID, body []byte, cert *x509.Certificate, err error) {
	raw, body, sig, err := cutSealed(b)
	if err != nil {
		return from, nil, nil, err
	}
	if cert, err = x509.ParseCertificate(raw); err != nil {
		return from, nil, nil, fmt.Errorf("identity: %w", err)
	}
	if from, err = t.Check(cert); err != nil {
		return from, nil, nil, err
	}
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || !ed25519.Verify(pub, append([]byte(domain), body...), sig) {
		return from, nil, nil, errors.New("identity: the signature is wrong")
	}
	return from, body, cert, nil
}

// SignRecord returns what a node says of itself, in a form that all who trust
// the fabric's root can check, whoever it comes from.
func (n *Node) SignRecord(body []byte) []byte { return n.seal(recordDomain, body) }

// Signed is a record that was checked.
type Signed struct {
	From         NodeID
	Organization string // of who has signed it, as the authority has it
	Body         []byte
	Until        time.Time // when the certificate ends that it was signed with
}

// CheckRecord reports who has signed a record.
func (t *Trust) CheckRecord(b []byte) (Signed, error) {
	from, body, cert, err := t.unseal(recordDomain, b)
	if err != nil {
		return Signed{}, err
	}
	return Signed{from, organizationOf(cert), body, cert.NotAfter}, nil
}

// PeekRecord returns what a record says, unchecked, for those who may know
// that already.
func PeekRecord(b []byte) (body []byte, err error) {
	_, body, _, err = cutSealed(b)
	return body, err
}

// Revoked reports whether a node was revoked.
func (t *Trust) Revoked(n NodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.revoked[n]
}
