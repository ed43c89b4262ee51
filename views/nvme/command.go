package nvme

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/views/nvme/wire"
)

// The states of a command, in the upper half of [command.state]; its ID is in
// the lower, so that who aborts a command never aborts its slot's next one.
const (
	stateFree      = iota << 16
	stateReceiving // waits for memory or for data from the host
	stateWaiting   // waits for a worker: may be aborted
	stateRunning
	stateAborted // was, while it waited
)

// command is a command of a queue, from its capsule to its answer. Until it
// goes to a worker the connection's reader owns it.
type command struct {
	c     *conn
	tag   uint16 // the slot, and the tag of its R2Ts
	state atomic.Uint32
	sqe   wire.SQE
	began time.Time // of the capsule
	at    time.Time // of its going to the device
	op    *operation
	ns    *namespace // of an I/O command

	buf     []byte      // data from or for the host
	mem     int64       // of the budgets, held for it
	scratch bool        // buf is the connection's
	have    int         // how much data has come
	bad     wire.Status // what it failed with before it could be done

	fuse    uint8
	arrived bool     // it is complete, or failed, and waits for the other of its pair
	pair    *command // the other one of a fused pair

	asked   int // how much data R2Ts have asked for; with windows, guarded by c.mu
	windows []window
}

// window is the data of one R2T.
type window struct{ next, end int }

// direction is which way a command's data goes.
type direction uint8

const (
	noData direction = iota
	toController
	toHost
)

// operation is how a kind of command is done.
type operation struct {
	dir direction
	// length checks the command and returns how much data it has, nil: none.
	length func(cmd *command) (int, wire.Status)
	// run does it and returns status and result. With toHost it fills cmd.buf;
	// what it leaves of it are zeroes.
	run func(cmd *command) (wire.Status, uint64)
	// device says that it may have to wait for a device, so that it cannot be
	// done by the goroutine that takes PDUs.
	device bool
	// quick says that it may be done there all the same if it is small and the
	// device has been answering at once.
	quick bool
	// writes says that it changes a namespace's blocks.
	writes bool
}

// pendingAnswer is no status: somebody else will answer.
const pendingAnswer wire.Status = 0x7ff

// capsule takes a command capsule.
func (c *conn) capsule(h []byte) error {
	if c.ctrl == nil {
		return c.firstCommand(h)
	}
	cmd := c.slot()
	if cmd == nil {
		return &wire.ProtocolError{FES: wire.FESSequence, Header: append([]byte(nil), h...),
			Msg: fmt.Sprintf("more commands than the %d of the queue", c.size)}
	}
	wire.ParseSQE(h, &cmd.sqe)
	cmd.began = time.Now()
	cmd.at = cmd.began
	cmd.state.Store(stateReceiving | uint32(cmd.sqe.CID()))
	status := c.lookUp(cmd)
	n, inCapsule := 0, false
	if status == wire.Success {
		n, inCapsule, status = cmd.data(c.r.DataLen())
	}
	cmd.bad = status
	c.pairUp(cmd)
	if cmd.bad != wire.Success || n == 0 {
		cmd.arrive()
		return nil
	}
	return cmd.admit(n, inCapsule)
}

// lookUp finds what a command is to do.
func (c *conn) lookUp(cmd *command) wire.Status {
	sqe := &cmd.sqe
	if sqe.PSDT() == 0 || sqe.PSDT() == 3 {
		// Over fabrics all commands use SGLs (Base 4.1.2), but a host that has
		// no data to describe may not have said so.
		if sqe.Opcode() != wire.OpFabrics && sqe.SGL().Length > 0 {
			return wire.InvalidField | wire.DNR
		}
	}
	if sqe.Opcode() == wire.OpFabrics {
		cmd.op = fabricsOps[sqe.FCType()]
	} else if !c.ready.Load() {
		return wire.AuthRequired | wire.DNR
	} else if c.qid == 0 {
		if s := c.ctrl.acceptsAdmin(sqe); s != wire.Success {
			return s
		}
		cmd.op = c.ctrl.adminOp(sqe)
	} else {
		cmd.op = ioOps[sqe.Opcode()]
	}
	if cmd.op == nil {
		return wire.InvalidOpcode | wire.DNR
	}
	if c.qid != 0 && sqe.Opcode() != wire.OpFabrics {
		return cmd.findNamespace()
	}
	return wire.Success
}

