package dhchap

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/spacestore/space/capsule"
)

// Hash is a hash function by its number on the wire.
type Hash uint8

// The hash functions. None stands only in secrets: use it as it is.
const (
	None   Hash = 0
	SHA256 Hash = 1
	SHA384 Hash = 2
	SHA512 Hash = 3
)

var hashes = [...]struct {
	name string
	size int
	new  func() hash.Hash
}{
	SHA256: {"sha256", sha256.Size, sha256.New},
	SHA384: {"sha384", sha512.Size384, sha512.New384},
	SHA512: {"sha512", sha512.Size, sha512.New},
}

// ParseHash returns the hash function called name: sha256, sha384 or sha512.
func ParseHash(name string) (Hash, error) {
	for h := SHA256; h <= SHA512; h++ {
		if hashes[h].name == name {
			return h, nil
		}
	}
	return None, capsule.Errorf(capsule.Invalid, "%q is no hash function of DH-HMAC-CHAP: it has sha256, sha384 and sha512", name)
}

func (h Hash) valid() bool { return h >= SHA256 && h <= SHA512 }

// Size returns the length of the function's results; of None, 0.
func (h Hash) Size() int {
	if !h.valid() {
		return 0
	}
	return hashes[h].size
}

func (h Hash) String() string {
	switch {
	case h == None:
		return "none"
	case h.valid():
		return hashes[h].name
	}
	return fmt.Sprintf("hash(%d)", uint8(h))
}

func (h Hash) mac(key []byte, parts ...[]byte) []byte {
	m := hmac.New(hashes[h].new, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

func (h Hash) sum(p []byte) []byte {
	d := hashes[h].new()
	d.Write(p)
	return d.Sum(nil)
}

// transcript is what both sides of one direction of authentication know.
type transcript struct {
	hash      Hash
	challenge []byte
	shared    []byte // the Diffie-Hellman result, nil without one
	seq       uint32
	tid       uint16
}

// hostResponse is the host's answer to the controller's challenge (section
// 8.13.5), and controllerResponse the controller's to the host's.
func (t *transcript) hostResponse(s Secret, hostNQN, subsysNQN string) []byte {
	return t.response(s.transform(hostNQN), "HostHost", hostNQN, subsysNQN)
}

func (t *transcript) controllerResponse(s Secret, hostNQN, subsysNQN string) []byte {
	return t.response(s.transform(subsysNQN), "Controller", subsysNQN, hostNQN)
}

func (t *transcript) response(key []byte, role, own, other string) []byte {
	challenge := t.challenge
	if t.shared != nil {
		challenge = t.hash.mac(t.hash.sum(t.shared), challenge) // the augmented challenge
	}
	b := binary.LittleEndian.AppendUint32(nil, t.seq)
	b = binary.LittleEndian.AppendUint16(b, t.tid)
	b = append(b, 0) // SC_C: no secure channel concatenation
	b = append(b, role...)
	b = append(b, own...)
	b = append(b, 0)
	b = append(b, other...)
	return t.hash.mac(key, challenge, b)
}
