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

// TestExchangesOfACrowd: requests come from everywhere while one place holds all the
// connections that there may be; who comes to join is no exception.
func TestExchangesOfACrowd(t *testing.T) {
	for most, strange := range map[int]bool{maxExchanges: false, maxStrange: true} {
		e := &exchanges{}
		come := func(host byte) (c net.Conn, ok bool) {
			here, there := net.Pipe()
			t.Cleanup(func() { there.Close() })
			c = from{here, &net.TCPAddr{IP: net.IPv4(192, 0, 2, host)}}
			return c, e.add(c, strange)
		}
		var crowd []net.Conn
		for range most {
			c, ok := come(1)
			if !ok {
				t.Fatalf("%d of %d connections are too many", len(crowd), most)
			}
			crowd = append(crowd, c)
		}
		if _, ok := come(1); ok {
			t.Error("one of the crowd makes another one of it go")
		}
		if _, ok := come(2); !ok {
			t.Error("there is no room for another one")
		}
		if n, err := crowd[0].Read(make([]byte, 1)); err == nil { // it waits for the close
			t.Errorf("the oldest one of the crowd read %d bytes", n)
		}
		if len(e.served) != most || strange && len(e.strange) != most {
			t.Errorf("%d connections, %d of them to join", len(e.served), len(e.strange))
		}
		for range maxStrange {
			come(2)
		}
		count := map[string]int{}
		for _, c := range e.served {
			count[sourceOf(c.RemoteAddr())]++
		}
		if len(count) != 2 || count["192.0.2.1"] != max(most/2, most-1-maxStrange) {
			t.Errorf("the places have %v", count)
		}
		for _, c := range e.served {
			c.Close()
		}
	}
}
