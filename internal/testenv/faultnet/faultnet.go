// Package faultnet is a bad network between two ends on this machine: a proxy on a
// loopback address that delays, loses, reorders, slows down, holds back and cuts
// what passes, changed while it runs. [TCP] is for connections, [UDP] for packets.
//
// It is for tests. Real time passes in it, so tests wait for what happens and
// never assert how long it took.
package faultnet

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// Fault is what the network does to what passes. The zero value does nothing.
type Fault struct {
	Delay  time.Duration // one way
	Jitter time.Duration // added, up to this; never reorders a connection's bytes
	Rate   int64         // bytes a second in each direction; 0: no limit
	Up     bool          // nothing passes to the target
	Down   bool          // nothing comes back
	// For packets alone: the share of those that are lost, or come 10 ms late.
	Loss, Reorder float64
}

// Blackhole lets nothing pass, and tells nobody.
var Blackhole = Fault{Up: true, Down: true}

// state is the fault in force. changed is closed at the next change.
type state struct {
	mu      sync.Mutex
	fault   Fault
	rng     *rand.Rand
	changed chan struct{}
	done    chan struct{}
}

func newState() *state {
	return &state{rng: rand.New(rand.NewPCG(1, 2)), changed: make(chan struct{}), done: make(chan struct{})}
}

// Set changes what the network does.
func (s *state) Set(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *state) get() (Fault, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault, s.changed
}

func (s *state) chance(p float64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p > 0 && s.rng.Float64() < p
}

func (s *state) jitter(max time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if max <= 0 {
		return 0
	}
	return time.Duration(s.rng.Int64N(int64(max)))
}

// parcel is some bytes and when they are due.
type parcel struct {
	b   []byte
	due time.Time
}

// clocked tells when bytes that come now are due, by delay, jitter and rate.
type clocked struct{ free, last time.Time }

func (c *clocked) due(s *state, f Fault, n int) time.Time {
	now := time.Now()
	if c.free.Before(now) {
		c.free = now
	}
	if f.Rate > 0 {
		c.free = c.free.Add(time.Duration(float64(n) / float64(f.Rate) * float64(time.Second)))
	}
	due := c.free.Add(f.Delay + s.jitter(f.Jitter))
	if due.Before(c.last) {
		due = c.last
	}
	c.last = due
	return due
}

// gone reports whether the test has ended.
func (s *state) gone() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// wait waits until t; false: the network is gone.
func (s *state) wait(t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.done:
		return false
	}
}

// TCP is a proxy for connections.
type TCP struct {
	*state
	l      net.Listener
	target string
	wg     sync.WaitGroup

	connsMu sync.Mutex
	conns   map[net.Conn]bool
}

