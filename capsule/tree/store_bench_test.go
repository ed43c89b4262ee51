package tree_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/capsule/tree"
)

func benchTree(b *testing.B) *tree.FS {
	b.Helper()
	ctx := context.Background()
	s, err := store.Open(ctx, store.Options{Dir: b.TempDir(), Keys: keyring.Source{MasterKey: strings.Repeat("5a", 32)},
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	info, err := tree.NewTrees(s).Create(ctx, "t", nil, tree.New{Mode: 0o755}, tree.Quota{})
	if err != nil {
		b.Fatal(err)
	}
	fs, done, err := openTree(s, info.ID, "")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(done)
	return fs
}

// BenchmarkStoreCreate makes files of 4 KiB, a thousand to a directory.
func BenchmarkStoreCreate(b *testing.B) {
	ctx := context.Background()
	fs := benchTree(b)
	p := make([]byte, 4096)
	dir := tree.Root
	i := 0
	for b.Loop() {
		if i%1000 == 0 {
			a, err := fs.Mkdir(ctx, nil, tree.Root, fmt.Sprint("d", i), tree.New{Mode: 0o755})
			if err != nil {
				b.Fatal(err)
			}
			dir = a.Ino
		}
		f, _, err := fs.Create(ctx, nil, dir, fmt.Sprint("f", i), tree.New{Mode: 0o644}, tree.OpenWrite)
		if err != nil {
			b.Fatal(err)
		}
		copy(p, fmt.Sprint("content of ", i))
		if _, err := f.WriteAt(ctx, p, 0); err != nil {
			b.Fatal(err)
		}
		f.Close()
		i++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

// BenchmarkStoreUntar does for each file what tar on a FUSE mount does.
func BenchmarkStoreUntar(b *testing.B) {
	ctx := context.Background()
	fs := benchTree(b)
	root := &tree.Cred{}
	p := make([]byte, 24<<10)
	rand.NewChaCha8([32]byte{1}).Read(p)
	dir := tree.Root
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if i%20 == 0 {
			a, err := fs.Mkdir(ctx, nil, tree.Root, fmt.Sprint("d", i), tree.New{Mode: 0o755})
			if err != nil {
				b.Fatal(err)
			}
			dir = a.Ino
		}
		name := fmt.Sprint("f", i)
		if _, err := fs.Lookup(ctx, nil, dir, name); capsule.KindOf(err) != capsule.NotFound {
			b.Fatal(err)
		}
		f, a, err := fs.Create(ctx, nil, dir, name, tree.New{Mode: 0o644}, tree.OpenRead|tree.OpenWrite|tree.OpenExcl)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := fs.GetXattr(ctx, nil, a.Ino, "security.capability"); err == nil {
			b.Fatal("a new file has capabilities")
		}
		binary.LittleEndian.PutUint64(p, uint64(i))
		// 10 KiB at a time, which the kernel cuts at pages.
		at := 0
		for _, end := range []int{8 << 10, 10 << 10, 12 << 10, 20 << 10, 24 << 10} {
			if _, err := f.WriteAt(ctx, p[at:end], int64(at)); err != nil {
				b.Fatal(err)
			}
			at = end
		}
		for _, set := range []tree.SetAttr{{Set: tree.SetMtime, Mtime: time.Unix(1, 2)}, {Set: tree.SetUID | tree.SetGID}, {Set: tree.SetMode, Mode: 0o600}} {
			if _, err := fs.SetAttr(ctx, root, a.Ino, set); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := fs.GetAttr(ctx, a.Ino); err != nil {
			b.Fatal(err)
		}
		f.Close()
		i++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

// BenchmarkStoreLookup looks up a hundred thousand names in turn.
func BenchmarkStoreLookup(b *testing.B) {
	ctx := context.Background()
	fs := benchTree(b)
	const names = 100_000
	for i := range names {
		f, _, err := fs.Create(ctx, nil, tree.Root, fmt.Sprint("f", i), tree.New{Mode: 0o644}, tree.OpenWrite)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
	i := 0
	for b.Loop() {
		if _, err := fs.Lookup(ctx, nil, tree.Root, fmt.Sprint("f", i%names)); err != nil {
			b.Fatal(err)
		}
		i += 7919
	}
}
