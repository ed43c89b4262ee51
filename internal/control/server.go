package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/control/controlpb"
	"github.com/spacestore/space/views"
)

const (
	maxMessage   = 4 << 20
	chunkSize    = 1 << 20
	streamWindow = 1 << 20 // per stream: a message, so that one comes while another is worked on
	maxStreams   = 128     // per connection: times streamWindow it is what a client can make the node hold
	connWindow   = 8 << 20 // for all streams of a connection; grpc gives it back when bytes come, not when they are read
	maxPath      = 4096
	maxTransfers = 128 // puts and gets under way, over all connections
	maxPage      = 1000
)

// Limits end streams on which nothing moves, so that a stopped client can't
// hold a transfer's resources for ever.
type Limits struct {
	PutIdle time.Duration // without a message; a client whose source is slow sends empty ones
	GetIdle time.Duration // without the client taking a message
}

// DefaultLimits are what a node uses.
var DefaultLimits = Limits{PutIdle: 5 * time.Minute, GetIdle: time.Hour}

// Server serves an API, or that of the fabric, on a control socket.
type Server struct {
	api       API
	log       *slog.Logger
	limits    Limits
	grpc      *grpc.Server
	pool      mem.BufferPool
	transfers chan struct{}
}

// NewServer returns a server for api.
func NewServer(api API, log *slog.Logger, limits Limits) *Server {
	s := newServer(log, limits)
	s.api = api
	controlpb.RegisterCapsulesServer(s.grpc, capsulesServer{Server: s})
	controlpb.RegisterVolumesServer(s.grpc, volumesServer{Server: s})
	controlpb.RegisterSnapshotsServer(s.grpc, snapshotsServer{Server: s})
	controlpb.RegisterMaintenanceServer(s.grpc, maintenanceServer{Server: s})
	controlpb.RegisterKeysServer(s.grpc, keysServer{Server: s})
	controlpb.RegisterTreesServer(s.grpc, treesServer{Server: s})
	controlpb.RegisterProjectionsServer(s.grpc, projectionsServer{Server: s})
	controlpb.RegisterNodeServer(s.grpc, nodeServer{Server: s})
	return s
}

func newServer(log *slog.Logger, limits Limits) *Server {
	s := &Server{log: log, limits: limits, pool: mem.DefaultBufferPool(), transfers: make(chan struct{}, maxTransfers)}
	s.grpc = grpc.NewServer(
		grpc.Creds(peerCredentials{}),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(64<<10),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.ReadBufferSize(256<<10),
		grpc.WriteBufferSize(256<<10),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	return s
}

// Serve answers on l until [Server.Drain] or [Server.Stop].
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return capsule.Wrap(capsule.IO, err, "control socket")
	}
	return nil
}

// Drain closes the socket, refuses new requests and returns when those under
// way have finished. When ctx ends first it cancels them and returns false.
func (s *Server) Drain(ctx context.Context) (finished bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
		return false
	}
}

// Stop cancels everything and returns when the last handler has.
func (s *Server) Stop() { s.grpc.Stop() }

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, s.panicked(info.FullMethod, p)
		}
		err = toStatus(err)
	}()
	return handler(ctx, req)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(info.FullMethod, p)
		}
		err = toStatus(err)
	}()
	return handler(srv, ss)
}

