package transfer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control"
)

// GetTo writes a capsule, or a range of it, to w. begin, if not nil, is told
// its facts first.
func GetTo(ctx context.Context, api control.Capsules, req control.GetRequest, w io.Writer, progress *Progress, begin func(capsule.Info)) error {
	return api.Get(ctx, req, func(info capsule.Info) (io.Writer, error) {
		if begin != nil {
			begin(info)
		}
		return &countingWriter{w, progress}, nil
	})
}

type countingWriter struct {
	w io.Writer
	p *Progress
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.p.Bytes.Add(int64(n))
	return n, err
}

// GetFile writes a capsule, or a range of it, to the file at path. A file
// appears there, or replaces the one there, when all of it is written. What
// exists and is no regular file (a device, a pipe) is written to as it is.
func GetFile(ctx context.Context, api control.Capsules, req control.GetRequest, path string, progress *Progress, begin func(capsule.Info)) error {
	t, err := openTarget(path)
	if err != nil {
		return err
	}
	if t.special != nil {
		if err := GetTo(ctx, api, req, t.special, progress, begin); err != nil {
			t.special.Close()
			return err
		}
		return FileError(t.special.Close(), "output")
	}
	defer t.dir.Close()
	return getInto(ctx, api, req, t.dir, t.base, t.old, progress, begin)
}

// target is where a file is to be written: special, what is no regular file,
// open, or base in dir, where old is, if anything.
type target struct {
	special *os.File
	dir     *os.Root
	base    string
	old     fs.FileInfo
}

func openTarget(path string) (t target, err error) {
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return t, capsule.Errorf(capsule.Invalid, "%s is a directory; name a file in it", path)
	case err == nil && !st.Mode().IsRegular():
		t.special, err = os.OpenFile(path, os.O_WRONLY, 0)
		return t, FileError(err, "output")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return t, FileError(err, "output")
	}
	if err == nil { // write through a symbolic link, as cp does
		t.old = st
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return t, FileError(err, "output")
		}
	}
	t.base = filepath.Base(path)
	t.dir, err = os.OpenRoot(filepath.Dir(path))
	return t, FileError(err, "output directory")
}

// getInto writes the file base in dir by way of a temporary file. old is the
// file that it replaces, or nil.
func getInto(ctx context.Context, api control.Capsules, req control.GetRequest, dir *os.Root, base string, old fs.FileInfo, progress *Progress, begin func(capsule.Info)) error {
	return writeInto(dir, base, old, func(f *os.File) (time.Time, error) {
		var info capsule.Info
		err := api.Get(ctx, req, func(i capsule.Info) (io.Writer, error) {
			info = i
			if begin != nil {
				begin(i)
			}
			return &fileWriter{countingWriter{f, progress}}, nil
		})
		return info.Modified, err
	})
}

// writeInto makes the file base in dir of what write puts into a temporary file.
// write returns the time of modification that the file is to have. old is the
// file that it replaces, or nil.
func writeInto(dir *os.Root, base string, old fs.FileInfo, write func(*os.File) (time.Time, error)) (err error) {
	temp := ".space-" + capsule.NewID(time.Now()).String()
	f, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return FileError(err, "output")
	}
	defer func() {
		if err != nil {
			f.Close()
			dir.Remove(temp)
		}
	}()
	modified, err := write(f)
	if err != nil {
		return err
	}
	if old != nil {
		if err := f.Chmod(old.Mode().Perm()); err != nil {
			return FileError(err, "output")
		}
		// Without this a power cut could leave neither the old content
		// nor the new one.
		if err := f.Sync(); err != nil {
			return FileError(err, "output")
		}
	}
	if err := f.Close(); err != nil {
		return FileError(err, "output")
	}
	if err := dir.Chtimes(temp, modified, modified); err != nil {
		return FileError(err, "output")
	}
	if err := dir.Rename(temp, base); err != nil {
		return FileError(err, "output")
	}
	return nil
}

// fileWriter gives failed writes their kind: a full disk is no bug.
type fileWriter struct{ countingWriter }

func (w *fileWriter) Write(b []byte) (int, error) {
	n, err := w.countingWriter.Write(b)
	if err != nil {
		err = FileError(err, "output")
	}
	return n, err
}

