package files

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

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/internal/vfs"
)

// Errors that callers tell apart; see those of package bulk too.
var (
	// ErrExists: the target is there already.
	ErrExists = errors.New("files: the target exists already; remove it, or choose another")
	// ErrBusy: another process receives the same target.
	ErrBusy = errors.New("files: this target is being received already")
)

// Mirror is a node that shares what is to be received.
type Mirror struct {
	fabric.Opener
	Name string // for people
}

// ReceiveOptions say what to receive, and how.
type ReceiveOptions struct {
	Target  string   // file or directory to make
	Mirrors []Mirror // at least one
	Class   frame.Class
	Rate    int64 // bytes a second at most; 0: as fast as it goes
	// Progress is called now and then; nil: nobody wants to know.
	Progress func(Progress)
}

// Progress is how far a transfer is.
type Progress struct {
	Bytes   bulk.Progress // of the contents
	Files   int64         // in the share
	Restart string        // why it had to begin again; "": it had not
}

const (
	partSuffix = ".space-part"
	maxStarts  = 3 // of a share that changes while it is received
	showEvery  = 200 * time.Millisecond
	mirrorWait = 3 * time.Second // for the other mirrors, when one has answered
	streams    = 2               // of contents, for each mirror
)

// Names in the hidden directory.
const (
	lockFile     = "lock"
	journalFile  = "journal"
	manifestFile = "manifest"
	treeName     = "tree"
)

// Receive fetches a share. When it returns nil the target is whole and durable.
// Otherwise what has arrived is kept, unless the share has changed, and the same
// call goes on from there.
func Receive(ctx context.Context, o ReceiveOptions) error {
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Class == 0 {
		o.Class = frame.Bulk
	}
	r := &receiver{o: o, part: filepath.Join(filepath.Dir(o.Target), "."+filepath.Base(o.Target)+partSuffix)}
	if err := r.free(); err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	defer r.lock.Close()
	for start := 1; ; start++ {
		err := r.receive(ctx)
		var remote *bulk.RemoteError
		again := errors.Is(err, bulk.ErrRoot) || errors.As(err, &remote) && remote.Code == bulk.CodeChanged
		if !again || start == maxStarts || ctx.Err() != nil {
			return err
		}
		r.restart = err.Error()
		if err := r.clear(); err != nil {
			return err
		}
	}
}

// receiver is a transfer to one target.
type receiver struct {
	o       ReceiveOptions
	part    string // the hidden directory
	lock    *os.File
	restart string
}

// free fails if the target is there.
func (r *receiver) free() error {
	_, err := os.Lstat(r.o.Target)
	if err == nil {
		return fmt.Errorf("%w: %s", ErrExists, r.o.Target)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("files: %w", err)
	}
	return nil
}

// begin makes the hidden directory, or takes it over.
func (r *receiver) begin() error {
	if err := os.Mkdir(r.part, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("files: %w", err)
	}
	fi, err := os.Lstat(r.part)
	if err == nil && !fi.IsDir() {
		err = fmt.Errorf("%s is in the way", r.part)
	}
	if err == nil && fi.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) { // who could change what has come
		err = fmt.Errorf("%s is somebody else's", r.part)
	}
	if err == nil {
		r.lock, err = os.OpenFile(filepath.Join(r.part, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return fmt.Errorf("files: %w", err)
	}
	if err := unix.Flock(int(r.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		r.lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: %s", ErrBusy, r.o.Target)
		}
		return fmt.Errorf("files: lock: %w", err)
	}
	// It may have been finished, and removed, before the lock was ours.
	here, err := os.Stat(filepath.Join(r.part, lockFile))
	mine, merr := r.lock.Stat()
	if err != nil || merr != nil || !os.SameFile(here, mine) {
		r.lock.Close()
		return fmt.Errorf("%w: %s", ErrBusy, r.o.Target)
	}
	return nil
}

// clear forgets what has arrived. The order matters: without its manifest a
// journal counts for nothing.
func (r *receiver) clear() error {
	for _, name := range []string{manifestFile, journalFile, treeName} {
		if err := removeAll(filepath.Join(r.part, name)); err != nil {
			return fmt.Errorf("files: %w", err)
		}
	}
	if err := vfs.SyncDir(vfs.OS(), r.part); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	return nil
}

// removeAll is os.RemoveAll for trees with directories that are not writable.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}

// receive is one try.
func (r *receiver) receive(ctx context.Context) error {
	m, b, mirrors, err := r.manifest(ctx)
	if err != nil {
		return err
	}
	if err := r.adopt(m, b); err != nil {
		return err
	}
	root, err := os.OpenRoot(r.part)
	if err != nil {
		return fmt.Errorf("files: %w", err)
	}
	defer root.Close()
	s, err := newSink(root, m)
	if err != nil {
		return err
	}
	defer s.dir.Close()
	err = r.contents(ctx, m, s, mirrors)
	if cerr := s.close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = s.finish()
	}
	if err == nil {
		err = r.publish(&m.entries[0])
	}
	if err != nil {
		return err
	}
	r.thank(ctx, mirrors)
	return nil
}

