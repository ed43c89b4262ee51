package carrier

import (
	"net"
	"testing"
)

// from is a connection that comes from an address.
type from struct {
	net.Conn
	addr net.Addr
}

func (c from) RemoteAddr() net.Addr { return c.addr }

// TestExcess: room is made by the oldest of the source that has the most.
func TestExcess(t *testing.T) {
	for _, c := range []struct {
		addrs []string
		want  int
	}{
		{[]string{"192.0.2.1"}, 0},
		{[]string{"192.0.2.1", "192.0.2.2"}, 0},
		{[]string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.2"}, 1},
		{[]string{"192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.1"}, 0},
		{[]string{"192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2", "2001:db8:0:1::"}, 1}, // one network
		{[]string{"192.0.2.1", "", ""}, 1},                                                      // relayed
	} {
		var conns []net.Conn
		for _, a := range c.addrs {
			var addr net.Addr = &net.UnixAddr{}
			if a != "" {
				addr = &net.TCPAddr{IP: net.ParseIP(a), Port: 1 + len(conns)}
			}
			conns = append(conns, from{addr: addr})
		}
		if got := excess(conns); got != c.want {
			t.Errorf("%q: %d, want %d", c.addrs, got, c.want)
		}
	}
}
