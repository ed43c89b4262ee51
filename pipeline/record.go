package pipeline

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A record is a sealed segment as it lies in a segment log:
//
//	 0  4  magic "SPSG"
//	 4  1  format: 1 one payload, 2 frames
//	 5  1  codec
//	 6  1  cipher: 0 keyed checksum alone, 1 XAES-256-GCM
//	 7  1  flags: bit 0, a denser codec is likely to gain
//	 8  4  data key version, little-endian as all numbers
//	12  4  plain length, 1 to MaxChunk
//	16  4  payload length, with the 16-byte tag
//	20 24  nonce
//	44 32  segment ID
//	76  4  CRC-32C of bytes 0 to 75, so that a scan can tell a header from noise
//	80     payload, tag last
//
// Bytes 0 to 75 are the AEAD's associated data. Format 2 is in frame.go.
const (
	HeaderSize = 80
	// MaxRecord bounds a whole record: compressing never grows a payload.
	MaxRecord = HeaderSize + MaxChunk + MaxChunk/FrameSize*frameExtra
)

// Magic starts every record.
const Magic = "SPSG"

// Record formats.
const (
	formatWhole  = 1
	formatFramed = 2
)

const flagAgain = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header is a record's self-description.
type Header struct {
	ID         SegmentID
	Codec      Codec
	Encrypted  bool
	Again      bool   // a denser codec is likely to gain
	Key        uint32 // data key version
	PlainLen   int
	PayloadLen int
	framed     bool
	nonce      [nonceSize]byte
}

// RecordLen is the length of the whole record in bytes.
func (h *Header) RecordLen() int { return HeaderSize + h.PayloadLen }

func (h *Header) put(b []byte) {
	copy(b, Magic)
	b[4], b[5], b[6], b[7] = formatWhole, byte(h.Codec), 0, 0
	if h.framed {
		b[4] = formatFramed
	}
	if h.Encrypted {
		b[6] = 1
	}
	if h.Again {
		b[7] = flagAgain
	}
	binary.LittleEndian.PutUint32(b[8:], h.Key)
	binary.LittleEndian.PutUint32(b[12:], uint32(h.PlainLen))
	binary.LittleEndian.PutUint32(b[16:], uint32(h.PayloadLen))
	copy(b[20:44], h.nonce[:])
	copy(b[44:76], h.ID[:])
	binary.LittleEndian.PutUint32(b[76:], crc32.Checksum(b[:76], castagnoli))
}

// ParseHeader reads the header at the start of b. It fails, wrapping
// [ErrCorrupt], unless every field is one that [Seal] can have written.
func ParseHeader(b []byte) (Header, error) {
	var h Header
	if len(b) < HeaderSize || string(b[:4]) != Magic {
		return h, fmt.Errorf("%w: no record header", ErrCorrupt)
	}
	if crc32.Checksum(b[:76], castagnoli) != binary.LittleEndian.Uint32(b[76:]) {
		return h, fmt.Errorf("%w: header checksum", ErrCorrupt)
	}
	h.Codec, h.Encrypted, h.Again = Codec(b[5]), b[6] == 1, b[7] == flagAgain
	h.Key = binary.LittleEndian.Uint32(b[8:])
	plain, payload := binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint32(b[16:])
	if h.Codec > S2 || b[6] > 1 || b[7] > flagAgain || plain == 0 || plain > MaxChunk {
		return h, fmt.Errorf("%w: header fields out of range", ErrCorrupt)
	}
	h.PlainLen = int(plain)
	ok := false
	switch b[4] {
	case formatWhole:
		ok = payload > tagSize && payload <= plain+tagSize
	case formatFramed:
		h.framed = true
		ok = h.framable() && int(payload) == framesLen(h.PlainLen)
	}
	if !ok {
		return h, fmt.Errorf("%w: header fields out of range", ErrCorrupt)
	}
	h.PayloadLen = int(payload)
	copy(h.nonce[:], b[20:44])
	copy(h.ID[:], b[44:76])
	return h, nil
}

// Sealing is how a [Writer] of records seals them.
type Sealing struct {
	Compression
	Encrypt bool
	Key     uint32  // the version of the data key
	Cipher  *Cipher // of that key
}

// Seal appends the record of a segment that holds plain, 1 to MaxChunk bytes,
// to dst and returns the extended slice with the record's header.
func Seal(dst []byte, z *Compressor, id SegmentID, plain []byte, s Sealing) ([]byte, Header) {
	start := len(dst)
	dst = grow(dst, HeaderSize)[:start+HeaderSize]
	h := Header{ID: id, Encrypted: s.Encrypt, Key: s.Key, PlainLen: len(plain)}
	dst, h.Codec, h.Again = z.compress(dst, plain, s.Compression)
	if h.Codec == None {
		return h.sealPlain(dst, start, plain, s.Cipher)
	}
	return h.seal(dst, start, s.Cipher)
}

