package identity

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
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
