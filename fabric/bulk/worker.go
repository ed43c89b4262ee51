package bulk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// worker runs one stream to a mirror, and the next one when that breaks.
type worker struct {
	t *Transfer
	m *mirror

	// Guarded by t.mu:
	stream  io.Closer // nil: none, or taken away
	opened  bool      // the mirror has said what the payload is
	busy    int       // jobs under way
	news    time.Time // when something came last
	stalled bool
}

func (w *worker) run(ctx context.Context) {
	backoff := firstBackoff
	for {
		err := w.converse(ctx)
		w.t.mu.Lock()
		w.stream, w.opened, w.busy = nil, false, 0
		if err != nil && ctx.Err() == nil {
			w.m.state.Failed++
			var remote *RemoteError
			if errors.As(err, &remote) && (remote.Code == CodeNotFound || remote.Code == CodeChanged) || errors.Is(err, errProtocol) {
				w.m.state.Out = err.Error()
				w.m.state.Changed = remote != nil && remote.Code == CodeChanged
			}
		}
		over := err == nil || ctx.Err() != nil || w.t.failure != nil || w.t.finished || w.m.state.Out != "" || w.t.draining
		if w.t.info != nil && len(w.t.hashes) > 0 && w.stalled {
			backoff = max(backoff, time.Second) // others have its work now
		}
		w.stalled = false
		w.t.wake()
		changed := w.t.changed
		w.t.mu.Unlock()
		if over {
			return
		}
		until := time.NewTimer(backoff)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				waiting = false
			case <-until.C:
				waiting = false
			case <-changed: // perhaps the end
				w.t.mu.Lock()
				waiting = w.t.failure == nil && !w.t.finished && !w.t.draining
				changed = w.t.changed
				w.t.mu.Unlock()
			}
		}
		until.Stop()
		backoff = min(2*backoff, lastBackoff)
	}
}

// converse opens a stream and fetches over it. It returns nil when there is
// nothing more to do.
func (w *worker) converse(ctx context.Context) error {
	if w.t.over(w.m) {
		return nil
	}
	s, err := w.m.Open(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	defer s.Close()
	w.t.mu.Lock()
	w.stream, w.news = s, time.Now()
	w.t.mu.Unlock()
	l := newLink(s)
	i, err := l.open(w.t.o.Name)
	if err != nil {
		return err
	}
	if err := w.t.begin(w.m, i); err != nil {
		return err
	}
	w.t.mu.Lock()
	w.opened, w.news = true, time.Now()
	w.t.mu.Unlock()
	return w.fetch(ctx, l)
}

// fetch keeps a few jobs under way on a stream.
func (w *worker) fetch(ctx context.Context, l *link) (err error) {
	var under []*job
	defer func() {
		for k := len(under) - 1; k >= 0; k-- {
			w.t.giveBack(under[k])
		}
	}()
	for {
		for len(under) < depth {
			j, again, at, over := w.t.take(w.m)
			if j == nil {
				if len(under) > 0 {
					break
				}
				if over {
					return nil
				}
				if err := wait(ctx, again, at); err != nil {
					return err
				}
				continue
			}
			under = append(under, j)
			w.setBusy(len(under))
			if err := w.ask(l, j); err != nil {
				return err
			}
		}
		if err := l.flush(); err != nil {
			return err
		}
		done, err := w.receive(l, under[0])
		if err != nil {
			return err
		}
		if done {
			j := under[0]
			under = under[1:]
			w.setBusy(len(under))
			if j.task != nil {
				if err := w.t.complete(w.m, j.task); err != nil {
					return err
				}
			}
		}
	}
}

func (w *worker) setBusy(n int) {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	if w.busy == 0 {
		w.news = time.Now() // it has had nothing to give
	}
	w.busy = n
}

// wait returns when again is closed, or at comes.
func wait(ctx context.Context, again <-chan struct{}, at time.Time) error {
	var timer <-chan time.Time
	if !at.IsZero() {
		t := time.NewTimer(time.Until(at))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-again:
	case <-timer:
	}
	return nil
}

// ask sends a job's request.
func (w *worker) ask(l *link, j *job) error {
	if j.task == nil {
		return l.send(msgPage, u32(uint32(j.page)))
	}
	tk := j.task
	if length := w.t.info.length(tk.chunk); tk.buf == nil {
		tk.buf = make([]byte, length)
	}
	if tk.n > 0 && tk.from != w.m {
		tk.mixed = true
	}
	tk.from = w.m
	return l.send(msgChunk, u32(uint32(tk.chunk)), u32(uint32(tk.n)))
}

// receive takes in one message, and says whether it was the job's last.
func (w *worker) receive(l *link, j *job) (done bool, err error) {
	m, n, err := l.next()
	if err != nil {
		return false, unexpected(err)
	}
	switch {
	case m == msgError:
		return false, l.remoteError(n)
	case m == msgHashes && j.task == nil:
		b, err := l.body(n, 4+pageChunks*len(Hash{}))
		if err != nil {
			return false, err
		}
		want := w.t.info.pageLength(j.page)
		if len(b) != 4+want*len(Hash{}) || int(binary.BigEndian.Uint32(b)) != j.page {
			return false, fmt.Errorf("%w: %d bytes of hashes", errProtocol, len(b))
		}
		hashes := make([]Hash, want)
		for k := range hashes {
			copy(hashes[k][:], b[4+k*len(Hash{}):])
		}
		w.t.arrived(w, 0)
		w.t.learn(j.page, hashes)
		return true, nil
	case m == msgData && j.task != nil && n > 8:
		var head [8]byte
		if _, err := io.ReadFull(l.r, head[:]); err != nil {
			return false, unexpected(err)
		}
		tk := j.task
		if int(binary.BigEndian.Uint32(head[:])) != tk.chunk || int(binary.BigEndian.Uint32(head[4:])) != tk.n || n-8 > len(tk.buf)-tk.n {
			return false, fmt.Errorf("%w: bytes that nobody asked for", errProtocol)
		}
		// What has come of a message that breaks off counts, too.
		k, err := io.ReadFull(l.r, tk.buf[tk.n:tk.n+n-8])
		tk.n += k
		w.t.arrived(w, k)
		return tk.n == len(tk.buf), unexpected(err)
	}
	return false, fmt.Errorf("%w: message %d out of place", errProtocol, m)
}
