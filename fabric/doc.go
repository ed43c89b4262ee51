// Package fabric is the transport that services of different nodes talk over. A
// service asks for a tunnel to a pool and a kind of service, and gets a Contract
// and streams; which node answers, by which route, through which relays, and what
// happens when one of them fails, is the fabric's business.
//
//   - [Contract] is what a service knows of its tunnel, [Profile] what it needs.
//   - [Stream] is a flow in a tunnel; [Opener] and [Accepter] are the two things
//     that an end of a tunnel can do with streams.
//
// DESIGN.md tells how the parts fit.
package fabric
