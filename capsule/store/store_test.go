package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs/vfstest"
	"github.com/spacestore/space/pipeline"
)

func TestPutAndReadBack(t *testing.T) {
	s := newStore(t)
	sparse := make([]byte, 3<<20)
	copy(sparse[1<<20:], "data in the middle")
	for name, data := range map[string][]byte{
		"empty": nil, "byte": {1}, "zeros": make([]byte, 100), "small": random(1, 4096), "chunk": text(2, pipeline.MaxChunk),
		"block": random(3, pipeline.BlockSize), "large": append(text(4, 3<<20), random(5, 2<<20)...), "sparse": sparse,
		"many pages": random(6, 40<<20),
	} {
		t.Run(name, func(t *testing.T) {
			info := put(t, s, name, data)
			wantContent(t, s, info.ID, data)
			if info.Version != 1 || info.Size != int64(len(data)) || info.Name != name {
				t.Errorf("put returned %+v", info)
			}
			r, err := s.Open(t.Context(), info.ID)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			// Ranges across every kind of boundary, by both ways of reading.
			for _, off := range []int{0, 1, 4095, len(data) / 3, len(data) / 2, len(data) - 1, len(data), len(data) + 1} {
				for _, n := range []int{0, 1, 10, 70000, 2 << 20} {
					if off < 0 {
						continue
					}
					want := data[min(off, len(data)):min(off+n, len(data))]
					p := make([]byte, n)
					m, err := r.ReadAt(p, int64(off))
					if !bytes.Equal(p[:m], want) || (m < n) != (err == io.EOF) || err != nil && err != io.EOF {
						t.Fatalf("ReadAt %d bytes at %d of %d: %d bytes, %v", n, off, len(data), m, err)
					}
					var b bytes.Buffer
					written, err := r.Stream(t.Context(), &b, int64(off), int64(n))
					if err != nil || written != int64(len(want)) || !bytes.Equal(b.Bytes(), want) {
						t.Fatalf("Stream %d bytes at %d of %d: %d bytes, %v", n, off, len(data), written, err)
					}
				}
			}
		})
	}
	wantClean(t, s)
}

