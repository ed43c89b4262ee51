package fabric

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/internal/testenv/faultnet"
	"github.com/spacestore/space/internal/testenv/freeport"
	"github.com/spacestore/space/internal/testenv/seed"
)

var (
	soakTunnels = flag.Int("soak-tunnels", 200, "tunnels of TestSoak")
	soakRounds  = flag.Int("soak-rounds", 1, "rounds of faults of TestSoak")
)

// soak is a fabric over real connections of this machine: a node that asks, three
// that provide, each behind a network that can be made bad, and one that passes on.
type soak struct {
	*world
	t       *testing.T
	client  *Node
	proxies map[string]*faultnet.TCP
}

var soakProviders = []string{"p0", "p1", "p2"}

// real starts a node that listens on this machine.
func (s *soak) real(name string) *Node {
	s.t.Helper()
	id := s.identity(s.t, name)
	c := carrier.NewTLS(id, carrier.TLSOptions{})
	o := Options{Identity: id, Name: name, Area: "one", Relay: name == "seed", Dial: []carrier.Carrier{c}}
	listen := Listen{Carrier: c, Addr: "127.0.0.1:0"}
	if p := s.proxies[name]; p != nil {
		listen.Addr, listen.Advertise = p.Target(), p.Addr()
	}
	o.Listen = []Listen{listen}
	if first := s.all["seed"]; first != nil {
		o.Seeds = first.Addrs()
	}
	var n *Node
	var err error
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if n, err = Start(o); err == nil || time.Now().After(end) { // the address may still be taken
			break
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.all[name] = n
	for _, p := range soakProviders {
		if p == name {
			echo(s.t, n, "pool")
		}
	}
	return n
}

// TestSoak has many tunnels over real connections, with bulk and interactive
// streams in some, while routes are cut and go silent, a node is killed, and all
// providers are replaced one after the other. Every byte is checked; a stream ends
// early only where the node at its other end did.
func TestSoak(t *testing.T) {
	rng := seed.Rand(t)
	s := &soak{world: newWorld(t, 0), t: t, proxies: map[string]*faultnet.TCP{}}
	defer s.close()
	s.real("seed")
	for _, p := range soakProviders {
		s.proxies[p] = faultnet.NewTCP(t, "127.0.0.1:"+freeport.Of(t))
		s.real(p)
	}
	s.client = s.real("client")

	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	tunnels := make([]*Tunnel, *soakTunnels)
	s.open(t, s.client, failing(testProfile), "pool") // when it is there, the pool is known
	s.atOnce(len(tunnels), func(i int) error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		var err error
		tunnels[i], err = s.client.Tunnel(ctx, Request{Profile: failing(testProfile), Pool: "pool", Kind: "echo"})
		return err
	})
	var after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d tunnels, %d bytes each, both ends", len(tunnels), (int64(after.HeapInuse+after.StackInuse)-int64(before.HeapInuse+before.StackInuse))/int64(len(tunnels)))
	s.askAll(tunnels)

	var nodesEnd atomic.Bool // from now on streams may end early
	var flows []*soakFlow
	for i := range 6 {
		class := []frame.Class{frame.Bulk, frame.Interactive}[i%2]
		f := &soakFlow{tun: tunnels[rng.IntN(len(tunnels))], class: class, mayEnd: &nodesEnd, quit: make(chan struct{}), done: make(chan error, 1)}
		go func() { f.done <- f.run() }()
		flows = append(flows, f)
	}
	s.flowing(flows)
	for range *soakRounds {
		nodesEnd.Store(false)
		for range 6 { // a route is cut
			s.proxies[soakProviders[rng.IntN(3)]].Cut()
			s.flowing(flows)
		}
		p := s.proxies[soakProviders[rng.IntN(3)]] // a route goes silent, and comes back
		p.Set(faultnet.Blackhole)
		s.flowing(flows) // over the node that passes on
		p.Set(faultnet.Fault{})
		s.flowing(flows)

		nodesEnd.Store(true)
		killed := soakProviders[rng.IntN(3)] // a node dies
		s.proxies[killed].Set(faultnet.Blackhole)
		s.proxies[killed].Cut()
		s.all[killed].Close()
		s.flowing(flows)
		s.askAll(tunnels)
		s.proxies[killed].Set(faultnet.Fault{})
		s.real(killed)
		for _, p := range soakProviders { // all are replaced, one by one
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			s.all[p].Drain(ctx) // what flows on may keep it from being done in time
			cancel()
			s.all[p].Close()
			s.real(p)
			s.flowing(flows)
		}
		s.askAll(tunnels)
	}
	for _, f := range flows {
		close(f.quit)
	}
	for i, f := range flows {
		if err := <-f.done; err != nil {
			t.Errorf("flow %d of class %s: %v", i, f.class, err)
		}
	}
	st := s.client.Status()
	t.Logf("%d failovers, %d routes", st.Failovers, len(s.client.Routes()))
}

