package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/spacestore/space/internal/testenv/kernelvm"
)

// BenchmarkKernelNVMe compares the target with the kernel's own under a stock
// kernel as their host. All of it is in the test machine: the kernel's target
// on a RAM disk, ours on memory (see nvmemem), the host over the guest's
// loopback. So the network path, the device below and the emulated processor are the same
// for both. What differs is that one target is in the kernel and the other is a
// process, and emulation makes a change between the two much dearer than it is on
// a real processor: the ratio is a lower bound.
//
// Each round measures both, one after the other, and the ratio is of the sums.
func BenchmarkKernelNVMe(b *testing.B) {
	vm := kernelvm.Boot(b)
	program := filepath.Join(b.TempDir(), "nvmemem")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", program, "./nvmemem")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		b.Fatal(err)
	}
	vm.Put(b, "/tmp/nvmemem", binary)
	vm.Put(b, "/lib.sh", []byte(kernelvm.NVMe))
	vm.Start(b, "/tmp/nvmemem 127.0.0.1:4421 nqn.2026-11.example.space:ours").WaitFor(b, "ready")
	vm.Run(b, `
		. /lib.sh
		modprobe nvmet-tcp
		modprobe nvme-tcp
		modprobe brd rd_nr=1 rd_size=65536
		mount -t configfs none /sys/kernel/config
		nqn=nqn.2026-11.example.space:kernels
		subsys=/sys/kernel/config/nvmet/subsystems/$nqn port=/sys/kernel/config/nvmet/ports/1
		mkdir $subsys $subsys/namespaces/1 $port
		echo 1 >$subsys/attr_allow_any_host
		echo /dev/ram0 >$subsys/namespaces/1/device_path
		echo 1 >$subsys/namespaces/1/enable
		echo tcp >$port/addr_trtype
		echo ipv4 >$port/addr_adrfam
		echo 127.0.0.1 >$port/addr_traddr
		echo 4420 >$port/addr_trsvcid
		ln -s $subsys $port/subsystems/
		for target in 4420:kernels 4421:ours; do
			nvme connect -t tcp -a 127.0.0.1 -s ${target%:*} -n nqn.2026-11.example.space:${target#*:}
			dd if=/dev/urandom of=$(device nqn.2026-11.example.space:${target#*:}) bs=1M count=64 oflag=direct 2>/dev/null
		done`)
	for _, c := range []struct{ name, fio string }{
		{"randread-4KiB-32", "--rw=randread --bs=4k --iodepth=32"},
		{"read-128KiB-8", "--rw=read --bs=128k --iodepth=8"},
		{"write-128KiB-8", "--rw=write --bs=128k --iodepth=8"},
		{"randread-4KiB-1", "--rw=randread --bs=4k --iodepth=1"},
	} {
		b.Run(c.name, func(b *testing.B) {
			var ours, kernels float64
			for b.Loop() {
				ours += fioRate(b, vm, "ours", c.fio)
				kernels += fioRate(b, vm, "kernels", c.fio)
			}
			b.ReportMetric(ours/float64(b.N), "KiB/s")
			b.ReportMetric(kernels/float64(b.N), "kernel-KiB/s")
			b.ReportMetric(ours/kernels, "ratio")
		})
	}
}

// fioRate returns how many KiB a second fio moves in three seconds.
func fioRate(b *testing.B, vm *kernelvm.Machine, target, options string) float64 {
	b.Helper()
	out := vm.Run(b, `. /lib.sh
		fio --name=b --filename=$(device nqn.2026-11.example.space:`+target+`) --ioengine=io_uring --direct=1 \
			--time_based --ramp_time=1 --runtime=3 --output-format=terse --terse-version=3 `+options+` | grep '^3;'`)
	f := strings.Split(out, ";")
	if len(f) < 48 {
		b.Fatalf("fio says %q", out)
	}
	read, err := strconv.ParseFloat(f[6], 64)
	if err != nil {
		b.Fatal(err)
	}
	written, err := strconv.ParseFloat(f[47], 64)
	if err != nil {
		b.Fatal(err)
	}
	return read + written
}
