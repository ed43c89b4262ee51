package store

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// Counters agree with the exact usage, count what happened, and say when the
// store has failed.
func TestCounters(t *testing.T) {
	ctx := t.Context()
	power := vfstest.NewPowerCut()
	disk := vfstest.NewFaults(power)
	s, err := openOn(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	counters := func() Counters {
		t.Helper()
		c, err := s.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	info := put(t, s, "o", random(1, 300<<10))
	put(t, s, "gone", random(2, 300<<10))
	r, err := s.Open(ctx, info.ID)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < 300<<10; off += 1 << 10 { // parts of segments, which are kept
		if _, err := r.ReadAt(make([]byte, 1<<10), off); err != nil {
			t.Fatal(err)
		}
	}
	r.Close()
	v := newVolume(t, s, "v", 1<<20)
	if _, err := v.WriteAt(random(3, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if c := counters(); c.ChangeBytes < 4096 || c.JournalRecords == 0 || c.CacheBytes < 200<<10 || c.Failed != nil {
		t.Errorf("%+v", c)
	}
	v.Close()
	gone, err := s.Resolve(ctx, "gone")
	if err == nil {
		err = s.Remove(ctx, gone.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	rep, err := s.GC(ctx, GCOptions{MinDead: 0.01}, nil)
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := counters()
	if c.Capsules != u.Capsules || c.Segments != u.Segments || c.LogicalBytes != u.LogicalBytes || c.StoredBytes != u.StoredBytes ||
		c.UniqueBytes != u.UniqueBytes || c.PendingBytes != 0 {
		t.Errorf("counters %+v, usage %+v", c, u)
	}
	if c.GCRuns != 1 || c.GC.FreedBytes != rep.FreedBytes || rep.FreedBytes == 0 {
		t.Errorf("one collection freed %d bytes, counters say %+v", rep.FreedBytes, c)
	}

	s.Close()
	for _, f := range listFiles(t, power, "/space/segments") {
		st, err := power.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(2000); at < st.Size(); at += 5000 {
			flipBit(t, power, f, int(8*at))
		}
	}
	if s, err = openOn(disk); err != nil {
		t.Fatal(err)
	}
	if c := counters(); c.Damaged != 0 || c.GCRuns != 0 {
		t.Errorf("a store just opened: %+v", c)
	}
	_, err = get(s, info.ID)
	wantKind(t, err, capsule.Damaged)
	if c := counters(); c.Damaged == 0 {
		t.Error("a damaged read was not counted")
	}
	disk.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Sync {
			return errors.New("bad disk")
		}
		return nil
	})
	if _, err := s.Put(ctx, PutRequest{Name: "x", Size: -1}, bytes.NewReader(random(4, 1<<20))); err == nil {
		t.Fatal("a put succeeded though no sync does")
	}
	if c := counters(); c.Failed == nil || !strings.Contains(c.Failed.Error(), "restart") {
		t.Errorf("a store that failed says %v", c.Failed)
	}
}
