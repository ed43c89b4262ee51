package nvme

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

const (
	// verifyChunk is how much a verify reads at a time.
	verifyChunk = 1 << 20
	// trimPart is how much of a deallocation locks out others at a time.
	trimPart = 1 << 30
)

// The I/O commands (NVM 3.2).
var ioOps = map[uint8]*operation{
	wire.OpFlush:       {run: (*command).flush, device: true},
	wire.OpRead:        {run: (*command).read, dir: toHost, length: (*command).transferLength, device: true, quick: true},
	wire.OpWrite:       {run: (*command).write, dir: toController, length: (*command).transferLength, device: true, quick: true, writes: true},
	wire.OpCompare:     {run: (*command).compare, dir: toController, length: (*command).transferLength, device: true},
	wire.OpWriteZeroes: {run: (*command).writeZeroes, length: (*command).rangeOnly, device: true, writes: true},
	wire.OpDSM:         {run: (*command).datasetManagement, dir: toController, length: (*command).dsmLength, device: true, writes: true},
	wire.OpVerify:      {run: (*command).verify, length: (*command).rangeOnly, device: true},

	wire.OpReservRegister: {run: (*command).reservRegister, dir: toController, length: func(*command) (int, wire.Status) { return 16, wire.Success }, device: true},
	wire.OpReservAcquire:  {run: (*command).reservAcquire, dir: toController, length: func(*command) (int, wire.Status) { return 16, wire.Success }, device: true},
	wire.OpReservRelease:  {run: (*command).reservRelease, dir: toController, length: func(*command) (int, wire.Status) { return 8, wire.Success }, device: true},
	wire.OpReservReport:   {run: (*command).reservReport, dir: toHost, length: (*command).reservReportLength, device: true},
}

// findNamespace finds the namespace of an I/O command and whether this
// controller gives access to it (Base 8.1.3).
func (cmd *command) findNamespace() wire.Status {
	ctrl := cmd.c.ctrl
	nsid := cmd.sqe.NSID()
	if nsid == wire.BroadcastNSID && cmd.sqe.Opcode() == wire.OpFlush {
		return wire.Success
	}
	if cmd.ns = ctrl.s.namespace(nsid); cmd.ns == nil {
		return wire.InvalidNamespace | wire.DNR
	}
	if ctrl.s.ana.Load() == nil {
		return wire.Success
	}
	switch ctrl.s.anaState(ctrl.port.ID, cmd.ns.ANAGroup) {
	case Inaccessible:
		return wire.ANAInaccessible
	case Lost:
		return wire.ANAPersistentLoss | wire.DNR
	case Changing:
		return wire.ANATransition
	}
	return wire.Success
}

// checkRange checks that the command's blocks are there.
func (cmd *command) checkRange() wire.Status {
	blocks, size := uint64(cmd.sqe.Blocks()), cmd.ns.blocks()
	if slba := cmd.sqe.SLBA(); slba > size || blocks > size-slba {
		return wire.LBARange | wire.DNR
	}
	return wire.Success
}

// extent returns the command's bytes.
func (cmd *command) extent() (off, n int64) {
	return int64(cmd.sqe.SLBA()) << cmd.ns.shift, int64(cmd.sqe.Blocks()) << cmd.ns.shift
}

// transferLength is the length of a command whose data are its blocks.
func (cmd *command) transferLength() (int, wire.Status) {
	if cmd.sqe.CDW(12)&wire.PRInfo != 0 {
		return 0, wire.InvalidField | wire.DNR // there is no protection information
	}
	if s := cmd.checkRange(); s != wire.Success {
		return 0, s
	}
	return int(cmd.sqe.Blocks()) << cmd.ns.shift, wire.Success
}

// rangeOnly is for commands that have blocks and no data.
func (cmd *command) rangeOnly() (int, wire.Status) {
	_, s := cmd.transferLength()
	return 0, s
}

// enter takes the namespace's gate for a command, if it may do what it is
// about to (Base 8.19, figure 431). After success the caller leaves.
func (cmd *command) enter(write bool) wire.Status {
	cmd.ns.gate.RLock()
	s := cmd.mayAccess(write)
	if s != wire.Success {
		cmd.leave()
	}
	return s
}

func (cmd *command) leave() { cmd.ns.gate.RUnlock() }

