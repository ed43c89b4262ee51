package nvme

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/wire"
)

const (
	// smallReader buffers what a connection sends before it is a queue.
	smallReader = 2 * wire.ICLen
	// queueReader buffers what a queue's host sends.
	queueReader = 32 << 10
	// flushAt is how many bytes of answers are collected at most while more
	// commands are already there.
	flushAt = 64 << 10
	// copyMax is up to how much data is copied beside its header rather than
	// handed to the kernel as a piece of its own.
	copyMax = 8 << 10
	// adminInCapsule is how much data a command of the admin queue, and a
	// fabrics command, may bring in its capsule (TCP 3.2).
	adminInCapsule = 8192
)

// conn is a connection, and after a connect command a queue of a controller.
//
// Its reader goroutine, [conn.serve], takes PDUs and owns every field without
// another owner. Commands are executed by it or by workers; whoever completes
// one puts the answer into pending, and whoever comes to [conn.flush] while
// nobody writes writes for all.
type conn struct {
	t     *Target
	port  *port
	nc    net.Conn
	log   *slog.Logger
	since time.Time // of the accepting

	r    *wire.Reader
	tx   wire.Framing // how we send
	r2ts uint32       // outstanding R2Ts that the host takes per command

	// From the connect command.
	ctrl     *controller
	qid      uint16
	size     int  // entries of the submission queue
	noFlow   bool // submission queue flow control is off
	auth     *dhchap.Controller
	fused    *command               // the first of a fused pair, awaiting the second
	scratch  []byte                 // for small reads
	ready    atomic.Bool            // is a queue, and authenticated if it has to be
	draining atomic.Bool            // takes no more commands
	leaving  atomic.Bool            // ends when what it has to say is sent
	nqn      atomic.Pointer[string] // the host's name

	mem budget // of its commands' data

	running  atomic.Int64  // commands at a device, or about to be; and closedBit
	idle     chan struct{} // closed when there are none and will be none
	idleOnce sync.Once
	gone     atomic.Bool  // is closed, for who does not hold mu
	queued   atomic.Int64 // bytes of pending, for who does not hold mu
	seen     atomic.Bool  // something came since the last tick
	progress atomic.Int64 // time of the last tick before which data moved, or nothing was to move
	moved    atomic.Bool  // data came or went since the last tick

	mu       sync.Mutex
	drained  sync.Cond
	head     uint16 // of the submission queue
	slots    []*command
	free     []uint16
	busy     int // commands in slots
	closed   bool
	done     chan struct{} // closed with it
	pending  batch
	batchLen int // length of the last batch, which the next will be like
	writing  bool
	awaiting int // R2Ts whose data is to come
}

// batch is what is to be sent: headers and small data in one buffer, larger
// data spliced in.
type batch struct {
	buf     []byte
	splices []splice
	bytes   int // in all
}

type splice struct {
	at  int // offset in buf
	buf []byte
	mem int64
}

func (b *batch) empty() bool { return len(b.buf) == 0 }

// vectors returns what to write, in order.
func (b *batch) vectors(v net.Buffers) net.Buffers {
	pos := 0
	for _, s := range b.splices {
		if s.at > pos {
			v = append(v, b.buf[pos:s.at])
		}
		v = append(v, s.buf)
		pos = s.at
	}
	if pos < len(b.buf) {
		v = append(v, b.buf[pos:])
	}
	return v
}

func newConn(t *Target, p *port, nc net.Conn) *conn {
	c := &conn{t: t, port: p, nc: nc, since: t.clock.Now(), done: make(chan struct{}), idle: make(chan struct{}),
		log: t.log.With("remote", nc.RemoteAddr().String(), "port", p.ID)}
	c.drained.L = &c.mu
	c.progress.Store(c.since.UnixNano())
	c.mem.limit = t.o.ConnMemory
	c.r = wire.NewReader(nc, smallReader)
	return c
}