// data returns how much data the command has, and whether it is in the capsule,
// which has dataLen bytes of it; it has checked the data's descriptor (TCP 3.2).
func (cmd *command) data(dataLen int) (n int, inCapsule bool, status wire.Status) {
	op := cmd.op
	sgl := cmd.sqe.SGL()
	if op.length != nil {
		n, status = op.length(cmd)
	}
	if n == 0 || status != wire.Success {
		return 0, false, status
	}
	switch {
	case n > cmd.c.t.o.MaxTransfer:
		return 0, false, wire.InvalidField | wire.DNR // Base 5.17.2.1, MDTS
	case sgl.Type == wire.SGLInCapsule:
		switch {
		case op.dir != toController:
			return 0, false, wire.SGLInvalidType | wire.DNR
		case sgl.Address > uint64(dataLen):
			return 0, false, wire.SGLInvalidOffset | wire.DNR
		case uint64(sgl.Length) != uint64(n) || uint64(n) > uint64(dataLen)-sgl.Address || n > cmd.c.inCapsule():
			return 0, false, wire.SGLInvalidLength | wire.DNR
		}
		return n, true, wire.Success
	case sgl.Type == wire.SGLTransport:
		// A host may describe more room than there is data for it (log pages).
		if uint64(sgl.Length) < uint64(n) || op.dir == toController && uint64(sgl.Length) != uint64(n) {
			return 0, false, wire.SGLInvalidLength | wire.DNR
		}
		return n, false, wire.Success
	}
	return 0, false, wire.SGLInvalidType | wire.DNR
}

// pairUp joins fused commands: a compare and the write that follows it (Base
// 3.4.2, NVM 2.1.4).
func (c *conn) pairUp(cmd *command) {
	first := c.fused
	if cmd.fuse = cmd.sqe.Fuse(); cmd.fuse == wire.FuseNone && first == nil {
		return
	}
	c.fused = nil
	fail := func(cmd *command, status wire.Status) {
		if cmd.bad == wire.Success {
			cmd.bad = status | wire.DNR
		}
	}
	if first != nil && cmd.fuse != wire.FuseSecond {
		fail(first, wire.MissingFused)
		first.fuse = wire.FuseNone
		if first.arrived {
			first.arrive()
		}
	}
	switch {
	case cmd.fuse == wire.FuseNone:
	case c.qid == 0 || cmd.fuse > wire.FuseSecond:
		fail(cmd, wire.InvalidField)
		cmd.fuse = wire.FuseNone
	case cmd.fuse == wire.FuseFirst:
		c.fused = cmd
	case first == nil:
		fail(cmd, wire.MissingFused)
		cmd.fuse = wire.FuseNone
	default:
		first.pair, cmd.pair = cmd, first
		if first.sqe.Opcode() != wire.OpCompare || cmd.sqe.Opcode() != wire.OpWrite || first.sqe.NSID() != cmd.sqe.NSID() ||
			first.sqe.SLBA() != cmd.sqe.SLBA() || first.sqe.Blocks() != cmd.sqe.Blocks() {
			fail(first, wire.InvalidField)
			fail(cmd, wire.InvalidField)
		}
	}
}

// admit gets memory for n bytes of data, and has the data come.
func (cmd *command) admit(n int, inCapsule bool) error {
	c := cmd.c
	switch {
	case inCapsule:
		cmd.take(n)
		if at := int(cmd.sqe.SGL().Address); at > 0 {
			if err := c.r.ReadData(make([]byte, at)); err != nil {
				return err
			}
		}
		switch err := c.r.ReadData(cmd.buf); {
		case err == wire.ErrDataDigest:
			c.t.stats.digestErrors.Add(1)
			cmd.bad = wire.TransientTransport
		case err != nil:
			return err
		}
		cmd.have = n
		cmd.arrive()
	case cmd.op.dir == toHost && !cmd.op.device:
		cmd.take(n)
		clear(cmd.buf)
		cmd.arrive()
	case cmd.op.dir == toHost && n <= copyMax && cmd.inline(n):
		if len(c.scratch) < copyMax {
			c.scratch = make([]byte, copyMax)
		}
		cmd.buf, cmd.scratch = c.scratch[:n], true
		cmd.arrive()
	default:
		cmd.reserve(n)
	}
	return nil
}

// take has memory at once: for data in capsules, of which a queue has so many
// at most, and for answers that are sent before the next command is looked at.
func (cmd *command) take(n int) {
	cmd.c.mem.take(int64(n))
	cmd.c.t.mem.take(int64(n))
	cmd.buf, cmd.mem = getBuffer(n), int64(n)
}

// reserve waits for memory without holding up the connection, whose other
// commands may have to get on before there is any.
func (cmd *command) reserve(n int) {
	c := cmd.c
	m := int64(n)
	global := func() {
		if c.t.mem.acquire(m, c, func() { cmd.later(n) }) {
			cmd.later(n)
		}
	}
	if !c.mem.acquire(m, c, global) {
		return
	}
	if c.t.mem.acquire(m, c, func() { cmd.later(n) }) {
		cmd.granted(n)
	}
}

// later is granted for goroutines that are about something else.
func (cmd *command) later(n int) {
	if cmd.granted(n) {
		cmd.c.t.flushSoon(cmd.c)
	}
}