// mayAccess is for who holds the gate.
func (cmd *command) mayAccess(write bool) wire.Status {
	ns := cmd.ns
	switch {
	case ns.removed:
		return wire.InvalidNamespace | wire.DNR
	case !ns.resv.allows(cmd.c.ctrl.hostID, write):
		return wire.ReservationConflict | wire.DNR
	case write && ns.readOnly():
		return wire.WriteProtected | wire.DNR
	}
	return wire.Success
}

// failed counts and maps a device's failure.
func (cmd *command) failed(err error, write bool) wire.Status {
	s := statusOf(err, write)
	t := cmd.c.t
	if c := s.Code(); c == wire.UnrecoveredRead || c == wire.WriteFault {
		t.stats.mediaErrors.Add(1)
	}
	cmd.c.log.Error("an NVMe command failed", "command", wire.OpcodeName(false, &cmd.sqe), "namespace", cmd.ns.NSID,
		"lba", cmd.sqe.SLBA(), "blocks", cmd.sqe.Blocks(), "error", err, "status", s.String())
	return s
}

// read reads blocks (NVM 3.2.4).
func (cmd *command) read() (wire.Status, uint64) {
	if s := cmd.enter(false); s != wire.Success {
		return s, 0
	}
	defer cmd.leave()
	off, _ := cmd.extent()
	if err := cmd.ns.readAt(cmd.buf, off); err != nil {
		return cmd.failed(err, false), 0
	}
	return wire.Success, 0
}

// readAt fills p.
func (ns *namespace) readAt(p []byte, off int64) error {
	unlock := ns.lockRange(off, len(p), false)
	defer unlock()
	n, err := ns.Device.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return capsule.Errorf(capsule.OutOfRange, "%d of %d bytes at %d", n, len(p), off)
	}
	return err
}

// write writes blocks (NVM 3.2.6).
func (cmd *command) write() (wire.Status, uint64) {
	if s := cmd.enter(true); s != wire.Success {
		return s, 0
	}
	defer cmd.leave()
	return cmd.writeData(), 0
}

// writeData is write for who holds the gate.
func (cmd *command) writeData() wire.Status {
	off, _ := cmd.extent()
	if err := cmd.ns.writeAt(cmd.buf, off); err != nil {
		return cmd.failed(err, true)
	}
	return cmd.forceUnit()
}

func (ns *namespace) writeAt(p []byte, off int64) error {
	unlock := ns.lockRange(off, len(p), true)
	defer unlock()
	n, err := ns.Device.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = capsule.Errorf(capsule.IO, "%d of %d bytes written at %d", n, len(p), off)
	}
	return err
}

// forceUnit makes what a command wrote durable, if it asks for that.
func (cmd *command) forceUnit() wire.Status {
	if cmd.sqe.CDW(12)&wire.FUA == 0 {
		return wire.Success
	}
	if err := cmd.ns.Device.Flush(context.Background()); err != nil {
		return cmd.failed(err, true)
	}
	return wire.Success
}

// flush makes durable what was written before it (Base 7.1).
func (cmd *command) flush() (wire.Status, uint64) {
	if cmd.ns != nil {
		// A flush is among the commands that write (Base figure 431).
		cmd.ns.gate.RLock()
		allowed := cmd.ns.resv.allows(cmd.c.ctrl.hostID, true)
		cmd.ns.gate.RUnlock()
		if !allowed {
			return wire.ReservationConflict | wire.DNR, 0
		}
		return cmd.flushOne(cmd.ns), 0
	}
	for _, ns := range *cmd.c.ctrl.s.namespaces.Load() {
		if s := cmd.flushOne(ns); s != wire.Success {
			return s, 0
		}
	}
	return wire.Success, 0
}

func (cmd *command) flushOne(ns *namespace) wire.Status {
	err := ns.flush()
	if err == nil {
		return wire.Success
	}
	s := statusOf(err, true)
	cmd.c.log.Error("an NVMe flush failed", "namespace", ns.NSID, "error", err, "status", s.String())
	return s
}

// flush makes a namespace's device durable. One that is gone or takes no
// writes has nothing to flush.
func (ns *namespace) flush() error {
	ns.gate.RLock()
	defer ns.gate.RUnlock()
	if ns.removed || ns.readOnly() {
		return nil
	}
	return ns.Device.Flush(context.Background())
}

