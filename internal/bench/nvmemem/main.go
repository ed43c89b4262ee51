// Nvmemem serves 64 MiB of memory as an NVMe/TCP namespace. The benchmark of the
// target under a stock kernel runs it in the test machine, beside the kernel's own
// target on a RAM disk, so that both stand on memory, in the same emulation,
// behind the same network.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spacestore/space/views/nvme"
)

// memory is a device in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (m memory) Flush(context.Context) error              { return nil }
func (m memory) Size() int64                              { return int64(len(m)) }
func (m memory) BlockSize() int                           { return 4096 }
func (m memory) ReadOnly() bool                           { return false }

func (m memory) Trim(_ context.Context, off, n int64) error {
	clear(m[off : off+n])
	return nil
}

func (m memory) NextData(_ context.Context, off int64) (int64, int64, error) {
	if off >= m.Size() {
		return 0, 0, io.EOF
	}
	return off, m.Size(), nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: nvmemem ADDRESS NQN")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "nvmemem:", err)
		os.Exit(1)
	}
}

func serve(addr, nqn string) error {
	target, err := nvme.New(nvme.Options{})
	if err != nil {
		return err
	}
	if err := target.AddSubsystem(nvme.Subsystem{NQN: nqn, Serial: "1", Model: "memory", AllowAnyHost: true}); err != nil {
		return err
	}
	if err := target.AddNamespace(nqn, nvme.Namespace{NSID: 1, NGUID: [16]byte{1}, UUID: [16]byte{1}, Device: make(memory, 64<<20)}); err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return target.Serve(l, nvme.Port{ID: 1})
}
