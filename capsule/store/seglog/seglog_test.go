package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
	"github.com/spacestore/space/pipeline"
)

type oneKey struct{ c *pipeline.Cipher }

func (k oneKey) Cipher(v uint32) (*pipeline.Cipher, bool) { return k.c, v == 1 }

var testKey = oneKey{pipeline.NewCipher([32]byte{1})}

func record(n byte, size int) []byte {
	var z pipeline.Compressor
	rec, _ := pipeline.Seal(nil, &z, pipeline.SegmentID{n}, bytes.Repeat([]byte{n}, size),
		pipeline.Sealing{Encrypt: true, Key: 1, Cipher: testKey.c})
	return rec
}

type place struct {
	log uint64
	off int64
}

func TestAppendReadRotateReopen(t *testing.T) {
	disk := vfstest.NewPowerCut()
	want := map[place][]byte{}
	if err := disk.MkdirAll("/segments", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := vfs.SyncDir(disk, "/"); err != nil {
		t.Fatal(err)
	}
	for life := range 4 {
		s, err := Open(disk, "/segments", 10000, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			p := record(byte(life*20+i), 900)
			log, off, err := s.Append(bytes.Clone(p), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, taken := want[place{log, off}]; taken || log == 0 {
				t.Fatalf("log %d at %d was given out twice", log, off)
			}
			want[place{log, off}] = p
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		if life == 2 {
			s.Rotate()
		}
		for at, p := range want {
			got := make([]byte, len(p))
			if err := s.ReadAt(at.log, got, at.off); err != nil || !bytes.Equal(got, p) {
				t.Fatalf("life %d, log %d at %d: %v", life, at.log, at.off, err)
			}
		}
		s.Close()
		disk = disk.Clone(uint64(life) * 4) // nothing unsynced survives
	}
	s, err := Open(disk, "/segments", 10000, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	logs, err := s.Logs()
	if err != nil || len(logs) < 7 || len(logs) > 12 {
		t.Fatalf("%d records of 1000 bytes lie in logs %v of 10000: %v", len(want), logs, err)
	}
	if err := s.ReadAt(logs[0], make([]byte, 10), 1<<20); err != io.ErrUnexpectedEOF {
		t.Errorf("reading past the end: %v", err)
	}
	if err := s.Remove(logs[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.ReadAt(logs[0], make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading a removed log: %v", err)
	}
}

// The log that takes appends cannot be removed, not even before the first one.
func TestActiveLogStays(t *testing.T) {
	disk := vfstest.NewPowerCut()
	for range 2 {
		s, err := Open(disk, "/segments", 10000, 0)
		if err != nil {
			t.Fatal(err)
		}
		if logs, _ := s.Logs(); len(logs) == 1 {
			if err := s.Remove(logs[0]); err == nil {
				t.Error("the log that goes on was removed")
			}
		}
		log, _, err := s.Append([]byte("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(log); err == nil {
			t.Error("the active log was removed")
		}
		s.Sync()
		s.Close()
	}
}

// After a failed append the next one begins a new log, and nothing overlaps.
func TestFailedAppend(t *testing.T) {
	faults := vfstest.NewFaults(vfstest.NewPowerCut())
	s, err := Open(faults, "/segments", 1<<20, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, _, _ := s.Append(record(1, 100), nil)
	faults.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.Write {
			return &vfstest.Short{N: 50, Err: errors.New("no room")}
		}
		return nil
	})
	if _, _, err := s.Append(record(2, 100), nil); err == nil {
		t.Fatal("a failed write was not reported")
	}
	faults.Set(nil)
	b, off, err := s.Append(record(3, 100), nil)
	if err != nil || b == a || off != 0 {
		t.Errorf("after a failed append: log %d at %d, %v", b, off, err)
	}
	if err := s.Sync(); err != nil {
		t.Error(err)
	}
}

// Scan finds every intact record, whatever lies between them.
func TestScanStepsOverDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 30 {
		disk := vfstest.NewPowerCut()
		s, err := Open(disk, "/segments", 64<<20, 0)
		if err != nil {
			t.Fatal(err)
		}
		var want []int64
		var damage int64
		for i := range 40 {
			rec := record(byte(i), 1+r.IntN(pipeline.MaxChunk-1))
			switch r.IntN(5) {
			case 0: // torn
				rec = rec[:r.IntN(len(rec))]
			case 1: // noise, with beginnings that look like a record
				rec = bytes.Repeat([]byte(pipeline.Magic), 1+r.IntN(2000))
			case 2:
				rec[r.IntN(pipeline.HeaderSize)] ^= 0x10
			default:
				_, off, err := s.Append(rec, nil)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, off)
				continue
			}
			if _, _, err := s.Append(rec, nil); err != nil {
				t.Fatal(err)
			}
			damage += int64(len(rec))
		}
		var got []int64
		var gaps int64
		err = s.Scan(1, func(off int64, h pipeline.Header, rec []byte) (bool, error) {
			if _, _, err := pipeline.Open(nil, rec, testKey); err != nil {
				return false, nil
			}
			got = append(got, off)
			return true, nil
		}, func(_, n int64) { gaps += n })
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) || gaps != damage {
			t.Fatalf("round %d: found %d of %d records, %d bytes of gaps where %d are damaged: %v", round, len(got), len(want), gaps, damage, err)
		}
		s.Close()
	}
}

func FuzzScan(f *testing.F) {
	f.Add(record(1, 100))
	f.Add(append(record(1, 100), record(2, 3)...))
	f.Add([]byte("SPSGSPSGSPS"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Open(vfstest.NewPowerCut(), "/segments", 1<<30, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, _, err := s.Append(bytes.Clone(b), nil); err != nil {
			t.Fatal(err)
		}
		var sum int64
		err = s.Scan(1, func(off int64, h pipeline.Header, rec []byte) (bool, error) {
			if off%3 == 0 {
				return false, nil
			}
			sum += int64(len(rec))
			return true, nil
		}, func(_, n int64) { sum += n })
		if err != nil || sum != int64(len(b)) {
			t.Fatalf("records and gaps cover %d of %d bytes: %v", sum, len(b), err)
		}
	})
}

// An error of writing that the kernel tells when it is asked to start writing
// is one that it doesn't tell again: Sync has to.
func TestSyncTellsWhatTheHintWasTold(t *testing.T) {
	disk := vfstest.NewFaults(vfstest.NewPowerCut())
	broken := errors.New("broken disk")
	disk.Set(func(op vfstest.Op) error {
		if op.Kind == vfstest.SyncTo {
			return broken
		}
		return nil
	})
	s, err := Open(disk, "/segments", 1<<30, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := s.Append(make([]byte, writebackStep), nil); err != nil {
		t.Fatal(err)
	}
	s.hints.Wait()
	if err := s.Sync(); !errors.Is(err, broken) {
		t.Fatalf("Sync: %v", err)
	}
}
