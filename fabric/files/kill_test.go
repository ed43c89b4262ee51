package files

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/fabric/tunneltest"
)

const (
	envGiver  = "FILES_TEST_GIVER"  // makes TestKill the receiver: the giver's address
	envTarget = "FILES_TEST_TARGET" // the receiver's
	envDie    = "FILES_TEST_DIE"    // the receiver kills itself before it finishes (1), or before it thanks
)

// lethal is a connection that calls kill when so many bytes were written.
type lethal struct {
	net.Conn
	left atomic.Int64
	kill func()
}

func (l *lethal) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	if l.left.Add(-int64(n)) <= 0 {
		l.kill()
	}
	return n, err
}

// TestKill kills a receiver, a process of its own, with SIGKILL at places of a fixed
// seed, and when all has come but nothing is finished. What is there in the end is
// what was sent, and little was sent twice.
func TestKill(t *testing.T) {
	if addr := os.Getenv(envGiver); addr != "" {
		killed(t, addr)
		return
	}
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	tree(t, src)
	os.Chmod(src, 0o755)
	put(t, src+"/huge", payload(9, 60*testChunk), 0o644)
	s, err := NewShare(src, ShareOptions{chunk: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	size, files, _ := s.Size()
	random := rand.New(rand.NewPCG(1, 2))
	const kills = 5
	runs := 0
	for ; runs <= kills; runs++ {
		left, die := int64(200<<10+random.IntN(700<<10)), ""
		if runs == kills {
			left, die = 1<<40, "1"
		}
		if run(t, s, dst, left, die) {
			t.Fatalf("run %d was not killed", runs)
		}
		if _, err := os.Lstat(dst); err == nil {
			t.Fatal("the target is there though the receiver was killed")
		}
	}
	before := s.Sent()
	if !run(t, s, dst, 1<<40, "") {
		t.Fatal("the last run was killed")
	}
	same(t, dst, src)
	if again := s.Sent() - before; again > 64<<10+files*100 {
		t.Errorf("%d bytes were sent when all was there", again)
	}
	if most := size + int64(runs+1)*(4*testChunk+64<<10+files*100); s.Sent() > most {
		t.Errorf("%d bytes were sent for %d, in %d runs; at most %d are right", s.Sent(), size, runs, most)
	}
	t.Logf("%d bytes, %d sent, %d kills", size, s.Sent(), runs)
}

// run has a receiver, killed after so many bytes, and says whether it finished.
func run(t *testing.T, s *Share, dst string, left int64, die string) bool {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.CommandContext(timeout(t), os.Args[0], "-test.run=^TestKill$", "-test.count=1")
	cmd.Env = append(os.Environ(), envGiver+"="+l.Addr().String(), envTarget+"="+dst, envDie+"="+die, "GORACE=atexit_sleep_ms=0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	deadly := &lethal{Conn: c, kill: func() { cmd.Process.Kill() }}
	deadly.left.Store(left)
	far := tunneltest.End(t, deadly, false, session.Options{})
	ctx, cancel := context.WithCancel(timeout(t))
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(ctx, far)
	}()
	err = cmd.Wait()
	cancel()
	far.Close()
	<-done
	if err == nil {
		return true
	}
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("the receiver: %v", err)
	}
	return false
}

// killed is the receiver.
func killed(t *testing.T, addr string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var near fabric.Opener = tunneltest.End(t, c, true, session.Options{})
	if os.Getenv(envDie) == "thanks" {
		near = lastWord{near}
	}
	err = Receive(timeout(t), ReceiveOptions{Target: os.Getenv(envTarget), Mirrors: []Mirror{{near, "m"}}, Progress: func(p Progress) {
		if p.Bytes.Done == p.Bytes.Size && os.Getenv(envDie) == "1" {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
}
