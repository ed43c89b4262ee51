package metafs

import (
	"io"
	"sync"

	"github.com/spacestore/space/internal/vfs"
)

const (
	// frameSize is the content of a table's frame. On a quiet machine, for
	// frames of 4, 8, 16 KiB (BenchmarkTable): 6.7, 8.1, 11 µs for 4 KiB
	// anywhere and 100, 107, 194 µs for 256 KiB in a row. Smaller ones would
	// cost more disk than the 0.4 % that these take.
	frameSize   = 4 << 10
	sealedFrame = frameSize + tagSize
	// tableBuffer is how many frames are written, or read for one large
	// request, at a time.
	tableBuffer = 16
)

// tableSize returns the size of the content of a table of physical bytes, or
// a negative number if there is no such table.
func tableSize(physical int64) int64 {
	body := physical - headerSize
	frames := (body + sealedFrame - 1) / sealedFrame
	last := body - (frames-1)*sealedFrame
	if body < tagSize || last < tagSize || last == tagSize && frames > 1 {
		return -1
	}
	return body - frames*tagSize
}

var frameBuffers = sync.Pool{New: func() any { return new([tableBuffer * sealedFrame]byte) }}

// tableWriter seals a table. After an error it does nothing more.
type tableWriter struct {
	vfs.File // the sealed file; hides nothing, as all methods that matter are below
	fs       *FS
	name     string
	s        *sealer
	size     int64  // content written
	frames   uint64 // sealed so far
	frame    []byte // the frame being filled; never sealed before more content comes
	out      []byte // sealed, not written
	off      int64  // of out in the sealed file
	err      error
	room     func(int64) error // if not nil, asked before each write
	done     func(error)       // if not nil, called by Close
}

func newTableWriter(fs *FS, f vfs.File, name string, h []byte, s *sealer) *tableWriter {
	w := &tableWriter{File: f, fs: fs, name: name, s: s, frame: make([]byte, 0, frameSize)}
	w.out = append(make([]byte, 0, headerSize+tableBuffer*sealedFrame), h...)
	return w
}

func (w *tableWriter) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) && w.err == nil {
		if len(w.frame) == frameSize {
			w.seal(useTable)
			if len(w.out) >= tableBuffer*sealedFrame {
				w.flush()
			}
		}
		m := min(len(p)-n, frameSize-len(w.frame))
		w.frame = append(w.frame, p[n:n+m]...)
		n += m
	}
	w.size += int64(n)
	if w.err != nil {
		return 0, w.err
	}
	return n, nil
}

func (w *tableWriter) seal(use byte) {
	w.out = w.s.aead.Seal(w.out, nonce(use, w.frames)[:], w.frame, nil)
	w.frames++
	w.frame = w.frame[:0]
}

func (w *tableWriter) flush() {
	if w.err == nil && w.room != nil {
		if err := w.room(int64(len(w.out))); err != nil {
			w.err = ioError(err, "write", w.name)
		}
	}
	if w.err == nil {
		w.err = w.fs.writeAt(w.File, w.name, w.out, w.off)
		w.off += int64(len(w.out))
		w.out = w.out[:0]
	}
}

// Sync does nothing: see the package's documentation.
func (w *tableWriter) Sync() error     { return w.err }
func (w *tableWriter) SyncData() error { return w.err }

// SyncTo passes the hint on; nothing is promised.
func (w *tableWriter) SyncTo(length int64) (bool, error) {
	if w.err == nil {
		if _, err := w.File.SyncTo(length); err != nil {
			w.err = ioError(err, "sync", w.name)
		}
	}
	return false, w.err
}

func (w *tableWriter) Close() error {
	w.seal(useTableLast)
	w.flush()
	if w.err == nil {
		if err := w.File.Sync(); err != nil {
			w.err = ioError(err, "sync", w.name)
		}
	}
	if err := w.File.Close(); err != nil && w.err == nil {
		w.err = ioError(err, "close", w.name)
	}
	w.fs.finish(w.name)
	if w.done != nil {
		w.done(w.err)
	}
	return w.err
}

