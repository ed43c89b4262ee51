package scratch

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/spacestore/space/capsule"
)

const (
	blockSize = 64 << 10
	sealed    = blockSize + 16 // with its tag
)

// MaxSize is how large a file may get.
const MaxSize = 1 << 50

// File is content that is being changed. It may be used from many goroutines.
type File struct {
	base io.ReaderAt
	aead cipher.AEAD

	mu      sync.Mutex
	disk    *os.File
	size    int64
	keep    int64            // how much of the base is content still
	written map[int64]uint64 // by block: the nonce of what is on disk
	nonce   uint64
	index   int64 // of the block in memory; -1: none
	dirty   bool  // it is not on disk
	block   [blockSize]byte
	sealed  [sealed]byte
}

// New returns a file that holds the first size bytes of base. It writes to an
// unlinked file in dir.
func New(dir string, base io.ReaderAt, size int64) (*File, error) {
	disk, err := os.CreateTemp(dir, "scratch-")
	if err != nil {
		return nil, capsule.Wrap(capsule.IO, err, "make a scratch file")
	}
	if err := os.Remove(disk.Name()); err != nil {
		disk.Close()
		return nil, capsule.Wrap(capsule.IO, err, "unlink a scratch file")
	}
	var key [32]byte
	rand.Read(key[:])               // never fails (crypto/rand.Read)
	c, err := aes.NewCipher(key[:]) // fails for wrong lengths alone
	aead, err2 := cipher.NewGCM(c)  // as well
	if err != nil || err2 != nil {
		panic("scratch: no AES-256-GCM")
	}
	return &File{base: base, aead: aead, disk: disk, size: size, keep: size, written: map[int64]uint64{}, index: -1}, nil
}

// Close gives up the content.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.disk.Close()
}

// Size is how long the content is.
func (f *File) Size() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// nonceOf returns the AEAD's nonce of a number, which no two seals have in common.
func nonceOf(n uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 4), n) }

func label(index int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(index)) }

// load brings a block into memory.
func (f *File) load(index int64) error {
	if f.index == index {
		return nil
	}
	if err := f.flush(); err != nil {
		return err
	}
	f.index = -1
	clear(f.block[:])
	if n, ok := f.written[index]; ok {
		if _, err := f.disk.ReadAt(f.sealed[:], index*sealed); err != nil {
			return capsule.Wrap(capsule.IO, err, "read a scratch file")
		}
		if _, err := f.aead.Open(f.block[:0], nonceOf(n), f.sealed[:], label(index)); err != nil {
			return capsule.Errorf(capsule.Damaged, "a scratch file was changed on disk")
		}
	} else if n := min(f.keep-index*blockSize, blockSize); n > 0 {
		if got, err := f.base.ReadAt(f.block[:n], index*blockSize); int64(got) < n {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	f.index = index
	return nil
}

// flush puts the block in memory on disk.
func (f *File) flush() error {
	if !f.dirty {
		return nil
	}
	f.nonce++
	f.aead.Seal(f.sealed[:0], nonceOf(f.nonce), f.block[:], label(f.index))
	if _, err := f.disk.WriteAt(f.sealed[:], f.index*sealed); err != nil {
		kind := capsule.IO
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			kind = capsule.NoSpace
		}
		return capsule.Wrap(kind, err, "write a scratch file")
	}
	f.written[f.index] = f.nonce
	f.dirty = false
	return nil
}

// pieces calls fn for each block of a range, with what of it lies there. fn may change it.
func (f *File) pieces(off, n int64, fn func(p []byte)) error {
	for end := off + n; off < end; {
		index, at := off/blockSize, off%blockSize
		if err := f.load(index); err != nil {
			return err
		}
		k := min(end-off, blockSize-at)
		fn(f.block[at : at+k])
		off += k
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off < 0 || off >= f.size {
		return 0, io.EOF
	}
	want := min(int64(len(p)), f.size-off)
	err = f.pieces(off, want, func(b []byte) { n += copy(p[n:], b) })
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// WriteAt implements io.WriterAt.
func (f *File) WriteAt(p []byte, off int64) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off < 0 || off > MaxSize-int64(len(p)) {
		return 0, capsule.Errorf(capsule.TooLarge, "%d bytes at %d", len(p), off)
	}
	err = f.pieces(off, int64(len(p)), func(b []byte) {
		n += copy(b, p[n:])
		f.dirty = true
	})
	if n > 0 { // a write of nothing beyond the end leaves the size
		f.size = max(f.size, off+int64(n))
	}
	return n, err
}

// Truncate sets the size.
func (f *File) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case size < 0 || size > MaxSize:
		return capsule.Errorf(capsule.TooLarge, "a size of %d", size)
	case size >= f.size:
		f.size = size
		return nil
	}
	// What is cut off does not come back when the file grows.
	if at := size % blockSize; at > 0 {
		if err := f.load(size / blockSize); err != nil {
			return err
		}
		clear(f.block[at:])
		f.dirty = true
	}
	first := (size + blockSize - 1) / blockSize
	for index := range f.written {
		if index >= first {
			delete(f.written, index)
		}
	}
	if f.index >= first {
		f.index, f.dirty = -1, false
	}
	f.size, f.keep = size, min(f.keep, size)
	return nil
}
