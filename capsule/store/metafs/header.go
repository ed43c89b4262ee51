package metafs

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
)

const (
	headerSize = 64
	tagSize    = 16

	magic = "SPCMETA\x01"

	modeTable = 1
	modeLog   = 2
)

// Uses of nonces; see nonce.
const (
	useTable     = 0
	useTableLast = 1
	useLog       = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sealer seals and opens the frames of one file. It is safe for concurrent use.
type sealer struct {
	aead  cipher.AEAD
	check cipher.Block // for a log's check words
}

func newSealer(key [32]byte, salt []byte) *sealer {
	k, err := hkdf.Key(sha256.New, key[:], salt, "space metafs file 1", 64)
	if err != nil {
		panic(err) // only for absurd lengths
	}
	block, err := aes.NewCipher(k[:32])
	if err != nil {
		panic(err) // only for a wrong key length
	}
	check, err := aes.NewCipher(k[32:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for a wrong block size
	}
	return &sealer{aead, check}
}

func nonce(use byte, n uint64) *[12]byte {
	var b [12]byte
	b[0] = use
	binary.BigEndian.PutUint64(b[4:], n)
	return &b
}

// newHeader makes the header of a new file, and what seals its frames.
func newHeader(mode byte, version uint32, key [32]byte) ([]byte, *sealer) {
	h := make([]byte, headerSize)
	copy(h, magic)
	h[8] = mode
	binary.LittleEndian.PutUint32(h[12:], version)
	rand.Read(h[16:40]) // never fails (crypto/rand.Read)
	s := newSealer(key, h[16:40])
	copy(h[44:60], s.headerTag(h))
	binary.LittleEndian.PutUint32(h[60:], crc32.Checksum(h[:60], castagnoli))
	return h, s
}

func (s *sealer) headerTag(h []byte) []byte {
	n := bytes.Repeat([]byte{0xff}, s.aead.NonceSize())
	return s.aead.Seal(nil, n, nil, h[:44])
}

// header is a file's header, its checksum verified but nothing authenticated.
type header struct {
	raw        [headerSize]byte
	mode       byte
	keyVersion uint32
}

// parseHeader returns why b, of headerSize bytes, is no header, or "".
func parseHeader(b []byte) (h header, why string) {
	if string(b[:7]) != magic[:7] {
		return h, "no metadata file starts like this"
	}
	if crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]) {
		return h, "the header's checksum is wrong"
	}
	if b[7] != magic[7] {
		return h, "written by a newer version of this program"
	}
	copy(h.raw[:], b)
	h.mode = b[8]
	h.keyVersion = binary.LittleEndian.Uint32(b[12:])
	if h.mode != modeTable && h.mode != modeLog || b[9]|b[10]|b[11] != 0 || binary.LittleEndian.Uint32(b[40:]) != 0 {
		return h, "the header makes no sense"
	}
	return h, ""
}

// open authenticates the header and returns what opens the file's frames.
func (h *header) open(name string, keys Keys) (*sealer, error) {
	key, ok := keys.Key(h.keyVersion)
	if !ok {
		return nil, wrongKey(name, "is sealed with version %d of the metadata key, which was not given", h.keyVersion)
	}
	s := newSealer(key, h.raw[16:40])
	if !bytes.Equal(s.headerTag(h.raw[:]), h.raw[44:60]) {
		return nil, wrongKey(name, "is not sealed with this store's key")
	}
	return s, nil
}
