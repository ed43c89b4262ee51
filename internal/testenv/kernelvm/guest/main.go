//go:build linux

// Guest is the program that the test machine runs: it answers the test, as
// package agent describes, on the machine's virtio port.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spacestore/space/internal/testenv/kernelvm/agent"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func run() error {
	ports, err := filepath.Glob("/dev/vport*")
	if err != nil || len(ports) != 1 {
		return fmt.Errorf("virtio ports: %v, %v; want one", ports, err)
	}
	// Without O_NONBLOCK, and so outside of Go's poller: the device says that it
	// is ready when it is not.
	fd, err := syscall.Open(ports[0], syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", ports[0], err)
	}
	log, err := os.Open("/dev/kmsg")
	if err != nil {
		return err
	}
	if _, err := log.Seek(0, io.SeekEnd); err != nil { // booting was uneventful
		return err
	}
	version, err := os.ReadFile("/proc/version")
	if err != nil {
		return err
	}
	return agent.Serve(os.NewFile(uintptr(fd), ports[0]), strings.TrimSpace(string(version)), log)
}
