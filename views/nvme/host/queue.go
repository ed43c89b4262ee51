package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

const (
	// maxDepth bounds the commands in flight on a queue. The upper bits of a
	// command's ID tell apart the uses of a slot.
	maxDepth  = 1 << slotBits
	slotBits  = 12
	slotMask  = maxDepth - 1
	copyLimit = 8 << 10 // up to this size data goes through the batch's buffer, which saves an iovec
	maxR2T    = 16      // outstanding per command
	maxAge    = 5       // quarters of the timeout that a command may take
)

// Command is one command with its data and, when it is done, its outcome.
type Command struct {
	SQE  wire.SQE // the ID and the data descriptor are the queue's to set
	Data []byte   // what the command sends or receives, by its opcode
	What string   // for errors: "read of 8 blocks at 0"; made from the opcode if it is empty
	Tag  int      // the caller's
	// Short says that fewer bytes than Data holds are no error.
	Short bool

	Result uint64 // of the completion
	N      int    // bytes received
	Err    error

	cid       uint16
	asked     int // bytes that R2Ts asked for
	unsent    int // pieces of Data that wait to be written, or are being written
	r2ts      int // of these, R2Ts
	age       uint8
	digest    bool // received data was damaged
	responded bool // the status is known, but Data is still being written
	finished  bool
	silent    bool // may stay without an answer for ever: an asynchronous event request
	do        bool // Do waits for it
}

// String describes the command without its data.
func (c *Command) String() string {
	s := fmt.Sprintf("command %02xh with %d bytes", c.SQE.Opcode(), len(c.Data))
	if c.Err != nil {
		s += ": " + c.Err.Error()
	}
	return s
}

// transfer directions, by the two lowest bits of the opcode (Base 3.3.3.1) or
// of the type of a fabrics command.
const (
	toController = 1
	toHost       = 2
)

func direction(s *wire.SQE) uint8 {
	if s.Opcode() == wire.OpFabrics {
		return s.FCType() & 3
	}
	return s.Opcode() & 3
}

// waiter is a goroutine that waits for another one which reads the connection.
type waiter struct {
	ready func() bool
	ch    chan struct{}
}

// piece is a part of a batch: headers in its buffer, and data after them.
type piece struct {
	end  int // of the headers in the buffer
	data []byte
	c    *Command // whose data it is
	r2t  bool
}

// batch is what waits to be written.
type batch struct {
	buf    []byte
	pieces []piece
}

func (b *batch) empty() bool { return len(b.buf) == 0 }

func (b *batch) reset() {
	clear(b.pieces)
	*b = batch{buf: b.buf[:0], pieces: b.pieces[:0]}
}

// slot is a place for a command in flight.
type slot struct {
	c   *Command
	use uint16 // how often it was used, in the ID's upper bits
}

// Queue is one queue of a controller, and its connection. Its methods may be
// called from any goroutine.
type Queue struct {
	admin     bool
	depth     int
	timeout   time.Duration
	conn      net.Conn
	framing   wire.Framing
	maxData   int // MAXH2CDATA
	inCapsule int // bytes of data that a command can carry

	// r is used by whoever set reading.
	r *wire.Reader

	mu      sync.Mutex
	err     error // why the connection ended
	slots   []slot
	free    []uint16
	reading bool
	writing bool
	pending batch
	spare   batch // the buffers of the batch before
	iovecs  net.Buffers
	done    []*Command // finished commands that were submitted without Do
	waiting []*waiter

	awaited  int       // commands in flight that the target has to answer
	owed     int       // of these, those that the target sends data for
	sends    int       // and those that we send data for
	armed    time.Time // when that was
	armedW   time.Time // the same for writing
	pdus     int       // since then, roughly
	deadline bool      // one is set for reading
}

// queueOptions are what a connection agrees on.
type queueOptions struct {
	admin                    bool
	depth                    int
	timeout                  time.Duration
	headerDigest, dataDigest bool
	inCapsule                int
	buffer                   int
}

