// Package directory is what a node knows of the others. It does no I/O and
// starts nothing: the node carries its bytes to peers and back.
//
//   - A [Record] is what a node says of itself: its area, where it can be
//     reached, what it provides.
//   - A [Summary] is what a node that passes links on says of its area: which
//     services are there.
//   - [Directory] keeps both, as they were signed, and says what a peer lacks.
//
// # Who knows what
//
// All nodes of an area hold all records of the area. Of other areas they hold
// summaries, at most [SummariesPerArea] of each: whoever needs a service there
// asks a signer of one ([Directory.Where], [Directory.Answer]) and keeps the
// answer, as a guest, until it expires. So what a node holds grows with its area
// and with the number of areas, never with the number of nodes.
//
// # Whom to believe
//
// Every record and summary is signed by the node that it is of, with that node's
// certificate, and is worth nothing without: who passes it on cannot change it. Its
// serial number is the signer's own, and the highest one wins; a node that has
// restarted begins above the time, and above what others still hold of it. It
// ends at the time it says, which is at most [MaxLife] ahead, or with its
// certificate, or when its node is revoked. Nodes' clocks must agree to within
// that, as they must for certificates. Nothing has to be remembered of what has
// ended, since it can't come back.
//
// Which area a node is in is its own word: areas bound what a node holds, and
// keep nobody out. What a summary says of services is its signer's word, and other
// signers of the area have theirs. A node has one place for a summary, whatever areas it speaks
// for, and everything has a bound, see [Limits].
//
// # How it spreads
//
// A peer is told what has changed since it was last told ([Directory.News]).
// Whatever was lost comes with the next exchange of digests: [Directory.Digest]
// says what is here, [Directory.Missing] answers it with what the other one
// lacks, [Directory.Merge] takes that in. All three are small binary messages
// that begin with a version.
package directory
