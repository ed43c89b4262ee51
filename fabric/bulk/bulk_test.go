package bulk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spacestore/space/internal/vfs/vfstest"
)

const testChunk = 16 << 10

// payload is a Source in memory.
type payload struct {
	mu      sync.Mutex
	b       []byte
	version string
	bad     map[int]bool // chunks that it gets wrong
	reads   atomic.Int64
}

func newPayload(seed uint64, size int) *payload {
	p := &payload{b: make([]byte, size), version: "v1"}
	rand.NewChaCha8([32]byte{byte(seed)}).Read(p.b) // never fails
	return p
}

func (p *payload) ReadAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err := bytes.NewReader(p.b).ReadAt(b, off)
	p.reads.Add(int64(n))
	if p.bad[int(off/testChunk)] && n > 0 {
		b[n/2] ^= 1
	}
	return n, err
}

func (p *payload) Size() int64 { return int64(len(p.b)) }

func (p *payload) Version() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.version, nil
}

// site is a mirror in this process.
type site struct {
	name  string
	offer *Offer
	// way, if set, makes of the receiver's end of a stream one with faults.
	way   func(c net.Conn) io.ReadWriteCloser
	opens atomic.Int32
	wg    sync.WaitGroup
}

func newSite(t testing.TB, name string, p *payload) *site {
	t.Helper()
	o, err := NewOffer(p, testChunk)
	if err != nil {
		t.Fatal(err)
	}
	return &site{name: name, offer: o}
}

func (s *site) String() string { return s.name }

func (s *site) Open(ctx context.Context) (io.ReadWriteCloser, error) {
	s.opens.Add(1)
	pipe, far := net.Pipe()
	near := newBuffered(pipe)
	s.wg.Go(func() {
		_ = Serve(context.Background(), far, func(name string) (*Offer, error) { // its end is the receiver's doing
			if name != "it" {
				return nil, &RemoteError{CodeNotFound, "no such payload"}
			}
			return s.offer, nil
		}, nil)
	})
	if s.way != nil {
		return s.way(near), nil
	}
	return near, nil
}

// buffered is an end of a pipe that takes in requests while the other end
// still talks, as every real stream does.
type buffered struct {
	net.Conn
	writes chan []byte
	once   sync.Once
	closed chan struct{}
}

func newBuffered(c net.Conn) *buffered {
	b := &buffered{Conn: c, writes: make(chan []byte, 64), closed: make(chan struct{})}
	go func() {
		for {
			select {
			case p := <-b.writes:
				if _, err := c.Write(p); err != nil {
					return
				}
			case <-b.closed:
				return
			}
		}
	}()
	return b
}

func (b *buffered) Write(p []byte) (int, error) {
	select {
	case b.writes <- bytes.Clone(p):
		return len(p), nil
	case <-b.closed:
		return 0, net.ErrClosed
	}
}

func (b *buffered) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Conn.Close()
}

// memory is a Sink.
type memory struct {
	mu     sync.Mutex
	b      []byte
	room   int // bytes it takes; 0: any number
	taken  int
	syncs  int
	refuse error // of Sync
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.room > 0 && m.taken+len(p) > m.room {
		return 0, fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	m.taken += len(p)
	if need := int(off) + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncs++
	return m.refuse
}

// fetch runs a transfer to its end.
func fetch(t *testing.T, o Options) (Progress, error) {
	t.Helper()
	o.Name = "it"
	tr := Start(t.Context(), o)
	err := tr.Wait()
	return tr.Progress(), err
}

func has(t *testing.T, m *memory, p *payload) {
	t.Helper()
	if !bytes.Equal(m.b, p.b) {
		t.Errorf("the sink has %d bytes, other than the %d of the payload", len(m.b), len(p.b))
	}
}

func TestFetch(t *testing.T) {
	for _, size := range []int{0, 1, testChunk - 1, testChunk, testChunk + 1, 3 * pageChunks * testChunk / 2} {
		for mirrors := 1; mirrors <= 3; mirrors++ {
			t.Run(fmt.Sprintf("%d bytes from %d", size, mirrors), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p, m := newPayload(1, size), &memory{}
					o := Options{Sink: m}
					for k := range mirrors {
						o.Mirrors = append(o.Mirrors, newSite(t, fmt.Sprint("m", k), p))
					}
					pr, err := fetch(t, o)
					if err != nil || pr.Done != int64(size) || pr.Size != int64(size) || m.syncs == 0 {
						t.Fatalf("%+v, %v, %d syncs", pr, err, m.syncs)
					}
					has(t, m, p)
				})
			})
		}
	}
}

