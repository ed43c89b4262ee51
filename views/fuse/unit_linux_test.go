package fuse

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/spacestore/space/capsule"
)

func TestErrnos(t *testing.T) {
	for k := capsule.Other; k <= capsule.Deadlock; k++ {
		if _, ok := errnos[k]; !ok {
			t.Errorf("kind %v has no errno", k)
		}
	}
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{errors.New("a bug"), syscall.EIO},
		{&capsule.DamageError{}, syscall.EIO},
		{context.Canceled, syscall.EINTR},
		{fmt.Errorf("open: %w", capsule.Errorf(capsule.Denied, "no")), syscall.EACCES},
		{capsule.Errorf(200, "from the future"), syscall.EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v is %v, want %v", c.err, got, c.want)
		}
	}
}

func TestReadahead(t *testing.T) {
	const file = 100 << 20
	var streams atomic.Int64
	seq := readahead{streams: &streams}
	end := int64(0) // of what was asked for
	for off := int64(0); off < file; off += 128 << 10 {
		from, n := seq.plan(off, 128<<10, file)
		if n == 0 {
			continue
		}
		if from < end || n > maxWindow || from+n > file || from < off {
			t.Fatalf("read at %d prefetches [%d,+%d) after %d", off, from, n, end)
		}
		end = from + n
	}
	if end != file {
		t.Errorf("prefetched up to %d of %d", end, file)
	}
	if streams.Load() != 1 {
		t.Errorf("%d sequential streams", streams.Load())
	}

	seq.stop()
	if streams.Load() != 0 {
		t.Errorf("%d streams after the end", streams.Load())
	}

	// Many readers share the budget.
	streams.Store(63)
	one := readahead{streams: &streams}
	var largest int64
	for off := int64(0); off < 20<<20; off += 128 << 10 {
		_, n := one.plan(off, 128<<10, file)
		largest = max(largest, n)
	}
	if largest > windowBudget/64+128<<10 {
		t.Errorf("one of 64 readers prefetches %d bytes", largest)
	}
}

func TestRandomReadsPrefetchNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, file := range []int64{8 << 20, 32 << 20, 1 << 40} {
		var streams atomic.Int64
		r := readahead{streams: &streams}
		for i := range 1000 {
			if from, n := r.plan(rng.Int64N(file/4096)*4096, 4096, file); n != 0 {
				t.Fatalf("file of %d bytes: prefetch of [%d,+%d) at read %d", file, from, n, i)
			}
		}
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	if !l.allow("a") || l.allow("a") || !l.allow("b") {
		t.Error("each message should be due once")
	}
	for i := range 10 * logKeys {
		l.allow(fmt.Sprint(i))
	}
	if len(l.last) > logKeys {
		t.Errorf("%d messages are remembered", len(l.last))
	}
}

func TestNotifierIsBounded(t *testing.T) {
	f := newFileSystem(newFakeStore(), capsule.ID{}, new(logBuffer).logger())
	n := newNotifier(f, nil)
	for i := range 3 * maxPending {
		n.changed(Change{Name: fmt.Sprint(i)})
	}
	if !n.all || len(n.pending) > maxPending {
		t.Errorf("%d paths are pending, all=%v", len(n.pending), n.all)
	}
}

func TestSplit(t *testing.T) {
	for p, want := range map[string][2]string{"a": {"", "a"}, "a/b": {"a", "b"}, "a/b/c": {"a/b", "c"}} {
		if dir, name := split(p); dir != want[0] || name != want[1] || join(dir, name) != p {
			t.Errorf("split(%q) = %q, %q", p, dir, name)
		}
	}
}

// A process that can't be looked at keeps nobody waiting for longer than the time
// that there is, and no second search gets stuck at it.
func TestSearchThatIsStuck(t *testing.T) {
	s := search{busy: make(chan struct{}, 1)}
	stuck, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	look := func(proc string) string {
		switch proc {
		case "/proc/none/1":
			return "works in /d"
		case "/proc/none/2":
			close(stuck)
			<-release
		}
		return ""
	}
	procs := []string{"/proc/none/0", "/proc/none/1", "/proc/none/2", "/proc/none/3"}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-stuck
		cancel()
	}()
	if got := s.run(ctx, procs, look); !strings.Contains(got, "process 2 ") || strings.Contains(got, "process 3 ") {
		t.Errorf("a search that is stuck says %q", got)
	}
	if got := s.run(ctx, procs, look); !strings.Contains(got, "process 2 ") { // looking again would close stuck again
		t.Errorf("the next one says %q", got)
	}
}

func TestParseMountinfo(t *testing.T) {
	const text = `22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt\040two\134x rw,noatime master:1 shared:2 - fuse.space space ro,user_id=0
`
	all, err := parseMountinfo(strings.NewReader(text))
	want := mountPoint{dev: "98:0", path: `/mnt two\x`, fsType: "fuse.space", source: "space"}
	if err != nil || len(all) != 2 || all[1] != want {
		t.Errorf("parsed %+v, %v", all, err)
	}
	if _, err := parseMountinfo(strings.NewReader("22 27 0:21\n")); err == nil {
		t.Error("a malformed line passed")
	}
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add("22 27 0:21 / /proc rw,relatime - proc proc rw\n")
	f.Add("36 35 98:0 /mnt1 /mnt\\040two rw master:1 - ext3 /dev/root rw\n")
	f.Add("1 2 3 4 5 6 -\n\\")
	f.Add("1 2 3 4 \\04 6 - a \\777\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseMountinfo(strings.NewReader(text))
		if err == nil && len(all) > strings.Count(text, "\n")+1 {
			t.Errorf("%d mounts from %q", len(all), text)
		}
	})
}