// close ends the connection. It waits for nothing.
func (c *conn) close() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	c.gone.Store(true)
	close(c.done)
	if c.running.Add(closedBit) == closedBit {
		c.idleOnce.Do(func() { close(c.idle) })
	}
	c.drained.Broadcast()
	c.mu.Unlock()
	c.nc.Close()
}

func (c *conn) isClosed() bool { return c.gone.Load() }

// closedBit in running says that no command begins any more.
const closedBit = 1 << 40

// serve takes PDUs until the connection ends.
func (c *conn) serve() {
	err := c.handshake()
	if err == nil {
		err = c.receive()
	}
	c.finish(err)
}

// finish ends the connection, with a termination request where the host broke
// the rules, and what belongs to it.
func (c *conn) finish(err error) {
	if c.draining.Load() {
		c.finishCommands()
		if c.ctrl != nil && c.qid == 0 {
			c.ctrl.awaitQueues(c) // which would end with it
		}
	}
	var p *wire.ProtocolError
	switch {
	case errors.As(err, &p):
		c.t.stats.protocolErrors.Add(1)
		c.log.Warn("a host broke the rules of NVMe/TCP", "error", err, "host", c.hostNQN(), "queue", c.qid)
		c.terminate(p)
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !c.isClosed():
		c.log.Info("connection lost", "error", err, "host", c.hostNQN(), "queue", c.qid)
	}
	c.close()
	c.mem.forget(c)
	c.t.mem.forget(c)
	c.abandon()
	c.flushDropped()
	if c.ctrl != nil {
		c.ctrl.left(c)
	}
	c.t.connLeft(c)
}

func (c *conn) hostNQN() string {
	if p := c.nqn.Load(); p != nil {
		return *p
	}
	return ""
}

// terminate sends a termination request (TCP 3.6.2.5), if the host takes it at
// once, and lets it arrive before the connection ends.
func (c *conn) terminate(p *wire.ProtocolError) {
	c.mu.Lock()
	if c.writing || c.closed {
		c.mu.Unlock()
		return // amid a PDU there is no place for it
	}
	c.writing = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.writing = false
		c.mu.Unlock()
	}()
	c.t.lingers(c)
	if _, err := c.nc.Write(wire.TermReq{FES: p.FES, FEI: p.FEI, Header: p.Header}.Append(nil)); err != nil {
		return
	}
	// Closing with unread bytes would reset the connection and could take the
	// request from the host: read until it has closed (TCP 3.5.1: within 30 s).
	if h, ok := c.nc.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
		buf := make([]byte, 4096)
		for {
			if _, err := c.nc.Read(buf); err != nil {
				return
			}
		}
	}
}

// handshake exchanges ICReq and ICResp (TCP 3.4.1).
func (c *conn) handshake() error {
	typ, h, err := c.r.Next()
	if err != nil {
		return err
	}
	if typ != wire.TypeICReq {
		return c.sequenceError(typ, h)
	}
	req, err := wire.ParseICReq(h)
	if err != nil {
		return err
	}
	c.r2ts = min(req.MaxR2T, 1<<16) + 1
	resp := wire.ICResp{HeaderDigest: req.HeaderDigest, DataDigest: req.DataDigest, MaxH2CData: uint32(c.t.o.MaxH2CData)}
	c.tx = wire.Framing{HeaderDigest: req.HeaderDigest, DataDigest: req.DataDigest, PDA: req.HPDA}
	c.r.HeaderDigest, c.r.DataDigest = req.HeaderDigest, req.DataDigest
	c.r.MaxData = adminInCapsule
	_, err = c.nc.Write(resp.Append(nil))
	return err
}

func (c *conn) sequenceError(typ wire.PDUType, h []byte) error {
	return &wire.ProtocolError{FES: wire.FESSequence, Header: append([]byte(nil), h...), Msg: fmt.Sprintf("unexpected %s", typ)}
}

// becomeQueue makes room for a queue's commands.
func (c *conn) becomeQueue(size int, inCapsule int) {
	c.size = size
	c.r.Grow(queueReader)
	c.r.MaxData = max(inCapsule, c.t.o.MaxH2CData)
}

