package seglog

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/spacestore/space/pipeline"
)

// Scan calls fn with what looks like a record and its offset, in order, up to
// the log's size at the call. fn says whether it is intact, and may overwrite
// rec, which is its own until it returns. Behind an intact record Scan goes on;
// in anything else, such as a torn tail or damage, it looks for the next
// record, so that none stays hidden. Runs of bytes that are no intact record
// are reported through gap, if not nil. An error of fn ends the scan.
func (s *Set) Scan(log uint64, fn func(off int64, h pipeline.Header, rec []byte) (intact bool, err error), gap func(off, n int64)) error {
	size, err := s.Size(log)
	if err != nil {
		return err
	}
	const window = 4 << 20
	buf := make([]byte, 0, min(size, window))
	base, at := int64(0), 0 // buf holds the log from base; at is where we are in it
	gapAt := int64(-1)
	endGap := func(to int64) {
		if gapAt >= 0 && gap != nil {
			gap(gapAt, to-gapAt)
		}
		gapAt = -1
	}
	for {
		if len(buf)-at < pipeline.MaxRecord && base+int64(len(buf)) < size {
			rest := copy(buf[:cap(buf)], buf[at:])
			base, at = base+int64(at), 0
			buf = buf[:min(int64(cap(buf)), size-base)]
			if err := s.ReadAt(log, buf[rest:], base+int64(rest)); err != nil {
				return fmt.Errorf("read segment log %d at %d: %w", log, base+int64(rest), err)
			}
		}
		pos := base + int64(at)
		if at == len(buf) {
			endGap(pos)
			return nil
		}
		h, err := pipeline.ParseHeader(buf[at:])
		if err == nil && at+h.RecordLen() <= len(buf) {
			intact, err := fn(pos, h, buf[at:at+h.RecordLen()])
			if err != nil {
				return err
			}
			if intact {
				endGap(pos)
				at += h.RecordLen()
				continue
			}
			// What the header calls its payload may hide whole records, which
			// fn may have overwritten here.
			if err := s.ReadAt(log, buf[at:at+h.RecordLen()], pos); err != nil {
				return fmt.Errorf("read segment log %d at %d: %w", log, pos, err)
			}
		}
		if err != nil && !errors.Is(err, pipeline.ErrCorrupt) {
			return err
		}
		if gapAt < 0 {
			gapAt = pos
		}
		// Look for the next thing that may be a header. A magic cut by the
		// window's end is found after the next refill.
		if i := bytes.Index(buf[at+1:], []byte(pipeline.Magic)); i >= 0 {
			at += 1 + i
		} else {
			at = max(at+1, len(buf)-len(pipeline.Magic)+1)
			if base+int64(len(buf)) >= size {
				at = len(buf)
			}
		}
	}
}
