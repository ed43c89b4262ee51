package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/internal/testenv/freeport"
	"github.com/spacestore/space/internal/testenv/kernelvm"
)

// TestKernelNVMe kills the node with SIGKILL, again and again, while a stock
// kernel has one of its volumes as a disk. The kernel connects again by itself;
// fio finds every byte that it wrote, and what was synced to a file system is
// there.
func TestKernelNVMe(t *testing.T) {
	vm := kernelvm.Boot(t)
	vm.Put(t, "/lib.sh", []byte(kernelvm.NVMe))
	vm.Run(t, "modprobe nvme-tcp")

	b := newBox(t)
	s := b.serve()
	b.must("volume", "create", "disk", "--size", "64M")
	b.must("volume", "create", "files", "--size", "64M")
	ids := b.list()
	port := freeport.Of(t)
	nqn := func(name string) string { return "nqn.2026-11.example.space:" + name }
	for _, name := range []string{"disk", "files"} {
		b.must("project", "--view", "nvme", "--id", ids[name].ID, "--listen", "127.0.0.1:"+port, "--nqn", nqn(name))
	}
	head := fmt.Sprintf(". /lib.sh\nport=%s disk=%s files=%s\n", port, nqn("disk"), nqn("files"))
	vm.Run(t, head+`
		connect $disk $port
		dev=$(connect $files $port)
		mkfs.ext4 -q $dev
		mount $dev /mnt`)

	fio := vm.Start(t, head+"verify $(device $disk) --bsrange=4k-256k --iodepth=32 --size=48m")
	for round := range 3 {
		// The kill falls into the writing: so many sectors have been written.
		vm.Run(t, head+fmt.Sprintf(`
			dev=$(device $disk) dev=${dev#/dev/}
			stat=$(echo /sys/block/${dev%%n*}c*n1/stat) # of the path: that of all paths together counts nothing
			until [ $(awk '{print $7}' $stat) -ge %d ] || ! pidof fio >/dev/null; do sleep 0.05; done
			dd if=/dev/urandom of=/mnt/file%d bs=64k count=8 conv=fsync 2>/dev/null
			sync /mnt`, (8<<10)*(round+1), round))
		select {
		case <-fio.Done():
			t.Fatalf("fio ended before kill %d: %v", round, fio.Wait(t))
		default:
		}
		if code := s.stop(unix.SIGKILL); code != -1 {
			t.Fatalf("serve ended by itself: %d\n%s", code, s.errs)
		}
		s = b.serve()
	}
	fio.Must(t)

	// The guest forgets all that it has in memory.
	out := vm.Run(t, head+`
		sums /mnt >/tmp/before
		umount /mnt
		nvme disconnect -n $files >&2
		dev=$(connect $files $port)
		e2fsck -fn $dev >&2
		mount $dev /mnt
		sums /mnt | cmp - /tmp/before
		wc -l </tmp/before
		umount /mnt
		nvme disconnect-all`)
	if strings.TrimSpace(out) != "3" {
		t.Errorf("%s of 3 files are there", strings.TrimSpace(out))
	}
	var list struct{ Projections []json.RawMessage }
	if err := json.Unmarshal([]byte(b.must("project", "list", "-o", "json")), &list); err != nil || len(list.Projections) != 2 {
		t.Errorf("%d projections after the restarts, want 2 (%v)", len(list.Projections), err)
	}
	if code := s.stop(unix.SIGTERM); code != 0 {
		t.Errorf("serve ends with %d:\n%s", code, s.errs)
	}
}
