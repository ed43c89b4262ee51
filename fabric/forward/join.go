package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/spacestore/space/fabric"
)

// keepAlive finds out in about four minutes that the other end of a connection
// is gone.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 2 * time.Minute, Interval: 15 * time.Second, Count: 8}

// errLocal is of what goes wrong with the connection, not with the stream.
var errLocal = errors.New("forward: the connection has failed")

// join carries bytes between a connection and a stream until both directions
// have ended, or one has failed, which resets both ends. It closes both.
func join(ctx context.Context, conn net.Conn, st fabric.Stream, c *counters) error {
	var once sync.Once
	var cause error // the first error; those that follow come from the reset
	fail := func(code uint32, text string, err error) {
		once.Do(func() {
			cause = err
			st.Reset(code, text)
			abort(conn)
		})
	}
	stop := context.AfterFunc(ctx, func() { fail(CodeStopped, "forwarding was stopped", ctx.Err()) })
	l := local{conn, c}
	half := func(dst io.Writer, src io.Reader, end func() error) {
		_, err := io.Copy(dst, src) // streams do that without a buffer between
		if err == nil {
			err = end()
		}
		if err != nil {
			fail(CodeBroken, "the connection was reset", err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { half(st, l, st.CloseWrite) })
	half(l, st, func() error { return closeWrite(conn) })
	wg.Wait()
	stop()
	once.Do(func() { // nothing has failed, and now nothing will
		if cause = conn.Close(); cause != nil {
			cause = fmt.Errorf("%w: %w", errLocal, cause)
		}
		cause = errors.Join(cause, st.Close())
	})
	return cause
}

// local marks a connection's errors, and counts its bytes.
type local struct {
	net.Conn
	c *counters
}

func (l local) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.c.sent.Add(int64(n))
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", errLocal, err)
	}
	return n, err
}

func (l local) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	l.c.received.Add(int64(n))
	if err != nil {
		err = fmt.Errorf("%w: %w", errLocal, err)
	}
	return n, err
}

// closeWrite tells a connection's other end that nothing follows.
func closeWrite(conn net.Conn) error {
	c, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("%w: %T can't be half closed", errLocal, conn)
	}
	if err := c.CloseWrite(); err != nil {
		return fmt.Errorf("%w: %w", errLocal, err)
	}
	return nil
}

// abort ends a connection with a reset, where its kind knows that.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it fails on one that is closed already
	}
	conn.Close()
}
