package control

import (
	"context"
	"io"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control/controlpb"
)

type volumesServer struct {
	controlpb.UnimplementedVolumesServer
	*Server
}

// volumeRequest checks what a client wants of a new volume; the store checks
// the sizes.
func volumeRequest(p *controlpb.VolumeHeader) (store.CreateRequest, error) {
	if err := checkOptionalName(p.GetName()); err != nil {
		return store.CreateRequest{}, err
	}
	if p.GetSize() < 0 || p.GetBlockSize() < 0 || p.GetBlockSize() > math.MaxInt32 {
		return store.CreateRequest{}, capsule.Errorf(capsule.Invalid, "no volume has %d bytes in blocks of %d", p.GetSize(), p.GetBlockSize())
	}
	return volumeFrom(p)
}

func (s volumesServer) Create(ctx context.Context, p *controlpb.VolumeHeader) (*controlpb.Info, error) {
	req, err := volumeRequest(p)
	if err != nil {
		return nil, err
	}
	return infoReply(s.api.CreateVolume(ctx, req))
}

func (s volumesServer) Resize(ctx context.Context, req *controlpb.ResizeRequest) (*controlpb.Info, error) {
	if err := checkRef(req.GetRef()); err != nil {
		return nil, err
	}
	return infoReply(s.api.ResizeVolume(ctx, req.GetRef(), req.GetSize()))
}

func (s volumesServer) Import(stream grpc.ClientStreamingServer[controlpb.ImportRequest, controlpb.Info]) error {
	return s.watched(stream.Context(), s.limits.PutIdle, "import", func(ctx context.Context, touch func()) error {
		r := &importReader{stream: stream, touch: touch}
		defer r.close()
		header, err := r.next()
		if err != nil {
			return err
		}
		if header == nil {
			return capsule.Errorf(capsule.Invalid, "import: the first message has no header")
		}
		req, err := volumeRequest(header)
		if err != nil {
			return err
		}
		info, err := s.api.ImportVolume(ctx, req, r)
		if err != nil {
			return err
		}
		return stream.SendMsg(infoTo(info))
	})
}

// importReader is the content of an import, as it arrives.
type importReader struct {
	received
	stream grpc.ServerStream
	touch  func()
	at     int64 // of what is received
	last   bool
}

// next receives a message, makes its data the reader's and returns its header.
func (r *importReader) next() (header *controlpb.VolumeHeader, err error) {
	head := &controlpb.ImportRequest{}
	if r.received, err = receive(r.stream, "import", head); err != nil {
		return nil, err
	}
	r.touch()
	if r.at, r.last = head.GetOffset(), head.GetLast(); r.at < 0 {
		return nil, capsule.Errorf(capsule.Invalid, "import: offset %d is negative", r.at)
	}
	return head.GetHeader(), nil
}

// ReadData implements store.DataReader.
func (r *importReader) ReadData(p []byte) (n int, off int64, err error) {
	for {
		if n := r.take(p); n > 0 || len(p) == 0 {
			off, r.at = r.at, r.at+int64(n)
			return n, off, nil
		}
		if r.last {
			return 0, r.at, io.EOF
		}
		if header, err := r.next(); err != nil {
			return 0, 0, err
		} else if header != nil {
			return 0, 0, capsule.Errorf(capsule.Invalid, "import: a second header")
		}
	}
}

func (s volumesServer) Export(req *controlpb.ExportRequest, stream grpc.ServerStreamingServer[controlpb.ExportResponse]) error {
	if err := checkRef(req.GetRef()); err != nil {
		return err
	}
	if err := checkOptionalSnapshot(req.GetSnapshot()); err != nil {
		return err
	}
	return s.watched(stream.Context(), s.limits.GetIdle, "export", func(ctx context.Context, touch func()) error {
		w := &exportWriter{}
		w.getWriter = getWriter{stream: stream, pool: s.pool, touch: touch, head: func() proto.Message { return &controlpb.ExportResponse{Offset: w.at} }}
		defer w.close()
		err := s.api.ExportVolume(ctx, ExportRequest{Ref: req.GetRef(), Snapshot: req.GetSnapshot()},
			func(info capsule.Info) (io.WriterAt, error) {
				return w, stream.SendMsg(&chunk{head: &controlpb.ExportResponse{Info: infoTo(info)}})
			})
		if ferr := w.flush(); err == nil { // what came before a damaged range is good and worth having
			err = ferr
		}
		return err
	})
}

// exportWriter gathers content that has holes into messages.
type exportWriter struct {
	getWriter
	at  int64 // of what is gathered
	end int64
}

