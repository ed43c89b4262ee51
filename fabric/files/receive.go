package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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
	// More brings mirrors that are found later; nil: there will be none.
	More <-chan Mirror
	// Trusted: mirrors come in the order of trust. Where two have different contents,
	// the one before the other is right. Otherwise the error is bulk.ErrDisputed.
	Trusted bool
	Class   frame.Class
	Rate    int64 // bytes a second at most; 0: as fast as it goes
	// Started is called with what can be told to a transfer that runs; nil: nothing is.
	Started func(Control)
	// Progress is called now and then; nil: nobody wants to know.
	Progress func(Progress)
}

// Progress is how far a transfer is.
type Progress struct {
	Bytes   bulk.Progress // of the contents
	Files   int64         // in the share
	Restart string        // why it had to begin again; "": it had not
}

// Control is what can be told to a transfer that runs.
type Control interface {
	Pause()
	Resume()
	SetRate(bytesPerSecond int64)
}

const (
	partSuffix = ".space-part"
	maxStarts  = 3 // of a share that changes while it is received
	showEvery  = 200 * time.Millisecond
	mirrorWait = 3 * time.Second // for a mirror's manifest, until another one is asked too
	streams    = 2               // of contents, for each mirror
)

// Names in the hidden directory.
const (
	lockFile     = "lock"
	journalFile  = "journal"
	manifestFile = "manifest"
	treeName     = "tree"
	markFile     = "done" // what tree becomes the target as; see mark
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
	r := newReceiver(o)
	done, err := r.begin()
	if err != nil {
		return err
	}
	defer r.lock.Close()
	if done {
		return nil
	}
	for start := 1; ; start++ {
		err := r.receive(ctx)
		var remote *bulk.RemoteError
		again := errors.Is(err, errLost) || errors.As(err, &remote) && remote.Code == bulk.CodeChanged
		if !again || start == maxStarts || ctx.Err() != nil {
			return err
		}
		r.restart = err.Error()
		if errors.Is(err, errLost) {
			if err := r.clear(); err != nil {
				return err
			}
		}
	}
}

// Received finishes what a Receive for the same target has left that was killed when
// all was there, and reports whether it did. ErrExists: the target is something else.
func Received(target string) (done bool, err error) {
	r := newReceiver(ReceiveOptions{Target: target})
	if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	done, err = r.begin()
	if err == nil {
		err = r.lock.Close()
	}
	return done, err
}

// receiver is a transfer to one target.
type receiver struct {
	o       ReceiveOptions
	part    string // the hidden directory
	lock    *os.File
	restart string
}

func newReceiver(o ReceiveOptions) *receiver {
	return &receiver{o: o, part: filepath.Join(filepath.Dir(o.Target), "."+filepath.Base(o.Target)+partSuffix)}
}

// errLost: what the journal says is there is not.
var errLost = errors.New("files: what has arrived is damaged")

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

// begin makes the hidden directory, or takes it over. done: all had come already, and
// now the target is there.
func (r *receiver) begin() (done bool, err error) {
	exists := r.free()
	if exists != nil && !errors.Is(exists, ErrExists) {
		return false, exists
	}
	if _, err := os.Lstat(r.part); exists != nil && errors.Is(err, fs.ErrNotExist) {
		return false, exists // nothing is left of a Receive
	}
	if err := r.acquire(); err != nil {
		return false, err
	}
	if exists == nil {
		return false, nil
	}
	m, err := r.mark()
	if err == nil && m != nil {
		var now mark
		if now, err = markOf(r.o.Target, m.perm); err == nil && now == *m {
			if err = r.complete(*m); err == nil {
				return true, nil
			}
		}
	}
	if err == nil {
		if _, terr := os.Lstat(filepath.Join(r.part, treeName)); m == nil && errors.Is(terr, fs.ErrNotExist) {
			err = os.RemoveAll(r.part) // of one that was killed at the very end, or beginning
		}
	}
	r.lock.Close()
	if err != nil {
		return false, fmt.Errorf("files: %w", err)
	}
	return false, exists
}

