package pipeline

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/iotest"
)

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// text is compressible and does not repeat.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var b []byte
	for len(b) < n {
		b = append(b, "func get put if err != nil { return } range struct "[r.IntN(40):][:1+r.IntN(10)]...)
	}
	return b[:n]
}

type oneKey map[uint32]*Cipher

func (k oneKey) Cipher(v uint32) (*Cipher, bool) { c, ok := k[v]; return c, ok }

// The test vectors of C2SP's XAES-256-GCM, section "Test Vectors".
func TestXAESVectors(t *testing.T) {
	for _, v := range []struct {
		key byte
		ad  string
		out string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		c := NewCipher([32]byte(bytes.Repeat([]byte{v.key}, 32)))
		p := append(make([]byte, 0, 64), "XAES-256-GCM"...)
		got := c.seal([]byte("ABCDEFGHIJKLMNOPQRSTUVWX"), p, []byte(v.ad))
		if hex.EncodeToString(got) != v.out {
			t.Errorf("key %d: got %x, want %s", v.key, got, v.out)
		}
	}
}

var compressions = map[string]Compression{
	"auto": Auto, "none": {}, "lz4": {Codec: LZ4}, "s2": {Codec: S2}, "zstd": {Codec: Zstd}, "zstd1": {Codec: Zstd, Level: 1},
	"zstd19": {Codec: Zstd, Level: 19}, "dense": Dense,
}

func TestRecordsRoundTrip(t *testing.T) {
	keys := oneKey{7: NewCipher([32]byte{1})}
	var z Compressor
	for name, c := range compressions {
		for _, encrypt := range []bool{true, false} {
			for _, n := range []int{1, 2, 100, 4096, AvgChunk, MaxChunk} {
				for kind, plain := range map[string][]byte{"text": text(1, n), "random": randomBytes(1, n), "zero": make([]byte, n)} {
					id := NewHasher([32]byte{2}).Sum(plain)
					rec, h := Seal([]byte("before"), &z, id, plain, Sealing{Compression: c, Encrypt: encrypt, Key: 7, Cipher: keys[7]})
					rec = rec[len("before"):]
					if len(rec) != h.RecordLen() || len(rec) > MaxRecord {
						t.Fatalf("%s %s %d: record of %d bytes, header says %d, limit %d", name, kind, n, len(rec), h.RecordLen(), MaxRecord)
					}
					if kind == "text" && n >= 4096 && name != "none" && len(rec) > 2*n/3 {
						t.Errorf("%s: %d bytes of text became %d", name, n, len(rec))
					}
					if encrypt && n >= 100 && bytes.Contains(rec, plain[:16]) {
						t.Errorf("%s %s %d: plaintext in an encrypted record", name, kind, n)
					}
					got, gh, err := Open([]byte("x"), rec, keys)
					if err != nil || !bytes.Equal(got[1:], plain) || gh.ID != id || gh.Encrypted != encrypt {
						t.Fatalf("%s %s %d encrypt=%v: %v", name, kind, n, encrypt, err)
					}
				}
			}
		}
	}
}

// Every flipped bit of a record is noticed, in whichever mode it was sealed.
func TestFlippedBits(t *testing.T) {
	keys := oneKey{1: NewCipher([32]byte{1}), 0: NewCipher([32]byte{9}), 3: NewCipher([32]byte{9})}
	var z Compressor
	plain := text(3, 300)
	for _, encrypt := range []bool{true, false} {
		rec, _ := Seal(nil, &z, SegmentID{1}, plain, Sealing{Compression: Auto, Encrypt: encrypt, Key: 1, Cipher: keys[1]})
		for bit := range 8 * len(rec) {
			bad := bytes.Clone(rec)
			bad[bit/8] ^= 1 << (bit % 8)
			if got, _, err := Open(nil, bad, keys); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of %d flipped (encrypt=%v): got %d bytes, error %v", bit, 8*len(rec), encrypt, len(got), err)
			}
		}
	}
}

// A record moved under another ID, codec or key version does not open, even
// with its header checksum made right.
func TestHeaderIsAuthenticated(t *testing.T) {
	keys := oneKey{1: NewCipher([32]byte{1}), 2: NewCipher([32]byte{1})}
	var z Compressor
	rec, h := Seal(nil, &z, SegmentID{1}, text(3, 3000), Sealing{Compression: Auto, Encrypt: true, Key: 1, Cipher: keys[1]})
	for name, change := range map[string]func(*Header){
		"id": func(h *Header) { h.ID[5]++ }, "key": func(h *Header) { h.Key = 2 }, "codec": func(h *Header) { h.Codec = LZ4 },
		"cipher": func(h *Header) { h.Encrypted = false }, "length": func(h *Header) { h.PlainLen-- }, "again": func(h *Header) { h.Again = false },
	} {
		bad, g := bytes.Clone(rec), h
		change(&g)
		g.put(bad[:HeaderSize])
		if _, _, err := Open(nil, bad, keys); !errors.Is(err, ErrCorrupt) {
			t.Errorf("changed %s: error %v", name, err)
		}
	}
}

