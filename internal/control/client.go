package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/control/controlpb"
	"github.com/spacestore/space/views"
)

// conn is a connection to a control socket.
type conn struct {
	cc     *grpc.ClientConn
	socket string
}

// Client is the API of the node at the other end of a control socket.
type Client struct {
	conn
	pool        mem.BufferPool
	heartbeat   time.Duration
	capsules    controlpb.CapsulesClient
	volumes     controlpb.VolumesClient
	snapshots   controlpb.SnapshotsClient
	maintenance controlpb.MaintenanceClient
	keys        controlpb.KeysClient
	trees       controlpb.TreesClient
	projections controlpb.ProjectionsClient
	node        controlpb.NodeClient
}

var _ API = (*Client)(nil)

// ErrNoNode says that nobody listens at the control socket.
var ErrNoNode = errors.New("no node is running")

// Dial connects to the node that holds the store at home, and asks it who it
// is so that it is known to answer. It returns ErrNoNode when there is none.
func Dial(ctx context.Context, home string) (*Client, error) {
	to, err := dial(ctx, SocketPath(home))
	if err != nil {
		return nil, err
	}
	c := &Client{conn: to, pool: mem.DefaultBufferPool(), heartbeat: DefaultLimits.PutIdle / 10}
	c.capsules = controlpb.NewCapsulesClient(to.cc)
	c.volumes = controlpb.NewVolumesClient(to.cc)
	c.snapshots = controlpb.NewSnapshotsClient(to.cc)
	c.maintenance = controlpb.NewMaintenanceClient(to.cc)
	c.keys = controlpb.NewKeysClient(to.cc)
	c.trees = controlpb.NewTreesClient(to.cc)
	c.projections = controlpb.NewProjectionsClient(to.cc)
	c.node = controlpb.NewNodeClient(to.cc)
	if _, err := c.Status(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// dial connects to the socket at path. It returns ErrNoNode when nobody listens.
func dial(ctx context.Context, path string) (conn, error) {
	first, err := dialSocket(ctx, path)
	switch {
	case err == nil:
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return conn{}, ErrNoNode
	default:
		kind := capsule.IO
		if errors.Is(err, os.ErrPermission) {
			kind = capsule.Denied
		}
		return conn{}, capsule.Wrap(kind, err, "connect to the node at %s", path)
	}
	handed := make(chan net.Conn, 1)
	handed <- first
	cc, err := grpc.NewClient("passthrough:space",
		grpc.WithTransportCredentials(peerCredentials{}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			select {
			case c := <-handed:
				return c, nil
			default:
				return dialSocket(ctx, path)
			}
		}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(4*connWindow),
		grpc.WithReadBufferSize(256<<10),
		grpc.WithWriteBufferSize(256<<10),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		first.Close()
		return conn{}, capsule.Wrap(capsule.Other, err, "connect to the node at %s", path)
	}
	return conn{cc, path}, nil
}

// Close ends the connection and every request on it.
func (c conn) Close() error { return c.cc.Close() }

// Put implements API.
func (c *Client) Put(ctx context.Context, req store.PutRequest, r io.Reader) (capsule.Info, error) {
	return c.put(ctx, req, r, func() {})
}

// put is Put; it calls sent when it needs r no more.
func (c *Client) put(ctx context.Context, req store.PutRequest, r io.Reader, sent func()) (capsule.Info, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a stream that breaks off stores nothing
	stream, err := c.capsules.Put(ctx)
	if err != nil {
		return capsule.Info{}, c.fromStatus(ctx, err)
	}
	header := &controlpb.PutHeader{Name: req.Name, Id: idTo(req.ID), Exclusive: req.Exclusive, Size: req.Size, Version: req.Version, Policy: policyTo(req.Policy)}
	want := chunkSize
	if req.Size >= 0 && req.Size < chunkSize {
		want = int(req.Size) + 1 // one more, to see the end, or that there is too much
	}
	if err := c.sendContent(ctx, stream, header, want, r); err != nil {
		return capsule.Info{}, err
	}
	sent()
	var info controlpb.Info
	if err := stream.RecvMsg(&info); err != nil {
		return capsule.Info{}, c.fromStatus(ctx, err)
	}
	return infoFrom(&info), nil
}

// PutAll implements API: the puts are under way together, so that the node
// commits them together.
func (c *Client) PutAll(ctx context.Context, contents []store.Content, taken func()) []store.PutResult {
	results := make([]store.PutResult, len(contents))
	var sending, all sync.WaitGroup
	sending.Add(len(contents))
	for i := range contents {
		all.Go(func() {
			sent := sync.OnceFunc(sending.Done)
			defer sent()
			r := &results[i]
			r.Info, r.Err = c.put(ctx, contents[i].PutRequest, bytes.NewReader(contents[i].Data), sent)
		})
	}
	sending.Wait()
	if taken != nil {
		taken()
	}
	all.Wait()
	return results
}

// sendContent sends what r gives in messages of PutRequest, want bytes each. It
// returns nil too when the node has answered already.
func (c *Client) sendContent(ctx context.Context, stream grpc.ClientStream, header *controlpb.PutHeader, want int, r io.Reader) error {
	s := &sender{stream: stream, head: func(_ int64, last bool) proto.Message {
		m := &controlpb.PutRequest{Header: header, Last: last}
		header = nil
		return m
	}}
	defer s.beatEvery(c.heartbeat)()
	for last := false; !last; {
		buf := c.pool.Get(want)
		n, err := io.ReadFull(r, *buf)
		last = err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			c.pool.Put(buf)
			return err
		}
		*buf = (*buf)[:n]
		if err := s.send(mem.BufferSlice{mem.NewBuffer(buf, c.pool)}, 0, last); err == io.EOF {
			return nil // the answer says what
		} else if err != nil {
			return c.fromStatus(ctx, err)
		}
	}
	return nil
}

// sender sends the messages of content: some as it comes, and in between empty
// ones, so that the node can tell a slow source from a dead client.
type sender struct {
	mu     sync.Mutex
	stream grpc.ClientStream
	// head makes a message but for its data, which is at off. The first one
	// has the header, so it is called once for each message sent.
	head   func(off int64, last bool) proto.Message
	off    int64 // where an empty message would have its data
	closed bool
}

func (s *sender) send(data mem.BufferSlice, off int64, last bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = off + int64(data.Len())
	return s.sendLocked(data, off, last)
}

func (s *sender) sendLocked(data mem.BufferSlice, off int64, last bool) error {
	if s.closed {
		data.Free()
		return nil
	}
	ch := chunk{head: s.head(off, last), data: data}
	err := s.stream.SendMsg(&ch)
	if err == nil && last {
		err = s.stream.CloseSend()
	}
	s.closed = last || err != nil
	return err
}

// beat sends an empty message.
func (s *sender) beat() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sendLocked(nil, s.off, false)
}

