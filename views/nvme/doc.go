// Package nvme is an NVMe/TCP target: capsules as disks for any host that
// speaks NVMe over Fabrics, a stock Linux kernel first of all.
//
//   - [Target] holds subsystems and serves ports ([Target.Serve]).
//   - [Subsystem] is what a host connects to: a name, who may, and namespaces.
//   - [Namespace] is a disk in a subsystem; it stands on a [Device].
//   - [Host] may be allowed in by name, and by a secret (DH-HMAC-CHAP).
//   - [Persister] keeps reservations through power loss.
//   - [ControllerInfo], [Totals], [Target.Collector]: what is going on.
//
// Rules. Nothing that a Device has not confirmed is reported as done; a write
// with FUA and a flush answer after [Device.Flush] did. What a peer can make
// the target hold is bounded: connections, those that have not said who they
// are, queues, commands per queue, and bytes of data per connection and in all
// ([Options]). Errors of a Device become NVMe status codes in one table, see
// errors.go. No goroutine but a connection's own reads from it, none waits for
// a host while it holds a lock or a worker, and nothing that a controller's
// reset, its shutdown or its end waits for can hang on a device or a host.
//
// DESIGN.md beside this file says how it works, and why so.
package nvme