func split(t *testing.T, r io.Reader, key [32]byte) (cuts []int, sum []byte) {
	t.Helper()
	s := NewSplitter(r, NewChunker(key))
	var b Block
	for {
		err := s.Next(&b)
		if err == io.EOF {
			return cuts, sum
		}
		if err != nil {
			t.Fatal(err)
		}
		b.Chunks(func(p []byte) {
			sum = append(sum, p...)
			cuts = append(cuts, len(sum))
			if len(p) > MaxChunk {
				t.Fatalf("chunk of %d bytes", len(p))
			}
		})
	}
}

// Cuts depend on content and key alone, not on the sizes of reads.
func TestCutsDependOnContentAlone(t *testing.T) {
	for _, n := range []int{0, 1, MinChunk, MinChunk + 1, MaxChunk, BlockSize, BlockSize + 1, 3*BlockSize + 12345} {
		data := randomBytes(uint64(n), n)
		want, got := split(t, bytes.NewReader(data), [32]byte{1})
		if !bytes.Equal(got, data) {
			t.Fatalf("%d bytes: the chunks are not the input", n)
		}
		for name, r := range map[string]io.Reader{
			"halves": iotest.HalfReader(bytes.NewReader(data)), "data with EOF": iotest.DataErrReader(bytes.NewReader(data)),
		} {
			if cuts, _ := split(t, r, [32]byte{1}); !equal(cuts, want) {
				t.Errorf("%d bytes: cuts differ when read by %s", n, name)
			}
		}
		if n > BlockSize {
			if cuts, _ := split(t, bytes.NewReader(data), [32]byte{2}); equal(cuts, want) {
				t.Errorf("%d bytes: another key gives the same cuts", n)
			}
		}
	}
}

