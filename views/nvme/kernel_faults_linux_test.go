package nvme_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spacestore/space/internal/testenv/kernelvm"
	"github.com/spacestore/space/internal/vfs/vfstest"
	"github.com/spacestore/space/views/nvme"
)

// underWay is a device that says when so many writes have come.
type underWay struct {
	nvme.Device
	writes atomic.Int64
	want   atomic.Int64
	there  chan struct{}
}

func newUnderWay(d nvme.Device) *underWay { return &underWay{Device: d, there: make(chan struct{}, 1)} }

func (d *underWay) WriteAt(p []byte, off int64) (int, error) {
	if d.writes.Add(1) == d.want.Load() {
		d.there <- struct{}{}
	}
	return d.Device.WriteAt(p, off)
}

// wait waits until n more writes have begun, or the job has ended.
func (d *underWay) wait(t *testing.T, n int64, job *kernelvm.Job) {
	t.Helper()
	d.want.Store(d.writes.Load() + n)
	select {
	case <-d.there:
	case <-job.Done():
	}
}

// load starts fio with verification on the device of a subsystem.
func (vm *guest) load(t *testing.T, nqn, fio string) *kernelvm.Job {
	t.Helper()
	return vm.Start(t, vm.with(`dev=$(device $nqn); verify $dev $fio`, "nqn", nqn, "fio", fio))
}

// kernelRestart restarts the target while fio writes. The kernel connects again
// by itself, and nothing fails.
func kernelRestart(t *testing.T, vm *guest) {
	vm.content(t, "")
	v := newVolume(t, newStore(t), 64<<20, 4096)
	dev := newUnderWay(v)
	target := serve(t, "0", nvme.Options{})
	target.add(t, nqnOf(v), dev)
	vm.Run(t, vm.with(`connect $nqn $port`, "nqn", nqnOf(v), "port", target.port))
	for range *kernelRounds {
		job := vm.load(t, nqnOf(v), "--bsrange=4k-256k --iodepth=32 --size=48m")
		for i := range 2 {
			dev.wait(t, 60, job)
			if i == 0 {
				target.kill(t)
			} else {
				target.drain(t)
			}
			target = serve(t, target.port, nvme.Options{})
			target.add(t, nqnOf(v), dev)
		}
		job.Must(t)
	}
	vm.Run(t, vm.with(`nvme disconnect -n $nqn`, "nqn", nqnOf(v)))
}

// drain ends the target when it has done what it was asked for.
func (s *served) drain(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), kernelvm.Patience)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Errorf("draining the target: %v", err)
	}
	if err := <-s.done; err != nil {
		t.Errorf("the target: %v", err)
	}
	s.done = nil
}

// cutter is a network between the guest and the target which breaks all
// connections after a number of bytes, wherever that falls.
type cutter struct {
	t      testing.TB
	to     string
	l      net.Listener
	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
	left   int64         // bytes to the next cut
	cuts   []int64       // distances to those after it
	after  chan struct{} // closed after the last cut
	wg     sync.WaitGroup
}

func newCutter(t testing.TB, port string, cuts []int64) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{t: t, to: net.JoinHostPort("127.0.0.1", port), l: l, conns: make(map[net.Conn]bool),
		left: cuts[0], cuts: cuts[1:], after: make(chan struct{})}
	c.wg.Go(c.accept)
	t.Cleanup(func() {
		l.Close()
		c.mu.Lock()
		c.closed = true
		c.cut()
		c.mu.Unlock()
		c.wg.Wait()
	})
	return c
}

func (c *cutter) port() string {
	_, port, _ := net.SplitHostPort(c.l.Addr().String())
	return port
}

func (c *cutter) accept() {
	for {
		in, err := c.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", c.to)
		if err != nil {
			in.Close()
			continue
		}
		c.mu.Lock()
		c.conns[in], c.conns[out] = true, true
		if c.closed {
			c.cut()
		}
		c.mu.Unlock()
		c.wg.Go(func() { c.copy(out, in) })
		c.wg.Go(func() { c.copy(in, out) })
	}
}

