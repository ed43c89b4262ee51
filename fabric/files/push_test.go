package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/fabric/tunneltest"
)

// newShare offers a path, in small chunks.
func newShare(t *testing.T, path string) *Share {
	t.Helper()
	s, err := NewShare(path, ShareOptions{chunk: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// inbox takes what is pushed through a tunnel as take says, until the test ends.
func inbox(t *testing.T, far Tunnel, take func(context.Context, *Pushed)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			p, err := NextPush(ctx, far)
			if err != nil {
				return
			}
			take(ctx, p)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// TestPush pushes a directory, over a tunnel that breaks again and again.
func TestPush(t *testing.T) {
	t.Parallel()
	src, into := filepath.Join(t.TempDir(), "src"), t.TempDir()
	tree(t, src)
	os.Chmod(src, 0o755)
	put(t, src+"/huge", payload(9, 40*testChunk), 0o644)
	s := newShare(t, src)
	size, files, _ := s.Size()
	runs := 0
	for ; ; runs++ {
		if runs > 50 {
			t.Fatal("it does not come to an end")
		}
		near, far := tunneltest.Pair(t, session.Options{})
		var left atomic.Int64
		left.Store(700 << 10)
		ctx, cancel := context.WithCancel(timeout(t))
		errs := make(chan error, 1)
		inbox(t, far, func(ctx context.Context, p *Pushed) {
			if p.Name != "it" || p.Size != size || p.Files != files || p.From != (identity.NodeID{}) {
				t.Errorf("offered: %+v", p)
			}
			p.t = cut{far, &gate{Opener: far, left: &left}}
			err := p.Receive(ctx, ReceiveOptions{Target: filepath.Join(into, p.Name), Progress: func(Progress) {
				if left.Load() <= 0 {
					cancel()
				}
			}})
			errs <- err
		})
		wanted := false
		err := s.Push(ctx, near, PushOptions{Name: "it", Progress: func(Progress, Settings) { wanted = true }})
		there := <-errs
		cancel()
		if err == nil {
			if there != nil || !wanted || runs < 2 {
				t.Errorf("the receiver: %v; wanted: %v; %d runs were cut", there, wanted, runs)
			}
			break
		}
		if !errors.Is(err, ErrCut) {
			t.Fatal(err)
		}
	}
	same(t, filepath.Join(into, "it"), src)
	// Each cut may lose what was under way, as in TestResume, and what was not read yet.
	if most := size + int64(runs+1)*(8*testChunk+64<<10+files*100); s.Sent() > most {
		t.Errorf("%d bytes were sent for %d, in %d runs; at most %d are right", s.Sent(), size, runs, most)
	}
}

// cut is a tunnel that opens streams in its own way.
type cut struct {
	Tunnel
	way fabric.Opener
}

func (c cut) Open(ctx context.Context, class frame.Class, h []byte) (fabric.Stream, error) {
	return c.way.Open(ctx, class, h)
}

// TestPushRefused has what a receiver does not take, and why.
func TestPushRefused(t *testing.T) {
	t.Parallel()
	src, into := filepath.Join(t.TempDir(), "src"), t.TempDir()
	put(t, src, payload(1, 3*testChunk), 0o644)
	put(t, into+"/there", []byte("x"), 0o644)
	near, far := tunneltest.Pair(t, session.Options{})
	inbox(t, far, func(ctx context.Context, p *Pushed) {
		if p.Name == "unwanted" {
			p.Refuse(ErrUnwanted)
			return
		}
		p.Receive(ctx, ReceiveOptions{Target: filepath.Join(into, p.Name), MaxSize: 2 * testChunk})
	})
	s := newShare(t, src)
	for name, want := range map[string]error{"unwanted": ErrUnwanted, "there": ErrExists, "large": ErrUnwanted, "": ErrName, "..": ErrName, ".": ErrName,
		".profile": ErrName, "a/b": ErrName, "/etc/x": ErrName, "../x": ErrName, "a\x00b": ErrName, strings.Repeat("n", 250): ErrName, ".x.space-part": ErrName,
		"-rf": ErrName, "a\nb": ErrName, "\x1b[2J": ErrName, "\u0085": ErrName} {
		err := s.Push(timeout(t), near, PushOptions{Name: name})
		var pe *PushError
		if !errors.Is(err, want) || !errors.As(err, &pe) || strings.Contains(pe.Text, into) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := s.Push(timeout(t), near, PushOptions{Name: "a\xff"}); !errors.Is(err, ErrName) {
		t.Errorf("a name that words can't have: %v", err)
	}
	many := filepath.Join(t.TempDir(), "many")
	for i := range 4 * testChunk / leastRoom {
		if err := os.MkdirAll(fmt.Sprintf("%s/%d", many, i), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := newShare(t, many).Push(timeout(t), near, PushOptions{Name: "many"}); !errors.Is(err, ErrUnwanted) {
		t.Errorf("directories that take up more than may be: %v", err)
	}
	list, _ := os.ReadDir(into)
	for _, e := range list {
		if e.Name() != "there" {
			t.Errorf("%s was made", e.Name())
		}
	}
	if b, _ := os.ReadFile(into + "/there"); string(b) != "x" {
		t.Error("what was there is another one now")
	}
}

// TestPushDeaf has a giver that takes no word: its push ends, and holds no place.
func TestPushDeaf(t *testing.T) {
	t.Parallel()
	src, into := filepath.Join(t.TempDir(), "src"), t.TempDir()
	put(t, src, payload(1, 3*testChunk), 0o644)
	near, far := tunneltest.Pair(t, session.Options{})
	received := make(chan error, 1)
	inbox(t, far, func(ctx context.Context, p *Pushed) {
		p.w.st = deaf{p.w.st}
		received <- p.Receive(ctx, ReceiveOptions{Target: filepath.Join(into, p.Name)})
	})
	if err := newShare(t, src).Push(timeout(t), near, PushOptions{Name: "it"}); !errors.Is(err, ErrCut) {
		t.Errorf("the giver: %v", err)
	}
	if err := <-received; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the receiver: %v", err)
	}
}

// deaf is a stream whose other end makes no room.
type deaf struct{ fabric.Stream }

func (deaf) Write([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// TestPushWordLost has a receiver whose last word is lost: the next push of the same
// finds that all is there, and one of something else that the name is taken.
func TestPushWordLost(t *testing.T) {
	t.Parallel()
	src, other, into := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "src"), t.TempDir()
	put(t, src, payload(1, 3*testChunk), 0o644)
	put(t, other, payload(2, 3*testChunk), 0o644)
	s := newShare(t, src)
	near, far := tunneltest.Pair(t, session.Options{})
	var lose atomic.Bool
	lose.Store(true)
	received := make(chan error, 3)
	inbox(t, far, func(ctx context.Context, p *Pushed) {
		if lose.Load() {
			p.t = cut{far, mute{far}}
		}
		received <- p.Receive(ctx, ReceiveOptions{Target: filepath.Join(into, p.Name)})
	})
	if err := s.Push(timeout(t), near, PushOptions{Name: "it"}); !errors.Is(err, ErrCut) {
		t.Fatalf("though nothing was heard: %v", err)
	}
	lose.Store(false)
	if err := newShare(t, other).Push(timeout(t), near, PushOptions{Name: "it"}); !errors.Is(err, ErrExists) {
		t.Errorf("something else: %v", err)
	}
	before := s.Sent()
	if err := newShare(t, src).Push(timeout(t), near, PushOptions{Name: "it"}); err != nil {
		t.Fatal(err)
	}
	if lost, there, again := <-received, <-received, <-received; lost != nil || !errors.Is(there, ErrExists) || again != nil {
		t.Errorf("the receiver: %v, %v, %v", lost, there, again)
	}
	if n := s.Sent() - before; n > testChunk {
		t.Errorf("%d bytes were sent again", n)
	}
	same(t, filepath.Join(into, "it"), src)
}

// TestControl pauses a transfer that is pushed, from either end, changes its class and
// its rate, and kills it: it is still paused then, until somebody resumes it.
func TestControl(t *testing.T) {
	t.Parallel()
	src, into := filepath.Join(t.TempDir(), "src"), t.TempDir()
	put(t, src, payload(1, 40*testChunk), 0o644)
	s := newShare(t, src)
	yes, no, fast, back := true, false, int64(1<<40), frame.Background
	var control atomic.Pointer[Control]
	received := make(chan error, 2)
	classes := make(chan frame.Class, 1000)
	push := func(ctx context.Context, changes chan Change, progress func(Progress, Settings)) error {
		near, far := tunneltest.Pair(t, session.Options{})
		inbox(t, far, func(ctx context.Context, p *Pushed) {
			c := &Control{}
			control.Store(c)
			p.t = cut{far, seen{far, classes}}
			received <- p.Receive(ctx, ReceiveOptions{Target: filepath.Join(into, p.Name), Control: c})
		})
		return s.Push(ctx, near, PushOptions{Name: "it", Begin: Change{Rate: new(int64(testChunk))}, Changes: changes, Progress: progress})
	}
	ctx, cancel := context.WithCancel(timeout(t))
	defer cancel()
	changes := make(chan Change, 1)
	changes <- Change{Paused: &yes, Class: &back, Rate: &fast}
	err := push(ctx, changes, func(p Progress, now Settings) {
		if p.Bytes.Paused && now == (Settings{true, fast, back}) {
			cancel() // as if the giver were killed
		}
	})
	if !errors.Is(err, ErrCut) {
		t.Fatal(err)
	}
	<-received
	if now := control.Load(); now.Settings() != (Settings{true, fast, back}) || !errors.Is(now.Change(Change{Paused: &no}), ErrEnded) {
		t.Errorf("settings at the end: %+v", now.Settings())
	}
	for len(classes) > 0 {
		<-classes
	}
	resumed := false
	err = push(timeout(t), nil, func(p Progress, now Settings) {
		if p.Bytes.Paused && p.Bytes.Size > 0 && !resumed {
			resumed = true
			if err := control.Load().Change(Change{Paused: &no, Rate: &fast}); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil || !resumed {
		t.Fatalf("%v; it was paused still: %v", err, resumed)
	}
	if err := <-received; err != nil {
		t.Error(err)
	}
	same(t, filepath.Join(into, "it"), src)
	close(classes)
	background := 0
	for c := range classes {
		if c == frame.Background {
			background++
		} else if c == frame.Bulk {
			t.Error("a stream was opened in another class than what was set")
		}
	}
	if background == 0 {
		t.Error("no stream was of the class that was set")
	}
}

// seen is an opener that tells of what class streams are.
type seen struct {
	fabric.Opener
	classes chan<- frame.Class
}

func (s seen) Open(ctx context.Context, c frame.Class, h []byte) (fabric.Stream, error) {
	s.classes <- c
	return s.Opener.Open(ctx, c, h)
}

// TestReopen changes the class of a transfer under way: no bytes come twice.
func TestReopen(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	put(t, src, payload(1, 60*testChunk), 0o644)
	s, near := share(t, src, ShareOptions{})
	classes := make(chan frame.Class, 1000)
	changed := make(chan struct{})
	g := &gate{Opener: seen{near, classes}, waitFor: changed}
	g.free.Store(10 * testChunk)
	c := &Control{}
	var last bulk.Progress
	if err := Receive(timeout(t), ReceiveOptions{Target: dst, Mirrors: []Mirror{{g, "m"}}, Control: c, Progress: func(p Progress) {
		if p.Bytes.Done > 0 && c.Settings().Class != frame.Background {
			back := frame.Background
			if err := c.Change(Change{Class: &back}); err != nil {
				t.Error(err)
			}
			close(changed)
		}
		last = p.Bytes
	}}); err != nil {
		t.Fatal(err)
	}
	same(t, dst, src)
	close(classes)
	n := map[frame.Class]int{}
	for c := range classes {
		n[c]++
	}
	if n[frame.Background] == 0 || last.Mirrors[0].Failed > 0 {
		t.Errorf("streams by class: %v; %+v", n, last.Mirrors)
	}
	if size, _, _ := s.Size(); s.Sent() > size+12*testChunk {
		t.Errorf("%d bytes were sent for %d", s.Sent(), size)
	}
}

// FuzzWords hears what a hostile end of a push says.
func FuzzWords(f *testing.F) {
	f.Add([]byte("\x00\x02{}"))
	f.Add([]byte("\x00\x2c" + `{"offer":{"name":"n","bytes":1,"files":1}}  `))
	f.Add([]byte("\xff\xff"))
	f.Add([]byte("\x00\x1e" + `{"change":{"paused":true}}    `))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWords(heardStream{r: strings.NewReader(string(b))})
		for {
			what, err := w.hear()
			if err != nil {
				return
			}
			if o := what.Offer; o != nil && checkName(o.Name) == nil && filepath.Dir(filepath.Join("/in", o.Name)) != "/in" {
				t.Fatalf("%q is elsewhere", o.Name)
			}
			if what.Change != nil {
				var s Settings
				if what.Change.apply(&s); s.Rate < 0 || s.Class != 0 && s.Class != known(s.Class) {
					t.Fatalf("%+v", s)
				}
			}
		}
	})
}

type heardStream struct {
	fabric.Stream
	r *strings.Reader
}

func (h heardStream) Read(p []byte) (int, error) { return h.r.Read(p) }
