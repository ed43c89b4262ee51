package store

import (
	"context"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// Content is content in memory and what to make of it.
type Content struct {
	PutRequest
	Data []byte
}

// PutResult is what became of one put of several: a capsule, or an error.
type PutResult struct {
	Info capsule.Info
	Err  error
}

// appendSize is from how many bytes of records on the puts of a PutAll append
// them to the logs.
const appendSize = 1 << 20

// PutAll is [Store.Put] for several contents at once: each is durable when it
// returns, or nothing has changed, whatever became of the others. Small ones
// cost much less together than one by one. It calls taken, if set, when it needs
// the contents' bytes no more and what remains is to commit.
func (s *Store) PutAll(ctx context.Context, contents []Content, taken func()) []PutResult {
	results := make([]PutResult, len(contents))
	puts := make([]*putter, len(contents)) // nil: failed
	fail := func(i int, err error) { results[i].Err = capsule.Wrap(ioKind(err), err, "put") }
	if err := s.enter(); err != nil {
		for i := range results {
			fail(i, err)
		}
		return results
	}
	defer s.leave()
	for i, err := range s.takeAll(ctx, contents, puts) {
		if p := puts[i]; p != nil && err != nil {
			_, err = p.end(err)
			puts[i] = nil
		}
		if err != nil {
			fail(i, err)
		}
	}
	if taken != nil {
		taken()
	}
	applies := make([]func(*tx) error, 0, len(puts))
	for i, p := range puts {
		if p == nil {
			continue
		}
		if err := p.finish(ctx); err != nil {
			_, err = p.end(err)
			puts[i] = nil
			fail(i, err)
			continue
		}
		applies = append(applies, p.apply)
	}
	if len(applies) == 0 {
		return results
	}
	errs := s.commitAll(synced, applies)
	for i, p := range puts {
		if p == nil {
			continue
		}
		var err error
		if results[i].Info, err = p.end(errs[0]); err != nil {
			fail(i, err)
		}
		errs = errs[1:]
	}
	return results
}

// takeAll begins a put for each content and takes its bytes into the logs. It
// returns the error of each; a put that it has begun is in puts all the same.
func (s *Store) takeAll(ctx context.Context, contents []Content, puts []*putter) []error {
	errs := make([]error, len(contents))
	if err := s.tokens.acquire(ctx); err != nil {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	defer s.tokens.release()
	c := newCoder()
	defer coders.Put(c)
	for i := range contents {
		if puts[i], errs[i] = s.newPutter(contents[i].PutRequest); errs[i] != nil {
			continue
		}
		errs[i] = puts[i].take(c, contents[i].Data)
	}
	_ = s.appendSealed(c, nil, s.checkSpace) // the pins have the error
	for i, p := range puts {
		if errs[i] == nil {
			errs[i] = settled(p.pins)
		}
	}
	return errs
}

// take makes extents of all of the content. It seals new segments into c, and
// appends what is there when it has become much.
func (p *putter) take(c *coder, data []byte) error {
	if n := p.req.Size; n >= 0 && n != int64(len(data)) {
		return capsule.Errorf(capsule.Invalid, "the input has %d bytes instead of the %d announced", len(data), n)
	}
	h := p.hashers.Get().(*pipeline.Hasher)
	defer p.hashers.Put(h)
	p.c.size = int64(len(data))
	for len(data) > 0 {
		n := p.s.chunker.Next(data)
		x, pin, err := p.seal(c, h, data[:n])
		p.add(x, pin)
		if err != nil {
			return err
		}
		data = data[n:]
		if len(c.out) >= appendSize {
			_ = p.s.appendSealed(c, nil, p.s.checkSpace)
			c.reset()
		}
	}
	return nil
}
