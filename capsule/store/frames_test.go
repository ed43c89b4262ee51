package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
	"github.com/spacestore/space/pipeline"
)

// oldStore unpacks a store that a program of format 1 has made: an object of
// random bytes, one of text, and a volume.
func oldStore(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open("testdata/format1.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(name, 0o700)
		} else {
			b, rerr := io.ReadAll(r)
			if err = rerr; err == nil {
				err = os.WriteFile(name, b, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// wantOld checks that all of an old store is there, a range at a time too.
func wantOld(t *testing.T, s *Store) {
	t.Helper()
	volume := make([]byte, 1<<20)
	copy(volume, random(3, 20<<10))
	copy(volume[BlockSize+512:], random(4, 20<<10))
	r := rand.New(rand.NewPCG(5, 6))
	for name, want := range map[string][]byte{"object": random(1, 40<<10), "text": text(2, 40<<10), "volume": volume} {
		info, err := s.Resolve(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		var from io.ReaderAt
		if info.Kind == capsule.Volume {
			v := openVolume(t, s, info.ID, "")
			defer v.Close()
			from = v
		} else {
			o, err := s.Open(t.Context(), info.ID)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			from = o
		}
		wantRanges(t, r, from, want[:min(len(want), 100<<10)], 60)
	}
	wantClean(t, s)
}

// wantRanges reads random ranges, most of them small.
func wantRanges(t *testing.T, r *rand.Rand, from io.ReaderAt, want []byte, times int) {
	t.Helper()
	for range times {
		off := r.IntN(len(want))
		n := 1 + r.IntN(len(want)-off)
		if r.IntN(4) > 0 {
			n = min(n, 1+r.IntN(9<<10))
		}
		p := make([]byte, n)
		if got, err := from.ReadAt(p, int64(off)); got != n || err != nil && err != io.EOF {
			t.Fatalf("%d bytes from %d on: %d, %v", n, off, got, err)
		}
		if i := firstDifference(p, want[off:off+n]); i >= 0 {
			t.Fatalf("byte %d of %d from %d on is wrong", i, n, off)
		}
	}
}

// A store of format 1 opens, says from then on that it has format 2, and has
// records of both: all of it reads, moves, is recompressed and gets new keys.
func TestOldFormat(t *testing.T) {
	dir := t.TempDir()
	oldStore(t, dir)
	open := func() *Store {
		s, err := Open(t.Context(), Options{Dir: dir, Keys: testKey, Logger: quietLog(), LogBytes: 256 << 10})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	defer func() { s.Close() }()
	if b, err := os.ReadFile(filepath.Join(dir, FormatName)); err != nil || !strings.HasPrefix(string(b), "space-store format=2 ") {
		t.Fatalf("%q, %v", b, err)
	}
	wantOld(t, s)
	if n := countFramed(t, s); n != 0 {
		t.Fatalf("%d of the old segments have frames", n)
	}
	// New ones beside the old ones, and old ones found again.
	more := random(9, 100<<10)
	info := put(t, s, "more", append(bytes.Clone(random(1, 40<<10)), more...))
	if n := countFramed(t, s); n == 0 {
		t.Fatal("no new segment has frames")
	}
	s.Close()
	s = open()
	wantOld(t, s)
	wantContent(t, s, info.ID, append(bytes.Clone(random(1, 40<<10)), more...))
	if err := s.RotateKey(nil); err != nil {
		t.Fatal(err)
	}
	before := countFramed(t, s)
	if rep, err := s.GC(t.Context(), GCOptions{Recompress: true}, nil); err != nil || rep.Resealed == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if after := countFramed(t, s); after <= before {
		t.Errorf("%d segments have frames, %d before the rest was sealed anew", after, before)
	}
	wantOld(t, s)
	wantContent(t, s, info.ID, append(bytes.Clone(random(1, 40<<10)), more...))
	s.Close()
	s = open()
	wantOld(t, s)
}

// countFramed returns how many segments lie in frames.
func countFramed(t *testing.T, s *Store) (n int) {
	t.Helper()
	if err := s.kv.scan([]byte{keySegment}, []byte{keySegment + 1}, func(_, v []byte) (bool, error) {
		row, err := decodeSegment(v)
		if row.recordLen == int64(pipeline.FramedLen(int(row.plainLen))) {
			n++
		}
		return true, err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// The number in the format file is raised before anything is written, or the
// store does not open; a power cut at any step leaves one or the other.
func TestRaiseFormat(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	a := put(t, s, "a", random(1, 100<<10))
	id := s.ring.StoreID()
	s.Close()
	old := encodeFormat(1, id)
	if err := vfs.WriteFileAtomic(disk, "/space/"+FormatName, old); err != nil {
		t.Fatal(err)
	}
	faults := vfstest.NewFaults(disk)
	var after []*vfstest.PowerCut
	faults.Set(func(op vfstest.Op) error {
		if op.Mutates() && strings.Contains(op.Path, FormatName+".tmp") {
			after = append(after, disk.Clone(uint64(len(after))))
		}
		return nil
	})
	if s, err = openOn(faults); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if len(after) < 3 {
		t.Fatalf("%d steps", len(after))
	}
	for i, disk := range append(after, disk) {
		b, err := vfs.ReadFile(disk, "/space/"+FormatName)
		if err != nil || !bytes.Equal(b, old) && !bytes.Equal(b, encodeFormat(formatVersion, id)) {
			t.Fatalf("step %d: %q, %v", i, b, err)
		}
		s, err := openOn(disk)
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		wantContent(t, s, a.ID, random(1, 100<<10))
		wantClean(t, s)
		s.Close()
	}
	if _, _, err := parseFormat(encodeFormat(formatVersion+1, id)); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a newer format: %v", err)
	}
	if _, _, err := parseFormat(encodeFormat(0, id)); err == nil {
		t.Error("format 0 was accepted")
	}
}

// Damage in one frame is found by whoever reads that frame, first or again, and
// by verify; the segment's other frames go on being read.
func TestDamageInOneFrame(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v := newVolume(t, s, "v", 2*BlockSize)
	want := random(1, 2*BlockSize)
	if _, err := v.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.checkpointAll(); err != nil {
		t.Fatal(err)
	}
	wantRanges(t, rand.New(rand.NewPCG(1, 1)), v, want, 50)
	row, _, err := s.version(v.line.view.Load(), blockPrefix(v.line.family.id, volumeFile, 1))
	if err != nil || len(row.block.pieces) != 1 {
		t.Fatalf("%+v, %v", row.block, err)
	}
	at, _, err := s.lookupSegment(row.block.pieces[0].id)
	if err != nil || at.recordLen != int64(pipeline.FramedLen(BlockSize)) {
		t.Fatalf("%+v, %v", at, err)
	}
	const bad = 5
	from, to := pipeline.Frames(BlockSize, bad*pipeline.FrameSize, pipeline.FrameSize)
	flipBit(t, disk, fmt.Sprintf("/space/segments/%06x/%016x.seg", at.log>>8, at.log), int(8*(at.off+int64(from+to)/2)))
	s.cache = newSegmentCache(1)
	p := make([]byte, pipeline.FrameSize)
	for round := range 3 { // read for the first time, and again, when it is to be kept
		for i := range BlockSize / pipeline.FrameSize {
			off := BlockSize + i*pipeline.FrameSize
			n, err := v.ReadAt(p, int64(off))
			var damage *capsule.DamageError
			switch {
			case i != bad && (err != nil || !bytes.Equal(p, want[off:off+len(p)])):
				t.Fatalf("round %d: frame %d, which is intact: %v", round, i, err)
			case i == bad && (n != 0 || !errors.As(err, &damage) || damage.Off != BlockSize || damage.Log != at.log || damage.LogOff != at.off):
				t.Fatalf("round %d: the damaged frame: %d bytes, %v", round, n, err)
			}
		}
	}
	rep, err := s.Verify(t.Context(), VerifyOptions{}, nil)
	if err != nil || len(rep.Damage) != 1 || rep.Damage[0].Off != BlockSize {
		t.Fatalf("verify: %+v, %v", rep, err)
	}
}
