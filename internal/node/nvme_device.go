package node

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/views/nvme"
)

// disk is a capsule as the nvme view wants to see it.
type disk struct {
	nvme.Device
	io.Closer
	info    capsule.Info
	uuid    capsule.ID // as hosts see it
	writes  int        // up to how many bytes a write is atomic
	version uint64     // of an object; of the others, which change in place, 0
}

// openDisk opens a capsule, or a snapshot of it.
func openDisk(ctx context.Context, s *store.Store, info capsule.Info, snapshot string) (*disk, error) {
	switch {
	case info.Kind == capsule.Volume:
		v, err := s.OpenVolume(ctx, info.ID, snapshot)
		if err != nil {
			return nil, err
		}
		d := &disk{Device: volumeDisk{v, snapshot != ""}, Closer: v, info: info, uuid: info.ID, writes: store.MaxAtomicWrite}
		if snapshot != "" {
			created, err := snapshotTime(ctx, s, info.ID, snapshot)
			if err != nil {
				v.Close()
				return nil, err
			}
			d.uuid = snapshotID(info.ID, snapshot, created)
		}
		return d, nil
	case info.Kind == capsule.Object && snapshot == "":
		r, err := s.Open(ctx, info.ID)
		if err != nil {
			return nil, err
		}
		info = r.Info() // of the version that Open pinned
		if info.Size == 0 {
			r.Close()
			return nil, capsule.Errorf(capsule.Unsupported, "capsule %s is empty; there is no disk without a block", info.ID)
		}
		return &disk{Device: objectDisk{r, info.Size}, Closer: r, info: info, uuid: derivedID(info.ID, "version", info.Version), version: info.Version}, nil
	case info.Kind == capsule.Object:
		return nil, capsule.Errorf(capsule.Unsupported, "capsule %s is an object, whose snapshots the nvme view does not show; clone the snapshot and project that", info.ID)
	}
	return nil, capsule.Errorf(capsule.Unsupported, "capsule %s is a %s; the nvme view shows volumes and objects", info.ID, info.Kind)
}

func snapshotTime(ctx context.Context, s *store.Store, id capsule.ID, name string) (int64, error) {
	list, err := s.Snapshots(ctx, id)
	if err != nil {
		return 0, err
	}
	for _, snap := range list {
		if snap.Name == name {
			return snap.Created.UnixNano(), nil
		}
	}
	return 0, capsule.Errorf(capsule.NotFound, "capsule %s has no snapshot %q", id, name)
}

// snapshotID is the UUID of a snapshot; another of its name is another one.
func snapshotID(id capsule.ID, name string, created int64) capsule.ID {
	return derivedID(id, "snapshot "+name, uint64(created))
}

// derivedID is the UUID (version 8, RFC 9562) of what a capsule was at some
// time. Hosts take two disks of one UUID for one, so whatever holds other
// bytes than the capsule needs one of its own, and the same each time.
func derivedID(id capsule.ID, what string, number uint64) capsule.ID {
	h := sha256.New()
	h.Write(id[:])
	io.WriteString(h, what)
	h.Write(binary.BigEndian.AppendUint64(nil, number))
	var u capsule.ID
	copy(u[:], h.Sum(nil))
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return u
}

// volumeDisk is a volume, or a snapshot of one.
type volumeDisk struct {
	*store.Volume
	readOnly bool
}

func (d volumeDisk) ReadOnly() bool { return d.readOnly }

// WriteAt answers when the write outlives this process: a host connects again after
// a restart and does not repeat what was answered, flushed or not.
func (d volumeDisk) WriteAt(p []byte, off int64) (int, error) {
	n, err := d.Volume.WriteAt(p, off)
	if err == nil {
		err = d.Volume.HandOver()
	}
	return n, err
}

// Trim is as WriteAt.
func (d volumeDisk) Trim(ctx context.Context, off, n int64) error {
	if err := d.Volume.Trim(ctx, off, n); err != nil {
		return err
	}
	return d.Volume.HandOver()
}

func (d volumeDisk) NextData(ctx context.Context, off int64) (start, end int64, err error) {
	start, end, err = d.Volume.NextData(ctx, off)
	if err == nil && start == end {
		err = io.EOF
	}
	return start, end, err
}

// objectBlock is an object's block size: what images of disks and CDs can have
// partitions of, whatever they were made for.
const objectBlock = 512

// objectDisk is one version of an object. Its last block is filled with zeros.
type objectDisk struct {
	r    *store.Reader
	size int64
}

func (d objectDisk) Size() int64    { return (d.size + objectBlock - 1) / objectBlock * objectBlock }
func (d objectDisk) BlockSize() int { return objectBlock }
func (d objectDisk) ReadOnly() bool { return true }

func (d objectDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > d.Size() || int64(len(p)) > d.Size()-off {
		return 0, capsule.Errorf(capsule.OutOfRange, "%d bytes at offset %d are not inside the disk of %d bytes", len(p), off, d.Size())
	}
	n, err := d.r.ReadAt(p[:max(min(int64(len(p)), d.size-off), 0)], off)
	if err != nil {
		return n, err
	}
	clear(p[n:])
	return len(p), nil
}

func (d objectDisk) NextData(_ context.Context, off int64) (start, end int64, err error) {
	if off >= d.size {
		return 0, 0, io.EOF
	}
	return off, d.size, nil
}

var errReadOnlyDisk = capsule.Errorf(capsule.ReadOnly, "an object is replaced as a whole and not written to")

func (d objectDisk) WriteAt([]byte, int64) (int, error)       { return 0, errReadOnlyDisk }
func (d objectDisk) Trim(context.Context, int64, int64) error { return errReadOnlyDisk }
func (d objectDisk) Flush(context.Context) error              { return nil }
