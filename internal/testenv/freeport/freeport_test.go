package freeport

import (
	"net"
	"testing"
)

func TestOf(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		port := Of(t)
		if seen[port] {
			t.Fatalf("port %s is given twice", port)
		}
		seen[port] = true
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}
