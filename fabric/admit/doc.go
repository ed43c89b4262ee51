// Package admit says how much of a node may be in use at a time, and for whom,
// and counts it. It does no I/O and starts nothing.
//
// Sessions, tunnels, streams and bytes of windows are counted, and bytes are
// metered, for the node as a whole and for each route, pool, organization and
// service: an account of a [Scope]. A [Group] is the accounts that one thing, such
// as a tunnel, counts for. To acquire is to have room in all of them, or none is
// taken and a [Refusal] says whose limit it was and when to come back:
//
//	g, refused := c.Group(admit.Node(), admit.Key{Scope: admit.Pool, Name: "build"})
//	defer g.Close()
//	lease, refused := g.Acquire(admit.Streams, 1)
//	defer lease.Release()
//
// A count is never above its limit, whoever acquires at the same time; two who
// come for the last place at once may both be refused. A limit that is made
// lower takes nothing away: nothing is added until there is room again.
//
// When to come back is when enough will have been given back, if it goes on as it
// did lately, and not before an account's bucket has room again.
//
// Rates are token buckets: in any time T an account lets through at most its
// rate times T and its burst, or one message where that is longer. [Group.Take]
// refuses what is too early, [Group.Pace] says how long to wait.
//
// Accounts that nobody holds are kept for a while, so that what they count can
// be seen and a rate can't be had anew by coming back; there are at most
// [Config.Idle] of each scope. What forgotten ones have counted stays in their
// scope's totals.
package admit
