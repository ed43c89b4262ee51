package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/testenv/seed"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
	"github.com/spacestore/space/pipeline"
)

// listFiles returns the paths of all files below dir.
func listFiles(t *testing.T, fsys vfs.FS, dir string) (files []string) {
	t.Helper()
	names, err := fsys.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		p := fsys.PathJoin(dir, n)
		st, err := fsys.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if st.IsDir() {
			files = append(files, listFiles(t, fsys, p)...)
		} else if st.Size() > 0 {
			files = append(files, p)
		}
	}
	return files
}

func flipBit(t *testing.T, fsys vfs.FS, path string, bit int) {
	t.Helper()
	f, err := fsys.OpenReadWrite(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, int64(bit/8)); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (bit % 8)
	if _, err := f.WriteAt(b, int64(bit/8)); err != nil {
		t.Fatal(err)
	}
}

// One bit flips in any file of a closed store. Then the store does not open,
// with an error that says so, or it opens and every capsule reads either right
// or with an error; none is wrong, none is missing. Verify finds what reads
// do not.
func TestFlippedBitAnywhere(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		put(t, s, fmt.Sprintf("dir/%d", i), append(text(uint64(i), 30<<10), random(uint64(i/2), 40<<10)...))
	}
	put(t, s, "large", random(7, 3<<20))
	if err := s.RotateKey(nil); err != nil {
		t.Fatal(err)
	}
	put(t, s, "dir/0", text(50, 1000))
	want, err := readState(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	perFile := 60
	if testing.Short() {
		perFile = 8
	}
	for _, path := range listFiles(t, disk, "/space") {
		st, err := disk.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.ReplaceAll(strings.TrimPrefix(path, "/space/"), "/", "-"), func(t *testing.T) {
			t.Parallel()
			rng := seed.Rand(t)
			for i := range perFile {
				bit := rng.IntN(int(8 * st.Size()))
				if i < 16 { // headers and tails have their own chances
					bit = []int{i * 8, int(8*st.Size()) - 1 - i*4}[i%2]
				}
				copied := disk.Clone(1)
				flipBit(t, copied, path, bit)
				where := fmt.Sprintf("byte %d of %d", bit/8, st.Size())
				s, err := openOn(copied)
				if err != nil {
					if k := capsule.KindOf(err); k != capsule.Damaged {
						t.Fatalf("%s: open fails with %v (%v), want kind %v", where, err, k, capsule.Damaged)
					}
					continue
				}
				checkDamaged(t, s, want, where, path)
				s.Close()
			}
		})
	}
}

func checkDamaged(t *testing.T, s *Store, want state, where, path string) {
	t.Helper()
	failed := false
	for name, content := range want {
		info, err := s.Resolve(t.Context(), name)
		var got []byte
		if err == nil {
			got, err = get(s, info.ID)
		}
		if err != nil {
			failed = true
			if capsule.KindOf(err) != capsule.Damaged {
				t.Fatalf("%s: %s: %v, want kind %v", where, name, err, capsule.Damaged)
			}
			if !strings.HasPrefix(content, string(got)) {
				t.Fatalf("%s: %s: what was read before the damage is wrong", where, name)
			}
		} else if string(got) != content {
			t.Fatalf("%s: %s reads wrong without an error", where, name)
		}
	}
	rep, err := s.Verify(t.Context(), VerifyOptions{}, nil)
	if err != nil && capsule.KindOf(err) != capsule.Damaged {
		t.Fatalf("%s: verify: %v", where, err)
	}
	if failed && err == nil && rep.OK() {
		t.Fatalf("%s: a capsule does not read, but verify finds nothing", where)
	}
	if err == nil && strings.Contains(path, "/segments/") && rep.OK() && !failed {
		// Only dead bytes may be damaged without anyone noticing.
		if u, err := s.Usage(t.Context()); err != nil || u.DeadBytes == 0 {
			t.Fatalf("%s: damage in a segment log goes unnoticed", where)
		}
	}
}

