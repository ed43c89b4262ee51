package bench

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
)

// The operations on a capsule of a corpus.
const (
	putNew     = "put"
	putAgain   = "put again (all duplicate)"
	getWarm    = "get, page cache warm"
	getCold    = "get, cold"
	verifying  = "verify, page cache warm"
	read1M     = "read 1 MiB at random, cold"
	read4K     = "read 4 KiB at random, cold"
	read4KHot  = "read 4 KiB at random, hot"
	openStore  = "open the store"
	uniqueSize = "unique bytes" // of the corpus in the store
	storedSize = "stored bytes"
)

// content measures a store that holds one corpus.
func (r *run) content(ctx context.Context, c *corpus) error {
	const home = "store"
	s, err := r.open(ctx, home)
	if err != nil {
		return err
	}
	defer func() { // s changes
		s.Close()
		os.RemoveAll(filepath.Join(r.dir, home))
	}()

	start := time.Now()
	info, err := putFile(ctx, s, "first", c)
	if err != nil {
		return err
	}
	r.add(c.name, putNew, rate(c.size, start))
	u, err := s.Usage(ctx)
	if err != nil {
		return err
	}
	r.add(c.name, uniqueSize, float64(u.UniqueBytes))
	r.add(c.name, storedSize, float64(u.StoredBytes))

	start = time.Now()
	if _, err := putFile(ctx, s, "second", c); err != nil {
		return err
	}
	r.add(c.name, putAgain, rate(c.size, start))

	warm := []struct {
		name    string
		measure func(*store.Reader) (float64, error)
	}{
		{getWarm, func(f *store.Reader) (float64, error) { return stream(ctx, f) }},
		{read4KHot, func(f *store.Reader) (float64, error) {
			hot := min(c.size, 16<<20) // well below the size of the store's cache
			for off := int64(0); off < hot; off += 4096 {
				if _, err := f.ReadAt(make([]byte, 1), off); err != nil {
					return 0, err
				}
			}
			return r.readAtRandom(ctx, f, hot, 4096)
		}},
	}
	for _, m := range warm {
		v, err := read(ctx, s, info.ID, m.measure)
		if err != nil {
			return err
		}
		r.add(c.name, m.name, v)
	}

	start = time.Now()
	rep, err := s.Verify(ctx, store.VerifyOptions{}, nil)
	if err != nil {
		return err
	}
	if !rep.OK() {
		return capsule.Errorf(capsule.Damaged, "verify found %d damaged ranges and %d problems in what was just stored; check the disk and the memory",
			len(rep.Damage), len(rep.Problems))
	}
	r.add(c.name, verifying, rate(u.UniqueBytes, start))

	cold := []struct {
		name    string
		measure func(*store.Reader) (float64, error)
	}{
		{getCold, func(f *store.Reader) (float64, error) { return stream(ctx, f) }},
		{read1M, func(f *store.Reader) (float64, error) {
			v, err := readAtPlaces(ctx, f, places(c.size, 1<<20), 1<<20)
			return v * float64(min(c.size, 1<<20)), err
		}},
		{read4K, func(f *store.Reader) (float64, error) { return readAtPlaces(ctx, f, places(c.size, 4096), 4096) }},
	}
	for _, m := range cold {
		if err := s.Close(); err != nil {
			return err
		}
		if r.cold {
			if err := dropCaches(filepath.Join(r.dir, home)); err != nil {
				return err
			}
		}
		start := time.Now()
		if s, err = r.open(ctx, home); err != nil {
			return err
		}
		r.add("", openStore, time.Since(start).Seconds())
		if !r.cold {
			continue
		}
		v, err := read(ctx, s, info.ID, m.measure)
		if err != nil {
			return err
		}
		r.add(c.name, m.name, v)
	}
	return nil
}

func putFile(ctx context.Context, s *store.Store, name string, c *corpus) (capsule.Info, error) {
	f, err := os.Open(c.path)
	if err != nil {
		return capsule.Info{}, fileError(err)
	}
	defer f.Close()
	return s.Put(ctx, store.PutRequest{Name: name, Size: c.size}, f)
}

func read(ctx context.Context, s *store.Store, id capsule.ID, measure func(*store.Reader) (float64, error)) (float64, error) {
	f, err := s.Open(ctx, id)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return measure(f)
}

func stream(ctx context.Context, f *store.Reader) (float64, error) {
	start := time.Now()
	n, err := f.Stream(ctx, io.Discard, 0, -1)
	return rate(n, start), err
}

// dropCaches makes all files under dir leave the page cache.
func dropCaches(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return fileError(err)
		}
		f, err := os.Open(path)
		if err != nil {
			return fileError(err)
		}
		defer f.Close()
		return fileError(dropCache(f))
	})
}
