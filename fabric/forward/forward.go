package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/session"
)

// ForwardOptions are for a Forwarder; the zero value is usable.
type ForwardOptions struct {
	// Target is what to ask the exposer for; "": what it exposes.
	Target string
	// Bulk opens streams of class bulk instead of interactive.
	Bulk bool

	Wait     time.Duration // for a route, of a new connection; 0: 30 s
	MaxConns int           // at a time; 0: 1024
	Log      *slog.Logger  // nil: nothing is logged
}

// Forwarder connects what comes in at listeners to streams of a tunnel.
type Forwarder struct {
	o     ForwardOptions
	class frame.Class
	slots chan struct{}
	counters
}

// NewForwarder returns a forwarder.
func NewForwarder(o ForwardOptions) (*Forwarder, error) {
	if o.Target != "" {
		if _, _, err := parseTarget(o.Target); err != nil {
			return nil, err
		}
	}
	if _, err := (header{target: o.Target}).encode(); err != nil {
		return nil, err
	}
	if o.Wait <= 0 {
		o.Wait = 30 * time.Second
	}
	if o.MaxConns <= 0 {
		o.MaxConns = 1024
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &Forwarder{o: o, class: frame.Interactive, slots: make(chan struct{}, o.MaxConns)}
	if o.Bulk {
		f.class = frame.Bulk
	}
	return f, nil
}

// Serve takes in connections of a listener until it is closed, which it
// returns, or until ctx is done, which closes it and resets all connections. It
// returns when the last connection has ended.
func (f *Forwarder) Serve(ctx context.Context, l net.Listener, t fabric.Opener) error {
	var all sync.WaitGroup
	defer all.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for pause := time.Duration(0); ; {
		select {
		case f.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		conn, err := l.Accept()
		if err != nil {
			<-f.slots
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Such as too many open files: others may end.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			f.o.Log.Error("a connection can't be taken in", "at", l.Addr(), "err", err, "again_in", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		pause = 0
		all.Go(func() {
			defer func() { <-f.slots }()
			f.forward(ctx, conn, t)
		})
	}
}

func (f *Forwarder) forward(ctx context.Context, conn net.Conn, t fabric.Opener) {
	f.begin()
	err := f.open(ctx, conn, t)
	f.end(err)
	var reset *session.ResetError
	switch {
	case err == nil:
	case ctx.Err() != nil, errors.Is(err, errLocal), errors.As(err, &reset) && reset.Code == CodeBroken:
		f.o.Log.Debug("a forwarded connection has ended", "from", conn.RemoteAddr(), "err", err)
	default:
		f.o.Log.Error("a forwarded connection has failed", "from", conn.RemoteAddr(), "at", conn.LocalAddr(), "err", err)
	}
}

func (f *Forwarder) open(ctx context.Context, conn net.Conn, t fabric.Opener) error {
	if tcp, ok := conn.(*net.TCPConn); ok {
		if err := tcp.SetKeepAliveConfig(keepAlive); err != nil {
			f.o.Log.Debug("no keep-alive", "from", conn.RemoteAddr(), "err", err) // it has been reset already
		}
	}
	h := header{target: f.o.Target}
	if a, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		h.source = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	b, err := h.encode()
	if err != nil {
		abort(conn)
		return err
	}
	wait, cancel := context.WithTimeout(ctx, f.o.Wait)
	st, err := t.Open(wait, f.class, b)
	cancel()
	if err != nil {
		abort(conn)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return fmt.Errorf("forward: the tunnel had no route within %v: %w", f.o.Wait, err)
		}
		return fmt.Errorf("forward: %w", err)
	}
	return join(ctx, conn, st, &f.counters)
}

// Stats are counts of a forwarder's or an exposer's life.
type Stats struct {
	Active   int64 // connections now
	Total    int64 // connections ever, with those that failed
	Failed   int64 // that were refused, reset or broken
	Sent     int64 // bytes into the tunnel
	Received int64 // bytes out of it
}

// Plus returns the sum of both.
func (s Stats) Plus(o Stats) Stats {
	return Stats{s.Active + o.Active, s.Total + o.Total, s.Failed + o.Failed, s.Sent + o.Sent, s.Received + o.Received}
}

type counters struct {
	active, total, failed, sent, received atomic.Int64
}

// Stats returns the counts.
func (c *counters) Stats() Stats {
	return Stats{c.active.Load(), c.total.Load(), c.failed.Load(), c.sent.Load(), c.received.Load()}
}

func (c *counters) begin() {
	c.total.Add(1)
	c.active.Add(1)
}

func (c *counters) end(err error) {
	c.active.Add(-1)
	if err != nil {
		c.failed.Add(1)
	}
}
