package directory

import (
	"bytes"
	"testing"
)

// FuzzMerge: whatever a peer sends, the directory keeps to its bounds and
// believes nothing that is not signed.
func FuzzMerge(f *testing.F) {
	fab := newFabric(f)
	me, other := fab.directory("x", false), fab.directory("x", true, build)
	good, err := other.Missing(me.Digest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(append([]byte{version, 0, 0, 0, 4}, "abcd"...))
	f.Add([]byte{version, 255, 255, 255, 255})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := New(Options{Identity: me.id, Clock: fab.clock, Area: "x"})
		if err := d.Set(Record{}); err != nil {
			t.Fatal(err)
		}
		news, err := d.Merge(b)
		for _, r := range d.All() {
			if r.Node != me.id.ID() && r.Node != other.id.ID() {
				t.Fatalf("%+v is believed", r)
			}
		}
		if news && err == nil && len(d.members.m)+len(d.summaries.m) == 1 {
			t.Fatal("news of nothing")
		}
	})
}

// FuzzDigest: whatever a peer says that it has, the answer is a message.
func FuzzDigest(f *testing.F) {
	fab := newFabric(f)
	d := fab.directory("x", true, build)
	f.Add(d.Digest())
	f.Add(fab.directory("y", true).Digest())
	f.Add([]byte{version, 0, 1, 'x', 1, 2, 3})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		answer, err := d.Missing(b)
		if err != nil {
			return
		}
		x, err := decodeDigest(b)
		if err != nil {
			t.Fatal("a digest that is none was answered")
		}
		again, err := decodeDigest(x.encode())
		if err != nil || len(again.has) != len(x.has) || again.area != x.area {
			t.Fatalf("it is not what it was: %v", err)
		}
		if answer != nil {
			if _, err := cutBatch(answer); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzItem: what can be read is written as it was.
func FuzzItem(f *testing.F) {
	fab := newFabric(f)
	d := fab.directory("x", true, build, Service{"p", "k", ""})
	for _, e := range []*entry{d.members.m[d.id.ID()], d.summaries.m[d.id.ID()]} {
		f.Add(e.encode())
		f.Add(append(e.encode(), "more"...))
		f.Add(e.encode()[:40])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		it, err := decodeItem(b)
		if err != nil {
			return
		}
		again := it.encode()
		if next, err := decodeItem(again); err != nil || !bytes.Equal(next.encode(), again) {
			t.Fatalf("%q became %q, %v", b, again, err)
		}
	})
}
