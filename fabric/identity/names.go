package identity

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// NodeID names a node for life.
type NodeID [16]byte

// FabricID names a fabric for life.
type FabricID [16]byte

func randomID() (id [16]byte) {
	rand.Read(id[:]) // never fails (crypto/rand.Read)
	return id
}

// String returns 32 hex digits.
func (n NodeID) String() string { return hex.EncodeToString(n[:]) }

// IsZero reports whether n names no node.
func (n NodeID) IsZero() bool { return n == NodeID{} }

// MarshalText implements encoding.TextMarshaler.
func (n NodeID) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *NodeID) UnmarshalText(b []byte) (err error) {
	*n, err = ParseNodeID(string(b))
	return err
}

// ParseNodeID reads what String returns.
func ParseNodeID(s string) (n NodeID, err error) {
	if len(s) != 2*len(n) || strings.ToLower(s) != s {
		return n, fmt.Errorf("%.40q is not a node ID (32 hex digits)", s)
	}
	if _, err := hex.Decode(n[:], []byte(s)); err != nil {
		return NodeID{}, fmt.Errorf("%.40q is not a node ID (32 hex digits)", s)
	}
	return n, nil
}

// String returns 32 hex digits.
func (f FabricID) String() string { return hex.EncodeToString(f[:]) }

// MarshalText implements encoding.TextMarshaler.
func (f FabricID) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *FabricID) UnmarshalText(b []byte) error {
	n, err := ParseNodeID(string(b)) // of the same form
	*f = FabricID(n)
	return err
}

// uri is how a certificate names a node.
func (f FabricID) uri(n NodeID) *url.URL {
	return &url.URL{Scheme: "fabric", Host: f.String(), Path: "/" + n.String()}
}

// nodeOf returns which node of fabric f a certificate is for.
func nodeOf(c *x509.Certificate, f FabricID) (NodeID, error) {
	if len(c.URIs) != 1 || c.URIs[0].Scheme != "fabric" {
		return NodeID{}, errors.New("the certificate is not a fabric node's")
	}
	u := c.URIs[0]
	if u.Host != f.String() {
		return NodeID{}, errors.New("the certificate belongs to another fabric")
	}
	n, err := ParseNodeID(strings.TrimPrefix(u.Path, "/"))
	if err != nil {
		return n, err
	}
	if nodeOfSerial(c.SerialNumber) != n {
		return n, errors.New("the certificate's serial number is not its node's")
	}
	return n, nil
}

// DefaultOrganization is that of nodes whose certificates name none: there was none in
// their token, or they are older than the field.
const DefaultOrganization = "default"

// maxOrganization bounds an organization's name, in bytes, as X.520 does.
const maxOrganization = 64

func checkOrganization(name string) error {
	if len(name) > maxOrganization || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%.40q is not an organization's name: at most %d bytes that can be printed", name, maxOrganization)
	}
	return nil
}

// subjectOf is whom a node's certificate is for, and whose it is.
func subjectOf(n NodeID, organization string) pkix.Name {
	name := pkix.Name{CommonName: n.String()}
	if organization != "" && organization != DefaultOrganization {
		name.Organization = []string{organization}
	}
	return name
}

// organizationOf returns whose node a certificate is for.
func organizationOf(c *x509.Certificate) string {
	if o := c.Subject.Organization; len(o) == 1 && o[0] != "" && checkOrganization(o[0]) == nil {
		return o[0]
	}
	return DefaultOrganization
}

// serialTail is how many bits of a serial number follow the node's ID.
const serialTail = 24

// serialOf returns a serial number that begins with the node's ID. IDs of
// nodes begin with a bit that is not zero or the number would be shorter,
// which does no harm.
func serialOf(n NodeID, tail uint32) *big.Int {
	s := new(big.Int).SetBytes(n[:])
	s.Lsh(s, serialTail)
	return s.Or(s, big.NewInt(int64(tail&(1<<serialTail-1))))
}

func nodeOfSerial(s *big.Int) (n NodeID) {
	head := new(big.Int).Rsh(s, serialTail)
	if head.Sign() < 0 || head.BitLen() > 8*len(n) {
		return NodeID{}
	}
	head.FillBytes(n[:])
	return n
}
