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

// scan looks for a cut point in data from i on. Between the two bytes of a step
// the hash is one bit further left than it should be, and so is the mask.
func (c *Chunker) scan(data []byte, i int, hash, mask uint64) (at int, _ uint64, found bool) {
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
