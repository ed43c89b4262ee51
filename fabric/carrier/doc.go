// Package carrier makes the links that sessions run over: connections on which
// both ends have shown a certificate of the fabric, over TLS 1.3.
//
//   - [Carrier] dials and listens: [NewTLS] over TCP, [NewQUIC], and [NewHTTPS]
//     through requests and responses, where nothing else gets out (package relay).
//   - [Link] is one connection, and says who is at its other end; [Wrap] makes one
//     of any connection, such as a stream that another node passes on.
//   - [JoinVia] and [ServeJoin] are for nodes that have no certificate yet, which join
//     over TLS or HTTPS, at the authority's node or through one that passes on.
//
// # Strangers
//
// Until its handshake is done a connection is a stranger's. Strangers have ten
// seconds, and there are at most maxStrangers of them at a listener; one more
// takes the place of the oldest, so who is slow or silent is in nobody's way. A
// stranger costs a goroutine and TLS's buffers, and holds nothing when it is gone.
// Who has shown itself has no more than maxQUICConns connections of QUIC; of those on
// which requests come, the place that holds most makes room for the others.
//
// Over HTTPS a connection on which requests come is a stranger's, too, until it has shown
// a certificate of the fabric or carries a link of a node that has. Strangers have a share
// there of their own, in which the oldest makes way, and those that have said nothing
// before those that have. A relayed connection counts for the address that its exchanges
// come from: behind a proxy, that is the proxy's.
//
// # Revocation and expiry
//
// A link is cut as soon as this node knows that its peer was revoked, and when the
// certificate of either end expires. It tells before (session.Expiring), so that a session can
// have another link by then, made with certificates that were renewed. A QUIC
// connection that is about to expire gets no new links.
package carrier
