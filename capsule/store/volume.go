package store

import (
	"context"
	"io"
	"sync"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/lock"
)

// volumeFile is the file that holds a volume's bytes.
const volumeFile = 1

// MaxAtomicWrite is the largest write, in bytes, of which a power cut leaves all
// or nothing, wherever it begins.
const MaxAtomicWrite = maxUpdate

// Volume is an open volume, or a snapshot of one. It may be used from many
// goroutines. Writes of up to 1 MiB are whole or not there after a power cut.
type Volume struct {
	*Live
	mode VolumeMode
	once sync.Once
}

// OpenVolume opens a volume, or a snapshot of it if snapshot is not "". A
// snapshot is open for reading whatever the mode says.
func (s *Store) OpenVolume(ctx context.Context, id capsule.ID, snapshot string, mode VolumeMode) (*Volume, error) {
	l, err := s.OpenLive(ctx, id, snapshot)
	if err != nil {
		return nil, err
	}
	if l.info.Kind != capsule.Volume {
		l.Close()
		return nil, capsule.Errorf(capsule.Unsupported, "capsule %s is a %s and no volume", id, l.info.Kind)
	}
	if l.ReadOnly() {
		mode = ReadVolume
	}
	if err := l.line.users.join(mode); err != nil {
		l.Close()
		return nil, capsule.Wrap(capsule.Other, err, "capsule %s", id)
	}
	return &Volume{Live: l, mode: mode}, nil
}

// Close lets go of the volume. Who watched it must have stopped.
func (v *Volume) Close() (err error) {
	v.once.Do(func() {
		v.line.users.leave(v.mode)
		err = v.Live.Close()
	})
	return err
}

// ReadOnly reports whether the volume takes no writes through v.
func (v *Volume) ReadOnly() bool { return v.mode == ReadVolume }

// Locks are the locks on ranges of the volume, under lock.Content.
func (v *Volume) Locks() *lock.Table { return &v.line.users.locks }

// Watch calls fn after each change that was not made through v, until cancel
// has returned: n bytes from off on are others, or the size is. fn runs on a
// goroutine of its own. When it falls behind, it is told of everything at once.
func (v *Volume) Watch(fn func(off, n int64)) (cancel func()) { return v.line.users.watch(v, fn) }

// Size returns the volume's size in bytes, which grows when it is resized.
func (v *Volume) Size() int64 { return v.line.size.Load() }

// BlockSize returns the logical block size, 512 or 4096. Smaller and unaligned
// writes work too.
func (v *Volume) BlockSize() int { return int(v.own.block) }

// check fails for a range that is not inside the volume.
func (v *Volume) check(off, n int64) error {
	if off < 0 || n < 0 || off > v.Size() || n > v.Size()-off {
		return capsule.Errorf(capsule.OutOfRange, "%d bytes at offset %d are not inside the volume of %d bytes", n, off, v.Size())
	}
	return nil
}

// ReadAt implements io.ReaderAt: beyond the end it returns io.EOF.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, v.check(off, 0)
	}
	short := off+int64(len(p)) > v.Size() || off+int64(len(p)) < 0
	if short {
		p = p[:max(v.Size()-off, 0)]
	}
	n, err := v.Live.ReadAt(context.Background(), volumeFile, p, off)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// WriteAt implements io.WriterAt.
func (v *Volume) WriteAt(p []byte, off int64) (n int, err error) {
	if err := v.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	if v.ReadOnly() {
		return 0, readOnlyVolume()
	}
	defer func() { v.line.users.changed(v, off, int64(n)) }()
	for n < len(p) {
		part := p[n:min(len(p), n+maxUpdate)]
		err := v.Update(context.Background(), func(u *Update) error {
			_, err := u.Write(volumeFile, off+int64(n), part)
			return err
		})
		if err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// Trim makes zeros of a range and gives its space back. It serves for write
// zeroes as well.
func (v *Volume) Trim(ctx context.Context, off, n int64) error {
	if err := v.check(off, n); err != nil {
		return err
	}
	if v.ReadOnly() {
		return readOnlyVolume()
	}
	defer v.line.users.changed(v, off, n)
	for end := off + n; off < end; {
		err := v.Update(ctx, func(u *Update) (err error) {
			off, _, err = u.Punch(volumeFile, off, end)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func readOnlyVolume() error {
	return capsule.Errorf(capsule.ReadOnly, "the volume is open for reading")
}

// Flush returns when all writes that had returned before the call are durable.
func (v *Volume) Flush(ctx context.Context) error { return v.Sync(ctx) }

// NextData is [Live.NextData] for the volume's bytes.
func (v *Volume) NextData(ctx context.Context, off int64) (start, end int64, err error) {
	return v.Live.NextData(ctx, volumeFile, off, v.Size())
}

// ResizeVolume makes a volume larger.
func (s *Store) ResizeVolume(ctx context.Context, id capsule.ID, size int64) (capsule.Info, error) {
	if err := s.enter(); err != nil {
		return capsule.Info{}, err
	}
	defer s.leave()
	var info capsule.Info
	err := s.changeFamily(id, func(*family, *capsuleRecord) error {
		err := s.commit(synced, func(t *tx) error {
			rec, err := t.capsule(id)
			if err != nil {
				return err
			}
			if rec.kind != capsule.Volume {
				return capsule.Errorf(capsule.Unsupported, "capsule %s is a %s and no volume", id, rec.kind)
			}
			if err := checkVolumeSize(size, int64(rec.living.block)); err != nil {
				return err
			}
			if size < rec.living.size {
				return capsule.Errorf(capsule.Invalid, "volume %s has %d bytes; volumes do not shrink, since whoever uses it may have data there", id, rec.living.size)
			}
			rec.living.size = size
			t.changes = append(t.changes, Change{ID: id, Name: rec.name})
			info = rec.info(id)
			return t.b.set(capsuleKey(id), rec.encode())
		})
		if line := s.lineages.open[lineageKey{capsule: id}]; err == nil && line != nil {
			old := line.size.Swap(size)
			line.users.changed(nil, old, size-old)
		}
		return err
	})
	return info, err
}
