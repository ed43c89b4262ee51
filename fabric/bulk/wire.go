package bulk

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"
)

// Hash is a BLAKE3-256.
type Hash [32]byte

// Sizes.
const (
	ChunkSize    = 4 << 20   // of a payload's chunks, in bytes, where the source has no reason for another
	maxChunk     = 8 << 20   // that a receiver accepts
	minChunk     = 4 << 10   //
	pageChunks   = 64        // chunks whose hashes are asked for at once, and kept together
	maxData      = 256 << 10 // payload bytes in one message, so that streams of higher classes get their turn
	maxName      = 4096
	maxVersion   = 64
	maxErrorText = 512
	maxMessage   = maxData + 64
)

// maxSmallChunks is how many chunks smaller than ChunkSize a payload may have: of each there
// is something in memory, and of zeros they cost whoever gives them next to nothing.
const maxSmallChunks = 1 << 20

// MaxChunks is how many chunks a payload may have.
const MaxChunks = 1 << 26

// The messages: a type, the length of the body in three bytes, the body.
// Numbers are big-endian.
type message uint8

const (
	msgOpen  message = 1 // name
	msgSums  message = 2 // u32 chunk, u32 count: asks for the hashes of so many chunks
	msgChunk message = 3 // u32 chunk, u32 offset in it: asks for the chunk from there on, which may be its end, and its hash
	msgRoot  message = 4 // asks for the final hash

	msgInfo  message = 65 // answers msgOpen: u64 size, u32 chunk size, version
	msgSum   message = 66 // u32 chunk, hash
	msgData  message = 67 // u32 chunk, u32 offset, bytes; as many as it takes, then msgSum
	msgFinal message = 68 // root
	msgError message = 69 // u8 code, text; ends the conversation
	msgZeros message = 70 // u32 chunk, u32 offset, u32 count: stands for a msgData of zeros
)

// Code says what is wrong at the source.
type Code uint8

// The codes.
const (
	CodeFailed     Code = 1 // it failed; another time, or another mirror, may do better
	CodeNotFound   Code = 2 // the mirror has no such payload
	CodeChanged    Code = 3 // the payload is not any more what it was when it was opened
	CodeRefused    Code = 4 // the mirror does not want to, now
	CodeUnreadable Code = 5 // the mirror can't read it, and asking again won't help
)

// lasting reports whether asking the same mirror again is of no use.
func (c Code) lasting() bool {
	return c == CodeNotFound || c == CodeChanged || c == CodeUnreadable
}

// RemoteError is what a mirror says.
type RemoteError struct {
	Code Code
	Text string
}

func (e *RemoteError) Error() string { return "bulk: the mirror says: " + e.Text }

var errProtocol = errors.New("bulk: the peer breaks the protocol")

// link is a stream with messages on it.
type link struct {
	r *bufio.Reader
	w *bufio.Writer
}

func newLink(s io.ReadWriter) *link {
	// Small, for what is between payload bytes; those pass by them.
	return &link{bufio.NewReaderSize(s, 4<<10), bufio.NewWriterSize(s, 4<<10)}
}

// send queues a message; flush sends what is queued.
func (l *link) send(m message, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	head := [4]byte{byte(m), byte(n >> 16), byte(n >> 8), byte(n)}
	if _, err := l.w.Write(head[:]); err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := l.w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

func (l *link) flush() error { return l.w.Flush() }

// dataHead is how many bytes of a msgData are before the payload's.
const dataHead = 4 + 8

// sendData sends a msgData of the n payload bytes that begin at b[dataHead], with
// its head in front of them: one write, that nothing is copied for.
func (l *link) sendData(b []byte, n, chunk, off int) error {
	b = b[:dataHead+n]
	n += 8
	b[0], b[1], b[2], b[3] = byte(msgData), byte(n>>16), byte(n>>8), byte(n)
	binary.BigEndian.PutUint32(b[4:], uint32(chunk))
	binary.BigEndian.PutUint32(b[8:], uint32(off))
	if err := l.flush(); err != nil {
		return err
	}
	_, err := l.w.Write(b)
	return err
}

// next reads the head of a message; its body follows in l.r.
func (l *link) next() (m message, length int, err error) {
	var head [4]byte
	if _, err := io.ReadFull(l.r, head[:]); err != nil {
		return 0, 0, err
	}
	length = int(head[1])<<16 | int(head[2])<<8 | int(head[3])
	if length > maxMessage {
		return 0, 0, fmt.Errorf("%w: a message of %d bytes", errProtocol, length)
	}
	return message(head[0]), length, nil
}

// body reads a message's body, of at most limit bytes.
func (l *link) body(length, limit int) ([]byte, error) {
	if length > limit {
		return nil, fmt.Errorf("%w: a message of %d bytes where %d are the most", errProtocol, length, limit)
	}
	b := make([]byte, length)
	_, err := io.ReadFull(l.r, b)
	return b, unexpected(err)
}

// unexpected makes of an end in the middle an error that says so.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// info is what a source says of a payload.
type info struct {
	Size    int64
	Chunk   int    // bytes in a chunk
	Version string // changes when the payload does
}

func (i info) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(i.Size))
	return append(binary.BigEndian.AppendUint32(b, uint32(i.Chunk)), i.Version...)
}

func decodeInfo(b []byte) (i info, err error) {
	if len(b) < 12 || len(b) > 12+maxVersion {
		return i, fmt.Errorf("%w: information of %d bytes", errProtocol, len(b))
	}
	i = info{int64(binary.BigEndian.Uint64(b)), int(binary.BigEndian.Uint32(b[8:])), string(b[12:])}
	return i, i.check()
}

func (i info) check() error {
	if i.Size < 0 || i.Chunk < minChunk || i.Chunk > maxChunk || (i.Size-1)/int64(i.Chunk)+1 > MaxChunks ||
		i.Chunk < ChunkSize && i.chunks() > maxSmallChunks {
		return fmt.Errorf("%w: %d bytes in chunks of %d", errProtocol, i.Size, i.Chunk)
	}
	return nil
}

// chunks returns how many chunks there are.
func (i info) chunks() int { return int((i.Size + int64(i.Chunk) - 1) / int64(i.Chunk)) }

// length returns how many bytes a chunk has.
func (i info) length(chunk int) int {
	return int(min(int64(i.Chunk), i.Size-int64(chunk)*int64(i.Chunk)))
}

func (i info) pages() int { return (i.chunks() + pageChunks - 1) / pageChunks }

// root returns the final hash of a payload with these chunk hashes.
func (i info) root(hash func(chunk int) Hash) Hash {
	h := blake3.New()
	h.Write([]byte("space-bulk-root/1\x00"))
	h.Write(i.encode()[:12])
	for c := range i.chunks() {
		sum := hash(c)
		h.Write(sum[:])
	}
	return sumOf(h)
}

func sumOf(h *blake3.Hasher) (sum Hash) {
	h.Sum(sum[:0])
	return sum
}

func hashOf(b []byte) Hash { return blake3.Sum256(b) }

// zeros is what msgZeros stands for.
var zeros [maxData]byte
