package host_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/testenv/kernelvm"
	"github.com/spacestore/space/views/nvme/host"
	"github.com/spacestore/space/views/nvme/wire"
)

const nvmetNQN = "nqn.2026-11.example.space:nvmet"

const nvmetSize = 64 << 20

// nvmetSetup makes the guest's kernel a target of two namespaces: 1 stands on a
// device of blocks, 2 on a file.
const nvmetSetup = `
modprobe nvmet-tcp
modprobe loop
mount -t configfs none /sys/kernel/config
truncate -s 64m /tmp/device
losetup /dev/loop0 /tmp/device
truncate -s 80m /tmp/fs
mkfs.ext4 -q /tmp/fs
mount -o loop /tmp/fs /mnt
truncate -s 64m /mnt/file
subsys=/sys/kernel/config/nvmet/subsystems/` + nvmetNQN + ` port=/sys/kernel/config/nvmet/ports/1
mkdir $subsys $subsys/namespaces/1 $subsys/namespaces/2 $port
echo 1 >$subsys/attr_allow_any_host
echo /dev/loop0 >$subsys/namespaces/1/device_path
echo /mnt/file >$subsys/namespaces/2/device_path
for n in 1 2; do echo 1 >$subsys/namespaces/$n/enable; done
echo tcp >$port/addr_trtype
echo ipv4 >$port/addr_adrfam
echo 10.0.2.15 >$port/addr_traddr
echo 4420 >$port/addr_trsvcid
echo 65536 >$port/param_inline_data_size
ln -s $subsys $port/subsystems/
`

