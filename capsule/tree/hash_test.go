package tree

import (
	"fmt"
	"testing"
)

// Vectors of the authors' reference implementation: key 00 01 … 0f, input 00 01 …
func TestSipHash(t *testing.T) {
	var k hashKey
	for i := range k {
		k[i] = byte(i)
	}
	in := ""
	for n, want := range map[int]uint64{0: 0x726fdb47dd0e0e31, 1: 0x74f839c593dc67fd, 8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5} {
		in = ""
		for i := range n {
			in += string(rune(i))
		}
		if got := k.sipHash(in); got != want {
			t.Errorf("%d bytes: %x, want %x", n, got, want)
		}
	}
}

// Positions stay right while the directory changes, also between entries whose
// hashes are equal.
func TestDirectoryPositions(t *testing.T) {
	fs, m := newTree(t)
	const n = 1000
	for i := range n {
		mkdir(t, fs, Root, fmt.Sprint(i))
	}
	a := entry{at(fs, "0"), Directory}
	kind(t, m.Update(ctx, func(tx Tx) error {
		for i := range 5 {
			if err := tx.Set(entryKey(Root, 1234567, fmt.Sprintf("same%d", i)), a.encode()); err != nil {
				return err
			}
		}
		return nil
	}), fine, "entries of one hash")
	for _, size := range []int{1, 3, 255, 256, 257} {
		seen := map[string]int{}
		cookie, last := uint64(0), uint64(0)
		for i := 0; ; i++ {
			got := 0
			err := fs.ReadDir(ctx, nil, Root, cookie, func(e Entry) bool {
				if e.Cookie <= last || e.Cookie < 3 || int64(e.Cookie) < 0 {
					t.Fatalf("cookie %d after %d", e.Cookie, last)
				}
				seen[e.Name]++
				cookie, last = e.Cookie, e.Cookie
				got++
				return got < size
			})
			kind(t, err, fine, "readdir")
			if got < size {
				break
			}
			name := fmt.Sprintf("extra%d-%d", size, i) // the directory changes all the time
			mkdir(t, fs, Root, name)
			kind(t, fs.Rmdir(ctx, nil, Root, name), fine, "rmdir")
		}
		for i := range n {
			if seen[fmt.Sprint(i)] != 1 {
				t.Fatalf("in pages of %d, %d comes %d times", size, i, seen[fmt.Sprint(i)])
			}
		}
		for i := range 5 {
			if seen[fmt.Sprintf("same%d", i)] != 1 {
				t.Fatalf("in pages of %d, same%d comes %d times", size, i, seen[fmt.Sprintf("same%d", i)])
			}
		}
	}
}
