package fuse

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// killPoll is how long a request is left alone, and how often one that got a
// signal then is looked at for a fatal one. The kernel reports the first signal
// alone, so a later SIGKILL has to be looked for.
const killPoll = 50 * time.Millisecond

// inflight are the requests of a mount that may wait for the store. A process
// that is being killed can't go before its request is answered, so that of one
// which is stuck is answered here, with EINTR. The handler stays with the store
// for as long as that takes, and finds out by finish.
type inflight struct {
	mu       sync.Mutex
	device   int // a descriptor of /dev/fuse of our own; 0: closed
	requests map[*request]struct{}
	round    uint64 // of looking at them
	armed    bool   // the next round is scheduled
}

type request struct {
	all    *inflight
	unique uint64
	pid    uint32
	signal <-chan struct{} // closed when the process got a signal; nil: interrupt tells
	round  uint64          // in which it began
	stop   context.CancelFunc

	// Under all.mu:
	signaled bool
	answered bool
}

// begin takes note of a request. Its handler calls finish.
func (f *inflight) begin(h *gofuse.InHeader, signal <-chan struct{}) *request {
	r := &request{all: f, unique: h.Unique, pid: h.Pid, signal: signal}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.requests == nil {
		f.requests = map[*request]struct{}{}
	}
	f.requests[r] = struct{}{}
	r.round = f.round
	f.arm()
	return r
}

// beginContext is begin, with a context for the store that ends with the
// request or the process.
func (f *inflight) beginContext(h *gofuse.InHeader, signal <-chan struct{}) (context.Context, *request) {
	ctx, stop := context.WithCancel(context.Background())
	r := f.begin(h, signal)
	f.mu.Lock()
	defer f.mu.Unlock()
	r.stop = stop
	return ctx, r
}

// interrupt takes note of a signal that a request's process got. It reports
// false if there is no such request among those without a channel for it.
func (f *inflight) interrupt(unique uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for r := range f.requests {
		if r.unique&^resent == unique&^resent && r.signal == nil {
			r.signaled = true
			return true
		}
	}
	return false
}

// finish ends a request and reports whether its answer is wanted still. A
// handler calls it before whatever the kernel would have to undo. It may be
// called again.
func (r *request) finish() bool {
	r.all.mu.Lock()
	defer r.all.mu.Unlock()
	delete(r.all.requests, r)
	if r.stop != nil {
		r.stop()
	}
	return !r.answered
}

// arm schedules the next round. The caller holds f.mu.
func (f *inflight) arm() {
	if !f.armed {
		f.armed = true
		time.AfterFunc(killPoll, f.look)
	}
}

// look answers the requests of processes that are being killed.
func (f *inflight) look() {
	var signaled []*request
	f.mu.Lock()
	for r := range f.requests {
		if r.round == f.round || r.answered {
			continue // began just now
		}
		select {
		case <-r.signal:
			r.signaled = true
		default:
		}
		if r.signaled {
			signaled = append(signaled, r)
		}
	}
	f.round++
	f.armed = false
	if len(f.requests) > 0 {
		f.arm()
	}
	f.mu.Unlock()
	for _, r := range signaled {
		if killed(r.pid) {
			f.answer(r, syscall.EINTR)
		}
	}
}

// answer answers a request in its handler's place.
func (f *inflight) answer(r *request, errno syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, running := f.requests[r]; !running || f.device == 0 {
		return
	}
	r.answered = true
	if r.stop != nil {
		r.stop()
	}
	// It fails where the kernel has forgotten the request, and that is well.
	f.send(-int32(errno), r.unique)
}

// notify tells the kernel something that takes no more than a code, of
// gofuse.NOTIFY_*.
func (f *inflight) notify(code int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.device != 0 {
		f.send(-code, 0)
	}
}

func (f *inflight) send(status int32, unique uint64) {
	head := gofuse.OutHeader{Length: uint32(unsafe.Sizeof(gofuse.OutHeader{})), Status: status, Unique: unique}
	_, _ = unix.Write(f.device, unsafe.Slice((*byte)(unsafe.Pointer(&head)), head.Length))
}

// open makes it answer on fd, of which it takes a duplicate.
func (f *inflight) open(fd int) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.device, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return err
}

// released reports whether the kernel has let go of the mount.
func (f *inflight) released() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.device == 0 {
		return true
	}
	p := []unix.PollFd{{Fd: int32(f.device)}}
	for {
		_, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return p[0].Revents&unix.POLLERR != 0
		}
	}
}

func (f *inflight) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	unix.Close(f.device)
	f.device = 0
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
		return true
	}
	for line := range bytes.Lines(status) {
		set, ok := bytes.CutPrefix(line, []byte("SigPnd:"))
		if !ok {
			continue
		}
		mask, _ := strconv.ParseUint(string(bytes.TrimSpace(set)), 16, 64)
		return mask&(1<<(syscall.SIGKILL-1)) != 0
	}
	return false
}
