package node

import (
	"crypto/tls"
	"log/slog"
	"net"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/identity"
)

// carriers are the ways to make links.
type carriers struct {
	id   *identity.Node
	join func(net.Conn) // nil: nobody joins here
	web  bool           // servers of https show certificates of the web
}

func newCarriers(id *identity.Node, authority *identity.Authority, cfg FabricConfig, log *slog.Logger) carriers {
	c := carriers{id: id, web: cfg.HTTPSWeb}
	if authority != nil {
		c.join = func(conn net.Conn) {
			defer conn.Close()
			if err := carrier.ServeJoin(conn, authority); err != nil {
				log.Warn("a node could not join", "from", conn.RemoteAddr().String(), "error", err)
				return
			}
			log.Info("a node has joined", "from", conn.RemoteAddr().String())
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
		return carrier.NewTLS(c.id, carrier.TLSOptions{Join: c.join}), nil
	case "quic":
		return carrier.NewQUIC(c.id), nil
	}
	var o carrier.HTTPSOptions
	if l.Cert != "" {
		cert, err := tls.LoadX509KeyPair(l.Cert, l.Key)
		if err != nil {
			return nil, capsule.Wrap(capsule.Invalid, err, "the certificate of https://%s", l.Address)
		}
		o.Cert = &cert
	}
	return carrier.NewHTTPS(c.id, o), nil
}