// NewTCP returns a proxy in front of target. It ends with the test.
func NewTCP(tb testing.TB, target string) *TCP {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &TCP{state: newState(), l: l, target: target, conns: map[net.Conn]bool{}}
	p.wg.Go(p.serve)
	tb.Cleanup(func() {
		close(p.done)
		l.Close()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// Target is where connections go on to.
func (p *TCP) Target() string { return p.target }

// Addr is where to connect to.
func (p *TCP) Addr() string { return p.l.Addr().String() }

// Cut resets all connections there are.
func (p *TCP) Cut() {
	p.connsMu.Lock()
	defer p.connsMu.Unlock()
	for c := range p.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

func (p *TCP) serve() {
	for {
		a, err := p.l.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", p.target)
		if err != nil {
			a.(*net.TCPConn).SetLinger(0)
			a.Close()
			continue
		}
		p.connsMu.Lock()
		p.conns[a], p.conns[b] = true, true
		p.connsMu.Unlock()
		if p.gone() { // and nobody cuts what is new
			p.Cut()
		}
		var both sync.WaitGroup
		both.Go(func() { p.pipe(b, a, func(f Fault) bool { return f.Up }) })
		both.Go(func() { p.pipe(a, b, func(f Fault) bool { return f.Down }) })
		p.wg.Go(func() {
			both.Wait()
			p.connsMu.Lock()
			delete(p.conns, a)
			delete(p.conns, b)
			p.connsMu.Unlock()
			a.Close()
			b.Close()
		})
	}
}

// pipe moves one direction's bytes, which are at most 64 parcels on the way.
func (p *TCP) pipe(to, from net.Conn, silent func(Fault) bool) {
	way := make(chan parcel, 64)
	p.wg.Go(func() {
		defer close(way)
		var clk clocked
		for {
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			if n > 0 {
				f, _ := p.get()
				way <- parcel{b[:n], clk.due(p.state, f, n)}
			}
			if err != nil {
				return
			}
		}
	})
	ok := true
	for x := range way { // to the end, so that the reader ends
		ok = ok && p.wait(x.due) && p.open(silent)
		if ok {
			_, err := to.Write(x.b)
			ok = err == nil
		}
		if !ok {
			from.Close()
		}
	}
	if ok && p.open(silent) {
		to.(*net.TCPConn).CloseWrite()
	} else {
		to.Close()
	}
}

// open waits as long as nothing passes; false: the network is gone.
func (p *TCP) open(silent func(Fault) bool) bool {
	for {
		f, changed := p.get()
		if !silent(f) {
			return true
		}
		select {
		case <-changed:
		case <-p.done:
			return false
		}
	}
}

// UDP is a proxy for packets: each address that sends to it has an address of its
// own towards the target.
type UDP struct {
	*state
	in     *net.UDPConn
	target *net.UDPAddr
	wg     sync.WaitGroup

	outMu sync.Mutex
	out   map[string]*net.UDPConn
}

// NewUDP returns a proxy in front of target. It ends with the test.
func NewUDP(tb testing.TB, target string) *UDP {
	tb.Helper()
	to, err := net.ResolveUDPAddr("udp", target)
	if err != nil {
		tb.Fatal(err)
	}
	in, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	p := &UDP{state: newState(), in: in, target: to, out: map[string]*net.UDPConn{}}
	p.wg.Go(p.serve)
	tb.Cleanup(func() {
		close(p.done)
		in.Close()
		p.outMu.Lock()
		for _, c := range p.out {
			c.Close()
		}
		p.outMu.Unlock()
		p.wg.Wait()
	})
	return p
}

// Addr is where to send to.
func (p *UDP) Addr() string { return p.in.LocalAddr().String() }

func (p *UDP) serve() {
	up := p.way(func(f Fault) bool { return f.Up })
	b := make([]byte, 64<<10)
	for {
		n, from, err := p.in.ReadFromUDP(b)
		if err != nil {
			return
		}
		if c := p.towards(from); c != nil {
			up(b[:n], func(x []byte) { c.Write(x) })
		}
	}
}

// towards returns the socket for what comes from an address.
func (p *UDP) towards(from *net.UDPAddr) *net.UDPConn {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	c := p.out[from.String()]
	if c != nil || len(p.out) >= 1024 || p.gone() {
		return c
	}
	c, err := net.DialUDP("udp", nil, p.target)
	if err != nil {
		return nil
	}
	p.out[from.String()] = c
	p.wg.Go(func() {
		down := p.way(func(f Fault) bool { return f.Down })
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if p.gone() {
				return
			}
			if err == nil { // else nobody listens there now
				down(b[:n], func(x []byte) { p.in.WriteToUDP(x, from) })
			}
		}
	})
	return c
}

// way returns what sends packets in one direction. At most 4096 are on the way.
func (p *UDP) way(silent func(Fault) bool) func(b []byte, send func([]byte)) {
	var clk clocked
	slots := make(chan struct{}, 4096)
	return func(b []byte, send func([]byte)) {
		f, _ := p.get()
		if silent(f) || p.chance(f.Loss) {
			return
		}
		due := clk.due(p.state, f, len(b))
		if p.chance(f.Reorder) {
			due = due.Add(10 * time.Millisecond)
		}
		d := time.Until(due)
		if d <= 0 {
			send(b)
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			return // a full queue loses packets
		}
		x := append([]byte(nil), b...)
		time.AfterFunc(d, func() {
			<-slots
			send(x)
		})
	}
}
