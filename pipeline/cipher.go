package pipeline

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"fmt"

	"github.com/zeebo/blake3"
)

const (
	nonceSize = 24
	tagSize   = 16
)

// Cipher seals and opens under one data key. It is XAES-256-GCM (C2SP,
// "XAES-256-GCM"): each message's 192-bit random nonce derives a subkey for
// AES-256-GCM, so one data key is good for 2^80 messages and sealed segments
// may be copied between logs as they are.
type Cipher struct {
	block cipher.Block
	k1    [aes.BlockSize]byte // the CMAC subkey K1, NIST SP 800-38B
	mac   [32]byte            // keys the checksum of unencrypted segments
}

// NewCipher returns the cipher of a 256-bit data key.
func NewCipher(key [32]byte) *Cipher {
	b, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // only for a key of the wrong length
	}
	c := &Cipher{block: b}
	b.Encrypt(c.k1[:], c.k1[:])
	var msb byte
	for i := len(c.k1) - 1; i >= 0; i-- {
		msb, c.k1[i] = c.k1[i]>>7, c.k1[i]<<1|msb
	}
	c.k1[len(c.k1)-1] ^= msb * 0b10000111
	blake3.DeriveKey("github.com/spacestore/space 2026 checksum of unencrypted segments", key[:], c.mac[:])
	return c
}

// aead returns AES-256-GCM under the subkey that the nonce's first half derives.
func (c *Cipher) aead(nonce []byte) cipher.AEAD {
	var kx [32]byte
	for i := range 2 {
		m := [aes.BlockSize]byte{0, byte(i + 1), 'X', 0}
		copy(m[4:], nonce[:12])
		subtle.XORBytes(m[:], m[:], c.k1[:])
		c.block.Encrypt(kx[16*i:], m[:])
	}
	b, err := aes.NewCipher(kx[:])
	if err != nil {
		panic(err) // only for a key of the wrong length
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic(err) // only for a block size other than AES's
	}
	return g
}

// seal encrypts p in place (p's capacity must leave room for the tag) and
// returns it with the tag. nonce must be fresh.
func (c *Cipher) seal(nonce, p, ad []byte) []byte {
	return c.aead(nonce).Seal(p[:0], nonce[12:], p, ad)
}

// open appends the plaintext of p to dst, which has room for it elsewhere or is
// p[:0].
func (c *Cipher) open(dst, nonce, p, ad []byte) ([]byte, error) {
	q, err := c.aead(nonce).Open(dst, nonce[12:], p, ad)
	if err != nil {
		return nil, fmt.Errorf("%w: authentication failed", ErrCorrupt)
	}
	return q, nil
}

// checksum is the tag of an unencrypted segment: 128 bits of keyed BLAKE3.
func (c *Cipher) checksum(p, ad []byte) (tag [tagSize]byte) {
	h, err := blake3.NewKeyed(c.mac[:])
	if err != nil {
		panic(err) // only for a key that is not 32 bytes long
	}
	h.Write(ad)
	h.Write(p)
	var sum [32]byte
	h.Sum(sum[:0])
	copy(tag[:], sum[:])
	return tag
}

func freshNonce(nonce []byte) { rand.Read(nonce) } // never fails (crypto/rand.Read)
