package bench

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
)

func options(t *testing.T) Options {
	return Options{Dir: t.TempDir(), Size: 2 << 20, Rounds: 1, Logger: slog.New(slog.DiscardHandler)}
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestEverythingIsMeasured(t *testing.T) {
	o := options(t)
	o.Files = []string{filepath.Join(t.TempDir(), "mine")}
	if err := os.WriteFile(o.Files[0], append(make([]byte, 100_000), "not zeros alone"...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, files := range [][]string{nil, o.Files} {
		o.Files = files
		rounds := 0
		o.Progress = func(int, int) { rounds++ }
		rep, err := measure(context.Background(), o, effort{time.Millisecond, 4})
		if err != nil {
			t.Fatal(err)
		}
		wantEmpty(t, o.Dir)
		if rounds != 2 {
			t.Errorf("%d rounds, want the one asked for and the discarded one", rounds)
		}
		corpora := len(files)
		if files == nil {
			corpora = 2
		}
		if len(rep.Corpora) != corpora || len(rep.Codecs) != corpora*len(compressions) {
			t.Errorf("%d corpora and %d codecs, want %d corpora", len(rep.Corpora), len(rep.Codecs), corpora)
		}
		if canDropCache && (len(rep.Machine) != len(machineRates) || len(rep.Operations) != 8*corpora+3) {
			t.Errorf("%d of the machine's rates and %d operations are missing some", len(rep.Machine), len(rep.Operations))
		}
		for _, op := range rep.Operations {
			if op.Value.Value <= 0 || op.Limit != "" && !(op.Reached > 0) {
				t.Errorf("%+v", op)
			}
		}
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	o := options(t)
	ctx, cancel := context.WithCancel(context.Background())
	o.Progress = func(done, _ int) {
		if done == 1 {
			cancel()
		}
	}
	_, err := measure(ctx, o, effort{time.Millisecond, 4})
	if capsule.KindOf(err) != capsule.Canceled {
		t.Errorf("error %v, want one of kind canceled", err)
	}
	wantEmpty(t, o.Dir)
}

func TestWhatCannotBeMeasuredIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		want   capsule.ErrorKind
	}{
		"no rounds":    {func(o *Options) { o.Rounds = 0 }, capsule.Invalid},
		"tiny":         {func(o *Options) { o.Size = 1000 }, capsule.Invalid},
		"huge":         {func(o *Options) { o.Size = 1 << 60 }, capsule.NoSpace},
		"no such file": {func(o *Options) { o.Files = []string{filepath.Join(o.Dir, "x")} }, capsule.NotFound},
		"directory":    {func(o *Options) { o.Files = []string{o.Dir} }, capsule.Invalid},
		"no such dir":  {func(o *Options) { o.Dir = filepath.Join(o.Dir, "x") }, capsule.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			dir := o.Dir
			c.change(&o)
			if _, err := Run(context.Background(), o); capsule.KindOf(err) != c.want {
				t.Errorf("error %v (%v), want kind %v", err, capsule.KindOf(err), c.want)
			}
			wantEmpty(t, dir)
		})
	}
}

func TestLimits(t *testing.T) {
	two := processor(stage{"a", 100, 1}, stage{"b", 50, 0.5}, stage{"unused", 1, 0}, stage{"unknown", 0, 1})
	if two.value != 50 || two.name != "CPU: a + b" {
		t.Errorf("stages that take 10 and 10 ms of a MB allow %v", two)
	}
	if l := lowest(two, disk("disk", 10, 0.5), none); l.name != "disk" || l.value != 20 {
		t.Errorf("a disk of 10 MB/s that gets half of the bytes allows %v", l)
	}
	if l := lowest(disk("disk", 10, 0), none); l != none {
		t.Errorf("nothing goes to the disk, and yet %v", l)
	}
}
