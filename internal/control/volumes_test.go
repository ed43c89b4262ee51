package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
)

// ranges is content with holes, as a DataReader and as an io.WriterAt.
type ranges struct {
	at   []int64
	data [][]byte
	size int64
	fail error
}

func (r *ranges) ReadData(p []byte) (int, int64, error) {
	if len(r.at) == 0 {
		if r.fail != nil {
			return 0, 0, r.fail
		}
		return 0, r.size, io.EOF
	}
	off, n := r.at[0], copy(p, r.data[0])
	r.at[0], r.data[0] = off+int64(n), r.data[0][n:]
	if len(r.data[0]) == 0 {
		r.at, r.data = r.at[1:], r.data[1:]
	}
	return n, off, nil
}

// WriteAt joins what is adjacent.
func (r *ranges) WriteAt(p []byte, off int64) (int, error) {
	if r.fail != nil {
		return 0, r.fail
	}
	if i := len(r.at) - 1; i >= 0 && r.at[i]+int64(len(r.data[i])) == off {
		r.data[i] = append(r.data[i], p...)
	} else {
		r.at, r.data = append(r.at, off), append(r.data, bytes.Clone(p))
	}
	return len(p), nil
}

func sparse() *ranges {
	r := &ranges{size: 1 << 41}
	for i, n := range sizes[1:] {
		r.at, r.data = append(r.at, int64(i)<<30+int64(i)), append(r.data, content(n))
	}
	return r
}

func (r *ranges) equal(o *ranges) bool {
	return slices.Equal(r.at, o.at) && slices.EqualFunc(r.data, o.data, bytes.Equal)
}

func TestImportCarriesRanges(t *testing.T) {
	got := &ranges{}
	var req store.CreateRequest
	c := serve(t, &fake{importVolume: func(r store.CreateRequest, from store.DataReader) (capsule.Info, error) {
		req = r
		for buf := make([]byte, 300_000); ; {
			n, off, err := from.ReadData(buf)
			if err == io.EOF {
				return capsule.Info{Name: r.Name, Size: off}, nil
			} else if err != nil {
				return capsule.Info{}, err
			}
			got.WriteAt(buf[:n], off)
		}
	}})
	pol := capsule.DefaultPolicy()
	pol.Compression = "none"
	in := store.CreateRequest{Name: "v", Size: 1 << 42, BlockSize: 512, Policy: pol}
	info, err := c.ImportVolume(t.Context(), in, sparse())
	if err != nil || info.Name != "v" || info.Size != 1<<41 {
		t.Fatalf("%+v, %v", info, err)
	}
	if !got.equal(sparse()) {
		t.Error("other ranges arrived")
	}
	if req.Name != in.Name || req.Size != in.Size || req.BlockSize != in.BlockSize || !req.Policy.Equal(pol) || req.Kind != capsule.Volume {
		t.Errorf("request %+v became %+v", in, req)
	}
}

// An import of which the client did not say that it is complete must look
// broken to the API behind.
func TestImportThatBreaksOffIsNoVolume(t *testing.T) {
	result := make(chan error, 1)
	c := serve(t, &fake{importVolume: func(_ store.CreateRequest, from store.DataReader) (capsule.Info, error) {
		for buf := make([]byte, 1<<20); ; {
			if _, _, err := from.ReadData(buf); err != nil {
				result <- err
				return capsule.Info{}, err
			}
		}
	}})
	r := sparse()
	r.fail = errors.New("source broke")
	if _, err := c.ImportVolume(t.Context(), store.CreateRequest{}, r); !errors.Is(err, r.fail) {
		t.Errorf("import: %v", err)
	}
	if err := <-result; err == io.EOF {
		t.Error("the API saw the end of the content")
	}
}

func TestImportStopsWhenTheNodeRefuses(t *testing.T) {
	refuse := capsule.Errorf(capsule.NoSpace, "full")
	c := serve(t, &fake{importVolume: func(store.CreateRequest, store.DataReader) (capsule.Info, error) { return capsule.Info{}, refuse }})
	endless := &ranges{}
	for i := range 100 {
		endless.at, endless.data = append(endless.at, int64(i)<<20), append(endless.data, content(chunkSize))
	}
	if _, err := c.ImportVolume(t.Context(), store.CreateRequest{}, endless); capsule.KindOf(err) != capsule.NoSpace || err.Error() != "full" {
		t.Errorf("import: %v", err)
	}
}

func TestExportCarriesRanges(t *testing.T) {
	var req ExportRequest
	damage := &capsule.DamageError{Off: 1 << 40, Len: 1}
	for _, end := range []error{nil, damage} {
		c := serve(t, &fake{exportVolume: func(r ExportRequest, w io.WriterAt) error {
			req = r
			for from, buf := sparse(), make([]byte, 700_000); ; {
				n, off, err := from.ReadData(buf)
				if err == io.EOF {
					return end
				}
				if _, err := w.WriteAt(buf[:n], off); err != nil {
					return err
				}
			}
		}})
		got := &ranges{}
		err := c.ExportVolume(t.Context(), ExportRequest{Ref: "v", Snapshot: "s"}, func(info capsule.Info) (io.WriterAt, error) {
			if info.Name != "v" || info.Size != 1<<40 {
				t.Errorf("begin(%+v)", info)
			}
			return got, nil
		})
		if (err == nil) != (end == nil) || end != nil && capsule.KindOf(err) != capsule.Damaged {
			t.Errorf("export: %v, want %v", err, end)
		}
		if !got.equal(sparse()) {
			t.Error("other ranges arrived")
		}
		if req != (ExportRequest{Ref: "v", Snapshot: "s"}) {
			t.Errorf("request became %+v", req)
		}
	}
	c := serve(t, &fake{exportVolume: func(_ ExportRequest, w io.WriterAt) error {
		_, err := w.WriteAt(content(chunkSize), 0)
		return err
	}})
	full := &ranges{fail: errors.New("disk full")}
	if err := c.ExportVolume(t.Context(), ExportRequest{Ref: "v"}, func(capsule.Info) (io.WriterAt, error) { return full, nil }); !errors.Is(err, full.fail) {
		t.Errorf("export to a full disk: %v", err)
	}
}

