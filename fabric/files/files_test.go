package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/fabric/tunneltest"
)

const testChunk = 64 << 10

// payload is n bytes that are the same each time.
func payload(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func put(t testing.TB, path string, b []byte, perm fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, perm); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, perm); err != nil {
		t.Fatal(err)
	}
}

// tree makes a directory with what a directory can have.
func tree(t testing.TB, dir string) {
	t.Helper()
	put(t, dir+"/empty", nil, 0o600)
	put(t, dir+"/one", []byte("1"), 0o644)
	put(t, dir+"/big", payload(1, 5*testChunk+123), 0o755)
	put(t, dir+"/a-b", []byte("after a/ in one order and before it in another"), 0o400)
	put(t, dir+"/a/b/c/deep", payload(2, 3000), 0o644)
	put(t, dir+"/a/last empty", nil, 0o444)
	put(t, dir+"/odd \n\xff\xfe name", []byte("x"), 0o644)
	for i := range 300 {
		put(t, fmt.Sprintf("%s/many/%03d/f", dir, i), payload(uint64(i), i*7), 0o640)
	}
	for link, to := range map[string]string{"link": "one", "dangling": "../../nowhere", "a/abs": "/etc/passwd", "dirlink": "a"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for i, p := range []string{"one", "a/b", "a", "link", ""} {
		at := syscall.NsecToTimespec(1e18 + int64(i)*1e9 + 123456789)
		if err := utimes(filepath.Join(dir, p), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir+"/a/b", 0o555); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(dir, 0o755); os.Chmod(dir+"/a/b", 0o755) })
}

// describe tells all of a tree that is carried.
func describe(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		s := fmt.Sprintf("%v %v", fi.Mode(), fi.ModTime().UnixNano())
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %x", blake3.Sum256(b))
		case fi.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			s += " -> " + to
		}
		all[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func same(t testing.TB, got, want string) {
	t.Helper()
	g, w := describe(t, got), describe(t, want)
	for p, s := range w {
		if g[p] != s {
			t.Errorf("%q is %q, want %q", p, g[p], s)
		}
	}
	for p := range g {
		if w[p] == "" {
			t.Errorf("%q should not be there", p)
		}
	}
	parts, _ := filepath.Glob(filepath.Join(filepath.Dir(got), ".*"+partSuffix))
	if len(parts) > 0 {
		t.Errorf("%q was left", parts)
	}
}

// share offers a path through a tunnel, and returns the receiver's end.
func share(t testing.TB, path string, o ShareOptions) (*Share, *tunneltest.Tunnel) {
	t.Helper()
	o.chunk = testChunk
	s, err := NewShare(path, o)
	if err != nil {
		t.Fatal(err)
	}
	near, far := tunneltest.Pair(t, session.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(ctx, far)
	}()
	t.Cleanup(func() { cancel(); <-done; s.Close() })
	return s, near
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestDirectory(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	tree(t, src)
	if err := syscall.Mkfifo(filepath.Join(src, "a", "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(filepath.Join(src, "a", "pipe"))
	since := syscall.NsecToTimespec(1e18)
	utimes(filepath.Join(src, "a"), since)
	thanked := make(chan struct{}, 1)
	s, near := share(t, src, ShareOptions{Done: func(identity.NodeID) { thanked <- struct{}{} }})
	if _, _, skipped := s.Size(); skipped != 1 {
		t.Errorf("%d things were left out, want the pipe", skipped)
	}
	var last Progress
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}, Progress: func(p Progress) { last = p }}); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(src, "a", "pipe"))
	utimes(filepath.Join(src, "a"), since)
	same(t, dst, src)
	if last.Files != 307 || last.Bytes.Done != last.Bytes.Size {
		t.Errorf("progress at the end: %+v", last)
	}
	select {
	case <-thanked:
	case <-time.After(time.Minute):
		t.Error("the giver has not heard that all is there")
	}
	// It is there, and stays what it is.
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); !errors.Is(err, ErrExists) {
		t.Errorf("a second time: %v", err)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"empty": 0, "small": 1, "one chunk": testChunk, "large": 9*testChunk + 1} {
		src, dst := filepath.Join(t.TempDir(), name), filepath.Join(t.TempDir(), "dst")
		put(t, src, payload(3, size), 0o640)
		_, near := share(t, src, ShareOptions{})
		if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		same(t, dst, src)
	}
}

// gate is an opener that lets so many bytes through and then fails, or does
// something to what comes.
type gate struct {
	fabric.Opener
	left    *atomic.Int64
	spoil   func()          // is told that bytes were spoiled; nil: they are not
	free    atomic.Int64    // bytes that come at once
	waitFor <-chan struct{} // for all bytes after those; nil: they come at once too
}

type gated struct {
	fabric.Stream
	g *gate
}

func (g *gate) Open(ctx context.Context, c frame.Class, h []byte) (fabric.Stream, error) {
	if g.left != nil && g.left.Load() <= 0 {
		return nil, errors.New("the tunnel has ended")
	}
	st, err := g.Opener.Open(ctx, c, h)
	if err != nil {
		return nil, err
	}
	return &gated{st, g}, nil
}

