// Package dhchap is NVMe's in-band authentication, DH-HMAC-CHAP (NVM Express
// Base Specification 2.0, section 8.13): a host and a controller prove to each
// other, inside of the connection's first commands, that they know a secret,
// without sending it.
//
//   - [Secret] is a shared secret in its written form, "DHHC-1:…", as
//     `nvme gen-dhchap-key` and Linux's configfs have it.
//   - [Hash] and [Group] are the algorithms: SHA-256, -384 and -512, and no
//     Diffie-Hellman exchange or one over RFC 7919's groups.
//   - [Negotiate], [Challenge], [Reply], [Success1], [Success2] and [Failure]
//     are the messages; each has a parser that takes any bytes.
//   - [Controller] and [Host] are the two roles: messages in, messages out. They
//     do no I/O and start nothing; their owner carries the messages in
//     Authentication Send and Receive commands and guards them with its own
//     lock.
//
// # Rules
//
// Comparisons of responses take constant time, and so does arithmetic with
// private exponents; exponents are fresh for every exchange. A Secret does not
// print itself: [Secret.Text] is the only way to its written form.
//
// A failure in the protocol ends it: the controller's next message says
// [Failure], and the connection has to end then. An authenticated host may begin
// anew at any time (reauthentication) and stays authenticated unless that fails.
// How often a host that never proves itself may begin is bounded, since each time costs the
// controller two exponentiations.
//
// Secure channel concatenation (a TLS key from this exchange) is not offered.
package dhchap