// Reseal appends a record to dst that holds the payload, as Unseal returned it
// with h, under another data key.
func Reseal(dst []byte, h Header, payload []byte, key uint32, c *Cipher) ([]byte, Header) {
	start := len(dst)
	dst = grow(dst, HeaderSize+len(payload)+tagSize)[:start+HeaderSize]
	h.Key = key
	if h.Codec == None && len(payload) == h.PlainLen {
		return h.sealPlain(dst, start, payload, c)
	}
	return h.seal(append(dst, payload...), start, c)
}

// sealPlain finishes the record that begins at start of b, so far room for the
// header alone, with a payload that is not compressed.
func (h Header) sealPlain(b []byte, start int, plain []byte, c *Cipher) ([]byte, Header) {
	if h.framed = h.framable(); h.framed {
		return h.sealFrames(b, start, plain, c)
	}
	return h.seal(append(b, plain...), start, c)
}

// seal finishes the record that begins at start of b: room for the header, and
// the compressed payload.
func (h Header) seal(b []byte, start int, c *Cipher) ([]byte, Header) {
	h.PayloadLen = len(b) - start - HeaderSize + tagSize
	freshNonce(h.nonce[:])
	b = grow(b, tagSize)
	h.put(b[start : start+HeaderSize])
	ad, payload := b[start:start+76], b[start+HeaderSize:]
	if h.Encrypted {
		c.seal(h.nonce[:], payload, ad)
		return b[:len(b)+tagSize], h
	}
	tag := c.checksum(payload, ad)
	return append(b, tag[:]...), h
}

// Keys finds the cipher of a data key version.
type Keys interface {
	Cipher(version uint32) (*Cipher, bool)
}

// Unseal authenticates the record at the start of rec and returns its header
// and its payload, still compressed, which lies in rec. Errors wrap
// [ErrCorrupt]; then what was in rec is lost.
func Unseal(rec []byte, keys Keys) (Header, []byte, error) {
	h, c, err := whole(rec, keys)
	if err != nil {
		return h, nil, err
	}
	ad, payload := rec[:76], rec[HeaderSize:h.RecordLen()]
	if h.framed {
		payload, err = h.unsealFrames(payload, c)
		return h, payload, err
	}
	if h.Encrypted {
		payload, err = c.open(payload[:0], h.nonce[:], payload, ad)
		return h, payload, err
	}
	n := len(payload) - tagSize
	if c.checksum(payload[:n], ad) != [tagSize]byte(payload[n:]) {
		return h, nil, fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	return h, payload[:n], nil
}

// whole returns the header of the record at the start of rec, all of which is
// there, and the cipher that it names.
func whole(rec []byte, keys Keys) (Header, *Cipher, error) {
	h, err := ParseHeader(rec)
	if err != nil {
		return h, nil, err
	}
	if len(rec) < h.RecordLen() {
		return h, nil, fmt.Errorf("%w: %d of %d bytes", ErrCorrupt, len(rec), h.RecordLen())
	}
	c, ok := keys.Cipher(h.Key)
	if !ok {
		return h, nil, errNoKey(h.Key)
	}
	return h, c, nil
}

func errNoKey(version uint32) error {
	return fmt.Errorf("%w: sealed under data key %d, which this store does not have", ErrCorrupt, version)
}

// Open verifies the record at the start of rec, which it overwrites, and
// appends its plain bytes to dst. Errors wrap [ErrCorrupt]: nothing is
// returned that was not sealed under one of the keys.
func Open(dst, rec []byte, keys Keys) ([]byte, Header, error) {
	h, c, err := whole(rec, keys)
	if err == nil && h.framed {
		dst, err = h.openFrames(grow(dst, h.PlainLen), rec[HeaderSize:h.RecordLen()], c)
		return dst, h, err
	}
	if err == nil && h.Encrypted && h.Codec == None && h.PayloadLen == h.PlainLen+tagSize {
		// Nothing to decompress: decrypt to where it belongs.
		dst, err = c.open(grow(dst, h.PlainLen), h.nonce[:], rec[HeaderSize:h.RecordLen()], rec[:76])
		return dst, h, err
	}
	var payload []byte
	if err == nil {
		h, payload, err = Unseal(rec, keys)
	}
	if err != nil {
		return nil, h, err
	}
	dst, err = Decompress(dst, payload, h.Codec, h.PlainLen)
	return dst, h, err
}
