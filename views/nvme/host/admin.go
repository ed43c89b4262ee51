package host

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

// identify returns an identify structure. Its CNS says of what.
func (c *Controller) identify(ctx context.Context, cns uint8, nsid uint32) ([]byte, error) {
	cmd := Command{Data: make([]byte, wire.IdentifyLen), What: fmt.Sprintf("identify (CNS %02xh)", cns)}
	if nsid != 0 {
		cmd.What += fmt.Sprintf(" of namespace %d", nsid)
	}
	cmd.SQE.SetOpcode(wire.OpIdentify)
	cmd.SQE.SetNSID(nsid)
	cmd.SQE.SetCDW(10, uint32(cns))
	if err := c.admin.Do(ctx, &cmd); err != nil {
		return nil, err
	}
	return cmd.Data, nil
}

// maxNamespaces bounds what a target can make a host list.
const maxNamespaces = 64 << 10

// Namespaces returns the active namespaces' IDs, in their order.
func (c *Controller) Namespaces(ctx context.Context) ([]uint32, error) {
	var all []uint32
	for after := uint32(0); ; {
		b, err := c.identify(ctx, wire.CNSActiveNamespaces, after)
		if err != nil {
			return nil, err
		}
		list := wire.ParseNamespaceList(b)
		for _, id := range list {
			if id <= after {
				return nil, capsule.Errorf(capsule.IO, "the list of namespaces is not in order: %d after %d", id, after)
			}
			after = id
		}
		if all = append(all, list...); len(all) > maxNamespaces {
			return nil, capsule.Errorf(capsule.Unsupported, "the target has more than %d namespaces", maxNamespaces)
		}
		if len(list) < wire.IdentifyLen/4 {
			return all, nil
		}
	}
}

// IdentifyNamespace returns what the controller says of a namespace.
func (c *Controller) IdentifyNamespace(ctx context.Context, nsid uint32) (*wire.IdentifyNamespace, error) {
	b, err := c.identify(ctx, wire.CNSNamespace, nsid)
	if err != nil {
		return nil, err
	}
	var n wire.IdentifyNamespace
	return &n, n.Parse(b)
}

// Descriptors returns a namespace's identifiers.
func (c *Controller) Descriptors(ctx context.Context, nsid uint32) ([]wire.Descriptor, error) {
	b, err := c.identify(ctx, wire.CNSDescriptors, nsid)
	if err != nil {
		return nil, err
	}
	return wire.ParseDescriptors(b), nil
}

// LogPage fills p with a log page from offset off on. nsid is 0 for a page of
// the controller.
func (c *Controller) LogPage(ctx context.Context, id uint8, nsid uint32, off int64, p []byte) error {
	return c.logPage(ctx, id, nsid, off, p, pageSize)
}