// compare compares blocks with the host's data (NVM 3.2.1), and as the first
// of a fused pair writes others if they are equal, with nobody in between.
func (cmd *command) compare() (wire.Status, uint64) {
	if cmd.pair == nil {
		if s := cmd.enter(false); s != wire.Success {
			return s, 0
		}
		defer cmd.leave()
		return cmd.compareData(), 0
	}
	cmd.pair.ns = cmd.ns
	cmd.ns.lockGate()
	defer cmd.ns.unlockGate()
	if s := cmd.mayAccess(true); s != wire.Success {
		return s, 0
	}
	if s := cmd.compareData(); s != wire.Success {
		return s, 0
	}
	if s := cmd.pair.writeData(); s != wire.Success {
		cmd.pair.bad = s
	}
	return wire.Success, 0
}

func (cmd *command) compareData() wire.Status {
	off, n := cmd.extent()
	have := getBuffer(int(n))
	defer putBuffer(have)
	if err := cmd.ns.readAt(have, off); err != nil {
		return cmd.failed(err, false)
	}
	if !bytes.Equal(have, cmd.buf) {
		return wire.CompareFailure | wire.DNR
	}
	return wire.Success
}

// writeZeroes makes zeroes of blocks (NVM 3.2.8). They take no space whether
// the host asks for that or not, as DLFEAT says.
func (cmd *command) writeZeroes() (wire.Status, uint64) {
	if s := cmd.enter(true); s != wire.Success {
		return s, 0
	}
	defer cmd.leave()
	off, n := cmd.extent()
	if err := cmd.ns.trim(off, n); err != nil {
		return cmd.failed(err, true), 0
	}
	return cmd.forceUnit(), 0
}

func (ns *namespace) trim(off, n int64) error {
	unlock := ns.lockRange(off, int(n), true)
	defer unlock()
	return ns.Device.Trim(context.Background(), off, n)
}

// dsmRanges is the length of a dataset management command's ranges.
func (cmd *command) dsmRanges() int { return (int(cmd.sqe.CDW(10)&0xff) + 1) * wire.DSMRangeLen }

// dsmLength is the length of a dataset management command's data. Linux sends as
// much as the most ranges take, however few there are.
func (cmd *command) dsmLength() (int, wire.Status) {
	n := cmd.dsmRanges()
	if sent := int(cmd.sqe.SGL().Length); sent > n && sent <= wire.DSMMaxRanges*wire.DSMRangeLen {
		n = sent
	}
	return n, wire.Success
}

// datasetManagement takes back space (NVM 3.2.3). Other hints are not used.
func (cmd *command) datasetManagement() (wire.Status, uint64) {
	if s := cmd.enter(true); s != wire.Success {
		return s, 0
	}
	defer cmd.leave()
	if cmd.sqe.CDW(11)&wire.DSMDeallocate == 0 {
		return wire.Success, 0
	}
	size := cmd.ns.blocks()
	var ranges []wire.DSMRange
	for b := cmd.buf[:cmd.dsmRanges()]; len(b) > 0; b = b[wire.DSMRangeLen:] {
		r := wire.ParseDSMRange(b)
		if r.SLBA > size || uint64(r.Blocks) > size-r.SLBA {
			return wire.LBARange | wire.DNR, 0
		}
		ranges = append(ranges, r)
	}
	for _, r := range ranges {
		// In parts, so that others get their turn.
		off, left := int64(r.SLBA)<<cmd.ns.shift, int64(r.Blocks)<<cmd.ns.shift
		for left > 0 {
			n := min(left, trimPart)
			if err := cmd.ns.trim(off, n); err != nil {
				return cmd.failed(err, true), 0
			}
			off, left = off+n, left-n
		}
	}
	return wire.Success, 0
}

// verify reads blocks to see whether they can be read (NVM 3.2.5).
func (cmd *command) verify() (wire.Status, uint64) {
	if s := cmd.enter(false); s != wire.Success {
		return s, 0
	}
	defer cmd.leave()
	off, n := cmd.extent()
	buf := getBuffer(int(min(n, verifyChunk)))
	defer putBuffer(buf)
	for end := off + n; off < end; {
		// What holds nothing needs no reading.
		start, _, err := cmd.ns.Device.NextData(context.Background(), off)
		if err == io.EOF || err == nil && start >= end {
			break
		}
		if err == nil && start > off {
			off = start >> cmd.ns.shift << cmd.ns.shift
		}
		p := buf[:min(int64(len(buf)), end-off)]
		if err := cmd.ns.readAt(p, off); err != nil {
			return cmd.failed(err, false), 0
		}
		off += int64(len(p))
	}
	return wire.Success, 0
}