// newQueue makes a fresh connection a queue: it exchanges ICReq and ICResp. It
// owns conn, also when it fails.
func newQueue(ctx context.Context, conn net.Conn, o queueOptions) (*Queue, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	q, err := initialize(conn, o)
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return q, nil
}

func initialize(conn net.Conn, o queueOptions) (*Queue, error) {
	conn.SetDeadline(time.Now().Add(o.timeout))
	req := wire.ICReq{HeaderDigest: o.headerDigest, DataDigest: o.dataDigest, MaxR2T: maxR2T - 1}
	if _, err := conn.Write(req.Append(nil)); err != nil {
		return nil, err
	}
	r := wire.NewReader(conn, o.buffer)
	t, h, err := r.Next()
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, capsule.Errorf(capsule.Unavailable, "the other side hung up; is it an NVMe/TCP target?")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, capsule.Errorf(capsule.Unavailable, "no answer within %v; is it an NVMe/TCP target?", o.timeout)
	case err != nil:
		if p := (*wire.ProtocolError)(nil); errors.As(err, &p) {
			err = capsule.Wrap(capsule.IO, err, "what answers is no NVMe/TCP target")
		}
		return nil, err
	case t == wire.TypeC2HTermReq:
		return nil, terminated(h)
	case t != wire.TypeICResp:
		return nil, capsule.Errorf(capsule.IO, "the target answers the connection request with %v", t)
	}
	resp, err := wire.ParseICResp(h)
	switch {
	case err != nil:
		return nil, err
	case resp.HeaderDigest && !o.headerDigest || resp.DataDigest && !o.dataDigest:
		return nil, capsule.Errorf(capsule.IO, "the target uses digests that were not asked for")
	case o.headerDigest && !resp.HeaderDigest || o.dataDigest && !resp.DataDigest:
		return nil, capsule.Errorf(capsule.Unsupported, "the target does not have the digests that were asked for")
	}
	conn.SetDeadline(time.Time{})
	r.HeaderDigest, r.DataDigest = resp.HeaderDigest, resp.DataDigest
	r.MaxData = 1 << 30 // what a command expects is checked before its data is read
	q := &Queue{
		admin: o.admin, depth: o.depth, timeout: o.timeout, conn: conn, r: r,
		framing:   wire.Framing{HeaderDigest: resp.HeaderDigest, DataDigest: resp.DataDigest, PDA: resp.CPDA},
		maxData:   int(min(resp.MaxH2CData, 1<<20)),
		inCapsule: o.inCapsule,
		slots:     make([]slot, o.depth),
		free:      make([]uint16, o.depth),
	}
	for i := range q.free {
		q.free[i] = uint16(o.depth - 1 - i)
	}
	return q, nil
}

func terminated(h []byte) error {
	t := wire.ParseTermReq(h)
	return capsule.Wrap(capsule.IO, &TerminatedError{t.FES, t.FEI}, "")
}

// Depth returns how many commands can be in flight.
func (q *Queue) Depth() int { return q.depth }

// Err returns why the connection ended, nil if it did not.
func (q *Queue) Err() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

// Close ends the connection. Commands in flight fail.
func (q *Queue) Close() { q.fail(errClosed) }

// fail ends the connection because of err.
func (q *Queue) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.failLocked(err)
}

func (q *Queue) failLocked(err error) {
	if q.err == nil {
		q.err = err
		var p *wire.ProtocolError
		if errors.As(err, &p) && !q.writing {
			// The target should know why. It need not listen.
			q.conn.SetWriteDeadline(time.Now().Add(time.Second))
			q.conn.Write(wire.TermReq{FromHost: true, FES: p.FES, FEI: p.FEI, Header: p.Header}.Append(nil))
		}
		q.conn.Close()
	}
	q.settle()
}