// breakAfter lets n bytes through in all streams together, then none.
func breakAfter(n int64, stall bool) func(net.Conn) io.ReadWriteCloser {
	left := &atomic.Int64{}
	left.Store(n)
	return func(c net.Conn) io.ReadWriteCloser {
		return &limited{Conn: c, left: left, stall: stall, closed: make(chan struct{})}
	}
}

// limited is a stream on which reads end or stall after some bytes.
type limited struct {
	net.Conn
	left   *atomic.Int64
	stall  bool
	closed chan struct{}
	once   sync.Once
}

func (l *limited) Read(p []byte) (int, error) {
	room := l.left.Load()
	if room <= 0 {
		if l.stall {
			<-l.closed
		}
		return 0, io.ErrUnexpectedEOF
	}
	n, err := l.Conn.Read(p[:min(int64(len(p)), room)])
	l.left.Add(-int64(n))
	return n, err
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Conn.Close()
}

// TestMirrorFailsInTheMiddleOfAChunk: another one goes on where it stopped,
// within a second, and what had come is not fetched again.
func TestMirrorFailsInTheMiddleOfAChunk(t *testing.T) {
	for _, stall := range []bool{false, true} {
		t.Run(fmt.Sprintf("stall %v", stall), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, m := newPayload(2, 100*testChunk+5), &memory{}
				one, two := newSite(t, "one", p), newSite(t, "two", p)
				one.way = breakAfter(10*testChunk+testChunk/2, stall)
				start := time.Now()
				pr, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{one, two}})
				if err != nil {
					t.Fatal(err)
				}
				has(t, m, p)
				if d := time.Since(start); d >= time.Second {
					t.Errorf("it took %s", d)
				}
				// Half of a chunk at each stream's end may be in the reader's buffer.
				if extra := pr.Fetched - pr.Size; extra > 0 {
					t.Errorf("%d bytes were fetched twice", extra)
				}
				if pr.Mirrors[0].Failed == 0 || pr.Mirrors[1].Failed != 0 || pr.Mirrors[0].Corrupt+pr.Mirrors[1].Corrupt != 0 {
					t.Errorf("%+v", pr.Mirrors)
				}
			})
		})
	}
}

func TestCorruptChunksAreBlamedOnTheirMirror(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m := newPayload(3, 40*testChunk), &memory{}
		good := newSite(t, "good", p)
		want, err := good.offer.Root(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		liar := newPayload(3, 40*testChunk)
		bad := newSite(t, "bad", liar)
		if _, err := bad.offer.Root(t.Context()); err != nil { // its hashes are from before it went bad
			t.Fatal(err)
		}
		liar.bad = map[int]bool{}
		for c := range 40 {
			liar.bad[c] = true
		}
		pr, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{bad, good}, Want: &want})
		if err != nil {
			t.Fatal(err)
		}
		has(t, m, p)
		if b, g := pr.Mirrors[0], pr.Mirrors[1]; b.Corrupt < maxCorrupt || b.Out == "" || g.Corrupt != 0 || g.Out != "" {
			t.Errorf("%+v", pr.Mirrors)
		}
		// Alone, a bad mirror gives nothing rather than something wrong.
		m = &memory{}
		if _, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{bad}, Want: &want}); !errors.Is(err, ErrNoMirror) || m.taken != 0 {
			t.Errorf("%v, %d bytes written", err, m.taken)
		}
	})
}

func TestWrongWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPayload(4, 10*testChunk)
		s := newSite(t, "s", p)
		if _, err := fetch(t, Options{Sink: &memory{}, Mirrors: []Mirror{s}, Want: &Hash{1}}); !errors.Is(err, ErrRoot) {
			t.Errorf("a payload with another root: %v", err)
		}
		// One that changes while it is given.
		s.way = func(c net.Conn) io.ReadWriteCloser {
			p.mu.Lock()
			p.version = "v2"
			p.mu.Unlock()
			return c
		}
		var remote *RemoteError
		if _, err := fetch(t, Options{Sink: &memory{}, Mirrors: []Mirror{s}}); !errors.As(err, &remote) || remote.Code != CodeChanged {
			t.Errorf("a payload that changed: %v", err)
		}
		tr := Start(t.Context(), Options{Name: "other", Sink: &memory{}, Mirrors: []Mirror{s}})
		if err := tr.Wait(); !errors.Is(err, ErrNoMirror) {
			t.Errorf("a payload that is not there: %v", err)
		}
	})
}

func openJournal(t *testing.T, disk *vfstest.PowerCut, boot byte) *Journal {
	t.Helper()
	j, err := OpenJournal(disk, "/journal", BootID{boot})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestFullSinkGoesOnLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m, disk := newPayload(5, 50*testChunk), &memory{room: 20*testChunk + 7}, vfstest.NewPowerCut()
		s := newSite(t, "s", p)
		pr, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{s}, Journal: openJournal(t, disk, 1)})
		if !errors.Is(err, ErrFull) || pr.Done != 20*testChunk {
			t.Fatalf("%d bytes done, %v", pr.Done, err)
		}
		m.room = 0
		pr, err = fetch(t, Options{Sink: m, Mirrors: []Mirror{s}, Journal: openJournal(t, disk, 1)})
		if err != nil || pr.Resumed != 20*testChunk || pr.Fetched != 30*testChunk {
			t.Fatalf("%+v, %v", pr, err)
		}
		has(t, m, p)
		if _, err := disk.Stat("/journal"); err == nil {
			t.Error("the journal of a transfer that is done is left")
		}
	})
}

// TestResume stops a transfer at any point. After a crash of the process only
// the chunks under way come again.
func TestResume(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			p, m, disk := newPayload(6, 120*testChunk+99), &memory{}, vfstest.NewPowerCut()
			var fetched int64
			for range 3 {
				s := newSite(t, "s", p)
				s.way = breakAfter(r.Int64N(39*testChunk), true)
				ctx, cancel := context.WithCancel(t.Context())
				tr := Start(ctx, Options{Name: "it", Sink: m, Mirrors: []Mirror{s}, Journal: openJournal(t, disk, 1)})
				synctest.Wait() // all streams stand still
				cancel()
				if err := tr.Wait(); !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				fetched += tr.Progress().Fetched
			}
			pr, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{newSite(t, "s", p)}, Journal: openJournal(t, disk, 1)})
			if err != nil {
				t.Fatal(err)
			}
			has(t, m, p)
			if twice := fetched + pr.Fetched - pr.Size; twice > 3*2*depth*testChunk {
				t.Errorf("seed %d: %d bytes came twice", seed, twice)
			}
		})
	}
}

// diskSink is a Sink on a file system whose power can be cut.
type diskSink struct {
	fs *vfstest.PowerCut
	io.WriterAt
	sync func() error
}

func (d diskSink) Sync() error { return d.sync() }

func openSink(fs *vfstest.PowerCut) (diskSink, func(), error) {
	f, err := fs.OpenReadWrite("/payload", "test")
	if err != nil {
		return diskSink{}, nil, err
	}
	return diskSink{fs, f, func() error {
		if err := f.Sync(); err != nil {
			return err
		}
		d, err := fs.OpenDir("/")
		if err != nil {
			return err
		}
		defer d.Close()
		return d.Sync()
	}}, func() { f.Close() }, nil
}

