package pipeline

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
)

// A record of format 2 holds a segment that does not compress as frames, so
// that a few of its bytes can be read without the rest. Its header is that of
// format 1, with codec none and cipher 1; its payload is a frame for each
// FrameSize bytes of the plaintext, the last one shorter if need be:
//
//	 0 24  the header's nonce
//	24     ciphertext, as long as the frame's plaintext
//	     16  tag
//
// All frames have one subkey, of the nonce's first half; in its second half,
// frame number i is xored into the last four bytes, big-endian. The associated
// data are the header's first 76 bytes and i, little-endian, in four: so no
// frame passes for another, and what a header says can be had from elsewhere
// (the segment's row) and needs no read of its own.
const (
	FrameSize  = 4 << 10
	frameExtra = nonceSize + tagSize
)

// framable reports whether a segment is sealed in frames: what is compressed
// can only be read as a whole, and the checksum of what is not encrypted is too.
func (h *Header) framable() bool { return h.Codec == None && h.Encrypted && h.PlainLen > FrameSize }

// framesLen is the length of the frames of n plain bytes.
func framesLen(n int) int { return n + (n+FrameSize-1)/FrameSize*frameExtra }

// FramedLen is the length of the record of a segment of n bytes that is sealed
// in frames, which no other record of such a segment has.
func FramedLen(n int) int { return HeaderSize + framesLen(n) }

// framer seals and opens the frames of one record.
type framer struct {
	aead  cipher.AEAD
	ad    [HeaderSize]byte // the header, and the frame's number where its checksum would be
	nonce [nonceSize]byte
}

func (h *Header) framer(c *Cipher) *framer {
	f := &framer{aead: c.aead(h.nonce[:]), nonce: h.nonce}
	h.put(f.ad[:])
	return f
}

// number makes f ready for frame i and returns its nonce and associated data.
func (f *framer) number(h *Header, i int) (nonce, ad []byte) {
	binary.LittleEndian.PutUint32(f.ad[76:], uint32(i))
	at := f.nonce[nonceSize-4:]
	binary.BigEndian.PutUint32(at, binary.BigEndian.Uint32(h.nonce[nonceSize-4:])^uint32(i))
	return f.nonce[12:], f.ad[:]
}

// open appends the plaintext of frame i to dst, which has room for it elsewhere
// or is sealed[nonceSize:nonceSize].
func (f *framer) open(dst []byte, h *Header, i int, sealed []byte) ([]byte, error) {
	nonce, ad := f.number(h, i)
	if [nonceSize]byte(sealed) != h.nonce {
		return nil, fmt.Errorf("%w: frame %d has another record's nonce", ErrCorrupt, i)
	}
	p, err := f.aead.Open(dst, nonce, sealed[nonceSize:], ad)
	if err != nil {
		return nil, fmt.Errorf("%w: authentication of frame %d failed", ErrCorrupt, i)
	}
	return p, nil
}

// sealFrames finishes the record that begins at start of b, so far room for the
// header alone.
func (h Header) sealFrames(b []byte, start int, plain []byte, c *Cipher) ([]byte, Header) {
	h.PayloadLen = framesLen(len(plain))
	freshNonce(h.nonce[:])
	b = grow(b, h.PayloadLen)
	h.put(b[start : start+HeaderSize])
	f := h.framer(c)
	for i := 0; len(plain) > 0; i++ {
		n := min(len(plain), FrameSize)
		b = append(b, h.nonce[:]...)
		nonce, ad := f.number(&h, i)
		b = f.aead.Seal(b, nonce, plain[:n], ad)
		plain = plain[n:]
	}
	return b, h
}

// openFrames appends the plaintext of all frames to dst, which has room for it.
func (h *Header) openFrames(dst, payload []byte, c *Cipher) (_ []byte, err error) {
	f := h.framer(c)
	for i := 0; len(payload) > 0 && err == nil; i++ {
		n := min(len(payload), FrameSize+frameExtra)
		dst, err = f.open(dst, h, i, payload[:n])
		payload = payload[n:]
	}
	return dst, err
}

// unsealFrames is openFrames in place.
func (h *Header) unsealFrames(payload []byte, c *Cipher) ([]byte, error) {
	f, plain := h.framer(c), payload[:0]
	for i := 0; len(payload) > 0; i++ {
		n := min(len(payload), FrameSize+frameExtra)
		p, err := f.open(payload[nonceSize:nonceSize], h, i, payload[:n])
		if err != nil {
			return nil, err
		}
		plain = append(plain, p...)
		payload = payload[n:]
	}
	return plain, nil
}

// Frames returns where in the framed record of a segment of plainLen bytes the
// frames lie that hold the n bytes, at least one, from off on.
func Frames(plainLen, off, n int) (from, to int) {
	first, last := off/FrameSize, (off+n-1)/FrameSize
	to = HeaderSize + (last+1)*(FrameSize+frameExtra)
	return HeaderSize + first*(FrameSize+frameExtra), min(to, FramedLen(plainLen))
}

// OpenFrames fills p with the bytes from off on of a segment, of which frames
// has the part of its record that [Frames] names; it is overwritten. Of h, which
// says what the record's header says, ID, Again, Key and PlainLen count. Errors
// wrap [ErrCorrupt].
func OpenFrames(p, frames []byte, h Header, off int, keys Keys) error {
	if len(p) == 0 || off < 0 || off > h.PlainLen-len(p) {
		return fmt.Errorf("%w: %d bytes at %d of %d", ErrCorrupt, len(p), off, h.PlainLen)
	}
	if from, to := Frames(h.PlainLen, off, len(p)); len(frames) != to-from {
		return fmt.Errorf("%w: %d of %d bytes of frames", ErrCorrupt, len(frames), to-from)
	}
	c, ok := keys.Cipher(h.Key)
	if !ok {
		return errNoKey(h.Key)
	}
	h.Codec, h.Encrypted, h.framed, h.PayloadLen = None, true, true, framesLen(h.PlainLen)
	h.nonce = [nonceSize]byte(frames)
	f := h.framer(c)
	for i := off / FrameSize; len(frames) > 0; i++ {
		n := min(len(frames), FrameSize+frameExtra)
		begin := max(off-i*FrameSize, 0)
		if plain := n - frameExtra; begin == 0 && plain <= len(p) {
			// Wanted whole: decrypted where it belongs.
			if _, err := f.open(p[:0:plain], &h, i, frames[:n]); err != nil {
				return err
			}
			p = p[plain:]
		} else {
			q, err := f.open(frames[nonceSize:nonceSize], &h, i, frames[:n])
			if err != nil {
				return err
			}
			p = p[copy(p, q[begin:]):]
		}
		frames = frames[n:]
	}
	return nil
}