// settle fails what is in flight once the connection ended and nobody uses the
// commands' buffers any more.
func (q *Queue) settle() {
	if q.err == nil || q.reading || q.writing {
		return
	}
	q.pending.reset()
	for i := range q.slots {
		if c := q.slots[i].c; c != nil {
			if !c.responded {
				c.Err = capsule.Wrap(capsule.Unavailable, q.err, "%s", what(q.admin, c))
			}
			q.finish(c)
		}
	}
	for _, w := range q.waiting {
		w.signal()
	}
}

func (w *waiter) signal() {
	select {
	case w.ch <- struct{}{}:
	default:
	}
}

// Submit puts a command into the queue, to be sent at the latest when somebody
// waits. It does not block; [ErrQueueFull] says that it has to be tried again
// after a [Queue.Wait].
func (q *Queue) Submit(c *Command) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.submit(c, false)
}

// Wait sends what was submitted and returns the next command that is done, of those
// that were not submitted by [Queue.Do]. It is an error to wait for nothing.
func (q *Queue) Wait() (*Command, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.done) == 0 {
		if q.awaited == 0 && q.err == nil && len(q.free) == q.depth {
			return nil, capsule.Errorf(capsule.Invalid, "there is no command to wait for")
		}
		q.await(func() bool { return len(q.done) > 0 || q.err != nil && len(q.free) == q.depth })
	}
	if len(q.done) == 0 {
		return nil, q.err
	}
	c := q.done[0]
	q.done = slices.Delete(q.done, 0, 1)
	return c, nil
}

// Flush sends what was submitted, for who does something else before he waits.
func (q *Queue) Flush() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flush()
}

// Do runs one command and returns its error. The context's end is the
// connection's.
func (q *Queue) Do(ctx context.Context, c *Command) error {
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { q.fail(context.Cause(ctx)) })
		defer stop()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		err := q.submit(c, true)
		if err == nil {
			break
		}
		if err != ErrQueueFull {
			return err
		}
		q.await(func() bool { return len(q.free) > 0 || q.err != nil })
	}
	q.await(func() bool { return c.finished })
	return c.Err
}

// submit gives c an ID and puts its capsule into the pending batch.
func (q *Queue) submit(c *Command, do bool) error {
	if q.err != nil {
		return capsule.Wrap(capsule.Unavailable, q.err, "%s", what(q.admin, c))
	}
	if len(q.free) == 0 {
		return ErrQueueFull
	}
	i := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	s := &q.slots[i]
	s.c = c
	s.use++
	*c = Command{SQE: c.SQE, Data: c.Data, What: c.What, Tag: c.Tag, Short: c.Short, silent: c.silent, do: do, cid: s.use<<slotBits | i}
	c.SQE.SetCID(c.cid)
	if !c.silent {
		if q.awaited++; q.awaited == 1 && q.reading {
			q.arm() // the reader may be waiting without a deadline
		}
	}

	q.countData(c, 1)
	n := 0
	if direction(&c.SQE) == toController && len(c.Data) <= q.inCapsule {
		n = len(c.Data)
	}
	if n > 0 {
		c.SQE.SetSGL(wire.SGL{Length: uint32(n), Type: wire.SGLInCapsule})
	} else {
		c.SQE.SetSGL(wire.SGL{Length: uint32(len(c.Data)), Type: wire.SGLTransport})
	}
	q.pending.buf = q.framing.AppendCommand(q.pending.buf, &c.SQE, n)
	if n > 0 {
		q.appendData(c, c.Data, false)
	}
	return nil
}

// countData counts a command among those whose data is on its way.
func (q *Queue) countData(c *Command, n int) {
	switch dir := direction(&c.SQE); {
	case len(c.Data) == 0:
	case dir == toHost:
		q.owed += n
	case dir == toController:
		q.sends += n
	}
}

