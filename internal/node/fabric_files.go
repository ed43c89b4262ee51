package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/vfs"
)

// filesKind is the kind of service that gives files; the pool is the name under
// which they are offered.
const filesKind = "files"

// Payloads that a sender has, by name, and what a receiver says at its end.
const (
	manifestName = "manifest"
	filePrefix   = "file:"
	doneHeader   = "done"
)

const (
	maxGiving    = 64 // streams of one sender that are served at a time
	maxIdleFiles = 64 // files that a sender keeps open, with their hashes, after use
	takers       = 4  // files that a receiver fetches at a time
	tellEvery    = 200 * time.Millisecond
)

// Send implements control.Fabric.
func (f *fabricNode) Send(ctx context.Context, r control.SendRequest, tell func(control.JobEvent) error) error {
	if err := CheckFabricName(r.Name); err != nil {
		return capsule.Errorf(capsule.Invalid, "the name %.64q is not valid: %v; give another one with --name", r.Name, err)
	}
	return f.job(ctx, func(ctx context.Context) error { return f.send(ctx, r, tell) })
}

// send offers files until ctx ends, or so many have received them.
func (f *fabricNode) send(ctx context.Context, r control.SendRequest, tell func(control.JobEvent) error) error {
	g, err := newGiver(r.Path)
	if err != nil {
		return err
	}
	defer g.close()
	tell = serially(tell)
	if g.skipped > 0 {
		if err := tell(control.JobEvent{Note: fmt.Sprintf("%d devices, sockets and the like are not sent", g.skipped)}); err != nil {
			return err
		}
	}
	f.counts.given.running.Add(1)
	defer f.counts.given.running.Add(-1)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	enough := errors.New("enough have received it")
	var times atomic.Int64
	g.moved = func(n int) { f.counts.given.bytes.Add(int64(n)) }
	g.done = func() {
		f.counts.given.done.Add(1)
		if n := times.Add(1); r.Times > 0 && n >= int64(r.Times) {
			cancel(enough)
		}
	}
	total := int64(-1)
	if r.Times > 0 {
		total = g.size * int64(r.Times)
	}
	progress := func() control.JobEvent {
		return control.JobEvent{Progress: &control.JobProgress{Done: g.bytes.Load(), Total: total, Files: int64(len(g.entries))}}
	}
	stop := every(ctx, tellEvery, func() {
		if err := tell(progress()); err != nil {
			cancel(err)
		}
	})
	err = f.provide(ctx, fabric.Service{Profile: profile("artifact-store"), Pool: r.Name, Kind: filesKind}, tell, g.serve)
	stop()
	if context.Cause(ctx) == enough {
		return tell(progress())
	}
	return err
}

// serially makes tell usable from many goroutines.
func serially(tell func(control.JobEvent) error) func(control.JobEvent) error {
	var mu sync.Mutex
	return func(e control.JobEvent) error {
		mu.Lock()
		defer mu.Unlock()
		return tell(e)
	}
}

// every calls fn again and again until it is stopped, or ctx ends.
func every(ctx context.Context, d time.Duration, fn func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				fn()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// giver gives a file, or a directory as it was at the beginning.
type giver struct {
	root     *os.Root // of the directory; of a file its parent
	name     string   // of the file in root; "": the directory itself
	entries  []fileEntry
	files    map[string]bool // paths of regular files
	manifest *bulk.Offer
	size     int64
	skipped  int
	bytes    atomic.Int64
	moved    func(n int)
	done     func()
	slots    gate

	mu   sync.Mutex
	open map[string]*givenFile
	idle []*givenFile // the oldest first
}

// givenFile is an open file with the hashes that were made of it.
type givenFile struct {
	path  string
	f     *os.File
	offer *bulk.Offer
	users int
}

func newGiver(file string) (*giver, error) {
	g := &giver{files: map[string]bool{}, open: map[string]*givenFile{}, slots: make(gate, maxGiving), moved: func(int) {}, done: func() {}}
	st, err := os.Stat(file)
	if err != nil {
		return nil, filesError(err)
	}
	dir := file
	switch {
	case st.Mode().IsRegular():
		dir, g.name = filepath.Dir(file), filepath.Base(file)
	case !st.IsDir():
		return nil, capsule.Errorf(capsule.Invalid, "%s is neither a file nor a directory", file)
	}
	if g.root, err = os.OpenRoot(dir); err != nil {
		return nil, filesError(err)
	}
	if g.name != "" {
		err = g.add(".", st)
	} else {
		err = fs.WalkDir(g.root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			return g.add(path, info)
		})
	}
	if err == nil {
		if text := appendManifest(nil, g.entries); len(text) <= maxManifest && len(g.entries) <= maxEntries {
			g.manifest, err = bulk.NewOffer(textSource(text), 0)
		} else {
			err = capsule.Errorf(capsule.TooLarge, "%s has too many files: at most %d can be sent at once", file, maxEntries)
		}
	}
	if err != nil {
		g.root.Close()
		return nil, filesError(err)
	}
	return g, nil
}

