package tree

import (
	"fmt"
	"testing"
)

// The capsule of these benchmarks is a treap in memory, which takes much of the
// time; they are to compare one change of the tree with another.

func BenchmarkCreate(b *testing.B) {
	fs, _ := newTree(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f, _, err := fs.Create(ctx, nil, Root, fmt.Sprint(i), New{Mode: 0o644}, OpenRead|OpenWrite|OpenExcl)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

func BenchmarkWrite4K(b *testing.B) {
	fs, _ := newTree(b)
	a := mkfile(b, fs, Root, "f", "")
	f := must(fs.Open(ctx, nil, a.Ino, OpenWrite))(b)
	defer f.Close()
	p := make([]byte, 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	for i := int64(0); b.Loop(); i++ {
		if _, err := f.WriteAt(ctx, p, i%1024*4096); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	fs, _ := newTree(b)
	names := make([]string, 10000)
	for i := range names {
		names[i] = fmt.Sprintf("file%d", i)
		mkfile(b, fs, Root, names[i], "")
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := fs.Lookup(ctx, nil, Root, names[i%len(names)]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadDir100k(b *testing.B) {
	fs, _ := newTree(b)
	for i := range 100_000 {
		if _, err := fs.Mknod(ctx, nil, Root, fmt.Sprintf("file%d", i), Regular, New{Mode: 0o644}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		fs.ReadDirPlus(ctx, nil, Root, 0, func(Entry) bool { n++; return true })
		if n != 100_000 {
			b.Fatal(n)
		}
	}
}