// appendData appends data and its digest to the pending batch.
func (q *Queue) appendData(c *Command, data []byte, r2t bool) {
	b := &q.pending
	if len(data) <= copyLimit && !r2t {
		b.buf = q.framing.AppendDigest(append(b.buf, data...), data)
		return
	}
	c.unsent++
	b.pieces = append(b.pieces, piece{len(b.buf), data, c, r2t})
	b.buf = q.framing.AppendDigest(b.buf, data)
}

// await returns when ready does, which is called with the lock held. Whoever
// waits reads the connection unless another does.
func (q *Queue) await(ready func() bool) {
	var w *waiter
	for !ready() {
		if !q.reading && q.err == nil {
			q.advance()
			continue
		}
		if !q.writing && !q.pending.empty() && q.err == nil {
			q.flush() // which may let go of the lock
			continue
		}
		if w == nil {
			w = &waiter{ready: ready, ch: make(chan struct{}, 1)}
		}
		q.waiting = append(q.waiting, w)
		q.mu.Unlock()
		<-w.ch
		q.mu.Lock()
		q.waiting = slices.DeleteFunc(q.waiting, func(x *waiter) bool { return x == w })
	}
	// Somebody else has to read now.
	if !q.reading && q.err == nil && len(q.waiting) > 0 {
		q.waiting[0].signal()
	}
}

// advance reads one PDU and does what it says.
func (q *Queue) advance() {
	q.reading = true
	idle := !q.r.Buffered()
	if idle {
		q.flush()
	}
	if q.pdus++; idle || q.pdus >= 16 { // a busy queue never waits, and needs its deadline moved all the same
		q.pdus = 0
		q.arm()
	}
	q.mu.Unlock()
	err := q.readPDU()
	q.mu.Lock()
	q.reading = false
	if err != nil {
		q.failLocked(err)
	} else {
		q.settle()
	}
}

// arm sets the deadline for the target's next answer, if there has to be one.
func (q *Queue) arm() {
	if q.awaited == 0 {
		if q.deadline {
			q.conn.SetReadDeadline(time.Time{})
			q.deadline = false
		}
		return
	}
	now := time.Now()
	if q.deadline && now.Sub(q.armed) < q.timeout/4 {
		return
	}
	if q.deadline {
		// A quarter of the timeout passed with answers. Is a command left out?
		for i := range q.slots {
			if c := q.slots[i].c; c != nil && !c.silent {
				if c.age++; c.age > maxAge && q.err == nil {
					q.err = q.silence()
					q.conn.Close()
					return
				}
			}
		}
	}
	q.conn.SetReadDeadline(now.Add(q.timeout))
	q.armed, q.deadline = now, true
}

func (q *Queue) silence() error {
	return capsule.Errorf(capsule.Unavailable, "the target owes answers and was silent for %v", q.timeout)
}

// readPDU reads one PDU and does what it says. Its caller has set reading.
func (q *Queue) readPDU() error {
	t, h, err := q.r.Next()
	if err != nil {
		return q.readError(err)
	}
	switch t {
	case wire.TypeCapsuleResp:
		cqe := wire.ParseCQE(h)
		q.mu.Lock()
		defer q.mu.Unlock()
		c := q.lookup(cqe.CID)
		if c == nil {
			return violation(h, wire.FESSequence, 0, "a response to command %#x, which is not in flight", cqe.CID)
		}
		c.Result = cqe.Result
		q.respond(c, cqe.Status)
		return nil
	case wire.TypeC2HData:
		return q.data(h)
	case wire.TypeR2T:
		return q.r2t(h)
	case wire.TypeC2HTermReq:
		return terminated(h)
	}
	return violation(h, wire.FESInvalidHeader, 0, "a %v from a target", t)
}

func violation(h []byte, fes wire.FES, fei uint32, format string, args ...any) error {
	return capsule.Wrap(capsule.IO, &wire.ProtocolError{FES: fes, FEI: fei, Header: slices.Clone(h), Msg: fmt.Sprintf(format, args...)},
		"the target broke the protocol")
}