// fetchOnto fetches a payload to files on a disk that may fail at any operation.
func fetchOnto(t *testing.T, disk *vfstest.PowerCut, p *payload, boot BootID, keepJournal bool) error {
	t.Helper()
	sink, closeSink, err := openSink(disk)
	if err != nil {
		return err
	}
	defer closeSink()
	j, err := OpenJournal(disk, "/journal", boot)
	if err != nil {
		return err
	}
	_, err = fetch(t, Options{Sink: sink, Mirrors: []Mirror{newSite(t, "s", p)}, Journal: j, KeepJournal: keepJournal})
	return err
}

// TestPowerCut cuts the power at any I/O operation, again and again, and goes
// on each time. What comes out is right.
func TestPowerCut(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 4))
			p, disk := newPayload(7, 30*testChunk+1), vfstest.NewPowerCut()
			for boot := byte(1); ; boot++ {
				cut := boot < 4
				if cut {
					disk.CutAt(disk.Ops() + r.IntN(120))
				}
				err := fetchOnto(t, disk, p, BootID{boot}, false)
				if err == nil && !disk.Off() {
					break
				}
				if !cut {
					t.Fatalf("seed %d: %v", seed, err)
				}
				disk = disk.Clone(r.Uint64())
			}
			f, err := disk.Open("/payload")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, err := io.ReadAll(f)
			if err != nil || !bytes.Equal(got, p.b) {
				t.Fatalf("seed %d: %d bytes, %v, other than the payload", seed, len(got), err)
			}
		})
	}
}

// TestFailedSync is not tried again, and nothing is noted as durable.
func TestFailedSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, disk := newPayload(8, 10*testChunk), vfstest.NewPowerCut()
		m := &memory{refuse: syscall.EIO}
		_, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{newSite(t, "s", p)}, Journal: openJournal(t, disk, 1)})
		if !errors.Is(err, syscall.EIO) || m.syncs != 1 {
			t.Errorf("%v after %d syncs", err, m.syncs)
		}
		if j := openJournal(t, disk, 2); len(j.have) != 0 {
			t.Errorf("after a restart of the machine %d chunks count as there", len(j.have))
		}
	})
}

func TestRatePauseDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m := newPayload(9, 64*testChunk), &memory{}
		s := newSite(t, "s", p)
		start := time.Now()
		if _, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{s}, Rate: 16 * testChunk}); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 3*time.Second || d > 5*time.Second {
			t.Errorf("64 chunks at 16 a second took %s", d)
		}
		m, disk := &memory{}, vfstest.NewPowerCut()
		tr := Start(t.Context(), Options{Name: "it", Sink: m, Mirrors: []Mirror{s}, Rate: 16 * testChunk, Journal: openJournal(t, disk, 1)})
		time.Sleep(time.Second)
		tr.Pause()
		synctest.Wait()
		paused := tr.Progress()
		time.Sleep(10 * time.Minute) // longer than one would wait for a mirror
		if p := tr.Progress(); p.Done != paused.Done || !p.Paused || p.Done == 0 {
			t.Errorf("while paused: %+v, before: %+v", p, paused)
		}
		tr.Resume()
		time.Sleep(time.Second)
		tr.Drain()
		if err := tr.Wait(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		drained := tr.Progress()
		if drained.Done <= paused.Done || drained.Fetched != drained.Done {
			t.Errorf("drained: %+v", drained)
		}
		tr = Start(t.Context(), Options{Name: "it", Sink: m, Mirrors: []Mirror{s}, Rate: 1, Journal: openJournal(t, disk, 1)})
		tr.SetRate(0)
		if err := tr.Wait(); err != nil || tr.Progress().Fetched != tr.Progress().Size-drained.Done {
			t.Errorf("%v, %+v", err, tr.Progress())
		}
		has(t, m, p)
	})
}

