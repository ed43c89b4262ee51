// Package host is an NVMe/TCP host (initiator): what reads, writes and inspects
// the namespaces of any NVMe/TCP target, without a kernel driver and without
// root. It is what `spacectl nvme` is made of, and what tests and benchmarks put
// the target under load with.
//
//   - [Connect] makes a [Controller]: its admin queue, authentication if the
//     target asks for it, and what it says of itself. [Controller.Discover],
//     [Controller.IdentifyNamespace], [Controller.LogPage] and the like ask for more.
//   - [Controller.OpenQueues] makes I/O queues, a connection each.
//   - [Queue] carries [Command]s. [Queue.Do] runs one; [Queue.Submit] and
//     [Queue.Wait] keep many in flight from one goroutine.
//   - [Namespace] makes the commands of a namespace: reads, writes, flushes,
//     TRIM, reservations.
//   - [ReadTo], [WriteFrom] and [Bench] move a whole namespace, and measure one.
//
// # Rules
//
// A queue has no goroutine of its own: whoever waits for a command reads the
// connection, for others too, until its own is done, and then hands over. What is
// submitted is written when somebody is about to wait, so that commands travel in
// batches. Only if data goes both ways at once, a goroutine writes while
// the waiting one reads, for otherwise both ends could wait for each other.
//
// The target is not trusted: every PDU is checked against the command that it
// belongs to, in place, order and length; a violation ends the connection with
// a termination request. Buffers are the caller's, and their sizes are ours to
// choose, never the target's.
//
// A command's buffer belongs to the queue until the command is done. A command
// cannot be taken back: when its context ends, the connection does. A target
// that is silent for [Options.Timeout] while it owes an answer is given up.
//
// Errors: [*CommandError] is a status other than success, with the kind of
// error that it means (package capsule); [ErrDataDigest] is data that came
// damaged, which fails one command; anything else is the end of the connection
// and is what all commands in flight return. Nothing reconnects.
package host