// A damaged segment is contained: the error names the range, the rest reads,
// verify names the capsules, and repair by putting again works.
func TestDamageIsNamedAndContained(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	data := random(1, 600<<10)
	a := put(t, s, "a", data)
	b := put(t, s, "b", data) // shares the segments
	c := put(t, s, "c", random(2, 100<<10))
	r, err := s.Open(t.Context(), a.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pg, err := r.pageAt(300 << 10)
	if err != nil {
		t.Fatal(err)
	}
	i := pg.find(300 << 10)
	x, start := pg.list[i], pg.starts[i]
	row, err := s.segmentRow(x.id)
	if err != nil {
		t.Fatal(err)
	}
	flipBit(t, disk, s.fs.PathJoin("/space/segments", "000000", fmt.Sprintf("%016x.seg", row.log)), int(row.off+row.recordLen/2)*8)

	p := make([]byte, len(data))
	n, err := r.ReadAt(p, 0)
	var d *capsule.DamageError
	if !errors.As(err, &d) || int64(n) != start || d.Capsule != a.ID || d.Off != start || d.Len != x.len || d.Log != row.log || d.LogOff != row.off {
		t.Fatalf("ReadAt: %d bytes, %+v; damaged are %d bytes at %d", n, err, x.len, start)
	}
	if m, err := r.ReadAt(p[start+x.len:], start+x.len); err != nil || !bytes.Equal(p[start+x.len:], data[start+x.len:]) {
		t.Fatalf("behind the damage: %d bytes, %v", m, err)
	}
	if !bytes.Equal(p[:start], data[:start]) {
		t.Fatal("before the damage: wrong bytes")
	}
	if got, err := get(s, b.ID); capsule.KindOf(err) != capsule.Damaged || !bytes.Equal(got, data[:start]) {
		t.Fatalf("Stream: %d bytes, %v", len(got), err)
	}
	wantContent(t, s, c.ID, random(2, 100<<10))

	rep, err := s.Verify(t.Context(), VerifyOptions{}, nil)
	if err != nil || len(rep.Damage) != 2 || rep.Damage[0].Name != "a" || rep.Damage[1].Name != "b" || rep.Damage[0].Off != start || len(rep.Problems) > 0 {
		t.Fatalf("verify: %+v, %v", rep, err)
	}
	rep, err = s.Verify(t.Context(), VerifyOptions{ID: b.ID}, nil)
	if err != nil || len(rep.Damage) != 1 || rep.Damage[0].Log != row.log {
		t.Fatalf("verify b: %+v, %v", rep, err)
	}
	// Collecting garbage neither spreads the damage nor drops the good rest.
	if _, err := s.GC(t.Context(), GCOptions{MinDead: 0.01, Recompress: true}, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := get(s, a.ID); capsule.KindOf(err) != capsule.Damaged || !bytes.Equal(got, data[:start]) {
		t.Fatalf("after gc: %d bytes, %v", len(got), err)
	}
}

// A failed fsync, of a segment log or of the metadata, stops all changes for
// good; nothing acknowledged is lost, and the next open works.
func TestFailedSync(t *testing.T) {
	for _, part := range []string{"/segments/", "/meta/"} {
		t.Run(strings.Trim(part, "/"), func(t *testing.T) {
			disk := vfstest.NewPowerCut()
			faults := vfstest.NewFaults(disk)
			s, err := openOn(faults)
			if err != nil {
				t.Fatal(err)
			}
			a := put(t, s, "a", random(1, 300<<10))
			faults.Set(func(op vfstest.Op) error {
				if op.Kind == vfstest.Sync && strings.Contains(op.Path, part) {
					return syscall.EIO
				}
				return nil
			})
			_, err = s.Put(t.Context(), PutRequest{Name: "b", Size: -1}, bytes.NewReader(random(2, 100<<10)))
			wantKind(t, err, capsule.Unavailable)
			faults.Set(nil) // the disk "recovers", which proves nothing
			_, err = s.Put(t.Context(), PutRequest{Name: "c", Size: -1}, bytes.NewReader(random(3, 1000)))
			wantKind(t, err, capsule.Unavailable)
			wantKind(t, s.Remove(t.Context(), a.ID), capsule.Unavailable)
			wantContent(t, s, a.ID, random(1, 300<<10)) // reads go on
			s.Close()
			if s, err = openOn(disk.Clone(0)); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			wantOneOf(t, s, state{"a": string(random(1, 300<<10))}, state{"a": string(random(1, 300<<10)), "b": string(random(2, 100<<10))})
		})
	}
}

// A failing write of content fails that put alone.
func TestFailedWrite(t *testing.T) {
	for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO} {
		faults := vfstest.NewFaults(vfstest.NewPowerCut())
		s, err := openOn(faults)
		if err != nil {
			t.Fatal(err)
		}
		a := put(t, s, "a", random(1, 100<<10))
		faults.Set(func(op vfstest.Op) error {
			if op.Kind == vfstest.Write && strings.Contains(op.Path, "/segments/") {
				return &vfstest.Short{N: op.Len / 2, Err: errno}
			}
			return nil
		})
		_, err = s.Put(t.Context(), PutRequest{Name: "b", Size: -1}, bytes.NewReader(random(2, 4<<20)))
		if errno == syscall.EIO {
			wantKind(t, err, capsule.IO)
		} else {
			wantKind(t, err, capsule.NoSpace)
		}
		wantContent(t, s, a.ID, random(1, 100<<10))
		faults.Set(nil)
		put(t, s, "b", random(2, 4<<20))
		wantClean(t, s)
		// What the failed put left behind comes back.
		if _, err := s.GC(t.Context(), GCOptions{MinDead: 0.001}, nil); err != nil {
			t.Fatal(err)
		}
		wantClean(t, s)
		s.Close()
	}
}

// A read error of the device is an error of that range, and passes.
func TestFailedRead(t *testing.T) {
	faults := vfstest.NewFaults(vfstest.NewPowerCut())
	s, err := openOn(faults)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a := put(t, s, "a", random(1, 300<<10))
	faults.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Read && strings.Contains(op.Path, "/segments/") {
			return syscall.EIO
		}
		return nil
	})
	_, err = get(s, a.ID)
	wantKind(t, err, capsule.Damaged)
	if !errors.As(err, new(*capsule.DamageError)) {
		t.Errorf("the error does not say where: %v", err)
	}
	faults.Set(nil)
	wantContent(t, s, a.ID, random(1, 300<<10))
}