func (w *exportWriter) WriteAt(p []byte, off int64) (n int, err error) {
	if off != w.end {
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	for n < len(p) {
		if w.buf == nil {
			w.at = off + int64(n)
		}
		m := min(len(p)-n, chunkSize)
		if w.buf != nil {
			m = min(m, chunkSize-w.n)
		}
		if _, err := w.Write(p[n : n+m]); err != nil {
			return n, err
		}
		n += m
	}
	w.end = off + int64(n)
	return n, nil
}

func checkOptionalSnapshot(name string) error {
	if name == "" {
		return nil
	}
	return capsule.CheckSnapshotName(name)
}

type snapshotsServer struct {
	controlpb.UnimplementedSnapshotsServer
	*Server
}

func checkSnapshotRef(ref, name string) error {
	if err := checkRef(ref); err != nil {
		return err
	}
	return capsule.CheckSnapshotName(name)
}

func (s snapshotsServer) Create(ctx context.Context, req *controlpb.SnapshotRef) (*controlpb.Snapshot, error) {
	if err := checkSnapshotRef(req.GetRef(), req.GetName()); err != nil {
		return nil, err
	}
	snap, err := s.api.Snapshot(ctx, req.GetRef(), req.GetName())
	if err != nil {
		return nil, err
	}
	return snapshotTo(snap), nil
}

func (s snapshotsServer) List(req *controlpb.Ref, stream grpc.ServerStreamingServer[controlpb.SnapshotList]) error {
	if err := checkRef(req.GetRef()); err != nil {
		return err
	}
	list, err := s.api.Snapshots(stream.Context(), req.GetRef())
	if err != nil {
		return err
	}
	for len(list) > 0 {
		n := min(len(list), reportBatch)
		part := &controlpb.SnapshotList{}
		for _, snap := range list[:n] {
			part.Snapshots = append(part.Snapshots, snapshotTo(snap))
		}
		if err := stream.Send(part); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

func (s snapshotsServer) Delete(ctx context.Context, req *controlpb.SnapshotRef) (*controlpb.Snapshot, error) {
	if err := checkSnapshotRef(req.GetRef(), req.GetName()); err != nil {
		return nil, err
	}
	if err := s.api.DeleteSnapshot(ctx, req.GetRef(), req.GetName()); err != nil {
		return nil, err
	}
	return &controlpb.Snapshot{Name: req.GetName()}, nil
}

func (s snapshotsServer) Rollback(ctx context.Context, req *controlpb.SnapshotRef) (*controlpb.Info, error) {
	if err := checkSnapshotRef(req.GetRef(), req.GetName()); err != nil {
		return nil, err
	}
	return infoReply(s.api.Rollback(ctx, req.GetRef(), req.GetName()))
}

func (s snapshotsServer) Clone(ctx context.Context, req *controlpb.CloneRequest) (*controlpb.Info, error) {
	if err := checkSnapshotRef(req.GetRef(), req.GetSnapshot()); err != nil {
		return nil, err
	}
	if err := checkOptionalName(req.GetName()); err != nil {
		return nil, err
	}
	return infoReply(s.api.Clone(ctx, req.GetRef(), req.GetSnapshot(), req.GetName()))
}

func checkDiff(req *controlpb.DiffRequest) error {
	if err := checkSnapshotRef(req.GetRef(), req.GetFrom()); err != nil {
		return err
	}
	return checkOptionalSnapshot(req.GetTo())
}

func (s snapshotsServer) Diff(req *controlpb.DiffRequest, stream grpc.ServerStreamingServer[controlpb.DiffResponse]) error {
	if err := checkDiff(req); err != nil {
		return err
	}
	return s.watched(stream.Context(), s.limits.GetIdle, "diff", func(ctx context.Context, touch func()) error {
		part := &controlpb.DiffResponse{}
		flush := func() error {
			err := stream.Send(part)
			part = &controlpb.DiffResponse{}
			touch()
			return err
		}
		err := s.api.Diff(ctx, DiffRequest{Ref: req.GetRef(), From: req.GetFrom(), To: req.GetTo()}, func(r store.Range) error {
			part.Ranges = append(part.Ranges, &controlpb.Range{Offset: r.Off, Length: r.Len})
			if len(part.Ranges) < reportBatch {
				return nil
			}
			return flush()
		})
		if err != nil {
			return err
		}
		return flush()
	})
}

func (s snapshotsServer) Policy(ctx context.Context, req *controlpb.Ref) (*controlpb.SnapshotPolicy, error) {
	if err := checkRef(req.GetRef()); err != nil {
		return nil, err
	}
	return snapshotPolicyReply(s.api.SnapshotPolicy(ctx, req.GetRef()))
}

func (s snapshotsServer) SetPolicy(ctx context.Context, req *controlpb.SetSnapshotPolicyRequest) (*controlpb.SnapshotPolicy, error) {
	if err := checkRef(req.GetRef()); err != nil {
		return nil, err
	}
	p := snapshotPolicyFrom(req.GetPolicy())
	if err := p.Check(); err != nil {
		return nil, err
	}
	return snapshotPolicyReply(s.api.SetSnapshotPolicy(ctx, req.GetRef(), p))
}

func snapshotPolicyReply(p capsule.SnapshotPolicy, err error) (*controlpb.SnapshotPolicy, error) {
	if err != nil {
		return nil, err
	}
	return snapshotPolicyTo(p), nil
}
