package bulk

import (
	"context"
	"encoding/binary"
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
	// reopening: the stream was taken away for another one, which is no failure.
	reopening bool
}

// takeAway ends the stream. Called with the lock held.
func (w *worker) takeAway() {
	stream := w.stream
	w.stream = nil
	go stream.Close() // it may take as long as the mirror does
}

func (w *worker) run(ctx context.Context) {
	backoff := firstBackoff
	for {
		err := w.converse(ctx)
		w.t.mu.Lock()
		w.stream, w.opened, w.busy = nil, false, 0
		reopening := w.reopening && err != nil
		if ctx.Err() == nil && !reopening {
			w.t.notice(w.m, err)
		}
		over := err == nil || ctx.Err() != nil || w.t.isOver(w.m)
		if w.stalled {
			backoff = max(backoff, time.Second) // others have its work now
		}
		w.stalled, w.reopening = false, false
		w.t.wake()
		changed := w.t.changed
		w.t.mu.Unlock()
		if over {
			return
		}
		if reopening {
			continue
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
				waiting = !w.t.isOver(w.m)
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
	reopened := w.t.reopens()
	s, err := w.m.Open(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	defer s.Close()
	w.t.mu.Lock()
	w.stream, w.news = s, time.Now()
	if w.t.reopened != reopened { // it is opened as it should not be any more
		w.takeAway()
		w.reopening = true
	}
	w.t.mu.Unlock()
	l := newLink(s)
	i, err := l.open(w.t.o.Name)
	if err != nil {
		return err
	}
	if err := w.t.begin(w, i); err != nil {
		return err
	}
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
		j := under[0]
		done, sum, err := w.receive(l, j)
		if err != nil {
			return err
		}
		if done {
			under = under[1:]
			w.setBusy(len(under))
			if j.task == nil {
				w.t.summed()
			} else if err := w.t.complete(w.m, j.task, sum); err != nil {
				return err
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
		return l.send(msgSums, u32(uint32(j.first)), u32(uint32(j.count)))
	}
	tk := j.task
	if tk.n > 0 && tk.from != w.m {
		tk.mixed = true
	}
	tk.from = w.m
	return l.send(msgChunk, u32(uint32(tk.chunk)), u32(uint32(tk.n)))
}

// receive takes in one message, and says whether it was the job's last: of a
// chunk, its hash.
func (w *worker) receive(l *link, j *job) (done bool, sum Hash, err error) {
	m, n, err := l.next()
	if err != nil {
		return false, sum, unexpected(err)
	}
	switch {
	case m == msgError:
		return false, sum, l.remoteError(n)
	case m == msgSum && n == 4+len(sum):
		b, err := l.body(n, n)
		if err != nil {
			return false, sum, err
		}
		c := int(binary.BigEndian.Uint32(b))
		copy(sum[:], b[4:])
		w.t.arrived(w, 0)
		switch tk := j.task; {
		case tk != nil && c == tk.chunk && tk.n == len(tk.buf):
			return true, sum, nil
		case tk == nil && c == j.first && j.count > 0:
			w.t.learn(w.m, c, sum)
			j.first++
			j.count--
			return j.count == 0, sum, nil
		}
		return false, sum, fmt.Errorf("%w: a hash that nobody asked for", errProtocol)
	case (m == msgData || m == msgZeros) && j.task != nil && n > 8:
		var head [8]byte
		if _, err := io.ReadFull(l.r, head[:]); err != nil {
			return false, sum, unexpected(err)
		}
		n -= len(head)
		count := n
		if m == msgZeros {
			b, err := l.body(n, 4)
			if err != nil {
				return false, sum, err
			}
			if len(b) != 4 {
				return false, sum, fmt.Errorf("%w: zeros", errProtocol)
			}
			n, count = 0, int(binary.BigEndian.Uint32(b))
		}
		tk := j.task
		if int(binary.BigEndian.Uint32(head[:])) != tk.chunk || int(binary.BigEndian.Uint32(head[4:])) != tk.n || count < 1 || count > min(len(tk.buf)-tk.n, maxData) {
			return false, sum, fmt.Errorf("%w: bytes that nobody asked for", errProtocol)
		}
		piece := tk.buf[tk.n : tk.n+count]
		k := count
		if m == msgZeros {
			clear(piece)
		} else {
			// What has come of a message that breaks off counts, too.
			k, err = io.ReadFull(l.r, piece)
		}
		tk.hash.Write(piece[:k])
		tk.n += k
		w.t.arrived(w, n*k/count)
		return false, sum, unexpected(err)
	}
	return false, sum, fmt.Errorf("%w: message %d out of place", errProtocol, m)
}