// readError says what an error of the connection means.
func (q *Queue) readError(err error) error {
	var p *wire.ProtocolError
	switch {
	case errors.As(err, &p):
		return capsule.Wrap(capsule.IO, err, "the target broke the protocol")
	case errors.Is(err, os.ErrDeadlineExceeded):
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.awaited == 0 {
			return nil // nothing is due; the next wait takes the deadline away
		}
		if time.Since(q.armed) < q.timeout {
			return nil // it was set anew meanwhile
		}
		return q.silence()
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return capsule.Wrap(capsule.Unavailable, err, "the target ended the connection")
	}
	return capsule.Wrap(capsule.Unavailable, err, "connection to the target")
}

// lookup returns the command in flight with an ID, nil if there is none.
func (q *Queue) lookup(cid uint16) *Command {
	if i := int(cid & slotMask); i < len(q.slots) {
		if c := q.slots[i].c; c != nil && c.cid == cid && !c.responded {
			return c
		}
	}
	return nil
}

// data takes a C2HData PDU.
func (q *Queue) data(h []byte) error {
	d, err := wire.ParseData(h, q.r.DataLen())
	if err != nil {
		return q.readError(err)
	}
	q.mu.Lock()
	c := q.lookup(d.CID)
	q.mu.Unlock()
	switch {
	case c == nil:
		return violation(h, wire.FESSequence, 0, "data for command %#x, which is not in flight", d.CID)
	case direction(&c.SQE) != toHost:
		return violation(h, wire.FESSequence, 0, "data for a %s", what(q.admin, c))
	case int64(d.Offset) != int64(c.N) || int64(d.Offset)+int64(d.Length) > int64(len(c.Data)):
		return violation(h, wire.FESOutOfRange, 12, "bytes %d to %d of data where those from %d are due, of %d",
			d.Offset, int64(d.Offset)+int64(d.Length), c.N, len(c.Data))
	case d.Success && !d.Last:
		return violation(h, wire.FESInvalidHeader, 1, "success before the last data")
	}
	// The command stays in flight, so that nobody else uses its data.
	switch err := q.r.ReadData(c.Data[d.Offset:][:d.Length]); {
	case err == wire.ErrDataDigest:
		c.digest = true
	case errors.Is(err, os.ErrDeadlineExceeded):
		return q.silence() // in the middle of a PDU there is no going on
	case err != nil:
		return q.readError(err)
	}
	c.N += int(d.Length)
	if d.Success {
		q.mu.Lock()
		q.respond(c, wire.Success)
		q.mu.Unlock()
	}
	return nil
}

// r2t answers a target that is ready for a command's data.
func (q *Queue) r2t(h []byte) error {
	r := wire.ParseR2T(h)
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.lookup(r.CID)
	switch {
	case c == nil:
		return violation(h, wire.FESSequence, 0, "an R2T for command %#x, which is not in flight", r.CID)
	case direction(&c.SQE) != toController || len(c.Data) <= q.inCapsule:
		return violation(h, wire.FESSequence, 0, "an R2T for a %s, which has no data to send", what(q.admin, c))
	case r.Length == 0 || int64(r.Offset)+int64(r.Length) > int64(len(c.Data)) || c.asked+int(r.Length) > len(c.Data):
		return violation(h, wire.FESOutOfRange, 12, "an R2T for bytes %d to %d of data of %d", r.Offset, int64(r.Offset)+int64(r.Length), len(c.Data))
	case c.r2ts >= maxR2T:
		return violation(h, wire.FESLimitExceeded, 0, "more than %d R2Ts at once", maxR2T)
	}
	c.asked += int(r.Length)
	c.r2ts++
	for off, left := int(r.Offset), int(r.Length); left > 0; {
		n := min(left, q.maxData)
		left -= n
		q.pending.buf = q.framing.AppendH2CData(q.pending.buf, wire.Data{CID: r.CID, TTag: r.TTag, Offset: uint32(off), Length: uint32(n), Last: left == 0})
		q.appendData(c, c.Data[off:off+n], true)
		q.pending.pieces[len(q.pending.pieces)-1].r2t = left == 0
		off += n
	}
	return nil
}

