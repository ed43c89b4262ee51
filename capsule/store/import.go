package store

import (
	"context"
	"io"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// DataReader gives content that has holes.
type DataReader interface {
	// ReadData reads the next bytes that may not be zeros into p and says where
	// in the content they belong. Offsets ascend; what is left out is a hole.
	// At the end it returns 0, the size of the content, and io.EOF.
	ReadData(p []byte) (n int, off int64, err error)
}

// Import makes a volume of what r gives. The volume appears when all of it is
// durable; what goes wrong before leaves nothing. Zeros take no space. A
// request without a size gets a volume as large as the content, up to a whole
// block; what a larger one has beyond the content is zeros.
func (s *Store) Import(ctx context.Context, req CreateRequest, r DataReader) (capsule.Info, error) {
	if err := s.enter(); err != nil {
		return capsule.Info{}, err
	}
	defer s.leave()
	req.Kind = capsule.Volume
	fit := req.Size == 0
	if fit {
		req.Size = MaxVolume
	}
	if err := req.check(); err != nil {
		return capsule.Info{}, err
	}
	if req.Name != "" { // better now than when all has been read
		if id, err := lookupName(s.kv, req.Name); err != nil {
			return capsule.Info{}, err
		} else if !id.IsZero() {
			return capsule.Info{}, nameTaken(req.Name, id)
		}
	}
	return s.makeLiving(ctx, req, func(l *Live) error {
		end, err := (&Volume{Live: l, mode: WriteVolume}).fill(ctx, r, req.Size)
		if err != nil || !fit {
			return err
		}
		block := int64(l.own.block)
		l.own.size = (end + block - 1) / block * block
		if l.own.size == 0 {
			return capsule.Errorf(capsule.Invalid, "there is nothing to import; give the volume's size to make an empty one")
		}
		return nil
	})
}

// fill writes what r gives to a volume of up to limit bytes that is still
// empty. It returns where the content ends.
func (v *Volume) fill(ctx context.Context, r DataReader, limit int64) (end int64, err error) {
	buf := make([]byte, maxUpdate)
	for {
		if err := ctx.Err(); err != nil {
			return end, context.Cause(ctx)
		}
		n, off, err := r.ReadData(buf)
		if err != nil && err != io.EOF {
			return end, err
		}
		if off < end {
			return end, capsule.Errorf(capsule.Invalid, "the content to import goes back from offset %d to %d", end, off)
		}
		if off > limit || int64(n) > limit-off {
			return end, capsule.Errorf(capsule.Invalid, "the content to import does not fit into a volume of %d bytes", limit)
		}
		if end = off + int64(n); err == io.EOF {
			return end, nil
		}
		err = v.Update(ctx, func(u *Update) error {
			return dataRuns(buf[:n], off, func(p []byte, off int64) error {
				_, err := u.Write(volumeFile, off, p)
				return err
			})
		})
		if err != nil {
			return end, err
		}
	}
}

// zeroUnit is the size and alignment of the runs of zeros that an import makes
// holes of: what file systems and block devices give back space by.
const zeroUnit = 4096

// dataRuns calls fn with the runs of p, which belongs at off, that are not zeros.
func dataRuns(p []byte, off int64, fn func(p []byte, off int64) error) error {
	run := 0 // where the run under way begins
	for at := 0; at < len(p); {
		next := min(at+zeroUnit-int((off+int64(at))%zeroUnit), len(p))
		if !pipeline.IsZero(p[at:next]) {
			at = next
			continue
		}
		if run < at {
			if err := fn(p[run:at], off+int64(run)); err != nil {
				return err
			}
		}
		at, run = next, next
	}
	if run < len(p) {
		return fn(p[run:], off+int64(run))
	}
	return nil
}

// Export writes what a volume holds to w, in order and without its holes. Of
// what is written meanwhile some may show; a snapshot stays as it is.
func (v *Volume) Export(ctx context.Context, w io.WriterAt) error {
	buf := make([]byte, maxUpdate)
	for at := int64(0); ; {
		start, end, err := v.NextData(ctx, at)
		if err != nil {
			return err
		}
		if start == end {
			return nil
		}
		for at = start; at < end; {
			n, err := v.Live.ReadAt(ctx, volumeFile, buf[:min(end-at, int64(len(buf)))], at)
			if n > 0 { // what comes before damage is good
				if _, werr := w.WriteAt(buf[:n], at); werr != nil {
					return werr
				}
			}
			if err != nil {
				return err
			}
			at += int64(n)
		}
	}
}