// logPage reads chunk bytes with each command.
func (c *Controller) logPage(ctx context.Context, id uint8, nsid uint32, off int64, p []byte, chunk int) error {
	if len(p) == 0 || len(p)%4 != 0 || off%4 != 0 {
		return capsule.Errorf(capsule.Invalid, "%d bytes at %d of a log page, which has dwords", len(p), off)
	}
	for len(p) > 0 {
		n := min(len(p), chunk)
		cmd := Command{Data: p[:n], What: fmt.Sprintf("log page %02xh", id)}
		cmd.SQE.SetOpcode(wire.OpGetLogPage)
		cmd.SQE.SetNSID(nsid)
		dwords := uint32(n/4 - 1)
		cmd.SQE.SetCDW(10, uint32(id)|dwords<<16)
		cmd.SQE.SetCDW(11, dwords>>16)
		cmd.SQE.SetCDW(12, uint32(off))
		cmd.SQE.SetCDW(13, uint32(off>>32))
		if err := c.admin.Do(ctx, &cmd); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// SMART returns the health information log.
func (c *Controller) SMART(ctx context.Context) (*wire.SMART, error) {
	var b [wire.SMARTLen]byte
	if err := c.LogPage(ctx, wire.LogSMART, wire.BroadcastNSID, 0, b[:]); err != nil {
		return nil, err
	}
	var s wire.SMART
	return &s, s.Parse(b[:])
}

// Errors returns the error log's entries, the latest first.
func (c *Controller) Errors(ctx context.Context) ([]wire.ErrorEntry, error) {
	b := make([]byte, (int(c.info.ELPE)+1)*wire.ErrorEntryLen)
	if err := c.LogPage(ctx, wire.LogError, wire.BroadcastNSID, 0, b); err != nil {
		return nil, err
	}
	var list []wire.ErrorEntry
	for ; len(b) > 0; b = b[wire.ErrorEntryLen:] {
		var e wire.ErrorEntry
		if err := e.Parse(b); err != nil {
			return nil, err
		}
		if e.Count == 0 {
			break // unused
		}
		list = append(list, e)
	}
	return list, nil
}

// ANA returns the ANA log's groups.
func (c *Controller) ANA(ctx context.Context) ([]wire.ANAGroup, error) {
	size := wire.ANAHeaderLen + int64(c.info.NANAGrpID)*wire.ANAGroupLen + 4*int64(c.info.MNAN)
	b := make([]byte, min(size, int64(c.MaxTransfer())))
	// In one command: the page may be shorter, and nothing can be read behind its end.
	if err := c.logPage(ctx, wire.LogANA, 0, 0, b, len(b)); err != nil {
		return nil, err
	}
	_, groups := wire.ParseANALog(b)
	return groups, nil
}

// Feature returns a feature's current value.
func (c *Controller) Feature(ctx context.Context, id uint8, nsid uint32) (uint32, error) {
	cmd := Command{What: fmt.Sprintf("get feature %02xh", id)}
	cmd.SQE.SetOpcode(wire.OpGetFeatures)
	cmd.SQE.SetNSID(nsid)
	cmd.SQE.SetCDW(10, uint32(id))
	err := c.admin.Do(ctx, &cmd)
	return uint32(cmd.Result), err
}

// SetFeature sets a feature that fits into a dword and returns the result.
func (c *Controller) SetFeature(ctx context.Context, id uint8, nsid, value uint32) (uint32, error) {
	cmd := Command{What: fmt.Sprintf("set feature %02xh", id)}
	cmd.SQE.SetOpcode(wire.OpSetFeatures)
	cmd.SQE.SetNSID(nsid)
	cmd.SQE.SetCDW(10, uint32(id))
	cmd.SQE.SetCDW(11, value)
	err := c.admin.Do(ctx, &cmd)
	return uint32(cmd.Result), err
}

// Event is an asynchronous event.
type Event struct {
	Type, Info, LogPage uint8
}

// Events makes the controller report events of the kinds in mask (the EventsX
// constants of package wire) and returns them. The channel is closed when the
// connection ends. Reading an event's log page lets the next of its kind come.
func (c *Controller) Events(ctx context.Context, mask uint32) (<-chan Event, error) {
	if _, err := c.SetFeature(ctx, wire.FeatAsyncEvents, 0, mask); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if c.events == nil {
		c.events = make(chan Event)
		c.wg.Add(1)
		go c.awaitEvents(c.events)
	}
	return c.events, nil
}

func (c *Controller) awaitEvents(ch chan<- Event) {
	defer c.wg.Done()
	defer close(ch)
	for {
		cmd := Command{silent: true}
		cmd.SQE.SetOpcode(wire.OpAsyncEvent)
		if c.admin.Do(context.Background(), &cmd) != nil {
			return
		}
		e := Event{Type: uint8(cmd.Result) & 7, Info: uint8(cmd.Result >> 8), LogPage: uint8(cmd.Result >> 16)}
		select {
		case ch <- e:
		case <-c.quit:
			return
		}
	}
}

// maxRecords bounds what a discovery service can make a host list.
const maxRecords = 4096

// Discover returns what a discovery controller lists, and the list's
// generation.
func (c *Controller) Discover(ctx context.Context) (entries []wire.DiscoveryEntry, generation uint64, err error) {
	// The list may change while it is read; then it is read again.
	for range 10 {
		var h, again wire.DiscoveryHeader
		if err := c.discoveryHeader(ctx, &h); err != nil {
			return nil, 0, err
		}
		if h.Records > maxRecords {
			return nil, 0, capsule.Errorf(capsule.Unsupported, "the discovery service lists %d entries; this host takes %d", h.Records, maxRecords)
		}
		entries = make([]wire.DiscoveryEntry, h.Records)
		if h.Records > 0 {
			b := make([]byte, h.Records*wire.DiscoveryLen)
			if err := c.LogPage(ctx, wire.LogDiscovery, 0, wire.DiscoveryLen, b); err != nil {
				return nil, 0, err
			}
			for i := range entries {
				if err := entries[i].Parse(b[i*wire.DiscoveryLen:]); err != nil {
					return nil, 0, err
				}
			}
		}
		if err := c.discoveryHeader(ctx, &again); err != nil {
			return nil, 0, err
		}
		if again.Generation == h.Generation {
			return entries, h.Generation, nil
		}
	}
	return nil, 0, capsule.Errorf(capsule.Unavailable, "the discovery log changes faster than it can be read")
}

func (c *Controller) discoveryHeader(ctx context.Context, h *wire.DiscoveryHeader) error {
	b := make([]byte, wire.DiscoveryLen)
	if err := c.LogPage(ctx, wire.LogDiscovery, 0, 0, b); err != nil {
		return err
	}
	return h.Parse(b)
}

// ReservationReport returns who may use a namespace.
func (n *Namespace) ReservationReport(ctx context.Context, q *Queue) (wire.ReservStatus, error) {
	cmd := Command{Data: make([]byte, pageSize), Short: true}
	cmd.SQE.SetOpcode(wire.OpReservReport)
	cmd.SQE.SetNSID(n.ID)
	cmd.SQE.SetCDW(10, uint32(len(cmd.Data)/4-1))
	cmd.SQE.SetCDW(11, 1) // the extended structure, with host IDs of 16 bytes
	if err := q.Do(ctx, &cmd); err != nil {
		return wire.ReservStatus{}, err
	}
	return wire.ParseReservStatus(cmd.Data[:cmd.N], true), nil
}

// reservation makes a reservation command of two keys; dword is CDW10.
func (n *Namespace) reservation(op uint8, dword uint32, keys ...uint64) *Command {
	c := new(Command)
	c.SQE.SetOpcode(op)
	c.SQE.SetNSID(n.ID)
	c.SQE.SetCDW(10, dword)
	for _, k := range keys {
		c.Data = binary.LittleEndian.AppendUint64(c.Data, k)
	}
	return c
}

// Register makes a reservation register command: action is one of
// wire.ReservActRegister, Unregister and Replace, persist one of the
// ReservPersist values.
func (n *Namespace) Register(action uint8, persist uint8, current, key uint64) *Command {
	return n.reservation(wire.OpReservRegister, uint32(action)|uint32(persist)<<30, current, key)
}

// Acquire makes a reservation acquire command: action is one of
// wire.ReservActAcquire, Preempt and PreemptAbort.
func (n *Namespace) Acquire(action, kind uint8, current, preempt uint64) *Command {
	return n.reservation(wire.OpReservAcquire, uint32(action)|uint32(kind)<<8, current, preempt)
}

// Release makes a reservation release command: action is one of
// wire.ReservActRelease and Clear.
func (n *Namespace) Release(action, kind uint8, current uint64) *Command {
	return n.reservation(wire.OpReservRelease, uint32(action)|uint32(kind)<<8, current)
}
