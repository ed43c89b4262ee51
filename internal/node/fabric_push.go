package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/files"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/control"
)

// inboxKind is the kind of service that takes what is pushed; the pool is the ID of the
// node that it is pushed to.
const inboxKind = "files-inbox"

// pushProfile is that of tunnels for pushes: what is for one node goes to no other.
func pushProfile() fabric.Profile {
	p := profile("artifact-store")
	p.Failover = false
	return p
}

// maxPushes bounds what a node takes at a time that others push, maxPushesOf what one of
// them does: each may hold a list of files in memory, and chunks.
const (
	maxPushes   = 32
	maxPushesOf = 4
)

// refusalEvery is how often it is logged that something was offered which is not taken.
const refusalEvery = time.Minute

// inbox is what a node takes from whom.
type inbox struct {
	mu      sync.Mutex
	rules   []*inboxRule
	taking  map[identity.NodeID]int // what is being received of each node
	all     int                     // and of all
	refused time.Time               // when that was logged last
	end     context.CancelFunc      // of the service; nil: there are no rules
	gone    chan struct{}           // closed when that has ended
}

// inboxRule is whose files go where.
type inboxRule struct {
	from    map[identity.NodeID]bool
	into    string
	maxSize int64
	ctx     context.Context
	tell    func(control.JobEvent) error
	arrived func()
	running sync.WaitGroup // what is being received by it
}

// Accept implements control.Fabric.
func (f *fabricNode) Accept(ctx context.Context, r control.AcceptRequest, tell func(control.JobEvent) error) error {
	return f.job(ctx, func(ctx context.Context) error { return f.accept(ctx, r, tell) })
}

// acceptFrom reads the IDs of nodes that may send something. Names would not do: a node
// says its name itself.
func acceptFrom(list []string) (map[identity.NodeID]bool, error) {
	from := map[identity.NodeID]bool{}
	for _, text := range list {
		id, err := identity.ParseNodeID(text)
		if err != nil {
			return nil, fmt.Errorf("%.64q is no node's ID; `spacectl fabric nodes` shows them (a name will not do: a node chooses it itself)", text)
		}
		from[id] = true
	}
	if len(from) == 0 {
		return nil, errors.New("say from which nodes, by ID")
	}
	return from, nil
}

// accept takes what some nodes push, until ctx ends or so many have come.
func (f *fabricNode) accept(ctx context.Context, r control.AcceptRequest, tell func(control.JobEvent) error) error {
	from, err := acceptFrom(r.From)
	if err != nil {
		return capsule.Wrap(capsule.Invalid, err, "")
	}
	fi, err := os.Stat(r.Into)
	if err != nil {
		return filesError(err)
	}
	if !fi.IsDir() {
		return capsule.Errorf(capsule.Invalid, "%s is no directory", r.Into)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	enough := errors.New("enough has come")
	rule := &inboxRule{from: from, into: r.Into, maxSize: r.MaxSize, ctx: ctx, tell: serially(tell)}
	var mu sync.Mutex
	times := 0
	rule.arrived = func() {
		mu.Lock()
		defer mu.Unlock()
		if times++; r.Times > 0 && times >= r.Times {
			cancel(enough)
		}
	}
	if err := f.addRule(rule); err != nil {
		return err
	}
	defer f.removeRule(rule)
	if err := rule.tell(control.JobEvent{Ready: r.Into}); err != nil {
		return err
	}
	<-ctx.Done()
	if context.Cause(ctx) == enough {
		return nil
	}
	return unlessEnded(ctx, ctx.Err())
}

// addRule has a rule hold. With the first one the node says that it takes something.
func (f *fabricNode) addRule(rule *inboxRule) error {
	in := &f.inbox
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.end == nil && in.gone != nil && !closed(in.gone) { // the one before
		gone := in.gone
		in.mu.Unlock()
		<-gone
		in.mu.Lock()
	}
	if in.end == nil {
		ctx, end := context.WithCancel(f.ctx)
		ready, gone := make(chan error, 1), make(chan struct{})
		go func() {
			defer close(gone)
			err := f.provide(ctx, fabric.Service{Profile: pushProfile(), Pool: f.ID().String(), Kind: inboxKind},
				func(control.JobEvent) error { ready <- nil; return nil }, f.takePushes)
			if err != nil {
				ready <- err
			}
		}()
		if err := <-ready; err != nil {
			end()
			return err
		}
		in.end, in.gone = end, gone
	}
	in.rules = append(in.rules, rule)
	return nil
}

// removeRule has a rule hold no more, and waits for what is being received by it, which
// has ended with the rule's job.
func (f *fabricNode) removeRule(rule *inboxRule) {
	in := &f.inbox
	in.mu.Lock()
	in.rules = slices.DeleteFunc(in.rules, func(r *inboxRule) bool { return r == rule })
	if len(in.rules) == 0 && in.end != nil {
		in.end()
		in.end = nil
	}
	in.mu.Unlock()
	rule.running.Wait()
}

// ruleFor returns the first rule that lets a node in, and counts one more that is
// received by it; nil: none does.
func (f *fabricNode) ruleFor(node identity.NodeID) *inboxRule {
	f.inbox.mu.Lock()
	defer f.inbox.mu.Unlock()
	for _, r := range f.inbox.rules {
		if r.from[node] && r.ctx.Err() == nil {
			r.running.Add(1)
			return r
		}
	}
	return nil
}

// slot takes one of the places for what a node pushes; nil: none is free.
func (in *inbox) slot(node identity.NodeID) (leave func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.all >= maxPushes || in.taking[node] >= maxPushesOf {
		return nil
	}
	if in.taking == nil {
		in.taking = map[identity.NodeID]int{}
	}
	in.all++
	in.taking[node]++
	return func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.all--
		if in.taking[node]--; in.taking[node] == 0 {
			delete(in.taking, node)
		}
	}
}

