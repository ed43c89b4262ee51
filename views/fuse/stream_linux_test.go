package fuse

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// readRequest sends a READ as the kernel does, without one.
func readRequest(f *fileSystem, fh uint64, off, size int64) ([]byte, gofuse.Status) {
	in := &gofuse.ReadIn{Fh: fh, Offset: uint64(off), Size: uint32(size)}
	buf := make([]byte, size)
	n, parts, st := f.read(in, buf)
	if parts == nil {
		return buf[:n], st
	}
	defer parts.done()
	return bytes.Join(parts.parts, nil), st
}

func openForTest(t *testing.T, s *fakeStore, content []byte) (*fileSystem, uint64, *handle) {
	t.Helper()
	info := s.put("x", content)
	f := newFileSystem(s, info.ID, new(logBuffer).logger())
	r, err := s.Open(t.Context(), info.ID)
	if err != nil {
		t.Fatal(err)
	}
	h := newHandle(r, &f.streams)
	fh := f.handles.add(h)
	t.Cleanup(func() {
		f.handles.close(fh)
		eventually(t, "all is given back", func() bool {
			n, _, _ := s.counts()
			return n == 0 && len(streamSlots) == 0 && f.streams.Load() == 0 && s.lent.Load() == 0
		})
	})
	return f, fh, h
}

// setStreamIdle sets how long streams wait, until those of the test have ended.
func setStreamIdle(t *testing.T, d time.Duration) {
	was := streamIdle
	t.Cleanup(func() { streamIdle = was })
	streamIdle = d
}

func TestStreamServesReadahead(t *testing.T) {
	// Requests come as from the kernel: in windows, in no order, at once.
	s := newFakeStore()
	content := pattern(1, 24<<20+4321)
	f, fh, h := openForTest(t, s, content)
	rng := rand.New(rand.NewPCG(1, 2))
	const window, req = 2 << 20, 256 << 10
	streamed := false
	for base := int64(0); base < int64(len(content)); base += window {
		var wg sync.WaitGroup
		for _, i := range rng.Perm(window / req) {
			wg.Go(func() {
				off := base + int64(i)*req
				got, st := readRequest(f, fh, off, req)
				if off >= int64(len(content)) {
					return
				}
				if want := content[off:min(off+req, int64(len(content)))]; !st.Ok() || !bytes.Equal(got, want) {
					t.Errorf("at %d: %d bytes, %v", off, len(got), st)
				}
			})
		}
		wg.Wait()
		streamed = streamed || h.stream.Load() != nil
	}
	if !streamed {
		t.Error("a sequential reader got no stream")
	}
}

func TestStreamWithSeeks(t *testing.T) {
	s := newFakeStore()
	content := pattern(1, 24<<20)
	f, fh, _ := openForTest(t, s, content)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 30 {
		off := rng.Int64N(int64(len(content)))
		for range rng.IntN(20) {
			size := 1 + rng.Int64N(maxRead)
			if off >= int64(len(content)) {
				break
			}
			got, st := readRequest(f, fh, off, size)
			if !st.Ok() || !bytes.Equal(got, content[off:min(off+size, int64(len(content)))]) {
				t.Fatalf("[%d,+%d): %d bytes, %v", off, size, len(got), st)
			}
			off += size
		}
	}
}

func TestStreamIsBoundedAndEnds(t *testing.T) {
	setStreamIdle(t, time.Hour)
	s := newFakeStore()
	content := pattern(1, 40<<20)
	f, fh, h := openForTest(t, s, content)
	read := func(from, to int64) {
		t.Helper()
		for off := from; off < to; off += maxRead {
			if got, st := readRequest(f, fh, off, maxRead); !st.Ok() || !bytes.Equal(got, content[off:off+maxRead]) {
				t.Fatalf("at %d: %v", off, st)
			}
		}
	}
	read(0, 8<<20)
	st := h.stream.Load()
	if st == nil {
		t.Fatal("a sequential reader got no stream")
	}
	ahead := func() (int64, int64) {
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.end - st.front, s.lent.Load()
	}
	eventually(t, "the window is full", func() bool { n, _ := ahead(); return n >= maxWindow })
	if n, k := ahead(); n > maxWindow+lendSize || k > (maxWindow+streamBehind)/lendSize+2 {
		t.Errorf("%d bytes are decoded ahead, %d buffers are lent", n, k)
	}

	// A reader that pauses gives its place away, and gets on later.
	streamIdle = 0
	st.mu.Lock()
	st.wake()
	st.mu.Unlock()
	eventually(t, "the stream has ended", func() bool { return h.stream.Load() == nil && len(streamSlots) == 0 })
	streamIdle = time.Hour
	read(8<<20, 30<<20)
}

// What streams hold is bounded over all open files, also at the end of files,
// where all is decoded and the readers have paused.
func TestStreamsOfManyFilesAreBounded(t *testing.T) {
	setStreamIdle(t, time.Hour)
	s := newFakeStore()
	content := pattern(1, 2*streamMin+maxWindow)
	f, fh, h := openForTest(t, s, content)
	streams := 0
	for range 2 * cap(streamSlots) {
		for off := int64(0); off < 2*streamMin; off += maxRead {
			if got, st := readRequest(f, fh, off, maxRead); !st.Ok() || !bytes.Equal(got, content[off:off+maxRead]) {
				t.Fatalf("at %d: %v", off, st)
			}
		}
		if st := h.stream.Load(); st != nil {
			streams++
			eventually(t, "all is decoded", func() bool {
				st.mu.Lock()
				defer st.mu.Unlock()
				return st.end == int64(len(content))
			})
		}
		r, err := s.Open(t.Context(), h.info.ID)
		if err != nil {
			t.Fatal(err)
		}
		h = newHandle(r, &f.streams)
		next := f.handles.add(h)
		t.Cleanup(func() { f.handles.close(next) })
		fh = next
	}
	if n := s.lent.Load(); streams == 0 || n > int64(cap(streamSlots))*(maxWindow/lendSize+3) {
		t.Errorf("%d streams hold %d buffers", streams, n)
	}
}

func TestStreamOverDamage(t *testing.T) {
	s := newFakeStore()
	content := pattern(1, 24<<20)
	const from, to = 10<<20 + 5, 10<<20 + 70_000
	info := s.put("x", content)
	s.update(info.ID, func(c *fakeCapsule) { c.damaged = [][2]int64{{from, to}} })
	f := newFileSystem(s, info.ID, new(logBuffer).logger())
	r, err := s.Open(t.Context(), info.ID)
	if err != nil {
		t.Fatal(err)
	}
	fh := f.handles.add(newHandle(r, &f.streams))
	defer f.handles.close(fh)
	const req = 64 << 10
	for off := int64(0); off < int64(len(content)); off += req {
		got, st := readRequest(f, fh, off, req)
		if off < to && off+req > from {
			if st != gofuse.EIO {
				t.Errorf("in the damage at %d: %v", off, st)
			}
		} else if !st.Ok() || !bytes.Equal(got, content[off:off+req]) {
			t.Errorf("beside the damage at %d: %v", off, st)
		}
	}
}
