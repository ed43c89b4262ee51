package bulk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spacestore/space/internal/vfs/vfstest"
)

// otherwise returns a payload that differs in some chunks.
func otherwise(p *payload, chunks ...int) *payload {
	o := &payload{b: append([]byte(nil), p.b...), version: p.version}
	for _, c := range chunks {
		o.b[c*testChunk] ^= 1
	}
	return o
}

// slow is a stream whose reads take a while, so that all mirrors have a part.
type slow struct{ net.Conn }

func (s slow) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return s.Conn.Read(p)
}

func slowly(c net.Conn) io.ReadWriteCloser { return slow{c} }

// TestReadOnce: a giver reads each byte once, for its hash and for sending it.
func TestReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m := newPayload(1, 3*pageChunks*testChunk+5), &memory{}
		if _, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{newSite(t, "s", p)}}); err != nil {
			t.Fatal(err)
		}
		has(t, m, p)
		if n := p.reads.Load(); n != int64(len(p.b)) {
			t.Errorf("%d bytes were read for %d", n, len(p.b))
		}
	})
}

// TestLiar has a mirror whose content is another one than that of the others, and
// whose hashes are right for it.
func TestLiar(t *testing.T) {
	p := newPayload(2, 3*pageChunks*testChunk)
	var all []int
	for c := range 3 * pageChunks {
		all = append(all, c)
	}
	q := otherwise(p, all...)
	offer, err := NewOffer(p, testChunk)
	if err != nil {
		t.Fatal(err)
	}
	root, err := offer.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, liarFirst := range []bool{false, true} {
		for _, how := range []string{"", "trusted", "wanted"} {
			t.Run(fmt.Sprintf("liar first %v %s", liarFirst, how), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m, disk := &memory{}, vfstest.NewPowerCut()
					good, liar := newSite(t, "good", p), newSite(t, "liar", q)
					good.way, liar.way = slowly, slowly
					o := Options{Sink: m, Mirrors: []Mirror{good, liar}, Trusted: how == "trusted", Journal: openJournal(t, disk, 1)}
					if liarFirst {
						o.Mirrors = []Mirror{liar, good}
					}
					if how == "wanted" {
						o.Want = &root
					}
					pr, err := fetch(t, o)
					for _, s := range pr.Mirrors {
						if s.Name == "good" && s.Corrupt > 0 || s.Name == "liar" && s.Corrupt > 0 && how != "wanted" {
							t.Errorf("blamed: %+v", s)
						}
					}
					switch how {
					case "": // nobody can tell
						if !errors.Is(err, ErrDisputed) {
							t.Fatal(err)
						}
						// Whoever is asked alone then is believed, and what is the same stays.
						pr, err = fetch(t, Options{Sink: m, Mirrors: []Mirror{good}, Journal: openJournal(t, disk, 1)})
						if err != nil {
							t.Fatal(err)
						}
						has(t, m, p)
					case "trusted":
						if err != nil {
							t.Fatal(err)
						}
						if liarFirst {
							has(t, m, q)
						} else {
							has(t, m, p)
						}
					case "wanted":
						if err != nil {
							t.Fatal(err)
						}
						has(t, m, p)
					}
				})
			})
		}
	}
}

// TestResumeOfAChangedPayload: what is the same is not fetched again.
func TestResumeOfAChangedPayload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m, disk := newPayload(3, 100*testChunk), &memory{}, vfstest.NewPowerCut()
		s := newSite(t, "s", p)
		s.way = breakAfter(80*testChunk, true)
		ctx, cancel := context.WithCancel(t.Context())
		tr := Start(ctx, Options{Name: "it", Sink: m, Mirrors: []Mirror{s}, Journal: openJournal(t, disk, 1)})
		synctest.Wait()
		cancel()
		if err := tr.Wait(); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		there := tr.Progress().Done
		q := otherwise(p, 3, 4, 50)
		pr, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{newSite(t, "s", q)}, Journal: openJournal(t, disk, 1)})
		if err != nil {
			t.Fatal(err)
		}
		has(t, m, q)
		if most := pr.Size - there + 3*testChunk; pr.Fetched > most {
			t.Errorf("%d bytes came, %d would have been enough", pr.Fetched, most)
		}
		if pr.Done != pr.Size || pr.Mirrors[0].Corrupt > 0 {
			t.Errorf("%+v", pr)
		}
	})
}