// respond takes a command's status.
func (q *Queue) respond(c *Command, s wire.Status) {
	switch {
	case s.Code() != wire.Success:
		c.Err = newCommandError(what(q.admin, c), &c.SQE, s, c.Result)
	case c.digest:
		c.Err = capsule.Wrap(capsule.IO, ErrDataDigest, "%s", what(q.admin, c))
	case !c.Short && direction(&c.SQE) == toHost && c.N < len(c.Data):
		c.Err = capsule.Errorf(capsule.IO, "%s: success, says the target, but sent %d bytes of %d", what(q.admin, c), c.N, len(c.Data))
	}
	if c.unsent > 0 {
		c.responded = true // its data is still being written
		return
	}
	q.finish(c)
}

// finish takes a command out of flight.
func (q *Queue) finish(c *Command) {
	i := c.cid & slotMask
	q.slots[i].c = nil
	q.free = append(q.free, i)
	if !c.silent {
		q.awaited--
	}
	q.countData(c, -1)
	c.finished = true
	if !c.do {
		q.done = append(q.done, c)
	}
	for _, w := range q.waiting {
		if w.ready() {
			w.signal()
		}
	}
}

// flush has the pending batch written: by the caller, unless somebody writes
// already, or the caller could wait for ever.
func (q *Queue) flush() {
	if q.writing || q.pending.empty() || q.err != nil {
		return
	}
	q.writing = true
	q.drain(false)
}

// drain writes batches until there is none. If data goes both ways, the target
// may take none of ours until we took some of its: then a goroutine
// writes, so that its caller can read.
func (q *Queue) drain(background bool) {
	for !q.pending.empty() && q.err == nil {
		if !background && q.owed > 0 && q.sends > 0 {
			go func() {
				q.mu.Lock()
				defer q.mu.Unlock()
				q.drain(true)
			}()
			return
		}
		b := q.pending
		q.pending, q.spare = q.spare, batch{}
		now := time.Now()
		if now.Sub(q.armedW) >= q.timeout/4 {
			q.conn.SetWriteDeadline(now.Add(q.timeout))
			q.armedW = now
		}
		q.mu.Unlock()
		err := q.write(&b)
		q.mu.Lock()
		for i := range b.pieces {
			p := &b.pieces[i]
			p.c.unsent--
			if p.r2t {
				p.c.r2ts--
			}
			if p.c.unsent == 0 && p.c.responded {
				q.finish(p.c)
			}
		}
		b.reset()
		q.spare = b
		if err != nil && q.err == nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = capsule.Errorf(capsule.Unavailable, "the target took nothing for %v", q.timeout)
			}
			q.err = capsule.Wrap(capsule.Unavailable, err, "connection to the target")
			q.conn.Close()
		}
	}
	q.writing = false
	q.settle()
}

// write writes a batch. Its caller has set writing.
func (q *Queue) write(b *batch) error {
	if len(b.pieces) == 0 {
		_, err := q.conn.Write(b.buf)
		return err
	}
	v := q.iovecs[:0]
	from := 0
	for i := range b.pieces {
		p := &b.pieces[i]
		v = append(v, b.buf[from:p.end], p.data)
		from = p.end
	}
	if from < len(b.buf) {
		v = append(v, b.buf[from:])
	}
	q.iovecs = v
	_, err := v.WriteTo(q.conn)
	clear(q.iovecs)
	return err
}

// what describes a command for errors.
func what(admin bool, c *Command) string {
	if c.What != "" {
		return c.What
	}
	return wire.OpcodeName(admin, &c.SQE)
}
