package pipeline

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Codec says how a segment's bytes were compressed. The numbers are part of
// the on-disk format.
type Codec uint8

// The codecs of records.
const (
	None Codec = 0
	LZ4  Codec = 1
	Zstd Codec = 2
	S2   Codec = 3
)

func (c Codec) String() string {
	switch c {
	case None:
		return "none"
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	case S2:
		return "s2"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// Compression is what a writer asks of a [Compressor].
type Compression struct {
	Codec Codec
	Level int  // zstd: 1 to 19; 0 is 3
	Auto  bool // S2 now, and mark what a denser codec could still shrink
}

// The compressions of policies that name no level.
var (
	Auto  = Compression{Codec: S2, Auto: true}
	Dense = Compression{Codec: Zstd, Level: 7} // what background recompression uses
)

// ErrCorrupt is wrapped by every error about bytes that do not decode.
var ErrCorrupt = errors.New("corrupt segment")

// Compressor holds one goroutine's scratch memory for compressing.
type Compressor struct {
	lz4 *lz4.Compressor // made when first used: it is large, and LZ4 is not the default
}

// Compress appends src, compressed as c asks, to dst. It returns the codec
// that was used, None if src would have shrunk by less than a sixteenth, and
// whether a denser codec is likely to gain on the result.
func (z *Compressor) Compress(dst, src []byte, c Compression) (out []byte, used Codec, again bool) {
	out, used, again = z.compress(dst, src, c)
	if used == None {
		out = append(out, src...)
	}
	return out, used, again
}

// compress is Compress that appends nothing if it returns None.
func (z *Compressor) compress(dst, src []byte, c Compression) (out []byte, used Codec, again bool) {
	base := len(dst)
	worth := len(src) - len(src)/16
	switch c.Codec {
	case S2:
		dst = grow(dst, s2.MaxEncodedLen(len(src)))
		dst = dst[:base+len(s2.Encode(dst[base:cap(dst)], src))]
	case LZ4:
		if z.lz4 == nil {
			z.lz4 = new(lz4.Compressor)
		}
		dst = grow(dst, lz4.CompressBlockBound(len(src)))
		n, err := z.lz4.CompressBlock(src, dst[base:cap(dst)])
		if err != nil || n == 0 { // n == 0: incompressible
			n = len(src)
		}
		dst = dst[:base+n]
	case Zstd:
		dst = encodeZstd(dst, src, c.Level)
	default:
		return dst, None, false
	}
	if n := len(dst) - base; n <= worth && n < len(src) {
		return dst, c.Codec, c.Auto
	}
	return dst[:base], None, c.Auto && Entropy(src) < 7.6
}

// grow returns b with room for n more bytes.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	nb := make([]byte, len(b), max(2*cap(b), len(b)+n))
	copy(nb, b)
	return nb
}

// Decompress appends to dst the plain bytes of src, which must be exactly n.
// Whatever src holds, it never writes more than n bytes.
func Decompress(dst, src []byte, c Codec, n int) ([]byte, error) {
	base := len(dst)
	dst = grow(dst, n)
	room := dst[base : base+n : base+n]
	var got int
	var err error
	switch c {
	case None:
		if len(src) == n {
			got = copy(room, src)
		}
	case LZ4:
		got, err = lz4.UncompressBlock(src, room)
	case S2:
		if l, lerr := s2.DecodedLen(src); lerr != nil || l != n {
			break
		}
		var p []byte
		p, err = s2.Decode(room, src)
		got = len(p)
	case Zstd:
		var p []byte
		p, err = zstdDecoder().DecodeAll(src, room[:0])
		got = len(p)
	default:
		err = fmt.Errorf("unknown codec %d", c)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, c, err)
	}
	if got != n {
		return nil, fmt.Errorf("%w: %s: %d bytes where %d were expected", ErrCorrupt, c, got, n)
	}
	return dst[:base+n], nil
}

// zstdEncoders pools encoders by the library's four speeds; an encoder holds
// about a megabyte of tables.
var zstdEncoders [zstd.SpeedBestCompression + 1]sync.Pool

func encodeZstd(dst, src []byte, level int) []byte {
	if level == 0 {
		level = 3
	}
	speed := zstd.EncoderLevelFromZstd(level)
	pool := &zstdEncoders[speed]
	e, _ := pool.Get().(*zstd.Encoder)
	if e == nil {
		var err error
		e, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(MaxChunk), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // only for options that contradict each other
		}
	}
	defer pool.Put(e)
	return e.EncodeAll(src, dst)
}

// zstdDecoder is shared: DecodeAll may run on many goroutines at once.
var zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		panic(err) // only for options that contradict each other
	}
	return d
})

// sample is how many bytes Entropy looks at.
const sample = 4 << 10

// nLogN has n*log2(n): logarithms take longer than counting.
var nLogN = sync.OnceValue(func() *[sample + 1]float64 {
	var t [sample + 1]float64
	for n := 2; n <= sample; n++ {
		t[n] = float64(n) * math.Log2(float64(n))
	}
	return &t
})

// Entropy estimates the order-0 entropy of p in bits per byte from a sample
// of at most 4 KiB.
func Entropy(p []byte) float64 {
	const pieces, piece = 16, sample / 16
	var hist [256]uint32
	total := 0
	count := func(q []byte) {
		for _, b := range q {
			hist[b]++
		}
		total += len(q)
	}
	if len(p) <= pieces*piece {
		count(p)
	} else {
		step := (len(p) - piece) / (pieces - 1)
		for i := range pieces {
			count(p[i*step : i*step+piece])
		}
	}
	if total == 0 {
		return 0
	}
	// The sum of -f*log2(f) for f = n/total.
	logs := nLogN()
	var sum float64
	for _, n := range hist {
		sum += logs[n]
	}
	return math.Log2(float64(total)) - sum/float64(total)
}
