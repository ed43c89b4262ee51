package node

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

func testStore(t *testing.T) *store.Store { return openTestStore(t, vfstest.NewPowerCut()) }

func openTestStore(t *testing.T, fsys vfs.FS) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Dir: "/space", FS: fsys, Logger: slog.New(slog.DiscardHandler),
		Keys: keyring.Source{MasterKey: strings.Repeat("5a", 32)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func putObject(t *testing.T, s *store.Store, name string, content []byte) capsule.Info {
	t.Helper()
	info, err := s.Put(t.Context(), store.PutRequest{Name: name, Size: int64(len(content))}, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func newVolume(t *testing.T, s *store.Store, name string, size int64) capsule.Info {
	t.Helper()
	info, err := s.Create(t.Context(), store.CreateRequest{Kind: capsule.Volume, Name: name, Size: size, BlockSize: 4096}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func mustOpenDisk(t *testing.T, s *store.Store, info capsule.Info, snapshot string) *disk {
	t.Helper()
	d, err := openDisk(t.Context(), s, info, snapshot, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// An object is a read-only disk of whole blocks, the last filled with zeros.
func TestObjectDisk(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	content := bytes.Repeat([]byte("0123456789"), 100)
	info := putObject(t, s, "o", content)
	d := mustOpenDisk(t, s, info, "")
	if d.Size() != 1024 || d.BlockSize() != 512 || !d.ReadOnly() {
		t.Errorf("size %d, block %d, read-only %v", d.Size(), d.BlockSize(), d.ReadOnly())
	}
	p := bytes.Repeat([]byte{0xff}, 1024)
	if n, err := d.ReadAt(p, 0); n != 1024 || err != nil || !bytes.Equal(p[:1000], content) || !bytes.Equal(p[1000:], make([]byte, 24)) {
		t.Errorf("read %d, %v", n, err)
	}
	q := make([]byte, 512)
	if n, err := d.ReadAt(q, 512); n != 512 || err != nil || !bytes.Equal(q, p[512:]) {
		t.Errorf("read %d of the last block, %v", n, err)
	}
	for _, off := range []int64{-512, 1024, 1 << 62} {
		if _, err := d.ReadAt(q, off); capsule.KindOf(err) != capsule.OutOfRange {
			t.Errorf("read at %d: %v", off, err)
		}
	}
	if _, err := d.WriteAt(q, 0); capsule.KindOf(err) != capsule.ReadOnly {
		t.Errorf("write: %v", err)
	}
	if err := d.Trim(ctx, 0, 512); capsule.KindOf(err) != capsule.ReadOnly {
		t.Errorf("trim: %v", err)
	}
	if start, end, err := d.NextData(ctx, 512); start != 512 || end != 1000 || err != nil {
		t.Errorf("data %d to %d, %v", start, end, err)
	}
	if _, _, err := d.NextData(ctx, 1000); err != io.EOF {
		t.Errorf("data behind the end: %v", err)
	}
	// Another version is another disk, and the one that is open stays as it is.
	next := mustOpenDisk(t, s, putObject(t, s, "o", []byte("new")), "")
	if next.uuid == d.uuid || next.uuid == info.ID || next.Size() != 512 {
		t.Errorf("version 2 is the disk %s, version 1 %s, the capsule %s", next.uuid, d.uuid, info.ID)
	}
	if _, err := d.ReadAt(q, 0); err != nil || !bytes.Equal(q, content[:512]) {
		t.Errorf("the old version reads otherwise: %v", err)
	}
	if again := mustOpenDisk(t, s, info, ""); again.uuid != next.uuid {
		t.Errorf("the same version is %s and then %s", next.uuid, again.uuid)
	}
}

// A volume is the disk of its own ID; each snapshot is another one.
func TestVolumeDisk(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	info := newVolume(t, s, "v", 1<<20)
	d := mustOpenDisk(t, s, info, "")
	if d.uuid != info.ID || d.Size() != 1<<20 || d.BlockSize() != 4096 || d.ReadOnly() || d.writes != 1<<20 {
		t.Errorf("%+v", d)
	}
	if _, _, err := d.NextData(ctx, 0); err != io.EOF {
		t.Errorf("data in an empty volume: %v", err)
	}
	block := bytes.Repeat([]byte{7}, 4096)
	if _, err := d.WriteAt(block, 8192); err != nil {
		t.Fatal(err)
	}
	if start, end, err := d.NextData(ctx, 0); start > 8192 || end < 8192+4096 || err != nil {
		t.Errorf("data %d to %d, %v", start, end, err)
	}
	if _, err := s.Snapshot(ctx, info.ID, "s"); err != nil {
		t.Fatal(err)
	}
	snap := mustOpenDisk(t, s, info, "s")
	again := mustOpenDisk(t, s, info, "s")
	if !snap.ReadOnly() || snap.uuid == info.ID || snap.uuid != again.uuid {
		t.Errorf("snapshot %s, again %s, of %s", snap.uuid, again.uuid, info.ID)
	}
	if err := d.Trim(ctx, 8192, 4096); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	if _, err := snap.ReadAt(p, 8192); err != nil || !bytes.Equal(p, block) {
		t.Errorf("the snapshot does not hold what it held: %v", err)
	}
	if snap.uuid[6]>>4 != 8 || snap.uuid[8]>>6 != 2 {
		t.Errorf("%s is no UUID of version 8", snap.uuid)
	}
	tree, err := s.Create(ctx, store.CreateRequest{Kind: capsule.Tree, Name: "t"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		info     capsule.Info
		snapshot string
		kind     capsule.ErrorKind
	}{
		"a tree":                  {tree, "", capsule.Unsupported},
		"an empty object":         {putObject(t, s, "e", nil), "", capsule.Unsupported},
		"a snapshot of an object": {putObject(t, s, "o", []byte("x")), "s", capsule.Unsupported},
		"no such snapshot":        {info, "none", capsule.NotFound},
		"a capsule that is gone":  {capsule.Info{ID: capsule.ID{1}, Kind: capsule.Volume}, "", capsule.NotFound},
	} {
		if d, err := openDisk(ctx, s, c.info, c.snapshot, false); capsule.KindOf(err) != c.kind || d != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