func (g *giver) add(path string, info fs.FileInfo) error {
	e := fileEntry{path: path, perm: info.Mode().Perm(), mtime: info.ModTime()}
	switch {
	case info.Mode().IsRegular():
		e.kind, e.size = entryFile, info.Size()
		g.files[path] = true
		g.size += e.size
	case info.IsDir():
		e.kind = entryDir
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := g.root.Readlink(path)
		if err != nil {
			return err
		}
		e.kind, e.target = entryLink, target
	default:
		g.skipped++
		return nil
	}
	g.entries = append(g.entries, e)
	return nil
}

// close closes the files; nobody is served any more.
func (g *giver) close() {
	for _, gf := range g.open {
		gf.f.Close()
	}
	g.root.Close()
}

// serve gives to one tunnel.
func (g *giver) serve(ctx context.Context, t *fabric.Tunnel) error {
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		st, err := t.Accept(ctx)
		if err != nil {
			return err
		}
		if string(st.Header()) == doneHeader {
			st.Close()
			g.done()
			continue
		}
		select {
		case g.slots <- struct{}{}:
		case <-ctx.Done():
			st.Close()
			return ctx.Err()
		}
		streams.Add(1)
		go func() {
			defer streams.Done()
			defer func() { <-g.slots }()
			var used []*givenFile
			// What ends it, the receiver knows, and asks for again.
			_ = bulk.Serve(ctx, &countedStream{st, g}, func(name string) (*bulk.Offer, error) {
				if name == manifestName {
					return g.manifest, nil
				}
				gf, err := g.take(strings.TrimPrefix(name, filePrefix))
				if err != nil {
					return nil, err
				}
				used = append(used, gf)
				return gf.offer, nil
			})
			for _, gf := range used {
				g.give(gf)
			}
		}()
	}
}

// countedStream counts what is given.
type countedStream struct {
	fabric.Stream
	g *giver
}

func (c *countedStream) Write(p []byte) (int, error) {
	n, err := c.Stream.Write(p)
	c.g.bytes.Add(int64(n))
	c.g.moved(n)
	return n, err
}

// take opens a file that was listed, or finds it open.
func (g *giver) take(path string) (*givenFile, error) {
	if !g.files[path] {
		return nil, &bulk.RemoteError{Code: bulk.CodeNotFound, Text: "there is no such file here"}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	gf := g.open[path]
	if gf == nil {
		name := path
		if g.name != "" {
			name = g.name
		}
		f, err := g.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe in its place must not hold us
		if err != nil {
			return nil, &bulk.RemoteError{Code: bulk.CodeFailed, Text: err.Error()}
		}
		offer, err := bulk.NewOffer(fileSource{f}, 0)
		if err != nil {
			f.Close()
			return nil, &bulk.RemoteError{Code: bulk.CodeFailed, Text: err.Error()}
		}
		gf = &givenFile{path: path, f: f, offer: offer}
		g.open[path] = gf
	}
	gf.users++
	if i := slices.Index(g.idle, gf); i >= 0 {
		g.idle = slices.Delete(g.idle, i, i+1)
	}
	return gf, nil
}

// give is the end of using a file; a few are kept for who asks next.
func (g *giver) give(gf *givenFile) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if gf.users--; gf.users > 0 {
		return
	}
	g.idle = append(g.idle, gf)
	if len(g.idle) > maxIdleFiles {
		old := g.idle[0]
		g.idle = g.idle[1:]
		delete(g.open, old.path)
		old.f.Close()
	}
}

// fileSource is a file as a payload.
type fileSource struct{ *os.File }

func (s fileSource) Size() int64 {
	st, err := s.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return 0
	}
	return st.Size()
}