// getFiles is how many files GetDir fetches at once.
const getFiles = 4

// GetDir writes the capsules whose names start with PREFIX/ to files under dir,
// which it makes if need be, and calls each with every outcome, from one
// goroutine at a time. The failure of one file doesn't stop the others; an
// error from each does.
func GetDir(ctx context.Context, api control.Capsules, prefix, dir string, progress *Progress, each func(Outcome) error) error {
	if err := capsule.CheckName(prefix); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return FileError(err, "output directory")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return FileError(err, "output directory")
	}
	defer root.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g := &dirGet{api: api, root: root, progress: progress, jobs: make(chan getJob)}
	var mu sync.Mutex
	done := func(o Outcome) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() == nil {
			if err := each(o); err != nil {
				cancel(err)
			}
		}
	}
	var wg sync.WaitGroup
	for range getFiles {
		wg.Go(func() {
			for job := range g.jobs {
				err := g.get(ctx, job)
				job.dir.release()
				done(Outcome{Path: filepath.Join(dir, job.rel), Info: job.info, Err: err})
			}
		})
	}
	err = g.list(ctx, prefix+"/", func(rel string, err error) { done(Outcome{Path: filepath.Join(dir, rel), Err: err}) })
	close(g.jobs)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

type dirGet struct {
	api      control.Capsules
	root     *os.Root
	progress *Progress
	jobs     chan getJob
	cur      *rootDir // where the last file went: names come sorted, so the next mostly goes there too
}

type getJob struct {
	info capsule.Info
	rel  string
	dir  *rootDir
}

// rootDir is a directory under the root, open while jobs need it.
type rootDir struct {
	path string
	root *os.Root
	refs atomic.Int32
}

func (d *rootDir) release() {
	if d.refs.Add(-1) == 0 {
		d.root.Close()
	}
}

// list queues every capsule under prefix.
func (g *dirGet) list(ctx context.Context, prefix string, failed func(rel string, err error)) error {
	defer func() {
		if g.cur != nil {
			g.cur.release()
		}
	}()
	found := false
	for q := (store.ListQuery{Prefix: prefix, Limit: 1000}); ; {
		page, err := g.api.List(ctx, q)
		if err != nil {
			return err
		}
		for _, info := range page.Capsules {
			rel, ok := strings.CutPrefix(info.Name, prefix)
			if !ok {
				continue
			}
			found = true
			if !filepath.IsLocal(rel) {
				failed("?", capsule.Errorf(capsule.Invalid, "capsule %s has the name %q, which is no path below a directory", info.ID, info.Name))
				continue
			}
			if err := g.enter(path.Dir(rel)); err != nil {
				failed(rel, FileError(err, "output directory"))
				continue
			}
			g.cur.refs.Add(1)
			select {
			case g.jobs <- getJob{info, rel, g.cur}:
			case <-ctx.Done():
				g.cur.release()
				return nil
			}
		}
		if page.Next == "" {
			break
		}
		q.Cursor = page.Next
	}
	if !found {
		return capsule.Errorf(capsule.NotFound, "no capsule has a name that starts with %q", prefix)
	}
	return nil
}

// enter makes g.cur the directory at path.
func (g *dirGet) enter(path string) error {
	if g.cur != nil {
		if g.cur.path == path {
			return nil
		}
		g.cur.release()
		g.cur = nil
	}
	if err := g.root.MkdirAll(path, 0o777); err != nil {
		return err
	}
	sub, err := g.root.OpenRoot(path)
	if err != nil {
		return err
	}
	g.cur = &rootDir{path: path, root: sub}
	g.cur.refs.Store(1)
	return nil
}

func (g *dirGet) get(ctx context.Context, job getJob) error {
	base := path.Base(job.rel)
	old, err := job.dir.root.Lstat(base)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = nil
	case err != nil:
		return FileError(err, "output")
	case old.IsDir():
		return capsule.Errorf(capsule.Exists, "a directory is in the way")
	case !old.Mode().IsRegular(): // replaced, not written through
		old = nil
	}
	err = getInto(ctx, g.api, control.GetRequest{Ref: job.info.ID.String(), Length: -1}, job.dir.root, base, old, g.progress, nil)
	g.progress.Files.Add(1)
	return err
}
