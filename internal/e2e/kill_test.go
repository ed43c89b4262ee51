package e2e

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/internal/testenv/seed"
)

var killRounds = flag.Int("kill-rounds", 60, "how often each of the kill tests kills")

func rounds() int {
	if testing.Short() {
		return min(*killRounds, 4)
	}
	return *killRounds
}

// model is what the store must hold: content by name.
type model map[string][]byte

// op is one command line and what it makes of the model.
type op struct {
	args  []string
	stdin []byte
	apply func(m model)
}

// names is few, so that replacing and removing hit.
var names = []string{"a", "b", "dir/c", "dir/d", "dir/e/f", "g"}

// content returns data of one of the sizes that take different ways through
// the store: nothing, one segment, many inline, extent pages, several blocks.
func content(rng *rand.Rand, shared []byte) []byte {
	size := []int{0, 1, 4096, 200 << 10, 1500 << 10, 5 << 20}[rng.IntN(6)]
	p := random(rng.Uint64(), size) // never nil, which means "none"
	if rng.IntN(2) == 0 {           // so that segments are shared, and refound as they die
		n := rng.IntN(len(shared))
		p = append(p, shared[:n]...)
	}
	if rng.IntN(3) == 0 {
		p = append(p, make([]byte, rng.IntN(1<<20))...)
	}
	return p
}

func randomOp(rng *rand.Rand, m model, shared []byte) op {
	name := names[rng.IntN(len(names))]
	put := func() op {
		data := content(rng, shared)
		return op{[]string{"put", "-", "--name", name}, data, func(m model) { m[name] = data }}
	}
	switch k := rng.IntN(12); {
	case k < 6 || m[name] == nil && k < 9:
		return put()
	case k < 8:
		return op{[]string{"rm", name}, nil, func(m model) { delete(m, name) }}
	case k < 9:
		to := fmt.Sprintf("renamed/%d", rng.IntN(3))
		if m[to] != nil {
			return put()
		}
		return op{[]string{"rename", name, to}, nil, func(m model) { m[to] = m[name]; delete(m, name) }}
	case k < 11:
		args := []string{"gc", "--min-dead", "0.01"}
		if rng.IntN(2) == 0 {
			args = append(args, "--recompress")
		}
		return op{args, nil, func(model) {}}
	}
	return op{[]string{"key", "rotate"}, nil, func(model) {}}
}