// flowing waits until each flow has moved on.
func (s *soak) flowing(flows []*soakFlow) {
	s.t.Helper()
	end := time.Now().Add(5 * time.Minute)
	for i, f := range flows {
		for from := f.moved.Load(); f.moved.Load() < from+256<<10; time.Sleep(5 * time.Millisecond) {
			select {
			case err := <-f.done:
				s.t.Fatalf("flow %d of class %s has ended: %v", i, f.class, err)
			default:
			}
			if time.Now().After(end) {
				s.t.Fatalf("flow %d of class %s stands still: tunnel %+v", i, f.class, f.tun.State())
			}
		}
	}
}

// askAll has every tunnel carry a few bytes there and back.
func (s *soak) askAll(tunnels []*Tunnel) {
	s.t.Helper()
	s.atOnce(len(tunnels), func(i int) error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		for {
			st, err := openPatiently(ctx, tunnels[i], frame.Interactive)
			if err != nil {
				return fmt.Errorf("tunnel %d: %w", i, err)
			}
			_, err = converse(st, []byte("are you there?"))
			st.Close()
			if err == nil {
				return nil
			}
			// The stream may have been opened at a node that is just ending.
			if ctx.Err() != nil {
				return fmt.Errorf("tunnel %d: %w", i, err)
			}
		}
	})
}

// openPatiently opens a stream, though nobody is reached just now: on a machine that
// is busy, all nodes may take long to answer.
func openPatiently(ctx context.Context, tun *Tunnel, class frame.Class) (Stream, error) {
	for {
		st, err := tun.Open(ctx, class, nil)
		if !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			return st, err
		}
	}
}

// atOnce does n things, 64 at a time.
func (s *soak) atOnce(n int, do func(i int) error) {
	s.t.Helper()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, 64)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := do(i); err != nil {
				s.t.Error(err)
			}
		})
	}
}

// soakFlow sends bytes that follow from their place, and checks that they come
// back, over one stream after another.
type soakFlow struct {
	tun    *Tunnel
	class  frame.Class
	mayEnd *atomic.Bool
	quit   chan struct{}
	done   chan error
	moved  atomic.Int64
}

func (f *soakFlow) run() error {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		st, err := openPatiently(ctx, f.tun, f.class)
		cancel()
		if err == nil {
			err = f.stream(st, f.tun.Changed())
			st.Close()
		}
		select {
		case <-f.quit:
			return err
		default:
		}
		if errors.Is(err, errWrongBytes) || errors.Is(err, ErrClosed) || err != nil && !f.mayEnd.Load() {
			return err
		}
	}
}

var errWrongBytes = errors.New("other bytes have come than were sent")

// What a flow sends ahead of what has come back is bounded, so that the test takes
// as long as the faults do, and not as the processors need for full windows.
const (
	soakBlock = 64 << 10
	soakAhead = 6 // blocks
)

// stream uses one stream, until the flow ends or the tunnel's route is another.
func (f *soakFlow) stream(st Stream, changed <-chan struct{}) error {
	pattern := make([]byte, 256<<10+251)
	for i := range pattern {
		pattern[i] = byte(i % 251)
	}
	wrote := make(chan int64, 1)
	ahead := make(chan struct{}, soakAhead)
	ended := make(chan struct{})
	stop := sync.OnceFunc(func() { close(ended) })
	defer stop()
	go func() {
		var n int64
		defer func() { wrote <- n }()
		for {
			select {
			case ahead <- struct{}{}:
			case <-ended:
				return
			}
			select {
			case <-f.quit:
				st.CloseWrite()
				return
			case <-changed:
				st.CloseWrite()
				return
			default:
			}
			m, err := st.Write(pattern[n%251 : n%251+soakBlock])
			if n += int64(m); err != nil {
				return
			}
		}
	}()
	err := f.read(st, pattern, wrote, ahead, stop)
	st.Close() // the writer ends
	return err
}

func (f *soakFlow) read(st Stream, pattern []byte, wrote <-chan int64, ahead <-chan struct{}, stop func()) error {
	var name [1]byte
	for name[0] != '\n' { // who answers
		if _, err := st.Read(name[:]); err != nil {
			return err
		}
	}
	var n int64
	b := make([]byte, 128<<10)
	for {
		m, err := st.Read(b)
		if !bytes.Equal(b[:m], pattern[n%251:n%251+int64(m)]) {
			return fmt.Errorf("%w: at %d", errWrongBytes, n)
		}
		for range (n+int64(m))/soakBlock - n/soakBlock {
			<-ahead
		}
		n += int64(m)
		f.moved.Add(int64(m))
		if errors.Is(err, io.EOF) {
			stop()
			if sent := <-wrote; sent != n {
				return fmt.Errorf("%w: %d of %d", errWrongBytes, n, sent)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
