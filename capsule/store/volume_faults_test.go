package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

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