func equal(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// Hashing two windows side by side finds the cut points that hashing byte by
// byte finds, wherever they are and however many there are.
func TestScanFindsTheFirstCutPoint(t *testing.T) {
	c := NewChunker([32]byte{3})
	rng := rand.New(rand.NewPCG(3, 3))
	data := randomBytes(7, 16*window)
	copy(data[3*window:], make([]byte, 5*window)) // where the hash stays the same
	for _, bits := range []int{0, 4, 9, 11, 14, 18, 30} {
		mask := (uint64(1)<<bits - 1) << (63 - bits)
		for range 300 {
			end := rng.IntN(len(data) + 1)
			start, hash := rng.IntN(end+1), rng.Uint64()
			at, h, found := c.scan(data[:end], start, hash, mask)
			wantAt, wantHash, wantFound := c.roll(data[:end], start, hash, mask)
			if at != wantAt || found != wantFound || !found && h != wantHash {
				t.Fatalf("mask of %d bits, bytes %d to %d: %d %v, want %d %v", bits, start, end, at, found, wantAt, wantFound)
			}
		}
	}
}

// After an insertion nearly all chunks are found again.
func TestInsertionKeepsChunks(t *testing.T) {
	data := randomBytes(5, 16<<20)
	edited := append(append(bytes.Clone(data[:3<<20]), "a few more bytes"...), data[3<<20:]...)
	h := NewHasher([32]byte{})
	ids := func(data []byte) map[SegmentID]int {
		m := map[SegmentID]int{}
		cuts, _ := split(t, bytes.NewReader(data), [32]byte{1})
		at := 0
		for _, c := range cuts {
			m[h.Sum(data[at:c])] += c - at
			at = c
		}
		return m
	}
	old := ids(data)
	fresh := 0
	for id, n := range ids(edited) {
		if old[id] == 0 {
			fresh += n
		}
	}
	if fresh > 4*MaxChunk {
		t.Errorf("an insertion of 16 bytes makes %d of %d bytes new", fresh, len(data))
	}
}

func TestReaderErrorsPassThrough(t *testing.T) {
	s := NewSplitter(iotest.TimeoutReader(bytes.NewReader(make([]byte, 4<<20))), NewChunker([32]byte{}))
	var b Block
	if err := s.Next(&b); err != iotest.ErrTimeout {
		t.Errorf("got %v, want the reader's own error", err)
	}
}

func TestDomainsDoNotShareIDs(t *testing.T) {
	p := text(1, 1000)
	a := NewHasher(DomainKey([32]byte{1}, "a")).Sum(p)
	b := NewHasher(DomainKey([32]byte{1}, "b")).Sum(p)
	c := NewHasher(DomainKey([32]byte{2}, "a")).Sum(p)
	if a == b || a == c || b == c {
		t.Error("equal IDs in different domains or stores")
	}
}

func TestOrderedKeepsOrderAndBounds(t *testing.T) {
	const items, window = 500, 6
	var alive, most atomic.Int64
	next, want := 0, 0
	err := Ordered(t.Context(), 3, window,
		func() (int, bool, error) {
			next++
			if n := alive.Add(1); n > most.Load() {
				most.Store(n)
			}
			return next - 1, next <= items, nil
		},
		func(_, item int) error { return nil },
		func(item int) error {
			if item != want {
				t.Fatalf("got item %d, want %d", item, want)
			}
			want++
			alive.Add(-1)
			return nil
		}, func(int) {})
	if err != nil || want != items {
		t.Fatalf("%d items, error %v", want, err)
	}
	if most.Load() > window+1 { // one is being produced
		t.Errorf("%d items at once, the window is %d", most.Load(), window)
	}
}

// Whatever stage fails, its error comes out and every item is consumed or dropped.
func TestOrderedErrors(t *testing.T) {
	boom := errors.New("boom")
	for stage := range 3 {
		var made, gone int
		err := Ordered(t.Context(), 2, 4,
			func() (int, bool, error) {
				if stage == 0 && made == 20 {
					return 0, false, boom
				}
				made++
				return made, true, nil
			},
			func(_, item int) error {
				if stage == 1 && item == 20 {
					return boom
				}
				return nil
			},
			func(item int) error {
				gone++
				if stage == 2 && item == 20 {
					return boom
				}
				return nil
			}, func(int) { gone++ })
		if err != boom || made != gone {
			t.Errorf("stage %d: error %v, %d items made, %d consumed or dropped", stage, err, made, gone)
		}
	}
}

func FuzzOpen(f *testing.F) {
	keys := oneKey{1: NewCipher([32]byte{1})}
	var z Compressor
	for _, c := range compressions {
		for _, encrypt := range []bool{true, false} {
			rec, _ := Seal(nil, &z, SegmentID{1}, text(1, 500), Sealing{Compression: c, Encrypt: encrypt, Key: 1, Cipher: keys[1]})
			f.Add(rec)
		}
	}
	_, rec, _ := framed(f, keys, FrameSize+100)
	f.Add(rec)
	f.Fuzz(func(t *testing.T, rec []byte) {
		p, h, err := Open(nil, bytes.Clone(rec), keys)
		if err == nil && (len(p) != h.PlainLen || len(p) > MaxChunk) {
			t.Fatalf("%d bytes for a segment of %d", len(p), h.PlainLen)
		}
	})
}

// FuzzDecompress feeds the codecs directly, past the authentication.
func FuzzDecompress(f *testing.F) {
	var z Compressor
	for _, c := range compressions {
		out, used, _ := z.Compress(nil, text(2, 2000), c)
		f.Add(out, byte(used), 2000)
	}
	f.Fuzz(func(t *testing.T, src []byte, codec byte, n int) {
		if n < 0 || n > MaxChunk {
			return
		}
		p, err := Decompress(nil, src, Codec(codec), n)
		if err == nil && len(p) != n {
			t.Fatalf("%d bytes where %d were asked for", len(p), n)
		}
	})
}

func BenchmarkChunk(b *testing.B) {
	c := NewChunker([32]byte{1})
	data := randomBytes(1, 8<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		for p := data; len(p) > 0; {
			p = p[c.Next(p):]
		}
	}
}

func BenchmarkHash(b *testing.B) {
	h := NewHasher([32]byte{1})
	data := randomBytes(1, AvgChunk)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		h.Sum(data)
	}
}

func BenchmarkSealOpen(b *testing.B) {
	keys := oneKey{1: NewCipher([32]byte{1})}
	for _, name := range []string{"none", "auto", "lz4", "zstd1", "zstd", "dense"} {
		for kind, plain := range map[string][]byte{"text": text(1, AvgChunk), "random": randomBytes(1, AvgChunk)} {
			s := Sealing{Compression: compressions[name], Encrypt: true, Key: 1, Cipher: keys[1]}
			var z Compressor
			var rec []byte
			b.Run("seal/"+name+"/"+kind, func(b *testing.B) {
				b.SetBytes(int64(len(plain)))
				b.ReportAllocs()
				for b.Loop() {
					rec, _ = Seal(rec[:0], &z, SegmentID{1}, plain, s)
				}
			})
			if rec == nil {
				rec, _ = Seal(nil, &z, SegmentID{1}, plain, s)
			}
			buf, out := make([]byte, len(rec)), make([]byte, 0, len(plain))
			b.Run("open/"+name+"/"+kind, func(b *testing.B) {
				b.SetBytes(int64(len(plain)))
				b.ReportAllocs()
				for b.Loop() {
					copy(buf, rec)
					var err error
					if out, _, err = Open(out[:0], buf, keys); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
