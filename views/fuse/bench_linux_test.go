package fuse

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// These benchmarks compare a mount of the real store with go-fuse's loopback
// example over a file in memory, or with a stream of the same capsule, in the
// same run. The readers are processes of their own, as they are in real life:
// a Go program that reads what it serves waits for its own scheduler. Each
// reports its figure, the one it compares with, and the ratio.

const (
	benchSize = 256 << 20
	hotSize   = 32 << 20 // fits into the store's cache
)

type benchFS struct {
	store    *store.Store
	capsules map[string]capsule.ID
	space    string // mount of the namespace
	loopback string // mount of the same files, through go-fuse's loopback
	passthru string // the same, where the kernel reads the file itself
}

// newBenchFS stores two corpora, random bytes and Go's own sources, and mounts
// them in all ways.
func newBenchFS(b *testing.B) *benchFS {
	needFUSE(b)
	if os.Geteuid() != 0 {
		b.Skip("the comparison mounts directly, which takes root")
	}
	ctx := context.Background()
	logger := new(logBuffer).logger()
	st, err := store.Open(ctx, store.Options{
		Dir: b.TempDir(), Logger: logger, Keys: keyring.Source{MasterKey: strings.Repeat("0123456789abcdef", 4)},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { st.Close() })
	plain, err := os.MkdirTemp("/dev/shm", "space-bench")
	if err != nil {
		b.Skip("no /dev/shm for the loopback's files: ", err)
	}
	b.Cleanup(func() { os.RemoveAll(plain) })
	f := &benchFS{store: st, capsules: map[string]capsule.ID{}}
	random := make([]byte, benchSize)
	rand.Read(random)
	for name, content := range map[string][]byte{"random": random, "source": sources(b, benchSize)} {
		info, err := st.Put(ctx, store.PutRequest{Name: name, Size: int64(len(content))}, bytes.NewReader(content))
		if err != nil {
			b.Fatal(err)
		}
		f.capsules[name] = info.ID
		if err := os.WriteFile(filepath.Join(plain, name), content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	_, f.space = mountAt(b, newRealStore(st), Options{})
	f.loopback = mountLoopback(b, plain, gofuse.CAP_PASSTHROUGH)
	f.passthru = mountLoopback(b, plain, 0)
	return f
}

// mountLoopback is go-fuse's example/loopback with its default options.
func mountLoopback(b *testing.B, source string, without uint64) string {
	root, err := gofs.NewLoopbackRoot(source)
	if err != nil {
		b.Fatal(err)
	}
	second := time.Second
	dir := b.TempDir()
	server, err := gofs.Mount(dir, root, &gofs.Options{
		AttrTimeout: &second, EntryTimeout: &second, NullPermissions: true,
		MountOptions: gofuse.MountOptions{DirectMountStrict: true, FsName: source, Name: "loopback", DisabledCapabilities: without},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Unmount() })
	return dir
}

func sources(b *testing.B, size int) []byte {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Skip("no Go sources to read: ", err)
	}
	var all []byte
	for len(all) < size {
		before := len(all)
		filepath.WalkDir(strings.TrimSpace(string(out))+"/src", func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && len(all) < size {
				src, _ := os.ReadFile(p)
				all = append(all, src...)
			}
			return nil
		})
		if len(all) == before {
			b.Skip("no Go sources")
		}
		all = append(all, strconv.Itoa(len(all))...) // lest the second round be a duplicate as a whole
	}
	return all[:size]
}

func BenchmarkAgainst(b *testing.B) {
	f := newBenchFS(b)
	compare := func(name, unit, with string, ours, theirs func() float64) {
		b.Run(name, func(b *testing.B) {
			var a, c float64
			ours() // the first touch of memory is slow
			theirs()
			b.ResetTimer()
			for range b.N {
				a += ours()
				c += theirs()
			}
			b.ReportMetric(a/float64(b.N), unit)
			b.ReportMetric(c/float64(b.N), unit+"-"+with)
			b.ReportMetric(a/c, "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
	read := func(dir string, args ...string) func() float64 {
		return func() float64 { return runReader(b, append(args, dir)...) }
	}
	for corpus, id := range f.capsules {
		stream := func() float64 {
			r, err := f.store.Open(context.Background(), id)
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			start := time.Now()
			n, err := r.Stream(context.Background(), io.Discard, 0, r.Info().Size)
			if err != nil {
				b.Fatal(err)
			}
			return float64(n) / 1e6 / time.Since(start).Seconds()
		}
		file := filepath.Join(f.space, corpus)
		compare(corpus+"/first", "MB/s", "stream", read(file, "cold", "1"), stream)
		compare(corpus+"/first-against", "MB/s", "loopback", read(file, "cold", "1"), read(filepath.Join(f.loopback, corpus), "cold", "1"))
		compare(corpus+"/second", "MB/s", "loopback", read(file, "warm", "1"), read(filepath.Join(f.loopback, corpus), "warm", "1"))
		compare(corpus+"/64readers", "MB/s", "1reader", read(file, "cold", "64"), read(file, "cold", "1"))
		compare(corpus+"/rand4k", "op/s", "loopback", read(file, "rand", "1"), read(filepath.Join(f.loopback, corpus), "rand", "1"))
		compare(corpus+"/rand4k-64readers", "op/s", "loopback", read(file, "rand", "64"), read(filepath.Join(f.loopback, corpus), "rand", "64"))
		compare(corpus+"/rand4k-passthrough", "op/s", "loopback", read(file, "rand", "1"), read(filepath.Join(f.passthru, corpus), "rand", "1"))
		compare(corpus+"/rand4k-direct", "op/s", "loopback", read(file, "direct", "1"), read(filepath.Join(f.loopback, corpus), "direct", "1"))
	}
}

// runReader runs readerMain in a process of its own.
func runReader(b *testing.B, args ...string) float64 {
	b.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SPACE_FUSE_TEST_READ="+strings.Join(args, " "))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("reader %v: %v", args, err)
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

// readerMain reads a file, cold (not in the page cache) or warm, from begin to
// end, or 4 KiB at a time at random, from the page cache (rand) or around it,
// which asks the server every time (direct; within hotSize, so that the
// store's cache has it). It prints MB/s, or reads per second, of all readers
// together.
func readerMain(args string) error {
	f := strings.Fields(args)
	mode, file := f[0], f[2]
	readers, err := strconv.Atoi(f[1])
	if err != nil {
		return err
	}
	flags := unix.O_RDONLY
	if mode == "direct" {
		flags |= unix.O_DIRECT
	}
	fds := make([]int, readers)
	var st unix.Stat_t
	for i := range fds {
		if fds[i], err = unix.Open(file, flags, 0); err != nil {
			return err
		}
		if err := unix.Fstat(fds[i], &st); err != nil {
			return err
		}
	}
	sequential := mode == "cold" || mode == "warm"
	switch mode {
	case "cold":
		err = unix.Fadvise(fds[0], 0, 0, unix.FADV_DONTNEED)
	case "warm", "rand":
		_, err = readAll(fds[0], 0, st.Size)
	case "direct":
		st.Size = min(st.Size, hotSize)
		_, err = readAll(fds[0], 0, st.Size)
	}
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var total int64
	start := time.Now()
	for i := range readers {
		wg.Go(func() {
			var n int64
			var rerr error
			if sequential {
				share := st.Size / int64(readers)
				n, rerr = readAll(fds[i], share*int64(i), share)
			} else {
				n, rerr = readRandom(fds[i], st.Size, start.Add(time.Second))
			}
			mu.Lock()
			defer mu.Unlock()
			total += n
			if rerr != nil {
				err = rerr
			}
		})
	}
	wg.Wait()
	v := float64(total) / time.Since(start).Seconds()
	if sequential {
		v /= 1e6
	}
	fmt.Println(v)
	return err
}

func readAll(fd int, off, n int64) (done int64, err error) {
	buf, err := unix.Mmap(-1, 0, 128<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned; cat's size
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(buf)
	for done < n {
		k, err := unix.Pread(fd, buf[:min(int64(len(buf)), n-done)], off+done)
		if err != nil {
			return done, err
		}
		if k == 0 {
			return done, io.ErrUnexpectedEOF
		}
		done += int64(k)
	}
	return done, nil
}

func readRandom(fd int, size int64, until time.Time) (ops int64, err error) {
	buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(buf)
	for time.Now().Before(until) {
		if _, err := unix.Pread(fd, buf, mrand.Int64N(size/4096)*4096); err != nil {
			return ops, err
		}
		ops++
	}
	return ops, nil
}
