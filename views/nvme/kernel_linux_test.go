package nvme_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/testenv/kernelvm"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/views/nvme"
)

var kernelRounds = flag.Int("kernel-rounds", 1, "how often the tests with faults in them repeat under the kernel")

// TestKernel is the target under a stock Linux kernel, in the test machine.
// kernel_faults_linux_test.go has what is done to both of them.
func TestKernel(t *testing.T) {
	vm := &guest{Machine: kernelvm.Boot(t)}
	vm.Put(t, "/lib.sh", []byte(kernelvm.NVMe))
	vm.Run(t, "modprobe nvme-tcp")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *guest)
	}{
		{"discover and connect", kernelDiscover},
		{"identify", kernelIdentify},
		{"verify", kernelVerify},
		{"ext4", func(t *testing.T, vm *guest) { kernelFileSystem(t, vm, "ext4") }},
		{"xfs", func(t *testing.T, vm *guest) { kernelFileSystem(t, vm, "xfs") }},
		{"trim", kernelTrim},
		{"read-only", kernelReadOnly},
		{"growth", kernelGrowth},
		{"damage", kernelDamage},
		{"snapshot under I/O", kernelSnapshot},
		{"restart", kernelRestart},
		{"network cuts", kernelNetworkCuts},
		{"resets", kernelResets},
		{"disconnect under load", kernelDisconnect},
		{"power cut ext4", func(t *testing.T, vm *guest) { kernelPowerCut(t, vm, "ext4") }},
		{"power cut xfs", func(t *testing.T, vm *guest) { kernelPowerCut(t, vm, "xfs") }},
		{"reservations", kernelReservations},
	} {
		t.Run(test.name, func(t *testing.T) {
			// What a failed test leaves must not fail the next. Killing comes
			// first: what waits for a device would hold it.
			t.Cleanup(func() {
				vm.Try(t, "nvme disconnect-all; for m in $(awk '$2 ~ \"^/mnt\" {print $2}' /proc/mounts); do umount -l $m; done")
			})
			test.run(t, vm)
		})
	}
}

// guest is the test machine with what these tests need of it.
type guest struct{ *kernelvm.Machine }

// with runs a script with the library and variables.
func (vm *guest) with(script string, env ...any) string {
	head := ". /lib.sh\n"
	for i := 0; i < len(env); i += 2 {
		head += fmt.Sprintf("%s='%v'\n", env[i], env[i+1])
	}
	return head + script
}

// complaint is what a kernel logs when something went wrong with a device.
var complaint = regexp.MustCompile(`I/O error|timeout, (aborting|reset|completion)|critical .* error|blocked for more than|BUG: (kernel|unable)|WARNING: CPU|Oops|` +
	`EXT4-fs (error|warning)|XFS .*(orrupt|shut)|JBD2: .*[Ee]rror|digest error`)

// content checks at the end of the test that the kernel had nothing to complain
// of, but for what allowed matches.
func (vm *guest) content(t *testing.T, allowed string) {
	t.Helper()
	_, mark := vm.Logged(0)
	t.Cleanup(func() {
		lines, _ := vm.Logged(mark)
		for _, line := range lines {
			if complaint.MatchString(line) && (allowed == "" || !regexp.MustCompile(allowed).MatchString(line)) {
				t.Errorf("the guest's kernel complains: %s\nits log of this test:\n%s", line, vm.LogTail(min(60, len(lines))))
				return
			}
		}
	})
}

func quietLog() *slog.Logger {
	if os.Getenv("SPACE_TEST_LOG") != "" {
		return slog.Default()
	}
	return slog.New(slog.DiscardHandler)
}

func openStore(t testing.TB, fs vfs.FS, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), store.Options{Dir: dir, FS: fs, Logger: quietLog(),
		Keys: keyring.Source{MasterKey: strings.Repeat("5a", 32)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() }) // twice is fine, and after a power cut it may fail
	return s
}

func newStore(t testing.TB) *store.Store { return openStore(t, nil, t.TempDir()) }

