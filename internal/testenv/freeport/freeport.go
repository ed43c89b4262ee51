// Package freeport finds ports for servers that end and listen at the same address
// again. What the system gives to whoever asks for any port will not do: somebody
// else may have it by then.
package freeport

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
)

const first, ports = 10_000, 20_000 // below those that Linux gives away

var next = func() *atomic.Uint32 {
	n := new(atomic.Uint32)
	n.Store(rand.Uint32N(ports)) // or all processes would begin with the same one
	return n
}()

// Of returns a TCP port of 127.0.0.1 that nobody listens at, and that this process is
// not given again.
func Of(tb testing.TB) string {
	tb.Helper()
	for range 100 {
		port := strconv.Itoa(first + int(next.Add(1)%ports))
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	tb.Fatal("no free port")
	return ""
}