func (m model) clone() model {
	c := make(model, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

// check compares the store with what may be in it: for each name the contents
// that are allowed, nil for none.
func (b *box) check(allowed map[string][][]byte) model {
	b.t.Helper()
	s := b.serve() // spares each command an opening of its own
	defer func() {
		if code := s.stop(unix.SIGTERM); code != 0 {
			b.t.Errorf("serve ended with %d:\n%s", code, s.errs)
		}
	}()
	have := model{}
	out := filepath.Join(b.t.TempDir(), "out")
	for name, e := range b.list() {
		b.must("get", e.ID, "--out", out)
		data, err := os.ReadFile(out)
		if err != nil {
			b.t.Fatal(err)
		}
		have[name] = data
		if int64(len(data)) != e.Size {
			b.t.Errorf("capsule %q: list says %d bytes, get gave %d", name, e.Size, len(data))
		}
	}
	for name := range have {
		if allowed[name] == nil {
			b.t.Errorf("capsule %q is there and should not be", name)
		}
	}
	for name, contents := range allowed {
		data, ok := have[name]
		fits := false
		for _, c := range contents {
			if c == nil && !ok || c != nil && ok && sum(c) == sum(data) {
				fits = true
			}
		}
		if !fits {
			b.t.Errorf("capsule %q: there %v with %d bytes; want one of %s", name, ok, len(data), sizes(contents))
		}
	}
	if r := b.run(nil, "verify"); r.code != 0 {
		b.t.Errorf("verify is not clean: %v", r)
	}
	return have
}

func sizes(contents [][]byte) string {
	var s []string
	for _, c := range contents {
		if c == nil {
			s = append(s, "none")
		} else {
			s = append(s, fmt.Sprintf("%d bytes", len(c)))
		}
	}
	return strings.Join(s, ", ")
}

// either allows each name's content in any of the models.
func either(models ...model) map[string][][]byte {
	allowed := map[string][][]byte{}
	for _, m := range models {
		for name := range m {
			allowed[name] = nil
		}
	}
	for name := range allowed {
		for _, m := range models {
			allowed[name] = append(allowed[name], m[name])
		}
	}
	return allowed
}

// TestKillCommand kills commands that have the store to themselves, at random
// moments of put, replace, remove, rename, gc and key rotation. What a command
// acknowledged is there, what it did not is there whole or not at all.
func TestKillCommand(t *testing.T) {
	t.Parallel()
	rng := seed.Rand(t)
	b := newBox(t)
	shared := random(7, 2<<20)
	m := model{}
	for _, name := range names[:3] {
		m[name] = content(rng, shared)
		b.put(name, m[name])
	}
	length := map[string]time.Duration{} // of each kind of command, so that kills spread over all of it
	killed := 0
	for round := range rounds() {
		o := randomOp(rng, m, shared)
		what := o.args[0]
		if length[what] == 0 {
			length[what] = 100 * time.Millisecond
		}
		after := m.clone()
		o.apply(after)
		cmd := b.command(context.Background(), o.args...)
		cmd.Stdin = bytes.NewReader(o.stdin)
		start := time.Now()
		r := b.runKilled(cmd, time.Duration(rng.Int64N(int64(length[what])*9/8)))
		// An answer that was printed counts, though the process died after it.
		acked := r.code == 0 || what == "put" && printedID(r.out) != ""
		switch {
		case acked:
			length[what] = time.Since(start)
			m = b.check(either(after))
		case r.code == -1:
			killed++
			m = b.check(either(m, after))
		default:
			t.Errorf("round %d failed: %v", round, r)
		}
		if t.Failed() {
			t.Fatalf("round %d, after %v (acknowledged: %v)", round, o.args, acked)
		}
	}
	t.Logf("%d rounds, %d of them killed before an answer", rounds(), killed)
}

// runKilled runs a command and kills it after d, unless it has ended.
func (b *box) runKilled(cmd *exec.Cmd, d time.Duration) result {
	b.t.Helper()
	return b.finish(cmd, func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		kill := time.AfterFunc(d, func() { cmd.Process.Kill() })
		defer kill.Stop()
		return cmd.Wait()
	})
}

// TestKillNode kills a node under several clients at once. Each client's
// capsules are its own, so that what it was told says what must be there.
func TestKillNode(t *testing.T) {
	t.Parallel()
	rng := seed.Rand(t)
	b := newBox(t)
	shared := random(8, 1<<20)
	const clients = 3
	held := make([]model, clients) // what each client knows to be there
	for i := range held {
		held[i] = model{}
	}
	for round := range max(rounds()/4, 2) {
		s := b.serve()
		pending := make([]model, clients) // what a client's last command may have done
		deadline := time.Duration(rng.IntN(600)) * time.Millisecond
		var killed atomic.Bool
		var wg sync.WaitGroup
		for i := range clients {
			mine := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
			wg.Go(func() {
				for {
					o := clientOp(mine, i, held[i], shared)
					next := held[i].clone()
					o.apply(next)
					pending[i] = next
					ctx, cancel := context.WithTimeout(context.Background(), hung)
					cmd := b.command(ctx, o.args...)
					var out, errs bytes.Buffer
					cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(o.stdin), &out, &errs
					err := cmd.Run()
					cancel()
					b.checkCrash(result{args: o.args, err: errs.String()})
					if err == nil {
						held[i] = next
					} else if !killed.Load() {
						t.Errorf("client %d: %v: %v\n%s", i, o.args, err, &errs)
					}
					if killed.Load() || t.Failed() { // a later command would open the store itself
						return
					}
				}
			})
		}
		kill := time.AfterFunc(deadline, func() {
			killed.Store(true)
			s.cmd.Process.Kill()
		})
		wg.Wait()
		kill.Stop()
		s.stop(unix.SIGKILL)
		both := make([]model, 2)
		both[0], both[1] = model{}, model{}
		for i := range clients {
			for k, v := range held[i] {
				both[0][k] = v
			}
			for k, v := range pending[i] {
				both[1][k] = v
			}
		}
		have := b.check(either(both[0], both[1]))
		for i := range clients {
			held[i] = model{}
			for k, v := range have {
				if strings.HasPrefix(k, fmt.Sprintf("client%d/", i)) {
					held[i][k] = v
				}
			}
		}
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

// clientOp is an operation on a client's own capsules, or on the store as a whole.
func clientOp(rng *rand.Rand, client int, m model, shared []byte) op {
	name := fmt.Sprintf("client%d/%d", client, rng.IntN(3))
	switch k := rng.IntN(10); {
	case k < 7 || m[name] == nil && k < 8:
		data := content(rng, shared)
		return op{[]string{"put", "-", "--name", name}, data, func(m model) { m[name] = data }}
	case k < 8:
		return op{[]string{"rm", name}, nil, func(m model) { delete(m, name) }}
	case k < 9:
		return op{[]string{"gc", "--min-dead", "0.01"}, nil, func(model) {}}
	}
	return op{[]string{"key", "rotate"}, nil, func(model) {}}
}

// TestKillDuringRecovery kills the first command after a kill too, and again.
func TestKillDuringRecovery(t *testing.T) {
	t.Parallel()
	rng := seed.Rand(t)
	b := newBox(t)
	shared := random(9, 3<<20)
	kept := random(10, 700<<10)
	b.put("kept", kept)
	want := either(model{"kept": kept})
	for range max(rounds()/6, 2) {
		for range 4 {
			args, stdin := []string{"put", "-", "--name", "big"}, append(random(rng.Uint64(), 4<<20), shared...)
			if rng.IntN(3) == 0 {
				args, stdin = []string{"gc", "--min-dead", "0.01"}, nil
			}
			cmd := b.command(context.Background(), args...)
			cmd.Stdin = bytes.NewReader(stdin)
			r := b.runKilled(cmd, time.Duration(rng.IntN(120))*time.Millisecond)
			if r.code > 0 {
				t.Fatalf("failed: %v", r)
			}
		}
		if b.list()["big"].ID != "" {
			b.must("rm", "big")
		}
		b.check(want)
		if t.Failed() {
			return
		}
	}
	// Nothing that the killed left takes space for ever.
	b.must("gc", "--min-dead", "0.001")
	if u := b.df(); u.Dead > 64<<10 || u.Pending != 0 || u.Stored > 2*int64(len(kept)) {
		t.Errorf("after gc the store still takes %+v for %d bytes", u, len(kept))
	}
}

// TestKillMountedNode kills the node under a mount, which then can be cleared
// away and made again.
func TestKillMountedNode(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	b := newBox(t)
	b.vars = []string{"SPACE_MOUNT_WAIT=0"} // the mount ends with its node
	dir := t.TempDir()
	data := random(11, 1<<20)
	b.put("f", data)
	s := b.serve()
	unmountAll(t, dir)
	b.must("project", "mount", "f", "--target", dir)
	s.stop(unix.SIGKILL)
	if _, err := os.ReadFile(filepath.Join(dir, "content")); err == nil {
		t.Fatal("a mount whose node is dead still reads")
	}
	b.must("project", "unmount", dir)
	b.must("project", "mount", "f", "--target", dir)
	if got, err := os.ReadFile(filepath.Join(dir, "content")); err != nil || sum(got) != sum(data) {
		t.Errorf("after a new mount: %d bytes, %v", len(got), err)
	}
	b.must("project", "unmount", dir)
}
