package pipeline

import (
	"context"
	"errors"
	"io"
	"sync"
)

// BlockSize is how many bytes a [Splitter] hands out at a time, about: large
// enough that a goroutine hand-over costs nothing, small enough for the cache.
const BlockSize = 1 << 20

// Block is a run of whole chunks.
type Block struct {
	Data []byte
	Cuts []int // end of each chunk in Data; the last is len(Data)
}

// Chunks calls fn with each chunk of the block, in order.
func (b *Block) Chunks(fn func(p []byte)) {
	at := 0
	for _, end := range b.Cuts {
		fn(b.Data[at:end])
		at = end
	}
}

// Splitter reads a stream and cuts it into blocks of chunks. Where a chunk
// ends depends on the content alone, never on how the reader returned it.
type Splitter struct {
	r    io.Reader
	c    *Chunker
	rest []byte // read already, belongs to the next block
	eof  bool
}

// NewSplitter returns a splitter of r.
func NewSplitter(r io.Reader, c *Chunker) *Splitter { return &Splitter{r: r, c: c} }

// Next fills b with the next block, using b's memory, and returns io.EOF after
// the last. Errors of the reader are returned as they are.
func (s *Splitter) Next(b *Block) error {
	b.Data, b.Cuts = append(b.Data[:0], s.rest...), b.Cuts[:0]
	s.rest = s.rest[:0]
	for !s.eof && len(b.Data) < BlockSize {
		if len(b.Data) == cap(b.Data) {
			// Memory follows what has arrived, so that a slow or short
			// stream does not hold a whole block.
			b.Data = grow(b.Data, min(max(len(b.Data), MinChunk), BlockSize))
		}
		n, err := s.r.Read(b.Data[len(b.Data):min(cap(b.Data), BlockSize)])
		b.Data = b.Data[:len(b.Data)+n]
		if errors.Is(err, io.EOF) {
			s.eof = true
		} else if err != nil {
			return err
		}
	}
	at := 0
	for len(b.Data)-at >= MaxChunk || s.eof && at < len(b.Data) {
		at += s.c.Next(b.Data[at:])
		b.Cuts = append(b.Cuts, at)
	}
	s.rest = append(s.rest, b.Data[at:]...)
	b.Data = b.Data[:at]
	if at == 0 {
		return io.EOF
	}
	return nil
}

// EOF reports whether the stream has been read to its end and handed out.
func (s *Splitter) EOF() bool { return s.eof && len(s.rest) == 0 }

// Ordered runs a bounded, ordered, parallel stage. produce is called on its own
// goroutine until it returns false or an error; work runs on that many worker
// goroutines; consume is called on the caller's goroutine with each item in the
// order in which it was produced, and may reuse it after release. At most
// window items exist at a time. The first error ends everything and is
// returned after all goroutines have ended; consume is then called no more, but
// drop is, with every item that was produced and not consumed.
func Ordered[T any](ctx context.Context, workers, window int,
	produce func() (T, bool, error), work func(worker int, item T) error,
	consume func(T) error, drop func(T)) error {
	type slot struct {
		item T
		err  error
		done chan struct{}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	order := make(chan *slot, max(window-workers-1, 1)) // items under way, in order
	jobs := make(chan *slot)
	var wg sync.WaitGroup
	var produceErr error
	wg.Go(func() {
		defer close(order)
		defer close(jobs)
		for ctx.Err() == nil {
			item, ok, err := produce()
			if err != nil || !ok {
				produceErr = err
				return
			}
			s := &slot{item: item, done: make(chan struct{})}
			order <- s // the consumer drains it to the end, always
			jobs <- s  // the workers too
		}
	})
	for w := range workers {
		wg.Go(func() {
			for s := range jobs {
				if ctx.Err() == nil {
					s.err = work(w, s.item)
				} else {
					s.err = context.Cause(ctx)
				}
				close(s.done)
			}
		})
	}
	var first error
	for s := range order {
		<-s.done
		err := s.err
		if first == nil && err == nil {
			err = context.Cause(ctx)
		}
		if first == nil && err == nil {
			if err = consume(s.item); err == nil {
				continue
			}
		} else {
			drop(s.item)
		}
		if first == nil {
			first = err
			cancel(err)
		}
	}
	wg.Wait()
	if first == nil {
		first = produceErr
	}
	if first == nil {
		first = context.Cause(ctx)
	}
	return first
}
