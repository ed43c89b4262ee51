// Command fsx checks that a file holds what was written to it: it does random
// reads, writes, mappings, truncations, holes, shifts and copies on a file, and
// on a model of it in memory, and compares. It is what fsx is for other file
// systems, which found many a bug.
//
//	go run ./scripts/fsx -dir MOUNT -time 10m
//	go run ./scripts/fsx -dir MOUNT -seed 42 -ops 10000
//	go run ./scripts/fsx -dir MOUNT -remount 'umount MOUNT && mount MOUNT'
//
// It prints the seed, and where the file is wrong, the operations that led there.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	var c config
	flag.StringVar(&c.dir, "dir", ".", "directory to work in")
	flag.Uint64Var(&c.seed, "seed", 0, "what the operations follow from (0: another one each time)")
	flag.IntVar(&c.ops, "ops", 0, "how many operations to do (0: until the time is over)")
	flag.DurationVar(&c.time, "time", time.Minute, "for how long, without -ops")
	flag.Int64Var(&c.size, "size", 512<<10, "how large the file may get")
	flag.StringVar(&c.remount, "remount", "", "shell command to unmount and mount the directory again, run now and then")
	flag.Parse()
	if c.seed == 0 {
		c.seed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("fsx: -seed %d\n", c.seed)
	start := time.Now()
	n, err := run(c)
	if err != nil {
		fmt.Fprintf(os.Stderr, "fsx: after %d operations: %v\n", n, err)
		os.Exit(1)
	}
	fmt.Printf("fsx: %d operations in %v, no difference\n", n, time.Since(start).Round(time.Second))
}

type config struct {
	dir     string
	seed    uint64
	ops     int
	time    time.Duration
	size    int64
	remount string
}

// block is to what holes and shifts are aligned where that is asked for.
const block = 4096

// checker is a file and what it should hold.
type checker struct {
	*rand.Rand
	config
	file, other *os.File // other is for copies from file to file
	want        []byte
	without     map[string]bool // operations that the file system does not have
	log         []string
}

