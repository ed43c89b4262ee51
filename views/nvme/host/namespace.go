package host

import (
	"context"
	"fmt"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

// Namespace makes commands for one namespace.
type Namespace struct {
	ID        uint32
	BlockSize int
	Blocks    uint64
	ReadOnly  bool // write protected
	Info      wire.IdentifyNamespace

	maxTransfer int
}

// Namespace asks the controller for a namespace, and checks that its format is
// one that this package can use.
func (c *Controller) Namespace(ctx context.Context, nsid uint32) (*Namespace, error) {
	b, err := c.identify(ctx, wire.CNSNamespace, nsid)
	if err != nil {
		return nil, err
	}
	var info wire.IdentifyNamespace
	if err := info.Parse(b); err != nil {
		return nil, err
	}
	// The format in use, of up to 64 (NVM 4.1.5.1): metadata, then the size.
	format := int(info.FLBAS&0x0f | info.FLBAS>>1&0x30)
	f := b[128+4*format:]
	metadata, shift := int(f[0])|int(f[1])<<8, f[2]
	switch {
	case info.NSZE == 0:
		return nil, capsule.Errorf(capsule.NotFound, "there is no namespace %d", nsid)
	case metadata != 0:
		return nil, capsule.Errorf(capsule.Unsupported, "namespace %d has %d bytes of metadata per block", nsid, metadata)
	case shift < 9 || shift > 16:
		return nil, capsule.Errorf(capsule.Unsupported, "namespace %d has blocks of 2^%d bytes", nsid, shift)
	case info.NSZE > 1<<(63-shift)-1:
		return nil, capsule.Errorf(capsule.Unsupported, "namespace %d is larger than this host can count", nsid)
	}
	block := 1 << shift
	return &Namespace{
		ID: nsid, BlockSize: block, Blocks: info.NSZE, ReadOnly: info.NSAttr&wire.NSAttrWriteProtect != 0, Info: info,
		maxTransfer: max(min(c.MaxTransfer(), block*wire.MaxBlocks)/block*block, block),
	}, nil
}

// Size returns the namespace's size in bytes.
func (n *Namespace) Size() int64 { return int64(n.Blocks) * int64(n.BlockSize) }

// MaxTransfer returns how many bytes one command may read or write.
func (n *Namespace) MaxTransfer() int { return n.maxTransfer }

// Set makes c a command with opcode op on the blocks that p covers from block
// lba on: a read into p, a write or a compare of p. flags are of CDW12, such
// as [wire.FUA]. What c held before is lost, but its tag.
func (n *Namespace) Set(c *Command, op uint8, lba uint64, p []byte, flags uint32) {
	*c = Command{Data: p, Tag: c.Tag}
	n.blocks(c, op, lba, len(p)/n.BlockSize, flags)
}

func (n *Namespace) blocks(c *Command, op uint8, lba uint64, count int, flags uint32) {
	c.SQE.SetOpcode(op)
	c.SQE.SetNSID(n.ID)
	c.SQE.SetRange(lba, uint32(count))
	c.SQE.SetCDW(12, c.SQE.CDW(12)|flags)
}

// do runs an I/O command; errors say which.
func (n *Namespace) do(ctx context.Context, q *Queue, c *Command, format string, args ...any) error {
	err := q.Do(ctx, c)
	if err == nil {
		return nil
	}
	return capsule.Wrap(capsule.Other, err, "namespace %d, %s", n.ID, fmt.Sprintf(format, args...))
}

func (n *Namespace) check(p []byte) error {
	if len(p) == 0 || len(p)%n.BlockSize != 0 || len(p)/n.BlockSize > wire.MaxBlocks {
		return capsule.Errorf(capsule.Invalid, "%d bytes in one command; namespace %d has blocks of %d", len(p), n.ID, n.BlockSize)
	}
	return nil
}

// Read fills p from block lba on.
func (n *Namespace) Read(ctx context.Context, q *Queue, lba uint64, p []byte) error {
	return n.move(ctx, q, wire.OpRead, lba, p, 0)
}

// Write writes p at block lba. It is durable after a [Namespace.Flush], or with
// fua when Write returns.
func (n *Namespace) Write(ctx context.Context, q *Queue, lba uint64, p []byte, fua bool) error {
	flags := uint32(0)
	if fua {
		flags = wire.FUA
	}
	return n.move(ctx, q, wire.OpWrite, lba, p, flags)
}

// Compare fails with [wire.CompareFailure] unless the blocks from lba on are p.
func (n *Namespace) Compare(ctx context.Context, q *Queue, lba uint64, p []byte) error {
	return n.move(ctx, q, wire.OpCompare, lba, p, 0)
}

func (n *Namespace) move(ctx context.Context, q *Queue, op uint8, lba uint64, p []byte, flags uint32) error {
	if err := n.check(p); err != nil {
		return err
	}
	var c Command
	n.Set(&c, op, lba, p, flags)
	return n.do(ctx, q, &c, "%d blocks at %d", len(p)/n.BlockSize, lba)
}

// Flush makes every write that was answered before it durable.
func (n *Namespace) Flush(ctx context.Context, q *Queue) error {
	var c Command
	c.SQE.SetOpcode(wire.OpFlush)
	c.SQE.SetNSID(n.ID)
	return n.do(ctx, q, &c, "all of it")
}

// WriteZeroes makes count blocks from lba on zeroes; deallocate says that they
// may give their space back.
func (n *Namespace) WriteZeroes(ctx context.Context, q *Queue, lba uint64, count int, deallocate bool) error {
	if count < 1 || count > wire.MaxBlocks {
		return capsule.Errorf(capsule.Invalid, "%d blocks in one command", count)
	}
	var c Command
	flags := uint32(0)
	if deallocate {
		flags = wire.Deallocate
	}
	n.blocks(&c, wire.OpWriteZeroes, lba, count, flags)
	return n.do(ctx, q, &c, "%d blocks at %d", count, lba)
}

// Verify has the target check that the blocks can be read.
func (n *Namespace) Verify(ctx context.Context, q *Queue, lba uint64, count int) error {
	if count < 1 || count > wire.MaxBlocks {
		return capsule.Errorf(capsule.Invalid, "%d blocks in one command", count)
	}
	var c Command
	n.blocks(&c, wire.OpVerify, lba, count, 0)
	return n.do(ctx, q, &c, "%d blocks at %d", count, lba)
}

// Trim tells the target that the ranges hold nothing any more.
func (n *Namespace) Trim(ctx context.Context, q *Queue, ranges ...wire.DSMRange) error {
	if len(ranges) == 0 || len(ranges) > wire.DSMMaxRanges {
		return capsule.Errorf(capsule.Invalid, "%d ranges to trim in one command", len(ranges))
	}
	var c Command
	c.SQE.SetOpcode(wire.OpDSM)
	c.SQE.SetNSID(n.ID)
	c.SQE.SetCDW(10, uint32(len(ranges)-1))
	c.SQE.SetCDW(11, wire.DSMDeallocate)
	for _, r := range ranges {
		c.Data = wire.AppendDSMRange(c.Data, r)
	}
	return n.do(ctx, q, &c, "%d ranges", len(ranges))
}
