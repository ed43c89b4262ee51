package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control/controlpb"
	"github.com/spacestore/space/internal/unixsocket"
)

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

var sizes = []int{0, 1, 4096, chunkSize - 1, chunkSize, chunkSize + 1, 5*chunkSize + 77}

func TestPutCarriesContent(t *testing.T) {
	var got bytes.Buffer
	var req store.PutRequest
	c := serve(t, &fake{put: func(_ context.Context, r store.PutRequest, content io.Reader) (capsule.Info, error) {
		got.Reset()
		req = r
		n, err := got.ReadFrom(content)
		return capsule.Info{ID: r.ID, Name: r.Name, Size: n, Version: 3, Created: time.Unix(1, 2).UTC()}, err
	}})
	pol := capsule.DefaultPolicy()
	pol.Compression = "none"
	for _, n := range sizes {
		for _, size := range []int64{int64(n), -1} {
			want := content(n)
			in := store.PutRequest{ID: capsule.NewID(time.Now()), Name: "a/b", Exclusive: true, Size: size, Version: 7, Policy: pol}
			info, err := c.Put(t.Context(), in, bytes.NewReader(want))
			if err != nil {
				t.Fatalf("%d bytes, size %d: %v", n, size, err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Fatalf("%d bytes, size %d: other content arrived (%d bytes)", n, size, got.Len())
			}
			if req.ID != in.ID || req.Name != in.Name || !req.Exclusive || req.Size != size || req.Version != in.Version || !req.Policy.Equal(pol) {
				t.Fatalf("request %+v became %+v", in, req)
			}
			if info.ID != in.ID || info.Name != in.Name || info.Size != int64(n) || info.Version != 3 || !info.Created.Equal(time.Unix(1, 2)) {
				t.Fatalf("answer became %+v", info)
			}
		}
	}
}

// Puts of several contents are under way together, and the bytes of all are
// wanted no more before any has ended; each has a result of its own.
func TestPutAllCarriesContents(t *testing.T) {
	taken := make(chan struct{})
	full := capsule.Errorf(capsule.NoSpace, "the disk is full")
	c := serve(t, &fake{put: func(ctx context.Context, r store.PutRequest, content io.Reader) (capsule.Info, error) {
		b, err := io.ReadAll(content)
		if err != nil {
			return capsule.Info{}, err
		}
		select {
		case <-taken:
		case <-ctx.Done():
			return capsule.Info{}, ctx.Err()
		}
		if r.Name == "7" {
			return capsule.Info{}, full
		}
		return capsule.Info{Name: r.Name + string(b), Size: r.Size}, nil
	}})
	var contents []store.Content
	for i := range 40 {
		data := []byte(strings.Repeat("x", i))
		contents = append(contents, store.Content{PutRequest: store.PutRequest{Name: fmt.Sprint(i), Size: int64(i)}, Data: data})
	}
	for i, r := range c.PutAll(t.Context(), contents, func() { close(taken) }) {
		if i == 7 {
			if capsule.KindOf(r.Err) != capsule.NoSpace {
				t.Errorf("content 7: %v", r.Err)
			}
			continue
		}
		if want := contents[i]; r.Err != nil || r.Info.Size != want.Size || r.Info.Name != want.Name+string(want.Data) {
			t.Errorf("content %d: %+v, %v", i, r.Info, r.Err)
		}
	}
	if r := c.PutAll(t.Context(), nil, nil); len(r) != 0 {
		t.Errorf("no content at all gives %v", r)
	}
}

func TestGetCarriesContent(t *testing.T) {
	var want []byte
	var req GetRequest
	c := serve(t, &fake{get: func(_ context.Context, r GetRequest, begin func(capsule.Info) (io.Writer, error)) error {
		req = r
		w, err := begin(capsule.Info{Name: "n", Size: 7})
		for rest := want; len(rest) > 0 && err == nil; { // in pieces unlike the messages
			n := min(len(rest), 300_000)
			_, err = w.Write(rest[:n])
			rest = rest[n:]
		}
		return err
	}})
	for _, n := range sizes {
		want = content(n)
		var got bytes.Buffer
		begun := 0
		err := c.Get(t.Context(), GetRequest{Ref: "n", Offset: 5, Length: -1}, func(info capsule.Info) (io.Writer, error) {
			if begun++; info.Name != "n" || info.Size != 7 {
				t.Errorf("begin(%+v)", info)
			}
			return &got, nil
		})
		if err != nil || begun != 1 || !bytes.Equal(got.Bytes(), want) {
			t.Fatalf("%d bytes: %v, begun %d times, got %d bytes", n, err, begun, got.Len())
		}
		if req != (GetRequest{Ref: "n", Offset: 5, Length: -1}) {
			t.Fatalf("request became %+v", req)
		}
	}
}

// A put of which the client did not say that it is complete must look broken
// to the API behind, however it ended.
func TestPutThatBreaksOffIsNoContent(t *testing.T) {
	result := make(chan error, 1)
	started := make(chan struct{}, 1)
	api := &fake{put: func(_ context.Context, _ store.PutRequest, r io.Reader) (capsule.Info, error) {
		buf := make([]byte, 1)
		io.ReadFull(r, buf)
		started <- struct{}{}
		_, err := io.Copy(io.Discard, r)
		result <- err
		return capsule.Info{}, err
	}}
	broken := errors.New("source broke")
	for name, end := range map[string]struct {
		break_ func(c *Client, cancel func())
		source error
	}{
		"context ends":      {func(_ *Client, cancel func()) { cancel() }, nil},
		"connection closes": {func(c *Client, _ func()) { c.Close() }, nil},
		"source fails":      {func(*Client, func()) {}, broken},
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, api)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			source, w := io.Pipe()
			put := make(chan error, 1)
			go func() {
				_, err := c.Put(ctx, store.PutRequest{Size: -1}, source)
				put <- err
			}()
			w.Write(content(chunkSize + 1)) // one full message
			<-started
			end.break_(c, cancel)
			w.CloseWithError(cmpOr(end.source, io.ErrClosedPipe))
			if err := <-result; err == nil {
				t.Error("the API saw the end of the content")
			}
			if err := <-put; err == nil {
				t.Error("Put succeeded")
			} else if end.source != nil && !errors.Is(err, end.source) {
				t.Errorf("Put: %v", err)
			}
		})
	}
}

