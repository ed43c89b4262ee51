package files

import (
	"bytes"
	"context"
	"encoding/binary"
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
	"syscall"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/identity"
)

// What a stream is for, the first byte of its header.
const (
	forPayload = 'p' // package bulk's conversation; its version follows
	forDone    = 'd' // the receiver has all of it, durably; the name of its contents follows
)

// version is that of the conversation and of what is given by it.
const version = 2

// Names of the two payloads; see manifest.contentsName.
const (
	manifestName   = "manifest"
	contentsPrefix = "contents/"
)

// maxStreams is how many streams of one tunnel are served at a time.
const maxStreams = 64

// Share is a file or directory that is offered. It may be served to many at once.
type Share struct {
	path string
	o    ShareOptions
	sent atomic.Int64
	rate pace

	mu     sync.Mutex
	now    *offer // what is there, as it was when it was looked at
	closed bool
	// given is of which contents each node was given something, and has not said since
	// that it has all of it.
	given map[identity.NodeID]string
	// expected are closed when a node has said so.
	expected map[identity.NodeID][]chan struct{}
	told     string // what Failed was called with last
}

// ShareOptions are for NewShare; the zero value is usable.
type ShareOptions struct {
	// Done is called when a node says that it has received it whole, which counts
	// once for each time that it has fetched something of it.
	Done func(identity.NodeID)
	// SkipUnreadable leaves out what can't be read, instead of sharing nothing.
	SkipUnreadable bool
	// Failed is called when somebody can't be given something, and why.
	Failed func(error)

	chunk int // bytes of a chunk; 0: bulk.ChunkSize
}

// UnreadableError tells of files and directories that can't be read.
type UnreadableError struct {
	Count int
	Path  string // of one of them
	Err   error  // with it
}

func (e *UnreadableError) Error() string {
	if e.Count == 1 {
		return fmt.Sprintf("files: %.200q can't be read: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("files: %d files and directories can't be read, such as %.200q: %v", e.Count, e.Path, e.Err)
}

// Unwrap returns why one of them can't be read.
func (e *UnreadableError) Unwrap() error { return e.Err }

// NewShare offers what is at path. Close it. All of it has to be readable, or the
// error is an *UnreadableError, if nothing else is said.
func NewShare(path string, o ShareOptions) (*Share, error) {
	s := &Share{path: path, o: o, given: map[identity.NodeID]string{}, expected: map[identity.NodeID][]chan struct{}{}}
	if s.o.Done == nil {
		s.o.Done = func(identity.NodeID) {}
	}
	if s.o.Failed == nil {
		s.o.Failed = func(error) {}
	}
	_, err := s.offer(true)
	return s, err
}

// Close frees what the share holds. Nobody is served any more.
func (s *Share) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.now == nil {
		return nil
	}
	s.now.retire()
	s.now = nil
	return nil
}

// Sent returns how many bytes of payload were sent so far.
func (s *Share) Sent() int64 { return s.sent.Load() }

// SetRate has at most so many bytes a second be sent; 0: as many as go.
func (s *Share) SetRate(bytesPerSecond int64) { s.rate.set(bytesPerSecond) }

// Hash returns the contents' final hash. It reads what nobody was given.
func (s *Share) Hash(ctx context.Context) (bulk.Hash, error) {
	o, err := s.offer(false)
	if err != nil {
		return bulk.Hash{}, err
	}
	return o.contents.Root(ctx)
}

// Size returns how many bytes and files the share has, and how many things in it
// are left out because they are no file, directory or symbolic link.
func (s *Share) Size() (size, files int64, skipped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		return 0, 0, 0
	}
	return s.now.m.size, s.now.m.files, s.now.skipped
}

// Unreadable tells what is left out because it can't be read; nil: nothing.
func (s *Share) Unreadable() *UnreadableError {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		return nil
	}
	return s.now.unreadable
}

