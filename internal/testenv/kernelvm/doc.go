// Package kernelvm is a small virtual machine with a stock Linux kernel, for
// tests that need a real kernel as a client: NVMe/TCP, NFS, file systems on a
// block device of ours.
//
// The machine is QEMU without KVM, one processor and 768 MiB, with the programs
// that scripts/kernelvm/build.sh put into its /usr (nvme, fio, mkfs.ext4, mkfs.xfs,
// mount.nfs and others). A test boots one and runs shell scripts in it:
//
//	func TestKernel(t *testing.T) {
//		vm := kernelvm.Boot(t)
//		t.Run("one thing", func(t *testing.T) {
//			out := vm.Run(t, "uname -r")
//			...
//
// Booting costs seconds, and on a busy machine a minute, so a package has one test
// that boots, and subtests. Its name begins with TestKernel: scripts/test.sh runs
// such tests after all others, one package at a time. The guest reaches what
// listens on the test's loopback as [Host]; [Machine.Forward] is the other way.
//
// Emulation is slow, and how slow depends on what else the machine does. Tests
// wait for events, never for a time; [Patience] only bounds what hangs. It is
// also the guest kernel's own time limit for a command on an NVMe device.
//
// When a test fails, the end of the guest's console and of its kernel's log are
// printed. The machine ends with the test, and with the process if that dies.
package kernelvm
