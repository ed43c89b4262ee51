package fuse

import (
	"runtime"
	"testing"
	"time"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// hang bounds how long tests wait for what has to come.
const hang = 2 * time.Minute

func waitFor(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(hang):
		t.Fatalf("%s: not within %v", what, hang)
	}
}

// oneAfterOther answers GETATTR when STATFS has been answered.
type oneAfterOther struct {
	gofuse.RawFileSystem
	begun, asked chan struct{}
}

func (f *oneAfterOther) long(*gofuse.InHeader) bool { return false }

func (f *oneAfterOther) GetAttr(<-chan struct{}, *gofuse.GetAttrIn, *gofuse.AttrOut) gofuse.Status {
	close(f.begun)
	<-f.asked
	return gofuse.OK
}

func (f *oneAfterOther) StatFs(<-chan struct{}, *gofuse.InHeader, *gofuse.StatfsOut) gofuse.Status {
	close(f.asked)
	return gofuse.OK
}

const opGetattr, opStatfs = 3, 17

// serveOneAfterOther has a device serve requests that come through kernel, until
// ended is closed.
func serveOneAfterOther(t *testing.T) (f *oneAfterOther, d *device, kernel int, ended <-chan struct{}) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f = &oneAfterOther{RawFileSystem: gofuse.NewDefaultRawFileSystem(), begun: make(chan struct{}), asked: make(chan struct{})}
	d = newDevice(f, fds[1], &gofuse.MountOptions{MaxWrite: maxRead}, new(logBuffer).logger())
	t.Cleanup(func() {
		unix.Close(fds[0])
		d.close()
	})
	done := make(chan struct{})
	go func() {
		d.serve()
		close(done)
	}()
	return f, d, fds[0], done
}

func send(t *testing.T, kernel int, request []byte) {
	t.Helper()
	header(request).Length = uint32(len(request))
	if _, err := unix.Write(kernel, request); err != nil {
		t.Fatal(err)
	}
}

// What the kernel forgets while a mount is left to the next node is worked
// through, and waits for nothing. (It is for the race detector to object.)
func TestForgetWhileLeaving(t *testing.T) {
	f, d, kernel, ended := serveOneAfterOther(t)
	send := func(request []byte) { send(t, kernel, request) }
	send(bytesOf(&gofuse.GetAttrIn{InHeader: gofuse.InHeader{Opcode: opGetattr, Unique: 1, NodeId: 1}}))
	waitFor(t, "the first request is taken", f.begun)
	left := make(chan struct{})
	go func() {
		d.leave(nil)
		close(left)
	}()
	for !d.hasLeft() {
		runtime.Gosched()
	}
	forget := gofuse.ForgetIn{InHeader: gofuse.InHeader{Opcode: opForget, Unique: 2, NodeId: 1}, Nlookup: 1}
	for i := range 100 {
		if i == 50 {
			close(f.asked) // the first request is answered
		}
		send(bytesOf(&forget))
	}
	waitFor(t, "leaving", left)
	for range 3 * maxReaders {
		send(bytesOf(&gofuse.InHeader{Opcode: opStatfs, Unique: 3, NodeId: 1}))
	}
	waitFor(t, "all have left", ended)
}

// A request that was taken for a short one may wait for what another one does.
func TestARequestThatTakesLongAfterAllKeepsNobodyWaiting(t *testing.T) {
	f, d, kernel, ended := serveOneAfterOther(t)
	attr := gofuse.GetAttrIn{InHeader: gofuse.InHeader{Opcode: opGetattr, Unique: 1, NodeId: 1}}
	send(t, kernel, bytesOf(&attr))
	waitFor(t, "the first request is taken", f.begun)
	stat := gofuse.InHeader{Opcode: opStatfs, Unique: 2, NodeId: 1}
	send(t, kernel, bytesOf(&stat))
	answered := map[uint64]bool{}
	for range 2 {
		answer := make([]byte, 4096)
		n, err := unix.Read(kernel, answer)
		if err != nil || n < int(unsafe.Sizeof(gofuse.OutHeader{})) {
			t.Fatal(n, err)
		}
		answered[(*gofuse.OutHeader)(unsafe.Pointer(&answer[0])).Unique] = true
	}
	if !answered[1] || !answered[2] {
		t.Errorf("answered: %v", answered)
	}

	d.leave(nil)
	for range 3 * maxReaders { // each ends one of those who wait, and there are not so many
		if _, err := unix.Write(kernel, bytesOf(&stat)); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "all have left", ended)
}

// Who works on a long request leaves nobody waiting for the next one alone;
// who works on a short one wakes nobody. Of those who come back too many leave.
func TestCrew(t *testing.T) {
	joined := 0
	c := newCrew(1, func() { joined++ })
	stays := func(want bool) {
		t.Helper()
		if c.wait() != want {
			t.Fatalf("wait = %v", !want)
		}
	}
	joins := func(n int) {
		t.Helper()
		if joined != n {
			t.Fatalf("%d have joined, want %d", joined, n)
		}
	}
	stays(true)
	c.take(true)
	joins(1)
	stays(true) // the one that joined
	stays(false)
	c.clock = time.NewTimer(hang) // for look to come when it is called
	if c.take(false) {
		t.Error("the only one at work passes for many")
	}
	joins(1)
	c.look()
	joins(2)
	stays(true)
	c.take(false) // at work: two
	stays(true)
	c.take(false)
	c.look() // there was another request since
	joins(2)
	c.look()
	joins(3)
	stays(true)
	if !c.take(false) { // at work: three, of whom two are stuck
		t.Error("requests that are stuck pass for few")
	}
	stays(true)
	c.leave(true)
	c.leave(false)
	c.leave(false)
	waitFor(t, "all have left", c.done)
	c.look()
	joins(3)
}
