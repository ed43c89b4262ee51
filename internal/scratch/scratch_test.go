package scratch

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/spacestore/space/capsule"
)

// TestAgainstMemory does random operations on a file and on bytes in memory.
func TestAgainstMemory(t *testing.T) {
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 1))
		want := make([]byte, r.IntN(5*blockSize))
		for i := range want {
			want[i] = byte(r.Uint32())
		}
		f, err := New(t.TempDir(), bytes.NewReader(bytes.Clone(want)), int64(len(want)))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := f.WriteAt(nil, 7*blockSize); n != 0 || err != nil || f.Size() != int64(len(want)) {
			t.Fatalf("a write of nothing: %d, %v; the size is %d, was %d", n, err, f.Size(), len(want))
		}
		for range 100 {
			switch r.IntN(3) {
			case 0:
				off, p := r.IntN(6*blockSize), bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(2*blockSize))
				if n, err := f.WriteAt(p, int64(off)); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
				if len(p) > 0 && off+len(p) > len(want) {
					want = append(want, make([]byte, off+len(p)-len(want))...)
				}
				copy(want[min(off, len(want)):], p)
			case 1:
				size := r.IntN(6 * blockSize)
				if err := f.Truncate(int64(size)); err != nil {
					t.Fatal(err)
				}
				want = append(want, make([]byte, max(size-len(want), 0))...)[:size:size]
			case 2:
				got := make([]byte, r.IntN(7*blockSize))
				off := r.IntN(6 * blockSize)
				n, err := f.ReadAt(got, int64(off))
				rest := want[min(off, len(want)):]
				if m := min(len(got), len(rest)); n != m || !bytes.Equal(got[:n], rest[:m]) || (n < len(got)) != (err == io.EOF) {
					t.Fatalf("seed %d: read %d at %d: %d, %v, want %d", seed, len(got), off, n, err, m)
				}
			}
			if f.Size() != int64(len(want)) {
				t.Fatalf("seed %d: size %d, want %d", seed, f.Size(), len(want))
			}
		}
		f.Close()
	}
}

// TestSealed looks for what was written on the disk, and changes it there.
func TestSealed(t *testing.T) {
	dir := t.TempDir()
	f, err := New(dir, bytes.NewReader(nil), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	secret := bytes.Repeat([]byte("secret"), blockSize)
	if _, err := f.WriteAt(secret, 0); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the directory has %v, %v", entries, err)
	}
	raw := make([]byte, 3*sealed)
	if _, err := f.disk.ReadAt(raw, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte("secret")) {
		t.Error("the content is in the clear on disk")
	}
	if _, err := f.disk.WriteAt([]byte{raw[100] ^ 1}, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(raw[:10], 0); capsule.KindOf(err) != capsule.Damaged {
		t.Errorf("what was changed on disk is read: %v", err)
	}
}

// TestErrors has base and sizes fail.
func TestErrors(t *testing.T) {
	f, err := New(t.TempDir(), bytes.NewReader([]byte("short")), 100)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, 10), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a base that ends early: %v", err)
	}
	if err := f.Truncate(MaxSize + 1); capsule.KindOf(err) != capsule.TooLarge {
		t.Error(err)
	}
	if _, err := f.WriteAt([]byte("x"), MaxSize); capsule.KindOf(err) != capsule.TooLarge {
		t.Error(err)
	}
	if _, err := New("/dev/null", nil, 0); capsule.KindOf(err) != capsule.IO {
		t.Error(err)
	}
}

// A full disk is said to be one, and what is in memory is not lost by it.
func TestFullDisk(t *testing.T) {
	f, err := New(t.TempDir(), bytes.NewReader(nil), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	disk := f.disk
	if f.disk, err = os.OpenFile("/dev/full", os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	full := f.disk
	defer full.Close()
	want := bytes.Repeat([]byte("x"), 3*blockSize)
	n, err := f.WriteAt(want, 0)
	if capsule.KindOf(err) != capsule.NoSpace || f.Size() != int64(n) {
		t.Fatalf("%d bytes, size %d, %v", n, f.Size(), err)
	}
	f.disk = disk
	if _, err := f.WriteAt(want[n:], int64(n)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("other bytes, %v", err)
	}
}
