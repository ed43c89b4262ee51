package metafs

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs"
)

// resealSuffix marks a table's copy under a new key before it takes the
// table's name. Pebble ignores such names.
const resealSuffix = ".reseal"

// Reseal rewrites the tables in dir that are not sealed under the current key
// version and returns how many it did. Pebble may be open on them: handles it
// has go on reading the old file, and a table that it removes meanwhile stays
// removed. Copies left behind by a crash are removed. One Reseal at a time.
//
// Logs are not rewritten. Those left under an old key go when Pebble replaces
// them: the WAL at the next flush, OPTIONS at the next Open, MANIFEST, of which
// it keeps the last but one, at the second.
//
// A damaged table is left as it is and reported at the end.
func (fs *FS) Reseal(ctx context.Context, dir string) (n int, err error) {
	names, err := fs.FS.List(dir)
	if err != nil {
		return 0, err
	}
	var tables []string
	for _, base := range names {
		name := fs.PathJoin(dir, base)
		if strings.HasSuffix(base, resealSuffix) {
			if err := fs.Remove(name); err != nil {
				return 0, err
			}
		} else if isTable(base) {
			tables = append(tables, name)
		}
	}
	var damage error
	for _, name := range tables {
		if err := errors.Join(ctx.Err(), fs.Err()); err != nil {
			return n, err
		}
		done, err := fs.resealTable(ctx, name)
		if done {
			n++
		}
		if capsule.KindOf(err) == capsule.Damaged {
			damage = errors.Join(damage, err)
		} else if err != nil {
			return n, err
		}
	}
	return n, damage
}

// resealTable does one table, if it needs it and is still there.
func (fs *FS) resealTable(ctx context.Context, name string) (done bool, err error) {
	if fs.isWriting(name) {
		return false, nil // too new to need it, or else it is for the next time
	}
	h, _, err := fs.peek(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if current, _ := fs.keys.Current(); h.keyVersion == current {
		return false, nil
	}
	src, err := fs.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer src.Close()

	temp := name + resealSuffix
	defer func() {
		if !done {
			fs.FS.Remove(temp)
		}
	}()
	dst, err := fs.newTable(temp, "space-reseal")
	if err != nil {
		return false, err
	}
	_, err = io.CopyBuffer(onlyWriter{dst}, contextReader{ctx, src}, make([]byte, tableBuffer*frameSize))
	if err = errors.Join(err, dst.Close()); err != nil {
		return false, err
	}

	// Pebble never uses a table's name twice, so if there is still a file of
	// that name, it is the one that was copied.
	fs.names.Lock()
	defer fs.names.Unlock()
	if err := fs.Err(); err != nil {
		return false, err
	}
	if _, err := fs.FS.Stat(name); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err := fs.FS.Rename(temp, name); err != nil {
		return false, ioError(err, "rename", temp)
	}
	return true, nil
}

// OldestKeyVersion returns the lowest key version that any file in dir is
// sealed under, or the current one. Keys of lower versions are not needed for
// this directory any more, whatever happens: it makes sure that files that are
// gone stay gone.
func (fs *FS) OldestKeyVersion(dir string) (uint32, error) {
	names, err := fs.FS.List(dir)
	if err != nil {
		return 0, err
	}
	oldest := fs.oldestWriting()
	for _, base := range names {
		if kindOf(base) == markerFile || strings.HasSuffix(base, resealSuffix) {
			continue
		}
		h, size, err := fs.peek(fs.PathJoin(dir, base))
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil && size <= headerSize:
			// the lock, or a file that holds nothing yet
		case err != nil:
			return 0, err
		default:
			oldest = min(oldest, h.keyVersion)
		}
	}
	return oldest, fs.syncDir(dir)
}

// peek reads a file's header, unauthenticated, and its size on disk.
func (fs *FS) peek(name string) (h header, size int64, err error) {
	f, err := fs.FS.Open(name)
	if err != nil {
		return h, 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return h, 0, err
	}
	h, err = readHeader(f, name, fi.Size())
	return h, fi.Size(), err
}

type onlyWriter struct{ io.Writer }

// contextReader stops a copy when ctx ends.
type contextReader struct {
	ctx context.Context
	f   vfs.File
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.f.Read(p)
}