func (s fileSource) Version() (string, error) {
	st, err := s.Stat()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x-%x", st.Size(), st.ModTime().UnixNano()), nil
}

// textSource is a payload in memory.
type textSource []byte

func (s textSource) Size() int64 { return int64(len(s)) }

func (s textSource) Version() (string, error) {
	sum := sha256.Sum256(s)
	return string(sum[:]), nil
}

func (s textSource) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(s)) {
		return 0, io.EOF
	}
	n := copy(p, s[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Receive implements control.Fabric.
func (f *fabricNode) Receive(ctx context.Context, r control.ReceiveRequest, tell func(control.JobEvent) error) error {
	if err := CheckFabricName(r.Name); err != nil {
		return capsule.Errorf(capsule.Invalid, "the name %.64q is not valid: %v", r.Name, err)
	}
	return f.job(ctx, func(ctx context.Context) error {
		f.counts.taken.running.Add(1)
		defer f.counts.taken.running.Add(-1)
		err := span(ctx, "fabric.transfer", func(ctx context.Context) error { return f.receive(ctx, r, serially(tell)) }, attribute.String("fabric.pool", r.Name))
		if err != nil {
			f.counts.taken.failed.Add(1)
			return err
		}
		f.counts.taken.done.Add(1)
		return nil
	})
}

// mirror is a node that gives the files.
type mirror struct {
	lasting
	name string
}

func (m *mirror) String() string { return m.name }

// Open implements bulk.Mirror.
func (m *mirror) Open(ctx context.Context) (io.ReadWriteCloser, error) {
	return m.lasting.Open(ctx, frame.Bulk, nil)
}

func (f *fabricNode) receive(ctx context.Context, r control.ReceiveRequest, tell func(control.JobEvent) error) error {
	if st, err := os.Lstat(r.Target); err == nil && !st.Mode().IsRegular() {
		return capsule.Errorf(capsule.Exists, "%s is there already; give another one with --out", r.Target)
	}
	mirrors, err := f.mirrors(ctx, r)
	defer func() {
		for _, m := range mirrors {
			m.(*mirror).close()
		}
	}()
	if err != nil {
		return err
	}
	var text textSink
	list := bulk.Start(ctx, bulk.Options{Name: manifestName, Mirrors: mirrors[:1], Sink: &text, Streams: 1})
	if err := list.Wait(); err != nil {
		return filesError(err)
	}
	entries, err := parseManifest(text.b)
	if err != nil {
		return capsule.Wrap(capsule.Damaged, err, "receive")
	}
	t, err := newTaker(r, mirrors, entries)
	if err != nil {
		return filesError(err)
	}
	defer t.lock.Close()
	stop := every(ctx, tellEvery, func() {
		if tell(control.JobEvent{Progress: t.progress()}) != nil {
			return // the stream has ended, and so does ctx
		}
	})
	err = t.run(ctx)
	stop()
	last := t.progress()
	f.counts.taken.bytes.Add(last.Done - last.Resumed)
	if terr := tell(control.JobEvent{Progress: last}); err == nil {
		err = terr
	}
	if err != nil {
		return filesError(err)
	}
	// That it is done is for the sender's count alone.
	if st, err := mirrors[0].(*mirror).lasting.Open(ctx, frame.Bulk, []byte(doneHeader)); err == nil {
		st.CloseWrite()
		st.SetReadDeadline(time.Now().Add(doneTime))
		_, _ = io.Copy(io.Discard, st) // until it was heard
		st.Close()
	}
	return nil
}

// doneTime is how long the sender may take to hear that all is done.
const doneTime = 10 * time.Second

// mirrors finds nodes that offer the files: at least one.
func (f *fabricNode) mirrors(ctx context.Context, r control.ReceiveRequest) (list []bulk.Mirror, _ error) {
	if r.Mirrors <= 0 {
		r.Mirrors = 2
	}
	var apart []fabric.TunnelID
	for len(list) < min(r.Mirrors, 16) {
		m := &mirror{lasting: lasting{f: f, request: fabric.Request{Profile: profile("artifact-store"), Pool: r.Name, Kind: filesKind, Apart: slices.Clone(apart)}}}
		wait := r.Wait
		if len(list) > 0 {
			wait = 0
		}
		var t *fabric.Tunnel
		err := f.patiently(ctx, wait, func() (err error) {
			t, err = m.get(ctx)
			return err
		})
		if err != nil {
			if len(list) > 0 {
				break // those that there are will do
			}
			return nil, err
		}
		apart = append(apart, t.ID())
		m.name = t.Peer().String()
		list = append(list, m)
	}
	return list, nil
}

// textSink takes a payload into memory.
type textSink struct {
	mu sync.Mutex
	b  []byte
}

func (s *textSink) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := off + int64(len(p))
	if end > maxManifest {
		return 0, capsule.Errorf(capsule.TooLarge, "the list of files is larger than %d bytes", maxManifest)
	}
	if end > int64(len(s.b)) {
		s.b = append(s.b, make([]byte, end-int64(len(s.b)))...)
	}
	return copy(s.b[off:], p), nil
}

func (s *textSink) Sync() error { return nil }

// taker writes what it fetches into TARGET.partial, from where an interrupted
// one goes on, and moves it to TARGET when all is there.
type taker struct {
	r       control.ReceiveRequest
	mirrors []bulk.Mirror
	entries []fileEntry
	work    string   // TARGET.partial
	root    *os.Root // of work
	lock    io.Closer
	boot    bulk.BootID
	total   int64

	finished, resumed, files atomic.Int64
	mu                       sync.Mutex
	running                  map[*bulk.Transfer]bool
}

// Places in the work directory.
const (
	treeName    = "tree"     // what is whole
	dataName    = "data-"    // a file under way
	journalName = "journal-" // what of it is there
)

func newTaker(r control.ReceiveRequest, mirrors []bulk.Mirror, entries []fileEntry) (*taker, error) {
	t := &taker{r: r, mirrors: mirrors, entries: entries, work: r.Target + ".partial", running: map[*bulk.Transfer]bool{}}
	for _, e := range entries {
		t.total += e.size
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	if _, err := hex.Decode(t.boot[:], []byte(strings.ReplaceAll(strings.TrimSpace(string(boot)), "-", ""))); err != nil {
		return nil, err
	}
	if err := os.Mkdir(t.work, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if t.lock, err = vfs.OS().Lock(filepath.Join(t.work, "lock")); err != nil {
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			err = capsule.Errorf(capsule.Conflict, "somebody else receives %s already", r.Target)
		}
		return nil, err
	}
	if t.root, err = os.OpenRoot(t.work); err != nil {
		t.lock.Close()
		return nil, err
	}
	return t, nil
}

// progress tells how far it is.
func (t *taker) progress() *control.JobProgress {
	p := &control.JobProgress{Done: t.finished.Load(), Total: t.total, Resumed: t.resumed.Load(), Files: t.files.Load()}
	t.mu.Lock()
	defer t.mu.Unlock()
	for tr := range t.running {
		now := tr.Progress()
		p.Done += now.Done
		p.Resumed += now.Resumed
	}
	return p
}

// run fetches everything and puts it in place.
func (t *taker) run(ctx context.Context) error {
	defer t.root.Close()
	if err := t.tidy(); err != nil {
		return err
	}
	// A directory can be written until the end, whatever its permissions will be.
	for _, e := range t.entries {
		if e.kind == entryDir {
			if err := t.root.Mkdir(t.at(e), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(takers)
	if t.r.Rate > 0 {
		group.SetLimit(1) // the rate is of all together
	}
	for _, e := range t.entries {
		if e.kind == entryFile && gctx.Err() == nil {
			group.Go(func() error { return t.file(gctx, e) })
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return t.place()
}

// tidy removes what an earlier try has brought and is not in the list any more.
func (t *taker) tidy() error {
	want := map[string]fs.FileMode{}
	for _, e := range t.entries {
		want[e.path] = map[byte]fs.FileMode{entryDir: fs.ModeDir, entryFile: 0}[e.kind]
		if e.kind == entryLink {
			delete(want, e.path) // it is made anew
		}
	}
	var gone []string
	err := fs.WalkDir(t.root.FS(), treeName, func(name string, d fs.DirEntry, err error) error {
		if name == treeName && errors.Is(err, fs.ErrNotExist) {
			return fs.SkipAll
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(treeName, name)
		if err != nil {
			return err
		}
		if kind, ok := want[filepath.ToSlash(rel)]; !ok || kind != d.Type() {
			gone = append(gone, name)
			if d.IsDir() {
				return fs.SkipDir
			}
		}
		return nil
	})
	for _, name := range gone {
		err = errors.Join(err, t.root.RemoveAll(name))
	}
	return err
}

// at is where an entry is made.
func (t *taker) at(e fileEntry) string { return filepath.Join(treeName, filepath.FromSlash(e.path)) }

// file fetches one file, unless it is there from before.
func (t *taker) file(ctx context.Context, e fileEntry) error {
	if st, err := t.root.Lstat(t.at(e)); err == nil && st.Mode().IsRegular() && st.Size() == e.size && st.ModTime().Equal(e.mtime) {
		t.finished.Add(e.size)
		t.resumed.Add(e.size)
		t.files.Add(1)
		return nil
	}
	sum := sha256.Sum256([]byte(e.path))
	id := hex.EncodeToString(sum[:16])
	f, err := t.root.OpenFile(dataName+id, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	journal, err := bulk.OpenJournal(vfs.OS(), filepath.Join(t.work, journalName+id), t.boot)
	if err != nil {
		return err
	}
	tr := bulk.Start(ctx, bulk.Options{Name: filePrefix + e.path, Mirrors: t.mirrors, Sink: f, Journal: journal, Rate: t.r.Rate})
	t.mu.Lock()
	t.running[tr] = true
	t.mu.Unlock()
	err = tr.Wait()
	last := tr.Progress()
	t.mu.Lock()
	delete(t.running, tr)
	t.finished.Add(last.Done)
	t.resumed.Add(last.Resumed)
	t.mu.Unlock()
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", e.path, err), journal.Close())
	}
	// It may have been longer, in an earlier try.
	if err := errors.Join(f.Truncate(last.Size), f.Chmod(e.perm), os.Chtimes(filepath.Join(t.work, dataName+id), time.Time{}, e.mtime), f.Sync()); err != nil {
		return errors.Join(err, journal.Close())
	}
	if err := t.root.Rename(dataName+id, t.at(e)); err != nil {
		return errors.Join(err, journal.Close())
	}
	t.files.Add(1)
	return journal.Remove()
}

// place makes links, gives directories their permissions and times, and puts all
// under its name.
func (t *taker) place() error {
	for _, e := range t.entries {
		if e.kind == entryLink {
			if err := t.root.Symlink(e.target, t.at(e)); err != nil {
				return err
			}
		}
	}
	for _, e := range slices.Backward(t.entries) { // what is inside first
		if e.kind != entryDir {
			continue
		}
		d, err := t.root.Open(t.at(e))
		if err != nil {
			return err
		}
		err = d.Sync()
		if e.path != "." { // which has to be moved yet
			err = errors.Join(err, d.Chmod(e.perm), t.root.Chtimes(t.at(e), time.Time{}, e.mtime))
		}
		if err = errors.Join(err, d.Close()); err != nil {
			return err
		}
	}
	top := t.entries[0]
	if top.kind == entryDir {
		if _, err := os.Lstat(t.r.Target); err == nil {
			return capsule.Errorf(capsule.Exists, "%s came up meanwhile; what was received is in %s", t.r.Target, filepath.Join(t.work, treeName))
		}
	}
	if err := os.Rename(filepath.Join(t.work, treeName), t.r.Target); err != nil {
		return err
	}
	if top.kind == entryDir {
		if err := errors.Join(os.Chmod(t.r.Target, top.perm), os.Chtimes(t.r.Target, time.Time{}, top.mtime)); err != nil {
			return err
		}
	}
	if err := vfs.SyncDir(vfs.OS(), filepath.Dir(t.r.Target)); err != nil {
		return err
	}
	return os.RemoveAll(t.work)
}

// filesError gives an error of a transfer its kind.
func filesError(err error) error {
	var remote *bulk.RemoteError
	kind := capsule.Other
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bulk.ErrFull), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		kind = capsule.NoSpace
	case errors.Is(err, bulk.ErrRoot):
		kind = capsule.Damaged
	case errors.Is(err, bulk.ErrNoMirror):
		kind = capsule.Unavailable
	case errors.As(err, &remote) && remote.Code == bulk.CodeChanged:
		kind = capsule.Conflict
	case errors.Is(err, fs.ErrNotExist):
		kind = capsule.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = capsule.Denied
	case errors.Is(err, fs.ErrExist):
		kind = capsule.Exists
	case errors.Is(err, context.Canceled):
		return err
	}
	return capsule.Wrap(kind, err, "")
}