// cut breaks all connections. c.mu is held.
func (c *cutter) cut() {
	for conn := range c.conns {
		conn.(*net.TCPConn).SetLinger(0) // a reset, and what is under way is lost
		conn.Close()
		delete(c.conns, conn)
	}
}

func (c *cutter) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		c.mu.Lock()
		last := c.left > 0 && int64(n) >= c.left
		if last {
			n = int(c.left)
		}
		if c.left > 0 {
			c.left -= int64(n)
		}
		c.mu.Unlock()
		if _, werr := to.Write(buf[:n]); err == nil {
			err = werr
		}
		if last {
			c.mu.Lock()
			c.cut()
			if len(c.cuts) > 0 {
				c.left, c.cuts = c.cuts[0], c.cuts[1:]
			} else {
				close(c.after)
			}
			c.mu.Unlock()
			return
		}
		if err != nil {
			return
		}
	}
}

// kernelNetworkCuts breaks connections in the middle of whatever they carry.
func kernelNetworkCuts(t *testing.T, vm *guest) {
	for round := range *kernelRounds {
		rng := rand.New(rand.NewPCG(uint64(round), 1))
		for _, digests := range []string{"", "--hdr-digest --data-digest"} {
			vm.content(t, "")
			v := newVolume(t, newStore(t), 64<<20, 4096)
			target := serve(t, "0", nvme.Options{})
			target.add(t, nqnOf(v), v)
			var cuts []int64
			for range 3 {
				// Not while it connects: QEMU's network may then keep the cut to itself,
				// and the kernel notices only when it has waited a minute.
				cuts = append(cuts, 256<<10+rng.Int64N(3<<20))
			}
			network := newCutter(t, target.port, cuts)
			vm.Run(t, vm.with(`connect $nqn $port $digests`, "nqn", nqnOf(v), "port", network.port(), "digests", digests))
			vm.load(t, nqnOf(v), "--bsrange=4k-256k --iodepth=32 --size=24m").Must(t)
			select {
			case <-network.after:
			default:
				t.Error("fio ended before the last cut")
			}
			vm.Run(t, vm.with(`nvme disconnect -n $nqn`, "nqn", nqnOf(v)))
		}
	}
}

// kernelResets resets the controller again and again while fio writes.
func kernelResets(t *testing.T, vm *guest) {
	vm.content(t, "")
	v := newVolume(t, newStore(t), 64<<20, 4096)
	dev := newUnderWay(v)
	target := serve(t, "0", nvme.Options{})
	target.add(t, nqnOf(v), dev)
	vm.Run(t, vm.with(`connect $nqn $port`, "nqn", nqnOf(v), "port", target.port))
	for range *kernelRounds {
		job := vm.load(t, nqnOf(v), "--bsrange=4k-256k --iodepth=32 --size=48m")
		dev.wait(t, 20, job)
		vm.Run(t, vm.with(`
			c=$(controller $nqn)
			for i in $(seq 20); do
				nvme reset /dev/$c 2>/dev/null || true # one may be under way
				[ $((i % 3)) != 0 ] || live $c
			done
			live $c`, "nqn", nqnOf(v)))
		job.Must(t)
	}
	vm.Run(t, vm.with(`nvme disconnect -n $nqn`, "nqn", nqnOf(v)))
	if left := target.Controllers(); len(left) != 0 {
		t.Errorf("controllers are left after all disconnected: %+v", left)
	}
}

