package main

import (
	"maps"
	"slices"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/spacestore/space/internal/control/transfer"
)

// bar shows the progress of a long job on a terminal, and nothing elsewhere.
type bar struct {
	p    *progressbar.ProgressBar
	quit chan struct{}
	done chan struct{}
}

// newBar returns a bar over total bytes; a negative total is not known.
func (a *app) newBar(what string, total int64) *bar {
	if !isTerminal(a.stderr) || a.json() {
		return &bar{}
	}
	return &bar{p: progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(a.stderr),
		progressbar.OptionSetDescription(printable(show(what))),
		progressbar.OptionShowBytes(true),
		progressbar.OptionShowTotalBytes(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionFullWidth(),
		progressbar.OptionClearOnFinish(),
	)}
}

// set is for jobs that report done and total themselves.
func (b *bar) set(done, total int64) {
	if b.p == nil {
		return
	}
	if total != b.p.GetMax64() && total > 0 {
		b.p.ChangeMax64(total)
	}
	b.p.Set64(done)
}

// follow keeps the bar up to date with p until finish.
func (b *bar) follow(p *transfer.Progress) {
	if b.p == nil {
		return
	}
	b.quit, b.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(b.done)
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				b.p.Set64(p.Bytes.Load())
			case <-b.quit:
				return
			}
		}
	}()
}

// finish takes the bar off the screen.
func (b *bar) finish() {
	if b.p == nil {
		return
	}
	if b.quit != nil {
		close(b.quit)
		<-b.done
	}
	b.p.Clear()
	b.p.Exit()
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
