package files

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/internal/vfs"
)

// Where a share has another layout than when its transfer began, with more files, fewer,
// or some of other names or sizes, what has arrived of the old one is carried over to the
// new one. Files are taken for the same by their names, or else by size and time. That is
// a guess, which costs nothing when it is wrong: of each chunk of the new contents that
// is there the hash is noted, and held against the giver's, as after any resume.
//
// The new tree is made of other links to the old one's files, so that nothing is lost
// until the new manifest is there, which decides.

// Names in the hidden directory of what is about to take the place of those without
// suffix. When the manifest is there, all is.
const nextSuffix = ".next"

// carry makes the hidden directory one of the manifest m, of which text is the text,
// with what is there of old. It returns how many bytes are.
func (r *receiver) carry(ctx context.Context, old, m *manifest, text string, from Mirror) (kept int64, err error) {
	kept, err = r.prepare(ctx, old, m, text, from)
	if err == nil && kept > 0 {
		err = r.commit()
	}
	return kept, err
}

// prepare is carry but for the last step.
func (r *receiver) prepare(ctx context.Context, old, m *manifest, text string, from Mirror) (kept int64, err error) {
	j, err := r.journal(journalFile)
	if err != nil {
		return 0, err
	}
	oldChunk, have := j.Verified()
	source, some := sources(old, m)
	if len(have) == 0 || !some {
		return 0, nil
	}
	size, chunk, err := bulk.Form(ctx, r.mirror(from), m.contentsName())
	if err != nil {
		return 0, err
	}
	if size != m.size || chunk <= 0 {
		return 0, nil
	}
	root, err := os.OpenRoot(r.part)
	if err != nil {
		return 0, fmt.Errorf("files: %w", err)
	}
	defer root.Close()
	dir, err := root.Open(".") // from here on: errors of writing back are told to it
	if err != nil {
		return 0, fmt.Errorf("files: %w", err)
	}
	defer dir.Close()
	was := &sink{m: old, root: root, dirs: dirs{root: root}}
	defer was.dirs.close()
	was.reachable()
	handles := newHandles(was.openAgain)
	defer handles.close() // nothing is written
	sums, used := map[int]bulk.Hash{}, newSet(m.count())
	buf := make([]byte, min(int64(chunk), m.size))
	for c := 0; int64(c)*int64(chunk) < m.size; c++ {
		if err := ctx.Err(); err != nil {
			return 0, context.Cause(ctx)
		}
		off := int64(c) * int64(chunk)
		b := buf[:min(int64(chunk), m.size-off)]
		var parts []int
		err := m.each(off, len(b), func(i int, at int64, from, to int) error {
			k := int(source[i])
			if k < 0 || at+int64(to-from) > old.length(k) || !verified(have, oldChunk, old.offset[k]+at, to-from) {
				return errLost
			}
			parts = append(parts, i)
			return handles.use(k, func(f *os.File) error {
				_, err := f.ReadAt(b[from:to], at)
				return err
			})
		})
		if err != nil {
			continue // it comes again
		}
		sums[c] = blake3.Sum256(b)
		kept += int64(len(b))
		for _, i := range parts {
			used.put(i, true)
		}
	}
	if kept == 0 {
		return 0, nil
	}
	if err := r.nextTree(root, old, m, source, used); errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EMLINK) {
		return 0, nil // a file system that has no links
	} else if err != nil {
		return 0, err
	}
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return 0, errors.Join(fmt.Errorf("files: sync: %w", err), r.clear()) // nobody knows what is there
	}
	next, err := r.journal(journalFile + nextSuffix)
	if err == nil {
		err = errors.Join(next.Write(m.size, chunk, sums), next.Close())
	}
	if err != nil {
		return 0, fmt.Errorf("files: %w", sinkError(err))
	}
	return kept, r.write(manifestFile+nextSuffix, text)
}

