package pipeline

import (
	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	"github.com/PlakarKorp/go-cdc-chunkers/chunkers/jc"
)

// Sizes of chunks in bytes. Measured in docs/segments.md: below 64 KiB the
// codecs lose ratio quickly, above it a random read pays for bytes nobody
// asked for.
const (
	MinChunk = 16 << 10
	AvgChunk = 64 << 10
	MaxChunk = 256 << 10
)

// Chunker cuts data into chunks at places that depend on the content and on a
// key, so that equal runs are found again after an insertion, and chunk sizes
// tell an outsider nothing about known files. The algorithm is JC, a gear-hash
// chunker of the FastCDC family that jumps over bytes that cannot be cut
// (Jin et al., IEEE TPDS 2023): about seven times as fast as FastCDC here.
type Chunker struct {
	impl jc.JC
	opts chunkers.ChunkerOpts
}

// NewChunker returns a chunker whose cut points depend on key.
func NewChunker(key [32]byte) (*Chunker, error) {
	c := &Chunker{opts: chunkers.ChunkerOpts{MinSize: MinChunk, NormalSize: AvgChunk, MaxSize: MaxChunk, Key: key[:]}}
	if err := c.impl.Setup(&c.opts); err != nil {
		return nil, err
	}
	return c, nil
}

// Next returns the length of the first chunk of data. Unless data is the end
// of the stream it must hold at least MaxChunk bytes; then the cut does not
// depend on how the stream was read. It returns 0 only for no data.
func (c *Chunker) Next(data []byte) int {
	if len(data) <= MinChunk {
		return len(data)
	}
	if len(data) > MaxChunk {
		data = data[:MaxChunk]
	}
	return c.impl.Algorithm(&c.opts, data, len(data))
}