// inCapsule is how much data a command may bring in its capsule.
func (c *conn) inCapsule() int {
	if c.qid == 0 {
		return adminInCapsule
	}
	return c.t.o.InCapsule
}

// receive takes PDUs after the handshake.
func (c *conn) receive() error {
	for {
		if !c.r.Buffered() || c.needsFlush() {
			c.flush()
			c.awaitRoom()
		}
		typ, h, err := c.r.Next()
		if err != nil {
			return err
		}
		if !c.seen.Load() {
			c.seen.Store(true)
		}
		switch typ {
		case wire.TypeCapsuleCmd:
			err = c.capsule(h)
		case wire.TypeH2CData:
			err = c.h2cData(h)
		case wire.TypeH2CTermReq:
			term := wire.ParseTermReq(h)
			c.log.Warn("a host ended a connection", "reason", term.FES.String(), "information", term.FEI, "host", c.hostNQN(), "queue", c.qid)
			return io.EOF
		default:
			err = c.sequenceError(typ, h)
		}
		if err != nil {
			return err
		}
		if c.leaving.Load() {
			c.finishCommands()
			return io.EOF
		}
	}
}

// needsFlush reports whether as much is to be sent as ought to be held back.
func (c *conn) needsFlush() bool { return c.queued.Load() >= flushAt }

// awaitRoom waits until the host has taken so many answers that it may have
// more of them, so that one that takes none cannot make them pile up.
func (c *conn) awaitRoom() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing && !c.closed {
		n := len(c.pending.buf)
		if c.qid == 0 {
			n = c.pending.bytes // no budget bounds an admin queue's data
		}
		if n < 2*flushAt {
			break
		}
		c.drained.Wait()
	}
}

// flush sends what is to be sent, unless somebody is about it: then they will.
func (c *conn) flush() {
	c.mu.Lock()
	if c.writing {
		c.mu.Unlock()
		return
	}
	c.writing = true
	for !c.pending.empty() && !c.closed {
		b := c.pending
		c.pending, c.batchLen = batch{}, len(b.buf)
		c.queued.Store(0)
		c.mu.Unlock()
		if err := c.write(&b); err != nil {
			c.close()
		}
		c.mu.Lock()
		c.drained.Broadcast()
	}
	c.writing = false
	c.drained.Broadcast()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		c.flushDropped()
	}
}

// write sends a batch and gives back what it held.
func (c *conn) write(b *batch) (err error) {
	if len(b.splices) == 0 {
		_, err = c.nc.Write(b.buf)
	} else {
		var room [32][]byte
		v := b.vectors(room[:0])
		_, err = v.WriteTo(c.nc)
	}
	c.moved.Store(true)
	c.releaseAll(b)
	return err
}

// releaseAll gives back a batch's buffers. An idle connection has none.
func (c *conn) releaseAll(b *batch) {
	for _, s := range b.splices {
		c.release(s.buf, s.mem)
	}
	if b.buf != nil {
		putBuffer(b.buf)
	}
}

// batch returns what is to be sent, to append to. Callers hold c.mu.
func (c *conn) batch() *batch {
	if c.pending.buf == nil {
		c.pending.buf = getBuffer(c.batchLen)[:0]
	}
	return &c.pending
}

// release gives back a command's data.
func (c *conn) release(buf []byte, mem int64) {
	if buf != nil {
		putBuffer(buf)
	}
	if mem > 0 {
		c.mem.release(mem)
		c.t.mem.release(mem)
	}
}

// flushDropped gives back what a closed connection had still to send.
func (c *conn) flushDropped() {
	c.mu.Lock()
	b := c.pending
	c.pending = batch{}
	c.mu.Unlock()
	c.releaseAll(&b)
}

