// Package wire is what NVMe over TCP looks like in bytes: PDUs, submission and
// completion queue entries, the fabrics commands, identify structures and log
// pages, with the constants that go into them. It is pure encoding: no sockets,
// no state but that of a [Reader] in its stream.
//
//   - [Reader] takes a byte stream apart into PDUs, verifying digests; it holds
//     one PDU header at a time and leaves data to the caller's buffer, so that
//     a peer decides nothing about memory.
//   - [Framing] appends PDUs, with the digests and the alignment agreed on.
//   - [SQE] is a command as it is on the wire, with names for its fields;
//     [CQE] and [Status] are its answer.
//   - [IdentifyController], [IdentifyNamespace], [DiscoveryEntry] and the other
//     structures each list their fields once, for both directions (see [fields]).
//   - [ProtocolError] is a peer's mistake, with the fatal error status that a
//     termination request has to name.
//
// Sections cited: "Base" is the NVM Express Base Specification 2.0, "NVM" the
// NVM Command Set Specification 1.0, "TCP" the NVMe over TCP Transport
// Specification 1.0. All integers are little-endian.
package wire
