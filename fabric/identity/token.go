package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Token lets nodes join a fabric. Its text is a secret.
type Token struct {
	id          [16]byte
	secret      [32]byte
	fingerprint [32]byte // SHA-256 of the authority's certificate
	Expires     time.Time
	Addrs       []string // where the fabric can be joined
}

const (
	tokenPrefix = "space-join-1."
	maxAddrs    = 8
	maxAddr     = 255
)

func newToken(fingerprint [32]byte, expires time.Time, addrs []string) (Token, error) {
	t := Token{id: randomID(), fingerprint: fingerprint, Expires: expires.Truncate(time.Second), Addrs: addrs}
	rand.Read(t.secret[:]) // never fails (crypto/rand.Read)
	if len(addrs) > maxAddrs {
		return t, fmt.Errorf("a join token names at most %d addresses", maxAddrs)
	}
	for _, a := range addrs {
		if a == "" || len(a) > maxAddr {
			return t, fmt.Errorf("%.40q cannot be an address in a join token", a)
		}
	}
	return t, nil
}

// String returns the token's text, secret included.
func (t Token) String() string {
	b := append(t.id[:], t.secret[:]...)
	b = append(b, t.fingerprint[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	for _, a := range t.Addrs {
		b = append(append(b, byte(len(a))), a...)
	}
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:4]...))
}

// ParseToken reads a token's text. It fails too if a character is wrong.
func ParseToken(s string) (t Token, err error) {
	bad := errors.New("this is not a join token, or a part of it is missing")
	text, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok || len(text) > 4096 {
		return t, bad
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < 16+32+32+8+4 {
		return t, bad
	}
	b, check := b[:len(b)-4], b[len(b)-4:]
	if sum := sha256.Sum256(b); string(sum[:4]) != string(check) {
		return t, bad
	}
	b = b[copy(t.id[:], b):]
	b = b[copy(t.secret[:], b):]
	b = b[copy(t.fingerprint[:], b):]
	t.Expires = time.Unix(int64(binary.BigEndian.Uint64(b)), 0)
	for b = b[8:]; len(b) > 0; {
		n := int(b[0])
		if n == 0 || len(b) <= n || len(t.Addrs) == maxAddrs {
			return t, bad
		}
		t.Addrs = append(t.Addrs, string(b[1:1+n]))
		b = b[1+n:]
	}
	return t, nil
}

// tokenRecord is what the authority keeps of a token.
type tokenRecord struct {
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"` // left
	// Organization is whose nodes it admits; "": the default one's.
	Organization string `json:"organization,omitempty"`
}

func (r *tokenRecord) admits(secret []byte) bool {
	sum := sha256.Sum256(secret)
	return subtle.ConstantTimeCompare(sum[:], r.Hash) == 1
}