// slot returns a free command, nil if the host has as many outstanding as its
// queue has entries.
func (c *conn) slot() *command {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy >= c.size {
		return nil
	}
	c.busy++
	if c.head++; int(c.head) >= c.size {
		c.head = 0
	}
	if n := len(c.free); n > 0 {
		cmd := c.slots[c.free[n-1]]
		c.free = c.free[:n-1]
		cmd.op, cmd.ns, cmd.have, cmd.asked, cmd.arrived, cmd.pair = nil, nil, 0, 0, false, nil
		return cmd
	}
	cmd := &command{c: c, tag: uint16(len(c.slots))}
	c.slots = append(c.slots, cmd)
	return cmd
}

// respond sends a response capsule for a command that has no slot.
func (c *conn) respond(sqe *wire.SQE, status wire.Status, result uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.appendResponse(sqe.CID(), status, result)
}

// appendResponse is for who holds c.mu.
func (c *conn) appendResponse(cid uint16, status wire.Status, result uint64) {
	if c.closed {
		return
	}
	head := c.head
	if c.noFlow {
		head = 0
	}
	b := c.batch()
	n := len(b.buf)
	b.buf = c.tx.AppendResponse(b.buf, wire.CQE{Result: result, SQHead: head, SQID: c.qid, CID: cid, Status: status})
	b.bytes += len(b.buf) - n
	c.queued.Store(int64(b.bytes))
}

// appendData sends data; it keeps buf, and mem bytes of the budgets, until the
// data is sent, and reports whether it did.
func (c *conn) appendData(d wire.Data, buf []byte, mem int64) (kept bool) {
	if c.closed {
		return false
	}
	b := c.batch()
	n := len(b.buf)
	b.buf = c.tx.AppendC2HData(b.buf, d)
	if len(buf) <= copyMax {
		b.buf = append(b.buf, buf...)
	} else {
		b.splices = append(b.splices, splice{len(b.buf), buf, mem})
		b.bytes += len(buf)
		kept = true
	}
	b.buf = c.tx.AppendDigest(b.buf, buf)
	b.bytes += len(b.buf) - n
	c.queued.Store(int64(b.bytes))
	return kept
}

// begin notes that a command goes to a device; false: the connection is gone
// and the command must not.
func (c *conn) begin() bool {
	if c.running.Add(1) >= closedBit {
		c.end()
		return false
	}
	return true
}

// end notes that it is back.
func (c *conn) end() {
	switch n := c.running.Add(-1); {
	case n == closedBit:
		c.idleOnce.Do(func() { close(c.idle) })
	case n == 0 && (c.draining.Load() || c.leaving.Load()):
		c.mu.Lock()
		c.drained.Broadcast()
		c.mu.Unlock()
	}
}

// abandon gives up the commands that wait for data.
func (c *conn) abandon() {
	c.mu.Lock()
	var left []*command
	for _, cmd := range c.slots {
		if cmd.advance(stateReceiving, stateFree) {
			left = append(left, cmd)
		}
	}
	c.mu.Unlock()
	for _, cmd := range left {
		c.release(cmd.buf, cmd.mem)
		cmd.buf, cmd.mem = nil, 0
	}
}

// stalled reports whether the host owes data, or does not take ours, for
// longer than it may. It is called at every tick.
func (c *conn) stalled(now time.Time) bool {
	c.mu.Lock()
	waits := c.awaiting > 0 || c.writing
	c.mu.Unlock()
	if c.moved.Swap(false) || !waits {
		c.progress.Store(now.UnixNano())
		return false
	}
	return now.UnixNano()-c.progress.Load() > int64(c.t.o.StallTimeout)
}

// drain lets commands finish and then ends the connection.
func (c *conn) drain() {
	c.draining.Store(true)
	_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // the reader takes nothing more
}

// finishCommands waits until what is at devices has been answered, and all
// answers are sent.
func (c *conn) finishCommands() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed {
		switch {
		case c.writing, c.running.Load() > 0 && c.pending.empty():
			c.drained.Wait()
		case c.pending.empty():
			return
		default:
			c.mu.Unlock()
			c.flush() // unless a worker is faster, who is then waited for
			c.mu.Lock()
		}
	}
}