// The disk fills up: a clear error, what was acknowledged stays, removing and
// collecting works on the full disk, and then there is room again.
func TestDiskFull(t *testing.T) {
	disk := vfstest.NewDiskFull(vfstest.NewPowerCut(), 24<<20)
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := state{}
	var full error
	for i := range 100 {
		name := fmt.Sprint(i)
		data := random(uint64(i), 1<<20)
		if _, full = s.Put(t.Context(), PutRequest{Name: name, Size: -1}, bytes.NewReader(data)); full != nil {
			break
		}
		want[name] = string(data)
	}
	wantKind(t, full, capsule.NoSpace)
	if len(want) < 10 {
		t.Errorf("full after %d MiB of 24", len(want))
	}
	if got, err := readState(s); err != nil || !equalStates(got, want) {
		t.Fatalf("on the full disk: %d capsules of %d, %v", len(got), len(want), err)
	}
	// Someone else takes the rest: not a byte left, not for metadata either.
	disk.SetBudget(disk.Used())
	for i := range 5 {
		info, err := s.Resolve(t.Context(), fmt.Sprint(i))
		if err == nil {
			err = s.Remove(t.Context(), info.ID)
		}
		if err != nil {
			t.Fatalf("remove on a full disk: %v", err)
		}
		delete(want, fmt.Sprint(i))
	}
	rep, err := s.GC(t.Context(), GCOptions{}, nil)
	if err != nil || rep.FreedBytes < 4<<20 {
		t.Fatalf("gc on a full disk: %+v, %v", rep, err)
	}
	s.space.budget = 0
	put(t, s, "again", random(200, 100<<10))
	want["again"] = string(random(200, 100<<10))
	if got, err := readState(s); err != nil || !equalStates(got, want) {
		t.Fatalf("with room again: %d capsules of %d, %v", len(got), len(want), err)
	}
	wantClean(t, s)
}

