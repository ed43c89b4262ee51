// Package node is the process that holds a store: it wires the store, the
// views and the control API together, and is the only place that does.
//
//   - [Run] is such a process: what `spacectl serve` runs, what a mount starts
//     in the background, and what `project mount --foreground` becomes.
//   - [Connect] is for commands: it reaches the node that holds the store, or
//     opens the store itself where there is none. The store's lock decides,
//     and a busy lock is waited for, so commands may overlap in any way.
//   - [Start] starts a node in the background and returns a connection to it.
//   - [RunHolder] is the process that keeps mounts while there is no node.
//   - [Local] is the control API over a store that this process opened.
//   - [Config] are the settings, from flags, environment and space.yaml.
//
// # Life of a node
//
// The store's lock is taken first, then the socket is made, so whoever holds
// the lock owns the socket, and one found there without a holder is stale. At
// its end a node goes the other way round: the socket closes, requests under
// way finish, projections end, the store closes, the lock is free. A command
// that comes in between finds the socket gone and the lock taken, and waits.
//
// A node also takes the snapshots that policies ask for (retention.go), as long
// as it runs.
//
// # Mounts outlive it
//
// With its first mount a node starts a holder (package holder), a process that
// keeps the mounts' descriptors when the node ends (holder.go). A node begins by
// taking over what an earlier one left: all open files and locks of all mounts
// first, before anything is reclaimed or anybody else comes in, then the mounts
// go on. A node that is replaced (SIGTERM) stops taking requests, lets those
// under way finish for a moment, and goes; what it has not answered the kernel
// sends to the next one. SIGINT and Shutdown end mounts. An ephemeral node always
// ends its own; if it is killed, the holder starts the next one. Without a node
// the holder is asked what waits, and to give a mount up.
//
// A command that opens the store itself while mounts wait for a node keeps the
// files without a name that they may have open.
//
// An ephemeral node ends with its last projection. Deciding to end and
// starting a projection exclude each other; a mount that comes too late is
// told Unavailable, and its command starts the next node.
//
// # NVMe/TCP
//
// Mounts end with their node. What is projected through NVMe (nvme.go) does
// not: it is noted with its capsule (nvme_notes.go) before hosts see it, and
// every node that holds the store serves it again, under the same names. So the
// end of a node lets go of such projections and forgets none; only Unmount, the
// policy, and the capsule's removal do that. Reservations are notes as well. One
// lock orders all changes of what the target shows; commands of hosts never take
// it. What space.yaml asks for (config_nvme.go) is served by nodes that run for
// good, and waits for capsules that are not there yet.
//
// # The fabric
//
// [RunFabric] is a node of the fabric (package fabric) alone; Run has one inside
// where the settings have its section. It has a directory of its own, with a
// lock, an identity (fabric_identity.go), and a control socket of its own, so
// commands ask either in the same way. What a command asks for is a job
// (fabric_jobs.go, fabric_files.go, fabric_vpn.go) that lives as long as the
// command's stream; what settings ask for is kept running (fabric.go).
//
// # Watching a node
//
// metrics.go answers Prometheus, where metrics_listen says so, from numbers that
// the store and the target have at hand. tracing.go sends spans to a collector of
// OpenTelemetry, if the environment names one. Neither costs anything otherwise.
package node
