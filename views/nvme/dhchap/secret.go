package dhchap

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/spacestore/space/capsule"
)

// prefix begins the written form of a secret; two digits of its hash follow.
const prefix = "DHHC-1:"

// Secret is a shared secret of one host or one subsystem. The zero value is none.
type Secret struct {
	hash Hash // how it is transformed before use
	key  []byte
}

// GenerateSecret makes a random secret that is transformed with h before use
// (None: used as it is), of 32, 48 or 64 bytes, or with size 0 of as many as h
// has (None: 32).
func GenerateSecret(h Hash, size int) (Secret, error) {
	if h != None && !h.valid() {
		return Secret{}, capsule.Errorf(capsule.Invalid, "there is no %v to transform secrets with", h)
	}
	if size == 0 {
		size = max(h.Size(), SHA256.Size())
	}
	if !validSize(size) {
		return Secret{}, capsule.Errorf(capsule.Invalid, "a secret has 32, 48 or 64 bytes, not %d", size)
	}
	key := make([]byte, size)
	rand.Read(key) // never fails; see its documentation
	return Secret{h, key}, nil
}

// ParseSecret reads the written form "DHHC-1:hh:base64:": hh is the hash
// function, 00 for none, and what base64 says is the key and its CRC-32.
func ParseSecret(s string) (Secret, error) {
	bad := func(why string, args ...any) (Secret, error) {
		return Secret{}, capsule.Errorf(capsule.Invalid, "not a DH-HMAC-CHAP secret (DHHC-1:…:…:): "+why, args...)
	}
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return bad("it does not begin with %s", prefix)
	}
	id, rest, ok := strings.Cut(rest, ":")
	if !ok || len(id) != 2 || id[0] != '0' || id[1] < '0' || id[1] > '3' {
		return bad("the hash has to be 00, 01, 02 or 03")
	}
	text, ok := strings.CutSuffix(rest, ":")
	if !ok {
		return bad("it does not end with a colon; it may be cut short")
	}
	// The longest key with its checksum takes 92 characters.
	if len(text) > base64.StdEncoding.EncodedLen(SHA512.Size()+4) {
		return bad("it is too long")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return bad("its key is not base64") // the cause would quote the secret
	}
	if !validSize(len(b) - 4) {
		return bad("its key has 32, 48 or 64 bytes and a checksum of 4; there are %d in all", len(b))
	}
	key, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.ChecksumIEEE(key) != sum {
		return bad("its checksum is wrong; it was mistyped or damaged")
	}
	return Secret{Hash(id[1] - '0'), key}, nil
}

func validSize(n int) bool { return n == 32 || n == 48 || n == 64 }

// Text returns the secret in its written form, for configuration files.
func (s Secret) Text() string {
	b := binary.LittleEndian.AppendUint32(s.key[:len(s.key):len(s.key)], crc32.ChecksumIEEE(s.key))
	return fmt.Sprintf("%s%02d:%s:", prefix, uint8(s.hash), base64.StdEncoding.EncodeToString(b))
}

// String and GoString say that there is a secret and not which, so that none
// gets into a log.
func (s Secret) String() string {
	if s.IsZero() {
		return "no secret"
	}
	return fmt.Sprintf("%s%02d:(hidden):", prefix, uint8(s.hash))
}

// GoString is String.
func (s Secret) GoString() string { return s.String() }

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.key == nil }

// transform returns the key that the owner of nqn uses (section 8.13.5).
func (s Secret) transform(nqn string) []byte {
	if s.hash == None {
		return s.key
	}
	return s.hash.mac(s.key, []byte(nqn), []byte("NVMe-over-Fabrics"))
}
