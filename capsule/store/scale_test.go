package store

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// What a store of a size that no other test reaches costs. Nothing fails for
// being slow: the figures are for people to read, in the log of
//
//	go test ./capsule/store -run Scale -v -million -huge
//
// Each part runs in a process of its own, for its peak of memory.
var (
	million = flag.Bool("million", false, "measure a store with a million capsules")
	huge    = flag.Bool("huge", false, "measure capsules of 4 GiB")
)

// scaleParts are what the processes do, by name.
var scaleParts = map[string]func(t *testing.T, dir string){
	"fill": func(t *testing.T, dir string) {
		start := time.Now()
		s := openDisk(t, Options{Dir: dir})
		fill(t, s, 1_000_000)
		t.Logf("put a million capsules: %v", time.Since(start))
	},
	"use": func(t *testing.T, dir string) {
		start := time.Now()
		s := openDisk(t, Options{Dir: dir})
		t.Logf("open: %v", time.Since(start))
		var cursor string
		for _, which := range []string{"first", "second", "third"} {
			start = time.Now()
			page, err := s.List(context.Background(), ListQuery{Limit: 1000, Cursor: cursor})
			if err != nil || len(page.Capsules) != 1000 {
				t.Fatalf("%d capsules, %v", len(page.Capsules), err)
			}
			cursor = page.Next
			t.Logf("%s page of 1000: %v", which, time.Since(start))
		}
		start = time.Now()
		if _, err := s.Resolve(context.Background(), "dir/00777777"); err != nil {
			t.Fatal(err)
		}
		t.Logf("resolve a name: %v", time.Since(start))
		start = time.Now()
		n := 0
		for q := (ListQuery{Limit: maxPage}); ; {
			page, err := s.List(context.Background(), q)
			if err != nil {
				t.Fatal(err)
			}
			n += len(page.Capsules)
			if q.Cursor = page.Next; q.Cursor == "" {
				break
			}
		}
		t.Logf("list all %d: %v", n, time.Since(start))
	},
	"put": func(t *testing.T, dir string) {
		s := openDisk(t, Options{Dir: dir})
		for _, c := range []struct {
			name string
			data io.Reader
		}{{"random", rand.NewChaCha8([32]byte{1})}, {"text", newRepeated()}} {
			start := time.Now()
			if _, err := s.Put(context.Background(), PutRequest{Name: c.name, Size: 4 << 30}, io.LimitReader(c.data, 4<<30)); err != nil {
				t.Fatal(err)
			}
			t.Logf("put 4 GiB, %s: %v", c.name, time.Since(start))
		}
	},
	"get": func(t *testing.T, dir string) {
		s := openDisk(t, Options{Dir: dir})
		for _, name := range []string{"random", "text"} {
			info, err := s.Resolve(context.Background(), name)
			if err != nil {
				t.Fatal(err)
			}
			r := openReader(t, s, info.ID)
			start := time.Now()
			if _, err := r.Stream(context.Background(), io.Discard, 0, -1); err != nil {
				t.Fatal(err)
			}
			t.Logf("get 4 GiB, %s: %v", name, time.Since(start))
		}
	},
}

// repeated is text that goes on for ever: pieces that are the same but for a
// number in each line.
type repeated struct {
	lines [][]byte
	n     int
	rest  []byte
}

func newRepeated() *repeated { return &repeated{lines: bytes.SplitAfter(text(1, 1<<20), []byte("\n"))} }

func (r *repeated) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		r.rest = r.rest[:0]
		for range 1000 {
			r.rest = fmt.Appendf(r.rest, "%d ", r.n)
			r.rest = append(r.rest, r.lines[r.n%len(r.lines)]...)
			r.n++
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

const scaleEnv = "SPACE_TEST_SCALE"

func TestScale(t *testing.T) {
	if env := os.Getenv(scaleEnv); env != "" {
		part, dir, _ := strings.Cut(env, " ")
		scaleParts[part](t, dir)
		t.Logf("memory: %s", memoryStatus())
		return
	}
	if !*million && !*huge {
		t.Skip("only with -million or -huge: takes minutes and up to 8 GiB of disk")
	}
	run := func(name, dir string) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestScale$", "-test.v")
		cmd.Env = append(os.Environ(), scaleEnv+"="+name+" "+dir)
		out, err := cmd.CombinedOutput()
		t.Logf("%s: %v CPU\n%s", name, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime(), out)
		if err != nil {
			t.Fatal(err)
		}
	}
	if *million {
		dir := t.TempDir()
		run("fill", dir)
		run("use", dir)
	}
	if *huge {
		dir := t.TempDir()
		run("put", dir)
		run("get", dir)
	}
}

// memoryStatus is what the kernel says about the resident memory of this process.
func memoryStatus() string {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "not known: " + err.Error()
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "VmRSS") {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
	}
	return strings.Join(lines, ", ")
}
