// Package e2e tests spacectl as its users have it: the real binary, real
// processes, a real disk. It has no code of its own, only tests:
//
//   - main_test.go: the main job, and the namespace as a place to work in.
//   - kill_test.go: kill -9 at random moments. -kill-rounds says how often.
//   - disk_test.go: disks that are full, read-only or limited.
//   - damage_test.go: garbage in every kind of file under SPACE_HOME.
//   - nvme_kernel_linux_test.go: kill -9 of the node whose volume is a stock kernel's disk.
//
// TestMain builds the binary once, as users have it, without the race detector:
// speed decides how many moments a kill can hit. A test that needs more of the
// machine than it gives (root, FUSE) skips itself and says what is missing.
package e2e
