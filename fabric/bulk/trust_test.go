package bulk

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// late is a mirror whose streams take a while to open: each its own time, those after
// the last one that time.
type late struct {
	*site
	after []time.Duration
}

func (l late) Open(ctx context.Context) (io.ReadWriteCloser, error) {
	n := min(int(l.opens.Load()), len(l.after)-1)
	select {
	case <-time.After(l.after[n]):
		return l.site.Open(ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestTrustedComesLate: the mirror that is trusted most has the last word on what
// another one has given before it came, even when it takes its time for the final hash.
func TestTrustedComesLate(t *testing.T) {
	for name, late1 := range map[string]time.Duration{"in time": 100 * time.Millisecond, "after the last chunk": time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, m := newPayload(12, 3*pageChunks*testChunk), &memory{}
				good, other := newSite(t, "good", p), newSite(t, "other", otherwise(p, 0))
				good.way, other.way = slowly, slowly
				l := late{good, []time.Duration{late1, late1, 2 * hedge}}
				pr, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{l, other}, Trusted: true})
				if err != nil {
					t.Fatal(err)
				}
				has(t, m, p)
				for _, s := range pr.Mirrors {
					if s.Bytes == 0 || (s.Out != "") != (s.Name == "other") {
						t.Errorf("%+v", s)
					}
				}
			})
		})
	}
}

// TestTrustedGoes: what another mirror has does not take the place of what the one that
// is trusted more has given, because that one can't be asked any more.
func TestTrustedGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m := newPayload(13, 60*testChunk), &memory{}
		good, other := newSite(t, "good", p), newSite(t, "other", otherwise(p, 0, 1, 2, 3, 4, 5, 6, 7))
		good.way, other.way = breakAfter(10*testChunk, false), slowly
		_, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{good, other}, Trusted: true})
		if !errors.Is(err, ErrDisputed) {
			t.Fatal(err)
		}
	})
}

// TestTrustedOtherForm: one that is trusted less can't shut out one that is trusted more
// by answering first, with chunks of another size.
func TestTrustedOtherForm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPayload(14, 3*pageChunks*testChunk)
		good, other := newSite(t, "good", p), newSite(t, "other", p)
		var err error
		if other.offer, err = NewOffer(p, 2*testChunk); err != nil {
			t.Fatal(err)
		}
		other.way = slowly
		l := late{good, []time.Duration{20 * time.Millisecond}}
		if _, err := fetch(t, Options{Sink: &memory{}, Mirrors: []Mirror{l, other}, Trusted: true}); !errors.Is(err, ErrDisputed) {
			t.Fatal(err)
		}
	})
}

// TestLowRate: a rate at which a chunk takes longer than one waits for a mirror is no
// silence of theirs.
func TestLowRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m := newPayload(15, 6*testChunk), &memory{}
		if _, err := fetch(t, Options{Sink: m, Mirrors: []Mirror{newSite(t, "s", p)}, Rate: testChunk / 600}); err != nil {
			t.Fatal(err)
		}
		has(t, m, p)
	})
}

// TestFailureIsToldAtOnce: a transfer that can't go on does not wait for mirrors that are
// silent.
func TestFailureIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPayload(16, 50*testChunk)
		good, silent := newSite(t, "good", p), newSite(t, "silent", p)
		silent.way = breakAfter(100, true)
		opening := newSite(t, "opening", p)
		start := time.Now()
		_, err := fetch(t, Options{Sink: &memory{room: 20 * testChunk}, Mirrors: []Mirror{good, silent, unreached{opening}}})
		if d := time.Since(start); !errors.Is(err, ErrFull) || d > time.Second {
			t.Errorf("after %s: %v", d, err)
		}
		// Nor does one that is done.
		start = time.Now()
		_, err = fetch(t, Options{Sink: &memory{}, Mirrors: []Mirror{good, unreached{opening}}})
		if d := time.Since(start); err != nil || d > time.Second {
			t.Errorf("after %s: %v", d, err)
		}
	})
}

// unreached is a mirror to which no stream opens.
type unreached struct{ *site }

func (unreached) Open(ctx context.Context) (io.ReadWriteCloser, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestManySmallChunks: what is held for each chunk is bounded, whatever a mirror says.
func TestManySmallChunks(t *testing.T) {
	for _, i := range []info{{maxSmallChunks*minChunk + 1, minChunk, ""}, {(maxSmallChunks + 1) * (ChunkSize - 1), ChunkSize - 1, ""}} {
		if _, err := decodeInfo(i.encode()); err == nil {
			t.Errorf("%d chunks of %d bytes are taken", i.chunks(), i.Chunk)
		}
	}
	for _, i := range []info{{maxSmallChunks * minChunk, minChunk, ""}, {MaxChunks * ChunkSize, ChunkSize, ""}} {
		if _, err := decodeInfo(i.encode()); err != nil {
			t.Error(err)
		}
	}
}
