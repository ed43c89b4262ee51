package store

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// pieces is a DataReader of ranges of content.
type pieces struct {
	data []byte
	at   []Range
	fail error // instead of the end
}

func (p *pieces) ReadData(buf []byte) (int, int64, error) {
	if len(p.at) == 0 {
		if p.fail != nil {
			return 0, 0, p.fail
		}
		return 0, int64(len(p.data)), io.EOF
	}
	r := p.at[0]
	n := copy(buf, p.data[r.Off:r.Off+r.Len])
	if p.at[0] = (Range{r.Off + int64(n), r.Len - int64(n)}); int64(n) == r.Len {
		p.at = p.at[1:]
	}
	return n, r.Off, nil
}

func whole(data []byte) *pieces { return &pieces{data: data, at: []Range{{0, int64(len(data))}}} }

// sparse is content with holes of many sizes.
func sparse() []byte {
	b := make([]byte, 3<<20+100)
	copy(b[4096:], random(1, 8192))
	copy(b[64<<10:], random(2, 1<<20+5))
	copy(b[2<<20-3:], "across a block")
	copy(b[3<<20:], random(3, 100))
	return b
}

// writerAt is a volume as Export gives it.
type writerAt struct {
	data []byte
	end  int64
	t    *testing.T
}

func (w *writerAt) WriteAt(p []byte, off int64) (int, error) {
	if off < w.end {
		w.t.Errorf("export goes back from %d to %d", w.end, off)
	}
	w.end = off + int64(len(p))
	return copy(w.data[off:], p), nil
}

func TestImportAndExport(t *testing.T) {
	s, ctx, data := newStore(t), t.Context(), sparse()
	info, err := s.Import(ctx, CreateRequest{Name: "v"}, whole(data))
	if err != nil {
		t.Fatal(err)
	}
	want := append(data, make([]byte, 4096-100)...)
	if info.Kind != capsule.Volume || info.Size != int64(len(want)) {
		t.Fatalf("imported %+v, want a volume of %d bytes", info, len(want))
	}
	v := openVolume(t, s, info.ID, "")
	defer v.Close()
	wantBytes(t, v, want)
	w := &writerAt{data: make([]byte, len(want)), t: t}
	if err := v.Export(ctx, w); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(w.data, want) {
		t.Error("the export is not what was imported")
	}
	st, err := s.Stat(ctx, info.ID)
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(8192 + 1<<20 + 4*4096 + 100); st.AllocatedBytes > limit || st.AllocatedBytes+st.HoleBytes != st.Size {
		t.Errorf("%d bytes are allocated, %d hole; at most %d can be data", st.AllocatedBytes, st.HoleBytes, limit)
	}
	wantClean(t, s)
}

func TestImportTakesRanges(t *testing.T) {
	s, data := newStore(t), sparse()
	r := &pieces{data: data, at: []Range{{4096, 8192}, {64 << 10, 1<<20 + 5}, {2<<20 - 3, 14}, {3 << 20, 100}}}
	info, err := s.Import(t.Context(), CreateRequest{Size: 4 << 20, BlockSize: 512}, r)
	if err != nil {
		t.Fatal(err)
	}
	v := openVolume(t, s, info.ID, "")
	defer v.Close()
	wantBytes(t, v, append(data, make([]byte, 4<<20-len(data))...))
}

func TestImportThatFailsLeavesNothing(t *testing.T) {
	s, ctx, data := newStore(t), t.Context(), sparse()
	put(t, s, "taken", nil)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		req  CreateRequest
		r    DataReader
		want capsule.ErrorKind
	}{
		"source fails": {ctx, CreateRequest{Name: "v"}, &pieces{data: data, at: []Range{{0, 2 << 20}}, fail: capsule.Errorf(capsule.IO, "broken")}, capsule.IO},
		"too long":     {ctx, CreateRequest{Name: "v", Size: 2 << 20}, whole(data), capsule.Invalid},
		"goes back":    {ctx, CreateRequest{Name: "v"}, &pieces{data: data, at: []Range{{1 << 20, 5}, {0, 5}}}, capsule.Invalid},
		"empty":        {ctx, CreateRequest{Name: "v"}, whole(nil), capsule.Invalid},
		"name taken":   {ctx, CreateRequest{Name: "taken"}, whole(data), capsule.Exists},
		"odd size":     {ctx, CreateRequest{Name: "v", Size: 1000}, whole(nil), capsule.Invalid},
		"canceled":     {canceled, CreateRequest{Name: "v"}, whole(data), capsule.Canceled},
	} {
		if _, err := s.Import(c.ctx, c.req, c.r); capsule.KindOf(err) != c.want {
			t.Errorf("%s: %v (%v), want %v", name, err, capsule.KindOf(err), c.want)
		}
	}
	s.pruner.settle()
	if u, err := s.Usage(ctx); err != nil || u.Capsules != 1 || u.LogicalBytes != 0 || u.StoredBytes != 0 {
		t.Errorf("left behind: %+v, %v", u, err)
	}
	wantClean(t, s)
}

