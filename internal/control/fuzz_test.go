package control

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control/controlpb"
)

func codesOf(n int) codes.Code { return codes.Code(n) }

// pieces cuts data into buffers, as a transport does.
func pieces(data []byte, size int) mem.BufferSlice {
	var out mem.BufferSlice
	for len(data) > 0 {
		n := min(size, len(data))
		out = append(out, mem.SliceBuffer(data[:n]))
		data = data[n:]
	}
	return out
}

// FuzzChunk: whatever the content codec accepts, protobuf reads as the same
// message.
func FuzzChunk(f *testing.F) {
	for _, m := range []*controlpb.PutRequest{
		{},
		{Data: []byte("content"), Last: true},
		{Header: &controlpb.PutHeader{Name: "n", Size: -1, Policy: "dedupe: true"}, Data: make([]byte, 100)},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(7))
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		head := &controlpb.PutRequest{}
		ch := chunk{head: head}
		if newCodec().Unmarshal(pieces(data, int(size)+1), &ch) != nil {
			return
		}
		want := &controlpb.PutRequest{}
		if err := proto.Unmarshal(data, want); err != nil {
			t.Fatalf("the codec takes what protobuf refuses: %v", err)
		}
		got := ch.data.Materialize()
		if !bytes.Equal(got, want.GetData()) {
			t.Fatalf("data %x, protobuf has %x", got, want.GetData())
		}
		out, err := newCodec().Marshal(&ch)
		if err != nil {
			t.Fatal(err)
		}
		again := &controlpb.PutRequest{}
		if err := proto.Unmarshal(out.Materialize(), again); err != nil || !proto.Equal(again, want) {
			t.Fatalf("%v: %v became %v", err, want, again)
		}
	})
}

// fuzzStream feeds messages to a streaming handler and drops what it sends.
type fuzzStream struct {
	grpc.ServerStream
	in [][]byte
}

func (s *fuzzStream) Context() context.Context     { return context.Background() }
func (s *fuzzStream) SetHeader(metadata.MD) error  { return nil }
func (s *fuzzStream) SendHeader(metadata.MD) error { return nil }
func (s *fuzzStream) SetTrailer(metadata.MD)       {}
func (s *fuzzStream) SendMsg(m any) error {
	out, err := newCodec().Marshal(m)
	out.Free()
	return err
}
func (s *fuzzStream) RecvMsg(m any) error {
	if len(s.in) == 0 {
		return io.EOF
	}
	b := s.in[0]
	s.in = s.in[1:]
	return newCodec().Unmarshal(pieces(b, 16), m)
}

// FuzzServer gives every method of every service a request of random bytes.
func FuzzServer(f *testing.F) {
	seed := func(m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte{})
	}
	seed(&controlpb.Ref{Ref: "name"})
	seed(&controlpb.GetRequest{Ref: "name", Offset: 1 << 62, Length: 1 << 62})
	seed(&controlpb.PutRequest{Header: &controlpb.PutHeader{Id: make([]byte, 16), Policy: "compression: none\n", Size: 5}, Data: []byte("abcde")})
	seed(&controlpb.SetPolicyRequest{Ref: "name", Policy: "views: [fuse]\n"})
	seed(&controlpb.MountRequest{View: "fuse", All: true, Target: "/mnt"})
	seed(&controlpb.MountRequest{View: "nvme", Ref: "v", Nvme: &controlpb.NVMeExport{Listen: []string{"127.0.0.1:4420"}, Nqn: "nqn.2014-08.org.nvmexpress:uuid:1",
		Hosts: []*controlpb.NVMeHost{{Nqn: "nqn.h", Secret: "DHHC-1:00:x:"}}}})
	seed(&controlpb.GCRequest{MinDead: 0.5})
	seed(&controlpb.VerifyRequest{Ref: "x", Rate: 1})
	seed(&controlpb.UnmountRequest{Ref: "/mnt", Lazy: true})
	seed(&controlpb.VolumeHeader{Name: "v", Size: 1 << 30, BlockSize: 512})
	seed(&controlpb.ImportRequest{Header: &controlpb.VolumeHeader{Name: "v"}, Data: []byte("abc"), Offset: 1 << 62, Last: true})
	seed(&controlpb.ExportRequest{Ref: "v", Snapshot: "s"})
	seed(&controlpb.CloneRequest{Ref: "v", Snapshot: "s", Name: "c"})
	seed(&controlpb.DiffRequest{Ref: "v", From: "a", To: "b"})
	seed(&controlpb.SetSnapshotPolicyRequest{Ref: "v", Policy: &controlpb.SnapshotPolicy{EveryNano: 3600e9, Keep: 24}})
	f.Add([]byte{0xff}, []byte{0x12, 0x01, 'x'})

	s := NewServer(&fake{get: func(_ context.Context, _ GetRequest, begin func(capsule.Info) (io.Writer, error)) error {
		w, err := begin(capsule.Info{})
		if err == nil {
			_, err = w.Write(make([]byte, 100))
		}
		return err
	}}, slog.New(slog.DiscardHandler), DefaultLimits)
	impl := map[string]any{
		"Capsules": capsulesServer{Server: s}, "Volumes": volumesServer{Server: s}, "Snapshots": snapshotsServer{Server: s},
		"Maintenance": maintenanceServer{Server: s}, "Keys": keysServer{Server: s},
		"Projections": projectionsServer{Server: s}, "Node": nodeServer{Server: s},
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		for _, desc := range []grpc.ServiceDesc{controlpb.Capsules_ServiceDesc, controlpb.Volumes_ServiceDesc,
			controlpb.Snapshots_ServiceDesc, controlpb.Maintenance_ServiceDesc, controlpb.Keys_ServiceDesc,
			controlpb.Projections_ServiceDesc, controlpb.Node_ServiceDesc} {
			srv := impl[desc.ServiceName[len("space.control.v1."):]]
			for _, m := range desc.Methods {
				m.Handler(srv, context.Background(), func(req any) error { return newCodec().Unmarshal(pieces(first, 16), req) }, nil)
			}
			for _, m := range desc.Streams {
				m.Handler(srv, &fuzzStream{in: [][]byte{first, second}})
			}
		}
	})
}