// offer returns what is there. fresh: if it has changed since it was looked at, it
// is looked at again.
func (s *Share) offer(fresh bool) (*offer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	if s.now != nil {
		if !fresh {
			return s.now, nil
		}
		if s.now.same(s.path) {
			return s.now, nil
		}
	}
	next, err := look(s.path, s.o)
	if err != nil {
		return nil, err
	}
	if s.now != nil {
		s.now.retire()
	}
	s.now = next
	return next, nil
}

// Taker is the end of a tunnel to a node that may fetch a share.
type Taker interface {
	fabric.Accepter
	Peer() identity.NodeID
}

// Serve gives the share to the other end of a tunnel, until ctx ends or the tunnel.
func (s *Share) Serve(ctx context.Context, t Taker) error {
	ctx, cancel := context.WithCancel(ctx)
	var streams sync.WaitGroup
	defer streams.Wait()
	defer cancel()
	slots := make(chan struct{}, maxStreams)
	for {
		st, err := t.Accept(ctx)
		if err != nil {
			return err
		}
		select {
		case slots <- struct{}{}:
		default:
			st.Reset(uint32(bulk.CodeRefused), "too many streams for one share")
			continue
		}
		streams.Add(1)
		go func() {
			defer func() { <-slots; streams.Done() }()
			s.serve(ctx, st, t.Peer())
		}()
	}
}

func (s *Share) serve(ctx context.Context, st fabric.Stream, to identity.NodeID) {
	h := st.Header()
	switch {
	case len(h) > 0 && h[0] == forDone:
		if !s.took(to, string(h[1:])) {
			st.Reset(uint32(bulk.CodeRefused), "that was not fetched from here")
			return
		}
		s.o.Done(to)
		st.Close()
	case bytes.Equal(h, []byte{forPayload, version}):
		var name string
		// What went wrong the receiver is told by bulk.
		err := bulk.Serve(ctx, &counted{st, s}, func(n string) (*bulk.Offer, error) {
			name = n
			return s.find(n)
		}, func() { s.gave(to, name) })
		if remote := (*bulk.RemoteError)(nil); errors.As(err, &remote) && remote.Code == bulk.CodeUnreadable && s.news(remote.Text) {
			s.o.Failed(errors.New(remote.Text))
		}
	default:
		st.Reset(uint32(bulk.CodeNotFound), fmt.Sprintf("this is a share of files, version %d; the stream is for something else", version))
	}
}

// maxTakers bounds the nodes of which it is remembered what they were given.
const maxTakers = 1 << 16

// gave takes note that a node was given something of a payload.
func (s *Share) gave(to identity.NodeID, name string) {
	if name == manifestName {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.given[to]; known || len(s.given) < maxTakers {
		s.given[to] = name
	}
}

// took reports whether a node that says that it has all of some contents can be
// believed: they are the share's, and it has fetched something of them since it last
// said so.
func (s *Share) took(node identity.NodeID, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil || s.now.contentsName != name || s.given[node] != name {
		return false
	}
	delete(s.given, node)
	for _, ch := range s.expected[node] {
		close(ch)
	}
	delete(s.expected, node)
	return true
}

// news reports whether a failure is another one than the last.
func (s *Share) news(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told == text {
		return false
	}
	s.told = text
	return true
}

// find is bulk.Serve's.
func (s *Share) find(name string) (*bulk.Offer, error) {
	if name != manifestName && !strings.HasPrefix(name, contentsPrefix) {
		return nil, &bulk.RemoteError{Code: bulk.CodeNotFound, Text: "a share has no such payload"}
	}
	// Who begins with the manifest gets what is there now; contents are those of
	// the manifest that was given, or the receiver is told that they have changed.
	o, err := s.offer(name == manifestName)
	if err != nil {
		return nil, tellable("what is shared", err)
	}
	if name == manifestName {
		return o.manifest, nil
	}
	if name != o.contentsName {
		return nil, &bulk.RemoteError{Code: bulk.CodeChanged, Text: "what is shared has changed"}
	}
	return o.contents, nil
}

// counted is a stream whose bytes count for a share.
type counted struct {
	fabric.Stream
	s *Share
}

// Write implements io.Writer.
func (c *counted) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = c.Stream.Write(p[n:min(len(p), n+c.s.rate.turn())])
		n += k
		c.s.sent.Add(int64(k))
		c.s.rate.spent(k)
	}
	return n, err
}