// acquire makes the hidden directory and its lock ours.
func (r *receiver) acquire() error {
	if err := os.Mkdir(r.part, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("files: %w", sinkError(err))
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
	for _, name := range []string{markFile, manifestFile, journalFile, treeName} {
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
	m, text, from, err := r.manifest(ctx)
	if err != nil {
		return err
	}
	if err := r.adopt(m, text); err != nil {
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
	err = r.contents(ctx, m, s, from)
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
	r.thank(ctx, m)
	return nil
}

// manifest fetches what the share consists of: from the first mirror that gives it,
// and says from which. They are asked one after the other, and a second one beside
// one that is slow, if they don't come in the order of trust: a manifest may be large, and is held in memory.
func (r *receiver) manifest(ctx context.Context) (*manifest, string, int, error) {
	ctx, cancel := context.WithCancel(ctx)
	type answer struct {
		m    *manifest
		text string
		from int
		err  error
	}
	answers := make(chan answer)
	next, under := 0, 0
	defer func() {
		cancel()
		for range under {
			<-answers
		}
	}()
	slow := time.NewTimer(0)
	defer slow.Stop()
	errs := error(bulk.ErrNoMirror)
	for next < len(r.o.Mirrors) || under > 0 {
		select {
		case <-slow.C:
			if next == len(r.o.Mirrors) || under == maxManifests {
				continue
			}
			from := next
			next++
			under++
			if !r.o.Trusted { // else a slow one has the word, unless it gives nothing at all
				slow.Reset(mirrorWait)
			}
			go func() {
				m, text, err := r.manifestOf(ctx, r.o.Mirrors[from])
				answers <- answer{m, text, from, err}
			}()
		case a := <-answers:
			under--
			if a.err == nil {
				return a.m, a.text, a.from, nil
			}
			errs = fmt.Errorf("%w; %w", errs, a.err)
			slow.Reset(0)
		}
	}
	if err := ctx.Err(); err != nil {
		errs = err
	}
	return nil, "", 0, errs
}

// maxManifests is how many manifests are fetched at once.
const maxManifests = 2

func (r *receiver) manifestOf(ctx context.Context, from Mirror) (*manifest, string, error) {
	var w whole
	err := bulk.Start(ctx, bulk.Options{Name: manifestName, Mirrors: []bulk.Mirror{r.mirror(from)}, Sink: &w, MaxSize: maxManifest, Streams: 1, GiveUp: time.Minute}).Wait()
	if err != nil {
		return nil, "", err
	}
	text := string(w.b) // the manifest's paths are parts of this one copy
	w.b = nil
	m, err := decodeManifest(text)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", from.Name, err)
	}
	return m, text, nil
}

// adopt sees that what is in the hidden directory is of this share.
func (r *receiver) adopt(m *manifest, text string) error {
	path := filepath.Join(r.part, manifestFile)
	old, err := os.ReadFile(path)
	// Without its tree, which has perhaps become the target, the journal lies.
	if _, lost := os.Lstat(filepath.Join(r.part, treeName)); err == nil && !errors.Is(lost, fs.ErrNotExist) {
		if was, derr := decodeManifest(string(old)); derr == nil && was.sameLayout(m) {
			if string(old) == text {
				return nil
			}
			return r.write(manifestFile, text) // such as: other times
		}
		r.restart = "something else is shared now under this name"
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("files: %w", err)
	}
	if err := r.clear(); err != nil {
		return err
	}
	return r.write(manifestFile, text)
}

// write makes a file in the hidden directory, durably.
func (r *receiver) write(name, text string) error {
	if err := vfs.WriteFileAtomic(vfs.OS(), filepath.Join(r.part, name), []byte(text)); err != nil {
		return fmt.Errorf("files: %w", sinkError(err))
	}
	return nil
}

// contents fetches the contents of all files. Mirrors that share something else under
// this name do not have them under theirs.
func (r *receiver) contents(ctx context.Context, m *manifest, s *sink, from int) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	j, err := bulk.OpenJournal(vfs.OS(), filepath.Join(r.part, journalFile), boot)
	if err != nil {
		return err
	}
	o := bulk.Options{Name: m.contentsName(), Sink: s, Journal: j, KeepJournal: true, Size: &m.size, Trusted: r.o.Trusted, Streams: streams, Rate: r.o.Rate}
	for _, mirror := range r.o.Mirrors {
		o.Mirrors = append(o.Mirrors, r.mirror(mirror))
	}
	t := bulk.Start(ctx, o)
	if r.o.Started != nil {
		r.o.Started(t)
	}
	show := func() { r.o.Progress(Progress{t.Progress(), m.files, r.restart}) }
	more := r.o.More
	done := make(chan error, 1)
	go func() { done <- t.Wait() }()
	tick := time.NewTicker(showEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			show()
			if errors.Is(err, bulk.ErrNoMirror) && t.Progress().Mirrors[from].Changed {
				err = errors.Join(err, &bulk.RemoteError{Code: bulk.CodeChanged, Text: "what is shared has changed"})
			}
			return err
		case <-tick.C:
			show()
		case mirror, ok := <-more:
			if !ok {
				more = nil
				break
			}
			r.o.Mirrors = append(r.o.Mirrors, mirror)
			t.AddMirror(r.mirror(mirror))
		}
	}
}

