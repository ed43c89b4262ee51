package carrier

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync/atomic"

	"github.com/spacestore/space/fabric/identity"
)

// replayed is a connection whose first message, a TLS ClientHello, is looked at. If
// it is of a node that joins, nothing of it was answered, and it can be read again.
type replayed struct {
	net.Conn
	said  bytes.Buffer // what was read until the look
	seen  bool
	joins atomic.Bool // a handshake that is given up closes the connection meanwhile
}

// watch returns config with the look. Only its handshake may use the connection.
func (r *replayed) watch(config *tls.Config) *tls.Config {
	config = config.Clone()
	inner := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		r.seen = true
		if slices.Equal(hello.SupportedProtos, []string{identity.JoinProtocol}) {
			r.joins.Store(true)
			return nil, errors.New("carrier: a node that joins")
		}
		r.said = bytes.Buffer{}
		if inner != nil {
			return inner(hello)
		}
		return nil, nil
	}
	return config
}

// again has reads begin anew.
func (r *replayed) again() { r.joins.Store(false) }

// Read implements net.Conn.
func (r *replayed) Read(b []byte) (int, error) {
	if !r.seen {
		n, err := r.Conn.Read(b)
		r.said.Write(b[:n])
		return n, err
	}
	if r.said.Len() > 0 {
		return r.said.Read(b)
	}
	return r.Conn.Read(b)
}

// Write implements net.Conn. The handshake that was broken off says nothing.
func (r *replayed) Write(b []byte) (int, error) {
	if r.joins.Load() {
		return len(b), nil
	}
	return r.Conn.Write(b)
}

// Close implements net.Conn, nor does it close anything.
func (r *replayed) Close() error {
	if r.joins.Load() {
		return nil
	}
	return r.Conn.Close()
}