func run(c config) (n int, err error) {
	k := &checker{Rand: rand.New(rand.NewPCG(c.seed, 0)), config: c, without: map[string]bool{}}
	for _, name := range []string{"fsx.file", "fsx.other"} {
		if err := os.Remove(filepath.Join(c.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
	}
	defer func() {
		k.close()
		if err != nil {
			err = fmt.Errorf("%w\nthe last operations were\n  %s", err, strings.Join(k.log, "\n  "))
		}
	}()
	if err := k.open(); err != nil {
		return 0, err
	}
	for end := time.Now().Add(c.time); c.ops > 0 && n < c.ops || c.ops == 0 && time.Now().Before(end); n++ {
		if err := k.step(); err != nil {
			return n, err
		}
		if n%50 == 49 {
			if err := k.check(0, int64(len(k.want))); err != nil {
				return n, err
			}
		}
	}
	return n, k.check(0, int64(len(k.want)))
}

func (k *checker) open() (err error) {
	if k.file, err = os.OpenFile(filepath.Join(k.dir, "fsx.file"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	k.other, err = os.OpenFile(filepath.Join(k.dir, "fsx.other"), os.O_RDWR|os.O_CREATE, 0o600)
	return err
}

func (k *checker) close() error {
	if k.file == nil || k.other == nil {
		return nil
	}
	return errors.Join(k.file.Close(), k.other.Close())
}

// span returns a random range within [0, limit), at times aligned.
func (k *checker) span(limit int64) (off, n int64) {
	if limit <= 0 {
		return 0, 0
	}
	off = k.Int64N(limit)
	n = 1 + k.Int64N(min(limit-off, 128<<10))
	if k.IntN(4) == 0 {
		off &^= block - 1
	}
	if k.IntN(4) == 0 && off+n > block {
		n = max((off+n)&^(block-1)-off, 1)
	}
	return off, n
}

// grow makes the model at least n bytes long.
func (k *checker) grow(n int64) {
	if more := n - int64(len(k.want)); more > 0 {
		k.want = append(k.want, make([]byte, more)...)
	}
}

func (k *checker) data(n int64) []byte {
	p := make([]byte, n)
	if k.IntN(8) == 0 {
		return p // zeros are content too
	}
	x := k.Uint64()
	for i := range p {
		p[i] = byte(x >> (i % 8 * 8))
		if i%512 == 511 {
			x = x*6364136223846793005 + 1
		}
	}
	return p
}

func (k *checker) note(format string, args ...any) {
	if k.log = append(k.log, fmt.Sprintf(format, args...)); len(k.log) > 60 {
		k.log = k.log[1:]
	}
}

// step does one random operation.
func (k *checker) step() error {
	size := int64(len(k.want))
	switch n := k.IntN(100); {
	case n < 20:
		off, n := k.span(size)
		k.note("read %d %d", off, n)
		return k.check(off, n)
	case n < 45:
		off, n := k.span(k.size)
		p := k.data(n)
		k.note("write %d %d", off, n)
		if _, err := k.file.WriteAt(p, off); err != nil {
			return err
		}
		k.grow(off + n)
		copy(k.want[off:], p)
		return nil
	case n < 52:
		off, n := k.span(size)
		k.note("read %d %d of a mapping", off, n)
		return k.mapped(off, n, unix.PROT_READ, func(p []byte) error { return k.compare(p, off) })
	case n < 60:
		off, n := k.span(size)
		src := k.data(n)
		k.note("write %d %d to a mapping", off, n)
		return k.mapped(off, n, unix.PROT_READ|unix.PROT_WRITE, func(p []byte) error {
			copy(p, src)
			copy(k.want[off:], src)
			return nil
		})
	case n < 67:
		to := k.Int64N(k.size)
		k.note("truncate %d to %d", size, to)
		if err := k.file.Truncate(to); err != nil {
			return err
		}
		k.grow(to)
		k.want = k.want[:to:to]
		return nil
	case n < 72:
		off, n := k.span(k.size)
		return k.allocate("punch", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n, func() { k.zero(off, n) })
	case n < 77:
		off, n := k.span(k.size)
		if k.IntN(2) == 0 {
			return k.allocate("zero, keeping the size,", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n, func() { k.zero(off, n) })
		}
		return k.allocate("zero", unix.FALLOC_FL_ZERO_RANGE, off, n, func() { k.grow(off + n); k.zero(off, n) })
	case n < 80:
		off, n := k.span(k.size)
		return k.allocate("allocate", 0, off, n, func() { k.grow(off + n) })
	case n < 84:
		off, n := k.span(size)
		off, n = off&^(block-1), n&^(block-1)
		if n == 0 || off+n >= size {
			return nil
		}
		return k.allocate("collapse", unix.FALLOC_FL_COLLAPSE_RANGE, off, n, func() { k.want = append(k.want[:off:off], k.want[off+n:]...) })
	case n < 88:
		off, n := k.span(size)
		off, n = off&^(block-1), n&^(block-1)
		if n == 0 || off >= size || size+n > k.size {
			return nil
		}
		return k.allocate("insert", unix.FALLOC_FL_INSERT_RANGE, off, n, func() {
			k.want = append(append(append([]byte{}, k.want[:off]...), make([]byte, n)...), k.want[off:]...)
		})
	case n < 93:
		return k.copyWithin()
	case n < 95:
		return k.copyOver()
	case n < 98:
		k.note("fsync")
		return k.file.Sync()
	case n == 98 || k.remount == "" || k.IntN(20) > 0:
		k.note("reopen")
		if err := k.close(); err != nil {
			return err
		}
		return k.open()
	}
	k.note("remount")
	if err := k.close(); err != nil {
		return err
	}
	if out, err := exec.Command("sh", "-c", k.remount).CombinedOutput(); err != nil {
		return fmt.Errorf("remount: %w\n%s", err, out)
	}
	if err := k.open(); err != nil {
		return err
	}
	return k.check(0, int64(len(k.want)))
}

func (k *checker) zero(off, n int64) {
	if off < int64(len(k.want)) {
		clear(k.want[off:min(off+n, int64(len(k.want)))])
	}
}

// allocate does what fallocate does, where there is such a thing.
func (k *checker) allocate(what string, mode uint32, off, n int64, model func()) error {
	if k.without[what] {
		return nil
	}
	k.note("%s %d %d", what, off, n)
	switch err := unix.Fallocate(int(k.file.Fd()), mode, off, n); {
	case errors.Is(err, unix.EOPNOTSUPP):
		fmt.Printf("fsx: this file system does not %s\n", strings.TrimSuffix(what, ","))
		k.without[what] = true
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	default:
		model()
	}
	return nil
}

// copyWithin copies a range of the file to another place in it that does not
// overlap, as a clone if the file system shares what is copied.
func (k *checker) copyWithin() error {
	src, n := k.span(int64(len(k.want)))
	dst := k.Int64N(k.size)
	n = min(n, k.size-dst)
	if n == 0 || src < dst+n && dst < src+n {
		return nil
	}
	k.note("copy %d %d to %d", src, n, dst)
	if err := copyRange(k.file, dst, k.file, src, n); err != nil {
		return err
	}
	k.grow(dst + n)
	copy(k.want[dst:dst+n], k.want[src:src+n])
	return nil
}

// copyOver copies the file to another one, changes that, and copies a part
// back: what the two share must not show the change.
func (k *checker) copyOver() error {
	size := int64(len(k.want))
	off, n := k.span(size)
	if n == 0 {
		return nil
	}
	k.note("copy all to another file, write there, copy %d %d back", off, n)
	if err := k.other.Truncate(0); err != nil {
		return err
	}
	if err := copyRange(k.other, 0, k.file, 0, size); err != nil {
		return err
	}
	p := k.data(n)
	if _, err := k.other.WriteAt(p, off); err != nil {
		return err
	}
	if err := k.check(0, size); err != nil {
		return err
	}
	if err := copyRange(k.file, off, k.other, off, n); err != nil {
		return err
	}
	copy(k.want[off:], p)
	return nil
}

func copyRange(dst *os.File, dstOff int64, src *os.File, srcOff, n int64) error {
	for n > 0 {
		done, err := unix.CopyFileRange(int(src.Fd()), &srcOff, int(dst.Fd()), &dstOff, int(n), 0)
		if err != nil {
			return fmt.Errorf("copy_file_range: %w", err)
		}
		if done == 0 {
			return fmt.Errorf("copy_file_range ends %d bytes too early", n)
		}
		n -= int64(done)
	}
	return nil
}

// mapped calls fn with a range of the file in memory.
func (k *checker) mapped(off, n int64, prot int, fn func(p []byte) error) error {
	if n == 0 {
		return nil
	}
	page := int64(os.Getpagesize())
	start := off &^ (page - 1)
	m, err := unix.Mmap(int(k.file.Fd()), start, int(off+n-start), prot, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	err = fn(m[off-start:])
	if prot&unix.PROT_WRITE != 0 && k.IntN(2) == 0 {
		if serr := unix.Msync(m, unix.MS_SYNC); serr != nil {
			return errors.Join(fmt.Errorf("msync: %w", serr), unix.Munmap(m))
		}
	}
	if uerr := unix.Munmap(m); err == nil {
		err = uerr
	}
	return err
}

// check reads a range and compares, and with it the size.
func (k *checker) check(off, n int64) error {
	st, err := k.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() != int64(len(k.want)) {
		return fmt.Errorf("the file has %d bytes, and should have %d", st.Size(), len(k.want))
	}
	p := make([]byte, n)
	if _, err := k.file.ReadAt(p, off); err != nil {
		return fmt.Errorf("read %d %d: %w", off, n, err)
	}
	return k.compare(p, off)
}

func (k *checker) compare(p []byte, off int64) error {
	want := k.want[off : off+int64(len(p))]
	if bytes.Equal(p, want) {
		return nil
	}
	first, last, n := -1, 0, 0
	for i := range p {
		if p[i] != want[i] {
			if first < 0 {
				first = i
			}
			last = i
			n++
		}
	}
	return fmt.Errorf("%d bytes are wrong between %d and %d: the first is %#02x, and should be %#02x",
		n, off+int64(first), off+int64(last), p[first], want[first])
}
