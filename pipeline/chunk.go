package pipeline

import (
	"encoding/binary"

	"github.com/zeebo/blake3"
)

// Sizes of chunks in bytes. Measured in docs/segments.md: below 64 KiB the
// codecs lose ratio quickly, above it a random read pays for bytes nobody
// asked for.
const (
	MinChunk = 32 << 10
	AvgChunk = 64 << 10
	MaxChunk = 256 << 10
)

// Cut points are where all bits of a mask are zero in the rolling hash: more
// bits before a chunk has its usual size than after, so that sizes stay close
// to it ("normalized chunking", Xia et al., FastCDC, USENIX ATC 2016). The
// highest bits depend on the most bytes; the topmost is left out for scan.
const (
	maskBefore uint64 = (1<<18 - 1) << (63 - 18)
	maskAfter  uint64 = (1<<14 - 1) << (63 - 14)
)

// Chunker cuts data into chunks at places that depend on the content and on a
// key, so that equal runs are found again after an insertion, and chunk sizes
// tell an outsider nothing about known files. It is FastCDC, rolling two bytes
// at a time (Xia et al., IEEE TPDS 2020), with a gear table made from the key.
type Chunker struct {
	gear, gear2 [256]uint64 // gear2 is gear, shifted left by one
}

// NewChunker returns a chunker whose cut points depend on key.
func NewChunker(key [32]byte) *Chunker {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // only for a key that is not 32 bytes long
	}
	h.WriteString("space chunk gear")
	var table [8 * 256]byte
	h.Digest().Read(table[:])
	c := &Chunker{}
	for i := range c.gear {
		c.gear[i] = binary.LittleEndian.Uint64(table[8*i:])
		c.gear2[i] = c.gear[i] << 1
	}
	return c
}

// Next returns the length of the first chunk of data. Unless data is the end
// of the stream it must hold at least MaxChunk bytes; then the cut does not
// depend on how the stream was read. It returns 0 only for no data.
func (c *Chunker) Next(data []byte) int {
	if len(data) <= MinChunk {
		return len(data)
	}
	data = data[:min(len(data), MaxChunk)]
	at, hash, found := c.scan(data[:min(len(data), AvgChunk)], MinChunk, 0, maskBefore)
	if !found {
		at, _, _ = c.scan(data, at, hash, maskAfter)
	}
	return at
}

// window is how much scan looks at in each of two places at a time.
const window = 2 << 10

// scan looks for a cut point in data from i on, with the rolling hash of what is
// before i.
//
// The hash waits at each byte for that of the byte before, with most of a core
// idle. So two windows are hashed side by side, the second from what 64 bytes
// before it make of the hash: all older ones have been shifted out of it.
func (c *Chunker) scan(data []byte, i int, hash, mask uint64) (at int, _ uint64, found bool) {
	for ; i+2*window <= len(data); i += 2 * window {
		a, b := (*[window]byte)(data[i:]), (*[window]byte)(data[i+window:])
		var ahead uint64
		for _, v := range a[window-64:] {
			ahead = ahead<<1 + c.gear[v]
		}
		k, hash2, ahead := c.rollBoth(a, b, hash, ahead, mask)
		if k < window {
			if at, hash2, found = c.roll(a[:], k, hash2, mask); !found {
				at, hash2, found = c.roll(b[:], k, ahead, mask)
				at += window
			}
			return i + at, hash2, found
		}
		hash = ahead
	}
	return c.roll(data, i, hash, mask)
}

// rollBoth moves hashes over two windows, four bytes at a time, until one of the
// next four of either is a cut point, or to the end.
func (c *Chunker) rollBoth(a, b *[window]byte, ha, hb, mask uint64) (k int, _, _ uint64) {
	_, _, _ = *a, *b, *c // not nil: the loop need not look
	for mask2 := mask << 1; k < window-3; k += 4 {
		x := ha<<2 + c.gear2[a[k]]
		if x&mask2 == 0 {
			break
		}
		y := hb<<2 + c.gear2[b[k]]
		if y&mask2 == 0 {
			break
		}
		x += c.gear[a[k+1]]
		if x&mask == 0 {
			break
		}
		y += c.gear[b[k+1]]
		if y&mask == 0 {
			break
		}
		x = x<<2 + c.gear2[a[k+2]]
		if x&mask2 == 0 {
			break
		}
		y = y<<2 + c.gear2[b[k+2]]
		if y&mask2 == 0 {
			break
		}
		x += c.gear[a[k+3]]
		if x&mask == 0 {
			break
		}
		y += c.gear[b[k+3]]
		if y&mask == 0 {
			break
		}
		ha, hb = x, y
	}
	return k, ha, hb
}

// roll is scan, byte by byte. Between the two bytes of a step the hash is one bit
// further left than it should be, and so is the mask.
func (c *Chunker) roll(data []byte, i int, hash, mask uint64) (at int, _ uint64, found bool) {
	for ; i+1 < len(data); i += 2 {
		hash = hash<<2 + c.gear2[data[i]]
		if hash&(mask<<1) == 0 {
			return i, hash, true
		}
		hash += c.gear[data[i+1]]
		if hash&mask == 0 {
			return i + 1, hash, true
		}
	}
	if i < len(data) {
		hash = hash<<1 + c.gear[data[i]]
		i++
	}
	return i, hash, false
}