// refusalLevel is with what level a refusal is logged: any node can have us log that, as
// often as it likes.
func (in *inbox) refusalLevel() slog.Level {
	in.mu.Lock()
	defer in.mu.Unlock()
	if now := time.Now(); now.Sub(in.refused) >= refusalEvery {
		in.refused = now
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// takePushes takes what is pushed through a tunnel.
func (f *fabricNode) takePushes(ctx context.Context, t *fabric.Tunnel) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		p, err := files.NextPush(ctx, t)
		if err != nil {
			return err
		}
		rule := f.ruleFor(p.From)
		if rule == nil {
			f.log.Log(ctx, f.inbox.refusalLevel(), "something is offered to this node that it does not take", "name", p.Name, "from", p.From.String())
			p.Refuse(fmt.Errorf("%w; there `spacectl fabric accept DIR --from %s` says where it goes", files.ErrUnwanted, p.From))
			continue
		}
		leave := f.inbox.slot(p.From)
		if leave == nil {
			rule.running.Done()
			p.Refuse(files.ErrTurn)
			continue
		}
		running.Go(func() {
			defer rule.running.Done()
			defer leave()
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			defer context.AfterFunc(rule.ctx, func() { cancel(context.Cause(rule.ctx)) })()
			f.take(ctx, cancel, rule, p)
		})
	}
}

// take receives one thing that is pushed.
func (f *fabricNode) take(ctx context.Context, cancel func(error), rule *inboxRule, p *files.Pushed) {
	target := filepath.Join(rule.into, p.Name)
	c := &files.Control{}
	t, end := f.transfers.begin(control.TransferState{Kind: control.TransferAccept, Name: p.Name, Path: target, Peer: p.From.String()},
		func(_ *fileTransfer, ch control.TransferChange) error { return c.Change(changeOf(ch)) }, cancel)
	defer end()
	log := f.log.With("path", target, "from", p.From.String())
	log.Info("receiving what was sent to this node")
	note := func(text string) {
		log.Warn("of what is sent to this node", "note", text)
		if err := rule.tell(control.JobEvent{Note: p.Name + ": " + text}); err != nil {
			cancel(err)
		}
	}
	err := f.taken(ctx, p.Name, func(ctx context.Context, fetched func(files.Progress)) error {
		return p.Receive(ctx, files.ReceiveOptions{Target: target, MaxSize: rule.maxSize, Control: c, Note: note, Progress: func(pr files.Progress) {
			fetched(pr)
			st := t.update(func(st *control.TransferState) { setSettings(st, c.Settings()); setProgress(st, pr) })
			if err := rule.tell(control.JobEvent{Transfer: &st}); err != nil {
				cancel(err)
			}
		}})
	})
	if err != nil {
		log.Warn("what was sent to this node has not come whole", "error", err)
		if rule.ctx.Err() == nil {
			rule.tell(control.JobEvent{Note: p.Name + ": it has not come whole: " + err.Error()}) // if nobody listens, the rule has ended
		}
		return
	}
	log.Info("received what was sent to this node")
	rule.arrived()
}

const (
	pushGiveUp    = 2 * time.Minute // how long nothing may come through
	firstPushRest = 200 * time.Millisecond
	lastPushRest  = 5 * time.Second
)