// publish gives what is whole its name.
func (r *receiver) publish(top *entry) error {
	from := filepath.Join(r.part, treeName)
	m, err := markOf(from, top.perm)
	if err != nil {
		return fmt.Errorf("files: %w", err)
	}
	if err := r.write(markFile, m.String()); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, r.o.Target, unix.RENAME_NOREPLACE)
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
	return r.complete(m)
}

// complete does what is left when the target has its name.
func (r *receiver) complete(m mark) error {
	dir, err := os.Open(filepath.Dir(r.o.Target))
	if err != nil {
		return fmt.Errorf("files: %w", err)
	}
	defer dir.Close()
	fi, err := os.Lstat(r.o.Target)
	if err == nil && fi.IsDir() && m.perm&0o200 == 0 { // see sink.finish
		if err = os.Chmod(r.o.Target, m.perm); err == nil {
			err = unix.Syncfs(int(dir.Fd())) // it may not be readable, for a sync of its own
		}
	}
	if err == nil {
		err = dir.Sync()
	}
	if err != nil {
		return fmt.Errorf("files: %w", err)
	}
	// The target is there; what is left is of no use to anybody. The mark goes last.
	for _, name := range []string{journalFile, manifestFile, markFile} {
		if err == nil {
			err = os.RemoveAll(filepath.Join(r.part, name))
		}
	}
	if err == nil {
		err = os.RemoveAll(r.part)
	}
	if err != nil {
		return fmt.Errorf("files: %s is whole, but: %w", r.o.Target, err)
	}
	return nil
}

// mark is what the tree is, by which it is known again when it has become the target,
// by one that was killed after it had renamed it.
type mark struct {
	dev, ino uint64
	born     int64 // 0: not known
	perm     fs.FileMode
}

func (m mark) String() string {
	return fmt.Sprintf("space-files-done/1 %d %d %d %d\n", m.dev, m.ino, m.born, permBits(m.perm))
}

func markOf(path string, perm fs.FileMode) (m mark, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return m, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	m = mark{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino, perm: perm}
	if st.Mask&unix.STATX_BTIME != 0 {
		m.born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return m, nil
}

// mark returns the mark that is there; nil: none, or not a whole one.
func (r *receiver) mark() (*mark, error) {
	b, err := os.ReadFile(filepath.Join(r.part, markFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m mark
	var perm uint16
	if _, err := fmt.Sscanf(string(b), "space-files-done/1 %d %d %d %d\n", &m.dev, &m.ino, &m.born, &perm); err != nil {
		return nil, nil
	}
	m.perm = permOf(perm)
	return &m, nil
}

// thank tells the mirrors that have it that all of it is here. It is only a courtesy.
func (r *receiver) thank(ctx context.Context, m *manifest) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	header := append([]byte{forDone}, m.contentsName()...)
	for _, mirror := range r.o.Mirrors {
		st, err := mirror.Open(ctx, frame.Interactive, header)
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
	return m.Opener.Open(ctx, m.class, []byte{forPayload, version})
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
