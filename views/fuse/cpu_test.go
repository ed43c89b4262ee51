package fuse

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"golang.org/x/sys/unix"
)

func cpu() (u, s time.Duration) {
	var r unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &r)
	var c unix.Rusage
	unix.Getrusage(unix.RUSAGE_CHILDREN, &c)
	return time.Duration(r.Utime.Nano() + c.Utime.Nano()), time.Duration(r.Stime.Nano() + c.Stime.Nano())
}

func TestCPU(t *testing.T) {
	if os.Getenv("CPU") == "" {
		t.Skip()
	}
	ctx := context.Background()
	st, err := store.Open(ctx, store.Options{Dir: t.TempDir(), Logger: new(logBuffer).logger(), Keys: keyring.Source{MasterKey: strings.Repeat("0123456789abcdef", 4)}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	content := make([]byte, benchSize)
	rand.Read(content)
	info, err := st.Put(ctx, store.PutRequest{Name: "random", Size: int64(len(content))}, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	ram := newFakeStore()
	rinfo := ram.put("random", content)
	_, dir := mountAt(t, realStore{st}, Options{Capsule: info.ID})
	_, rdir := mountAt(t, ram, Options{Capsule: rinfo.ID})
	report := func(what string, fn func()) {
		fn()
		u, s := cpu()
		start := time.Now()
		const k = 4
		for range k {
			fn()
		}
		w := time.Since(start)
		u2, s2 := cpu()
		n := float64(k * benchSize)
		fmt.Printf("%-10s %.0f MB/s wall; cpu ns/B: user %.2f sys %.2f\n", what, n/1e6/w.Seconds(), float64(u2-u)/n, float64(s2-s)/n)
	}
	report("stream", func() {
		r, _ := st.Open(ctx, info.ID)
		r.Stream(ctx, io.Discard, 0, benchSize)
		r.Close()
	})
	report("readat", func() {
		r, _ := st.Open(ctx, info.ID)
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.NewSectionReader(r, 0, benchSize)}, make([]byte, 256<<10))
		r.Close()
	})
	b := &testing.B{}
	report("ram fuse", func() { runReader(b, "cold", "1", filepath.Join(rdir, "content")) })
	if p := os.Getenv("PROF"); p != "" {
		f, _ := os.Create(p)
		pprof.StartCPUProfile(f)
		defer pprof.StopCPUProfile()
	}
	ViaStream.Store(0); ViaRead.Store(0)
	defer func() { fmt.Println("ns stream MB", ViaStream.Load()>>20, "readat MB", ViaRead.Load()>>20) }()
	report("fuse", func() { runReader(b, "cold", "1", filepath.Join(dir, "content")) })
	report("fuse warm", func() { runReader(b, "warm", "1", filepath.Join(dir, "content")) })
}
