// Package tunneltest gives tests of services the tunnels that they need:
//
//   - [Pair] is the two ends of a tunnel over a session in this process,
//     without nodes, identities or routes.
//   - Fabric, on Linux, is nodes on hosts that are network namespaces.
package tunneltest
