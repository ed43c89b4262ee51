package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

// A write that the disk has no room for says so, and is all that fails.
func TestVolumeDiskFullInTheMiddle(t *testing.T) {
	faults := vfstest.NewFaults(vfstest.NewPowerCut())
	s, err := openSmall(faults, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v := newVolume(t, s, "v", 1<<20)
	defer v.Close()
	want := random(1, 1<<20)
	faults.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Write && strings.Contains(op.Path, "/segments/") {
			return syscall.ENOSPC
		}
		return nil
	})
	_, err = v.WriteAt(want, 0)
	wantKind(t, err, capsule.NoSpace)
	faults.Set(nil)
	if _, err := v.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, v, want)
}

// A failed fsync stops all changes for good, whichever file it hits. What was
// flushed before is there after the next open.
func TestVolumeFailedSync(t *testing.T) {
	for _, part := range []string{"/journal/", "/segments/", "/meta/"} {
		t.Run(strings.Trim(part, "/"), func(t *testing.T) {
			disk := vfstest.NewPowerCut()
			faults := vfstest.NewFaults(disk)
			s, err := openSmall(faults, 64<<10)
			if err != nil {
				t.Fatal(err)
			}
			v := newVolume(t, s, "v", 1<<20)
			want := random(1, 1<<20)
			if _, err := v.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			if err := v.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			faults.Set(func(op vfstest.Op) error {
				if op.Kind == vfstest.Sync && strings.Contains(op.Path, part) {
					return syscall.EIO
				}
				return nil
			})
			fail := func() error { // small and whole blocks, enough for a checkpoint
				for i := range 64 {
					if _, err := v.WriteAt(want[:70<<10], int64(i)<<10); err != nil {
						return err
					}
					if err := v.Flush(t.Context()); err != nil {
						return err
					}
				}
				return s.checkpointAll()
			}
			wantKind(t, fail(), capsule.Unavailable)
			faults.Set(nil) // the disk "recovers", which proves nothing
			_, err = v.WriteAt([]byte{1}, 0)
			wantKind(t, err, capsule.Unavailable)
			wantKind(t, v.Flush(t.Context()), capsule.Unavailable)
			if _, err := v.ReadAt(make([]byte, 1<<20), 0); err != nil {
				t.Fatalf("reads do not go on: %v", err)
			}
			id := v.Info().ID
			v.Close()
			s.Close()
			if s, err = openSmall(disk.Clone(0), 64<<10); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			got := make([]byte, 64<<10)
			v = openVolume(t, s, id, "")
			if _, err := v.ReadAt(got, 512<<10); err != nil || !bytes.Equal(got, want[512<<10:576<<10]) {
				t.Fatalf("what was flushed is not there: %v", err)
			}
			wantClean(t, s)
		})
	}
}

// A volume fills the disk: writes fail with a clear error, nothing acknowledged
// is lost, trimming works on the full disk, and gives room.
func TestVolumeDiskFull(t *testing.T) {
	for _, size := range []int{4 << 10, 128 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			disk := vfstest.NewDiskFull(vfstest.NewPowerCut(), 24<<20)
			s, err := openSmall(disk, 512<<10)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { s.Close() }()
			v := newVolume(t, s, "v", 64<<20)
			id := v.Info().ID
			want := make([]byte, 64<<20)
			var full error
			for off := 0; off+size <= len(want); off += size {
				p := random(uint64(off>>12), size)
				if _, full = v.WriteAt(p, int64(off)); full != nil {
					break
				}
				copy(want[off:], p)
			}
			wantKind(t, full, capsule.NoSpace)
			if err := v.Flush(t.Context()); err != nil {
				t.Fatalf("flush on the full disk: %v", err)
			}
			wantBytes(t, v, want)
			if err := v.Trim(t.Context(), 0, 8<<20); err != nil {
				t.Fatalf("trim on the full disk: %v", err)
			}
			clear(want[:8<<20])
			rep, err := s.GC(t.Context(), GCOptions{}, nil)
			if err != nil || rep.FreedBytes < 3<<20 {
				t.Fatalf("gc on the full disk: %+v, %v", rep, err)
			}
			s.spaceIsGone()
			if _, err := v.WriteAt(want[9<<20:10<<20], 0); err != nil {
				t.Fatalf("with room again: %v", err)
			}
			copy(want, want[9<<20:10<<20])
			wantBytes(t, v, want)
			v.Close()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = openSmall(disk, 512<<10); err != nil {
				t.Fatal(err)
			}
			v = openVolume(t, s, id, "")
			wantBytes(t, v, want)
			v.Close()
			wantClean(t, s)
		})
	}
}