// granted goes on with a command that has its memory. It reports whether there
// is something to be sent.
func (cmd *command) granted(n int) (send bool) {
	c := cmd.c
	buf := getBuffer(n)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.release(buf, int64(n))
		return false
	}
	cmd.buf, cmd.mem = buf, int64(n)
	if cmd.op.dir == toController {
		cmd.ask()
		c.mu.Unlock()
		return true
	}
	c.mu.Unlock()
	cmd.dispatch()
	return false
}

// ask sends R2Ts, as many as the host takes at a time. Callers hold c.mu.
func (cmd *command) ask() {
	c := cmd.c
	for cmd.asked < len(cmd.buf) && uint32(len(cmd.windows)) < c.r2ts && len(cmd.windows) < maxWindows {
		n := min(c.t.o.R2TSize, len(cmd.buf)-cmd.asked)
		b := c.batch()
		at := len(b.buf)
		b.buf = c.tx.AppendR2T(b.buf, wire.R2T{CID: cmd.sqe.CID(), TTag: cmd.tag, Offset: uint32(cmd.asked), Length: uint32(n)})
		b.bytes += len(b.buf) - at
		c.queued.Store(int64(b.bytes))
		cmd.windows = append(cmd.windows, window{cmd.asked, cmd.asked + n})
		cmd.asked += n
		c.awaiting++
	}
}

// maxWindows bounds the R2Ts of a command that are outstanding.
const maxWindows = 16

// h2cData takes data that an R2T asked for (TCP 3.6.2.8).
func (c *conn) h2cData(h []byte) error {
	d, err := wire.ParseData(h, c.r.DataLen())
	if err != nil {
		return err
	}
	bad := func(fes wire.FES, fei uint32, format string, args ...any) error {
		return &wire.ProtocolError{FES: fes, FEI: fei, Header: append([]byte(nil), h...), Msg: "H2CData: " + fmt.Sprintf(format, args...)}
	}
	if int(d.TTag) >= len(c.slots) {
		return bad(wire.FESInvalidHeader, 10, "transfer tag %d", d.TTag)
	}
	cmd := c.slots[d.TTag]
	at := -1
	c.mu.Lock()
	outstanding := len(cmd.windows)
	for i, w := range cmd.windows {
		if w.next == int(d.Offset) {
			at = i
		}
	}
	end := 0
	if at >= 0 {
		end = cmd.windows[at].end
	}
	c.mu.Unlock()
	switch {
	case outstanding == 0:
		return bad(wire.FESInvalidHeader, 10, "transfer tag %d has no R2T outstanding", d.TTag)
	case d.CID != cmd.sqe.CID():
		return bad(wire.FESInvalidHeader, 8, "command %d for the transfer tag of command %d", d.CID, cmd.sqe.CID())
	case d.Length == 0:
		return bad(wire.FESInvalidHeader, 16, "no data")
	case int64(d.Length) > int64(c.t.o.MaxH2CData):
		return bad(wire.FESLimitExceeded, 0, "%d bytes of data", d.Length)
	case at < 0:
		return bad(wire.FESOutOfRange, 12, "data at offset %d was not asked for", d.Offset)
	case int64(d.Length) > int64(end)-int64(d.Offset):
		return bad(wire.FESOutOfRange, 16, "data to offset %d, asked was to %d", int64(d.Offset)+int64(d.Length), end)
	case d.Last != (int(d.Offset)+int(d.Length) == end) && d.Last:
		return bad(wire.FESSequence, 0, "the last data ends at %d, asked was to %d", int64(d.Offset)+int64(d.Length), end)
	}
	switch err := c.r.ReadData(cmd.buf[d.Offset:][:d.Length]); {
	case err == wire.ErrDataDigest:
		c.t.stats.digestErrors.Add(1)
		cmd.bad = wire.TransientTransport
	case err != nil:
		return err
	}
	c.moved.Store(true)
	cmd.have += int(d.Length)
	c.mu.Lock()
	w := &cmd.windows[at]
	if w.next += int(d.Length); w.next == w.end {
		cmd.windows = append(cmd.windows[:at], cmd.windows[at+1:]...)
		c.awaiting--
		cmd.ask()
	}
	c.mu.Unlock()
	if cmd.have == len(cmd.buf) {
		cmd.arrive()
	}
	return nil
}

// arrive goes on with a command that needs nothing more from the host.
func (cmd *command) arrive() {
	if cmd.fuse != wire.FuseNone {
		cmd.arrived = true
		if cmd.pair == nil || !cmd.pair.arrived {
			return
		}
		if cmd.fuse == wire.FuseSecond {
			cmd = cmd.pair
		}
		if bad := cmd.pair.bad; cmd.bad == wire.Success && bad != wire.Success {
			cmd.bad = wire.FailedFused
		}
	}
	if cmd.bad != wire.Success {
		cmd.complete(cmd.bad, 0)
		return
	}
	cmd.dispatch()
}

