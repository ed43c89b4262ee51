package vpn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/identity"
)

// ExitOptions are for an Exit. Device and Pool are needed.
type ExitOptions struct {
	Device Device
	// Pools are the networks that addresses are handed out of, such as
	// 10.77.0.0/16 and fd00:77::/64: one of IPv4, one of IPv6, or both. The exit
	// has the first of each.
	Pools []netip.Prefix
	MTU   int          // the most; 0: DefaultMTU
	Log   *slog.Logger // nil: nothing is logged
}

// Exit leads packets of many tunnels to this host, and what it has for them back.
type Exit struct {
	end
	o     ExitOptions
	pools [families]*pool // nil: none of the family

	mu      sync.RWMutex
	members map[netip.Addr]*member // that have a lease now
	tunnels map[leaseKey]bool      // being served
	failed  error

	done    chan struct{}
	closing sync.Once
	wg      sync.WaitGroup
}

// member is a tunnel that is served.
type member struct {
	sender
	key leaseKey

	// Exit.mu guards these.
	addrs [families]netip.Addr // invalid: there is no lease now
	mtu   int
}

// Check reports what is wrong with the options, but for the device.
func (o *ExitOptions) Check() error {
	mtu := cmp.Or(o.MTU, DefaultMTU)
	if err := errors.Join(checkMTU(mtu), checkPrefixes(o.Pools)); err != nil {
		return err
	}
	if len(o.Pools) == 0 {
		return errors.New("vpn: an exit takes a network whose addresses it hands out")
	}
	var have [families]bool
	for _, p := range o.Pools {
		f := familyOf(p.Addr())
		if have[f] {
			return fmt.Errorf("vpn: an exit hands out addresses of one network of %v", f)
		}
		have[f] = true
		if !f.fits(p) || !usable(p.Masked(), p.Masked().Addr().Next()) {
			return fmt.Errorf("vpn: addresses can't be handed out of %v; a network of %v of /%d to /%d is needed", p, f, f.minBits(), f.maxBits())
		}
		if f == v6 && mtu < MinMTU6 {
			return fmt.Errorf("vpn: an MTU of %d; IPv6 takes %d", mtu, MinMTU6)
		}
	}
	return nil
}

// NewExit sets the device up. Close the exit.
func NewExit(o ExitOptions) (*Exit, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	o.MTU = cmp.Or(o.MTU, DefaultMTU)
	e := &Exit{o: o, members: map[netip.Addr]*member{}, tunnels: map[leaseKey]bool{}, done: make(chan struct{})}
	for _, p := range o.Pools {
		e.pools[familyOf(p.Addr())] = newPool(p.Masked())
	}
	if err := o.Device.Configure(Config{Addrs: e.Gateways(), MTU: o.MTU}); err != nil {
		return nil, err
	}
	e.init(o.Device, o.Log)
	e.wg.Go(func() { e.fail(e.receive()) })
	e.wg.Go(func() { e.fail(e.feed(e.done)) })
	return e, nil
}

// Close ends all tunnels' service and closes the device.
func (e *Exit) Close() error {
	e.fail(nil)
	e.wg.Wait()
	return nil
}

// fail ends the exit; err is what went wrong.
func (e *Exit) fail(err error) {
	e.closing.Do(func() {
		e.mu.Lock()
		e.failed = errors.New("vpn: the exit is closed")
		if err != nil {
			e.failed = fmt.Errorf("vpn: the exit has failed: %w", err)
			e.log.Error("the VPN exit has failed", "err", err)
		}
		e.mu.Unlock()
		close(e.done)
		if err := e.dev.Close(); err != nil {
			e.log.Error("the VPN exit's device can't be closed", "device", e.dev.Name(), "err", err)
		}
	})
}

// Done is closed when the exit has failed or was closed; Err says which.
func (e *Exit) Done() <-chan struct{} { return e.done }

// Err returns why the exit has ended, or nil.
func (e *Exit) Err() error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.failed
}

// Gateways returns the exit's own addresses, with their networks.
func (e *Exit) Gateways() (list []netip.Prefix) {
	for _, p := range e.pools {
		if p != nil {
			list = append(list, netip.PrefixFrom(p.gateway(), p.network.Bits()))
		}
	}
	return list
}

// Leases returns which addresses are of which tunnels now.
func (e *Exit) Leases() map[netip.Addr]fabric.TunnelID {
	e.mu.RLock()
	defer e.mu.RUnlock()
	m := make(map[netip.Addr]fabric.TunnelID, len(e.members))
	for a, mb := range e.members {
		m[a] = mb.key.tunnel
	}
	return m
}

// Serve carries the packets of a tunnel that peer has asked for, until the
// tunnel, the exit or ctx ends.
func (e *Exit) Serve(ctx context.Context, t Tunnel, id fabric.TunnelID, peer identity.NodeID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &member{key: leaseKey{peer, id}}
	m.t = t
	e.mu.Lock()
	if e.failed != nil || e.tunnels[m.key] {
		defer e.mu.Unlock()
		if e.failed != nil {
			return e.failed
		}
		return fmt.Errorf("vpn: tunnel %v is served already", id)
	}
	e.tunnels[m.key] = true
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.tunnels, m.key)
	}()
	t.HandlePackets(func(packets [][]byte) { e.takeFrom(m, packets) })
	defer t.HandlePackets(func([][]byte) {})

	// At most one stream of each kind is served; a new one takes its place.
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	go func() {
		select {
		case <-e.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	var serving [kindDNS + 1]struct {
		fabric.Stream
		ended chan struct{}
	}
	for {
		st, err := t.Accept(ctx)
		if err != nil {
			if failed := e.Err(); failed != nil {
				return failed
			}
			return err
		}
		h := st.Header()
		if len(h) < 2 || h[0] != wireVersion || h[1] != kindControl && h[1] != kindDNS {
			st.Reset(CodeMalformed, "the stream is for nothing that is known here")
			continue
		}
		place := &serving[h[1]]
		if place.Stream != nil {
			place.Reset(CodeReplaced, "the tunnel has opened another stream of the kind")
			<-place.ended
		}
		place.Stream, place.ended = st, make(chan struct{})
		ended := place.ended
		wg.Go(func() {
			defer close(ended)
			stop := context.AfterFunc(ctx, func() { st.Reset(CodeStopped, "the exit does not serve the tunnel any more") })
			defer stop()
			var err error
			if h[1] == kindControl {
				err = e.control(m, st)
			} else {
				flow := newDNSFlow(st)
				m.dns.Store(flow)
				err = flow.run(ctx, func(packets [][]byte) { e.takeFrom(m, packets) })
				m.dns.CompareAndSwap(flow, nil)
			}
			e.log.Debug("a VPN stream has ended", "tunnel", id, "peer", peer, "kind", h[1], "err", err)
		})
	}
}

// control gives a tunnel its address, for as long as the stream lives.
func (e *Exit) control(m *member, st fabric.Stream) error {
	defer st.Close()
	if err := st.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	var h hello
	if err := h.read(st); err != nil {
		st.Reset(CodeMalformed, "the request for an address makes no sense")
		return err
	}
	l, err := e.grant(m.key, h)
	if err != nil {
		st.Reset(CodeNoAddress, err.Error())
		e.log.Warn("a VPN client gets no address", "tunnel", m.key.tunnel, "peer", m.key.peer, "err", err)
		return err
	}
	e.mu.Lock()
	m.mtu = l.MTU
	for f, a := range l.byFamily() {
		if m.addrs[f] = a.Addr.Addr(); a.ok() {
			e.members[m.addrs[f]] = m
		}
	}
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		for f, a := range m.addrs {
			if a.IsValid() {
				delete(e.members, a)
				m.addrs[f] = netip.Addr{}
			}
		}
		e.mu.Unlock()
		e.release(m.key, l)
	}()
	if err := l.write(st); err != nil {
		return err
	}
	if err := st.SetDeadline(time.Time{}); err != nil {
		return err
	}
	e.log.Info("a VPN client has an address", "addrs", l.Addrs(), "tunnel", m.key.tunnel, "peer", m.key.peer)
	if _, err := st.Read(make([]byte, 1)); err != nil {
		return err // usually the end
	}
	st.Reset(CodeMalformed, "there is nothing more to say on this stream")
	return errors.New("vpn: the client says more than it should")
}

// grant finds addresses of each family for whoever has asked.
func (e *Exit) grant(k leaseKey, h hello) (l Lease, err error) {
	l.MTU = min(e.o.MTU, h.mtu)
	for f, p := range e.pools {
		if p == nil || family(f) == v6 && (!h.six || l.MTU < MinMTU6) {
			continue
		}
		a, err := p.lease(k, h.want[f])
		if err != nil {
			e.release(k, l)
			return l, err
		}
		*l.of(family(f)) = p.assigned(a)
	}
	if len(l.Addrs()) == 0 {
		return l, fmt.Errorf("vpn: the exit has addresses of IPv6 alone, and the client takes none: it is older, or its MTU is below %d", MinMTU6)
	}
	return l, nil
}

// release gives a lease's addresses back.
func (e *Exit) release(k leaseKey, l Lease) {
	for f, a := range l.byFamily() {
		if a.ok() {
			e.pools[f].release(k)
		}
	}
}

// takeFrom takes in packets of a tunnel.
func (e *Exit) takeFrom(m *member, packets [][]byte) {
	e.mu.RLock()
	addrs := m.addrs
	e.mu.RUnlock()
	e.take(packets, func(p packet) bool { return p.src == addrs[familyOf(p.src)] })
}

// receive sends what the host gives to the device where it belongs.
func (e *Exit) receive() error {
	var touched []*member
	for {
		packets, err := e.dev.Receive()
		if err != nil {
			select {
			case <-e.done:
				return nil
			default:
				return err
			}
		}
		e.mu.RLock()
		for _, b := range packets {
			p, ok := parse(b)
			if !ok {
				e.malformed.Add(1)
				continue
			}
			m := e.members[p.dst]
			if m == nil {
				e.foreign.Add(1)
				continue
			}
			if len(b) > m.mtu && p.whole {
				e.answer(b, p, m.mtu)
				continue
			}
			before := len(m.out)
			if e.add(&m.sender, p, b); before == 0 && len(m.out) > 0 {
				touched = append(touched, m)
			}
		}
		e.mu.RUnlock()
		for _, m := range touched {
			e.flush(&m.sender)
		}
		clear(touched)
		touched = touched[:0]
	}
}

// answer tells the host that a packet is larger than its client takes.
func (e *Exit) answer(b []byte, p packet, mtu int) {
	e.dropped.Add(1)
	if a := tooBig(b, p, mtu); a != nil {
		e.inbound.put(batch{[][]byte{a}, len(a) + 64}) // a sender that hears nothing tries again
	}
}