func newVolume(t testing.TB, s *store.Store, size int64, block int) *store.Volume {
	t.Helper()
	info, err := s.Create(context.Background(), store.CreateRequest{Kind: capsule.Volume, Size: size, BlockSize: block}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return openVolume(t, s, info.ID)
}

func openVolume(t testing.TB, s *store.Store, id capsule.ID) *store.Volume {
	t.Helper()
	v, err := s.OpenVolume(context.Background(), id, "", store.WriteVolume)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// nqnOf names the subsystem that serves a volume.
func nqnOf(v *store.Volume) string { return "nqn.2026-11.example.space:" + v.Info().ID.String() }

// served is a target on a port.
type served struct {
	*nvme.Target
	port string
	done chan error
}

// serve starts a target on a port ("0": any), which ends with the test.
func serve(t testing.TB, port string, o nvme.Options) *served {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	o.Logger = quietLog()
	target, err := nvme.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s := &served{Target: target, done: make(chan error, 1)}
	_, s.port, _ = net.SplitHostPort(l.Addr().String())
	go func() { s.done <- target.Serve(l, nvme.Port{ID: 1, Address: kernelvm.Host, Service: s.port}) }()
	t.Cleanup(func() { s.kill(t) })
	return s
}

// kill ends the target at once, whatever it is doing.
func (s *served) kill(t testing.TB) {
	t.Helper()
	if s.done == nil {
		return
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Close(now); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("closing the target: %v", err)
	}
	if err := <-s.done; err != nil {
		t.Errorf("the target: %v", err)
	}
	s.done = nil
}

// add serves a device as the first namespace of a subsystem that any host may use.
func (s *served) add(t testing.TB, nqn string, d nvme.Device) {
	t.Helper()
	if err := s.AddSubsystem(nvme.Subsystem{NQN: nqn, Serial: "SPACE0001", Model: "SPACE volume", AllowAnyHost: true}); err != nil {
		t.Fatal(err)
	}
	s.addNamespace(t, nqn, d)
}

func (s *served) addNamespace(t testing.TB, nqn string, d nvme.Device) {
	t.Helper()
	ns := nvme.Namespace{NSID: 1, NGUID: idOf(nqn), UUID: idOf(nqn), Device: d}
	if err := s.AddNamespace(nqn, ns); err != nil {
		t.Fatal(err)
	}
}

// idOf is an identifier for a name.
func idOf(name string) (id [16]byte) {
	rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%32.32s", name[max(0, len(name)-32):])))).Read(id[:])
	return id
}

// used is how many bytes of a device may hold data.
func used(t testing.TB, d nvme.Device) (n int64) {
	t.Helper()
	for at := int64(0); at < d.Size(); {
		start, end, err := d.NextData(context.Background(), at)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n += end - start
		at = end
	}
	return n
}

func kernelDiscover(t *testing.T, vm *guest) {
	vm.content(t, "")
	s := newStore(t)
	target := serve(t, "0", nvme.Options{})
	one, two := newVolume(t, s, 64<<20, 512), newVolume(t, s, 32<<20, 4096)
	target.add(t, nqnOf(one), one)
	target.add(t, nqnOf(two), two)

	found := vm.Run(t, vm.with(`nvme discover -t tcp -a 10.0.2.2 -s $port`, "port", target.port))
	for _, want := range []string{nqnOf(one), nqnOf(two), "traddr:  10.0.2.2", "trsvcid: " + target.port} {
		if !strings.Contains(found, want) {
			t.Errorf("nvme discover does not show %q:\n%s", want, found)
		}
	}
	sizes := vm.Run(t, vm.with(`
		nvme connect-all -t tcp -a 10.0.2.2 -s $port
		one=$(device $nqn1) two=$(device $nqn2)
		echo $(blockdev --getsize64 --getss $one $two)
		nvme list-subsys >&2
		nvme disconnect -n $nqn1 >&2
		nvme disconnect -n $nqn2 >&2`, "port", target.port, "nqn1", nqnOf(one), "nqn2", nqnOf(two)))
	if want := fmt.Sprintf("%d 512 %d 4096\n", 64<<20, 32<<20); sizes != want {
		t.Errorf("sizes and block sizes are %q, want %q", sizes, want)
	}

	// A host that stays connected to the discovery service is told of changes.
	changed := vm.Start(t, vm.with(`
		nvme discover -t tcp -a 10.0.2.2 -s $port --persistent --keep-alive-tmo=120 >/dev/null
		udevadm --version >/dev/null 2>&1 || true
		for c in /sys/class/nvme/nvme*; do
			[ "$(cat $c/subsysnqn)" != nqn.2014-08.org.nvmexpress.discovery ] || d=${c##*/}
		done
		nvme get-log /dev/$d --log-id=0x70 --log-len=16 -b | od -An -tu8 -j0 -N8
		echo connected $d
		read _ </tmp/go
		nvme get-log /dev/$d --log-id=0x70 --log-len=16 -b | od -An -tu8 -j0 -N8
		nvme disconnect -d $d`, "port", target.port))
	vm.Run(t, "[ -p /tmp/go ] || mkfifo /tmp/go")
	changed.WaitFor(t, "connected nvme")
	if err := target.RemoveSubsystem(nqnOf(two)); err != nil {
		t.Error(err)
	}
	vm.Run(t, "echo >/tmp/go")
	out := strings.Fields(changed.Must(t))
	if len(out) < 4 || out[0] == out[3] {
		t.Errorf("the discovery log's generation before and after a change: %v", out)
	}
}

func kernelIdentify(t *testing.T, vm *guest) {
	vm.content(t, "")
	v := newVolume(t, newStore(t), 64<<20, 4096)
	target := serve(t, "0", nvme.Options{})
	target.add(t, nqnOf(v), v)
	out := vm.Run(t, vm.with(`
		dev=$(connect $nqn $port)
		nvme id-ctrl $dev -o json
		nvme id-ns $dev -o json
		nvme ns-descs $dev -o json
		nvme smart-log $dev -o json
		nvme error-log $dev -o json >/dev/null
		nvme fw-log $dev -o json
		nvme effects-log $dev >/dev/null
		nvme list-ns $dev
		nvme get-feature $dev -f 6 -H
		nvme get-feature $dev -f 7 -H
		nvme flush $dev
		nvme get-property /dev/$(controller $nqn) --offset=0x1c
		wc=$(cat /sys/block/${dev##*/}/queue/write_cache)
		echo "cache: $wc"
		nvme disconnect -n $nqn`, "nqn", nqnOf(v), "port", target.port))
	id := idOf(nqnOf(v))
	for _, want := range []string{`"sn":"SPACE0001`, `"mn":"SPACE volume`, `"subnqn":"` + nqnOf(v),
		`"nsze":16384`, `"ds":12`, fmt.Sprintf("%x", id[:]), "cache: write back"} {
		if !strings.Contains(strings.ReplaceAll(out, `" : `, `":`), want) {
			t.Errorf("no %s in:\n%s", want, out)
		}
	}
}

// kernelVerify writes, reads and checks blocks of all sizes, with many at once,
// over every kind of connection.
func kernelVerify(t *testing.T, vm *guest) {
	s := newStore(t)
	for _, c := range []struct {
		name, connect string
		block         int
		fio           string
	}{
		{"plain", "", 512, "--bsrange=512-1m --iodepth=128 --size=24m"},
		{"small and deep", "", 512, "--bs=512 --iodepth=128 --size=1m"},
		{"header digest", "--hdr-digest", 512, "--bsrange=512-256k --iodepth=32 --size=8m"},
		{"data digest", "--data-digest", 512, "--bsrange=512-256k --iodepth=32 --size=8m"},
		{"both digests, 4096", "--hdr-digest --data-digest", 4096, "--bsrange=4k-1m --iodepth=128 --size=16m --ioengine=io_uring"},
		{"three queues", "--nr-write-queues=1 --nr-poll-queues=1 --queue-size=16", 4096, "--bsrange=4k-128k --iodepth=64 --size=8m --ioengine=io_uring --hipri"},
	} {
		t.Run(c.name, func(t *testing.T) {
			vm.content(t, "")
			v := newVolume(t, s, 64<<20, c.block)
			target := serve(t, "0", nvme.Options{})
			target.add(t, nqnOf(v), v)
			vm.Run(t, vm.with(`
				dev=$(connect $nqn $port $options)
				verify $dev $fio
				nvme disconnect -n $nqn`, "nqn", nqnOf(v), "port", target.port, "options", c.connect, "fio", c.fio))
		})
	}
}

// kernelFileSystem copies a tree of files to a file system and finds it again,
// after unmounting, and after connecting anew.
func kernelFileSystem(t *testing.T, vm *guest, fs string) {
	vm.content(t, "")
	v := newVolume(t, newStore(t), 512<<20, 4096)
	target := serve(t, "0", nvme.Options{})
	target.add(t, nqnOf(v), v)
	vm.Run(t, vm.with(`
		tree=/usr/lib/modules/$(uname -r)/kernel/drivers/net
		[ -e /tmp/sums ] || sums $tree >/tmp/sums
		dev=$(connect $nqn $port)
		mkfs.$fs -q $dev
		mount -t $fs $dev /mnt
		cp -a $tree /mnt/tree
		sums /mnt/tree | cmp - /tmp/sums
		umount /mnt
		nvme disconnect -n $nqn
		dev=$(connect $nqn $port)
		$check $dev
		mount -t $fs $dev /mnt
		sums /mnt/tree | cmp - /tmp/sums
		# Renames, links, holes, and removing.
		mv /mnt/tree /mnt/moved
		ln -s moved /mnt/link
		truncate -s 1g /mnt/hole
		echo end >>/mnt/hole
		umount /mnt
		mount -t $fs $dev /mnt
		sums /mnt/link/ | cmp - /tmp/sums
		[ "$(tail -c 4 /mnt/hole)" = end ]
		rm -r /mnt/moved
		umount /mnt
		$check $dev
		nvme disconnect -n $nqn`, "nqn", nqnOf(v), "port", target.port, "fs", fs, "check", fsck[fs]))
}

// fsck are commands that check a file system and change nothing.
var fsck = map[string]string{"ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}

func kernelTrim(t *testing.T, vm *guest) {
	vm.content(t, "")
	v := newVolume(t, newStore(t), 96<<20, 4096)
	target := serve(t, "0", nvme.Options{})
	target.add(t, nqnOf(v), v)
	dev := strings.TrimSpace(vm.Run(t, vm.with(`
		dev=$(connect $nqn $port)
		mkfs.ext4 -q $dev
		mount $dev /mnt
		dd if=/dev/urandom of=/mnt/data bs=1M count=24 conv=fsync 2>/dev/null
		echo $dev`, "nqn", nqnOf(v), "port", target.port)))
	full := used(t, v)
	if full < 24<<20 {
		t.Errorf("%d bytes are used after 24 MiB were written", full)
	}
	vm.Run(t, "rm /mnt/data; sync; fstrim /mnt; umount /mnt")
	if left := used(t, v); left > full-(23<<20) {
		t.Errorf("fstrim after removing 24 MiB leaves %d of %d bytes", left, full)
	}
	vm.Run(t, vm.with("e2fsck -fn $dev; blkdiscard $dev; cmp -n 100663296 $dev /dev/zero; nvme disconnect -n $nqn", "dev", dev, "nqn", nqnOf(v)))
	if left := used(t, v); left != 0 {
		t.Errorf("blkdiscard leaves %d bytes", left)
	}
}

func kernelReadOnly(t *testing.T, vm *guest) {
	vm.content(t, `read-only|write access|I/O error|critical`)
	ctx := context.Background()
	s := newStore(t)
	v := newVolume(t, s, 64<<20, 4096)
	target := serve(t, "0", nvme.Options{})
	target.add(t, nqnOf(v), v)
	vm.Run(t, vm.with(`dev=$(connect $nqn $port); mkfs.ext4 -q $dev; mount $dev /mnt; echo hello >/mnt/file; umount /mnt; nvme disconnect -n $nqn`,
		"nqn", nqnOf(v), "port", target.port))
	if _, err := s.Snapshot(ctx, v.Info().ID, "one"); err != nil {
		t.Fatal(err)
	}
	snap, err := s.OpenVolume(ctx, v.Info().ID, "one", store.ReadVolume)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	nqn := nqnOf(v) + ":one"
	target.add(t, nqn, snap)
	out := vm.Run(t, vm.with(`
		dev=$(connect $nqn $port)
		cat /sys/block/${dev##*/}/ro
		mount -o ro $dev /mnt
		cat /mnt/file
		umount /mnt
		! dd if=/dev/zero of=$dev bs=4k count=1 2>/dev/null || echo written
		nvme disconnect -n $nqn >/dev/null`, "nqn", nqn, "port", target.port))
	if out != "1\nhello\n" {
		t.Errorf("got %q", out)
	}
	if err := target.RemoveSubsystem(nqn); err != nil { // before its device is closed
		t.Error(err)
	}
}

func kernelGrowth(t *testing.T, vm *guest) {
	vm.content(t, "")
	ctx := context.Background()
	s := newStore(t)
	v := newVolume(t, s, 64<<20, 4096)
	target := serve(t, "0", nvme.Options{})
	target.add(t, nqnOf(v), v)
	dev := strings.TrimSpace(vm.Run(t, vm.with(`dev=$(connect $nqn $port); mkfs.ext4 -q $dev; mount $dev /mnt; echo hello >/mnt/file; echo $dev`,
		"nqn", nqnOf(v), "port", target.port)))
	if _, err := s.ResizeVolume(ctx, v.Info().ID, 128<<20); err != nil {
		t.Fatal(err)
	}
	if err := target.Resized(nqnOf(v), 1); err != nil {
		t.Fatal(err)
	}
	out := vm.Run(t, vm.with(`
		until [ $(blockdev --getsize64 $dev) = 134217728 ]; do sleep 0.1; done
		resize2fs $dev >&2
		dd if=/dev/urandom of=/mnt/more bs=1M count=80 2>/dev/null
		cat /mnt/file
		umount /mnt
		e2fsck -fn $dev >&2
		nvme disconnect -n $nqn >&2`, "dev", dev, "nqn", nqnOf(v)))
	if out != "hello\n" {
		t.Errorf("got %q", out)
	}
}

// damaged is a device of which some bytes cannot be read.
type damaged struct {
	nvme.Device
	off, n int64
}

func (d *damaged) ReadAt(p []byte, off int64) (int, error) {
	if off < d.off+d.n && d.off < off+int64(len(p)) {
		return 0, &capsule.DamageError{Off: d.off, Len: d.n, Why: "bit rot"}
	}
	return d.Device.ReadAt(p, off)
}

// kernelDamage wants damage to be an error for who reads it, at that place and
// nowhere else.
func kernelDamage(t *testing.T, vm *guest) {
	vm.content(t, `critical medium error|Buffer I/O error|I/O error|Media|Unrecovered`)
	v := newVolume(t, newStore(t), 16<<20, 4096)
	target := serve(t, "0", nvme.Options{})
	target.add(t, nqnOf(v), &damaged{v, 8 << 20, 4096})
	_, mark := vm.Logged(0)
	out := vm.Run(t, vm.with(`
		dev=$(connect $nqn $port)
		try() { dd if=$dev of=/dev/null bs=4k iflag=direct count=1 skip=$1 2>&1 | grep -o 'error.*' || echo fine; }
		try 2047; try 2048; try 2049
		nvme smart-log $dev | grep -i media_errors
		nvme disconnect -n $nqn >&2`, "nqn", nqnOf(v), "port", target.port))
	t.Log(out)
	vm.WaitLog(t, mark, "critical medium error")
	if lines := strings.Split(out, "\n"); lines[0] != "fine" || lines[1] == "fine" || lines[2] != "fine" {
		t.Errorf("reading before, in and behind the damage: %q", out)
	}
}

// kernelSnapshot takes snapshots of a file system while it is written, and
// wants each to be as after a power cut: everything that was fsynced before.
func kernelSnapshot(t *testing.T, vm *guest) {
	vm.content(t, "")
	ctx := context.Background()
	s := newStore(t)
	v := newVolume(t, s, 256<<20, 4096)
	target := serve(t, "0", nvme.Options{})
	target.add(t, nqnOf(v), v)
	vm.Run(t, vm.with(`dev=$(connect $nqn $port); mkfs.ext4 -q $dev; mkdir -p /mnt.live; mount $dev /mnt.live`, "nqn", nqnOf(v), "port", target.port))
	w := vm.startWriter(t, "/mnt.live")
	for i := range 2 {
		acked := w.waitFor(t, 10*(i+1))
		name := fmt.Sprint("snap", i)
		if _, err := s.Snapshot(ctx, v.Info().ID, name); err != nil {
			t.Fatal(err)
		}
		clone, err := s.Clone(ctx, v.Info().ID, name, "")
		if err != nil {
			t.Fatal(err)
		}
		c := openVolume(t, s, clone.ID)
		target.add(t, nqnOf(c), c)
		vm.wantFiles(t, "ext4", nqnOf(c), target.port, acked)
	}
	w.stop(t)
	vm.Run(t, vm.with("umount /mnt.live; nvme disconnect -n $nqn", "nqn", nqnOf(v)))
}

// writer is a job in the guest that writes files, syncs each, and says so.
type writer struct{ *kernelvm.Job }

// startWriter starts writing files below dir, until it is stopped or it fails:
// some with fsync, some by a rename over an older one, beside others that
// are not synced. A line with the checksum and name follows each that is durable.
func (vm *guest) startWriter(t *testing.T, dir string) *writer {
	vm.Run(t, "rm -f /tmp/stop")
	return &writer{vm.Start(t, vm.with(`
		i=0
		while [ ! -e /tmp/stop ]; do
			i=$((i + 1))
			d=$dir/d$((i % 7))
			mkdir -p $d
			size=$((i * 7919 % 200000 + 1))
			head -c $size /dev/urandom >/tmp/content
			sum=$(sha256sum </tmp/content)
			head -c $size /dev/urandom >$d/unsynced$((i % 20))
			dd if=/tmp/content of=$d/.new bs=64k conv=fsync 2>/dev/null
			mv $d/.new $d/f$i
			sync $d
			echo "acked ${sum%% *} d$((i % 7))/f$i"
		done`, "dir", dir))}
}

// waitFor returns the files that are durable once there are n, at least.
func (w *writer) waitFor(t *testing.T, n int) []string {
	t.Helper()
	w.Job.WaitCount(t, "acked ", n)
	return w.acked()
}

// acked are the files that are durable: their checksums and names.
func (w *writer) acked() (files []string) {
	out := w.Output()
	out = out[:strings.LastIndex(out, "\n")+1]
	for line := range strings.Lines(out) {
		if file, ok := strings.CutPrefix(line, "acked "); ok {
			files = append(files, strings.Replace(strings.TrimSpace(file), " ", "  ", 1))
		}
	}
	return files
}

func (w *writer) stop(t *testing.T) {
	t.Helper()
	w.Job.Kill()
	w.Job.Wait(t)
}

// wantFiles connects to a file system that ended without being unmounted, lets
// the kernel replay its journal, and wants files on it; then it has to be clean.
func (vm *guest) wantFiles(t *testing.T, fs, nqn, port string, files []string) {
	t.Helper()
	vm.Put(t, "/tmp/acked", []byte(strings.Join(files, "\n")+"\n"))
	vm.Run(t, vm.with(`
		dev=$(connect $nqn $port)
		mkdir -p /mnt.after
		mount -t $fs -o $options $dev /mnt.after
		(cd /mnt.after && sha256sum -c /tmp/acked | grep -v ': OK$' >&2 || true)
		(cd /mnt.after && sha256sum -c /tmp/acked >/dev/null 2>&1)
		umount /mnt.after
		$check $dev >/tmp/fsck.out 2>&1 || { cat /tmp/fsck.out >&2; exit 1; }
		nvme disconnect -n $nqn`, "nqn", nqn, "port", port, "fs", fs, "check", fsck[fs], "options", mountOptions[fs]))
}

// mountOptions: a clone has the UUID of what it was cloned from.
var mountOptions = map[string]string{"ext4": "errors=continue", "xfs": "nouuid"}