// One bit flips anywhere in a store with a volume and a full journal. The store
// then says so when it opens, or a read does, or what it shows is a state that
// the volume was in.
func TestVolumeFlippedBit(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openSmall(disk, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v := newVolume(t, s, "v", 256<<10)
	id := v.Info().ID
	state := make([]byte, 256<<10)
	states := [][]byte{slices.Clone(state)}
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 24 {
		off := r.IntN(len(state))
		n := min(len(state)-off, 1+r.IntN(9<<10))
		p := random(uint64(i), n)
		copy(state[off:], p)
		states = append(states, slices.Clone(state))
		if _, err := v.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
		if err := v.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i == 12 {
			if err := s.checkpointAll(); err != nil {
				t.Fatal(err)
			}
		}
	}
	whole := disk.Clone(1)
	perFile := 40
	if testing.Short() {
		perFile = 8
	}
	for _, path := range listFiles(t, whole, "/space") {
		st, err := whole.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		for range perFile {
			bit := r.IntN(int(8 * st.Size()))
			copied := whole.Clone(1)
			flipBit(t, copied, path, bit)
			where := fmt.Sprintf("%s byte %d of %d", path, bit/8, st.Size())
			s, err := openSmall(copied, 1<<20)
			if err != nil {
				if k := capsule.KindOf(err); k != capsule.Damaged {
					t.Fatalf("%s: open fails with %v (%v)", where, err, k)
				}
				continue
			}
			got := make([]byte, len(state))
			v, err := s.OpenVolume(context.Background(), id, "", WriteVolume)
			if err == nil {
				_, err = v.ReadAt(got, 0)
			}
			if err != nil {
				if k := capsule.KindOf(err); k != capsule.Damaged {
					t.Fatalf("%s: %v (%v)", where, err, k)
				}
			} else if !slices.ContainsFunc(states, func(b []byte) bool { return bytes.Equal(b, got) }) {
				t.Fatalf("%s: the volume shows what it never held", where)
			}
			s.Close()
		}
	}
}

// A large read is shared by several goroutines. It gives what is there, from
// any place on, and where a block is damaged, all before it.
func TestLargeReads(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openSmall(disk, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := random(1, 3<<20)
	v := newVolume(t, s, "v", int64(len(want)))
	if _, err := v.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for i := range uint64(50) {
		off := r.IntN(len(want) - 5000)
		copy(want[off:], random(i, 5000))
		if _, err := v.WriteAt(want[off:off+5000], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(off, n int) (int, error) {
		p := make([]byte, n)
		n, err := v.ReadAt(p, int64(off))
		if !bytes.Equal(p[:n], want[off:off+n]) {
			t.Fatalf("wrong bytes in %d from %d on", n, off)
		}
		return n, err
	}
	for range 40 {
		off := r.IntN(len(want))
		n := r.IntN(len(want) - off)
		if got, err := read(off, n); got != n || err != nil {
			t.Fatalf("read %d of %d bytes from %d on: %v", got, n, off, err)
		}
	}
	if err := s.checkpointAll(); err != nil {
		t.Fatal(err)
	}
	const bad = 23 // a block
	row, _, err := s.version(v.line.view.Load(), blockPrefix(v.line.family.id, volumeFile, bad))
	if err != nil {
		t.Fatal(err)
	}
	piece := row.block.pieces[0]
	at, _, err := s.lookupSegment(piece.id)
	if err != nil {
		t.Fatal(err)
	}
	flipBit(t, disk, fmt.Sprintf("/space/segments/%06x/%016x.seg", at.log>>8, at.log), int(8*(at.off+at.recordLen-20)))
	s.cache = newSegmentCache(1)
	for range 20 {
		off := r.IntN(bad * BlockSize)
		n := (bad+1)*BlockSize - off + r.IntN(len(want)-(bad+1)*BlockSize)
		var damage *capsule.DamageError
		if got, err := read(off, n); got != bad*BlockSize-off || !errors.As(err, &damage) || damage.Off/BlockSize != bad {
			t.Fatalf("read %d of %d bytes from %d on, %d before the damage: %v", got, n, off, bad*BlockSize-off, err)
		}
	}
}

// A process is killed with changes that only the kernel has; the next one makes
// them durable when it is asked to, though it has not written them itself.
func TestSyncAfterKill(t *testing.T) {
	for seed := range uint64(4) {
		disk := vfstest.NewPowerCut()
		first := vfstest.NewFaults(disk)
		opts := Options{Dir: "/space", FS: first, Keys: testKey, Logger: quietLog(), LogBytes: 256 << 10, memtable: 16 << 10,
			Push: true, CommitInterval: time.Hour}
		s, err := Open(context.Background(), opts)
		if err != nil {
			t.Fatal(err)
		}
		v := newVolume(t, s, "v", 1<<20)
		id := v.Info().ID
		want := make([]byte, 1<<20)
		r := rand.New(rand.NewPCG(seed, 1))
		for i := range uint64(10) {
			n := 1 + r.IntN(200<<10)
			off := r.IntN(len(want) - n)
			p := random(100*seed+i, n)
			copy(want[off:], p)
			if _, err := v.WriteAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		// The end of the process: nothing that it still tries is done.
		first.Set(func(vfstest.Op) error { return syscall.EIO })
		s.Close()
		opts.FS = disk
		s, err = Open(context.Background(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if seed%2 == 0 {
			err = openVolume(t, s, id, "").Flush(t.Context())
		} else {
			err = s.checkpointAll()
		}
		if err != nil {
			t.Fatal(err)
		}
		after := disk.Clone(seed)
		s.Close()
		opts.FS = after
		if s, err = Open(context.Background(), opts); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, openVolume(t, s, id, ""), want)
		wantClean(t, s)
		s.Close()
	}
}

// A block of many pieces is to be merged, and the metadata has lost one of them.
// Who stores the same content again has it.
func TestMergeOfDamagedBlock(t *testing.T) {
	s, err := openSmall(vfstest.NewPowerCut(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v := newVolume(t, s, "v", 1<<20)
	lost := random(1, 4096)
	if _, err := v.WriteAt(lost, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.checkpointAll(); err != nil {
		t.Fatal(err)
	}
	if err := s.commit(synced, func(t *tx) error {
		return s.kv.scan([]byte{keySegment}, []byte{keySegment + 1}, func(k, _ []byte) (bool, error) {
			return true, t.b.delete(bytes.Clone(k))
		})
	}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := v.WriteAt([]byte("new"), int64(i*200)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.checkpoint(); err == nil {
		t.Fatal("a checkpoint drops references that are not there")
	}
	info, err := s.Put(t.Context(), PutRequest{Name: "o", Size: -1}, bytes.NewReader(lost))
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Open(t.Context(), info.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, len(lost))
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, lost) {
		t.Errorf("what was stored after the damage: %v", err)
	}
}

// openPushed opens a store that hands changes to the kernel, which makes nothing
// durable unless it is told to.
func openPushed(fsys vfs.FS) (*Store, error) {
	return Open(context.Background(), Options{Dir: "/space", FS: fsys, Keys: testKey, Logger: quietLog(), LogBytes: 256 << 10,
		memtable: 16 << 10, Push: true, CommitInterval: time.Hour})
}

// A read that fails while the journal is replayed does not mean that the power
// cut took what is there: the store does not open, and has everything once it does.
func TestReplayReadError(t *testing.T) {
	disk := vfstest.NewPowerCut()
	first := vfstest.NewFaults(disk)
	s, err := openPushed(first)
	if err != nil {
		t.Fatal(err)
	}
	v := newVolume(t, s, "v", 1<<20)
	id := v.Info().ID
	want := make([]byte, 1<<20)
	copy(want, random(1, BlockSize))
	copy(want[500<<10:], "after that")
	for _, r := range [][2]int{{0, BlockSize}, {500 << 10, 512 << 10}} {
		if _, err := v.WriteAt(want[r[0]:r[1]], int64(r[0])); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.Set(func(vfstest.Op) error { return syscall.EIO }) // the end of the process
	s.Close()

	faults := vfstest.NewFaults(disk)
	faults.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Read && strings.Contains(op.Path, "/segments/") {
			return syscall.EIO
		}
		return nil
	})
	if s, err := openPushed(faults); err == nil {
		s.Close()
		t.Fatal("the store opens without what it could not read")
	}
	if s, err = openPushed(disk); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantBytes(t, openVolume(t, s, id, ""), want)
}

// A power cut takes the segment that the journal's first file names, and the
// recovery is cut off too while it removes the files.
func TestRecoveryOfWorthlessJournalIsCutOff(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s, err := openPushed(disk)
	if err != nil {
		t.Fatal(err)
	}
	v := newVolume(t, s, "v", 1<<20)
	id := v.Info().ID
	if err := s.checkpointAll(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(random(1, BlockSize), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.journal.Cut(); err != nil { // as a checkpoint does first
		t.Fatal(err)
	}
	if _, err := v.WriteAt([]byte("after that"), 500<<10); err != nil {
		t.Fatal(err)
	}
	if err := s.journal.Sync(s.journal.Last()); err != nil {
		t.Fatal(err)
	}
	after := disk.Clone(0) // has nothing that was not synced
	s.Close()

	faults := vfstest.NewFaults(after)
	removed := 0
	faults.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Remove && strings.Contains(op.Path, "/journal/") {
			if removed++; removed > 1 {
				return syscall.EIO
			}
		}
		return nil
	})
	if s, err := openPushed(faults); err == nil {
		s.Close()
	}
	if removed < 2 {
		t.Fatalf("%d files of the journal were to be removed", removed)
	}
	if s, err = openPushed(after); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantBytes(t, openVolume(t, s, id, ""), make([]byte, 1<<20))
	wantClean(t, s)
}
