package host

import (
	"context"
	"errors"
	"io"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

const (
	// StreamDepth is a good depth for the queue of [ReadTo] and [WriteFrom].
	StreamDepth = 16
	streamChunk = 256 << 10
)

// pipeline keeps commands in flight on a queue of its own.
type pipeline struct {
	q        *Queue
	cmds     []Command
	inFlight int
	err      error // the first
}

func newPipeline(q *Queue) *pipeline {
	return &pipeline{q: q, cmds: make([]Command, min(q.depth, StreamDepth))}
}

// wait waits for a command. After an error it still has to be called until
// nothing is in flight.
func (p *pipeline) wait() (*Command, error) {
	c, err := p.q.Wait()
	if err != nil {
		p.inFlight = 0 // the connection ended, and all commands with it
		return nil, err
	}
	p.inFlight--
	return c, c.Err
}

// end waits for what is in flight and returns the first error.
func (p *pipeline) end() error {
	for p.inFlight > 0 {
		if _, err := p.wait(); p.err == nil {
			p.err = err
		}
	}
	return p.err
}

// chunk is how much one command of a stream moves.
func (n *Namespace) chunk() int {
	return max(min(n.maxTransfer, streamChunk)/n.BlockSize*n.BlockSize, n.BlockSize)
}

// ReadTo writes length bytes of a namespace from offset off on to w, in their
// order; they need not be whole blocks. The queue has to be idle, and is used
// for nothing else meanwhile. progress, if there is one, is told of every part.
func ReadTo(ctx context.Context, q *Queue, n *Namespace, w io.Writer, off, length int64, progress func(int)) error {
	if off < 0 || length < 0 || off > n.Size() || length > n.Size()-off {
		return capsule.Errorf(capsule.OutOfRange, "bytes %d to %d of namespace %d, which has %d", off, off+length, n.ID, n.Size())
	}
	stop := context.AfterFunc(ctx, func() { q.fail(context.Cause(ctx)) })
	defer stop()
	p := newPipeline(q)
	p.err = p.readTo(n, w, off, length, progress)
	return p.end()
}

func (p *pipeline) readTo(n *Namespace, w io.Writer, off, length int64, progress func(int)) error {
	chunk := int64(n.chunk())
	block := int64(n.BlockSize)
	next, end := off/block*block, (off+length+block-1)/block*block // what is yet to be asked for
	bufs := make([]byte, chunk*int64(len(p.cmds)))
	done := make([]bool, len(p.cmds))
	for head, tail := 0, 0; next < end || head < tail; {
		for next < end && tail-head < len(p.cmds) {
			i := tail % len(p.cmds)
			size := min(chunk, end-next)
			p.cmds[i].Tag = i
			n.Set(&p.cmds[i], wire.OpRead, uint64(next/block), bufs[int64(i)*chunk:][:size], 0)
			if err := p.q.Submit(&p.cmds[i]); err != nil {
				return err
			}
			p.inFlight++
			done[i] = false
			next += size
			tail++
		}
		i := head % len(p.cmds)
		for !done[i] {
			c, err := p.wait()
			if err != nil {
				return readError(n, c, err)
			}
			done[c.Tag] = true
		}
		// Of the first and the last block, only a part may be wanted.
		data := p.cmds[i].Data
		at := int64(p.cmds[i].SQE.SLBA()) * block
		if over := at + int64(len(data)) - (off + length); over > 0 {
			data = data[:int64(len(data))-over]
		}
		if at < off {
			data = data[off-at:]
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		if progress != nil {
			progress(len(data))
		}
		head++
	}
	return nil
}

// readError says which blocks it was.
func readError(n *Namespace, c *Command, err error) error {
	if c == nil {
		return err
	}
	return capsule.Wrap(capsule.Other, err, "namespace %d, %d blocks at %d", n.ID, c.SQE.Blocks(), c.SQE.SLBA())
}

// WriteFrom writes what r has to a namespace from offset off on, which has to
// begin a block, makes it durable and returns how much it was. Of a last block
// that r fills only in part, the rest stays as it is. The queue has to be idle, and
// is used for nothing else meanwhile.
func WriteFrom(ctx context.Context, q *Queue, n *Namespace, r io.Reader, off int64, progress func(int)) (int64, error) {
	if off < 0 || off > n.Size() || off%int64(n.BlockSize) != 0 {
		return 0, capsule.Errorf(capsule.Invalid, "offset %d is not where a block of namespace %d begins (blocks of %d bytes, %d in all)",
			off, n.ID, n.BlockSize, n.Blocks)
	}
	stop := context.AfterFunc(ctx, func() { q.fail(context.Cause(ctx)) })
	defer stop()
	p := newPipeline(q)
	var tail []byte
	var written int64
	written, tail, p.err = p.writeFrom(n, r, off, progress)
	if err := p.end(); err != nil {
		return written, err
	}
	if len(tail) > 0 {
		lba := uint64((off + written) / int64(n.BlockSize))
		last := make([]byte, n.BlockSize)
		if err := n.Read(ctx, q, lba, last); err != nil {
			return written, err
		}
		copy(last, tail)
		if err := n.Write(ctx, q, lba, last, false); err != nil {
			return written, err
		}
		written += int64(len(tail))
	}
	return written, n.Flush(ctx, q)
}

func (p *pipeline) writeFrom(n *Namespace, r io.Reader, off int64, progress func(int)) (written int64, tail []byte, err error) {
	chunk, block := n.chunk(), n.BlockSize
	bufs := make([]byte, chunk*len(p.cmds))
	idle := make([]int, len(p.cmds))
	for i := range idle {
		idle[i] = i
	}
	for {
		if len(idle) == 0 {
			c, err := p.wait()
			if err != nil {
				return written, nil, readError(n, c, err)
			}
			idle = append(idle, c.Tag)
			if progress != nil {
				progress(len(c.Data))
			}
		}
		i := idle[len(idle)-1]
		idle = idle[:len(idle)-1]
		data := bufs[i*chunk:][:chunk]
		m, rerr := io.ReadFull(r, data)
		last := errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF)
		if rerr != nil && !last {
			return written, nil, rerr
		}
		if int64(m) > n.Size()-off-written {
			return written, nil, capsule.Errorf(capsule.OutOfRange, "there is more to write than fits into namespace %d, which has %d bytes; %d were written",
				n.ID, n.Size(), written)
		}
		whole := m / block * block
		if whole > 0 {
			p.cmds[i].Tag = i
			n.Set(&p.cmds[i], wire.OpWrite, uint64((off+written)/int64(block)), data[:whole], 0)
			if err := p.q.Submit(&p.cmds[i]); err != nil {
				return written, nil, err
			}
			// What is read next may take its time.
			p.q.Flush()
			p.inFlight++
			written += int64(whole)
		}
		if last {
			return written, data[whole:m], nil
		}
	}
}
