package carrier

import (
	"context"
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
	for rank, most := range map[int]int{member: maxExchanges, silent: maxStrange} {
		e := newExchanges(nil, nil, false, nil)
		come := func(host byte) (c net.Conn, ok bool) {
			here, there := net.Pipe()
			t.Cleanup(func() { there.Close() })
			c = from{here, &net.TCPAddr{IP: net.IPv4(192, 0, 2, host)}}
			return c, e.add(c, rank)
		}
		var crowd []net.Conn
		for range most {
			c, ok := come(1)
			if !ok {
				t.Fatalf("%d of %d connections are too many", len(crowd), most)
			}
			crowd = append(crowd, c)
		}
		if _, ok := come(1); ok != (rank != member) { // of strangers one may be a member
			t.Errorf("one more of the crowd: %v", ok)
		}
		if _, ok := come(2); !ok {
			t.Error("there is no room for another one")
		}
		if n, err := crowd[0].Read(make([]byte, 1)); err == nil { // it waits for the close
			t.Errorf("the oldest one of the crowd read %d bytes", n)
		}
		if len(e.conns[rank]) != most {
			t.Errorf("%d connections", len(e.conns[rank]))
		}
		for range maxStrange {
			come(2)
		}
		count := map[string]int{}
		for _, c := range e.conns[rank] {
			count[sourceOf(c.RemoteAddr())]++
		}
		if len(count) != 2 || count["192.0.2.1"] < most/2-1 {
			t.Errorf("the places have %v", count)
		}
		for _, c := range e.conns[rank] {
			c.Close()
		}
	}
}

// TestKnownExchanges: a connection makes no way for strangers once exchanges for a
// member's link have come on it, and silent ones make way before those that are not.
func TestKnownExchanges(t *testing.T) {
	e := newExchanges(nil, nil, true, nil)
	come := func(host byte) net.Conn {
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close(); here.Close() })
		c := from{here, &net.TCPAddr{IP: net.IPv4(192, 0, 2, host)}}
		if !e.add(c, silent) {
			t.Fatal("a stranger finds no place")
		}
		return c
	}
	heard := func(c net.Conn, known bool) {
		e.heard(context.WithValue(t.Context(), exchangeKey{}, c), known)
	}
	first, second, quiet := come(1), come(1), come(1)
	heard(first, false)
	heard(second, false)
	heard(first, true)
	for range maxStrangeWeb {
		come(1)
	}
	for c, want := range map[net.Conn]int{first: member, second: strange} {
		if rank, ok := e.rank[c]; !ok || rank != want {
			t.Errorf("it is counted %v, as %d, not %d", ok, rank, want)
		}
	}
	if n, err := quiet.Read(make([]byte, 1)); err == nil { // it waits for the close
		t.Errorf("the silent one read %d bytes", n)
	}
	heard(quiet, true) // too late
	if len(e.rank) != 1+maxStrangeWeb || len(e.conns[member]) != 1 {
		t.Errorf("%d connections, %d of members", len(e.rank), len(e.conns[member]))
	}
}