func (s *gated) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if s.g.left != nil && s.g.left.Add(-int64(n)) <= 0 {
		s.Stream.Close()
		return 0, net.ErrClosed
	}
	if s.g.spoil != nil && n > 5000 {
		p[n-1] ^= 1
		s.g.spoil()
	}
	if s.g.waitFor != nil && s.g.free.Add(-int64(n)) < 0 {
		<-s.g.waitFor
	}
	return n, err
}

// TestResume cuts a transfer again and again. What has come is not sent again, but
// for the chunks that were under way.
func TestResume(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	tree(t, src)
	os.Chmod(src, 0o755)
	put(t, src+"/huge", payload(9, 60*testChunk), 0o644)
	s, near := share(t, src, ShareOptions{})
	size, _, _ := s.Size()
	runs := 0
	for ; ; runs++ {
		var left atomic.Int64
		left.Store(700 << 10)
		ctx, cancel := context.WithCancel(timeout(t))
		g := &gate{Opener: near, left: &left}
		if runs > 50 {
			t.Fatal("it does not come to an end")
		}
		go func() {
			for left.Load() > 0 && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			cancel() // as a receiver that is killed
		}()
		err := Receive(ctx, ReceiveOptions{Target: dst, Mirrors: []Mirror{{g, "m"}}})
		cancel()
		if err == nil {
			break
		}
	}
	same(t, dst, src)
	if runs < 3 {
		t.Errorf("%d runs were cut", runs)
	}
	// Each cut may lose what was under way: two streams with two chunks each; and
	// each run begins with the manifest and the hashes.
	_, overhead, _ := s.Size()
	if most := size + int64(runs+1)*(4*testChunk+64<<10+overhead*100); s.Sent() > most {
		t.Errorf("%d bytes were sent for %d, in %d runs; at most %d are right", s.Sent(), size, runs, most)
	}
}

// TestMirrors receives from several at once, of which one lies, one dies on the
// way, one has something else, and one has nothing.
func TestMirrors(t *testing.T) {
	t.Parallel()
	src, other, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	put(t, src, payload(1, 40*testChunk), 0o644)
	put(t, other, payload(2, 40*testChunk+1), 0o644)
	at := syscall.NsecToTimespec(1e18)
	utimes(src, at)
	copied := filepath.Join(t.TempDir(), "copy") // the same content, of another time
	put(t, copied, payload(1, 40*testChunk), 0o600)
	_, good := share(t, src, ShareOptions{})
	_, twin := share(t, copied, ShareOptions{})
	_, liar := share(t, src, ShareOptions{})
	_, dying := share(t, src, ShareOptions{})
	_, wrong := share(t, other, ShareOptions{})
	nothing, _ := tunneltest.Pair(t, session.Options{})
	nothing.Close()
	var left atomic.Int64
	left.Store(300 << 10)
	var last Progress
	lied := make(chan struct{})
	// The honest ones wait until the liar has had its turn.
	honest := func(o fabric.Opener) fabric.Opener {
		g := &gate{Opener: o, waitFor: lied}
		g.free.Store(testChunk / 2)
		return g
	}
	err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{honest(good), "good"}, {honest(twin), "twin"},
		{&gate{Opener: liar, spoil: sync.OnceFunc(func() { close(lied) })}, "liar"}, {&gate{Opener: dying, left: &left}, "dying"}, {wrong, "wrong"}, {nothing, "nothing"}},
		Progress: func(p Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
	for _, m := range last.Bytes.Mirrors {
		switch m.Name {
		case "good", "twin":
			if m.Corrupt > 0 {
				t.Errorf("%+v", m)
			}
		case "liar":
			if m.Corrupt == 0 {
				t.Errorf("nobody is blamed: %+v", m)
			}
		}
	}
}

// TestChanged changes what is shared while it is received: the receiver ends up
// with what is there in the end.
func TestChanged(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	put(t, src+"/f", payload(1, 30*testChunk), 0o644)
	put(t, src+"/g", payload(2, 1000), 0o644)
	_, near := share(t, src, ShareOptions{})
	var restart string
	changed := make(chan struct{})
	change := sync.OnceFunc(func() {
		put(t, src+"/f", payload(3, 10*testChunk), 0o644)
		put(t, src+"/h", payload(4, 10), 0o644)
		close(changed)
	})
	g := &gate{Opener: near, waitFor: changed} // the rest comes after the change
	g.free.Store(12 * testChunk)
	err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{g, "m"}}, Progress: func(p Progress) {
		restart = p.Restart
		if p.Bytes.Done > 0 {
			change()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
	if restart == "" {
		t.Error("nobody is told that it began again")
	}
}

// TestDiskFull fills the receiver's disk: a clean end that says so, and after there
// is room again it goes on.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk takes root")
	}
	t.Parallel()
	small := t.TempDir()
	if err := syscall.Mount("small", small, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("no file system may be mounted here")
	}
	t.Cleanup(func() { syscall.Unmount(small, syscall.MNT_DETACH) })
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(small, "dst")
	put(t, src+"/a", payload(1, 20*testChunk), 0o644)
	put(t, src+"/b", payload(2, 20*testChunk), 0o644)
	s, near := share(t, src, ShareOptions{})
	o := ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}
	if err := Receive(timeout(t), o); !errors.Is(err, bulk.ErrFull) {
		t.Fatalf("on a full disk: %v", err)
	}
	before := s.Sent()
	if err := syscall.Mount("small", small, "tmpfs", syscall.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	if err := Receive(timeout(t), o); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
	if again := s.Sent() - before; again > 30*testChunk {
		t.Errorf("%d bytes came again", again)
	}
}

