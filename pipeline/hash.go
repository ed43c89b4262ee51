package pipeline

import (
	"encoding/hex"

	"github.com/zeebo/blake3"
)

// SegmentID names a segment by what it holds: the BLAKE3-256 of its plaintext
// under the key of its dedup domain. Without that key it can neither be
// computed nor confirmed from the plaintext.
type SegmentID [32]byte

// String returns the first 16 hex digits, enough to tell segments apart in a log.
func (id SegmentID) String() string { return hex.EncodeToString(id[:8]) }

// DomainKey derives the hash key of a dedup domain from the store's hash key.
// Segments of different domains never share an ID.
func DomainKey(hashKey [32]byte, domain string) (key [32]byte) {
	h, err := blake3.NewKeyed(hashKey[:])
	if err != nil {
		panic(err) // only for a key that is not 32 bytes long
	}
	h.WriteString("space dedup domain\x00")
	h.WriteString(domain)
	h.Sum(key[:0])
	return key
}

// Hasher computes segment IDs of one domain.
type Hasher struct{ h *blake3.Hasher }

// NewHasher returns a hasher for the domain that key belongs to.
func NewHasher(key [32]byte) *Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // only for a key that is not 32 bytes long
	}
	return &Hasher{h}
}

// Sum returns the ID of a segment that holds p.
func (h *Hasher) Sum(p []byte) (id SegmentID) {
	h.h.Reset()
	h.h.Write(p)
	h.h.Sum(id[:0])
	return id
}

var zeros [4096]byte

// IsZero reports whether p holds zero bytes alone. Such runs are stored as
// holes, so that a sparse file does not become references to one hot segment.
func IsZero(p []byte) bool {
	for len(p) > len(zeros) {
		if string(p[:len(zeros)]) != string(zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return string(p) == string(zeros[:len(p)])
}