func TestSnapshotsCross(t *testing.T) {
	f := &fake{}
	for i := range 2*reportBatch + 5 {
		f.snapshots = append(f.snapshots, capsule.Snapshot{Name: fmt.Sprint("s", i), Created: time.Unix(int64(i), 1).UTC(), Size: int64(i)})
	}
	c, ctx := serve(t, f), t.Context()
	list, err := c.Snapshots(ctx, "v")
	if err != nil || !slices.Equal(list, f.snapshots) {
		t.Errorf("%d snapshots became %d, %v", len(f.snapshots), len(list), err)
	}
	for want, call := range map[string]func(context.Context) error{
		"create v 5 512 true": func(ctx context.Context) error {
			info, err := c.CreateVolume(ctx, store.CreateRequest{Name: "v", Size: 5, BlockSize: 512, Policy: capsule.DefaultPolicy()})
			return check(err, info.Name == "v")
		},
		"resize v 7": func(ctx context.Context) error {
			info, err := c.ResizeVolume(ctx, "v", 7)
			return check(err, info.Size == 7)
		},
		"delete v s": func(ctx context.Context) error { return c.DeleteSnapshot(ctx, "v", "s") },
		"rollback v s": func(ctx context.Context) error {
			info, err := c.Rollback(ctx, "v", "s")
			return check(err, info.Name == "v")
		},
		"clone v s c": func(ctx context.Context) error {
			info, err := c.Clone(ctx, "v", "s", "c")
			return check(err, info.Name == "c")
		},
		"snapshot v s": func(ctx context.Context) error {
			snap, err := c.Snapshot(ctx, "v", "s")
			return check(err, snap == capsule.Snapshot{Name: "s", Created: time.Unix(1, 2).UTC(), Size: 3})
		},
		"policy v": func(ctx context.Context) error {
			p := capsule.SnapshotPolicy{Every: capsule.Duration(time.Hour), Keep: 24, Last: time.Unix(3, 4).UTC()}
			set, err := c.SetSnapshotPolicy(ctx, "v", p)
			if err := check(err, set == p); err != nil {
				return err
			}
			got, err := c.SnapshotPolicy(ctx, "v")
			return check(err, got == p)
		},
	} {
		if err := call(ctx); err != nil || f.called != want {
			t.Errorf("%s: %v, the node was asked to %s", want, err, f.called)
		}
	}
}

func check(err error, ok bool) error {
	if err == nil && !ok {
		err = errors.New("another answer")
	}
	return err
}

func TestDiffCrosses(t *testing.T) {
	var want []store.Range
	for i := range 3*reportBatch + 1 {
		want = append(want, store.Range{Off: int64(i) * 10, Len: 5})
	}
	var req DiffRequest
	var end error
	c := serve(t, &fake{diff: func(r DiffRequest, fn func(store.Range) error) error {
		req = r
		for _, x := range want {
			if err := fn(x); err != nil {
				return err
			}
		}
		return end
	}})
	var got []store.Range
	in := DiffRequest{Ref: "v", From: "a", To: "b"}
	collect := func(r store.Range) error { got = append(got, r); return nil }
	if err := c.Diff(t.Context(), in, collect); err != nil || !slices.Equal(got, want) || req != in {
		t.Errorf("%d ranges became %d, %+v became %+v, %v", len(want), len(got), in, req, err)
	}
	if end = capsule.Errorf(capsule.NotFound, "gone"); capsule.KindOf(c.Diff(t.Context(), in, collect)) != capsule.NotFound {
		t.Error("the error of a diff got lost")
	}
	end = errors.New("enough")
	if err := c.Diff(t.Context(), in, func(store.Range) error { return end }); !errors.Is(err, end) {
		t.Errorf("a diff that its reader stops: %v", err)
	}
}

func TestTreeDiffCrosses(t *testing.T) {
	want := TreeChange{Change: "renamed", Path: "/a\xff", From: "/b\n", Mode: 0o100644, Size: 1 << 40, Inode: 7}
	c := serve(t, &fake{diffTree: func(_ DiffRequest, fn func(TreeChange) error) error {
		for range reportBatch + 1 {
			if err := fn(want); err != nil {
				return err
			}
		}
		return capsule.Errorf(capsule.NotFound, "gone")
	}})
	n := 0
	err := c.DiffTree(t.Context(), DiffRequest{Ref: "v", From: "a"}, func(got TreeChange) error {
		if n++; got != want {
			t.Fatalf("%+v became %+v", want, got)
		}
		return nil
	})
	if capsule.KindOf(err) != capsule.NotFound || n < reportBatch {
		t.Errorf("%d changes, %v", n, err)
	}
	if err := c.DiffTree(t.Context(), DiffRequest{Ref: "v", From: "a/b"}, nil); capsule.KindOf(err) != capsule.Invalid {
		t.Errorf("a snapshot's name with a slash: %v", err)
	}
}
