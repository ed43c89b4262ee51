package files

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/fabric/tunneltest"
)

// as is a node that opens streams of a share.
type as struct {
	*tunneltest.Tunnel
	node identity.NodeID
}

func (a as) Peer() identity.NodeID { return a.node }

// takers returns the tunnels of nodes with these IDs to a share.
func takers(t *testing.T, s *Share, ids ...identity.NodeID) (near []*tunneltest.Tunnel) {
	t.Helper()
	for _, id := range ids {
		here, there := tunneltest.Pair(t, session.Options{})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Serve(ctx, as{there, id})
		}()
		t.Cleanup(func() { cancel(); <-done })
		near = append(near, here)
	}
	return near
}

// TestThanksCount has nodes that say that they have received what they have not: it does
// not count, and what has been received counts once.
func TestThanksCount(t *testing.T) {
	t.Parallel()
	src := filepath.Join(t.TempDir(), "src")
	put(t, src, payload(1, 3*testChunk), 0o644)
	var done []identity.NodeID
	heard := make(chan identity.NodeID, 10)
	s, err := NewShare(src, ShareOptions{chunk: testChunk, Done: func(n identity.NodeID) { heard <- n }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	honest, liar := identity.NodeID{1}, identity.NodeID{2}
	near := takers(t, s, honest, liar)
	name := s.now.contentsName
	if thank(timeout(t), Mirror{near[1], "m"}, name) {
		t.Error("the word of a node counts that has fetched nothing")
	}
	if err := Receive(timeout(t), ReceiveOptions{Target: filepath.Join(t.TempDir(), "dst"), Mirrors: []Mirror{{near[0], "m"}}}); err != nil {
		t.Fatal(err)
	}
	for i, n := range near {
		if thank(timeout(t), Mirror{n, "m"}, name) {
			t.Errorf("node %d is believed that had said so already, or has fetched nothing", i)
		}
	}
	// Who has only looked at what there is has received nothing either.
	if _, _, err := bulk.Form(timeout(t), mirrorOf{Mirror{near[1], "m"}, &Control{}}, name); err != nil {
		t.Fatal(err)
	}
	if thank(timeout(t), Mirror{near[1], "m"}, name) {
		t.Error("the word of a node counts that has only looked")
	}
	close(heard)
	for n := range heard {
		done = append(done, n)
	}
	if len(done) != 1 || done[0] != honest {
		t.Errorf("heard of %v", done)
	}
}

// mute is an opener whose thanks do not arrive.
type mute struct{ fabric.Opener }

func (m mute) Open(ctx context.Context, c frame.Class, h []byte) (fabric.Stream, error) {
	if h[0] == forDone {
		return nil, errors.New("cut")
	}
	return m.Opener.Open(ctx, c, h)
}

// TestThanksAgain has thanks that are lost: what is left says them the next time, also to
// a giver that has been started anew.
func TestThanksAgain(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	put(t, src+"/f", payload(1, 3*testChunk), 0o644)
	var times atomic.Int64
	o := ShareOptions{Done: func(identity.NodeID) { times.Add(1) }}
	_, near := share(t, src, o)
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{mute{near}, "m"}}, Insist: true}); err != nil {
		t.Fatal(err)
	}
	if n := times.Load(); n != 0 {
		t.Fatalf("thanked %d times", n)
	}
	_, other := share(t, dst+"/../dst/f", o) // something else
	_, again := share(t, src, o)
	own, err := Received(dst)
	if err != nil || own == nil {
		t.Fatal(own, err)
	}
	if own.Thank(timeout(t), []Mirror{{other, "m"}}) {
		t.Error("a node has heard that has something else")
	}
	if !own.Thank(timeout(t), []Mirror{{again, "m"}}) || times.Load() != 1 {
		t.Errorf("thanked %d times", times.Load())
	}
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
}

// TestKilledBeforeThanks kills a receiver between the rename and the thanks. Its next
// run thanks.
func TestKilledBeforeThanks(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	put(t, src+"/f", payload(1, 3*testChunk), 0o644)
	var times atomic.Int64
	s, err := NewShare(src, ShareOptions{chunk: testChunk, Done: func(identity.NodeID) { times.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if run(t, s, dst, 1<<40, "thanks") {
		t.Fatal("the receiver was not killed")
	}
	if _, err := os.Lstat(dst); err != nil || times.Load() != 0 {
		t.Fatalf("%v, thanked %d times", err, times.Load())
	}
	if !run(t, s, dst, 1<<40, "") {
		t.Fatal("the next one was killed")
	}
	if n := times.Load(); n != 1 {
		t.Errorf("thanked %d times", n)
	}
	same(t, dst, src)
}

// lastWord is an opener that kills the process instead of thanking.
type lastWord struct{ fabric.Opener }

func (l lastWord) Open(ctx context.Context, c frame.Class, h []byte) (fabric.Stream, error) {
	if h[0] == forDone {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return l.Opener.Open(ctx, c, h)
}

// TestAttributeTooLarge has attributes that the receiver's file system has no place for,
// and a disk that is full.
func TestAttributeTooLarge(t *testing.T) {
	t.Parallel()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	xattrs := string(appendXattr(appendXattr(nil, "user.a", make([]byte, 9000)), "user.b", []byte("b")))
	m := newManifest([]entry{{kind: directory, perm: 0o755}, {path: "f", kind: regular, size: 3, perm: 0o644, xattrs: xattrs}})
	s, err := newSink(root, m)
	if err != nil {
		t.Fatal(err)
	}
	defer s.dir.Close()
	var notes []string
	s.note = func(text string) { notes = append(notes, text) }
	var set []string
	s.setattr = func(_ int, name string, value []byte, _ int) error {
		if len(value) > 4000 {
			return unix.ENOSPC // as ext4 says
		}
		set = append(set, name)
		return nil
	}
	if _, err := s.WriteAt([]byte("abc"), 0); err != nil {
		t.Fatalf("an attribute without a place ends the transfer: %v", err)
	}
	if err := errors.Join(s.close(), s.finish()); err != nil {
		t.Fatal(err)
	}
	if len(set) == 0 || set[0] != "user.b" || len(notes) != 1 || !strings.Contains(notes[0], "user.a") {
		t.Errorf("set %q, said %q", set, notes)
	}
	// Where there is no room at all it is a full disk.
	small := t.TempDir()
	if err := syscall.Mount("small", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("this test mounts a small file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(small, syscall.MNT_DETACH) })
	f, err := os.Create(filepath.Join(small, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, zeroReader{}, 1<<20); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := s.setXattrs(f, 1, m.entry(1)); !errors.Is(sinkError(err), bulk.ErrFull) {
		t.Errorf("on a full disk: %v", err)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }
