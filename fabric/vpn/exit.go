package vpn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/identity"
)

// ExitOptions are for an Exit. Device and Pool are needed.
type ExitOptions struct {
	Device Device
	// Pool is the network that addresses are handed out of, such as
	// 10.77.0.0/16; the exit has its first.
	Pool netip.Prefix
	MTU  int          // the most; 0: DefaultMTU
	Log  *slog.Logger // nil: nothing is logged
}

// Exit leads packets of many tunnels to this host, and what it has for them back.
type Exit struct {
	end
	o       ExitOptions
	gateway netip.Addr
	pool    *pool

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
	key  leaseKey
	addr netip.Addr // guarded by Exit.mu; invalid: there is no lease now
}

// NewExit sets the device up. Close the exit.
func NewExit(o ExitOptions) (*Exit, error) {
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	if err := errors.Join(checkMTU(o.MTU), checkPrefixes([]netip.Prefix{o.Pool})); err != nil {
		return nil, err
	}
	o.Pool = o.Pool.Masked()
	gateway := o.Pool.Addr().Next()
	if o.Pool.Bits() < minBits || o.Pool.Bits() > maxBits || !usable(o.Pool, gateway) {
		return nil, fmt.Errorf("vpn: addresses can't be handed out of %v; a network of /%d to /%d is needed", o.Pool, minBits, maxBits)
	}
	if err := o.Device.Configure(Config{Addr: netip.PrefixFrom(gateway, o.Pool.Bits()), MTU: o.MTU}); err != nil {
		return nil, err
	}
	e := &Exit{o: o, gateway: gateway, pool: newPool(o.Pool), members: map[netip.Addr]*member{},
		tunnels: map[leaseKey]bool{}, done: make(chan struct{})}
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

// Gateway returns the exit's own address.
func (e *Exit) Gateway() netip.Addr { return e.gateway }

// Leases returns which tunnels have which addresses now.
func (e *Exit) Leases() map[fabric.TunnelID]netip.Addr {
	e.mu.RLock()
	defer e.mu.RUnlock()
	m := make(map[fabric.TunnelID]netip.Addr, len(e.members))
	for a, mb := range e.members {
		m[mb.key.tunnel] = a
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
	addr, err := e.pool.lease(m.key, h.want)
	if err != nil {
		st.Reset(CodeNoAddress, err.Error())
		e.log.Warn("a VPN client gets no address", "tunnel", m.key.tunnel, "peer", m.key.peer, "err", err)
		return err
	}
	e.mu.Lock()
	m.addr = addr
	e.members[addr] = m
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		m.addr = netip.Addr{}
		delete(e.members, addr)
		e.mu.Unlock()
		e.pool.release(m.key)
	}()
	if err := (Lease{addr, e.o.Pool.Bits(), e.gateway, min(e.o.MTU, h.mtu)}).write(st); err != nil {
		return err
	}
	if err := st.SetDeadline(time.Time{}); err != nil {
		return err
	}
	e.log.Info("a VPN client has an address", "addr", addr, "tunnel", m.key.tunnel, "peer", m.key.peer)
	if _, err := st.Read(make([]byte, 1)); err != nil {
		return err // usually the end
	}
	st.Reset(CodeMalformed, "there is nothing more to say on this stream")
	return errors.New("vpn: the client says more than it should")
}

// takeFrom takes in packets of a tunnel.
func (e *Exit) takeFrom(m *member, packets [][]byte) {
	e.mu.RLock()
	addr := m.addr
	e.mu.RUnlock()
	e.take(packets, func(p packet) bool { return p.src == addr })
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

// leaseKey is whom an address belongs to.
type leaseKey struct {
	peer   identity.NodeID
	tunnel fabric.TunnelID
}

// pool hands out a network's addresses. Who has had one gets it again, until
// it is needed by others.
type pool struct {
	network netip.Prefix

	mu    sync.Mutex
	by    map[leaseKey]netip.Addr
	owner map[netip.Addr]leaseKey
	idle  []leaseKey // that have given theirs back, the longest ago first
	next  netip.Addr // where to look for one that nobody has
}

func newPool(network netip.Prefix) *pool {
	return &pool{network: network, by: map[leaseKey]netip.Addr{}, owner: map[netip.Addr]leaseKey{}, next: network.Addr().Next().Next()}
}

// lease returns an address: the one that k has or had, else the wanted one if
// nobody has it, else another.
func (p *pool) lease(k leaseKey, want netip.Addr) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.by[k]; ok {
		p.idle = slices.DeleteFunc(p.idle, func(o leaseKey) bool { return o == k })
		return a, nil
	}
	a, ok := want, false
	if p.mine(want) {
		o, taken := p.owner[want]
		switch {
		case !taken:
			ok = true
		case o.peer == k.peer && slices.Contains(p.idle, o): // its tunnel before this one
			p.forget(o)
			ok = true
		}
	}
	if !ok {
		a, ok = p.free()
	}
	if !ok && len(p.idle) > 0 {
		a, ok = p.by[p.idle[0]], true
		p.forget(p.idle[0])
	}
	if !ok {
		return a, fmt.Errorf("vpn: all %d addresses of the exit are in use", len(p.owner))
	}
	p.by[k], p.owner[a] = a, k
	return a, nil
}

// mine reports whether the pool may hand an address out.
func (p *pool) mine(a netip.Addr) bool {
	return usable(p.network, a) && a != p.network.Addr().Next()
}

// free looks for an address that nobody has.
func (p *pool) free() (netip.Addr, bool) {
	for range 1<<(32-p.network.Bits()) - 3 { // all but the network's own, the exit's, and the last
		a := p.next
		if p.next = a.Next(); p.next == last(p.network) {
			p.next = p.network.Addr().Next().Next()
		}
		if _, taken := p.owner[a]; !taken && p.mine(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (p *pool) forget(k leaseKey) {
	delete(p.owner, p.by[k])
	delete(p.by, k)
	p.idle = slices.DeleteFunc(p.idle, func(o leaseKey) bool { return o == k })
}

// release gives an address back.
func (p *pool) release(k leaseKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, k)
}