// TestPowerCutOfAChangedPayload changes the payload at each start, so that chunks
// which are there are written anew, and cuts the power at any operation.
func TestPowerCutOfAChangedPayload(t *testing.T) {
	for seed := range uint64(12) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 5))
			p, disk := newPayload(4, 30*testChunk+1), vfstest.NewPowerCut()
			boot := byte(1)
			for run := 1; ; run++ {
				cut := run < 6
				if cut {
					disk.CutAt(disk.Ops() + r.IntN(150))
				}
				p = otherwise(p, r.IntN(30), r.IntN(30))
				err := fetchOnto(t, disk, p, BootID{boot}, true)
				if !cut && err == nil && !disk.Off() {
					break
				}
				if !cut && !disk.Off() { // a cut may come as late as this
					t.Fatalf("seed %d: %v", seed, err)
				}
				if disk.Off() || r.IntN(2) == 0 { // else only the process has ended
					disk = disk.Clone(r.Uint64())
					boot++
				}
			}
			f, err := disk.Open("/payload")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, err := io.ReadAll(f)
			if err != nil || string(got) != string(p.b) {
				t.Fatalf("seed %d: %d bytes, %v, other than the payload", seed, len(got), err)
			}
		})
	}
}

// TestMirrorsComeAndGo: one that comes later takes part, and goes on where the
// others, the authority among them, have gone.
func TestMirrorsComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m := newPayload(5, 100*testChunk+5), &memory{}
		one := newSite(t, "one", p)
		one.way = breakAfter(30*testChunk+7, true)
		tr := Start(t.Context(), Options{Name: "it", Sink: m, Mirrors: []Mirror{one}})
		synctest.Wait() // it gives nothing any more
		two := newSite(t, "two", p)
		two.way = breakAfter(40*testChunk, false)
		tr.AddMirror(two)
		time.Sleep(2 * time.Second)
		tr.AddMirror(newSite(t, "three", p))
		if err := tr.Wait(); err != nil {
			t.Fatal(err)
		}
		has(t, m, p)
		for _, s := range tr.Progress().Mirrors {
			if s.Bytes == 0 || s.Corrupt > 0 {
				t.Errorf("%+v", s)
			}
		}
	})
}

// TestUnreadable: a mirror that can't read its payload is asked once, and its reason
// is what the transfer ends with.
func TestUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := fetch(t, Options{Sink: &memory{}, Mirrors: []Mirror{refusing{}}})
		var remote *RemoteError
		if !errors.Is(err, ErrNoMirror) || !errors.As(err, &remote) || remote.Code != CodeUnreadable || time.Since(start) > time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// refusing is a mirror that can't read what it has.
type refusing struct{}

func (refusing) String() string { return "refusing" }

func (refusing) Open(context.Context) (io.ReadWriteCloser, error) {
	near, far := net.Pipe()
	go Serve(context.Background(), far, func(string) (*Offer, error) {
		return nil, &RemoteError{CodeUnreadable, "permission denied"}
	}, nil)
	return newBuffered(near), nil
}

// TestZeros: a payload of zeros costs no bytes.
func TestZeros(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m := &payload{b: make([]byte, 40*testChunk+9), version: "v"}, &memory{}
		p.b[5*testChunk] = 1
		pr, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{newSite(t, "s", p)}})
		if err != nil {
			t.Fatal(err)
		}
		has(t, m, p)
		if pr.Fetched > testChunk {
			t.Errorf("%d bytes were fetched", pr.Fetched)
		}
	})
}

// ones is a large payload.
type ones struct{}

func (ones) Size() int64              { return 64 * maxChunk }
func (ones) Version() (string, error) { return "v", nil }
func (ones) ReadAt(p []byte, _ int64) (int, error) {
	for i := range p {
		p[i] = 1
	}
	return len(p), nil
}

// TestHeld: what a transfer holds in memory does not grow with its mirrors.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{Name: "it", Sink: &memory{}, Streams: 8}
		offer, err := NewOffer(ones{}, maxChunk)
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			s := newSite(t, "s", newPayload(6, 1))
			s.offer = offer
			s.way = breakAfter(1000, true)
			o.Mirrors = append(o.Mirrors, s)
		}
		ctx, cancel := context.WithCancel(t.Context())
		tr := Start(ctx, o)
		synctest.Wait()
		tr.mu.Lock()
		if tr.held*maxChunk > maxHeld || tr.held == 0 {
			t.Errorf("%d chunks of %d bytes are held", tr.held, maxChunk)
		}
		tr.mu.Unlock()
		cancel()
		tr.Wait()
	})
}
