package bulk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"
)

// Source is a payload to give. It is read from many goroutines.
type Source interface {
	io.ReaderAt
	Size() int64
	// Version names the present content, in at most 64 bytes: another content
	// has another one. It fails when it can't be told any more.
	Version() (string, error)
}

// Offer is a source with the hashes of what was read of it so far. All streams
// that give one payload share one.
type Offer struct {
	src  Source
	info info

	rooting chan struct{} // whoever reads what nobody has asked for

	mu   sync.Mutex
	sums []*sums // by page; nil: none is known
}

// sums are the hashes of a page that are known.
type sums struct {
	known uint64
	hash  [pageChunks]Hash
}

// NewOffer returns an offer in chunks of the given size; 0: ChunkSize.
func NewOffer(src Source, chunk int) (*Offer, error) {
	if chunk == 0 {
		chunk = ChunkSize
	}
	v, err := src.Version()
	if err != nil {
		return nil, fmt.Errorf("bulk: %w", err)
	}
	o := &Offer{src: src, info: info{src.Size(), chunk, v}, rooting: make(chan struct{}, 1)}
	if err := o.info.check(); err != nil || len(v) > maxVersion {
		return nil, fmt.Errorf("bulk: a payload of %d bytes in chunks of %d, version %q, can't be offered", o.info.Size, chunk, v)
	}
	o.sums = make([]*sums, o.info.pages())
	return o, nil
}

// Root returns the final hash. It reads what was not read before.
func (o *Offer) Root(ctx context.Context) (Hash, error) {
	select {
	case o.rooting <- struct{}{}: // one at a time: the next one finds all hashes
		defer func() { <-o.rooting }()
	case <-ctx.Done():
		return Hash{}, ctx.Err()
	}
	buf := make([]byte, dataHead+maxData)
	for c := range o.info.chunks() {
		if err := ctx.Err(); err != nil {
			return Hash{}, err
		}
		if _, err := o.sumOf(c, buf); err != nil {
			return Hash{}, err
		}
	}
	return o.info.root(func(c int) Hash { h, _ := o.known(c); return h }), nil
}

// known returns a chunk's hash, if the chunk was read before.
func (o *Offer) known(c int) (h Hash, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.sums[c/pageChunks]
	if p == nil || p.known&(1<<(c%pageChunks)) == 0 {
		return h, false
	}
	return p.hash[c%pageChunks], true
}

// learn takes note of a chunk's hash. It was another one before if the source
// changes without telling.
func (o *Offer) learn(c int, h Hash) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.sums[c/pageChunks]
	if p == nil {
		p = &sums{}
		o.sums[c/pageChunks] = p
	}
	if p.known&(1<<(c%pageChunks)) != 0 && p.hash[c%pageChunks] != h {
		return errChanged
	}
	p.known |= 1 << (c % pageChunks)
	p.hash[c%pageChunks] = h
	return nil
}

// sumOf returns a chunk's hash, and reads the chunk if it has to.
func (o *Offer) sumOf(c int, buf []byte) (Hash, error) {
	if h, ok := o.known(c); ok {
		return h, nil
	}
	return o.pass(c, o.info.length(c), buf, nil)
}

// pass reads a chunk in pieces, has give send those from a byte on, and returns
// the chunk's hash. What is read is hashed on the way: nothing is read twice.
func (o *Offer) pass(c, from int, buf []byte, give func(b []byte, n, off int) error) (Hash, error) {
	h, known := o.known(c)
	off, length := 0, o.info.length(c)
	if known {
		off = from
	}
	var hasher *blake3.Hasher
	if !known {
		hasher = blake3.New()
	}
	for off < length {
		end := min(off+maxData, length)
		if off < from {
			end = min(end, from)
		}
		b := buf[dataHead : dataHead+end-off]
		if err := o.read(b, int64(c)*int64(o.info.Chunk)+int64(off)); err != nil {
			return Hash{}, err
		}
		if !known {
			hasher.Write(b)
		}
		if off >= from {
			if err := give(buf, len(b), off); err != nil {
				return Hash{}, err
			}
		}
		off = end
	}
	if known {
		return h, nil
	}
	h = sumOf(hasher)
	return h, o.learn(c, h)
}

// read fills b from the payload as it was when the offer was made.
func (o *Offer) read(b []byte, off int64) error {
	n, err := o.src.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		return &RemoteError{CodeChanged, "the payload has become shorter"}
	}
	return err
}

var errChanged = &RemoteError{CodeChanged, "the payload has changed since it was opened"}