func cmpOr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func TestErrorsCrossWithKindAndText(t *testing.T) {
	var fail error
	c := serve(t, &fake{stat: func(string) (capsule.Stat, error) { return capsule.Stat{}, fail }})
	for kind := capsule.Other; kind <= capsule.Deadlock; kind++ {
		fail = capsule.Wrap(kind, errors.New("why"), "what failed\twith %q", "é")
		_, err := c.Stat(t.Context(), "x")
		if capsule.KindOf(err) != kind || err.Error() != fail.Error() {
			t.Errorf("%v %q became %v %q", kind, fail, capsule.KindOf(err), err)
		}
	}
	fail = fmt.Errorf("outer: %w", &capsule.DamageError{Capsule: capsule.NewID(time.Now()), Off: 1, Len: 2, Log: 3, LogOff: 4, Why: "rot"})
	_, err := c.Stat(t.Context(), "x")
	var want, got *capsule.DamageError
	errors.As(fail, &want)
	if !errors.As(err, &got) || *got != *want || err.Error() != fail.Error() || capsule.KindOf(err) != capsule.Damaged {
		t.Errorf("%v became %v", fail, err)
	}
	fail = errors.New(strings.Repeat("x", 1<<20))
	if _, err := c.Stat(t.Context(), "x"); err == nil || len(err.Error()) > 10<<10 {
		t.Errorf("a huge error became one of %d bytes", len(err.Error()))
	}
}

func TestKindTablesAreComplete(t *testing.T) {
	if len(kindCodes) != int(capsule.Deadlock)+1 {
		t.Errorf("%d kinds have a gRPC code, there are %d", len(kindCodes), capsule.Deadlock+1)
	}
}