// push has one node receive files.
func (f *fabricNode) push(ctx context.Context, r control.SendRequest, tell func(control.JobEvent) error) error {
	id, err := f.resolve(r.To)
	if err != nil {
		return err
	}
	if id == f.ID() {
		return capsule.Errorf(capsule.Invalid, "this is the node itself; copy the files")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tell = serially(tell)
	s, err := f.share(r, tell, cancel, func(identity.NodeID) {})
	if err != nil {
		return err
	}
	defer s.Close()
	var said control.TransferChange
	if r.Rate != 0 {
		said.Rate = &r.Rate
	}
	if r.Background {
		said.Background = &r.Background
	}
	begin := changeOf(said)
	changes := make(chan files.Change, 16)
	t, end := f.transfers.begin(control.TransferState{Kind: control.TransferPush, Name: r.Name, Path: r.Path, Peer: id.String()},
		func(_ *fileTransfer, c control.TransferChange) error {
			select {
			case changes <- changeOf(c):
				return nil
			default:
				return capsule.Errorf(capsule.Unavailable, "%s can't be reached just now", r.To)
			}
		}, cancel)
	defer end()
	f.counts.given.running.Add(1)
	defer f.counts.given.running.Add(-1)
	if err := tell(control.JobEvent{Ready: r.Name}); err != nil {
		return err
	}
	note := func(text string) {
		if err := tell(control.JobEvent{Note: text}); err != nil {
			cancel(err)
		}
	}
	paused, told := false, false // told: that it has to wait for its turn
	wait, rest := r.Wait, firstPushRest
	news := time.Now()
	for first := true; ; first = false {
		o := files.PushOptions{Name: r.Name, Begin: begin, Changes: changes}
		o.Progress = func(p files.Progress, now files.Settings) {
			if p.Bytes.Size >= 0 { // it is under way
				news, rest = time.Now(), firstPushRest
				begin = files.Change{} // what was changed since holds
			}
			if now.Paused && !paused {
				note(pausedNote(t.state().ID))
			}
			paused = now.Paused
			st := t.update(func(st *control.TransferState) {
				setSettings(st, now)
				p.Bytes.Mirrors = nil
				setProgress(st, p)
			})
			if err := tell(control.JobEvent{Transfer: &st}); err != nil {
				cancel(err)
			}
		}
		err := f.pushOnce(ctx, id, r, wait, s, o)
		if err == nil {
			hash, err := s.Hash(ctx)
			if err != nil {
				return filesError(err)
			}
			st := t.update(func(st *control.TransferState) {
				size, count, _ := s.Size()
				setProgress(st, files.Progress{Bytes: bulk.Progress{Size: size, Done: size, Resumed: st.Resumed}, Files: count, Hash: &hash})
			})
			f.counts.given.done.Add(1)
			return tell(control.JobEvent{Transfer: &st})
		}
		var refused *files.PushError
		passing := errors.Is(err, files.ErrBusy) || errors.Is(err, files.ErrCut)
		if errors.Is(err, files.ErrTurn) { // its time comes, however long the others take
			passing, news = true, time.Now()
			if !told {
				told = true
				note(r.To + " takes no more at a time than it is receiving; this waits for its turn")
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !passing && (first || errors.As(err, &refused)):
			return pushError(err)
		case time.Since(news) > pushGiveUp:
			return capsule.Errorf(capsule.Unavailable, "%s has not answered for %s; what has arrived there is kept, and the same command goes on from there: %v", r.To, pushGiveUp, err)
		}
		t.update(func(st *control.TransferState) { st.State = control.TransferWaiting })
		wait = pushGiveUp
		select {
		case <-time.After(rest):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		rest = min(2*rest, lastPushRest)
	}
}

// pushError gives the word of a receiver its kind.
func pushError(err error) error {
	switch {
	case errors.Is(err, files.ErrUnwanted), errors.Is(err, files.ErrName):
		return capsule.Wrap(capsule.Denied, err, "")
	case errors.Is(err, context.Canceled):
		return capsule.Wrap(capsule.Canceled, err, "")
	}
	return filesError(err)
}

// pushOnce offers a share to a node over one tunnel.
func (f *fabricNode) pushOnce(ctx context.Context, to identity.NodeID, r control.SendRequest, wait time.Duration, s *files.Share, o files.PushOptions) error {
	t, err := f.tunnelTo(ctx, to, wait)
	if capsule.KindOf(err) == capsule.NotFound {
		return capsule.Errorf(capsule.NotFound, "%s (%s) takes nothing from others now, or is not there; on it, `spacectl fabric accept DIR --from %s` says where it goes", r.To, to, f.ID())
	}
	if err != nil {
		return err
	}
	defer t.Close()
	before := s.Sent()
	defer func() { f.counts.given.bytes.Add(s.Sent() - before) }()
	return s.Push(ctx, t, o)
}

// maxImpostors is how many nodes may say that they are another before it is given up.
const maxImpostors = 8

// tunnelTo asks for a tunnel to the inbox of one node, and no other: any may provide a
// pool of that name.
func (f *fabricNode) tunnelTo(ctx context.Context, to identity.NodeID, wait time.Duration) (t *fabric.Tunnel, err error) {
	var wrong []*fabric.Tunnel
	defer func() {
		for _, w := range wrong {
			w.Close()
		}
	}()
	request := fabric.Request{Profile: pushProfile(), Pool: to.String(), Kind: inboxKind}
	for range maxImpostors {
		if err := f.patiently(ctx, wait, func() (err error) {
			t, err = f.tunnel(ctx, request)
			return err
		}); err != nil {
			return nil, err
		}
		if t.Peer() == to {
			return t, nil
		}
		f.log.Warn("a node takes what is sent to another one", "node", t.Peer().String(), "other", to.String())
		wrong = append(wrong, t)
		request.Apart = append(request.Apart, t.ID())
	}
	return nil, capsule.Errorf(capsule.NotFound, "%d nodes say that they are %s", maxImpostors, to)
}

// priorityClass is the class of a transfer that goes after all other traffic, or does not.
func priorityClass(background bool) frame.Class {
	if background {
		return frame.Background
	}
	return 0 // as was set before
}
