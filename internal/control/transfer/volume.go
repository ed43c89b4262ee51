package transfer

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control"
)

// ImportFile makes a volume of what f holds from its present position on. The
// holes of a sparse file are skipped, not read. progress.Bytes is how far in
// the file it got.
func ImportFile(ctx context.Context, api control.Volumes, req store.CreateRequest, f *os.File, progress *Progress) (capsule.Info, error) {
	st, err := f.Stat()
	if err != nil {
		return capsule.Info{}, FileError(err, "import")
	}
	if st.IsDir() {
		return capsule.Info{}, capsule.Errorf(capsule.Invalid, "%s is a directory; a volume is made of one file", f.Name())
	}
	var r store.DataReader
	if at, err := f.Seek(0, io.SeekCurrent); st.Mode().IsRegular() && err == nil && at == 0 {
		r = &sparseReader{f: f, size: st.Size()}
	} else {
		r = &streamReader{r: newPatientReader(ctx, f)}
	}
	return api.ImportVolume(ctx, req, &progressReader{r, progress})
}

type progressReader struct {
	store.DataReader
	p *Progress
}

func (r *progressReader) ReadData(p []byte) (n int, off int64, err error) {
	n, off, err = r.DataReader.ReadData(p)
	if err == nil || err == io.EOF {
		r.p.Bytes.Store(off + int64(n))
	}
	return n, off, err
}

// sparseReader reads the data of a regular file, from its beginning.
type sparseReader struct {
	f       *os.File
	size    int64
	at, end int64 // of the run of data under way
}

func (r *sparseReader) ReadData(p []byte) (int, int64, error) {
	if r.at == r.end {
		if err := r.nextRun(); err != nil {
			return 0, r.size, err
		}
	}
	off := r.at
	n, err := r.f.ReadAt(p[:min(int64(len(p)), r.end-off)], off)
	r.at += int64(n)
	if err == io.EOF && r.at < r.end {
		return 0, 0, capsule.Errorf(capsule.Conflict, "%s became shorter while it was read", r.f.Name())
	}
	if err != nil && err != io.EOF {
		return 0, 0, FileError(err, "import")
	}
	return n, off, nil
}

// nextRun finds the next run of data; io.EOF: there is none.
func (r *sparseReader) nextRun() error {
	if r.at >= r.size {
		return io.EOF
	}
	fd := int(r.f.Fd())
	start, err := unix.Seek(fd, r.at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // a hole to the end
		r.at, r.end = r.size, r.size
		return io.EOF
	case err != nil: // a file system that does not know about holes
		r.end = r.size
		return nil
	}
	end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
	if err != nil {
		return FileError(err, "import")
	}
	if r.at, r.end = start, min(end, r.size); r.at >= r.end { // it grew, beyond what we take
		return io.EOF
	}
	return nil
}

// streamReader reads a pipe, whose zeros are found on the other side.
type streamReader struct {
	r  io.Reader
	at int64
}

func (s *streamReader) ReadData(p []byte) (int, int64, error) {
	n, err := io.ReadFull(s.r, p)
	if err == io.ErrUnexpectedEOF {
		err = nil
	}
	off := s.at
	s.at += int64(n)
	return n, off, err
}

// ExportTo writes a volume to a stream, its holes as zeros. begin, if not nil,
// is told its facts first.
func ExportTo(ctx context.Context, api control.Volumes, req control.ExportRequest, w io.Writer, progress *Progress, begin func(capsule.Info)) error {
	s := &zeroFiller{w: &countingWriter{w, progress}}
	var size int64
	err := api.ExportVolume(ctx, req, func(info capsule.Info) (io.WriterAt, error) {
		if size = info.Size; begin != nil {
			begin(info)
		}
		return s, nil
	})
	if err != nil {
		return err
	}
	return s.fill(size)
}

// zeroFiller writes what it is given at ascending offsets to a stream.
type zeroFiller struct {
	w  io.Writer
	at int64
}

var zeros [64 << 10]byte

func (z *zeroFiller) WriteAt(p []byte, off int64) (int, error) {
	if err := z.fill(off); err != nil {
		return 0, err
	}
	n, err := z.w.Write(p)
	z.at += int64(n)
	return n, err
}

// fill writes zeros up to off.
func (z *zeroFiller) fill(off int64) error {
	for z.at < off {
		n, err := z.w.Write(zeros[:min(off-z.at, int64(len(zeros)))])
		z.at += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// ExportFile writes a volume to the file at path, as a sparse file. It appears
// there, or replaces the one there, when all of it is written. What exists
// and is no regular file (a device, a pipe) is written to as it is, zeros too.
func ExportFile(ctx context.Context, api control.Volumes, req control.ExportRequest, path string, progress *Progress, begin func(capsule.Info)) error {
	t, err := openTarget(path)
	if err != nil {
		return err
	}
	if t.special != nil {
		if err := ExportTo(ctx, api, req, &fileWriter{countingWriter{t.special, &Progress{}}}, progress, begin); err != nil {
			t.special.Close()
			return err
		}
		return FileError(t.special.Close(), "output")
	}
	defer t.dir.Close()
	return writeInto(t.dir, t.base, t.old, func(f *os.File) (time.Time, error) {
		var info capsule.Info
		err := api.ExportVolume(ctx, req, func(i capsule.Info) (io.WriterAt, error) {
			if info = i; begin != nil {
				begin(i)
			}
			return &fileWriterAt{f, progress}, FileError(f.Truncate(i.Size), "output")
		})
		return info.Modified, err
	})
}

// fileWriterAt gives failed writes their kind, and tells how far they got.
type fileWriterAt struct {
	f *os.File
	p *Progress
}

func (w *fileWriterAt) WriteAt(p []byte, off int64) (int, error) {
	n, err := w.f.WriteAt(p, off)
	w.p.Bytes.Store(off + int64(n))
	return n, FileError(err, "output")
}
