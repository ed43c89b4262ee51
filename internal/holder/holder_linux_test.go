package holder

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/unixsocket"
)

// hung bounds what must not hang.
const hung = time.Minute

// running is a holder that runs in this process.
type running struct {
	t     *testing.T
	home  string
	ended chan error
}

func start(t *testing.T, restart func(context.Context) error) *running {
	t.Helper()
	// Long, so that a socket's address can't hold it.
	home := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	return startAt(t, home, restart)
}

func startAt(t *testing.T, home string, restart func(context.Context) error) *running {
	t.Helper()
	r := &running{t, home, make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	go func() {
		r.ended <- Run(ctx, Options{Home: home, Log: slog.New(slog.DiscardHandler), Restart: restart, Ready: func() { close(ready) }})
	}()
	<-ready
	t.Cleanup(func() {
		cancel()
		r.end()
	})
	return r
}

// end waits for the holder's end.
func (r *running) end() {
	r.t.Helper()
	select {
	case err := <-r.ended:
		if err != nil {
			r.t.Error(err)
		}
		r.ended <- nil
	case <-time.After(hung):
		r.t.Fatal("the holder does not end")
	}
}

func (r *running) dial() *Client {
	r.t.Helper()
	c, err := Dial(context.Background(), r.home)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func (r *running) node(ephemeral bool, wait time.Duration) (*Client, []Mount) {
	r.t.Helper()
	c := r.dial()
	mounts, err := c.Hello(wait, ephemeral)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		for _, m := range mounts {
			m.Close()
		}
	})
	return c, mounts
}

// hold holds a pipe's ends as a mount's descriptors, and returns its other ends.
func hold(t *testing.T, c *Client, id string) (device, memory *os.File) {
	t.Helper()
	var ends [4]*os.File
	for i := 0; i < 4; i += 2 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		ends[i], ends[i+1] = r, w
		t.Cleanup(func() { r.Close() })
	}
	if err := c.Hold(id, []byte("about "+id), ends[1], ends[3]); err != nil {
		t.Fatal(err)
	}
	ends[1].Close()
	ends[3].Close()
	return ends[0], ends[2]
}

// A holder that another one has taken the place of leaves that one's socket.
func TestReplaced(t *testing.T) {
	old := start(t, nil)
	one, _ := old.node(false, 0)
	next := startAt(t, old.home, nil)
	two, _ := next.node(false, time.Hour)
	hold(t, two, "m")
	one.Close()
	old.end()
	two.Close()
	if _, mounts := next.node(false, time.Hour); len(mounts) != 1 {
		t.Errorf("%d mounts are held, want 1", len(mounts))
	}
}

// Who waits for the end of a connection learns of it, whichever end it comes
// from, and is in nobody's way meanwhile.
func TestWait(t *testing.T) {
	for _, end := range []struct {
		name string
		by   func(r *running, c *Client)
	}{
		{"closed", func(_ *running, c *Client) { c.Close() }},
		{"the next node came", func(r *running, _ *Client) { r.node(false, time.Hour) }},
		{"nothing is held", func(r *running, c *Client) {
			c.Release("m")
			c.Close()
			r.end()
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			r := start(t, nil)
			c, _ := r.node(false, time.Hour)
			hold(t, c, "m")
			ended := make(chan error, 1)
			go func() { ended <- c.Wait() }()
			for range 20 {
				if mounts, err := c.List(); err != nil || len(mounts) != 1 {
					t.Fatalf("%d mounts, %v", len(mounts), err)
				}
			}
			select {
			case err := <-ended:
				t.Fatalf("it has ended: %v", err)
			default:
			}
			end.by(r, c)
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(hung):
				t.Fatal("it does not end")
			}
		})
	}
}

