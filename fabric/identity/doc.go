// Package identity says who is who in a fabric, and keeps everybody else out.
//
//   - [Authority] is the fabric's certificate authority: it makes join tokens,
//     admits nodes, renews their certificates and revokes them.
//   - [Node] is a node's own identity: its key, its certificate, the roots.
//   - [Trust] is what a node believes of others: roots and revocations. It
//     makes the TLS settings of every carrier and cuts the sessions of nodes
//     that are revoked.
//   - [Signer] and [Verifier] are for control commands: signed, addressed,
//     accepted once. What a node says of itself to everybody is a record:
//     [Node.SignRecord], [Trust.CheckRecord].
//
// A node is named by a [NodeID], which its certificate carries in a URI,
// fabric://FABRIC/NODE. Certificates are short-lived and renewed by the node
// that holds them, so that a lost revocation ends by itself. Keys are Ed25519
// (RFC 8410); TLS is 1.3 alone, mutual, without resumption.
//
// A certificate says whose the node is, too, in its subject's organization: the one
// that the join token was made for, and that renewal keeps. What others count by is
// that word of the authority's, never the node's own.
//
// # Joining
//
// A token carries the fingerprint of the authority's certificate, so a node
// that joins knows whom it talks to before it shows the token's secret, and
// nothing has to be trusted on first use: the authority's node shows that very
// certificate to those who join ([Authority.Vouch]), so that no other node can
// take the authority's place. The authority keeps a hash of the
// secret. A token's use is durable before the certificate is given out.
//
// # Revocation
//
// The authority signs a revocation list (RFC 5280 §5) that names nodes, not
// single certificates: an entry's serial number is the node's ID followed by
// 24 zero bits, and all serial numbers of a node's certificates begin with
// its ID. A list replaces one with a lower number only.
package identity
