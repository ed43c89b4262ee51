package session

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"
)

// Budget bounds the windows of all streams of a node together. Every stream
// takes a first window of 64 KiB from it; where there is none, it is refused.
// What it receives into, and what it keeps until the peer has it, grow as long as
// no more than three quarters are taken, so that new streams find some.
type Budget struct {
	limit  atomic.Int64
	used   atomic.Int64
	parent *Budget // nil: it is the whole
	of     string  // whose it is, in words
}

// growth is the part of a budget beyond which windows grow no more.
const growth = 0.75

// NewBudget returns a budget of so many bytes, for the Options of any number of
// endpoints and sessions.
func NewBudget(bytes int64) *Budget {
	b := &Budget{of: "on this node"}
	b.limit.Store(bytes)
	return b
}

// Share returns a budget that is a part of b, such as for one peer: what is taken
// of it is taken of b, too. 0: as much as b has.
func (b *Budget) Share(bytes int64) *Budget {
	share := &Budget{parent: b, of: "for one peer"}
	share.limit.Store(bytes)
	return share
}

// SetLimit makes the budget one of so many bytes. Nothing is taken away.
func (b *Budget) SetLimit(bytes int64) { b.limit.Store(bytes) }

// Limit returns the budget's bytes.
func (b *Budget) Limit() int64 {
	limit := b.limit.Load()
	if limit == 0 && b.parent != nil {
		return b.parent.Limit()
	}
	return limit
}

// Used returns how many bytes are taken.
func (b *Budget) Used() int64 { return b.used.Load() }

// take takes n bytes if no more than a part of the budget, and of what it is a part
// of, is taken then. It returns the one that has no room, or nil. Of a nil budget
// there is as much as one likes.
func (b *Budget) take(n int64, part float64) *Budget {
	for x := b; x != nil; x = x.parent {
		if x.used.Add(n) > int64(float64(x.Limit())*part) {
			x.used.Add(-n)
			for ; b != x; b = b.parent {
				b.used.Add(-n)
			}
			return x
		}
	}
	return nil
}

// give gives n bytes back.
func (b *Budget) give(n int64) {
	for ; b != nil; b = b.parent {
		b.used.Add(-n)
	}
}

// Account is whom a stream's windows count for beside the Budget, such as a pool.
// It is asked with the session's lock held.
type Account interface {
	// Grow takes n more bytes, if there is room for windows to grow.
	Grow(n int64) bool
	// Release gives back everything that the stream has taken. It is the last call,
	// when the stream has ended and what had come of it is read, or let go of.
	Release()
}

// FirstWindow is the bytes that each stream takes of a Budget when it begins.
const FirstWindow = firstWindow

// Count has the stream's windows count for an account, which has taken FirstWindow
// for it already.
func (st *Stream) Count(a Account) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if st.over {
		a.Release()
		return
	}
	st.account = a
}

// begin takes the first window for a stream that nothing was taken for. Where there
// is none, it says of what.
func (st *Stream) begin() (lacks string, ok bool) {
	if full := st.s.o.Budget.take(firstWindow, 1); full != nil {
		return "windows " + full.of, false
	}
	st.charged = firstWindow
	return "", true
}

// grow takes n bytes more of the node's budget, and of the account's.
func (st *Stream) grow(n uint64) bool {
	b := st.s.o.Budget
	if st.over || b.take(int64(n), growth) != nil {
		return false
	}
	if st.account != nil && !st.account.Grow(int64(n)) {
		b.give(int64(n))
		return false
	}
	st.charged += int64(n)
	return true
}

// uncharge gives back what the stream has of the budget, for good.
func (st *Stream) uncharge() {
	st.over = true
	st.s.o.Budget.give(st.charged)
	st.charged = 0
	if st.account != nil {
		st.account.Release()
		st.account = nil
	}
}

// Limiter holds back the bytes of streams: of a tunnel, a route, a pool, all of
// whose streams share it. A *rate.Limiter of golang.org/x/time, with a burst of
// at least MaxWait, is one.
type Limiter interface {
	// WaitN returns when n more bytes, at most MaxWait, may pass, or with an
	// error when ctx is done.
	WaitN(ctx context.Context, n int) error
}

// MaxWait is how many bytes a Limiter is asked for at most, at a time.
const MaxWait = 64 << 10

// held waits, without the session's lock, until a limiter lets n bytes pass.
func (st *Stream) held(l Limiter, n int, at time.Time) error {
	st.s.mu.Unlock()
	defer st.s.mu.Lock()
	ctx := st.s.life
	if !at.IsZero() {
		var stop context.CancelFunc
		ctx, stop = context.WithDeadline(ctx, at)
		defer stop()
	}
	err := l.WaitN(ctx, n)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return err
}

// payDebt waits until the stream's limiter has let pass what was read before.
func (st *Stream) payDebt() error {
	for st.debt > 0 {
		n := min(st.debt, MaxWait)
		if err := st.held(st.inLimit, n, st.readAt); err != nil {
			return err
		}
		st.debt -= n
	}
	return nil
}