// What one node has given the next one gets, with its descriptors.
func TestHandOver(t *testing.T) {
	r := start(t, nil)
	c, mounts := r.node(false, time.Hour)
	if len(mounts) != 0 {
		t.Fatalf("a new holder has %v", mounts)
	}
	device, _ := hold(t, c, "a")
	hold(t, c, "b")
	if err := c.Hold("a", nil, device, device); capsule.KindOf(err) != capsule.Exists {
		t.Errorf("the same mount again: %v", err)
	}
	if err := c.Release("b"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	_, mounts = r.node(false, time.Hour)
	if len(mounts) != 1 || mounts[0].ID != "a" || string(mounts[0].About) != "about a" {
		t.Fatalf("the next node gets %+v", mounts)
	}
	if _, err := mounts[0].Device.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(device, buf); err != nil || string(buf) != "hello" {
		t.Errorf("through the descriptor came %q, %v", buf, err)
	}
	// A command looks, and gives up.
	look := r.dial()
	if all, err := look.List(); err != nil || len(all) != 1 || all[0].Device != nil || string(all[0].About) != "about a" {
		t.Errorf("listed: %+v, %v", all, err)
	}
	mounts[0].Close()
	if err := look.Release("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := device.Read(buf); err != io.EOF {
		t.Errorf("a mount that was given up is held: %v", err)
	}
}

// A node that got no answer asks again.
func TestHeldAgain(t *testing.T) {
	r := start(t, nil)
	c, _ := r.node(false, time.Hour)
	device, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	other, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	about := []byte("about")
	if err := c.Hold("a", about, theirs, theirs); err != nil {
		t.Fatal(err)
	}
	c.Close()
	c, mounts := r.node(false, time.Hour)
	if err := c.Hold("a", about, theirs, theirs); err != nil {
		t.Errorf("the same mount again: %v", err)
	}
	if all, err := c.List(); err != nil || len(all) != 1 {
		t.Errorf("%d mounts are held, %v", len(all), err)
	}
	for what, err := range map[string]error{
		"with another about":  c.Hold("a", []byte("other"), theirs, theirs),
		"with another device": c.Hold("a", about, other, theirs),
		"with another memory": c.Hold("a", about, theirs, other),
	} {
		if capsule.KindOf(err) != capsule.Exists {
			t.Errorf("a mount under the same ID %s: %v", what, err)
		}
	}
	theirs.Close()
	for _, m := range mounts {
		m.Close()
	}
	if err := c.Release("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := device.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a mount that was released is held: %v", err)
	}
}

// A holder that has nothing and no node ends, and takes its socket along.
func TestEnds(t *testing.T) {
	r := start(t, nil)
	c, _ := r.node(false, time.Hour)
	hold(t, c, "a")
	if err := c.Release("a"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	r.end()
	if _, err := Dial(context.Background(), r.home); !errors.Is(err, ErrNone) {
		t.Errorf("after its end: %v", err)
	}
}

// Where no node comes the mounts' descriptors are closed.
func TestNobodyComes(t *testing.T) {
	r := start(t, nil)
	c, _ := r.node(false, time.Millisecond)
	device, memory := hold(t, c, "a")
	c.Close()
	r.end()
	for _, f := range []*os.File{device, memory} {
		if _, err := f.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a descriptor is open: %v", err)
		}
	}
}

// An ephemeral node is started again, until one is there, but not for ever.
func TestRestarts(t *testing.T) {
	started := make(chan *running, 1)
	tries := make(chan int, 100)
	n := 0
	r := start(t, func(context.Context) error {
		n++ // one at a time
		if n == 3 {
			(<-started).node(true, time.Hour)
		}
		tries <- n
		return errors.New("ends at once")
	})
	started <- r
	c, _ := r.node(true, time.Hour)
	hold(t, c, "a")
	c.Close()
	for want := 1; want <= 3; want++ {
		select {
		case got := <-tries:
			if got != want {
				t.Errorf("try %d, want %d", got, want)
			}
		case <-time.After(hung):
			t.Fatal("no node is started")
		}
	}
	if _, mounts := r.node(true, time.Hour); len(mounts) != 1 { // takes the place of the one that came
		t.Errorf("the node gets %v", mounts)
	}
}

// Rubbish is answered with an error, or with the end of the connection.
func TestHostile(t *testing.T) {
	r := start(t, nil)
	node, _ := r.node(false, time.Hour)
	hold(t, node, "a")
	short, release, err := unixsocket.ShortPath(SocketPath(r.home))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for _, rubbish := range []string{"x", "{", `{"op":"?"}`, `{"op":"hold","id":"b"}`, `{"mounts":-1}`, `{"op":"hello","wait":-5}`, strings.Repeat("y", maxMessage)} {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: short, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(hung))
		if _, err := conn.Write([]byte(rubbish)); err != nil {
			t.Fatal(err)
		}
		if m, _, err := receive(conn); err == nil && m.Error == "" {
			t.Errorf("%.20q is answered with %+v", rubbish, m)
		}
		conn.Close()
	}
	if all, err := node.List(); err != nil || len(all) != 1 {
		t.Errorf("after all that there are %v, %v", all, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"op":"hold","version":1,"id":"a","about":"aGVsbG8="}`))
	f.Add([]byte(`{"mounts":3,"kind":4,"error":"x"}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parse(b); err == nil && (m.Mounts < 0 || m.Mounts > MaxMounts) {
			t.Errorf("%d mounts", m.Mounts)
		}
	})
}
