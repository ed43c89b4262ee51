package relay

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Conn is one end of a relayed connection. It is a [net.Conn] and may be used
// from many goroutines.
type Conn struct {
	id      ID
	in, out *queue // towards the user, from the user
	local   net.Addr
	remote  net.Addr
	onClose func() // the user has closed the connection
	onKnown func() // see Know; nil: nobody has to hear of it

	closed          sync.Once
	readAt, writeAt deadline
}

// Addr is the address of a relayed connection: which relay, which session.
type Addr string

// Network implements net.Addr.
func (Addr) Network() string { return "relay" }

func (a Addr) String() string { return string(a) }

// clientAddr is the address of a client's end, as its server has it.
type clientAddr struct {
	Addr
	from netip.Addr
}

// Source returns where the client's exchanges come from: its own address, or that of
// the last proxy. It is not valid where that is not known.
func (a clientAddr) Source() netip.Addr { return a.from }

func (a clientAddr) String() string {
	if !a.from.IsValid() {
		return a.Addr.String()
	}
	return a.Addr.String() + " of " + a.from.String()
}

// windowBytes is how much a connection holds in each direction: what can be
// under way in a round trip.
const windowBytes = 4 << 20

func newConn(id ID, change func()) *Conn {
	return &Conn{id: id, in: newQueue(windowBytes, change), out: newQueue(windowBytes, change)}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) { return c.in.read(p, &c.readAt) }

// Write implements net.Conn. It returns when the bytes are taken in, not when
// they are at the other end.
func (c *Conn) Write(p []byte) (int, error) { return c.out.write(p, &c.writeAt) }

// CloseWrite tells the other end that nothing follows what was written. Reads
// go on.
func (c *Conn) CloseWrite() error {
	c.out.close()
	return nil
}

// Close ends the connection in both directions. What was written before still
// goes out, for as long as the other end reads it, within bounds.
func (c *Conn) Close() error {
	c.closed.Do(func() {
		c.in.abandon(net.ErrClosed)
		c.out.close()
		c.onClose()
	})
	return nil
}

// fail ends the connection for its user.
func (c *Conn) fail(err error) {
	c.in.fail(err)
	c.out.fail(err)
}

// Know tells the server that its user knows who is at the other end, so that the
// connection does not make way for strangers'.
func (c *Conn) Know() {
	if c.onKnown != nil {
		c.onKnown()
	}
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.readAt.set(t)
	c.writeAt.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.readAt.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.writeAt.set(t)
	return nil
}

// Errors of connections.
var (
	// ErrReset ends a connection that the other end gave up.
	ErrReset = errors.New("relay: connection reset")
	// ErrHeld ends a connection of which an operation stayed away for HoldTime.
	ErrHeld = errors.New("relay: an operation did not arrive in time")
	// ErrRefused is of an exchange where one end does not trust the other: it is not
	// tried again, and ends the connections that it is for.
	ErrRefused = errors.New("relay: the exchange is refused")
	// ErrBusy is Dial's answer when the server takes no more connections.
	ErrBusy = errors.New("relay: the server has no room for another connection; try again later")
)
