package fuse

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/tree"
)

// fakeStore is a store in memory.
type fakeStore struct {
	mu       sync.Mutex
	capsules map[capsule.ID]*fakeCapsule
	watchers map[int]func(Change)
	silent   bool // no change notifications
	nextW    int
	readers  int // open
	opens    int
	reads    int
	block    chan struct{} // when set, reads wait until it is closed
	blocked  chan struct{} // gets a value when a read begins to wait
	lent     atomic.Int64  // buffers that were not given back
}

// lendSize is how much it lends at once.
const lendSize = 300_001

type fakeCapsule struct {
	info    capsule.Info
	policy  *capsule.Policy
	content io.ReaderAt
	damaged [][2]int64 // [from, to) of the content
}

func newFakeStore() *fakeStore {
	return &fakeStore{capsules: map[capsule.ID]*fakeCapsule{}, watchers: map[int]func(Change){}, blocked: make(chan struct{}, 1000)}
}

// put stores content under a name, replacing the capsule of that name.
func (s *fakeStore) put(name string, content []byte) capsule.Info {
	return s.putReader(name, bytes.NewReader(content), int64(len(content)))
}

func (s *fakeStore) putReader(name string, r io.ReaderAt, size int64) capsule.Info {
	s.mu.Lock()
	now := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	info := capsule.Info{ID: capsule.NewID(time.Now()), Kind: capsule.Object, Name: name, Created: now.Add(-time.Hour)}
	for _, c := range s.capsules {
		if name != "" && c.info.Name == name {
			info = c.info
		}
	}
	info.Version++
	info.Modified = now.Add(time.Duration(info.Version) * time.Second)
	info.Size = size
	s.capsules[info.ID] = &fakeCapsule{info: info, policy: capsule.DefaultPolicy(), content: r}
	s.mu.Unlock()
	s.changed(Change{ID: info.ID, Name: name})
	return info
}

func (s *fakeStore) update(id capsule.ID, fn func(*fakeCapsule)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s.capsules[id])
}

func (s *fakeStore) remove(id capsule.ID) {
	s.mu.Lock()
	name := s.capsules[id].info.Name
	delete(s.capsules, id)
	s.mu.Unlock()
	s.changed(Change{ID: id, Name: name, Removed: true})
}

func (s *fakeStore) rename(id capsule.ID, name string) {
	s.mu.Lock()
	c := *s.capsules[id]
	old := c.info.Name
	c.info.Name = name
	s.capsules[id] = &c
	s.mu.Unlock()
	s.changed(Change{ID: id, Name: name, OldName: old})
}

func (s *fakeStore) changed(c Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.silent {
		return
	}
	for _, fn := range s.watchers {
		go fn(c)
	}
}

func (s *fakeStore) find(id capsule.ID) (*fakeCapsule, error) {
	if c := s.capsules[id]; c != nil {
		return c, nil
	}
	return nil, capsule.Errorf(capsule.NotFound, "no capsule %s", id)
}

func (s *fakeStore) Open(_ context.Context, id capsule.ID) (Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(id)
	if err != nil {
		return nil, err
	}
	s.readers++
	s.opens++
	return &fakeReader{s: s, c: c}, nil
}

func (s *fakeStore) Info(_ context.Context, id capsule.ID) (capsule.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(id)
	if err != nil {
		return capsule.Info{}, err
	}
	return c.info, nil
}

func (s *fakeStore) ReadDir(_ context.Context, dir, after string, limit int) ([]DirEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string]DirEntry{}
	for _, c := range s.capsules {
		rest := c.info.Name
		if dir != "" {
			var ok bool
			if rest, ok = strings.CutPrefix(rest, dir+"/"); !ok {
				continue
			}
		}
		if name, _, isDir := strings.Cut(rest, "/"); name > after {
			e := DirEntry{Name: name, Dir: isDir}
			if !isDir {
				e.Info = c.info
			}
			found[name] = e
		}
	}
	entries := make([]DirEntry, 0, len(found))
	for _, e := range found {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b DirEntry) int { return strings.Compare(a.Name, b.Name) })
	return entries[:min(limit, len(entries))], nil
}

