package pipeline

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// framed returns the record of a segment of n bytes that do not compress.
func framed(t testing.TB, keys oneKey, n int) (plain, rec []byte, h Header) {
	t.Helper()
	var z Compressor
	plain = randomBytes(uint64(n), n)
	id := NewHasher([32]byte{2}).Sum(plain)
	rec, h = Seal(nil, &z, id, plain, Sealing{Compression: Auto, Encrypt: true, Key: 1, Cipher: keys[1]})
	if n > FrameSize && (rec[4] != formatFramed || len(rec) != FramedLen(n)) {
		t.Fatalf("%d bytes: a record of format %d and %d bytes, want frames of %d", n, rec[4], len(rec), FramedLen(n))
	}
	return plain, rec, h
}

// openPart reads a range of a segment from the part of its record that has it.
func openPart(rec []byte, h Header, off, n int, keys Keys) ([]byte, error) {
	from, to := Frames(h.PlainLen, off, n)
	p := make([]byte, n)
	err := OpenFrames(p, bytes.Clone(rec[from:to]), Header{ID: h.ID, Again: h.Again, Key: h.Key, PlainLen: h.PlainLen}, off, keys)
	return p, err
}

// Every range of a segment, read by its frames alone, is what it is in the whole.
func TestFramesGiveEveryRange(t *testing.T) {
	keys := oneKey{1: NewCipher([32]byte{1})}
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{FrameSize + 1, 2*FrameSize - 1, 2 * FrameSize, 2*FrameSize + 1, AvgChunk, AvgChunk + 5, MaxChunk} {
		plain, rec, h := framed(t, keys, size)
		whole, _, err := Open(nil, bytes.Clone(rec), keys)
		if err != nil || !bytes.Equal(whole, plain) {
			t.Fatalf("%d bytes as a whole: %v", size, err)
		}
		ranges := [][2]int{{0, 1}, {0, size}, {size - 1, 1}, {FrameSize - 1, 2}, {FrameSize, size - FrameSize}, {1, size - 2}}
		for range 50 {
			off := r.IntN(size)
			ranges = append(ranges, [2]int{off, 1 + r.IntN(size-off)}, [2]int{off, 1 + r.IntN(min(size-off, 2*FrameSize))})
		}
		for _, x := range ranges {
			got, err := openPart(rec, h, x[0], x[1], keys)
			if err != nil || !bytes.Equal(got, plain[x[0]:x[0]+x[1]]) {
				t.Fatalf("%d bytes from %d on of %d: %v", x[1], x[0], size, err)
			}
		}
	}
}

// A changed byte anywhere in a record is noticed by whoever reads it as a whole,
// and by whoever reads the frame that it is in; the other frames stay readable.
func TestDamagedFrames(t *testing.T) {
	keys := oneKey{1: NewCipher([32]byte{1}), 0: NewCipher([32]byte{9}), 3: NewCipher([32]byte{9})}
	plain, rec, h := framed(t, keys, 2*FrameSize+300)
	for at := range rec {
		bad := bytes.Clone(rec)
		bad[at] ^= 1 << (at % 8)
		if got, _, err := Open(nil, bytes.Clone(bad), keys); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d of %d changed: got %d bytes, error %v", at, len(rec), len(got), err)
		}
		if _, got, err := Unseal(bytes.Clone(bad), keys); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d of %d changed: unsealed to %d bytes, error %v", at, len(rec), len(got), err)
		}
		for off := 0; off < len(plain); off += FrameSize {
			n := min(FrameSize, len(plain)-off)
			from, to := Frames(len(plain), off, n)
			got, err := openPart(bad, h, off, n, keys)
			if hit := at >= from && at < to; hit && !errors.Is(err, ErrCorrupt) || !hit && (err != nil || !bytes.Equal(got, plain[off:off+n])) {
				t.Fatalf("byte %d of %d changed: %d bytes from %d on: %v", at, len(rec), n, off, err)
			}
		}
	}
}

