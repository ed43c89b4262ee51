package files

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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
	Class   frame.Class // Bulk or Background; 0: as was set before for this target, or Bulk
	Rate    int64       // bytes a second at most; 0: as was set before, or as fast as it goes
	MaxSize int64       // in bytes, of which what is in a directory has 4096 at least; 0: any
	// Insist keeps what is needed to tell the mirrors that all is here, where none has
	// heard of it: see Received.
	Insist bool
	// Control is what changes it while it runs; nil: nothing does.
	Control *Control
	// Progress is called now and then, and with Hash in the end; nil: nobody wants to know.
	Progress func(Progress)
	// Note is called, from any goroutine, with what is worth knowing and no failure; nil:
	// nobody wants to know.
	Note func(string)
}

// Progress is how far a transfer is.
type Progress struct {
	Bytes   bulk.Progress // of the contents
	Files   int64         // in the share
	Restart string        // why it had to begin again; "": it had not
	Hash    *bulk.Hash    // the contents' final hash, when the target is whole; nil: it is not
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
	settingsFile = "settings"
)

// Receive fetches a share. When it returns nil the target is whole and durable.
// Otherwise what has arrived is kept, unless the share has changed, and the same
// call goes on from there.
func Receive(ctx context.Context, o ReceiveOptions) error {
	r := newReceiver(o)
	done, err := r.begin()
	if err != nil {
		return err
	}
	if done != nil {
		own := &Own{r, *done}
		if !own.Thank(ctx, o.Mirrors) && o.Insist {
			r.lock.Close()
			return fmt.Errorf("%w: %s", ErrExists, o.Target)
		}
		r.o.Progress(Progress{Hash: &done.root})
		return own.Close()
	}
	defer r.lock.Close()
	if err := r.o.Control.begin(filepath.Join(r.part, settingsFile), Settings{Rate: o.Rate, Class: o.Class}); err != nil {
		return err
	}
	defer r.o.Control.end()
	for start := 1; ; start++ {
		err := r.receive(ctx)
		var remote *bulk.RemoteError
		again := errors.Is(err, errLost) || errors.As(err, &remote) && remote.Code == bulk.CodeChanged
		if !again || start == maxStarts || ctx.Err() != nil {
			if err != nil && r.empty() {
				err = errors.Join(err, os.RemoveAll(r.part))
			}
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

// Received finishes what a Receive for the same target has left that was killed, or
// could not tell anybody, when all was there; nil: there is none. ErrExists: the target
// is something else. Close what it returns.
func Received(target string) (*Own, error) {
	r := newReceiver(ReceiveOptions{Target: target})
	if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	done, err := r.begin()
	if err != nil {
		return nil, err
	}
	if done == nil { // the target has gone meanwhile
		return nil, r.lock.Close()
	}
	return &Own{r, *done}, nil
}

// Own is a target that an earlier Receive has made whole, of which perhaps nobody has
// heard.
type Own struct {
	r *receiver
	m mark
}

// Hash returns the contents' final hash.
func (o *Own) Hash() bulk.Hash { return o.m.root }

// Thank tells those mirrors that have the same that all of it is here, and reports
// whether one has heard.
func (o *Own) Thank(ctx context.Context, mirrors []Mirror) bool {
	heard := false
	for _, m := range mirrors {
		// It counts there for one who has asked for something.
		if root, err := bulk.Root(ctx, o.r.mirror(m), o.m.name); err == nil && root == o.m.root {
			heard = thank(ctx, m, o.m.name) || heard
		}
	}
	return heard
}

// Close removes what was left beside the target.
func (o *Own) Close() error {
	defer o.r.lock.Close()
	return o.r.forget()
}

// receiver is a transfer to one target.
type receiver struct {
	o       ReceiveOptions
	part    string // the hidden directory
	lock    *os.File
	restart string
	root    bulk.Hash // of the contents, when they are there
}

func newReceiver(o ReceiveOptions) *receiver {
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	if o.Control == nil {
		o.Control = &Control{}
	}
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
// now the target is there; nil: not yet.
func (r *receiver) begin() (done *mark, err error) {
	exists := r.free()
	if exists != nil && !errors.Is(exists, ErrExists) {
		return nil, exists
	}
	if _, err := os.Lstat(r.part); exists != nil && errors.Is(err, fs.ErrNotExist) {
		return nil, exists // nothing is left of a Receive
	}
	if err := r.acquire(); err != nil {
		return nil, err
	}
	if exists == nil {
		return nil, nil
	}
	m, err := r.mark()
	if err == nil && m != nil {
		var now inodeMark
		if now, err = markOf(r.o.Target); err == nil && now == m.inodeMark {
			if err = r.complete(*m); err == nil {
				return m, nil
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
		return nil, fmt.Errorf("files: %w", err)
	}
	return nil, exists
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
	for _, name := range []string{markFile, manifestFile + nextSuffix, manifestFile, journalFile + nextSuffix, journalFile, treeName + nextSuffix, treeName} {
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

// empty reports whether nothing has come or was set that would be of use another time.
func (r *receiver) empty() bool {
	for _, name := range []string{manifestFile, manifestFile + nextSuffix, settingsFile, markFile} {
		if _, err := os.Lstat(filepath.Join(r.part, name)); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// receive is one try.
func (r *receiver) receive(ctx context.Context) error {
	m, text, from, err := r.manifest(ctx)
	if err != nil {
		return err
	}
	if n := m.room(); r.o.MaxSize > 0 && n > r.o.MaxSize {
		why := ""
		if n > m.size {
			why = fmt.Sprintf(", as each of the %d files and directories in it counts as %d at least", m.count()-1, leastRoom)
		}
		return fmt.Errorf("%w: it has %d bytes%s, and at most %d are taken", ErrUnwanted, n, why, r.o.MaxSize)
	}
	if r.folds() {
		if a, b := m.twins(); a != b {
			return fmt.Errorf("files: %.200q and %.200q would be one file here, where upper and lower case are the same", a, b)
		}
	}
	if err := r.adopt(ctx, m, text, r.o.Mirrors[from]); err != nil {
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
	s.note = r.o.Note
	last, err := r.contents(ctx, m, s, from)
	if cerr := s.close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = s.finish()
	}
	done := mark{perm: m.entry(0).perm, root: r.root, name: m.contentsName()}
	if err == nil {
		err = r.publish(done)
	}
	if err != nil {
		return err
	}
	// The target is there. Whoever waits for that has to hear of it, also where the one
	// who wanted it is just going.
	heard := false
	for _, mirror := range r.o.Mirrors {
		heard = thank(ctx, mirror, done.name) || heard
	}
	last.Hash = &done.root
	r.o.Progress(last)
	if r.o.Insist && !heard {
		return nil
	}
	return r.forget()
}

// folds reports whether upper and lower case are the same in the hidden directory, as on
// disks of other systems.
func (r *receiver) folds() bool {
	a, err := r.lock.Stat()
	b, berr := os.Lstat(filepath.Join(r.part, strings.ToUpper(lockFile)))
	return err == nil && berr == nil && os.SameFile(a, b)
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
				m, text, err := r.manifestOf(ctx, from)
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

// manifestOf fetches a mirror's manifest, by way of the disk: in memory it is there once.
func (r *receiver) manifestOf(ctx context.Context, from int) (*manifest, string, error) {
	mirror := r.o.Mirrors[from]
	path := filepath.Join(r.part, fmt.Sprintf("%s.from%d", manifestFile, from))
	f, err := os.Create(path)
	if err != nil {
		return nil, "", fmt.Errorf("files: %w", sinkError(err))
	}
	defer os.Remove(path)
	defer f.Close()
	err = bulk.Start(ctx, bulk.Options{Name: manifestName, Mirrors: []bulk.Mirror{r.mirror(mirror)}, Sink: unsynced{f}, MaxSize: maxManifest, Streams: 1, GiveUp: time.Minute}).Wait()
	if err != nil {
		return nil, "", fmt.Errorf("the list of files: %w", err)
	}
	text, err := readText(f)
	if err != nil {
		return nil, "", err
	}
	m, err := decodeManifest(text)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", mirror.Name, err)
	}
	return m, text, nil
}

// unsynced is a sink whose bytes nobody needs after a crash.
type unsynced struct{ *os.File }

// Sync implements bulk.Sink.
func (unsynced) Sync() error { return nil }

// readText reads the text of a manifest.
func readText(f *os.File) (string, error) {
	fi, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("files: %w", err)
	}
	if fi.Size() > maxManifest {
		return "", fmt.Errorf("%w: %w", ErrManifest, errTooMany)
	}
	var b strings.Builder
	b.Grow(int(fi.Size()))
	if _, err := io.Copy(&b, io.NewSectionReader(f, 0, fi.Size())); err != nil {
		return "", fmt.Errorf("files: %w", err)
	}
	return b.String(), nil
}

// readManifest reads the text of the manifest in the hidden directory.
func (r *receiver) readManifest() (string, error) {
	f, err := os.Open(filepath.Join(r.part, manifestFile))
	if err != nil {
		return "", fmt.Errorf("files: %w", err)
	}
	defer f.Close()
	return readText(f)
}

// adopt sees that what is in the hidden directory is of this share.
func (r *receiver) adopt(ctx context.Context, m *manifest, text string, from Mirror) error {
	if err := r.commit(); err != nil {
		return err
	}
	old, err := r.readManifest()
	// Without its tree, which has perhaps become the target, the journal lies.
	if _, lost := os.Lstat(filepath.Join(r.part, treeName)); err == nil && !errors.Is(lost, fs.ErrNotExist) {
		was, derr := decodeManifest(old)
		if derr == nil && was.sameLayout(m) {
			if old == text {
				return nil
			}
			return r.write(manifestFile, text) // such as: other times
		}
		r.restart = "something else is shared now under this name"
		if derr == nil {
			if kept, err := r.carry(ctx, was, m, text, from); kept > 0 || err != nil {
				r.restart += fmt.Sprintf("; %d bytes that have arrived are of use for it", kept)
				return err
			}
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrManifest) {
		return err
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
func (r *receiver) contents(ctx context.Context, m *manifest, s *sink, from int) (last Progress, _ error) {
	j, err := r.journal(journalFile)
	if err != nil {
		return last, err
	}
	now := r.o.Control.Settings()
	o := bulk.Options{Name: m.contentsName(), Sink: s, Journal: j, KeepJournal: true, Size: &m.size, Trusted: r.o.Trusted, Streams: streams, Rate: now.Rate, Paused: now.Paused}
	for _, mirror := range r.o.Mirrors {
		o.Mirrors = append(o.Mirrors, r.mirror(mirror))
	}
	t := bulk.Start(ctx, o)
	r.o.Control.attach(t, now.Class)
	show := func() {
		last = Progress{t.Progress(), m.files, r.restart, nil}
		r.o.Progress(last)
	}
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
			r.root = t.Root()
			return last, err
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

// journal opens a journal in the hidden directory.
func (r *receiver) journal(name string) (*bulk.Journal, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	return bulk.OpenJournal(vfs.OS(), filepath.Join(r.part, name), boot)
}

// publish gives what is whole its name.
func (r *receiver) publish(m mark) (err error) {
	from := filepath.Join(r.part, treeName)
	if m.inodeMark, err = markOf(from); err != nil {
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
	return nil
}

// forget removes the hidden directory: what it has is of no use to anybody any more.
// The mark goes last.
func (r *receiver) forget() (err error) {
	for _, name := range []string{journalFile, manifestFile, markFile, ""} {
		if err == nil {
			err = os.RemoveAll(filepath.Join(r.part, name))
		}
	}
	if err != nil {
		return fmt.Errorf("files: %s is whole, but: %w", r.o.Target, err)
	}
	return nil
}

// mark is what the tree is, by which it is known again when it has become the target,
// by one that was killed after it had renamed it, and what has come.
type mark struct {
	inodeMark
	perm fs.FileMode
	root bulk.Hash // of the contents
	name string    // of the contents
}

// inodeMark is by what a file or directory is known again.
type inodeMark struct {
	dev, ino uint64
	born     int64 // 0: not known
}

const markFormat = "space-files-done/2 %d %d %d %d %s %s\n"

func (m mark) String() string {
	return fmt.Sprintf(markFormat, m.dev, m.ino, m.born, permBits(m.perm), hex.EncodeToString(m.root[:]), m.name)
}

func markOf(path string) (m inodeMark, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return m, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	m = inodeMark{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
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
	var root string
	if _, err := fmt.Sscanf(string(b), markFormat, &m.dev, &m.ino, &m.born, &perm, &root, &m.name); err != nil {
		return nil, nil
	}
	if n, err := hex.Decode(m.root[:], []byte(root[:min(len(root), 2*len(m.root))])); err != nil || n != len(m.root) {
		return nil, nil
	}
	m.perm = permOf(perm)
	return &m, nil
}

// thankTime bounds how long a mirror may take to hear that all is here.
const thankTime = 10 * time.Second

// thank tells a mirror that all of it is here, and reports whether it has heard, and
// counts that.
func thank(ctx context.Context, m Mirror, name string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thankTime)
	defer cancel()
	st, err := m.Open(ctx, frame.Interactive, append([]byte{forDone}, name...))
	if err != nil {
		return false
	}
	defer st.Close()
	st.CloseWrite()
	st.SetReadDeadline(time.Now().Add(thankTime))
	_, err = io.Copy(io.Discard, st)
	return err == nil
}

func (r *receiver) mirror(m Mirror) bulk.Mirror { return mirrorOf{m, r.o.Control} }

// mirrorOf is a Mirror as bulk has it.
type mirrorOf struct {
	Mirror
	control *Control
}

// Open implements bulk.Mirror.
func (m mirrorOf) Open(ctx context.Context) (io.ReadWriteCloser, error) {
	return m.Opener.Open(ctx, m.control.class(), []byte{forPayload, version})
}

// String implements bulk.Mirror.
func (m mirrorOf) String() string { return m.Name }

// bootID is this life of the machine.
func bootID() (bulk.BootID, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return bulk.BootID{}, fmt.Errorf("files: %w", err)
	}
	h := blake3.Sum256(b)
	return bulk.BootID(h[:16]), nil
}
