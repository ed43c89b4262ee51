package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/files"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
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
	if r.To != "" {
		return f.job(ctx, func(ctx context.Context) error { return f.push(ctx, r, tell) })
	}
	if err := CheckFabricName(r.Name); err != nil {
		return capsule.Errorf(capsule.Invalid, "the name %.64q is not valid: %v; give another one with --name", r.Name, err)
	}
	return f.job(ctx, func(ctx context.Context) error { return f.send(ctx, r, tell) })
}

// share makes a share of what is to be sent, and tells what is not in it. What tell
// returns later ends the job.
func (f *fabricNode) share(r control.SendRequest, tell func(control.JobEvent) error, cancel func(error), done func(identity.NodeID)) (*files.Share, error) {
	s, err := files.NewShare(r.Path, files.ShareOptions{SkipUnreadable: r.SkipUnreadable, Done: done, Failed: func(err error) {
		if err := tell(control.JobEvent{Note: fmt.Sprintf("it can't be given: %v", err)}); err != nil {
			cancel(err)
		}
	}})
	var unreadable *files.UnreadableError
	if errors.As(err, &unreadable) {
		return nil, capsule.Wrap(filesKindOf(err), fmt.Errorf("%w; nothing is sent; --skip-unreadable sends the rest", err), "")
	}
	if err != nil {
		return nil, filesError(err)
	}
	if u := s.Unreadable(); u != nil {
		err = tell(control.JobEvent{Note: fmt.Sprintf("not sent: %v", u)})
	}
	if _, _, skipped := s.Size(); err == nil && skipped > 0 {
		err = tell(control.JobEvent{Note: fmt.Sprintf("%d devices, sockets and the like are not sent", skipped)})
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// minOfferRate is the least that an offer may be slowed to: who receives thinks that a
// node is gone that gives nothing for long.
const minOfferRate = 64 << 10

// changeOffer changes what is offered to whoever asks.
func changeOffer(s *files.Share, c control.TransferChange) error {
	switch {
	case c.Paused != nil:
		return capsule.Errorf(capsule.Unsupported, "what is offered can't be paused here: pause it where it is received, or cancel it or limit its rate here")
	case c.Background != nil:
		return capsule.Errorf(capsule.Unsupported, "who receives it says with what priority; its rate can be limited here")
	case c.Rate != nil && *c.Rate != 0 && *c.Rate < minOfferRate:
		return capsule.Errorf(capsule.Invalid, "an offer can be limited to 64KiB a second and more")
	case c.Rate != nil:
		s.SetRate(*c.Rate)
	}
	return nil
}

// send offers files until ctx ends, or so many have received them.
func (f *fabricNode) send(ctx context.Context, r control.SendRequest, tell func(control.JobEvent) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	enough := errors.New("enough have received it")
	var mu sync.Mutex
	have := map[identity.NodeID]bool{} // the nodes that have received it
	tell = serially(tell)
	s, err := f.share(r, tell, cancel, func(node identity.NodeID) {
		f.counts.given.done.Add(1)
		if r.Times == 0 {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if have[node] = true; len(have) >= r.Times {
			cancel(enough)
		}
	})
	if err != nil {
		return err
	}
	defer s.Close()
	if r.Rate > 0 {
		if err := changeOffer(s, control.TransferChange{Rate: &r.Rate}); err != nil {
			return err
		}
	}
	f.counts.given.running.Add(1)
	defer f.counts.given.running.Add(-1)
	t, end := f.transfers.begin(control.TransferState{Kind: control.TransferOffer, Name: r.Name, Path: r.Path, State: control.TransferRunning, Limit: r.Rate},
		func(t *fileTransfer, c control.TransferChange) error {
			err := changeOffer(s, c)
			if err == nil && c.Rate != nil {
				t.update(func(st *control.TransferState) { st.Limit = *c.Rate })
			}
			return err
		}, cancel)
	defer end()
	counted := int64(0)
	now := func() control.TransferState {
		sent := s.Sent()
		f.counts.given.bytes.Add(sent - counted)
		counted = sent
		return t.update(func(st *control.TransferState) {
			size, count, _ := s.Size()
			if st.Bytes, st.Files = sent, count; r.Times > 0 {
				st.Total = size * int64(r.Times)
			}
		})
	}
	stop := every(ctx, tellEvery, func() {
		st := now()
		if err := tell(control.JobEvent{Transfer: &st}); err != nil {
			cancel(err)
		}
	})
	err = f.provide(ctx, fabric.Service{Profile: profile("artifact-store"), Pool: r.Name, Kind: filesKind}, tell,
		func(ctx context.Context, t *fabric.Tunnel) error {
			return span(ctx, "fabric.give", func(ctx context.Context) error {
				if err := s.Serve(ctx, t); ctx.Err() == nil && !errors.Is(err, fabric.ErrClosed) {
					return filesError(err)
				}
				return nil
			}, tunnelAttributes(t, "provider")...)
		})
	stop()
	switch cause := context.Cause(ctx); {
	case cause == errTransferCanceled:
		return cause
	case cause != enough:
		return err
	}
	hash, err := s.Hash(context.WithoutCancel(ctx))
	if err != nil {
		return filesError(err)
	}
	now()
	st := t.update(func(st *control.TransferState) { st.State, st.Hash = control.TransferDone, hex.EncodeToString(hash[:]) })
	return tell(control.JobEvent{Transfer: &st})
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
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		c := &files.Control{}
		t, end := f.transfers.begin(control.TransferState{Kind: control.TransferReceive, Name: r.Name, Path: r.Target},
			func(_ *fileTransfer, ch control.TransferChange) error { return c.Change(changeOf(ch)) }, cancel)
		defer end()
		err := f.taken(ctx, r.Name, func(ctx context.Context, fetched func(files.Progress)) error {
			return f.receive(ctx, r, t, c, fetched, serially(tell))
		})
		if err != nil && context.Cause(ctx) == errTransferCanceled {
			return errTransferCanceled
		}
		return err
	})
}

// taken runs what receives something, and counts that.
func (f *fabricNode) taken(ctx context.Context, name string, receive func(ctx context.Context, fetched func(files.Progress)) error) error {
	f.counts.taken.running.Add(1)
	defer f.counts.taken.running.Add(-1)
	var last files.Progress
	err := span(ctx, "fabric.transfer", func(ctx context.Context) error {
		err := receive(ctx, func(p files.Progress) {
			f.counts.taken.bytes.Add(max(p.Bytes.Fetched-last.Bytes.Fetched, 0))
			last = p
		})
		out := 0
		for _, m := range last.Bytes.Mirrors {
			if m.Out != "" {
				out++
			}
		}
		note(ctx, attribute.Int64("fabric.bytes", last.Bytes.Done), attribute.Int64("fabric.resumed_bytes", last.Bytes.Resumed), attribute.Int64("fabric.fetched_bytes", last.Bytes.Fetched),
			attribute.Int64("fabric.files", last.Files), attribute.Int("fabric.mirrors", len(last.Bytes.Mirrors)), attribute.Int("fabric.mirrors_out", out))
		return err
	}, attribute.String("fabric.pool", name))
	if err != nil {
		f.counts.taken.failed.Add(1)
		return err
	}
	f.counts.taken.done.Add(1)
	return nil
}

func (f *fabricNode) receive(ctx context.Context, r control.ReceiveRequest, t *fileTransfer, c *files.Control, fetched func(files.Progress), tell func(control.JobEvent) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	note := func(text string) {
		if err := tell(control.JobEvent{Note: text}); err != nil {
			cancel(err) // the command has gone
		}
	}
	o := files.ReceiveOptions{Target: r.Target, Rate: r.Rate, Class: priorityClass(r.Background), Trusted: len(r.From) > 0, Control: c, Note: note}
	show := func(fn func(*control.TransferState)) {
		st := t.update(fn)
		if err := tell(control.JobEvent{Transfer: &st}); err != nil {
			cancel(err)
		}
	}
	found := &mirrors{f: f, r: r}
	defer found.close()
	// Before anybody is asked for it. One that was killed may have left only a little to do.
	own, err := files.Received(r.Target)
	if err != nil {
		return filesError(err)
	}
	if own != nil {
		found.r.Wait = min(found.r.Wait, ownWait)
		if err := found.first(ctx); err == nil { // else nobody waits for a word
			own.Thank(ctx, found.mirrors())
		}
		err := own.Close()
		if err == nil {
			hash := own.Hash()
			show(func(st *control.TransferState) { setProgress(st, files.Progress{Hash: &hash}) })
		}
		return filesError(err)
	}
	if err := found.first(ctx); err != nil {
		return err
	}
	o.Mirrors = found.mirrors()
	more := make(chan files.Mirror)
	o.More = more
	looking := make(chan struct{})
	go func() {
		defer close(looking)
		found.later(ctx, more)
	}()
	defer func() { cancel(nil); <-looking }()
	restart, paused := "", false
	out := map[string]bool{}
	o.Progress = func(p files.Progress) {
		for _, m := range p.Bytes.Mirrors {
			if m.Out != "" && !out[m.Name] {
				out[m.Name] = true
				note(fmt.Sprintf("nothing more is fetched from %s: %s", m.Name, m.Out))
			}
		}
		if p.Restart != restart {
			note("it begins again: " + p.Restart)
		}
		if p.Bytes.Paused && !paused {
			note(pausedNote(t.state().ID))
		}
		restart, paused = p.Restart, p.Bytes.Paused
		fetched(p)
		show(func(st *control.TransferState) { setSettings(st, c.Settings()); setProgress(st, p) })
	}
	return filesError(files.Receive(ctx, o))
}

// pausedNote tells that a transfer is paused: perhaps since long ago.
func pausedNote(id string) string {
	return fmt.Sprintf("it is paused; `spacectl fabric transfers resume %s` lets it go on", id)
}

// ownWait bounds how long it is looked for somebody to tell that all had come already.
const ownWait = 5 * time.Second

// mirror is a node that gives the files.
type mirror struct {
	lasting
	name string
	only identity.NodeID // no other one; zero: any
}

// Open implements fabric.Opener.
func (m *mirror) Open(ctx context.Context, class frame.Class, header []byte) (fabric.Stream, error) {
	t, err := m.get(ctx)
	if err != nil {
		return nil, err
	}
	if m.only != (identity.NodeID{}) && t.Peer() != m.only { // it has moved
		t.Close()
		return nil, capsule.Errorf(capsule.Unavailable, "%s can't be reached", m.name)
	}
	return m.lasting.Open(ctx, class, header)
}

// mirrors are the nodes that files are fetched from.
type mirrors struct {
	f     *fabricNode
	r     control.ReceiveRequest
	list  []*mirror
	other []*mirror // tunnels to nodes that are not asked for
}

// first finds at least one.
func (ms *mirrors) first(ctx context.Context) error {
	if ms.r.Mirrors <= 0 {
		ms.r.Mirrors = max(2, len(ms.r.From))
	}
	ms.r.Mirrors = min(ms.r.Mirrors, maxMirrors)
	deadline := time.Now().Add(ms.r.Wait)
	for len(ms.list) == 0 {
		if err := ms.next(ctx, max(0, time.Until(deadline))); err != nil {
			return err
		}
	}
	for len(ms.list) < ms.r.Mirrors {
		if ms.next(ctx, 0) != nil {
			break // those that there are will do
		}
	}
	slices.SortStableFunc(ms.list, func(a, b *mirror) int { return cmp.Compare(ms.rank(a), ms.rank(b)) })
	return nil
}

// mirrors are those that there are, as package files has them.
func (ms *mirrors) mirrors() (list []files.Mirror) {
	for _, m := range ms.list {
		list = append(list, files.Mirror{Opener: m, Name: m.name})
	}
	return list
}

// rank is the place of a mirror in the order of trust; -1: it is not asked for.
func (ms *mirrors) rank(m *mirror) int {
	if len(ms.r.From) == 0 {
		return 0
	}
	names := []string{m.name}
	for _, n := range ms.f.Node.Nodes() {
		if n.Node.String() == m.name {
			names = append(names, n.Name)
		}
	}
	return slices.IndexFunc(ms.r.From, func(from string) bool { return slices.Contains(names, from) })
}

// next asks for one more tunnel, to another node than all so far.
func (ms *mirrors) next(ctx context.Context, wait time.Duration) error {
	var apart []fabric.TunnelID
	for _, m := range slices.Concat(ms.list, ms.other) {
		if t := m.now(); t != nil {
			apart = append(apart, t.ID())
		}
	}
	m := &mirror{lasting: lasting{f: ms.f, request: fabric.Request{Profile: profile("artifact-store"), Pool: ms.r.Name, Kind: filesKind, Apart: apart}}}
	var t *fabric.Tunnel
	err := ms.f.patiently(ctx, wait, func() (err error) {
		t, err = m.get(ctx)
		return err
	})
	if err != nil {
		if len(ms.other) > 0 && len(ms.list) == 0 {
			err = capsule.Errorf(capsule.NotFound, "none of the nodes %s offers %s, but %d others do", strings.Join(ms.r.From, ", "), ms.r.Name, len(ms.other))
		}
		return err
	}
	m.name = t.Peer().String()
	if ms.rank(m) < 0 {
		if ms.other = append(ms.other, m); len(ms.other) > maxMirrors {
			return capsule.Errorf(capsule.NotFound, "none of the nodes %s is among the first %d that offer %s", strings.Join(ms.r.From, ", "), maxMirrors, ms.r.Name)
		}
		return nil
	}
	if len(ms.r.From) > 0 {
		m.only = t.Peer()
	}
	ms.list = append(ms.list, m)
	return nil
}

// lookFor is how often it is looked whether another node offers the files now.
const lookFor = 5 * time.Second

// later looks for more, until there are as many as are asked for.
func (ms *mirrors) later(ctx context.Context, more chan<- files.Mirror) {
	t := time.NewTicker(lookFor)
	defer t.Stop()
	for len(ms.list) < ms.r.Mirrors && len(ms.other) < maxMirrors {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		n := len(ms.list)
		if ms.next(ctx, 0) != nil || len(ms.list) == n {
			continue
		}
		m := ms.list[n]
		select {
		case more <- files.Mirror{Opener: m, Name: m.name}:
		case <-ctx.Done():
			return
		}
	}
}

func (ms *mirrors) close() {
	for _, m := range slices.Concat(ms.list, ms.other) {
		m.close()
	}
}

// now returns the tunnel that there is; nil: none.
func (l *lasting) now() *fabric.Tunnel {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tunnel
}

// filesError gives an error of a transfer its kind.
func filesError(err error) error {
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, bulk.ErrDisputed):
		return capsule.Wrap(capsule.Conflict, fmt.Errorf("%w; say with --from NODE whose content you want", err), "")
	}
	return capsule.Wrap(filesKindOf(err), err, "")
}

func filesKindOf(err error) capsule.ErrorKind {
	var remote *bulk.RemoteError
	switch {
	case errors.Is(err, bulk.ErrFull), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return capsule.NoSpace
	case errors.Is(err, files.ErrExists), errors.Is(err, fs.ErrExist):
		return capsule.Exists
	case errors.Is(err, files.ErrBusy):
		return capsule.Conflict
	case errors.As(err, &remote) && remote.Code == bulk.CodeChanged:
		return capsule.Conflict
	case errors.Is(err, files.ErrManifest):
		return capsule.Damaged
	case errors.Is(err, bulk.ErrNoMirror):
		return capsule.Unavailable
	case errors.Is(err, bulk.ErrRoot):
		return capsule.Damaged
	case errors.Is(err, fs.ErrNotExist):
		return capsule.NotFound
	case errors.Is(err, fs.ErrPermission):
		return capsule.Denied
	}
	return capsule.Other
}
