package vpn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/session"
)

// ClientOptions are for a Client. Device is needed.
type ClientOptions struct {
	Device Device
	MTU    int            // the most; 0: what the exit says
	Routes []netip.Prefix // that lead to the exit, besides its own network
	Bypass []netip.Prefix // see Config
	// Around, if set, says over which addresses the tunnel itself goes now: with a
	// route to all the world, they must not be reached through the tunnel.
	Around func() []netip.Addr
	// Again, if set, finds another tunnel when one has ended, such as with its exit.
	// Meanwhile the device stays, and packets are dropped.
	Again func(ctx context.Context) (Tunnel, error)
	// Leased, if set, is told of each lease when the device has it.
	Leased func(Lease)
	Log    *slog.Logger // nil: nothing is logged
}

// Client leads packets of this host to an exit.
type Client struct {
	end
	o    ClientOptions
	held atomic.Pointer[[families]netip.Addr] // what packets are for; nil: there is no lease now
	way  atomic.Pointer[sender]               // nil: there is no tunnel now
	last [families]netip.Addr                 // the last lease's; invalid: there was none
}

// Check reports what is wrong with the options, but for the device.
func (o *ClientOptions) Check() error {
	return errors.Join(checkMTU(cmp.Or(o.MTU, MaxMTU)), checkPrefixes(o.Routes), checkPrefixes(o.Bypass))
}

// NewClient returns a client.
func NewClient(o ClientOptions) (*Client, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	o.MTU = cmp.Or(o.MTU, MaxMTU)
	c := &Client{o: o}
	c.init(o.Device, o.Log)
	return c, nil
}

const (
	answerTime   = 30 * time.Second // for an exit to answer
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 10 * time.Second
)

// Run carries packets until the tunnel ends and there is no other, the device
// fails, or ctx is done. It fails at once when the exit refuses the first lease;
// later ones are asked for again. It closes the device.
func (c *Client) Run(ctx context.Context, t Tunnel) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { c.dev.Close() })
	var wg sync.WaitGroup
	wg.Go(func() { cancel(c.receive()) })
	wg.Go(func() {
		if err := c.feed(ctx.Done()); err != nil {
			cancel(err)
		}
	})
	cancel(c.follow(ctx, t))
	err := context.Cause(ctx)
	if stop() {
		c.dev.Close()
	}
	wg.Wait()
	return err
}

// endedError is of a tunnel that has ended.
type endedError struct{ error }

func (e *endedError) Unwrap() error { return e.error }

// follow uses a tunnel, and the next one when it has ended.
func (c *Client) follow(ctx context.Context, t Tunnel) error {
	for {
		err := c.over(ctx, t)
		var ended *endedError
		if !errors.As(err, &ended) || c.o.Again == nil || ctx.Err() != nil {
			return err
		}
		c.log.Warn("the tunnel to the exit has ended; asking for another", "err", err)
		if t, err = c.o.Again(ctx); err != nil {
			return err
		}
	}
}

// over uses a tunnel until it ends, or ctx, or something else fails.
func (c *Client) over(ctx context.Context, t Tunnel) error {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &sender{t: t}
	c.way.Store(s)
	defer c.way.Store(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() {
		select {
		case <-t.Done():
			cancel(&endedError{fmt.Errorf("vpn: the tunnel has ended: %w", t.Err())})
		case <-ctx.Done():
		}
	})
	t.HandlePackets(c.take)
	return c.hold(ctx, s)
}

// take takes in packets of the tunnel.
func (c *Client) take(packets [][]byte) {
	held := c.held.Load()
	c.end.take(packets, func(p packet) bool { return held != nil && p.dst == held[familyOf(p.dst)] })
}

// receive sends what the host gives to the device, until the device fails.
func (c *Client) receive() error {
	for {
		packets, err := c.dev.Receive()
		if err != nil {
			return err
		}
		s, held := c.way.Load(), c.held.Load()
		for _, b := range packets {
			if p, ok := parse(b); !ok {
				c.malformed.Add(1)
			} else if s == nil || held == nil || p.src != held[familyOf(p.src)] {
				c.foreign.Add(1)
			} else {
				c.add(s, p, b)
			}
		}
		if s != nil {
			c.flush(s)
		}
	}
}

// hold asks for a lease, again whenever it is lost.
func (c *Client) hold(ctx context.Context, s *sender) error {
	for pause := firstBackoff; ; {
		held, err := c.lease(ctx, s)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var refused *session.ResetError
		var bad *deviceError
		if errors.As(err, &bad) || !c.had() && errors.As(err, &refused) && refused.Remote &&
			(refused.Code == CodeNoAddress || refused.Code == CodeMalformed) {
			return err
		}
		if held {
			pause = firstBackoff
		}
		c.log.Warn("there is no lease of the exit; asking again", "err", err, "in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause = min(2*pause, lastBackoff)
	}
}

// had reports whether there was a lease.
func (c *Client) had() bool { return c.last != [families]netip.Addr{} }

// deviceError is of a device that can't be set up.
type deviceError struct{ error }

func (e *deviceError) Unwrap() error { return e.error }

// lease asks for an address and holds it until the exit is gone. held: there
// was one.
func (c *Client) lease(ctx context.Context, s *sender) (held bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	peer := s.t.Peer()
	st, err := s.t.Open(ctx, frame.Control, []byte{wireVersion, kindControl})
	if err != nil {
		return false, err
	}
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer stop()
	defer st.Close()
	l, err := c.ask(st)
	if err != nil {
		return false, err
	}
	if l, err = c.configure(l); err != nil {
		return false, &deviceError{err}
	}
	c.last = [families]netip.Addr{v4: l.V4.Addr.Addr(), v6: l.V6.Addr.Addr()}
	addrs := c.last
	c.held.Store(&addrs)
	defer c.held.Store(nil)
	c.log.Info("the exit has given an address", "addrs", l.Addrs(), "mtu", l.MTU)

	dns, err := s.t.Open(ctx, frame.DNS, []byte{wireVersion, kindDNS})
	if err != nil {
		return true, err
	}
	flow := newDNSFlow(dns)
	s.dns.Store(flow)
	defer s.dns.Store(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		// Without it, DNS goes with the other packets.
		if err := flow.run(ctx, c.take); ctx.Err() == nil {
			s.dns.CompareAndSwap(flow, nil)
			c.log.Debug("the DNS stream has ended", "err", err)
		}
	})
	wg.Go(func() { // a tunnel may leave a node that still serves its streams
		for {
			changed := s.t.Changed()
			if s.t.Peer() != peer {
				cancel()
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	if c.o.Leased != nil {
		c.o.Leased(l)
	}
	if _, err := st.Read(make([]byte, 1)); err != nil {
		if s.t.Peer() != peer {
			err = errors.New("vpn: the tunnel leads to another exit now")
		}
		return true, err
	}
	return true, errors.New("vpn: the exit says more than it should")
}

// ask asks for an address on a new control stream.
func (c *Client) ask(st fabric.Stream) (l Lease, err error) {
	if err := st.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return l, err
	}
	if err := (hello{c.o.MTU, c.last, c.o.MTU >= MinMTU6}).write(st); err != nil {
		return l, err
	}
	if err := l.read(st); err != nil {
		return l, err
	}
	l.MTU = min(l.MTU, c.o.MTU)
	return l, st.SetDeadline(time.Time{})
}

// configure sets the device up for a lease, and returns what of it is used. A
// host that has no IPv6 does without.
func (c *Client) configure(l Lease) (Lease, error) {
	err := c.dev.Configure(c.config(l))
	if err != nil && l.V4.ok() && l.V6.ok() {
		without := l
		without.V6 = Assigned{}
		if c.dev.Configure(c.config(without)) == nil {
			c.log.Warn("the device takes no address of IPv6; it goes on with IPv4 alone", "err", err)
			return without, nil
		}
	}
	return l, err
}

// config is the device's for a lease: routes of a family that it has no address
// of can't be had.
func (c *Client) config(l Lease) Config {
	family := func(list []netip.Prefix) (with []netip.Prefix) {
		for _, p := range list {
			if l.of(familyOf(p.Addr())).ok() {
				with = append(with, p)
			}
		}
		return with
	}
	cfg := Config{Addrs: l.Addrs(), MTU: l.MTU, Routes: family(c.o.Routes), Bypass: family(c.o.Bypass)}
	if c.o.Around != nil {
		cfg.Around = c.o.Around()
	}
	return cfg
}