func TestGetSendsWhatCameBeforeTheDamage(t *testing.T) {
	good := content(chunkSize + 5)
	c := serve(t, &fake{get: func(_ context.Context, _ GetRequest, begin func(capsule.Info) (io.Writer, error)) error {
		w, _ := begin(capsule.Info{})
		w.Write(good)
		return &capsule.DamageError{Off: int64(len(good)), Len: 1}
	}})
	var got bytes.Buffer
	err := c.Get(t.Context(), GetRequest{Ref: "x", Length: -1}, func(capsule.Info) (io.Writer, error) { return &got, nil })
	if capsule.KindOf(err) != capsule.Damaged || !bytes.Equal(got.Bytes(), good) {
		t.Errorf("%v after %d bytes of %d", err, got.Len(), len(good))
	}
}

func TestGetStopsWhenTheWriterFails(t *testing.T) {
	stopped := make(chan error, 1)
	c := serve(t, &fake{get: func(ctx context.Context, _ GetRequest, begin func(capsule.Info) (io.Writer, error)) error {
		w, err := begin(capsule.Info{})
		for buf := make([]byte, chunkSize); err == nil; {
			_, err = w.Write(buf)
		}
		stopped <- err
		return err
	}})
	full := errors.New("disk full")
	err := c.Get(t.Context(), GetRequest{Ref: "x", Length: -1}, func(capsule.Info) (io.Writer, error) { return failingWriter{full}, nil })
	if !errors.Is(err, full) {
		t.Errorf("Get: %v", err)
	}
	<-stopped
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestVerifyReportOfAnySizeCrosses(t *testing.T) {
	var want store.VerifyReport
	want.Segments, want.Bytes, want.Capsules = 1, 2, 3
	for i := range 20_000 {
		want.Damage = append(want.Damage, store.Damage{Off: int64(i), Name: strings.Repeat("n", 255), Why: "checksum"})
		want.Problems = append(want.Problems, fmt.Sprint(i))
	}
	c := serve(t, &fake{verify: func(progress func(done, total int64)) (store.VerifyReport, error) {
		progress(7, 9)
		return want, nil
	}})
	var done int64
	got, err := c.Verify(t.Context(), VerifyRequest{}, func(d, _ int64) { done = d })
	if err != nil || done != 7 {
		t.Fatalf("%v, progress %d", err, done)
	}
	if got.Segments != 1 || got.Bytes != 2 || got.Capsules != 3 || len(got.Damage) != len(want.Damage) || len(got.Problems) != len(want.Problems) {
		t.Fatalf("report of %d and %d became one of %d and %d", len(want.Damage), len(want.Problems), len(got.Damage), len(got.Problems))
	}
	for i := range want.Damage {
		if got.Damage[i] != want.Damage[i] || got.Problems[i] != want.Problems[i] {
			t.Fatalf("finding %d: %+v %q", i, got.Damage[i], got.Problems[i])
		}
	}
}

func TestServerSurvivesPanic(t *testing.T) {
	c := serve(t, &fake{stat: func(string) (capsule.Stat, error) { panic("boom") }})
	if _, err := c.Stat(t.Context(), "x"); capsule.KindOf(err) != capsule.Other || strings.Contains(err.Error(), "boom") {
		t.Errorf("Stat: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

func TestHostileArgumentsAreInvalid(t *testing.T) {
	c := serve(t, &fake{})
	long := strings.Repeat("x", 5000)
	for name, call := range map[string]func() error{
		"empty ref":  func() error { _, err := c.Stat(t.Context(), ""); return err },
		"NUL in ref": func() error { _, err := c.Resolve(t.Context(), "a\x00b"); return err },
		"long ref":   func() error { _, err := c.Remove(t.Context(), long); return err },
		"name ../x":  func() error { _, err := c.Rename(t.Context(), "a", "../x"); return err },
		"put bad name": func() error {
			_, err := c.Put(t.Context(), store.PutRequest{Name: "a//b", Size: -1}, strings.NewReader("x"))
			return err
		},
		"put bad size": func() error {
			_, err := c.Put(t.Context(), store.PutRequest{Size: -2}, strings.NewReader("x"))
			return err
		},
		"relative target": func() error { _, err := c.Mount(t.Context(), MountRequest{All: true, Target: "d"}); return err },
		"mount nothing":   func() error { _, err := c.Mount(t.Context(), MountRequest{Target: "/d"}); return err },
		"min dead NaN":    func() error { _, err := c.GC(t.Context(), store.GCOptions{MinDead: math.NaN()}, nil); return err },
		"negative rate":   func() error { _, err := c.Verify(t.Context(), VerifyRequest{Rate: -1}, nil); return err },
		"volume ../x":     func() error { _, err := c.CreateVolume(t.Context(), store.CreateRequest{Name: "../x"}); return err },
		"negative volume": func() error { _, err := c.CreateVolume(t.Context(), store.CreateRequest{Size: -1}); return err },
		"import bad name": func() error {
			_, err := c.ImportVolume(t.Context(), store.CreateRequest{Name: "a//b"}, &ranges{})
			return err
		},
		"export a/b":       func() error { return c.ExportVolume(t.Context(), ExportRequest{Ref: "v", Snapshot: "a/b"}, nil) },
		"snapshot a/b":     func() error { _, err := c.Snapshot(t.Context(), "v", "a/b"); return err },
		"no snapshot":      func() error { _, err := c.Rollback(t.Context(), "v", ""); return err },
		"clone to ..":      func() error { _, err := c.Clone(t.Context(), "v", "s", ".."); return err },
		"diff from noting": func() error { return c.Diff(t.Context(), DiffRequest{Ref: "v"}, nil) },
		"policy too often": func() error {
			_, err := c.SetSnapshotPolicy(t.Context(), "v", capsule.SnapshotPolicy{Every: 1, Keep: 1})
			return err
		},
		"long prefix": func() error { _, err := c.List(t.Context(), store.ListQuery{Prefix: long}); return err },
	} {
		if err := call(); capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("%s: %v (%v)", name, err, capsule.KindOf(err))
		}
	}
}

func TestIdlePutIsEnded(t *testing.T) {
	c := serveAt(t, t.TempDir(), &fake{}, Limits{PutIdle: 20 * time.Millisecond, GetIdle: time.Hour})
	stream, err := c.capsules.Put(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(&chunk{head: &controlpb.PutRequest{Header: &controlpb.PutHeader{Size: -1}}}); err != nil && err != io.EOF { // it may be ended already
		t.Fatal(err)
	}
	err = c.fromStatus(t.Context(), stream.RecvMsg(&controlpb.Info{}))
	if capsule.KindOf(err) != capsule.Canceled || !strings.Contains(err.Error(), "nothing moved") {
		t.Errorf("idle put: %v", err)
	}
}

// recordingStream counts the messages sent to it.
type recordingStream struct {
	grpc.ClientStream
	sent chan *controlpb.PutRequest
}

func (s *recordingStream) SendMsg(m any) error {
	s.sent <- m.(*chunk).head.(*controlpb.PutRequest)
	return nil
}
func (s *recordingStream) CloseSend() error { return nil }

func TestSlowSourceSendsHeartbeats(t *testing.T) {
	stream := &recordingStream{sent: make(chan *controlpb.PutRequest)}
	header := &controlpb.PutHeader{Name: "n"}
	s := &sender{stream: stream, head: func(_ int64, last bool) proto.Message {
		m := &controlpb.PutRequest{Header: header, Last: last}
		header = nil
		return m
	}}
	stop := s.beatEvery(time.Millisecond)
	if first := <-stream.sent; first.GetHeader().GetName() != "n" || first.GetLast() {
		t.Errorf("the first heartbeat carries %v", first)
	}
	if second := <-stream.sent; second.GetHeader() != nil || second.GetLast() {
		t.Errorf("the second heartbeat carries %v", second)
	}
	stop()
	go func() {
		for range stream.sent { // one may be on its way
		}
	}()
	s.mu.Lock() // none is being sent when the channel closes
	s.closed = true
	s.mu.Unlock()
	close(stream.sent)
}

func TestSocket(t *testing.T) {
	deep := t.TempDir()
	for len(deep) < 300 {
		deep = filepath.Join(deep, strings.Repeat("d", 60))
	}
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, home := range map[string]string{"short path": t.TempDir(), "long path": deep} {
		t.Run(name, func(t *testing.T) {
			if _, err := Dial(t.Context(), home); !errors.Is(err, ErrNoNode) {
				t.Fatalf("nobody there: %v", err)
			}
			// A process that died leaves its socket.
			stale, err := Listen(home)
			if err != nil {
				t.Fatal(err)
			}
			stale.(*listener).UnixListener.Close()
			if _, err := os.Lstat(SocketPath(home)); err != nil {
				t.Fatal(err)
			}
			if _, err := Dial(t.Context(), home); !errors.Is(err, ErrNoNode) {
				t.Fatalf("stale socket: %v", err)
			}
			l, err := Listen(home)
			if err != nil {
				t.Fatal(err)
			}
			st, err := os.Lstat(SocketPath(home))
			if err != nil || st.Mode() != os.ModeSocket|0o600 {
				t.Errorf("socket: %v, %v", st.Mode(), err)
			}
			l.Close()
			if names, err := filepath.Glob(home + "/*"); err != nil || len(names) > 0 {
				t.Errorf("left behind: %v %v", names, err)
			}
			c := serveAt(t, home, &fake{}, DefaultLimits)
			if _, err := c.Status(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPeers(t *testing.T) {
	for _, c := range []struct {
		us, them int
		want     bool
	}{{1000, 1000, true}, {1000, 0, true}, {0, 1000, true}, {1000, 1001, false}} {
		if unixsocket.Allowed(c.us, c.them) != c.want {
			t.Errorf("user %d and %d: want %v", c.us, c.them, c.want)
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, err := checkPeer(a); capsule.KindOf(err) != capsule.Denied {
		t.Errorf("a connection without credentials: %v", err)
	}
}

func TestVanishedNodeIsUnavailable(t *testing.T) {
	home := t.TempDir()
	c := serveAt(t, home, &fake{stat: func(string) (capsule.Stat, error) { return capsule.Stat{}, nil }}, DefaultLimits)
	c.Close()
	if _, err := c.Stat(t.Context(), "x"); err == nil {
		t.Error("an answer from nowhere")
	} else if strings.Contains(err.Error(), "rpc error") {
		t.Errorf("gRPC shows through: %v", err)
	}
}

func TestUnknownStatusIsExplained(t *testing.T) {
	c := &Client{conn: conn{socket: "/s"}}
	for code := range 17 {
		err := c.fromStatus(context.Background(), status.Error(codesOf(code), "text"))
		if code == 0 {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "/s") || strings.Contains(err.Error(), "rpc error") {
			t.Errorf("code %d: %v", code, err)
		}
	}
}

// What one client can have sent without anybody reading it is bounded by what
// the server allows of HTTP/2: so many streams, and so many bytes of each.
func TestUnreadBytesAreBounded(t *testing.T) {
	home := t.TempDir()
	serveAt(t, home, &fake{}, DefaultLimits)
	short, release, err := unixsocket.ShortPath(SocketPath(home))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	conn, err := net.Dial("unix", short)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	const settings, streams, window = 4, 3, 4 // RFC 9113, 6.5
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 9)
	if _, err := io.ReadFull(conn, head); err != nil || head[3] != settings {
		t.Fatalf("the first frame is of type %d, %v", head[3], err)
	}
	payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
	if _, err := io.ReadFull(conn, payload); err != nil {
		t.Fatal(err)
	}
	allowed := map[uint16]uint64{}
	for ; len(payload) >= 6; payload = payload[6:] {
		allowed[binary.BigEndian.Uint16(payload)] = uint64(binary.BigEndian.Uint32(payload[2:]))
	}
	if n := allowed[streams] * allowed[window]; n == 0 || n > 128<<20 {
		t.Errorf("a client may send %d bytes in %d streams", n, allowed[streams])
	}
}