// What was lent stays as it is until it is given back, whatever else is read.
func TestLend(t *testing.T) {
	s := newStore(t)
	data := random(1, 7<<20+123)
	info := put(t, s, "x", data)
	r, err := s.Open(t.Context(), info.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, off := range []int{0, 5<<20 + 1} {
		var lent [][]byte
		var back []func()
		if err := r.Lend(t.Context(), int64(off), -1, func(p []byte, done func()) error {
			lent, back = append(lent, p), append(back, done)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Stream(t.Context(), io.Discard, 0, -1); err != nil {
			t.Fatal(err)
		}
		if got := bytes.Join(lent, nil); !bytes.Equal(got, data[off:]) {
			t.Errorf("%d bytes from %d on, of %d, or others", len(got), off, len(data))
		}
		for _, done := range back {
			done()
		}
	}
	enough := errors.New("enough")
	calls := 0
	if err := r.Lend(t.Context(), 0, -1, func(_ []byte, done func()) error { calls++; done(); return enough }); err != enough || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// An announced length that is wrong stores nothing.
func TestAnnouncedLength(t *testing.T) {
	s := newStore(t)
	for _, n := range []int{100, 3 << 20} {
		for _, delta := range []int64{-1, 1} {
			_, err := s.Put(t.Context(), PutRequest{Name: "x", Size: int64(n) + delta}, bytes.NewReader(random(1, n)))
			wantKind(t, err, capsule.Invalid)
		}
	}
	if m, _ := readState(s); len(m) > 0 {
		t.Errorf("the store holds %v", m)
	}
	wantClean(t, s)
}

// Readers of a replaced or removed version finish undisturbed, and its space
// comes back afterwards.
func TestOldVersionsStayReadable(t *testing.T) {
	s := newStore(t)
	old, young := random(1, 2<<20), random(2, 1<<20)
	info := put(t, s, "x", old)
	r, err := s.Open(t.Context(), info.ID)
	if err != nil {
		t.Fatal(err)
	}
	second := put(t, s, "x", young)
	if second.ID != info.ID || second.Version != 2 {
		t.Errorf("replaced %s version %d with %s version %d", info.ID, info.Version, second.ID, second.Version)
	}
	if err := s.Remove(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(t.Context(), GCOptions{MinDead: 0.01}, nil); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := r.Stream(t.Context(), &b, 0, -1); err != nil || !bytes.Equal(b.Bytes(), old) {
		t.Fatalf("the old version reads as %d bytes, error %v", b.Len(), err)
	}
	if u, _ := s.Usage(t.Context()); u.PendingBytes != int64(len(old)) || u.Capsules != 0 {
		t.Errorf("while it is read: %+v", u)
	}
	r.Close()
	if _, err := s.GC(t.Context(), GCOptions{MinDead: 0.01}, nil); err != nil {
		t.Fatal(err)
	}
	if u, _ := s.Usage(t.Context()); u.StoredBytes != 0 || u.Segments != 0 || u.PendingBytes != 0 || u.DeadBytes != 0 {
		t.Errorf("after the last reader is gone and garbage collected: %+v", u)
	}
	wantClean(t, s)
}

// Equal content is stored once, and every figure about it is exact.
func TestDedupAccounting(t *testing.T) {
	s := newStore(t)
	const size = 8 << 20
	data := random(1, size)
	a := put(t, s, "a", data)
	one, _ := s.Usage(t.Context())
	b := put(t, s, "b", append(bytes.Clone(data), data...))
	put(t, s, "hole", make([]byte, size))
	two, _ := s.Usage(t.Context())
	// The second copy in b begins within a chunk. After how many chunks the cuts
	// are the same again depends on the store's random key.
	if two.UniqueBytes > one.UniqueBytes+size/2 {
		t.Errorf("two more copies made %d unique bytes of %d", two.UniqueBytes, one.UniqueBytes)
	}
	if two.LogicalBytes != 4*size || two.Capsules != 3 {
		t.Errorf("usage %+v", two)
	}
	if one.UniqueBytes != size || one.StoredBytes <= one.UniqueBytes || one.StoredBytes > size+size/4096*40+120*one.Segments {
		t.Errorf("one copy: %+v", one)
	}
	st, err := s.Stat(t.Context(), a.ID)
	if err != nil || st.UniqueBytes != size || st.StoredBytes != one.StoredBytes || st.OwnBytes >= st.StoredBytes/2 {
		t.Errorf("stat of a: %+v, %v", st, err)
	}
	if err := s.Remove(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Usage(t.Context()); err != nil { // waits for the release
		t.Fatal(err)
	}
	if st, _ := s.Stat(t.Context(), a.ID); st.OwnBytes != st.StoredBytes {
		t.Errorf("a alone owns %d of its %d bytes", st.OwnBytes, st.StoredBytes)
	}
	three, _ := s.Usage(t.Context())
	if three.UniqueBytes != one.UniqueBytes || three.StoredBytes != one.StoredBytes || three.Segments != one.Segments {
		t.Errorf("after removing b: %+v, before it: %+v", three, one)
	}
	wantClean(t, s)
}

// A policy without dedupe shares nothing, and one without encryption never
// shares with one that has it.
func TestPolicyDomains(t *testing.T) {
	s := newStore(t)
	data := []byte(strings.Repeat("a secret that repeats itself; ", 4000))
	policy := func(change func(*capsule.Policy)) *capsule.Policy {
		p := capsule.DefaultPolicy()
		p.Compression = "none"
		change(p)
		return p
	}
	put := func(name string, p *capsule.Policy) {
		t.Helper()
		info, err := s.Put(t.Context(), PutRequest{Name: name, Size: -1, Policy: p}, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		wantContent(t, s, info.ID, data)
	}
	stored := func() int64 { u, _ := s.Usage(t.Context()); return u.StoredBytes }
	put("clear", policy(func(p *capsule.Policy) { p.Encryption = "disabled" }))
	n := stored()
	put("sealed", policy(func(p *capsule.Policy) {}))
	sealed := stored() - n
	if sealed < n {
		t.Errorf("an encrypted capsule shares segments with one in the clear")
	}
	put("sealed again", policy(func(p *capsule.Policy) {}))
	if stored() != n+sealed {
		t.Errorf("equal encrypted content is not shared")
	}
	for i := range 2 {
		before := stored()
		put(fmt.Sprint("alone", i), policy(func(p *capsule.Policy) { p.Dedupe = false }))
		if stored() != before+sealed {
			t.Errorf("dedupe: false stored %d bytes more, want %d", stored()-before, sealed)
		}
	}
	wantClean(t, s)
}

func TestNames(t *testing.T) {
	s := newStore(t)
	put(t, s, "di", []byte("a name that others begin with is free for all that"))
	put(t, s, "dir-1", []byte("sorts between a directory and what is in it"))
	a := put(t, s, "dir/a", []byte("a"))
	for _, name := range []string{"dir", "dir/a/b"} {
		_, err := s.Put(t.Context(), PutRequest{Name: name, Size: -1}, strings.NewReader("x"))
		wantKind(t, err, capsule.Exists)
		b := put(t, s, "other", []byte("b"))
		_, err = s.Rename(t.Context(), b.ID, name)
		wantKind(t, err, capsule.Exists)
	}
	_, err := s.Put(t.Context(), PutRequest{Name: "dir/a", Exclusive: true, Size: -1}, strings.NewReader("x"))
	wantKind(t, err, capsule.Exists)
	// A capsule does not stand in its own way.
	if _, err := s.Rename(t.Context(), a.ID, "dir/a/deeper"); err != nil {
		t.Error(err)
	}
	if _, err := s.Rename(t.Context(), a.ID, "dir"); err != nil {
		t.Error(err)
	}
	if _, err := s.Rename(t.Context(), a.ID, ""); err != nil {
		t.Error(err)
	}
	if _, err := s.Resolve(t.Context(), "dir"); capsule.KindOf(err) != capsule.NotFound {
		t.Errorf("the old name leads to %v", err)
	}
	for _, bad := range []string{"../x", "x/..", "/abs", "x/", "a//b", ".", "nul\x00", "new\nline", "\xff", strings.Repeat("x", 256), strings.Repeat("long/", 900)} {
		_, err := s.Put(t.Context(), PutRequest{Name: bad, Size: -1}, strings.NewReader("x"))
		wantKind(t, err, capsule.Invalid)
	}
	wantClean(t, s)
}

func TestHostileOffsets(t *testing.T) {
	s := newStore(t)
	info := put(t, s, "x", random(1, 100000))
	r, _ := s.Open(t.Context(), info.ID)
	defer r.Close()
	p := make([]byte, 10)
	if _, err := r.ReadAt(p, -1); capsule.KindOf(err) != capsule.Invalid {
		t.Errorf("negative offset: %v", err)
	}
	if n, err := r.ReadAt(p, math.MaxInt64); n != 0 || err != io.EOF {
		t.Errorf("largest offset: %d, %v", n, err)
	}
	if n, err := r.Stream(t.Context(), io.Discard, math.MaxInt64, math.MaxInt64); n != 0 || err != nil {
		t.Errorf("stream at the largest offset: %d, %v", n, err)
	}
	if n, err := r.Stream(t.Context(), io.Discard, 1, math.MaxInt64); n != 99999 || err != nil {
		t.Errorf("stream of the largest length: %d, %v", n, err)
	}
	r.Prefetch(math.MaxInt64, math.MaxInt64)
	r.Prefetch(-1, 5)
	_, err := s.Put(t.Context(), PutRequest{Size: math.MaxInt64}, strings.NewReader("x"))
	if err == nil {
		t.Error("a put that announces 8 EiB and has one byte succeeds")
	}
}

func TestListAndReadDir(t *testing.T) {
	s := newStore(t)
	want := []string{"", "a", "a-b", "b/c/d", "b/c/e", "b/x", "b.x", "z"}
	for _, name := range want {
		put(t, s, name, []byte(name))
	}
	var got []string
	q := ListQuery{Limit: 3}
	for pages := 0; ; pages++ {
		p, err := s.List(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range p.Capsules {
			got = append(got, c.Name)
		}
		if q.Cursor = p.Next; q.Cursor == "" {
			if pages != 2 {
				t.Errorf("%d pages of 3", pages+1)
			}
			break
		}
	}
	if fmt.Sprint(got) != "[ a a-b b.x b/c/d b/c/e b/x z]" {
		t.Errorf("listed %q", got)
	}
	p, err := s.List(t.Context(), ListQuery{Prefix: "b/"})
	if err != nil || len(p.Capsules) != 3 || p.Next != "" {
		t.Errorf("prefix b/: %+v, %v", p, err)
	}
	for _, cursor := range []string{"!", "AAAA", strings.Repeat("x", 100)} {
		_, err := s.List(t.Context(), ListQuery{Cursor: cursor})
		wantKind(t, err, capsule.Invalid)
	}
	for _, limit := range []int{1, 2, 100} {
		var names []string
		after := ""
		for {
			l, err := s.ReadDir(t.Context(), "", after, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range l {
				names = append(names, fmt.Sprint(e.Name, e.Dir))
				after = e.Name
			}
			if len(l) < limit {
				break
			}
		}
		if fmt.Sprint(names) != "[afalse a-bfalse b.xfalse btrue zfalse]" {
			t.Errorf("by %d: the root has %v", limit, names)
		}
	}
	if l, err := s.ReadDir(t.Context(), "b", "", 10); err != nil || len(l) != 2 || !l[0].Dir || l[1].Name != "x" {
		t.Errorf("b has %v, %v", l, err)
	}
	if _, dir, err := s.LookupName(t.Context(), "b/c"); !dir || err != nil {
		t.Errorf("b/c: %v %v", dir, err)
	}
	if info, _, err := s.LookupName(t.Context(), "b/c/d"); info.Name != "b/c/d" || err != nil {
		t.Errorf("b/c/d: %+v %v", info, err)
	}
	_, _, err = s.LookupName(t.Context(), "b/c/q")
	wantKind(t, err, capsule.NotFound)
}

func TestStoreReopens(t *testing.T) {
	disk := vfstest.NewPowerCut()
	data := random(1, 700<<10)
	for i := range 5 {
		s, err := openOn(disk)
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, fmt.Sprint(i), data)
		data = append(data, text(uint64(i), 50<<10)...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m, err := readState(s)
	if err != nil || len(m) != 5 || len(m["4"]) != 700<<10+4*50<<10 {
		t.Fatalf("%v, %v", m, err)
	}
	wantClean(t, s)
}

// A content that is replaced is sealed under the policy that its capsule got in
// another life of the store, also if nothing has been said of policies in this one.
func TestPolicyOutlivesTheProcess(t *testing.T) {
	disk := vfstest.NewPowerCut()
	policy := capsule.DefaultPolicy()
	policy.Compression = "none"
	for i := range 2 {
		s, err := openOn(disk)
		if err != nil {
			t.Fatal(err)
		}
		data := text(uint64(i), 300<<10) // shrinks where it is packed
		info, err := s.Put(t.Context(), PutRequest{Name: "x", Size: -1, Policy: policy}, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if st, err := s.Stat(t.Context(), info.ID); err != nil || st.StoredBytes < int64(len(data)) {
			t.Errorf("put %d: %d bytes not to be packed are stored as %d: %v", i, len(data), st.StoredBytes, err)
		}
		policy = nil // from now on the capsule's own
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A new store's engine has its newest format from the start, so that nothing
// has to be migrated, and synced, on the way.
func TestNewestFormatOfMetadata(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := s.kv.db.FormatMajorVersion(); got != pebble.FormatNewest {
		t.Errorf("format %s, want %s", got, pebble.FormatNewest)
	}
	names, err := disk.List(s.path("meta"))
	if err != nil {
		t.Fatal(err)
	}
	markers := slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, "marker.format-version.") })
	if len(markers) != 1 || !strings.HasPrefix(markers[0], "marker.format-version.000001.") {
		t.Errorf("the format was changed after the store was made: %v", markers)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), Options{Dir: dir, Keys: testKey})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = Open(t.Context(), Options{Dir: dir, Keys: testKey})
	wantKind(t, err, capsule.Locked)
}

func TestWrongKeyTouchesNothing(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "x", []byte("x"))
	s.Close()
	faults := vfstest.NewFaults(disk)
	_, err = Open(t.Context(), Options{Dir: "/space", FS: faults, Keys: otherKey, Logger: quietLog()})
	wantKind(t, err, capsule.WrongKey)
	if n := faults.Count(vfstest.Create, vfstest.Write, vfstest.Rename, vfstest.Remove); n > 0 {
		t.Errorf("%d changes were made before the key was refused", n)
	}
	if s, err = openOn(disk); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantClean(t, s)
}

func TestKeyRotation(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	a := put(t, s, "a", text(1, 300<<10))
	if err := s.RotateKey(nil); err != nil {
		t.Fatal(err)
	}
	b := put(t, s, "b", text(2, 300<<10))
	wantContent(t, s, a.ID, text(1, 300<<10))
	rep, err := s.GC(t.Context(), GCOptions{}, nil)
	if err != nil || rep.Resealed == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	wantClean(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The engine writes a new manifest at each open and keeps the one before.
	for range 2 {
		if s, err = openOn(disk); err != nil {
			t.Fatal(err)
		}
		if _, err := s.GC(t.Context(), GCOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if s, err = openOn(disk); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.GC(t.Context(), GCOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if v := s.Keys().Versions; len(v) != 1 || v[0].Version != 2 {
		t.Errorf("keys left: %+v", v)
	}
	wantContent(t, s, a.ID, text(1, 300<<10))
	wantContent(t, s, b.ID, text(2, 300<<10))
	wantClean(t, s)
}

func TestRecompression(t *testing.T) {
	s := newStore(t)
	data := text(1, 2<<20)
	a := put(t, s, "a", data)
	put(t, s, "random", random(1, 1<<20))
	before, _ := s.Usage(t.Context())
	rep, err := s.GC(t.Context(), GCOptions{Recompress: true}, nil)
	if err != nil || rep.Recompressed == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	after, _ := s.Usage(t.Context())
	if after.StoredBytes >= before.StoredBytes || after.UniqueBytes != before.UniqueBytes {
		t.Errorf("before %+v, after %+v", before, after)
	}
	wantContent(t, s, a.ID, data)
	wantClean(t, s)
	if rep, err := s.GC(t.Context(), GCOptions{Recompress: true}, nil); err != nil || rep.MovedBytes != 0 {
		t.Errorf("a second run moved again: %+v, %v", rep, err)
	}
}

// Puts, replacements, removals, reads and collections all at once.
func TestEverythingAtOnce(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	const workers, rounds = 6, 40
	shared := random(99, 200<<10) // so that workers meet in the same segments
	var wg, gc sync.WaitGroup
	stop := make(chan struct{})
	gc.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := s.GC(ctx, GCOptions{MinDead: 0.01, Recompress: true}, nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	final := make([]state, workers)
	for w := range workers {
		wg.Go(func() {
			mine := state{}
			final[w] = mine
			for i := range rounds {
				name := fmt.Sprintf("w%d/%d", w, i%5)
				data := append(text(uint64(i*workers+w), 20<<10), shared[:(i%8)*25<<10]...)
				if i%7 == 6 && mine[name] != "" {
					info, err := s.Resolve(ctx, name)
					if err == nil {
						err = s.Remove(ctx, info.ID)
					}
					if err != nil {
						t.Error(err)
						return
					}
					delete(mine, name)
					continue
				}
				if i%11 == 10 { // an upload that breaks off
					_, err := s.Put(ctx, PutRequest{Name: name, Size: -1},
						io.MultiReader(bytes.NewReader(data), errReader{errors.New("connection lost")}))
					if err == nil {
						t.Error("a put of a broken stream succeeded")
					}
					continue
				}
				var info capsule.Info
				var err error
				if i%3 == 1 { // with two others, one of which holds the same
					several := []Content{contentNamed(name, data), contentNamed(name+"+", data), contentNamed(name+"-", data[:i])}
					for n, r := range s.PutAll(ctx, several, nil) {
						info, err = r.Info, errors.Join(err, r.Err)
						mine[several[n].Name] = string(several[n].Data)
					}
					data = data[:i]
				} else {
					info, err = s.Put(ctx, PutRequest{Name: name, Size: int64(len(data))}, bytes.NewReader(data))
					mine[name] = string(data)
				}
				if err != nil {
					t.Error(err)
					return
				}
				got, err := get(s, info.ID)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s reads back as %d bytes, want %d: %v", name, len(got), len(data), err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	gc.Wait()
	want := state{}
	for _, m := range final {
		for k, v := range m {
			want[k] = v
		}
	}
	got, err := readState(s)
	if err != nil || !equalStates(got, want) {
		t.Errorf("%v: the store holds %d capsules, want %d", err, len(got), len(want))
	}
	wantClean(t, s)
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// Many equal puts at once all share one segment and count it exactly.
func TestManyEqualPuts(t *testing.T) {
	s := newStore(t)
	n := 20000
	if testing.Short() {
		n = 2000
	}
	data := random(1, 4096)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range n / 16 {
				if _, err := s.Put(context.Background(), PutRequest{Size: 4096}, bytes.NewReader(data)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	u, err := s.Usage(t.Context())
	if err != nil || u.Segments != 1 || u.UniqueBytes != 4096 || u.Capsules != int64(n/16*16) {
		t.Errorf("%+v, %v", u, err)
	}
	wantClean(t, s)
}

func TestWatch(t *testing.T) {
	s := newStore(t)
	changes := make(chan Change, 10)
	cancel := s.Watch(func(c Change) {
		if !c.Removed {
			if _, err := s.Info(context.Background(), c.ID); err != nil { // a watcher may call the store
				t.Error(err)
			}
		}
		changes <- c
	})
	defer cancel()
	info := put(t, s, "a", []byte("1"))
	if c := <-changes; c.ID != info.ID || c.Name != "a" {
		t.Errorf("put: %+v", c)
	}
	if _, err := s.Rename(t.Context(), info.ID, "b"); err != nil {
		t.Fatal(err)
	}
	if c := <-changes; c.Name != "b" || c.OldName != "a" {
		t.Errorf("rename: %+v", c)
	}
	if err := s.Remove(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	if c := <-changes; !c.Removed || c.OldName != "b" {
		t.Errorf("remove: %+v", c)
	}
}

func TestCanceledPut(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	r := io.MultiReader(bytes.NewReader(random(1, 40<<20)), readerFunc(func([]byte) (int, error) {
		cancel()
		return 0, io.EOF
	}))
	_, err := s.Put(ctx, PutRequest{Name: "x", Size: -1}, r)
	wantKind(t, err, capsule.Canceled)
	if u, err := s.Usage(t.Context()); err != nil || u.Capsules != 0 || u.Segments != 0 || u.PendingBytes != 0 {
		t.Errorf("after a canceled put: %+v, %v", u, err)
	}
	wantClean(t, s)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