// offer is what was there when somebody looked, and the source of its contents.
type offer struct {
	m       *manifest
	stats   []stat // of the entries
	root    *os.Root
	path    string // of the share, without symbolic links
	base    string // of the share in root
	version string
	skipped int
	dirs    dirs
	handles *handles

	unreadable *UnreadableError

	manifest *bulk.Offer
	contents *bulk.Offer

	contentsName string

	mu      sync.Mutex
	reading int
	retired bool
}

// stat tells whether a file is still what it was.
type stat struct {
	ino          uint64
	mtime, ctime syscall.Timespec
	size         int64
}

func statOf(fi fs.FileInfo) stat {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return stat{size: fi.Size(), mtime: syscall.NsecToTimespec(fi.ModTime().UnixNano())}
	}
	return stat{st.Ino, st.Mtim, st.Ctim, fi.Size()}
}

func changed(path string) error {
	return &bulk.RemoteError{Code: bulk.CodeChanged, Text: fmt.Sprintf("%.200q has changed while it was sent", path)}
}

// tellable makes of an error of reading name one for the receiver: whether it is of
// use to ask again, and why not.
func tellable(name string, err error) error {
	var remote *bulk.RemoteError
	var unreadable *UnreadableError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &remote):
		return err
	case errors.As(err, &unreadable):
		return &bulk.RemoteError{Code: bulk.CodeUnreadable, Text: unreadable.Error()}
	case errors.Is(err, fs.ErrNotExist):
		return &bulk.RemoteError{Code: bulk.CodeNotFound, Text: fmt.Sprintf("%.200s is not there any more", name)}
	}
	for _, passing := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN, syscall.EINTR, syscall.ENOBUFS, errClosed} {
		if errors.Is(err, passing) {
			return err
		}
	}
	var errno syscall.Errno
	why := "it is out of order"
	if errors.As(err, &errno) { // the rest, such as paths here, is nobody else's
		why = errno.Error()
	}
	return &bulk.RemoteError{Code: bulk.CodeUnreadable, Text: fmt.Sprintf("%.200s can't be read: %s", name, why)}
}

var errClosed = errors.New("files: the share is closed")

// look makes an offer of what is at path.
func look(path string, so ShareOptions) (*offer, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	o := &offer{root: root, path: path, base: filepath.Base(path), dirs: dirs{root: root}}
	o.handles = newHandles(o.open)
	if err = o.walk(); err == nil && o.unreadable != nil && !so.SkipUnreadable {
		err = o.unreadable
	}
	if err == nil {
		o.contentsName = o.m.contentsName()
		o.version = o.sum(func(i int) (stat, error) { return o.stats[i], nil })
		h := blake3.New()
		h.WriteString(o.m.text)
		sum := h.Sum(nil)
		o.manifest, err = bulk.NewOffer(&text{strings.NewReader(o.m.text), hex.EncodeToString(sum[:16])}, 0)
	}
	if err == nil {
		o.contents, err = bulk.NewOffer(o, so.chunk)
	}
	if err != nil {
		o.free()
		return nil, fmt.Errorf("files: %w", err)
	}
	return o, nil
}

// cannot takes note of something that can't be read.
func (o *offer) cannot(p string, err error) {
	if o.unreadable == nil {
		o.unreadable = &UnreadableError{Path: strings.TrimPrefix(p, "./"), Err: unwrapPath(err)}
	}
	o.unreadable.Count++
}