// sources tells by which file of old each entry of m may have been known, -1: by none.
// Each of old stands for one at most; some is whether there are such.
func sources(old, m *manifest) (source []int32, some bool) {
	source, taken := make([]int32, m.count()), newSet(old.count())
	take := func(i, k int, o, e *entry) {
		if o.kind == regular && !taken.has(k) && o.size > 0 && o.size <= e.size {
			source[i], some = int32(k), true
			taken.put(k, true)
		}
	}
	for i := range source {
		source[i] = -1
		if e := m.entry(i); e.kind == regular {
			if k, ok := old.find(e.path); ok {
				take(i, k, old.entry(k), e)
			}
		}
	}
	look := func(a, b *entry) int { return cmp.Or(cmp.Compare(a.size, b.size), cmp.Compare(a.mtime, b.mtime)) }
	var left []int32 // of old, by their look
	for k := range old.count() {
		if !taken.has(k) && old.length(k) > 0 {
			left = append(left, int32(k))
		}
	}
	slices.SortFunc(left, func(a, b int32) int {
		return cmp.Or(look(old.entry(int(a)), old.entry(int(b))), cmp.Compare(a, b))
	})
	for i := range source {
		if source[i] >= 0 || m.length(i) == 0 {
			continue
		}
		e := m.entry(i)
		at, _ := slices.BinarySearchFunc(left, e, func(k int32, e *entry) int { return look(old.entry(int(k)), e) })
		for ; at < len(left) && source[i] < 0; at++ { // to the first that is not taken
			k := int(left[at])
			o := old.entry(k)
			if look(o, e) != 0 {
				break
			}
			take(i, k, o, e)
		}
	}
	return source, some
}

// verified reports whether n bytes at off of some contents are in chunks that are noted.
func verified(have map[int]bulk.Hash, chunk int, off int64, n int) bool {
	for c := off / int64(chunk); c*int64(chunk) < off+int64(n); c++ {
		if _, ok := have[int(c)]; !ok {
			return false
		}
	}
	return true
}

// reachable lets us into all directories of the tree: they may have their own
// permissions already.
func (s *sink) reachable() {
	for i := range s.m.count() {
		if s.m.entry(i).kind == directory {
			s.root.Chmod(s.name(i), 0o700) // where that fails, its files are out of reach
		}
	}
}

// openAgain opens a file that is there, to read it.
func (s *sink) openAgain(i int) (*os.File, error) {
	f, err := s.dirs.open(s.name(i), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrPermission) {
		if err = s.root.Chmod(s.name(i), 0o600); err == nil {
			f, err = s.dirs.open(s.name(i), os.O_RDONLY|unix.O_NOFOLLOW, 0)
		}
	}
	return f, err
}

// nextTree makes the directories of m, and in them those files of which there is
// something.
func (r *receiver) nextTree(root *os.Root, old, m *manifest, source []int32, used set) error {
	name := func(tree, path string) string { return strings.TrimSuffix(tree+"/"+path, "/") }
	next := treeName + nextSuffix
	if err := removeAll(filepath.Join(r.part, next)); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	for i := range m.count() {
		e := m.entry(i)
		var err error
		switch {
		case e.kind == directory:
			err = root.Mkdir(name(next, e.path), 0o700)
		case used.has(i):
			err = root.Link(name(treeName, old.entry(int(source[i])).path), name(next, e.path))
		}
		if err != nil {
			return fmt.Errorf("files: %w", sinkError(err))
		}
	}
	return nil
}

// commit ends what carry has begun: if the next manifest is there, all of its tree and
// journal take the place of those before; else they go.
func (r *receiver) commit() error {
	path := func(name string) string { return filepath.Join(r.part, name) }
	is := func(name string) bool {
		_, err := os.Lstat(path(name))
		return err == nil
	}
	err := func() error {
		if !is(manifestFile + nextSuffix) {
			return errors.Join(removeAll(path(treeName+nextSuffix)), os.RemoveAll(path(journalFile+nextSuffix)))
		}
		if is(treeName + nextSuffix) {
			if err := errors.Join(removeAll(path(treeName)), os.Rename(path(treeName+nextSuffix), path(treeName))); err != nil {
				return err
			}
		}
		if is(journalFile + nextSuffix) {
			if err := os.Rename(path(journalFile+nextSuffix), path(journalFile)); err != nil {
				return err
			}
		}
		if err := vfs.SyncDir(vfs.OS(), r.part); err != nil {
			return err
		}
		if err := os.Rename(path(manifestFile+nextSuffix), path(manifestFile)); err != nil {
			return err
		}
		return vfs.SyncDir(vfs.OS(), r.part)
	}()
	if err != nil {
		return fmt.Errorf("files: %w", err)
	}
	return nil
}
