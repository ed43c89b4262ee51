//go:build unix

package fuse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views"
)

// partName is the file that a copy grows in before it gets its name.
const partName = ".space-copy.part"

// mtimeGrain is the coarsest time stamp of the file systems in use (FAT).
const mtimeGrain = 2 * time.Second

// Copy projects a capsule, or the namespace, as plain read-only files under
// o.Target, for systems without FUSE. The files show the versions of now and
// do not follow changes. Closing the projection removes those that nobody
// changed. A copy that was cut short, even by a power cut, is taken up again
// by the next one to the same target; one that fails leaves nothing.
//
// Of the namespace, capsules that cannot be copied are left out and logged,
// and the projection's note counts them.
func Copy(ctx context.Context, store Store, o Options) (_ *views.Projection, err error) {
	info, err := admit(ctx, store, &o)
	if err == nil && !o.Capsule.IsZero() && info.Kind != capsule.Object {
		err = capsule.Errorf(capsule.Unavailable, "capsule %s is a %s; it can be shown where there is FUSE, and not as a copy", o.Capsule, info.Kind)
	}
	if err != nil {
		return nil, err
	}
	target, err := filepath.Abs(o.Target)
	if err == nil {
		target, err = filepath.EvalSymlinks(target)
	}
	if err != nil {
		return nil, targetError(o.Target, err)
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		return nil, targetError(o.Target, err)
	}
	m, err := openManifest(root)
	if err != nil {
		root.Close()
		return nil, err
	}
	c := &copier{store: store, opts: o, root: root, manifest: m, done: make(chan struct{})}
	since := time.Now()
	if err := c.all(ctx); err != nil {
		if cerr := c.Close(false); cerr != nil {
			err = errors.Join(err, cerr)
		}
		return nil, err
	}
	note := "there is no FUSE here: these are copies, which do not follow changes"
	if c.left > 0 {
		note += fmt.Sprintf("; %d capsules could not be copied, the log says why", c.left)
	}
	return &views.Projection{
		Info: views.Info{
			View:    views.FUSE,
			Target:  target,
			Capsule: o.Capsule,
			Name:    info.Name,
			Mode:    views.ModeCopy,
			Since:   since,
			Note:    note,
		},
		Backend: c,
	}, nil
}

// copier is a projection by copies. It reaches the target through an os.Root
// alone, so no name and no link there leads it elsewhere.
type copier struct {
	store    Store
	opts     Options
	root     *os.Root
	manifest *manifest
	left     int // capsules of the namespace that could not be copied

	closing sync.Mutex
	done    chan struct{}
}

func (c *copier) all(ctx context.Context) error {
	if err := c.reap(ctx); err != nil {
		return err
	}
	if c.opts.Capsule.IsZero() {
		return c.dir(ctx, "")
	}
	if err := c.file(ctx, contentName, c.opts.Capsule); err != nil {
		return err
	}
	return c.syncDir("")
}

// reap removes what an earlier copy left and the store has changed since.
func (c *copier) reap(ctx context.Context) error {
	return c.manifest.each(func(e manifestEntry) error {
		if e.Dir || !e.unchanged(c.root) {
			return nil
		}
		var info capsule.Info
		var err error
		if c.opts.Capsule.IsZero() {
			info, _, err = c.store.LookupName(ctx, e.Path)
		} else if info, err = c.store.Info(ctx, c.opts.Capsule); e.Path != contentName {
			info = capsule.Info{}
		}
		if err != nil && capsule.KindOf(err) != capsule.NotFound {
			return err
		}
		if info.ID == e.Capsule && info.Version == e.Version {
			return nil
		}
		if err := c.root.Remove(e.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return targetIO(err, "remove the old copy %s", e.Path)
		}
		return nil
	})
}

// dir copies what is in a directory of the namespace.
func (c *copier) dir(ctx context.Context, dir string) error {
	after := ""
	for {
		entries, err := c.store.ReadDir(ctx, dir, after, 512)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return c.syncDir(dir)
		}
		for _, e := range entries {
			p := e.Name
			if dir != "" {
				p = dir + "/" + e.Name
			}
			if e.Dir {
				err = c.subdir(ctx, p)
			} else if err = c.file(ctx, p, e.Info.ID); err != nil {
				switch capsule.KindOf(err) {
				case capsule.Denied, capsule.Damaged, capsule.NotFound:
					c.opts.Logger.Error("capsule not copied", "name", p, "capsule", e.Info.ID, "err", err)
					c.left++
					err = nil
				}
			}
			if err != nil {
				return err
			}
		}
		after = entries[len(entries)-1].Name
	}
}

