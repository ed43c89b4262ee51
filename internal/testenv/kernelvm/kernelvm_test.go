//go:build linux

package kernelvm

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
)

func TestKernelMachine(t *testing.T) {
	vm := Boot(t)
	t.Run("scripts", func(t *testing.T) {
		if out := vm.Run(t, "uname -s; nproc"); out != "Linux\n1\n" {
			t.Errorf("got %q", out)
		}
		if r := vm.Try(t, "echo on; echo err >&2; exit 3"); r != (Result{3, "on\n", "err\n"}) {
			t.Errorf("got %v", r)
		}
	})
	t.Run("side by side", func(t *testing.T) {
		waiting := vm.Start(t, "mkfifo /tmp/pipe; echo waiting; cat /tmp/pipe")
		waiting.WaitFor(t, "waiting")
		vm.Run(t, "echo hello >/tmp/pipe")
		if out := waiting.Must(t); out != "waiting\nhello\n" {
			t.Errorf("got %q", out)
		}
		forever := vm.Start(t, "echo on; sleep 100000 & sleep 100000")
		forever.WaitFor(t, "on")
		forever.Kill()
		if r := forever.Wait(t); r.Status != 137 {
			t.Errorf("killed: %v", r)
		}
	})
	t.Run("files", func(t *testing.T) {
		data := make([]byte, 1<<20+1)
		rand.NewChaCha8([32]byte{1}).Read(data)
		vm.Put(t, "/tmp/new/data", data)
		if out := vm.Run(t, "cat /tmp/new/data; rm /tmp/new/data"); out != string(data) {
			t.Errorf("%d bytes came back, not the %d that were put", len(out), len(data))
		}
	})
	t.Run("kernel log", func(t *testing.T) {
		_, mark := vm.Logged(0)
		vm.Run(t, "echo 'a line for the test' >/dev/kmsg")
		vm.WaitLog(t, mark, "line for", "test")
	})
	t.Run("the guest reaches the host", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		got := make(chan []byte, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			data, _ := io.ReadAll(io.LimitReader(conn, 6))
			got <- data
		}()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		vm.Run(t, "echo hello | nc "+Host+" "+port)
		if data := <-got; string(data) != "hello\n" {
			t.Errorf("got %q", data)
		}
	})
	t.Run("the host reaches the guest", func(t *testing.T) {
		server := vm.Start(t, "nc -l -p 4000 -e cat & echo $!; wait")
		server.WaitFor(t, "\n")
		vm.Run(t, "until netstat -ltn | grep -q :4000; do sleep 0.1; done")
		conn, err := net.Dial("tcp", vm.Forward(t, 4000))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 4)
		if _, err := io.ReadFull(conn, answer); err != nil || !bytes.Equal(answer, []byte("ping")) {
			t.Errorf("%q, %v", answer, err)
		}
	})
	t.Run("programs", func(t *testing.T) {
		// Each loads its libraries.
		out := vm.Run(t, `
			nvme version; fio --version; mkfs.xfs -V; mkfs.ext4 -V 2>&1; xfs_repair -V; e2fsck -V 2>&1; mount.nfs -V
			findmnt --version; ip -V; blkdiscard --version; fstrim --version
			for module in nvme-tcp nvmet-tcp xfs loop brd nfsv4; do modprobe $module; done`)
		for _, want := range []string{"nvme version", "fio-", "mkfs.xfs version", "mke2fs", "mount.nfs"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
	})
	t.Run("its end is noticed", func(t *testing.T) {
		job := vm.Start(t, "sleep 100000")
		vm.Start(t, "poweroff -f")
		<-job.Done()
		if late := vm.Start(t, "true"); late.status >= 0 {
			<-late.Done()
			t.Errorf("a machine that is off ran a script: %d", late.status)
		}
	})
}