func (s *fakeStore) LookupName(_ context.Context, p string) (capsule.Info, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.capsules {
		if c.info.Name == p {
			return c.info, false, nil
		}
		if strings.HasPrefix(c.info.Name, p+"/") {
			return capsule.Info{}, true, nil
		}
	}
	return capsule.Info{}, false, capsule.Errorf(capsule.NotFound, "no capsule named %q", p)
}

func (s *fakeStore) Policy(_ context.Context, id capsule.ID) (*capsule.Policy, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(id)
	if err != nil {
		return nil, err
	}
	return c.policy, nil
}

func (s *fakeStore) OpenTree(context.Context, capsule.ID, string) (*tree.FS, func(), error) {
	return nil, nil, capsule.Errorf(capsule.Unsupported, "no trees here")
}

func (s *fakeStore) Replace(context.Context, capsule.ID, uint64, io.Reader, int64) (capsule.Info, error) {
	return capsule.Info{}, capsule.Errorf(capsule.Unsupported, "no writes")
}

func (s *fakeStore) OpenVolume(context.Context, capsule.ID, string, bool) (Volume, error) {
	return nil, capsule.Errorf(capsule.Unsupported, "no volumes here")
}

func (s *fakeStore) FreeBytes() int64 { return 0 }

func (s *fakeStore) Usage(context.Context) (capsule.Usage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var u capsule.Usage
	for _, c := range s.capsules {
		u.Capsules++
		u.LogicalBytes += c.info.Size
	}
	return u, nil
}

func (s *fakeStore) Watch(fn func(Change)) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.nextW
	s.nextW++
	s.watchers[id] = fn
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, id)
	}
}

func (s *fakeStore) counts() (readers, opens, reads int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.readers, s.opens, s.reads
}

type fakeReader struct {
	s      *fakeStore
	c      *fakeCapsule
	closed bool
}

func (r *fakeReader) Info() capsule.Info      { return r.c.info }
func (r *fakeReader) Policy() *capsule.Policy { return r.c.policy }
func (r *fakeReader) Prefetch(off, n int64)   {}

func (r *fakeReader) ReadAt(p []byte, off int64) (int, error) {
	r.s.mu.Lock()
	if r.closed {
		panic("read of a closed reader")
	}
	r.s.reads++
	block := r.s.block
	damaged := r.c.damaged
	r.s.mu.Unlock()
	if block != nil {
		r.s.blocked <- struct{}{}
		<-block
	}
	for _, d := range damaged {
		if off < d[1] && off+int64(len(p)) > d[0] {
			n := max(0, d[0]-off)
			r.c.content.ReadAt(p[:n], off)
			return int(n), &capsule.DamageError{Capsule: r.c.info.ID, Off: d[0], Len: d[1] - d[0], Log: 7, LogOff: 4242, Why: "test"}
		}
	}
	return r.c.content.ReadAt(p, off)
}

func (r *fakeReader) Stream(ctx context.Context, w io.Writer, off, n int64) (written int64, err error) {
	err = r.Lend(ctx, off, n, func(p []byte, done func()) error {
		defer done()
		k, err := w.Write(p)
		written += int64(k)
		return err
	})
	return written, err
}

// Lend makes what it has lent unusable when that is given back.
func (r *fakeReader) Lend(ctx context.Context, off, n int64, take func(p []byte, done func()) error) error {
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := make([]byte, min(lendSize, end-off))
		k, err := r.ReadAt(p, off)
		if err != nil && err != io.EOF {
			return err
		}
		r.s.lent.Add(1)
		if err := take(p[:k], func() {
			clear(p)
			r.s.lent.Add(-1)
		}); err != nil {
			return err
		}
		off += int64(k)
	}
	return nil
}

func (r *fakeReader) Close() error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.closed {
		panic("reader closed twice")
	}
	r.closed = true
	r.s.readers--
	return nil
}

// pattern is deterministic content without period.
func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// eventually waits until ok, for what the kernel does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("it never came true that %s", what)
		case <-tick.C:
		}
	}
}

func mustKind(t *testing.T, err error, want capsule.ErrorKind, mention ...string) {
	t.Helper()
	if got := capsule.KindOf(err); err == nil || got != want {
		t.Fatalf("error %v is of kind %v, want %v", err, got, want)
	}
	for _, m := range mention {
		if !strings.Contains(err.Error(), m) {
			t.Errorf("error %q does not mention %q", err, m)
		}
	}
}