func (s *Server) panicked(method string, p any) error {
	s.log.Error("request panicked", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return capsule.Errorf(capsule.Other, "internal error in the node while it served %s; its log says more", method)
}

// transfer takes one of the places for puts and gets.
func (s *Server) transfer(ctx context.Context) (release func(), err error) {
	select {
	case s.transfers <- struct{}{}:
		return func() { <-s.transfers }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// watched runs fn, which moves content through a stream and calls touch
// whenever something moved, and gives up on it when nothing did for limit. A
// handler that returns ends its stream; that is what gets fn out of a blocked
// receive or send, and nothing else does.
func (s *Server) watched(ctx context.Context, limit time.Duration, what string, fn func(ctx context.Context, touch func()) error) error {
	release, err := s.transfer(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	idle := make(chan struct{})
	timer := time.AfterFunc(limit, func() { close(idle) })
	done := make(chan error, 1)
	go func() {
		defer release()
		defer func() {
			if p := recover(); p != nil {
				done <- s.panicked(what, p)
			}
		}()
		done <- fn(ctx, func() {
			if timer.Stop() {
				timer.Reset(limit)
			}
		})
	}()
	defer timer.Stop()
	defer cancel()
	select {
	case err := <-done:
		return err
	case <-idle:
		return capsule.Errorf(capsule.Canceled, "%s: nothing moved for %s", what, limit)
	}
}

func checkRef(ref string) error {
	switch {
	case ref == "":
		return capsule.Errorf(capsule.Invalid, "no capsule given: name one by its ID or its name")
	case len(ref) > capsule.MaxName:
		return capsule.Errorf(capsule.Invalid, "capsule %.64q… is neither an ID nor a name: it is %d bytes long", ref, len(ref))
	case strings.ContainsRune(ref, 0):
		return capsule.Errorf(capsule.Invalid, "capsule %.64q is neither an ID nor a name: it holds a NUL byte", ref)
	}
	return nil
}

func checkOptionalName(name string) error {
	if name == "" {
		return nil
	}
	return capsule.CheckName(name)
}

func checkTarget(target string) error {
	switch {
	case len(target) > maxPath || strings.ContainsRune(target, 0):
		return capsule.Errorf(capsule.Invalid, "target %.64q is not a path", target)
	case !filepath.IsAbs(target) || filepath.Clean(target) != target:
		return capsule.Errorf(capsule.Invalid, "target %q is not a clean absolute path", target)
	}
	return nil
}

// maxNVMeList bounds the lists of one NVMe export.
const maxNVMeList = 256

// checkNVMe bounds what an NVMe export asks for; whether it makes sense, the
// node knows.
func checkNVMe(req *controlpb.MountRequest) error {
	n := req.GetNvme()
	if req.GetTarget() != "" || req.GetAllowOther() || req.GetAll() {
		return capsule.Errorf(capsule.Invalid, "project: the nvme view shows one capsule, and not at a directory")
	}
	texts := append([]string{n.GetNqn()}, n.GetListen()...)
	for _, h := range n.GetHosts() {
		texts = append(texts, h.GetNqn(), h.GetSecret(), h.GetCtrlSecret())
	}
	if len(n.GetListen()) > maxNVMeList || len(n.GetHosts()) > maxNVMeList {
		return capsule.Errorf(capsule.Invalid, "project: at most %d addresses and %d hosts can be given", maxNVMeList, maxNVMeList)
	}
	for _, text := range texts {
		if len(text) > 512 || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return capsule.Errorf(capsule.Invalid, "project: %.32q is no name, address or secret of NVMe", text)
		}
	}
	return nil
}

func checkProjection(ref string) error {
	if ref == "" || len(ref) > maxPath || strings.ContainsRune(ref, 0) {
		return capsule.Errorf(capsule.Invalid, "projection %.64q is neither an ID nor a path", ref)
	}
	return nil
}

type capsulesServer struct {
	controlpb.UnimplementedCapsulesServer
	*Server
}

func (s capsulesServer) Put(stream grpc.ClientStreamingServer[controlpb.PutRequest, controlpb.Info]) error {
	return s.watched(stream.Context(), s.limits.PutIdle, "put", func(ctx context.Context, touch func()) error {
		r := &putReader{stream: stream, touch: touch}
		defer r.close()
		first, err := r.next()
		if err != nil {
			return err
		}
		req, err := putRequestFrom(first.GetHeader())
		if err != nil {
			return err
		}
		info, err := s.api.Put(ctx, req, r)
		if err != nil {
			return err
		}
		return stream.SendMsg(infoTo(info))
	})
}

func putRequestFrom(h *controlpb.PutHeader) (store.PutRequest, error) {
	if h == nil {
		return store.PutRequest{}, capsule.Errorf(capsule.Invalid, "put: the first message has no header")
	}
	id, err := idFrom(h.GetId())
	if err != nil {
		return store.PutRequest{}, err
	}
	if err := checkOptionalName(h.GetName()); err != nil {
		return store.PutRequest{}, err
	}
	if h.GetSize() < -1 {
		return store.PutRequest{}, capsule.Errorf(capsule.Invalid, "put: size %d is negative", h.GetSize())
	}
	pol, err := policyFrom(h.GetPolicy())
	if err != nil {
		return store.PutRequest{}, err
	}
	return store.PutRequest{ID: id, Name: h.GetName(), Exclusive: h.GetExclusive(), Size: h.GetSize(), Version: h.GetVersion(), Policy: pol}, nil
}

// received is the content of a message, as far as it has not been read.
type received struct {
	data mem.BufferSlice
	off  int // in data[0]
}

func (r *received) take(p []byte) int {
	n := 0
	for n < len(p) && len(r.data) > 0 {
		b := r.data[0]
		m := copy(p[n:], b.ReadOnlyData()[r.off:])
		n += m
		if r.off += m; r.off == b.Len() {
			b.Free()
			r.data, r.off = r.data[1:], 0
		}
	}
	return n
}

func (r *received) close() {
	r.data.Free()
	r.data = nil
}

// receive gets the next message of a stream that stores content. head becomes
// what it is but for its content.
func receive(stream grpc.ServerStream, what string, head proto.Message) (received, error) {
	ch := chunk{head: head}
	err := stream.RecvMsg(&ch)
	if err == io.EOF || err != nil && stream.Context().Err() != nil {
		err = capsule.Errorf(capsule.Canceled, "%s: the client ended before its content did; nothing was stored", what)
	}
	return received{data: ch.data}, err
}

// putReader is the content of a put, as it arrives.
type putReader struct {
	received
	stream grpc.ServerStream
	touch  func()
	last   bool
	err    error
}

// next receives a message and makes its data the reader's.
func (r *putReader) next() (*controlpb.PutRequest, error) {
	head := &controlpb.PutRequest{}
	if r.received, r.err = receive(r.stream, "put", head); r.err != nil {
		return nil, r.err
	}
	r.touch()
	r.last = head.GetLast()
	return head, nil
}

func (r *putReader) Read(p []byte) (int, error) {
	for {
		if n := r.take(p); n > 0 || len(p) == 0 {
			return n, nil
		}
		if r.err != nil {
			return 0, r.err
		}
		if r.last {
			return 0, io.EOF
		}
		if head, err := r.next(); err != nil {
			return 0, err
		} else if head.GetHeader() != nil {
			r.err = capsule.Errorf(capsule.Invalid, "put: a second header")
			return 0, r.err
		}
	}
}

func (s capsulesServer) Get(req *controlpb.GetRequest, stream grpc.ServerStreamingServer[controlpb.GetResponse]) error {
	if err := checkRef(req.GetRef()); err != nil {
		return err
	}
	return s.watched(stream.Context(), s.limits.GetIdle, "get", func(ctx context.Context, touch func()) error {
		w := &getWriter{stream: stream, pool: s.pool, touch: touch, head: func() proto.Message { return &controlpb.GetResponse{} }}
		defer w.close()
		err := s.api.Get(ctx, GetRequest{Ref: req.GetRef(), Offset: req.GetOffset(), Length: req.GetLength()},
			func(info capsule.Info) (io.Writer, error) {
				return w, stream.SendMsg(&chunk{head: &controlpb.GetResponse{Info: infoTo(info)}})
			})
		if ferr := w.flush(); err == nil { // what came before a damaged range is good and worth having
			err = ferr
		}
		return err
	})
}

// getWriter gathers content into messages of chunkSize.
type getWriter struct {
	stream grpc.ServerStream
	pool   mem.BufferPool
	touch  func()
	head   func() proto.Message // of the message that is sent
	buf    *[]byte
	n      int
}

func (w *getWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if w.buf == nil {
			w.buf, w.n = w.pool.Get(chunkSize), 0
		}
		m := copy((*w.buf)[w.n:], p)
		w.n += m
		p = p[m:]
		if w.n == chunkSize {
			if err := w.flush(); err != nil {
				return total - len(p), err
			}
		}
	}
	return total, nil
}

func (w *getWriter) flush() error {
	if w.buf == nil || w.n == 0 {
		return nil
	}
	*w.buf = (*w.buf)[:w.n]
	ch := chunk{head: w.head(), data: mem.BufferSlice{mem.NewBuffer(w.buf, w.pool)}}
	w.buf = nil
	err := w.stream.SendMsg(&ch)
	w.touch()
	return err
}

func (w *getWriter) close() {
	if w.buf != nil {
		w.pool.Put(w.buf)
		w.buf = nil
	}
}

func (s capsulesServer) Resolve(ctx context.Context, req *controlpb.Ref) (*controlpb.Info, error) {
	if err := checkRef(req.GetRef()); err != nil {
		return nil, err
	}
	return infoReply(s.api.Resolve(ctx, req.GetRef()))
}

func infoReply(info capsule.Info, err error) (*controlpb.Info, error) {
	if err != nil {
		return nil, err
	}
	return infoTo(info), nil
}

func (s capsulesServer) Stat(ctx context.Context, req *controlpb.Ref) (*controlpb.StatResponse, error) {
	if err := checkRef(req.GetRef()); err != nil {
		return nil, err
	}
	st, err := s.api.Stat(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	return statTo(st), nil
}

func (s capsulesServer) List(ctx context.Context, req *controlpb.ListRequest) (*controlpb.ListResponse, error) {
	switch {
	case len(req.GetPrefix()) > capsule.MaxName:
		return nil, capsule.Errorf(capsule.Invalid, "list: the prefix is %d bytes long; a name has at most %d", len(req.GetPrefix()), capsule.MaxName)
	case len(req.GetCursor()) > 2*capsule.MaxName:
		return nil, capsule.Errorf(capsule.Invalid, "list: this cursor is not one that a listing gave")
	case req.GetLimit() < 0:
		return nil, capsule.Errorf(capsule.Invalid, "list: limit %d is negative", req.GetLimit())
	}
	page, err := s.api.List(ctx, store.ListQuery{Prefix: req.GetPrefix(), Cursor: req.GetCursor(), Limit: int(min(req.GetLimit(), maxPage))})
	if err != nil {
		return nil, err
	}
	out := &controlpb.ListResponse{Next: page.Next, Capsules: make([]*controlpb.Info, len(page.Capsules))}
	for i, info := range page.Capsules {
		out.Capsules[i] = infoTo(info)
	}
	return out, nil
}

func (s capsulesServer) Rename(ctx context.Context, req *controlpb.RenameRequest) (*controlpb.Info, error) {
	if err := checkRef(req.GetRef()); err != nil {
		return nil, err
	}
	if err := checkOptionalName(req.GetName()); err != nil {
		return nil, err
	}
	return infoReply(s.api.Rename(ctx, req.GetRef(), req.GetName()))
}

func (s capsulesServer) Remove(ctx context.Context, req *controlpb.Ref) (*controlpb.Info, error) {
	if err := checkRef(req.GetRef()); err != nil {
		return nil, err
	}
	return infoReply(s.api.Remove(ctx, req.GetRef()))
}

func (s capsulesServer) Policy(ctx context.Context, req *controlpb.Ref) (*controlpb.PolicyText, error) {
	if err := checkRef(req.GetRef()); err != nil {
		return nil, err
	}
	pol, err := s.api.Policy(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	return &controlpb.PolicyText{Policy: policyTo(pol)}, nil
}

func (s capsulesServer) SetPolicy(ctx context.Context, req *controlpb.SetPolicyRequest) (*controlpb.Info, error) {
	if err := checkRef(req.GetRef()); err != nil {
		return nil, err
	}
	pol, err := policyFrom(req.GetPolicy())
	if err != nil {
		return nil, err
	}
	if pol == nil {
		return nil, capsule.Errorf(capsule.Invalid, "policy set: no policy given")
	}
	return infoReply(s.api.SetPolicy(ctx, req.GetRef(), pol))
}

type maintenanceServer struct {
	controlpb.UnimplementedMaintenanceServer
	*Server
}

func (s maintenanceServer) Usage(ctx context.Context, _ *controlpb.UsageRequest) (*controlpb.UsageResponse, error) {
	u, err := s.api.Usage(ctx)
	if err != nil {
		return nil, err
	}
	return usageTo(u), nil
}

// progressInterval is how often a long job's progress crosses the socket.
const progressInterval = 100 * time.Millisecond

// throttled passes on a progress report every progressInterval. Sending is
// safe because only one report is under way at a time.
func throttled(send func(*controlpb.Progress)) func(done, total int64) {
	var mu sync.Mutex
	var next atomic.Int64
	return func(done, total int64) {
		now := time.Now().UnixNano()
		if now < next.Load() || !mu.TryLock() {
			return
		}
		defer mu.Unlock()
		next.Store(now + int64(progressInterval))
		send(&controlpb.Progress{Done: done, Total: total})
	}
}

func (s maintenanceServer) GC(req *controlpb.GCRequest, stream grpc.ServerStreamingServer[controlpb.GCEvent]) error {
	if !(req.GetMinDead() >= 0 && req.GetMinDead() <= 1) { // so that NaN is refused too
		return capsule.Errorf(capsule.Invalid, "gc: the dead share %v is not between 0 and 1", req.GetMinDead())
	}
	report, err := s.api.GC(stream.Context(), store.GCOptions{MinDead: req.GetMinDead(), Recompress: req.GetRecompress()},
		throttled(func(p *controlpb.Progress) { _ = stream.Send(&controlpb.GCEvent{Progress: p}) })) // a failed send cancels the context
	if err != nil {
		return err
	}
	return stream.Send(&controlpb.GCEvent{Report: gcReportTo(report)})
}

// reportBatch is how many findings of verify go into one message.
const reportBatch = 256

func (s maintenanceServer) Verify(req *controlpb.VerifyRequest, stream grpc.ServerStreamingServer[controlpb.VerifyEvent]) error {
	if req.GetRef() != "" {
		if err := checkRef(req.GetRef()); err != nil {
			return err
		}
	}
	if req.GetRate() < 0 {
		return capsule.Errorf(capsule.Invalid, "verify: rate %d is negative", req.GetRate())
	}
	report, err := s.api.Verify(stream.Context(), VerifyRequest{Ref: req.GetRef(), Rate: req.GetRate(), Resume: req.GetResume(), Metadata: req.GetMetadata()},
		throttled(func(p *controlpb.Progress) { _ = stream.Send(&controlpb.VerifyEvent{Progress: p}) }))
	if err != nil {
		return err
	}
	for damage := report.Damage; len(damage) > 0; {
		n := min(len(damage), reportBatch)
		ev := &controlpb.VerifyEvent{}
		for _, d := range damage[:n] {
			ev.Damage = append(ev.Damage, damageTo(d))
		}
		if err := stream.Send(ev); err != nil {
			return err
		}
		damage = damage[n:]
	}
	for problems := report.Problems; len(problems) > 0; {
		n := min(len(problems), reportBatch)
		ev := &controlpb.VerifyEvent{}
		for _, p := range problems[:n] {
			ev.Problems = append(ev.Problems, clip(p, 8<<10))
		}
		if err := stream.Send(ev); err != nil {
			return err
		}
		problems = problems[n:]
	}
	return stream.Send(&controlpb.VerifyEvent{Report: &controlpb.VerifyReport{Segments: report.Segments, Bytes: report.Bytes, Capsules: report.Capsules}})
}

type keysServer struct {
	controlpb.UnimplementedKeysServer
	*Server
}

func (s keysServer) Describe(ctx context.Context, _ *controlpb.KeysRequest) (*controlpb.KeysText, error) {
	return keysReply(s.api.Keys(ctx))
}

func (s keysServer) Rotate(ctx context.Context, req *controlpb.RotateRequest) (*controlpb.KeysText, error) {
	var master *keyring.Source
	if req.GetOwn() || req.GetMasterKey() != "" || req.GetPassphrase() != "" {
		master = &keyring.Source{MasterKey: req.GetMasterKey(), Passphrase: req.GetPassphrase()}
	}
	return keysReply(s.api.RotateKey(ctx, master))
}

func keysReply(info keyring.Info, err error) (*controlpb.KeysText, error) {
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(info)
	return &controlpb.KeysText{Json: text}, err
}

func (s keysServer) Export(ctx context.Context, _ *controlpb.KeysRequest) (*controlpb.KeyExport, error) {
	text, err := s.api.ExportKey(ctx)
	if err != nil {
		return nil, err
	}
	return &controlpb.KeyExport{Text: text}, nil
}

type projectionsServer struct {
	controlpb.UnimplementedProjectionsServer
	*Server
}

func (s projectionsServer) Mount(ctx context.Context, req *controlpb.MountRequest) (*controlpb.Projection, error) {
	if req.GetView() == views.NVMe {
		if err := checkNVMe(req); err != nil {
			return nil, err
		}
	} else if err := checkTarget(req.GetTarget()); err != nil {
		return nil, err
	}
	if req.GetAll() != (req.GetRef() == "") {
		return nil, capsule.Errorf(capsule.Invalid, "project mount: give either one capsule or all")
	}
	if !req.GetAll() {
		if err := checkRef(req.GetRef()); err != nil {
			return nil, err
		}
	}
	if len(req.GetView()) > 32 {
		return nil, capsule.Errorf(capsule.Invalid, "project: view %.32q does not exist", req.GetView())
	}
	if err := checkOptionalSnapshot(req.GetSnapshot()); err != nil {
		return nil, err
	}
	return projectionReply(s.api.Mount(ctx, mountFrom(req)))
}

func projectionReply(p views.Info, err error) (*controlpb.Projection, error) {
	if err != nil {
		return nil, err
	}
	return projectionTo(p), nil
}

func (s projectionsServer) List(_ *controlpb.ProjectionsRequest, stream grpc.ServerStreamingServer[controlpb.Projection]) error {
	list, err := s.api.Projections(stream.Context())
	if err != nil {
		return err
	}
	for _, p := range list {
		if err := stream.Send(projectionTo(p)); err != nil {
			return err
		}
	}
	return nil
}

func (s projectionsServer) Clients(_ *controlpb.ClientsRequest, stream grpc.ServerStreamingServer[controlpb.Client]) error {
	list, err := s.api.Clients(stream.Context())
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := stream.Send(clientTo(c)); err != nil {
			return err
		}
	}
	return nil
}

func (s projectionsServer) Unmount(ctx context.Context, req *controlpb.UnmountRequest) (*controlpb.Projection, error) {
	if err := checkProjection(req.GetRef()); err != nil {
		return nil, err
	}
	return projectionReply(s.api.Unmount(ctx, req.GetRef(), req.GetLazy()))
}

func (s projectionsServer) Wait(ctx context.Context, req *controlpb.WaitRequest) (*controlpb.Projection, error) {
	if err := checkProjection(req.GetRef()); err != nil {
		return nil, err
	}
	if err := s.api.Wait(ctx, req.GetRef()); err != nil {
		return nil, err
	}
	return &controlpb.Projection{}, nil
}

type nodeServer struct {
	controlpb.UnimplementedNodeServer
	*Server
}

func (s nodeServer) Status(ctx context.Context, _ *controlpb.StatusRequest) (*controlpb.StatusResponse, error) {
	st, err := s.api.Status(ctx)
	if err != nil {
		return nil, err
	}
	return statusTo(st), nil
}

func (s nodeServer) Shutdown(ctx context.Context, _ *controlpb.ShutdownRequest) (*controlpb.StatusResponse, error) {
	st, err := s.api.Status(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.api.Shutdown(ctx); err != nil {
		return nil, err
	}
	return statusTo(st), nil
}