func TestNamesOfNewCapsulesMustBeFree(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	v := newVolume(t, s, "v", 1<<20)
	v.Close()
	if _, err := s.Snapshot(ctx, v.Info().ID, "a"); err != nil {
		t.Fatal(err)
	}
	for _, taken := range []string{"v", "v/below"} {
		_, err := s.Create(ctx, CreateRequest{Kind: capsule.Volume, Name: taken, Size: 1 << 20}, nil)
		wantKind(t, err, capsule.Exists)
		_, err = s.Clone(ctx, v.Info().ID, "a", taken)
		wantKind(t, err, capsule.Exists)
	}
	wantClean(t, s)
}

// After a power cut in an import there is no volume, and no trace of it.
func TestPowerCutInImport(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openSmall(disk, 256<<10)
	if err != nil {
		t.Fatal(err)
	}
	var cut *vfstest.PowerCut
	data := random(9, 3<<20)
	r := &cutReader{pieces: *whole(data), cut: func() {
		if err := s.syncJournal(); err != nil {
			t.Error(err)
		}
		cut = disk.Clone(1)
	}}
	if _, err := s.Import(t.Context(), CreateRequest{Name: "v"}, r); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = openSmall(cut, 256<<10); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.pruner.settle()
	if u, err := s.Usage(t.Context()); err != nil || u.Capsules != 0 || u.LogicalBytes != 0 || u.Segments != 0 {
		t.Errorf("left behind: %+v, %v", u, err)
	}
	wantClean(t, s)
}

type cutReader struct {
	pieces
	cut func()
}

func (r *cutReader) ReadData(p []byte) (int, int64, error) {
	if len(r.at) == 0 {
		r.cut()
	}
	return r.pieces.ReadData(p)
}