// TestKernelNvmet has this package against another target than ours: the
// kernel's own, in the test machine.
func TestKernelNvmet(t *testing.T) {
	vm := kernelvm.Boot(t)
	vm.Run(t, nvmetSetup)
	addr := vm.Forward(t, 4420)
	ctx, cancel := context.WithTimeout(context.Background(), kernelvm.Patience)
	defer cancel()
	connect := func(t *testing.T, nqn string, o host.Options) *host.Controller {
		t.Helper()
		o.Timeout = kernelvm.Patience
		c, err := host.Connect(ctx, addr, nqn, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}

	t.Run("discover", func(t *testing.T) {
		entries, _, err := connect(t, wire.DiscoveryNQN, host.Options{}).Discover(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, e := range entries {
			found = append(found, fmt.Sprintf("%s at %s:%s", e.SubNQN, e.TrAddr, e.TrSvcID))
		}
		if want := nvmetNQN + " at 10.0.2.15:4420"; !strings.Contains(strings.Join(found, "\n"), want) {
			t.Errorf("found %q, want %s", found, want)
		}
	})

	t.Run("inspect", func(t *testing.T) {
		c := connect(t, nvmetNQN, host.Options{})
		if c.Info().Model == "" || c.Info().Serial == "" || c.Version() == "" {
			t.Errorf("identified as %+v", c.Info())
		}
		ids, err := c.Namespaces(ctx)
		if err != nil || len(ids) != 2 || ids[0] != 1 || ids[1] != 2 {
			t.Errorf("namespaces %v, %v", ids, err)
		}
		for _, id := range ids {
			n, err := c.Namespace(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			if n.Size() != nvmetSize {
				t.Errorf("namespace %d has %d bytes, want %d", id, n.Size(), nvmetSize)
			}
			if d, err := c.Descriptors(ctx, id); err != nil || len(d) == 0 {
				t.Errorf("namespace %d is described by %v, %v", id, d, err)
			}
		}
		if _, err := c.SMART(ctx); err != nil {
			t.Error(err)
		}
		if _, err := c.Errors(ctx); err != nil {
			t.Error(err)
		}
		if groups, err := c.ANA(ctx); err != nil || len(groups) == 0 {
			t.Errorf("ANA groups %v, %v", groups, err)
		}
		if _, err := c.Namespace(ctx, 7); capsule.KindOf(err) != capsule.NotFound {
			t.Errorf("a namespace that is not there: %v", err)
		}
	})

	for _, digests := range []host.Options{{}, {HeaderDigest: true}, {DataDigest: true}, {HeaderDigest: true, DataDigest: true}} {
		t.Run(fmt.Sprintf("I/O, digests %v %v", digests.HeaderDigest, digests.DataDigest), func(t *testing.T) {
			c := connect(t, nvmetNQN, digests)
			queues, err := c.OpenQueues(ctx, 2, 32)
			if err != nil {
				t.Fatal(err)
			}
			for id := range uint32(2) {
				n, err := c.Namespace(ctx, id+1)
				if err != nil {
					t.Fatal(err)
				}
				nvmetIO(ctx, t, queues, n)
			}
		})
	}

	t.Run("streams", func(t *testing.T) {
		c := connect(t, nvmetNQN, host.Options{DataDigest: true})
		queues, err := c.OpenQueues(ctx, 1, 64)
		if err != nil {
			t.Fatal(err)
		}
		n, err := c.Namespace(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 8<<20)
		rand.NewChaCha8([32]byte{3}).Read(data)
		if _, err := host.WriteFrom(ctx, queues[0], n, bytes.NewReader(data), 4<<20, nil); err != nil {
			t.Fatal(err)
		}
		if err := n.Flush(ctx, queues[0]); err != nil {
			t.Fatal(err)
		}
		// What the guest finds on its device.
		sum := vm.Run(t, "dd if=/dev/loop0 bs=1M skip=4 count=8 2>/dev/null | sha256sum")
		if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(sum, want) {
			t.Errorf("the guest has %s, want %s", sum, want)
		}
		var back bytes.Buffer
		if err := host.ReadTo(ctx, queues[0], n, &back, 4<<20, int64(len(data)), nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(back.Bytes(), data) {
			t.Error("what was read is not what was written")
		}
	})

	t.Run("bench", func(t *testing.T) {
		c := connect(t, nvmetNQN, host.Options{})
		n, err := c.Namespace(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		r, err := host.Bench(ctx, c, n, host.BenchOptions{Pattern: "randrw", Size: 4096, Depth: 16, Queues: 2,
			Duration: kernelvm.Patience, Commands: 2000})
		if err != nil {
			t.Fatal(err)
		}
		if r.Commands < 2000 || r.Reads.Count == 0 || r.Writes.Count == 0 {
			t.Errorf("measured %+v", r)
		}
	})

	t.Run("errors", func(t *testing.T) {
		c := connect(t, nvmetNQN, host.Options{})
		queues, err := c.OpenQueues(ctx, 1, 32)
		if err != nil {
			t.Fatal(err)
		}
		n, err := c.Namespace(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		block := make([]byte, n.BlockSize)
		// This target calls it an internal error.
		var status *host.CommandError
		if err := n.Read(ctx, queues[0], n.Blocks, block); !errors.As(err, &status) {
			t.Errorf("reading behind the end: %v", err)
		}
		gone := *n
		gone.ID = 99
		if err := gone.Read(ctx, queues[0], 0, block); err == nil {
			t.Error("a namespace that is not there was read")
		}
		if err := n.Read(ctx, queues[0], 0, block); err != nil {
			t.Errorf("after errors: %v", err)
		}
		if _, err := host.Connect(ctx, addr, nvmetNQN+":none", host.Options{Timeout: kernelvm.Patience}); err == nil {
			t.Error("connected to a subsystem that is not there")
		}
		vm.Run(t, "echo 0 >/sys/kernel/config/nvmet/subsystems/"+nvmetNQN+"/attr_allow_any_host")
		if _, err := host.Connect(ctx, addr, nvmetNQN, host.Options{Timeout: kernelvm.Patience}); capsule.KindOf(err) != capsule.Denied {
			t.Errorf("a host that may not connect: %v", err)
		}
		vm.Run(t, "echo 1 >/sys/kernel/config/nvmet/subsystems/"+nvmetNQN+"/attr_allow_any_host")
	})

	t.Run("growth", func(t *testing.T) {
		c := connect(t, nvmetNQN, host.Options{})
		events, err := c.Events(ctx, wire.EventsNamespace)
		if err != nil {
			t.Fatal(err)
		}
		vm.Run(t, "truncate -s 65m /tmp/device; losetup -c /dev/loop0; echo 1 >/sys/kernel/config/nvmet/subsystems/"+nvmetNQN+"/namespaces/1/revalidate_size")
		e, ok := <-events
		if !ok {
			t.Fatal("the connection ended")
		}
		changed := make([]byte, 4096)
		if err := c.LogPage(ctx, e.LogPage, 0, 0, changed); err != nil || changed[0] != 1 {
			t.Errorf("event %+v; changed namespaces %v, %v", e, changed[:4], err)
		}
		if n, err := c.Namespace(ctx, 1); err != nil || n.Size() != 65<<20 {
			t.Errorf("after it grew to 65 MiB: %+v, %v", n, err)
		}
	})

	t.Run("the target goes away", func(t *testing.T) {
		c := connect(t, nvmetNQN, host.Options{})
		queues, err := c.OpenQueues(ctx, 1, 32)
		if err != nil {
			t.Fatal(err)
		}
		n, err := c.Namespace(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 64<<10)
		done := make(chan error, 1)
		started := make(chan struct{})
		go func() {
			for first := true; ; first = false {
				if err := n.Read(ctx, queues[0], 0, p); err != nil {
					done <- err
					return
				}
				if first {
					close(started)
				}
			}
		}()
		<-started
		vm.Run(t, "rm /sys/kernel/config/nvmet/ports/1/subsystems/*; rmdir /sys/kernel/config/nvmet/ports/1")
		if err := <-done; ctx.Err() != nil {
			t.Errorf("hung: %v", err)
		}
	})
}

// nvmetIO does everything to a namespace that moves data, and checks it.
func nvmetIO(ctx context.Context, t *testing.T, queues []*host.Queue, n *host.Namespace) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("namespace %d: %v", n.ID, err)
		}
	}
	rng := rand.NewChaCha8([32]byte{byte(n.ID)})
	for i, blocks := range []int{1, 8, n.MaxTransfer() / n.BlockSize / 2, n.MaxTransfer() / n.BlockSize} {
		q := queues[i%len(queues)]
		p := make([]byte, blocks*n.BlockSize)
		rng.Read(p)
		lba := uint64(3 + i)
		must(n.Write(ctx, q, lba, p, i%2 == 1))
		got := make([]byte, len(p))
		must(n.Read(ctx, queues[(i+1)%len(queues)], lba, got))
		if !bytes.Equal(got, p) {
			t.Fatalf("namespace %d: %d blocks read are not those written", n.ID, blocks)
		}
		must(n.Flush(ctx, q))
		must(n.WriteZeroes(ctx, q, lba, blocks, true))
		must(n.Read(ctx, q, lba, got))
		if !bytes.Equal(got, make([]byte, len(got))) {
			t.Fatalf("namespace %d: write zeroes of %d blocks left something else", n.ID, blocks)
		}
		must(n.Write(ctx, q, lba, p, false))
		must(n.Trim(ctx, q, wire.DSMRange{SLBA: lba, Blocks: uint32(blocks)}))
	}
}
