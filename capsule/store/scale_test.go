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
	"syscall"
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
		s := openDisk(t, Options{Dir: dir})
		spent(t, "put a million capsules", func() { fill(t, s, 1_000_000) })
	},
	"use": func(t *testing.T, dir string) {
		var s *Store
		spent(t, "open", func() { s = openDisk(t, Options{Dir: dir}) })
		list := func(q ListQuery) Page {
			page, err := s.List(context.Background(), q)
			if err != nil {
				t.Fatal(err)
			}
			return page
		}
		var first Page
		spent(t, "first page of 1000", func() { first = list(ListQuery{Limit: 1000}) })
		spent(t, "second page", func() { list(ListQuery{Limit: 1000, Cursor: first.Next}) })
		spent(t, "resolve a name", func() {
			if _, err := s.Resolve(context.Background(), "dir/00777777"); err != nil {
				t.Fatal(err)
			}
		})
		spent(t, "list all", func() {
			n := 0
			for q := (ListQuery{Limit: maxPage}); ; {
				page := list(q)
				n += len(page.Capsules)
				if q.Cursor = page.Next; q.Cursor == "" {
					break
				}
			}
			if n != 1_000_000 {
				t.Fatalf("%d capsules", n)
			}
		})
	},
	"put": func(t *testing.T, dir string) {
		s := openDisk(t, Options{Dir: dir})
		for _, c := range []struct {
			name string
			data io.Reader
		}{{"random", rand.NewChaCha8([32]byte{1})}, {"text", newRepeated()}} {
			spent(t, "put 4 GiB, "+c.name, func() {
				req := PutRequest{Name: c.name, Size: 4 << 30}
				if _, err := s.Put(context.Background(), req, io.LimitReader(c.data, req.Size)); err != nil {
					t.Fatal(err)
				}
			})
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
			spent(t, "get 4 GiB, "+name, func() {
				if _, err := r.Stream(context.Background(), io.Discard, 0, -1); err != nil {
					t.Fatal(err)
				}
			})
		}
	},
}

// spent logs how long fn takes, and how much of the processors' time.
func spent(t *testing.T, what string, fn func()) {
	t.Helper()
	start, cpu := time.Now(), processTime(t)
	fn()
	t.Logf("%s: %v, CPU %v", what, time.Since(start), processTime(t)-cpu)
}

func processTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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

// TestScale does nothing unless a flag asks for it: it takes minutes, and up to
// 8 GiB of disk.
func TestScale(t *testing.T) {
	if env := os.Getenv(scaleEnv); env != "" {
		part, dir, _ := strings.Cut(env, " ")
		scaleParts[part](t, dir)
		t.Logf("memory: %s", memoryStatus())
		return
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