// changed is what Diff finds, as one flag for each 512 bytes.
func changed(t *testing.T, s *Store, id capsule.ID, from, to string, size int) []bool {
	t.Helper()
	out := make([]bool, size/512)
	end := int64(-1)
	err := s.Diff(t.Context(), id, from, to, func(r Range) error {
		if r.Off <= end || r.Len <= 0 {
			t.Errorf("range %+v after the end of one at %d", r, end)
		}
		end = r.Off + r.Len
		for i := r.Off / 512; i*512 < end; i++ {
			out[i] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDiffOfVolume(t *testing.T) {
	const size = 160 << 20 // more than one batch of blocks
	s, ctx := newStore(t), t.Context()
	v := newVolume(t, s, "v", size)
	defer v.Close()
	id := v.Info().ID
	writeAt := func(n int, off int64, seed uint64) {
		t.Helper()
		if _, err := v.WriteAt(random(seed, n), off); err != nil {
			t.Fatal(err)
		}
	}
	snap := func(name string) {
		t.Helper()
		if _, err := s.Snapshot(ctx, id, name); err != nil {
			t.Fatal(err)
		}
	}
	writeAt(300<<10, 0, 1)
	for off := int64(8 << 20); off < 152<<20; off += 64 << 10 {
		writeAt(512, off, 2)
	}
	snap("a")
	if c := changed(t, s, id, "a", "", size); anyOf(c) {
		t.Error("an untouched volume has changed")
	}
	writeAt(512, 100<<10, 3)         // over data
	writeAt(512, 159<<20, 4)         // into a hole
	writeAt(64<<10, 8<<20-32<<10, 5) // across blocks
	if err := v.Trim(ctx, 100<<20, 64<<10); err != nil {
		t.Fatal(err)
	}
	want := map[int64]bool{100 << 10: true, 159 << 20: true, 8<<20 - 512: true, 100 << 20: true, 0: false, 64<<10 - 512: false, 99 << 20: false, 152 << 20: false}
	check := func(when, from, to string) {
		t.Helper()
		got := changed(t, s, id, from, to, size)
		for off, w := range want {
			if got[off/512] != w {
				t.Errorf("%s: byte %d: changed %v, want %v", when, off, got[off/512], w)
			}
		}
	}
	check("in memory", "a", "")
	if err := s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	check("sealed", "a", "")
	check("the other way", "", "a")
	snap("b")
	writeAt(512, 0, 6)
	check("between snapshots", "a", "b")
	if err := s.DeleteSnapshot(ctx, id, "a"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.Diff(ctx, id, "a", "b", nil), capsule.NotFound)
}

func anyOf(list []bool) bool {
	for _, b := range list {
		if b {
			return true
		}
	}
	return false
}

func TestDiffOfObject(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	id := put(t, s, "o", text(1, 1<<20)).ID
	if _, err := s.Snapshot(ctx, id, "a"); err != nil {
		t.Fatal(err)
	}
	if anyOf(changed(t, s, id, "a", "", 2<<20)) {
		t.Error("an untouched object has changed")
	}
	put(t, s, "o", text(1, 1<<20))
	if anyOf(changed(t, s, id, "a", "", 2<<20)) {
		t.Error("the same content again is a change")
	}
	put(t, s, "o", text(2, 2<<20))
	if c := changed(t, s, id, "a", "", 2<<20); !c[0] || !c[len(c)-1] {
		t.Error("other content is no change")
	}
}

func TestStatOfVolume(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	v := newVolume(t, s, "v", 1<<20)
	defer v.Close()
	id := v.Info().ID
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	stat := func(id capsule.ID) capsule.Stat {
		t.Helper()
		st, err := s.Stat(ctx, id)
		must(err)
		return st
	}
	write := func(n int, off int64, seed uint64) {
		t.Helper()
		_, err := v.WriteAt(random(seed, n), off)
		must(err)
	}
	write(64<<10, 0, 1)
	write(64<<10, 128<<10, 1) // the same content: one segment
	write(4096, 512<<10, 2)
	st := stat(id)
	if st.AllocatedBytes != 132<<10 || st.HoleBytes != 1<<20-132<<10 || st.Segments != 3 || st.UniqueBytes != 68<<10 ||
		st.StoredBytes < 68<<10 || st.OwnBytes != st.StoredBytes || st.Ratio < 1.5 {
		t.Errorf("stat of what is in memory: %+v", st)
	}
	_, err := s.Snapshot(ctx, id, "a")
	must(err)
	write(4096, 512<<10, 3)
	if st := stat(id); st.OwnBytes != st.StoredBytes {
		t.Errorf("what its snapshot has is not its own: %+v", st)
	}
	clone, err := s.Clone(ctx, id, "a", "c")
	must(err)
	if st := stat(id); st.OwnBytes < 4096 || st.OwnBytes > 5000 {
		t.Errorf("beside a clone, %d bytes are its own, want those of the last write", st.OwnBytes)
	}
	if st := stat(clone.ID); st.AllocatedBytes != 132<<10 || st.OwnBytes != 0 {
		t.Errorf("the clone: %+v", st)
	}
	object := put(t, s, "o", random(4, 1<<20))
	_, err = s.Snapshot(ctx, object.ID, "a")
	must(err)
	if st := stat(object.ID); st.OwnBytes != st.StoredBytes || st.AllocatedBytes != 1<<20 {
		t.Errorf("an object with a snapshot: %+v", st)
	}
	_, err = s.Clone(ctx, object.ID, "a", "oc")
	must(err)
	if st := stat(object.ID); st.OwnBytes != 0 {
		t.Errorf("an object with a clone has %d bytes of its own", st.OwnBytes)
	}
}

func TestSnapshotPolicies(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	ctx := t.Context()
	hourly := capsule.SnapshotPolicy{Every: capsule.Duration(time.Hour), Keep: 24}
	v := newVolume(t, s, "v", 1<<20)
	v.Close()
	ids := []capsule.ID{put(t, s, "o", nil).ID, v.Info().ID}
	slices.SortFunc(ids, func(a, b capsule.ID) int { return bytes.Compare(a[:], b[:]) })
	for _, bad := range []capsule.SnapshotPolicy{{Every: 1, Keep: 1}, {Every: hourly.Every}, {Keep: 1}, {Every: hourly.Every, Keep: 1e6}, {Every: -hourly.Every, Keep: 1}} {
		wantKind(t, s.SetSnapshotPolicy(ctx, ids[0], bad), capsule.Invalid)
	}
	wantKind(t, s.SetSnapshotPolicy(ctx, capsule.NewID(time.Now()), hourly), capsule.NotFound)
	for _, id := range ids {
		if err := s.SetSnapshotPolicy(ctx, id, hourly); err != nil {
			t.Fatal(err)
		}
	}
	last := time.Unix(1e9, 5).UTC()
	if err := s.SnapshotWasDue(ctx, ids[1], last); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if s, err = openOn(disk); err != nil {
		t.Fatal(err)
	}
	hourly.Keep = 5
	if err := s.SetSnapshotPolicy(ctx, ids[1], hourly); err != nil {
		t.Fatal(err)
	}
	var after capsule.ID
	for i := range 3 {
		page, err := s.Retentions(ctx, after, 1)
		switch {
		case err != nil:
			t.Fatal(err)
		case i == 2 && len(page) > 0, i < 2 && len(page) != 1:
			t.Fatalf("page %d: %+v", i, page)
		case i == 2:
			continue
		}
		after = page[0].ID
		if page[0].ID != ids[i] {
			t.Errorf("page %d is of %s", i, page[0].ID)
		}
	}
	if p, err := s.SnapshotPolicy(ctx, ids[1]); err != nil || p.Every != hourly.Every || p.Keep != 5 || !p.Last.Equal(last) {
		t.Errorf("policy %+v, %v", p, err)
	}
	if err := s.SetSnapshotPolicy(ctx, ids[0], capsule.SnapshotPolicy{}); err != nil {
		t.Fatal(err)
	}
	if err := s.SnapshotWasDue(ctx, ids[0], last); err != nil { // too late
		t.Fatal(err)
	}
	if err := s.Remove(ctx, ids[1]); err != nil {
		t.Fatal(err)
	}
	if page, err := s.Retentions(ctx, capsule.ID{}, 10); err != nil || len(page) > 0 {
		t.Errorf("left over: %+v, %v", page, err)
	}
}