// Frames open nowhere but in their place: not in another's, not in another
// segment, not in a record that is shorter, and not beside another sealing's.
func TestFramesAreBound(t *testing.T) {
	keys := oneKey{1: NewCipher([32]byte{1}), 2: NewCipher([32]byte{1})}
	const n = 4 * FrameSize
	_, rec, h := framed(t, keys, n)
	_, again, _ := framed(t, keys, n)
	const step = FrameSize + frameExtra
	frame := func(rec []byte, i int) []byte { return rec[HeaderSize+i*step : HeaderSize+(i+1)*step] }
	for name, change := range map[string]func(rec []byte, h *Header) []byte{
		"swapped": func(rec []byte, _ *Header) []byte {
			first := bytes.Clone(frame(rec, 0))
			copy(frame(rec, 0), frame(rec, 1))
			copy(frame(rec, 1), first)
			return rec
		},
		"repeated": func(rec []byte, _ *Header) []byte { copy(frame(rec, 1), frame(rec, 0)); return rec },
		"of another sealing": func(rec []byte, _ *Header) []byte {
			copy(frame(rec, 1), frame(again, 1))
			return rec
		},
		"cut": func(rec []byte, h *Header) []byte {
			h.PlainLen, h.PayloadLen = n-FrameSize, framesLen(n-FrameSize)
			return rec[:HeaderSize+h.PayloadLen]
		},
		"id":    func(rec []byte, h *Header) []byte { h.ID[5]++; return rec },
		"key":   func(rec []byte, h *Header) []byte { h.Key = 2; return rec },
		"again": func(rec []byte, h *Header) []byte { h.Again = !h.Again; return rec },
		"nonce": func(rec []byte, h *Header) []byte {
			h.nonce[nonceSize-1] ^= 1 // which makes frame 0 of frame 1, but for the rest
			for i := range n / FrameSize {
				copy(frame(rec, i), h.nonce[:])
			}
			return rec
		},
	} {
		g := h
		bad := change(bytes.Clone(rec), &g)
		g.put(bad[:HeaderSize])
		if _, _, err := Open(nil, bytes.Clone(bad), keys); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v", name, err)
		}
		if name == "of another sealing" {
			continue // by itself it is as good as this one's
		}
		if _, err := openPart(bad, g, FrameSize, FrameSize, keys); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: one frame opens: error %v", name, err)
		}
	}
	for _, x := range [][3]int{{0, 0, 0}, {-1, 10, 0}, {n - 1, 2, 0}, {0, 10, 1}, {0, 10, -1}, {FrameSize, FrameSize, -step}} {
		off, size, more := x[0], x[1], x[2]
		from, to := HeaderSize, HeaderSize+step
		if off >= 0 && size > 0 {
			from, to = Frames(n, off, size)
		}
		part := bytes.Clone(rec[from:max(from, min(to+more, len(rec)))])
		if err := OpenFrames(make([]byte, size), part, h, off, keys); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes at %d from %d bytes: error %v", size, off, len(part), err)
		}
	}
}

// What does not compress and was sealed as format 1 opens as it always did, and
// has frames once it is sealed anew; what is small, compressed or not encrypted has none.
func TestBothFormats(t *testing.T) {
	keys := oneKey{1: NewCipher([32]byte{1}), 2: NewCipher([32]byte{2})}
	plain := randomBytes(3, AvgChunk)
	id := NewHasher([32]byte{2}).Sum(plain)
	old, h := Header{ID: id, Encrypted: true, Key: 1, PlainLen: len(plain)}.seal(append(make([]byte, HeaderSize), plain...), 0, keys[1])
	if old[4] != formatWhole || len(old) != HeaderSize+len(plain)+tagSize {
		t.Fatalf("format %d, %d bytes", old[4], len(old))
	}
	if got, _, err := Open(nil, bytes.Clone(old), keys); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("format 1: %v", err)
	}
	_, payload, err := Unseal(bytes.Clone(old), keys)
	if err != nil {
		t.Fatal(err)
	}
	rec, h := Reseal([]byte("x"), h, payload, 2, keys[2])
	if rec = rec[1:]; rec[4] != formatFramed || len(rec) != h.RecordLen() {
		t.Fatalf("sealed anew as format %d, %d bytes", rec[4], len(rec))
	}
	for range 2 { // framed, and framed sealed anew
		if got, gh, err := Open(nil, bytes.Clone(rec), keys); err != nil || !bytes.Equal(got, plain) || gh.ID != id || gh.Key != 2 {
			t.Fatalf("format 2: %v", err)
		}
		if _, payload, err = Unseal(bytes.Clone(rec), keys); err != nil || !bytes.Equal(payload, plain) {
			t.Fatalf("format 2 unsealed: %v", err)
		}
		rec, h = Reseal(nil, h, payload, 2, keys[2])
	}
	var z Compressor
	for name, rec := range map[string][]byte{
		"small":         first(Seal(nil, &z, id, plain[:FrameSize], Sealing{Compression: Auto, Encrypt: true, Key: 1, Cipher: keys[1]})),
		"compressed":    first(Seal(nil, &z, id, text(1, AvgChunk), Sealing{Compression: Auto, Encrypt: true, Key: 1, Cipher: keys[1]})),
		"not encrypted": first(Seal(nil, &z, id, plain, Sealing{Compression: Auto, Key: 1, Cipher: keys[1]})),
	} {
		if rec[4] != formatWhole {
			t.Errorf("%s: format %d", name, rec[4])
		}
	}
}

func first(rec []byte, _ Header) []byte { return rec }

func FuzzOpenFrames(f *testing.F) {
	keys := oneKey{1: NewCipher([32]byte{1})}
	plain, rec, h := framed(f, keys, 2*FrameSize+100)
	for _, x := range [][2]int{{0, 1}, {FrameSize, FrameSize}, {100, 2 * FrameSize}, {2 * FrameSize, 100}} {
		from, to := Frames(len(plain), x[0], x[1])
		f.Add(rec[from:to], x[0], x[1], len(plain))
	}
	f.Fuzz(func(t *testing.T, frames []byte, off, n, plainLen int) {
		if n < 0 || n > MaxChunk || plainLen < 0 || plainLen > MaxChunk {
			return
		}
		p := make([]byte, n)
		err := OpenFrames(p, bytes.Clone(frames), Header{ID: h.ID, Again: h.Again, Key: 1, PlainLen: plainLen}, off, keys)
		if err == nil && !bytes.Equal(p, plain[off:off+n]) {
			t.Fatalf("%d bytes from %d on are not what was sealed", n, off)
		}
	})
}