// kernelDisconnect disconnects under load. The load ends with an error, and
// what was flushed before is there.
func kernelDisconnect(t *testing.T, vm *guest) {
	vm.content(t, `I/O error|critical`)
	v := newVolume(t, newStore(t), 64<<20, 4096)
	dev := newUnderWay(v)
	target := serve(t, "0", nvme.Options{})
	target.add(t, nqnOf(v), dev)
	for range 2 * *kernelRounds {
		vm.Run(t, vm.with(`
			dev=$(connect $nqn $port)
			head -c 1048576 /dev/urandom >/tmp/flushed
			dd if=/tmp/flushed of=$dev bs=64k seek=768 conv=fsync 2>/dev/null`, "nqn", nqnOf(v), "port", target.port))
		job := vm.load(t, nqnOf(v), "--bsrange=4k-128k --iodepth=64 --size=48m --time_based --runtime=3600")
		dev.wait(t, 30, job)
		vm.Run(t, vm.with(`nvme disconnect -n $nqn`, "nqn", nqnOf(v)))
		if r := job.Wait(t); r.Status == 0 {
			t.Errorf("fio has not noticed: %v", r)
		}
		vm.Run(t, vm.with(`
			dev=$(connect $nqn $port)
			dd if=$dev bs=64k skip=768 count=16 2>/dev/null | cmp - /tmp/flushed
			nvme disconnect -n $nqn`, "nqn", nqnOf(v), "port", target.port))
	}
	if left := target.Controllers(); len(left) != 0 {
		t.Errorf("controllers are left after all disconnected: %+v", left)
	}
}

// kernelPowerCut cuts the power of the target's machine while files are
// written. When it is back, the journal is replayed, the file system is clean,
// and every file that was synced is on it.
func kernelPowerCut(t *testing.T, vm *guest, fs string) {
	// What the kernel logs while its disk dies is its own affair; what counts is
	// what it finds afterwards.
	for round := range *kernelRounds {
		rng := rand.New(rand.NewPCG(uint64(round), 2))
		disk := vfstest.NewPowerCut()
		s := openStore(t, disk, "/space")
		v := newVolume(t, s, 320<<20, 4096)
		dev := newUnderWay(v)
		target := serve(t, "0", nvme.Options{})
		target.add(t, nqnOf(v), dev)
		vm.Run(t, vm.with(`
			dev=$(connect $nqn $port)
			mkfs.$fs -q $dev
			mkdir -p /mnt.live
			mount -t $fs $dev /mnt.live`, "nqn", nqnOf(v), "port", target.port, "fs", fs))
		w := vm.startWriter(t, "/mnt.live")
		w.waitFor(t, 10)
		disk.CutAt(disk.Ops() + rng.IntN(300))
		dev.until(t, disk.Off, w.Job)
		target.kill(t)
		vm.Run(t, vm.with(`nvme disconnect -n $nqn`, "nqn", nqnOf(v)))
		w.stop(t)
		vm.Run(t, "umount /mnt.live || umount -l /mnt.live")
		acked := w.acked()

		for seed := range uint64(3) {
			after := openStore(t, disk.Clone(seed), "/space")
			c := openVolume(t, after, v.Info().ID)
			again := serve(t, "0", nvme.Options{})
			nqn := fmt.Sprintf("%s:%d", nqnOf(v), seed)
			again.add(t, nqn, c)
			vm.wantFiles(t, fs, nqn, again.port, acked)
			again.kill(t)
			c.Close()
			after.Close()
		}
		v.Close()
		s.Close()
	}
}

// until waits until cond holds, which it looks at with every write, or the job
// has ended.
func (d *underWay) until(t *testing.T, cond func() bool, job *kernelvm.Job) {
	t.Helper()
	for !cond() {
		d.wait(t, 1, job)
		select {
		case <-job.Done():
			if !cond() {
				t.Fatalf("the load ended before: %v", job.Wait(t))
			}
			return
		default:
		}
	}
}

// kept is a Persister in memory.
type kept struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (k *kept) LoadReservations(nqn string, nsid uint32) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.m[fmt.Sprint(nqn, nsid)], nil
}

func (k *kept) SaveReservations(nqn string, nsid uint32, state []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.m[fmt.Sprint(nqn, nsid)] = state
	return nil
}