// manifest fetches what the share consists of. The mirrors that have no such
// share, or another one, or do not answer soon after the first one, are left out.
func (r *receiver) manifest(ctx context.Context) (*manifest, []byte, []Mirror, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		m   *manifest
		b   []byte
		err error
	}
	answers := make([]answer, len(r.o.Mirrors))
	var wg sync.WaitGroup
	for i, mirror := range r.o.Mirrors {
		wg.Go(func() {
			a := &answers[i]
			var w whole
			a.err = bulk.Start(ctx, bulk.Options{Name: manifestName, Mirrors: []bulk.Mirror{r.mirror(mirror)}, Sink: &w, Streams: 1, GiveUp: time.Minute}).Wait()
			if a.b = w.b; a.err == nil {
				a.m, a.err = decodeManifest(w.b)
			}
			if a.err == nil {
				time.AfterFunc(mirrorWait, cancel)
			}
		})
	}
	wg.Wait()
	var first *answer
	var good []Mirror
	var errs error
	for i := range answers {
		a := &answers[i]
		if a.err == nil && first != nil && !a.m.sameLayout(first.m) {
			a.err = errors.New("it shares something else under this name")
		}
		if a.err != nil {
			errs = errors.Join(errs, fmt.Errorf("%s: %w", r.o.Mirrors[i].Name, a.err))
			continue
		}
		if first == nil {
			first = a
		}
		good = append(good, r.o.Mirrors[i])
	}
	if first == nil {
		if errs == nil {
			errs = bulk.ErrNoMirror
		}
		return nil, nil, nil, errs
	}
	return first.m, first.b, good, nil
}

// adopt sees that what is in the hidden directory is of this share.
func (r *receiver) adopt(m *manifest, b []byte) error {
	path := filepath.Join(r.part, manifestFile)
	old, err := os.ReadFile(path)
	// Without its tree, which has perhaps become the target, the journal lies.
	if _, lost := os.Lstat(filepath.Join(r.part, treeName)); err == nil && !errors.Is(lost, fs.ErrNotExist) {
		if was, derr := decodeManifest(old); derr == nil && was.sameLayout(m) {
			if string(old) != string(b) { // such as: other times
				return vfs.WriteFileAtomic(vfs.OS(), path, b)
			}
			return nil
		}
		r.restart = "something else is shared now under this name"
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("files: %w", err)
	}
	if err := r.clear(); err != nil {
		return err
	}
	if err := vfs.WriteFileAtomic(vfs.OS(), path, b); err != nil {
		return fmt.Errorf("files: %w", sinkError(err))
	}
	return nil
}