// TestSilentMirror: when nobody gives anything, the transfer says so in the end.
func TestSilentMirror(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, "s", newPayload(10, 10*testChunk))
		s.way = breakAfter(0, true)
		start := time.Now()
		_, err := fetch(t, Options{Sink: &memory{}, Mirrors: []Mirror{s}})
		if !errors.Is(err, ErrNoMirror) || time.Since(start) > 5*time.Minute {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// script is a mirror that says the same to everybody.
type script []byte

func (s script) String() string { return "script" }

func (s script) Open(context.Context) (io.ReadWriteCloser, error) {
	return struct {
		io.Reader
		io.Writer
		io.Closer
	}{bytes.NewReader(s), io.Discard, io.NopCloser(nil)}, nil
}

func said(messages ...[]byte) []byte {
	var b bytes.Buffer
	l := newLink(struct {
		io.Reader
		io.Writer
	}{nil, &b})
	for _, m := range messages {
		l.send(message(m[0]), m[1:])
	}
	l.flush()
	return b.Bytes()
}

func typed(m message, parts ...[]byte) []byte {
	return append([]byte{byte(m)}, bytes.Join(parts, nil)...)
}

// FuzzReceiver listens to a mirror that says anything.
func FuzzReceiver(f *testing.F) {
	p := newPayload(11, 100)
	h := hashOf(p.b)
	i := info{100, testChunk, "v"}
	root := i.root(func(int) Hash { return h })
	nothing := hashOf(make([]byte, 100))
	f.Add(said(typed(msgInfo, i.encode()), typed(msgData, u32(0), u32(0), p.b), typed(msgSum, u32(0), h[:]), typed(msgFinal, root[:])))
	f.Add(said(typed(msgInfo, i.encode()), typed(msgZeros, u32(0), u32(0), u32(100)), typed(msgSum, u32(0), nothing[:])))
	f.Add(said(typed(msgInfo, i.encode()), typed(msgZeros, u32(0), u32(0), u32(1<<31)), typed(msgSum, u32(0), nothing[:])))
	f.Add(said(typed(msgInfo, info{1 << 40, 1 << 20, ""}.encode()), typed(msgSum, u32(9), h[:])))
	f.Add(said(typed(msgError, []byte{2}, []byte("no"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &memory{}
		tr := newTransfer(Options{Name: "it", Sink: m, Mirrors: []Mirror{script(b)}})
		w := &worker{t: tr, m: tr.mirrors[0]}
		if err := w.converse(t.Context()); err == nil && tr.failure == nil && tr.missing == 0 {
			if p := tr.Progress(); p.Size != int64(len(m.b)) || p.Done != p.Size {
				t.Fatalf("%+v, %d bytes", p, len(m.b))
			}
		}
	})
}

// FuzzServe lets a receiver ask anything.
func FuzzServe(f *testing.F) {
	f.Add(said(typed(msgOpen, []byte("it")), typed(msgSums, u32(0), u32(3)), typed(msgChunk, u32(0), u32(5)), typed(msgRoot)))
	f.Add(said(typed(msgOpen, []byte("it")), typed(msgChunk, u32(1<<31), u32(1<<31))))
	o, err := NewOffer(newPayload(12, 3*testChunk), testChunk)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		go io.Copy(io.Discard, near)
		go func() {
			near.Write(b)
			near.Close()
		}()
		_ = Serve(t.Context(), far, func(string) (*Offer, error) { return o, nil }, nil) // any error will do
	})
}

// FuzzJournal opens any file as a journal.
func FuzzJournal(f *testing.F) {
	disk := vfstest.NewPowerCut()
	j, err := OpenJournal(disk, "/j", BootID{1})
	if err != nil {
		f.Fatal(err)
	}
	i := info{10 * testChunk, testChunk, "v"}
	if _, err := j.begin(i); err != nil {
		f.Fatal(err)
	}
	j.note(3, Hash{3})
	j.synced(1)
	j.note(4, Hash{4})
	j.gone(3)
	file, err := disk.Open("/j")
	if err != nil {
		f.Fatal(err)
	}
	b, err := io.ReadAll(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		j := &Journal{boot: BootID{1}, have: map[int]note{}}
		j.load(b)
		if len(j.have) > j.notes || j.sync > j.notes {
			t.Fatalf("%+v", j)
		}
	})
}
