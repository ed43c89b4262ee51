package transfer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control"
)

// Outcome is what became of one file of a tree.
type Outcome struct {
	Path    string       // of the file
	Info    capsule.Info // of its capsule, if Err and Skipped are empty
	Skipped string       // why there is none: it is no regular file
	Err     error
}

const (
	smallFiles = 512 // puts of small files under way: what the store's group commit needs
	largeFiles = 2   // puts of larger ones: each is parallel in itself
	readers    = 8   // files being read; the other puts wait for their commit
	largeFile  = 512 << 10
	lookahead  = 2048 // finished files that may wait for an earlier one
)

// PutDir stores the regular files under dir, each as the capsule PREFIX/path,
// and calls each with every outcome, in walk order, from one goroutine. The
// failure of one file doesn't stop the others; an error from each does.
func PutDir(ctx context.Context, api control.Capsules, dir, prefix string, policy *capsule.Policy, progress *Progress, each func(Outcome) error) error {
	if err := capsule.CheckName(prefix); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return FileError(&os.PathError{Op: "open", Path: dir, Err: err}, "put -r")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := &dirPut{ctx: ctx, api: api, policy: policy, progress: progress,
		jobs: make(chan *putJob), order: make(chan *putJob, lookahead), large: make(chan struct{}, largeFiles), readers: make(chan struct{}, readers)}
	top := &openDir{fd: fd}
	top.refs.Store(1)
	var wg sync.WaitGroup
	for range smallFiles {
		wg.Go(d.work)
	}
	wg.Go(func() {
		defer close(d.order)
		defer close(d.jobs)
		d.walk(top, filepath.Clean(dir), prefix)
	})
	for job := range d.order {
		<-job.done
		if ctx.Err() != nil {
			continue // let the others see it and finish
		}
		if err := each(job.Outcome); err != nil {
			cancel(err)
		}
	}
	wg.Wait()
	return context.Cause(ctx)
}

type dirPut struct {
	ctx      context.Context
	api      control.Capsules
	policy   *capsule.Policy
	progress *Progress
	jobs     chan *putJob
	order    chan *putJob
	large    chan struct{}
	readers  chan struct{}
}

type putJob struct {
	Outcome
	dir  *openDir
	base string // in dir
	name string // of the capsule
	done chan struct{}
}

// openDir is a directory that files are opened relative to: paths need not be
// resolved again, and a directory swapped for a link meanwhile leads nowhere.
type openDir struct {
	fd   int
	refs atomic.Int32
}

func (d *openDir) release() {
	if d.refs.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

// walk queues everything under dir, whose reference it takes over, and reports
// whether to go on.
func (d *dirPut) walk(dir *openDir, path, name string) bool {
	defer dir.release()
	entries, err := readDir(dir.fd, path)
	if err != nil {
		return d.queue(&putJob{Outcome: Outcome{Path: path, Err: FileError(err, "read directory")}}, nil)
	}
	for _, e := range entries {
		job := &putJob{Outcome: Outcome{Path: path + "/" + e.Name()}, base: e.Name(), name: name + "/" + e.Name()}
		typ := e.Type()
		switch {
		case typ.IsRegular():
			if !d.queue(job, dir) {
				return false
			}
		case typ.IsDir():
			fd, err := unix.Openat(dir.fd, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				job.Err = FileError(err, "open directory")
				if !d.queue(job, nil) {
					return false
				}
				continue
			}
			sub := &openDir{fd: fd}
			sub.refs.Store(1)
			if !d.walk(sub, job.Path, job.name) {
				return false
			}
		default:
			job.Skipped = skipReason(typ)
			if !d.queue(job, nil) {
				return false
			}
		}
	}
	return true
}

func skipReason(typ fs.FileMode) string {
	switch {
	case typ&fs.ModeSymlink != 0:
		return "symbolic link"
	case typ&fs.ModeNamedPipe != 0:
		return "named pipe"
	case typ&fs.ModeSocket != 0:
		return "socket"
	case typ&fs.ModeDevice != 0:
		return "device"
	}
	return "not a regular file"
}

// readDir lists an open directory by name. Types come with the names, without
// a stat, on every file system of note.
func readDir(fd int, path string) ([]fs.DirEntry, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), path)
	defer f.Close()
	entries, err := f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// queue hands a job to the workers if it has work (dir is set), else just to
// the results.
func (d *dirPut) queue(job *putJob, dir *openDir) bool {
	job.done = make(chan struct{})
	if dir == nil {
		close(job.done)
	} else {
		dir.refs.Add(1)
		job.dir = dir
	}
	select {
	case d.order <- job:
	case <-d.ctx.Done():
		if dir != nil {
			dir.release()
		}
		return false
	}
	if dir == nil {
		return true
	}
	select {
	case d.jobs <- job:
		return true
	case <-d.ctx.Done():
		dir.release()
		close(job.done)
		return false
	}
}

func (d *dirPut) work() {
	for job := range d.jobs {
		d.put(job)
		job.dir.release()
		close(job.done)
	}
}

func (d *dirPut) put(job *putJob) {
	// Files go through the pipeline a few at a time, in buffers that stay in the
	// processor's cache, instead of all at once in a buffer each.
	d.readers <- struct{}{}
	taken := sync.OnceFunc(func() { <-d.readers })
	defer taken()
	// O_NONBLOCK: what was a file when listed may be a pipe by now.
	fd, err := unix.Openat(job.dir.fd, job.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		job.Err = FileError(err, "open")
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		job.Err = FileError(err, "stat")
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		job.Skipped = "not a regular file any more"
		return
	}
	if st.Size >= largeFile {
		taken() // or large files would keep small ones waiting
		select {
		case d.large <- struct{}{}:
			defer func() { <-d.large }()
		case <-d.ctx.Done():
			job.Err = context.Cause(d.ctx)
			return
		}
	}
	req := store.PutRequest{Name: job.name, Size: st.Size, Policy: d.policy, Taken: taken}
	job.Info, job.Err = d.api.Put(d.ctx, req, &countingReader{&fdReader{fd: fd, left: st.Size}, d.progress})
	d.progress.Files.Add(1)
}

// fdReader reads a regular file's descriptor without the poller's bookkeeping,
// which costs more than a small file's content.
type fdReader struct {
	fd   int
	left int64 // bytes to come, as the file's size says
}

func (r *fdReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := unix.Read(r.fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, FileError(err, "read")
		case n == 0:
			return 0, io.EOF
		}
		r.left -= int64(n)
		if r.left == 0 && n < len(p) {
			return n, io.EOF // there is no need to ask again
		}
		return n, nil
	}
}

// DefaultPrefix is the name under which put -r stores a directory when none is
// given: its own.
func DefaultPrefix(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", FileError(err, "put -r %s", dir)
	}
	base := filepath.Base(abs)
	if base == "/" || base == "." {
		return "", capsule.Errorf(capsule.Invalid, "put -r %s: the directory has no name of its own; give one with --name", dir)
	}
	return base, nil
}