// unwrapPath takes the path off an error that is told with another one.
func unwrapPath(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// walk fills in the manifest.
func (o *offer) walk() error {
	var found []entry
	held := len(manifestMagic)
	var inodes []inode
	err := fs.WalkDir(o.root.FS(), o.base, func(p string, d fs.DirEntry, err error) error {
		if err != nil && d == nil {
			return err
		}
		if err != nil { // of a directory: it has been seen before, and can't be read
			if !errors.Is(err, fs.ErrNotExist) {
				o.cannot(p, err)
			}
			return nil
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) && p != o.base {
			return nil // removed while we looked
		}
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, o.base), "/")
		e := entry{path: rel, perm: fi.Mode() & (fs.ModePerm | fs.ModeSticky), mtime: fi.ModTime().UnixNano()}
		switch {
		case fi.Mode().IsRegular():
			e.kind, e.size = regular, fi.Size()
			st, ok := fi.Sys().(*syscall.Stat_t)
			e.sparse = ok && st.Blocks*512 < st.Size
		case fi.IsDir():
			e.kind = directory
		case fi.Mode()&fs.ModeSymlink != 0:
			e.kind = symlink
			e.target, err = o.root.Readlink(p)
		default:
			if p == o.base {
				return errors.New("only files and directories can be shared")
			}
			o.skipped++
			return nil
		}
		if e.kind != symlink {
			e.xattrs, err = o.probe(p)
		}
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ELOOP): // it is another one now
			return nil
		case e.kind == directory: // it will be said when its entries are read
		default:
			o.cannot(p, err)
			return nil
		}
		if len(rel) > maxPath || len(e.target) > maxPath {
			return fmt.Errorf("%.200q: its path is too long", p)
		}
		if held += e.length() + indexSize; held > maxManifest {
			return errTooMany
		}
		found = append(found, e)
		o.stats = append(o.stats, statOf(fi))
		inodes = append(inodes, inodeOf(fi))
		return nil
	})
	if err != nil {
		return err
	}
	if len(found) == 0 {
		if o.unreadable != nil {
			return o.unreadable
		}
		return changed(o.base)
	}
	// WalkDir goes by names, directory by directory: "a", "a/b", "a-b". A manifest
	// is in the order of paths, by which it can be checked.
	order := make([]int, len(found))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(found[a].path, found[b].path) })
	entries, stats := make([]entry, len(order)), make([]stat, len(order))
	first := map[inode]string{}
	for i, k := range order {
		entries[i], stats[i] = found[k], o.stats[k]
		if e, n := &entries[i], inodes[k]; n.links > 1 && e.kind == regular {
			if path, ok := first[n]; ok {
				*e = entry{path: e.path, kind: hardlink, target: path, perm: e.perm, mtime: e.mtime}
			} else {
				first[n] = e.path
			}
		}
	}
	o.m, o.stats = newManifest(entries), stats
	return nil
}

