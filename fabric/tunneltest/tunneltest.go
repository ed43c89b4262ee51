package tunneltest

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// Tunnel is one end of a tunnel.
type Tunnel struct {
	*session.Session
	id [16]byte

	mu      sync.Mutex
	handle  func([][]byte)
	ways    chan struct{} // closed while there is a route
	peer    identity.NodeID
	changed chan struct{}
}

// Pair returns the two ends of a tunnel over a TCP connection. They end with the
// test.
func Pair(t testing.TB, o session.Options) (near, far *Tunnel) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return End(t, c, true, o), End(t, s, false, o)
}

// End is one end of a tunnel over a connection, such as to another process. One of
// the two is the initiator.
func End(t testing.TB, c net.Conn, initiator bool, o session.Options) *Tunnel {
	t.Helper()
	tunnel := newTunnel(initiator, o)
	if err := tunnel.AddLink(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tunnel.Close() })
	return tunnel
}

func newTunnel(initiator bool, o session.Options) *Tunnel {
	t := &Tunnel{id: [16]byte{1}, handle: func([][]byte) {}, ways: make(chan struct{}), changed: make(chan struct{})}
	close(t.ways)
	o.Packets = func(_ [16]byte, packets [][]byte) {
		t.mu.Lock()
		handle := t.handle
		t.mu.Unlock()
		handle(packets)
	}
	t.Session = session.New(initiator, o)
	return t
}

// Block takes the tunnel's route from streams that are opened; unblock gives it
// back.
func (t *Tunnel) Block() (unblock func()) {
	ways := make(chan struct{})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ways = ways
	return func() { close(ways) }
}

// Open implements fabric.Opener.
func (t *Tunnel) Open(ctx context.Context, class frame.Class, header []byte) (fabric.Stream, error) {
	t.mu.Lock()
	ways := t.ways
	t.mu.Unlock()
	select {
	case <-ways:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	st, err := t.Session.Open(class, header)
	if err != nil {
		return nil, err
	}
	return st, nil
}

// Accept implements fabric.Accepter.
func (t *Tunnel) Accept(ctx context.Context) (fabric.Stream, error) {
	st, err := t.Session.Accept(ctx)
	if err != nil {
		return nil, err
	}
	return st, nil
}

// SendPackets sends packets to the other end.
func (t *Tunnel) SendPackets(packets [][]byte) error { return t.Session.SendPackets(t.id, packets) }

// HandlePackets says who takes in packets.
func (t *Tunnel) HandlePackets(handle func([][]byte)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.handle = handle
}

// Peer returns the node at the other end: none, or what Move has said.
func (t *Tunnel) Peer() identity.NodeID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peer
}

// Changed returns a channel that Move closes.
func (t *Tunnel) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// Move has the tunnel say that its other end is another node now. The streams
// that are there stay.
func (t *Tunnel) Move(peer identity.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peer = peer
	close(t.changed)
	t.changed = make(chan struct{})
}