// Who asks for room finds what others were granted on the disk already: many at
// once do not use up what is kept in reserve.
func TestRoomIsGrantedOnce(t *testing.T) {
	faults := vfstest.NewFaults(vfstest.NewPowerCut())
	s, err := openOn(faults)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var granted atomic.Int64 // and not written
	faults.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Write && strings.Contains(op.Path, "/segments/") {
			runtime.Gosched()
			granted.Add(-int64(op.Len))
		}
		return nil
	})
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for range 50 {
				err := s.appendSealed(&coder{out: random(uint64(w), 4<<10)}, nil, func(n int64) error {
					if have := granted.Add(n) - n; have != 0 {
						t.Errorf("%d bytes are granted and not written", have)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// A put that the disk has no room for leaves it as full as it was before.
func TestFullPutGivesBack(t *testing.T) {
	s, err := openOn(vfstest.NewDiskFull(vfstest.NewPowerCut(), 10<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	kept := random(1, 1<<20)
	id := put(t, s, "kept", kept).ID
	before, err := s.logBytesTotal()
	if err != nil {
		t.Fatal(err)
	}
	data := random(2, 10<<20)
	for range 2 { // the second one finds as much room as the first
		r := &countingReader{r: bytes.NewReader(data)}
		_, err := s.Put(t.Context(), PutRequest{Name: "full", Size: -1}, r)
		wantKind(t, err, capsule.NoSpace)
		if r.n < 4<<20 {
			t.Fatalf("the disk is full after %d bytes", r.n)
		}
		after, err := s.logBytesTotal()
		if err != nil {
			t.Fatal(err)
		}
		// But for what was appended to the log that has some of the other capsule.
		if after > before+pipeline.BlockSize+2*s.logBytes {
			t.Fatalf("segment logs of %d bytes have %d after a put that failed", before, after)
		}
	}
	wantContent(t, s, id, kept)
	wantClean(t, s)
}

// countingReader counts what was read.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func TestReadOnlyDisk(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", []byte("a"))
	s.Close()
	faults := vfstest.NewFaults(disk)
	faults.Set(func(op vfstest.Op) error {
		if op.Mutates() {
			return syscall.EROFS
		}
		return nil
	})
	_, err = openOn(faults)
	wantKind(t, err, capsule.ReadOnly)
	faults.Set(nil)
	if s, err = openOn(faults); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantClean(t, s)
}

// An I/O error at each step in turn, in any part of the store: the operation
// under way fails or not; whatever was acknowledged is there after a restart.
func TestErrorAtEveryStep(t *testing.T) {
	steps := crashWorkload()
	counter := vfstest.NewFaults(vfstest.NewPowerCut())
	s, err := openOn(counter)
	if err != nil {
		t.Fatal(err)
	}
	runSteps(s, steps)
	s.Close()
	total := counter.Count()
	stride := 2
	if testing.Short() {
		stride = 41
	}
	for n := seed.Rand(t).IntN(stride); n < total; n += stride {
		t.Run(fmt.Sprint("error at ", n), func(t *testing.T) {
			t.Parallel()
			disk := vfstest.NewPowerCut()
			faults := vfstest.NewFaults(disk)
			at := 0
			faults.Set(func(op vfstest.Op) error {
				if op.Kind == vfstest.Close {
					return nil
				}
				if at++; at == n {
					return []error{syscall.EIO, syscall.ENOSPC}[n%2]
				}
				return nil
			})
			done, next := state{}, state{}
			if s, err := openOn(faults); err == nil {
				done, next = runSteps(s, steps)
				s.Close()
			}
			faults.Set(nil)
			s, err := openOn(disk)
			if err != nil {
				t.Fatalf("open after an I/O error: %v", err)
			}
			defer s.Close()
			wantOneOf(t, s, done, next)
		})
	}
}