func (c *copier) subdir(ctx context.Context, p string) error {
	err := c.root.Mkdir(p, 0o755)
	if err == nil {
		err = c.manifest.add(manifestEntry{Path: p, Dir: true})
	} else if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return targetIO(err, "make the directory %s", p)
	}
	return c.dir(ctx, p)
}

// file copies one capsule to a path.
func (c *copier) file(ctx context.Context, p string, id capsule.ID) error {
	r, err := c.store.Open(ctx, id)
	if err != nil {
		return err
	}
	defer r.Close()
	info := r.Info()
	if err := views.Gate(r.Policy(), views.FUSE); err != nil {
		return err
	}
	if st, err := c.root.Lstat(p); err == nil {
		// Of an earlier copy that was cut short reap has left what is right.
		if age := st.ModTime().Sub(info.Modified).Abs(); st.Mode() == 0o444 && st.Size() == info.Size && age < mtimeGrain {
			return nil
		}
		return capsule.Errorf(capsule.Exists,
			"%s in %s exists and is not a copy of capsule %s; choose an empty directory", p, c.root.Name(), id)
	}
	// It may be read-only, which would keep us from opening it.
	if err := c.root.Remove(partName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return targetIO(err, "remove the leftover %s", partName)
	}
	st, err := c.write(ctx, r)
	if err == nil {
		// Listed before it has its name: whatever a crash leaves is known.
		err = c.manifest.add(manifestEntry{
			Path: p, Size: st.Size(), Mtime: st.ModTime().UnixNano(), Ino: inodeOf(st),
			Capsule: id, Version: info.Version,
		})
	}
	if err == nil {
		err = c.root.Rename(partName, p)
	}
	if err != nil {
		c.root.Remove(partName)
		return targetIO(err, "copy capsule %s to %s", id, p)
	}
	return nil
}

// write makes partName a complete, durable copy.
func (c *copier) write(ctx context.Context, r Reader) (fs.FileInfo, error) {
	f, err := c.root.OpenFile(partName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info := r.Info()
	n, err := r.Stream(ctx, f, 0, info.Size)
	if err == nil && n != info.Size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = f.Chmod(0o444)
	}
	if err == nil {
		err = c.root.Chtimes(partName, info.Modified, info.Modified)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, err
	}
	return f.Stat()
}

func (c *copier) syncDir(p string) error {
	if p == "" {
		p = "."
	}
	d, err := c.root.Open(p)
	if err == nil {
		err = d.Sync()
		d.Close()
	}
	return targetIO(err, "make the names in %s durable", filepath.Join(c.root.Name(), p))
}

func (c *copier) Done() <-chan struct{} { return c.done }

// Close removes the copies that are as they were made, the directories made
// for them that are empty then, and the manifest. There is no difference
// between lazy and not: who has a copy open keeps it.
func (c *copier) Close(bool) error {
	c.closing.Lock()
	defer c.closing.Unlock()
	select {
	case <-c.done:
		return nil
	default:
	}
	err := c.manifest.each(func(e manifestEntry) error {
		if e.Dir || !e.unchanged(c.root) {
			return nil
		}
		return c.root.Remove(e.Path)
	})
	// A directory is listed before those in it, so each pass removes one level
	// more; that needs no memory for the list.
	for removed := true; err == nil && removed; {
		removed = false
		err = c.manifest.each(func(e manifestEntry) error {
			if e.Dir && c.root.Remove(e.Path) == nil {
				removed = true
			}
			return nil
		})
	}
	if err != nil {
		return targetIO(err, "remove the copies in %s", c.root.Name())
	}
	if err := c.manifest.remove(); err != nil {
		return targetIO(err, "remove %s", manifestName)
	}
	c.root.Close()
	close(c.done)
	return nil
}

// targetIO gives an error at the target its kind.
func targetIO(err error, format string, args ...any) error {
	kind := capsule.IO
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = capsule.NoSpace
	case errors.Is(err, syscall.EROFS):
		kind = capsule.ReadOnly
	case errors.Is(err, fs.ErrPermission):
		kind = capsule.Denied
	}
	return capsule.Wrap(kind, err, format, args...)
}