// probe opens a file or directory, and returns its extended attributes.
func (o *offer) probe(p string) (string, error) {
	f, err := o.dirs.open(p, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	names, err := xattrNames(int(f.Fd()))
	if err != nil || len(names) == 0 {
		return "", err
	}
	var b, value []byte
	for _, name := range names {
		if !strings.HasPrefix(name, xattrPrefix) {
			continue
		}
		if value == nil {
			value = make([]byte, 1<<16)
		}
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		if errors.Is(err, unix.ENODATA) {
			continue // removed while we looked
		}
		if err != nil {
			return "", fmt.Errorf("extended attribute %s: %w", name, err)
		}
		if b = appendXattr(b, name, value[:n]); n > maxXattrs || len(b) > maxXattrs {
			return "", errors.New("its extended attributes are too large")
		}
	}
	return string(b), nil
}

// xattrNames lists extended attributes, where there are such.
func xattrNames(fd int) ([]string, error) {
	n, err := unix.Flistxattr(fd, nil)
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	b := make([]byte, n+256) // one may be added meanwhile
	if err == nil {
		n, err = unix.Flistxattr(fd, b)
	}
	if err != nil {
		return nil, fmt.Errorf("extended attributes: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	slices.Sort(names) // mirrors have them in different orders
	return names, nil
}

// inode tells names of one file.
type inode struct {
	dev, ino uint64
	links    uint64
}

func inodeOf(fi fs.FileInfo) inode {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return inode{uint64(st.Dev), st.Ino, uint64(st.Nlink)}
	}
	return inode{links: 1}
}

// sum names what is there by what of tells of each entry.
func (o *offer) sum(of func(i int) (stat, error)) string {
	h := blake3.New()
	var b []byte
	for i := range o.m.count() {
		e := o.m.entry(i)
		if e.kind != regular {
			continue // the manifest has all of it
		}
		st, err := of(i)
		if err != nil {
			h.WriteString("gone")
			continue
		}
		b = append(b[:0], e.path...)
		for _, n := range []int64{0, int64(st.ino), st.mtime.Nano(), st.ctime.Nano(), st.size} {
			b = binary.BigEndian.AppendUint64(b, uint64(n))
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)[:24])
}

// same reports whether all is as it was, directories and links too.
func (o *offer) same(path string) bool {
	if p, err := filepath.EvalSymlinks(path); err != nil || p != o.path {
		return false
	}
	d := dirs{root: o.root}
	defer d.close()
	for i := range o.m.count() {
		if fi, err := d.lstat(o.name(i)); err != nil || statOf(fi) != o.stats[i] {
			return false
		}
	}
	return true
}

// Size implements bulk.Source.
func (o *offer) Size() int64 { return o.m.size }

// Version implements bulk.Source: it looks at every file.
func (o *offer) Version() (string, error) {
	d := dirs{root: o.root}
	defer d.close()
	return o.sum(func(i int) (stat, error) {
		fi, err := d.lstat(o.name(i))
		if err != nil {
			return stat{}, err
		}
		return statOf(fi), nil
	}), nil
}

// ReadAt implements bulk.Source.
func (o *offer) ReadAt(p []byte, off int64) (int, error) {
	if !o.begin() {
		return 0, changed(o.base)
	}
	defer o.end()
	n := 0
	err := o.m.each(off, len(p), func(i int, at int64, from, to int) error {
		return tellable(o.name(i), o.handles.use(i, func(f *os.File) error {
			if _, err := f.ReadAt(p[from:to], at); errors.Is(err, io.EOF) {
				return changed(o.name(i))
			} else if err != nil {
				return err
			}
			// Bytes of a file that is being written to would look corrupt to the
			// receiver, who would blame us.
			fi, err := f.Stat()
			if err == nil && statOf(fi) != o.stats[i] {
				err = changed(o.name(i))
			}
			if err == nil {
				n = to
			}
			return err
		}))
	})
	return n, err
}

func (o *offer) name(i int) string {
	if p := o.m.entry(i).path; p != "" {
		return o.base + "/" + p
	}
	return o.base
}

// open opens a file if it is the one that was looked at.
func (o *offer) open(i int) (*os.File, error) {
	name := o.name(i)
	f, err := o.dirs.open(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ELOOP) {
			return nil, changed(name)
		}
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && statOf(fi) != o.stats[i] {
		err = changed(name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// begin and end are around reads, so that an offer that another one has replaced
// is closed after the last.
func (o *offer) begin() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.retired {
		return false
	}
	o.reading++
	return true
}

func (o *offer) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.reading--; o.retired && o.reading == 0 {
		o.free()
	}
}

func (o *offer) retire() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.retired {
		return
	}
	if o.retired = true; o.reading == 0 {
		o.free()
	}
}

// free closes what was only read: an error has nothing to say.
func (o *offer) free() {
	o.handles.close()
	o.dirs.close()
	o.root.Close()
}

// text is a payload in memory.
type text struct {
	*strings.Reader
	version string
}

// Version implements bulk.Source.
func (t *text) Version() (string, error) { return t.version, nil }