func (w *tableWriter) Stat() (vfs.FileInfo, error)        { return writerInfo(w.fs, w.name, w.size), nil }
func (w *tableWriter) Preallocate(int64, int64) error     { return nil }
func (w *tableWriter) Prefetch(int64, int64) error        { return nil }
func (w *tableWriter) Read([]byte) (int, error)           { return 0, errWriteOnly }
func (w *tableWriter) ReadAt([]byte, int64) (int, error)  { return 0, errWriteOnly }
func (w *tableWriter) WriteAt([]byte, int64) (int, error) { return 0, errAppendOnly }

// tableReader opens a table. ReadAt is safe for concurrent use.
type tableReader struct {
	vfs.File
	name string
	s    *sealer
	size int64  // of the content
	last uint64 // number of the last frame
	pos  int64  // for Read
}

func newTableReader(f vfs.File, name string, physical int64, s *sealer) (*tableReader, error) {
	size := tableSize(physical)
	if size < 0 {
		return nil, damaged(name, physical, "the file was not finished or was cut short")
	}
	r := &tableReader{File: f, name: name, s: s, size: size, last: uint64(max(0, size-1) / frameSize)}
	if size == 0 { // no read would verify that this is the whole table
		if _, err := r.readFrames(nil, 0, make([]byte, sealedFrame)); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *tableReader) Read(p []byte) (int, error) {
	n, err := r.ReadAt(p, r.pos)
	r.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (r *tableReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errOffset
	}
	if off >= r.size {
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > r.size-off {
		p, atEnd = p[:r.size-off], io.EOF
	}
	if len(p) == 0 {
		return 0, atEnd
	}
	buf := frameBuffers.Get().(*[tableBuffer * sealedFrame]byte)
	defer frameBuffers.Put(buf)
	n := 0
	for n < len(p) {
		m, err := r.readFrames(p[n:], off+int64(n), buf[:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, atEnd
}

// readFrames reads as many frames from off on as p needs and buf can hold, and
// returns how many bytes of p are good.
func (r *tableReader) readFrames(p []byte, off int64, buf []byte) (int, error) {
	first := uint64(off / frameSize)
	want := min(uint64(off+max(1, int64(len(p)))-1)/frameSize-first+1, tableBuffer)
	sealed := int(want) * sealedFrame
	if first+want-1 == r.last {
		sealed -= frameSize - int(r.size-int64(r.last)*frameSize)
	}
	at := headerSize + int64(first)*sealedFrame
	if n, err := r.File.ReadAt(buf[:sealed], at); n < sealed {
		if err == io.EOF {
			return 0, damaged(r.name, at+int64(n), "the file was cut short")
		}
		return 0, ioError(err, "read", r.name)
	}
	n := 0
	skip := int(off - int64(first)*frameSize)
	for i := range want {
		frame := buf[i*sealedFrame : min(int(i+1)*sealedFrame, sealed)]
		content := len(frame) - tagSize
		use := byte(useTable)
		if first+i == r.last {
			use = useTableLast
		}
		// A frame that is wanted whole is opened where it is wanted, any other in
		// the buffer.
		whole := skip == 0 && len(p)-n >= content
		dst := frame[:0]
		if whole {
			dst = p[n : n : n+content]
		}
		plain, err := r.s.aead.Open(dst, nonce(use, first+i)[:], frame, nil)
		if err != nil {
			return n, damaged(r.name, at+int64(i)*sealedFrame, "the frame does not verify")
		}
		if whole {
			n += content
		} else {
			n += copy(p[n:], plain[skip:])
		}
		skip = 0
	}
	return n, nil
}

func (r *tableReader) Stat() (vfs.FileInfo, error) {
	fi, err := r.File.Stat()
	if err != nil {
		return nil, err
	}
	return info{fi, r.size}, nil
}

// Prefetch asks for the frames that hold the range.
func (r *tableReader) Prefetch(off, length int64) error {
	first, end := off/frameSize, (off+length+frameSize-1)/frameSize
	return r.File.Prefetch(headerSize+first*sealedFrame, (end-first)*sealedFrame)
}

func (r *tableReader) Write([]byte) (int, error)          { return 0, errReadOnly }
func (r *tableReader) WriteAt([]byte, int64) (int, error) { return 0, errReadOnly }