// inline reports whether the reader may do a command with n bytes of data
// itself, because it will not have to wait.
func (cmd *command) inline(n int) bool {
	return cmd.op.quick && n <= inlineMax && cmd.fuse == wire.FuseNone && cmd.sqe.CDW(12)&wire.FUA == 0 && cmd.ns.quick()
}

// inlineMax is how much data a command may have that the reader does itself.
const inlineMax = 16 << 10

// dispatch has a command executed.
func (cmd *command) dispatch() {
	if !cmd.advance(stateReceiving, stateWaiting) {
		return // abandoned
	}
	if cmd.pair != nil {
		cmd.pair.advance(stateReceiving, stateRunning)
	}
	if !cmd.c.begin() {
		cmd.drop()
		return
	}
	switch {
	case !cmd.op.device, cmd.scratch:
		cmd.execute()
	case cmd.op.dir == toController && cmd.inline(len(cmd.buf)):
		cmd.at = time.Now() // its data may have been long in coming
		cmd.execute()
	case cmd.ns != nil:
		cmd.ns.workers.submit(cmd)
	default:
		cmd.c.ctrl.workers.submit(cmd)
	}
}

// advance brings a command from one state to the next; false: it is not in that state.
func (cmd *command) advance(from, to uint32) bool {
	id := uint32(cmd.sqe.CID())
	return cmd.state.CompareAndSwap(from|id, to|id)
}

// execute does a command and answers it.
func (cmd *command) execute() {
	c := cmd.c
	defer c.end()
	switch {
	case !cmd.advance(stateWaiting, stateRunning):
		cmd.complete(wire.AbortRequested, 0)
	case c.isClosed():
		// Whoever sent it may be about to send it again on another
		// connection, and must find that this one does nothing any more.
		cmd.drop()
	default:
		status, result := cmd.op.run(cmd)
		if status != pendingAnswer {
			cmd.complete(status, result)
		}
	}
}

// drop forgets a command of a connection that is gone.
func (cmd *command) drop() {
	if cmd.pair != nil {
		cmd.pair.reset()
	}
	cmd.reset()
}

// reset gives back what a command holds.
func (cmd *command) reset() {
	if !cmd.scratch {
		cmd.c.release(cmd.buf, cmd.mem)
	}
	cmd.buf, cmd.mem, cmd.scratch = nil, 0, false
	cmd.state.Store(stateFree)
}

// complete answers a command, and the other one of its pair where there is
// one: cmd is the first.
func (cmd *command) complete(status wire.Status, result uint64) {
	if second := cmd.pair; second != nil {
		cmd.pair, second.pair = nil, nil
		cmd.fuse, second.fuse = wire.FuseNone, wire.FuseNone
		switch {
		case second.bad != wire.Success:
			second.complete(second.bad, 0)
		case status.Code() != wire.Success:
			second.complete(wire.FailedFused, 0)
		default:
			second.complete(wire.Success, 0)
		}
	}
	c := cmd.c
	c.ctrl.account(cmd, status)
	kept := false
	c.mu.Lock()
	success := false
	if n := len(cmd.buf); n > 0 && cmd.op.dir == toHost && status == wire.Success {
		// Without flow control the host needs no SQHD, so that data with the
		// SUCCESS flag is an answer in itself (TCP 3.6.2.9).
		success = c.noFlow && result == 0
		kept = c.appendData(wire.Data{CID: cmd.sqe.CID(), Length: uint32(n), Last: true, Success: success}, cmd.buf, cmd.mem)
	}
	if !success {
		c.appendResponse(cmd.sqe.CID(), status, result)
	}
	buf, mem := cmd.buf, cmd.mem
	if kept || cmd.scratch {
		buf, mem = nil, 0
	}
	cmd.buf, cmd.mem, cmd.scratch = nil, 0, false
	cmd.state.Store(stateFree)
	c.free = append(c.free, cmd.tag)
	c.busy--
	c.mu.Unlock()
	c.release(buf, mem)
}

// forget ends a command that is not answered.
func (cmd *command) forget() {
	c := cmd.c
	c.mu.Lock()
	defer c.mu.Unlock()
	cmd.state.Store(stateFree)
	c.free = append(c.free, cmd.tag)
	c.busy--
}

// abort marks a command that waits for a worker (Base 5.1). It reports whether
// it did, so that the command will not be done.
func (c *conn) abort(cid uint16) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cmd := range c.slots {
		if cmd.state.CompareAndSwap(stateWaiting|uint32(cid), stateAborted|uint32(cid)) {
			return true
		}
	}
	return false
}
