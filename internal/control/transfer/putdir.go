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
	batchFiles  = 32        // files that are put together
	batches     = 64        // under way: what keeps the cores busy while the disk syncs
	readers     = 4         // of them being read; the others wait for their commit
	bufferBytes = 1 << 20   // what small files of a batch hold together
	largeFile   = 512 << 10 // a larger file is put by itself
	largeFiles  = 2         // of them under way: each is parallel in itself
	lookahead   = 128       // finished batches that may wait for an earlier one
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
	d := &dirPut{ctx: ctx, api: api, policy: policy, progress: progress, next: &putBatch{},
		jobs: make(chan *putBatch), order: make(chan *putBatch, lookahead), large: make(chan struct{}, largeFiles), readers: make(chan struct{}, readers)}
	top := &openDir{fd: fd}
	top.refs.Store(1)
	var wg sync.WaitGroup
	for range batches {
		wg.Go(d.work)
	}
	wg.Go(func() {
		defer close(d.order)
		defer close(d.jobs)
		if d.walk(top, filepath.Clean(dir), prefix) {
			d.flush()
		}
		d.next.release()
	})
	for b := range d.order {
		<-b.done
		for i := range b.jobs {
			if ctx.Err() != nil {
				break // let the others see it and finish
			}
			if err := each(b.jobs[i].Outcome); err != nil {
				cancel(err)
			}
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
	next     *putBatch // what walk is collecting
	jobs     chan *putBatch
	order    chan *putBatch
	large    chan struct{}
	readers  chan struct{}
}

// putBatch is a run of the walk.
type putBatch struct {
	jobs []putJob
	done chan struct{}
}

// release gives up the directories of jobs that are done, or never will be.
func (b *putBatch) release() {
	for i := range b.jobs {
		b.jobs[i].release()
	}
}

// putJob is one file of a walk, or something else that has its outcome already.
type putJob struct {
	Outcome
	dir   *openDir // nil: there is nothing to do
	base  string   // in dir
	name  string   // of the capsule
	large bool     // the file is put by itself
}

func (job *putJob) release() {
	if job.dir != nil {
		job.dir.release()
		job.dir = nil
	}
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
		return d.queue(putJob{Outcome: Outcome{Path: path, Err: FileError(err, "read directory")}})
	}
	for _, e := range entries {
		job := putJob{Outcome: Outcome{Path: path + "/" + e.Name()}, base: e.Name(), name: name + "/" + e.Name()}
		typ := e.Type()
		switch {
		case typ.IsRegular():
			dir.refs.Add(1)
			job.dir = dir
			if !d.queue(job) {
				return false
			}
		case typ.IsDir():
			fd, err := unix.Openat(dir.fd, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				job.Err = FileError(err, "open directory")
				if !d.queue(job) {
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
			if !d.queue(job) {
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

// queue adds a job to the batch that is being collected, and hands that over
// when it is full. It reports whether to go on.
func (d *dirPut) queue(job putJob) bool {
	d.next.jobs = append(d.next.jobs, job)
	return len(d.next.jobs) < batchFiles || d.flush()
}

// flush hands the batch to the workers, and in order to who reports.
func (d *dirPut) flush() bool {
	b := d.next
	if len(b.jobs) == 0 {
		return true
	}
	b.done = make(chan struct{})
	select {
	case d.order <- b:
	case <-d.ctx.Done():
		return false
	}
	d.next = &putBatch{jobs: make([]putJob, 0, batchFiles)}
	select {
	case d.jobs <- b:
		return true
	case <-d.ctx.Done():
		b.release()
		close(b.done)
		return false
	}
}

func (d *dirPut) work() {
	for b := range d.jobs {
		d.put(b)
		b.release()
		close(b.done)
	}
}

// buffers hold the content of batches.
var buffers = sync.Pool{New: func() any { return new([bufferBytes]byte) }}

// put stores the files of a batch, the small ones together.
func (d *dirPut) put(b *putBatch) {
	for rest := b.jobs; len(rest) > 0; {
		rest = d.putSmall(rest)
	}
	for i := range b.jobs {
		if job := &b.jobs[i]; job.large {
			d.putLarge(job)
		}
	}
}

// putSmall stores small files, as many as fit into a buffer, and returns the jobs
// that remain. It marks large files.
func (d *dirPut) putSmall(jobs []putJob) []putJob {
	// A few batches are read at a time, in buffers that stay in the processor's
	// cache, while the others wait for their commit. Who has taken a batch may
	// wait here, but never for a batch while he has a place.
	d.readers <- struct{}{}
	buf := buffers.Get().(*[bufferBytes]byte)
	taken := sync.OnceFunc(func() {
		buffers.Put(buf)
		<-d.readers
	})
	defer taken()
	contents := make([]store.Content, 0, len(jobs))
	puts := make([]*putJob, 0, len(jobs))
	for free := buf[:]; len(jobs) > 0; jobs = jobs[1:] {
		job := &jobs[0]
		if job.dir == nil {
			continue
		}
		if len(free) <= largeFile {
			break
		}
		n, ok := d.readSmall(job, free[:largeFile+1])
		if !job.large {
			job.release()
		}
		if !ok {
			continue
		}
		puts = append(puts, job)
		contents = append(contents, store.Content{
			PutRequest: store.PutRequest{Name: job.name, Size: int64(n), Policy: d.policy}, Data: free[:n]})
		free = free[n:]
	}
	for i, r := range d.api.PutAll(d.ctx, contents, taken) {
		puts[i].Info, puts[i].Err = r.Info, r.Err
	}
	d.progress.Files.Add(int64(len(puts)))
	return jobs
}

// open opens a job's file, unless it has become none, and returns its size.
func (job *putJob) open() (fd int, size int64, ok bool) {
	// O_NONBLOCK: what was a file when listed may be a pipe by now.
	fd, err := unix.Openat(job.dir.fd, job.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		job.Err = FileError(err, "open")
		return 0, 0, false
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		job.Err = FileError(err, "stat")
	} else if st.Mode&unix.S_IFMT != unix.S_IFREG {
		job.Skipped = "not a regular file any more"
	} else {
		return fd, st.Size, true
	}
	unix.Close(fd)
	return 0, 0, false
}

// readSmall reads a whole file into buf. If it cannot, the job says why, or is large.
func (d *dirPut) readSmall(job *putJob, buf []byte) (n int, ok bool) {
	fd, size, ok := job.open()
	if !ok {
		return 0, false
	}
	defer unix.Close(fd)
	if size >= int64(len(buf)) {
		job.large = true
		return 0, false
	}
	if size == 0 {
		return d.readUnsized(job, fd, buf)
	}
	n, job.Err = readWhole(&countingReader{&fdReader{fd: fd, left: size}, d.progress}, buf[:size+1])
	return n, job.Err == nil
}

// readUnsized is readSmall for a file that says it is empty, as those of /proc
// do, whatever they have.
func (d *dirPut) readUnsized(job *putJob, fd int, buf []byte) (n int, ok bool) {
	n, err := io.ReadFull(&fdReader{fd: fd, left: unsized}, buf)
	switch {
	case err == nil:
		job.large = true
		return 0, false
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		job.Err = err
		return 0, false
	}
	d.progress.Bytes.Add(int64(n))
	return n, true
}

// readWhole reads a file that should leave just the last byte of buf free.
func readWhole(r io.Reader, buf []byte) (int, error) {
	n, err := io.ReadFull(r, buf)
	switch size := len(buf) - 1; {
	case err == nil:
		return n, capsule.Errorf(capsule.Invalid, "the file grew beyond %d bytes while it was read", size)
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return n, err
	case n < size:
		return n, capsule.Errorf(capsule.Invalid, "the file shrank from %d to %d bytes while it was read", size, n)
	}
	return n, nil
}

// putLarge stores one file by itself.
func (d *dirPut) putLarge(job *putJob) {
	select {
	case d.large <- struct{}{}:
		defer func() { <-d.large }()
	case <-d.ctx.Done():
		job.Err = context.Cause(d.ctx)
		return
	}
	fd, size, ok := job.open()
	if !ok {
		return
	}
	defer unix.Close(fd)
	if size == 0 {
		size = unsized
	}
	req := store.PutRequest{Name: job.name, Size: size, Policy: d.policy}
	job.Info, job.Err = d.api.Put(d.ctx, req, &countingReader{&fdReader{fd: fd, left: size}, d.progress})
	d.progress.Files.Add(1)
}

// fdReader reads a regular file's descriptor without the poller's bookkeeping,
// which costs more than a small file's content.
type fdReader struct {
	fd   int
	left int64 // bytes to come, as the file's size says; or unsized
}

// unsized stands for the size of a file that does not say.
const unsized = -1

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
