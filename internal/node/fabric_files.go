package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/files"
	"github.com/spacestore/space/internal/control"
)

// filesKind is the kind of service that gives files; the pool is the name under
// which they are offered.
const filesKind = "files"

const (
	tellEvery  = 200 * time.Millisecond
	maxMirrors = 16
)

// Send implements control.Fabric.
func (f *fabricNode) Send(ctx context.Context, r control.SendRequest, tell func(control.JobEvent) error) error {
	if err := CheckFabricName(r.Name); err != nil {
		return capsule.Errorf(capsule.Invalid, "the name %.64q is not valid: %v; give another one with --name", r.Name, err)
	}
	return f.job(ctx, func(ctx context.Context) error { return f.send(ctx, r, tell) })
}

// send offers files until ctx ends, or so many have received them.
func (f *fabricNode) send(ctx context.Context, r control.SendRequest, tell func(control.JobEvent) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	enough := errors.New("enough have received it")
	var times atomic.Int64
	s, err := files.NewShare(r.Path, files.ShareOptions{Done: func() {
		f.counts.given.done.Add(1)
		if n := times.Add(1); r.Times > 0 && n >= int64(r.Times) {
			cancel(enough)
		}
	}})
	if err != nil {
		return filesError(err)
	}
	defer s.Close()
	tell = serially(tell)
	size, count, skipped := s.Size()
	if skipped > 0 {
		if err := tell(control.JobEvent{Note: fmt.Sprintf("%d devices, sockets and the like are not sent", skipped)}); err != nil {
			return err
		}
	}
	f.counts.given.running.Add(1)
	defer f.counts.given.running.Add(-1)
	total := int64(-1)
	if r.Times > 0 {
		total = size * int64(r.Times)
	}
	counted := int64(0)
	progress := func() control.JobEvent {
		sent := s.Sent()
		f.counts.given.bytes.Add(sent - counted)
		counted = sent
		return control.JobEvent{Progress: &control.JobProgress{Done: sent, Total: total, Files: count}}
	}
	stop := every(ctx, tellEvery, func() {
		if err := tell(progress()); err != nil {
			cancel(err)
		}
	})
	err = f.provide(ctx, fabric.Service{Profile: profile("artifact-store"), Pool: r.Name, Kind: filesKind}, tell,
		func(ctx context.Context, t *fabric.Tunnel) error { return s.Serve(ctx, t) })
	stop()
	if context.Cause(ctx) == enough {
		return tell(progress())
	}
	return err
}

// serially makes tell usable from many goroutines.
func serially(tell func(control.JobEvent) error) func(control.JobEvent) error {
	var mu sync.Mutex
	return func(e control.JobEvent) error {
		mu.Lock()
		defer mu.Unlock()
		return tell(e)
	}
}

// every calls fn again and again until it is stopped, or ctx ends.
func every(ctx context.Context, d time.Duration, fn func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				fn()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// Receive implements control.Fabric.
func (f *fabricNode) Receive(ctx context.Context, r control.ReceiveRequest, tell func(control.JobEvent) error) error {
	if err := CheckFabricName(r.Name); err != nil {
		return capsule.Errorf(capsule.Invalid, "the name %.64q is not valid: %v", r.Name, err)
	}
	return f.job(ctx, func(ctx context.Context) error {
		f.counts.taken.running.Add(1)
		defer f.counts.taken.running.Add(-1)
		err := span(ctx, "fabric.transfer", func(ctx context.Context) error { return f.receive(ctx, r, serially(tell)) }, attribute.String("fabric.pool", r.Name))
		if err != nil {
			f.counts.taken.failed.Add(1)
			return err
		}
		f.counts.taken.done.Add(1)
		return nil
	})
}

func (f *fabricNode) receive(ctx context.Context, r control.ReceiveRequest, tell func(control.JobEvent) error) error {
	o := files.ReceiveOptions{Target: r.Target, Rate: r.Rate}
	if _, err := os.Lstat(r.Target); err == nil { // before anybody is asked for it
		return filesError(fmt.Errorf("%w: %s", files.ErrExists, r.Target))
	}
	tunnels, err := f.mirrors(ctx, r)
	for _, t := range tunnels {
		defer t.close()
		o.Mirrors = append(o.Mirrors, files.Mirror{Opener: &t.lasting, Name: t.name})
	}
	if err != nil {
		return err
	}
	var last files.Progress
	o.Progress = func(p files.Progress) {
		if p.Restart != last.Restart && tell(control.JobEvent{Note: "it begins again: " + p.Restart}) != nil {
			return // the command has gone, and ctx ends
		}
		f.counts.taken.bytes.Add(max(p.Bytes.Fetched-last.Bytes.Fetched, 0))
		last = p
		_ = tell(control.JobEvent{Progress: &control.JobProgress{Done: p.Bytes.Done, Total: p.Bytes.Size, Resumed: p.Bytes.Resumed, Files: p.Files}})
	}
	return filesError(files.Receive(ctx, o))
}

// mirror is a node that gives the files.
type mirror struct {
	lasting
	name string
}

// mirrors finds nodes that offer the files: at least one.
func (f *fabricNode) mirrors(ctx context.Context, r control.ReceiveRequest) (list []*mirror, _ error) {
	if r.Mirrors <= 0 {
		r.Mirrors = 2
	}
	var apart []fabric.TunnelID
	for len(list) < min(r.Mirrors, maxMirrors) {
		m := &mirror{lasting: lasting{f: f, request: fabric.Request{Profile: profile("artifact-store"), Pool: r.Name, Kind: filesKind, Apart: slices.Clone(apart)}}}
		wait := r.Wait
		if len(list) > 0 {
			wait = 0
		}
		var t *fabric.Tunnel
		err := f.patiently(ctx, wait, func() (err error) {
			t, err = m.get(ctx)
			return err
		})
		if err != nil {
			if len(list) > 0 {
				break // those that there are will do
			}
			return nil, err
		}
		apart = append(apart, t.ID())
		m.name = t.Peer().String()
		list = append(list, m)
	}
	return list, nil
}

// filesError gives an error of a transfer its kind.
func filesError(err error) error {
	var remote *bulk.RemoteError
	kind := capsule.Other
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bulk.ErrFull), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		kind = capsule.NoSpace
	case errors.Is(err, files.ErrExists), errors.Is(err, fs.ErrExist):
		kind = capsule.Exists
	case errors.Is(err, files.ErrBusy):
		kind = capsule.Conflict
	case errors.As(err, &remote) && remote.Code == bulk.CodeChanged:
		kind = capsule.Conflict
	case errors.Is(err, bulk.ErrRoot), errors.Is(err, files.ErrManifest):
		kind = capsule.Damaged
	case errors.Is(err, bulk.ErrNoMirror):
		kind = capsule.Unavailable
	case errors.Is(err, fs.ErrNotExist):
		kind = capsule.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = capsule.Denied
	case errors.Is(err, context.Canceled):
		return err
	}
	return capsule.Wrap(kind, err, "")
}