// kernelReservations has two hosts on one namespace, which fence each other off.
func kernelReservations(t *testing.T, vm *guest) {
	vm.content(t, `reservation conflict|I/O error|critical`)
	v := newVolume(t, newStore(t), 64<<20, 4096)
	persister := &kept{m: map[string][]byte{}}
	target := serve(t, "0", nvme.Options{Persister: persister})
	target.add(t, nqnOf(v), v)
	// The kernel takes two controllers for two paths to one device. A command for
	// one of them goes to its own device file.
	out := vm.Run(t, vm.with(`
		for host in a b; do
			# nvme connect finds that the target is connected already.
			echo transport=tcp,traddr=10.0.2.2,trsvcid=$port,nqn=$nqn,duplicate_connect,reconnect_delay=1,ctrl_loss_tmo=-1,keep_alive_tmo=120,hostnqn=nqn.2026-11.example.host:$host,hostid=0000000$host-0000-4000-8000-000000000001 >/dev/nvme-fabrics
			for c in /sys/class/nvme/nvme*; do
				[ "$(cat $c/hostnqn)" != nqn.2026-11.example.host:$host ] || echo ${c##*/}
			done
		done
		head -c 4096 /dev/zero >/tmp/block`, "nqn", nqnOf(v), "port", target.port))
	hosts := strings.Fields(out)
	if len(hosts) != 2 || hosts[0] == hosts[1] {
		t.Fatalf("two hosts have the controllers %q", hosts)
	}
	run := func(script string) string {
		t.Helper()
		return vm.Run(t, vm.with(`
			write() { nvme io-passthru /dev/$1 --opcode=1 --namespace-id=1 --data-len=4096 --write --input-file=/tmp/block >/tmp/said 2>&1; }
			read_() { nvme io-passthru /dev/$1 --opcode=2 --namespace-id=1 --data-len=4096 --read >/tmp/said 2>&1; }
			says() { if "$@"; then echo yes; else grep -qi conflict /tmp/said || cat /tmp/said >&2; echo no; fi; }
			all() { live $A; live $B; echo $(says write $A) $(says read_ $A) $(says write $B) $(says read_ $B); }
			`+script, "A", hosts[0], "B", hosts[1]))
	}
	step := func(what, script, want string) {
		t.Helper()
		if got := run(script + "\nall"); strings.TrimSpace(lastLine(got)) != want {
			t.Errorf("%s: A writes, A reads, B writes, B reads: %q, want %s", what, got, want)
		}
	}
	step("nobody holds it", "", "yes yes yes yes")
	run(`
		head -c 4096 /dev/urandom >/tmp/block
		write $A
		nvme io-passthru /dev/$B --opcode=2 --namespace-id=1 --data-len=4096 --read -b 2>/dev/null | cmp - /tmp/block`)
	step("both registered", "nvme resv-register /dev/$A --namespace-id=1 --nrkey=0xa --rrega=0 --cptpl=3; nvme resv-register /dev/$B --namespace-id=1 --nrkey=0xb --rrega=0", "yes yes yes yes")
	step("A holds it, write exclusive", "nvme resv-acquire /dev/$A --namespace-id=1 --crkey=0xa --rtype=1 --racqa=0", "yes yes no yes")
	report := run("nvme resv-report /dev/$A --namespace-id=1 --eds -o json || nvme resv-report /dev/$A --namespace-id=1 -o json")
	if !strings.Contains(strings.ReplaceAll(report, " ", ""), `"regctl":2`) {
		t.Errorf("the report does not show two hosts:\n%s", report)
	}

	// It outlasts the target.
	target.kill(t)
	target = serve(t, target.port, nvme.Options{Persister: persister})
	target.add(t, nqnOf(v), v)
	step("after the target's restart", "", "yes yes no yes")
	step("B took it from A, exclusive access", "nvme resv-acquire /dev/$B --namespace-id=1 --crkey=0xb --prkey=0xa --rtype=2 --racqa=1", "no no yes yes")
	if r := vm.Try(t, vm.with("nvme resv-release /dev/$A --namespace-id=1 --crkey=0xa --rtype=2 --rrela=0", "A", hosts[0])); r.Status == 0 {
		t.Errorf("A released what B holds: %v", r)
	}
	step("B released it", "nvme resv-release /dev/$B --namespace-id=1 --crkey=0xb --rtype=2 --rrela=0", "yes yes yes yes")
	vm.Run(t, "nvme disconnect-all")
}

func lastLine(s string) string {
	s = strings.TrimRight(s, "\n")
	return s[strings.LastIndex(s, "\n")+1:]
}