func (s *sender) beatEvery(d time.Duration) (stop func()) {
	quit := make(chan struct{})
	go func() {
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if s.beat() != nil {
					return
				}
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit) }
}

// Get implements API.
func (c *Client) Get(ctx context.Context, req GetRequest, begin func(capsule.Info) (io.Writer, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.capsules.Get(ctx, &controlpb.GetRequest{Ref: req.Ref, Offset: req.Offset, Length: req.Length})
	if err != nil {
		return c.fromStatus(ctx, err)
	}
	var w io.Writer
	err = receiveContent(c, ctx, stream, func() *controlpb.GetResponse { return &controlpb.GetResponse{} },
		func(head *controlpb.GetResponse, data mem.BufferSlice) (err error) {
			if w == nil {
				if w, err = begin(infoFrom(head.GetInfo())); err != nil {
					return err
				}
			}
			return writeAll(w, data)
		})
	if err == nil && w == nil {
		err = capsule.Errorf(capsule.Other, "get: the node sent nothing")
	}
	return err
}

// receiveContent calls fn with each message of content, until the stream ends.
// head makes an empty message; data is fn's until it returns.
func receiveContent[T proto.Message](c *Client, ctx context.Context, stream grpc.ClientStream, head func() T, fn func(head T, data mem.BufferSlice) error) error {
	for {
		h := head()
		ch := chunk{head: h}
		if err := stream.RecvMsg(&ch); err == io.EOF {
			return nil
		} else if err != nil {
			return c.fromStatus(ctx, err)
		}
		err := fn(h, ch.data)
		ch.free()
		if err != nil {
			return err
		}
	}
}

func writeAll(w io.Writer, data mem.BufferSlice) error {
	for _, b := range data {
		if _, err := w.Write(b.ReadOnlyData()); err != nil {
			return err
		}
	}
	return nil
}

// Resolve implements API.
func (c *Client) Resolve(ctx context.Context, ref string) (capsule.Info, error) {
	return c.info(ctx)(c.capsules.Resolve(ctx, &controlpb.Ref{Ref: ref}))
}

func (c *Client) info(ctx context.Context) func(*controlpb.Info, error) (capsule.Info, error) {
	return func(p *controlpb.Info, err error) (capsule.Info, error) {
		if err != nil {
			return capsule.Info{}, c.fromStatus(ctx, err)
		}
		return infoFrom(p), nil
	}
}

// Stat implements API.
func (c *Client) Stat(ctx context.Context, ref string) (capsule.Stat, error) {
	p, err := c.capsules.Stat(ctx, &controlpb.Ref{Ref: ref})
	if err != nil {
		return capsule.Stat{}, c.fromStatus(ctx, err)
	}
	return statFrom(p)
}

// List implements API.
func (c *Client) List(ctx context.Context, q store.ListQuery) (store.Page, error) {
	p, err := c.capsules.List(ctx, &controlpb.ListRequest{Prefix: q.Prefix, Cursor: q.Cursor, Limit: int32(min(q.Limit, maxPage))})
	if err != nil {
		return store.Page{}, c.fromStatus(ctx, err)
	}
	page := store.Page{Next: p.GetNext(), Capsules: make([]capsule.Info, len(p.GetCapsules()))}
	for i, info := range p.GetCapsules() {
		page.Capsules[i] = infoFrom(info)
	}
	return page, nil
}

// Rename implements API.
func (c *Client) Rename(ctx context.Context, ref, name string) (capsule.Info, error) {
	return c.info(ctx)(c.capsules.Rename(ctx, &controlpb.RenameRequest{Ref: ref, Name: name}))
}

// Remove implements API.
func (c *Client) Remove(ctx context.Context, ref string) (capsule.Info, error) {
	return c.info(ctx)(c.capsules.Remove(ctx, &controlpb.Ref{Ref: ref}))
}

// Policy implements API.
func (c *Client) Policy(ctx context.Context, ref string) (*capsule.Policy, error) {
	p, err := c.capsules.Policy(ctx, &controlpb.Ref{Ref: ref})
	if err != nil {
		return nil, c.fromStatus(ctx, err)
	}
	return policyFrom(p.GetPolicy())
}

// SetPolicy implements API.
func (c *Client) SetPolicy(ctx context.Context, ref string, p *capsule.Policy) (capsule.Info, error) {
	return c.info(ctx)(c.capsules.SetPolicy(ctx, &controlpb.SetPolicyRequest{Ref: ref, Policy: policyTo(p)}))
}

// CreateVolume implements API.
func (c *Client) CreateVolume(ctx context.Context, req store.CreateRequest) (capsule.Info, error) {
	return c.info(ctx)(c.volumes.Create(ctx, volumeTo(req)))
}

// ResizeVolume implements API.
func (c *Client) ResizeVolume(ctx context.Context, ref string, size int64) (capsule.Info, error) {
	return c.info(ctx)(c.volumes.Resize(ctx, &controlpb.ResizeRequest{Ref: ref, Size: size}))
}

// ImportVolume implements API.
func (c *Client) ImportVolume(ctx context.Context, req store.CreateRequest, r store.DataReader) (capsule.Info, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a stream that breaks off makes no volume
	stream, err := c.volumes.Import(ctx)
	if err != nil {
		return capsule.Info{}, c.fromStatus(ctx, err)
	}
	header := volumeTo(req)
	s := &sender{stream: stream, head: func(off int64, last bool) proto.Message {
		m := &controlpb.ImportRequest{Header: header, Offset: off, Last: last}
		header = nil
		return m
	}}
	defer s.beatEvery(c.heartbeat)()
	for last := false; !last; {
		buf := c.pool.Get(chunkSize)
		n, off, err := r.ReadData(*buf)
		if last = err == io.EOF; err != nil && !last {
			c.pool.Put(buf)
			return capsule.Info{}, err
		}
		*buf = (*buf)[:n]
		if err := s.send(mem.BufferSlice{mem.NewBuffer(buf, c.pool)}, off, last); err == io.EOF {
			break // the node has answered already, and RecvMsg says what
		} else if err != nil {
			return capsule.Info{}, c.fromStatus(ctx, err)
		}
	}
	var info controlpb.Info
	if err := stream.RecvMsg(&info); err != nil {
		return capsule.Info{}, c.fromStatus(ctx, err)
	}
	return infoFrom(&info), nil
}

// ExportVolume implements API.
func (c *Client) ExportVolume(ctx context.Context, req ExportRequest, begin func(capsule.Info) (io.WriterAt, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.volumes.Export(ctx, &controlpb.ExportRequest{Ref: req.Ref, Snapshot: req.Snapshot})
	if err != nil {
		return c.fromStatus(ctx, err)
	}
	var w io.WriterAt
	err = receiveContent(c, ctx, stream, func() *controlpb.ExportResponse { return &controlpb.ExportResponse{} },
		func(head *controlpb.ExportResponse, data mem.BufferSlice) (err error) {
			if w == nil {
				if w, err = begin(infoFrom(head.GetInfo())); err != nil {
					return err
				}
			}
			off := head.GetOffset()
			for _, b := range data {
				if _, err := w.WriteAt(b.ReadOnlyData(), off); err != nil {
					return err
				}
				off += int64(b.Len())
			}
			return nil
		})
	if err == nil && w == nil {
		err = capsule.Errorf(capsule.Other, "export: the node sent nothing")
	}
	return err
}

// Snapshot implements API.
func (c *Client) Snapshot(ctx context.Context, ref, name string) (capsule.Snapshot, error) {
	p, err := c.snapshots.Create(ctx, &controlpb.SnapshotRef{Ref: ref, Name: name})
	if err != nil {
		return capsule.Snapshot{}, c.fromStatus(ctx, err)
	}
	return snapshotFrom(p), nil
}

// Snapshots implements API.
func (c *Client) Snapshots(ctx context.Context, ref string) ([]capsule.Snapshot, error) {
	stream, err := c.snapshots.List(ctx, &controlpb.Ref{Ref: ref})
	if err != nil {
		return nil, c.fromStatus(ctx, err)
	}
	list := []capsule.Snapshot{}
	err = batches(c, ctx, stream, func(part *controlpb.SnapshotList) error {
		for _, p := range part.GetSnapshots() {
			list = append(list, snapshotFrom(p))
		}
		return nil
	})
	return list, err
}

// batches hands the parts of a list on until the stream ends.
func batches[T any](c *Client, ctx context.Context, stream grpc.ServerStreamingClient[T], each func(*T) error) error {
	for {
		part, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return c.fromStatus(ctx, err)
		}
		if err := each(part); err != nil {
			return err
		}
	}
}

// DeleteSnapshot implements API.
func (c *Client) DeleteSnapshot(ctx context.Context, ref, name string) error {
	_, err := c.snapshots.Delete(ctx, &controlpb.SnapshotRef{Ref: ref, Name: name})
	return c.fromStatus(ctx, err)
}

// Rollback implements API.
func (c *Client) Rollback(ctx context.Context, ref, snapshot string) (capsule.Info, error) {
	return c.info(ctx)(c.snapshots.Rollback(ctx, &controlpb.SnapshotRef{Ref: ref, Name: snapshot}))
}

// Clone implements API.
func (c *Client) Clone(ctx context.Context, ref, snapshot, name string) (capsule.Info, error) {
	return c.info(ctx)(c.snapshots.Clone(ctx, &controlpb.CloneRequest{Ref: ref, Snapshot: snapshot, Name: name}))
}

// Diff implements API.
func (c *Client) Diff(ctx context.Context, req DiffRequest, fn func(store.Range) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.snapshots.Diff(ctx, &controlpb.DiffRequest{Ref: req.Ref, From: req.From, To: req.To})
	if err != nil {
		return c.fromStatus(ctx, err)
	}
	return batches(c, ctx, stream, func(part *controlpb.DiffResponse) error {
		for _, r := range part.GetRanges() {
			if err := fn(store.Range{Off: r.GetOffset(), Len: r.GetLength()}); err != nil {
				return err
			}
		}
		return nil
	})
}

// SnapshotPolicy implements API.
func (c *Client) SnapshotPolicy(ctx context.Context, ref string) (capsule.SnapshotPolicy, error) {
	return c.snapshotPolicy(ctx)(c.snapshots.Policy(ctx, &controlpb.Ref{Ref: ref}))
}

// SetSnapshotPolicy implements API.
func (c *Client) SetSnapshotPolicy(ctx context.Context, ref string, p capsule.SnapshotPolicy) (capsule.SnapshotPolicy, error) {
	return c.snapshotPolicy(ctx)(c.snapshots.SetPolicy(ctx, &controlpb.SetSnapshotPolicyRequest{Ref: ref, Policy: snapshotPolicyTo(p)}))
}

func (c *Client) snapshotPolicy(ctx context.Context) func(*controlpb.SnapshotPolicy, error) (capsule.SnapshotPolicy, error) {
	return func(p *controlpb.SnapshotPolicy, err error) (capsule.SnapshotPolicy, error) {
		if err != nil {
			return capsule.SnapshotPolicy{}, c.fromStatus(ctx, err)
		}
		return snapshotPolicyFrom(p), nil
	}
}

// Usage implements API.
func (c *Client) Usage(ctx context.Context) (capsule.Usage, error) {
	p, err := c.maintenance.Usage(ctx, &controlpb.UsageRequest{})
	if err != nil {
		return capsule.Usage{}, c.fromStatus(ctx, err)
	}
	return usageFrom(p), nil
}

// GC implements API.
func (c *Client) GC(ctx context.Context, o store.GCOptions, progress func(done, total int64)) (store.GCReport, error) {
	stream, err := c.maintenance.GC(ctx, &controlpb.GCRequest{MinDead: o.MinDead, Recompress: o.Recompress})
	if err != nil {
		return store.GCReport{}, c.fromStatus(ctx, err)
	}
	var report store.GCReport
	err = events(c, ctx, stream, func(ev *controlpb.GCEvent) bool {
		if p := ev.GetProgress(); p != nil && progress != nil {
			progress(p.GetDone(), p.GetTotal())
		}
		report = gcReportFrom(ev.GetReport())
		return ev.GetReport() != nil
	})
	return report, err
}

// Verify implements API.
func (c *Client) Verify(ctx context.Context, req VerifyRequest, progress func(done, total int64)) (store.VerifyReport, error) {
	stream, err := c.maintenance.Verify(ctx, &controlpb.VerifyRequest{Ref: req.Ref, Rate: req.Rate, Resume: req.Resume, Metadata: req.Metadata})
	if err != nil {
		return store.VerifyReport{}, c.fromStatus(ctx, err)
	}
	var report store.VerifyReport
	err = events(c, ctx, stream, func(ev *controlpb.VerifyEvent) bool {
		if p := ev.GetProgress(); p != nil && progress != nil {
			progress(p.GetDone(), p.GetTotal())
		}
		for _, d := range ev.GetDamage() {
			report.Damage = append(report.Damage, damageFrom(d))
		}
		report.Problems = append(report.Problems, ev.GetProblems()...)
		r := ev.GetReport()
		report.Segments, report.Bytes, report.Capsules = r.GetSegments(), r.GetBytes(), r.GetCapsules()
		return r != nil
	})
	return report, err
}

// events hands a job's events on until the stream ends; one of them must have
// been the last, the one that carries the report.
func events[T any](c *Client, ctx context.Context, stream grpc.ServerStreamingClient[T], each func(*T) (last bool)) error {
	last := false
	for {
		ev, err := stream.Recv()
		switch {
		case err == io.EOF && last:
			return nil
		case err == io.EOF:
			return capsule.Errorf(capsule.Other, "the node at %s ended the job without a report", c.socket)
		case err != nil:
			return c.fromStatus(ctx, err)
		}
		last = each(ev)
	}
}

// Keys implements API.
func (c *Client) Keys(ctx context.Context) (keyring.Info, error) {
	return c.keysInfo(ctx)(c.keys.Describe(ctx, &controlpb.KeysRequest{}))
}

// RotateKey implements API.
func (c *Client) RotateKey(ctx context.Context, master *keyring.Source) (keyring.Info, error) {
	req := &controlpb.RotateRequest{}
	if master != nil {
		req.MasterKey, req.Passphrase = master.MasterKey, master.Passphrase
		req.Own = req.MasterKey == "" && req.Passphrase == ""
	}
	return c.keysInfo(ctx)(c.keys.Rotate(ctx, req))
}

func (c *Client) keysInfo(ctx context.Context) func(*controlpb.KeysText, error) (keyring.Info, error) {
	return func(p *controlpb.KeysText, err error) (info keyring.Info, _ error) {
		if err != nil {
			return info, c.fromStatus(ctx, err)
		}
		if err := json.Unmarshal(p.GetJson(), &info); err != nil {
			return info, capsule.Wrap(capsule.Other, err, "the node at %s: key description", c.socket)
		}
		return info, nil
	}
}

// ExportKey implements API.
func (c *Client) ExportKey(ctx context.Context) (string, error) {
	p, err := c.keys.Export(ctx, &controlpb.KeysRequest{})
	return p.GetText(), c.fromStatus(ctx, err)
}

// Mount implements API.
func (c *Client) Mount(ctx context.Context, req MountRequest) (views.Info, error) {
	return c.projection(ctx)(c.projections.Mount(ctx, mountTo(req)))
}

func (c *Client) projection(ctx context.Context) func(*controlpb.Projection, error) (views.Info, error) {
	return func(p *controlpb.Projection, err error) (views.Info, error) {
		if err != nil {
			return views.Info{}, c.fromStatus(ctx, err)
		}
		return projectionFrom(p), nil
	}
}

// Projections implements API.
func (c *Client) Projections(ctx context.Context) ([]views.Info, error) {
	stream, err := c.projections.List(ctx, &controlpb.ProjectionsRequest{})
	if err != nil {
		return nil, c.fromStatus(ctx, err)
	}
	var list []views.Info
	err = batches(c, ctx, stream, func(p *controlpb.Projection) error {
		list = append(list, projectionFrom(p))
		return nil
	})
	return list, err
}

// Clients implements API.
func (c *Client) Clients(ctx context.Context) ([]views.Client, error) {
	stream, err := c.projections.Clients(ctx, &controlpb.ClientsRequest{})
	if err != nil {
		return nil, c.fromStatus(ctx, err)
	}
	var list []views.Client
	err = batches(c, ctx, stream, func(p *controlpb.Client) error {
		list = append(list, clientFrom(p))
		return nil
	})
	return list, err
}

// Unmount implements API.
func (c *Client) Unmount(ctx context.Context, ref string, lazy bool) (views.Info, error) {
	return c.projection(ctx)(c.projections.Unmount(ctx, &controlpb.UnmountRequest{Ref: ref, Lazy: lazy}))
}

// Wait implements API.
func (c *Client) Wait(ctx context.Context, ref string) error {
	_, err := c.projections.Wait(ctx, &controlpb.WaitRequest{Ref: ref})
	return c.fromStatus(ctx, err)
}

// Status implements API.
func (c *Client) Status(ctx context.Context) (Status, error) {
	p, err := c.node.Status(ctx, &controlpb.StatusRequest{})
	if err != nil {
		return Status{}, c.fromStatus(ctx, err)
	}
	return statusFrom(p), nil
}

// Shutdown implements API.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := c.node.Shutdown(ctx, &controlpb.ShutdownRequest{})
	return c.fromStatus(ctx, err)
}