// contents fetches the contents of all files.
func (r *receiver) contents(ctx context.Context, m *manifest, s *sink, mirrors []Mirror) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	j, err := bulk.OpenJournal(vfs.OS(), filepath.Join(r.part, journalFile), boot)
	if err != nil {
		return err
	}
	o := bulk.Options{Name: m.contentsName(), Sink: s, Journal: j, KeepJournal: true, AnyVersion: true, Streams: streams, Rate: r.o.Rate}
	for _, mirror := range mirrors {
		o.Mirrors = append(o.Mirrors, r.mirror(mirror))
	}
	t := bulk.Start(ctx, o)
	show := func() { r.o.Progress(Progress{t.Progress(), m.files, r.restart}) }
	done := make(chan error, 1)
	go func() { done <- t.Wait() }()
	tick := time.NewTicker(showEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			show()
			if errors.Is(err, bulk.ErrNoMirror) {
				return mirrorsChanged(err, t.Progress())
			}
			return err
		case <-tick.C:
			show()
		}
	}
}

// mirrorsChanged makes of an error of all mirrors one that says so, if all that is
// wrong is that what they share has changed.
func mirrorsChanged(err error, p bulk.Progress) error {
	for _, m := range p.Mirrors {
		if m.Changed {
			return errors.Join(err, &bulk.RemoteError{Code: bulk.CodeChanged, Text: "what is shared has changed"})
		}
	}
	return err
}

// publish gives what is whole its name.
func (r *receiver) publish(top *entry) error {
	from := filepath.Join(r.part, treeName)
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, r.o.Target, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // the file system does not know that
		if err = r.free(); err == nil {
			err = unix.Rename(from, r.o.Target)
		}
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w: %s", ErrExists, r.o.Target)
	case errors.Is(err, ErrExists):
		return err
	case err != nil:
		return fmt.Errorf("files: %w", &os.LinkError{Op: "rename", Old: from, New: r.o.Target, Err: err})
	}
	if top.kind == directory && top.perm&0o200 == 0 { // see sink.finish
		if err := os.Chmod(r.o.Target, top.perm); err != nil {
			return fmt.Errorf("files: %w", err)
		}
	}
	if err := vfs.SyncDir(vfs.OS(), filepath.Dir(r.o.Target)); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	// The target is there; what is left is of no use to anybody.
	if err := os.RemoveAll(r.part); err != nil {
		return fmt.Errorf("files: %s is whole, but: %w", r.o.Target, err)
	}
	return nil
}

// thank tells the mirrors that gave it that all of it is here. It is only a courtesy.
func (r *receiver) thank(ctx context.Context, mirrors []Mirror) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, m := range mirrors {
		st, err := m.Open(ctx, frame.Interactive, []byte{forDone})
		if err != nil {
			continue
		}
		st.CloseWrite()
		st.SetReadDeadline(time.Now().Add(5 * time.Second))
		io.Copy(io.Discard, st) // until it has heard
		st.Close()
	}
}

func (r *receiver) mirror(m Mirror) bulk.Mirror { return mirrorOf{m, r.o.Class} }

// mirrorOf is a Mirror as bulk has it.
type mirrorOf struct {
	Mirror
	class frame.Class
}

// Open implements bulk.Mirror.
func (m mirrorOf) Open(ctx context.Context) (io.ReadWriteCloser, error) {
	return m.Opener.Open(ctx, m.class, []byte{forPayload})
}

// String implements bulk.Mirror.
func (m mirrorOf) String() string { return m.Name }

// whole is a sink in memory, for a manifest.
type whole struct{ b []byte }

// WriteAt implements bulk.Sink.
func (w *whole) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if end > maxManifest {
		return 0, fmt.Errorf("%w: it is larger than %d bytes", ErrManifest, maxManifest)
	}
	if int64(len(w.b)) < end {
		w.b = append(w.b, make([]byte, end-int64(len(w.b)))...)
	}
	return copy(w.b[off:], p), nil
}

// Sync implements bulk.Sink.
func (*whole) Sync() error { return nil }

// bootID is this life of the machine.
func bootID() (bulk.BootID, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return bulk.BootID{}, fmt.Errorf("files: %w", err)
	}
	h := blake3.Sum256(b)
	return bulk.BootID(h[:16]), nil
}