// unchanged fails if the payload is not any more what it was.
func (o *Offer) unchanged() error {
	v, err := o.src.Version()
	if err == nil && v != o.info.Version {
		err = errChanged
	}
	return err
}

// Serve gives payloads over one stream until the receiver ends it. find
// returns the payload of a name, or an error, which may be a *RemoteError. given is
// called before the last message of each chunk, and before the final hash; nil: nobody
// wants to know.
func Serve(ctx context.Context, s io.ReadWriteCloser, find func(name string) (*Offer, error), given func()) error {
	if given == nil {
		given = func() {}
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	defer s.Close()
	l := newLink(s)
	err := serve(ctx, l, find, given)
	if err == io.EOF {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var remote *RemoteError
	if errors.As(err, &remote) {
		// Best effort: the receiver sees the end anyway.
		if l.send(msgError, []byte{byte(remote.Code)}, []byte(remote.Text[:min(len(remote.Text), maxErrorText)])) == nil {
			_ = l.flush()
		}
	}
	return err
}

func serve(ctx context.Context, l *link, find func(string) (*Offer, error), given func()) error {
	m, n, err := l.next()
	if err != nil {
		return err
	}
	if m != msgOpen {
		return fmt.Errorf("%w: message %d before the payload's name", errProtocol, m)
	}
	name, err := l.body(n, maxName)
	if err != nil {
		return err
	}
	o, err := find(string(name))
	if err != nil {
		return asRemote(err)
	}
	if err := l.send(msgInfo, o.info.encode()); err != nil {
		return err
	}
	var buf []byte
	for {
		if l.r.Buffered() == 0 { // otherwise there is more to answer first
			if err := l.flush(); err != nil {
				return err
			}
		}
		m, n, err := l.next()
		if err != nil {
			return err
		}
		b, err := l.body(n, 8)
		if err != nil {
			return err
		}
		if buf == nil {
			buf = make([]byte, dataHead+maxData)
		}
		switch {
		case m == msgSums && n == 8:
			err = o.sendSums(ctx, l, binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), buf)
		case m == msgChunk && n == 8:
			err = o.sendChunk(l, binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), buf, given)
		case m == msgRoot && n == 0:
			err = o.sendRoot(ctx, l, given)
		default:
			err = fmt.Errorf("%w: message %d of %d bytes", errProtocol, m, n)
		}
		if err != nil {
			return asRemote(err)
		}
	}
}

// asRemote makes of what went wrong at the source something to tell.
func asRemote(err error) error {
	var remote *RemoteError
	if errors.As(err, &remote) {
		return err
	}
	return fmt.Errorf("%w: %w", err, &RemoteError{CodeFailed, "reading failed"}) // details are nobody else's
}

func sendSum(l *link, c int, h Hash) error { return l.send(msgSum, u32(uint32(c)), h[:]) }

func (o *Offer) sendSums(ctx context.Context, l *link, first, count uint32, buf []byte) error {
	if count == 0 || count > pageChunks || int64(first)+int64(count) > int64(o.info.chunks()) {
		return fmt.Errorf("%w: hashes of %d chunks from %d on", errProtocol, count, first)
	}
	for c := int(first); c < int(first+count); c++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := o.sumOf(c, buf)
		if err != nil {
			return err
		}
		// Each at once, so that the receiver sees that it goes on.
		if err := errors.Join(sendSum(l, c, h), l.flush()); err != nil {
			return err
		}
	}
	return nil
}

func (o *Offer) sendChunk(l *link, n, from uint32, buf []byte, given func()) error {
	if int64(n) >= int64(o.info.chunks()) || int64(from) > int64(o.info.length(int(n))) {
		return fmt.Errorf("%w: chunk %d from byte %d", errProtocol, n, from)
	}
	c := int(n)
	h, err := o.pass(c, int(from), buf, func(b []byte, n, off int) error {
		if bytes.Equal(b[dataHead:dataHead+n], zeros[:n]) {
			return l.send(msgZeros, u32(uint32(c)), u32(uint32(off)), u32(uint32(n)))
		}
		return l.sendData(b, n, c, off)
	})
	if err != nil {
		return err
	}
	given()
	return sendSum(l, c, h)
}

func (o *Offer) sendRoot(ctx context.Context, l *link, given func()) error {
	r, err := o.Root(ctx)
	if err == nil {
		err = o.unchanged() // at the end: reading may have taken long
	}
	if err != nil {
		return err
	}
	given()
	return l.send(msgFinal, r[:])
}