// TestOneAtATime has a second receiver of the same target.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	put(t, src, payload(1, 10*testChunk), 0o644)
	_, near := share(t, src, ShareOptions{})
	o := ReceiveOptions{Target: dst, Mirrors: []Mirror{{near, "m"}}}
	second := make(chan error, 1)
	o.Progress = func(Progress) {
		select {
		case second <- Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: o.Mirrors}):
		default:
		}
	}
	if err := Receive(timeout(t), o); err != nil {
		t.Fatal(err)
	}
	if err := <-second; !errors.Is(err, ErrBusy) {
		t.Errorf("a second receiver: %v", err)
	}
}

// hostile is a giver whose manifest is what a test says.
func hostile(t *testing.T, b []byte) fabric.Opener {
	near, far := tunneltest.Pair(t, session.Options{})
	o, err := bulk.NewOffer(&text{strings.NewReader(string(b)), "v"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			st, err := far.Accept(context.Background())
			if err != nil {
				return
			}
			go bulk.Serve(context.Background(), st, func(string) (*bulk.Offer, error) { return o, nil }, nil)
		}
	}()
	return near
}

// TestHostileManifests has givers that want to write elsewhere.
func TestHostileManifests(t *testing.T) {
	t.Parallel()
	top := entry{kind: directory, perm: 0o755}
	f := func(path string) entry { return entry{path: path, kind: regular, perm: 0o644} }
	for what, entries := range map[string][]entry{
		"nothing":             {},
		"up":                  {top, f("../x")},
		"up in the middle":    {top, {path: "a", kind: directory}, f("a/../../x")},
		"absolute":            {top, f("/tmp/x")},
		"dot":                 {top, f("./x")},
		"empty part":          {top, {path: "a", kind: directory}, f("a//x")},
		"zero byte":           {top, f("a\x00b")},
		"twice":               {top, f("a"), f("a")},
		"below a file":        {top, f("a"), f("a/b")},
		"a link alone":        {{kind: symlink, target: "/tmp"}},
		"below a link":        {top, {path: "a", kind: symlink, target: "/tmp"}, f("a/b")},
		"without a directory": {top, f("a/b")},
		"no top":              {f("a")},
		"not in order":        {top, f("b"), f("a")},
		"unknown kind":        {top, {path: "a", kind: 9}},
		"too large":           {top, {path: "a", kind: regular, size: 1 << 62}},
		"directory with size": {top, {path: "a", kind: directory, size: 5}},
	} {
		dir := t.TempDir()
		m := newManifest(entries)
		err := Receive(timeout(t), ReceiveOptions{Target: filepath.Join(dir, "dst"), Mirrors: []Mirror{{hostile(t, []byte(m.text)), "m"}}})
		if !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "dst")); err == nil {
			t.Errorf("%s: a target was made", what)
		}
	}
}

func FuzzManifest(f *testing.F) {
	m := newManifest([]entry{{kind: directory, perm: 0o755}, {path: "a", kind: regular, size: 5, perm: 0o1644}, {path: "b", kind: directory},
		{path: "b/c", kind: symlink, target: "../a"}, {path: "b/d", kind: regular, size: 7}})
	f.Add([]byte(m.text))
	f.Add([]byte(manifestMagic))
	f.Add([]byte(newManifest([]entry{{kind: regular, size: 1}}).text))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeManifest(string(b))
		if err != nil {
			return
		}
		var entries []entry
		for i := range m.count() {
			if k, ok := m.find(m.entry(i).path); !ok || k != i {
				t.Fatalf("entry %d is found at %d, %v", i, k, ok)
			}
			entries = append(entries, *m.entry(i))
		}
		if text := newManifest(entries).text; text != string(b) {
			// Bits that are not carried are dropped; then it is the same.
			again, err := decodeManifest(text)
			if err != nil || !again.sameLayout(m) {
				t.Fatalf("read again: %v", err)
			}
		}
		// Every byte of the contents has its place, and no other.
		n := int(min(m.size, 4096))
		covered := 0
		if err := m.each(m.size-int64(n), n, func(i int, at int64, from, to int) error {
			if e := m.entry(i); from != covered || at < 0 || at+int64(to-from) > e.size || e.offset+at != m.size-int64(n)+int64(from) {
				t.Fatalf("bytes %d to %d are at %d of %+v", from, to, at, e)
			}
			covered = to
			return nil
		}); err != nil || covered != n {
			t.Fatalf("%d of %d bytes: %v", covered, n, err)
		}
	})
}
