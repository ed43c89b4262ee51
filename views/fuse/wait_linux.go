package fuse

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/spacestore/space/capsule"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// killPoll is how often a request that got a signal looks whether it was a
// fatal one. The kernel reports the first signal alone, so a later SIGKILL has
// to be looked for.
const killPoll = 50 * time.Millisecond

// await runs op and waits for it. When the process that made the request is
// being killed it gives up and reports false; op then goes on alone, with a
// cancelled context, so its results must be in memory that is its own.
func await(req *gofuse.InHeader, cancel <-chan struct{}, op func(context.Context)) bool {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan struct{})
	panicked := new(error)
	go func() {
		defer close(done)
		defer caught(panicked)
		op(ctx)
	}()
	if !waitUnlessKilled(done, cancel, req.Pid) {
		return false
	}
	if *panicked != nil {
		panic(*panicked) // for go-fuse, which answers EIO
	}
	return true
}

// caught turns a panic into an error: one bad request must not take all
// mounts down.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = capsule.Errorf(capsule.Other, "panic: %v\n%s", p, debug.Stack())
	}
}

// waitUnlessKilled waits for done. It gives up, and reports false, when the
// request was interrupted and thread pid, which made it, is being killed.
func waitUnlessKilled(done, cancel <-chan struct{}, pid uint32) bool {
	select {
	case <-done:
		return true
	case <-cancel:
	}
	tick := time.NewTicker(killPoll)
	defer tick.Stop()
	for !killed(pid) {
		select {
		case <-done:
			return true
		case <-tick.C:
		}
	}
	return false
}

// killed reports whether a thread has SIGKILL pending, as which the kernel
// passes on every fatal signal, or is gone. Of a thread in a process namespace
// out of sight (pid 0) nothing is known: it counts as alive.
func killed(pid uint32) bool {
	if pid == 0 {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return os.IsNotExist(err) || err == syscall.ESRCH
	}
	for line := range bytes.Lines(status) {
		set, ok := bytes.CutPrefix(line, []byte("SigPnd:"))
		if !ok {
			set, ok = bytes.CutPrefix(line, []byte("ShdPnd:"))
		}
		if !ok {
			continue
		}
		mask, _ := strconv.ParseUint(string(bytes.TrimSpace(set)), 16, 64)
		if mask&(1<<(syscall.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
