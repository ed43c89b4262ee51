package e2e

import (
	"bufio"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/internal/testenv/seed"
)

var memoryFor = flag.Duration("memory-time", 0, "for how long TestMemoryBound writes (0: 400 MiB)")

// TestMemoryBound has a node's mounts of a tree and a volume written to as fast as
// they take it, in sequence and at random, and wants the memory of the node to stay
// within its bound all the while.
func TestMemoryBound(t *testing.T) {
	t.Parallel()
	b, dir := workTree(t)
	disk := filepath.Join(openTempDir(t), "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	unmountAll(t, disk)
	const bound = 256 << 20
	b.vars = append(b.vars, "SPACE_MEMORY_LIMIT=256MiB")
	b.must("volume", "create", "disk", "--size", "256MiB")
	s := b.serve()
	b.must("project", "mount", "work", "--target", dir)
	b.must("project", "mount", "disk", "--target", disk)

	const fileSize = 64 << 20
	var written atomic.Int64
	start := time.Now()
	enough := func() bool {
		if *memoryFor > 0 {
			return time.Since(start) > *memoryFor
		}
		return written.Load() > 400<<20
	}
	// writer writes pieces within a part of a file until it is enough.
	writer := func(r *rand.Rand, path string, from, size, piece int64, sequential bool) error {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		key := [32]byte{}
		binary.LittleEndian.PutUint64(key[:], r.Uint64())
		fresh, part := rand.NewChaCha8(key), make([]byte, piece)
		for n := int64(0); !enough(); n++ {
			at := n * piece % size
			if !sequential {
				at = r.Int64N(size/piece) * piece
			}
			fresh.Read(part) // or it would be stored once
			if _, err := f.WriteAt(part, from+at); err != nil {
				return err
			}
			if written.Add(piece); n%1000 == 999 {
				if err := f.Sync(); err != nil {
					return err
				}
			}
		}
		return f.Close()
	}
	var wg sync.WaitGroup
	choices := seed.Rand(t)
	for i := range int64(8) {
		r := rand.New(rand.NewPCG(choices.Uint64(), 0))
		path, from := filepath.Join(dir, fmt.Sprint(i)), int64(0)
		if i >= 4 {
			path, from = filepath.Join(disk, "content"), (i-4)*fileSize
		}
		piece := int64(4 << 10)
		if i%2 == 1 {
			piece = 1 << 20
		}
		wg.Go(func() {
			if err := writer(r, path, from, fileSize, piece, i%4 >= 2); err != nil {
				t.Error(err)
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		wg.Wait()
	}()
	var peak int64
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		peak = max(peak, anonymous(t, s.cmd.Process.Pid))
		select {
		case <-tick.C:
			continue
		case <-ended:
			tick.Stop()
		}
		break
	}
	t.Logf("%d MiB written in %v; the node had %d MiB of memory at most", written.Load()>>20, time.Since(start).Round(time.Second), peak>>20)
	if peak > bound {
		t.Errorf("the node had %d MiB of memory, its bound is %d", peak>>20, bound>>20)
	}
	b.must("project", "unmount", dir)
	b.must("project", "unmount", disk)
	b.must("fsck")
	s.stop(unix.SIGTERM)
}

// anonymous returns how much memory of its own a process has in use.
func anonymous(t *testing.T, pid int) (n int64) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(io.LimitReader(f, 1<<20)); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "RssAnon:"); ok {
			fmt.Sscan(v, &n)
		}
	}
	return n << 10
}
