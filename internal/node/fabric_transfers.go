package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric/files"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/internal/control"
)

// fileTransfers are those that run at a node.
type fileTransfers struct {
	mu  sync.Mutex
	all map[string]*fileTransfer
}

// fileTransfer is one of them.
type fileTransfer struct {
	change func(*fileTransfer, control.TransferChange) error
	cancel func(error)

	mu    sync.Mutex
	st    control.TransferState
	moved []moved // lately, oldest first
}

// moved is how far a transfer was at a time.
type moved struct {
	at    time.Time
	bytes int64
}

// A transfer's rate is that of the last rateOver, looked at each rateEvery at most.
const (
	rateOver  = 5 * time.Second
	rateEvery = 100 * time.Millisecond
)

// begin has a transfer in the list until end is called. Its ID is the same whenever the
// same is done again, as long as nothing else has it.
func (ts *fileTransfers) begin(st control.TransferState, change func(*fileTransfer, control.TransferChange) error, cancel func(error)) (t *fileTransfer, end func()) {
	st.Since = time.Now().UTC().Truncate(time.Second)
	st.State, st.Total, st.Priority = cmp.Or(st.State, control.TransferWaiting), -1, cmp.Or(st.Priority, control.PriorityNormal)
	t = &fileTransfer{change: change, cancel: cancel, st: st}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.all == nil {
		ts.all = map[string]*fileTransfer{}
	}
	for h := blake3.Sum256([]byte(st.Kind + "\x00" + st.Path + "\x00" + st.Name)); ; h = blake3.Sum256(h[:]) {
		t.st.ID = hex.EncodeToString(h[:4])
		if ts.all[t.st.ID] == nil {
			break
		}
	}
	ts.all[t.st.ID] = t
	return t, func() {
		ts.mu.Lock()
		defer ts.mu.Unlock()
		delete(ts.all, t.st.ID)
	}
}

// list returns what runs, in the order in which it began.
func (ts *fileTransfers) list() []control.TransferState {
	ts.mu.Lock()
	list := make([]control.TransferState, 0, len(ts.all))
	for _, t := range ts.all {
		list = append(list, t.state())
	}
	ts.mu.Unlock()
	slices.SortFunc(list, func(a, b control.TransferState) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
	return list
}

func (ts *fileTransfers) find(id string) (*fileTransfer, error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.all[id]; t != nil {
		return t, nil
	}
	return nil, capsule.Errorf(capsule.NotFound, "no transfer %.32q runs at this node; `spacectl fabric transfers` lists those that do", id)
}

// update changes what is known of a transfer, and returns what that is.
func (t *fileTransfer) update(fn func(*control.TransferState)) control.TransferState {
	t.mu.Lock()
	before := t.st.Bytes
	fn(&t.st)
	now := time.Now()
	if n := len(t.moved); n == 0 || t.st.Bytes < before || t.st.State == control.TransferPaused {
		t.moved = append(t.moved[:0], moved{now, t.st.Bytes})
	} else if now.Sub(t.moved[n-1].at) >= rateEvery {
		t.moved = append(t.moved, moved{now, t.st.Bytes})
	}
	t.mu.Unlock()
	return t.state()
}

// state returns what is known of a transfer.
func (t *fileTransfer) state() control.TransferState {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.st
	st.Mirrors = slices.Clone(st.Mirrors)
	now := time.Now()
	for len(t.moved) > 1 && now.Sub(t.moved[1].at) > rateOver { // one that is older tells of the whole time
		t.moved = t.moved[1:]
	}
	if len(t.moved) > 0 && st.State == control.TransferRunning {
		if passed := now.Sub(t.moved[0].at).Seconds(); passed > 0 {
			st.Rate = max(int64(float64(st.Bytes-t.moved[0].bytes)/passed), 0)
		}
	}
	if st.Rate > 0 && st.Total >= st.Bytes {
		eta := float64(st.Total-st.Bytes) / float64(st.Rate)
		st.ETA = &eta
	}
	return st
}

// setSettings takes in a transfer's settings.
func setSettings(st *control.TransferState, s files.Settings) {
	st.Limit, st.Priority, st.State = s.Rate, control.PriorityNormal, control.TransferRunning
	if s.Class == frame.Background {
		st.Priority = control.PriorityBackground
	}
	if s.Paused {
		st.State = control.TransferPaused
	}
}

// changeOf is a change as package files has it.
func changeOf(c control.TransferChange) files.Change {
	change := files.Change{Paused: c.Paused, Rate: c.Rate}
	if c.Background != nil {
		class := frame.Bulk
		if *c.Background {
			class = frame.Background
		}
		change.Class = &class
	}
	return change
}

// setProgress takes in how far a transfer is.
func setProgress(st *control.TransferState, p files.Progress) {
	if p.Hash != nil {
		st.Hash, st.State = hex.EncodeToString(p.Hash[:]), control.TransferDone
	}
	if p.Hash != nil && p.Bytes.Size == 0 && p.Bytes.Mirrors == nil { // nothing had to be fetched
		return
	}
	st.Bytes, st.Total, st.Resumed, st.Files = p.Bytes.Done, p.Bytes.Size, p.Bytes.Resumed, p.Files
	st.Mirrors = st.Mirrors[:0:0]
	for _, m := range p.Bytes.Mirrors {
		st.Mirrors = append(st.Mirrors, control.TransferMirror{Node: m.Name, Bytes: m.Bytes, Corrupt: m.Corrupt, Failed: m.Failed, Out: m.Out})
	}
}

var errTransferCanceled = capsule.Errorf(capsule.Canceled, "it was cancelled by `spacectl fabric transfers cancel`; what has arrived is kept")

// Transfers implements control.Fabric.
func (f *fabricNode) Transfers(context.Context) ([]control.TransferState, error) {
	return f.transfers.list(), nil
}

// ChangeTransfer implements control.Fabric.
func (f *fabricNode) ChangeTransfer(_ context.Context, c control.TransferChange) (st control.TransferState, err error) {
	t, err := f.transfers.find(c.ID)
	if err != nil {
		return st, err
	}
	if c.Cancel {
		t.cancel(errTransferCanceled)
		return t.state(), nil
	}
	if err := t.change(t, c); err != nil {
		return st, filesError(err)
	}
	f.log.Info("a transfer was changed", "transfer", c.ID)
	return t.state(), nil
}
