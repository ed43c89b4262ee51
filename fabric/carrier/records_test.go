package carrier

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spacestore/space/fabric/identity"
)

// counted is a connection of which the calls are counted. Reads give what there
// is of script.
type counted struct {
	net.Conn
	script io.Reader
	out    bytes.Buffer
	reads  int
	writes int
	err    error
}

func (c *counted) Read(p []byte) (int, error) {
	c.reads++
	return c.script.Read(p)
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes++
	if c.err != nil {
		return 0, c.err
	}
	return c.out.Write(p)
}

func TestRecordsGoOutTogether(t *testing.T) {
	c := &counted{}
	r := &records{Conn: c}
	var want []byte
	put := func(n int) {
		t.Helper()
		b := bytes.Repeat([]byte{byte(n)}, n)
		want = append(want, b...)
		if k, err := r.Write(b); k != n || err != nil {
			t.Fatal(k, err)
		}
	}
	put(5)
	if c.writes != 1 {
		t.Errorf("%d writes of what nobody holds", c.writes)
	}
	r.hold()
	for range 4 {
		put(recordSize + 22)
	}
	if c.writes != 1 {
		t.Errorf("%d writes of what is held", c.writes)
	}
	r.hold() // by two
	if err := r.release(); err != nil || c.writes != 1 {
		t.Errorf("%d writes of what one holds still, %v", c.writes, err)
	}
	if err := r.release(); err != nil || c.writes != 2 || r.out != nil {
		t.Errorf("%d writes after the release, %v", c.writes, err)
	}
	r.hold()
	put(recordBuffer)
	put(1)
	put(recordBuffer + 1) // more than is ever held
	put(7)
	if err := r.release(); err != nil || !bytes.Equal(c.out.Bytes(), want) {
		t.Errorf("other bytes went out than were written, %v", err)
	}
	// After bytes that were taken in did not go out, nothing goes out.
	r.hold()
	put(5)
	c.err = errors.New("cut")
	if err := r.release(); !errors.Is(err, c.err) {
		t.Errorf("the release says %v", err)
	}
	c.err = nil
	if _, err := r.Write([]byte("x")); err == nil {
		t.Error("a record went out after one that did not")
	}
}

// TestRecordsAreReadAhead only while much comes: a connection that waits holds no
// buffer.
func TestRecordsAreReadAhead(t *testing.T) {
	data := bytes.Repeat([]byte("seven b"), 200_000)
	c := &counted{script: bytes.NewReader(data)}
	r := &records{Conn: c}
	var got []byte
	buf := make([]byte, recordSize+600)
	for i := 0; ; i++ {
		n, err := r.Read(buf[:1+(i*7919)%len(buf)])
		got = append(got, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d, or others", len(got), len(data))
	}
	if most := len(data)/recordBuffer*3 + 10; c.reads > most {
		t.Errorf("%d reads, want %d at most", c.reads, most)
	}
	if r.in != nil {
		t.Error("a buffer is held at the end")
	}
	// Little by little, as from one who types: nothing is read ahead.
	pr, pw := io.Pipe()
	r = &records{Conn: &counted{script: pr}}
	for range 3 {
		go pw.Write(make([]byte, 100))
		if n, err := r.Read(buf); n != 100 || err != nil || r.in != nil || r.much {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
}

// stuck is a connection that takes nothing more once it is to be stuck, until it
// is closed.
type stuck struct {
	net.Conn
	now    atomic.Bool
	in     chan struct{} // told when a write is stuck
	closed chan struct{}
	once   sync.Once
}

func (c *stuck) Write(p []byte) (int, error) {
	if !c.now.Load() {
		return c.Conn.Write(p)
	}
	c.in <- struct{}{}
	<-c.closed
	return 0, net.ErrClosed
}

func (c *stuck) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// A link is closed at once while what is held back is being written to a peer that
// reads nothing: the farewell does not wait for it.
func TestCloseDoesNotWaitForWrites(t *testing.T) {
	f := newFabric(t)
	a, b := f.node(), f.node()
	x, y := net.Pipe()
	defer y.Close()
	go Wrap(context.Background(), y, b, identity.NodeID{}, true)
	c := &stuck{Conn: x, in: make(chan struct{}, 8), closed: make(chan struct{})}
	l, err := Wrap(timeout(t), c, a, b.ID(), false)
	if err != nil {
		t.Fatal(err)
	}
	c.now.Store(true)
	wrote := make(chan error, 1)
	go func() {
		_, err := l.Write(make([]byte, 2*recordSize))
		wrote <- err
	}()
	<-c.in
	done := make(chan struct{})
	go func() { l.Close(); close(done) }()
	select {
	case <-done:
	case <-timeout(t).Done():
		c.Close()
		t.Fatal("the link is not closed while a write is stuck")
	}
	if err := <-wrote; err == nil {
		t.Error("what was stuck was written")
	}
	if _, err := l.Write(make([]byte, 2*recordSize)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write to a closed link: %v", err)
	}
}

// writes counts the writes to a connection.
type writes struct {
	net.Conn
	n atomic.Int64
}

func (c *writes) Write(p []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(p)
}

// All links of TLS write what belongs together at once, whichever end made them.
func TestAllLinksHoldRecords(t *testing.T) {
	f := newFabric(t)
	a, b := f.node(), f.node()
	dialer := func(ctx context.Context, c net.Conn) (Link, error) { return Wrap(ctx, c, a, b.ID(), false) }
	server := func(ctx context.Context, c net.Conn) (Link, error) { return Wrap(ctx, c, b, identity.NodeID{}, true) }
	meeting := func(ctx context.Context, c net.Conn) (Link, error) { return Meet(ctx, c, b, nil) }
	for name, ends := range map[string][2]func(context.Context, net.Conn) (Link, error){
		"dialed": {dialer, server}, "wrapped": {server, dialer}, "met": {meeting, dialer},
	} {
		x, y := net.Pipe()
		count := &writes{Conn: x}
		far := start(func() (Link, error) { return ends[1](timeout(t), y) })
		near, err := ends[0](timeout(t), count)
		if err != nil {
			t.Fatal(err)
		}
		peer := <-far
		if peer.err != nil {
			t.Fatal(peer.err)
		}
		read := start(func() (int64, error) { return io.Copy(io.Discard, peer.v) })
		before := count.n.Load()
		if _, err := near.Write(bytes.Repeat([]byte("x"), 4*recordSize)); err != nil {
			t.Fatal(err)
		}
		if n := count.n.Load() - before; n != 1 {
			t.Errorf("%s: four records have gone out in %d writes", name, n)
		}
		near.Close()
		if got := <-read; got.v != 4*recordSize {
			t.Errorf("%s: %d bytes have come, %v", name, got.v, got.err)
		}
		peer.v.Close()
	}
}

// result is what a function has returned.
type result[T any] struct {
	v   T
	err error
}

// start runs fn beside its caller.
func start[T any](fn func() (T, error)) <-chan result[T] {
	c := make(chan result[T], 1)
	go func() {
		v, err := fn()
		c <- result[T]{v, err}
	}()
	return c
}
