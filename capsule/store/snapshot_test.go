package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/spacestore/space/capsule"
)

// An object's snapshots and clones share its content, whatever becomes of it,
// and give the space back with the last of them.
func TestObjectSnapshots(t *testing.T) {
	ctx := t.Context()
	s := newStore(t)
	first, second := random(1, 900<<10), text(2, 50<<10)
	info := put(t, s, "a", first)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Snapshot(ctx, info.ID, "one")
	must(err)
	_, err = s.Snapshot(ctx, info.ID, "one")
	wantKind(t, err, capsule.Exists)
	put(t, s, "a", second)
	clone, err := s.Clone(ctx, info.ID, "one", "b")
	must(err)
	wantContent(t, s, clone.ID, first)
	wantContent(t, s, info.ID, second)
	wantClean(t, s)
	wantKind(t, s.Remove(ctx, info.ID), capsule.Conflict) // it has a snapshot
	_, err = s.Rollback(ctx, info.ID, "one")
	must(err)
	wantContent(t, s, info.ID, first)
	list, err := s.Snapshots(ctx, info.ID)
	must(err)
	if len(list) != 1 || list[0].Name != "one" || list[0].Size != int64(len(first)) {
		t.Fatalf("snapshots %+v", list)
	}
	must(s.DeleteSnapshot(ctx, info.ID, "one"))
	wantKind(t, s.DeleteSnapshot(ctx, info.ID, "one"), capsule.NotFound)
	must(s.Remove(ctx, info.ID))
	wantContent(t, s, clone.ID, first)
	wantClean(t, s)
	must(s.Remove(ctx, clone.ID))
	u, err := s.Usage(ctx)
	must(err)
	if u.StoredBytes != 0 || u.LogicalBytes != 0 {
		t.Fatalf("left over: %+v", u)
	}
	wantClean(t, s)
}

// A chain of many snapshots, each with a change, shows each state, is deleted in
// any order while writes go on, and leaves the volume as it is and nothing else.
func TestSnapshotChain(t *testing.T) {
	ctx := t.Context()
	s := newStore(t)
	v := newVolume(t, s, "v", 1<<20)
	id := v.Info().ID
	depth := 1000
	if testing.Short() {
		depth = 100
	}
	byteOf := func(i int) byte { return byte(i%250 + 1) }
	for i := range depth {
		if _, err := v.WriteAt(bytes.Repeat([]byte{byteOf(i)}, 512), int64(i%16)<<16); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Snapshot(ctx, id, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	look := func(i int) {
		t.Helper()
		sv := openVolume(t, s, id, fmt.Sprint(i))
		defer sv.Close()
		for slot := range 16 {
			last := i - (i%16-slot+16)%16 // the last change of this slot
			want := byte(0)
			if last >= 0 {
				want = byteOf(last)
			}
			var b [1]byte
			if _, err := sv.ReadAt(b[:], int64(slot)<<16+100); err != nil || b[0] != want {
				t.Fatalf("snapshot %d, slot %d shows %d, %v; want %d", i, slot, b[0], err, want)
			}
		}
	}
	for _, i := range []int{0, 1, depth / 2, depth - 1} {
		look(i)
	}
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { // somewhere else, so that the slots stay as they are
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := v.WriteAt([]byte{byte(i)}, 1000+int64(i%16)<<16); err != nil {
				t.Error(err)
				return
			}
		}
	})
	order := rand.Perm(depth)
	for _, i := range order[:depth*9/10] {
		if err := s.DeleteSnapshot(ctx, id, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	writer.Wait()
	for _, i := range order[depth*9/10:] {
		look(i)
	}
	if _, err := s.Usage(ctx); err != nil { // waits for the pruner
		t.Fatal(err)
	}
	if n := len(v.line.family.nodes); n > depth/10+3 {
		t.Errorf("%d nodes are left of %d snapshots", n, depth/10)
	}
	wantClean(t, s)
}

// A snapshot that is deleted while somebody reads it stays for him.
func TestSnapshotDeletedWhileOpen(t *testing.T) {
	ctx := t.Context()
	s := newStore(t)
	v := newVolume(t, s, "v", 1<<20)
	want := random(1, 1<<20)
	if _, err := v.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Snapshot(ctx, v.Info().ID, "s"); err != nil {
		t.Fatal(err)
	}
	sv := openVolume(t, s, v.Info().ID, "s")
	if err := v.Trim(ctx, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteSnapshot(ctx, v.Info().ID, "s"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(ctx, GCOptions{MinDead: 0.01}, nil); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, sv, want)
	if _, err := sv.WriteAt([]byte{1}, 0); capsule.KindOf(err) != capsule.ReadOnly {
		t.Errorf("a write to a snapshot: %v", err)
	}
	sv.Close()
	u, err := s.Usage(context.Background())
	if err != nil || u.StoredBytes != 0 {
		t.Errorf("after its last reader: %+v, %v", u, err)
	}
	wantClean(t, s)
}

func TestVolumeRefusals(t *testing.T) {
	ctx := t.Context()
	s := newStore(t)
	for _, req := range []CreateRequest{
		{Kind: capsule.Object, Size: 512},
		{Kind: capsule.Volume},
		{Kind: capsule.Volume, Size: -512},
		{Kind: capsule.Volume, Size: 1000},
		{Kind: capsule.Volume, Size: 512, BlockSize: 512, Name: "../x"},
		{Kind: capsule.Volume, Size: 4096, BlockSize: 1024},
		{Kind: capsule.Volume, Size: MaxVolume + 4096},
	} {
		_, err := s.Create(ctx, req, nil)
		wantKind(t, err, capsule.Invalid)
	}
	v := newVolume(t, s, "v", 4096)
	_, err := s.Create(ctx, CreateRequest{Kind: capsule.Volume, Name: "v", Size: 4096}, nil)
	wantKind(t, err, capsule.Exists)
	_, err = s.ResizeVolume(ctx, v.Info().ID, 2048)
	wantKind(t, err, capsule.Invalid)
	_, err = s.Open(ctx, v.Info().ID)
	wantKind(t, err, capsule.Unsupported)
	for _, off := range []int64{-1, 4096, 1 << 62} {
		_, err = v.WriteAt([]byte{1}, off)
		wantKind(t, err, capsule.OutOfRange)
		wantKind(t, v.Trim(ctx, off, 1), capsule.OutOfRange)
	}
	_, err = s.Rollback(ctx, v.Info().ID, "none")
	wantKind(t, err, capsule.Conflict) // it is open
	_, err = s.Clone(ctx, v.Info().ID, "none", "c")
	wantKind(t, err, capsule.NotFound)
	_, err = s.Snapshot(ctx, v.Info().ID, "a/b")
	wantKind(t, err, capsule.Invalid)
	wantClean(t, s)
}
