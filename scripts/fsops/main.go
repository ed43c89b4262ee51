// Fsops measures one thing about a directory's file system; see bench_fs.sh.
package main

import (
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

const (
	size  = 256 << 20
	piece = 1 << 20
	page  = 4 << 10
)

// length is how long a rate is measured.
var length = flag.Duration("for", 3*time.Second, "how long to measure a rate")

func main() {
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal("usage: fsops [-for DURATION] TEST DIR")
	}
	test, dir := flag.Arg(0), flag.Arg(1)
	file := filepath.Join(dir, "content")
	switch test {
	case "seq write+fsync MB/s":
		fmt.Printf("%.0f", throughput(func() { writeAll(file) }))
	case "seq read warm MB/s":
		readAll(file)
		fallthrough
	case "seq read cold MB/s":
		fmt.Printf("%.0f", throughput(func() { readAll(file) }))
	case "rand read 4K /s":
		f := open(file)
		fmt.Printf("%.0f", rate(1, func(int, int) { must(f.ReadAt(make([]byte, page), randomPage())) }))
	case "rand write 4K /s":
		f := open(file)
		fmt.Printf("%.0f", rate(1, func(int, int) { must(f.WriteAt(random(page), randomPage())) }))
	case "rand write 4K+fsync /s":
		f := open(file)
		fmt.Printf("%.0f", rate(1, func(int, int) {
			must(f.WriteAt(random(page), randomPage()))
			check(f.Sync())
		}))
	case "create+fsync 1 /s", "create+fsync 16 /s":
		threads := 1
		if test == "create+fsync 16 /s" {
			threads = 16
		}
		sub, err := os.MkdirTemp(dir, "create")
		check(err)
		fmt.Printf("%.0f", rate(threads, func(thread, i int) {
			f, err := os.Create(filepath.Join(sub, fmt.Sprint(thread, "-", i)))
			check(err)
			must(f.Write(random(page)))
			check(f.Sync())
			check(f.Close())
		}))
	default:
		log.Fatalf("no test %q", test)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func must(_ int, err error) { check(err) }

func open(file string) *os.File {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	check(err)
	return f
}

func randomPage() int64 { return rand.Int64N(size/page) * page }

var pool = sync.OnceValue(func() []byte {
	p := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{}).Read(p)
	return p
})

// random returns bytes that do not compress: a piece of some that were made once.
func random(n int) []byte {
	p := pool()
	return p[rand.IntN(len(p)-n):][:n]
}

func throughput(fn func()) float64 {
	t0 := time.Now()
	fn()
	return size / 1e6 / time.Since(t0).Seconds()
}

func writeAll(file string) {
	f, err := os.Create(file)
	check(err)
	for range size / piece {
		must(f.Write(random(piece)))
	}
	check(f.Sync())
	check(f.Close())
}

func readAll(file string) {
	f := open(file)
	buf := make([]byte, piece)
	for range size / piece {
		must(f.Read(buf))
	}
}

// rate returns how often per second fn was done.
func rate(threads int, fn func(thread, i int)) float64 {
	var done atomic.Int64
	var running sync.WaitGroup
	t0 := time.Now()
	for thread := range threads {
		running.Go(func() {
			for i := 0; time.Since(t0) < *length; i++ {
				fn(thread, i)
				done.Add(1)
			}
		})
	}
	running.Wait()
	return float64(done.Load()) / time.Since(t0).Seconds()
}
