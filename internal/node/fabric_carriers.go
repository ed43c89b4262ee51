package node

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/identity"
)

// carriers are the ways to make links.
type carriers struct {
	id    *identity.Node
	joins carrier.Joins
	web   bool                         // servers of https show certificates of the web
	node  *atomic.Pointer[fabric.Node] // that they are of, once it runs
}

func newCarriers(id *identity.Node, authority *identity.Authority, cfg FabricConfig, log *slog.Logger) carriers {
	c := carriers{id: id, web: cfg.HTTPSWeb, node: new(atomic.Pointer[fabric.Node])}
	switch {
	case authority != nil:
		c.joins.Admit = func(conn net.Conn) {
			defer conn.Close()
			err := carrier.ServeJoin(conn, authority)
			if errors.Is(err, io.EOF) { // a node that passes others on has made sure that this is the authority's
				log.Debug("somebody came, and did not ask to join", "from", conn.RemoteAddr().String())
				return
			}
			if err != nil {
				log.Warn("a node could not join", "from", conn.RemoteAddr().String(), "error", err)
				return
			}
			log.Info("a node has joined", "from", conn.RemoteAddr().String())
		}
	case cfg.Relay:
		c.joins.Pass = func(conn net.Conn) {
			n := c.node.Load()
			if n == nil {
				conn.Close()
				return
			}
			if err := n.PassJoin(conn); err != nil {
				log.Warn("a node that joins was not passed on", "from", conn.RemoteAddr().String(), "error", err)
			}
		}
	}
	return c
}

// out returns the ways out, the best first.
func (c carriers) out() []carrier.Carrier {
	return []carrier.Carrier{carrier.NewTLS(c.id, carrier.TLSOptions{}), carrier.NewQUIC(c.id), carrier.NewHTTPS(c.id, carrier.HTTPSOptions{Web: c.web})}
}

// in returns the way in that a listener is for.
func (c carriers) in(l FabricListen) (carrier.Carrier, error) {
	switch l.Carrier {
	case "tls":
		return carrier.NewTLS(c.id, carrier.TLSOptions{Joins: c.joins}), nil
	case "quic":
		return carrier.NewQUIC(c.id), nil
	}
	o := carrier.HTTPSOptions{Joins: c.joins}
	if l.Cert != "" {
		cert, err := tls.LoadX509KeyPair(l.Cert, l.Key)
		if err != nil {
			return nil, capsule.Wrap(capsule.Invalid, err, "the certificate of https://%s", l.Address)
		}
		o.Cert = &cert
	}
	return carrier.NewHTTPS(c.id, o), nil
}
