package bulk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Source is a payload to give. It is read from many goroutines.
type Source interface {
	io.ReaderAt
	Size() int64
	// Version names the present content, in at most 64 bytes: another content
	// has another one. It fails when it can't be told any more.
	Version() (string, error)
}

// Offer is a source with the hashes that were asked for so far. All streams
// that give one payload share one.
type Offer struct {
	src  Source
	info info

	mu    sync.Mutex
	pages []*page
}

type page struct {
	once   sync.Once
	hashes []Hash
	err    error
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
	o := &Offer{src: src, info: info{src.Size(), chunk, v}}
	if err := o.info.check(); err != nil || len(v) > maxVersion {
		return nil, fmt.Errorf("bulk: a payload of %d bytes in chunks of %d, version %q, can't be offered", o.info.Size, chunk, v)
	}
	o.pages = make([]*page, o.info.pages())
	return o, nil
}

// Root returns the final hash. It reads the whole payload, but for what was
// read for hashes before.
func (o *Offer) Root() (Hash, error) {
	all := make([]Hash, 0, o.info.chunks())
	for p := range o.pages {
		hs, err := o.hashes(p)
		if err != nil {
			return Hash{}, err
		}
		all = append(all, hs...)
	}
	return o.info.root(all), nil
}

// hashes returns the chunk hashes of a page.
func (o *Offer) hashes(n int) ([]Hash, error) {
	o.mu.Lock()
	p := o.pages[n]
	if p == nil || p.err != nil {
		p = &page{}
		o.pages[n] = p
	}
	o.mu.Unlock()
	p.once.Do(func() {
		buf := make([]byte, min(int64(o.info.Chunk), o.info.Size))
		for c := n * pageChunks; c < n*pageChunks+o.info.pageLength(n); c++ {
			b := buf[:o.info.length(c)]
			if err := o.read(b, int64(c)*int64(o.info.Chunk)); err != nil {
				o.mu.Lock()
				p.err = err
				o.mu.Unlock()
				return
			}
			p.hashes = append(p.hashes, hashOf(b))
		}
	})
	o.mu.Lock()
	defer o.mu.Unlock()
	return p.hashes, p.err
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

// unchanged fails if the payload is not any more what it was.
func (o *Offer) unchanged() error {
	v, err := o.src.Version()
	if err != nil {
		return err
	}
	if v != o.info.Version {
		return &RemoteError{CodeChanged, "the payload has changed since it was opened"}
	}
	return nil
}

// Serve gives payloads over one stream until the receiver ends it. find
// returns the payload of a name, or an error, which may be a *RemoteError.
func Serve(ctx context.Context, s io.ReadWriteCloser, find func(name string) (*Offer, error)) error {
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	defer s.Close()
	l := newLink(s)
	err := serve(l, find)
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

func serve(l *link, find func(string) (*Offer, error)) error {
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
		switch {
		case m == msgPage && n == 4:
			err = o.sendPage(l, binary.BigEndian.Uint32(b))
		case m == msgChunk && n == 8:
			if buf == nil {
				buf = make([]byte, maxData)
			}
			err = o.sendChunk(l, binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), buf)
		case m == msgRoot && n == 0:
			err = o.sendRoot(l)
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

func (o *Offer) sendPage(l *link, n uint32) error {
	if int64(n) >= int64(len(o.pages)) {
		return fmt.Errorf("%w: page %d of %d", errProtocol, n, len(o.pages))
	}
	hs, err := o.hashes(int(n))
	if err != nil {
		return err
	}
	b := make([]byte, 0, len(hs)*len(Hash{}))
	for i := range hs {
		b = append(b, hs[i][:]...)
	}
	return l.send(msgHashes, u32(n), b)
}

func (o *Offer) sendChunk(l *link, n, from uint32, buf []byte) error {
	if int64(n) >= int64(o.info.chunks()) || int64(from) >= int64(o.info.length(int(n))) {
		return fmt.Errorf("%w: chunk %d from byte %d", errProtocol, n, from)
	}
	length := o.info.length(int(n))
	for off := int(from); off < length; {
		b := buf[:min(len(buf), length-off)]
		if err := o.read(b, int64(n)*int64(o.info.Chunk)+int64(off)); err != nil {
			return err
		}
		if err := l.send(msgData, u32(n), u32(uint32(off)), b); err != nil {
			return err
		}
		off += len(b)
	}
	return nil
}

func (o *Offer) sendRoot(l *link) error {
	if err := o.unchanged(); err != nil {
		return err
	}
	r, err := o.Root()
	if err != nil {
		return err
	}
	return l.send(msgFinal, r[:])
}
